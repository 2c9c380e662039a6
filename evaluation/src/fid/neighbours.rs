//! Precision and recall of generated images (Kynkäänniemi et al., NeurIPS 2019): a set's manifold is the union of balls
//! around its images, each as large as the distance to its k-th nearest other image.

use nalgebra::DMatrix;
use rayon::prelude::*;

use super::{Features, check_pair};
use crate::error::{Error, Result};

/// Images of either side in a matrix of distances: a thread holds one such block and two of features.
const BLOCK: usize = 256;

/// Both shares lie in 0..=1.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PrecisionRecall {
    /// Share of the generated images on the manifold of the real ones: are they faithful?
    pub precision: f64,
    /// Share of the real images on the manifold of the generated ones: are they diverse?
    pub recall: f64,
}

/// Precision and recall of `generated` against `real` with balls up to the `k`-th neighbour (3 in the paper). Distances are made
/// in blocks, so the memory does not grow with the sets; the time grows with the product of their sizes.
///
/// # Errors
/// Sets of different widths, `k` = 0, or sets of `k` images or fewer.
pub fn precision_recall(real: Features, generated: Features, k: usize) -> Result<PrecisionRecall> {
    if k == 0 {
        return Err(Error::usage("precision and recall take 1 neighbour or more, not 0"));
    }
    check_pair(&real, &generated, k + 1, "a manifold of this many neighbours")?;
    Ok(PrecisionRecall {
        precision: share_within(&generated, &real, &radii(&real, k)),
        recall: share_within(&real, &generated, &radii(&generated, k)),
    })
}

/// Squared distance of each image to its `k`-th nearest other image. As in the reference implementations the image itself,
/// at distance 0, is counted and skipped.
fn radii(set: &Features, k: usize) -> Vec<f64> {
    let of_block = |start: usize| {
        let images = Side::of(set, start);
        let mut nearest = vec![Vec::with_capacity(k + 2); images.len()];
        for other in (0..set.len()).step_by(BLOCK) {
            let distances = images.squared_distances(&Side::of(set, other));
            for (nearest, row) in nearest.iter_mut().zip(distances.row_iter()) {
                for &distance in row.iter() {
                    keep_smallest(nearest, distance, k + 1);
                }
            }
        }
        nearest.into_iter().map(|nearest| nearest[k]).collect::<Vec<f64>>()
    };
    starts(set).into_par_iter().flat_map_iter(of_block).collect()
}

/// Share of `points` that lie in the ball of any of `centres`.
fn share_within(points: &Features, centres: &Features, radii: &[f64]) -> f64 {
    let of_block = |start: usize| {
        let block = Side::of(points, start);
        let mut inside = vec![false; block.len()];
        for first in (0..centres.len()).step_by(BLOCK) {
            let distances = block.squared_distances(&Side::of(centres, first));
            for (inside, row) in inside.iter_mut().zip(distances.row_iter()) {
                *inside |= row.iter().zip(&radii[first..]).any(|(distance, radius)| distance <= radius);
            }
        }
        inside.into_iter().filter(|&inside| inside).count()
    };
    let inside: usize = starts(points).into_par_iter().map(of_block).sum();
    inside as f64 / points.len() as f64
}

fn starts(set: &Features) -> Vec<usize> {
    (0..set.len()).step_by(BLOCK).collect()
}

/// Inserts `value` into the ascending `smallest`, of which at most `most` are kept.
fn keep_smallest(smallest: &mut Vec<f64>, value: f64, most: usize) {
    if smallest.len() < most || smallest.last().is_some_and(|&last| value < last) {
        let at = smallest.partition_point(|&kept| kept <= value);
        smallest.insert(at, value);
        smallest.truncate(most);
    }
}

/// One side of a block of distances.
struct Side {
    /// `[dim, images]`.
    columns: DMatrix<f64>,
    /// Squared length of each image.
    squares: Vec<f64>,
}

impl Side {
    fn of(set: &Features, start: usize) -> Self {
        let columns = set.columns(start..(start + BLOCK).min(set.len()));
        let squares = columns.column_iter().map(|column| column.norm_squared()).collect();
        Self { columns, squares }
    }

    fn len(&self) -> usize {
        self.squares.len()
    }

    /// |x|² + |y|² - 2 xᵀy, `[images, images of other]`. What is left of equal images after cancellation, far below the
    /// precision of the float32 features, is 0.
    fn squared_distances(&self, other: &Self) -> DMatrix<f64> {
        let mut distances = self.columns.transpose() * &other.columns;
        for ((row, column), value) in indexed(&mut distances) {
            let lengths = self.squares[row] + other.squares[column];
            let distance = lengths - 2.0 * *value;
            *value = if distance <= 1e-13 * lengths { 0.0 } else { distance };
        }
        distances
    }
}

/// The entries of a matrix with their row and column, in the order of its memory.
fn indexed(matrix: &mut DMatrix<f64>) -> impl Iterator<Item = ((usize, usize), &mut f64)> {
    let rows = matrix.nrows();
    matrix.iter_mut().enumerate().map(move |(at, value)| ((at % rows, at / rows), value))
}
