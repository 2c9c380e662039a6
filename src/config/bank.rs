//! `[bank]`: the synthetic and interpolated images that are made once, before Gen-DINO reads them every epoch.

use anyhow::{Result, ensure};
use serde::{Deserialize, Serialize};

/// Synthetic and interpolated images, made once and stored.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Bank {
    /// Synthetic images of every image.
    pub generative: usize,
    /// Images between every image and another one.
    pub interpolated: usize,
    /// Lowest and highest weight of the first image in an interpolation, drawn uniformly; equal for a constant.
    pub alpha: [f64; 2],
    /// How the images are stored.
    pub format: BankFormat,
    /// JPEG quality, 1 to 100.
    pub quality: u8,
    /// Images of the data set whose synthetic images share a file.
    pub shard: usize,
}

/// How the images of a bank are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BankFormat {
    /// Small, with a little loss.
    Jpeg,
    /// Lossless.
    Png,
    /// Lossless, somewhat smaller than PNG.
    Webp,
    /// The autoencoder's latents in half precision, decoded whenever they are read.
    Latents,
}

/// On which line two embeddings are interpolated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Interpolation {
    /// On the great circle: the embeddings of an encoder lie near a sphere.
    Slerp,
    /// On the straight line, the ablation.
    Lerp,
}

impl Interpolation {
    /// Its name, in paths and messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::Slerp => "slerp",
            Self::Lerp => "lerp",
        }
    }
}

impl Default for Bank {
    fn default() -> Self {
        Self {
            // One of each is what fits on a disk for ImageNet; more is an option of the paper's.
            generative: 1,
            interpolated: 1,
            // The paper lists α among the constants of its pseudo-code.
            alpha: [0.5, 0.5],
            format: BankFormat::Jpeg,
            // As packed patches are stored: its loss is far below what augmentation changes.
            quality: 90,
            shard: 1024,
        }
    }
}

impl Bank {
    /// Checks the values on their own.
    ///
    /// # Errors
    /// The key that makes no sense.
    pub fn check(&self) -> Result<()> {
        let [low, high] = self.alpha;
        ensure!((0.0..=high).contains(&low) && high <= 1.0, "alpha: 0 <= {low} <= {high} <= 1 does not hold");
        ensure!((1..=100).contains(&self.quality), "quality is {}: JPEG's goes from 1 to 100", self.quality);
        ensure!(self.shard > 0, "shard must be above 0: a file holds the images of at least one image");
        ensure!(self.generative + self.interpolated > 0, "generative and interpolated are both 0: nothing to make");
        Ok(())
    }
}
