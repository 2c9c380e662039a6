//! Linear probes: how well classes separate by a linear map of an encoder's features, which stay as they are.
//!
//! | File | What it fits |
//! |---|---|
//! | `logistic.rs` | multinomial logistic regression with an L2 penalty, to its optimum (`lbfgs.rs`, `curvature.rs`) |
//! | `sweep.rs` | the same with the penalty chosen on a part of the training rows |
//! | `sgd.rs` | DINO's protocol: stochastic gradient descent with momentum and a cosine schedule |
//! | `few_shot.rs` | logistic regression on a few rows of every class, drawn several times |
//!
//! All give a [`LinearHead`]. Test rows only score, but for [`Trained::best_on_test`](sgd::Trained::best_on_test), which
//! says so in its name.

mod curvature;
pub mod few_shot;
mod lbfgs;
pub mod logistic;
pub mod sgd;
pub mod sweep;
#[cfg(all(test, feature = "flex"))]
mod tests;

use burn::tensor::Device;
use rayon::prelude::*;

use crate::device::{host, matrix};
use crate::error::{Error, Result};
use crate::metric::Predictions;
use crate::standard::{Estimate, Standard};

/// Rows that are scaled, multiplied and read at a time. Beside the features as they are given, a fit of logistic regression
/// holds its rows once more, on their scale and on the device, and the sweep a copy of those it holds out: about twice the
/// features in all where the device is the host. Everything else holds some blocks or one batch.
const BLOCK: usize = 8192;

/// Rows of features with the class of each.
#[derive(Clone, Copy, Debug)]
pub struct Labelled<'a> {
    values: &'a [f32],
    dim: usize,
    labels: &'a [u32],
    classes: usize,
}

impl<'a> Labelled<'a> {
    /// Rows of `dim` numbers (row-major), each with a label below `classes`.
    ///
    /// # Errors
    /// No rows, lengths that do not match, a label without a class, or a number that is not finite.
    pub fn new(values: &'a [f32], dim: usize, labels: &'a [u32], classes: usize) -> Result<Self> {
        if labels.is_empty() || dim == 0 || values.len() != labels.len() * dim {
            return Err(Error::usage(format!(
                "a linear probe of {} numbers in rows of {dim} with {} labels",
                values.len(),
                labels.len()
            )));
        }
        if let Some(label) = labels.iter().find(|&&label| label as usize >= classes) {
            return Err(Error::usage(format!("label {label} with {classes} classes")));
        }
        if values.par_iter().any(|value| !value.is_finite()) {
            return Err(Error::usage("a linear probe of features that are not finite"));
        }
        Ok(Self { values, dim, labels, classes })
    }

    /// Number of rows.
    #[allow(clippy::len_without_is_empty)] // there is always a row
    pub fn len(&self) -> usize {
        self.labels.len()
    }

    /// Numbers per row.
    pub fn dim(&self) -> usize {
        self.dim
    }

    /// Class of every row.
    pub fn labels(&self) -> &'a [u32] {
        self.labels
    }

    /// Number of classes.
    pub fn classes(&self) -> usize {
        self.classes
    }

    fn row(&self, index: usize) -> &'a [f32] {
        &self.values[index * self.dim..(index + 1) * self.dim]
    }

    /// The indices of all rows.
    fn all(&self) -> Vec<usize> {
        (0..self.len()).collect()
    }

    /// The scale on which every feature of the rows at `indices` has mean 0 and deviation 1; labels play no part.
    fn standard(&self, indices: &[usize]) -> Standard {
        let of_block = |block: &[usize]| {
            let mut estimate = Estimate::new(self.dim);
            block.iter().for_each(|&index| estimate.add(self.row(index)));
            estimate
        };
        // Blocks of a fixed size, merged in order: the number of threads must not move the last bit.
        let blocks: Vec<Estimate> = indices.par_chunks(BLOCK).map(of_block).collect();
        let mut all = Estimate::new(self.dim);
        blocks.iter().for_each(|block| all.merge(block));
        all.standard()
    }

    /// Copies of the rows at `indices`, with their labels.
    fn chosen(&self, indices: &[usize]) -> (Vec<f32>, Vec<u32>) {
        let mut values = Vec::with_capacity(indices.len() * self.dim);
        indices.iter().for_each(|&index| values.extend_from_slice(self.row(index)));
        (values, indices.iter().map(|&index| self.labels[index]).collect())
    }
}

/// A linear map from features to one logit per class.
#[derive(Clone, Debug, PartialEq)]
pub struct LinearHead {
    /// Numbers per row of features.
    pub dim: usize,
    /// `[classes, dim]`, row-major.
    pub weight: Vec<f32>,
    /// `[classes]`.
    pub bias: Vec<f32>,
}

impl LinearHead {
    /// Number of classes.
    pub fn classes(&self) -> usize {
        self.bias.len()
    }

    /// Probabilities (softmax of the logits) of rows of features: row-major `[rows, classes]`.
    ///
    /// # Errors
    /// Rows of another width, and failures of the device.
    pub fn probabilities(&self, values: &[f32], device: &Device) -> Result<Vec<f32>> {
        if !values.len().is_multiple_of(self.dim) {
            return Err(Error::usage(format!("{} numbers for a linear head of {} a row", values.len(), self.dim)));
        }
        let classes = self.classes();
        let device = device.clone().inner();
        let weight = matrix(self.weight.clone(), classes, &device).transpose();
        let mut all = Vec::with_capacity(values.len() / self.dim * classes);
        for block in values.chunks(BLOCK * self.dim) {
            let rows = matrix(block.to_vec(), block.len() / self.dim, &device);
            let mut logits = host(rows.matmul(weight.clone()))?;
            logits.par_chunks_exact_mut(classes).for_each(|row| {
                let biased = row.iter().zip(&self.bias).map(|(x, b)| f64::from(*x) + f64::from(*b));
                let (probabilities, _) = softmax(biased.collect());
                row.iter_mut().zip(probabilities).for_each(|(to, p)| *to = p as f32);
            });
            all.extend(logits);
        }
        Ok(all)
    }

    /// A head for features as they are from this one for features on a scale.
    fn unscaled(&self, standard: &Standard) -> Self {
        let mut plain = self.clone();
        for (row, bias) in plain.weight.chunks_exact_mut(self.dim).zip(&mut plain.bias) {
            let mut shift = 0.0;
            for (w, (mean, scale)) in row.iter_mut().zip(standard.features()) {
                let scaled = f64::from(*w) * scale;
                shift += scaled * mean;
                *w = scaled as f32;
            }
            *bias = (f64::from(*bias) - shift) as f32;
        }
        plain
    }

    /// Truth and probabilities of `rows`.
    ///
    /// # Errors
    /// As [`probabilities`](Self::probabilities).
    pub fn predictions(&self, rows: &Labelled, device: &Device) -> Result<Predictions> {
        Predictions::new(rows.labels.to_vec(), self.probabilities(rows.values, device)?, self.classes())
    }
}

/// Logits z to probabilities e^z / Σ e^z, and ln Σ e^z: less the logit of the truth, that is the loss.
fn softmax(mut logits: Vec<f64>) -> (Vec<f64>, f64) {
    let largest = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    logits.iter_mut().for_each(|logit| *logit = (*logit - largest).exp());
    let total: f64 = logits.iter().sum();
    logits.iter_mut().for_each(|power| *power /= total);
    (logits, largest + total.ln())
}
