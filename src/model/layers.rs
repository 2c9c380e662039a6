//! The layers of transformers, with PyTorch's parameter names and the reference's initialisation.
//!
//! Matrices are stored `[in, out]`, the transpose of PyTorch's, which is what the matrix product wants;
//! [`parameters`](super::parameters) turns them at the door. Parameters and the residual stream are always f32; with
//! [`Precision::Bf16`] the products are computed in bf16, as PyTorch's autocast does.

use super::kernels;
use super::random;
use crate::config::Precision;
use burn::module::{Module, Param};
use burn::tensor::module::linear;
use burn::tensor::{Device, FloatDType, Tensor, TensorData};

/// `x` in the type that products of this precision are computed in.
pub fn for_product<const D: usize>(x: Tensor<D>, precision: Precision) -> Tensor<D> {
    match precision {
        Precision::F32 => x,
        Precision::Bf16 => x.cast(FloatDType::BF16),
    }
}

/// `x` back in f32.
pub fn single<const D: usize>(x: Tensor<D>, precision: Precision) -> Tensor<D> {
    match precision {
        Precision::F32 => x,
        Precision::Bf16 => x.cast(FloatDType::F32),
    }
}

/// A parameter holding `values`.
pub fn parameter<const D: usize>(values: Vec<f32>, shape: [usize; D], device: &Device) -> Param<Tensor<D>> {
    Param::from_tensor(Tensor::from_data(TensorData::new(values, shape), device))
}

/// `y = x W + b`.
#[derive(Module, Debug)]
pub struct Linear {
    /// `[in, out]`.
    pub weight: Param<Tensor<2>>,
    /// `[out]`.
    pub bias: Param<Tensor<1>>,
}

impl Linear {
    /// Weights from a normal distribution with deviation 0.02, bias 0. `name` keys the random numbers.
    pub fn new(input: usize, output: usize, seed: u64, name: &str, device: &Device) -> Self {
        let weight = random::normal(&mut random::keyed(seed, name, &[]), 0.02, input * output);
        Self {
            weight: parameter(weight, [input, output], device),
            bias: parameter(vec![0.0; output], [output], device),
        }
    }

    /// Weight and bias uniform on ±1/sqrt(in): PyTorch's own initialisation. `name` keys the random numbers.
    pub fn uniform(input: usize, output: usize, seed: u64, name: &str, device: &Device) -> Self {
        let draw = |part: &str, count| {
            let mut rng = random::keyed(seed, &format!("{name}.{part}"), &[]);
            random::uniform(&mut rng, 1.0 / (input as f64).sqrt(), count)
        };
        Self {
            weight: parameter(draw("weight", input * output), [input, output], device),
            bias: parameter(draw("bias", output), [output], device),
        }
    }

    /// `[.., in] -> [.., out]`, in the product's type.
    pub fn forward<const D: usize>(&self, x: Tensor<D>, precision: Precision) -> Tensor<D> {
        product(x, self.weight.val(), self.bias.val(), precision)
    }

    /// `[.., in] -> [.., out / parts]`: the outputs of one of `parts` equal groups. Cutting the matrix instead of the
    /// result keeps the backward pass from padding activations, which are larger.
    pub fn forward_part<const D: usize>(
        &self,
        x: Tensor<D>,
        part: usize,
        parts: usize,
        precision: Precision,
    ) -> Tensor<D> {
        let width = self.bias.dims()[0] / parts;
        let weight = self.weight.val().narrow(1, part * width, width);
        product(x, weight, self.bias.val().narrow(0, part * width, width), precision)
    }
}

/// `y = x W`.
#[derive(Module, Debug)]
pub struct Projection {
    /// `[in, out]`.
    pub weight: Param<Tensor<2>>,
}

impl Projection {
    /// Weight uniform on ±1/sqrt(in). `name` keys the random numbers.
    pub fn uniform(input: usize, output: usize, seed: u64, name: &str, device: &Device) -> Self {
        let mut rng = random::keyed(seed, &format!("{name}.weight"), &[]);
        let weight = random::uniform(&mut rng, 1.0 / (input as f64).sqrt(), input * output);
        Self { weight: parameter(weight, [input, output], device) }
    }

    /// `[.., in] -> [.., out]`, in the product's type.
    pub fn forward<const D: usize>(&self, x: Tensor<D>, precision: Precision) -> Tensor<D> {
        let mut shape = x.dims();
        let rows: Tensor<2> = x.reshape([-1, shape[D - 1] as i64]);
        shape[D - 1] = self.weight.dims()[1];
        for_product(rows, precision).matmul(for_product(self.weight.val(), precision)).reshape(shape)
    }
}

/// `x W + b` as one product of two matrices, whatever the rank of `x`.
fn product<const D: usize>(x: Tensor<D>, weight: Tensor<2>, bias: Tensor<1>, precision: Precision) -> Tensor<D> {
    let mut shape = x.dims();
    let rows = x.reshape([-1, shape[D - 1] as i64]);
    let [_, width] = weight.dims();
    shape[D - 1] = width;
    linear::<2>(for_product(rows, precision), for_product(weight, precision), Some(for_product(bias, precision)))
        .reshape(shape)
}

/// Layer normalisation over the last dimension.
#[derive(Module, Debug)]
pub struct LayerNorm {
    /// Gain.
    pub weight: Param<Tensor<1>>,
    /// Shift.
    pub bias: Param<Tensor<1>>,
    #[module(skip)]
    eps: f64,
}

impl LayerNorm {
    /// Gain 1, shift 0, eps 1e-6 (the vision transformer's).
    pub fn new(width: usize, device: &Device) -> Self {
        Self {
            weight: parameter(vec![1.0; width], [width], device),
            bias: parameter(vec![0.0; width], [width], device),
            eps: 1e-6,
        }
    }

    /// The same with another eps.
    pub fn with_eps(self, eps: f64) -> Self {
        Self { eps, ..self }
    }

    /// `[.., width] -> [.., width]` in f32.
    pub fn forward<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        kernels::layer_norm(x, self.weight.val(), self.bias.val(), self.eps)
    }
}
