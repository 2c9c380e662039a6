//! The kernels of convolutional networks and of transformers beside PyTorch's and burn's own, on 1 and 2 threads.
//!
//! `cargo bench --bench kernels -- PYTHON [only]`, where PYTHON has torch: starts benches/kernels.py, takes turns with it
//! (on a shared machine only times taken side by side compare), and prints medians in ms, medians of the ratios of rates,
//! and the ratio of the fastest turns, which a busy machine disturbs least. `only` is a part of a case's name.

mod peer;

use burn::tensor::activation;
use burn::tensor::module::{conv2d, layer_norm};
use burn::tensor::ops::ConvOptions;
use burn::tensor::{Device, Distribution, Tensor};
use gensis::model::kernels;
use std::time::Instant;

use peer::{Peer, median};

/// Turns of the programs.
const ROUNDS: usize = 9;
/// Time that one program gets in a turn, in seconds.
const TURN: f64 = 0.1;

/// What is computed: `conv B C H W O k stride padding`, `norm B C H W groups` (with SiLU), or a function of the last dimension of
/// four: `gelu`, `softmax` and `layer_norm`, here of ViT-S and of the small network of `configs/crc5_mini.toml`.
const CASES: [&str; 18] = [
    "conv 8 64 32 32 64 3 1 1",
    "conv 8 128 16 16 128 3 1 1",
    "conv 8 256 8 8 256 3 1 1",
    "conv 4 128 64 64 128 3 1 1",
    "conv 16 3 64 64 64 3 1 1",
    "conv 4 128 64 64 3 3 1 1",
    "conv 8 64 32 32 64 3 2 1",
    "conv 8 64 32 32 128 4 2 1",
    "conv 8 128 32 32 128 1 1 0",
    "norm 8 64 32 32 32",
    "norm 4 128 64 64 32",
    "norm 8 256 8 8 32",
    "gelu 1 16 197 1536",
    "gelu 1 64 65 512",
    "softmax 16 6 197 197",
    "softmax 64 4 65 65",
    "layer_norm 1 16 197 384",
    "layer_norm 1 64 65 128",
];

fn main() -> anyhow::Result<()> {
    let arguments: Vec<_> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let python = arguments.first().map_or("python3", String::as_str);
    let only = arguments.get(1).map_or("", String::as_str);
    let mut peer = Peer::start(python, "kernels.py", &[])?;
    println!("| case | pass | threads | gensis ms | PyTorch ms | burn ms | against PyTorch | fastest | against burn |");
    println!("|---|---|---:|---:|---:|---:|---:|---:|---:|");
    for case in CASES.iter().filter(|case| case.contains(only)) {
        for backward in [false, true] {
            for threads in [1, 2] {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build()?;
                let (mut ours, mut burns, mut torch) = (vec![], vec![], vec![]);
                for _ in 0..ROUNDS {
                    ours.push(pool.install(|| time(&step(case, backward, true))));
                    torch.push(peer.time(&format!("{threads} {} {case}", u8::from(backward)))?);
                    if !case.starts_with("norm") {
                        burns.push(pool.install(|| time(&step(case, backward, false))));
                    }
                }
                let pass = if backward { "both" } else { "forward" };
                let ratio = |other: &[f64]| median(other.iter().zip(&ours).map(|(other, ours)| other / ours).collect());
                let ms = |times: &[f64]| median(times.to_vec()) * 1e3;
                let fastest = |times: &[f64]| times.iter().copied().fold(f64::INFINITY, f64::min);
                // Burn has no normalisation by groups of its own.
                let shown = |value: f64| if value.is_nan() { "–".into() } else { format!("{value:.2}") };
                println!(
                    "| {case} | {pass} | {threads} | {:.2} | {:.2} | {} | {:.2} | {:.2} | {} |",
                    ms(&ours),
                    ms(&torch),
                    shown(ms(&burns)),
                    ratio(&torch),
                    fastest(&torch) / fastest(&ours),
                    shown(ratio(&burns)),
                );
            }
        }
    }
    Ok(())
}

/// One pass of a case, by our kernels or by burn's.
fn step(case: &str, backward: bool, ours: bool) -> impl Fn() {
    let (kind, sizes) = case.split_once(' ').expect("a kind and sizes");
    let n: Vec<usize> = sizes.split(' ').map(|word| word.parse().expect("a number")).collect();
    let device = if backward { Device::flex().autodiff() } else { Device::flex() };
    let random = |shape: [usize; 4]| {
        let tensor = Tensor::<4>::random(shape, Distribution::Default, &device);
        if backward { tensor.require_grad() } else { tensor }
    };
    let x = random([n[0], n[1], n[2], n[3]]);
    let weight = match kind {
        "conv" => random([n[4], n[1], n[5], n[5]]),
        "norm" => random([n[1], 1, 1, 1]),
        _ => random([n[3], 1, 1, 1]),
    };
    let bias = random([weight.dims()[0], 1, 1, 1]);
    let kind = kind.to_owned();
    let forward = move || {
        let (x, weight, bias) = (x.clone(), weight.clone(), bias.clone().flatten(0, 3));
        match (kind.as_str(), ours) {
            ("conv", true) => kernels::conv2d(x, weight, bias, n[6], [n[7]; 4]),
            ("conv", false) => conv2d(x, weight, Some(bias), ConvOptions::new([n[6]; 2], [n[7]; 2], [1, 1], 1)),
            ("gelu", true) => kernels::gelu(x),
            ("gelu", false) => activation::gelu(x),
            ("softmax", true) => kernels::softmax(x),
            ("softmax", false) => activation::softmax(x, 3),
            ("layer_norm", true) => kernels::layer_norm(x, weight.flatten(0, 3), bias, 1e-6),
            ("layer_norm", false) => layer_norm(x, weight.flatten(0, 3), Some(bias), 1e-6),
            _ => kernels::group_norm_silu(x, weight.flatten(0, 3), bias, n[4], 1e-6),
        }
    };
    let pull = Tensor::<4>::random(forward().shape(), Distribution::Default, &device);
    move || {
        let y = forward();
        if backward {
            std::hint::black_box((y * pull.clone()).sum().backward());
        } else {
            std::hint::black_box(y);
        }
    }
}

/// Median seconds of a call, after one that does not count.
fn time(step: &impl Fn()) -> f64 {
    step();
    let start = Instant::now();
    let mut times = vec![];
    while times.len() < 3 || start.elapsed().as_secs_f64() < TURN {
        let start = Instant::now();
        step();
        times.push(start.elapsed().as_secs_f64());
    }
    median(times)
}
