//! One step of training a first stage (Rombach et al. 2022, Esser et al. 2021): reconstruct, compare pixels and features,
//! keep latents in bounds, and let a discriminator tell reconstructions from images.
//!
//! The discriminator's share of the gradient is weighed against the reconstruction's by their norms at the decoder's last
//! weight. Both gradients are taken at the reconstruction, each by a backward pass that ends there; from there to the last
//! weight is one layer, and the pass through encoder and decoder is done once, with the weighed sum.
//!
//! Generator and discriminator take their steps from the same reconstruction (the reference computes another one for the
//! discriminator, of the generator just updated), and before it starts the discriminator is left out altogether.

use super::pass::{codes, quantized, ratio_at_last_weight};
use crate::config::{Autoencoder as Section, PerceptualKind};
use crate::data::SquareBatch;
use crate::model::autoencoder::Autoencoder;
use crate::model::discriminator::{Discriminator, Statistics, WIDTH, followed};
use crate::model::perceptual::{Lpips, Perceptual};
use crate::model::{lies_in_host_memory, random};
use crate::train::checkpoint::{self, Identity};
use crate::train::optimizer::{AdamW, Update};
use crate::train::replicas::Replicas;
use crate::train::schedule::decayed;
use anyhow::{Context, Result, anyhow, bail, ensure};
use burn::tensor::{Device, Tensor};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::path::Path;

/// Adam's decay rates, of both networks.
const BETAS: [f64; 2] = [0.5, 0.9];

/// What to do about numbers that are not finite.
const NOT_FINITE: &str = "Train anew (another --out, or --update) with a lower autoencoder.lr or a smaller \
    autoencoder.disc_weight";

/// What decides what a run computes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Settings {
    /// The one seed.
    pub seed: u64,
    /// The section, resolved.
    pub autoencoder: Section,
    /// Hash of the weights that reconstructions are looked at through.
    pub perceptual: Option<String>,
}

impl Settings {
    /// As headers and checkpoints have them: a constant rate goes without saying, as it did before there was a choice.
    ///
    /// # Errors
    /// Settings that are no JSON.
    pub fn recorded(&self) -> Result<Value> {
        let mut settings = serde_json::to_value(self)?;
        if let Some(section) = settings["autoencoder"].as_object_mut() {
            section.retain(|key, value| key != "decay_epochs" || *value != 0);
        }
        Ok(settings)
    }
}

/// What a step did.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StepReport {
    /// The step, from 0.
    pub step: usize,
    /// Its epoch, from 0.
    pub epoch: usize,
    /// Learning rate.
    pub lr: f64,
    /// What the first stage was pulled down by, all weighed and added.
    pub loss: f64,
    /// Mean absolute difference of the pixels, of a range of 2.
    pub rec: f64,
    /// Mean distance of the features.
    pub perceptual: f64,
    /// Divergence of an image's posterior, or the codebook's loss; not weighed.
    pub bottleneck: f64,
    /// Different codes in the batch; 0 without a codebook.
    pub codes: usize,
    /// Weight of the discriminator's share; 0 before it starts.
    pub d_weight: f64,
    /// The discriminator's share: minus its mean logit of reconstructions.
    pub generator: f64,
    /// Loss of the discriminator: 1 where it says nothing.
    pub discriminator: f64,
}

/// Both networks and their optimisers.
#[derive(Clone, Debug)]
pub struct Trainer {
    /// The first stage.
    pub network: Autoencoder,
    /// Its opponent.
    pub discriminator: Discriminator,
    /// Running statistics of the opponent's normalisations. Training uses the batch's own.
    pub statistics: Statistics,
    optimizers: [AdamW; 2],
    pub(super) perceptual: Perceptual,
    pub(super) settings: Settings,
    steps_per_epoch: usize,
    pub(super) device: Device,
    replicas: Replicas,
}

impl Trainer {
    /// A fresh start. `device` has no autodiff.
    ///
    /// # Errors
    /// Settings that contradict each other.
    pub fn new(settings: &Settings, perceptual: Perceptual, steps_per_epoch: usize, device: &Device) -> Result<Self> {
        let section = settings.autoencoder.resolve()?;
        let network = Autoencoder::new(&section.sizes()?, settings.seed, device);
        let opponent = Discriminator::new(section.disc_layers, WIDTH, settings.seed, device);
        Self::of(settings, network, opponent, perceptual, steps_per_epoch, device)
    }

    /// The same with networks of the caller's.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn of(
        settings: &Settings,
        network: Autoencoder,
        discriminator: Discriminator,
        perceptual: Perceptual,
        steps_per_epoch: usize,
        device: &Device,
    ) -> Result<Self> {
        let section = settings.autoencoder.resolve()?;
        ensure!(
            settings.perceptual.as_deref() == perceptual.hash(),
            "the settings do not name the weights that reconstructions are looked at through"
        );
        if section.perceptual == PerceptualKind::Lpips {
            Lpips::check_side(section.image_size)?;
        }
        let on_cpu = lies_in_host_memory(device);
        Ok(Self {
            statistics: discriminator.initial_statistics(),
            optimizers: [
                AdamW::new(&network, 0.0, on_cpu).with_betas(BETAS),
                AdamW::new(&discriminator, 0.0, on_cpu).with_betas(BETAS),
            ],
            network,
            discriminator,
            perceptual,
            replicas: Replicas::new(section.replicas, on_cpu)?,
            settings: Settings { autoencoder: section, ..settings.clone() },
            steps_per_epoch,
            device: device.clone(),
        })
    }

    /// What the run is.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// The micro-batches of a step.
    pub fn replicas(&self) -> &Replicas {
        &self.replicas
    }

    fn identity(&self) -> Result<Identity> {
        let settings = self.settings.recorded()?;
        Ok(Identity { kind: "autoencoder checkpoint", steps_per_epoch: self.steps_per_epoch, settings })
    }

    /// Writes the state before `step`, atomically.
    ///
    /// # Errors
    /// A folder that cannot be written to; weights that are not finite, which no run could continue from.
    pub fn save(&self, path: &Path, step: usize) -> Result<()> {
        let mut writer = checkpoint::Writer::default()
            .network("network", &self.network)
            .network("discriminator", &self.discriminator)
            .optimizer("network_optimizer", &self.optimizers[0])?
            .optimizer("discriminator_optimizer", &self.optimizers[1])?;
        for (name, tensor) in statistics_names(&self.statistics) {
            writer = writer.tensor(&name, tensor)?;
        }
        writer.write(path, self.identity()?, step, NOT_FINITE)
    }

    /// Takes the state out of a checkpoint, and returns the step to do next. Nothing is loaded half-way.
    ///
    /// # Errors
    /// A file that is no checkpoint, is incomplete, or belongs to another configuration: the first differing key is named.
    pub fn resume(&mut self, path: &Path) -> Result<usize> {
        let load = || -> Result<(Self, usize)> {
            let mut saved = checkpoint::Reader::open(path, &self.identity()?)?;
            let network = saved.network("network", &self.network)?;
            let discriminator = saved.network("discriminator", &self.discriminator)?;
            let optimizers = [
                saved.optimizer("network_optimizer", &self.optimizers[0], &self.device)?,
                saved.optimizer("discriminator_optimizer", &self.optimizers[1], &self.device)?,
            ];
            let mut read = |name: String| saved.tensor(&name, &self.device);
            let statistics = (0..self.statistics.len())
                .map(|layer| Ok([read(statistic(layer, 0))?, read(statistic(layer, 1))?]))
                .collect::<Result<_>>()?;
            Ok((Self { network, discriminator, optimizers, statistics, ..self.clone() }, saved.finish()?))
        };
        let (trainer, step) = load().with_context(|| format!("cannot resume from {}", path.display()))?;
        *self = trainer;
        Ok(step)
    }

    /// One step on `batch`.
    ///
    /// # Errors
    /// A batch of another size than configured, a loss that is not finite (nothing is updated then), a failing device.
    pub fn step(&mut self, batch: &SquareBatch, step: usize) -> Result<StepReport> {
        let section = &self.settings.autoencoder;
        let side = section.image_size / section.kind.factor();
        let latent = section.sizes()?.latent_channels * side * side;
        let noise = match section.kind.has_codebook() {
            true => vec![],
            false => (0..batch.indices.len() as u64)
                .flat_map(|row| {
                    let mut rng = random::keyed(self.settings.seed, "posterior", &[step as u64, row]);
                    random::normal(&mut rng, 1.0, latent)
                })
                .collect(),
        };
        self.step_with(batch, &noise, step)
    }

    /// One step whose latents are drawn with `noise`, `[B, z, h, w]`, where they are drawn.
    ///
    /// # Errors
    /// As [`step`](Self::step).
    pub fn step_with(&mut self, batch: &SquareBatch, noise: &[f32], step: usize) -> Result<StepReport> {
        let section = self.settings.autoencoder.clone();
        let size = batch.indices.len();
        ensure!(
            size > 0 && batch.side == section.image_size && batch.pixels.len() == size * 3 * batch.side.pow(2),
            "a batch of {size} images of {} px is not of the configured {} px",
            batch.side,
            section.image_size
        );
        let judged = section.disc_weight > 0.0 && step as i64 >= section.disc_start;
        let passes = self.replicas.run(size, |range| self.pass(batch, noise, range, judged))?;

        let d_weight = if judged { section.disc_weight * ratio_at_last_weight(&passes)? } else { 0.0 };
        let numbers = passes.iter().map(|pass| read(&pass.numbers)).collect::<Result<Vec<_>>>()?;
        let [nll, rec, perceptual, bottleneck, generator] =
            [0, 1, 2, 3, 4].map(|i| numbers.iter().map(|part| part[i]).sum::<f64>());
        let weight = if section.kind.has_codebook() { section.codebook_weight } else { section.kl_weight };
        let loss = nll + weight * bottleneck + d_weight * generator;
        let epoch = step / self.steps_per_epoch;
        self.check_finite(loss, "loss", step)?;
        let used = codes(&passes)?;
        let revives = section.revive_every > 0 && step.is_multiple_of(section.revive_every);
        let latents = if revives { quantized(&passes)? } else { vec![] };
        for statistics in passes.iter().filter_map(|pass| pass.statistics.as_ref()) {
            self.statistics = followed(std::mem::take(&mut self.statistics), statistics);
        }

        let parts = self.replicas.each(passes, |pass| self.part(pass, size, d_weight, judged))?;
        let (mut gradients, mut against, mut discriminator) = (vec![], vec![], 0.0);
        for part in parts {
            gradients.push(part.gradients);
            if let Some(opponent) = part.opponent {
                discriminator += read(&[opponent.loss])?[0];
                against.push(opponent.gradients);
                for statistics in opponent.statistics {
                    self.statistics = followed(std::mem::take(&mut self.statistics), &statistics);
                }
            }
        }
        self.check_finite(discriminator, "discriminator's loss", step)?;
        let lr = self.rate(step);
        let update = Update { lr, weight_decay: 0.0, momentum: 0.0, frozen: None };
        let [ours, theirs] = &mut self.optimizers;
        let mut norms = vec![ours.step_alone(&mut self.network, gradients, update)];
        if judged {
            norms.push(theirs.step_alone(&mut self.discriminator, against, update));
        }
        for norm in norms.into_iter().flatten() {
            self.check_finite(norm, "gradient", step)?;
        }
        if let Some(codebook) = self.network.quantize.as_ref().filter(|_| revives) {
            let mut rng = random::keyed(self.settings.seed, "revive", &[step as u64]);
            self.network.quantize = Some(codebook.revived(&used, &latents, &mut rng)?);
        }
        let codes = used.len();
        Ok(StepReport { step, epoch, lr, loss, rec, perceptual, bottleneck, codes, d_weight, generator, discriminator })
    }

    /// Learning rate of `step`: constant, then along half a cosine towards 0, which it would have after the last step.
    fn rate(&self, step: usize) -> f64 {
        let Section { lr, batch, epochs, decay_epochs, .. } = self.settings.autoencoder;
        let decay = decay_epochs * self.steps_per_epoch;
        let left = (epochs * self.steps_per_epoch).saturating_sub(step);
        lr * batch as f64 * decayed(decay, left)
    }

    fn check_finite(&self, number: f64, what: &str, step: usize) -> Result<()> {
        if !number.is_finite() {
            let epoch = step / self.steps_per_epoch;
            bail!(
                "the {what} is {number} at step {step} (epoch {epoch}); the last checkpoint is as it was. {NOT_FINITE}"
            );
        }
        Ok(())
    }
}

/// Numbers in one transfer.
pub(super) fn read<const N: usize>(scalars: &[Tensor<1>; N]) -> Result<[f64; N]> {
    let values = Tensor::cat(scalars.to_vec(), 0).try_into_vec_as::<f32>().map_err(|e| anyhow!("{e:?}"))?;
    Ok(std::array::from_fn(|i| f64::from(values[i])))
}

fn statistic(layer: usize, which: usize) -> String {
    format!("statistics.{layer}.{}", ["mean", "variance"][which])
}

fn statistics_names(statistics: &Statistics) -> impl Iterator<Item = (String, &Tensor<1>)> {
    statistics
        .iter()
        .enumerate()
        .flat_map(|(layer, both)| both.iter().enumerate().map(move |(which, tensor)| (statistic(layer, which), tensor)))
}
