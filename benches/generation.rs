//! The steps of latent diffusion beside PyTorch and diffusers at the same sizes on the CPU: a step of the autoencoder, with
//! and without features and discriminator, a step of the U-Net, and sampling by DDIM.
//!
//! `cargo bench --bench generation -- PYTHON`, where PYTHON has torch, timm and diffusers: starts benches/generation.py, takes
//! turns with it (on a shared machine only times taken side by side compare), and prints medians of seconds and of the
//! ratios of rates, and the ratio of the fastest turns.

mod peer;

use std::rc::Rc;
use std::time::Instant;

use anyhow::Result;
use burn::tensor::{Device, Distribution, Tensor};
use gensis::config::{Autoencoder, AutoencoderKind, Condition, Diffusion, Model, PerceptualKind, Sample, UnetShape};
use gensis::data::SquareBatch;
use gensis::model::autoencoder::FirstStageConfig;
use gensis::model::diffusion::DiffusionConfig;
use gensis::model::perceptual::Perceptual;
use gensis::model::vit::Vit;
use gensis::model::{Encoder, EncoderConfig, FirstStage};
use gensis::sample::painter::{Painter, Wish};
use gensis::train::{autoencoder, diffusion};

use peer::{Peer, median};

/// Turns of the programs.
const ROUNDS: usize = 5;
/// Images of a step, and images drawn.
const BATCH: usize = 8;
/// Side of the images; latents are a quarter of it.
const SIDE: usize = 64;
const EMBEDDING: usize = 128;
const DDIM_STEPS: usize = 50;

/// One run of a case.
type Run = dyn FnMut() -> Result<()>;

fn main() -> Result<()> {
    let arguments: Vec<_> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let mut peer = Peer::start(arguments.first().map_or("python3", String::as_str), "generation.py", &[])?;
    println!("| what | gensis s | PyTorch s | against PyTorch | fastest |\n|---|---:|---:|---:|---:|");
    let device = Device::flex();
    let mut unet = unet_trainer(&device)?;
    let stage = stage_trainer(false, &device)?;
    let whole_stage = stage_trainer(true, &device)?;
    let first_stage = FirstStage::new(
        stage.network.clone(),
        FirstStageConfig {
            network: stage.settings().autoencoder.sizes()?,
            scale: 1.0,
            origin: serde_json::Value::Null,
        },
    );
    let settings = Sample { steps: DDIM_STEPS, guidance: 2.0, ..Sample::default() };
    let painter = Painter::new(unet.model(0)?, first_stage, &settings, &device)?;
    let latents = values(BATCH * 3 * (SIDE / 4).pow(2), &device)?;
    let batch = diffusion::LatentBatch { size: BATCH, latents, embeddings: values(BATCH * EMBEDDING, &device)? };
    let pixels = values(BATCH * 3 * SIDE * SIDE, &device)?;
    let squares = Rc::new(SquareBatch { pixels, side: SIDE, indices: (0..BATCH).collect() });
    let condition = painter.condition(&batch.embeddings[..EMBEDDING]);
    let wishes: Vec<Wish> = (0..BATCH as u64).map(|seed| Wish { condition: condition.clone(), seed }).collect();

    let mut step = 0;
    let of_stage = |mut stage: autoencoder::Trainer| -> Box<Run> {
        let (squares, mut step) = (squares.clone(), 0);
        Box::new(move || {
            step += 1;
            stage.step(&squares, step - 1).map(drop)
        })
    };
    let mut cases: [(&str, Box<Run>); 4] = [
        ("autoencoder", of_stage(stage)),
        ("whole_autoencoder", of_stage(whole_stage)),
        (
            "unet",
            Box::new(move || {
                step += 1;
                unet.step(&batch, step - 1).map(drop)
            }),
        ),
        ("ddim", Box::new(move || painter.images(&wishes).map(drop))),
    ];
    for (name, run) in &mut cases {
        run()?;
        let (mut ours, mut torch) = (vec![], vec![]);
        for _ in 0..ROUNDS {
            let start = Instant::now();
            run()?;
            ours.push(start.elapsed().as_secs_f64());
            torch.push(peer.time(name)?);
        }
        let ratio = median(torch.iter().zip(&ours).map(|(torch, ours)| torch / ours).collect());
        let fastest = |times: &[f64]| times.iter().copied().fold(f64::INFINITY, f64::min);
        println!(
            "| {name} | {:.2} | {:.2} | {ratio:.2} | {:.2} |",
            median(ours.clone()),
            median(torch.clone()),
            fastest(&torch) / fastest(&ours)
        );
    }
    Ok(())
}

fn unet_trainer(device: &Device) -> Result<diffusion::Trainer> {
    let unet = UnetShape {
        channels: 64,
        channel_mult: vec![1, 2, 2],
        res_blocks: 1,
        attention: vec![2, 4],
        heads: 4,
        context: 64,
        context_in_time: false,
        groups: 32,
    };
    let section = Diffusion { unet, batch: BATCH, epochs: 1000, ..Diffusion::default() };
    let config = DiffusionConfig {
        unet: section.unet.clone(),
        noise: section.noise.clone(),
        condition: Condition::Sphere,
        statistics: [vec![], vec![]],
        latent: [3, SIDE / 4],
        embedding: EMBEDDING,
        encoder: String::new(),
        autoencoder: String::new(),
        origin: serde_json::Value::Null,
    };
    diffusion::Trainer::new(&diffusion::Settings { seed: 0, diffusion: section, config }, 1000, device)
}

/// `whole`: with the features of an encoder and a discriminator.
fn stage_trainer(whole: bool, device: &Device) -> Result<autoencoder::Trainer> {
    let section = Autoencoder {
        kind: AutoencoderKind::KlF4,
        channels: 32,
        image_size: SIDE,
        batch: BATCH,
        epochs: 1000,
        perceptual: if whole { PerceptualKind::Encoder } else { PerceptualKind::None },
        disc_weight: if whole { 0.5 } else { 0.0 },
        disc_start: 0,
        ..Autoencoder::default()
    };
    let perceptual = match whole {
        true => Perceptual::Encoder(Box::new(encoder(device)?)),
        false => Perceptual::None,
    };
    let hash = perceptual.hash().map(str::to_owned);
    let settings = autoencoder::Settings { seed: 0, autoencoder: section.resolve()?, perceptual: hash };
    autoencoder::Trainer::new(&settings, perceptual, 1000, device)
}

fn encoder(device: &Device) -> Result<Encoder> {
    let model =
        Model { arch: "custom".into(), patch: 8, image_size: SIDE, dim: EMBEDDING, depth: 6, heads: 4, drop_path: 0.0 };
    let model = model.resolve()?;
    let config = EncoderConfig { model, mean: [0.5; 3], std: [0.5; 3], origin: serde_json::Value::Null };
    Ok(Encoder::new(Vit::new(&config.model, 0, device), config, device))
}

fn values(count: usize, device: &Device) -> Result<Vec<f32>> {
    let drawn = Tensor::<1>::random([count], Distribution::Uniform(-1.0, 1.0), device);
    drawn.try_into_vec_as::<f32>().map_err(|e| anyhow::anyhow!("{e:?}"))
}
