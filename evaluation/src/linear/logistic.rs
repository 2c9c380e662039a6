//! Multinomial logistic regression with an L2 penalty, fitted to its optimum.
//!
//! It minimises `mean over rows of -ln softmax(W x + b)[y] + l2 / 2 · ‖W‖²`; the bias is not penalised. scikit-learn's
//! `LogisticRegression(C)` minimises the same with `l2 = 1 / (C · rows)`. As a penalty per row it means the same whatever
//! the number of rows, so one that was chosen on a part of them serves for all.

use burn::tensor::{Device, Tensor};
use rayon::prelude::*;

use super::curvature::Curvature;
use super::lbfgs::minimise;
use super::{BLOCK, Labelled, LinearHead, softmax};
use crate::device::{host, matrix};
use crate::error::{Error, Result};
use crate::standard::Standard;

/// When a fit ends.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Effort {
    /// Largest absolute component of the gradient at the optimum.
    pub tolerance: f64,
    /// Steps, at most.
    pub iterations: usize,
}

impl Default for Effort {
    fn default() -> Self {
        // scikit-learn's tolerance, half of it: on features that are nearly alike 32-bit products do not show much more.
        Self { tolerance: 5e-5, iterations: 1000 }
    }
}

/// A fitted head, and how well it is fitted.
#[derive(Clone, Debug)]
pub struct Fitted {
    /// For features as they were given.
    pub head: LinearHead,
    /// Steps taken.
    pub iterations: usize,
    /// Largest absolute component of the gradient where they ended.
    pub gradient: f64,
}

/// Features on the scale of mean 0 and deviation 1 and on the device, ready to be fitted with several penalties.
pub struct Logistic {
    standard: Option<Standard>,
    blocks: Vec<Tensor<2>>,
    /// Of the features; none where they are too many.
    curvature: Option<Curvature>,
    labels: Vec<u32>,
    dim: usize,
    classes: usize,
    device: Device,
    effort: Effort,
}

impl Logistic {
    /// Of `rows`, with every feature standardised over them.
    ///
    /// # Errors
    /// Failures of the device.
    pub fn standardised(rows: &Labelled, effort: Effort, device: &Device) -> Result<Self> {
        Self::of_part(rows, &rows.all(), effort, device)
    }

    /// Of the rows at `part`, with every feature standardised over them.
    pub(super) fn of_part(rows: &Labelled, part: &[usize], effort: Effort, device: &Device) -> Result<Self> {
        Self::scaled(rows, part, Some(rows.standard(part)), effort, device)
    }

    /// Of `rows` as they are.
    ///
    /// # Errors
    /// Failures of the device.
    pub fn plain(rows: &Labelled, effort: Effort, device: &Device) -> Result<Self> {
        Self::scaled(rows, &rows.all(), None, effort, device)
    }

    /// Of the rows at `part` on a scale from elsewhere. They are copied block by block, straight to the device.
    pub(super) fn scaled(
        rows: &Labelled,
        part: &[usize],
        standard: Option<Standard>,
        effort: Effort,
        device: &Device,
    ) -> Result<Self> {
        let device = device.clone().inner();
        let (mut blocks, mut labels): (Vec<Tensor<2>>, Vec<u32>) = (Vec::new(), Vec::with_capacity(part.len()));
        for block in part.chunks(BLOCK) {
            let (mut values, of_block) = rows.chosen(block);
            if let Some(standard) = &standard {
                values.par_chunks_exact_mut(rows.dim).for_each(|row| standard.apply(row));
            }
            blocks.push(matrix(values, block.len(), &device));
            labels.extend(of_block);
        }
        let curvature = Curvature::of(&blocks, rows.dim)?;
        let (dim, classes) = (rows.dim, rows.classes);
        Ok(Self { standard, blocks, curvature, labels, dim, classes, device, effort })
    }

    /// Fits with the penalty `l2`, from the head of another penalty on the way, or from zeros.
    ///
    /// # Errors
    /// A penalty below 0 or that is not finite, and failures of the device.
    pub(super) fn fit_from(&self, start: Option<Vec<f64>>, l2: f64) -> Result<(Vec<f64>, Fitted)> {
        if !(l2 >= 0.0 && l2.is_finite()) {
            return Err(Error::usage(format!("the L2 penalty of a linear probe is 0 or more, not {l2}")));
        }
        let start = start.unwrap_or_else(|| vec![0.0; self.classes * (self.dim + 1)]);
        let Effort { tolerance, iterations } = self.effort;
        let inverse = self.curvature.as_ref().and_then(|curvature| curvature.inverse(l2));
        let precondition = |v: &[f64]| inverse.as_ref().map_or_else(|| v.to_vec(), |inverse| inverse.apply(v));
        let minimum = minimise(start, tolerance, iterations, precondition, |at| self.objective(at, l2))?;
        let (weight, bias) = minimum.at.split_at(self.classes * self.dim);
        let single = |values: &[f64]| values.iter().map(|x| *x as f32).collect();
        let head = LinearHead { dim: self.dim, weight: single(weight), bias: single(bias) };
        let head = self.standard.as_ref().map_or(head.clone(), |standard| head.unscaled(standard));
        let fitted = Fitted { head, iterations: minimum.iterations, gradient: minimum.gradient };
        Ok((minimum.at, fitted))
    }

    /// Fits with the penalty `l2`.
    ///
    /// # Errors
    /// A penalty below 0 or that is not finite, and failures of the device.
    pub fn fit(&self, l2: f64) -> Result<Fitted> {
        Ok(self.fit_from(None, l2)?.1)
    }

    /// Value and gradient at `W` (row-major `[classes, dim]`) followed by `b`. Products are in 32 bits on the device, all
    /// sums in 64.
    fn objective(&self, at: &[f64], l2: f64) -> Result<(f64, Vec<f64>)> {
        let (weight, bias) = at.split_at(self.classes * self.dim);
        let weights = matrix(weight.iter().map(|w| *w as f32).collect(), self.classes, &self.device);
        let mut gradient: Vec<f64> = weight.iter().map(|w| l2 * w).chain(vec![0.0; self.classes]).collect();
        let mut value = 0.5 * l2 * weight.iter().map(|w| w * w).sum::<f64>();
        let n = self.labels.len() as f64;
        for (rows, labels) in self.blocks.iter().zip(self.labels.chunks(BLOCK)) {
            let mut residuals = host(rows.clone().matmul(weights.clone().transpose()))?;
            value += losses(&mut residuals, labels, bias) / n;
            for row in residuals.chunks_exact(self.classes) {
                let biases = &mut gradient[self.classes * self.dim..];
                biases.iter_mut().zip(row).for_each(|(sum, r)| *sum += f64::from(*r) / n);
            }
            let residuals = matrix(residuals, labels.len(), &self.device);
            let product = host(residuals.transpose().matmul(rows.clone()))?;
            gradient.iter_mut().zip(product).for_each(|(sum, g)| *sum += f64::from(g) / n);
        }
        Ok((value, gradient))
    }
}

/// Numbers of a block below which threads cost more than they save.
const SMALL: usize = 1 << 16;

/// Products of rows to their residuals; the sum of the rows' losses, in order.
fn losses(products: &mut [f32], labels: &[u32], bias: &[f64]) -> f64 {
    let classes = bias.len();
    let loss = |(row, &label): (&mut [f32], &u32)| residual(row, bias, label as usize);
    if products.len() < SMALL {
        return products.chunks_exact_mut(classes).zip(labels).map(loss).sum();
    }
    let losses: Vec<f64> = products.par_chunks_exact_mut(classes).zip(labels).map(loss).collect();
    losses.iter().sum()
}

/// Products of a row to its probabilities less 1 at the label; the row's loss.
fn residual(row: &mut [f32], bias: &[f64], label: usize) -> f64 {
    let logits: Vec<f64> = row.iter().zip(bias).map(|(x, b)| f64::from(*x) + b).collect();
    let of_label = logits[label];
    let (probabilities, logarithm) = softmax(logits);
    for (class, (r, probability)) in row.iter_mut().zip(probabilities).enumerate() {
        *r = (probability - f64::from(u8::from(class == label))) as f32;
    }
    logarithm - of_label
}
