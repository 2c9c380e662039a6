//! Images to what the diffusion model is trained on: the latent of an image and its embedding, in all its flips.

use crate::config::{Diffusion, Embed};
use crate::data::latents::Encoded;
use crate::data::normalize::Normalize;
use crate::data::{Squares, color, crop};
use crate::model::lies_in_host_memory;
use crate::model::{Encoder, FirstStage};
use anyhow::{Result, anyhow};
use burn::tensor::{Device, Tensor, TensorData};
use image::RgbImage;
use rayon::prelude::*;

/// Images encoded by one thread at a time.
const PIECE: usize = 4;
/// Views an accelerator encodes at a time: with all flips of a batch of images at once, its memory would be what flips decide.
const BATCH: usize = 32;

/// Encoder and autoencoder, with the view that each has of an image.
#[derive(Clone, Debug)]
pub struct Eyes {
    stage: FirstStage,
    encoder: Encoder,
    squares: Squares,
    embed: Embed,
    flips: Vec<[bool; 2]>,
    device: Device,
}

/// An image in one of its flips, as the two networks see it.
#[derive(Clone, Debug)]
pub struct View {
    square: RgbImage,
    evaluation: RgbImage,
}

impl View {
    /// As the encoder sees it.
    pub fn evaluation(&self) -> &RgbImage {
        &self.evaluation
    }
}

impl Eyes {
    /// For latents of images of `side` px and embeddings as `gensis embed` computes them.
    pub fn new(
        stage: FirstStage,
        encoder: Encoder,
        side: u32,
        embed: &Embed,
        diffusion: &Diffusion,
        device: &Device,
    ) -> Self {
        let both = |flip: bool| if flip { vec![false, true] } else { vec![false] };
        let flips =
            both(diffusion.vflip).into_iter().flat_map(|v| both(diffusion.hflip).into_iter().map(move |h| [h, v]));
        let squares = Squares::new(side, [0.0; 2]);
        Self { stage, encoder, squares, embed: embed.clone(), flips: flips.collect(), device: device.clone() }
    }

    /// Flips of an image, itself first.
    pub fn flips(&self) -> usize {
        self.flips.len()
    }

    /// An image as the autoencoder sees it.
    ///
    /// # Errors
    /// An image without pixels.
    pub fn square(&self, image: &RgbImage) -> Result<RgbImage> {
        self.squares.of(image.clone())
    }

    /// The views of an image in all its flips.
    ///
    /// # Errors
    /// An image without pixels, or smaller than the embedding's crop.
    pub fn views(&self, image: &RgbImage) -> Result<Vec<View>> {
        let view = |[horizontal, vertical]: &[bool; 2]| {
            let mut image = image.clone();
            if *horizontal {
                color::flip_horizontal(&mut image);
            }
            if *vertical {
                color::flip_vertical(&mut image);
            }
            let evaluation = crop::evaluation_view(image.clone(), self.embed.resize, self.embed.crop)?;
            Ok(View { square: self.squares.of(image)?, evaluation })
        };
        self.flips.iter().map(view).collect()
    }

    /// Latent, scaled, and embedding of every view. Views are of one size.
    ///
    /// # Errors
    /// Sizes the networks cannot take, a failing device.
    pub fn encode(&self, views: &[View]) -> Result<Vec<Encoded>> {
        if !lies_in_host_memory(&self.device) {
            let pieces = views.chunks(BATCH).map(|piece| self.piece(piece)).collect::<Result<Vec<_>>>()?;
            return Ok(pieces.into_iter().flatten().collect());
        }
        let pieces = views.par_chunks(PIECE).map(|piece| self.piece(piece)).collect::<Result<Vec<_>>>()?;
        Ok(pieces.into_iter().flatten().collect())
    }

    /// Embeddings of images, as `gensis embed` computes them, as many at a time: row-major.
    ///
    /// # Errors
    /// As [`views`](Self::views) and [`encode`](Self::encode).
    pub fn look(&self, images: &[RgbImage]) -> Result<Vec<f32>> {
        let piece = |images: &[RgbImage]| -> Result<Vec<f32>> {
            let view = |image: &RgbImage| crop::evaluation_view(image.clone(), self.embed.resize, self.embed.crop);
            let views = images.iter().map(view).collect::<Result<Vec<_>>>()?;
            self.embeddings(&views.iter().collect::<Vec<_>>())
        };
        if !lies_in_host_memory(&self.device) {
            return Ok(images.chunks(self.embed.batch).map(piece).collect::<Result<Vec<_>>>()?.concat());
        }
        Ok(images.par_chunks(PIECE).map(piece).collect::<Result<Vec<_>>>()?.concat())
    }

    fn piece(&self, views: &[View]) -> Result<Vec<Encoded>> {
        let Some(first) = views.first() else { return Ok(vec![]) };
        let (width, height) = first.square.dimensions();
        let pixels = self.squares.pixels(&views.iter().map(|view| &view.square).collect::<Vec<_>>());
        let shape = [views.len(), 3, height as usize, width as usize];
        let latents = self.stage.encode(Tensor::from_data(TensorData::new(pixels, shape), &self.device))?;
        let latents = latents.mul_scalar(self.stage.config.scale).try_into_vec_as::<f32>();
        let latents = latents.map_err(|e| anyhow!("the latents could not be read: {e:?}"))?;
        let embeddings = self.embeddings(&views.iter().map(|view| &view.evaluation).collect::<Vec<_>>())?;
        let (latent, embedding) = (latents.len() / views.len(), self.encoder.dim());
        let pairs = latents.chunks_exact(latent).zip(embeddings.chunks_exact(embedding));
        Ok(pairs
            .map(|(latent, embedding)| Encoded { latent: latent.to_vec(), embedding: embedding.to_vec() })
            .collect())
    }

    fn embeddings(&self, images: &[&RgbImage]) -> Result<Vec<f32>> {
        let Some(first) = images.first() else { return Ok(vec![]) };
        let (width, height) = first.dimensions();
        let config = &self.encoder.config;
        let pixels = Normalize::new(config.mean, config.std).images(images);
        self.encoder.embed(pixels, images.len(), height as usize, width as usize)
    }
}
