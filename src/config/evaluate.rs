//! `[evaluate]`: the benchmarks.

use super::probes::{Linear, Robustness};
use super::{Copies, Retrieval, Video};
use evaluation::mil::HeadKind;
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

/// Distances of generated images, beside those in the features of the encoder that conditions the diffusion model.
#[derive(Clone, Debug, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Fid {
    /// Weights of the Inception network of the published FID, `pt_inception-2015-12-05-*.pth` as pytorch-fid distributes
    /// them, for rows that can be compared with the literature. Empty for none: they were trained with labels.
    pub inception: PathBuf,
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
