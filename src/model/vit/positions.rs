//! Position embeddings for another grid than the one they were made for: bicubic, as one matrix a side.
//!
//! Three ways are in use and give different numbers: by the scale that DINO hands over, with an offset of 0.1; by the
//! sizes with PyTorch's antialiasing (timm); and by the sizes without (transformers).

use crate::config::PositionResampling;
use burn::tensor::{Tensor, TensorData};

/// Positions `[1, prefix + grid * grid, D]` for a grid of `rows` x `columns`: `[1, prefix + rows * columns, D]`. The
/// `prefix` rows, which are not of patches, stay as they are.
pub(super) fn resampled(
    positions: Tensor<3>,
    prefix: usize,
    grid: usize,
    [rows, columns]: [usize; 2],
    how: PositionResampling,
) -> Tensor<3> {
    if [rows, columns] == [grid, grid] {
        return positions;
    }
    let (device, dim) = (positions.device(), positions.dims()[2]);
    let matrix = |to: usize| Tensor::<2>::from_data(TensorData::new(matrix(grid, to, how), [to, grid]), &device);
    let patches = positions.clone().narrow(1, prefix, grid * grid).reshape([grid, grid * dim]);
    let tall = matrix(rows).matmul(patches).reshape([rows, grid, dim]).swap_dims(0, 1).reshape([grid, rows * dim]);
    let full = matrix(columns).matmul(tall).reshape([columns, rows, dim]).swap_dims(0, 1);
    let full = full.reshape([1, rows * columns, dim]);
    match prefix {
        0 => full,
        _ => Tensor::cat(vec![positions.narrow(1, 0, prefix), full], 1),
    }
}

/// Row-major `[to, from]`.
fn matrix(from: usize, to: usize, how: PositionResampling) -> Vec<f32> {
    match how {
        // The given scale is used, not the ratio of sizes.
        PositionResampling::Dino => bicubic(from, to, to as f64 + 0.1),
        PositionResampling::Bicubic => bicubic(from, to, to as f64),
        PositionResampling::Antialias => antialiased(from, to),
    }
}

/// PyTorch's bicubic interpolation (a = -0.75, border clamped) as if the `from` cells became `length` new ones.
fn bicubic(from: usize, to: usize, length: f64) -> Vec<f32> {
    let mut matrix = vec![0.0; to * from];
    for row in 0..to {
        let source = source_coordinate(row, from, length);
        let t = source - source.floor();
        for (k, distance) in [t + 1.0, t, 1.0 - t, 2.0 - t].into_iter().enumerate() {
            let column = (source.floor() as i64 + k as i64 - 1).clamp(0, from as i64 - 1) as usize;
            matrix[row * from + column] += cubic(distance, -0.75) as f32;
        }
    }
    matrix
}

/// PyTorch's antialiased bicubic interpolation: Pillow's filter (a = -0.5), widened by the scale where the grid shrinks,
/// cut off at the border and normalised.
fn antialiased(from: usize, to: usize) -> Vec<f32> {
    let wide = (from as f64 / to as f64).max(1.0);
    let mut matrix = vec![0.0; to * from];
    for row in 0..to {
        let centre = source_coordinate(row, from, to as f64) + 0.5;
        let first = ((centre - 2.0 * wide + 0.5) as i64).max(0) as usize;
        let last = ((centre + 2.0 * wide + 0.5) as usize).min(from);
        let weights: Vec<f64> =
            (first..last).map(|column| cubic(((column as f64 - centre + 0.5) / wide).abs(), -0.5)).collect();
        let sum: f64 = weights.iter().sum();
        for (column, weight) in (first..last).zip(weights) {
            matrix[row * from + column] = (weight / sum) as f32;
        }
    }
    matrix
}

/// Keys' cubic at a `distance` of 0 to 2; 0 beyond.
fn cubic(distance: f64, a: f64) -> f64 {
    match distance {
        t if t < 1.0 => ((a + 2.0) * t - (a + 3.0)) * t * t + 1.0,
        t if t < 2.0 => ((a * t - 5.0 * a) * t + 8.0 * a) * t - 4.0 * a,
        _ => 0.0,
    }
}

fn source_coordinate(row: usize, from: usize, length: f64) -> f64 {
    (row as f64 + 0.5) * from as f64 / length - 0.5
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(found: &[f64], expected: &[f64], tolerance: f64) {
        assert_eq!(found.len(), expected.len());
        let worst = found.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
        assert!(worst < tolerance, "{found:?} is not {expected:?}");
    }

    /// Six rows of a 96 px crop from a grid of 14: worked numbers with 6 digits.
    #[test]
    fn positions_are_resampled_with_the_given_scale() {
        let sources: Vec<_> = (0..6).map(|row| source_coordinate(row, 14, 6.1)).collect();
        close(&sources, &[0.647541, 2.942623, 5.237705, 7.532787, 9.827869, 12.122951], 1e-6);
        let matrix = matrix(14, 6, PositionResampling::Dino);
        let squares: Vec<_> =
            (0..6).map(|row| (0..14).map(|k| f64::from(matrix[row * 14 + k]) * (k * k) as f64).sum::<f64>()).collect();
        // f32 weights of values up to 169.
        close(&squares, &[0.331852, 8.512291, 27.865762, 56.495994, 95.628038, 148.196967], 2e-5);
        let halfway: Vec<f64> = [1.5, 0.5, 0.5, 1.5].map(|distance| cubic(distance, -0.75)).to_vec();
        close(&halfway, &[-0.09375, 0.59375, 0.59375, -0.09375], 1e-15);
    }

    /// A filter that does not sum to 1 would change what all positions share.
    #[test]
    fn every_row_sums_to_one() {
        for how in [PositionResampling::Dino, PositionResampling::Antialias, PositionResampling::Bicubic] {
            for (from, to) in [(37, 16), (14, 14), (3, 5), (16, 7), (2, 9), (1, 4), (5, 1)] {
                let matrix = matrix(from, to, how);
                let sums: Vec<f64> = matrix.chunks(from).map(|row| row.iter().map(|&w| f64::from(w)).sum()).collect();
                close(&sums, &vec![1.0; to], 1e-6);
            }
        }
    }

    #[test]
    fn by_the_sizes_a_grid_of_its_own_size_stays_as_it_is() {
        for how in [PositionResampling::Antialias, PositionResampling::Bicubic] {
            let found: Vec<f64> = matrix(4, 4, how).into_iter().map(f64::from).collect();
            let identity: Vec<f64> = (0..16).map(|i| f64::from(i % 5 == 0)).collect();
            close(&found, &identity, 1e-12);
        }
    }
}
