//! `[evaluate.linear]` and `[evaluate.robustness]`: classifiers of single images, and what becomes of them elsewhere.

use std::path::PathBuf;

use anyhow::{Result, ensure};
use serde::{Deserialize, Serialize};

use crate::data::shift::Shift;

/// Linear probes of a frozen encoder on image folders.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Linear {
    /// Whether `evaluate` and `run` fit them without being asked for this task alone.
    pub enabled: bool,
    /// How heads are fitted; each gives rows. The first also serves the robustness benchmarks.
    pub probes: Vec<Probe>,
    /// CLS tokens of this many last blocks, beside each other, are the features.
    pub blocks: usize,
    /// L2 penalties of the mean loss that logistic regression chooses from.
    pub l2: Vec<f64>,
    /// Share of the training images of every class held out for that choice.
    pub validation: f64,
    /// Passes of stochastic gradient descent over the training images.
    pub epochs: usize,
    /// Images of a step.
    pub batch: usize,
    /// Learning rate at a batch of 256.
    pub lr: f64,
    /// Momentum.
    pub momentum: f64,
    /// Whether stochastic gradient descent sees random crops and flips, encoded anew every epoch, in place of stored features.
    pub augment: bool,
    /// Share of the image's area in a random crop, smallest and largest.
    pub crop_scale: [f64; 2],
    /// Training images of every class in few-shot probes; empty for none.
    pub shots: Vec<usize>,
    /// Draws of them; each gives rows.
    pub draws: usize,
}

/// How a linear head is fitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Probe {
    /// Multinomial logistic regression to its optimum, the penalty chosen on held-out training images.
    Logistic,
    /// DINO's stochastic gradient descent.
    Sgd,
}

impl Default for Linear {
    fn default() -> Self {
        Self {
            enabled: false,
            probes: vec![Probe::Logistic, Probe::Sgd],
            // DINO's protocol for ViT-S: four blocks, 100 epochs, 0.001 at batch 256, momentum 0.9.
            blocks: 4,
            // Features are standardised, so that these span from almost nothing but the classes' shares to almost no penalty.
            l2: vec![10.0, 1.0, 0.1, 1e-2, 1e-3, 1e-4, 1e-5],
            validation: 0.2,
            epochs: 100,
            batch: 256,
            lr: 1e-3,
            momentum: 0.9,
            augment: false,
            // Torchvision's RandomResizedCrop.
            crop_scale: [0.08, 1.0],
            shots: vec![],
            draws: 5,
        }
    }
}

impl Linear {
    /// Checks the values on their own.
    ///
    /// # Errors
    /// Naming the value that makes no sense.
    pub fn check(&self) -> Result<()> {
        ensure!(!self.probes.is_empty(), "probes needs at least one of \"logistic\" and \"sgd\"");
        ensure!(self.blocks > 0, "blocks is at least 1: the last one's CLS token");
        ensure!(!self.l2.is_empty(), "l2 needs at least one penalty");
        ensure!(self.l2.iter().all(|l2| *l2 >= 0.0 && l2.is_finite()), "l2: a penalty is 0 or more");
        ensure!(self.validation > 0.0 && self.validation < 1.0, "validation is a share above 0 and below 1");
        ensure!(self.epochs > 0 && self.batch > 0, "epochs and batch are at least 1");
        ensure!(self.lr > 0.0 && self.lr.is_finite(), "lr must be above 0");
        ensure!((0.0..1.0).contains(&self.momentum), "momentum is 0 or more, and below 1");
        let [low, high] = self.crop_scale;
        ensure!(low > 0.0 && low <= high && high <= 1.0, "crop_scale is [smallest, largest] share of the area, 0 to 1");
        ensure!(self.shots.iter().all(|&shots| shots > 0), "shots: at least one image of every class");
        ensure!(self.shots.is_empty() || self.draws > 0, "draws is at least 1");
        Ok(())
    }
}

/// Classifiers fitted on clean training images, asked about images that have changed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Robustness {
    /// Whether the test images, or slides, themselves are changed as other laboratories and scanners would.
    pub tissue: bool,
    /// Test slides that are changed, evenly over the classes; 0 takes all.
    pub slides: usize,
    /// Patches of each of them; 0 takes all.
    pub patches: usize,
    /// The changes.
    pub shifts: Vec<Shift>,
    /// Neighbours of the k-NN classifier; 0 leaves it out.
    pub k: usize,
    /// ImageNet-A: `<wnid>/<image>`.
    pub imagenet_a: PathBuf,
    /// ImageNet-R: `<wnid>/<image>`.
    pub imagenet_r: PathBuf,
    /// ImageNet-Sketch: `<wnid>/<image>`.
    pub imagenet_sketch: PathBuf,
    /// ImageNet-V2: `<class index>/<image>`, one folder per variant.
    pub imagenet_v2: Vec<PathBuf>,
    /// ImageNet-C: `[<group>/]<corruption>/<severity>/<wnid>/<image>`.
    pub imagenet_c: PathBuf,
}

impl Default for Robustness {
    fn default() -> Self {
        Self {
            tissue: false,
            slides: 60,
            patches: 256,
            shifts: Shift::ALL.to_vec(),
            // DINO's usual choice.
            k: 20,
            imagenet_a: PathBuf::new(),
            imagenet_r: PathBuf::new(),
            imagenet_sketch: PathBuf::new(),
            imagenet_v2: vec![],
            imagenet_c: PathBuf::new(),
        }
    }
}

impl Robustness {
    /// Whether anything is asked for.
    pub fn enabled(&self) -> bool {
        let folders = [&self.imagenet_a, &self.imagenet_r, &self.imagenet_sketch, &self.imagenet_c];
        self.tissue || !self.imagenet_v2.is_empty() || folders.iter().any(|path| !path.as_os_str().is_empty())
    }

    /// Checks the values on their own.
    ///
    /// # Errors
    /// Naming the value that makes no sense.
    pub fn check(&self) -> Result<()> {
        ensure!(!self.tissue || !self.shifts.is_empty(), "shifts needs at least one where tissue is true");
        Ok(())
    }
}
