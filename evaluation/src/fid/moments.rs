//! Mean and covariance of features that arrive in batches: the sets are often larger than memory, their statistics never.

use nalgebra::{DMatrix, DMatrixViewMut, DVector};
use rayon::prelude::*;

use super::{Features, check_dims};
use crate::error::{Error, Result};

/// Images taken up at a time: enough for quick matrix products, little memory.
const BLOCK: usize = 1024;
/// Columns of the covariance that one thread adds to at a time.
const PANEL: usize = 128;

/// Running mean and scatter in float64.
#[derive(Clone, Debug)]
pub struct Moments {
    count: u64,
    mean: DVector<f64>,
    /// Σ (x - mean)(x - mean)ᵀ; only the lower triangle is kept up.
    scatter: DMatrix<f64>,
}

/// A normal distribution fitted to features.
#[derive(Clone, Debug, PartialEq)]
pub struct Gaussian {
    /// Images it was fitted to.
    pub count: u64,
    /// Mean, `[dim]`.
    pub mean: DVector<f64>,
    /// Covariance with the divisor n - 1, `[dim, dim]`, symmetric.
    pub covariance: DMatrix<f64>,
}

impl Moments {
    /// Of no image yet, `dim` features wide.
    pub fn new(dim: usize) -> Self {
        Self { count: 0, mean: DVector::zeros(dim), scatter: DMatrix::zeros(dim, dim) }
    }

    /// Takes up a batch of any size. How a set is cut into batches changes the result only by the rounding of sums.
    ///
    /// # Errors
    /// Features of another width.
    pub fn add(&mut self, batch: Features) -> Result<()> {
        check_dims(self.mean.len(), batch.dim())?;
        for start in (0..batch.len()).step_by(BLOCK) {
            self.add_block(batch.columns(start..(start + BLOCK).min(batch.len())));
        }
        Ok(())
    }

    /// Chan, Golub and LeVeque's pairwise update: the scatter of the union is the sum of both scatters and of the outer
    /// product of the difference of the means, times n m / (n + m). `block`: `[dim, images]`.
    fn add_block(&mut self, mut block: DMatrix<f64>) {
        let (n, m) = (self.count as f64, block.ncols() as f64);
        let mean = block.column_mean();
        block.column_iter_mut().for_each(|mut column| column -= &mean);
        let shift = mean - &self.mean;
        let between = n * m / (n + m);
        let dim = shift.len();
        let transposed = block.transpose();
        self.scatter.as_mut_slice().par_chunks_mut(dim * PANEL).enumerate().for_each(|(panel, values)| {
            let (first, columns) = (panel * PANEL, values.len() / dim);
            let mut values = DMatrixViewMut::from_slice(values, dim, columns);
            let mut below = values.rows_mut(first, dim - first);
            below.gemm(1.0, &block.rows(first, dim - first), &transposed.columns(first, columns), 1.0);
            below.ger(between, &shift.rows(first, dim - first), &shift.rows(first, columns), 1.0);
        });
        self.mean += shift * (m / (n + m));
        self.count += block.ncols() as u64;
    }

    /// The distribution of what was taken up.
    ///
    /// # Errors
    /// Fewer than two images.
    pub fn gaussian(&self) -> Result<Gaussian> {
        if self.count < 2 {
            return Err(Error::usage(format!("a covariance takes 2 images or more, not {}", self.count)));
        }
        let mut covariance = &self.scatter / (self.count - 1) as f64;
        covariance.fill_upper_triangle_with_lower_triangle();
        Ok(Gaussian { count: self.count, mean: self.mean.clone(), covariance })
    }
}

impl Gaussian {
    /// Fitted to one set.
    ///
    /// # Errors
    /// Fewer than two images.
    pub fn of(features: Features) -> Result<Self> {
        let mut moments = Moments::new(features.dim());
        moments.add(features)?;
        moments.gaussian()
    }
}
