//! Features on one scale: each minus its mean, over its deviation, both over the patches of the training slides.
//!
//! The CLS features of a self-supervised encoder may share a large constant part, most of all after a short training:
//! patches then differ in the third decimal, and a head at a usual learning rate sees one point. Linear probes of
//! self-supervised encoders put a batch normalisation without weights before the classifier for the same reason (He et
//! al., "Masked Autoencoders Are Scalable Vision Learners", appendix A.1). Validation and test slides have no part in it.

use serde::{Deserialize, Serialize};

use crate::bag::{Bag, BagSource};
use crate::error::Result;

/// Mean and scale of every feature.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Standard {
    mean: Vec<f32>,
    /// 1 / deviation; 1 for a feature that never changes.
    scale: Vec<f32>,
}

impl Standard {
    /// Reads the slides `indices` once, one bag at a time.
    ///
    /// # Errors
    /// A bag that cannot be loaded.
    pub fn of(source: &dyn BagSource, indices: &[usize]) -> Result<Self> {
        let dim = source.dim();
        let (mut count, mut sum, mut squares) = (0.0, vec![0.0f64; dim], vec![0.0f64; dim]);
        for &index in indices {
            let bag = source.load(index)?;
            bag.check()?;
            count += bag.patches() as f64;
            for row in bag.features.chunks_exact(dim) {
                for ((sum, square), &value) in sum.iter_mut().zip(&mut squares).zip(row) {
                    let value = f64::from(value);
                    *sum += value;
                    *square += value * value;
                }
            }
        }
        let scale = |(sum, square): (&f64, &f64)| {
            let mean = sum / count;
            let deviation = (square / count - mean * mean).max(0.0).sqrt();
            // Below the precision of a 32-bit number of this size there is nothing but rounding.
            if deviation > 1e-6 * mean.abs().max(1e-6) { (1.0 / deviation) as f32 } else { 1.0 }
        };
        Ok(Self {
            scale: sum.iter().zip(&squares).map(scale).collect(),
            mean: sum.iter().map(|sum| (sum / count) as f32).collect(),
        })
    }

    /// Puts the features of `bag` on this scale.
    pub fn apply(&self, bag: &mut Bag) {
        for row in bag.features.chunks_exact_mut(self.mean.len().max(1)) {
            for ((value, mean), scale) in row.iter_mut().zip(&self.mean).zip(&self.scale) {
                *value = (*value - mean) * scale;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bag::BagsInMemory;

    #[test]
    fn training_features_get_mean_0_and_deviation_1_and_constants_stay_finite() {
        let bag = |id: &str, features: Vec<f32>| Bag {
            id: id.into(),
            dim: 2,
            features,
            coords: vec![],
            label: Some(0),
            group: id.into(),
        };
        let bags =
            vec![bag("a", vec![1.0, 7.0, 3.0, 7.0]), bag("b", vec![5.0, 7.0, 7.0, 7.0]), bag("c", vec![9.0, 8.0])];
        let source = BagsInMemory::new(bags, 1).unwrap();
        let standard = Standard::of(&source, &[0, 1]).unwrap();
        let mut first = source.load(0).unwrap();
        standard.apply(&mut first);
        // Mean 4, deviation √5; the second feature never changes.
        let unit = 5f32.sqrt().recip();
        assert_eq!(
            first.features.iter().map(|x| (x * 1e4).round()).collect::<Vec<_>>(),
            [-3.0 * unit, 0.0, -unit, 0.0].map(|x| (x * 1e4).round())
        );
        let mut other = source.load(2).unwrap();
        standard.apply(&mut other);
        assert!((other.features[0] - 5.0 * unit).abs() < 1e-6 && other.features[1] == 1.0);
    }
}
