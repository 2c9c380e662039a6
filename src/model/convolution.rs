//! The layers of convolutional networks, with PyTorch's parameter names and initialisation: what the autoencoder, the
//! discriminator and the U-Net are made of. Activations are `[B, C, H, W]`.

use super::kernels;
pub use super::kernels::silu;
use super::layers::{for_product, parameter, single};
use super::random;
use crate::config::Precision;
use burn::module::{Module, Param};
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
    /// Zeros at the top, left, bottom and right.
    #[module(skip)]
    padding: [usize; 4],
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
            padding: [kernel / 2; 4],
        }
    }

    /// The same with another stride and padding on every side.
    pub fn with_stride(self, stride: usize, padding: usize) -> Self {
        Self { stride, padding: [padding; 4], ..self }
    }

    /// The same with so many zeros at the top, left, bottom and right.
    pub fn with_padding(self, padding: [usize; 4]) -> Self {
        Self { padding, ..self }
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
        self.forward_in(x, Precision::F32)
    }

    /// The same computed in another precision; what goes in and comes out is single.
    pub fn forward_in(&self, x: Tensor<4>, precision: Precision) -> Tensor<4> {
        let [x, weight] = [x, self.weight.val()].map(|factor| for_product(factor, precision));
        let bias = for_product(self.bias.val(), precision);
        single(kernels::conv2d(x, weight, bias, self.stride, self.padding), precision)
    }
}

/// `[B, in, H, W] -> [B, out, H', W']` by a weight `[out, in, kernel, kernel]`, padded with zeros on every side; without a
/// bias where there is none.
pub fn convolved(x: Tensor<4>, weight: Tensor<4>, bias: Option<Tensor<1>>, stride: usize, padding: usize) -> Tensor<4> {
    let bias = bias.unwrap_or_else(|| Tensor::zeros([weight.dims()[0]], &x.device()));
    kernels::conv2d(x, weight, bias, stride, [padding; 4])
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
        kernels::group_norm(x, self.weight.val(), self.bias.val(), self.groups, self.eps)
    }

    /// [`silu`] of [`forward`](Self::forward), in one pass over memory.
    pub fn forward_silu(&self, x: Tensor<4>) -> Tensor<4> {
        kernels::group_norm_silu(x, self.weight.val(), self.bias.val(), self.groups, self.eps)
    }
}

/// Twice as high and wide, every value four times (nearest neighbour).
pub fn upsampled(x: Tensor<4>) -> Tensor<4> {
    let [batch, channels, height, width] = x.dims();
    let parted: Tensor<6> = x.reshape([batch, channels, height, 1, width, 1]);
    parted.expand([batch, channels, height, 2, width, 2]).reshape([batch, channels, 2 * height, 2 * width])
}
