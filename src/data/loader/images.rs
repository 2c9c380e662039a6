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
///
/// # Errors
/// No image, or none of the first that can be read.
pub fn image_size(source: &dyn PatchSource, embed: &Embed) -> Result<(u32, u32)> {
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

/// That an image has the size of the first.
///
/// # Errors
/// Another size, with what to do.
pub fn require_size(image: &RgbImage, size: (u32, u32)) -> Result<(), String> {
    let ((width, height), expected) = (image.dimensions(), size);
    if (width, height) == expected {
        return Ok(());
    }
    let (wide, high) = expected;
    Err(format!("{width} x {height} px where the first image has {wide} x {high}: set embed.resize and embed.crop"))
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
        require_size(&image, self.size).map_err(failure)?;
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

#[cfg(test)]
mod tests {
    use super::super::fake::Pictures;
    use super::*;

    const UNIT: ([f32; 3], [f32; 3]) = ([0.0; 3], [1.0 / 255.0; 3]);

    fn loader(source: Arc<Pictures>, resize: u32, crop: u32, threads: usize) -> EvalLoader {
        EvalLoader::new(source, &Embed { batch: 4, resize, crop }, UNIT.0, UNIT.1, threads, 2).unwrap()
    }

    #[test]
    fn images_come_in_order_and_unreadable_ones_are_left_out() {
        for threads in [1, 3] {
            let loader = loader(Pictures::new(18, |index| (4..9).contains(&index)), 20, 16, threads);
            let batches: Vec<ImageBatch> = loader.batches().map(Result::unwrap).collect();
            // Of 4..8 nothing can be read: that batch is skipped.
            let indices: Vec<Vec<usize>> = batches.iter().map(|batch| batch.indices.clone()).collect();
            assert_eq!(indices, [vec![0, 1, 2, 3], vec![9, 10, 11], vec![12, 13, 14, 15], vec![16, 17]]);
            for batch in &batches {
                assert_eq!((batch.width, batch.height), (16, 16));
                assert_eq!(batch.pixels.len(), batch.indices.len() * 3 * 16 * 16);
                // The red of every picture is its index.
                for (pixels, &index) in batch.pixels.chunks(3 * 16 * 16).zip(&batch.indices) {
                    assert!(pixels[..16 * 16].iter().all(|&red| (red - index as f32).abs() < 1e-3));
                }
            }
            assert_eq!(loader.failures().iter().map(|f| f.index).collect::<Vec<_>>(), [4, 5, 6, 7, 8]);
        }
    }

    #[test]
    fn a_selection_is_read_in_its_own_order_and_as_it_is() {
        let source = Pictures::new(10, |index| index == 0);
        let loader = loader(source.clone(), 0, 0, 2);
        let batches: Vec<ImageBatch> = loader.batches_of(vec![7, 2, 9, 0, 3]).map(Result::unwrap).collect();
        assert_eq!(batches.iter().map(|batch| batch.indices.clone()).collect::<Vec<_>>(), [vec![7, 2, 9], vec![3]]);
        assert_eq!((batches[0].width, batches[0].height), (40, 40));
        let image = source.read(7).unwrap().image;
        assert_eq!(batches[0].pixels[..3 * 1600], loader.normalize.images(&[&image])[..]);
    }

    #[test]
    fn an_image_smaller_than_the_crop_is_a_failure() {
        let loader = loader(Pictures::new(3, |_| false), 0, 64, 1);
        assert_eq!(loader.batches().count(), 0);
        assert!(loader.failures()[2].reason.contains("40 x 40 px is smaller than the centre crop of 64"));
    }

    #[test]
    fn settings_that_make_no_sense() {
        let error = |embed: Embed, bad| {
            let source = Pictures::new(3, bad);
            EvalLoader::new(source, &embed, UNIT.0, UNIT.1, 1, 1).err().unwrap().to_string()
        };
        assert!(error(Embed { batch: 0, resize: 0, crop: 0 }, |_| false).contains("at least one image"));
        assert!(error(Embed { batch: 1, resize: 32, crop: 64 }, |_| false).contains("larger than embed.resize"));
        assert!(error(Embed { batch: 1, resize: 0, crop: 0 }, |_| true).contains("truncated"));
    }
}
