//! The database ordered by similarity to a query.

use burn::tensor::Device;
use rayon::prelude::*;

use crate::device::{host, matrix};
use crate::error::{Error, Result};

/// Similarities computed at a time: 64 MiB.
const BLOCK: usize = 1 << 24;

/// Rows of numbers of one width.
#[derive(Clone, Copy, Debug)]
pub struct Rows<'a> {
    /// Row-major.
    pub values: &'a [f32],
    /// Numbers a row.
    pub dim: usize,
}

impl Rows<'_> {
    /// How many there are.
    pub fn len(&self) -> usize {
        self.values.len() / self.dim.max(1)
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.values.is_empty()
    }
}

/// For every query, what `score` makes of the whole database ordered by inner product, the largest first; of equal ones the
/// lower index. Rankings live only as long as `score` looks at them, so memory stays bounded by a block of queries.
///
/// # Errors
/// Rows of different widths or with numbers that are not finite, and a device that fails.
pub fn rank<T: Send>(
    queries: Rows,
    database: Rows,
    device: &Device,
    score: impl Fn(usize, &[usize]) -> T + Sync,
) -> Result<Vec<T>> {
    if queries.dim != database.dim || queries.dim == 0 {
        return Err(Error::usage(format!("queries have {} numbers, the database {}", queries.dim, database.dim)));
    }
    if queries.values.iter().chain(database.values).any(|value| !value.is_finite()) {
        return Err(Error::usage("features are not finite: are these the encoder's weights?"));
    }
    if queries.is_empty() || database.is_empty() {
        return Ok(Vec::new());
    }
    let (dim, n) = (database.dim, database.len());
    let rows = |values: &[f32]| matrix(values.to_vec(), values.len() / dim, device);
    let transposed = rows(database.values).transpose();
    let block = (BLOCK / n).clamp(1, 4096);
    let mut scores = Vec::with_capacity(queries.len());
    for (number, values) in queries.values.chunks(block * dim).enumerate() {
        let similarity = host(rows(values).matmul(transposed.clone()))?;
        let ranked = similarity.par_chunks_exact(n).enumerate().map(|(at, similarity)| {
            let mut order: Vec<usize> = (0..n).collect();
            order.sort_unstable_by(|&a, &b| similarity[b].total_cmp(&similarity[a]).then(a.cmp(&b)));
            score(number * block + at, &order)
        });
        scores.par_extend(ranked);
    }
    Ok(scores)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_similar_comes_first_and_ties_keep_their_order() {
        let database = [1.0, 0.0, 0.0, 1.0, 1.0, 0.0, 0.6, 0.8];
        fn rows(values: &[f32]) -> Rows<'_> {
            Rows { values, dim: 2 }
        }
        let ranked = |queries: &[f32]| {
            rank(rows(queries), rows(&database), &Device::flex(), |query, order| (query, order.to_vec())).unwrap()
        };
        let found = ranked(&[1.0, 0.0, 0.0, 1.0]);
        assert_eq!(found, [(0, vec![0, 2, 3, 1]), (1, vec![1, 3, 0, 2])]);
        assert!(ranked(&[]).is_empty());
        let error = rank(Rows { values: &[1.0], dim: 1 }, rows(&database), &Device::flex(), |_, _| ()).unwrap_err();
        assert!(error.to_string().contains("have 1 numbers, the database 2"));
        assert!(rank(rows(&[f32::NAN, 0.0]), rows(&database), &Device::flex(), |_, _| ()).is_err());
    }
}
