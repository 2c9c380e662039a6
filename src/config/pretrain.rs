//! `[head]`, `[crops]` and `[pretrain]`: DINO.

use anyhow::{Result, ensure};
use serde::{Deserialize, Serialize};

use super::load::all_hold;
use super::presets::{IMAGENET_MEAN, IMAGENET_STD};

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
            mean: IMAGENET_MEAN,
            std: IMAGENET_STD,
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

impl Pretrain {
    /// That the teacher's temperature has risen by the end of the run.
    ///
    /// # Errors
    /// A longer rise, with both keys.
    pub fn check_temperatures(&self) -> Result<()> {
        let Self { epochs, warmup_teacher_temp_epochs, .. } = self;
        ensure!(
            warmup_teacher_temp_epochs <= epochs,
            "pretrain.warmup_teacher_temp_epochs = {warmup_teacher_temp_epochs} is longer than pretrain.epochs = {epochs}"
        );
        Ok(())
    }

    /// Checks the values on their own.
    ///
    /// # Errors
    /// What makes no sense, by its key.
    pub fn check(&self) -> Result<()> {
        all_hold(&[
            (self.epochs > 0, "pretrain.epochs must be above 0"),
            (self.batch > 0, "pretrain.batch must be above 0"),
            (
                self.patches_per_epoch == 0 || self.patches_per_epoch >= self.batch,
                "pretrain.patches_per_epoch must be 0 (all) or fill a batch of pretrain.batch",
            ),
            (self.lr > 0.0 && self.lr.is_finite(), "pretrain.lr must be above 0"),
            (self.warmup_epochs <= self.epochs, "pretrain.warmup_epochs must not exceed pretrain.epochs"),
            (
                self.teacher_temp > 0.0 && self.warmup_teacher_temp > 0.0 && self.student_temp > 0.0,
                "temperatures must be above 0",
            ),
            (
                [self.lr, self.min_lr, self.weight_decay, self.weight_decay_end]
                    .iter()
                    .chain([&self.clip_grad])
                    .all(|value| value.is_finite() && *value >= 0.0),
                "pretrain.lr, min_lr, weight_decay, weight_decay_end and clip_grad are 0 or more",
            ),
            (
                [self.teacher_momentum, self.center_momentum].iter().all(|m| (0.0..=1.0).contains(m)),
                "pretrain.teacher_momentum and center_momentum lie between 0 and 1",
            ),
        ])
    }
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
