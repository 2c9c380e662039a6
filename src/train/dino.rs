//! One step of DINO (Caron et al. 2021, `main_dino.py`): the student's view of every crop is pulled to the teacher's
//! view of every other crop of the same patch. And of Gen-DINO (Gen-SIS), where some crops show synthetic images and the
//! student's view of an interpolated image is pulled to the mixture of the teacher's views of the two it lies between.

use super::checkpoint::{self, Identity};
use super::loss::{disentanglement_loss, mixed_targets, multi_crop_loss};
use super::optimizer::{AdamW, Gradients, take_gradients};
use super::replicas::Replicas;
use super::schedule::{Schedule, StepValues};
use crate::config::{Crops, Head, Model, Pretrain, Recipe, Targets};
use crate::data::{CropBatch, MixedBatch};
use crate::model::projection::Dino;
use crate::model::vit::StochasticDepth;
use crate::model::{lies_in_host_memory, require_precision};
use anyhow::{Context, Result, anyhow, bail, ensure};
use burn::module::Module;
use burn::tensor::activation::softmax;
use burn::tensor::{Device, Tensor, TensorData};
use serde::{Deserialize, Serialize};
use std::ops::Range;
use std::path::Path;

/// The sections of the configuration that decide what a run computes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Settings {
    /// The one seed.
    pub seed: u64,
    /// Encoder, resolved.
    pub model: Model,
    /// Projection head.
    pub head: Head,
    /// Sizes and number of the crops, normalisation.
    pub crops: Crops,
    /// Training.
    pub pretrain: Pretrain,
    /// What Gen-DINO does otherwise; `None` is DINO.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gen_dino: Option<Recipe>,
}

impl Settings {
    /// Takes the sections of DINO out of an experiment and resolves the model.
    ///
    /// # Errors
    /// A model that makes no sense.
    pub fn of(experiment: &crate::config::Experiment) -> Result<Self> {
        Ok(Self {
            seed: experiment.seed,
            model: experiment.model.resolve()?,
            head: experiment.head.clone(),
            crops: experiment.crops.clone(),
            pretrain: experiment.pretrain.clone(),
            gen_dino: None,
        })
    }
}

/// What a step did.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StepReport {
    /// The step, from 0.
    pub step: usize,
    /// Its epoch, from 0.
    pub epoch: usize,
    /// What is minimised: mean cross-entropy over the pairs of crops, and with Gen-DINO the weighted disentanglement loss.
    pub loss: f64,
    /// The two parts of Gen-DINO's loss, before the weight: over the pairs of crops, and of the interpolated views.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parts: Option<[f64; 2]>,
    /// Learning rate.
    pub lr: f64,
    /// Weight decay.
    pub weight_decay: f64,
    /// Momentum of the teacher.
    pub momentum: f64,
    /// Temperature of the teacher.
    pub teacher_temp: f64,
    /// Mean entropy of the teacher's centred and sharpened output, nats; ln(out) is uniform.
    pub teacher_entropy: f64,
    /// Norm of the centre after the step.
    pub center_norm: f64,
    /// Largest norm of a parameter tensor's gradient before clipping; none on accelerators, where it is not read back.
    pub gradient_norm: Option<f64>,
}

/// Student, teacher, centre and optimiser.
#[derive(Clone, Debug)]
pub struct Trainer {
    /// Trained by gradients.
    pub student: Dino,
    /// Follows the student; its encoder is the result.
    pub teacher: Dino,
    /// Moving mean of the teacher's logits, `[1, out]`.
    pub center: Tensor<2>,
    /// AdamW, clipping, the teacher's average.
    pub optimizer: AdamW,
    schedule: Schedule,
    settings: Settings,
    device: Device,
    replicas: Replicas,
}

/// What a micro-batch contributes to a step.
struct Part {
    gradients: Gradients,
    /// Shares of the loss over the crops, of the disentanglement loss (0 without one) and of the entropy.
    scalars: [Tensor<1>; 3],
    /// Sum of the raw teacher logits, `[1, out]`.
    logits: Tensor<2>,
}

/// What to do about a loss or a gradient that is not finite.
const NOT_FINITE: &str = "Train anew (another --out, or --update) with a lower pretrain.lr, a longer \
    pretrain.warmup_epochs or a smaller pretrain.clip_grad; with precision bf16, try f32";

impl Trainer {
    /// A fresh start. `device` has no autodiff; it gets it here where gradients are needed.
    ///
    /// # Errors
    /// Settings that contradict each other, a precision the device has not.
    pub fn new(settings: &Settings, steps_per_epoch: usize, device: &Device) -> Result<Self> {
        let Settings { seed, model, head, crops, pretrain, .. } = settings;
        let on_cpu = lies_in_host_memory(device);
        require_precision("pretrain", pretrain.precision, device)?;
        ensure!(pretrain.batch > 0, "pretrain.batch = 0 trains nothing");
        for (key, size) in [("global_size", crops.global_size), ("local_size", crops.local_size)] {
            let patch = model.patch;
            ensure!(size as usize >= patch, "crops.{key} = {size} px holds no patch of model.patch = {patch} px");
        }
        let student = Dino::new(model, head, pretrain.precision, *seed, device);
        Ok(Self {
            optimizer: AdamW::new(&student, pretrain.clip_grad, on_cpu),
            // The same tensors; the first update parts them.
            teacher: student.clone(),
            student,
            center: Tensor::zeros([1, head.out], device),
            schedule: Schedule::new(pretrain, steps_per_epoch)?,
            settings: settings.clone(),
            device: device.clone(),
            replicas: Replicas::new(pretrain.replicas, on_cpu)?,
        })
    }

    /// The tables of the run.
    pub fn schedule(&self) -> &Schedule {
        &self.schedule
    }

    /// What the run is.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    fn identity(&self) -> Result<Identity> {
        let settings = serde_json::to_value(&self.settings)?;
        Ok(Identity { kind: "dino checkpoint", steps_per_epoch: self.schedule.steps_per_epoch(), settings })
    }

    /// Writes the state before `step`, atomically.
    ///
    /// # Errors
    /// A folder that cannot be written to; weights that are not finite, which no run could continue from.
    pub fn save(&self, path: &Path, step: usize) -> Result<()> {
        checkpoint::Writer::default()
            .network("student", &self.student)
            .network("teacher", &self.teacher)
            .optimizer("optimizer", &self.optimizer)?
            .tensor("center", &self.center)?
            .write(path, self.identity()?, step, NOT_FINITE)
    }

    /// Takes the state out of a checkpoint, and returns the step to do next. Nothing is loaded half-way.
    ///
    /// # Errors
    /// A file that is no checkpoint, is incomplete, or belongs to another configuration: the first differing key is named.
    pub fn resume(&mut self, path: &Path) -> Result<usize> {
        let load = || -> Result<(Self, usize)> {
            let mut saved = checkpoint::Reader::open(path, &self.identity()?)?;
            let student = saved.network("student", &self.student)?;
            let teacher = saved.network("teacher", &self.teacher)?;
            let optimizer = saved.optimizer("optimizer", &self.optimizer, &self.device)?;
            let center = saved.tensor("center", &self.device)?.reshape(self.center.dims());
            Ok((Self { student, teacher, optimizer, center, ..self.clone() }, saved.finish()?))
        };
        let (trainer, step) = load().with_context(|| format!("cannot resume from {}", path.display()))?;
        *self = trainer;
        Ok(step)
    }

    /// One step on `batch`.
    ///
    /// # Errors
    /// A batch of other sizes than configured, a loss that is not finite (nothing is updated then), a failing device.
    pub fn step(&mut self, batch: &CropBatch, step: usize) -> Result<StepReport> {
        ensure!(step < self.schedule.steps(), "step {step} is beyond the {} of the run", self.schedule.steps());
        self.step_with(batch, step, self.schedule.at(step))
    }

    /// One step with values of the caller's choice instead of the schedule's.
    ///
    /// # Errors
    /// As [`step`](Self::step).
    pub fn step_with(&mut self, batch: &CropBatch, step: usize, values: StepValues) -> Result<StepReport> {
        self.check(batch)?;
        let parts = self.replicas.run(batch.size, |range| self.part(batch, range, step, values))?;

        let teacher_rows = 2.0 * batch.size as f64;
        let (mut gradients, mut scalars, mut logits) = (vec![], vec![], vec![]);
        for part in parts {
            gradients.push(part.gradients);
            scalars.push(Tensor::cat(part.scalars.to_vec(), 0));
            logits.push(part.logits);
        }
        let keep = self.settings.pretrain.center_momentum;
        let center = next_center(self.center.clone(), sum(logits)?, teacher_rows, keep);
        let center_norm = center.clone().square().sum().sqrt();
        let [crops_loss, disentanglement, teacher_entropy, center_norm] =
            read(Tensor::cat(vec![sum(scalars)?, center_norm], 0)).context("the step could not be read back")?;
        let weight = self.disentangle();
        let loss = crops_loss + weight * disentanglement;
        if !loss.is_finite() {
            bail!(
                "the loss is {loss} at step {step} (epoch {}, lr {:.3e}): nothing was updated. {NOT_FINITE}",
                self.schedule.epoch(step),
                values.lr
            );
        }

        self.center = center;
        let gradient_norm = self.optimizer.step(&mut self.student, &mut self.teacher, gradients, values.update());
        if let Some(norm) = gradient_norm.filter(|norm| !norm.is_finite()) {
            bail!(
                "the gradient is {norm} at step {step} (epoch {}, lr {:.3e}); the last checkpoint is as it was. {NOT_FINITE}",
                self.schedule.epoch(step),
                values.lr
            );
        }
        Ok(StepReport {
            step,
            epoch: self.schedule.epoch(step),
            loss,
            parts: (weight > 0.0).then_some([crops_loss, disentanglement]),
            lr: values.lr,
            weight_decay: values.weight_decay,
            momentum: values.momentum,
            teacher_temp: values.teacher_temp,
            teacher_entropy,
            center_norm,
            gradient_norm,
        })
    }

    /// Forward and backward of the samples in `range`, weighted by their share of the batch.
    fn part(&self, batch: &CropBatch, range: Range<usize>, step: usize, values: StepValues) -> Result<Part> {
        let Settings { seed, model, crops, pretrain, .. } = &self.settings;
        let share = range.len() as f64 / batch.size as f64;
        let globals = self.crops(&batch.globals, batch.size, &range, crops.global_size as usize);
        let locals = self.crops(&batch.locals, batch.size, &range, crops.local_size as usize);

        let side = crops.global_size as usize;
        let mixed = batch.mixed.as_ref().filter(|_| self.disentangle() > 0.0);
        let pixels = |pixels: &[f32]| self.crops(pixels, batch.size, &range, side);
        let seen = match mixed {
            Some(mixed) => Tensor::cat(vec![globals.clone(), pixels(&mixed.secondary)], 0),
            None => globals.clone(),
        };
        let taught = self.teacher.forward(vec![(seen, None)], pretrain.precision);
        let logits = taught.clone().narrow(0, 0, 2 * range.len());
        let soft = softmax((logits.clone() - self.center.clone()).div_scalar(values.teacher_temp), 1);
        let entropy = (soft.clone() * soft.clone().clamp_min(1e-30).log()).sum().div_scalar(-2.0 * range.len() as f64);

        let live = self.student.clone().train();
        let autodiff = self.device.clone().autodiff();
        let crops_of = |images: Tensor<4>, first: usize| {
            let crops = images.dims()[0] / range.len();
            let rows: Vec<u64> = (first..first + crops)
                .flat_map(|crop| range.clone().map(move |sample| (crop * batch.size + sample) as u64))
                .collect();
            let depth = StochasticDepth::draw(model, *seed, step as u64, &rows, &autodiff);
            (Tensor::from_inner(images), depth)
        };
        let mut views = vec![crops_of(globals, 0)];
        if crops.local_count > 0 {
            views.push(crops_of(locals, 2));
        }
        if let Some(mixed) = mixed {
            views.push(crops_of(pixels(&mixed.views), 2 + crops.local_count));
        }
        let student = live.forward(views, pretrain.precision);
        let said = student.clone().inner();
        let rows = (2 + crops.local_count) * range.len();
        let (loss, mut slope) = multi_crop_loss(said.clone().narrow(0, 0, rows), soft, pretrain.student_temp);
        let mut disentanglement = loss.zeros_like();
        if let Some(mixed) = mixed {
            let targets = self.targets(taught, mixed, &range, values.teacher_temp);
            let said = said.narrow(0, rows, range.len());
            let (loss, of_mixed) = disentanglement_loss(said, targets, pretrain.student_temp);
            disentanglement = loss;
            slope = Tensor::cat(vec![slope, of_mixed.mul_scalar(self.disentangle())], 0);
        }
        // d(sum of logits * slope) is slope: the loss's own gradient enters the graph in closed form.
        let mut raw = (student * Tensor::from_inner(slope.mul_scalar(share))).sum().backward();
        Ok(Part {
            gradients: take_gradients(&live, &mut raw),
            scalars: [loss.mul_scalar(share), disentanglement.mul_scalar(share), entropy.mul_scalar(share)],
            logits: logits.sum_dim(0),
        })
    }

    /// Weight of the disentanglement loss; 0 for DINO.
    fn disentangle(&self) -> f64 {
        self.settings.gen_dino.as_ref().map_or(0.0, |recipe| recipe.disentangle)
    }

    /// What the interpolated views of the samples in `range` are pulled to. `taught` are the teacher's raw logits of both
    /// global views and of the secondary images: the global views of the patches themselves need no second pass.
    fn targets(&self, taught: Tensor<2>, mixed: &MixedBatch, range: &Range<usize>, temp: f64) -> Vec<Tensor<2>> {
        let count = range.len();
        let alpha = TensorData::new(mixed.alphas[range.clone()].to_vec(), [count, 1]);
        let alpha: Tensor<2> = Tensor::from_data(alpha, &self.device);
        let pairs = taught.dims()[0] / count - 2;
        (0..pairs)
            .map(|pair| {
                let first = taught.clone().narrow(0, pair * count, count);
                let second = taught.clone().narrow(0, (2 + pair) * count, count);
                mixed_targets(first, second, alpha.clone(), self.center.clone(), temp)
            })
            .collect()
    }

    /// The rows of the samples in `range` of crop-major `pixels`.
    fn crops(&self, pixels: &[f32], size: usize, range: &Range<usize>, side: usize) -> Tensor<4> {
        let image = 3 * side * side;
        let rows: Vec<f32> = pixels
            .chunks_exact(size * image)
            .flat_map(|crop| &crop[range.start * image..range.end * image])
            .copied()
            .collect();
        let count = rows.len() / image;
        Tensor::from_data(TensorData::new(rows, [count, 3, side, side]), &self.device)
    }

    fn check(&self, batch: &CropBatch) -> Result<()> {
        let crops = &self.settings.crops;
        let pixels = |side: u32, count: usize| count * batch.size * 3 * (side as usize).pow(2);
        ensure!(
            batch.size > 0
                && batch.globals.len() == pixels(crops.global_size, 2)
                && batch.locals.len() == pixels(crops.local_size, crops.local_count),
            "a batch of {} with {} + {} values does not have the configured crops",
            batch.size,
            batch.globals.len(),
            batch.locals.len()
        );
        let pairs = match &self.settings.gen_dino {
            Some(recipe) if recipe.disentangle > 0.0 => 1 + usize::from(recipe.targets == Targets::Four),
            _ => 0,
        };
        let found = batch.mixed.as_ref().map_or([0; 3], |m| [m.views.len(), m.secondary.len(), m.alphas.len()]);
        let one = pixels(crops.global_size, 1);
        ensure!(
            found == [pairs.min(1) * one, pairs * one, pairs.min(1) * batch.size],
            "a batch of {} with {found:?} values of interpolated and secondary views and weights does not have {pairs} \
             pair(s) of targets",
            batch.size
        );
        Ok(())
    }
}

/// The centre `[1, out]` after a step whose raw teacher logits sum to `logits` over `rows` rows: a running mean of which
/// it keeps `keep`.
pub(super) fn next_center(center: Tensor<2>, logits: Tensor<2>, rows: f64, keep: f64) -> Tensor<2> {
    center.mul_scalar(keep) + logits.div_scalar(rows).mul_scalar(1.0 - keep)
}

fn sum<const D: usize>(parts: Vec<Tensor<D>>) -> Result<Tensor<D>> {
    parts.into_iter().reduce(|a, b| a + b).context("a step has at least one micro-batch")
}

/// Some numbers in one transfer.
fn read<const N: usize>(scalars: Tensor<1>) -> Result<[f64; N]> {
    let values = scalars.try_into_vec_as::<f32>().map_err(|e| anyhow!("{e:?}"))?;
    ensure!(values.len() == N, "{} numbers, not {N}", values.len());
    Ok(std::array::from_fn(|i| f64::from(values[i])))
}

#[cfg(test)]
pub(crate) mod mixed;

#[cfg(test)]
pub(crate) mod tests;
