//! Nyström attention (Xiong et al., "Nyströmformer", AAAI 2021): softmax attention over n tokens at a cost linear in n, through a few
//! landmarks, the means of stretches of the sequence.

use burn::module::{Module, Param};
use burn::nn::Linear;
use burn::tensor::activation::softmax;
use burn::tensor::module::conv2d;
use burn::tensor::ops::{ConvOptions, PadMode};
use burn::tensor::{Device, Tensor};
use rand_chacha::ChaCha8Rng;

use super::layers::{linear, uniform};

/// Attention heads.
pub(super) const HEADS: usize = 8;
/// Steps towards the pseudo-inverse.
const INVERSE_STEPS: usize = 6;
/// Length of the convolution over the values.
const KERNEL: usize = 33;

/// Softmax(Q K̃ᵀ) (softmax(Q̃ K̃ᵀ))⁺ softmax(Q̃ Kᵀ) V, plus a convolution of V along the sequence.
#[derive(Module, Debug)]
pub struct NystromAttention {
    /// `width` to queries, keys and values, without bias.
    pub qkv: Linear,
    /// `width` to `width`.
    pub out: Linear,
    /// A kernel for each head, `[heads, 1, 33, 1]`.
    pub residual: Param<Tensor<4>>,
}

impl NystromAttention {
    /// For tokens of `width` numbers, a multiple of [`HEADS`].
    pub(super) fn init(width: usize, rng: &mut ChaCha8Rng, device: &Device) -> Self {
        Self {
            qkv: Linear { weight: uniform([width, 3 * width], width, rng, device), bias: None },
            out: linear(width, width, rng, device),
            residual: uniform([HEADS, 1, KERNEL, 1], KERNEL, rng, device),
        }
    }

    /// Tokens `[n, width]` to as many, and the attention that the first of them pays to each, `[n]`, the mean over the heads.
    pub(super) fn forward(&self, tokens: Tensor<2>) -> (Tensor<2>, Tensor<1>) {
        let [n, width] = tokens.dims();
        let landmarks = width / 2;
        // Zeros in front, so that every landmark is the mean of as many tokens.
        let padding = n.next_multiple_of(landmarks) - n;
        let length = n + padding;
        let tokens = tokens.pad([(padding, 0), (0, 0)], PadMode::Constant(0.0));
        let size = width / HEADS;
        let qkv = self.qkv.forward(tokens).reshape([length, 3, HEADS, size]).permute([1, 2, 0, 3]);
        let part =
            |at: usize| qkv.clone().slice([at..at + 1, 0..HEADS, 0..length, 0..size]).reshape([HEADS, length, size]);
        let (query, key, value) = (part(0) / (size as f64).sqrt(), part(1), part(2));
        let means = |x: &Tensor<3>| {
            let stretches = x.clone().reshape([HEADS, landmarks, length / landmarks, size]);
            stretches.mean_dim(2).reshape([HEADS, landmarks, size])
        };
        let (queries, keys) = (means(&query), means(&key));
        let attend = |from: Tensor<3>, to: Tensor<3>| softmax(from.matmul(to.swap_dims(1, 2)), 2);
        let to_landmarks = attend(query, keys.clone());
        let inverse = pseudo_inverse(attend(queries.clone(), keys));
        let from_landmarks = attend(queries, key);

        let mixed = to_landmarks.clone().matmul(inverse.clone()).matmul(from_landmarks.clone().matmul(value.clone()));
        let options = ConvOptions::new([1, 1], [KERNEL / 2, 0], [1, 1], HEADS);
        let residual = conv2d(value.unsqueeze(), self.residual.val(), None, options);
        let mixed = mixed + residual.reshape([HEADS, length, size]);
        let out = self.out.forward(mixed.swap_dims(0, 1).reshape([length, width]));

        let first = to_landmarks.slice([0..HEADS, padding..padding + 1, 0..landmarks]);
        let of_first = first.matmul(inverse).matmul(from_landmarks).mean_dim(0).reshape([length]);
        (out.slice([padding..length, 0..width]), of_first.narrow(0, padding, n))
    }
}

/// Razavi's iteration for the pseudo-inverse of each `[m, m]` of a stack (equation 11 of the paper).
fn pseudo_inverse(x: Tensor<3>) -> Tensor<3> {
    let [_, m, _] = x.dims();
    let largest = |sums: Tensor<3>| sums.max().reshape([1, 1, 1]);
    let scale = largest(x.clone().sum_dim(2)) * largest(x.clone().sum_dim(1));
    let identity = |times: f64| (Tensor::<2>::eye(m, &x.device()) * times).unsqueeze::<3>();
    let mut inverse = x.clone().swap_dims(1, 2) / scale;
    for _ in 0..INVERSE_STEPS {
        let product = x.clone().matmul(inverse.clone());
        let inner = identity(7.0) - product.clone();
        let inner = identity(15.0) - product.clone().matmul(inner);
        let inner = identity(13.0) - product.matmul(inner);
        inverse = inverse.matmul(inner) * 0.25;
    }
    inverse
}
