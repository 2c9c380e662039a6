//! Kernel distance between two sets of features (as KID: Bińkowski et al., ICLR 2018): the squared maximum mean discrepancy
//! under k(x, y) = (xᵀy / dim + 1)³, without bias and so sometimes below 0, over seeded subsets as torch-fidelity takes them.

use nalgebra::DMatrix;
use rand::seq::index;
use rayon::prelude::*;

use super::{Features, check_pair};
use crate::error::{Error, Result};
use crate::seed::{Purpose, stream};

/// How subsets are drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KernelSubsets {
    /// How many.
    pub subsets: usize,
    /// Images of each set in a subset, drawn without replacement.
    pub size: usize,
    /// Seed of the draws.
    pub seed: u64,
}

impl Default for KernelSubsets {
    fn default() -> Self {
        // torch-fidelity's numbers.
        Self { subsets: 100, size: 1000, seed: 0 }
    }
}

/// The distance over the subsets.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct KernelDistance {
    /// Mean over the subsets.
    pub mean: f64,
    /// Standard deviation over the subsets, divisor n as torch-fidelity's.
    pub std: f64,
}

/// Mean and deviation of the distance between subsets of `a` and `b`. The draws depend on nothing but the seed.
///
/// # Errors
/// Sets of different widths or smaller than a subset; no subset, or one of fewer than two images.
pub fn kernel_distance(a: Features, b: Features, drawn: &KernelSubsets) -> Result<KernelDistance> {
    let KernelSubsets { subsets, size, seed } = *drawn;
    if subsets == 0 || size < 2 {
        return Err(Error::usage(format!(
            "a kernel distance takes 1 subset of 2 images or more, not {subsets} of {size}"
        )));
    }
    check_pair(&a, &b, size, "a kernel distance with subsets of this size")?;
    let values: Vec<f64> = (0..subsets)
        .into_par_iter()
        .map(|subset| {
            let of = |set: &Features, which| {
                let mut rng = stream(seed, Purpose::Subset, subset as u64, which);
                set.columns(index::sample(&mut rng, set.len(), size).into_iter())
            };
            squared_discrepancy(&of(&a, 0), &of(&b, 1))
        })
        .collect();
    let mean = values.iter().sum::<f64>() / subsets as f64;
    let std = (values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / subsets as f64).sqrt();
    Ok(KernelDistance { mean, std })
}

/// The unbiased squared discrepancy of `x` and `y`, `[dim, m]` each: means of k over the pairs of different images of each
/// set, less twice the mean over all pairs across.
pub(super) fn squared_discrepancy(x: &DMatrix<f64>, y: &DMatrix<f64>) -> f64 {
    let m = x.ncols() as f64;
    let within = |set: &DMatrix<f64>| {
        let kernel = kernel(set, set);
        (kernel.sum() - kernel.trace()) / (m * (m - 1.0))
    };
    within(x) + within(y) - 2.0 * kernel(x, y).sum() / (m * m)
}

fn kernel(x: &DMatrix<f64>, y: &DMatrix<f64>) -> DMatrix<f64> {
    let mut products = x.transpose() * y;
    let scale = (x.nrows() as f64).recip();
    products.apply(|product| *product = (*product * scale + 1.0).powi(3));
    products
}
