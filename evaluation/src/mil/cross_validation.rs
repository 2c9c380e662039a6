//! Every fold and seed: train, choose by validation loss, score the test part.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;

use burn::tensor::Device;

use super::{Aggregator, MilConfig, SlideScore, TrainedHead, train_fold};
use crate::bag::BagSource;
use crate::error::{Error, Result};
use crate::split::Fold;

/// What is to be cross-validated, and how.
#[derive(Clone, Copy)]
pub struct CrossValidation<'a> {
    /// The cohort.
    pub source: &'a dyn BagSource,
    /// Its folds; a given split is one fold.
    pub folds: &'a [Fold],
    /// How heads are trained.
    pub config: &'a MilConfig,
    /// Seeds of weights and order; every fold is trained with every seed.
    pub seeds: &'a [u64],
    /// Where to train.
    pub device: &'a Device,
    /// Folds trained at a time; changes the speed and the memory, not the results. 0 stands for one per processor;
    /// take 1 on an accelerator.
    pub workers: usize,
    /// Folds that are not trained, for a reason the caller knows.
    pub left_out: &'a [usize],
    /// Trainings that are not repeated, as (seed, fold): the caller has their scores.
    pub known: &'a [(u64, usize)],
    /// Whether scores keep the attention to every patch, which takes as much memory as the patches' coordinates.
    pub keep_attention: bool,
}

/// What a cross-validation gave.
#[derive(Debug)]
pub struct CrossValidated<T> {
    /// Ordered by seed, then fold.
    pub folds: Vec<T>,
    /// Why others could not be trained, each with its fold and seed.
    pub refused: Vec<Error>,
}

/// The test part of one fold as one head sees it.
#[derive(Clone, Debug)]
pub struct FoldPrediction<A> {
    /// Index of the fold.
    pub fold: usize,
    /// Seed of the training.
    pub seed: u64,
    /// The head.
    pub head: TrainedHead<A>,
    /// Scores of the test slides.
    pub scores: Vec<SlideScore>,
}

impl CrossValidation<'_> {
    /// Trains and tests all folds with all seeds. `done` hears of each as it finishes. A training that fails costs itself alone.
    ///
    /// # Errors
    /// That of the first training where all failed, and none is known; any other failure, `done`'s too, which ends the rest.
    pub fn run<A: Aggregator>(
        &self,
        done: impl Fn(&FoldPrediction<A>) -> Result<()> + Sync,
    ) -> Result<CrossValidated<FoldPrediction<A>>> {
        let folds = || (0..self.folds.len()).filter(|fold| !self.left_out.contains(fold));
        let all = self.seeds.iter().flat_map(|&seed| folds().map(move |fold| (seed, fold)));
        let jobs: Vec<(u64, usize)> = all.filter(|job| !self.known.contains(job)).collect();
        let processors = thread::available_parallelism().map_or(1, usize::from);
        let workers = if self.workers == 0 { processors } else { self.workers };
        let next = AtomicUsize::new(0);
        let finished = Mutex::new((0..jobs.len()).map(|_| None).collect::<Vec<_>>());
        // Threads of their own, not rayon's: a rayon worker waiting inside a matrix product could take up another fold
        // while it holds a lock of the autodiff graph.
        thread::scope(|scope| {
            for _ in 0..workers.min(jobs.len()) {
                scope.spawn(|| {
                    while let Some((job, &(seed, fold))) = take(&next, &jobs) {
                        let outcome = self.one(seed, fold).and_then(|prediction| {
                            done(&prediction)?;
                            Ok(prediction)
                        });
                        if outcome.as_ref().is_err_and(|error| !matches!(error, Error::Training(_))) {
                            next.store(jobs.len(), Ordering::SeqCst);
                        }
                        finished.lock().unwrap_or_else(PoisonError::into_inner)[job] = Some(outcome);
                    }
                });
            }
        });
        let finished = finished.into_inner().unwrap_or_else(PoisonError::into_inner);
        let (mut folds, mut refused) = (Vec::new(), Vec::new());
        // Jobs not begun because another failed are None; the failure itself is among the others.
        for outcome in finished.into_iter().flatten() {
            match outcome {
                Ok(prediction) => folds.push(prediction),
                Err(error @ Error::Training(_)) => refused.push(error),
                Err(error) => return Err(error),
            }
        }
        match refused.is_empty() || !folds.is_empty() || !self.known.is_empty() {
            true => Ok(CrossValidated { folds, refused }),
            false => Err(refused.swap_remove(0)),
        }
    }

    /// Trains and tests one fold.
    fn one<A: Aggregator>(&self, seed: u64, fold: usize) -> Result<FoldPrediction<A>> {
        let Fold { train, validation, test } = &self.folds[fold];
        let trained = train_fold(self.source, train, validation, self.config, self.device, seed);
        let in_fold = |error| match error {
            Error::Training(what) => Error::Training(format!("fold {fold}, seed {seed}: {what}")),
            other => other,
        };
        let head: TrainedHead<A> = trained.map_err(in_fold)?;
        let mut scores = head.predict(self.source, test, self.device).map_err(in_fold)?;
        if !self.keep_attention {
            scores.iter_mut().for_each(|slide| slide.attention = vec![]);
        }
        Ok(FoldPrediction { fold, seed, head, scores })
    }
}

/// The next job nobody has taken.
fn take<'a, T>(next: &AtomicUsize, jobs: &'a [T]) -> Option<(usize, &'a T)> {
    let job = next.fetch_add(1, Ordering::SeqCst);
    jobs.get(job).map(|taken| (job, taken))
}
