//! A vision transformer in full: what [`Model`] says of our own, and what the encoders of others have beside it.

use serde::{Deserialize, Serialize};

use super::Model;

/// A vision transformer with everything that its weights do not say by their names alone.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Network {
    /// Side of a patch token, px.
    pub patch: usize,
    /// Side of the image the position embedding is made for, px.
    pub image_size: usize,
    /// Width of a token.
    pub dim: usize,
    /// Blocks.
    pub depth: usize,
    /// Attention heads.
    pub heads: usize,
    /// Inputs of the perceptron's second layer.
    pub hidden: usize,
    /// What stands between the perceptron's layers.
    pub mlp: MlpKind,
    /// Register tokens behind CLS (Darcet et al. 2024).
    pub registers: usize,
    /// Which tokens have a position.
    pub positions: Positions,
    /// Whether every branch is scaled channel by channel (CaiT's LayerScale).
    pub layer_scale: bool,
    /// Whether queries, keys and values have a bias.
    pub qkv_bias: bool,
    /// Whether tokens are normalised before the first block (CLIP); the patch projection has no bias then.
    pub pre_norm: bool,
    /// What the last normalisation works on.
    pub final_norm: FinalNorm,
    /// Added to the variance by every normalisation.
    pub norm_eps: f64,
    /// How positions are made for another grid than their own.
    pub interpolation: PositionResampling,
    /// What becomes the embedding.
    pub pooling: Pooling,
}

/// What stands between the two layers of the perceptron.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MlpKind {
    /// GELU, the exact one.
    Gelu,
    /// SiLU of one half times the other (SwiGLU): timm's `SwiGLUPacked`, DINOv2's `w12` and `w3`.
    Swiglu,
}

/// Which tokens have a position.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Positions {
    /// CLS and the patches; registers have none (DINO, DINOv2).
    ClassAndPatches,
    /// The patches only (timm's `no_embed_class`).
    Patches,
    /// CLS, registers and patches (timm's default).
    All,
}

/// What the last normalisation works on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FinalNorm {
    /// Every token.
    Tokens,
    /// The mean of the patches (timm's `fc_norm`).
    Pooled,
}

/// How a position embedding is made for another grid than its own; bicubic in all cases.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PositionResampling {
    /// By the scale (new + 0.1) / old, as DINO and DINOv2 without registers do.
    Dino,
    /// By the sizes, widened where the grid shrinks: timm and DINOv2 with registers.
    Antialias,
    /// By the sizes, not widened: transformers' ViT and DINOv2.
    Bicubic,
}

/// What becomes the embedding of an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Pooling {
    /// CLS.
    Cls,
    /// The mean of the patches.
    Mean,
    /// CLS, then the mean of the patches: twice the width.
    ClsMean,
}

/// DINO's ViT-S/16, of which every other network is a variation.
pub(super) const VIT_S16: Network = Network {
    patch: 16,
    image_size: 224,
    dim: 384,
    depth: 12,
    heads: 6,
    hidden: 1536,
    mlp: MlpKind::Gelu,
    registers: 0,
    positions: Positions::ClassAndPatches,
    layer_scale: false,
    qkv_bias: true,
    pre_norm: false,
    final_norm: FinalNorm::Tokens,
    norm_eps: 1e-6,
    interpolation: PositionResampling::Dino,
    pooling: Pooling::Cls,
};

impl From<&Model> for Network {
    /// DINO's, of a resolved model.
    fn from(model: &Model) -> Self {
        let Model { patch, image_size, dim, depth, heads, .. } = *model;
        Self { patch, image_size, dim, depth, heads, hidden: 4 * dim, ..VIT_S16 }
    }
}

impl Network {
    /// Width of an embedding.
    pub const fn embedding(&self) -> usize {
        match self.pooling {
            Pooling::Cls | Pooling::Mean => self.dim,
            Pooling::ClsMean => 2 * self.dim,
        }
    }

    /// Patches along a side of the image that the positions are made for.
    pub const fn grid(&self) -> usize {
        self.image_size / self.patch
    }

    /// Rows of the position embedding that are not of patches.
    pub const fn prefix_positions(&self) -> usize {
        match self.positions {
            Positions::Patches => 0,
            Positions::ClassAndPatches => 1,
            Positions::All => 1 + self.registers,
        }
    }

    /// Outputs of the perceptron's first layer.
    pub const fn expanded(&self) -> usize {
        match self.mlp {
            MlpKind::Gelu => self.hidden,
            MlpKind::Swiglu => 2 * self.hidden,
        }
    }

    /// Numbers in the weights.
    pub const fn parameters(&self) -> usize {
        let Self { patch, dim, depth, registers, hidden, .. } = *self;
        let rows = self.prefix_positions() + self.grid() * self.grid();
        let tokens = dim * (1 + registers + rows);
        let projection = dim * 3 * patch * patch + if self.pre_norm { 2 * dim } else { dim };
        let attention = 4 * dim * dim + dim + if self.qkv_bias { 3 * dim } else { 0 };
        let mlp = dim * self.expanded() + self.expanded() + hidden * dim + dim;
        let scales = if self.layer_scale { 2 * dim } else { 0 };
        tokens + projection + depth * (4 * dim + attention + mlp + scales) + 2 * dim
    }

    /// # Errors
    /// Numbers that do not fit together, by their keys.
    pub fn check(&self) -> anyhow::Result<()> {
        let Self { patch, image_size, dim, depth, heads, hidden, .. } = *self;
        anyhow::ensure!(
            [patch, dim, depth, heads, hidden].iter().all(|&number| number > 0) && image_size >= patch,
            "network: patch, dim, depth, heads and hidden are 1 or more, and image_size holds a patch"
        );
        anyhow::ensure!(dim.is_multiple_of(heads), "network.dim = {dim} is not a multiple of network.heads = {heads}");
        anyhow::ensure!(
            self.final_norm == FinalNorm::Tokens || self.pooling == Pooling::Mean,
            "network.final_norm = \"pooled\" normalises the mean of the patches: it needs network.pooling = \"mean\""
        );
        anyhow::ensure!(self.norm_eps > 0.0 && self.norm_eps < 1.0, "network.norm_eps is a small number above 0");
        Ok(())
    }
}
