//! TransMIL (Shao et al., NeurIPS 2021): the patches of a slide as a sequence, two transformer layers with Nyström attention, and
//! between them convolutions over the sequence laid out as a square (PPEG), which tell neighbours in the sequence apart.
//!
//! As in the original the sequence is filled up to a square with its own first patches, a class token stands in front, and the
//! landmarks are half the width: 256 at 512. The order of the patches matters here: it is that of the bag.
//!
//! Nyström attention fills the sequence up in front and gives the last tokens back, as the package `nystrom-attention` does from
//! 0.0.10 on. With 0.0.9, which the original asks for, the first are given back: every token gets an earlier one's attention.

use burn::module::{Module, Param};
use burn::nn::{LayerNorm, LayerNormConfig, Linear};
use burn::tensor::activation::relu;
use burn::tensor::module::conv2d;
use burn::tensor::ops::{ConvOptions, PadMode};
use burn::tensor::{Device, Tensor, TensorData};
use rand_chacha::ChaCha8Rng;

use super::layers::{dropout, linear, uniform};
use super::nystrom::{HEADS, NystromAttention};
use super::{Aggregator, BagAttention, BagOutput, HeadShape};
use crate::seed::normal;

/// Largest dropout after an attention: the original's.
const DROPOUT: f64 = 0.1;

/// The transformer head. Its width, `hidden`, is a multiple of 8, the number of attention heads.
#[derive(Module, Debug)]
pub struct TransMil {
    /// `dim` to `hidden`, through ReLU.
    pub embed: Linear,
    /// The token in front of the patches, `[1, hidden]`.
    pub class_token: Param<Tensor<2>>,
    /// The first transformer layer.
    pub first: TransformerLayer,
    /// The convolutions.
    pub position: Ppeg,
    /// The second transformer layer.
    pub second: TransformerLayer,
    /// Normalisation of the class token.
    pub norm: LayerNorm,
    /// `hidden` to `classes`.
    pub classify: Linear,
}

/// x + attention(norm(x)).
#[derive(Module, Debug)]
pub struct TransformerLayer {
    /// Normalisation in front.
    pub norm: LayerNorm,
    /// The attention.
    pub attention: NystromAttention,
    /// Share of the outputs dropped in training.
    pub dropout: f64,
}

/// Pyramid position encoding: depthwise convolutions with kernels of 7, 5 and 3, added to their input.
#[derive(Module, Debug)]
pub struct Ppeg {
    /// `[hidden, 1, 7, 7]`.
    pub seven: Param<Tensor<4>>,
    /// `[hidden, 1, 5, 5]`.
    pub five: Param<Tensor<4>>,
    /// `[hidden, 1, 3, 3]`.
    pub three: Param<Tensor<4>>,
    /// Biases of the three, `[3, hidden]`.
    pub biases: Param<Tensor<2>>,
}

impl Aggregator for TransMil {
    const NAME: &'static str = "transmil";

    fn check(shape: &HeadShape) -> crate::Result<()> {
        match shape.hidden.is_multiple_of(HEADS) {
            true => Ok(()),
            false => Err(crate::Error::usage(format!(
                "transmil has {HEADS} attention heads: hidden is a multiple of {HEADS}, not {}",
                shape.hidden
            ))),
        }
    }

    fn init(shape: &HeadShape, rng: &mut ChaCha8Rng, device: &Device) -> Self {
        let HeadShape { dim, classes, hidden, dropout, .. } = *shape;
        let dropout = dropout.min(DROPOUT);
        let embed = linear(dim, hidden, rng, device);
        let token: Vec<f32> = (0..hidden).map(|_| normal(rng) as f32).collect();
        Self {
            embed,
            class_token: Param::from_data(TensorData::new(token, [1, hidden]), device),
            first: TransformerLayer::init(hidden, dropout, rng, device),
            position: Ppeg::init(hidden, rng, device),
            second: TransformerLayer::init(hidden, dropout, rng, device),
            norm: LayerNormConfig::new(hidden).init(device),
            classify: linear(hidden, classes, rng, device),
        }
    }

    fn forward(&self, bag: Tensor<2>, mut rng: Option<&mut ChaCha8Rng>) -> BagOutput {
        let [patches, _] = bag.dims();
        let embedded = relu(self.embed.forward(bag));
        let [_, width] = embedded.dims();
        let side = (1..).find(|side| side * side >= patches).unwrap_or(patches);
        let repeated = side * side - patches;
        let first = embedded.clone().slice([0..repeated, 0..width]);
        let tokens = match repeated {
            0 => Tensor::cat(vec![self.class_token.val(), embedded], 0),
            _ => Tensor::cat(vec![self.class_token.val(), embedded, first], 0),
        };
        let (tokens, _) = self.first.forward(tokens, rng.as_deref_mut());
        let tokens = self.position.forward(tokens, side);
        let (tokens, attention) = self.second.forward(tokens, rng);
        let class = self.norm.forward(tokens.slice([0..1, 0..width]));
        BagOutput { logits: self.classify.forward(class), attention: weights(attention, patches) }
    }

    fn attend(&self, bag: Tensor<2>) -> Option<BagAttention> {
        let BagOutput { logits, attention } = self.forward(bag, None);
        Some(BagAttention { logits, attention: attention.unsqueeze() })
    }
}

/// What the class token takes from each patch, `[patches]`, from its row of the attention over `[class, patches, repeated]`. Nyström's
/// approximation may be below 0 in places, which counts as nothing.
fn weights(row: Tensor<1>, patches: usize) -> Tensor<1> {
    let [tokens] = row.dims();
    let repeated = tokens - 1 - patches;
    // Plus what rounds to nothing, so that a row without anything above 0 is uniform.
    let row = row.detach().clamp_min(0.0) + 1e-12;
    let mut own = row.clone().narrow(0, 1, patches);
    if repeated > 0 {
        let again = row.narrow(0, 1 + patches, repeated);
        own = own + again.pad([(0, patches - repeated)], PadMode::Constant(0.0));
    }
    own.clone() / own.sum()
}

impl TransformerLayer {
    fn init(width: usize, dropout: f64, rng: &mut ChaCha8Rng, device: &Device) -> Self {
        let attention = NystromAttention::init(width, rng, device);
        Self { norm: LayerNormConfig::new(width).init(device), attention, dropout }
    }

    /// Tokens `[n, width]` to as many, and the attention of the first of them, `[n]`.
    fn forward(&self, tokens: Tensor<2>, rng: Option<&mut ChaCha8Rng>) -> (Tensor<2>, Tensor<1>) {
        let (attended, of_class) = self.attention.forward(self.norm.forward(tokens.clone()));
        (tokens + dropout(attended, self.dropout, rng), of_class)
    }
}

impl Ppeg {
    fn init(width: usize, rng: &mut ChaCha8Rng, device: &Device) -> Self {
        let mut kernel = |size: usize| uniform([width, 1, size, size], size * size, rng, device);
        let (seven, five, three) = (kernel(7), kernel(5), kernel(3));
        let biases = [7usize, 5, 3].map(|size| uniform([1, width], size * size, rng, device).val());
        Self { seven, five, three, biases: Param::from_tensor(Tensor::cat(biases.to_vec(), 0).detach()) }
    }

    /// Tokens `[1 + side², width]`; the first, the class token, passes by. A sum of convolutions is the convolution with the sum of
    /// their kernels, the smaller ones with zeros around them.
    fn forward(&self, tokens: Tensor<2>, side: usize) -> Tensor<2> {
        let [n, width] = tokens.dims();
        let around = |kernel: &Param<Tensor<4>>, by: usize| {
            kernel.val().pad([(0, 0), (0, 0), (by, by), (by, by)], PadMode::Constant(0.0))
        };
        let kernel = self.seven.val() + around(&self.five, 1) + around(&self.three, 2);
        let bias = self.biases.val().sum_dim(0).reshape([width]);
        let class = tokens.clone().slice([0..1, 0..width]);
        let patches = tokens.slice([1..n, 0..width]);
        let square = patches.clone().transpose().reshape([1, width, side, side]);
        let options = ConvOptions::new([1, 1], [3, 3], [1, 1], width);
        let mixed = conv2d(square, kernel, Some(bias), options).reshape([width, side * side]).transpose();
        Tensor::cat(vec![class, patches + mixed], 0)
    }
}
