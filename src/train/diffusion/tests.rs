use super::*;
use crate::config::{Condition, Precision, UnetShape};
use crate::data::latents::{Encoded, LatentHeader, LatentWriter};
use crate::model::parameters;
use crate::model::unet::tests::{golden_input, golden_unet};
use serde_json::Value;

fn settings() -> Settings {
    let unet = UnetShape {
        channels: 4,
        channel_mult: vec![1, 2],
        res_blocks: 1,
        attention: vec![2],
        heads: 2,
        context: 6,
        context_in_time: false,
        groups: 2,
    };
    let diffusion =
        Diffusion { unet, batch: 4, epochs: 2, warmup_steps: 2, lr: 2e-3, sample_every: 3, ..Diffusion::default() };
    let config = DiffusionConfig {
        unet: diffusion.unet.clone(),
        noise: diffusion.noise.clone(),
        condition: Condition::Standardized,
        statistics: [vec![0.1; 5], vec![0.7; 5]],
        latent: [3, 8],
        embedding: 5,
        encoder: "e".into(),
        autoencoder: "a".into(),
        origin: Value::Null,
    };
    Settings { seed: 3, diffusion, config }
}

/// A file of 13 images, each a pattern that its embedding tells.
fn loader(settings: &Settings, folder: &Path) -> LatentLoader {
    let header = LatentHeader { shape: [3, 8, 8], embedding: 5, flips: 2, origin: Value::Null };
    let path = folder.join("latents.bin");
    let mut writer = LatentWriter::open(&path, &header).unwrap();
    for image in 0..13 {
        let flip = |flip: usize| Encoded {
            latent: (0..192).map(|i| ((i * (image + 1) + flip) as f32).sin()).collect(),
            embedding: (0..5).map(|i| ((i * 5 + image) as f32).cos()).collect(),
        };
        writer.add(image, &[flip(0), flip(1)]).unwrap();
    }
    writer.finish().unwrap();
    LatentLoader::new(LatentFile::open(&path, &header).unwrap().unwrap(), settings).unwrap()
}

/// Against diffusers' UNet2DConditionModel and torch's AdamW: loss to 2e-5, parameters to 2e-5 where Adam's first step
/// is 1e-3 for every element; where a gradient is nearly 0 its sign, and with it the step, is rounding, so those few
/// may differ by two steps.
#[test]
fn a_training_step_is_that_of_pytorch() {
    let (unet, golden) = golden_unet();
    let mut settings = settings();
    settings.diffusion.lr = 1e-3;
    settings.diffusion.warmup_steps = 0;
    let mut trainer = Trainer::new(&settings, 10, &Device::flex()).unwrap();
    let before = parameters::export(&unet);
    (trainer.unet, trainer.average) = (unet.clone(), unet);
    let batch = LatentBatch { size: 2, latents: golden_input(100, 384), embeddings: golden_input(102, 10) };
    let draws = Draws { times: vec![3, 700], noise: golden_input(101, 384), dropped: vec![false; 2] };
    let report = trainer.step_with(&batch, &draws, 0).unwrap();
    let expected = f64::from(golden["loss"].data[0]);
    assert!((report.loss - expected).abs() < 2e-5 * expected, "{} is not {expected}", report.loss);
    let (after, average) = (parameters::export(&trainer.unet), parameters::export(&trainer.average));
    let (mut off, mut all) = (0, 0);
    for (name, values) in &after {
        let expected = &golden[&format!("after.{name}")].data;
        for (i, (found, expected)) in values.data.iter().zip(expected).enumerate() {
            let difference = (found - expected).abs();
            assert!(difference < 2.1e-3, "{name}[{i}] is {found}, not {expected}");
            off += usize::from(difference > 2e-5);
            all += 1;
            // The average keeps 2/11 after the first update.
            let follows = before[name].data[i] * 2.0 / 11.0 + found * 9.0 / 11.0;
            assert!((average[name].data[i] - follows).abs() < 1e-6);
        }
    }
    assert!(off * 100 < all, "{off} of {all} parameters differ");
}

#[derive(Default)]
struct Notes {
    losses: Vec<f64>,
    sheets: Vec<usize>,
    stop_after: Option<usize>,
}

impl Observer for Notes {
    fn step(&mut self, report: &StepReport) {
        self.losses.push(report.loss);
        if Some(report.step + 1) == self.stop_after {
            std::panic::resume_unwind(Box::new("interrupted"));
        }
    }
    fn sheet(&mut self, step: usize, _: &DiffusionModel) -> Result<Option<f64>> {
        self.sheets.push(step);
        Ok(Some(1.0 / step as f64))
    }
}

#[test]
fn a_resumed_run_equals_an_uninterrupted_one_bit_by_bit() {
    let settings = settings();
    let data = tempfile::tempdir().unwrap();
    let loader = loader(&settings, data.path());
    assert_eq!(loader.steps_per_epoch(), 3);
    let (whole, parts) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let run = |folder: &Path, notes: &mut Notes| train(&settings, &loader, folder, true, &Device::flex(), notes);
    let mut expected = Notes::default();
    let model = run(whole.path(), &mut expected).unwrap();
    assert_eq!((expected.losses.len(), &expected.sheets[..]), (6, &[3, 6][..]));
    let mut first = Notes { stop_after: Some(4), ..Notes::default() };
    let stopped = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| run(parts.path(), &mut first)));
    assert!(stopped.is_err());
    let mut second = Notes::default();
    let resumed = run(parts.path(), &mut second).unwrap();
    assert_eq!(second.losses, expected.losses[3..]);
    assert_eq!(resumed.hash, model.hash);
    for name in [CHECKPOINT, METRICS, MODEL] {
        let bytes = |folder: &Path| std::fs::read(folder.join(name)).unwrap();
        assert!(bytes(whole.path()) == bytes(parts.path()), "{name} differs");
    }
    let text = std::fs::read_to_string(whole.path().join(METRICS)).unwrap();
    let judged: Vec<&str> = text.lines().filter(|line| line.contains("frechet_distance")).collect();
    assert_eq!(judged.len(), 2);
    assert_eq!(judged[0], r#"{"step":2,"epoch":0,"frechet_distance":0.3333333333333333}"#);
    let loaded = DiffusionModel::load(&whole.path().join(MODEL), &Device::flex()).unwrap();
    assert_eq!((&loaded.hash, &loaded.config), (&model.hash, &model.config));
    let message = loaded.require("other encoder", "a").unwrap_err().to_string();
    assert!(message.contains("encoder e, and this is other encode"), "{message}");
}

/// Two warm steps, four at the full rate, two epochs along half a cosine; and nothing of it in the records of a constant rate.
#[test]
fn the_rate_warms_up_and_falls_to_zero_where_that_is_asked_for() {
    let mut settings = settings();
    let recorded = settings.diffusion.recorded().unwrap();
    assert!(recorded.get("decay_epochs").is_none() && recorded["noise"].get("zero_terminal_snr").is_none());
    assert!(recorded.get("precision").is_none());
    assert!(recorded["unet"].get("context_in_time").is_none() && recorded["unet"]["context"] == 6);
    settings.diffusion = Diffusion { epochs: 5, decay_epochs: 2, lr: 1.0, ..settings.diffusion };
    let trainer = Trainer::new(&settings, 2, &Device::flex()).unwrap();
    let rates: Vec<f64> = (0..trainer.steps()).map(|step| trainer.rate(step)).collect();
    let expected = [1e-6, 0.500_000_5, 1.0, 1.0, 1.0, 1.0, 1.0, 0.853_553_391, 0.5, 0.146_446_609];
    assert!(rates.iter().zip(expected).all(|(rate, expected)| (rate - expected).abs() < 1e-9), "{rates:?}");
    settings.diffusion.unet.context_in_time = true;
    let recorded = settings.diffusion.recorded().unwrap();
    assert_eq!((&recorded["decay_epochs"], &recorded["unet"]["context_in_time"]), (&2.into(), &true.into()));
}

#[test]
fn the_loss_falls() {
    let mut settings = settings();
    settings.diffusion.epochs = 60;
    settings.diffusion.ema = 0.5;
    let data = tempfile::tempdir().unwrap();
    let loader = loader(&settings, data.path());
    let mut notes = Notes::default();
    train(&settings, &loader, data.path(), false, &Device::flex(), &mut notes).unwrap();
    let mean = |losses: &[f64]| losses.iter().sum::<f64>() / losses.len() as f64;
    let (early, late) = (mean(&notes.losses[..20]), mean(&notes.losses[160..]));
    assert!((0.8..1.2).contains(&notes.losses[0]) && late < 0.8 * early, "{early} to {late}");
}

/// The bf16 path on the CPU, which a run may not take there: steps whose losses agree with f32's to the 3 digits that 8 bits of
/// mantissa leave.
#[test]
fn products_in_bf16_follow_those_in_f32() {
    let mut settings = settings();
    let losses = [Precision::F32, Precision::Bf16].map(|precision| {
        let mut trainer = Trainer::new(&settings, 10, &Device::flex()).unwrap();
        let (unet, _) = golden_unet();
        (trainer.unet, trainer.average) = (unet.clone().with_precision(precision), unet);
        let batch = LatentBatch { size: 2, latents: golden_input(100, 384), embeddings: golden_input(102, 10) };
        [0, 1, 2].map(|step| trainer.step(&batch, step).unwrap().loss)
    });
    for (single, half) in losses[0].iter().zip(losses[1]) {
        assert!((single - half).abs() < 0.02 * single && *single != half, "{losses:?}");
    }
    settings.diffusion.precision = Precision::Bf16;
    let message = Trainer::new(&settings, 10, &Device::flex()).unwrap_err().to_string();
    assert!(message.contains("bf16") && message.contains("f32"), "{message}");
}

#[test]
fn a_loss_that_is_not_finite_stops_and_latents_that_cannot_be_halved_are_refused() {
    let mut settings = settings();
    let mut trainer = Trainer::new(&settings, 10, &Device::flex()).unwrap();
    let mut batch = LatentBatch { size: 2, latents: vec![0.5; 384], embeddings: vec![0.1; 10] };
    batch.latents[7] = f32::INFINITY;
    let before = parameters::export(&trainer.unet);
    let message = trainer.step(&batch, 7).unwrap_err().to_string();
    assert!(message.contains("at step 7") && message.contains("diffusion.lr"), "{message}");
    assert!(parameters::export(&trainer.unet) == before, "a step that failed changes nothing");
    batch.latents.pop();
    assert!(trainer.step(&batch, 7).unwrap_err().to_string().contains("configured latents"));
    settings.config.latent = [3, 9];
    let message = Trainer::new(&settings, 10, &Device::flex()).unwrap_err().to_string();
    assert!(message.contains("9 x 9") && message.contains("image_size"), "{message}");
}
