//! Training of the latent diffusion model (Ho et al. 2020, Rombach et al. 2022): the U-Net learns to tell the noise in a
//! noisy latent, given the encoder's embedding of the image behind it.

use super::checkpoint::{self, Identity};
use super::metrics::{Metrics, report_every};
use super::optimizer::{AdamW, Gradients, Update, take_gradients};
use super::replicas::Replicas;
use super::schedule::decayed;
use super::{CHECKPOINT, METRICS};
use crate::config::Diffusion;
use crate::data::latents::LatentFile;
use crate::data::order::EpochOrder;
use crate::model::diffusion::{DiffusionConfig, DiffusionModel};
use crate::model::noise::NoiseSchedule;
use crate::model::random::{keyed, normal};
use crate::model::unet::Unet;
use crate::model::{lies_in_host_memory, require_precision};
use anyhow::{Context, Result, anyhow, bail, ensure};
use burn::module::Module;
use burn::tensor::{Device, Tensor, TensorData};
use rand::RngExt;
use serde::{Deserialize, Serialize};
use std::ops::Range;
use std::path::Path;

/// The result.
pub const MODEL: &str = "diffusion.safetensors";

/// What to do about a loss or a gradient that is not finite.
const NOT_FINITE: &str = "Train anew (another --out, or --update) with a lower diffusion.lr or a longer diffusion.warmup_steps; with precision bf16, try f32";

/// What decides what a run computes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Settings {
    /// The one seed.
    pub seed: u64,
    /// The section of the configuration.
    pub diffusion: Diffusion,
    /// What the model is for: latents, embeddings and where they come from.
    pub config: DiffusionConfig,
}

/// Latents with their embeddings.
#[derive(Clone, Debug, PartialEq)]
pub struct LatentBatch {
    /// Images.
    pub size: usize,
    /// `[size, channels, side, side]`.
    pub latents: Vec<f32>,
    /// `[size, embedding]`, as they condition.
    pub embeddings: Vec<f32>,
}

/// What a step did.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct StepReport {
    /// The step, from 0.
    pub step: usize,
    /// Its epoch, from 0.
    pub epoch: usize,
    /// Mean squared error of the prediction.
    pub loss: f64,
    /// Learning rate.
    pub lr: f64,
    /// Decay of the moving average.
    pub ema: f64,
    /// Largest norm of a parameter tensor's gradient; none on accelerators, where it is not read back.
    pub gradient_norm: Option<f64>,
}

/// U-Net, its moving average and the optimiser.
#[derive(Clone, Debug)]
pub struct Trainer {
    /// Trained by gradients.
    pub unet: Unet,
    /// Follows it; samples are drawn from it, and it is the result.
    pub average: Unet,
    optimizer: AdamW,
    schedule: NoiseSchedule,
    settings: Settings,
    steps_per_epoch: usize,
    device: Device,
    replicas: Replicas,
}

struct Part {
    gradients: Gradients,
    loss: Tensor<1>,
}

impl Trainer {
    /// A fresh start. `device` has no autodiff; it gets it here where gradients are needed.
    ///
    /// # Errors
    /// Settings that contradict each other.
    pub fn new(settings: &Settings, steps_per_epoch: usize, device: &Device) -> Result<Self> {
        let Settings { seed, diffusion, config } = settings;
        let [channels, side] = config.latent;
        diffusion.unet.check_latents(side)?;
        ensure!(steps_per_epoch > 0, "not one whole batch of diffusion.batch = {} in an epoch", diffusion.batch);
        let on_cpu = lies_in_host_memory(device);
        require_precision("diffusion", diffusion.precision, device)?;
        let unet = Unet::new(&diffusion.unet, channels, config.embedding, *seed, device)?;
        Ok(Self {
            optimizer: AdamW::new(&unet, 0.0, on_cpu).decaying_vectors(),
            average: unet.clone(),
            unet: unet.with_precision(diffusion.precision),
            schedule: NoiseSchedule::new(&diffusion.noise),
            settings: settings.clone(),
            steps_per_epoch,
            device: device.clone(),
            replicas: Replicas::new(diffusion.replicas, on_cpu)?,
        })
    }

    /// Steps of the run.
    pub fn steps(&self) -> usize {
        self.settings.diffusion.epochs * self.steps_per_epoch
    }

    /// The averaged network as a model, after `steps` steps.
    ///
    /// # Errors
    /// Settings that are no JSON.
    pub fn model(&self, steps: usize) -> Result<DiffusionModel> {
        let settings = self.settings.diffusion.recorded()?;
        let origin = serde_json::json!({
            "method": "latent diffusion",
            "version": env!("CARGO_PKG_VERSION"),
            "steps": steps,
            "settings": settings,
            "seed": self.settings.seed,
        });
        Ok(DiffusionModel::new(self.average.clone(), DiffusionConfig { origin, ..self.settings.config.clone() }))
    }

    fn identity(&self) -> Result<Identity> {
        let mut settings = serde_json::to_value(&self.settings)?;
        settings["diffusion"] = self.settings.diffusion.recorded()?;
        // They follow from the encoder and the images, and JSON does not keep the last bit of every number.
        settings["config"]["statistics"] = serde_json::Value::Null;
        Ok(Identity { kind: "diffusion checkpoint", steps_per_epoch: self.steps_per_epoch, settings })
    }

    /// Writes the state before `step`, atomically.
    ///
    /// # Errors
    /// A folder that cannot be written to; weights that are not finite, which no run could continue from.
    pub fn save(&self, path: &Path, step: usize) -> Result<()> {
        checkpoint::Writer::default()
            .network("unet", &self.unet)
            .network("average", &self.average)
            .optimizer("optimizer", &self.optimizer)?
            .write(path, self.identity()?, step, NOT_FINITE)
    }

    /// Takes the state out of a checkpoint, and returns the step to do next. Nothing is loaded half-way.
    ///
    /// # Errors
    /// A file that is no checkpoint, is incomplete, or belongs to another configuration: the first differing key is named.
    pub fn resume(&mut self, path: &Path) -> Result<usize> {
        let load = || -> Result<(Self, usize)> {
            let mut saved = checkpoint::Reader::open(path, &self.identity()?)?;
            let unet = saved.network("unet", &self.unet)?;
            let average = saved.network("average", &self.average)?;
            let optimizer = saved.optimizer("optimizer", &self.optimizer, &self.device)?;
            Ok((Self { unet, average, optimizer, ..self.clone() }, saved.finish()?))
        };
        let (trainer, step) = load().with_context(|| format!("cannot resume from {}", path.display()))?;
        *self = trainer;
        Ok(step)
    }

    /// One step on `batch`.
    ///
    /// # Errors
    /// A batch of other sizes than configured, a loss that is not finite (nothing is updated then), a failing device.
    pub fn step(&mut self, batch: &LatentBatch, step: usize) -> Result<StepReport> {
        let config = &self.settings.config;
        let [channels, side] = config.latent;
        ensure!(
            batch.size > 0
                && batch.latents.len() == batch.size * channels * side * side
                && batch.embeddings.len() == batch.size * config.embedding,
            "a batch of {} with {} + {} values does not have the configured latents and embeddings",
            batch.size,
            batch.latents.len(),
            batch.embeddings.len()
        );
        let draws = Draws::new(&self.settings, self.schedule.steps(), batch.latents.len(), batch.size, step);
        self.step_with(batch, &draws, step)
    }

    fn step_with(&mut self, batch: &LatentBatch, draws: &Draws, step: usize) -> Result<StepReport> {
        let parts = self.replicas.run(batch.size, |range| self.part(batch, draws, range))?;
        let (gradients, losses): (Vec<_>, Vec<_>) = parts.into_iter().map(|part| (part.gradients, part.loss)).unzip();
        let loss = losses.into_iter().reduce(|a, b| a + b).context("a step has at least one micro-batch")?;
        let loss = f64::from(loss.try_into_vec_as::<f32>().map_err(|e| anyhow!("{e:?}"))?[0]);
        let Diffusion { weight_decay, ema, .. } = self.settings.diffusion;
        let lr = self.rate(step);
        if !loss.is_finite() {
            bail!("the loss is {loss} at step {step} (lr {lr:.3e}): nothing was updated. {NOT_FINITE}");
        }
        // Its EMA counts updates from 1.
        let updates = step as f64 + 1.0;
        let ema = ema.min((1.0 + updates) / (10.0 + updates));
        let update = Update { lr, weight_decay, momentum: ema, frozen: None };
        let gradient_norm = self.optimizer.step(&mut self.unet, &mut self.average, gradients, update);
        if let Some(norm) = gradient_norm.filter(|norm| !norm.is_finite()) {
            bail!(
                "the gradient is {norm} at step {step} (lr {lr:.3e}); the last checkpoint is as it was. {NOT_FINITE}"
            );
        }
        Ok(StepReport { step, epoch: step / self.steps_per_epoch, loss, lr, ema, gradient_norm })
    }

    /// Learning rate of `step`: latent-diffusion's LambdaLinearScheduler, a straight line from a millionth of the rate, then
    /// constant; at the end along half a cosine towards 0, which it would have after the last step.
    fn rate(&self, step: usize) -> f64 {
        let Diffusion { lr, warmup_steps, decay_epochs, .. } = self.settings.diffusion;
        let warm = if step < warmup_steps { 1e-6 + (1.0 - 1e-6) * step as f64 / warmup_steps as f64 } else { 1.0 };
        lr * warm * decayed(decay_epochs * self.steps_per_epoch, self.steps().saturating_sub(step))
    }

    /// Forward and backward of the images in `range`, weighted by their share of the batch.
    fn part(&self, batch: &LatentBatch, draws: &Draws, range: Range<usize>) -> Result<Part> {
        let [channels, side] = self.settings.config.latent;
        let (latent, width) = (channels * side * side, self.settings.config.embedding);
        let images = |values: &[f32]| {
            let rows = values[range.start * latent..range.end * latent].to_vec();
            Tensor::<4>::from_data(TensorData::new(rows, [range.len(), channels, side, side]), &self.device)
        };
        let mut embeddings = batch.embeddings[range.start * width..range.end * width].to_vec();
        for (row, _) in range.clone().enumerate().filter(|(_, image)| draws.dropped[*image]) {
            embeddings[row * width..(row + 1) * width].fill(0.0);
        }
        let embeddings = Tensor::<2>::from_data(TensorData::new(embeddings, [range.len(), width]), &self.device);
        let (clean, noise, times) = (images(&batch.latents), images(&draws.noise), &draws.times[range.clone()]);
        let noisy = self.schedule.add(clean.clone(), noise.clone(), times);
        let target = self.schedule.target(clean, noise, times);

        let live = self.unet.clone().train();
        let context = live.context(Tensor::from_inner(embeddings));
        let answer = live.forward(Tensor::from_inner(noisy), times, context);
        let share = range.len() as f64 / batch.size as f64;
        let loss = (answer - Tensor::from_inner(target)).square().mean().mul_scalar(share);
        let mut raw = loss.backward();
        Ok(Part { gradients: take_gradients(&live, &mut raw), loss: loss.inner() })
    }
}

/// Everything random of a step, drawn image by image, so that micro-batches do not change it.
struct Draws {
    times: Vec<usize>,
    noise: Vec<f32>,
    /// Whose embedding is replaced by zeros.
    dropped: Vec<bool>,
}

impl Draws {
    fn new(settings: &Settings, steps: usize, values: usize, size: usize, step: usize) -> Self {
        let latent = values / size;
        let mut draws = Self { times: vec![], noise: Vec::with_capacity(values), dropped: vec![] };
        for image in 0..size {
            let mut rng = keyed(settings.seed, "diffusion step", &[step as u64, image as u64]);
            draws.times.push(rng.random_range(0..steps));
            draws.dropped.push(rng.random::<f64>() < settings.diffusion.condition_dropout);
            draws.noise.extend(normal(&mut rng, 1.0, latent));
        }
        draws
    }
}

/// Batches of a file of latents: shuffled, every image in a random one of its flips.
pub struct LatentLoader {
    file: LatentFile,
    order: EpochOrder,
    batch: usize,
    config: DiffusionConfig,
}

impl LatentLoader {
    /// Batches of `diffusion.batch` of the file's images.
    ///
    /// # Errors
    /// Fewer images than a batch.
    pub fn new(file: LatentFile, settings: &Settings) -> Result<Self> {
        let Settings { seed, diffusion, config } = settings;
        let order = EpochOrder {
            len: file.len(),
            per_epoch: diffusion.patches_per_epoch,
            seed: *seed,
            slide_ends: vec![],
            open_slides: 0,
        };
        ensure!(
            order.epoch_len() >= diffusion.batch,
            "{} images per epoch do not fill a batch of diffusion.batch = {}",
            order.epoch_len(),
            diffusion.batch
        );
        Ok(Self { file, order, batch: diffusion.batch, config: config.clone() })
    }

    /// Batches of one epoch.
    pub fn steps_per_epoch(&self) -> usize {
        self.order.epoch_len() / self.batch
    }

    /// Batch `number` of an epoch whose `order` is given.
    fn batch(&self, epoch: usize, order: &[usize], number: usize) -> Result<LatentBatch> {
        let mut batch = LatentBatch { size: self.batch, latents: vec![], embeddings: vec![] };
        for &record in &order[number * self.batch..(number + 1) * self.batch] {
            let mut rng = keyed(self.order.seed, "diffusion flip", &[epoch as u64, record as u64]);
            let image = self.file.read(record, rng.random_range(0..self.file.header().flips))?;
            batch.latents.extend(image.latent);
            batch.embeddings.extend(self.config.conditioned(image.embedding));
        }
        Ok(batch)
    }
}

/// Who is told what happens.
pub trait Observer {
    /// After every step.
    fn step(&mut self, report: &StepReport);
    /// Every `diffusion.sample_every` steps and at the end: time for a sheet of samples. Returns the Fréchet distance of
    /// samples to the training images, where it is asked for.
    ///
    /// # Errors
    /// Whatever stops the drawing stops the run.
    fn sheet(&mut self, step: usize, model: &DiffusionModel) -> Result<Option<f64>>;
}

/// A line of the metrics file between steps.
#[derive(Serialize)]
struct Judged {
    step: usize,
    epoch: usize,
    frechet_distance: f64,
}

/// Trains, or with `resume` continues from the folder's checkpoint if there is one, and returns the averaged model.
///
/// # Errors
/// Settings that contradict each other, a checkpoint of another configuration, latents that cannot be read, a loss that is
/// not finite, a folder that cannot be written to.
pub fn train(
    settings: &Settings,
    loader: &LatentLoader,
    folder: &Path,
    resume: bool,
    device: &Device,
    observer: &mut dyn Observer,
) -> Result<DiffusionModel> {
    let per_epoch = loader.steps_per_epoch();
    let mut trainer = Trainer::new(settings, per_epoch, device)?;
    let steps = trainer.steps();
    let path = folder.join(CHECKPOINT);
    let mut step = if resume && path.exists() { trainer.resume(&path)? } else { 0 };
    let mut metrics = Metrics::open(&folder.join(METRICS), step)?;
    let Diffusion { checkpoint_every, sample_every, .. } = settings.diffusion;
    let every = |step: usize, count: usize| count > 0 && step.is_multiple_of(count);

    while step < steps {
        let epoch = step / per_epoch;
        let order = loader.order.epoch(epoch);
        for number in step % per_epoch..per_epoch {
            let report = trainer.step(&loader.batch(epoch, &order, number)?, step)?;
            if step.is_multiple_of(report_every(steps)) {
                metrics.write(&report)?;
            }
            step += 1;
            observer.step(&report);
            // Before the checkpoint, so that a run stopped meanwhile draws again.
            if (every(step, sample_every) || step == steps)
                && let Some(frechet_distance) = observer.sheet(step, &trainer.model(step)?)?
            {
                metrics.write(&Judged { step: step - 1, epoch, frechet_distance })?;
            }
            if every(step, checkpoint_every)
                || (checkpoint_every == 0 && step.is_multiple_of(per_epoch))
                || step == steps
            {
                metrics.sync()?;
                trainer.save(&path, step)?;
            }
        }
    }
    let model = trainer.model(step)?;
    model.save(&folder.join(MODEL))?;
    Ok(model)
}

#[cfg(test)]
mod tests;
