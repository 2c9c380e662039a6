//! A level of the U-Net: residual blocks, each with a spatial transformer where the level attends, and a change of scale.

use super::transformer::SpatialTransformer;
use super::{EPS, Init};
use crate::config::Precision;
use crate::model::convolution::{Conv2d, GroupNorm, silu, upsampled};
use crate::model::layers::{Linear, single};
use burn::module::Module;
use burn::tensor::Tensor;

/// One level, on the way down, in the middle or on the way up.
#[derive(Module, Debug)]
pub struct UnetBlock {
    /// Residual blocks.
    pub resnets: Vec<ResBlock>,
    /// One after each residual block; none where the level does not attend.
    pub attentions: Vec<SpatialTransformer>,
    /// To half the height and width, or none.
    pub downsamplers: Vec<Resampler>,
    /// To twice the height and width, or none.
    pub upsamplers: Vec<Resampler>,
}

/// The convolution of a change of scale.
#[derive(Module, Debug)]
pub struct Resampler {
    /// Stride 2 on the way down; after nearest-neighbour doubling on the way up.
    pub conv: Conv2d,
}

/// Two convolutions, the time added between them, around a shortcut.
#[derive(Module, Debug)]
pub struct ResBlock {
    /// Before the first convolution.
    pub norm1: GroupNorm,
    /// To the new width.
    pub conv1: Conv2d,
    /// The time, added to every position.
    pub time_emb_proj: Linear,
    /// Before the second convolution.
    pub norm2: GroupNorm,
    /// Begins at 0.
    pub conv2: Conv2d,
    /// Where the width changes.
    pub conv_shortcut: Option<Conv2d>,
}

impl UnetBlock {
    /// Residual blocks from each width of `inputs` to `output`.
    pub(super) fn new(init: Init, name: &str, inputs: Vec<usize>, output: usize, attends: bool) -> Self {
        let attentions = if attends { inputs.len() } else { 0 };
        let transformer = |i: usize| SpatialTransformer::new(init, &format!("{name}.attentions.{i}"), output);
        let resnet = |(i, input): (usize, usize)| ResBlock::new(init, &format!("{name}.resnets.{i}"), input, output);
        Self {
            resnets: inputs.into_iter().enumerate().map(resnet).collect(),
            attentions: (0..attentions).map(transformer).collect(),
            downsamplers: vec![],
            upsamplers: vec![],
        }
    }

    pub(super) fn with_attentions(mut self, count: usize) -> Self {
        self.attentions.truncate(count);
        self
    }

    pub(super) fn with_downsampler(mut self, init: Init, name: &str, width: usize) -> Self {
        let conv = Conv2d::new(width, width, 3, init.seed, &format!("{name}.downsamplers.0.conv"), init.device);
        self.downsamplers = vec![Resampler { conv: conv.with_stride(2, 1) }];
        self
    }

    pub(super) fn with_upsampler(mut self, init: Init, name: &str, width: usize) -> Self {
        let conv = Conv2d::new(width, width, 3, init.seed, &format!("{name}.upsamplers.0.conv"), init.device);
        self.upsamplers = vec![Resampler { conv }];
        self
    }

    /// On the way down; every output is left in `skips`.
    pub(super) fn down(
        &self,
        mut x: Tensor<4>,
        time: &Tensor<2>,
        context: &Tensor<3>,
        skips: &mut Vec<Tensor<4>>,
        precision: Precision,
    ) -> Tensor<4> {
        for (i, resnet) in self.resnets.iter().enumerate() {
            x = self.attend(i, resnet.forward(x, time, precision), context, precision);
            skips.push(x.clone());
        }
        for downsampler in &self.downsamplers {
            x = downsampler.conv.forward_in(x, precision);
            skips.push(x.clone());
        }
        x
    }

    /// In the middle: a transformer between two residual blocks.
    pub(super) fn middle(
        &self,
        x: Tensor<4>,
        time: &Tensor<2>,
        context: &Tensor<3>,
        precision: Precision,
    ) -> Tensor<4> {
        let step =
            |x, (i, resnet): (usize, &ResBlock)| self.attend(i, resnet.forward(x, time, precision), context, precision);
        self.resnets.iter().enumerate().fold(x, step)
    }

    /// On the way up: every residual block takes the latest of `skips` as well.
    pub(super) fn up(
        &self,
        mut x: Tensor<4>,
        time: &Tensor<2>,
        context: &Tensor<3>,
        skips: &mut Vec<Tensor<4>>,
        precision: Precision,
    ) -> Tensor<4> {
        for (i, resnet) in self.resnets.iter().enumerate() {
            let skip = skips.pop().expect("the way down left a skip for every block of the way up");
            let both = Tensor::cat(vec![x, skip], 1);
            x = self.attend(i, resnet.forward(both, time, precision), context, precision);
        }
        self.upsamplers.iter().fold(x, |x, upsampler| upsampler.conv.forward_in(upsampled(x), precision))
    }

    fn attend(&self, i: usize, x: Tensor<4>, context: &Tensor<3>, precision: Precision) -> Tensor<4> {
        match self.attentions.get(i) {
            Some(transformer) => transformer.forward(x, context, precision),
            None => x,
        }
    }
}

impl ResBlock {
    fn new(Init { shape, seed, device }: Init, name: &str, input: usize, output: usize) -> Self {
        let conv =
            |from, to, kernel, part: &str| Conv2d::new(from, to, kernel, seed, &format!("{name}.{part}"), device);
        let time = Linear::uniform(4 * shape.channels, output, seed, &format!("{name}.time_emb_proj"), device);
        Self {
            norm1: GroupNorm::new(input, shape.groups, EPS, device),
            conv1: conv(input, output, 3, "conv1"),
            time_emb_proj: time,
            norm2: GroupNorm::new(output, shape.groups, EPS, device),
            conv2: conv(output, output, 3, "conv2").zeroed(),
            conv_shortcut: (input != output).then(|| conv(input, output, 1, "conv_shortcut")),
        }
    }

    /// `[B, input, H, W]` and `time [B, 4 channels]` to `[B, output, H, W]`.
    fn forward(&self, x: Tensor<4>, time: &Tensor<2>, precision: Precision) -> Tensor<4> {
        let time = single(self.time_emb_proj.forward(silu(time.clone()), precision), precision);
        let time = time.unsqueeze_dim::<3>(2).unsqueeze_dim(3);
        let hidden = self.conv1.forward_in(self.norm1.forward_silu(x.clone()), precision) + time;
        let hidden = self.conv2.forward_in(self.norm2.forward_silu(hidden), precision);
        let shortcut = match &self.conv_shortcut {
            Some(conv) => conv.forward_in(x, precision),
            None => x,
        };
        shortcut + hidden
    }
}
