//! How strongly the loss of logistic regression bends at most, to shorten its fitting.
//!
//! Features of a self-supervised encoder are nearly alike: a few directions hold nearly all their variance, and methods
//! that know gradients alone take thousands of steps. The Hessian of the mean cross-entropy is at most
//! `½ (I - 11ᵀ / classes) ⊗ XᵀX / rows` (Böhning, "Multinomial logistic regression algorithm", 1992): every class bends at
//! most by half the second moments of the features, to which the penalty is added. Its inverse is what steps are measured
//! by.

use burn::tensor::Tensor;
use nalgebra::{Cholesky, DMatrix};
use rayon::prelude::*;

use crate::device::host;
use crate::error::Result;

/// Features, at most: a matrix of 4096² numbers in 64 bits takes 128 MB, and its inverse some seconds.
const MOST: usize = 4096;
/// Rows are few where there are this many times as many features.
const FEW: usize = 8;
/// Share of the mean variance added to every direction, so that one without any can be inverted.
const RIDGE: f64 = 1e-7;
/// Multiplications below which threads cost more than they save.
const SMALL: usize = 1 << 20;

/// Half the second moments of the features and of a constant 1 behind them.
pub(super) struct Curvature(DMatrix<f64>);

impl Curvature {
    /// Of blocks of rows `[rows, dim]`; none for more than [`MOST`] features, or so few rows that they are fitted sooner
    /// without it.
    pub fn of(blocks: &[Tensor<2>], dim: usize) -> Result<Option<Self>> {
        let rows: usize = blocks.iter().map(|block| block.dims()[0]).sum();
        if dim > MOST || FEW * rows < dim {
            return Ok(None);
        }
        let mut moments = DMatrix::zeros(dim + 1, dim + 1);
        for block in blocks {
            let products = host(block.clone().transpose().matmul(block.clone()))?;
            let sums = host(block.clone().sum_dim(0))?;
            for (row, (products, sum)) in products.chunks_exact(dim).zip(&sums).enumerate() {
                products.iter().enumerate().for_each(|(column, x)| moments[(row, column)] += f64::from(*x));
                moments[(row, dim)] += f64::from(*sum);
                moments[(dim, row)] += f64::from(*sum);
            }
        }
        moments[(dim, dim)] = rows as f64;
        Ok(Some(Self(moments * (0.5 / rows as f64))))
    }

    /// The inverse with the penalty `l2` on all but the constant; none where rounding leaves none.
    pub fn inverse(&self, l2: f64) -> Option<Inverse> {
        let side = self.0.nrows();
        let ridge = RIDGE * self.0.trace() / side as f64;
        let mut bent = self.0.clone();
        (0..side).for_each(|at| bent[(at, at)] += ridge + if at + 1 < side { l2 } else { 0.0 });
        Cholesky::new(bent).map(|factor| Inverse(factor.inverse()))
    }
}

/// The inverse of a [`Curvature`], the same for every class.
pub(super) struct Inverse(DMatrix<f64>);

impl Inverse {
    /// Its product with weights (row-major `[classes, dim]`) followed by biases (`[classes]`).
    pub fn apply(&self, v: &[f64]) -> Vec<f64> {
        let side = self.0.nrows();
        let (classes, dim) = (v.len() / side, side - 1);
        let (weights, biases) = v.split_at(classes * dim);
        let product = |class: usize| -> Vec<f64> {
            let of_class = weights[class * dim..(class + 1) * dim].iter().chain(std::iter::once(&biases[class]));
            // Symmetric, so that its columns, which lie together in memory, are its rows.
            let mut sums = vec![0.0; side];
            for (x, column) in of_class.zip(self.0.column_iter()) {
                sums.iter_mut().zip(column.iter()).for_each(|(sum, c)| *sum += x * c);
            }
            sums
        };
        let products: Vec<Vec<f64>> = match classes * side * side < SMALL {
            true => (0..classes).map(product).collect(),
            false => (0..classes).into_par_iter().map(product).collect(),
        };
        let of_weights = products.iter().flat_map(|row| &row[..dim]);
        of_weights.chain(products.iter().map(|row| &row[dim])).copied().collect()
    }
}
