//! Images for embedding, one crop each and nothing random.

use std::ops::Range;
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use image::RgbImage;
use rayon::ThreadPool;
use slide_io::PatchSource;

use super::{Failures, MAX_REPLACEMENTS, ReadFailure, read};
use crate::config::Embed;
use crate::data::crop;
use crate::data::normalize::Normalize;
use crate::data::prefetch::{Prefetch, Work, thread_pool};

/// Images of one size, normalised, channel-major (NCHW).
#[derive(Clone, Debug, PartialEq)]
pub struct ImageBatch {
    /// `[indices.len(), 3, height, width]`.
    pub pixels: Vec<f32>,
    /// Pixels along x.
    pub width: usize,
    /// Pixels along y.
    pub height: usize,
    /// Where the images are in the source; those that could not be read are absent.
    pub indices: Vec<usize>,
}

/// Images for embedding: resized, centre-cropped and normalised, in order, made on threads ahead of the encoder.
///
/// An image that cannot be read, or has another size than the first, is left out of its batch and kept in
/// [`failures`](Self::failures): never replaced, never blank.
pub struct EvalLoader {
    source: Arc<dyn PatchSource>,
    embed: Embed,
    normalize: Normalize,
    size: (u32, u32),
    pool: Arc<ThreadPool>,
    depth: usize,
    failures: Failures,
}

impl EvalLoader {
    /// Batches of `embed.batch` images of `source`, `depth` batches ahead on `threads` threads (0: one per core).
    ///
    /// # Errors
    /// A batch of 0, or a crop larger than the resized image.
    pub fn new(
        source: Arc<dyn PatchSource>,
        embed: &Embed,
        mean: [f32; 3],
        std: [f32; 3],
        threads: usize,
        depth: usize,
    ) -> Result<Self> {
        ensure!(embed.batch > 0, "embed.batch: a batch needs at least one image");
        ensure!(
            embed.resize == 0 || embed.crop <= embed.resize,
            "embed.crop ({}) is larger than embed.resize ({})",
            embed.crop,
            embed.resize
        );
        ensure!(std.iter().all(|&s| s > 0.0), "the standard deviation of the normalisation must be positive: {std:?}");
        let size = image_size(&*source, embed)?;
        let pool = thread_pool(threads).context("starting the loader's threads")?;
        let normalize = Normalize::new(mean, std);
        Ok(Self { source, embed: embed.clone(), normalize, size, pool, depth, failures: Failures::default() })
    }

    /// All images of the source, in order.
    pub fn batches(&self) -> ImageBatches {
        self.batches_of((0..self.source.len()).collect())
    }

    /// The images at `indices`, in that order. Batches are never empty: one of which nothing could be read is skipped.
    pub fn batches_of(&self, indices: Vec<usize>) -> ImageBatches {
        let numbers = 0..indices.len();
        let work = ImageWork {
            source: self.source.clone(),
            embed: self.embed.clone(),
            normalize: self.normalize.clone(),
            size: self.size,
            indices,
        };
        ImageBatches {
            prefetch: Prefetch::start(self.pool.clone(), work, numbers, self.embed.batch, self.depth),
            failures: self.failures.clone(),
        }
    }

    /// Images that could not be read so far, by index.
    pub fn failures(&self) -> Vec<ReadFailure> {
        self.failures.list()
    }
}

/// Size of all images after the transform. Without a crop it is that of the first readable image.
fn image_size(source: &dyn PatchSource, embed: &Embed) -> Result<(u32, u32)> {
    if embed.crop > 0 || source.is_empty() {
        return Ok((embed.crop, embed.crop));
    }
    let mut last = None;
    for index in 0..source.len().min(MAX_REPLACEMENTS) {
        match read(source, index) {
            Ok(image) => return Ok(crop::resized(image.dimensions(), embed.resize)),
            Err(failure) => last = Some(failure),
        }
    }
    match last {
        Some(failure) => bail!("none of the first images can be read; {}: {}", failure.key.item, failure.reason),
        None => bail!("there are no images"),
    }
}

/// Batches of images, in order.
pub struct ImageBatches {
    prefetch: Prefetch<ImageWork>,
    failures: Failures,
}

impl Iterator for ImageBatches {
    type Item = Result<ImageBatch>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let (batch, failed) = match self.prefetch.next()? {
                Ok(made) => made,
                Err(panic) => return Some(Err(anyhow::Error::msg(panic))),
            };
            self.failures.count(batch.indices.len(), failed);
            if !batch.indices.is_empty() {
                return Some(Ok(batch));
            }
        }
    }
}

/// What the threads need.
struct ImageWork {
    source: Arc<dyn PatchSource>,
    embed: Embed,
    normalize: Normalize,
    size: (u32, u32),
    indices: Vec<usize>,
}

impl Work for ImageWork {
    type Item = Result<RgbImage, ReadFailure>;
    type Batch = (ImageBatch, Vec<ReadFailure>);

    fn item(&self, number: usize) -> Self::Item {
        let index = self.indices[number];
        let failure = |reason| ReadFailure::new(&*self.source, index, reason);
        let image = read(&*self.source, index)?;
        let image = crop::evaluation_view(image, self.embed.resize, self.embed.crop)
            .map_err(|error| failure(format!("{error:#}")))?;
        if image.dimensions() != self.size {
            let ((width, height), expected) = (image.dimensions(), self.size);
            return Err(failure(format!(
                "{width} x {height} px where the first image has {} x {}: set embed.resize and embed.crop",
                expected.0, expected.1
            )));
        }
        Ok(image)
    }

    fn batch(&self, numbers: Range<usize>, items: Vec<Self::Item>) -> Self::Batch {
        let (mut indices, mut images, mut failed) = (Vec::new(), Vec::new(), Vec::new());
        for (number, item) in numbers.zip(items) {
            match item {
                Ok(image) => {
                    indices.push(self.indices[number]);
                    images.push(image);
                }
                Err(failure) => failed.push(failure),
            }
        }
        let pixels = self.normalize.images(&images.iter().collect::<Vec<_>>());
        let (width, height) = (self.size.0 as usize, self.size.1 as usize);
        (ImageBatch { pixels, width, height, indices }, failed)
    }
}
