//! Copy detection: finding the image that a strongly altered copy was made of, as DINO's `eval_copy_detection.py` scores it
//! on Copydays (Douze et al. 2009, Evaluation of GIST descriptors for web-scale image search).
//!
//! A descriptor is the CLS token followed by the generalised mean of the patch tokens; [`whitening`] makes its parts
//! comparable where there are other images to learn it from.

pub mod whitening;

pub use whitening::Whitening;

use burn::tensor::Device;

use crate::error::Result;
use crate::knn::nearest;
use crate::retrieval::precision::average_precision;

/// Images of the database that are looked at for a copy.
pub const LOOKED_AT: usize = 20;
/// What tokens are raised to at least, so that the power has a root.
const LEAST: f32 = 1e-6;

/// The generalised mean of patch tokens per dimension, (mean of max(x, 1e-6)^p)^(1/p) (Radenović et al. 2018, Fine-tuning CNN
/// Image Retrieval with No Human Annotation, equation 3): `[patches, dim] -> [dim]`.
pub fn generalised_mean(patches: &[f32], dim: usize, p: f64) -> Vec<f32> {
    let mut sums = vec![0.0_f64; dim];
    for patch in patches.chunks_exact(dim) {
        sums.iter_mut().zip(patch).for_each(|(sum, x)| *sum += f64::from(x.max(LEAST)).powf(p));
    }
    let n = (patches.len() / dim.max(1)).max(1) as f64;
    sums.into_iter().map(|sum| (sum / n).powf(1.0 / p) as f32).collect()
}

/// The average precision of every query among the [`LOOKED_AT`] most similar of `database` (cosine); `originals` are the right
/// places of each. Queries without any are `None`.
///
/// # Errors
/// An empty database, rows that are not `dim` wide, and numbers that are not finite.
pub fn average_precisions(
    queries: &[f32],
    database: &[f32],
    dim: usize,
    originals: &[Vec<usize>],
    device: &Device,
) -> Result<Vec<Option<f64>>> {
    let found = nearest(database, queries, dim, LOOKED_AT, device)?;
    let precision = |(looked_at, right): (&[u32], &Vec<usize>)| {
        let is_right = |(rank, &image): (usize, &u32)| right.contains(&(image as usize)).then_some(rank);
        let ranks: Vec<usize> = looked_at.iter().enumerate().filter_map(is_right).collect();
        (!right.is_empty()).then(|| average_precision(&ranks, right.len()))
    };
    Ok(found.index.chunks_exact(found.k.max(1)).zip(originals).map(precision).collect())
}

#[cfg(test)]
mod tests {
    use safetensors::SafeTensors;

    use super::*;

    /// A float32 tensor of `tests/golden/retrieval/descriptors.safetensors`.
    pub(super) fn golden(name: &str) -> Vec<f32> {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/golden/retrieval/descriptors.safetensors");
        let bytes = std::fs::read(path).unwrap();
        let tensors = SafeTensors::deserialize(&bytes).unwrap();
        let data = tensors.tensor(name).unwrap().data().as_chunks::<4>().0.to_vec();
        data.into_iter().map(f32::from_le_bytes).collect()
    }

    #[test]
    fn generalised_means_are_worked_and_pytorchs() {
        let close = |a: f32, b: f32, tolerance: f32| assert!((a - b).abs() < tolerance, "{a} {b}");
        close(generalised_mean(&[1.0, 2.0, 3.0], 1, 4.0)[0], 2.3907062, 1e-6);
        close(generalised_mean(&[-5.0, 2.0, 3.0], 1, 4.0)[0], 2.384_584, 1e-6);
        let (tokens, expected) = (golden("tokens"), golden("gem"));
        let ours: Vec<f32> = tokens.chunks(20 * 12).flat_map(|image| generalised_mean(image, 12, 4.0)).collect();
        assert_eq!(ours.len(), expected.len());
        // PyTorch takes the powers in float32.
        ours.iter().zip(&expected).for_each(|(a, b)| close(*a, *b, 2e-6));
    }

    #[test]
    fn copies_are_found_among_the_first_twenty() {
        // Directions around a circle; the query lies nearest to number 3.
        let circle = |angle: f32| [angle.cos(), angle.sin()];
        let database: Vec<f32> = (0..40).flat_map(|i| circle(i as f32 * 0.05)).collect();
        let queries: Vec<f32> = [0.151, 0.151, 0.151, 0.151].into_iter().flat_map(circle).collect();
        let originals = [vec![3], vec![39], vec![], vec![2, 4]];
        let found = average_precisions(&queries, &database, 2, &originals, &Device::flex()).unwrap();
        assert_eq!(found[..3], [Some(1.0), Some(0.0), None]);
        // Ranks 1 and 2 of two: (0 + 1/2) / 4 + (1/2 + 2/3) / 4.
        assert!((found[3].unwrap() - (0.5 + 0.5 + 2.0 / 3.0) / 4.0).abs() < 1e-12);
    }
}
