//! The generator of a bank: the diffusion model on the stored embeddings of the data set.

use super::bank::{Generator, Kind, Latent, Picture, Request};
use super::painter::{Painter, Wish};
use crate::config::Interpolation;
use crate::data::latents::LatentFile;
use anyhow::{Context, Result};
use image::RgbImage;
use std::collections::HashMap;

/// Draws what a bank asks for.
pub struct EmbeddingGenerator {
    painter: Painter,
    latents: LatentFile,
    /// Record of every image of the data set that could be read.
    records: HashMap<usize, usize>,
    interpolation: Interpolation,
}

impl EmbeddingGenerator {
    /// Draws with `painter` from the embeddings in `latents`.
    ///
    /// # Errors
    /// A disk that fails.
    pub fn new(painter: Painter, latents: LatentFile, interpolation: Interpolation) -> Result<Self> {
        let record = |record: usize| Ok((latents.source(record)?, record));
        let records = (0..latents.len()).map(record).collect::<Result<_>>()?;
        Ok(Self { painter, latents, records, interpolation })
    }

    fn embedding(&self, image: usize) -> Result<Vec<f32>> {
        let record = self.records.get(&image).with_context(|| format!("image {image} has no embedding"))?;
        Ok(self.latents.read(*record, 0)?.embedding)
    }

    fn wishes(&self, requests: &[Request]) -> Result<Vec<Wish>> {
        let wish = |request: &Request| {
            let first = self.embedding(request.source)?;
            let condition = match (request.kind, request.secondary) {
                (Kind::Interpolated, Some(other)) => {
                    let alpha = f64::from(request.alpha);
                    self.painter.between(self.interpolation, &first, &self.embedding(other)?, alpha)
                }
                _ => self.painter.condition(&first),
            };
            Ok(Wish { condition, seed: request.seed })
        };
        requests.iter().map(wish).collect()
    }
}

impl Generator for EmbeddingGenerator {
    fn generate(&self, requests: &[Request]) -> Result<Vec<Picture>> {
        Ok(self.painter.latents(&self.wishes(requests)?)?.into_iter().map(Picture::Latent).collect())
    }

    fn decode(&self, latents: &[Latent]) -> Result<Vec<RgbImage>> {
        self.painter.decode_all(latents)
    }
}
