//! Features with mean 0 and deviation 1, so that one penalty suits all of them.
//!
//! The scale is folded into the head that was fitted on it: whoever uses the head gives it features as they are.

use rayon::prelude::*;

use super::{Labelled, LinearHead};

/// Mean and deviation of every feature.
#[derive(Clone, Debug)]
pub(super) struct Scale {
    mean: Vec<f64>,
    /// 1 for a feature that never changes.
    deviation: Vec<f64>,
}

impl Scale {
    /// Of all rows; labels play no part.
    pub fn of(rows: &Labelled) -> Self {
        let n = rows.len() as f64;
        let sums = |term: &(dyn Fn(usize, f64) -> f64 + Sync)| {
            let zero = || vec![0.0f64; rows.dim];
            let add = |mut sums: Vec<f64>, row: &[f32]| {
                sums.iter_mut().zip(row).enumerate().for_each(|(at, (sum, &x))| *sum += term(at, f64::from(x)));
                sums
            };
            // Blocks of a fixed size, summed in order: the number of threads must not move the last bit.
            let blocks: Vec<Vec<f64>> = rows
                .values
                .par_chunks(super::BLOCK * rows.dim)
                .map(|block| block.chunks_exact(rows.dim).fold(zero(), &add))
                .collect();
            blocks.into_iter().fold(zero(), |mut all, block| {
                all.iter_mut().zip(block).for_each(|(sum, x)| *sum += x);
                all
            })
        };
        let mean: Vec<f64> = sums(&|_, x| x).into_iter().map(|sum| sum / n).collect();
        let squares = sums(&|at, x| (x - mean[at]).powi(2));
        let deviation = squares.into_iter().zip(&mean).map(|(sum, mean)| {
            let deviation = (sum / n).sqrt();
            // Below the precision of a 32-bit number of this size there is nothing but rounding.
            if deviation > 1e-6 * mean.abs().max(1e-6) { deviation } else { 1.0 }
        });
        Self { deviation: deviation.collect(), mean }
    }

    /// Rows on this scale.
    pub fn applied(&self, values: &[f32]) -> Vec<f32> {
        let mut scaled = values.to_vec();
        scaled.par_chunks_exact_mut(self.mean.len()).for_each(|row| {
            for ((x, mean), deviation) in row.iter_mut().zip(&self.mean).zip(&self.deviation) {
                *x = ((f64::from(*x) - mean) / deviation) as f32;
            }
        });
        scaled
    }

    /// A head for features as they are from one for features on this scale.
    pub fn unfold(&self, head: &LinearHead) -> LinearHead {
        let mut plain = head.clone();
        for (row, bias) in plain.weight.chunks_exact_mut(head.dim).zip(&mut plain.bias) {
            let mut shift = 0.0;
            for ((w, mean), deviation) in row.iter_mut().zip(&self.mean).zip(&self.deviation) {
                let scaled = f64::from(*w) / deviation;
                shift += scaled * mean;
                *w = scaled as f32;
            }
            *bias = (f64::from(*bias) - shift) as f32;
        }
        plain
    }
}
