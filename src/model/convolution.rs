//! The layers of convolutional networks, with PyTorch's parameter names and initialisation: what the autoencoder, the
//! discriminator and the U-Net are made of. Activations are `[B, C, H, W]`.

use super::layers::parameter;
use super::random;
use burn::module::{Module, Param};
use burn::tensor::activation::sigmoid;
use burn::tensor::module::conv2d;
use burn::tensor::ops::ConvOptions;
use burn::tensor::{Device, Tensor};

/// A convolution with a square kernel.
#[derive(Module, Debug)]
pub struct Conv2d {
    /// `[out, in, kernel, kernel]`.
    pub weight: Param<Tensor<4>>,
    /// `[out]`.
    pub bias: Param<Tensor<1>>,
    #[module(skip)]
    stride: usize,
    #[module(skip)]
    padding: usize,
}

impl Conv2d {
    /// Stride 1 and the padding that keeps height and width. PyTorch's initialisation: weight and bias uniform on
    /// ±1/sqrt(inputs of an output). `name` keys the random numbers.
    pub fn new(input: usize, output: usize, kernel: usize, seed: u64, name: &str, device: &Device) -> Self {
        let inputs = input * kernel * kernel;
        let draw = |part: &str, count| {
            let mut rng = random::keyed(seed, &format!("{name}.{part}"), &[]);
            random::uniform(&mut rng, 1.0 / (inputs as f64).sqrt(), count)
        };
        Self {
            weight: parameter(draw("weight", output * inputs), [output, input, kernel, kernel], device),
            bias: parameter(draw("bias", output), [output], device),
            stride: 1,
            padding: kernel / 2,
        }
    }

    /// The same with another stride and padding on every side.
    pub fn with_stride(self, stride: usize, padding: usize) -> Self {
        Self { stride, padding, ..self }
    }

    /// The same with weight and bias 0, so that a residual branch begins as nothing.
    pub fn zeroed(self) -> Self {
        Self {
            weight: self.weight.map(|weight| weight.zeros_like()),
            bias: self.bias.map(|bias| bias.zeros_like()),
            ..self
        }
    }

    /// `[B, in, H, W] -> [B, out, H', W']`.
    pub fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        convolved(x, self.weight.val(), Some(self.bias.val()), self.stride, self.padding)
    }
}

/// `[B, in, H, W] -> [B, out, H', W']` by a weight `[out, in, kernel, kernel]`, padded with zeros on every side.
pub fn convolved(x: Tensor<4>, weight: Tensor<4>, bias: Option<Tensor<1>>, stride: usize, padding: usize) -> Tensor<4> {
    conv2d(x, weight, bias, ConvOptions::new([stride; 2], [padding; 2], [1, 1], 1))
}

/// Normalisation over groups of channels, each with its own mean and variance (Wu and He 2018).
#[derive(Module, Debug)]
pub struct GroupNorm {
    /// Gain, `[C]`.
    pub weight: Param<Tensor<1>>,
    /// Shift, `[C]`.
    pub bias: Param<Tensor<1>>,
    #[module(skip)]
    groups: usize,
    #[module(skip)]
    eps: f64,
}

impl GroupNorm {
    /// Gain 1, shift 0; `channels` is a multiple of `groups`.
    pub fn new(channels: usize, groups: usize, eps: f64, device: &Device) -> Self {
        Self {
            weight: parameter(vec![1.0; channels], [channels], device),
            bias: parameter(vec![0.0; channels], [channels], device),
            groups,
            eps,
        }
    }

    /// `[B, C, H, W] -> [B, C, H, W]`.
    pub fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        let [batch, channels, height, width] = x.dims();
        let grouped = x.reshape([batch, self.groups, channels / self.groups * height * width]);
        let centred = grouped.clone() - grouped.mean_dim(2);
        let variance = centred.clone().square().mean_dim(2);
        let normal = (centred / (variance + self.eps).sqrt()).reshape([batch, channels, height, width]);
        let by_channel = |values: Tensor<1>| values.reshape([1, channels, 1, 1]);
        normal * by_channel(self.weight.val()) + by_channel(self.bias.val())
    }
}

/// `x · sigmoid(x)` (SiLU, swish).
pub fn silu<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    x.clone() * sigmoid(x)
}

/// Twice as high and wide, every value four times (nearest neighbour).
pub fn upsampled(x: Tensor<4>) -> Tensor<4> {
    let [batch, channels, height, width] = x.dims();
    let parted: Tensor<6> = x.reshape([batch, channels, height, 1, width, 1]);
    parted.expand([batch, channels, height, 2, width, 2]).reshape([batch, channels, 2 * height, 2 * width])
}
