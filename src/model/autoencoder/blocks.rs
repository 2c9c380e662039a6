//! What encoder and decoder are made of, under diffusers' parameter names. Activations are `[B, C, H, W]`.

use crate::config::Precision;
use crate::model::convolution::{Conv2d, GroupNorm, silu, upsampled};
use crate::model::kernels::softmax;
use crate::model::layers::Linear;
use burn::module::Module;
use burn::tensor::{Device, Tensor};

/// Every group normalisation's.
const EPS: f64 = 1e-6;

/// What all layers of a network are made with.
pub(super) struct Maker<'a> {
    pub seed: u64,
    pub groups: usize,
    pub device: &'a Device,
}

impl Maker<'_> {
    pub fn conv(&self, name: &str, input: usize, output: usize, kernel: usize) -> Conv2d {
        Conv2d::new(input, output, kernel, self.seed, name, self.device)
    }

    pub fn norm(&self, channels: usize) -> GroupNorm {
        GroupNorm::new(channels, self.groups, EPS, self.device)
    }

    pub fn resnets(&self, name: &str, input: usize, output: usize, count: usize) -> Vec<Resnet> {
        let from = |i| if i == 0 { input } else { output };
        (0..count).map(|i| Resnet::new(self, &format!("{name}.resnets.{i}"), from(i), output)).collect()
    }

    pub fn attentions(&self, name: &str, width: usize, count: usize) -> Vec<Attention> {
        (0..count).map(|i| Attention::new(self, &format!("{name}.attentions.{i}"), width)).collect()
    }
}

/// Norm, swish, convolution, twice, added to what came in.
#[derive(Module, Debug)]
pub struct Resnet {
    norm1: GroupNorm,
    conv1: Conv2d,
    norm2: GroupNorm,
    conv2: Conv2d,
    /// Where the widths differ.
    conv_shortcut: Option<Conv2d>,
}

impl Resnet {
    fn new(make: &Maker, name: &str, input: usize, output: usize) -> Self {
        Self {
            norm1: make.norm(input),
            conv1: make.conv(&format!("{name}.conv1"), input, output, 3),
            norm2: make.norm(output),
            conv2: make.conv(&format!("{name}.conv2"), output, output, 3),
            conv_shortcut: (input != output).then(|| make.conv(&format!("{name}.conv_shortcut"), input, output, 1)),
        }
    }

    /// `[B, in, H, W] -> [B, out, H, W]`.
    pub fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        let y = self.conv1.forward(silu(self.norm1.forward(x.clone())));
        let y = self.conv2.forward(silu(self.norm2.forward(y)));
        match &self.conv_shortcut {
            Some(shortcut) => shortcut.forward(x) + y,
            None => x + y,
        }
    }
}

/// Self-attention of one head over all positions, added to what came in.
#[derive(Module, Debug)]
pub struct Attention {
    group_norm: GroupNorm,
    to_q: Linear,
    to_k: Linear,
    to_v: Linear,
    /// One layer, as diffusers numbers it.
    to_out: Vec<Linear>,
}

impl Attention {
    fn new(make: &Maker, name: &str, width: usize) -> Self {
        let linear = |part: &str| Linear::uniform(width, width, make.seed, &format!("{name}.{part}"), make.device);
        Self {
            group_norm: make.norm(width),
            to_q: linear("to_q"),
            to_k: linear("to_k"),
            to_v: linear("to_v"),
            to_out: vec![linear("to_out.0")],
        }
    }

    /// `[B, C, H, W] -> [B, C, H, W]`; scores are scaled by C^-½.
    pub fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        let [batch, channels, height, width] = x.dims();
        let tokens = self.group_norm.forward(x.clone()).reshape([batch, channels, height * width]).swap_dims(1, 2);
        let [q, k, v] = [&self.to_q, &self.to_k, &self.to_v].map(|layer| layer.forward(tokens.clone(), Precision::F32));
        let scores = softmax((q * (channels as f64).powf(-0.5)).matmul(k.swap_dims(1, 2)));
        let mixed = self.to_out.iter().fold(scores.matmul(v), |x, layer| layer.forward(x, Precision::F32));
        x + mixed.swap_dims(1, 2).reshape([batch, channels, height, width])
    }
}

/// Resnets, each followed by attention where the level has it.
pub(super) fn through(resnets: &[Resnet], attentions: &[Attention], x: Tensor<4>) -> Tensor<4> {
    resnets.iter().enumerate().fold(x, |x, (i, resnet)| {
        let x = resnet.forward(x);
        match attentions.get(i) {
            Some(attention) => attention.forward(x),
            None => x,
        }
    })
}

/// Resnet, attention, resnet.
#[derive(Module, Debug)]
pub struct Middle {
    resnets: Vec<Resnet>,
    attentions: Vec<Attention>,
}

impl Middle {
    pub(super) fn new(make: &Maker, name: &str, width: usize) -> Self {
        Self { resnets: make.resnets(name, width, width, 2), attentions: make.attentions(name, width, 1) }
    }

    /// `[B, C, H, W] -> [B, C, H, W]`.
    pub fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        through(&self.resnets, &self.attentions, x)
    }
}

/// Half as high and wide: padded by one row below and one column on the right, then a convolution of stride 2.
#[derive(Module, Debug)]
pub struct Downsample {
    conv: Conv2d,
}

impl Downsample {
    pub(super) fn new(make: &Maker, name: &str, width: usize) -> Self {
        Self { conv: make.conv(&format!("{name}.conv"), width, width, 3).with_stride(2, 0).with_padding([0, 0, 1, 1]) }
    }

    /// `[B, C, H, W] -> [B, C, H / 2, W / 2]`.
    pub fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        self.conv.forward(x)
    }
}

/// Twice as high and wide: nearest neighbour, then a convolution.
#[derive(Module, Debug)]
pub struct Upsample {
    conv: Conv2d,
}

impl Upsample {
    pub(super) fn new(make: &Maker, name: &str, width: usize) -> Self {
        Self { conv: make.conv(&format!("{name}.conv"), width, width, 3) }
    }

    /// `[B, C, H, W] -> [B, C, 2 H, 2 W]`.
    pub fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        self.conv.forward(upsampled(x))
    }
}
