//! `[autoencoder]`: the first stage of latent diffusion, and how it is trained.

use anyhow::{Result, ensure};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// The first stages of latent diffusion (Rombach et al. 2022), by how their latents are kept in bounds and how many
/// pixels of a side become one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AutoencoderKind {
    /// Normal posterior, 4 px a latent, 3 channels.
    KlF4,
    /// Normal posterior, 8 px a latent, 4 channels.
    KlF8,
    /// Codebook, 4 px a latent, 3 channels.
    #[default]
    VqF4,
    /// Codebook, 8 px a latent, 4 channels, attention at the deepest level.
    VqF8,
}

impl AutoencoderKind {
    /// Whether latents are quantised to a codebook.
    pub fn has_codebook(self) -> bool {
        matches!(self, Self::VqF4 | Self::VqF8)
    }

    /// Pixels of a side that become one latent.
    pub fn factor(self) -> usize {
        match self {
            Self::KlF4 | Self::VqF4 => 4,
            Self::KlF8 | Self::VqF8 => 8,
        }
    }

    /// The kind with or without a codebook that has this factor.
    pub fn of(has_codebook: bool, factor: usize) -> Option<Self> {
        [Self::KlF4, Self::KlF8, Self::VqF4, Self::VqF8]
            .into_iter()
            .find(|kind| kind.has_codebook() == has_codebook && kind.factor() == factor)
    }

    /// Widths of the levels, in multiples of `channels`.
    fn ch_mult(self) -> &'static [usize] {
        match self {
            Self::KlF4 | Self::VqF4 => &[1, 2, 4],
            Self::KlF8 => &[1, 2, 4, 4],
            Self::VqF8 => &[1, 2, 2, 4],
        }
    }

    fn latent_channels(self) -> usize {
        match self {
            Self::KlF4 | Self::VqF4 => 3,
            Self::KlF8 | Self::VqF8 => 4,
        }
    }

    fn codebook(self) -> usize {
        match self {
            Self::KlF4 | Self::KlF8 => 0,
            Self::VqF4 => 8192,
            Self::VqF8 => 16384,
        }
    }

    /// Downsampling factors with attention; the middle has it always.
    fn attention(self) -> &'static [usize] {
        match self {
            Self::VqF8 => &[8],
            _ => &[],
        }
    }

    /// Weight of the discriminator, the first step that uses it, and its layers.
    fn discriminator(self) -> (f64, usize, usize) {
        match self {
            Self::KlF4 | Self::KlF8 => (0.5, 50_001, 3),
            Self::VqF4 => (0.75, 0, 3),
            Self::VqF8 => (0.6, 1, 2),
        }
    }
}

/// The sizes of a first stage, every one given: what its file says of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AutoencoderSizes {
    /// What it is.
    pub kind: AutoencoderKind,
    /// Width of the first level.
    pub channels: usize,
    /// Widths of the levels, in multiples of `channels`; every level but the last halves the sides.
    pub ch_mult: Vec<usize>,
    /// Channels of a latent.
    pub latent_channels: usize,
    /// Groups of every group normalisation.
    pub groups: usize,
    /// Downsampling factors with attention.
    pub attention: Vec<usize>,
    /// Entries of the codebook; 0 without one.
    pub codebook: usize,
}

impl AutoencoderSizes {
    /// The same, checked.
    ///
    /// # Errors
    /// Sizes that contradict each other, by their keys.
    pub fn checked(self) -> Result<Self> {
        let (factor, levels) = (self.kind.factor(), self.kind.factor().ilog2() as usize + 1);
        ensure!(
            self.ch_mult.len() == levels && self.ch_mult.iter().all(|&mult| mult > 0),
            "autoencoder.ch_mult = {:?}: {factor} px a latent take {levels} levels, each of at least 1",
            self.ch_mult
        );
        ensure!(
            self.groups > 0 && self.channels > 0 && self.channels.is_multiple_of(self.groups),
            "autoencoder.channels = {} is not a multiple of autoencoder.groups = {}",
            self.channels,
            self.groups
        );
        ensure!(self.latent_channels > 0, "a latent needs a channel");
        ensure!(
            self.kind.has_codebook() == (self.codebook > 0),
            "autoencoder.codebook = {}: only vq kinds have one",
            self.codebook
        );
        Ok(self)
    }

    /// Width of level `level`.
    pub fn width(&self, level: usize) -> usize {
        self.channels * self.ch_mult[level]
    }
}

/// What sees whether a reconstruction looks like its image, beside the pixels.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PerceptualKind {
    /// Nothing.
    None,
    /// Features of the encoder pretrained before: nothing outside the unlabelled images enters.
    #[default]
    Encoder,
    /// LPIPS: features of a VGG16 that was trained with ImageNet's labels.
    Lpips,
}

/// The first stage and its training.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Autoencoder {
    /// What it is.
    pub kind: AutoencoderKind,
    /// A file with a trained first stage, which is then used as it is; empty trains one.
    pub weights: PathBuf,
    /// Width of the first level.
    pub channels: usize,
    /// Widths of the levels, in multiples of `channels`; empty takes the kind's.
    pub ch_mult: Vec<usize>,
    /// Channels of a latent; 0 takes the kind's.
    pub latent_channels: usize,
    /// Groups of every group normalisation; `channels` is a multiple of it.
    pub groups: usize,
    /// Entries of the codebook; 0 takes the kind's.
    pub codebook: usize,
    /// Side of the training images, px.
    pub image_size: usize,
    /// Passes over the patches.
    pub epochs: usize,
    /// Images per step.
    pub batch: usize,
    /// Patches drawn per epoch (a seeded subset, anew each epoch); 0 takes all.
    pub patches_per_epoch: usize,
    /// Learning rate of one image; the rate used is `lr * batch`.
    pub lr: f64,
    /// In the last this many epochs the rate falls to 0 along half a cosine; 0 keeps it constant, as the reference does.
    pub decay_epochs: usize,
    /// Probabilities of a horizontal and of a vertical flip.
    pub flips: [f64; 2],
    /// What sees whether a reconstruction looks like its image.
    pub perceptual: PerceptualKind,
    /// Its weight beside the pixels' differences.
    pub perceptual_weight: f64,
    /// The weights of LPIPS: the state dictionary of `lpips.LPIPS(net="vgg")`, as `.safetensors` or `.pth`.
    pub lpips_weights: PathBuf,
    /// Weight of the posterior's divergence from the normal distribution.
    pub kl_weight: f64,
    /// Weight of the codebook's loss.
    pub codebook_weight: f64,
    /// Every this many steps, from the first on, codes that the batch does not use become latents of the batch; 0 never.
    pub revive_every: usize,
    /// Weight of the discriminator; 0 trains without one, below 0 takes the kind's.
    pub disc_weight: f64,
    /// First step that uses the discriminator; below 0 takes the kind's.
    pub disc_start: i64,
    /// Strided layers of the discriminator; 0 takes the kind's.
    pub disc_layers: usize,
    /// Write a checkpoint every this many steps (and at the end); 0 writes one per epoch.
    pub checkpoint_every: usize,
    /// Micro-batches whose gradients are summed: see `pretrain.replicas`. The discriminator's batch statistics are those
    /// of a micro-batch, as on several GPUs.
    pub replicas: usize,
}

impl Default for Autoencoder {
    fn default() -> Self {
        // Sizes and weights of latent-diffusion's configurations; VQ-f4 is the first stage of its ImageNet model.
        Self {
            kind: AutoencoderKind::default(),
            weights: PathBuf::new(),
            channels: 128,
            ch_mult: vec![],
            latent_channels: 0,
            groups: 32,
            codebook: 0,
            image_size: 256,
            epochs: 20,
            batch: 8,
            patches_per_epoch: 0,
            lr: 4.5e-6,
            decay_epochs: 0,
            flips: [0.5, 0.0],
            perceptual: PerceptualKind::default(),
            perceptual_weight: 1.0,
            lpips_weights: PathBuf::new(),
            kl_weight: 1e-6,
            codebook_weight: 1.0,
            // The reference's. Its long trainings spread the codes out; in some hundred steps they hardly leave the origin.
            revive_every: 0,
            disc_weight: -1.0,
            disc_start: -1,
            disc_layers: 0,
            checkpoint_every: 0,
            replicas: 0,
        }
    }
}

impl Autoencoder {
    /// The sizes of the network, with what is left open taken from the kind.
    ///
    /// # Errors
    /// Sizes that contradict each other, by their keys.
    pub fn sizes(&self) -> Result<AutoencoderSizes> {
        let Self { kind, channels, groups, .. } = *self;
        AutoencoderSizes {
            kind,
            channels,
            ch_mult: if self.ch_mult.is_empty() { kind.ch_mult().to_vec() } else { self.ch_mult.clone() },
            latent_channels: if self.latent_channels == 0 { kind.latent_channels() } else { self.latent_channels },
            groups,
            attention: kind.attention().to_vec(),
            codebook: if self.codebook == 0 { kind.codebook() } else { self.codebook },
        }
        .checked()
    }

    /// The same with the discriminator's settings taken from the kind where they are left open.
    ///
    /// # Errors
    /// As [`sizes`](Self::sizes); what no training can be done with, by its key.
    pub fn resolve(&self) -> Result<Self> {
        let sizes = self.sizes()?;
        let (weight, start, layers) = self.kind.discriminator();
        let (side, factor) = (self.image_size, self.kind.factor());
        ensure!(
            side > 0 && side.is_multiple_of(factor),
            "autoencoder.image_size = {side} is not a multiple of {factor} px, the side of a latent"
        );
        ensure!(self.epochs > 0 && self.batch > 0, "autoencoder.epochs and autoencoder.batch must be above 0");
        ensure!(
            self.patches_per_epoch == 0 || self.patches_per_epoch >= self.batch,
            "autoencoder.patches_per_epoch must be 0 (all) or fill a batch: {} is below autoencoder.batch = {}",
            self.patches_per_epoch,
            self.batch
        );
        ensure!(self.lr > 0.0 && self.lr.is_finite(), "autoencoder.lr must be above 0");
        ensure!(
            self.decay_epochs <= self.epochs,
            "autoencoder.decay_epochs = {} is longer than autoencoder.epochs = {}",
            self.decay_epochs,
            self.epochs
        );
        ensure!(
            self.flips.iter().all(|p| (0.0..=1.0).contains(p)),
            "autoencoder.flips are two probabilities, of a horizontal and of a vertical flip"
        );
        let weights = [self.perceptual_weight, self.kl_weight, self.codebook_weight];
        ensure!(
            self.disc_weight.is_finite(),
            "autoencoder.disc_weight = {} is no number: 0 trains without, below 0 takes the kind's",
            self.disc_weight
        );
        ensure!(
            weights.iter().all(|weight| weight.is_finite() && *weight >= 0.0),
            "autoencoder.perceptual_weight, kl_weight and codebook_weight are 0 or more"
        );
        ensure!(
            self.perceptual != PerceptualKind::Lpips || !self.lpips_weights.as_os_str().is_empty(),
            "autoencoder.perceptual = \"lpips\" needs autoencoder.lpips_weights: no weights come with the program"
        );
        let resolved = Self {
            ch_mult: sizes.ch_mult,
            codebook: sizes.codebook,
            disc_weight: if self.disc_weight < 0.0 { weight } else { self.disc_weight },
            disc_start: if self.disc_start < 0 { start as i64 } else { self.disc_start },
            disc_layers: if self.disc_layers == 0 { layers } else { self.disc_layers },
            ..self.clone()
        };
        // Every strided layer halves the sides; the last two take one pixel each.
        let left = u32::try_from(resolved.disc_layers).ok().and_then(|layers| side.checked_shr(layers)).unwrap_or(0);
        ensure!(
            resolved.disc_weight == 0.0 || left >= 3 || !resolved.weights.as_os_str().is_empty(),
            "autoencoder.disc_layers = {} leave {left} of autoencoder.image_size = {side} px, and a judgement needs 3: take fewer \
             layers, or none with autoencoder.disc_weight = 0",
            resolved.disc_layers
        );
        Ok(resolved)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_fill_in_what_is_left_open() {
        let settings = Autoencoder { kind: AutoencoderKind::VqF8, ..Autoencoder::default() }.resolve().unwrap();
        assert_eq!((settings.ch_mult.as_slice(), settings.codebook), (&[1, 2, 2, 4][..], 16384));
        assert_eq!((settings.disc_weight, settings.disc_start, settings.disc_layers), (0.6, 1, 2));
        let latents = |latent_channels| Autoencoder { latent_channels, ..Autoencoder::default() }.sizes().unwrap();
        assert_eq!([0, 8].map(|channels| latents(channels).latent_channels), [3, 8]);
        let own = Autoencoder { disc_weight: 0.0, disc_start: 7, codebook: 64, ..Autoencoder::default() };
        let own = own.resolve().unwrap();
        assert_eq!((own.disc_weight, own.disc_start, own.codebook), (0.0, 7, 64));
        assert_eq!(own.resolve().unwrap(), own);
        for (codebook, factor, kind) in
            [(false, 4, "kl_f4"), (false, 8, "kl_f8"), (true, 4, "vq_f4"), (true, 8, "vq_f8")]
        {
            let named = serde_json::to_value(AutoencoderKind::of(codebook, factor).unwrap()).unwrap();
            assert_eq!(named, kind);
        }
        assert_eq!(AutoencoderKind::of(true, 16), None);
    }

    #[test]
    fn contradictions_are_refused_by_their_key() {
        let refused = |settings: Autoencoder| settings.resolve().unwrap_err().to_string();
        let base = Autoencoder::default;
        assert!(refused(Autoencoder { channels: 48, ..base() }).contains("channels = 48"));
        assert!(refused(Autoencoder { ch_mult: vec![1, 2], ..base() }).contains("3 levels"));
        assert!(refused(Autoencoder { image_size: 62, ..base() }).contains("image_size = 62"));
        assert!(refused(Autoencoder { image_size: 16, ..base() }).contains("disc_layers = 3 leave 2 of"));
        assert!(Autoencoder { image_size: 16, disc_weight: 0.0, ..base() }.resolve().is_ok());
        assert!(refused(Autoencoder { codebook: 5, kind: AutoencoderKind::KlF4, ..base() }).contains("codebook = 5"));
        assert!(refused(Autoencoder { perceptual: PerceptualKind::Lpips, ..base() }).contains("lpips_weights"));
        assert!(refused(Autoencoder { lr: f64::NAN, ..base() }).contains("lr"));
        assert!(refused(Autoencoder { decay_epochs: 21, ..base() }).contains("decay_epochs = 21"));
    }
}
