//! `[diffusion]` and `[sample]`: the embedding-conditioned latent diffusion model and how images are drawn from it.

use super::Precision;
use anyhow::{Result, ensure};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// The latent diffusion model. What the paper leaves open takes the values of the same group's Large-Image-Diffusion.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Diffusion {
    /// The denoising network.
    pub unet: UnetShape,
    /// Noise.
    pub noise: Noise,
    /// How embeddings condition.
    pub condition: Condition,
    /// Share of the training images whose embedding is replaced by zeros, for guidance.
    pub condition_dropout: f64,
    /// Passes over the patches.
    pub epochs: usize,
    /// Images per step.
    pub batch: usize,
    /// Patches drawn per epoch (a seeded subset, anew each epoch); 0 takes all.
    pub patches_per_epoch: usize,
    /// Learning rate of AdamW after the warm-up; not scaled by the batch.
    pub lr: f64,
    /// Steps of linear warm-up from nearly 0.
    pub warmup_steps: usize,
    /// In the last this many epochs the rate falls to 0 along half a cosine; 0 keeps it constant, as the reference does.
    pub decay_epochs: usize,
    /// Weight decay.
    pub weight_decay: f64,
    /// Largest decay of the moving average of the weights, which is what samples are drawn from.
    pub ema: f64,
    /// Whether every image is also shown flipped horizontally.
    pub hflip: bool,
    /// Whether every image is also shown flipped vertically: for tissue, which has no up.
    pub vflip: bool,
    /// Write a checkpoint every this many steps (and at the end); 0 writes one per epoch.
    pub checkpoint_every: usize,
    /// Draw a sheet of samples every this many steps (and at the end); 0 draws only the last.
    pub sample_every: usize,
    /// Samples drawn at every sheet without guidance, whose Fréchet distance to the training images is recorded; fewer than 2:
    /// none.
    pub judged: usize,
    /// Micro-batches whose gradients are summed, as `pretrain.replicas`.
    pub replicas: usize,
    /// Arithmetic of the U-Net's products in a training step; samples are drawn in single precision.
    pub precision: Precision,
}

/// How embeddings condition.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Condition {
    /// On the unit sphere, as Large-Image-Diffusion has them.
    Sphere,
    /// With mean 0 and deviation 1 in every channel over the training images: the embeddings of a briefly trained encoder
    /// share a large constant part, and on the sphere hardly differ.
    Standardized,
}

/// Sizes of the U-Net.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct UnetShape {
    /// Width of the finest level.
    pub channels: usize,
    /// Width of every level, as multiples.
    pub channel_mult: Vec<usize>,
    /// Residual blocks of a level on the way down; one more on the way up.
    pub res_blocks: usize,
    /// Downsampling factors of the latents at which positions attend.
    pub attention: Vec<usize>,
    /// Attention heads.
    pub heads: usize,
    /// Width of the context token.
    pub context: usize,
    /// Whether the context is also added to the embedding of the time, through two layers, and so enters every residual
    /// block: Stable unCLIP's way with the embedding of an image (diffusers' `class_embed_type = "projection"`).
    pub context_in_time: bool,
    /// Groups of the normalisation.
    pub groups: usize,
}

/// The forward process.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Noise {
    /// Time steps.
    pub steps: usize,
    /// How β grows.
    pub schedule: BetaSchedule,
    /// First β.
    pub beta_start: f64,
    /// Last β.
    pub beta_end: f64,
    /// What the network predicts.
    pub prediction: Prediction,
    /// Whether nothing of the image is left at the last time step (Lin et al. 2024, algorithm 1; diffusers'
    /// `rescale_betas_zero_snr`). Otherwise training shows the network a trace of every image's mean, which sampling, that
    /// begins with pure noise, does not have: samples come out too near to the average.
    pub zero_terminal_snr: bool,
}

/// How β grows from its first to its last value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BetaSchedule {
    /// Linear in sqrt(β): what latent-diffusion calls "linear" and diffusers "scaled_linear".
    ScaledLinear,
    /// Linear in β (Ho et al. 2020).
    Linear,
}

/// What the network predicts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Prediction {
    /// The noise ε.
    Epsilon,
    /// The velocity `sqrt(ᾱ) ε - sqrt(1 - ᾱ) x0` (Salimans and Ho 2022).
    Velocity,
}

/// How images are drawn.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Sample {
    /// The rule of a step.
    pub solver: Solver,
    /// Steps from noise to image.
    pub steps: usize,
    /// Which time steps they are.
    pub spacing: Spacing,
    /// Share of the noise that DDIM puts back: 0 is deterministic, 1 is close to DDPM.
    pub eta: f64,
    /// Classifier-free guidance: 1 follows the condition as trained, more exaggerates it, 0 ignores it.
    pub guidance: f64,
    /// Images drawn at a time.
    pub batch: usize,
}

/// The rule of a sampling step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Solver {
    /// Denoising diffusion implicit models (Song et al. 2021).
    Ddim,
    /// DPM-Solver++(2M) (Lu et al. 2022): second order, good from 10 steps on.
    Dpm,
    /// Ancestral sampling (Ho et al. 2020): best with as many steps as were trained.
    Ddpm,
}

/// Which of the trained time steps are sampling steps; diffusers' `timestep_spacing` has the names of the first two.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Spacing {
    /// From the first on, as latent-diffusion has them: the noisiest is left out, so that sampling begins with more signal in
    /// sight than pure noise has.
    Leading,
    /// From the last, the noisiest, on (Lin et al. 2024, table 2).
    Trailing,
    /// From the last on, ever closer together towards the image, where details are decided (Song et al. 2021, appendix D.2).
    Quadratic,
}

impl Default for Diffusion {
    fn default() -> Self {
        Self {
            unet: UnetShape::default(),
            noise: Noise::default(),
            condition: Condition::Sphere,
            condition_dropout: 0.1,
            epochs: 100,
            batch: 100,
            patches_per_epoch: 0,
            lr: 1e-4,
            warmup_steps: 1000,
            decay_epochs: 0,
            weight_decay: 0.01,
            ema: 0.9999,
            hflip: true,
            vflip: false,
            checkpoint_every: 0,
            sample_every: 5000,
            judged: 0,
            replicas: 0,
            precision: Precision::F32,
        }
    }
}

impl Default for UnetShape {
    fn default() -> Self {
        Self {
            channels: 192,
            channel_mult: vec![1, 2, 3, 5],
            res_blocks: 2,
            attention: vec![2, 4, 8],
            heads: 1,
            context: 512,
            context_in_time: false,
            groups: 32,
        }
    }
}

impl Default for Noise {
    fn default() -> Self {
        Self {
            steps: 1000,
            schedule: BetaSchedule::ScaledLinear,
            beta_start: 0.0015,
            beta_end: 0.0195,
            prediction: Prediction::Epsilon,
            zero_terminal_snr: false,
        }
    }
}

impl Default for Sample {
    fn default() -> Self {
        Self { solver: Solver::Ddim, steps: 50, spacing: Spacing::Leading, eta: 0.0, guidance: 2.0, batch: 32 }
    }
}

impl UnetShape {
    /// Whether positions attend at `level` (0 is the finest).
    pub fn attends(&self, level: usize) -> bool {
        self.attention.contains(&(1 << level))
    }

    /// Sides of latents must be multiples of this.
    pub fn factor(&self) -> usize {
        1 << (self.channel_mult.len().max(1) - 1)
    }

    /// That latents of this side can be halved as often as the network does.
    ///
    /// # Errors
    /// A side that is no multiple of [`factor`](Self::factor).
    pub fn check_latents(&self, side: usize) -> Result<()> {
        ensure!(
            side > 0 && side.is_multiple_of(self.factor()),
            "latents of {side} x {side} cannot be halved {} times: change autoencoder.image_size or diffusion.unet.channel_mult",
            self.channel_mult.len() - 1
        );
        Ok(())
    }

    /// # Errors
    /// Sizes that contradict each other, by key.
    pub fn check(&self) -> Result<()> {
        let levels = self.channel_mult.len();
        ensure!((1..=8).contains(&levels), "diffusion.unet.channel_mult needs 1 to 8 levels, not {levels}");
        ensure!(
            self.channels > 0 && self.channels.is_multiple_of(2) && self.channel_mult.iter().all(|&mult| mult > 0),
            "diffusion.unet.channels is even and above 0, channel_mult above 0"
        );
        ensure!(
            self.groups > 0 && self.channels.is_multiple_of(self.groups),
            "diffusion.unet.channels = {} is no multiple of diffusion.unet.groups = {}",
            self.channels,
            self.groups
        );
        ensure!(
            self.heads > 0 && self.channels.is_multiple_of(self.heads),
            "diffusion.unet.channels = {} is no multiple of diffusion.unet.heads = {}",
            self.channels,
            self.heads
        );
        ensure!(self.res_blocks > 0 && self.context > 0, "diffusion.unet.res_blocks and context must be above 0");
        let wrong = self.attention.iter().find(|&&at| !(0..levels).any(|level| at == 1 << level));
        if let Some(at) = wrong {
            anyhow::bail!(
                "diffusion.unet.attention = {at}: with {levels} levels the latents are downsampled by {:?}",
                (0..levels).map(|level| 1 << level).collect::<Vec<usize>>()
            );
        }
        Ok(())
    }
}

impl Diffusion {
    /// As headers and checkpoints have it: what is off by default goes without saying, as it did before there was a choice.
    ///
    /// # Errors
    /// Settings that are no JSON.
    pub fn recorded(&self) -> Result<Value> {
        let mut settings = serde_json::to_value(self)?;
        if let Some(settings) = settings.as_object_mut() {
            settings.retain(|key, value| key != "decay_epochs" || *value != 0);
            settings.retain(|key, value| key != "precision" || *value != "f32");
        }
        for (table, key) in [("unet", "context_in_time"), ("noise", "zero_terminal_snr")] {
            if let Some(table) = settings[table].as_object_mut() {
                table.retain(|name, value| name != key || *value != false);
            }
        }
        Ok(settings)
    }

    /// # Errors
    /// Settings that make no sense, by key.
    pub fn check(&self) -> Result<()> {
        self.unet.check()?;
        let Noise { steps, beta_start, beta_end, prediction, zero_terminal_snr, .. } = self.noise;
        ensure!(steps > 1, "diffusion.noise.steps must be above 1");
        ensure!(
            0.0 < beta_start && beta_start <= beta_end && beta_end < 1.0,
            "diffusion.noise.beta_start and beta_end lie between 0 and 1, in this order"
        );
        ensure!(
            !zero_terminal_snr || prediction == Prediction::Velocity,
            "diffusion.noise.zero_terminal_snr needs diffusion.noise.prediction = \"velocity\": the noise of an image that is all noise \
             says nothing about the image"
        );
        ensure!((0.0..=1.0).contains(&self.condition_dropout), "diffusion.condition_dropout is a probability");
        ensure!(self.epochs > 0 && self.batch > 0, "diffusion.epochs and diffusion.batch must be above 0");
        ensure!(
            self.patches_per_epoch == 0 || self.patches_per_epoch >= self.batch,
            "diffusion.patches_per_epoch must be 0 (all) or fill a batch: {} is below diffusion.batch = {}",
            self.patches_per_epoch,
            self.batch
        );
        ensure!(self.lr > 0.0 && self.lr.is_finite(), "diffusion.lr must be above 0");
        ensure!(
            self.decay_epochs <= self.epochs,
            "diffusion.decay_epochs = {} is longer than diffusion.epochs = {}",
            self.decay_epochs,
            self.epochs
        );
        ensure!(self.weight_decay >= 0.0, "diffusion.weight_decay is 0 or more");
        ensure!((0.0..1.0).contains(&self.ema), "diffusion.ema is a decay below 1");
        Ok(())
    }
}

impl Sample {
    /// What decides on an image, as headers have it: how many are drawn at a time does not, and latent-diffusion's spacing goes
    /// without saying, as it did before there was a choice.
    ///
    /// # Errors
    /// Settings that are no JSON.
    pub fn recorded(&self) -> Result<Value> {
        let mut settings = serde_json::to_value(self)?;
        if let Some(settings) = settings.as_object_mut() {
            settings.retain(|key, value| key != "batch" && (key != "spacing" || *value != "leading"));
            if self.solver != Solver::Ddim {
                // Of DDIM alone.
                settings.insert("eta".into(), 0.0.into());
            }
        }
        Ok(settings)
    }

    /// # Errors
    /// Settings that make no sense, by key, for a model trained with this `noise`.
    pub fn check(&self, noise: &Noise) -> Result<()> {
        ensure!(
            (1..=noise.steps).contains(&self.steps),
            "sample.steps = {} is not between 1 and diffusion.noise.steps = {}",
            self.steps,
            noise.steps
        );
        ensure!(
            !noise.zero_terminal_snr || self.spacing != Spacing::Leading,
            "diffusion.noise.zero_terminal_snr needs sample.spacing = \"trailing\" or \"quadratic\": the step that sampling leaves out \
             otherwise is the one that begins with nothing but noise"
        );
        ensure!((0.0..=1.0).contains(&self.eta), "sample.eta lies between 0 and 1");
        ensure!(self.guidance >= 0.0 && self.guidance.is_finite(), "sample.guidance is 0 or more");
        ensure!(self.batch > 0, "sample.batch must be above 0");
        Ok(())
    }
}
