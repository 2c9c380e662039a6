//! What a device has to prove before it is trusted: the network's and the step's golden numbers, and its speed.
//!
//! The numbers were made by PyTorch and timm (`tests/golden/model/make.py`) and are part of the program, so that
//! `gensis doctor --selftest` needs no other file.

mod encoders;

pub use encoders::golden_encoders;

use super::dino::{Settings, StepReport, Trainer};
use super::schedule::StepValues;
use crate::config::{Crops, GenDino, Head, Model, Precision, Pretrain, Targets, Variant};
use crate::data::{CropBatch, MixedBatch};
use crate::model::parameters::{self, Named, Values};
use crate::model::random;
use crate::model::vit::Vit;
use crate::model::weights::parse_safetensors;
use anyhow::{Context, Result, anyhow};
use burn::tensor::{Device, Tensor, TensorData};
use rand::RngExt;
use std::time::Instant;

const WEIGHTS: &[u8] = include_bytes!("../../tests/golden/model/weights.safetensors");
const STEP: &[u8] = include_bytes!("../../tests/golden/model/step.safetensors");
const GEN_DINO: &[u8] = include_bytes!("../../tests/golden/model/gen_dino.safetensors");

/// The steps of `make.py`: lr, weight decay, momentum, teacher temperature, whether the last layer is trained.
const STEPS: [StepValues; 2] = [
    StepValues { lr: 0.01, weight_decay: 0.04, momentum: 0.9, teacher_temp: 0.04, train_last_layer: false },
    StepValues { lr: 0.02, weight_decay: 0.2, momentum: 0.95, teacher_temp: 0.05, train_last_layer: true },
];

/// Largest difference of a parameter after two steps of DINO ...
const PARAMETER: f64 = 1e-4;
/// ... and of Gen-DINO.
const GEN_DINO_PARAMETER: f64 = 5e-4;

/// A result against its stored number.
#[derive(Clone, Debug, PartialEq)]
pub struct Comparison {
    /// What was compared.
    pub name: String,
    /// Largest absolute difference.
    pub difference: f64,
    /// Largest difference that f32 arithmetic in another order explains.
    pub allowed: f64,
}

impl Comparison {
    /// Whether the difference is explained.
    pub fn passes(&self) -> bool {
        // Not `>`: a difference that is not a number must not pass.
        self.difference <= self.allowed
    }

    fn of(name: impl Into<String>, found: &[f32], expected: &[f32], allowed: f64) -> Self {
        let pairs = found.iter().zip(expected).map(|(a, b)| f64::from((a - b).abs()));
        let worst = pairs.fold(0.0, |worst: f64, d| if d.is_nan() || d > worst { d } else { worst });
        let difference = if found.len() == expected.len() { worst } else { f64::INFINITY };
        Self { name: name.into(), difference, allowed }
    }
}

/// The network on an image of its own size and on one whose grid has another shape.
///
/// Allowed: 2e-5 of tokens up to 4. Two blocks add some hundred products of size 1, each rounded to 6e-8.
///
/// # Errors
/// A device that fails.
pub fn golden_forward(device: &Device) -> Result<Vec<Comparison>> {
    let (weights, golden) = (stored(WEIGHTS)?, stored(STEP)?);
    let vit = Vit::new(&golden_settings().model, 0, device);
    let vit = parameters::import(vit, &section(&weights, "teacher.backbone."))?;
    ["native", "wide"]
        .iter()
        .map(|name| {
            let image = tensor(&golden, &format!("image.{name}"))?;
            let expected = tensor(&golden, &format!("tokens.{name}"))?;
            let shape: [usize; 4] = image.shape.clone().try_into().map_err(|_| anyhow!("an image has 4 dimensions"))?;
            let input = Tensor::from_data(TensorData::new(image.data.clone(), shape), device);
            let found = vit.forward_tokens(input).try_into_vec_as::<f32>().map_err(|e| anyhow!("{e:?}"))?;
            Ok(Comparison::of(format!("ViT tokens, {name} grid"), &found, &expected.data, 2e-5))
        })
        .collect()
}

/// Two steps of DINO: losses, centre and every updated parameter of student and teacher.
///
/// Allowed: 2e-5 for losses near 6; 2e-6 for a centre of means near 0.1; for parameters 1e-4, that is 0.3 % of what two
/// steps move them at most (lr 0.01 + 0.02), since Adam divides by the gradient's own size, which magnifies the rounding
/// of small gradients. The biases of attention keys shift all scores of a query alike, so their true gradient is 0 and
/// Adam follows the sign of rounding errors: they may differ by two such moves in opposite directions.
///
/// # Errors
/// A device that fails.
pub fn golden_step(device: &Device) -> Result<Vec<Comparison>> {
    let (weights, golden) = (stored(WEIGHTS)?, stored(STEP)?);
    let mut trainer = Trainer::new(&golden_settings(), STEPS.len(), device)?;
    trainer.student = parameters::import(trainer.student, &section(&weights, "student."))?;
    trainer.teacher = parameters::import(trainer.teacher, &section(&weights, "teacher."))?;
    let (globals, locals) = (tensor(&golden, "crops.global")?, tensor(&golden, "crops.local")?);
    let size = globals.shape[0] / 2;
    let batch = CropBatch {
        size,
        globals: globals.data.clone(),
        locals: locals.data.clone(),
        indices: (0..size).collect(),
        mixed: None,
    };
    let mut losses = Vec::new();
    for (step, values) in STEPS.into_iter().enumerate() {
        losses.push(trainer.step_with(&batch, step, values)?.loss as f32);
    }
    let center = trainer.center.clone().try_into_vec_as::<f32>().map_err(|e| anyhow!("{e:?}"))?;
    let mut results = vec![
        Comparison::of("losses of two steps", &losses, &tensor(&golden, "losses")?.data, 2e-5),
        Comparison::of("centre", &center, &tensor(&golden, "center")?.data, 2e-6),
    ];
    results.extend(updated(&trainer, &golden, PARAMETER)?);
    Ok(results)
}

/// Two steps of Gen-DINO with four targets, and the loss of the first with one: both parts of the loss, centre and every
/// updated parameter.
///
/// Allowed: as for DINO's steps, whose arithmetic they share, but 5e-4 for parameters: on this batch a few gradients nearly
/// vanish. PyTorch's own steps in double precision, with noise of 3e-7 of a tensor's largest gradient added (5 units in the
/// last place of f32), move parameters by up to 2.5e-4; a weight of 0.45 instead of 0.5 moves them by 0.05.
///
/// # Errors
/// A device that fails.
pub fn golden_gen_dino(device: &Device) -> Result<Vec<Comparison>> {
    let (weights, golden) = (stored(WEIGHTS)?, stored(GEN_DINO)?);
    let with = |targets: Targets| -> Result<(Trainer, CropBatch)> {
        // The weight of the script.
        let recipe = GenDino { targets, disentangle: 0.5, ..GenDino::default() }.recipe(Variant::Full);
        let settings = Settings { gen_dino: Some(recipe), ..golden_settings() };
        let mut trainer = Trainer::new(&settings, STEPS.len(), device)?;
        trainer.student = parameters::import(trainer.student, &section(&weights, "student."))?;
        trainer.teacher = parameters::import(trainer.teacher, &section(&weights, "teacher."))?;
        let values = |name: &str| Ok::<_, anyhow::Error>(tensor(&golden, &format!("batch.{name}"))?.data.clone());
        let size = settings.pretrain.batch;
        let mut secondary = values("secondary")?;
        secondary.truncate(if targets == Targets::Four { secondary.len() } else { secondary.len() / 2 });
        let mixed = MixedBatch { views: values("mixed")?, secondary, alphas: values("alpha")? };
        let (globals, locals, indices) = (values("global")?, values("local")?, (0..size).collect());
        Ok((trainer, CropBatch { size, globals, locals, indices, mixed: Some(mixed) }))
    };
    let parts = |report: StepReport| report.parts.unwrap_or_default().map(|part| part as f32);
    let (mut single, batch) = with(Targets::Single)?;
    let first = parts(single.step_with(&batch, 0, STEPS[0])?);
    let (mut trainer, batch) = with(Targets::Four)?;
    let mut losses = Vec::new();
    for (step, values) in STEPS.into_iter().enumerate() {
        losses.extend(parts(trainer.step_with(&batch, step, values)?));
    }
    let center = trainer.center.clone().try_into_vec_as::<f32>().map_err(|e| anyhow!("{e:?}"))?;
    let mut results = vec![
        Comparison::of("Gen-DINO, both losses, one target", &first, &tensor(&golden, "parts.single")?.data, 2e-5),
        Comparison::of("Gen-DINO, both losses of two steps", &losses, &tensor(&golden, "parts")?.data, 2e-5),
        Comparison::of("Gen-DINO, centre", &center, &tensor(&golden, "center")?.data, 2e-6),
    ];
    let parameters = updated(&trainer, &golden, GEN_DINO_PARAMETER)?;
    results.extend(parameters.into_iter().map(|c| Comparison { name: format!("Gen-DINO, {}", c.name), ..c }));
    Ok(results)
}

/// Every parameter of student and teacher against its stored number.
fn updated(trainer: &Trainer, golden: &Named, allowed: f64) -> Result<Vec<Comparison>> {
    let mut results = Vec::new();
    for (part, network) in [("student", &trainer.student), ("teacher", &trainer.teacher)] {
        for (name, values) in parameters::export(network) {
            let name = format!("{part}.{name}");
            let (found, expected) = (&values.data, &tensor(golden, &name)?.data);
            if name.ends_with("attn.qkv.bias") && found.len() == expected.len() {
                let dim = found.len() / 3;
                let keys = dim..2 * dim;
                results.push(Comparison::of(format!("{name} (keys)"), &found[keys.clone()], &expected[keys], 0.06));
                let others = |v: &[f32]| [&v[..dim], &v[2 * dim..]].concat();
                results.push(Comparison::of(&name, &others(found), &others(expected), allowed));
            } else {
                results.push(Comparison::of(&name, found, expected, allowed));
            }
        }
    }
    Ok(results)
}

fn golden_settings() -> Settings {
    let model = Model { arch: "custom".into(), patch: 8, image_size: 32, dim: 16, depth: 2, heads: 2, drop_path: 0.0 };
    Settings {
        seed: 0,
        model,
        head: Head { hidden: 20, bottleneck: 12, out: 32, norm_last_layer: true },
        crops: Crops { global_size: 32, local_size: 16, local_count: 2, ..Crops::default() },
        pretrain: Pretrain { epochs: 1, warmup_epochs: 0, batch: 2, clip_grad: 0.3, ..Pretrain::default() },
        gen_dino: None,
    }
}

fn stored(bytes: &[u8]) -> Result<Named> {
    Ok(parse_safetensors(bytes).context("the stored numbers are damaged")?.0)
}

fn section(tensors: &Named, prefix: &str) -> Named {
    tensors.iter().filter_map(|(name, v)| Some((name.strip_prefix(prefix)?.to_string(), v.clone()))).collect()
}

fn tensor<'a>(tensors: &'a Named, name: &str) -> Result<&'a Values> {
    tensors.get(name).with_context(|| format!("the stored numbers lack {name}"))
}

/// A timed step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TimedStep {
    /// The step, from 0.
    pub step: usize,
    /// How long it took.
    pub seconds: f64,
    /// Images (not crops) per second.
    pub images_per_second: f64,
    /// Its loss.
    pub loss: f64,
}

/// Times `steps` steps of DINO on random crops (2 x 224 and 8 x 96, the full head), one item a step.
///
/// # Errors
/// An unknown architecture, a precision the device has not.
pub fn throughput(
    device: &Device,
    arch: &str,
    batch: usize,
    steps: usize,
    precision: Precision,
) -> Result<impl Iterator<Item = Result<TimedStep>> + use<>> {
    let model = Model { arch: arch.into(), ..Model::default() };
    let pretrain = Pretrain {
        epochs: 1,
        warmup_epochs: 0,
        // From the first step, so that every step does the whole work.
        freeze_last_layer: 0,
        batch,
        precision,
        ..Pretrain::default()
    };
    let settings = Settings {
        seed: 0,
        model: model.resolve()?,
        head: Head::default(),
        crops: Crops::default(),
        pretrain,
        gen_dino: None,
    };
    timed_steps(device, &settings, steps)
}

/// As [`throughput`], for any settings; random crops of the configured sizes, the same ones every step.
///
/// # Errors
/// Settings that contradict each other, a precision the device has not.
pub fn timed_steps(
    device: &Device,
    settings: &Settings,
    steps: usize,
) -> Result<impl Iterator<Item = Result<TimedStep>> + use<>> {
    let mut trainer = Trainer::new(settings, steps.max(1), device)?;
    let size = settings.pretrain.batch;
    let crops = &settings.crops;
    let mut rng = random::keyed(0, "timed crops", &[]);
    let mut draw = |count: usize, side: u32| -> Vec<f32> {
        // Uniform with deviation 1, as normalised pixels have.
        (0..count * size * 3 * (side as usize).pow(2)).map(|_| (rng.random::<f32>() - 0.5) * 12f32.sqrt()).collect()
    };
    let batch = CropBatch {
        size,
        globals: draw(2, crops.global_size),
        locals: draw(crops.local_count, crops.local_size),
        indices: (0..size).collect(),
        mixed: None,
    };
    Ok((0..steps).map(move |step| {
        let start = Instant::now();
        let report = trainer.step(&batch, step)?;
        // The report's numbers were read back, so the device has done everything but the update of the weights.
        let seconds = start.elapsed().as_secs_f64();
        Ok(TimedStep { step, seconds, images_per_second: size as f64 / seconds, loss: report.loss })
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all_pass(results: &[Comparison]) {
        for result in results {
            eprintln!("{:50} {:.2e} (allowed {:.0e})", result.name, result.difference, result.allowed);
        }
        let failed: Vec<_> = results.iter().filter(|result| !result.passes()).collect();
        assert!(failed.is_empty(), "{failed:?}");
    }

    #[test]
    fn the_network_is_timms() {
        all_pass(&golden_forward(&Device::flex()).unwrap());
        all_pass(&golden_encoders(&Device::flex()).unwrap());
    }

    #[test]
    fn a_step_is_pytorchs() {
        let results = golden_step(&Device::flex()).unwrap();
        // Losses, centre, and of both networks 4 tensors before the blocks, 12 and one for keys in each, 2 after, 8 of
        // the head.
        assert_eq!(results.len(), 2 + 2 * (4 + 2 * 13 + 2 + 8));
        all_pass(&results);
    }

    #[test]
    fn a_step_of_gen_dino_is_pytorchs() {
        let results = golden_gen_dino(&Device::flex()).unwrap();
        all_pass(&results);
        assert!(results.len() > 50, "{}", results.len());
    }

    #[test]
    fn a_comparison_of_other_lengths_or_of_nan_does_not_pass() {
        assert!(!Comparison::of("short", &[1.0], &[1.0, 2.0], 1.0).passes());
        assert!(!Comparison::of("nan", &[f32::NAN, 1.0], &[1.0, 1.0], 1.0).passes());
        assert!(Comparison::of("equal", &[1.0], &[1.0], 0.0).passes());
    }

    /// Not a test but a measurement: `cargo test --release -- --ignored --nocapture speed_on_the_cpu`.
    #[test]
    #[ignore = "a measurement"]
    fn speed_on_the_cpu() {
        for (arch, batch, global, locals, local) in
            [("vit_tiny", 8, 64, 0, 64), ("vit_tiny", 32, 64, 0, 64), ("vit_small", 2, 224, 4, 96)]
        {
            let model = Model { arch: arch.into(), image_size: global as usize, ..Model::default() };
            let settings = Settings {
                seed: 0,
                model: model.resolve().unwrap(),
                head: Head { out: 4096, ..Head::default() },
                crops: Crops { global_size: global, local_size: local, local_count: locals, ..Crops::default() },
                pretrain: Pretrain { epochs: 1, warmup_epochs: 0, freeze_last_layer: 0, batch, ..Pretrain::default() },
                gen_dino: None,
            };
            let steps = if arch == "vit_tiny" { 12 } else { 3 };
            let mut run = timed_steps(&Device::flex(), &settings, steps).unwrap().map(Result::unwrap);
            run.next();
            let start = processor_seconds();
            let run: Vec<_> = run.collect();
            let mean = run.iter().map(|step| step.seconds).sum::<f64>() / (steps - 1) as f64;
            let processor = (processor_seconds() - start) / (steps - 1) as f64;
            eprintln!(
                "{arch} batch {batch} 2x{global}+{locals}x{local}: {mean:.3} s/step, {:.2} images/s; {processor:.3} s of \
                 processor, last loss {}",
                batch as f64 / mean,
                run[run.len() - 1].loss
            );
        }
    }

    /// User and system time of this process, which other processes do not lengthen as they do the clock's.
    fn processor_seconds() -> f64 {
        let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
        let fields: Vec<_> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
        (fields[11].parse::<f64>().unwrap() + fields[12].parse::<f64>().unwrap()) / 100.0
    }
}
