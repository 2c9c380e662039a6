//! k-NN search beside PyTorch's: the same generated vectors, blocked products and the k largest of each row.
//!
//! `cargo bench --bench knn -- PYTHON [references] [queries] [dim] [k]`, where PYTHON has torch: starts benches/knn.py, takes
//! turns with it (on a shared machine only times taken side by side compare), and prints the medians, the multiply-adds per
//! second, the largest resident memory, and what ImageNet's 1.28 million references and 50,000 queries would take: the work
//! is proportional to references times queries.

mod peer;

use std::time::Instant;

use burn::tensor::Device;
use evaluation::knn::nearest;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use peer::{Peer, median};

/// Turns of the programs.
const ROUNDS: usize = 3;
/// ImageNet: training images, validation images.
const IMAGENET: [usize; 2] = [1_281_167, 50_000];

fn main() -> anyhow::Result<()> {
    let arguments: Vec<_> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let python = arguments.first().map_or("python3", String::as_str);
    let number = |at: usize, default| arguments.get(at).map_or(Ok(default), |text| text.parse::<usize>());
    let (references, queries, dim, k) = (number(1, 128_000)?, number(2, 5_000)?, number(3, 384)?, number(4, 200)?);
    let vectors = |count: usize, seed| -> Vec<f32> {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        (0..count * dim).map(|_| rng.random_range(-1.0..1.0)).collect()
    };
    let (train, test) = (vectors(references, 1), vectors(queries, 2));
    let mut peer = Peer::start(python, "knn.py", &[references, queries, dim, k].map(|size| size.to_string()))?;
    let (mut ours, mut theirs) = (vec![], vec![]);
    for _ in 0..ROUNDS {
        let start = Instant::now();
        let found = nearest(&train, &test, dim, k, &Device::flex())?;
        ours.push(start.elapsed().as_secs_f64());
        anyhow::ensure!(found.index.len() == queries * found.k, "some neighbours are missing");
        theirs.push(peer.time("")?);
    }
    let (ours, theirs) = (median(ours), median(theirs));
    let products = (references * queries * dim) as f64;
    let imagenet = IMAGENET.map(|count| count as f64).iter().product::<f64>() / (references * queries) as f64;
    println!(
        "{references} references, {queries} queries of {dim} numbers, k {k}, {} threads",
        rayon::current_num_threads()
    );
    println!("| | s | G multiply-adds/s | ImageNet, min |\n|---|---:|---:|---:|");
    for (name, seconds) in [("gensis", ours), ("PyTorch", theirs)] {
        let rate = products / seconds / 1e9;
        println!("| {name} | {seconds:.2} | {rate:.1} | {:.1} |", seconds * imagenet / 60.0);
    }
    println!("ratio of rates {:.2}", theirs / ours);
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap_or(" unknown").trim().to_owned();
    println!("largest resident memory {peak}, of which {} kB are the vectors", (train.len() + test.len()) * 4 / 1024);
    Ok(())
}
