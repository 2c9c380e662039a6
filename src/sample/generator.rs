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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Sample;
    use crate::data::latents::{Encoded, LatentHeader, LatentWriter};
    use crate::sample::painter::tests::painter;

    /// An image's weight counts for its own embedding, its secondary image's for the rest.
    #[test]
    fn an_interpolated_image_lies_nearer_to_the_one_alpha_weighs() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("latents.bin");
        let header = LatentHeader { shape: [1, 1, 1], embedding: 5, flips: 1, origin: serde_json::Value::Null };
        let embeddings = [[2.0, 0.0, 1.0, 0.0, 0.0], [0.0, 3.0, 0.0, 0.0, 1.0]].map(Vec::from);
        let mut writer = LatentWriter::open(&path, &header).unwrap();
        // Of a data set whose image 5 could not be read.
        for (source, embedding) in [4, 6].into_iter().zip(&embeddings) {
            writer.add(source, &[Encoded { latent: vec![0.0], embedding: embedding.clone() }]).unwrap();
        }
        writer.finish().unwrap();
        let latents = LatentFile::open(&path, &header).unwrap().unwrap();
        let generator = EmbeddingGenerator::new(painter(Sample::default()), latents, Interpolation::Slerp).unwrap();
        let condition = |kind, source, secondary, alpha| {
            let request = Request { kind, source, k: 0, secondary, alpha, seed: 9 };
            generator.wishes(&[request]).unwrap().remove(0).condition.unwrap()
        };
        let near = |a: &[f32], b: &[f32]| a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-6);
        let [first, second] = embeddings.map(|embedding| generator.painter.conditioned(&embedding));
        assert!(near(&condition(Kind::Generative, 6, None, 1.0), &second));
        for (alpha, whole) in [(1.0, &first), (0.0, &second)] {
            assert!(near(&condition(Kind::Interpolated, 4, Some(6), alpha), whole), "{alpha}");
        }
        let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>();
        let mixed = condition(Kind::Interpolated, 4, Some(6), 0.75);
        assert!(dot(&mixed, &first) > dot(&mixed, &second), "{mixed:?}");
    }
}
