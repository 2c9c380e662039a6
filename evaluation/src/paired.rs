//! Is one encoder better than another, or only luckier? Paired tests of two classifiers on the same items.
//!
//! [`delong`] tests areas under the ROC curve, [`permutation`] any [`Metric`]. Both are two-sided, and neither corrects for
//! several comparisons.

use std::collections::BTreeSet;

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
/// midranks of Sun and Xu, IEEE Signal Processing Letters 2014). With `groups`, the items of a group (slides of a patient) may
/// depend on each other, and the variance is Obuchowski's (Biometrics 1997), which is DeLong's where every group is one
/// item. `None` for a class found in fewer than two groups, or missing in fewer than two.
///
/// # Errors
/// Predictions of other items or classes; another number of groups.
pub fn delong(a: &Predictions, b: &Predictions, groups: Option<&[String]>) -> Result<Vec<Option<DeLong>>> {
    check_same_items(a, b)?;
    let (group_of, groups) = groups_of(groups, a.len())?;
    Ok((0..a.classes()).map(|class| delong_of(a, b, class, &group_of, groups)).collect())
}

fn delong_of(a: &Predictions, b: &Predictions, class: usize, group_of: &[usize], groups: usize) -> Option<DeLong> {
    let truth = a.truth();
    let (positives, negatives): (Vec<_>, Vec<_>) = (0..truth.len()).partition(|&item| truth[item] as usize == class);
    let (m, n) = (positives.len(), negatives.len());
    let with = |items: &[usize]| items.iter().map(|&item| group_of[item]).collect::<BTreeSet<_>>().len() as f64;
    let (with_positives, with_negatives) = (with(&positives), with(&negatives));
    if with_positives < 2.0 || with_negatives < 2.0 {
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
    let difference = auc_a - auc_b;
    // Of each group: how far its positives, and its negatives, lie off the difference of the areas, in all.
    let sums = |items: &[usize], of_a: &[f64], of_b: &[f64]| {
        let mut sums = vec![0.0; groups];
        for ((item, a), b) in items.iter().zip(of_a).zip(of_b) {
            sums[group_of[*item]] += a - b - difference;
        }
        sums
    };
    let (ten, one) = (sums(&positives, &v10_a, &v10_b), sums(&negatives, &v01_a, &v01_b));
    let product = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    let (m, n, groups) = (m as f64, n as f64, groups as f64);
    let variance = with_positives / (with_positives - 1.0) * product(&ten, &ten) / (m * m)
        + with_negatives / (with_negatives - 1.0) * product(&one, &one) / (n * n)
        + 2.0 * groups / (groups - 1.0) * product(&ten, &one) / (m * n);
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

/// Which group each of `n` items belongs to, and how many there are; each its own where none are given.
fn groups_of(groups: Option<&[String]>, n: usize) -> Result<(Vec<usize>, usize)> {
    match groups {
        Some(groups) if groups.len() != n => Err(Error::usage(format!("{} groups for {n} items", groups.len()))),
        Some(groups) => Ok(number_groups(groups)),
        None => Ok(((0..n).collect(), n)),
    }
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
    let (unit_of, units) = groups_of(groups, a.len())?;
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
        #[serde(default)]
        groups: Option<Vec<String>>,
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

    /// Albumin, total protein, K-G score and outcome of 43 of the 49 patients in DeLong, DeLong and Clarke-Pearson (1988), those
    /// without missing values.
    #[rustfmt::skip]
    const PATIENTS: [(f32, f32, f32, u32); 43] = [
        (3.0, 5.8, 10.0, 0), (3.2, 6.3, 5.0, 1), (3.9, 6.8, 3.0, 1), (2.8, 4.8, 6.0, 0), (3.2, 5.8, 3.0, 1), (0.9, 4.0, 5.0, 0),
        (2.5, 5.7, 8.0, 0), (1.6, 5.6, 5.0, 1), (3.8, 5.7, 5.0, 1), (3.7, 6.7, 6.0, 1), (3.2, 5.4, 4.0, 1), (3.8, 6.6, 6.0, 1),
        (4.1, 6.6, 5.0, 1), (3.6, 5.7, 5.0, 1), (4.3, 7.0, 4.0, 1), (3.6, 6.7, 4.0, 0), (2.3, 4.4, 6.0, 1), (4.2, 7.6, 4.0, 0),
        (4.0, 6.6, 6.0, 0), (3.5, 5.8, 6.0, 1), (3.8, 6.8, 7.0, 1), (3.0, 4.7, 8.0, 0), (4.5, 7.4, 5.0, 1), (3.7, 7.4, 5.0, 1),
        (3.1, 6.6, 6.0, 1), (4.1, 8.2, 6.0, 1), (4.3, 7.0, 5.0, 1), (4.3, 6.5, 4.0, 1), (3.2, 5.1, 5.0, 1), (2.6, 4.7, 6.0, 1),
        (3.3, 6.8, 6.0, 0), (1.7, 4.0, 7.0, 0), (3.7, 6.1, 5.0, 1), (3.3, 6.3, 7.0, 1), (4.2, 7.7, 6.0, 1), (3.5, 6.2, 5.0, 1),
        (2.9, 5.7, 9.0, 0), (2.1, 4.8, 7.0, 1), (2.8, 6.2, 8.0, 0), (4.0, 7.0, 7.0, 1), (3.3, 5.7, 6.0, 1), (3.7, 6.9, 5.0, 1),
        (3.6, 6.6, 5.0, 1),
    ];

    /// The patients as predictions of two classes by one of the tests; a low K-G score is a good one.
    fn by(test: fn(&(f32, f32, f32, u32)) -> f32) -> Predictions {
        let scores = PATIENTS.iter().flat_map(|patient| [-test(patient), test(patient)]).collect();
        Predictions::new(PATIENTS.iter().map(|patient| patient.3).collect(), scores, 2).unwrap()
    }

    /// The figures that the SAS/STAT User's Guide publishes for these data (LOGISTIC, "Comparing Receiver Operating Characteristic
    /// Curves"), to their four digits: areas, the standard error of their difference, the chi-square of DeLong's test, its p.
    #[test]
    fn delongs_own_patients_give_the_published_figures() {
        let (albumin, protein, score) = (by(|p| p.0), by(|p| p.1), by(|p| 10.0 - p.2));
        for (test, area, error, chi_square, p) in
            [(&albumin, 0.7366, 0.0953, 0.0127, 0.9102), (&protein, 0.6478, 0.1046, 0.5554, 0.4561)]
        {
            let found = delong(test, &score, None).unwrap()[1].unwrap();
            let figures =
                [found.auc[0], found.auc[1], found.variance.sqrt(), found.z.unwrap().powi(2), found.p.unwrap()];
            for (found, published) in figures.into_iter().zip([area, 0.7258, error, chi_square, p]) {
                assert!((found - published).abs() < 1e-4, "{found} {published}");
            }
        }
    }

    /// The same guide gives the standard error of albumin's area as 0.0927. A bootstrap is another estimate of it: of 43 patients
    /// the two agree to about a tenth.
    #[test]
    fn a_bootstrap_of_delongs_patients_is_as_wide_as_published() {
        let bootstrap = crate::bootstrap::Bootstrap { resamples: 4000, ..Default::default() };
        let interval = bootstrap.intervals(&by(|p| p.0), None, &[Metric::MacroAuc]).unwrap()[0];
        let [low, high] = [interval.low, interval.high].map(Option::unwrap);
        let error = (high - low) / (2.0 * 1.96);
        assert!((error / 0.0927 - 1.0).abs() < 0.1, "{low} {high}: {error}");
        assert!((interval.value.unwrap() - 0.7366).abs() < 1e-4);
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
    /// negative, and with several items a group by Obuchowski's sums over groups. Tolerance 1e-12: float64 on both sides, sums
    /// in another order.
    #[test]
    fn delong_as_by_its_definition() {
        let cases = cases();
        assert!(cases.len() >= 5);
        for (case, a, b) in &cases {
            let ours = delong(a, b, case.groups.as_deref()).unwrap();
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

    /// Two equally good encoders on 40 patients of 3 slides whose scores differ by patient more than by slide: a test at 0.05 is
    /// to call one in twenty different. Of 400 draws the share has a standard error of 0.011; taking slides for independent
    /// finds several times as many.
    #[test]
    fn slides_of_a_patient_are_not_independent() {
        let groups: Vec<String> = (0..120).map(|slide| (slide / 3).to_string()).collect();
        let truth: Vec<u32> = (0..120).map(|slide| u32::from(slide / 3 % 2 == 0)).collect();
        let found = |groups: Option<&[String]>| {
            let draw = |draw: u64| {
                let mut rng = stream(5, Purpose::Permutation, draw, 0);
                let mut normal = || (0..12).map(|_| rng.random::<f32>()).sum::<f32>() - 6.0;
                let patients: Vec<[f32; 2]> = (0..40).map(|_| [normal(), normal()]).collect();
                let [a, b] = [0, 1].map(|encoder| {
                    let mut logit = |slide: usize| patients[slide / 3][encoder] + 0.5 * normal() + truth[slide] as f32;
                    let scores = (0..120)
                        .flat_map(|slide| {
                            let logit = logit(slide);
                            [-logit, logit]
                        })
                        .collect();
                    Predictions::new(truth.clone(), scores, 2).unwrap()
                });
                delong(&a, &b, groups).unwrap()[1].unwrap().p.unwrap() < 0.05
            };
            (0..400).filter(|&i| draw(i)).count() as f64 / 400.0
        };
        let (by_patient, by_slide) = (found(Some(&groups)), found(None));
        assert!((0.02..=0.09).contains(&by_patient), "{by_patient}");
        assert!(by_slide > 2.0 * by_patient, "{by_slide} {by_patient}");
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
        assert!(delong(&a, &of(&[0, 1]), None).unwrap_err().to_string().contains("the same items"));
        assert!(delong(&a, &one, None).is_err());
        let exchanges = Exchanges::default();
        assert!(delong(&a, &a, Some(&["p".to_owned()])).is_err());
        let patients = ["p", "q", "q", "p"].map(str::to_owned);
        assert_eq!(delong(&a, &a, Some(&patients)).unwrap(), [None, None], "one patient has all items of a class");
        assert!(permutation(&a, &a, Some(&["p".to_owned()]), Metric::Accuracy, &exchanges).is_err());
        // Two perfect classifiers: equal, and no chance in it.
        let same = delong(&a, &a, None).unwrap()[1].unwrap();
        assert_eq!((same.variance, same.z, same.p), (0.0, None, Some(1.0)));
        assert_eq!(permutation(&a, &a, None, Metric::MacroAuc, &exchanges).unwrap().unwrap().p, 1.0);
        // One class: no area, no test, and no 0.5.
        assert_eq!(delong(&one, &one, None).unwrap(), [None, None]);
        assert_eq!(permutation(&one, &one, None, Metric::MacroAuc, &exchanges).unwrap(), None);
    }
}
