//! `gensis pretrain`: DINO on the patches of the training slides or images.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use evaluation::embeddings::EmbeddingTable;
use evaluation::knn::{KnnConfig, classify};
use evaluation::metric::Metric;
use rayon::prelude::*;
use serde_json::{Value, json};
use slide_io::stain::Normalized;
use slide_io::{PatchSource, atomic_file};

use super::progress::Progress;
use super::sources::{self, Input};
use super::tile::guarded;
use super::{Run, embed, unreadable};
use crate::config::Pretrain;
use crate::data::{CropLoader, ReadFailure};
use crate::device;
use crate::model::Encoder;
use crate::run_dir::{Failure, StageRecord, as_stored};
use crate::train::dino::Settings;
use crate::train::pretrain::{CHECKPOINT, ENCODER, METRICS, Observer, Progress as StepProgress, pretrain as train};

/// Batches made ahead of the step.
const AHEAD: usize = 4;
/// Patches that could not be read, in the folder of the training.
const UNREADABLE: &str = "unreadable.json";
/// Patches of the k-NN watch, at most.
const WATCHED: usize = 1000;

/// Trains the encoder, or continues where the run was stopped; with `must_resume`, only that.
pub(super) fn pretrain(run: &Run, must_resume: bool) -> Result<()> {
    let input = Input::open(&run.experiment.data)?;
    let header = header(run, &input)?;
    let folder = run.dir.root().join("pretrain");
    if run.dir.current("pretrain", &header).is_some() && folder.join(ENCODER).exists() {
        eprintln!("pretrain: up to date");
        return Ok(());
    }
    ensure!(
        !must_resume || folder.join(CHECKPOINT).exists(),
        "there is nothing to resume: {} holds no checkpoint. Leave out --resume to begin",
        folder.display()
    );
    let (source, unusable) = training_patches(run, input)?;
    run.dir.forget("pretrain")?;
    let resume = begin(run, &folder, &header)?;

    let Run { experiment, threads, .. } = run;
    let settings = Settings::of(experiment)?;
    let Pretrain { batch, patches_per_epoch, epochs, .. } = experiment.pretrain;
    let loader = CropLoader::new(
        source.clone(),
        experiment.crops.clone(),
        batch,
        patches_per_epoch,
        experiment.seed,
        *threads,
        AHEAD,
    )?;
    let total = loader.steps_per_epoch() * epochs * batch;
    let unreadable = Unreadable::open(folder.join(UNREADABLE), resume);
    let progress = Progress::new("pretrain", total as u64, "patches");
    let mut watcher = Watcher { run, source: source.clone(), loader: &loader, unreadable, progress, shown: 0 };
    let device = device::open(run.device)?;
    let encoder = train(&settings, &loader, &folder, resume, &device, &mut watcher)?;

    let last = last_metrics(&folder.join(METRICS));
    let loss = last["loss"].as_f64().map_or(String::new(), |loss| format!(", loss {loss:.4}"));
    let Watcher { progress, shown, unreadable, .. } = watcher;
    let seconds = progress.finish(&format!("{epochs} epochs of {} patches{loss}", source.len()));
    run.dir
        .log("pretrained", json!({ "seconds": seconds, "patches_shown": shown, "device": run.device.to_string() }))?;
    let failures = unusable.into_iter().chain(unreadable.failures).collect();
    let summary = json!({ "encoder": encoder.hash, "patches": source.len(), "last": last });
    run.dir.finish("pretrain", &StageRecord { header, failures, summary })
}

/// Everything the encoder depends on.
fn header(run: &Run, input: &Input) -> Result<Value> {
    let mut settings = serde_json::to_value(Settings::of(&run.experiment)?)?;
    if let Some(pretrain) = settings["pretrain"].as_object_mut() {
        // How often to look does not change what is learnt.
        pretrain.remove("knn_every");
        pretrain.remove("checkpoint_every");
    }
    let data = match input {
        Input::Slides(cohort) => sources::slides_fingerprint(run, cohort),
        Input::Images(images) => sources::images_fingerprint(&images.train),
    };
    let header = json!({ "stage": "pretrain", "format": sources::FORMAT, "settings": settings, "data": data });
    Ok(sources::with_stain(run, header))
}

/// The encoder's file and hash, if it was trained with these settings on these patches.
pub(super) fn require_encoder(run: &Run, input: &Input) -> Result<(PathBuf, String)> {
    let path = run.dir.root().join("pretrain").join(ENCODER);
    let record = run.dir.current("pretrain", &header(run, input)?).filter(|_| path.exists());
    let hash = record.as_ref().and_then(|record| record.summary["encoder"].as_str()).map(str::to_owned);
    let missing = "there is no encoder trained with these settings on these patches: run `gensis pretrain` first";
    Ok((path, hash.context(missing)?))
}

/// Whether to continue what lies in `folder`. A training with other settings or patches is never continued, and never
/// lost: with --update it is kept beside the new one.
fn begin(run: &Run, folder: &Path, header: &Value) -> Result<bool> {
    let begun = folder.join("header.json");
    let stored = std::fs::read(&begun).ok().and_then(|text| serde_json::from_slice::<Value>(&text).ok());
    if stored == Some(as_stored(header)) {
        return Ok(true);
    }
    if folder.join(CHECKPOINT).exists() || folder.join(ENCODER).exists() {
        ensure!(
            run.update,
            "{} holds a training with other settings or on other patches. Choose another folder with --out, or add --update to \
             train anew (the old training is kept beside it)",
            folder.display()
        );
        let free = (1..).map(|number| folder.with_extension(format!("old-{number}"))).find(|kept| !kept.exists());
        if let Some(kept) = free {
            std::fs::rename(folder, &kept).with_context(|| format!("cannot move {} aside", folder.display()))?;
            eprintln!("pretrain: the earlier training is kept in {}", kept.display());
        }
    }
    atomic_file::write(&begun, &serde_json::to_vec_pretty(header)?)?;
    Ok(false)
}

/// The last step's line of `metrics.jsonl`.
fn last_metrics(path: &Path) -> Value {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let lines = text.lines().rev().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    lines.into_iter().find(|line| line.get("loss").is_some()).unwrap_or_default()
}

/// Every patch the encoder may learn from, and slides whose stain cannot be normalised; labels are not looked at.
fn training_patches(run: &Run, input: Input) -> Result<(Arc<dyn PatchSource>, Vec<Failure>)> {
    let cohort = match input {
        Input::Images(images) => return Ok((sources::images(run, &images.train)?, vec![])),
        Input::Slides(cohort) => cohort,
    };
    let mut slides = sources::training_slides(&cohort);
    let patches = sources::training_patches(run, &slides, &cohort.classes)?;
    let Some(normalized) = sources::normalized(run, patches.clone())? else { return Ok((patches, vec![])) };
    let failures = without_stain(&*patches, &normalized);
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
fn without_stain(patches: &dyn PatchSource, normalized: &Normalized) -> Vec<Failure> {
    let ends = patches.slide_ends();
    let progress = Progress::new("stain", ends.len() as u64, "slides");
    let failed = |slide: usize| {
        let estimated = guarded(|| normalized.estimate_slide(slide));
        progress.advance(1);
        // A slide without patches needs no statistics, so one that failed has a last patch.
        let item = || patches.key(ends[slide] - 1).item;
        estimated.err().map(|reason| Failure { stage: "pretrain".into(), item: item(), reason })
    };
    let failures: Vec<Failure> = (0..ends.len()).into_par_iter().filter_map(failed).collect();
    failures.iter().for_each(|failure| progress.line(&format!("pretrain: {}: {}", failure.item, failure.reason)));
    progress.finish(&format!("{} slides, {} failure(s)", ends.len(), failures.len()));
    failures
}

/// Patches that could not be read, on disk as soon as they are met: an interruption does not forget them.
struct Unreadable {
    path: PathBuf,
    /// In the order of their names.
    failures: Vec<Failure>,
    /// How many of the loader's are in there.
    taken: usize,
}

impl Unreadable {
    /// With `resume`, those of the run that is continued.
    fn open(path: PathBuf, resume: bool) -> Self {
        let earlier = if resume { std::fs::read(&path).ok() } else { None };
        let failures = earlier.and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default();
        Self { path, failures, taken: 0 }
    }

    fn take(&mut self, met: &[ReadFailure]) -> Result<()> {
        if met.len() == self.taken {
            return Ok(());
        }
        self.taken = met.len();
        self.failures.extend(met.iter().map(|failure| unreadable("pretrain", failure)));
        self.failures.sort_by(|a, b| a.item.cmp(&b.item));
        self.failures.dedup_by(|a, b| a.item == b.item);
        Ok(atomic_file::write(&self.path, &serde_json::to_vec_pretty(&self.failures)?)?)
    }
}

/// Shows progress, and scores the teacher on labelled training patches.
struct Watcher<'a> {
    run: &'a Run,
    source: Arc<dyn PatchSource>,
    loader: &'a CropLoader,
    unreadable: Unreadable,
    progress: Progress,
    /// Patches trained on by this process.
    shown: u64,
}

impl Observer for Watcher<'_> {
    fn step(&mut self, progress: &StepProgress) {
        let batch = self.run.experiment.pretrain.batch as u64;
        if self.shown == 0 {
            self.progress.start_at((progress.done as u64 - 1) * batch);
        }
        self.shown += batch;
        self.progress.advance(batch);
        self.progress.message(format!("loss {:.3}", progress.report.loss));
        if let Err(error) = self.unreadable.take(&self.loader.failures()) {
            // Kept in memory all the same; a full disk will stop the next checkpoint with its own message.
            self.progress.line(&format!("pretrain: warning: {error:#}"));
        }
    }

    fn warning(&mut self, message: &str) {
        self.progress.line(&format!("pretrain: warning: {message}"));
        // The log is a courtesy here; a full disk will stop the next checkpoint with its own message.
        let _ = self.run.dir.log("warning", json!({ "stage": "pretrain", "message": message }));
    }

    fn evaluate(&mut self, epoch: usize, encoder: &Encoder) -> Result<Option<f64>> {
        let Some((bank, queries)) = watch_split(&*self.source) else { return Ok(None) };
        let device = device::open(self.run.device)?;
        let (bank, queries) = (self.table(encoder, bank)?, self.table(encoder, queries)?);
        let config = KnnConfig { k: vec![20], temperature: self.run.experiment.evaluate.knn.temperature };
        let result = classify(&bank, &queries, &config, &device)?;
        let accuracy = result[0].predictions.value(Metric::Accuracy);
        if let Some(accuracy) = accuracy {
            self.progress.line(&format!(
                "pretrain: epoch {}: k-NN on held-out training patches {:.1} %",
                epoch + 1,
                100.0 * accuracy
            ));
        }
        Ok(accuracy)
    }
}

impl Watcher<'_> {
    fn table(&self, encoder: &Encoder, indices: Vec<usize>) -> Result<EmbeddingTable> {
        let threads = (self.run.threads, embed::workers(self.run));
        let embedded =
            embed::features(encoder, self.source.clone(), indices, &self.run.experiment.embed, threads, |_| ())?;
        Ok(EmbeddingTable {
            header: Value::Null,
            dim: encoder.dim(),
            keys: embedded.indices.iter().map(|&index| self.source.key(index)).collect(),
            labels: embedded.indices.iter().map(|&index| self.source.label(index)).collect(),
            classes: self.source.classes().to_vec(),
            values: embedded.values,
        })
    }
}

/// Labelled training patches as (bank, queries): every fifth item (slide or image) asks, the others answer; evenly
/// thinned to [`WATCHED`]. `None` without labels of two classes.
fn watch_split(source: &dyn PatchSource) -> Option<(Vec<usize>, Vec<usize>)> {
    if source.classes().len() < 2 {
        return None;
    }
    let labelled: Vec<usize> = (0..source.len()).filter(|&index| source.label(index).is_some()).collect();
    let step = labelled.len().div_ceil(WATCHED).max(1);
    let (mut bank, mut queries) = (vec![], vec![]);
    let (mut item, mut last) = (0usize, None);
    for index in labelled.into_iter().step_by(step) {
        let key = source.key(index).item;
        if last.as_ref() != Some(&key) {
            item += 1;
            last = Some(key);
        }
        if item % 5 == 0 { queries.push(index) } else { bank.push(index) }
    }
    (!bank.is_empty() && !queries.is_empty()).then_some((bank, queries))
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
        let mut before = Unreadable::open(path.clone(), false);
        before.take(&[]).unwrap();
        assert!(!path.exists(), "nothing to tell, nothing written");
        before.take(&[met(5, "s2", 0)]).unwrap();
        before.take(&[met(5, "s2", 0), met(1, "s1", 256)]).unwrap();
        let mut after = Unreadable::open(path.clone(), true);
        after.take(&[met(1, "s1", 256), met(9, "s3", 0)]).unwrap();
        let items: Vec<_> = after.failures.iter().map(|failure| failure.item.as_str()).collect();
        assert_eq!(items, ["s1 (x 256, y 7)", "s2 (x 0, y 7)", "s3 (x 0, y 7)"]);
        assert!(Unreadable::open(path, false).failures.is_empty(), "a new training begins with none");
    }
}
