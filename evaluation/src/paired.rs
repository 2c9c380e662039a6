//! Is one encoder better than another, or only luckier? Paired tests of two classifiers on the same items.
//!
//! [`delong`] tests areas under the ROC curve, [`permutation`] any [`Metric`]. Both are two-sided, and neither corrects for
//! several comparisons.

use rand::RngExt;
use rayon::prelude::*;

use crate::bootstrap::number_groups;
use crate::error::{Error, Result};
use crate::metric::{Metric, Predictions};
use crate::seed::{Purpose, stream};

/// DeLong's test of one class against the rest.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DeLong {
    /// Areas under the two ROC curves.
    pub auc: [f64; 2],
    /// Variance of their difference.
    pub variance: f64,
    /// Difference over its standard error; `None` where the variance is 0.
    pub z: Option<f64>,
    /// Two-sided probability of a difference this large by chance: 1 for equal areas, `None` for a difference without
    /// variance.
    pub p: Option<f64>,
}

/// Compares the one-versus-rest areas of `a` and `b` per class (DeLong, DeLong and Clarke-Pearson, Biometrics 1988, by the
/// midranks of Sun and Xu, IEEE Signal Processing Letters 2014). `None` for a class with fewer than two items, or fewer than
/// two others. Items count as independent: with several slides per patient, take [`permutation`].
///
/// # Errors
/// Predictions of other items or classes.
pub fn delong(a: &Predictions, b: &Predictions) -> Result<Vec<Option<DeLong>>> {
    check_same_items(a, b)?;
    Ok((0..a.classes()).map(|class| delong_of(a, b, class)).collect())
}

fn delong_of(a: &Predictions, b: &Predictions, class: usize) -> Option<DeLong> {
    let truth = a.truth();
    let (positives, negatives): (Vec<_>, Vec<_>) = (0..truth.len()).partition(|&item| truth[item] as usize == class);
    let (m, n) = (positives.len(), negatives.len());
    if m < 2 || n < 2 {
        return None;
    }
    // Of each classifier: its area, and the structural components V₁₀ of the positives and V₀₁ of the negatives.
    let components = |predictions: &Predictions| {
        let of = |items: &[usize]| items.iter().map(|&item| predictions.scores(item)[class]).collect::<Vec<f32>>();
        let (x, y) = (of(&positives), of(&negatives));
        let (all, among_x, among_y) = (midranks(&[&x[..], &y].concat()), midranks(&x), midranks(&y));
        let v10: Vec<f64> = (0..m).map(|i| (all[i] - among_x[i]) / n as f64).collect();
        let v01: Vec<f64> = (0..n).map(|j| 1.0 - (all[m + j] - among_y[j]) / m as f64).collect();
        (v10.iter().sum::<f64>() / m as f64, v10, v01)
    };
    let ((auc_a, v10_a, v01_a), (auc_b, v10_b, v01_b)) = (components(a), components(b));
    let variance =
        variance_of_difference(&v10_a, &v10_b) / m as f64 + variance_of_difference(&v01_a, &v01_b) / n as f64;
    let difference = auc_a - auc_b;
    let z = (variance > 0.0).then(|| difference / variance.sqrt());
    let p = match z {
        Some(z) => Some(libm::erfc(z.abs() / std::f64::consts::SQRT_2)),
        None => (difference == 0.0).then_some(1.0),
    };
    Some(DeLong { auc: [auc_a, auc_b], variance, z, p })
}

/// Ranks from 1 on; equal scores share the mean of theirs.
pub(crate) fn midranks(scores: &[f32]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|&a, &b| scores[a].total_cmp(&scores[b]));
    let mut ranks = vec![0.0; scores.len()];
    let mut before = 0;
    for ties in order.chunk_by(|&a, &b| scores[a] == scores[b]) {
        let rank = before as f64 + (ties.len() + 1) as f64 / 2.0;
        ties.iter().for_each(|&item| ranks[item] = rank);
        before += ties.len();
    }
    ranks
}

/// Sample variance (divisor n - 1) of a - b.
fn variance_of_difference(a: &[f64], b: &[f64]) -> f64 {
    let difference: Vec<f64> = a.iter().zip(b).map(|(a, b)| a - b).collect();
    let mean = difference.iter().sum::<f64>() / difference.len() as f64;
    difference.iter().map(|d| (d - mean).powi(2)).sum::<f64>() / (difference.len() - 1) as f64
}

/// A paired permutation test.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Permutation {
    /// The metric of the first less that of the second.
    pub difference: f64,
    /// Two-sided probability of a difference this large if the two were exchangeable: (1 + as large) / (1 + drawn).
    pub p: f64,
}

/// How labels are exchanged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exchanges {
    /// How many.
    pub draws: usize,
    /// Seed of the draws.
    pub seed: u64,
}

impl Default for Exchanges {
    fn default() -> Self {
        // The standard error of a p of 0.05 is then 0.0022.
        Self { draws: 10_000, seed: 0 }
    }
}

/// Exchanges the two classifiers' scores of each item, or of each whole group (patient) where `groups` are given, by a fair
/// coin, and counts how often the difference of `metric` is as large as without exchange. `None` where the metric is not
/// defined for one of the two; draws that leave it undefined do not count.
///
/// # Errors
/// Predictions of other items or classes; another number of groups.
pub fn permutation(
    a: &Predictions,
    b: &Predictions,
    groups: Option<&[String]>,
    metric: Metric,
    exchanges: &Exchanges,
) -> Result<Option<Permutation>> {
    check_same_items(a, b)?;
    let n = a.len();
    if let Some(groups) = groups.filter(|groups| groups.len() != n) {
        return Err(Error::usage(format!("{} groups for {n} items", groups.len())));
    }
    let (unit_of, units) = match groups {
        Some(groups) => number_groups(groups),
        None => ((0..n).collect(), n),
    };
    // Both in one: an exchange is then a vector of weights 0 and 1, and nothing is sorted again.
    let both = a.followed_by(b)?;
    let difference = |exchanged: &[bool]| {
        let second: Vec<u32> = unit_of.iter().map(|&unit| u32::from(exchanged[unit])).collect();
        let first: Vec<u32> = second.iter().map(|taken| 1 - taken).collect();
        let value = |of_a: &[u32], of_b: &[u32]| both.weighted(metric, &[of_a, of_b].concat());
        Some(value(&first, &second)? - value(&second, &first)?)
    };
    let Some(observed) = difference(&vec![false; units]) else { return Ok(None) };
    // Equal differences may differ in their last bits by the order of sums.
    let as_large = observed.abs() - 1e-12;
    let drawn: Vec<bool> = (0..exchanges.draws)
        .into_par_iter()
        .filter_map(|draw| {
            let mut rng = stream(exchanges.seed, Purpose::Permutation, draw as u64, 0);
            let exchanged: Vec<bool> = (0..units).map(|_| rng.random()).collect();
            difference(&exchanged).map(|difference| difference.abs() >= as_large)
        })
        .collect();
    let reached = drawn.iter().filter(|&&reached| reached).count();
    let p = (1 + reached) as f64 / (1 + drawn.len()) as f64;
    Ok(Some(Permutation { difference: observed, p }))
}

fn check_same_items(a: &Predictions, b: &Predictions) -> Result<()> {
    match a.classes() == b.classes() && a.truth() == b.truth() {
        true => Ok(()),
        false => Err(Error::usage(format!(
            "a paired test takes two scores of the same items: {} items of {} classes, and {} of {}, differ in their truth",
            a.len(),
            a.classes(),
            b.len(),
            b.classes()
        ))),
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Deserialize)]
    struct Case {
        name: String,
        classes: usize,
        truth: Vec<u32>,
        a: Vec<f32>,
        b: Vec<f32>,
        delong: Vec<Option<Expected>>,
        exact: Vec<(Metric, f64, f64)>,
    }

    #[derive(Deserialize)]
    struct Expected {
        auc: [f64; 2],
        variance: f64,
        z: Option<f64>,
        p: Option<f64>,
    }

    fn cases() -> Vec<(Case, Predictions, Predictions)> {
        let text = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/golden/evaluation/paired.json"));
        let cases: Vec<Case> = serde_json::from_str(text).unwrap();
        let of = |case: &Case, scores: &Vec<f32>| {
            Predictions::new(case.truth.clone(), scores.clone(), case.classes).unwrap()
        };
        let with = |case: Case| {
            let (a, b) = (of(&case, &case.a), of(&case, &case.b));
            (case, a, b)
        };
        cases.into_iter().map(with).collect()
    }

    fn assert_close(what: &str, ours: Option<f64>, theirs: Option<f64>) {
        match (ours, theirs) {
            (Some(ours), Some(theirs)) => {
                assert!((ours - theirs).abs() <= 1e-12 * (1.0 + theirs.abs()), "{what}: {ours} {theirs}");
            }
            _ => assert_eq!(ours, theirs, "{what}"),
        }
    }

    /// `tests/golden/evaluation/paired.py` computed these by the definition, a sum over all pairs of a positive and a
    /// negative. Tolerance 1e-12: float64 on both sides, sums in another order.
    #[test]
    fn delong_as_by_its_definition() {
        let cases = cases();
        assert!(cases.len() >= 5);
        for (case, a, b) in &cases {
            let ours = delong(a, b).unwrap();
            assert_eq!(ours.len(), case.delong.len());
            for (class, (ours, theirs)) in ours.iter().zip(&case.delong).enumerate() {
                let what = format!("{}, class {class}", case.name);
                let (Some(ours), Some(theirs)) = (ours, theirs) else {
                    assert!(ours.is_none() && theirs.is_none(), "{what}");
                    continue;
                };
                assert_close(&what, Some(ours.auc[0]), Some(theirs.auc[0]));
                assert_close(&what, Some(ours.auc[1]), Some(theirs.auc[1]));
                assert_close(&what, Some(ours.variance), Some(theirs.variance));
                assert_close(&what, ours.z, theirs.z);
                assert_close(&what, ours.p, theirs.p);
                assert_close(&what, a.class_auc()[class], Some(ours.auc[0]));
            }
        }
    }

    /// The exact p is scipy's, over every exchange. Of N draws the share has a standard error of √(p (1 - p) / N); four of
    /// these, and the 1 added on either side of the fraction, are the tolerance.
    #[test]
    fn permutations_come_near_the_exact_test() {
        let mut compared = 0;
        for (case, a, b) in &cases() {
            for &(metric, difference, exact) in &case.exact {
                let exchanges = Exchanges { draws: 20_000, seed: 3 };
                let ours = permutation(a, b, None, metric, &exchanges).unwrap().unwrap();
                assert_close(&case.name, Some(ours.difference), Some(difference));
                let tolerance = 4.0 * (exact * (1.0 - exact) / 20_000.0).sqrt() + 1e-4;
                assert!((ours.p - exact).abs() < tolerance, "{} {metric:?}: {} {exact}", case.name, ours.p);
                compared += 1;
            }
        }
        assert!(compared >= 4);
    }

    /// Four slides of each patient say the same: exchanged one by one they look like 40 witnesses, and are 10.
    #[test]
    fn patients_are_exchanged_whole() {
        let patients = 10;
        let truth: Vec<u32> = (0..4 * patients).map(|i| (i / 4 % 2) as u32).collect();
        let wrong_in = |bad: &[usize]| {
            let says = |i: usize| if bad.contains(&(i / 4)) { 1 - truth[i] } else { truth[i] };
            Predictions::from_labels(truth.clone(), &(0..truth.len()).map(says).collect::<Vec<_>>(), 2).unwrap()
        };
        let (a, b) = (wrong_in(&[]), wrong_in(&[1, 4, 6, 7, 9]));
        let groups: Vec<String> = (0..truth.len()).map(|i| format!("patient {}", i / 4)).collect();
        let run = |groups: Option<&[String]>, seed| {
            let exchanges = Exchanges { draws: 4000, seed };
            permutation(&a, &b, groups, Metric::Accuracy, &exchanges).unwrap().unwrap()
        };
        // Five patients differ, all one way: 2 of 2⁵ exchanges are as large.
        let whole = run(Some(&groups), 0);
        assert!((whole.p - 2.0 / 32.0).abs() < 4.0 * (0.0625f64 * 0.9375 / 4000.0).sqrt(), "{whole:?}");
        assert!(run(None, 0).p < 0.001);
        assert_eq!(whole, run(Some(&groups), 0));
        assert_ne!(whole.p, run(Some(&groups), 1).p);
    }

    #[test]
    fn what_cannot_be_compared_is_refused_or_undefined() {
        let of = |truth: &[u32]| Predictions::from_labels(truth.to_vec(), truth, 2).unwrap();
        let (a, one) = (of(&[0, 1, 1, 0]), of(&[1, 1, 1, 1]));
        assert!(delong(&a, &of(&[0, 1])).unwrap_err().to_string().contains("the same items"));
        assert!(delong(&a, &one).is_err());
        let exchanges = Exchanges::default();
        assert!(permutation(&a, &a, Some(&["p".to_owned()]), Metric::Accuracy, &exchanges).is_err());
        // Two perfect classifiers: equal, and no chance in it.
        let same = delong(&a, &a).unwrap()[1].unwrap();
        assert_eq!((same.variance, same.z, same.p), (0.0, None, Some(1.0)));
        assert_eq!(permutation(&a, &a, None, Metric::MacroAuc, &exchanges).unwrap().unwrap().p, 1.0);
        // One class: no area, no test, and no 0.5.
        assert_eq!(delong(&one, &one).unwrap(), [None, None]);
        assert_eq!(permutation(&one, &one, None, Metric::MacroAuc, &exchanges).unwrap(), None);
    }
}
