//! `[evaluate]`: the benchmarks.

use super::load::all_hold;
use super::probes::{Linear, Robustness};
use super::{Copies, Retrieval, Video};
use anyhow::Result;
use evaluation::mil::{HeadKind, MilConfig};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// Benchmarks.
#[derive(Clone, Debug, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Evaluate {
    /// Patch-level weighted k-NN.
    pub knn: Knn,
    /// Linear probes on patches.
    pub linear: Linear,
    /// The same classifiers on images that have changed.
    pub robustness: Robustness,
    /// Slide-level classification.
    pub slide: SlideLevel,
    /// Distances of generated images.
    pub fid: Fid,
    /// Video object segmentation.
    pub video: Video,
    /// Image retrieval.
    pub retrieval: Retrieval,
    /// Copy detection.
    pub copies: Copies,
}

/// Distances of generated images.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Fid {
    /// Encoders of the run in whose features images are held against each other, by name: `dino`, which conditions the diffusion
    /// model, any variant of Gen-DINO, and those of `[[encoders]]`.
    pub encoders: Vec<String>,
    /// Stored statistics (`fid_reference*.safetensors` of this or another run) to hold the images against as well: of other
    /// images, by one of these encoders.
    pub references: Vec<PathBuf>,
    /// Weights of the Inception network of the published FID, `pt_inception-2015-12-05-*.pth` as pytorch-fid distributes
    /// them, for rows that can be compared with the literature. Empty for none: they were trained with labels.
    pub inception: PathBuf,
}

impl Fid {
    /// Checks the values on their own.
    ///
    /// # Errors
    /// What makes no sense, by its key.
    pub fn check(&self) -> Result<()> {
        all_hold(&[
            (distinct(&self.encoders), "evaluate.fid.encoders names an encoder twice: it would count twice"),
            (
                !self.encoders.is_empty() || !self.inception.as_os_str().is_empty(),
                "evaluate.fid.encoders is empty and evaluate.fid.inception too: name what judges",
            ),
        ])
    }
}

impl Default for Fid {
    fn default() -> Self {
        Self { encoders: vec!["dino".into()], references: vec![], inception: PathBuf::new() }
    }
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

impl Knn {
    /// Checks the values on their own.
    ///
    /// # Errors
    /// What makes no sense, by its key.
    pub fn check(&self) -> Result<()> {
        all_hold(&[
            (self.temperature > 0.0, "evaluate.knn.temperature must be above 0"),
            (!self.k.is_empty(), "evaluate.knn.k needs at least one number of neighbours"),
            (self.k.iter().all(|&k| k > 0), "evaluate.knn.k: a number of neighbours is at least 1"),
            (distinct(&self.k), "evaluate.knn.k names a number twice: it would count twice"),
        ])
    }
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
    /// Folds of the stratified, grouped cross-validation; ignored where a split is given.
    pub folds: usize,
    /// CLAM's `splits_<k>.csv`, one for each fold, instead of folds and of a split in the labels csv.
    pub splits: Vec<PathBuf>,
    /// Share of the training part held out for model selection, per fold.
    pub validation: f64,
    /// Seeds; every seed gives a row.
    pub seeds: Vec<u64>,
    /// Passes over the bags.
    pub epochs: usize,
    /// Epochs without a better validation loss before training stops; 0 never stops early.
    pub patience: usize,
    /// Learning rate of Adam at the start.
    pub lr: f64,
    /// Where the cosine that it follows ends; `lr` itself keeps it constant.
    pub final_lr: f64,
    /// Decay rates of Adam's moments.
    pub betas: [f64; 2],
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
    /// Whether the trained heads are kept, for heatmaps and for slides without a label.
    pub keep_heads: bool,
    /// A table of predictions in the format of a challenge.
    pub submission: Submission,
}

/// Predictions in the format of a challenge: one row per test slide, and per slide without a label.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Submission {
    /// Heading of the slides' column; empty writes none.
    pub slide: String,
    /// Heading of the predicted class.
    pub label: String,
    /// Headings of the probabilities, one for each class in the order of the classes; empty leaves them out.
    pub scores: Vec<String>,
}

impl Default for Submission {
    fn default() -> Self {
        // The name that BRIGHT gives it.
        Self { slide: String::new(), label: "predicted_label".into(), scores: vec![] }
    }
}

impl SlideLevel {
    /// Checks the values on their own, and for the heads asked for.
    ///
    /// # Errors
    /// What makes no sense, by its key.
    pub fn check(&self) -> Result<()> {
        all_hold(&[
            (
                !self.baselines.contains(&Baseline::Pixels),
                "evaluate.slide.baselines has \"random\" only: raw pixels are a baseline of evaluate.knn",
            ),
            (self.folds >= 2, "evaluate.slide.folds must be at least 2"),
            (!self.seeds.is_empty(), "evaluate.slide.seeds needs at least one seed"),
            (!self.aggregators.is_empty(), "evaluate.slide.aggregators needs at least one head"),
            (
                distinct(&self.seeds) && distinct(&self.aggregators),
                "evaluate.slide.seeds or evaluate.slide.aggregators names something twice: it would count twice",
            ),
            (
                distinct(&self.features.iter().map(|path| path.canonicalize().ok()).collect::<Vec<_>>())
                    || self.features.iter().any(|path| !path.exists()),
                "evaluate.slide.features names a folder twice",
            ),
            (
                (0.0..1.0).contains(&self.validation),
                "evaluate.slide.validation is a share below 1; with 0 the head trains for all its epochs",
            ),
            (
                self.submission.slide.is_empty() || self.keep_heads,
                "evaluate.slide.submission needs evaluate.slide.keep_heads: slides without a label are scored with the heads",
            ),
            ((0.0..1.0).contains(&self.dropout), "evaluate.slide.dropout is a probability below 1"),
        ])?;
        let config = self.mil();
        self.aggregators.iter().try_for_each(|head| Ok(head.check(&config)?))
    }

    /// The settings of the heads.
    pub fn mil(&self) -> MilConfig {
        MilConfig {
            epochs: self.epochs,
            patience: self.patience,
            lr: self.lr,
            final_lr: self.final_lr,
            betas: self.betas,
            weight_decay: self.weight_decay,
            hidden: self.hidden,
            attention: self.attention,
            dropout: self.dropout,
            standardize: self.standardize,
            accumulate: self.accumulate,
            max_patches: self.max_patches,
            balanced: self.balanced,
        }
    }
}

impl Default for SlideLevel {
    fn default() -> Self {
        // SI-MIL and PromptMIL's training of gated ABMIL heads (Adam 2e-4, wd 1e-2, 40 epochs, 8 bags per step).
        Self {
            aggregators: vec![HeadKind::Abmil],
            folds: 5,
            splits: vec![],
            validation: 0.2,
            seeds: vec![0],
            epochs: 40,
            patience: 10,
            lr: 2e-4,
            final_lr: 5e-6,
            betas: [0.5, 0.9],
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
            keep_heads: true,
            submission: Submission::default(),
        }
    }
}

/// Whether no value is there twice.
fn distinct<T: PartialEq>(values: &[T]) -> bool {
    values.iter().enumerate().all(|(at, value)| !values[..at].contains(value))
}
