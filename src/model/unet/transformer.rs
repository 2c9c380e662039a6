//! The spatial transformer: positions attend to each other and to the context.

use super::Init;
use crate::config::Precision;
use crate::model::convolution::{Conv2d, GroupNorm};
use crate::model::kernels::{gelu, softmax};
use crate::model::layers::{LayerNorm, Linear, Projection, for_product, single};
use burn::module::Module;
use burn::tensor::Tensor;

/// A transformer block over the positions of a feature map, around a shortcut.
#[derive(Module, Debug)]
pub struct SpatialTransformer {
    /// Before everything, eps 1e-6.
    pub norm: GroupNorm,
    /// 1 x 1.
    pub proj_in: Conv2d,
    /// The block; the reference allows several.
    pub transformer_blocks: Vec<TransformerBlock>,
    /// 1 x 1, begins at 0.
    pub proj_out: Conv2d,
}

/// Self-attention, cross-attention and a gated perceptron, each normalised before and added.
#[derive(Module, Debug)]
pub struct TransformerBlock {
    /// Before the self-attention.
    pub norm1: LayerNorm,
    /// Positions to positions.
    pub attn1: CrossAttention,
    /// Before the cross-attention.
    pub norm2: LayerNorm,
    /// Positions to context.
    pub attn2: CrossAttention,
    /// Before the perceptron.
    pub norm3: LayerNorm,
    /// Perceptron.
    pub ff: GatedPerceptron,
}

/// Multi-head attention of some tokens to others; queries, keys and values without bias.
#[derive(Module, Debug)]
pub struct CrossAttention {
    /// Queries.
    pub to_q: Projection,
    /// Keys.
    pub to_k: Projection,
    /// Values.
    pub to_v: Projection,
    /// Heads back to tokens.
    pub to_out: Linear,
    #[module(skip)]
    heads: usize,
}

/// `out(a · gelu(b))` with `[a | b] = proj(x)` of eight times the width (GEGLU, Shazeer 2020).
#[derive(Module, Debug)]
pub struct GatedPerceptron {
    /// To values and gates.
    pub proj: Linear,
    /// And back.
    pub out: Linear,
}

impl SpatialTransformer {
    pub(super) fn new(init: Init, name: &str, width: usize) -> Self {
        let Init { shape, seed, device } = init;
        let conv = |part: &str| Conv2d::new(width, width, 1, seed, &format!("{name}.{part}"), device);
        Self {
            norm: GroupNorm::new(width, shape.groups, 1e-6, device),
            proj_in: conv("proj_in"),
            transformer_blocks: vec![TransformerBlock::new(init, &format!("{name}.transformer_blocks.0"), width)],
            proj_out: conv("proj_out").zeroed(),
        }
    }

    /// `[B, width, H, W]` under `context [B, T, context]`.
    pub(super) fn forward(&self, x: Tensor<4>, context: &Tensor<3>, precision: Precision) -> Tensor<4> {
        let [batch, width, height, columns] = x.dims();
        let tokens = self.proj_in.forward_in(self.norm.forward(x.clone()), precision);
        let tokens = tokens.reshape([batch, width, height * columns]).swap_dims(1, 2);
        let step = |tokens, block: &TransformerBlock| block.forward(tokens, context, precision);
        let tokens = self.transformer_blocks.iter().fold(tokens, step);
        let map = tokens.swap_dims(1, 2).reshape([batch, width, height, columns]);
        x + self.proj_out.forward_in(map, precision)
    }
}

impl TransformerBlock {
    fn new(Init { shape, seed, device }: Init, name: &str, width: usize) -> Self {
        let norm = || LayerNorm::new(width, device).with_eps(1e-5);
        let attention = |context, part: &str| {
            let name = |layer: &str| format!("{name}.{part}.{layer}");
            CrossAttention {
                to_q: Projection::uniform(width, width, seed, &name("to_q"), device),
                to_k: Projection::uniform(context, width, seed, &name("to_k"), device),
                to_v: Projection::uniform(context, width, seed, &name("to_v"), device),
                to_out: Linear::uniform(width, width, seed, &name("to_out"), device),
                heads: shape.heads,
            }
        };
        Self {
            norm1: norm(),
            attn1: attention(width, "attn1"),
            norm2: norm(),
            attn2: attention(shape.context, "attn2"),
            norm3: norm(),
            ff: GatedPerceptron {
                proj: Linear::uniform(width, 8 * width, seed, &format!("{name}.ff.proj"), device),
                out: Linear::uniform(4 * width, width, seed, &format!("{name}.ff.out"), device),
            },
        }
    }

    fn forward(&self, x: Tensor<3>, context: &Tensor<3>, precision: Precision) -> Tensor<3> {
        let normal = self.norm1.forward(x.clone());
        let x = x + self.attn1.forward(normal.clone(), normal, precision);
        // One token gets all attention of every position: queries and keys do not matter.
        let told = match context.dims()[1] {
            1 => self.attn2.of_one_token(context.clone(), precision),
            _ => self.attn2.forward(self.norm2.forward(x.clone()), context.clone(), precision),
        };
        let x = x + told;
        x.clone() + self.ff.forward(self.norm3.forward(x), precision)
    }
}

impl CrossAttention {
    /// `x [B, N, width]` to `context [B, T, _]`.
    fn forward(&self, x: Tensor<3>, context: Tensor<3>, precision: Precision) -> Tensor<3> {
        let [batch, count, width] = x.dims();
        let heads = |tokens: Tensor<3>| {
            let [batch, count, width] = tokens.dims();
            tokens.reshape([batch, count, self.heads, width / self.heads]).swap_dims(1, 2)
        };
        let scale = ((width / self.heads) as f64).powf(-0.5);
        let q = heads(self.to_q.forward(x, precision)).mul_scalar(scale);
        let k = heads(self.to_k.forward(context.clone(), precision));
        let v = heads(self.to_v.forward(context, precision));
        // The softmax in single precision, as autocast has it.
        let scores = softmax(single(q.matmul(k.swap_dims(2, 3)), precision));
        let mixed = for_product(scores, precision).matmul(v);
        single(self.to_out.forward(mixed.swap_dims(1, 2).reshape([batch, count, width]), precision), precision)
    }

    /// As [`forward`](Self::forward) where the context is one token: the softmax over one score is 1, so that every
    /// position gets the same `[B, 1, width]`.
    fn of_one_token(&self, context: Tensor<3>, precision: Precision) -> Tensor<3> {
        single(self.to_out.forward(self.to_v.forward(context, precision), precision), precision)
    }
}

impl GatedPerceptron {
    fn forward(&self, x: Tensor<3>, precision: Precision) -> Tensor<3> {
        let [values, gates] =
            [0, 1].map(|part| single(self.proj.forward_part(x.clone(), part, 2, precision), precision));
        single(self.out.forward(values * gelu(gates), precision), precision)
    }
}
