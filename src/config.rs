//! The experiment: every setting of every stage, with its default and the reason for it, in one place.
//!
//! A configuration file holds only differences from these defaults. Unknown keys and wrong types are errors.
//! `gensis config default` prints the whole.

mod autoencoder;
mod bank;
mod diffusion;
mod encoders;
mod evaluate;
mod gen_dino;
mod heatmap;
mod load;
mod network;
mod own_images;
pub mod presets;
mod pretrain;
mod probes;

pub use autoencoder::{Autoencoder, AutoencoderKind, AutoencoderSizes, PerceptualKind};
pub use bank::{Bank, BankFormat, Interpolation};
pub use diffusion::{BetaSchedule, Condition, Diffusion, Noise, Prediction, Sample, Solver, Spacing, UnetShape};
pub use encoders::{ForeignEncoder, NetworkKeys, Shown, View};
pub use evaluate::{Baseline, Evaluate, Fid, Knn, SlideLevel, Submission};
pub use gen_dino::{GenDino, Locals, Recipe, Targets, Variant};
pub use heatmap::{Heatmap, Outlines};
pub use load::DEFAULT_TOML;
pub use network::{FinalNorm, MlpKind, Network, Pooling, PositionResampling, Positions};
pub use own_images::{Copies, Retrieval, Video};
pub use presets::PRESETS;
pub use pretrain::{Crops, Head, Precision, Pretrain};
pub use probes::{Linear, Probe, Robustness};

use serde::{Deserialize, Serialize};
use slide_io::stain::StainParams;
use slide_io::{GridSpec, PackSpec, QualityParams, TissueParams};
use std::path::PathBuf;

/// Everything one run needs.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Experiment {
    /// The one seed everything random is derived from.
    pub seed: u64,
    /// Whether no encoder is trained and only those of `encoders` are used.
    pub pretrained_only: bool,
    /// Encoders that somebody else trained.
    pub encoders: Vec<ForeignEncoder>,
    /// Where the slides or images are.
    pub data: Data,
    /// Tissue mask.
    pub tissue: TissueParams,
    /// Patch grid.
    pub grid: GridSpec,
    /// Rules that drop patches of ink, folds, glass and blur.
    pub quality: QualityParams,
    /// Patches packed for training.
    pub pack: PackSpec,
    /// Stain normalisation.
    pub stain: StainParams,
    /// Encoder.
    pub model: Model,
    /// DINO projection head.
    pub head: Head,
    /// Multi-crop and augmentation.
    pub crops: Crops,
    /// DINO training.
    pub pretrain: Pretrain,
    /// First stage of latent diffusion.
    pub autoencoder: Autoencoder,
    /// Latent diffusion model.
    pub diffusion: Diffusion,
    /// How images are drawn from it.
    pub sample: Sample,
    /// Stored synthetic images.
    pub bank: Bank,
    /// DINO with synthetic images.
    pub gen_dino: GenDino,
    /// Patch embeddings.
    pub embed: Embed,
    /// Benchmarks.
    pub evaluate: Evaluate,
    /// Attention heatmaps.
    pub heatmap: Heatmap,
}

/// Where the slides or images are. Paths are relative to the working directory.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Data {
    /// The data set's name in tables; empty takes that of the folder.
    pub name: String,
    /// A folder of slides, or a glob (`slides/**/*.svs`). Empty when `images` is used.
    pub slides: String,
    /// A csv with one row per slide. Empty for unlabelled slides.
    pub labels: PathBuf,
    /// Columns of that csv.
    pub columns: Columns,
    /// The classes in their order; empty sorts them, as numbers if all of them are.
    pub classes: Vec<String>,
    /// Whether rows of the csv without a slide, slides without a row or a label, and labelled slides without features are no
    /// failures.
    pub allow_missing: bool,
    /// A list of slides, text or csv: only these are used. Empty uses all.
    pub include: PathBuf,
    /// Slides that are left out.
    pub exclude: Vec<String>,
    /// µm/px of level 0 for every slide, overriding the files; 0 believes the files.
    pub mpp: f64,
    /// A folder with what somebody drew, `<slide id>.geojson` or `.png`: it takes the place of the tissue mask. Empty for
    /// none.
    pub roi: PathBuf,
    /// Whether only the tissue inside the drawn regions counts.
    pub roi_within_tissue: bool,
    /// A folder of coordinates that TRIDENT, CLAM or another run made, `<slide id>_patches.h5` or `<slide id>.h5`: they take
    /// the place of tissue mask, grid and quality rules. Their squares keep the footprint of the file, which must lie
    /// within 5 % of `grid.size` times `grid.mpp`. Empty for none.
    pub coordinates: PathBuf,
    /// A folder with label masks, `<slide id>_mask.tiff` as in PANDA: the share of every class in every patch is stored
    /// with the coordinates. Empty for none.
    pub label_masks: PathBuf,
    /// Values that the pixels of the label masks may have.
    pub mask_labels: Vec<u8>,
    /// An image folder (`<class>/<image>`), or a folder holding `train/` and `test/` (or `val/`) of that layout.
    pub images: PathBuf,
}

impl Default for Data {
    fn default() -> Self {
        Self {
            name: String::new(),
            slides: String::new(),
            labels: PathBuf::new(),
            columns: Columns::default(),
            classes: vec![],
            allow_missing: false,
            include: PathBuf::new(),
            exclude: vec![],
            mpp: 0.0,
            roi: PathBuf::new(),
            roi_within_tissue: false,
            coordinates: PathBuf::new(),
            label_masks: PathBuf::new(),
            // PANDA's at Radboud; Karolinska's are 0, 1, 2.
            mask_labels: slide_io::label_mask::RADBOUD.to_vec(),
            images: PathBuf::new(),
        }
    }
}

/// Column names of the labels csv; an empty name means there is none.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Columns {
    /// Slide id: the file name, with or without its extension.
    pub slide: String,
    /// Class.
    pub label: String,
    /// Patient, site or duplicate group: never split across folds.
    pub group: String,
    /// `train`, `val` or `test`; where present the split is used instead of folds.
    pub split: String,
    /// µm/px of level 0, overriding the file.
    pub mpp: String,
    /// What folds spread evenly beside the class, a scanner or a hospital; empty for nothing.
    pub stratum: String,
}

impl Default for Columns {
    fn default() -> Self {
        let slide_io::manifest::ColumnNames { slide, label, group, split, mpp, stratum } = Default::default();
        Self { slide, label, group, split, mpp, stratum }
    }
}

/// Vision transformer. Any field left out takes the value of `arch`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Model {
    /// `vit_tiny`, `vit_small`, `vit_base`, or `custom` (then `dim`, `depth` and `heads` are needed).
    pub arch: String,
    /// Side of a patch token, px.
    pub patch: usize,
    /// Side of the image the position embedding is made for, px.
    pub image_size: usize,
    /// Width; 0 takes the value of `arch`.
    pub dim: usize,
    /// Blocks; 0 takes the value of `arch`.
    pub depth: usize,
    /// Attention heads; 0 takes the value of `arch`.
    pub heads: usize,
    /// Largest stochastic-depth rate (student only).
    pub drop_path: f64,
}

impl Default for Model {
    fn default() -> Self {
        // ViT-S/16: the encoder of DINO's and Gen-SIS's tables.
        Self { arch: "vit_small".into(), patch: 16, image_size: 224, dim: 0, depth: 0, heads: 0, drop_path: 0.1 }
    }
}

impl Model {
    /// The same model with `dim`, `depth` and `heads` filled in from `arch`, checked.
    ///
    /// # Errors
    /// An unknown `arch`, a `custom` one without its three numbers, a width that the heads do not divide, or an image
    /// smaller than one patch.
    pub fn resolve(&self) -> anyhow::Result<Self> {
        let [dim, depth, heads] = match self.arch.as_str() {
            "vit_tiny" => [192, 12, 3],
            "vit_small" => [384, 12, 6],
            "vit_base" => [768, 12, 12],
            "custom" => [0, 0, 0],
            other => anyhow::bail!("model.arch = \"{other}\": known are vit_tiny, vit_small, vit_base and custom"),
        };
        let pick = |given: usize, named: usize| if given == 0 { named } else { given };
        let model = Self {
            dim: pick(self.dim, dim),
            depth: pick(self.depth, depth),
            heads: pick(self.heads, heads),
            ..self.clone()
        };
        anyhow::ensure!(
            model.dim > 0 && model.depth > 0 && model.heads > 0,
            "model.arch = \"custom\" needs model.dim, model.depth and model.heads"
        );
        anyhow::ensure!(
            model.dim.is_multiple_of(model.heads),
            "model.dim = {} is not a multiple of model.heads = {}",
            model.dim,
            model.heads
        );
        anyhow::ensure!(
            model.patch > 0 && model.image_size >= model.patch,
            "model.image_size = {} holds no patch of {} px (model.patch)",
            model.image_size,
            model.patch
        );
        anyhow::ensure!(
            (0.0..1.0).contains(&model.drop_path),
            "model.drop_path = {} is not in [0, 1)",
            model.drop_path
        );
        Ok(model)
    }
}

/// Patch embeddings.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Embed {
    /// Patches per forward pass.
    pub batch: usize,
    /// Short side after resizing, px; 0 takes patches as they are.
    pub resize: u32,
    /// Side of the centre crop, px; 0 takes the whole.
    pub crop: u32,
}

impl Default for Embed {
    fn default() -> Self {
        // Resize 256, crop 224: the evaluation transform of DINO.
        Self { batch: 64, resize: 256, crop: 224 }
    }
}
