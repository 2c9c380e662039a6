//! `gensis pretrain`: DINO on the patches of the training slides or images.

use std::sync::Arc;

use anyhow::Result;
use evaluation::embeddings::EmbeddingTable;
use evaluation::knn::{KnnConfig, classify};
use evaluation::metric::Metric;
use serde_json::{Value, json};
use slide_io::PatchSource;

use super::progress::Progress;
use super::sources::{self, Input, fingerprint};
use super::{Run, embed};
use crate::data::{CropLoader, ReadFailure};
use crate::device;
use crate::model::Encoder;
use crate::run_dir::{Failure, StageRecord, write_atomic};
use crate::train::dino::Settings;
use crate::train::pretrain::{ENCODER, Observer, Progress as StepProgress, pretrain as train};

/// Batches made ahead of the step.
const AHEAD: usize = 4;
/// Patches of the k-NN watch, at most.
const WATCHED: usize = 1000;

/// Trains the encoder, or continues where the run was stopped.
pub(super) fn pretrain(run: &Run) -> Result<()> {
    let source = training_patches(run)?;
    let settings = Settings::of(&run.experiment)?;
    let header = json!({
        "stage": "pretrain",
        "version": env!("CARGO_PKG_VERSION"),
        "settings": settings,
        "data": fingerprint(&run.experiment, &*source),
    });
    let folder = run.dir.root().join("pretrain");
    if run.dir.current("pretrain", &header).is_some() && folder.join(ENCODER).exists() {
        eprintln!("pretrain: up to date");
        return Ok(());
    }
    run.dir.forget("pretrain")?;

    let begun = run.dir.file("pretrain/header.json")?;
    let resume =
        std::fs::read(&begun).ok().and_then(|text| serde_json::from_slice::<Value>(&text).ok()) == Some(header.clone());
    write_atomic(&begun, &serde_json::to_vec_pretty(&header)?)?;

    let Run { experiment, threads, .. } = run;
    let settings_of = &experiment.pretrain;
    let loader = CropLoader::new(
        source.clone(),
        experiment.crops.clone(),
        settings_of.batch,
        settings_of.patches_per_epoch,
        experiment.seed,
        *threads,
        AHEAD,
    )?;
    let total = (loader.steps_per_epoch() * settings_of.epochs * settings_of.batch) as u64;
    let mut watcher =
        Watcher { run, source: source.clone(), progress: Progress::new("pretrain", total, "patches"), last: None };
    let device = device::open(run.device)?;
    let encoder = train(&settings, &loader, &folder, resume, &device, &mut watcher)?;

    let last = watcher.last.unwrap_or(Value::Null);
    let loss = last["loss"].as_f64().map_or(String::new(), |loss| format!(", loss {loss:.4}"));
    let seconds = watcher.progress.finish(&format!("{} epochs of {} patches{loss}", settings_of.epochs, source.len()));
    run.dir
        .log("pretrained", json!({ "seconds": seconds, "patches_shown": total, "device": run.device.to_string() }))?;
    let failures = loader.failures().iter().map(unreadable).collect();
    let summary = json!({ "encoder": encoder.hash, "patches": source.len(), "steps": total / settings_of.batch as u64, "last": last });
    run.dir.finish("pretrain", &StageRecord { header, failures, summary })
}

/// Every patch the encoder may learn from: slides of a test split are left out, their labels or not.
fn training_patches(run: &Run) -> Result<Arc<dyn PatchSource>> {
    Ok(match Input::open(&run.experiment.data)? {
        Input::Images(images) => images.train,
        Input::Slides(cohort) => {
            let slides: Vec<_> = cohort.slides.iter().filter(|slide| sources::may_train(slide)).collect();
            Arc::new(sources::slide_patches(run, &slides, &cohort.classes)?)
        }
    })
}

fn unreadable(failure: &ReadFailure) -> Failure {
    let item = match failure.key.origin {
        Some(origin) => format!("{} (x {}, y {})", failure.key.item, origin.x, origin.y),
        None => failure.key.item.clone(),
    };
    Failure { stage: "pretrain".into(), item, reason: failure.reason.clone() }
}

/// Shows progress, and scores the teacher on labelled training patches.
struct Watcher<'a> {
    run: &'a Run,
    source: Arc<dyn PatchSource>,
    progress: Progress,
    last: Option<Value>,
}

impl Observer for Watcher<'_> {
    fn step(&mut self, progress: &StepProgress) {
        let batch = self.run.experiment.pretrain.batch as u64;
        if self.last.is_none() {
            self.progress.start_at((progress.done as u64 - 1) * batch);
        }
        self.progress.advance(batch);
        self.progress.message(format!("loss {:.3}", progress.report.loss));
        self.last = serde_json::to_value(progress.report).ok();
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
