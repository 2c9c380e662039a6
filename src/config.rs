//! The experiment: every setting of every stage, with its default and the reason for it, in one place.
//!
//! A configuration file holds only differences from these defaults. Unknown keys and wrong types are errors.
//! `gensis config default` prints the whole.

mod autoencoder;
mod bank;
mod diffusion;
mod gen_dino;
mod load;

pub use autoencoder::{Autoencoder, AutoencoderKind, AutoencoderSizes, PerceptualKind};
pub use bank::{Bank, BankFormat, Interpolation};
pub use diffusion::{BetaSchedule, Condition, Diffusion, Noise, Prediction, Sample, Solver, UnetShape};
pub use gen_dino::{GenDino, Locals, Recipe, Targets, Variant};
pub use load::DEFAULT_TOML;

use evaluation::mil::HeadKind;
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
}

/// Where the slides or images are. Paths are relative to the working directory.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Data {
    /// A folder of slides, or a glob (`slides/**/*.svs`). Empty when `images` is used.
    pub slides: String,
    /// A csv with one row per slide. Empty for unlabelled slides.
    pub labels: PathBuf,
    /// Columns of that csv.
    pub columns: Columns,
    /// µm/px of level 0 for every slide, overriding the files; 0 believes the files.
    pub mpp: f64,
    /// A folder with what somebody drew, `<slide id>.geojson` or `.png`: it takes the place of the tissue mask. Empty for
    /// none.
    pub roi: PathBuf,
    /// Whether only the tissue inside the drawn regions counts.
    pub roi_within_tissue: bool,
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
            slides: String::new(),
            labels: PathBuf::new(),
            columns: Columns::default(),
            mpp: 0.0,
            roi: PathBuf::new(),
            roi_within_tissue: false,
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
}

impl Default for Columns {
    fn default() -> Self {
        // CLAM's names, the most common csv of the field.
        Self {
            slide: "slide_id".into(),
            label: "label".into(),
            group: "case_id".into(),
            split: "split".into(),
            mpp: "mpp".into(),
        }
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

/// DINO projection head.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Head {
    /// Width of the hidden layers.
    pub hidden: usize,
    /// Width of the normalised bottleneck.
    pub bottleneck: usize,
    /// Prototypes.
    pub out: usize,
    /// Whether the gain of the last layer stays at 1 (DINO's default; false in the "boosted" recipe).
    pub norm_last_layer: bool,
}

impl Default for Head {
    fn default() -> Self {
        Self { hidden: 2048, bottleneck: 256, out: 65536, norm_last_layer: true }
    }
}

/// Multi-crop and augmentation, DINO's recipe.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Crops {
    /// Side of the two global crops, px.
    pub global_size: u32,
    /// Share of the image's area in a global crop, smallest and largest.
    pub global_scale: [f64; 2],
    /// Number of local crops.
    pub local_count: usize,
    /// Side of a local crop, px.
    pub local_size: u32,
    /// Share of the image's area in a local crop.
    pub local_scale: [f64; 2],
    /// Probability of a horizontal flip.
    pub hflip: f64,
    /// Probability of a vertical flip: 0 for natural images, 0.5 for tissue, which has no up.
    pub vflip: f64,
    /// Probability of a change of stain: for H&E and DAB.
    pub stain: f64,
    /// Its strengths: factors of the stains' amounts are uniform in 1 ± the first, shifts (in optical density) in ± the
    /// second.
    pub stain_strength: [f64; 2],
    /// Probability of colour jitter.
    pub jitter: f64,
    /// Strengths of brightness, contrast, saturation and hue jitter.
    pub jitter_strength: [f64; 4],
    /// Probability of greyscale.
    pub grayscale: f64,
    /// Probability of Gaussian blur: first global, second global, locals.
    pub blur: [f64; 3],
    /// Range of the blur's radius (standard deviation, px).
    pub blur_sigma: [f64; 2],
    /// Probability of solarisation of the second global crop.
    pub solarize: f64,
    /// Mean of the normalisation, RGB.
    pub mean: [f32; 3],
    /// Standard deviation of the normalisation, RGB.
    pub std: [f32; 3],
}

impl Default for Crops {
    fn default() -> Self {
        Self {
            global_size: 224,
            global_scale: [0.4, 1.0],
            local_count: 8,
            local_size: 96,
            local_scale: [0.05, 0.4],
            hflip: 0.5,
            vflip: 0.0,
            stain: 0.0,
            stain_strength: [0.3, 0.1],
            jitter: 0.8,
            jitter_strength: [0.4, 0.4, 0.2, 0.1],
            grayscale: 0.2,
            blur: [1.0, 0.1, 0.5],
            blur_sigma: [0.1, 2.0],
            solarize: 0.2,
            mean: [0.485, 0.456, 0.406],
            std: [0.229, 0.224, 0.225],
        }
    }
}

/// DINO training, the code defaults of the reference implementation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Pretrain {
    /// Passes over the patches.
    pub epochs: usize,
    /// Images per step.
    pub batch: usize,
    /// Patches drawn per epoch (a seeded subset, anew each epoch); 0 takes all.
    pub patches_per_epoch: usize,
    /// Peak learning rate at batch 256; the rate used is `lr * batch / 256`.
    pub lr: f64,
    /// Last learning rate.
    pub min_lr: f64,
    /// Epochs of linear warm-up of the learning rate.
    pub warmup_epochs: usize,
    /// First weight decay.
    pub weight_decay: f64,
    /// Last weight decay.
    pub weight_decay_end: f64,
    /// First momentum of the teacher; it ends at 1. Use 0.9995 with batches of 256 or fewer.
    pub teacher_momentum: f64,
    /// Teacher temperature after its warm-up.
    pub teacher_temp: f64,
    /// Teacher temperature at the start.
    pub warmup_teacher_temp: f64,
    /// Epochs of linear warm-up of the teacher temperature.
    pub warmup_teacher_temp_epochs: usize,
    /// Student temperature.
    pub student_temp: f64,
    /// Momentum of the centre.
    pub center_momentum: f64,
    /// Largest norm of a parameter tensor's gradient; 0 turns clipping off.
    pub clip_grad: f64,
    /// Epochs during which the last layer is not trained.
    pub freeze_last_layer: usize,
    /// Arithmetic of the step: `f32` or `bf16` (accelerators only).
    pub precision: Precision,
    /// Write a checkpoint every this many steps (and at the end); 0 writes one per epoch.
    pub checkpoint_every: usize,
    /// k-NN on the labelled patches every this many epochs, where labels exist; 0 turns it off.
    pub knn_every: usize,
    /// Micro-batches whose gradients are summed: in parallel on the CPU, one after the other on an accelerator.
    /// 0 takes 2 on the CPU, whatever its cores (so that the bits of a result do not depend on the machine), and 1 on
    /// an accelerator. Results of different counts differ only by the rounding of sums.
    pub replicas: usize,
}

/// Arithmetic of a training step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// Single precision.
    #[default]
    F32,
    /// Brain float: range of single precision, 8 bits of mantissa.
    Bf16,
}

impl Default for Pretrain {
    fn default() -> Self {
        Self {
            epochs: 100,
            batch: 64,
            patches_per_epoch: 0,
            lr: 5e-4,
            min_lr: 1e-6,
            warmup_epochs: 10,
            weight_decay: 0.04,
            weight_decay_end: 0.4,
            teacher_momentum: 0.996,
            teacher_temp: 0.04,
            warmup_teacher_temp: 0.04,
            warmup_teacher_temp_epochs: 0,
            student_temp: 0.1,
            center_momentum: 0.9,
            clip_grad: 3.0,
            freeze_last_layer: 1,
            precision: Precision::F32,
            checkpoint_every: 0,
            knn_every: 5,
            replicas: 0,
        }
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

/// Benchmarks.
#[derive(Clone, Debug, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Evaluate {
    /// Patch-level weighted k-NN.
    pub knn: Knn,
    /// Slide-level classification.
    pub slide: SlideLevel,
}

/// Patch-level weighted k-NN.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Knn {
    /// Neighbours; every value gives a row.
    pub k: Vec<usize>,
    /// Temperature of the votes.
    pub temperature: f64,
    /// What else to score, as a check that training helped.
    pub baselines: Vec<Baseline>,
}

/// What a trained encoder is compared with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Baseline {
    /// The same network before training.
    Random,
    /// The pixels themselves, after the evaluation transform.
    Pixels,
}

impl Default for Knn {
    fn default() -> Self {
        // DINO's four values and temperature.
        Self { k: vec![10, 20, 100, 200], temperature: 0.07, baselines: vec![] }
    }
}

/// Slide-level classification by multiple-instance learning.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SlideLevel {
    /// Heads, each trained and scored: `mean`, `max`, `abmil`, `clam_sb`, `clam_mb`, `dsmil`, `transmil`.
    pub aggregators: Vec<HeadKind>,
    /// Folds of the stratified, grouped cross-validation; ignored where the csv gives a split.
    pub folds: usize,
    /// Share of the training part held out for model selection, per fold.
    pub validation: f64,
    /// Seeds; every seed gives a row.
    pub seeds: Vec<u64>,
    /// Passes over the bags.
    pub epochs: usize,
    /// Epochs without a better validation loss before training stops; 0 never stops early.
    pub patience: usize,
    /// Learning rate of Adam.
    pub lr: f64,
    /// Weight decay of Adam.
    pub weight_decay: f64,
    /// Width of the hidden layer.
    pub hidden: usize,
    /// Width of the gated attention of `abmil` and `clam`.
    pub attention: usize,
    /// Dropout.
    pub dropout: f64,
    /// Whether features are put on mean 0 and deviation 1 over the training patches first.
    pub standardize: bool,
    /// Bags whose gradients are summed before a step.
    pub accumulate: usize,
    /// Largest number of patches of a bag seen in training, drawn anew each epoch; 0 takes all.
    pub max_patches: usize,
    /// Whether the loss of a class weighs as the inverse of its number of training slides.
    pub balanced: bool,
    /// Whether the slides of a patient (`data.columns.group`) are one bag, scored as one.
    pub by_patient: bool,
    /// Bootstrap resamples of the intervals, of patients where they are given.
    pub bootstrap: usize,
    /// Exchanges behind each p of a paired permutation test between encoders; 0 leaves the tests out.
    pub permutations: usize,
    /// Folders of features made elsewhere, one HDF5 file a slide as TRIDENT or CLAM write them: each is scored beside the
    /// trained encoder, or without one where there is none.
    pub features: Vec<PathBuf>,
    /// What else to score, as a check that training helped: only `random`.
    pub baselines: Vec<Baseline>,
}

impl Default for SlideLevel {
    fn default() -> Self {
        // SI-MIL and PromptMIL's training of gated ABMIL heads (Adam 2e-4, wd 1e-2, 40 epochs, 8 bags per step).
        Self {
            aggregators: vec![HeadKind::Abmil],
            folds: 5,
            validation: 0.2,
            seeds: vec![0],
            epochs: 40,
            patience: 10,
            lr: 2e-4,
            weight_decay: 1e-2,
            hidden: 384,
            attention: 256,
            dropout: 0.25,
            // Features of a briefly trained encoder share a large constant part that hides their differences.
            standardize: true,
            accumulate: 8,
            max_patches: 0,
            balanced: false,
            by_patient: false,
            bootstrap: 1000,
            permutations: 1000,
            features: vec![],
            baselines: vec![],
        }
    }
}
