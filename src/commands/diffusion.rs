//! `gensis diffusion`: the latent diffusion model, conditioned on the encoder's own embeddings.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result};
use image::RgbImage;
use serde_json::{Value, json};
use slide_io::PatchSource;

use super::autoencoder::require_first_stage;
use super::pretrain::require_encoder;
use super::progress::Progress;
use super::sources::{self, Input};
use super::training::{self, AHEAD};
use super::{Run, unreadable};
use crate::config::{Condition, Sample};
use crate::data::ReadFailure;
use crate::data::latents::{Encoded, LatentFile, LatentHeader, LatentWriter};
use crate::data::loader::read;
use crate::data::prefetch::{Prefetch, Work, thread_pool};
use crate::device;
use crate::model::diffusion::{DiffusionConfig, DiffusionModel};
use crate::model::{Encoder, FirstStage};
use crate::run_dir::{Failure, StageRecord};
use crate::sample::encode::{Eyes, View};
use crate::sample::painter::{Painter, Wish};
use crate::sample::sheet::sheet;
use crate::train::diffusion::{
    CHECKPOINT, LatentLoader, METRICS, MODEL, Observer, Progress as StepProgress, Settings, check_latents, train,
};

/// The stage, its folder and its record.
const STAGE: &str = "diffusion";
/// Latents and embeddings of the training images, in the folder of the training.
const LATENTS: &str = "latents.bin";
/// Images encoded at a time.
const ENCODED: usize = 32;
/// Images of a sheet of samples, and samples of each.
const SHEET: [usize; 2] = [8, 3];

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
    let experiment = &run.experiment;
    let side = experiment.autoencoder.image_size;
    // Before anything is set aside for it.
    check_latents(side / stage.factor(), &experiment.diffusion.unet)?;
    let (source, unusable) = training::patches(run, STAGE, input)?;
    run.dir.forget(STAGE)?;
    let resume = training::begin(run, STAGE, &header, &[CHECKPOINT, MODEL])?;

    let eyes =
        Eyes::new(stage.clone(), encoder.clone(), side as u32, &experiment.embed, &experiment.diffusion, &device);
    let latent = [stage.latent_channels(), side / stage.factor()];
    let latent_header = LatentHeader {
        shape: [latent[0], latent[1], latent[1]],
        embedding: encoder.dim(),
        flips: eyes.flips(),
        origin: latent_origin(&header),
    };
    let path = folder.join(LATENTS);
    let (file, failures) = latents(run, &source, eyes, &path, &latent_header)?;

    let settings = Settings {
        seed: experiment.seed,
        diffusion: experiment.diffusion.clone(),
        config: DiffusionConfig {
            unet: experiment.diffusion.unet.clone(),
            noise: experiment.diffusion.noise.clone(),
            condition: experiment.diffusion.condition,
            statistics: statistics(&file, experiment.diffusion.condition)?,
            latent,
            embedding: encoder.dim(),
            encoder: encoder_hash,
            autoencoder: stage_hash,
            origin: Value::Null,
        },
    };
    let loader = LatentLoader::new(file, &settings)?;
    let batch = settings.diffusion.batch as u64;
    let total = (settings.diffusion.epochs * loader.steps_per_epoch()) as u64 * batch;
    let progress = Progress::new(STAGE, total, "images");
    let examples = examples(&path, &latent_header)?;
    let mut watcher = Watcher { run, stage, examples, folder: folder.clone(), progress, batch, shown: 0 };
    let model = train(&settings, &loader, &folder, resume, &device, &mut watcher)?;

    let last = training::last_metrics(&folder.join(METRICS));
    let loss = last["loss"].as_f64().map_or(String::new(), |loss| format!(", loss {loss:.4}"));
    let epochs = settings.diffusion.epochs;
    let seconds = watcher.progress.finish(&format!("{epochs} epochs of {} images{loss}", source.len()));
    let fields = json!({ "seconds": seconds, "images_shown": watcher.shown, "device": run.device.to_string() });
    run.dir.log("diffusion trained", fields)?;
    let failures = unusable.into_iter().chain(failures).collect();
    let summary = json!({ "model": model.hash, "images": source.len(), "last": last });
    run.dir.finish(STAGE, &StageRecord { header, failures, summary })
}

/// Everything the model depends on.
fn header(run: &Run, input: &Input, encoder: &str, autoencoder: &str) -> Result<Value> {
    let mut settings = serde_json::to_value(&run.experiment.diffusion)?;
    if let Some(settings) = settings.as_object_mut() {
        // How often to look does not change what is learnt.
        settings.remove("checkpoint_every");
        settings.remove("sample_every");
    }
    let header = json!({
        "stage": STAGE,
        "format": sources::FORMAT,
        "seed": run.experiment.seed,
        "settings": settings,
        "image_size": run.experiment.autoencoder.image_size,
        "embed": { "resize": run.experiment.embed.resize, "crop": run.experiment.embed.crop },
        "encoder": encoder,
        "autoencoder": autoencoder,
        "data": training::fingerprint(run, input),
    });
    Ok(sources::with_stain(run, header))
}

/// What the latents depend on: not how the model is trained on them.
fn latent_origin(header: &Value) -> Value {
    let mut origin = header.clone();
    if let Some(origin) = origin.as_object_mut() {
        origin.remove("settings");
        origin.remove("seed");
    }
    origin
}

/// The model's file and hash, if it was trained with these settings on these patches.
pub(super) fn require_model(run: &Run, input: &Input) -> Result<(PathBuf, String)> {
    let (_, encoder) = require_encoder(run, input)?;
    let (_, autoencoder) = require_first_stage(run, input)?;
    let path = run.dir.root().join(STAGE).join(MODEL);
    let record = run.dir.current(STAGE, &header(run, input, &encoder, &autoencoder)?).filter(|_| path.exists());
    let hash = record.as_ref().and_then(|record| record.summary["model"].as_str()).map(str::to_owned);
    let missing =
        "there is no diffusion model trained with these settings on these patches: run `gensis diffusion` first";
    Ok((path, hash.context(missing)?))
}

/// The file of latents and embeddings the model was trained on.
pub(super) fn stored_latents(run: &Run, input: &Input, stage: &FirstStage, encoder: &Encoder) -> Result<LatentFile> {
    let header = header(run, input, &encoder.hash, &stage.hash)?;
    let side = run.experiment.autoencoder.image_size / stage.factor();
    let diffusion = &run.experiment.diffusion;
    let header = LatentHeader {
        shape: [stage.latent_channels(), side, side],
        embedding: encoder.dim(),
        flips: (1 + usize::from(diffusion.hflip)) * (1 + usize::from(diffusion.vflip)),
        origin: latent_origin(&header),
    };
    let path = run.dir.root().join(STAGE).join(LATENTS);
    LatentFile::open(&path, &header)?
        .with_context(|| format!("{} is missing or of other settings: run `gensis diffusion` again", path.display()))
}

/// The latents of the training images: those on disk, or made now.
fn latents(
    run: &Run,
    source: &Arc<dyn PatchSource>,
    eyes: Eyes,
    path: &Path,
    header: &LatentHeader,
) -> Result<(LatentFile, Vec<Failure>)> {
    let failed = path.with_extension("failures.json");
    if let Some(file) = LatentFile::open(path, header)? {
        let failures = std::fs::read(&failed).ok().and_then(|text| serde_json::from_slice(&text).ok());
        return Ok((file, failures.unwrap_or_default()));
    }
    let mut writer = LatentWriter::open(path, header)?;
    let done = writer.begun().last().map_or(0, |last| last + 1);
    let progress = Progress::new("latents", source.len() as u64, "images");
    progress.start_at(done as u64);
    let pool = thread_pool(run.threads)?;
    let eyes = Arc::new(eyes);
    let work = Reading { source: source.clone(), eyes: eyes.clone() };
    let mut failures: Vec<Failure> = Vec::new();
    for batch in Prefetch::start(pool, work, done..source.len(), ENCODED, AHEAD) {
        let (numbers, read) = batch.map_err(anyhow::Error::msg)?;
        let (mut images, mut views) = (Vec::new(), Vec::new());
        for (number, read) in numbers.clone().zip(read) {
            match read {
                Ok(read) => {
                    images.push(number);
                    views.extend(read);
                }
                Err(failure) => failures.push(unreadable(STAGE, &failure)),
            }
        }
        let encoded = eyes.encode(&views)?;
        for (image, flips) in images.iter().zip(encoded.chunks(eyes.flips())) {
            writer.add(*image, flips)?;
        }
        progress.advance(numbers.len() as u64);
    }
    // Before the file that vouches for it.
    slide_io::atomic_file::write(&failed, &serde_json::to_vec_pretty(&failures)?)?;
    writer.finish()?;
    progress.finish(&format!("{} images, {} failure(s)", source.len(), failures.len()));
    let file = LatentFile::open(path, header)?.context("the latents just written")?;
    Ok((file, failures))
}

/// Reads images and makes their views, on threads ahead of the networks.
struct Reading {
    source: Arc<dyn PatchSource>,
    eyes: Arc<Eyes>,
}

impl Work for Reading {
    type Item = Result<Vec<View>, ReadFailure>;
    type Batch = (Range<usize>, Vec<Self::Item>);

    fn item(&self, number: usize) -> Self::Item {
        let image = read(&*self.source, number)?;
        let failure = |error| ReadFailure { index: number, key: self.source.key(number), reason: format!("{error:#}") };
        self.eyes.views(&image).map_err(failure)
    }

    fn batch(&self, numbers: Range<usize>, items: Vec<Self::Item>) -> Self::Batch {
        (numbers, items)
    }
}

/// Mean and deviation of every channel of the embeddings, where they condition.
fn statistics(file: &LatentFile, condition: Condition) -> Result<[Vec<f32>; 2]> {
    if condition == Condition::Sphere {
        return Ok([vec![], vec![]]);
    }
    let width = file.header().embedding;
    let (mut sums, mut squares) = (vec![0.0f64; width], vec![0.0f64; width]);
    for record in 0..file.len() {
        for (i, value) in file.read(record, 0)?.embedding.into_iter().enumerate() {
            sums[i] += f64::from(value);
            squares[i] += f64::from(value).powi(2);
        }
    }
    let count = file.len().max(1) as f64;
    let means: Vec<f64> = sums.iter().map(|sum| sum / count).collect();
    let deviation = |(square, mean): (&f64, &f64)| (square / count - mean * mean).max(0.0).sqrt() as f32;
    let deviations = squares.iter().zip(&means).map(deviation).collect();
    Ok([means.iter().map(|&mean| mean as f32).collect(), deviations])
}

/// What the sheets show: some images' latents, as the autoencoder decodes them, and embeddings.
fn examples(path: &Path, header: &LatentHeader) -> Result<Vec<Encoded>> {
    let file = LatentFile::open(path, header)?.context("the latents are there")?;
    let count = SHEET[0].min(file.len());
    (0..count).map(|i| file.read(i * file.len() / count, 0)).collect()
}

/// Shows progress, and draws sheets of samples.
struct Watcher<'a> {
    run: &'a Run,
    stage: FirstStage,
    examples: Vec<Encoded>,
    folder: PathBuf,
    progress: Progress,
    batch: u64,
    /// Images trained on by this process.
    shown: u64,
}

impl Observer for Watcher<'_> {
    fn step(&mut self, progress: &StepProgress) {
        if self.shown == 0 {
            self.progress.start_at((progress.done as u64 - 1) * self.batch);
        }
        self.shown += self.batch;
        self.progress.advance(self.batch);
        self.progress.message(format!("loss {:.3}", progress.report.loss));
    }

    /// Images as the autoencoder has them, and below each samples of its embedding.
    fn sheet(&mut self, step: usize, model: &DiffusionModel) -> Result<()> {
        let settings: &Sample = &self.run.experiment.sample;
        let device = device::open(self.run.device)?;
        let painter = Painter::new(model.clone(), self.stage.clone(), settings, &device)?;
        let mut rows = vec![painter.decoded(self.examples.iter().map(|example| example.latent.clone()).collect())?];
        for sample in 0..SHEET[1] as u64 {
            let wish = |example: &Encoded| Wish {
                embedding: Some(example.embedding.clone()),
                seed: self.run.experiment.seed ^ (sample << 32),
            };
            rows.push(painter.images(&self.examples.iter().map(wish).collect::<Vec<_>>())?);
        }
        let path = self.folder.join("samples").join(format!("step-{step:07}.png"));
        write_png(&path, &sheet(&rows, 64))
    }
}

/// Writes a picture, atomically.
pub(super) fn write_png(path: &Path, image: &RgbImage) -> Result<()> {
    let mut bytes = std::io::Cursor::new(Vec::new());
    image.write_to(&mut bytes, image::ImageFormat::Png)?;
    Ok(slide_io::atomic_file::write(path, bytes.get_ref())?)
}
