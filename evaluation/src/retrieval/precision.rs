//! Figures of a ranking: average precision and precision at k as the revisited Oxford and Paris protocol computes them
//! (Radenović et al. 2018, Revisiting Oxford and Paris), and those of class labels (Musgrave et al. 2020, A Metric
//! Learning Reality Check, equation 3).

use std::collections::HashSet;

/// Numbers of images among which the revisited protocol quotes the precision.
pub const AT: [usize; 3] = [1, 5, 10];

/// What one query gives.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Precision {
    /// Average precision: the area under the precision-recall curve by trapezoids.
    pub average: f64,
    /// Precision among the first 1, 5 and 10, or as many as it takes to find all.
    pub at: [f64; 3],
}

/// Scores a ranking (indices of the database, the most similar first) by the images that are right. Junk is taken out of it
/// before. A right image that the ranking lacks counts as never found. `None` where no image is right: such queries are
/// left out of the means.
pub fn precision(ranking: &[usize], right: &[usize], junk: &[usize]) -> Option<Precision> {
    let (right, junk): (HashSet<usize>, HashSet<usize>) =
        (right.iter().copied().collect(), junk.iter().copied().collect());
    if right.is_empty() {
        return None;
    }
    let counted = ranking.iter().filter(|image| right.contains(*image) || !junk.contains(*image));
    let ranks: Vec<usize> =
        counted.enumerate().filter(|(_, image)| right.contains(*image)).map(|(rank, _)| rank).collect();
    let at = AT.map(|k| {
        // Beyond the last right image nothing is expected.
        let among = ranks.last().map_or(k, |last| k.min(last + 1));
        ranks.iter().filter(|rank| **rank < among).count() as f64 / among as f64
    });
    Some(Precision { average: average_precision(&ranks, right.len()), at })
}

/// The area by trapezoids under the curve of a ranking in which the j-th of `n` right images has rank `ranks[j]`, from 0:
/// every one adds the mean of the precision just before it and with it, over `n`.
pub fn average_precision(ranks: &[usize], n: usize) -> f64 {
    let area = |(found, &rank): (usize, &usize)| {
        let before = if rank == 0 { 1.0 } else { found as f64 / rank as f64 };
        let with = (found + 1) as f64 / (rank + 1) as f64;
        (before + with) / (2 * n) as f64
    };
    ranks.iter().enumerate().map(area).sum()
}

/// What one query gives where R other images have its class.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ClassPrecision {
    /// Σ over the ranks i ≤ R of a right image of the precision among the first i, divided by R.
    pub map_at_r: f64,
    /// Share of the first R that are right.
    pub r_precision: f64,
    /// Whether the first is right.
    pub first: f64,
}

/// Scores the first R of a ranking, given whether each is right; `None` where no other image has the class.
pub fn class_precision(right: &[bool], r: usize) -> Option<ClassPrecision> {
    if r == 0 {
        return None;
    }
    let (mut found, mut area) = (0, 0.0);
    for (rank, _) in right.iter().take(r).enumerate().filter(|(_, right)| **right) {
        found += 1;
        area += f64::from(found) / (rank + 1) as f64;
    }
    let first = f64::from(u8::from(right.first().is_some_and(|right| *right)));
    Some(ClassPrecision { map_at_r: area / r as f64, r_precision: f64::from(found) / r as f64, first })
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Deserialize)]
    struct Golden {
        cases: Vec<Case>,
        classes: Vec<ClassCase>,
    }

    #[derive(Deserialize)]
    struct Case {
        ranking: Vec<usize>,
        right: Vec<usize>,
        junk: Vec<usize>,
        average: f64,
        at: [f64; 3],
    }

    #[derive(Deserialize)]
    struct ClassCase {
        right: Vec<bool>,
        r: usize,
        map_at_r: f64,
        r_precision: f64,
        first: f64,
    }

    /// `tests/golden/retrieval/make.py` wrote these from the protocol, on random rankings; both sides add float64 in the
    /// same order but for the class figures, which numpy adds pairwise.
    #[test]
    fn random_rankings_score_as_in_the_protocol() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/golden/retrieval/rankings.json");
        let golden: Golden = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        assert!(golden.cases.len() >= 40 && golden.classes.len() >= 20);
        let close = |a: f64, b: f64| assert!((a - b).abs() < 1e-14, "{a} {b}");
        for case in golden.cases {
            let found = precision(&case.ranking, &case.right, &case.junk).unwrap();
            close(found.average, case.average);
            found.at.iter().zip(case.at).for_each(|(ours, theirs)| close(*ours, theirs));
        }
        for case in golden.classes {
            let found = class_precision(&case.right, case.r).unwrap();
            close(found.map_at_r, case.map_at_r);
            close(found.r_precision, case.r_precision);
            close(found.first, case.first);
        }
    }

    #[test]
    fn worked_examples() {
        let close = |a: f64, b: f64| assert!((a - b).abs() < 1e-7, "{a} {b}");
        close(average_precision(&[0, 2], 2), 0.7916667);
        close(average_precision(&[0, 2], 3), 0.5277778);
        close(average_precision(&[1], 1), 0.25);
        // Right, junk, right: the junk is not seen.
        let perfect = precision(&[7, 3, 5], &[7, 5], &[3]).unwrap();
        assert_eq!(perfect, Precision { average: 1.0, at: [1.0; 3] });
        assert_eq!(precision(&[1, 2], &[], &[1]), None);
        assert_eq!(precision(&[1, 2], &[9], &[]), Some(Precision { average: 0.0, at: [0.0; 3] }));
        assert_eq!(class_precision(&[true], 0), None);
        // Right at 1 and 3 of R = 3: (1 + 2/3) / 3.
        close(class_precision(&[true, false, true, true], 3).unwrap().map_at_r, 5.0 / 9.0);
    }
}
