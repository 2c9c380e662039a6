//! Worked examples, scikit-learn's numbers, and properties.

use proptest::prelude::*;

use super::*;

/// Tolerance 5e-8: the worked numbers are written with eight decimals (5e-9), and float64 adds 1e-15.
fn close(value: Option<f64>, expected: f64) {
    let value = value.expect("defined");
    assert!((value - expected).abs() < 5e-8, "{value} is not {expected}");
}

#[test]
fn worked_f1() {
    let p = Predictions::from_labels(vec![0, 0, 1, 1, 2, 2], &[0, 1, 1, 1, 2, 0], 3).unwrap();
    let f1 = p.confusion().class_f1();
    close(f1[0], 0.5);
    close(f1[1], 0.8);
    close(f1[2], 2.0 / 3.0);
    close(p.value(Metric::MacroF1), 0.655_555_56);
}

#[test]
fn worked_auc() {
    let scores = vec![0.7, 0.2, 0.1, 0.3, 0.4, 0.3, 0.2, 0.3, 0.5, 0.5, 0.3, 0.2];
    let p = Predictions::new(vec![0, 1, 2, 1], scores, 3).unwrap();
    let auc = p.class_auc();
    close(auc[0], 1.0);
    close(auc[1], 0.875);
    close(auc[2], 1.0);
    close(p.value(Metric::MacroAuc), 0.958_333_33);
}

#[test]
fn worked_quadratic_kappa() {
    let p = Predictions::from_labels(vec![0, 1, 2, 2], &[0, 2, 2, 1], 3).unwrap();
    close(p.value(Metric::QuadraticKappa), 0.636_363_64);
}

/// `tests/golden/evaluation/metrics.py` wrote these with scikit-learn. Tolerance 1e-12: both sides work in
/// float64 on the same float32 scores and differ only in the order of sums.
#[test]
fn as_scikit_learn() {
    #[derive(Deserialize)]
    struct Case {
        name: String,
        classes: usize,
        truth: Vec<u32>,
        scores: Vec<f32>,
        confusion: Vec<u64>,
        values: std::collections::BTreeMap<String, Option<f64>>,
    }
    let text = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/golden/evaluation/metrics.json"));
    let cases: Vec<Case> = serde_json::from_str(text).unwrap();
    assert!(cases.iter().filter(|case| case.classes > TOP).count() >= 2);
    for case in cases {
        let p = Predictions::new(case.truth, case.scores, case.classes).unwrap();
        assert_eq!(p.confusion().counts, case.confusion, "{}", case.name);
        for metric in Metric::of(p.classes()) {
            match (p.value(metric), case.values[metric.name()]) {
                (Some(ours), Some(theirs)) => {
                    assert!((ours - theirs).abs() < 1e-12, "{} {metric:?}: {ours} {theirs}", case.name);
                }
                (ours, theirs) => assert_eq!(ours, theirs, "{} {metric:?}", case.name),
            }
        }
    }
}

#[test]
fn classes_without_items_are_left_out() {
    let p = Predictions::from_labels(vec![0, 0, 2], &[0, 1, 2], 4).unwrap();
    close(p.value(Metric::BalancedAccuracy), 0.75);
    assert_eq!(p.class_auc()[1], None);
    let one_class = Predictions::from_labels(vec![1, 1], &[1, 1], 2).unwrap();
    assert_eq!(one_class.value(Metric::MacroAuc), None);
    assert_eq!(one_class.value(Metric::MacroAuprc), None);
    assert_eq!(one_class.value(Metric::QuadraticKappa), None);
    close(one_class.value(Metric::Accuracy), 1.0);
    let nothing = Predictions::new(vec![], vec![], 3).unwrap();
    assert!(Metric::ALL.iter().all(|&metric| nothing.value(metric).is_none()));
}

/// Two of four at confidence 0.75 are right, the one at 0.625 is; by hand.
#[test]
fn worked_calibration() {
    let scores = vec![0.75, 0.25, 0.75, 0.25, 0.25, 0.75, 0.25, 0.75, 0.375, 0.625];
    let p = Predictions::new(vec![0, 1, 1, 0, 1], scores.clone(), 2).unwrap();
    close(p.value(Metric::Ece), (4.0 * 0.25 + 0.375) / 5.0);
    close(p.value(Metric::Brier), (2.0 * 0.125 + 2.0 * 1.125 + 2.0 * 0.375 * 0.375) / 5.0);
    // Votes are ranked, but are no probabilities.
    let votes = Predictions::new(vec![0, 1, 1, 0, 1], scores.iter().map(|s| s * 3.0).collect(), 2).unwrap();
    assert_eq!((votes.value(Metric::Ece), votes.value(Metric::Brier)), (None, None));
    assert_eq!(votes.value(Metric::MacroAuc), p.value(Metric::MacroAuc));
}

/// The truth is first, fifth, sixth, and one of six equals, of which five are taken by chance.
#[test]
fn worked_top_5() {
    let falling = [0.3, 0.25, 0.2, 0.15, 0.07, 0.03];
    let scores = [falling, falling, falling, [0.1; 6]].concat();
    let p = Predictions::new(vec![0, 4, 5, 5], scores, 6).unwrap();
    assert_eq!(p.value(Metric::Top5Accuracy), Some((1.0 + 1.0 + 0.0 + 5.0 / 6.0) / 4.0));
    assert_eq!(p.weighted(Metric::Top5Accuracy, &[1, 0, 3, 0]), Some(0.25));
    assert_eq!(p.weighted(Metric::Top5Accuracy, &[0; 4]), None);
    assert!(Metric::of(6).contains(&Metric::Top5Accuracy) && !Metric::of(5).contains(&Metric::Top5Accuracy));
    assert_eq!(Metric::of(5), Metric::ALL);
}

#[test]
fn nonsense_is_refused() {
    assert!(Predictions::new(vec![0], vec![0.5; 3], 2).is_err());
    assert!(Predictions::new(vec![2], vec![0.5; 2], 2).is_err());
    assert!(Predictions::new(vec![1], vec![0.5, f32::NAN], 2).is_err());
    assert!(Predictions::from_labels(vec![0], &[2], 2).is_err());
    assert!(Predictions::from_labels(vec![0, 1], &[1], 2).is_err());
}

fn items() -> impl Strategy<Value = Vec<(u32, [u8; 3], u32)>> {
    prop::collection::vec((0..3u32, prop::array::uniform3(0..4u8), 0..3u32), 1..30)
}

fn of(items: &[(u32, [u8; 3])]) -> Predictions {
    let scores = items.iter().flat_map(|(_, row)| row.map(f32::from)).collect();
    Predictions::new(items.iter().map(|item| item.0).collect(), scores, 3).unwrap()
}

/// The same with scores that sum to 1.
fn shares(items: &[(u32, [u8; 3])]) -> Predictions {
    let row = |row: [u8; 3]| row.map(|x| f32::from(x + 1) / row.iter().map(|&x| f32::from(x + 1)).sum::<f32>());
    let scores = items.iter().flat_map(|&(_, scores)| row(scores)).collect();
    Predictions::new(items.iter().map(|item| item.0).collect(), scores, 3).unwrap()
}

proptest! {
    /// Weight w is the same as the item w times, of probabilities too.
    #[test]
    fn weights_count(items in items()) {
        let once: Vec<_> = items.iter().map(|&(truth, row, _)| (truth, row)).collect();
        let weights: Vec<u32> = items.iter().map(|item| item.2).collect();
        let repeated: Vec<_> = items.iter().flat_map(|&(t, row, w)| vec![(t, row); w as usize]).collect();
        for metric in Metric::ALL {
            match (shares(&once).weighted(metric, &weights), shares(&repeated).value(metric)) {
                (Some(a), Some(b)) => prop_assert!((a - b).abs() < 1e-12),
                (a, b) => prop_assert_eq!(a, b),
            }
        }
    }

    /// The area under the curve is the share of ordered pairs.
    #[test]
    fn auc_counts_pairs(items in items()) {
        let items: Vec<_> = items.iter().map(|&(truth, row, _)| (truth, row)).collect();
        let (mut pairs, mut won) = (0.0f64, 0.0f64);
        for (_, a) in items.iter().filter(|item| item.0 == 1) {
            for (_, b) in items.iter().filter(|item| item.0 != 1) {
                pairs += 1.0;
                won += match a[1].cmp(&b[1]) {
                    std::cmp::Ordering::Greater => 1.0,
                    std::cmp::Ordering::Equal => 0.5,
                    std::cmp::Ordering::Less => 0.0,
                };
            }
        }
        match of(&items).class_auc()[1] {
            Some(area) => prop_assert!((area * pairs - won).abs() < 1e-9),
            None => prop_assert!(pairs == 0.0),
        }
    }
}

#[derive(serde::Deserialize)]
struct Curves {
    classes: usize,
    truth: Vec<u32>,
    scores: Vec<f32>,
    curves: Vec<Option<ClassCurves>>,
}

#[derive(serde::Deserialize)]
struct ClassCurves {
    roc: Vec<(f64, f64)>,
    pr: Vec<(f64, f64)>,
}

/// `tests/golden/evaluation/curves.py` made these. Tolerance 1e-12: ratios of small counts in float64 on both sides.
#[test]
fn curves_as_scikit_learn() {
    let text = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/golden/evaluation/curves.json"));
    let cases: Vec<Curves> = serde_json::from_str(text).unwrap();
    let close = |ours: &[(f64, f64)], theirs: &[(f64, f64)]| {
        assert_eq!(ours.len(), theirs.len(), "{ours:?} {theirs:?}");
        for (a, b) in ours.iter().zip(theirs) {
            assert!((a.0 - b.0).abs() < 1e-12 && (a.1 - b.1).abs() < 1e-12, "{ours:?} {theirs:?}");
        }
    };
    let mut compared = 0;
    for case in cases {
        let predictions = Predictions::new(case.truth, case.scores, case.classes).unwrap();
        for (class, expected) in case.curves.iter().enumerate() {
            let Some(expected) = expected else {
                assert_eq!(predictions.roc(class), None);
                continue;
            };
            close(&predictions.roc(class).unwrap(), &expected.roc);
            close(&predictions.precision_recall(class).unwrap(), &expected.pr);
            compared += 1;
        }
    }
    assert!(compared >= 8);
}
