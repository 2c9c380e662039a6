//! Against OpenCV, scikit-image and PyTorch: `tests/golden/video/make.py` wrote the numbers.

use std::path::{Path, PathBuf};

use burn::tensor::Device;
use safetensors::SafeTensors;
use serde::Deserialize;

use super::measure::{Region, contour_accuracy, region_similarity};
use super::score::{ObjectScores, Statistics, score_sequence};
use super::*;

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/video").join(name)
}

#[derive(Deserialize)]
struct Measures {
    cases: Vec<Case>,
    statistics: Values,
}

#[derive(Deserialize)]
struct Case {
    width: usize,
    predicted: String,
    truth: String,
    j: f64,
    f: f64,
}

#[derive(Deserialize)]
struct Values {
    values: Vec<f64>,
    mean: f64,
    recall: f64,
    decay: f64,
}

/// Counts of pixels divided in float64 on both sides: equal but for the last bit.
#[test]
fn measures_are_those_of_opencv_and_scikit_image() {
    let golden: Measures = serde_json::from_slice(&std::fs::read(golden("measures.json")).unwrap()).unwrap();
    assert_eq!(golden.cases.len(), 8);
    for case in &golden.cases {
        let pixels = |text: &str| text.bytes().map(|byte| byte == b'1').collect::<Vec<bool>>();
        let (predicted, truth) = (pixels(&case.predicted), pixels(&case.truth));
        let region = |pixels| Region { pixels, width: case.width };
        assert!((region_similarity(region(&predicted), region(&truth)) - case.j).abs() < 1e-15);
        assert!((contour_accuracy(region(&predicted), region(&truth)) - case.f).abs() < 1e-15);
    }
    let expected = golden.statistics;
    let found = Statistics::of(&expected.values);
    for (ours, theirs) in [(found.mean, expected.mean), (found.recall, expected.recall), (found.decay, expected.decay)]
    {
        assert!((ours - theirs).abs() < 1e-14, "{ours} {theirs}");
    }
}

/// OpenCV's vectorised code rounds a product differently now and then: a byte may differ by 1.
#[test]
fn frames_are_resized_as_opencv_does() {
    let [image, expected] =
        ["frame.png", "resized.png"].map(|name| slide_io::folder::read_image(&golden(name)).unwrap());
    let ours = frame::resized(&image, expected.dimensions());
    let differences: Vec<u8> = ours.iter().zip(expected.iter()).map(|(a, b)| a.abs_diff(*b)).collect();
    assert!(differences.iter().all(|&difference| difference <= 1), "{:?}", differences.iter().max());
    let share = differences.iter().filter(|difference| **difference > 0).count() as f64 / differences.len() as f64;
    assert!(share < 0.01, "{share}");
}

/// The same float32 tokens: cosines differ by some 1e-7, e^(10 cos) by ten times that, summed over five frames. Labels are
/// compared where no two classes are that near, which is everywhere here.
#[test]
fn propagation_is_that_of_pytorch() {
    let bytes = std::fs::read(golden("propagation.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let numbers = |name: &str| -> Vec<f32> {
        let data = tensors.tensor(name).unwrap().data().as_chunks::<4>().0.to_vec();
        data.into_iter().map(f32::from_le_bytes).collect()
    };
    let shape = |name: &str| tensors.tensor(name).unwrap().shape().to_vec();
    let (rows, columns, patch) = (8, 10, 4);
    let [frames, patches, dim] = shape("tokens")[..] else { panic!() };
    assert_eq!((frames, patches), (6, rows * columns));
    let [height, width] = shape("first")[..] else { panic!() };
    let first = LabelMap::new(width, height, tensors.tensor("first").unwrap().data().to_vec()).unwrap();
    let tokens = numbers("tokens");
    let features = |i: usize| {
        let values = tokens[i * patches * dim..(i + 1) * patches * dim].to_vec();
        FrameFeatures { rows, columns, dim, values }
    };
    let config = PropagationConfig { queue: 2, window: 2, ..PropagationConfig::default() };
    let start = SoftMask::from_labels(&first, rows, columns).unwrap();
    let mut propagator = Propagator::new(config, features(0), start, &Device::flex()).unwrap();
    let (soft, hard) = (numbers("soft"), tensors.tensor("hard").unwrap().data().to_vec());
    let mut seen = std::collections::BTreeSet::new();
    for step in 0..frames - 1 {
        let mask = propagator.advance(features(step + 1)).unwrap();
        assert_eq!(mask.classes, 3);
        let expected = &soft[step * mask.values.len()..][..mask.values.len()];
        let worst = mask.values.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(worst < 2e-5, "frame {step}: {worst}");
        let labels = mask.labels(patch, width, height);
        assert_eq!(labels.labels(), &hard[step * width * height..][..width * height], "frame {step}");
        seen.extend(labels.labels().to_vec());
    }
    assert_eq!(seen.len(), 3, "all classes are found");
}

/// OSVOS's masks of bmx-trees against the annotation. DAVIS's own evaluation gives these numbers for the same files, its
/// two objects taken together as the annotation (DAVIS-2016) has them.
#[test]
fn masks_of_osvos_score_as_in_daviss_own_evaluation() {
    let shared = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/data");
    let (annotations, predictions) = (shared.join("davis"), shared.join("davis17_palette_pred"));
    if !annotations.is_dir() || !predictions.is_dir() {
        eprintln!("skipped: masks_of_osvos: {} or {} is absent", annotations.display(), predictions.display());
        return;
    }
    let sequence = Davis::open(&annotations).unwrap().sequence("bmx-trees", true).unwrap();
    assert_eq!((sequence.frames.len(), sequence.masks.len()), (30, 30));
    let scores = score_sequence(&sequence, &predictions.join("bmx-trees")).unwrap();
    assert_eq!(scores.len(), 1, "an annotation of two values has one object");
    let ObjectScores { j, f, .. } = &scores[0];
    let (j, f) = (Statistics::of(j), Statistics::of(f));
    for (ours, theirs) in [(j.mean, 0.638_626_719_873), (f.mean, 0.824_805_551_295)] {
        assert!((ours - theirs).abs() < 1e-11, "{ours} {theirs}");
    }
}
