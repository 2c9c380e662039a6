//! Two steps against PyTorch, resumption bit by bit, and what stops a run.

use super::*;
use crate::config::{Autoencoder as Section, AutoencoderKind, PerceptualKind};
use crate::model::discriminator::Discriminator;
use crate::model::parameters::{self, Named, Values};
use crate::model::perceptual::Lpips;
use crate::model::random;
use crate::model::weights::read_safetensors;
use std::path::PathBuf;

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/autoencoder").join(name)
}

/// Moves of all parameters in learning rates, as the golden file orders them.
fn moves(before: &Named, after: &Named, lr: f32) -> Vec<(String, f32)> {
    let of = |(name, values): (&String, &Values)| {
        let moved = values.data.iter().zip(&before[name].data).map(|(a, b)| (a - b) / lr);
        moved.map(|m| (name.clone(), m)).collect::<Vec<_>>()
    };
    after.iter().flat_map(of).collect()
}

/// Two steps of generator and discriminator. Losses: sums of f32 in another order. Moves: in learning rates, of which two
/// steps make up to 2.6; f16 keeps 1e-3 of them, and Adam divides by a gradient's own size, which magnifies the rounding
/// of small gradients.
fn two_steps(kind: &str, section: Section) {
    let device = Device::flex();
    let (golden_numbers, _) = read_safetensors(&golden("training.safetensors")).unwrap();
    let stage = FirstStage::import(&golden(&format!("{kind}.safetensors")), 1, &device).unwrap();
    let lpips = Lpips::load_with(&golden("lpips.safetensors"), [2, 2, 3, 3, 4], &device).unwrap();
    let opponent = golden_numbers.iter().filter_map(|(n, v)| Some((n.strip_prefix("judge.")?.to_string(), v.clone())));
    let opponent = parameters::import(Discriminator::new(2, 2, 0, &device), &opponent.collect()).unwrap();
    let settings = Settings { seed: 0, autoencoder: section, perceptual: Some(lpips.hash.clone()) };
    let perceptual = Perceptual::Lpips(Box::new(lpips));
    let mut trainer = Trainer::of(&settings, stage.network, opponent, perceptual, 2, &device).unwrap();
    let before = [parameters::export(&trainer.network), parameters::export(&trainer.discriminator)];
    let images = &golden_numbers["images"];
    let batch = SquareBatch { pixels: images.data.clone(), side: 16, indices: vec![0, 1, 2] };
    let noise = golden_numbers["noise"].data.chunks_exact(3 * 3 * 16);
    let losses = &golden_numbers[&format!("{kind}.losses")].data;
    for (step, (noise, expected)) in noise.zip(losses.chunks_exact(5)).enumerate() {
        let report = trainer.step_with(&batch, noise, step).unwrap();
        let weight = if kind == "kl" { 1e-6 } else { 1.0 };
        let found = [report.rec, weight * report.bottleneck, report.d_weight, report.generator, report.discriminator];
        for (found, expected) in found.iter().zip(expected) {
            let expected = f64::from(*expected);
            assert!((found - expected).abs() < 1e-4 * expected.abs().max(1e-2), "step {step}: {report:?}, {expected}");
        }
    }
    let after = [parameters::export(&trainer.network), parameters::export(&trainer.discriminator)];
    for (part, which) in ["moves", "judge"].iter().zip(0..) {
        let found = moves(&before[which], &after[which], 1e-3);
        let expected = &golden_numbers[&format!("{kind}.{part}")].data;
        assert_eq!(found.len(), expected.len());
        assert!(expected.iter().filter(|m| m.abs() > 0.5).count() > expected.len() / 3, "{part} hardly move");
        for ((name, found), expected) in found.iter().zip(expected) {
            // A key's bias shifts all scores of a query alike: its true gradient is 0, and Adam follows the rounding.
            if !name.ends_with("to_k.bias") {
                assert!((found - expected).abs() < 0.02, "{kind} {name} moved by {found}, not {expected}");
            }
        }
    }
    for (layer, [mean, variance]) in trainer.statistics.iter().enumerate() {
        for (found, name) in [(mean, "mean"), (variance, "variance")] {
            let found = found.to_data().try_into_vec::<f32>().unwrap();
            let expected = &golden_numbers[&format!("{kind}.running.{layer}.{name}")].data;
            let worst = found.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(found.len() == expected.len() && worst < 1e-5, "{name} {layer}: {found:?} is not {expected:?}");
        }
    }
}

fn golden_section(kind: AutoencoderKind) -> Section {
    Section {
        kind,
        channels: 2,
        groups: 1,
        image_size: 16,
        batch: 1,
        lr: 1e-3,
        perceptual: PerceptualKind::Lpips,
        perceptual_weight: 0.5,
        lpips_weights: "lpips.safetensors".into(),
        disc_weight: 0.8,
        disc_layers: 2,
        disc_start: 0,
        // The batch statistics are the whole batch's.
        replicas: 1,
        ..Section::default()
    }
}

#[test]
fn two_steps_of_kl_are_pytorchs() {
    two_steps("kl", Section { disc_start: 1, ..golden_section(AutoencoderKind::KlF4) });
}

#[test]
fn two_steps_of_vq_are_pytorchs() {
    two_steps("vq", golden_section(AutoencoderKind::VqF8));
}

fn tiny(kind: AutoencoderKind) -> Settings {
    let section = Section {
        kind,
        channels: 4,
        groups: 2,
        ch_mult: vec![1, 1, 2],
        codebook: if kind.has_codebook() { 16 } else { 0 },
        revive_every: 3,
        image_size: 16,
        epochs: 3,
        decay_epochs: 2,
        batch: 3,
        lr: 1e-3,
        perceptual: PerceptualKind::None,
        disc_start: 2,
        disc_layers: 1,
        ..Section::default()
    };
    Settings { seed: 4, autoencoder: section.resolve().unwrap(), perceptual: None }
}

struct Made(usize);

fn squares(count: usize, number: u64) -> SquareBatch {
    let pixels = random::uniform(&mut random::keyed(9, "squares", &[number]), 1.0, count * 3 * 16 * 16);
    SquareBatch { pixels, side: 16, indices: (0..count).collect() }
}

impl BatchSource for Made {
    type Batch = SquareBatch;
    fn steps_per_epoch(&self) -> usize {
        self.0
    }
    fn epoch(&self, epoch: usize, first: usize) -> Box<dyn Iterator<Item = Result<SquareBatch>> + '_> {
        Box::new((first..self.0).map(move |i| Ok(squares(3, (epoch * self.0 + i) as u64))))
    }
}

/// Notes the losses, and stops the run after some steps as an interruption would.
#[derive(Default)]
struct Notes {
    losses: Vec<f64>,
    rates: Vec<f64>,
    qualities: Vec<Quality>,
    stop_after: Option<usize>,
}

impl Observer for Notes {
    fn step(&mut self, report: &StepReport) {
        self.losses.push(report.loss);
        self.rates.push(report.lr);
        if Some(report.step + 1) == self.stop_after {
            std::panic::resume_unwind(Box::new("interrupted"));
        }
    }
    fn quality(&mut self, _: usize, quality: &Quality) {
        self.qualities.push(quality.clone());
    }
}

fn run(settings: &Settings, folder: &Path, resume: bool, notes: &mut Notes) -> Result<FirstStage> {
    let held_out = squares(4, 1000);
    let training = Training { settings, perceptual: Perceptual::None, source: &Made(2), held_out: &held_out, folder };
    train(training, resume, &Device::flex(), notes)
}

/// Six steps, checkpoints after 2 and 4, the discriminator from 2 on; interrupted after 5, so that step 5 is done twice.
#[test]
fn a_resumed_run_equals_an_uninterrupted_one_bit_by_bit() {
    for kind in [AutoencoderKind::KlF4, AutoencoderKind::VqF4] {
        let settings = tiny(kind);
        let (whole, parts) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let mut expected = Notes::default();
        let stage = run(&settings, whole.path(), false, &mut expected).unwrap();
        assert_eq!((expected.losses.len(), expected.qualities.len()), (6, 3));
        // Constant, then (1 - cos(pi * left / 4)) / 2 of it with 4, 3, 2, 1 steps left.
        let shares = [1.0, 1.0, 1.0, 0.85355, 0.5, 0.14645];
        for (rate, share) in expected.rates.iter().zip(shares) {
            assert!((rate / 3e-3 - share).abs() < 1e-5, "{:?}", expected.rates);
        }
        assert_eq!(expected.qualities[0].codebook_usage.is_some(), kind.has_codebook());

        let mut first = Notes { stop_after: Some(5), ..Notes::default() };
        let stopped =
            std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| run(&settings, parts.path(), false, &mut first)));
        assert!(stopped.is_err());
        let mut second = Notes::default();
        let resumed = run(&settings, parts.path(), true, &mut second).unwrap();
        assert_eq!(second.losses, expected.losses[4..]);
        assert_eq!(resumed.hash, stage.hash);
        for name in [CHECKPOINT, METRICS, FIRST_STAGE] {
            let bytes = |folder: &Path| std::fs::read(folder.join(name)).unwrap();
            assert!(bytes(whole.path()) == bytes(parts.path()), "{name} differs");
        }
        let loaded = FirstStage::load(&whole.path().join(FIRST_STAGE), &Device::flex()).unwrap();
        assert_eq!((&loaded.hash, &loaded.config), (&stage.hash, &stage.config));
        assert_eq!(loaded.config.scale == 1.0, kind.has_codebook(), "{}", loaded.config.scale);
        let mut other = settings.clone();
        other.autoencoder.disc_weight = 0.25;
        let message = format!("{:#}", run(&other, whole.path(), true, &mut Notes::default()).unwrap_err());
        assert!(message.contains("autoencoder.disc_weight") && message.contains("0.25"), "{message}");
    }
}

/// The latents of the batch that the scale was measured on have deviation 1 after it.
#[test]
fn the_scale_brings_latents_to_deviation_1() {
    let settings = tiny(AutoencoderKind::KlF4);
    let folder = tempfile::tempdir().unwrap();
    let stage = run(&settings, folder.path(), false, &mut Notes::default()).unwrap();
    let latents = stage.encode(tensor(&squares(3, 0), &Device::flex())).unwrap();
    let values = latents.into_data().try_into_vec::<f32>().unwrap();
    let mean = values.iter().sum::<f32>() / values.len() as f32;
    let variance = values.iter().map(|v| (v - mean).powi(2)).sum::<f32>() / (values.len() - 1) as f32;
    assert!((variance.sqrt() * stage.config.scale as f32 - 1.0).abs() < 1e-4);
}

/// The same batch again and again, without an opponent: what one image costs must fall.
#[test]
fn both_kinds_learn_and_micro_batches_add_up() {
    for kind in [AutoencoderKind::KlF4, AutoencoderKind::VqF4] {
        let losses = [1, 2].map(|replicas| {
            let mut settings = tiny(kind);
            settings.autoencoder = Section { disc_weight: 0.0, replicas, ..settings.autoencoder };
            let mut trainer = Trainer::new(&settings, Perceptual::None, 100, &Device::flex()).unwrap();
            let batch = squares(3, 0);
            (0..30).map(|step| trainer.step(&batch, step).unwrap().rec).collect::<Vec<_>>()
        });
        assert!(losses[0][29] < 0.9 * losses[0][0], "{kind:?}: {losses:?}");
        // Sums of f32 in another order, magnified by Adam; a code of a latent half-way between two may change.
        let worst = losses[0].iter().zip(&losses[1]).take(5).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
        assert!(worst < 1e-4, "{kind:?}: {worst}");
    }
}

#[test]
fn numbers_that_are_not_finite_stop_the_run_and_keep_the_checkpoint() {
    let settings = tiny(AutoencoderKind::VqF4);
    let mut trainer = Trainer::new(&settings, Perceptual::None, 10, &Device::flex()).unwrap();
    let before = parameters::export(&trainer.network);
    let mut batch = squares(3, 0);
    batch.pixels[7] = f32::NAN;
    let message = trainer.step(&batch, 7).unwrap_err().to_string();
    assert!(message.contains("step 7") && message.contains("autoencoder.lr"), "{message}");
    assert_eq!(parameters::export(&trainer.network), before);
    assert!(trainer.step(&SquareBatch { side: 8, ..squares(3, 0) }, 0).unwrap_err().to_string().contains("16 px"));
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(CHECKPOINT);
    trainer.save(&path, 1).unwrap();
    let kept = std::fs::read(&path).unwrap();
    trainer.network.decoder.conv_out.bias = trainer.network.decoder.conv_out.bias.map(|bias| bias * f32::NAN);
    let message = trainer.save(&path, 2).unwrap_err().to_string();
    assert!(message.contains("network.decoder.conv_out.bias is not finite after step 2"), "{message}");
    assert!(std::fs::read(&path).unwrap() == kept);
}

#[test]
fn psnr_is_the_worked_number() {
    // A difference of 0.2 everywhere: 4 / 0.04 is 20 dB; 1.3 is cut to 1.
    assert!((psnr(&[0.0, 0.5], &[0.2, 0.3]) - 20.0).abs() < 1e-5);
    assert!((psnr(&[0.8, 0.8], &[1.3, 0.6]) - 20.0).abs() < 1e-5);
    assert!((psnr(&[0.5], &[0.5]) - 58.92).abs() < 0.01);
}
