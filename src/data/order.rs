//! Which patch comes when, and the random numbers that belong to it.
//!
//! The only place that knows the order of an epoch: an order that keeps patches of one slide together (so that tiles
//! already decoded are used again) goes here and nowhere else.

use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use sha2::{Digest, Sha256};

/// The order in which patches are seen, one permutation per epoch.
#[derive(Clone, Debug)]
pub struct EpochOrder {
    /// Patches of the source.
    pub len: usize,
    /// Patches drawn per epoch, anew each epoch; 0 takes all.
    pub per_epoch: usize,
    /// The experiment's seed.
    pub seed: u64,
}

impl EpochOrder {
    /// Patches of one epoch.
    pub fn epoch_len(&self) -> usize {
        if self.per_epoch == 0 { self.len } else { self.per_epoch.min(self.len) }
    }

    /// Indices into the source in the order of `epoch`: a uniform random subset of [`Self::epoch_len`], shuffled.
    pub fn epoch(&self, epoch: usize) -> Vec<usize> {
        let mut indices: Vec<usize> = (0..self.len).collect();
        let mut rng = stream("order", self.seed, epoch, 0);
        let (drawn, _) = indices.partial_shuffle(&mut rng, self.epoch_len());
        drawn.to_vec()
    }
}

/// The random numbers of patch `index` in `epoch`: whoever reads it, whenever, draws the same.
pub fn item_rng(seed: u64, epoch: usize, index: usize) -> ChaCha8Rng {
    stream("item", seed, epoch, index)
}

/// ChaCha8 seeded with SHA-256 of `"gensis " purpose "\0"` and the three numbers as 64-bit little-endian integers.
fn stream(purpose: &str, seed: u64, epoch: usize, index: usize) -> ChaCha8Rng {
    let mut hash = Sha256::new();
    hash.update(b"gensis ");
    hash.update(purpose);
    hash.update([0]);
    for number in [seed, epoch as u64, index as u64] {
        hash.update(number.to_le_bytes());
    }
    ChaCha8Rng::from_seed(hash.finalize().into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::Rng;

    #[test]
    fn an_epoch_is_a_permutation_and_epochs_and_seeds_differ() {
        let order = EpochOrder { len: 500, per_epoch: 0, seed: 7 };
        let first = order.epoch(0);
        let mut sorted = first.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, (0..500).collect::<Vec<_>>());
        assert_eq!(first, order.epoch(0));
        assert_ne!(first, order.epoch(1));
        assert_ne!(first, EpochOrder { seed: 8, ..order }.epoch(0));
    }

    #[test]
    fn a_subset_is_drawn_anew_each_epoch_without_repeats_and_evenly() {
        let order = EpochOrder { len: 50, per_epoch: 20, seed: 1 };
        let mut seen = [0usize; 50];
        for epoch in 0..500 {
            let mut drawn = order.epoch(epoch);
            assert_eq!(drawn.len(), 20);
            drawn.iter().for_each(|&index| seen[index] += 1);
            drawn.sort_unstable();
            drawn.dedup();
            assert_eq!(drawn.len(), 20);
        }
        // Expected 200 of 500 each, standard deviation 11: 6 deviations either way.
        assert!(seen.iter().all(|&count| (134..=266).contains(&count)), "{seen:?}");
        assert_eq!(EpochOrder { per_epoch: 80, ..order }.epoch_len(), 50);
    }

    #[test]
    fn item_streams_are_fixed_and_distinct() {
        let first = |seed, epoch, index| item_rng(seed, epoch, index).next_u64();
        assert_eq!(first(0, 0, 0), first(0, 0, 0));
        let mut all: Vec<u64> = (0..4u64)
            .flat_map(|seed| (0..4).flat_map(move |epoch| (0..4).map(move |index| first(seed, epoch, index))))
            .collect();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), 64);
    }
}
