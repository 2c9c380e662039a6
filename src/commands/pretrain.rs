//! `gensis pretrain`: DINO on the patches of the training slides or images.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, Result};
use evaluation::embeddings::EmbeddingTable;
use evaluation::knn::{KnnConfig, classify};
use evaluation::metric::Metric;
use serde_json::{Value, json};
use slide_io::PatchSource;

use super::progress::Progress;
use super::sources::{self, Input};
use super::training::{self, AHEAD, Unreadable};
use super::{Run, embed};
use crate::config::Pretrain;
use crate::data::CropLoader;
use crate::device;
use crate::model::Encoder;
use crate::run_dir::StageRecord;
use crate::train::dino::Settings;
use crate::train::pretrain::{CHECKPOINT, ENCODER, METRICS, Observer, Progress as StepProgress, pretrain as train};

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
    training::check_resume(must_resume, &folder, CHECKPOINT)?;
    let (source, unusable) = training::patches(run, "pretrain", input)?;
    run.dir.forget("pretrain")?;
    let resume = training::begin(run, "pretrain", &header, &[CHECKPOINT, ENCODER])?;

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
    let unreadable = Unreadable::open("pretrain", &folder, resume);
    let progress = Progress::new("pretrain", total as u64, "patches");
    let mut watcher = Watcher { run, source: source.clone(), loader: &loader, unreadable, progress, shown: 0 };
    let device = device::open(run.device)?;
    let encoder = train(&settings, &loader, &folder, resume, &device, &mut watcher)?;

    let last = training::last_metrics(&folder.join(METRICS));
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
    let data = training::fingerprint(run, input);
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
