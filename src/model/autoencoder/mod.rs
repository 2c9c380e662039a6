//! The first stage of latent diffusion: images to latents and back (Rombach et al. 2022).
//!
//! | file | job |
//! |---|---|
//! | [`blocks`] | resnets, attention, half and double size |
//! | [`network`] | encoder and decoder |
//! | [`latent`] | what keeps latents in bounds: a normal posterior or a codebook |
//! | [`names`] | CompVis's and older diffusers' names, and sizes read off the tensors |
//!
//! [`FirstStage`] is what the diffusion model and the sampler use, and what a file holds.

pub mod blocks;
pub mod latent;
mod names;
pub mod network;

pub use latent::{Codebook, Posterior, Quantized};
pub use network::Autoencoder;

use super::parameters;
use super::weights::{hash_with, read_pytorch, read_safetensors, write_safetensors};
use crate::config::AutoencoderSizes;
use anyhow::{Context, Result, ensure};
use burn::tensor::{Device, Tensor};
use serde::{Deserialize, Serialize};
use std::path::Path;

/// Groups of the normalisation in every published first stage; no tensor says it.
const GROUPS: usize = 32;

/// What has to be known to use a first stage's weights.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FirstStageConfig {
    /// The network.
    pub network: AutoencoderSizes,
    /// What latents are multiplied by before they are diffused, so that they have deviation 1: 1/deviation of the latents
    /// of a batch without a codebook, 1 with one.
    pub scale: f64,
    /// Where the weights come from: free-form, written by whoever made them.
    #[serde(default)]
    pub origin: serde_json::Value,
}

/// A trained first stage, ready to use.
#[derive(Clone, Debug)]
pub struct FirstStage {
    /// How it was made.
    pub config: FirstStageConfig,
    /// SHA-256 of the weights and the scale, in hexadecimal.
    pub hash: String,
    /// The network.
    pub network: Autoencoder,
}

impl FirstStage {
    /// Wraps a network.
    pub fn new(network: Autoencoder, config: FirstStageConfig) -> Self {
        // In single precision, which JSON gives back as it was.
        let scale = config.scale as f32;
        let hash = hash_with(&parameters::export(&network), &scale.to_le_bytes());
        Self { config: FirstStageConfig { scale: scale.into(), ..config }, hash, network }
    }

    /// Reads a file of ours, or a foreign one as [`import`](Self::import) does, with 32 groups.
    ///
    /// # Errors
    /// As [`import`](Self::import).
    pub fn load(path: &Path, device: &Device) -> Result<Self> {
        Self::import(path, GROUPS, device)
    }

    /// Reads a file of ours, or `.safetensors`, `.ckpt`, `.pt` or `.bin` with the names of CompVis (an autoencoder's
    /// checkpoint, or the first stage of a diffusion model's) or of diffusers (`AutoencoderKL`, `VQModel`), whose
    /// normalisations have `groups` groups. The scale of a foreign file's latents is not known: it is 1.
    ///
    /// # Errors
    /// An unreadable file; tensors that are missing, left over or of another shape, by name. Nothing is loaded half-way.
    pub fn import(path: &Path, groups: usize, device: &Device) -> Result<Self> {
        let context = || format!("cannot load the first stage {}", path.display());
        let (tensors, metadata) = match path.extension().and_then(|e| e.to_str()) {
            Some("ckpt" | "pt" | "pth" | "bin") => (read_pytorch(path, &["state_dict"]).with_context(context)?, None),
            _ => read_safetensors(path)?,
        };
        let (tensors, config) = match metadata {
            Some(json) => (tensors, serde_json::from_value(json).with_context(context)?),
            None => {
                let tensors = names::ours(tensors);
                let network = names::sizes(&tensors, groups).with_context(context)?;
                let origin = serde_json::json!({ "imported": true });
                (tensors, FirstStageConfig { network, scale: 1.0, origin })
            }
        };
        let network = Autoencoder::new(&config.network.clone().checked().with_context(context)?, 0, device);
        Ok(Self::new(parameters::import(network, &tensors).with_context(context)?, config))
    }

    /// Writes weights and configuration to one safetensors file, atomically.
    ///
    /// # Errors
    /// A folder that cannot be written to.
    pub fn save(&self, path: &Path) -> Result<()> {
        write_safetensors(path, &parameters::export(&self.network), &serde_json::to_value(&self.config)?)
    }

    /// The same with another scale.
    pub fn with_scale(self, scale: f64) -> Self {
        Self::new(self.network, FirstStageConfig { scale, ..self.config })
    }

    /// Channels of a latent.
    pub fn latent_channels(&self) -> usize {
        self.config.network.latent_channels
    }

    /// Pixels of a side that become one latent.
    pub fn factor(&self) -> usize {
        self.config.network.kind.factor()
    }

    /// Latents of images in [-1, 1], not yet multiplied by the scale: `[B, 3, H, W] -> [B, z, H / f, W / f]`. The
    /// posterior's mean; with a codebook what would be quantised, since a diffusion model works on that.
    ///
    /// # Errors
    /// Sides that are no multiple of the factor.
    pub fn encode(&self, images: Tensor<4>) -> Result<Tensor<4>> {
        let ([_, _, height, width], factor) = (images.dims(), self.factor());
        ensure!(
            height.is_multiple_of(factor) && width.is_multiple_of(factor) && height.min(width) > 0,
            "an image of {width} x {height} px is not made of latents of {factor} px"
        );
        let moments = self.network.moments(images);
        Ok(match self.network.quantize {
            Some(_) => moments,
            None => Posterior::new(moments).mean,
        })
    }

    /// Images, about in [-1, 1], of latents as [`encode`](Self::encode) makes them, which are quantised first where there
    /// is a codebook: `[B, z, h, w] -> [B, 3, f h, f w]`.
    pub fn decode(&self, latents: Tensor<4>) -> Tensor<4> {
        let latents = match &self.network.quantize {
            Some(codebook) => codebook.quantize(latents).latents,
            None => latents,
        };
        self.network.decode(latents)
    }
}

#[cfg(test)]
mod tests;
