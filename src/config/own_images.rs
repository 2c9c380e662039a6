//! `[evaluate.video]`, `[evaluate.retrieval]`, `[evaluate.copies]`: benchmarks with images of their own. Each is scored where
//! a folder is named.

use evaluation::video::PropagationConfig;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

use super::Baseline;

/// Video object segmentation by label propagation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Video {
    /// A folder in DAVIS's layout.
    pub folder: PathBuf,
    /// Short side of a frame, px; the long one is floored to a multiple of 64.
    pub resize: u32,
    /// Latest frames whose labels are carried on, beside the first.
    pub queue: usize,
    /// Largest distance of a patch that is asked, patches along x and y; 0 asks all.
    pub window: usize,
    /// Patches whose labels count.
    pub top_k: usize,
    /// Temperature of the similarities.
    pub temperature: f64,
    /// What else to score: only `random`.
    pub baselines: Vec<Baseline>,
}

impl Default for Video {
    fn default() -> Self {
        // DINO's eval_video_segmentation.py.
        let PropagationConfig { queue, window, top_k, temperature } = PropagationConfig::default();
        Self { folder: PathBuf::new(), resize: 480, queue, window, top_k, temperature, baselines: vec![] }
    }
}

impl Video {
    /// How labels are carried on.
    pub fn propagation(&self) -> PropagationConfig {
        let Self { queue, window, top_k, temperature, .. } = *self;
        PropagationConfig { queue, window, top_k, temperature }
    }
}

/// Image retrieval.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Retrieval {
    /// Whether `run` and `evaluate` score the run's own test images by class, where no folder is named.
    pub enabled: bool,
    /// `gnd_*.pkl` or `gnd_*.json` beside `jpg/` (revisited Oxford and Paris), or class folders.
    pub folder: PathBuf,
    /// Longest side of an image, px; smaller ones stay as they are.
    pub image_size: u32,
    /// Whether features are the mean over the scales 1, 1/√2 and 1/2.
    pub multiscale: bool,
    /// Whether a query is cut to its box first, as the revisited protocol has it; DINO takes the whole image.
    pub crop_queries: bool,
    /// What else to score: only `random`.
    pub baselines: Vec<Baseline>,
}

impl Default for Retrieval {
    fn default() -> Self {
        // DINO's setting for Oxford; for Paris it takes 512 px and three scales.
        Self {
            enabled: false,
            folder: PathBuf::new(),
            image_size: 224,
            multiscale: false,
            crop_queries: false,
            baselines: vec![],
        }
    }
}

/// Copy detection.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Copies {
    /// Whether `run` and `evaluate` make copies of the run's own test images, where no folder is named.
    pub enabled: bool,
    /// `original/` and `strong/` (Copydays), or any images: copies are then made of them.
    pub folder: PathBuf,
    /// Folders of copies beside `original/`.
    pub sets: Vec<String>,
    /// Side of the square that images are resized to, px.
    pub image_size: u32,
    /// Power of the generalised mean over the patch tokens.
    pub gem_power: f64,
    /// A folder of other images to learn whitening from; empty leaves it out.
    pub whitening: PathBuf,
    /// A folder of other images for the database; empty leaves it out.
    pub distractors: PathBuf,
    /// What else to score: only `random`.
    pub baselines: Vec<Baseline>,
}

impl Default for Copies {
    fn default() -> Self {
        Self {
            enabled: false,
            folder: PathBuf::new(),
            sets: vec!["strong".into()],
            // For 16 px patches; DINO's published figures are those of ViT-B/16 at 224 and of ViT-B/8 at 320.
            image_size: 224,
            gem_power: 4.0,
            whitening: PathBuf::new(),
            distractors: PathBuf::new(),
            baselines: vec![],
        }
    }
}
