//! Against pytorch-fid and torch-fidelity, and what is refused.

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::Deserialize;

use super::kernel::squared_discrepancy;
use super::*;
use crate::error::Error;

#[derive(Deserialize)]
struct Case {
    name: String,
    real: Vec<Vec<f32>>,
    generated: Vec<Vec<f32>>,
    mean: Vec<f64>,
    covariance: Vec<Vec<f64>>,
    frechet: f64,
    subsets: Vec<[Vec<usize>; 2]>,
    discrepancy: Vec<f64>,
    precision: f64,
    recall: f64,
}

fn cases() -> Vec<Case> {
    let text = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/golden/evaluation/fid.json"));
    serde_json::from_str(text).unwrap()
}

fn assert_close(what: &str, ours: f64, theirs: f64, tolerance: f64) {
    assert!((ours - theirs).abs() <= tolerance, "{what}: {ours} is not {theirs}");
}

/// `tests/golden/evaluation/fid.py` wrote these. Both sides work in float64 on the same float32 features, so means and
/// covariances agree to rounding (1e-12 of the largest), kernel distances too, and shares of images to the last bit of a
/// float32, which torch-fidelity returns. The Fréchet distance takes roots of eigenvalues: one that is 0 but for rounding (1e-16
/// of the largest) has a root of 1e-8 of it, on either side, which is the tolerance, 1e-7 of the larger trace.
#[test]
fn as_pytorch_fid_and_torch_fidelity() {
    let cases = cases();
    assert_eq!(cases.len(), 7);
    for case in &cases {
        let dim = case.real[0].len();
        let (real, generated) = (case.real.concat(), case.generated.concat());
        let (real, generated) = (Features::new(&real, dim).unwrap(), Features::new(&generated, dim).unwrap());
        let (a, b) = (Gaussian::of(real).unwrap(), Gaussian::of(generated).unwrap());
        let size = a.covariance.amax();
        for (i, row) in case.covariance.iter().enumerate() {
            assert_close(&case.name, a.mean[i], case.mean[i], 1e-12 * (1.0 + size));
            row.iter().enumerate().for_each(|(j, &c)| assert_close(&case.name, a.covariance[(i, j)], c, 1e-12 * size));
        }
        let trace = a.covariance.trace().max(b.covariance.trace());
        assert_close(&case.name, frechet_distance(&a, &b).unwrap(), case.frechet, 1e-7 * trace);
        assert_close(&case.name, frechet_distance(&b, &a).unwrap(), case.frechet, 1e-7 * trace);
        for ([i, j], &expected) in case.subsets.iter().zip(&case.discrepancy) {
            let ours = squared_discrepancy(&real.columns(i.iter().copied()), &generated.columns(j.iter().copied()));
            assert_close(&case.name, ours, expected, 1e-11 * (1.0 + expected.abs()));
        }
        let shares = precision_recall(real, generated, 3).unwrap();
        assert_close(&case.name, shares.precision, case.precision, 1e-7);
        assert_close(&case.name, shares.recall, case.recall, 1e-7);
    }
}

/// Features uniform in ± 1 around `shift` plus the number of the feature.
fn rows(n: usize, dim: usize, shift: f32) -> Vec<f32> {
    let mut rng = ChaCha8Rng::seed_from_u64(n as u64);
    (0..n * dim).map(|i| rng.random_range(-1.0..1.0) + shift + (i % dim) as f32).collect()
}

#[test]
fn batches_and_blocks_change_nothing_but_rounding() {
    let (n, dim) = (2500, 150);
    let values = rows(n, dim, 100.0);
    let whole = Gaussian::of(Features::new(&values, dim).unwrap()).unwrap();
    let mut moments = Moments::new(dim);
    for batch in values.chunks(333 * dim) {
        moments.add(Features::new(batch, dim).unwrap()).unwrap();
    }
    let parts = moments.gaussian().unwrap();
    assert_eq!(parts.count, n as u64);
    assert!((&parts.mean - &whole.mean).amax() < 1e-10);
    assert!((&parts.covariance - &whole.covariance).amax() < 1e-11);
    // The definition, at a few places of every panel.
    for (i, j) in [(0, 0), (3, 140), (149, 149), (128, 127), (64, 130)] {
        let of = |at: usize| (0..n).map(move |row| row * dim + at);
        let mean = |at| of(at).map(|k| f64::from(values[k])).sum::<f64>() / n as f64;
        let (x, y) = (mean(i), mean(j));
        let sum: f64 = of(i).zip(of(j)).map(|(k, l)| (f64::from(values[k]) - x) * (f64::from(values[l]) - y)).sum();
        assert_close("covariance", whole.covariance[(i, j)], sum / (n - 1) as f64, 1e-10);
    }
}

/// More images than a block of distances holds: as the definition says, pair by pair.
#[test]
fn blocked_manifolds_are_those_of_all_pairs() {
    let dim = 3;
    let (real, generated) = (rows(600, dim, 0.0), rows(530, dim, 0.25));
    let distance =
        |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(&x, &y)| (f64::from(x) - f64::from(y)).powi(2)).sum::<f64>();
    let share = |points: &[f32], centres: &[f32]| {
        let radius = |centre: &[f32]| {
            let mut all: Vec<f64> = centres.chunks(dim).map(|other| distance(centre, other)).collect();
            all.sort_by(f64::total_cmp);
            all[3]
        };
        let radii: Vec<f64> = centres.chunks(dim).map(radius).collect();
        let inside = points
            .chunks(dim)
            .filter(|point| centres.chunks(dim).zip(&radii).any(|(centre, &radius)| distance(point, centre) <= radius));
        inside.count() as f64 / (points.len() / dim) as f64
    };
    let ours =
        precision_recall(Features::new(&real, dim).unwrap(), Features::new(&generated, dim).unwrap(), 3).unwrap();
    assert_eq!(ours, PrecisionRecall { precision: share(&generated, &real), recall: share(&real, &generated) });
    assert!(ours.precision > 0.05 && ours.precision < 0.95, "{ours:?}");
}

#[test]
fn the_seed_decides_the_subsets() {
    let (a, b) = (rows(50, 4, 0.0), rows(40, 4, 0.3));
    let (a, b) = (Features::new(&a, 4).unwrap(), Features::new(&b, 4).unwrap());
    let of = |seed| kernel_distance(a, b, &KernelSubsets { subsets: 6, size: 20, seed }).unwrap();
    assert_eq!(of(1), of(1));
    assert_ne!(of(1), of(2));
    assert!(of(1).mean > 0.0 && of(1).std > 0.0);
    // A subset of everything is everything, in another order.
    let all = kernel_distance(b, b, &KernelSubsets { subsets: 3, size: 40, seed: 0 }).unwrap();
    assert!(all.std < 1e-12 && all.mean < 0.0, "{all:?}");
}

#[test]
fn what_cannot_be_compared_is_refused() {
    let values = rows(6, 2, 0.0);
    let set = Features::new(&values, 2).unwrap();
    let wide = Features::new(&values, 3).unwrap();
    let message = |error: Error| error.to_string();
    assert!(message(Features::new(&values, 5).unwrap_err()).contains("12 numbers do not make whole rows of 5"));
    assert!(message(Features::new(&[0.0, f32::NAN], 1).unwrap_err()).contains("image number 1 is not finite"));
    assert!(message(Gaussian::of(Features::new(&values[..2], 2).unwrap()).unwrap_err()).contains("2 images or more"));
    assert!(message(Moments::new(2).add(wide).unwrap_err()).contains("embed both with one encoder"));
    assert!(message(precision_recall(set, wide, 3).unwrap_err()).contains("embed both with one encoder"));
    assert!(message(precision_recall(set, set, 6).unwrap_err()).contains("7 images or more of each set, not 6"));
    assert!(precision_recall(set, set, 0).is_err());
    let subsets = |subsets, size| KernelSubsets { subsets, size, seed: 0 };
    assert!(message(kernel_distance(set, set, &subsets(1, 7)).unwrap_err()).contains("7 images or more"));
    assert!(kernel_distance(set, set, &subsets(1, 1)).is_err());
    assert!(kernel_distance(set, set, &subsets(0, 3)).is_err());
}

#[test]
fn stored_statistics_come_back_and_others_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("reference.safetensors");
    let header = ReferenceHeader {
        data: "crc".into(),
        split: "train".into(),
        preprocessing: "resize 256, crop 224".into(),
        encoder: "sha256:ab".into(),
    };
    let values = rows(9, 4, 0.0);
    let gaussian = Gaussian::of(Features::new(&values, 4).unwrap()).unwrap();
    let reference = Reference { header, gaussian };
    reference.save(&path).unwrap();
    assert_eq!(Reference::load(&path).unwrap(), reference);
    reference.require("resize 256, crop 224", "sha256:ab").unwrap();
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    let error = reference.require("resize 256, crop 224", "sha256:cd").unwrap_err().to_string();
    assert!(error.contains("encoder") && error.contains("sha256:ab") && error.contains("sha256:cd"), "{error}");
    assert!(reference.require("", "sha256:ab").unwrap_err().to_string().contains("make them again"));

    let file = std::fs::read(&path).unwrap();
    for length in [0, 7, 60, file.len() - 8] {
        std::fs::write(&path, &file[..length]).unwrap();
        assert!(matches!(Reference::load(&path), Err(Error::File(slide_io::Error::BadFile { .. }))), "{length}");
    }
    let mut nan = file.clone();
    let end = nan.len() - 8;
    nan[end..].copy_from_slice(&f64::NAN.to_le_bytes());
    std::fs::write(&path, nan).unwrap();
    assert!(Reference::load(&path).unwrap_err().to_string().contains("not finite"));
    assert!(matches!(Reference::load(&folder.path().join("none")), Err(Error::File(slide_io::Error::Io { .. }))));
}
