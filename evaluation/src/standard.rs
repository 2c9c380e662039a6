//! Features on one scale: each minus its mean, over its deviation, both over training rows alone.
//!
//! The CLS features of a self-supervised encoder may share a large constant part, most of all after a short training:
//! patches then differ in the third decimal, and a head at a usual learning rate sees one point. Linear probes of
//! self-supervised encoders put a batch normalisation without weights before the classifier for the same reason (He et
//! al., "Masked Autoencoders Are Scalable Vision Learners", appendix A.1). A penalty, too, is the same for all features
//! only where these have one scale. Validation and test rows have no part in it.
//!
//! [`mil`](crate::mil) keeps the scale in the head's file and puts every bag on it; [`linear`](crate::linear) fits on it and
//! folds it into the head.

use serde::{Deserialize, Serialize};

/// Mean and scale of every feature.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Standard {
    mean: Vec<f32>,
    /// 1 / deviation (divisor n); 1 for a feature that never changes.
    scale: Vec<f32>,
}

impl Standard {
    /// The scale of some rows (row-major), `dim` features wide.
    pub fn of(rows: &[f32], dim: usize) -> Self {
        let mut estimate = Estimate::new(dim);
        estimate.add(rows);
        estimate.standard()
    }

    /// Puts rows of features (row-major) on this scale.
    pub fn apply(&self, rows: &mut [f32]) {
        for row in rows.chunks_exact_mut(self.mean.len().max(1)) {
            for ((value, mean), scale) in row.iter_mut().zip(&self.mean).zip(&self.scale) {
                *value = (*value - mean) * scale;
            }
        }
    }

    /// Mean and scale of every feature, in its order.
    pub(crate) fn features(&self) -> impl Iterator<Item = (f64, f64)> {
        self.mean.iter().zip(&self.scale).map(|(mean, scale)| (f64::from(*mean), f64::from(*scale)))
    }
}

/// Mean m of every feature and the sum s of its squared distances from it, over rows that arrive one after the other.
///
/// Sums of squares are never taken from each other, so nothing cancels where features hardly differ from their mean.
#[derive(Clone, Debug)]
pub(crate) struct Estimate {
    rows: u64,
    mean: Vec<f64>,
    squares: Vec<f64>,
}

impl Estimate {
    /// Of no row yet, `dim` features wide.
    pub fn new(dim: usize) -> Self {
        Self { rows: 0, mean: vec![0.0; dim], squares: vec![0.0; dim] }
    }

    /// Takes up rows (row-major), by Welford ("Note on a method for calculating corrected sums of squares and products",
    /// 1962): with the n-th row x and d = x - m, m ← m + d / n, then s ← s + d (x - m).
    pub fn add(&mut self, rows: &[f32]) {
        for row in rows.chunks_exact(self.mean.len().max(1)) {
            self.rows += 1;
            let n = self.rows as f64;
            for ((mean, squares), &x) in self.mean.iter_mut().zip(&mut self.squares).zip(row) {
                let x = f64::from(x);
                let distance = x - *mean;
                *mean += distance / n;
                *squares += distance * (x - *mean);
            }
        }
    }

    /// Takes up what another part of the rows gave, by Chan, Golub and LeVeque's update: with n and n' rows and the
    /// difference d = m' - m, m ← m + d n' / (n + n') and s ← s + s' + d² n n' / (n + n').
    pub fn merge(&mut self, other: &Self) {
        let both = self.rows + other.rows;
        if both == 0 {
            return;
        }
        let (n, share) = (self.rows as f64, other.rows as f64 / both as f64);
        let of_other = other.mean.iter().zip(&other.squares);
        for ((mean, squares), (mean_there, squares_there)) in self.mean.iter_mut().zip(&mut self.squares).zip(of_other)
        {
            let difference = mean_there - *mean;
            *mean += difference * share;
            *squares += squares_there + difference * difference * n * share;
        }
        self.rows = both;
    }

    /// The scale of the rows taken up.
    pub fn standard(&self) -> Standard {
        let scale = |(squares, mean): (&f64, &f64)| {
            let deviation = (squares / self.rows as f64).sqrt();
            // Below the precision of a 32-bit number of this size there is nothing but rounding.
            if deviation > 1e-6 * mean.abs().max(1e-6) { (1.0 / deviation) as f32 } else { 1.0 }
        };
        Standard {
            scale: self.squares.iter().zip(&self.mean).map(scale).collect(),
            mean: self.mean.iter().map(|mean| *mean as f32).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn estimate(dim: usize, rows: &[f32]) -> Estimate {
        let mut estimate = Estimate::new(dim);
        estimate.add(rows);
        estimate
    }

    #[test]
    fn features_get_mean_0_and_deviation_1_and_constants_stay_finite() {
        let mut rows = [1.0, 7.0, 3.0, 7.0, 5.0, 7.0, 7.0, 7.0];
        let standard = estimate(2, &rows).standard();
        standard.apply(&mut rows);
        // Mean 4, deviation √5; the second feature never changes.
        let unit = 5f32.sqrt().recip();
        let rounded = |x: f32| (x * 1e4).round();
        let expected = [-3.0 * unit, 0.0, -unit, 0.0, unit, 0.0, 3.0 * unit, 0.0];
        assert_eq!(rows.map(rounded), expected.map(rounded));
        let mut other = [9.0, 8.0];
        standard.apply(&mut other);
        assert!((other[0] - 5.0 * unit).abs() < 1e-6 && other[1] == 1.0);
    }

    /// 64 levels of 2⁻¹⁰ above 8192, where a mean of squares less a squared mean has some three digits left.
    #[test]
    fn a_large_constant_part_costs_no_digits() {
        let rows: Vec<f32> = (0..6400).map(|row| 8192.0 + (row % 64) as f32 / 1024.0).collect();
        // Of n numbers in steps of 1 the deviation is √((n² - 1) / 12).
        let deviation = (4095.0f64 / 12.0).sqrt() / 1024.0;
        let standard = estimate(1, &rows).standard();
        let (mean, scale) = standard.features().next().unwrap();
        // The mean is a 32-bit number, of which the next lies 2⁻¹⁰ away.
        assert!((mean - (8192.0 + 31.5 / 1024.0)).abs() <= 0.5 / 1024.0, "{mean}");
        assert!((scale * deviation - 1.0).abs() < 1e-6, "{scale} {deviation}");
    }

    #[test]
    fn parts_give_what_the_whole_gives() {
        let rows: Vec<f32> = (0..600).map(|at| 100.0 + (at * 37 % 101) as f32 / 7.0).collect();
        let whole = estimate(3, &rows);
        let mut parts = Estimate::new(3);
        for part in [&rows[..9], &rows[9..9], &rows[9..360], &rows[360..]] {
            parts.merge(&estimate(3, part));
        }
        assert_eq!(parts.rows, whole.rows);
        // Sums of 200 numbers in another order.
        let close = |a: &[f64], b: &[f64]| a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-12 * b.abs());
        assert!(close(&parts.mean, &whole.mean) && close(&parts.squares, &whole.squares), "{parts:?} {whole:?}");
    }
}
