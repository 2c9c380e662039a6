//! The training of one encoder: what `gensis pretrain` does with and without `--gen-dino`.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Result;
use evaluation::embeddings::EmbeddingTable;
use evaluation::knn::{KnnConfig, classify};
use evaluation::metric::Metric;
use serde_json::{Value, json};
use slide_io::PatchSource;

use super::progress::Steps;
use super::training::{self, AHEAD, Unreadable};
use super::{Run, embed};
use crate::config::Pretrain;
use crate::data::{Batches, CropLoader, MultiCrop, Synthetics};
use crate::device;
use crate::model::{Encoder, require_precision};
use crate::run_dir::{Failure, StageRecord};
use crate::train::dino::Settings;
use crate::train::pretrain::{ENCODER, Observer, pretrain as train};
use crate::train::{CHECKPOINT, METRICS, StepReport};

/// Patches of the k-NN watch, at most.
const WATCHED: usize = 1000;

/// The training of one encoder.
pub(super) struct Training<'a> {
    pub run: &'a Run,
    /// The stage, in messages and failures.
    pub stage: &'static str,
    /// Under which name it is recorded, and below which folder of the run its files lie.
    pub record: String,
    /// The encoder's name in tables and paths.
    pub encoder: String,
    /// Everything the encoder depends on.
    pub header: Value,
    pub settings: Settings,
}

impl Training<'_> {
    /// The encoder's file and hash, if it was trained with this header.
    pub fn finished(&self) -> Option<(PathBuf, String)> {
        let path = self.folder().join(ENCODER);
        let record = self.run.dir.current(&self.record, &self.header).filter(|_| path.exists())?;
        Some((path, record.summary["encoder"].as_str()?.to_owned()))
    }

    fn folder(&self) -> PathBuf {
        self.run.dir.root().join(&self.record)
    }

    /// # Errors
    /// Nothing to continue where only that is asked for.
    pub fn check_begun(&self, must_resume: bool) -> Result<()> {
        training::check_resume(must_resume, &self.folder(), CHECKPOINT)
    }

    /// Trains on `source`, or continues where the run was stopped; returns what failed, `unusable` included.
    pub fn train(
        &self,
        source: Arc<dyn PatchSource>,
        synthetics: Option<Synthetics>,
        unusable: Vec<Failure>,
    ) -> Result<Vec<Failure>> {
        let Self { run, stage, record, encoder: name, header, settings } = self;
        let folder = self.folder();
        let Pretrain { batch, patches_per_epoch, epochs, .. } = settings.pretrain;
        let batches = Batches {
            size: batch,
            per_epoch: patches_per_epoch,
            seed: settings.seed,
            threads: run.threads,
            ahead: AHEAD,
        };
        let crops = MultiCrop::new(settings.crops.clone())?.with(synthetics);
        let loader = CropLoader::treated(source.clone(), crops, batches)?;
        let device = device::open(run.device)?;
        require_precision("pretrain", settings.pretrain.precision, &device)?;
        settings.pretrain.check_temperatures()?;
        // Once nothing is left that may refuse it.
        let resume = training::begin(run, record, header, &[CHECKPOINT, ENCODER])?;
        run.dir.forget(record)?;
        let mut watcher = Watcher {
            run,
            stage,
            encoder: name,
            source: source.clone(),
            loader: &loader,
            unreadable: Unreadable::open(stage, &folder, resume),
            progress: Steps::new(stage, loader.steps_per_epoch() * epochs, batch, "patches"),
        };
        let encoder = train(settings, &loader, &folder, resume, &device, &mut watcher)?;

        let last = training::last_metrics(&folder.join(METRICS));
        let loss = last["loss"].as_f64().map_or(String::new(), |loss| format!(", loss {loss:.4}"));
        let Watcher { progress: Steps { bar, shown, .. }, unreadable, .. } = watcher;
        let per_epoch = loader.steps_per_epoch() * batch;
        let seconds = bar.finish(&format!("{name}, {epochs} epochs of {per_epoch} patches{loss}"));
        let event = if settings.gen_dino.is_some() { "gen_dino trained" } else { "pretrained" };
        let device = run.device.to_string();
        run.dir.log(event, json!({ "encoder": name, "seconds": seconds, "patches_shown": shown, "device": device }))?;
        let failures: Vec<Failure> = unusable.into_iter().chain(unreadable.failures).collect();
        let summary =
            json!({ "encoder": encoder.hash, "patches": source.len(), "per_epoch": patches_per_epoch, "last": last });
        run.dir.finish(record, &StageRecord { header: header.clone(), failures: failures.clone(), summary })?;
        Ok(failures)
    }
}

/// Shows progress, and scores the teacher on labelled training patches.
struct Watcher<'a> {
    run: &'a Run,
    stage: &'static str,
    /// The encoder's name.
    encoder: &'a str,
    source: Arc<dyn PatchSource>,
    loader: &'a CropLoader,
    unreadable: Unreadable,
    progress: Steps,
}

impl Observer for Watcher<'_> {
    fn step(&mut self, report: &StepReport) {
        self.progress.done(report.step, format!("loss {:.3}", report.loss));
        if let Err(error) = self.unreadable.take(&self.loader.failures()) {
            // Kept in memory all the same; a full disk will stop the next checkpoint with its own message.
            self.progress.bar.line(&format!("{}: warning: {error:#}", self.stage));
        }
    }

    fn warning(&mut self, message: &str) {
        self.progress.bar.line(&format!("{}: warning: {message}", self.stage));
        // The log is a courtesy here; a full disk will stop the next checkpoint with its own message.
        let _ =
            self.run.dir.log("warning", json!({ "stage": self.stage, "encoder": self.encoder, "message": message }));
    }

    fn evaluate(&mut self, epoch: usize, encoder: &Encoder) -> Result<Option<f64>> {
        let Some((bank, queries)) = watch_split(&*self.source) else { return Ok(None) };
        let device = device::open(self.run.device)?;
        let (bank, queries) = (self.table(encoder, bank)?, self.table(encoder, queries)?);
        let config = KnnConfig { k: vec![20], temperature: self.run.experiment.evaluate.knn.temperature };
        let result = classify(&bank, &queries, &config, &device)?;
        let accuracy = result[0].predictions.value(Metric::Accuracy);
        if let Some(accuracy) = accuracy {
            self.progress.bar.line(&format!(
                "{}: {}, epoch {}: k-NN on held-out training patches {:.1} %",
                self.stage,
                self.encoder,
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
            embed::features(encoder, 1, self.source.clone(), indices, &self.run.experiment.embed, threads, |_| ())?;
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
