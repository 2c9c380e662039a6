//! Everything a bank depends on.

use std::path::Path;

use anyhow::{Result, bail, ensure};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::config::{Bank, BankFormat, Interpolation};
use crate::run_dir::as_stored;

/// Raised when the meaning of a bank's files changes.
const FORMAT: u32 = 2;

/// Everything a bank depends on: equal headers, equal bytes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Header {
    /// Of the files.
    pub format: u32,
    /// Fingerprint of the images the bank is made of.
    pub data: Value,
    /// Their number.
    pub images: usize,
    /// Hash of the encoder whose embeddings the diffusion model is conditioned on.
    pub encoder: String,
    /// Hash of the autoencoder.
    pub autoencoder: String,
    /// Hash of the diffusion model.
    pub diffusion: String,
    /// Settings of the sampler: steps, guidance and what else decides on its images.
    pub sampler: Value,
    /// The experiment's seed.
    pub seed: u64,
    /// Synthetic images of every image.
    pub generative: usize,
    /// Interpolated images of every image.
    pub interpolated: usize,
    /// Smallest and largest weight of the first image.
    pub alpha: [f64; 2],
    /// On which line the embeddings are interpolated.
    pub interpolation: Interpolation,
    /// Width and height of the images, px.
    pub size: [u32; 2],
    /// How they are stored.
    pub storage: Storage,
    /// Images of the data set per shard.
    pub shard: usize,
    /// Images of the data set without an embedding (they could not be read), ascending: they have no synthetic images.
    pub without: Vec<usize>,
}

/// How images are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", tag = "format")]
pub enum Storage {
    /// JPEG of this quality, 4:2:0.
    Jpeg {
        /// 1 to 100.
        quality: u8,
    },
    /// PNG.
    Png,
    /// Lossless WebP.
    Webp,
    /// Half-precision tensors in safetensors.
    Latents,
}

impl Storage {
    /// As the experiment asks for it.
    pub fn of(bank: &Bank) -> Self {
        match bank.format {
            BankFormat::Jpeg => Self::Jpeg { quality: bank.quality },
            BankFormat::Png => Self::Png,
            BankFormat::Webp => Self::Webp,
            BankFormat::Latents => Self::Latents,
        }
    }
}

/// The generator of a bank, and what it works on.
#[derive(Clone, Debug, PartialEq)]
pub struct Origin {
    /// Fingerprint of the images.
    pub data: Value,
    /// Their number.
    pub images: usize,
    /// Those without an embedding, ascending.
    pub without: Vec<usize>,
    /// Hash of the encoder.
    pub encoder: String,
    /// Hash of the autoencoder.
    pub autoencoder: String,
    /// Hash of the diffusion model.
    pub diffusion: String,
    /// Settings of the sampler.
    pub sampler: Value,
    /// Width and height of the images, px.
    pub size: [u32; 2],
}

impl Header {
    /// The bank that `bank` asks for of `origin`.
    ///
    /// # Errors
    /// Too few images for what is asked.
    pub fn new(bank: &Bank, origin: Origin, interpolation: Interpolation, seed: u64) -> Result<Self> {
        let Origin { data, images, without, encoder, autoencoder, diffusion, sampler, size } = origin;
        let usable = images - without.len().min(images);
        ensure!(
            bank.interpolated == 0 || usable >= 2,
            "{usable} image(s) can be read, and an interpolation needs two: set bank.interpolated = 0"
        );
        Ok(Self {
            format: FORMAT,
            data,
            images,
            encoder,
            autoencoder,
            diffusion,
            sampler,
            seed,
            generative: bank.generative,
            interpolated: bank.interpolated,
            alpha: bank.alpha,
            interpolation,
            size,
            storage: Storage::of(bank),
            shard: bank.shard,
            without,
        })
    }

    /// Images made of every image that can be read.
    pub fn per_image(&self) -> usize {
        self.generative + self.interpolated
    }

    /// Whether a decoder is needed to read it.
    pub fn stores_latents(&self) -> bool {
        self.storage == Storage::Latents
    }

    /// Shard files of the whole bank.
    pub fn shards(&self) -> usize {
        self.images.div_ceil(self.shard)
    }

    /// Refuses what was made with another header, by the first entry that differs and both its values.
    pub(super) fn refuse_other(&self, found: &Value, path: &Path) -> Result<()> {
        let ours = as_stored(&serde_json::to_value(self)?);
        let (Value::Object(ours), Value::Object(theirs)) = (&ours, found) else {
            bail!("{} is not a file of a bank", path.display());
        };
        let keys = ours.keys().chain(theirs.keys().filter(|key| !ours.contains_key(*key)));
        for key in keys {
            let [theirs, ours] = [theirs, ours].map(|map| map.get(key).unwrap_or(&Value::Null));
            ensure!(
                theirs == ours,
                "{} was made with {key} = {theirs}, and this run has {ours}: make the bank anew with `gensis augment \
                 --update`, or use another run folder",
                path.display()
            );
        }
        Ok(())
    }
}
