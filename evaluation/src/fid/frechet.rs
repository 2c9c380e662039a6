//! Fréchet distance between two normal distributions (Dowson and Landau 1982; as FID: Heusel et al., NeurIPS 2017).

use nalgebra::DMatrix;

use super::check_dims;
use super::moments::Gaussian;
use crate::error::{Error, Result};

/// |μ₁ - μ₂|² + tr(C₁ + C₂ - 2 (C₁ C₂)^½), as pytorch-fid's `calculate_frechet_distance`.
///
/// The trace of the root is Σ √λ over the eigenvalues λ of C₁ C₂. With C₁ = L Lᵀ they are those of Lᵀ C₂ L, which is symmetric
/// and positive: no complex root, and nothing to add to the diagonal where a set has fewer images than features. (Any
/// factor serves; that of Cholesky costs a fraction of the symmetric root C₁^½.)
///
/// # Errors
/// Distributions of different widths; a covariance that is not finite.
pub fn frechet_distance(a: &Gaussian, b: &Gaussian) -> Result<f64> {
    check_dims(a.mean.len(), b.mean.len())?;
    if [a, b].iter().any(|g| g.mean.iter().chain(g.covariance.iter()).any(|x| !x.is_finite())) {
        return Err(Error::usage("a mean or covariance is not finite"));
    }
    let factor = factor(a.covariance.clone());
    let product = factor.transpose() * (&b.covariance * &factor);
    let root: f64 = product.symmetric_eigenvalues().iter().map(|&eigenvalue| eigenvalue.max(0.0).sqrt()).sum();
    let means = (&a.mean - &b.mean).norm_squared();
    Ok(means + a.covariance.trace() + b.covariance.trace() - 2.0 * root)
}

/// L `[dim, rank]` with L Lᵀ = `c` for a positive semi-definite `c`: Cholesky with diagonal pivoting (Higham, "Analysis of the
/// Cholesky decomposition of a semi-definite matrix", 1990), which stops where nothing but rounding is left.
fn factor(mut c: DMatrix<f64>) -> DMatrix<f64> {
    let dim = c.nrows();
    let negligible = c.diagonal().max() * f64::EPSILON * dim as f64;
    let mut columns = Vec::new();
    for _ in 0..dim {
        let pivot = c.diagonal().imax();
        let size = c[(pivot, pivot)];
        if size <= negligible {
            break;
        }
        let column = c.column(pivot) / size.sqrt();
        c.ger(-1.0, &column, &column, 1.0);
        // What rounding leaves on the diagonal must not be chosen again.
        c[(pivot, pivot)] = 0.0;
        columns.push(column);
    }
    match columns.is_empty() {
        true => DMatrix::zeros(dim, 1),
        false => DMatrix::from_columns(&columns),
    }
}

#[cfg(test)]
mod tests {
    use nalgebra::DVector;

    use super::*;

    #[test]
    fn a_semi_definite_matrix_is_its_factor_times_itself() {
        let half = DMatrix::from_fn(7, 3, |i, j| ((i * 5 + j * 3) % 7) as f64 - 2.5);
        let c = &half * half.transpose();
        let l = factor(c.clone());
        assert_eq!(l.ncols(), 3);
        assert!((&l * l.transpose() - &c).amax() < 1e-13 * c.amax());
        assert_eq!(factor(DMatrix::zeros(4, 4)), DMatrix::zeros(4, 1));
    }

    /// Of diagonal covariances: |μ₁ - μ₂|² + Σ (σ₁ - σ₂)².
    #[test]
    fn worked_diagonal_distance() {
        let gaussian = |mean: [f64; 3], deviation: [f64; 3]| Gaussian {
            count: 10,
            mean: DVector::from_row_slice(&mean),
            covariance: DMatrix::from_diagonal(&DVector::from_row_slice(&deviation.map(|s| s * s))),
        };
        let a = gaussian([0.0, 1.0, 2.0], [1.0, 2.0, 0.0]);
        let b = gaussian([3.0, 1.0, 2.0], [4.0, 0.5, 1.0]);
        let distance = frechet_distance(&a, &b).unwrap();
        assert!((distance - (9.0 + 9.0 + 2.25 + 1.0)).abs() < 1e-12, "{distance}");
        assert!((frechet_distance(&b, &a).unwrap() - distance).abs() < 1e-12);
        let narrow = Gaussian { count: 2, mean: DVector::zeros(2), covariance: DMatrix::zeros(2, 2) };
        assert!(frechet_distance(&a, &narrow).unwrap_err().to_string().contains("3 features per image, the other 2"));
        let broken = Gaussian { covariance: DMatrix::from_element(3, 3, f64::NAN), ..a.clone() };
        assert!(frechet_distance(&a, &broken).unwrap_err().to_string().contains("not finite"));
    }
}
