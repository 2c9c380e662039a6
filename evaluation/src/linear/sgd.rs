//! DINO's linear probe (`eval_linear.py`): weights drawn from N(0, 0.01²), stochastic gradient descent with momentum and
//! without weight decay, a learning rate of `lr · batch / 256` that falls to 0 along a cosine, epoch by epoch.
//!
//! After every epoch the test rows are classified. DINO's script, and with it every table of the field, reports the epoch
//! at which that went best; the choice is made on the test rows, so the figure is a little too good. Here both are kept:
//! the last epoch's head, and the best one under a name that says so.

use burn::tensor::activation::{log_softmax, softmax};
use burn::tensor::{Device, Tensor};
use rand::seq::SliceRandom;
use serde::{Deserialize, Serialize};

use super::{Labelled, LinearHead};
use crate::device::{host, matrix};
use crate::error::{Error, Result};
use crate::metric::{Metric, Predictions};
use crate::seed::{Purpose, normal, stream};

/// Deviation of the initial weights.
const DEVIATION: f64 = 0.01;

/// How a head is trained.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SgdConfig {
    /// Passes over the training rows.
    pub epochs: usize,
    /// Rows of a step.
    pub batch: usize,
    /// Learning rate at a batch of 256.
    pub lr: f64,
    /// Of the velocity.
    pub momentum: f64,
    /// Of the initial weights and the order of the rows.
    pub seed: u64,
}

impl SgdConfig {
    /// The learning rate of `epoch`, counted from 0.
    pub fn lr_at(&self, epoch: usize) -> f64 {
        let peak = self.lr * self.batch as f64 / 256.0;
        0.5 * peak * (1.0 + (std::f64::consts::PI * epoch as f64 / self.epochs as f64).cos())
    }

    /// Checks the values on their own.
    ///
    /// # Errors
    /// Naming the one that makes no sense.
    pub fn check(&self) -> Result<()> {
        if self.epochs == 0 || self.batch == 0 {
            return Err(Error::usage("a linear probe needs at least one epoch, and a batch of at least one row"));
        }
        if !(self.lr > 0.0 && self.lr.is_finite() && (0.0..1.0).contains(&self.momentum)) {
            return Err(Error::usage(format!(
                "a linear probe needs a learning rate above 0 and a momentum below 1, not {} and {}",
                self.lr, self.momentum
            )));
        }
        Ok(())
    }
}

/// A head in training: PyTorch's `SGD` on the mean cross-entropy, with the gradient written out.
pub struct Sgd {
    /// `[classes, dim]`.
    weight: Tensor<2>,
    /// `[1, classes]`.
    bias: Tensor<2>,
    velocity: Option<[Tensor<2>; 2]>,
    momentum: f64,
    device: Device,
}

impl Sgd {
    /// A head with the weights that `seed` draws.
    pub fn new(dim: usize, classes: usize, momentum: f64, seed: u64, device: &Device) -> Self {
        let mut rng = stream(seed, Purpose::Weights, 1, 0);
        let weight = (0..classes * dim).map(|_| (DEVIATION * normal(&mut rng)) as f32).collect();
        Self::from_head(&LinearHead { dim, weight, bias: vec![0.0; classes] }, momentum, device)
    }

    /// Training that begins with a given head.
    pub fn from_head(head: &LinearHead, momentum: f64, device: &Device) -> Self {
        let device = device.clone().inner();
        let weight = matrix(head.weight.clone(), head.classes(), &device);
        let bias = matrix(head.bias.clone(), 1, &device);
        Self { weight, bias, velocity: None, momentum, device }
    }

    /// One step on a batch of rows (row-major), by `v ← momentum · v + g; w ← w - lr · v`; the mean loss before it.
    ///
    /// # Errors
    /// Rows that do not fit the head, and failures of the device.
    pub fn step(&mut self, values: Vec<f32>, labels: &[u32], lr: f64) -> Result<f64> {
        let [classes, dim] = self.weight.dims();
        if labels.is_empty() || values.len() != labels.len() * dim {
            return Err(Error::usage(format!("{} numbers and {} labels in a step", values.len(), labels.len())));
        }
        if let Some(label) = labels.iter().find(|&&label| label as usize >= classes) {
            return Err(Error::usage(format!("label {label} with {classes} classes")));
        }
        let n = labels.len();
        let mut truth = vec![0.0; n * classes];
        labels.iter().enumerate().for_each(|(row, &label)| truth[row * classes + label as usize] = 1.0);
        let (rows, truth) = (matrix(values, n, &self.device), matrix(truth, n, &self.device));
        let logits = rows.clone().matmul(self.weight.clone().transpose()) + self.bias.clone();
        let loss = (log_softmax(logits.clone(), 1) * truth.clone()).sum().neg();
        let residual = (softmax(logits, 1) - truth).div_scalar(n as f64);
        let gradient = [residual.clone().transpose().matmul(rows), residual.sum_dim(0)];
        let velocity = match self.velocity.take() {
            Some([weight, bias]) => {
                let [of_weight, of_bias] = gradient;
                [weight.mul_scalar(self.momentum) + of_weight, bias.mul_scalar(self.momentum) + of_bias]
            }
            // PyTorch's first velocity is the gradient itself.
            None => gradient,
        };
        self.weight = self.weight.clone() - velocity[0].clone().mul_scalar(lr);
        self.bias = self.bias.clone() - velocity[1].clone().mul_scalar(lr);
        self.velocity = Some(velocity);
        Ok(f64::from(host(loss)?[0]) / n as f64)
    }

    /// The head as it is now.
    ///
    /// # Errors
    /// Failures of the device.
    pub fn head(&self) -> Result<LinearHead> {
        let [_, dim] = self.weight.dims();
        Ok(LinearHead { dim, weight: host(self.weight.clone())?, bias: host(self.bias.clone())? })
    }
}

/// One epoch.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct SgdEpoch {
    /// Counted from 0.
    pub epoch: usize,
    /// Learning rate.
    pub lr: f64,
    /// Mean loss of the training rows, each before its step.
    pub train_loss: f64,
    /// Share of the test rows that are right after the epoch.
    pub test_accuracy: f64,
}

/// A trained head.
#[derive(Clone, Debug)]
pub struct Trained {
    /// After the last epoch.
    pub last: LinearHead,
    /// What it says of the test rows.
    pub last_predictions: Predictions,
    /// What the head said of the test rows after the epoch at which that went best, the first of equals: chosen on test
    /// data, as DINO's script chooses.
    pub best_on_test: Predictions,
    /// All epochs.
    pub history: Vec<SgdEpoch>,
}

impl Trained {
    /// The epoch of [`best_on_test`](Self::best_on_test).
    pub fn best_epoch(&self) -> usize {
        let accuracy = |epoch: &SgdEpoch| epoch.test_accuracy;
        let best = self.history.iter().map(accuracy).fold(f64::NEG_INFINITY, f64::max);
        self.history.iter().position(|epoch| epoch.test_accuracy == best).unwrap_or(0)
    }
}

/// Trains a head by `config`. `epoch` gives the batches of an epoch one after the other, each with its labels, to the
/// function it is handed; after each epoch the rows of `test` are classified.
///
/// # Errors
/// Settings that make no sense, what `epoch` fails with, and a loss that is not finite.
pub fn train<E: From<Error>>(
    config: &SgdConfig,
    test: &Labelled,
    device: &Device,
    mut epoch: impl FnMut(usize, &mut dyn FnMut(Vec<f32>, &[u32]) -> Result<()>) -> std::result::Result<(), E>,
) -> std::result::Result<Trained, E> {
    config.check()?;
    let mut sgd = Sgd::new(test.dim(), test.classes(), config.momentum, config.seed, device);
    let mut history: Vec<SgdEpoch> = Vec::with_capacity(config.epochs);
    let mut best: Option<(f64, Predictions)> = None;
    let mut last = None;
    for number in 0..config.epochs {
        let lr = config.lr_at(number);
        let (mut losses, mut rows) = (0.0, 0usize);
        epoch(number, &mut |values, labels| {
            losses += sgd.step(values, labels, lr)? * labels.len() as f64;
            rows += labels.len();
            Ok(())
        })?;
        let train_loss = losses / rows.max(1) as f64;
        if rows == 0 || !train_loss.is_finite() {
            let what = format!("the loss of the linear probe is {train_loss} after epoch {number} of {rows} rows");
            return Err(Error::Training(format!("{what}; try a lower learning rate than {}", config.lr)).into());
        }
        let head = sgd.head()?;
        let predictions = head.predictions(test, device)?;
        let test_accuracy = predictions.value(Metric::Accuracy).unwrap_or(0.0);
        history.push(SgdEpoch { epoch: number, lr, train_loss, test_accuracy });
        if best.as_ref().is_none_or(|(highest, _)| test_accuracy > *highest) {
            best = Some((test_accuracy, predictions.clone()));
        }
        last = Some((head, predictions));
    }
    let missing = || Error::usage("a linear probe needs at least one epoch");
    let (last, last_predictions) = last.ok_or_else(missing)?;
    let (_, best_on_test) = best.ok_or_else(missing)?;
    Ok(Trained { last, last_predictions, best_on_test, history })
}

/// Trains a head on stored features: every epoch in an order drawn anew, the last batch as small as it comes out.
///
/// # Errors
/// As [`train`]; rows of different widths or classes.
pub fn train_on(rows: &Labelled, test: &Labelled, config: &SgdConfig, device: &Device) -> Result<Trained> {
    if (rows.dim(), rows.classes()) != (test.dim(), test.classes()) {
        return Err(Error::usage(format!(
            "training rows of {} numbers and {} classes, test rows of {} and {}",
            rows.dim(),
            rows.classes(),
            test.dim(),
            test.classes()
        )));
    }
    train(config, test, device, |epoch, step| {
        let mut order: Vec<usize> = (0..rows.len()).collect();
        order.shuffle(&mut stream(config.seed, Purpose::Order, epoch as u64, 1));
        for batch in order.chunks(config.batch) {
            let (values, labels) = rows.chosen(batch);
            step(values, &labels)?;
        }
        Ok(())
    })
}
