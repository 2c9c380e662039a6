//! How near one set of images is to another, by features of any encoder: Fréchet distance ([`frechet_distance`]), kernel
//! distance ([`kernel_distance`]), precision and recall ([`precision_recall`]).
//!
//! Generated images are judged by these: features of the real images stand on one side (their mean and covariance may come
//! from a file, [`Reference`]), features of the generated ones on the other. The features of Inception give the figures
//! known as FID and KID; with other encoders the figures keep their meaning but not their scale, so an encoder's hash and
//! the preprocessing belong to each of them. Nothing here knows an encoder: a set is rows of numbers ([`Features`]).

mod frechet;
mod kernel;
mod moments;
mod neighbours;
mod reference;
#[cfg(test)]
mod tests;

pub use frechet::frechet_distance;
pub use kernel::{KernelDistance, KernelSubsets, kernel_distance};
pub use moments::{Gaussian, Moments};
pub use neighbours::{PrecisionRecall, precision_recall};
pub use reference::{Reference, ReferenceHeader};

use nalgebra::DMatrix;

use crate::error::{Error, Result};

/// Features of a set of images, `[n, dim]`, row-major, all finite.
#[derive(Clone, Copy, Debug)]
pub struct Features<'a> {
    values: &'a [f32],
    dim: usize,
}

impl<'a> Features<'a> {
    /// Rows of `dim` numbers.
    ///
    /// # Errors
    /// Rows that are not whole, or a number that is not finite.
    pub fn new(values: &'a [f32], dim: usize) -> Result<Self> {
        if dim == 0 || !values.len().is_multiple_of(dim) {
            return Err(Error::usage(format!("{} numbers do not make whole rows of {dim} features", values.len())));
        }
        if let Some(at) = values.iter().position(|x| !x.is_finite()) {
            return Err(Error::usage(format!(
                "feature {} of image number {} is not finite; embed the images again",
                at % dim,
                at / dim
            )));
        }
        Ok(Self { values, dim })
    }

    /// Number of images.
    pub fn len(&self) -> usize {
        self.values.len() / self.dim
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.values.is_empty()
    }

    /// Numbers per image.
    pub fn dim(&self) -> usize {
        self.dim
    }

    fn row(&self, index: usize) -> &'a [f32] {
        &self.values[index * self.dim..(index + 1) * self.dim]
    }

    /// The images `indices` as columns of a float64 matrix, `[dim, indices]`.
    fn columns(&self, indices: impl ExactSizeIterator<Item = usize>) -> DMatrix<f64> {
        let n = indices.len();
        DMatrix::from_iterator(self.dim, n, indices.flat_map(|index| self.row(index)).map(|&x| f64::from(x)))
    }
}

/// An error unless both sets have rows of one width and `least` images or more.
fn check_pair(a: &Features, b: &Features, least: usize, what: &str) -> Result<()> {
    check_dims(a.dim, b.dim)?;
    for set in [a, b] {
        if set.len() < least {
            return Err(Error::usage(format!("{what} takes {least} images or more of each set, not {}", set.len())));
        }
    }
    Ok(())
}

fn check_dims(a: usize, b: usize) -> Result<()> {
    match a == b {
        true => Ok(()),
        false => {
            Err(Error::usage(format!("one set has {a} features per image, the other {b}: embed both with one encoder")))
        }
    }
}
