//! Random numbers as a function of what they are for: the generator of an item is made from the seed, the purpose
//! and the item, never from how much was drawn before it. So the order of work and the number of threads change
//! nothing.

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// What the numbers are drawn for; keeps the streams apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub enum Purpose {
    /// Dealing groups to folds.
    Split = 1,
    /// Bootstrap resamples.
    Bootstrap = 2,
    /// Initial weights.
    Weights = 3,
    /// Order of the bags in an epoch.
    Order = 4,
    /// Which patches of a bag are seen, and dropout.
    Bag = 5,
    /// Images of a kernel distance.
    Subset = 6,
    /// Exchanges of a permutation test.
    Permutation = 7,
    /// Training rows of a few-shot probe.
    Shots = 8,
}

/// The generator of `seed` for `purpose`, item (`a`, `b`): for example epoch and index.
pub fn stream(seed: u64, purpose: Purpose, a: u64, b: u64) -> ChaCha8Rng {
    let mut key = [0; 32];
    for (part, word) in key.chunks_exact_mut(8).zip([seed, purpose as u64, a, b]) {
        part.copy_from_slice(&word.to_le_bytes());
    }
    ChaCha8Rng::from_seed(key)
}

/// A standard normal number, by Box and Muller: √(-2 ln u) · cos(2π v) of u and v uniform.
pub fn normal(rng: &mut ChaCha8Rng) -> f64 {
    let (u, v): (f64, f64) = (rng.random(), rng.random());
    // 1 - u is above 0, so that its logarithm is finite.
    (-2.0 * (1.0 - u).ln()).sqrt() * (std::f64::consts::TAU * v).cos()
}

#[cfg(test)]
mod tests {
    use rand::Rng;

    use super::*;

    #[test]
    fn streams_differ_in_every_part_and_repeat() {
        let first = |seed, purpose, a, b| stream(seed, purpose, a, b).next_u64();
        let base = first(1, Purpose::Split, 2, 3);
        assert_eq!(base, first(1, Purpose::Split, 2, 3));
        for other in [
            first(0, Purpose::Split, 2, 3),
            first(1, Purpose::Order, 2, 3),
            first(1, Purpose::Split, 0, 3),
            first(1, Purpose::Split, 2, 0),
        ] {
            assert_ne!(base, other);
        }
    }

    #[test]
    fn normal_numbers_have_mean_0_and_deviation_1() {
        let n = 20_000;
        let mut rng = stream(1, Purpose::Weights, 0, 0);
        let values: Vec<f64> = (0..n).map(|_| normal(&mut rng)).collect();
        let mean = values.iter().sum::<f64>() / f64::from(n);
        let variance = values.iter().map(|x| x * x).sum::<f64>() / f64::from(n);
        // Five standard errors: of the mean 1 / √n, of the variance √(2 / n).
        assert!(mean.abs() < 5.0 / f64::from(n).sqrt(), "{mean}");
        assert!((variance - 1.0).abs() < 5.0 * (2.0 / f64::from(n)).sqrt(), "{variance}");
    }
}
