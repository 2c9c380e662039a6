//! The denoising network of the latent diffusion model (Rombach et al. 2022, after `openaimodel.py`): a U-Net of residual
//! blocks with spatial transformers, which sees the time step in every residual block and the encoder's embedding in
//! every transformer.
//!
//! Latents `[B, C, H, W]`, time steps and context tokens `[B, T, context]` become a prediction `[B, C, H, W]`. Parameter
//! names are those of diffusers' `UNet2DConditionModel`, but for the sequences of one layer that it keeps in lists.

mod block;
mod transformer;

pub use block::{ResBlock, UnetBlock};
pub use transformer::{CrossAttention, SpatialTransformer};

use super::convolution::{Conv2d, GroupNorm, silu};
use super::layers::Linear;
use crate::config::{Precision, UnetShape};
use anyhow::{Result, ensure};
use burn::module::Module;
use burn::tensor::{Device, Tensor, TensorData};

/// Normalisation of residual blocks.
const EPS: f64 = 1e-5;

/// A U-Net on latents.
#[derive(Module, Debug)]
pub struct Unet {
    /// Embedding to context token (Large-Image-Diffusion's `PatchEmbedder`).
    pub condition: Linear,
    /// Latents to features.
    pub conv_in: Conv2d,
    /// What the residual blocks see of the time.
    pub time_embedding: TimeEmbedding,
    /// What they see of the context besides, if anything.
    pub class_embedding: Option<TimeEmbedding>,
    /// Levels, fine to coarse.
    pub down_blocks: Vec<UnetBlock>,
    /// The coarsest level once more.
    pub mid_block: UnetBlock,
    /// Levels, coarse to fine; each residual block also gets what the way down left.
    pub up_blocks: Vec<UnetBlock>,
    /// Before the last convolution.
    pub conv_norm_out: GroupNorm,
    /// Features to the prediction; begins at 0.
    pub conv_out: Conv2d,
    #[module(skip)]
    channels: usize,
    #[module(skip)]
    precision: Precision,
}

/// Sines of the time, or the context, through two layers.
#[derive(Module, Debug)]
pub struct TimeEmbedding {
    /// To four times the width.
    pub linear_1: Linear,
    /// And mixed.
    pub linear_2: Linear,
}

/// Names under one prefix, with what every layer needs.
#[derive(Clone, Copy)]
struct Init<'a> {
    shape: &'a UnetShape,
    seed: u64,
    device: &'a Device,
}

impl Unet {
    /// A network on latents of `latent` channels, conditioned on embeddings of width `embedding`; PyTorch's
    /// initialisation, with the last convolution of every residual branch 0. `seed` decides.
    ///
    /// # Errors
    /// Sizes that contradict each other.
    pub fn new(shape: &UnetShape, latent: usize, embedding: usize, seed: u64, device: &Device) -> Result<Self> {
        shape.check()?;
        ensure!(latent > 0 && embedding > 0, "a U-Net needs latents and a condition");
        let init = Init { shape, seed, device };
        let width = |level: usize| shape.channels * shape.channel_mult[level];
        let levels = shape.channel_mult.len();
        let (mut at, mut skips) = (shape.channels, vec![shape.channels]);
        let mut down_blocks = Vec::new();
        for level in 0..levels {
            let name = format!("down_blocks.{level}");
            let inputs = (0..shape.res_blocks).map(|block| if block == 0 { at } else { width(level) }).collect();
            let mut block = UnetBlock::new(init, &name, inputs, width(level), shape.attends(level));
            at = width(level);
            skips.extend(vec![at; shape.res_blocks]);
            if level + 1 < levels {
                block = block.with_downsampler(init, &name, at);
                skips.push(at);
            }
            down_blocks.push(block);
        }
        let mid_block = UnetBlock::new(init, "mid_block", vec![at; 2], at, true).with_attentions(1);
        let mut up_blocks = Vec::new();
        for level in (0..levels).rev() {
            let name = format!("up_blocks.{}", levels - 1 - level);
            let mut inputs = Vec::new();
            for _ in 0..=shape.res_blocks {
                inputs.push(at + skips.pop().expect("the way down left a skip for every block of the way up"));
                at = width(level);
            }
            let mut block = UnetBlock::new(init, &name, inputs, at, shape.attends(level));
            if level > 0 {
                block = block.with_upsampler(init, &name, at);
            }
            up_blocks.push(block);
        }
        let (channels, time) = (shape.channels, 4 * shape.channels);
        let two_layers = |input: usize, name: &str| TimeEmbedding {
            linear_1: Linear::uniform(input, time, seed, &format!("{name}.linear_1"), device),
            linear_2: Linear::uniform(time, time, seed, &format!("{name}.linear_2"), device),
        };
        Ok(Self {
            condition: Linear::uniform(embedding, shape.context, seed, "condition", device),
            conv_in: Conv2d::new(latent, channels, 3, seed, "conv_in", device),
            time_embedding: two_layers(channels, "time_embedding"),
            class_embedding: shape.context_in_time.then(|| two_layers(shape.context, "class_embedding")),
            down_blocks,
            mid_block,
            up_blocks,
            conv_norm_out: GroupNorm::new(channels, shape.groups, EPS, device),
            conv_out: Conv2d::new(channels, latent, 3, seed, "conv_out", device).zeroed(),
            channels,
            precision: Precision::F32,
        })
    }

    /// The same network computing its products in `precision`, but for the first layers and the last, which are cheap.
    pub fn with_precision(self, precision: Precision) -> Self {
        Self { precision, ..self }
    }

    /// The context of embeddings `[B, embedding]`: one token each, `[B, 1, context]`. A dropped condition is an embedding
    /// of zeros, so that the token without condition is the layer's bias.
    pub fn context(&self, embeddings: Tensor<2>) -> Tensor<3> {
        self.condition.forward(embeddings, Precision::F32).unsqueeze_dim(1)
    }

    /// Noisy latents `[B, C, H, W]` at time steps `times` (one a row) under `context [B, T, context]`: the predicted noise
    /// or velocity. Height and width are multiples of 2 to the power of levels - 1.
    pub fn forward(&self, latents: Tensor<4>, times: &[usize], context: Tensor<3>) -> Tensor<4> {
        let mut time = self.time_embedding.forward(times, self.channels, &latents.device());
        if let Some(embedding) = &self.class_embedding {
            time = time + embedding.of(context.clone().mean_dim(1).squeeze_dim(1));
        }
        let mut x = self.conv_in.forward(latents);
        let mut skips = vec![x.clone()];
        for block in &self.down_blocks {
            x = block.down(x, &time, &context, &mut skips, self.precision);
        }
        x = self.mid_block.middle(x, &time, &context, self.precision);
        for block in &self.up_blocks {
            x = block.up(x, &time, &context, &mut skips, self.precision);
        }
        self.conv_out.forward(self.conv_norm_out.forward_silu(x))
    }
}

impl TimeEmbedding {
    /// One row a time step, `[B, 4 channels]`.
    fn forward(&self, times: &[usize], channels: usize, device: &Device) -> Tensor<2> {
        let rows: Vec<f32> = times.iter().flat_map(|&time| sinusoid(time, channels)).collect();
        self.of(Tensor::from_data(TensorData::new(rows, [times.len(), channels]), device))
    }

    /// `[B, input]` to `[B, 4 channels]`.
    fn of(&self, rows: Tensor<2>) -> Tensor<2> {
        self.linear_2.forward(silu(self.linear_1.forward(rows, Precision::F32)), Precision::F32)
    }
}

/// `[cos(t f_i) | sin(t f_i)]` with `f_i = exp(-ln(10^4) i / half)`, half = width / 2.
fn sinusoid(time: usize, width: usize) -> Vec<f32> {
    let half = width / 2;
    let angle = |i: usize| time as f64 * (-(1e4f64.ln()) * i as f64 / half as f64).exp();
    let cosines = (0..half).map(|i| angle(i).cos() as f32);
    cosines.chain((0..half).map(|i| angle(i).sin() as f32)).collect()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::model::parameters;
    use crate::model::random;

    #[test]
    fn the_sinusoid_is_the_worked_one() {
        let expected = [0.540_302_3, 0.999_95, 0.841_471, 0.009_999_8];
        assert!(sinusoid(1, 4).iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-6));
    }

    fn draw<const D: usize>(name: &str, shape: [usize; D]) -> Tensor<D> {
        let values = random::normal(&mut random::keyed(4, name, &[]), 1.0, shape.iter().product());
        Tensor::from_data(TensorData::new(values, shape), &Device::flex())
    }

    fn shape() -> UnetShape {
        UnetShape {
            channels: 32,
            channel_mult: vec![1, 2],
            res_blocks: 1,
            attention: vec![2],
            heads: 2,
            context: 16,
            context_in_time: false,
            groups: 8,
        }
    }

    /// With the last convolutions at 0 a fresh network predicts nothing, whatever it is asked.
    #[test]
    fn a_fresh_network_predicts_zero_in_the_latents_shape() {
        let unet = Unet::new(&shape(), 3, 24, 1, &Device::flex()).unwrap();
        let context = unet.context(draw("e", [2, 24]));
        let out = unet.forward(draw("z", [2, 3, 8, 12]), &[3, 700], context);
        assert_eq!(out.dims(), [2, 3, 8, 12]);
        assert_eq!(out.abs().max().into_scalar::<f32>(), 0.0);
    }

    /// The network before the last convolution, which starts at 0, made random.
    pub(super) fn alive() -> Unet {
        let unet = Unet::new(&shape(), 3, 24, 1, &Device::flex()).unwrap();
        let mut named = parameters::export(&unet);
        for (name, values) in named.iter_mut().filter(|(_, values)| values.data.iter().all(|v| *v == 0.0)) {
            values.data = random::normal(&mut random::keyed(7, name, &[]), 0.1, values.data.len());
        }
        parameters::import(unet, &named).unwrap()
    }

    /// A single token is attended to with weight 1 by everyone: the shortcut and the attention over the same token given
    /// twice are one formula. Sums of f32 in another order: 1e-5 of values near 1.
    #[test]
    fn one_token_needs_no_attention() {
        let unet = alive();
        let (latents, context) = (draw("z", [2, 3, 8, 8]), unet.context(draw("e", [2, 24])));
        let short = unet.forward(latents.clone(), &[1, 999], context.clone());
        let twice = unet.forward(latents, &[1, 999], Tensor::cat(vec![context.clone(), context], 1));
        let worst = (short - twice).abs().max().into_scalar::<f32>();
        assert!(worst < 1e-5, "{worst}");
    }

    #[test]
    fn time_and_condition_change_the_prediction() {
        let unet = alive();
        let run = |time: usize, name: &str| {
            let context = unet.context(draw(name, [1, 24]));
            unet.forward(draw("z", [1, 3, 8, 8]), &[time], context)
        };
        let differ = |a: Tensor<4>, b: Tensor<4>| (a - b).abs().max().into_scalar::<f32>() > 1e-3;
        assert!(differ(run(1, "a"), run(500, "a")) && differ(run(1, "a"), run(1, "b")));
    }

    /// The weights of the golden script, element i of the parameter at `index` in name order:
    /// `shift + scale sin(1.7 i + index)`.
    fn wave(index: usize, count: usize, scale: f64, shift: f64) -> Vec<f32> {
        (0..count).map(|i| (shift + scale * (1.7 * i as f64 + index as f64).sin()) as f32).collect()
    }

    pub(crate) fn golden_unet() -> (Unet, parameters::Named) {
        golden_network(false)
    }

    fn golden_network(context_in_time: bool) -> (Unet, parameters::Named) {
        let shape = UnetShape { channels: 4, groups: 2, context: 6, context_in_time, ..shape() };
        let unet = Unet::new(&shape, 3, 5, 0, &Device::flex()).unwrap();
        let mut named = parameters::export(&unet);
        for (index, (name, values)) in named.iter_mut().enumerate() {
            let count = values.data.len();
            let gain = values.shape.len() == 1 && name.contains("norm") && name.ends_with("weight");
            let inputs = if values.shape.len() > 1 { count / values.shape[0] } else { 4 };
            let scale = 1.0 / (inputs as f64).sqrt();
            values.data = if gain { wave(index, count, 0.2, 1.0) } else { wave(index, count, scale, 0.0) };
        }
        let path =
            std::path::Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/diffusion/unet.safetensors"));
        let (golden, _) = crate::model::weights::read_safetensors(path).unwrap();
        (parameters::import(unet, &named).unwrap(), golden)
    }

    /// The golden script's inputs, flat.
    pub(crate) fn golden_input(index: usize, count: usize) -> Vec<f32> {
        wave(index, count, 1.0, 0.0)
    }

    /// Against diffusers' UNet2DConditionModel: sums of f32 in another order through 20 layers, 2e-5 of values near 1.
    #[test]
    fn predictions_are_those_of_diffusers() {
        let [(unet, golden), (in_time, _)] = [golden_network(false), golden_network(true)];
        let device = Device::flex();
        let latents = || Tensor::from_data(TensorData::new(golden_input(100, 2 * 3 * 64), [2, 3, 8, 8]), &device);
        let embedding = |index| Tensor::from_data(TensorData::new(golden_input(index, 10), [2, 5]), &device);
        let [first, second] = [102, 103].map(|index| unet.context(embedding(index)));
        for (name, unet, context) in [
            ("one_token", &unet, first.clone()),
            ("two_tokens", &unet, Tensor::cat(vec![first, second], 1)),
            ("in_time", &in_time, in_time.context(embedding(102))),
        ] {
            let found: Vec<f32> = unet.forward(latents(), &[3, 700], context).into_data().try_into_vec().unwrap();
            let expected = &golden[name].data;
            let size = expected.iter().fold(0f32, |size, v| size.max(v.abs()));
            assert!(size > 0.1, "the network answers");
            let worst = found.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(worst < 2e-5 * size.max(1.0), "{name}: {worst} of {size}");
        }
    }
}
