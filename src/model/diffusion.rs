//! The latent diffusion model as a file: the averaged U-Net, and in the metadata everything needed to draw from it.

use super::noise::NoiseSchedule;
use super::parameters;
use super::unet::Unet;
use super::weights::{hash, read_safetensors, write_safetensors};
use crate::config::{Condition, Interpolation, Noise, UnetShape};
use crate::sample::interpolate::interpolate;
use anyhow::{Context, Result, ensure};
use burn::tensor::Device;
use serde::{Deserialize, Serialize};
use std::path::Path;

/// What has to be known to use a diffusion model's weights.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiffusionConfig {
    /// Sizes of the network.
    pub unet: UnetShape,
    /// The forward process it was trained on.
    pub noise: Noise,
    /// How embeddings condition.
    pub condition: Condition,
    /// Mean and deviation of every channel of the training images' embeddings; empty where they do not matter.
    pub statistics: [Vec<f32>; 2],
    /// Channels and side of the latents it was trained on.
    pub latent: [usize; 2],
    /// Width of the embeddings.
    pub embedding: usize,
    /// Hash of the encoder whose embeddings these are.
    pub encoder: String,
    /// Hash of the autoencoder whose latents these are.
    pub autoencoder: String,
    /// Where the weights come from.
    #[serde(default)]
    pub origin: serde_json::Value,
}

impl DiffusionConfig {
    /// An embedding as it conditions.
    pub fn conditioned(&self, mut embedding: Vec<f32>) -> Vec<f32> {
        match self.condition {
            Condition::Sphere => {
                let length = embedding.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>().sqrt().max(1e-12);
                embedding.iter_mut().for_each(|v| *v = (f64::from(*v) / length) as f32);
            }
            Condition::Standardized => {
                let [means, deviations] = &self.statistics;
                for ((v, mean), deviation) in embedding.iter_mut().zip(means).zip(deviations) {
                    // What never changed in training says nothing.
                    *v = if *deviation > 1e-6 { (*v - mean) / deviation } else { 0.0 };
                }
            }
        }
        embedding
    }

    /// What conditions between two embeddings, interpolated where it conditions: on the sphere, or with every channel at mean 0
    /// and deviation 1. A constant part that all embeddings share would bend the arc between any two of them alike. The line
    /// (the ablation) runs below the sphere, where training never was: brought back up, its middle would be the arc's.
    pub fn between(&self, kind: Interpolation, first: &[f32], second: &[f32], alpha: f64) -> Vec<f32> {
        let [first, second] = [first, second].map(|embedding| self.conditioned(embedding.to_vec()));
        interpolate(kind, &first, &second, alpha)
    }
}

/// A diffusion model ready to use.
#[derive(Clone, Debug)]
pub struct DiffusionModel {
    /// How it was made.
    pub config: DiffusionConfig,
    /// SHA-256 of the weights.
    pub hash: String,
    /// The network.
    pub unet: Unet,
}

impl DiffusionModel {
    /// Wraps a network.
    pub fn new(unet: Unet, config: DiffusionConfig) -> Self {
        Self { hash: hash(&parameters::export(&unet)), unet, config }
    }

    /// ᾱ of every time step.
    pub fn schedule(&self) -> NoiseSchedule {
        NoiseSchedule::new(&self.config.noise)
    }

    /// Reads a file of ours.
    ///
    /// # Errors
    /// An unreadable file, and weights that do not fit: nothing is loaded half-way.
    pub fn load(path: &Path, device: &Device) -> Result<Self> {
        let (tensors, metadata) = read_safetensors(path)?;
        let load = || -> Result<Self> {
            let json = metadata.context("it is not a diffusion model of this program")?;
            let config: DiffusionConfig = serde_json::from_value(json)?;
            let empty = Unet::new(&config.unet, config.latent[0], config.embedding, 0, device)?;
            Ok(Self { hash: hash(&tensors), unet: parameters::import(empty, &tensors)?, config })
        };
        load().with_context(|| format!("cannot load the diffusion model {}", path.display()))
    }

    /// Writes the weights and the configuration, atomically.
    ///
    /// # Errors
    /// A folder that cannot be written to.
    pub fn save(&self, path: &Path) -> Result<()> {
        write_safetensors(path, &parameters::export(&self.unet), &serde_json::to_value(&self.config)?)
    }

    /// That this model goes with an encoder and an autoencoder, given by their hashes.
    ///
    /// # Errors
    /// The first that does not, with both hashes.
    pub fn require(&self, encoder: &str, autoencoder: &str) -> Result<()> {
        for (what, ours, theirs) in
            [("encoder", &self.config.encoder, encoder), ("autoencoder", &self.config.autoencoder, autoencoder)]
        {
            ensure!(
                ours == theirs,
                "the diffusion model was trained with the {what} {}, and this is {}: train it anew, or use its own",
                short(ours),
                short(theirs)
            );
        }
        Ok(())
    }
}

/// Enough of a hash to tell two apart.
fn short(hash: &str) -> &str {
    hash.get(..12).unwrap_or(hash)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(condition: Condition, statistics: [Vec<f32>; 2]) -> DiffusionConfig {
        DiffusionConfig {
            unet: UnetShape::default(),
            noise: Noise::default(),
            condition,
            statistics,
            latent: [3, 8],
            embedding: 2,
            encoder: String::new(),
            autoencoder: String::new(),
            origin: serde_json::Value::Null,
        }
    }

    /// Between (2, 0) and (0, 5): on the sphere at 45 degrees, and half-way on the chord below it.
    #[test]
    fn the_line_runs_below_the_arc() {
        let config = config(Condition::Sphere, [vec![], vec![]]);
        let between = |kind| config.between(kind, &[2.0, 0.0], &[0.0, 5.0], 0.5);
        let (arc, line) = (between(Interpolation::Slerp), between(Interpolation::Lerp));
        assert!(arc.iter().all(|v| (v - 0.5f32.sqrt()).abs() < 1e-6), "{arc:?}");
        assert_eq!(line, [0.5, 0.5]);
    }

    /// At a quarter of the way from the second to the first: 22.5 degrees from the second.
    #[test]
    fn alpha_weighs_the_first() {
        let config = config(Condition::Sphere, [vec![], vec![]]);
        let between = |kind, alpha| config.between(kind, &[2.0, 0.0], &[0.0, 5.0], alpha);
        let (sine, cosine) = (std::f32::consts::PI / 8.0).sin_cos();
        let arc = between(Interpolation::Slerp, 0.25);
        assert!((arc[0] - sine).abs() < 1e-6 && (arc[1] - cosine).abs() < 1e-6, "{arc:?}");
        assert_eq!(between(Interpolation::Lerp, 0.25), [0.25, 0.75]);
        for kind in [Interpolation::Slerp, Interpolation::Lerp] {
            let [first, second] = [1.0, 0.0].map(|alpha| between(kind, alpha));
            assert!((first[0] - 1.0).abs() < 1e-6 && (second[1] - 1.0).abs() < 1e-6, "{first:?} {second:?}");
        }
    }

    #[test]
    fn a_channel_that_never_changed_says_nothing() {
        let config = config(Condition::Standardized, [vec![1.0, 4.0], vec![0.5, 1e-8]]);
        assert_eq!(config.conditioned(vec![2.0, 4.1]), [2.0, 0.0]);
    }
}
