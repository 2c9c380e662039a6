//! `gensis diffusion`: the latent diffusion model, conditioned on the encoder's own embeddings.

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use evaluation::fid::{Features, Gaussian, frechet_distance};
use serde_json::{Value, json};

use super::autoencoder::require_first_stage;
use super::pretrain::require_encoder;
use super::progress::Steps;
use super::sources::{self, Input};
use super::{Run, latents, training};
use crate::config::{Diffusion, Sample};
use crate::data::latents::{Encoded, LatentFile};
use crate::device;
use crate::model::diffusion::{DiffusionConfig, DiffusionModel};
use crate::model::{Encoder, FirstStage, require_precision};
use crate::run_dir::StageRecord;
use crate::sample::encode::Eyes;
use crate::sample::painter::{Painter, Wish};
use crate::sample::sheet::{sheet, write_png};
use crate::train::diffusion::{LatentLoader, MODEL, Observer, Settings, StepReport, train};
use crate::train::{CHECKPOINT, METRICS};

/// The stage, its folder and its record.
const STAGE: &str = "diffusion";
/// Images of a sheet of samples, and samples of each.
const SHEET: [usize; 2] = [8, 3];
/// Training images that samples are held against, at most.
const REAL: usize = 50_000;

/// Trains the diffusion model, or continues where the run was stopped; with `must_resume`, only that.
pub(super) fn diffusion(run: &Run, must_resume: bool) -> Result<()> {
    let input = Input::open(&run.experiment.data)?;
    let (encoder_path, encoder_hash) = require_encoder(run, &input)?;
    let (stage_path, stage_hash) = require_first_stage(run, &input)?;
    let header = header(run, &input, &encoder_hash, &stage_hash)?;
    let folder = run.dir.root().join(STAGE);
    if run.dir.current(STAGE, &header).is_some() && folder.join(MODEL).exists() {
        eprintln!("diffusion: up to date");
        return Ok(());
    }
    training::check_resume(must_resume, &folder, CHECKPOINT)?;
    let device = device::open(run.device)?;
    let stage = FirstStage::load(&stage_path, &device)?;
    let encoder = Encoder::load(&encoder_path, &device)?;
    training::same_weights(&stage_path, &stage.hash, &stage_hash)?;
    training::same_weights(&encoder_path, &encoder.hash, &encoder_hash)?;
    let experiment = &run.experiment;
    let side = experiment.autoencoder.image_size;
    // Before anything is set aside for it.
    experiment.diffusion.unet.check_latents(side / stage.factor())?;
    require_precision(STAGE, experiment.diffusion.precision, &device)?;
    let (source, unusable) = training::patches(run, STAGE, input)?;
    let Diffusion { epochs, batch, .. } = experiment.diffusion;
    ensure!(source.len() >= batch, "{} images do not fill a batch of diffusion.batch = {batch}", source.len());
    latents::check_sizes(run, &*source)?;
    let resume = training::begin(run, STAGE, &header, &[CHECKPOINT, MODEL])?;
    run.dir.forget(STAGE)?;

    let eyes =
        Eyes::new(stage.clone(), encoder.clone(), side as u32, &experiment.embed, &experiment.diffusion, &device);
    let latent = [stage.latent_channels(), side / stage.factor()];
    let (file, failures) =
        latents::make(run, &source, eyes.clone(), &latents::header(run, &header, &stage, encoder.dim()))?;
    let without = latents::without(&file, source.len())?;
    let examples = latents::some(&file, SHEET[0]).map(|record| file.read(record, 0)).collect::<Result<_>>()?;
    let judge = Judge::new(&file, eyes, experiment.diffusion.judged)?;

    let settings = Settings {
        seed: experiment.seed,
        diffusion: experiment.diffusion.clone(),
        config: DiffusionConfig {
            unet: experiment.diffusion.unet.clone(),
            noise: experiment.diffusion.noise.clone(),
            condition: experiment.diffusion.condition,
            statistics: latents::statistics(&file, experiment.diffusion.condition)?,
            latent,
            embedding: encoder.dim(),
            encoder: encoder_hash,
            autoencoder: stage_hash,
            origin: Value::Null,
        },
    };
    let loader = LatentLoader::new(file, &settings)?;
    let progress = Steps::new(STAGE, epochs * loader.steps_per_epoch(), batch, "images");
    let image_side = latent[1] * stage.factor();
    let mut watcher = Watcher { run, stage, examples, judge, folder: folder.clone(), progress };
    let model = train(&settings, &loader, &folder, resume, &device, &mut watcher)?;

    let last = training::last_metrics(&folder.join(METRICS));
    let loss = last["loss"].as_f64().map_or(String::new(), |loss| format!(", loss {loss:.4}"));
    let Steps { bar, shown, .. } = watcher.progress;
    let seconds = bar.finish(&format!("{epochs} epochs of {} images{loss}", source.len()));
    let fields = json!({ "seconds": seconds, "images_shown": shown, "device": run.device.to_string() });
    run.dir.log("diffusion trained", fields)?;
    let failures = unusable.into_iter().chain(failures).collect();
    let summary = json!({ "model": model.hash, "images": source.len(), "without": without, "image_side": image_side, "last": last });
    run.dir.finish(STAGE, &StageRecord { header, failures, summary })
}

/// Everything the model depends on.
pub(super) fn header(run: &Run, input: &Input, encoder: &str, autoencoder: &str) -> Result<Value> {
    let mut settings = run.experiment.diffusion.recorded()?;
    if let Some(settings) = settings.as_object_mut() {
        // How often to look does not change what is learnt.
        settings.remove("checkpoint_every");
        settings.remove("sample_every");
        settings.remove("judged");
    }
    let header = json!({
        "stage": STAGE,
        "format": sources::FORMAT,
        "seed": run.experiment.seed,
        "settings": settings,
        // Of AdamW: every parameter, where an earlier version left vectors out.
        "decay": "all",
        "image_size": run.experiment.autoencoder.image_size,
        "embed": sources::embed_header(&run.experiment.embed),
        "encoder": encoder,
        "autoencoder": autoencoder,
        "data": training::fingerprint(run, input),
    });
    Ok(sources::with_stain(run, header))
}

/// The model's file and hash, if it was trained with these settings on these patches.
pub(super) fn require_model(run: &Run, input: &Input) -> Result<(PathBuf, String)> {
    let (_, encoder) = require_encoder(run, input)?;
    let (_, autoencoder) = require_first_stage(run, input)?;
    let path = run.dir.root().join(STAGE).join(MODEL);
    let header = header(run, input, &encoder, &autoencoder)?;
    let record = run.dir.current(STAGE, &header).filter(|_| path.exists());
    let hash = record.as_ref().and_then(|record| record.summary["model"].as_str()).map(str::to_owned);
    Ok((path, hash.with_context(|| training::missing(run, "diffusion model", STAGE, &header))?))
}

/// Shows progress, and draws sheets of samples.
struct Watcher<'a> {
    run: &'a Run,
    stage: FirstStage,
    examples: Vec<Encoded>,
    judge: Option<Judge>,
    folder: PathBuf,
    progress: Steps,
}

impl Observer for Watcher<'_> {
    fn step(&mut self, report: &StepReport) {
        self.progress.done(report.step, format!("loss {:.3}", report.loss));
    }

    /// Images as the autoencoder has them, and below each samples of its embedding.
    fn sheet(&mut self, step: usize, model: &DiffusionModel) -> Result<Option<f64>> {
        let settings: &Sample = &self.run.experiment.sample;
        let device = device::open(self.run.device)?;
        let painter = Painter::new(model.clone(), self.stage.clone(), settings, &device)?;
        let mut rows = vec![painter.decoded(self.examples.iter().map(|example| example.latent.clone()).collect())?];
        for sample in 0..SHEET[1] as u64 {
            let wish = |example: &Encoded| Wish {
                condition: painter.condition(&example.embedding),
                seed: self.run.experiment.seed ^ (sample << 32),
            };
            rows.push(painter.images(&self.examples.iter().map(wish).collect::<Vec<_>>())?);
        }
        let path = self.folder.join("samples").join(format!("step-{step:07}.png"));
        write_png(&path, &sheet(&rows, 64))?;
        let Some(judge) = &self.judge else { return Ok(None) };
        // As it was trained: guidance, which goes further than that, would hide whether it still learns.
        let unguided = Sample { guidance: 1.0, ..settings.clone() };
        let painter = Painter::new(model.clone(), self.stage.clone(), &unguided, &device)?;
        let distance = judge.distance(&painter, self.run.experiment.seed)?;
        let told = format!("Fréchet distance of samples {distance:.4} (of as many real images {:.4})", judge.floor);
        self.progress.bar.line(&format!("{STAGE}: step {step}: {told}"));
        Ok(Some(distance))
    }
}

/// Embeddings of training images, and samples of them held against all of these.
struct Judge {
    eyes: Eyes,
    wanted: Vec<Vec<f32>>,
    real: Gaussian,
    /// Distance of the real images that are drawn: what a perfect model comes to.
    floor: f64,
    dim: usize,
}

impl Judge {
    /// One that draws `samples`; none of fewer than two.
    fn new(file: &LatentFile, eyes: Eyes, samples: usize) -> Result<Option<Self>> {
        if samples < 2 || file.len() < 2 {
            return Ok(None);
        }
        let embeddings = |count| -> Result<Vec<Vec<f32>>> {
            latents::some(file, count).map(|record| file.embedding(record)).collect()
        };
        let dim = file.header().embedding;
        let real = Gaussian::of(Features::new(&embeddings(REAL)?.concat(), dim)?)?;
        let wanted = embeddings(samples)?;
        let floor = frechet_distance(&real, &Gaussian::of(Features::new(&wanted.concat(), dim)?)?)?;
        Ok(Some(Self { eyes, wanted, real, floor, dim }))
    }

    /// Fréchet distance of samples, each of another image's embedding, in the features of the encoder that conditions.
    fn distance(&self, painter: &Painter, seed: u64) -> Result<f64> {
        let wish = |(number, embedding): (usize, &Vec<f32>)| Wish {
            condition: painter.condition(embedding),
            seed: seed ^ ((number as u64) << 32),
        };
        let images = painter.images(&self.wanted.iter().enumerate().map(wish).collect::<Vec<_>>())?;
        let drawn = self.eyes.look(&images)?;
        Ok(frechet_distance(&self.real, &Gaussian::of(Features::new(&drawn, self.dim)?)?)?)
    }
}
