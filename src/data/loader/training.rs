//! Batches for training, whatever becomes of a patch: shuffled, seeded, made on threads ahead of the training step.

use std::ops::Range;
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use image::RgbImage;
use rand_chacha::ChaCha8Rng;
use rayon::ThreadPool;
use slide_io::PatchSource;

use super::{Failures, MAX_REPLACEMENTS, ReadFailure, read};
use crate::data::order::{EpochOrder, item_rng};
use crate::data::prefetch::{Prefetch, Work, thread_pool};

/// What becomes of a patch in training, and of a batch of them.
pub trait Treatment: Send + Sync + 'static {
    /// What one patch becomes.
    type Views: Send;
    /// What a batch becomes.
    type Batch: Send;
    /// Patch `index` of the source, which is `image`, with the random numbers of its place.
    ///
    /// # Errors
    /// A patch that cannot be used: another one takes its place.
    fn views(&self, index: usize, image: RgbImage, rng: &mut ChaCha8Rng) -> Result<Self::Views>;
    /// The batch of the patches at `indices`, in order.
    fn batch(&self, indices: Vec<usize>, views: Vec<Self::Views>) -> Self::Batch;
}

/// Batches of patches: shuffled, treated, made on threads ahead of the training step.
///
/// A patch that cannot be read is replaced by the next readable one in the epoch's order and kept in
/// [`failures`](Self::failures); too many failures end the epoch with an error
/// ([`MAX_FAILED_SHARE`](super::MAX_FAILED_SHARE)).
pub struct TrainingLoader<T: Treatment> {
    source: Arc<dyn PatchSource>,
    treatment: Arc<T>,
    batch: usize,
    pub(super) order: EpochOrder,
    pool: Arc<ThreadPool>,
    depth: usize,
    failures: Failures,
}

/// How a source is cut into batches.
#[derive(Clone, Copy, Debug)]
pub struct Batches {
    /// Patches of a batch.
    pub size: usize,
    /// Patches drawn per epoch; 0 takes all. What does not fill a batch is dropped.
    pub per_epoch: usize,
    /// The experiment's seed.
    pub seed: u64,
    /// Threads that read and treat; 0 takes one per core.
    pub threads: usize,
    /// Batches made ahead.
    pub ahead: usize,
}

impl<T: Treatment> TrainingLoader<T> {
    /// Batches of `source`, treated.
    ///
    /// # Errors
    /// Fewer patches than a batch.
    pub fn treated(source: Arc<dyn PatchSource>, treatment: T, batches: Batches) -> Result<Self> {
        let order = EpochOrder {
            len: source.len(),
            per_epoch: batches.per_epoch,
            seed: batches.seed,
            slide_ends: if source.prefers_few_slides() { source.slide_ends().to_vec() } else { vec![] },
            open_slides: slide_io::patch::OPEN_SLIDES,
        };
        let batch = batches.size;
        ensure!(batch > 0, "a batch needs at least one patch");
        ensure!(
            order.epoch_len() >= batch,
            "{} patches per epoch do not fill a batch of {batch}: use a smaller batch",
            order.epoch_len()
        );
        let pool = thread_pool(batches.threads).context("starting the loader's threads")?;
        let treatment = Arc::new(treatment);
        Ok(Self { source, treatment, batch, order, pool, depth: batches.ahead, failures: Failures::default() })
    }

    /// Batches of one epoch.
    pub fn steps_per_epoch(&self) -> usize {
        self.order.epoch_len() / self.batch
    }

    /// The batches of `epoch` from number `first_batch` on; those before it are not read.
    pub fn epoch(&self, epoch: usize, first_batch: usize) -> EpochBatches<T> {
        let order = self.order.epoch(epoch);
        let end = self.steps_per_epoch() * self.batch;
        let start = (first_batch * self.batch).min(end);
        let work = Epoch {
            source: self.source.clone(),
            treatment: self.treatment.clone(),
            order,
            seed: self.order.seed,
            epoch,
        };
        EpochBatches {
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
pub struct EpochBatches<T: Treatment> {
    prefetch: Prefetch<Epoch<T>>,
    failures: Failures,
    ended: bool,
}

impl<T: Treatment> EpochBatches<T> {
    fn receive(&mut self, made: Result<Made<T::Batch>, String>) -> Result<T::Batch> {
        let made = made.map_err(anyhow::Error::msg)?;
        self.failures.count(made.read, made.failed);
        self.failures.check()?;
        if made.gave_up {
            let failures = self.failures.list();
            let last = failures.last().map(|f| format!(": {}: {}", f.key.item, f.reason)).unwrap_or_default();
            bail!("a place in the batch stayed empty, up to {MAX_REPLACEMENTS} patches were tried{last}");
        }
        Ok(made.batch)
    }
}

impl<T: Treatment> Iterator for EpochBatches<T> {
    type Item = Result<T::Batch>;

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
struct Epoch<T> {
    source: Arc<dyn PatchSource>,
    treatment: Arc<T>,
    order: Vec<usize>,
    seed: u64,
    epoch: usize,
}

/// One place of a batch: what became of the patch that took it, and the patches that could not.
struct Place<V> {
    views: Option<(usize, V)>,
    failed: Vec<ReadFailure>,
}

struct Made<B> {
    batch: B,
    read: usize,
    failed: Vec<ReadFailure>,
    gave_up: bool,
}

impl<T: Treatment> Work for Epoch<T> {
    type Item = Place<T::Views>;
    type Batch = Made<T::Batch>;

    /// Place `number` of the epoch. The random numbers belong to the patch whose place it is, so that a replacement,
    /// which has a place of its own too, does not appear twice with the same views.
    fn item(&self, number: usize) -> Self::Item {
        let mut failed = Vec::new();
        for &candidate in self.order.iter().cycle().skip(number).take(self.order.len().min(MAX_REPLACEMENTS)) {
            let views = read(&*self.source, candidate).and_then(|image| {
                let mut rng = item_rng(self.seed, self.epoch, self.order[number]);
                let views = self.treatment.views(candidate, image, &mut rng);
                views.map_err(|error| ReadFailure::new(&*self.source, candidate, error))
            });
            match views {
                Ok(views) => return Place { views: Some((candidate, views)), failed },
                Err(failure) => failed.push(failure),
            }
        }
        Place { views: None, failed }
    }

    fn batch(&self, _: Range<usize>, places: Vec<Self::Item>) -> Self::Batch {
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
        let read = indices.len();
        Made { batch: self.treatment.batch(indices, views), read, failed, gave_up }
    }
}
