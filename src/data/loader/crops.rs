//! Multi-crop batches for training.

use std::ops::Range;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use image::RgbImage;
use rayon::ThreadPool;
use slide_io::PatchSource;

use super::{Failures, MAX_REPLACEMENTS, ReadFailure, read};
use crate::config::Crops;
use crate::data::augment::{self, Views};
use crate::data::normalize::Normalize;
use crate::data::order::{EpochOrder, item_rng};
use crate::data::prefetch::{Prefetch, Work, thread_pool};

/// The crops of a batch of patches, normalised, channel-major (NCHW) and crop-major: crop 1 of all patches, then crop 2.
#[derive(Clone, Debug, PartialEq)]
pub struct CropBatch {
    /// Patches.
    pub size: usize,
    /// Global crops, `[2 * size, 3, g, g]`.
    pub globals: Vec<f32>,
    /// Local crops, `[local_count * size, 3, l, l]`.
    pub locals: Vec<f32>,
    /// Where the patches are in the source.
    pub indices: Vec<usize>,
}

/// Multi-crop batches for DINO: shuffled, augmented, made on threads ahead of the training step.
///
/// A patch that cannot be read is replaced by the next readable one in the epoch's order and kept in
/// [`failures`](Self::failures); too many failures end the epoch with an error ([`super::MAX_FAILED_SHARE`]).
pub struct CropLoader {
    source: Arc<dyn PatchSource>,
    crops: Arc<Crops>,
    batch: usize,
    order: EpochOrder,
    pool: Arc<ThreadPool>,
    depth: usize,
    failures: Failures,
}

impl CropLoader {
    /// Batches of `batch` patches of `source`, `depth` batches ahead on `threads` threads (0: one per core).
    /// `patches_per_epoch` 0 takes all patches; the rest of an epoch that does not fill a batch is dropped.
    ///
    /// # Errors
    /// Crops that make no sense, or fewer patches than a batch.
    pub fn new(
        source: Arc<dyn PatchSource>,
        crops: Crops,
        batch: usize,
        patches_per_epoch: usize,
        seed: u64,
        threads: usize,
        depth: usize,
    ) -> Result<Self> {
        augment::check(&crops)?;
        let order = EpochOrder { len: source.len(), per_epoch: patches_per_epoch, seed };
        ensure!(batch > 0, "a batch needs at least one patch");
        ensure!(
            order.epoch_len() >= batch,
            "{} patches per epoch do not fill a batch of {batch}: use a smaller batch",
            order.epoch_len()
        );
        let pool = thread_pool(threads).context("starting the loader's threads")?;
        Ok(Self { source, crops: Arc::new(crops), batch, order, pool, depth, failures: Failures::default() })
    }

    /// Batches of one epoch.
    pub fn steps_per_epoch(&self) -> usize {
        self.order.epoch_len() / self.batch
    }

    /// The batches of `epoch` from number `first_batch` on; those before it are not read.
    pub fn epoch(&self, epoch: usize, first_batch: usize) -> CropBatches {
        let order = self.order.epoch(epoch);
        let end = self.steps_per_epoch() * self.batch;
        let start = (first_batch * self.batch).min(end);
        let work = CropWork {
            source: self.source.clone(),
            normalize: Normalize::new(self.crops.mean, self.crops.std),
            crops: self.crops.clone(),
            order,
            seed: self.order.seed,
            epoch,
        };
        CropBatches {
            prefetch: Prefetch::start(self.pool.clone(), work, start..end, self.batch, self.depth),
            failures: self.failures.clone(),
            ended: false,
        }
    }

    /// Patches that could not be read so far, by index.
    pub fn failures(&self) -> Vec<ReadFailure> {
        self.failures.list()
    }
}

/// The batches of one epoch, in order. Ends after the first error.
pub struct CropBatches {
    prefetch: Prefetch<CropWork>,
    failures: Failures,
    ended: bool,
}

impl CropBatches {
    fn receive(&mut self, made: Result<MadeCrops, String>) -> Result<CropBatch> {
        let made = made.map_err(anyhow::Error::msg)?;
        self.failures.count(made.batch.size, made.failed);
        self.failures.check()?;
        ensure!(!made.gave_up, "{MAX_REPLACEMENTS} patches in a row could not be read");
        Ok(made.batch)
    }
}

impl Iterator for CropBatches {
    type Item = Result<CropBatch>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        let made = self.prefetch.next()?;
        let batch = self.receive(made);
        self.ended = batch.is_err();
        Some(batch)
    }
}

/// What the threads need for one epoch.
struct CropWork {
    source: Arc<dyn PatchSource>,
    crops: Arc<Crops>,
    normalize: Normalize,
    order: Vec<usize>,
    seed: u64,
    epoch: usize,
}

/// One place of a batch: the crops of the patch that took it, and those that could not.
struct Place {
    views: Option<(usize, Views)>,
    failed: Vec<ReadFailure>,
}

struct MadeCrops {
    batch: CropBatch,
    failed: Vec<ReadFailure>,
    gave_up: bool,
}

impl Work for CropWork {
    type Item = Place;
    type Batch = MadeCrops;

    /// Place `number` of the epoch. The random numbers belong to the patch whose place it is, so that a replacement,
    /// which has a place of its own too, does not appear twice with the same crops.
    fn item(&self, number: usize) -> Place {
        let mut failed = Vec::new();
        for &candidate in self.order.iter().cycle().skip(number).take(self.order.len().min(MAX_REPLACEMENTS)) {
            let views = read(&*self.source, candidate).and_then(|image| {
                let mut rng = item_rng(self.seed, self.epoch, self.order[number]);
                augment::crops(&image, &self.crops, &mut rng).map_err(|e| ReadFailure::new(&*self.source, candidate, e))
            });
            match views {
                Ok(views) => return Place { views: Some((candidate, views)), failed },
                Err(failure) => failed.push(failure),
            }
        }
        Place { views: None, failed }
    }

    fn batch(&self, _: Range<usize>, places: Vec<Place>) -> MadeCrops {
        let gave_up = places.iter().any(|place| place.views.is_none());
        let mut failed = Vec::new();
        let (mut indices, mut views) = (Vec::new(), Vec::new());
        for place in places {
            failed.extend(place.failed);
            if let Some((index, made)) = place.views {
                indices.push(index);
                views.push(made);
            }
        }
        let crop_major = |of: fn(&Views) -> &[RgbImage], count: usize| -> Vec<&RgbImage> {
            (0..count).flat_map(|crop| views.iter().map(move |view| &of(view)[crop])).collect()
        };
        let globals = self.normalize.images(&crop_major(|view| &view.globals, 2));
        let locals = self.normalize.images(&crop_major(|view| &view.locals, self.crops.local_count));
        MadeCrops { batch: CropBatch { size: indices.len(), globals, locals, indices }, failed, gave_up }
    }
}
