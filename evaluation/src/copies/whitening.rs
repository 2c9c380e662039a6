//! Whitening learnt from other images, as DINO's copy detection does it.

use nalgebra::{DMatrix, DVector, SymmetricEigen};

use crate::error::{Error, Result};
use crate::fid::{Features, Gaussian};

/// Eigenvalues are at least this share of the largest.
const FLOOR: f64 = 1e-5;

/// Subtracts the mean of the training features and scales their principal axes to one variance. The axes are those of the
/// second moments WᵀW / n, *without* subtracting the mean, as DINO computes them: the covariance and the mean's square.
#[derive(Clone, Debug)]
pub struct Whitening {
    mean: DVector<f64>,
    /// diag(λ^-½) Vᵀ, largest eigenvalue first.
    projection: DMatrix<f64>,
}

impl Whitening {
    /// Learns from `features`, rows of `dim` numbers.
    ///
    /// # Errors
    /// Fewer rows than numbers in one (the axes would be made up) or than two, and numbers that are not finite.
    pub fn learn(features: &[f32], dim: usize) -> Result<Self> {
        let n = features.len() / dim.max(1);
        if n < dim {
            return Err(Error::usage(format!(
                "whitening {dim} numbers needs at least as many images, not {n}: give a larger folder"
            )));
        }
        let Gaussian { mean, covariance, .. } = Gaussian::of(Features::new(features, dim)?)?;
        // WᵀW / n = C (n - 1) / n + m mᵀ.
        let moments = covariance * ((n - 1) as f64 / n as f64) + &mean * mean.transpose();
        let eigen = SymmetricEigen::new(moments);
        let largest = eigen.eigenvalues.max();
        let mut order: Vec<usize> = (0..dim).collect();
        order.sort_by(|&a, &b| eigen.eigenvalues[b].total_cmp(&eigen.eigenvalues[a]));
        let row = |axis: usize| {
            let scale = eigen.eigenvalues[axis].max(FLOOR * largest).powf(-0.5);
            eigen.eigenvectors.column(axis).transpose() * scale
        };
        let projection = DMatrix::from_rows(&order.into_iter().map(row).collect::<Vec<_>>());
        Ok(Self { mean, projection })
    }

    /// Whitens rows of features.
    pub fn apply(&self, features: &[f32]) -> Vec<f32> {
        let dim = self.mean.len();
        let columns = DMatrix::from_iterator(dim, features.len() / dim, features.iter().map(|value| f64::from(*value)));
        let mut centred = columns;
        centred.column_iter_mut().for_each(|mut column| column -= &self.mean);
        (&self.projection * centred).iter().map(|value| *value as f32).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::golden;
    use super::*;
    use crate::embeddings::l2_normalise;

    /// Cosines after whitening: float32 with PyTorch, float64 here, axes stretched by up to 300.
    #[test]
    fn whitened_features_are_as_similar_as_pytorchs() {
        let dim = 12;
        let whitening = Whitening::learn(&golden("train"), dim).unwrap();
        let unit = |name: &str| {
            let mut rows = whitening.apply(&golden(name));
            l2_normalise(&mut rows, dim);
            rows
        };
        let (queries, database) = (unit("queries"), unit("database"));
        let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>();
        let ours: Vec<f32> = queries
            .chunks(dim)
            .flat_map(|q| database.chunks(dim).map(move |d| dot(q, d)).collect::<Vec<_>>())
            .collect();
        let expected = golden("similarity");
        assert_eq!(ours.len(), expected.len());
        let worst = ours.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(worst < 2e-4, "{worst}");
    }

    #[test]
    fn too_few_images_are_refused() {
        let error = Whitening::learn(&[1.0; 20], 10).unwrap_err().to_string();
        assert!(error.contains("at least as many images, not 2"), "{error}");
        assert!(Whitening::learn(&[f32::NAN, 1.0], 1).is_err());
    }
}
