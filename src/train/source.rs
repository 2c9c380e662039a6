//! Where the batches of a training come from.

use crate::data::{TrainingLoader, Treatment};
use anyhow::Result;

/// Batches by epoch: an epoch is the same whenever it is asked for.
pub trait BatchSource {
    /// What a step is trained on.
    type Batch;
    /// Batches of an epoch.
    fn steps_per_epoch(&self) -> usize;
    /// The batches of `epoch` from number `first` on.
    fn epoch(&self, epoch: usize, first: usize) -> Box<dyn Iterator<Item = Result<Self::Batch>> + '_>;
}

impl<T: Treatment> BatchSource for TrainingLoader<T> {
    type Batch = T::Batch;
    fn steps_per_epoch(&self) -> usize {
        TrainingLoader::steps_per_epoch(self)
    }
    fn epoch(&self, epoch: usize, first: usize) -> Box<dyn Iterator<Item = Result<T::Batch>> + '_> {
        Box::new(TrainingLoader::epoch(self, epoch, first))
    }
}
