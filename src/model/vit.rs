//! The vision transformer of DINO (`vision_transformer.py`), with timm's parameter names.
//!
//! Images `[B, 3, H, W]` become tokens `[B, 1 + N, D]` of which the first, CLS, is the image's embedding. Any image of
//! at least one patch will do: sides that are no multiple of the patch are floored away, and the position embedding is
//! interpolated where the grid differs from the one it was made for.
//!
//! The encoders of others ([`Network`], [`foreign`](super::foreign)) are the same with parts that DINO's lacks: register
//! tokens (which never leave the network), LayerScale, SwiGLU, and other poolings.

mod block;
mod positions;

use block::first;
pub use block::{Attention, Block, LayerScale, Mlp};

use super::layers::{LayerNorm, for_product, parameter, single};
use super::random;
use crate::config::{FinalNorm, Model, Network, Pooling, Positions, Precision};
use burn::module::{Module, Param};
use burn::tensor::{Device, Tensor, TensorData};
use rand::RngExt;

/// A vision transformer.
#[derive(Module, Debug)]
pub struct Vit {
    /// `[1, 1, D]`.
    pub cls_token: Param<Tensor<3>>,
    /// `[1, registers, D]`, where there are some.
    pub reg_token: Option<Param<Tensor<3>>>,
    /// `[1, prefix + grid * grid, D]`, the first rows for CLS and registers where these have positions
    /// ([`Network::prefix_positions`]).
    pub pos_embed: Param<Tensor<3>>,
    /// Pixels to tokens.
    pub patch_embed: PatchEmbed,
    /// Normalisation before the first block, where there is one.
    pub norm_pre: Option<LayerNorm>,
    /// Transformer blocks, pre-norm.
    pub blocks: Vec<Block>,
    /// Final normalisation.
    pub norm: LayerNorm,
    #[module(skip)]
    network: Network,
    #[module(skip)]
    precision: Precision,
}

/// Pixels to tokens.
#[derive(Module, Debug)]
pub struct PatchEmbed {
    /// A convolution whose stride is its kernel.
    pub proj: PatchProjection,
}

/// The convolution of [`PatchEmbed`], computed as a product with unfolded patches.
#[derive(Module, Debug)]
pub struct PatchProjection {
    /// `[D, 3, patch, patch]`.
    pub weight: Param<Tensor<4>>,
    /// `[D]`.
    pub bias: Param<Tensor<1>>,
}

/// Which residual branches of which rows are dropped, and how much the survivors are scaled: one draw.
///
/// Made on the host from the seed, the step and each row's own number, so that neither the device nor the split of a
/// batch into micro-batches changes it.
#[derive(Clone, Debug)]
pub struct StochasticDepth {
    /// Per block: factors `[rows, 1, 1]` of the attention and of the perceptron; none where nothing is dropped.
    blocks: Vec<Option<[Tensor<3>; 2]>>,
}

impl StochasticDepth {
    /// Draws for `rows` (each row's number in the whole batch) at `step`. The rate grows linearly from 0 at the first
    /// block to `model.drop_path` at the last. None where that is 0.
    pub fn draw(model: &Model, seed: u64, step: u64, rows: &[u64], device: &Device) -> Option<Self> {
        if model.drop_path == 0.0 {
            return None;
        }
        let factors: Vec<[f32; 2]> = rows
            .iter()
            .flat_map(|row| {
                let mut rng = random::keyed(seed, "stochastic depth", &[step, *row]);
                drop_rates(model.drop_path, model.depth)
                    .map(|rate| [rng.random::<f64>(), rng.random::<f64>()].map(|u| survival(rate, u)))
                    .collect::<Vec<_>>()
            })
            .collect();
        let branch = |block: usize, branch: usize| {
            let values = (0..rows.len()).map(|row| factors[row * model.depth + block][branch]).collect();
            Tensor::from_data(TensorData::new(values, [rows.len(), 1, 1]), device)
        };
        let blocks = drop_rates(model.drop_path, model.depth)
            .enumerate()
            .map(|(i, rate)| (rate > 0.0).then(|| [branch(i, 0), branch(i, 1)]))
            .collect();
        Some(Self { blocks })
    }
}

fn drop_rates(largest: f64, depth: usize) -> impl Iterator<Item = f64> {
    (0..depth).map(move |i| if depth == 1 { 0.0 } else { largest * i as f64 / (depth - 1) as f64 })
}

/// 0 for a dropped branch, 1/keep for a surviving one; a branch survives where floor(keep + u) is 1.
fn survival(rate: f64, u: f64) -> f32 {
    let keep = 1.0 - rate;
    ((keep + u).floor() / keep) as f32
}

impl Vit {
    /// A network with the reference's initialisation: `model` is resolved (see [`Model::resolve`]), `seed` decides.
    pub fn new(model: &Model, seed: u64, device: &Device) -> Self {
        let (dim, patch) = (model.dim, model.patch);
        let grid = model.image_size / patch;
        let draw = |name: &str, count| random::normal(&mut random::keyed(seed, name, &[]), 0.02, count);
        let blocks = (0..model.depth).map(|i| Block::new(model, seed, &format!("blocks.{i}"), device)).collect();
        Self {
            cls_token: parameter(draw("cls_token", dim), [1, 1, dim], device),
            reg_token: None,
            pos_embed: parameter(draw("pos_embed", (1 + grid * grid) * dim), [1, 1 + grid * grid, dim], device),
            patch_embed: PatchEmbed { proj: PatchProjection::new(dim, patch, seed, device) },
            norm_pre: None,
            blocks,
            norm: LayerNorm::new(dim, device),
            network: Network::from(model),
            precision: Precision::F32,
        }
    }

    /// A network of zeros, to be filled by [`import`](super::parameters::import); `network` is checked.
    pub fn zeros(network: &Network, device: &Device) -> Self {
        let Network { patch, dim, depth, registers, norm_eps, .. } = *network;
        let zeros = |tokens| Param::from_tensor(Tensor::zeros([1, tokens, dim], device));
        let norm = || LayerNorm::new(dim, device).with_eps(norm_eps);
        let proj = PatchProjection {
            weight: Param::from_tensor(Tensor::zeros([dim, 3, patch, patch], device)),
            bias: Param::from_tensor(Tensor::zeros([dim], device)),
        };
        Self {
            cls_token: zeros(1),
            reg_token: (registers > 0).then(|| zeros(registers)),
            pos_embed: zeros(network.prefix_positions() + network.grid() * network.grid()),
            patch_embed: PatchEmbed { proj },
            norm_pre: network.pre_norm.then(norm),
            blocks: (0..depth).map(|_| Block::zeros(network, device)).collect(),
            norm: norm(),
            network: *network,
            precision: Precision::F32,
        }
    }

    /// The same network computing its products in `precision`.
    pub fn with_precision(self, precision: Precision) -> Self {
        Self { precision, ..self }
    }

    /// What kind of network it is.
    pub fn network(&self) -> &Network {
        &self.network
    }

    /// Width of a token.
    pub fn dim(&self) -> usize {
        self.norm.weight.dims()[0]
    }

    /// The embedding, which is CLS of the last block, normalised, unless the network pools otherwise
    /// ([`Network::pooling`]): `[B, 3, H, W] -> [B, embedding]`.
    pub fn forward(&self, images: Tensor<4>) -> Tensor<2> {
        self.encode(images, None)
    }

    /// As [`forward`](Self::forward), with residual branches dropped.
    pub fn encode(&self, images: Tensor<4>, depth: Option<&StochasticDepth>) -> Tensor<2> {
        let mut x = self.embed(images);
        let last = self.blocks.len() - 1;
        for (i, block) in self.blocks.iter().enumerate() {
            // Where of the last block only CLS is needed, it sees all tokens, but no other token has to be computed.
            let asked = if i == last && self.network.pooling == Pooling::Cls { 1 } else { x.dims()[1] };
            x = block.forward_some(x, asked, self.precision, depth.and_then(|d| d.blocks[i].as_ref()));
        }
        self.pooled(x)
    }

    /// Tokens of the last block, not normalised, to the embedding: `[B, T, D] -> [B, embedding]`.
    fn pooled(&self, x: Tensor<3>) -> Tensor<2> {
        let patches = |x: Tensor<3>| {
            let (first, tokens) = (1 + self.network.registers, x.dims()[1]);
            x.narrow(1, first, tokens - first).mean_dim(1)
        };
        match (self.network.pooling, self.network.final_norm) {
            (Pooling::Cls, _) => self.norm.forward(first(x, 1)).squeeze_dim(1),
            (Pooling::Mean, FinalNorm::Tokens) => patches(self.norm.forward(x)).squeeze_dim(1),
            (Pooling::Mean, FinalNorm::Pooled) => self.norm.forward(patches(x)).squeeze_dim(1),
            (Pooling::ClsMean, _) => {
                let x = self.norm.forward(x);
                Tensor::cat(vec![first(x.clone(), 1), patches(x)], 2).squeeze_dim(1)
            }
        }
    }

    /// The embedding as each of the last `n` blocks gives it, beside each other, the last block's at the end: `[B, 3, H, W] ->
    /// [B, n * embedding]`. Of networks that pool CLS, the features of DINO's linear probe.
    pub fn last_embeddings(&self, images: Tensor<4>, n: usize) -> Tensor<2> {
        if n == 1 {
            return self.forward(images);
        }
        let pooled = self.last_blocks(images, n).into_iter().map(|x| self.pooled(x)).collect();
        Tensor::cat(pooled, 1)
    }

    /// CLS and the patches of the last block, normalised: `[B, 3, H, W] -> [B, 1 + N, D]`.
    pub fn forward_tokens(&self, images: Tensor<4>) -> Tensor<3> {
        let x = self.blocks.iter().fold(self.embed(images), |x, block| block.forward(x, self.precision));
        self.normalised(x)
    }

    /// CLS and the patches of the last `n` blocks, each passed through the final normalisation: `[B, 1 + N, D]` each.
    pub fn intermediate(&self, images: Tensor<4>, n: usize) -> Vec<Tensor<3>> {
        self.last_blocks(images, n).into_iter().map(|x| self.normalised(x)).collect()
    }

    /// All tokens after each of the last `n` blocks, as they are.
    fn last_blocks(&self, images: Tensor<4>, n: usize) -> Vec<Tensor<3>> {
        let mut x = self.embed(images);
        let mut outputs = Vec::new();
        for (i, block) in self.blocks.iter().enumerate() {
            x = block.forward(x, self.precision);
            if i + n >= self.blocks.len() {
                outputs.push(x.clone());
            }
        }
        outputs
    }

    /// The final normalisation of all tokens but the registers, which mean nothing outside.
    fn normalised(&self, x: Tensor<3>) -> Tensor<3> {
        let x = match self.network.final_norm {
            FinalNorm::Tokens => self.norm.forward(x),
            // Made for the mean: timm's tokens are not normalised either.
            FinalNorm::Pooled => x,
        };
        without(x, 1, self.network.registers)
    }

    /// Attention of the last block among CLS and the patches: `[B, heads, 1 + N, 1 + N]`, rows sum to 1, or to less where
    /// registers take a share.
    pub fn last_attention(&self, images: Tensor<4>) -> Tensor<4> {
        let (last, before) = self.blocks.split_last().expect("a resolved model has a block");
        let x = before.iter().fold(self.embed(images), |x, block| block.forward(x, self.precision));
        let tokens = x.dims()[1];
        let [q, k, _] = last.attn.heads(last.norm1.forward(x), tokens, self.precision);
        let scores = single(last.attn.scores(q, k, self.precision), self.precision);
        let registers = self.network.registers;
        without(without(scores, 2, registers), 3, registers)
    }

    /// Pixels to tokens with their positions: CLS, registers, patches.
    fn embed(&self, images: Tensor<4>) -> Tensor<3> {
        let patch = self.network.patch;
        let [batch, _, height, width] = images.dims();
        let [rows, columns] = [height / patch, width / patch];
        let x = self.patch_embed.proj.forward(images, rows, columns, self.precision);
        let every = |token: &Param<Tensor<3>>, count| token.val().expand([batch, count, self.dim()]);
        let cls = every(&self.cls_token, 1);
        let registers = self.reg_token.as_ref().map(|token| every(token, self.network.registers));
        let positions = self.positions(rows, columns);
        let tokens = |[first, rest]: [Tensor<3>; 2]| {
            let parts = [Some(first), registers.clone(), Some(rest)];
            Tensor::cat(parts.into_iter().flatten().collect(), 1)
        };
        let x = match self.network.positions {
            Positions::All => tokens([cls, x]) + positions,
            Positions::Patches => tokens([cls, x + positions]),
            Positions::ClassAndPatches => {
                let x = Tensor::cat(vec![cls, x], 1) + positions;
                match registers {
                    Some(_) => tokens([x.clone().narrow(1, 0, 1), x.narrow(1, 1, rows * columns)]),
                    None => x,
                }
            }
        };
        match &self.norm_pre {
            Some(norm) => norm.forward(x),
            None => x,
        }
    }

    /// The position embedding for a grid of `rows` x `columns`: `[1, prefix + rows * columns, D]`.
    fn positions(&self, rows: usize, columns: usize) -> Tensor<3> {
        let Network { interpolation, .. } = self.network;
        let (prefix, grid) = (self.network.prefix_positions(), self.network.grid());
        positions::resampled(self.pos_embed.val(), prefix, grid, [rows, columns], interpolation)
    }
}

/// `x` without the `count` places behind the first of dimension `dim`.
fn without<const D: usize>(x: Tensor<D>, dim: usize, count: usize) -> Tensor<D> {
    let length = x.dims()[dim];
    match count {
        0 => x,
        _ => {
            let rest = x.clone().narrow(dim, 1 + count, length - 1 - count);
            Tensor::cat(vec![x.narrow(dim, 0, 1), rest], dim)
        }
    }
}

impl PatchProjection {
    /// PyTorch's initialisation of a convolution, which the reference leaves alone: uniform on ±1/sqrt(inputs).
    fn new(dim: usize, patch: usize, seed: u64, device: &Device) -> Self {
        let inputs = 3 * patch * patch;
        let draw = |name: &str, count| {
            random::uniform(&mut random::keyed(seed, name, &[]), 1.0 / (inputs as f64).sqrt(), count)
        };
        Self {
            weight: parameter(draw("patch_embed.proj.weight", dim * inputs), [dim, 3, patch, patch], device),
            bias: parameter(draw("patch_embed.proj.bias", dim), [dim], device),
        }
    }

    /// `[B, 3, H, W] -> [B, rows * columns, D]` in f32.
    fn forward(&self, images: Tensor<4>, rows: usize, columns: usize, precision: Precision) -> Tensor<3> {
        let [dim, channels, patch, _] = self.weight.dims();
        let batch = images.dims()[0];
        let unfolded = images
            .narrow(2, 0, rows * patch)
            .narrow(3, 0, columns * patch)
            .reshape([batch, channels, rows, patch, columns, patch])
            .permute([0, 2, 4, 1, 3, 5])
            .reshape([batch * rows * columns, channels * patch * patch]);
        let weight = self.weight.val().reshape([dim, channels * patch * patch]).transpose();
        let tokens = for_product(unfolded, precision).matmul(for_product(weight, precision));
        (single(tokens, precision) + self.bias.val().unsqueeze()).reshape([batch, rows * columns, dim])
    }
}

#[cfg(test)]
mod tests;
