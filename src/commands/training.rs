//! What the stages that train have in common: their patches, whether a training is continued, and the patches that could
//! not be read.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use rayon::prelude::*;
use serde_json::Value;
use slide_io::stain::Normalized;
use slide_io::{PatchSource, atomic_file};

use super::guarded;
use super::progress::Progress;
use super::sources::{self, Input};
use super::{Run, unreadable};
use crate::data::ReadFailure;
use crate::run_dir::{Failure, as_stored, remove};
use crate::train::checkpoint::first_difference;

/// Batches made ahead of the step.
pub(super) const AHEAD: usize = 4;
/// Patches that could not be read, in the folder of the training.
const UNREADABLE: &str = "unreadable.json";

/// Which patches a training sees: part of its header.
pub(super) fn fingerprint(run: &Run, input: &Input) -> Value {
    match input {
        Input::Slides(cohort) => sources::slides_fingerprint(run, cohort),
        Input::Images(images) => sources::images_fingerprint(&images.train),
    }
}

/// Refuses `--resume` where `folder` holds no `checkpoint`.
pub(super) fn check_resume(must_resume: bool, folder: &Path, checkpoint: &str) -> Result<()> {
    ensure!(
        !must_resume || folder.join(checkpoint).exists(),
        "there is nothing to resume: {} holds no checkpoint. Leave out --resume to begin",
        folder.display()
    );
    Ok(())
}

/// Whether to continue what lies in the folder of `stage`, which holds a training where one of `files` is there. A training with
/// other settings or patches is never continued, and never lost: with --update it is kept beside the new one.
pub(super) fn begin(run: &Run, stage: &str, header: &Value, files: &[&str]) -> Result<bool> {
    let folder = &run.dir.root().join(stage);
    let begun = folder.join("header.json");
    let stored = std::fs::read(&begun).ok().and_then(|text| serde_json::from_slice::<Value>(&text).ok());
    if stored == Some(as_stored(header)) {
        return Ok(true);
    }
    if files.iter().any(|file| folder.join(file).exists()) {
        ensure!(
            run.update,
            "{} holds a training with other settings or on other patches{}. Choose another folder with --out, or add --update to \
             train anew (the old training is kept beside it)",
            folder.display(),
            difference(run, stage, header)
        );
        set_aside(stage, "training", folder)?;
    }
    atomic_file::write(&begun, &serde_json::to_vec_pretty(header)?)?;
    Ok(false)
}

/// That a stage has not been done as is asked for, and why not, where another training lies there.
pub(super) fn missing(run: &Run, what: &str, stage: &str, header: &Value) -> String {
    let difference = difference(run, stage, header);
    format!("there is no {what} trained with these settings on these patches{difference}: run `gensis {stage}` first")
}

/// Where what lies in the folder of `stage` was trained otherwise than is asked for: the first key and both values, or nothing.
fn difference(run: &Run, stage: &str, header: &Value) -> String {
    let stored = std::fs::read(run.dir.root().join(stage).join("header.json")).ok();
    let stored = stored.and_then(|text| serde_json::from_slice::<Value>(&text).ok());
    let differing = stored.and_then(|stored| first_difference("", &stored, &as_stored(header)));
    differing.map_or(String::new(), |(key, there, asked)| format!(" ({key} is {there} there, and {asked} here)"))
}

/// That the weights in a file of a run are those that its stage has recorded.
///
/// # Errors
/// Others, with both hashes.
pub(super) fn same_weights(path: &Path, found: &str, recorded: &str) -> Result<()> {
    let short = |hash: &str| hash.get(..12).unwrap_or(hash).to_owned();
    ensure!(
        found == recorded,
        "{} holds other weights ({}) than this run has made ({}): put the right file back, or remove it and run the stage \
         again",
        path.display(),
        short(found),
        short(recorded)
    );
    Ok(())
}

/// Moves a folder with `what` of other settings out of the way.
pub(super) fn set_aside(stage: &str, what: &str, folder: &Path) -> Result<()> {
    let free = (1..).map(|number| folder.with_extension(format!("old-{number}"))).find(|kept| !kept.exists());
    if let Some(kept) = free {
        std::fs::rename(folder, &kept).with_context(|| format!("cannot move {} aside", folder.display()))?;
        eprintln!("{stage}: the earlier {what} is kept in {}", kept.display());
    }
    Ok(())
}

/// The last step's line of `metrics.jsonl`.
pub(super) fn last_metrics(path: &Path) -> Value {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let lines = text.lines().rev().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    lines.into_iter().find(|line| line.get("loss").is_some()).unwrap_or_default()
}

/// Every patch that may be learnt from, and slides whose stain cannot be normalised; labels are not looked at.
pub(super) fn patches(run: &Run, stage: &str, input: Input) -> Result<(Arc<dyn PatchSource>, Vec<Failure>)> {
    let cohort = match input {
        Input::Images(images) => return Ok((sources::images(run, &images.train)?, vec![])),
        Input::Slides(cohort) => cohort,
    };
    let mut slides = sources::training_slides(&cohort);
    let patches = sources::training_patches(run, &slides, &cohort.classes)?;
    let Some(normalized) = sources::normalized(run, patches.clone())? else { return Ok((patches, vec![])) };
    let failures = without_stain(stage, &*patches, &normalized);
    if failures.is_empty() {
        return Ok((normalized, vec![]));
    }
    slides.retain(|slide| failures.iter().all(|failure| failure.item != slide.id));
    let left = sources::training_patches(run, &slides, &cohort.classes);
    let left = left.with_context(|| format!("after leaving out {} slides without stain statistics", failures.len()))?;
    // The statistics are estimated again as patches are read: few cohorts come here.
    let normalized = sources::normalized(run, left)?.context("there is a stain to normalise to")?;
    Ok((normalized, failures))
}

/// Estimates the stain of every slide, and says which have none.
fn without_stain(stage: &str, patches: &dyn PatchSource, normalized: &Normalized) -> Vec<Failure> {
    let ends = patches.slide_ends();
    let progress = Progress::new("stain", ends.len() as u64, "slides");
    let failed = |slide: usize| {
        let estimated = guarded(|| normalized.estimate_slide(slide));
        progress.advance(1);
        // A slide without patches needs no statistics, so one that failed has a last patch.
        let item = || patches.key(ends[slide] - 1).item;
        estimated.err().map(|reason| Failure { stage: stage.into(), item: item(), reason })
    };
    let failures: Vec<Failure> = (0..ends.len()).into_par_iter().filter_map(failed).collect();
    failures.iter().for_each(|failure| progress.line(&format!("{stage}: {}: {}", failure.item, failure.reason)));
    progress.finish(&format!("{} slides, {} failure(s)", ends.len(), failures.len()));
    failures
}

/// Patches that could not be read, on disk as soon as they are met: an interruption does not forget them.
pub(super) struct Unreadable {
    stage: &'static str,
    path: PathBuf,
    /// In the order of their names.
    pub failures: Vec<Failure>,
    /// How many of the loader's are in there.
    taken: usize,
}

impl Unreadable {
    /// With `resume`, those of the run that is continued.
    pub fn open(stage: &'static str, folder: &Path, resume: bool) -> Self {
        let path = folder.join(UNREADABLE);
        let earlier = if resume { std::fs::read(&path).ok() } else { None };
        let failures = earlier.and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default();
        Self { stage, path, failures, taken: 0 }
    }

    /// Forgets those that are not to be kept, on disk too.
    pub fn keep(&mut self, kept: impl Fn(&Failure) -> bool) -> Result<()> {
        self.failures.retain(kept);
        match self.failures.is_empty() {
            true => remove(&self.path),
            false => Ok(atomic_file::write(&self.path, &serde_json::to_vec_pretty(&self.failures)?)?),
        }
    }

    pub fn take(&mut self, met: &[ReadFailure]) -> Result<()> {
        if met.len() == self.taken {
            return Ok(());
        }
        self.taken = met.len();
        self.failures.extend(met.iter().map(|failure| unreadable(self.stage, failure)));
        self.failures.sort_by(|a, b| a.item.cmp(&b.item));
        self.failures.dedup_by(|a, b| a.item == b.item);
        Ok(atomic_file::write(&self.path, &serde_json::to_vec_pretty(&self.failures)?)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use slide_io::{PatchKey, Point};

    fn met(index: usize, item: &str, x: i64) -> ReadFailure {
        let key = PatchKey { item: item.into(), origin: Some(Point { x, y: 7 }) };
        ReadFailure { index, key, reason: "tile 3 is damaged".into() }
    }

    /// The step before the interruption is done again by the run that continues, and meets its patch again.
    #[test]
    fn unreadable_patches_outlive_an_interruption_and_are_listed_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(UNREADABLE);
        let mut before = Unreadable::open("pretrain", folder.path(), false);
        before.take(&[]).unwrap();
        assert!(!path.exists(), "nothing to tell, nothing written");
        before.take(&[met(5, "s2", 0)]).unwrap();
        before.take(&[met(5, "s2", 0), met(1, "s1", 256)]).unwrap();
        let mut after = Unreadable::open("pretrain", folder.path(), true);
        after.take(&[met(1, "s1", 256), met(9, "s3", 0)]).unwrap();
        let items: Vec<_> = after.failures.iter().map(|failure| failure.item.as_str()).collect();
        assert_eq!(items, ["s1 (x 256, y 7)", "s2 (x 0, y 7)", "s3 (x 0, y 7)"]);
        assert!(
            Unreadable::open("pretrain", folder.path(), false).failures.is_empty(),
            "a new training begins with none"
        );
    }
}
