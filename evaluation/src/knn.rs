//! Weighted k-nearest-neighbour classification, as DINO's `eval_knn.py`: cosine similarity, the k nearest training
//! patches vote for their class with weight exp(similarity / temperature).
//!
//! The search runs in blocks of a matrix product on the device, every reference normalised and sent there once; beside the
//! embeddings it holds one copy of the queries, their neighbours so far and some blocks, whatever the number of references.
//! One search serves every k. Of equal similarities the lower training index is nearer; of equal votes the lower class
//! wins: results do not depend on threads.

use std::cmp::Ordering;
use std::collections::BinaryHeap;

use burn::tensor::{Device, Tensor};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::device::{host, matrix};
use crate::embeddings::{EmbeddingTable, l2_normalise};
use crate::error::{Error, Result};
use crate::metric::Predictions;

/// Rows of one block of queries and of one block of references: 16 MB of similarities at a time, on every thread of a CPU.
const QUERY_BLOCK: usize = 512;
const REFERENCE_BLOCK: usize = 8192;

/// Settings of the classifier.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct KnnConfig {
    /// Neighbours; every value gives a result.
    pub k: Vec<usize>,
    /// Temperature of the votes.
    pub temperature: f64,
}

impl Default for KnnConfig {
    fn default() -> Self {
        // DINO's four values and temperature.
        Self { k: vec![10, 20, 100, 200], temperature: 0.07 }
    }
}

/// What one k gives.
#[derive(Clone, Debug)]
pub struct KnnResult {
    /// The k asked for.
    pub k: usize,
    /// Neighbours that voted: less than `k` where there are fewer training patches. Worth a warning.
    pub used: usize,
    /// Share of the votes per class and the class with the most, per test patch.
    pub predictions: Predictions,
}

/// Classifies `test` by `train`, once per k. Both need a label on every row and the same classes.
pub fn classify(
    train: &EmbeddingTable,
    test: &EmbeddingTable,
    config: &KnnConfig,
    device: &Device,
) -> Result<Vec<KnnResult>> {
    if train.dim != test.dim {
        return Err(Error::usage(format!("training embeddings have {} numbers, test {}", train.dim, test.dim)));
    }
    if train.classes != test.classes {
        return Err(Error::usage(format!(
            "training classes {:?} are not the test classes {:?}",
            train.classes, test.classes
        )));
    }
    if !(config.temperature > 0.0 && config.temperature.is_finite()) {
        return Err(Error::usage(format!("the k-NN temperature is above 0, not {}", config.temperature)));
    }
    let largest = config.k.iter().copied().max().unwrap_or(0);
    if largest == 0 || config.k.contains(&0) {
        return Err(Error::usage("k-NN needs one k or more, each at least 1"));
    }
    let (train_labels, test_labels) = (known_labels(train, "training")?, known_labels(test, "test")?);
    let neighbours = nearest(&train.values, &test.values, train.dim, largest, device)?;
    config
        .k
        .iter()
        .map(|&k| {
            let votes = neighbours.votes(&train_labels, train.classes.len(), k, config.temperature);
            let predictions = Predictions::new(test_labels.clone(), votes, train.classes.len())?;
            Ok(KnnResult { k, used: k.min(neighbours.k), predictions })
        })
        .collect()
}

fn known_labels(table: &EmbeddingTable, which: &str) -> Result<Vec<u32>> {
    table.check()?;
    table.known_labels().map_err(|e| Error::usage(format!("k-NN with {which} patches: {e}")))
}

/// The nearest references of every query, nearest first.
#[derive(Clone, Debug, PartialEq)]
pub struct Neighbours {
    /// Neighbours per query: at most as asked for, at most as many as there are references.
    pub k: usize,
    /// `k` reference indices per query, row-major.
    pub index: Vec<u32>,
    /// Their cosine similarities, descending.
    pub similarity: Vec<f32>,
}

/// The `k` rows of `references` with the largest cosine similarity to each row of `queries`; rows of `dim` numbers.
pub fn nearest(references: &[f32], queries: &[f32], dim: usize, k: usize, device: &Device) -> Result<Neighbours> {
    if dim == 0
        || references.is_empty()
        || !references.len().is_multiple_of(dim)
        || !queries.len().is_multiple_of(dim)
        || k == 0
    {
        return Err(Error::usage(format!(
            "k-NN with k {k} among {} training numbers for {} test numbers in rows of {dim}",
            references.len(),
            queries.len()
        )));
    }
    if references.iter().chain(queries).any(|x| !x.is_finite()) {
        return Err(Error::usage("k-NN on embeddings that are not finite"));
    }
    let k = k.min(references.len() / dim);
    let device = device.clone().inner();
    let unit_rows = |rows: &[f32]| {
        let mut rows = rows.to_vec();
        l2_normalise(&mut rows, dim);
        let count = rows.len() / dim;
        matrix(rows, count, &device)
    };
    let mut blocks: Vec<QueryBlock> = queries
        .chunks(QUERY_BLOCK * dim)
        .map(|block| {
            let heap = BinaryHeap::with_capacity(k + 1);
            QueryBlock { rows: unit_rows(block), best: vec![heap; block.len() / dim] }
        })
        .collect();
    for (number, block) in references.chunks(REFERENCE_BLOCK * dim).enumerate() {
        let columns = unit_rows(block).transpose();
        let first = (number * REFERENCE_BLOCK) as u32;
        if lies_in_host_memory(&device) {
            blocks.par_iter_mut().try_for_each(|queries| queries.search(columns.clone(), first, k))?;
        } else {
            blocks.iter_mut().try_for_each(|queries| queries.search(columns.clone(), first, k))?;
        }
    }
    let mut index = Vec::with_capacity(queries.len() / dim * k);
    let mut similarity = Vec::with_capacity(index.capacity());
    for heap in blocks.into_iter().flat_map(|block| block.best) {
        for neighbour in heap.into_sorted_vec() {
            index.push(neighbour.index);
            similarity.push(neighbour.similarity);
        }
    }
    Ok(Neighbours { k, index, similarity })
}

/// Whether products on `device` are computed by the thread that asks for them, so that several may ask at once.
fn lies_in_host_memory(device: &Device) -> bool {
    #[cfg(feature = "flex")]
    return *device == Device::flex();
    #[cfg(not(feature = "flex"))]
    {
        let _ = device;
        false
    }
}

/// Some queries on the device and their nearest references so far.
struct QueryBlock {
    /// `[queries, dim]`, of length 1.
    rows: Tensor<2>,
    best: Vec<BinaryHeap<Neighbour>>,
}

impl QueryBlock {
    /// Looks at the references `columns` (`[dim, references]`), the first of which is number `first` of all.
    fn search(&mut self, columns: Tensor<2>, first: u32, k: usize) -> Result<()> {
        let [_, references] = columns.dims();
        let product = host(self.rows.clone().matmul(columns))?;
        let rows = product.par_chunks_exact(references);
        self.best.par_iter_mut().zip(rows).for_each(|(best, row)| merge(best, row, first, k));
        Ok(())
    }
}

/// Similarities that are compared with the farthest neighbour at once.
const GLANCE: usize = 32;

/// Keeps the `k` nearest of `best` and of `similarities`, which belong to the references from `first` on.
fn merge(best: &mut BinaryHeap<Neighbour>, similarities: &[f32], first: u32, k: usize) {
    let mut threshold = if best.len() < k { f32::NEG_INFINITY } else { farthest(best) };
    for (first, glance) in (first..).step_by(GLANCE).zip(similarities.chunks(GLANCE)) {
        // Nearly always nothing here is near enough, and a maximum without branches says so.
        let largest = glance.iter().fold(f32::NEG_INFINITY, |largest, &s| if s > largest { s } else { largest });
        if largest <= threshold {
            continue;
        }
        for (index, &similarity) in (first..).zip(glance) {
            if best.len() < k {
                best.push(Neighbour { similarity, index });
                if best.len() == k {
                    threshold = farthest(best);
                }
            } else if similarity > threshold {
                best.pop();
                best.push(Neighbour { similarity, index });
                threshold = farthest(best);
            }
        }
    }
}

/// The least similarity of a heap that holds something.
fn farthest(best: &BinaryHeap<Neighbour>) -> f32 {
    best.peek().map_or(f32::NEG_INFINITY, |farthest| farthest.similarity)
}

impl Neighbours {
    /// Each class's share of the votes of the `k` nearest, one row of `classes` per query. Votes are scaled by the
    /// nearest one's, which changes no share and keeps exp in range at any temperature.
    pub fn votes(&self, labels: &[u32], classes: usize, k: usize, temperature: f64) -> Vec<f32> {
        let k = k.min(self.k);
        let mut shares = vec![0.0; self.index.len() / self.k * classes];
        let rows = self.index.par_chunks_exact(self.k).zip(self.similarity.par_chunks_exact(self.k));
        shares.par_chunks_exact_mut(classes).zip(rows).for_each(|(shares, (index, similarity))| {
            let mut votes = vec![0.0f64; classes];
            for (&index, &s) in index.iter().zip(similarity).take(k) {
                votes[labels[index as usize] as usize] += (f64::from(s - similarity[0]) / temperature).exp();
            }
            let total: f64 = votes.iter().sum();
            shares.iter_mut().zip(votes).for_each(|(share, vote)| *share = (vote / total) as f32);
        });
        shares
    }
}

/// Ordered so that the greatest is the farthest: lowest similarity, then highest index.
#[derive(Clone, Copy, PartialEq)]
struct Neighbour {
    similarity: f32,
    index: u32,
}

impl Eq for Neighbour {}

impl Ord for Neighbour {
    fn cmp(&self, other: &Self) -> Ordering {
        other.similarity.total_cmp(&self.similarity).then(self.index.cmp(&other.index))
    }
}

impl PartialOrd for Neighbour {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

#[cfg(test)]
mod vote_tests {
    use super::*;

    fn one_query(similarity: Vec<f32>) -> Neighbours {
        Neighbours { k: similarity.len(), index: (0..similarity.len() as u32).collect(), similarity }
    }

    /// Tolerance 1e-6: similarities are float32, and half a unit in the last place of 0.9, over 0.07, moves a vote by
    /// 4e-7 of itself; the votes are written with seven digits.
    #[test]
    fn worked_votes() {
        let shares = one_query(vec![0.9, 0.8, 0.5]).votes(&[0, 1, 1], 2, 3, 0.07);
        assert!((f64::from(shares[0]) - 383_518.4 / (383_518.4 + 93_175.6)).abs() < 1e-6, "{shares:?}");
        let shares = one_query(vec![0.9, 0.88, 0.87]).votes(&[0, 1, 1], 2, 3, 0.07);
        assert!((f64::from(shares[1]) - 538_044.2 / (383_518.4 + 538_044.2)).abs() < 1e-6, "{shares:?}");
        // A temperature at which exp(similarity / temperature) alone would overflow.
        let shares = one_query(vec![0.9, 0.8]).votes(&[1, 0], 2, 2, 1e-4);
        assert_eq!(shares, [0.0, 1.0]);
        assert_eq!(one_query(vec![0.9, 0.9]).votes(&[1, 0], 2, 2, 0.07), [0.5, 0.5]);
    }
}

#[cfg(all(test, feature = "flex"))]
mod tests {
    use proptest::prelude::*;
    use slide_io::PatchKey;

    use super::*;

    fn table(values: Vec<f32>, dim: usize, labels: &[u32], classes: usize) -> EmbeddingTable {
        EmbeddingTable {
            header: serde_json::Value::Null,
            dim,
            keys: (0..labels.len()).map(|i| PatchKey { item: format!("{i}.png"), origin: None }).collect(),
            labels: labels.iter().map(|&label| Some(label)).collect(),
            classes: (0..classes).map(|i| i.to_string()).collect(),
            values,
        }
    }

    fn pseudo_random(n: usize, seed: u64) -> Vec<f32> {
        use rand::{RngExt, SeedableRng};
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(seed);
        (0..n).map(|_| rng.random_range(-1.0..1.0)).collect()
    }

    /// All similarities in float64, fully sorted.
    fn naive(references: &[f32], query: &[f32], dim: usize) -> Vec<f64> {
        let length = |v: &[f32]| v.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>().sqrt().max(1e-12);
        let dot = |v: &[f32]| v.iter().zip(query).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum::<f64>();
        references.chunks_exact(dim).map(|row| dot(row) / length(row) / length(query)).collect()
    }

    fn check_against_naive(references: &[f32], queries: &[f32], dim: usize, k: usize) {
        let found = nearest(references, queries, dim, k, &Device::flex()).unwrap();
        assert_eq!(found.k, k.min(references.len() / dim));
        for (row, query) in queries.chunks_exact(dim).enumerate() {
            let all = naive(references, query, dim);
            let mut sorted = all.clone();
            sorted.sort_by(|a, b| b.total_cmp(a));
            let at = row * found.k..(row + 1) * found.k;
            let index = &found.index[at.clone()];
            let mut distinct = index.to_vec();
            distinct.sort_unstable();
            distinct.dedup();
            assert_eq!(distinct.len(), found.k);
            for ((&index, &similarity), expected) in index.iter().zip(&found.similarity[at]).zip(sorted) {
                // Products of unit vectors in float32: about dim × 6e-8 at worst.
                assert!((f64::from(similarity) - expected).abs() < 2e-6);
                assert!((f64::from(similarity) - all[index as usize]).abs() < 2e-6);
            }
        }
    }

    #[test]
    fn more_than_one_block_of_each_kind() {
        let dim = 7;
        let references = pseudo_random((REFERENCE_BLOCK + 100) * dim, 1);
        let queries = pseudo_random((QUERY_BLOCK + 3) * dim, 2);
        check_against_naive(&references, &queries, dim, 11);
    }

    #[test]
    fn equal_similarities_go_by_index() {
        // The same patch again and again, over more than one block: the first three are the nearest.
        for times in [8, REFERENCE_BLOCK + 40] {
            let found = nearest(&[0.5, 0.25].repeat(times), &[1.0, 2.0], 2, 3, &Device::flex()).unwrap();
            assert_eq!(found.index, [0, 1, 2]);
        }
    }

    #[test]
    fn several_k_in_one_search_and_more_than_there_are() {
        let train = table(vec![1.0, 0.0, 0.9, 0.1, 0.0, 1.0], 2, &[0, 1, 1], 2);
        let test = table(vec![1.0, 0.01, 0.1, 1.0], 2, &[0, 1], 2);
        let config = KnnConfig { k: vec![1, 2, 200], temperature: 0.07 };
        let results = classify(&train, &test, &config, &Device::flex()).unwrap();
        assert_eq!(results.iter().map(|r| (r.k, r.used)).collect::<Vec<_>>(), [(1, 1), (2, 2), (200, 3)]);
        for result in &results {
            assert_eq!(result.predictions.predicted(), [0, 1]);
        }
        assert_eq!(results[0].predictions.scores(0), [1.0, 0.0]);
    }

    #[test]
    fn what_cannot_be_classified_is_refused() {
        let device = Device::flex();
        let good = table(vec![1.0, 0.0, 0.0, 1.0], 2, &[0, 1], 2);
        let config = KnnConfig::default();
        assert!(classify(&good, &good, &config, &device).is_ok());
        let mut unlabelled = good.clone();
        unlabelled.labels[1] = None;
        let error = classify(&unlabelled, &good, &config, &device).unwrap_err().to_string();
        assert!(error.contains("1.png has no label"), "{error}");
        assert!(classify(&good, &table(vec![1.0; 3], 3, &[0], 2), &config, &device).is_err());
        assert!(classify(&good, &table(vec![1.0; 2], 2, &[0], 3), &config, &device).is_err());
        assert!(classify(&good, &good, &KnnConfig { k: vec![], ..config.clone() }, &device).is_err());
        assert!(classify(&good, &good, &KnnConfig { k: vec![0, 5], ..config.clone() }, &device).is_err());
        assert!(classify(&good, &good, &KnnConfig { temperature: 0.0, ..config.clone() }, &device).is_err());
        assert!(classify(&table(vec![], 2, &[], 2), &good, &config, &device).is_err());
        assert!(classify(&table(vec![f32::INFINITY; 2], 2, &[0], 2), &good, &config, &device).is_err());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        #[test]
        fn as_the_naive_search(
            dim in 1..9usize, references in 1..60usize, queries in 1..20usize, k in 1..70usize, seed in 0..1000u64,
        ) {
            check_against_naive(&pseudo_random(references * dim, seed), &pseudo_random(queries * dim, !seed), dim, k);
        }
    }
}
