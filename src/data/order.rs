//! Which patch comes when, and the random numbers that belong to it. The only place that knows the order of an epoch.
//!
//! Patches of a few slides are shuffled uniformly. Of more slides than a reader keeps open, only some are in play at a
//! time: each patch is drawn from them with equal probability, and a slide that is used up makes room for the next of a
//! shuffled list. So every slide is opened about once an epoch, and a batch still mixes many of them.

use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};
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
    /// Where the patches of each slide end, one slide after the other; empty where any order is as good.
    pub slide_ends: Vec<usize>,
    /// Slides in play at a time; 0 for all.
    pub open_slides: usize,
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
        if self.open_slides == 0 || self.slide_ends.len() <= self.open_slides {
            return drawn.to_vec();
        }
        self.few_slides_at_a_time(drawn, &mut rng)
    }

    /// The patches `drawn`, which are shuffled, so that at most `open_slides` slides are in play at a time.
    fn few_slides_at_a_time(&self, drawn: &[usize], rng: &mut ChaCha8Rng) -> Vec<usize> {
        let mut slides = vec![Vec::new(); self.slide_ends.len()];
        for &index in drawn {
            slides[self.slide_ends.partition_point(|&end| end <= index)].push(index);
        }
        slides.retain(|patches| !patches.is_empty());
        slides.shuffle(rng);
        let mut waiting = slides.into_iter();
        let mut open: Vec<Vec<usize>> = waiting.by_ref().take(self.open_slides).collect();
        let mut left: usize = open.iter().map(Vec::len).sum();
        let mut order = Vec::with_capacity(drawn.len());
        while left > 0 {
            // The n-th of the patches in play is as likely as any other.
            let mut n = rng.random_range(0..left);
            let slide = open.iter().position(|patches| {
                n < patches.len() || {
                    n -= patches.len();
                    false
                }
            });
            let slide = slide.expect("n is below the number of patches in play");
            order.extend(open[slide].pop());
            left -= 1;
            if open[slide].is_empty() {
                open.swap_remove(slide);
                if let Some(next) = waiting.next() {
                    left += next.len();
                    open.push(next);
                }
            }
        }
        order
    }
}

/// The random numbers of patch `index` in `epoch`: whoever reads it, whenever, draws the same.
pub fn item_rng(seed: u64, epoch: usize, index: usize) -> ChaCha8Rng {
    stream("item", seed, epoch, index)
}

/// The random numbers of patch `index` under the change `shift`, whoever measures it.
pub fn shift_rng(seed: u64, shift: usize, index: usize) -> ChaCha8Rng {
    stream("shift", seed, shift, index)
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

    fn order(len: usize, per_epoch: usize, seed: u64) -> EpochOrder {
        EpochOrder { len, per_epoch, seed, slide_ends: vec![], open_slides: 0 }
    }

    #[test]
    fn an_epoch_is_a_permutation_and_epochs_and_seeds_differ() {
        let order = order(500, 0, 7);
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
        let order = order(50, 20, 1);
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
    fn few_slides_are_in_play_at_a_time() {
        // 40 slides of 1 to 40 patches; slide s has the patches up to ends[s].
        let ends: Vec<usize> = (1..=40).map(|s| s * (s + 1) / 2).collect();
        let len = *ends.last().unwrap();
        let few = EpochOrder { slide_ends: ends.clone(), open_slides: 6, ..order(len, 0, 3) };
        let slide_of = |index: usize| ends.partition_point(|&end| end <= index);
        let epoch = few.epoch(0);
        let mut sorted = epoch.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, (0..len).collect::<Vec<_>>());
        // A slide is in play from its first patch to its last.
        let slides: Vec<usize> = epoch.iter().map(|&index| slide_of(index)).collect();
        let span = |slide| {
            (slides.iter().position(|&s| s == slide).unwrap(), slides.iter().rposition(|&s| s == slide).unwrap())
        };
        let spans: Vec<_> = (0..40).map(span).collect();
        let most = (0..len).map(|at| spans.iter().filter(|(first, last)| (*first..=*last).contains(&at)).count()).max();
        assert!(most.unwrap() <= 6, "{most:?} slides in play");
        // Batches mix: 32 patches come from at least 3 slides.
        for batch in slides.chunks_exact(32) {
            let distinct: std::collections::HashSet<_> = batch.iter().collect();
            assert!(distinct.len() >= 3, "{distinct:?}");
        }
        assert_eq!(epoch, few.epoch(0));
        assert_ne!(epoch, few.epoch(1));
        // With room for all slides the order is the plain one.
        assert_eq!(EpochOrder { open_slides: 40, ..few.clone() }.epoch(0), order(len, 0, 3).epoch(0));
        // A subset has the same number of patches, none twice.
        let mut some = EpochOrder { per_epoch: 100, ..few }.epoch(0);
        some.sort_unstable();
        some.dedup();
        assert_eq!(some.len(), 100);
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
