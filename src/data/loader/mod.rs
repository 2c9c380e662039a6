//! Batches for training ([`CropLoader`], [`SquareLoader`]) and for embedding ([`EvalLoader`]), and what becomes of patches that cannot
//! be read: they are kept with their reason, never replaced by a blank image.

mod crops;
#[cfg(test)]
pub(crate) mod fake;
mod images;
mod probe_crops;
pub mod squares;
mod synthetic;
pub mod training;

use std::collections::BTreeMap;
use std::fmt::Display;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Result, bail};
use image::RgbImage;
use slide_io::{PatchKey, PatchSource};

pub use crops::{CropBatch, CropBatches, CropLoader, MultiCrop};
pub use images::{EvalLoader, ImageBatch, ImageBatches, image_size, require_size};
pub use probe_crops::{ProbeBatch, ProbeCrops};
pub use squares::{SquareBatch, SquareLoader, Squares};
pub use synthetic::{Interpolations, MixedBatch, Synthetics};
pub use training::{Batches, TrainingLoader, Treatment};

use crate::data::prefetch::panic_message;

/// Reading stops with an error when more than this share of the reads failed, and more than [`MAX_FAILED`] did.
pub const MAX_FAILED_SHARE: f64 = 0.25;
/// Failed reads that are always tolerated (see [`MAX_FAILED_SHARE`]).
pub const MAX_FAILED: usize = 10;
/// Unreadable patches in a row after which a place in a batch is given up.
const MAX_REPLACEMENTS: usize = 256;

/// A patch that could not be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReadFailure {
    /// Where it is in the source.
    pub index: usize,
    /// Where it comes from.
    pub key: PatchKey,
    /// Why not.
    pub reason: String,
}

impl ReadFailure {
    fn new(source: &dyn PatchSource, index: usize, reason: impl Display) -> Self {
        Self { index, key: source.key(index), reason: format!("{reason:#}") }
    }
}

/// Failures of all epochs so far, by index; shared by a loader and its iterators.
#[derive(Clone, Default)]
pub(super) struct Failures(Arc<Mutex<Tally>>);

#[derive(Default)]
struct Tally {
    by_index: BTreeMap<usize, ReadFailure>,
    reads: usize,
    failed: usize,
}

impl Failures {
    fn lock(&self) -> MutexGuard<'_, Tally> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn list(&self) -> Vec<ReadFailure> {
        self.lock().by_index.values().cloned().collect()
    }

    /// Counts a delivered batch: `read` patches and `failed` ones, which are kept the first time only.
    pub(super) fn count(&self, read: usize, failed: Vec<ReadFailure>) {
        let mut tally = self.lock();
        tally.reads += read + failed.len();
        tally.failed += failed.len();
        for failure in failed {
            tally.by_index.entry(failure.index).or_insert(failure);
        }
    }

    /// An error once too many reads failed.
    pub(super) fn check(&self) -> Result<()> {
        let Tally { by_index, reads, failed } = &*self.lock();
        require_share(*failed, *reads, by_index.values())
    }
}

/// That not too many of `reads` images `failed`, the last of them `met`.
///
/// # Errors
/// [`MAX_FAILED_SHARE`], with the first that were met.
pub fn require_most(met: &[ReadFailure], failed: usize, reads: usize) -> Result<()> {
    require_share(failed, reads, met.iter())
}

fn require_share<'a>(failed: usize, reads: usize, which: impl Iterator<Item = &'a ReadFailure>) -> Result<()> {
    if failed > MAX_FAILED && failed as f64 > MAX_FAILED_SHARE * reads as f64 {
        let first: Vec<_> = which.take(3).map(|f| format!("\n  {}: {}", f.key.item, f.reason)).collect();
        bail!(
            "{failed} of {reads} reads failed, more than {} %; training on the rest would not be training on this data. First:{}",
            MAX_FAILED_SHARE * 100.0,
            first.concat()
        );
    }
    Ok(())
}

/// Reads one patch.
///
/// # Errors
/// A reader's error or panic.
pub fn read(source: &dyn PatchSource, index: usize) -> Result<RgbImage, ReadFailure> {
    let read = catch_unwind(AssertUnwindSafe(|| source.read(index)));
    let reason = match read {
        Ok(Ok(patch)) if patch.image.width() > 0 && patch.image.height() > 0 => return Ok(patch.image),
        Ok(Ok(_)) => "the image is empty".to_owned(),
        Ok(Err(error)) => error.to_string(),
        Err(panic) => panic_message(&*panic),
    };
    Err(ReadFailure::new(source, index, reason))
}
