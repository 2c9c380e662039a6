//! Features of many images on all threads; those that cannot be read are kept apart with their reason.

use anyhow::Result;
use rayon::prelude::*;

use crate::commands::Run;
use crate::commands::progress::Progress;
use crate::run_dir::Failure;

/// Features of images, in order.
pub(super) struct Features {
    /// Which images, those that gave features.
    pub kept: Vec<usize>,
    /// Their features, row after row.
    pub values: Vec<f32>,
    failed: Vec<(usize, String)>,
}

impl Features {
    /// What failed, for `failures.csv`; what `item` has no name for is told elsewhere.
    pub fn failures(&self, stage: &str, item: impl Fn(usize) -> Option<String>) -> Vec<Failure> {
        let failure = |(index, reason): &(usize, String)| {
            Some(Failure { stage: stage.into(), item: item(*index)?, reason: reason.clone() })
        };
        self.failed.iter().filter_map(failure).collect()
    }

    /// Why the first that failed did.
    pub fn first_reason(&self) -> &str {
        self.failed.first().map_or("there are none", |(_, reason)| reason)
    }
}

/// `feature` of every index below `count`; a failure of one is not one of all.
pub(super) fn of(
    run: &Run,
    stage: &'static str,
    count: usize,
    feature: impl Fn(usize) -> Result<Vec<f32>> + Sync,
) -> Result<Features> {
    // An accelerator wants few queues: some threads decode while others wait for it.
    let pool = rayon::ThreadPoolBuilder::new().num_threads(crate::commands::embed::workers(run)).build()?;
    let progress = Progress::new(stage, count as u64, "images");
    let one = |index: usize| {
        let feature = feature(index);
        progress.advance(1);
        match feature.map_err(|error| format!("{error:#}"))? {
            values if values.iter().all(|value| value.is_finite()) => Ok(values),
            _ => Err("its features are no finite numbers".to_owned()),
        }
    };
    let all: Vec<Result<Vec<f32>, String>> = pool.install(|| (0..count).into_par_iter().map(one).collect());
    let mut features = Features { kept: Vec::new(), values: Vec::new(), failed: Vec::new() };
    for (index, feature) in all.into_iter().enumerate() {
        match feature {
            Ok(values) => {
                features.kept.push(index);
                features.values.extend(values);
            }
            Err(reason) => features.failed.push((index, reason)),
        }
    }
    progress.finish(&format!("{} images, {} failure(s)", features.kept.len(), features.failed.len()));
    Ok(features)
}
