//! Random numbers by name: every draw comes from a generator that is a hash of a seed, a purpose and some numbers.
//!
//! Nothing is stateful, so results do not depend on threads, on devices, or on where a run was interrupted.

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use sha2::{Digest, Sha256};

/// The generator of `purpose` and `numbers` under `seed`.
pub fn keyed(seed: u64, purpose: &str, numbers: &[u64]) -> ChaCha8Rng {
    let mut hash = Sha256::new();
    hash.update(seed.to_le_bytes());
    hash.update((purpose.len() as u64).to_le_bytes());
    hash.update(purpose.as_bytes());
    for number in numbers {
        hash.update(number.to_le_bytes());
    }
    ChaCha8Rng::from_seed(hash.finalize().into())
}

/// `count` draws of a normal distribution with mean 0.
///
/// The reference truncates at ±2 where the deviation is 0.02, that is at 100 deviations: no draw is ever cut.
pub fn normal(rng: &mut ChaCha8Rng, deviation: f64, count: usize) -> Vec<f32> {
    let mut values = Vec::with_capacity(count + 1);
    while values.len() < count {
        // Box-Muller; 1 - u is in (0, 1], so that its logarithm is finite.
        let radius = (-2.0 * (1.0 - rng.random::<f64>()).ln()).sqrt() * deviation;
        let angle = std::f64::consts::TAU * rng.random::<f64>();
        values.push((radius * angle.cos()) as f32);
        values.push((radius * angle.sin()) as f32);
    }
    values.truncate(count);
    values
}

/// `count` draws of a uniform distribution on ±`bound`.
pub fn uniform(rng: &mut ChaCha8Rng, bound: f64, count: usize) -> Vec<f32> {
    (0..count).map(|_| ((2.0 * rng.random::<f64>() - 1.0) * bound) as f32).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_generator_is_its_key() {
        let draw = |seed, purpose, numbers: &[u64]| normal(&mut keyed(seed, purpose, numbers), 1.0, 3);
        assert_eq!(draw(1, "a", &[2, 3]), draw(1, "a", &[2, 3]));
        for other in [draw(2, "a", &[2, 3]), draw(1, "b", &[2, 3]), draw(1, "a", &[3, 2]), draw(1, "a", &[2])] {
            assert_ne!(draw(1, "a", &[2, 3]), other);
        }
    }

    #[test]
    fn moments_are_those_asked_for() {
        let values = normal(&mut keyed(0, "test", &[]), 0.02, 100_000);
        let mean = values.iter().map(|v| f64::from(*v)).sum::<f64>() / 1e5;
        let deviation = (values.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>() / 1e5).sqrt();
        // Four standard errors.
        assert!(mean.abs() < 4.0 * 0.02 / 1e5f64.sqrt(), "{mean}");
        assert!((deviation - 0.02).abs() < 4.0 * 0.02 / 2e5f64.sqrt(), "{deviation}");
    }
}
