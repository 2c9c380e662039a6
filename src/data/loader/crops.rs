//! Multi-crop batches for training.

use std::ops::Range;
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
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
/// [`failures`](Self::failures); too many failures end the epoch with an error
/// ([`MAX_FAILED_SHARE`](super::MAX_FAILED_SHARE)).
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
        let order = EpochOrder {
            len: source.len(),
            per_epoch: patches_per_epoch,
            seed,
            slide_ends: if source.prefers_few_slides() { source.slide_ends().to_vec() } else { vec![] },
            open_slides: slide_io::patch::OPEN_SLIDES,
        };
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
        if made.gave_up {
            let failures = self.failures.list();
            let last = failures.last().map(|f| format!(": {}: {}", f.key.item, f.reason)).unwrap_or_default();
            bail!("a place in the batch stayed empty, up to {MAX_REPLACEMENTS} patches were tried{last}");
        }
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

#[cfg(test)]
mod tests {
    use super::super::fake::Pictures;
    use super::*;
    use std::sync::atomic::Ordering;

    fn small() -> Crops {
        Crops { global_size: 16, local_count: 3, local_size: 8, ..Crops::default() }
    }

    fn loader(source: Arc<Pictures>, per_epoch: usize, threads: usize) -> CropLoader {
        CropLoader::new(source, small(), 4, per_epoch, 11, threads, 2).unwrap()
    }

    fn collect(batches: CropBatches) -> Vec<CropBatch> {
        batches.map(Result::unwrap).collect()
    }

    #[test]
    fn same_bytes_with_any_number_of_threads_and_after_a_resume() {
        let bad = |index| index == 5 || index == 6;
        let one = collect(loader(Pictures::new(30, bad), 0, 1).epoch(2, 0));
        assert_eq!(one.len(), 7);
        assert_eq!(one, collect(loader(Pictures::new(30, bad), 0, 3).epoch(2, 0)));
        assert_eq!(one[3..], collect(loader(Pictures::new(30, bad), 0, 2).epoch(2, 3))[..]);
        assert!(collect(loader(Pictures::new(30, bad), 0, 2).epoch(2, 7)).is_empty());
        assert_ne!(one, collect(loader(Pictures::new(30, bad), 0, 1).epoch(3, 0)));
    }

    #[test]
    fn skipped_batches_are_not_read() {
        let source = Pictures::new(40, |_| false);
        assert_eq!(collect(loader(source.clone(), 0, 2).epoch(0, 8)).len(), 2);
        assert_eq!(source.reads.load(Ordering::Relaxed), 8);
    }

    #[test]
    fn a_batch_is_crop_major_and_its_crops_are_those_of_its_patches() {
        let source = Pictures::new(12, |_| false);
        let batch = loader(source.clone(), 0, 2).epoch(1, 1).next().unwrap().unwrap();
        assert_eq!((batch.size, batch.indices.len()), (4, 4));
        assert_eq!(batch.indices, loader(source.clone(), 0, 2).order.epoch(1)[4..8]);
        assert_eq!((batch.globals.len(), batch.locals.len()), (2 * 4 * 3 * 16 * 16, 3 * 4 * 3 * 8 * 8));
        let normalize = Normalize::new(small().mean, small().std);
        for (place, &index) in batch.indices.iter().enumerate() {
            let image = source.read(index).unwrap().image;
            let views = augment::crops(&image, &small(), &mut item_rng(11, 1, index)).unwrap();
            for (crops, floats) in [(&views.globals, &batch.globals), (&views.locals, &batch.locals)] {
                for (number, crop) in crops.iter().enumerate() {
                    let values = crop.as_raw().len();
                    let start = (number * batch.size + place) * values;
                    assert_eq!(floats[start..start + values], normalize.images(&[crop])[..]);
                }
            }
        }
    }

    #[test]
    fn an_unreadable_patch_is_replaced_by_the_next_and_remembered() {
        let loader = loader(Pictures::new(40, |index| index == 8 || index == 9), 0, 2);
        let order = loader.order.epoch(0);
        let indices: Vec<usize> = collect(loader.epoch(0, 0)).into_iter().flat_map(|batch| batch.indices).collect();
        for (place, &index) in indices.iter().enumerate() {
            let expected = order.iter().cycle().skip(place).find(|&&i| i != 8 && i != 9);
            assert_eq!(Some(&index), expected);
        }
        let failures = loader.failures();
        assert_eq!(failures.iter().map(|f| f.index).collect::<Vec<_>>(), [8, 9]);
        assert_eq!(failures[0].key.item, "picture 8");
        assert_eq!(failures[0].reason, "picture 8: the file is damaged: truncated");
        assert_eq!(failures[1].reason, "panic: decoder broke on 9");
    }

    #[test]
    fn a_replacement_has_crops_of_its_own() {
        // Two patches, one unreadable: the other takes both places.
        let loader = CropLoader::new(Pictures::new(2, |index| index == 1), small(), 2, 0, 0, 1, 1).unwrap();
        let batch = loader.epoch(0, 0).next().unwrap().unwrap();
        assert_eq!(batch.indices, [0, 0]);
        let values = batch.globals.len() / 4;
        assert_ne!(batch.globals[..values], batch.globals[values..2 * values]);
    }

    #[test]
    fn too_many_failures_end_the_epoch_with_an_error() {
        let loader = loader(Pictures::new(200, |index| index % 2 == 1), 0, 2);
        let batches: Vec<_> = loader.epoch(0, 0).collect();
        let error = batches.last().unwrap().as_ref().unwrap_err().to_string();
        assert!(batches[..batches.len() - 1].iter().all(Result::is_ok));
        assert!(error.contains("reads failed, more than 25 %") && error.contains("picture "), "{error}");
        // Half are unreadable: the error comes soon after the 11th failed read, some of them of the same picture.
        assert!((4..=20).contains(&loader.failures().len()), "{}", loader.failures().len());
        // A few failures are tolerated however small the epoch.
        let few = CropLoader::new(Pictures::new(20, |index| index < 3), small(), 4, 0, 0, 2, 2).unwrap();
        assert_eq!(collect(few.epoch(0, 0)).len(), 5);
    }

    #[test]
    fn no_readable_patch_at_all_is_an_error() {
        let loader = CropLoader::new(Pictures::new(8, |_| true), small(), 4, 0, 0, 2, 2).unwrap();
        let mut batches = loader.epoch(0, 0);
        let error = batches.next().unwrap().unwrap_err().to_string();
        assert!(error.contains("reads failed") && error.contains("decoder broke on 0"), "{error}");
        assert!(batches.next().is_none());
    }

    #[test]
    fn a_subset_per_epoch_and_settings_that_make_no_sense() {
        let source = Pictures::new(50, |_| false);
        let subset = loader(source.clone(), 10, 2);
        assert_eq!((subset.steps_per_epoch(), collect(subset.epoch(0, 0)).len()), (2, 2));
        let error =
            |crops: Crops, batch| CropLoader::new(source.clone(), crops, batch, 0, 0, 1, 1).err().unwrap().to_string();
        assert_eq!(error(small(), 64), "50 patches per epoch do not fill a batch of 64: use a smaller batch");
        assert_eq!(
            error(Crops { local_scale: [0.4, 0.05], ..small() }, 4),
            "crops.local_scale: 0 < 0.4 <= 0.05 <= 1 does not hold"
        );
        assert_eq!(error(Crops { hflip: 1.5, ..small() }, 4), "crops.hflip: 1.5 is not a probability");
    }
}
