//! `gensis autoencoder`: the first stage of latent diffusion, trained on the patches of the training slides or images, or
//! taken from a file.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use burn::tensor::Device;
use serde_json::{Value, json};
use slide_io::PatchSource;
use slide_io::patch::Subset;

use super::pretrain::require_encoder;
use super::progress::Steps;
use super::sources::{self, Input};
use super::training::{self, AHEAD, Unreadable};
use super::{Run, digest};
use crate::config::{Autoencoder, PerceptualKind};
use crate::data::loader::read;
use crate::data::loader::squares::to_images;
use crate::data::{Batches, SquareBatch, SquareLoader, Squares};
use crate::device;
use crate::model::perceptual::{Lpips, Perceptual};
use crate::model::{Encoder, FirstStage, lies_in_host_memory};
use crate::run_dir::{Failure, StageRecord};
use crate::sample::sheet::{sheet, write_png};
use crate::train::autoencoder::{
    FIRST_STAGE, Observer, Quality, Settings, StepReport, Training, reconstructions, scaled, train,
};
use crate::train::replicas::Replicas;
use crate::train::{CHECKPOINT, METRICS};

/// The stage, and its folder.
const STAGE: &str = "autoencoder";
/// Originals over reconstructions.
const PICTURE: &str = "reconstructions.png";
/// Patches that are never trained on, at most; fewer of few.
const HELD_OUT: usize = 16;
/// Of them in the picture, and their smallest side there, px.
const SHOWN: usize = 8;
const SIDE: u32 = 64;

/// Trains the first stage, or continues where the run was stopped; with `must_resume`, only that. One that is given as
/// `autoencoder.weights` is used as it is.
pub(super) fn autoencoder(run: &Run, must_resume: bool) -> Result<()> {
    let input = Input::open(&run.experiment.data)?;
    let device = device::open(run.device)?;
    let Asked { settings, header } = Asked::of(run, &input)?;
    let folder = run.dir.root().join(STAGE);
    if run.dir.current(STAGE, &header).is_some() && folder.join(FIRST_STAGE).exists() {
        eprintln!("{STAGE}: up to date");
        return Ok(());
    }
    training::check_resume(must_resume, &folder, CHECKPOINT)?;
    let given = given(&run.experiment.autoencoder, &device)?;
    let perceptual =
        if given.is_some() { Perceptual::None } else { perceptual(run, &settings.autoencoder, &input, &device)? };
    let (source, unusable) = training::patches(run, STAGE, input)?;
    // Before anything is set aside for it.
    let (source, held_out, unreadable) = held_out(source, settings.autoencoder.image_size)?;
    let loader = loader(run, &settings.autoencoder, source.clone())?;
    let resume = training::begin(run, STAGE, &header, &[CHECKPOINT, FIRST_STAGE])?;
    run.dir.forget(STAGE)?;
    let mut watcher = Watcher::new(run, &settings, &loader, resume);
    let given_hash = given.as_ref().map(|stage| stage.hash.clone());
    let stage = match given {
        Some(stage) => taken(stage, &loader, &folder, &device)?,
        None => {
            let training =
                Training { settings: &settings, perceptual, source: &loader, held_out: &held_out, folder: &folder };
            train(training, resume, &device, &mut watcher)?
        }
    };
    let quality = picture(&stage, &settings.autoencoder, &held_out, &folder.join(PICTURE), &device)?;
    watcher.unreadable.take(&loader.failures())?;
    let watched = watcher.finish(&quality, &settings)?;
    let failures = unusable.into_iter().chain(unreadable).chain(watched).collect();
    let section = &settings.autoencoder;
    let lpips_hash = settings.perceptual.as_ref().filter(|_| section.perceptual == PerceptualKind::Lpips);
    let summary = json!({
        "first_stage": stage.hash,
        "scale": stage.config.scale,
        "patches": source.len(),
        "perceptual": settings.perceptual.as_ref().map(|hash| json!({ "kind": section.perceptual, "hash": hash })),
        "files": {
            "weights": given_hash.as_ref().map(|hash| known(run, &section.weights, hash)),
            "lpips_weights": lpips_hash.map(|hash| known(run, &section.lpips_weights, hash)),
        },
        "psnr": quality.psnr,
        "codebook_usage": quality.codebook_usage,
        "last": training::last_metrics(&folder.join(METRICS)),
    });
    run.dir.finish(STAGE, &StageRecord { header, failures, summary })
}

/// What the experiment asks for; weights are known by their hashes.
struct Asked {
    settings: Settings,
    header: Value,
}

impl Asked {
    fn of(run: &Run, input: &Input) -> Result<Self> {
        let section = run.experiment.autoencoder.resolve()?;
        let device = || device::open(run.device);
        let given = match section.weights.as_os_str().is_empty() {
            true => None,
            false => Some(content(run, "weights", &section.weights, || {
                Ok(given(&run.experiment.autoencoder, &device()?)?.map_or(String::new(), |stage| stage.hash))
            })?),
        };
        let perceptual = match section.perceptual {
            _ if given.is_some() => None,
            PerceptualKind::None => None,
            PerceptualKind::Encoder => Some(vanilla(run, input)?.1),
            PerceptualKind::Lpips => Some(content(run, "lpips_weights", &section.lpips_weights, || {
                Ok(Lpips::load(&section.lpips_weights, &device()?)?.hash)
            })?),
        };
        let settings = Settings { seed: run.experiment.seed, autoencoder: section, perceptual };
        let header = header(run, &settings, given.as_deref(), input)?;
        Ok(Self { settings, header })
    }
}

/// The hash of the weights in a file as it was when the stage was done, if the file is still the same or not there any more: what
/// was made of it needs it no longer. Otherwise `load` reads it.
fn content(run: &Run, key: &str, file: &Path, load: impl FnOnce() -> Result<String>) -> Result<String> {
    let known = run.dir.record(STAGE).map(|record| record.summary["files"][key].clone()).unwrap_or_default();
    let digest = digest::of_whole_file(run, file);
    let gone = digest.is_none() && known["path"] == json!(file);
    match known["hash"].as_str() {
        Some(hash) if gone || (digest.is_some() && known["file"] == json!(digest)) => Ok(hash.to_owned()),
        _ => load(),
    }
}

/// A file of weights with this content as [`content`] knows it.
fn known(run: &Run, file: &Path, hash: &str) -> Value {
    json!({ "path": file, "file": digest::of_whole_file(run, file), "hash": hash })
}

/// The first stage that the experiment gives.
fn given(section: &Autoencoder, device: &Device) -> Result<Option<FirstStage>> {
    if section.weights.as_os_str().is_empty() {
        return Ok(None);
    }
    let stage = FirstStage::import(&section.weights, section.groups, device)?;
    let (file, holds) = (section.weights.display(), &stage.config.network);
    let refuse = |key: &str, asked: Value, held: Value| -> Result<()> {
        ensure!(asked == held, "autoencoder.{key} is {asked}, but {file} holds {held}: leave it out, or give that");
        Ok(())
    };
    refuse("kind", json!(section.kind), json!(holds.kind))?;
    // What is left open is the file's to say; so is the width, which has no value that leaves it open.
    if section.latent_channels > 0 {
        refuse("latent_channels", json!(section.latent_channels), json!(holds.latent_channels))?;
    }
    if section.codebook > 0 {
        refuse("codebook", json!(section.codebook), json!(holds.codebook))?;
    }
    if !section.ch_mult.is_empty() {
        refuse("ch_mult", json!(section.ch_mult), json!(holds.ch_mult))?;
    }
    Ok(Some(stage))
}

/// The first stage's file and hash, if it was trained with these settings on these patches.
pub(super) fn require_first_stage(run: &Run, input: &Input) -> Result<(PathBuf, String)> {
    let Asked { header, .. } = Asked::of(run, input)?;
    let path = run.dir.root().join(STAGE).join(FIRST_STAGE);
    let record = run.dir.current(STAGE, &header).filter(|_| path.exists());
    let hash = record.as_ref().and_then(|record| record.summary["first_stage"].as_str()).map(str::to_owned);
    Ok((path, hash.with_context(|| training::missing(run, "autoencoder", STAGE, &header))?))
}

/// What looks at reconstructions beside the pixels.
fn perceptual(run: &Run, section: &Autoencoder, input: &Input, device: &Device) -> Result<Perceptual> {
    Ok(match section.perceptual {
        PerceptualKind::None => Perceptual::None,
        PerceptualKind::Lpips => Perceptual::Lpips(Box::new(Lpips::load(&section.lpips_weights, device)?)),
        PerceptualKind::Encoder => Perceptual::Encoder(Box::new(Encoder::load(&vanilla(run, input)?.0, device)?)),
    })
}

/// File and hash of the encoder that reconstructions are looked at through.
fn vanilla(run: &Run, input: &Input) -> Result<(PathBuf, String)> {
    require_encoder(run, input)
        .context("autoencoder.perceptual = \"encoder\" looks through the pretrained encoder; \"none\" does without")
}

/// Everything the first stage depends on. Weights are known by their hash, not by where they lie.
fn header(run: &Run, settings: &Settings, given: Option<&str>, input: &Input) -> Result<Value> {
    let mut settings = settings.recorded()?;
    if let Some(section) = settings["autoencoder"].as_object_mut() {
        // How often to look does not change what is learnt.
        for key in ["checkpoint_every", "lpips_weights", "weights"] {
            section.remove(key);
        }
    }
    let header = json!({
        "stage": STAGE,
        "format": sources::FORMAT,
        "settings": settings,
        "weights": given,
        "data": training::fingerprint(run, input),
    });
    Ok(sources::with_stain(run, header))
}

fn loader(run: &Run, section: &Autoencoder, source: Arc<dyn PatchSource>) -> Result<SquareLoader> {
    let batches = Batches {
        size: section.batch,
        per_epoch: section.patches_per_epoch,
        seed: run.experiment.seed,
        threads: run.threads,
        ahead: AHEAD,
    };
    SquareLoader::new(source, Squares::new(section.image_size as u32, section.flips), batches)
}

/// A few patches, evenly over the source, as squares; the source without them; and those that could not be read, in whose
/// place the next one is held out.
fn held_out(source: Arc<dyn PatchSource>, side: usize) -> Result<(Arc<dyn PatchSource>, SquareBatch, Vec<Failure>)> {
    ensure!(
        source.len() > 1,
        "one of the patches is held out, and there is only {}: nothing is left to learn from",
        source.len()
    );
    let count = HELD_OUT.min(source.len() / 10).max(1);
    let squares = Squares::new(side as u32, [0.0; 2]);
    let (mut tried, mut indices, mut images, mut failures) = (HashSet::new(), vec![], vec![], vec![]);
    for part in 0..count {
        // From the middle of each part to its end.
        for index in (2 * part + 1) * source.len() / (2 * count)..(part + 1) * source.len() / count {
            tried.insert(index);
            let read = read(&*source, index).map_err(|failure| failure.reason);
            match read.and_then(|image| squares.of(image).map_err(|error| format!("{error:#}"))) {
                Ok(image) => {
                    indices.push(index);
                    images.push(image);
                    break;
                }
                Err(reason) => {
                    failures.push(Failure { stage: STAGE.into(), item: source.key(index).item, reason });
                }
            }
        }
    }
    let first = failures.first().map_or("there are too few", |failure| &failure.reason);
    ensure!(!images.is_empty(), "no patch can be held out of {}: {first}", source.len());
    let pixels = squares.pixels(&images.iter().collect::<Vec<_>>());
    let rest = (0..source.len()).filter(|index| !tried.contains(index)).collect();
    Ok((Arc::new(Subset::new(source, rest)?), SquareBatch { pixels, side, indices }, failures))
}

/// A given first stage as the run's own; the scale of a foreign one is measured.
fn taken(stage: FirstStage, loader: &SquareLoader, folder: &Path, device: &Device) -> Result<FirstStage> {
    let foreign = stage.config.origin["imported"] == true;
    let stage = if foreign {
        let mut measured = scaled(stage.clone(), loader, device)?;
        // From here on the scale is known, in whichever run the file is used.
        measured.config.origin = json!({ "imported": stage.hash });
        measured
    } else {
        stage
    };
    stage.save(&folder.join(FIRST_STAGE))?;
    Ok(stage)
}

/// Held-out patches over their reconstructions, and how well all of them came back.
fn picture(
    stage: &FirstStage,
    section: &Autoencoder,
    held_out: &SquareBatch,
    path: &Path,
    device: &Device,
) -> Result<Quality> {
    let replicas = Replicas::new(section.replicas, lies_in_host_memory(device))?;
    let (found, quality) = reconstructions(&stage.network, &replicas, held_out, device)?;
    let rows = [&held_out.pixels, &found].map(|pixels| to_images(pixels, held_out.side));
    let shown = rows.map(|row| row.into_iter().take(SHOWN).collect());
    write_png(path, &sheet(&shown, SIDE))?;
    Ok(quality)
}

/// Shows progress, and keeps what could not be read.
struct Watcher<'a> {
    run: &'a Run,
    loader: &'a SquareLoader,
    unreadable: Unreadable,
    progress: Steps,
}

impl<'a> Watcher<'a> {
    fn new(run: &'a Run, settings: &Settings, loader: &'a SquareLoader, resume: bool) -> Self {
        let Autoencoder { epochs, batch, weights, .. } = &settings.autoencoder;
        let steps = if weights.as_os_str().is_empty() { epochs * loader.steps_per_epoch() } else { 0 };
        Self {
            run,
            loader,
            unreadable: Unreadable::open(STAGE, &run.dir.root().join(STAGE), resume),
            progress: Steps::new(STAGE, steps, *batch, "patches"),
        }
    }

    /// Says how it went, and returns what could not be read.
    fn finish(self, quality: &Quality, settings: &Settings) -> Result<Vec<Failure>> {
        let looked = match (&settings.perceptual, settings.autoencoder.perceptual) {
            (Some(hash), PerceptualKind::Lpips) => format!("; compared by LPIPS {}", &hash[..12]),
            (Some(hash), _) => format!("; compared through encoder {}", &hash[..12]),
            (None, _) => String::new(),
        };
        let Steps { bar, shown, .. } = self.progress;
        let seconds = bar.finish(&format!("{}{looked}", told(quality)));
        let fields = json!({ "seconds": seconds, "patches_shown": shown, "device": self.run.device.to_string() });
        self.run.dir.log("autoencoder trained", fields)?;
        Ok(self.unreadable.failures)
    }
}

impl Observer for Watcher<'_> {
    fn step(&mut self, report: &StepReport) {
        self.progress.done(report.step, format!("rec {:.4}", report.rec));
        if let Err(error) = self.unreadable.take(&self.loader.failures()) {
            // Kept in memory all the same; a full disk will stop the next checkpoint with its own message.
            self.progress.bar.line(&format!("{STAGE}: warning: {error:#}"));
        }
    }

    fn quality(&mut self, epoch: usize, quality: &Quality) {
        self.progress.bar.line(&format!("{STAGE}: epoch {}: {}", epoch + 1, told(quality)));
    }
}

fn told(Quality { psnr, codebook_usage }: &Quality) -> String {
    let usage = codebook_usage.map_or(String::new(), |share| format!(", {:.1} % of the codebook used", 100.0 * share));
    format!("PSNR {psnr:.2} dB on held-out patches{usage}")
}
