//! Numbers of scikit-learn and PyTorch (`tests/golden/evaluation/linear.py`), and probes of data whose answer is known.

use burn::tensor::Device;
use serde::Deserialize;

use super::few_shot::FewShot;
use super::logistic::{Effort, Logistic};
use super::sgd::{Sgd, SgdConfig, train_on};
use super::sweep::Sweep;
use super::{Labelled, LinearHead};
use crate::metric::Metric;

#[derive(Deserialize)]
struct Golden {
    classes: usize,
    dim: usize,
    x: Vec<f32>,
    y: Vec<u32>,
    test_x: Vec<f32>,
    /// Deviation of every feature.
    scale: Vec<f64>,
    logistic: Vec<Regression>,
    sgd: Descent,
    schedule: Schedule,
}

#[derive(Deserialize)]
struct Regression {
    l2: f64,
    plain: Fit,
    standardised: Fit,
}

#[derive(Deserialize)]
struct Fit {
    weight: Vec<f64>,
    probabilities: Vec<f64>,
}

#[derive(Deserialize)]
struct Descent {
    momentum: f64,
    start: Vec<f32>,
    steps: Vec<Step>,
    weight: Vec<f32>,
    bias: Vec<f32>,
}

#[derive(Deserialize)]
struct Step {
    rows: Vec<usize>,
    lr: f64,
    loss: f64,
}

#[derive(Deserialize)]
struct Schedule {
    lr: f64,
    batch: usize,
    rates: Vec<f64>,
}

fn golden() -> Golden {
    let text = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/golden/evaluation/linear.json"));
    serde_json::from_str(text).unwrap()
}

impl Golden {
    fn train(&self) -> Labelled<'_> {
        Labelled::new(&self.x, self.dim, &self.y, self.classes).unwrap()
    }
}

#[track_caller]
fn close(found: &[f32], expected: &[f64], tolerance: f64) {
    assert_eq!(found.len(), expected.len());
    for (at, (found, expected)) in found.iter().zip(expected).enumerate() {
        assert!((f64::from(*found) - expected).abs() < tolerance, "number {at}: {found} is not {expected}");
    }
}

#[test]
fn logistic_regression_is_scikit_learns() {
    let (golden, device) = (golden(), Device::flex());
    assert_eq!(golden.logistic.len(), 4);
    let probabilities = |head: &LinearHead| head.probabilities(&golden.test_x, &device).unwrap();
    for case in &golden.logistic {
        // Features with deviations between 0.03 and 4 and a mean of 1 make the plain problem a badly conditioned one: where
        // weights and bias pull against each other the gradient is nothing but the rounding of 32-bit products, and the
        // probabilities are what is determined.
        let effort = Effort { tolerance: 1e-5, iterations: 2000 };
        let plain = Logistic::plain(&golden.train(), effort, &device).unwrap().fit(case.l2).unwrap();
        close(&probabilities(&plain.head), &case.plain.probabilities, 2e-3);
        let effort = Effort { tolerance: 1e-6, iterations: 2000 };
        let fitted = Logistic::standardised(&golden.train(), effort, &device).unwrap().fit(case.l2).unwrap();
        // A gradient of 1e-6 leaves an error of up to 1e-6 / l2 in the weights.
        let tolerance = (2e-6 / case.l2).max(2e-4);
        let per_deviation = |weights: &mut dyn Iterator<Item = f64>| -> Vec<f64> {
            weights.zip(golden.scale.iter().cycle()).map(|(weight, scale)| weight * scale).collect()
        };
        let found = per_deviation(&mut fitted.head.weight.iter().map(|w| f64::from(*w)));
        let found: Vec<f32> = found.into_iter().map(|w| w as f32).collect();
        close(&found, &per_deviation(&mut case.standardised.weight.iter().copied()), tolerance);
        close(&probabilities(&fitted.head), &case.standardised.probabilities, 5e-4);
    }
}

#[test]
fn steps_and_learning_rates_are_pytorchs() {
    let (golden, device) = (golden(), Device::flex());
    let start = LinearHead { dim: golden.dim, weight: golden.sgd.start.clone(), bias: vec![0.0; golden.classes] };
    let mut sgd = Sgd::from_head(&start, golden.sgd.momentum, &device);
    let mut sizes = Vec::new();
    for step in &golden.sgd.steps {
        let (values, labels) = golden.train().chosen(&step.rows);
        let loss = sgd.step(values, &labels, step.lr).unwrap();
        // Seven steps in 32 bits on features up to 30: sums in another order.
        assert!((loss - step.loss).abs() < 2e-5 * step.loss.max(1.0), "{loss} is not {}", step.loss);
        sizes.push(labels.len());
    }
    assert_eq!(sizes, [16, 16, 16, 16, 16, 16, 5]);
    let head = sgd.head().unwrap();
    let wide = |values: &[f32]| values.iter().map(|x| f64::from(*x)).collect::<Vec<_>>();
    close(&head.weight, &wide(&golden.sgd.weight), 2e-5);
    close(&head.bias, &wide(&golden.sgd.bias), 2e-5);
    let Schedule { lr, batch, rates } = golden.schedule;
    let config = SgdConfig { epochs: rates.len(), batch, lr, momentum: 0.9, seed: 0 };
    for (epoch, rate) in rates.iter().enumerate() {
        // PyTorch multiplies from epoch to epoch where the closed form is used here.
        assert!((config.lr_at(epoch) - rate).abs() < 1e-15, "epoch {epoch}");
    }
}

/// `n` points around one centre per class, far enough apart to be told from each other.
fn clusters(n: usize, seed: u64) -> (Vec<f32>, Vec<u32>) {
    use rand::{RngExt, SeedableRng};
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(seed);
    let labels: Vec<u32> = (0..n as u32).map(|row| row % 3).collect();
    let values = labels.iter().flat_map(|&label| {
        let centre = [[2.0, 0.0], [0.0, 2.0], [-2.0, -2.0]][label as usize];
        centre.map(|c: f32| 5.0 + c + rng.random_range(-0.5..0.5))
    });
    (values.collect(), labels)
}

#[test]
fn every_probe_separates_what_is_separable_and_repeats() {
    let device = Device::flex();
    let ((x, y), (test_x, test_y)) = (clusters(90, 1), clusters(60, 2));
    let (train, test) = (Labelled::new(&x, 2, &y, 3).unwrap(), Labelled::new(&test_x, 2, &test_y, 3).unwrap());
    let sweep = Sweep { l2: vec![1e-3, 1.0, 100.0], validation: 0.2, seed: 5, effort: Effort::default() };
    let chosen = sweep.fit(&train, &device).unwrap();
    assert_eq!((chosen.held_out, chosen.candidates.len()), (18, 3));
    assert_eq!(chosen.candidates.iter().map(|c| c.l2).collect::<Vec<_>>(), [100.0, 1.0, 1e-3]);
    let accuracy = |head: &LinearHead| head.predictions(&test, &device).unwrap().value(Metric::Accuracy).unwrap();
    assert_eq!(accuracy(&chosen.fitted.head), 1.0);
    assert_eq!(accuracy(&FewShot::new(&train).fit(3, 0, 5, &device).unwrap()), 1.0);
    let config = SgdConfig { epochs: 8, batch: 16, lr: 0.5, momentum: 0.9, seed: 5 };
    let trained = train_on(&train, &test, &config, &device).unwrap();
    assert_eq!(trained.history.len(), 8);
    assert!(trained.history[7].test_accuracy > 0.95 && trained.history[7].train_loss < trained.history[0].train_loss);
    assert_eq!(trained.last_predictions.value(Metric::Accuracy), Some(trained.history[7].test_accuracy));
    let best = trained.history[trained.best_epoch()].test_accuracy;
    assert!(trained.history.iter().all(|epoch| epoch.test_accuracy <= best));
    assert_eq!(trained.best_on_test.value(Metric::Accuracy), Some(best));
    let again = train_on(&train, &test, &config, &device).unwrap();
    assert_eq!((&again.last, &again.history), (&trained.last, &trained.history));
    assert_ne!(train_on(&train, &test, &SgdConfig { seed: 6, ..config }, &device).unwrap().last, trained.last);
}

/// The chosen penalty is the one of most held-out accuracy; of equals, that of the lowest loss.
#[test]
fn the_sweep_chooses_by_the_rows_held_out() {
    let device = Device::flex();
    let (x, y) = clusters(60, 3);
    let train = Labelled::new(&x, 2, &y, 3).unwrap();
    let sweep = Sweep { l2: vec![10.0, 1e-2], validation: 0.25, seed: 1, effort: Effort::default() };
    let chosen = sweep.fit(&train, &device).unwrap();
    let best = chosen.candidates.iter().find(|c| c.l2 == chosen.l2).unwrap();
    let beaten = |c: &&super::sweep::Candidate| (c.accuracy, -c.loss) > (best.accuracy, -best.loss) && c.l2 != best.l2;
    assert!(!chosen.candidates.iter().any(|c| beaten(&c)), "{chosen:?}");
    let alone = Sweep { l2: vec![chosen.l2], ..sweep }.fit(&train, &device).unwrap();
    assert_eq!((alone.fitted.head, alone.held_out), (chosen.fitted.head, 0));
}

/// Features that never change say nothing: with as many rows of either class every penalty leaves all weights at 0, and of
/// equals the strongest is chosen, wherever it stands in the list.
#[test]
fn a_tie_goes_to_the_strongest_penalty() {
    let (x, y): (Vec<f32>, Vec<u32>) = (vec![0.7; 40], (0..20).map(|row| row % 2).collect());
    let train = Labelled::new(&x, 2, &y, 2).unwrap();
    let sweep = Sweep { l2: vec![0.1, 10.0, 1e-3], validation: 0.2, seed: 2, effort: Effort::default() };
    let chosen = sweep.fit(&train, &Device::flex()).unwrap();
    assert_eq!(chosen.candidates.len(), 3);
    for candidate in &chosen.candidates {
        assert_eq!((candidate.accuracy, candidate.loss), (chosen.candidates[0].accuracy, chosen.candidates[0].loss));
    }
    assert_eq!(chosen.l2, 10.0);
    assert_eq!(chosen.fitted.head.weight, [0.0; 4]);
}

#[test]
fn rows_that_make_no_sense_are_refused() {
    assert!(Labelled::new(&[1.0, 2.0], 1, &[0, 1], 2).is_ok());
    assert!(Labelled::new(&[1.0, 2.0], 1, &[0, 2], 2).is_err());
    assert!(Labelled::new(&[1.0, f32::NAN], 1, &[0, 1], 2).is_err());
    assert!(Labelled::new(&[1.0, 2.0, 3.0], 2, &[0, 1], 2).is_err());
    assert!(Labelled::new(&[], 2, &[], 2).is_err());
    let (x, y) = clusters(30, 4);
    let train = Labelled::new(&x, 2, &y, 3).unwrap();
    let config = SgdConfig { epochs: 1, batch: 8, lr: 0.1, momentum: 0.9, seed: 0 };
    let wide = Labelled::new(&x[..30], 1, &y, 3).unwrap();
    assert!(train_on(&train, &wide, &config, &Device::flex()).is_err());
    for config in [SgdConfig { lr: 0.0, ..config.clone() }, SgdConfig { epochs: 0, ..config.clone() }] {
        assert!(train_on(&train, &train, &config, &Device::flex()).is_err());
    }
    let hot = SgdConfig { lr: 1e38, epochs: 4, ..config };
    let error = train_on(&train, &train, &hot, &Device::flex()).unwrap_err().to_string();
    assert!(error.contains("not finite") || error.contains("lower learning rate"), "{error}");
}
