//! The training loop of a first stage: batches of squares in, a first-stage file out.
//!
//! | file of the run folder | what it is |
//! |---|---|
//! | `checkpoint.safetensors` | everything needed to continue, the last one only |
//! | `metrics.jsonl` | one line per report, no clock in it: the same run writes the same bytes |
//! | `autoencoder.safetensors` | the first stage, at the end |

mod pass;
pub mod step;

pub use step::{Settings, StepReport, Trainer};

use super::metrics::{Metrics, report_every};
use super::source::BatchSource;
use super::{CHECKPOINT, METRICS};
use crate::data::SquareBatch;
use crate::model::FirstStage;
use crate::model::autoencoder::{Autoencoder, FirstStageConfig};
use crate::model::perceptual::Perceptual;
use crate::train::replicas::Replicas;
use anyhow::{Context, Result, anyhow, ensure};
use burn::tensor::{Device, Tensor, TensorData};
use serde::Serialize;
use std::collections::BTreeSet;
use std::path::Path;

/// The result.
pub const FIRST_STAGE: &str = "autoencoder.safetensors";

/// How well held-out images come back.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Quality {
    /// Mean over the images of the peak signal-to-noise ratio, dB.
    pub psnr: f64,
    /// Share of the codebook that they use; none without one.
    pub codebook_usage: Option<f64>,
}

/// Who is told what happens.
pub trait Observer {
    /// After every step.
    fn step(&mut self, report: &StepReport);
    /// After every epoch.
    fn quality(&mut self, epoch: usize, quality: &Quality);
}

#[derive(Serialize)]
struct Evaluation {
    step: usize,
    epoch: usize,
    #[serde(flatten)]
    quality: Quality,
}

/// What a training is made of.
pub struct Training<'a> {
    /// What is computed.
    pub settings: &'a Settings,
    /// How features are compared.
    pub perceptual: Perceptual,
    /// The batches.
    pub source: &'a dyn BatchSource<Batch = SquareBatch>,
    /// Images that are never trained on.
    pub held_out: &'a SquareBatch,
    /// Where the files go.
    pub folder: &'a Path,
}

/// Trains, or with `resume` continues from the folder's checkpoint if there is one, and returns the first stage.
///
/// # Errors
/// Settings that contradict each other, a checkpoint of another configuration, a batch that cannot be made, a loss that
/// is not finite, a folder that cannot be written to.
pub fn train(training: Training, resume: bool, device: &Device, observer: &mut dyn Observer) -> Result<FirstStage> {
    let Training { settings, perceptual, source, held_out, folder } = training;
    let per_epoch = source.steps_per_epoch();
    let mut trainer = Trainer::new(settings, perceptual, per_epoch, device)?;
    let section = trainer.settings().autoencoder.clone();
    let steps = section.epochs * per_epoch;
    let path = folder.join(CHECKPOINT);
    let mut step = if resume && path.exists() { trainer.resume(&path)? } else { 0 };
    let mut metrics = Metrics::open(&folder.join(METRICS), step)?;
    let report_every = report_every(steps);

    while step < steps {
        let epoch = step / per_epoch;
        for batch in source.epoch(epoch, step % per_epoch) {
            let batch = batch?;
            let report = trainer.step(&batch, step)?;
            step += 1;
            if report.step % report_every == 0 {
                metrics.write(&report)?;
            }
            observer.step(&report);
            let in_epoch = step % per_epoch != 0;
            if in_epoch && section.checkpoint_every > 0 && step % section.checkpoint_every == 0 {
                metrics.sync()?;
                trainer.save(&path, step)?;
            }
        }
        ensure!(
            step == (epoch + 1) * per_epoch,
            "epoch {epoch} ended after {} of {per_epoch} batches",
            step % per_epoch
        );
        let (_, quality) = reconstructions(&trainer.network, trainer.replicas(), held_out, device)?;
        observer.quality(epoch, &quality);
        metrics.write(&Evaluation { step: step - 1, epoch, quality })?;
        if section.checkpoint_every == 0 || step % section.checkpoint_every == 0 || step == steps {
            metrics.sync()?;
            trainer.save(&path, step)?;
        }
    }

    let config = FirstStageConfig {
        network: section.sizes()?,
        scale: 1.0,
        origin: serde_json::json!({
            "method": "autoencoder",
            "version": env!("CARGO_PKG_VERSION"),
            "steps": step,
            "settings": trainer.settings(),
        }),
    };
    let stage = scaled(FirstStage::new(trainer.network.clone(), config), source, device)?;
    stage.save(&folder.join(FIRST_STAGE))?;
    Ok(stage)
}

/// `stage` with the scale that brings the latents of the first batch to deviation 1, as latent-diffusion's
/// `scale_by_std`; with a codebook as it is.
///
/// # Errors
/// A batch that cannot be made, a failing device, latents that are all the same.
pub fn scaled(stage: FirstStage, source: &dyn BatchSource<Batch = SquareBatch>, device: &Device) -> Result<FirstStage> {
    if stage.config.network.kind.has_codebook() {
        return Ok(stage);
    }
    let batch = source.epoch(0, 0).next().context("there is no batch to measure latents on")??;
    let latents = stage.encode(tensor(&batch, device))?.try_into_vec_as::<f32>().map_err(|e| anyhow!("{e:?}"))?;
    let count = latents.len() as f64;
    let mean = latents.iter().map(|&x| f64::from(x)).sum::<f64>() / count;
    let variance = latents.iter().map(|&x| (f64::from(x) - mean).powi(2)).sum::<f64>() / (count - 1.0);
    ensure!(variance.is_finite() && variance > 0.0, "the latents of a batch have deviation {}", variance.sqrt());
    Ok(stage.with_scale(1.0 / variance.sqrt()))
}

/// `images` through encoder and decoder, `[n, 3, side, side]`, and how well they came back. Latents are not drawn but the
/// posterior's mean; codes are the nearest.
///
/// # Errors
/// A failing device.
pub fn reconstructions(
    network: &Autoencoder,
    replicas: &Replicas,
    images: &SquareBatch,
    device: &Device,
) -> Result<(Vec<f32>, Quality)> {
    let row = 3 * images.side * images.side;
    let parts = replicas.run(images.indices.len(), |range| {
        let part = SquareBatch {
            pixels: images.pixels[range.start * row..range.end * row].to_vec(),
            side: images.side,
            indices: images.indices[range].to_vec(),
        };
        let moments = network.moments(tensor(&part, device));
        let (latents, codes) = match &network.quantize {
            Some(codebook) => {
                let quantized = codebook.quantize(moments);
                let codes = quantized.codes.try_into_vec_as::<i64>().map_err(|e| anyhow!("{e:?}"))?;
                (quantized.latents, codes)
            }
            None => (crate::model::autoencoder::Posterior::new(moments).mean, vec![]),
        };
        let found = network.decode(latents).try_into_vec_as::<f32>().map_err(|e| anyhow!("{e:?}"))?;
        Ok((found, codes))
    })?;
    let codes: BTreeSet<i64> = parts.iter().flat_map(|(_, codes)| codes.iter().copied()).collect();
    let found: Vec<f32> = parts.into_iter().flat_map(|(found, _)| found).collect();
    let ratios = images.pixels.chunks_exact(row).zip(found.chunks_exact(row)).map(|(a, b)| psnr(a, b));
    let quality = Quality {
        psnr: ratios.sum::<f64>() / images.indices.len() as f64,
        codebook_usage: network.quantize.as_ref().map(|codebook| codes.len() as f64 / codebook.size() as f64),
    };
    Ok((found, quality))
}

fn tensor(images: &SquareBatch, device: &Device) -> Tensor<4> {
    let shape = [images.indices.len(), 3, images.side, images.side];
    Tensor::from_data(TensorData::new(images.pixels.clone(), shape), device)
}

/// Peak signal-to-noise ratio of an image in [-1, 1], dB; what lies outside of it is cut off first, as in a file.
pub fn psnr(image: &[f32], found: &[f32]) -> f64 {
    let squares = image.iter().zip(found).map(|(a, b)| f64::from(a - b.clamp(-1.0, 1.0)).powi(2));
    let mean = squares.sum::<f64>() / image.len() as f64;
    // What rounding to 8 bits costs: an image that comes back exactly has a ratio all the same.
    10.0 * (4.0 / mean.max((2.0 / 255.0f64).powi(2) / 12.0)).log10()
}

#[cfg(test)]
mod tests;
