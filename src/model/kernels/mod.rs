//! Operations of convolutional networks written for this crate, because burn's are several times slower on the CPU:
//! convolution without a conversion of the whole input and with a backward pass of large products; normalisation
//! of groups and of layers, softmax, SiLU and GELU in one pass over memory and with the machine's vectors, where burn
//! composes their backward passes of many operations and computes exponentials one by one.
//!
//! The layers of [`convolution`](super::convolution) and of transformers call them. On the CPU (burn-flex, f32) they run the code of this folder; on other
//! devices and in other types they are composed of burn's differentiable operations, which GPUs have kernels for.
//! Results do not depend on the number of threads: work is cut by sizes alone, and every sum has a fixed order. Threads
//! are those of the rayon pool that the caller runs in.

#[cfg(feature = "flex")]
mod convolution;
#[cfg(feature = "flex")]
mod elementwise;
#[cfg(feature = "flex")]
mod extension;
#[cfg(feature = "flex")]
mod normalisation;
#[cfg(feature = "flex")]
mod order;
#[cfg(feature = "flex")]
mod product;
#[cfg(feature = "flex")]
mod rows;
#[cfg(feature = "flex")]
mod sums;
#[cfg(feature = "flex")]
mod transpose;
#[cfg(feature = "flex")]
mod windows;

#[cfg(all(test, feature = "flex"))]
mod tests;

use burn::tensor::Tensor;
use burn::tensor::activation::{self, sigmoid};
use burn::tensor::module;
use burn::tensor::ops::{ConvOptions, PadMode};
#[cfg(feature = "flex")]
use {burn::backend::Dispatch, burn::tensor::DType, extension::Kernels};

/// Convolution with a square kernel: `x [B, C, H, W]`, `weight [O, C, k, k]`, `bias [O]` to `[B, O, H', W']`.
/// `padding` is the zeros at the top, left, bottom and right.
pub fn conv2d(x: Tensor<4>, weight: Tensor<4>, bias: Tensor<1>, stride: usize, padding: [usize; 4]) -> Tensor<4> {
    #[cfg(feature = "flex")]
    if on_cpu(&x) {
        let (x, weight, bias) = (x.into_dispatch(), weight.into_dispatch(), bias.into_dispatch());
        return Tensor::from_dispatch(Dispatch::convolve(x, weight, bias, stride, padding));
    }
    composed_conv2d(x, weight, bias, stride, padding)
}

/// [`conv2d`] from burn's operations.
fn composed_conv2d(x: Tensor<4>, weight: Tensor<4>, bias: Tensor<1>, stride: usize, padding: [usize; 4]) -> Tensor<4> {
    let [top, left, bottom, right] = padding;
    let even = top == bottom && left == right;
    let x = if even { x } else { x.pad((left, right, top, bottom), PadMode::Constant(0.0)) };
    let padding = if even { [top, left] } else { [0, 0] };
    module::conv2d(x, weight, Some(bias), ConvOptions::new([stride; 2], padding, [1, 1], 1))
}

/// Group normalisation of `[B, C, H, W]`, `weight` and `bias` `[C]`, C a multiple of `groups` (Wu and He 2018).
pub fn group_norm(x: Tensor<4>, weight: Tensor<1>, bias: Tensor<1>, groups: usize, eps: f64) -> Tensor<4> {
    normalised(x, weight, bias, groups, eps, false)
}

/// [`silu`] of [`group_norm`], in one pass.
pub fn group_norm_silu(x: Tensor<4>, weight: Tensor<1>, bias: Tensor<1>, groups: usize, eps: f64) -> Tensor<4> {
    normalised(x, weight, bias, groups, eps, true)
}

fn normalised(x: Tensor<4>, weight: Tensor<1>, bias: Tensor<1>, groups: usize, eps: f64, silu: bool) -> Tensor<4> {
    #[cfg(feature = "flex")]
    if on_cpu(&x) {
        let (x, weight, bias) = (x.into_dispatch(), weight.into_dispatch(), bias.into_dispatch());
        return Tensor::from_dispatch(Dispatch::normalise(x, weight, bias, groups, eps, silu));
    }
    let y = composed_group_norm(x, weight, bias, groups, eps);
    if silu { composed_silu(y) } else { y }
}

/// [`group_norm`] from burn's operations.
fn composed_group_norm(x: Tensor<4>, weight: Tensor<1>, bias: Tensor<1>, groups: usize, eps: f64) -> Tensor<4> {
    let [batch, channels, height, width] = x.dims();
    let grouped = x.reshape([batch, groups, channels / groups * height * width]);
    let centred = grouped.clone() - grouped.mean_dim(2);
    let variance = centred.clone().square().mean_dim(2);
    let normal = (centred / (variance + eps).sqrt()).reshape([batch, channels, height, width]);
    normal * weight.reshape([1, channels, 1, 1]) + bias.reshape([1, channels, 1, 1])
}

/// `x · sigmoid(x)` (SiLU, swish).
pub fn silu<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    #[cfg(feature = "flex")]
    if on_cpu(&x) {
        return Tensor::from_dispatch(Dispatch::silu(x.into_dispatch()));
    }
    composed_silu(x)
}

/// [`silu`] from burn's operations.
fn composed_silu<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    x.clone() * sigmoid(x)
}

/// `x Φ(x)` with the normal distribution function Φ: the exact GELU (Hendrycks and Gimpel 2016).
pub fn gelu<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    #[cfg(feature = "flex")]
    if on_cpu(&x) {
        return Tensor::from_dispatch(Dispatch::exact_gelu(x.into_dispatch()));
    }
    activation::gelu(x)
}

/// e^x over its sum, over the last dimension.
pub fn softmax<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    #[cfg(feature = "flex")]
    if on_cpu(&x) {
        return Tensor::from_dispatch(Dispatch::softmax_rows(x.into_dispatch()));
    }
    activation::softmax(x, D - 1)
}

/// Layer normalisation over the last dimension, `weight` and `bias` of its length (Ba et al. 2016).
pub fn layer_norm<const D: usize>(x: Tensor<D>, weight: Tensor<1>, bias: Tensor<1>, eps: f64) -> Tensor<D> {
    #[cfg(feature = "flex")]
    if on_cpu(&x) {
        let (x, weight, bias) = (x.into_dispatch(), weight.into_dispatch(), bias.into_dispatch());
        return Tensor::from_dispatch(Dispatch::normalise_rows(x, weight, bias, eps));
    }
    module::layer_norm(x, weight, Some(bias), eps)
}

/// Whether the code of this folder is for `x`.
#[cfg(feature = "flex")]
fn on_cpu<const D: usize>(x: &Tensor<D>) -> bool {
    super::lies_in_host_memory(&x.device().without_autodiff()) && x.dtype() == DType::F32
}
