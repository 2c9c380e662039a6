//! A transformer block: attention and a perceptron, with what published encoders add to them.

use crate::config::{MlpKind, Model, Network, Precision};
use crate::model::kernels::{gelu, silu, softmax};
use crate::model::layers::{LayerNorm, Linear, for_product, single};
use burn::module::{Module, Param};
use burn::tensor::{Device, Tensor};

/// Attention, then a two-layer perceptron, each normalised before and added to what came in.
#[derive(Module, Debug)]
pub struct Block {
    /// Before the attention.
    pub norm1: LayerNorm,
    /// Multi-head self-attention.
    pub attn: Attention,
    /// Of the attention's channels.
    pub ls1: Option<LayerScale>,
    /// Before the perceptron.
    pub norm2: LayerNorm,
    /// Perceptron.
    pub mlp: Mlp,
    /// Of the perceptron's channels.
    pub ls2: Option<LayerScale>,
}

/// A factor for every channel (Touvron et al. 2021, *Going deeper with image transformers*).
#[derive(Module, Debug)]
pub struct LayerScale {
    /// `[D]`.
    pub gamma: Param<Tensor<1>>,
}

/// Multi-head self-attention.
#[derive(Module, Debug)]
pub struct Attention {
    /// Queries, keys and values, laid out `[3][head][width of a head]`.
    pub qkv: Linear,
    /// Heads back to tokens.
    pub proj: Linear,
    #[module(skip)]
    heads: usize,
}

/// Linear, GELU (the exact one), linear; or the gated form of Shazeer 2020, *GLU variants improve transformer*: half of
/// the first layer's outputs pass through SiLU and multiply the others.
#[derive(Module, Debug)]
pub struct Mlp {
    /// To four times the width.
    pub fc1: Linear,
    /// And back.
    pub fc2: Linear,
    #[module(skip)]
    kind: MlpKind,
}

impl Block {
    pub(super) fn new(model: &Model, seed: u64, name: &str, device: &Device) -> Self {
        let dim = model.dim;
        let linear = |from, to, part: &str| Linear::new(from, to, seed, &format!("{name}.{part}.weight"), device);
        Self {
            norm1: LayerNorm::new(dim, device),
            attn: Attention {
                qkv: linear(dim, 3 * dim, "attn.qkv"),
                proj: linear(dim, dim, "attn.proj"),
                heads: model.heads,
            },
            ls1: None,
            norm2: LayerNorm::new(dim, device),
            mlp: Mlp {
                fc1: linear(dim, 4 * dim, "mlp.fc1"),
                fc2: linear(4 * dim, dim, "mlp.fc2"),
                kind: MlpKind::Gelu,
            },
            ls2: None,
        }
    }

    pub(super) fn zeros(network: &Network, device: &Device) -> Self {
        let Network { dim, heads, hidden, mlp, layer_scale, norm_eps, .. } = *network;
        let norm = || LayerNorm::new(dim, device).with_eps(norm_eps);
        let linear = |from, to| Linear {
            weight: Param::from_tensor(Tensor::zeros([from, to], device)),
            bias: Param::from_tensor(Tensor::zeros([to], device)),
        };
        let scale = || LayerScale { gamma: Param::from_tensor(Tensor::zeros([dim], device)) };
        Self {
            norm1: norm(),
            attn: Attention { qkv: linear(dim, 3 * dim), proj: linear(dim, dim), heads },
            ls1: layer_scale.then(scale),
            norm2: norm(),
            mlp: Mlp { fc1: linear(dim, network.expanded()), fc2: linear(hidden, dim), kind: mlp },
            ls2: layer_scale.then(scale),
        }
    }

    pub(super) fn forward(&self, x: Tensor<3>, precision: Precision) -> Tensor<3> {
        let tokens = x.dims()[1];
        self.forward_some(x, tokens, precision, None)
    }

    /// The block's output for the first `asked` tokens.
    pub(super) fn forward_some(
        &self,
        x: Tensor<3>,
        asked: usize,
        precision: Precision,
        depth: Option<&[Tensor<3>; 2]>,
    ) -> Tensor<3> {
        let branch = |y: Tensor<3>, scale: &Option<LayerScale>, which: usize| {
            let y = single(y, precision);
            let y = match scale {
                Some(scale) => y * scale.gamma.val().unsqueeze(),
                None => y,
            };
            match depth {
                Some(factors) => y * factors[which].clone(),
                None => y,
            }
        };
        let mixed = self.attn.forward(self.norm1.forward(x.clone()), asked, precision);
        let x = first(x, asked) + branch(mixed, &self.ls1, 0);
        x.clone() + branch(self.mlp.forward(self.norm2.forward(x), precision), &self.ls2, 1)
    }
}

/// The first `count` tokens.
pub(super) fn first(x: Tensor<3>, count: usize) -> Tensor<3> {
    if x.dims()[1] == count { x } else { x.narrow(1, 0, count) }
}

impl Attention {
    /// `[B, N, D] -> [B, asked, D]`, in the product's type.
    fn forward(&self, x: Tensor<3>, asked: usize, precision: Precision) -> Tensor<3> {
        let [batch, _, dim] = x.dims();
        let [q, k, v] = self.heads(x, asked, precision);
        let mixed = self.scores(q, k, precision).matmul(v);
        self.proj.forward(mixed.swap_dims(1, 2).reshape([batch, asked, dim]), precision)
    }

    /// Queries of the first `asked` tokens, keys and values of all: each `[B, heads, tokens, width of a head]`.
    pub(super) fn heads(&self, x: Tensor<3>, asked: usize, precision: Precision) -> [Tensor<4>; 3] {
        let part = |x: Tensor<3>, which: usize| {
            let [batch, tokens, dim] = x.dims();
            let y = self.qkv.forward_part(x, which, 3, precision);
            y.reshape([batch, tokens, self.heads, dim / self.heads]).swap_dims(1, 2)
        };
        [part(first(x.clone(), asked), 0), part(x.clone(), 1), part(x, 2)]
    }

    /// softmax(q kᵀ / sqrt(width)), the softmax in f32.
    pub(super) fn scores(&self, q: Tensor<4>, k: Tensor<4>, precision: Precision) -> Tensor<4> {
        let scale = (q.dims()[3] as f64).powf(-0.5);
        let scores = single((q * scale).matmul(k.transpose()), precision);
        for_product(softmax(scores), precision)
    }
}

impl Mlp {
    fn forward(&self, x: Tensor<3>, precision: Precision) -> Tensor<3> {
        let x = match self.kind {
            MlpKind::Gelu => gelu(self.fc1.forward(x, precision)),
            MlpKind::Swiglu => {
                let half = |which| self.fc1.forward_part(x.clone(), which, 2, precision);
                silu(half(0)) * half(1)
            }
        };
        self.fc2.forward(x, precision)
    }
}
