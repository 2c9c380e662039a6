//! Figures of merit of a classification, each checked against scikit-learn.
//!
//! Every metric is computed from integer weights of the items, so that a bootstrap resample is a vector of counts and
//! costs no copying and no new sorting.

use std::sync::OnceLock;

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// A figure of merit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Metric {
    /// Share of items that are right.
    Accuracy,
    /// Mean over the classes of the share that is right; classes without an item are left out.
    BalancedAccuracy,
    /// Mean of the classes' F1; a class without true and predicted items is left out, 0/0 counts as 0.
    MacroF1,
    /// Mean of the classes' F1 weighted by their numbers of items.
    WeightedF1,
    /// Mean over the classes of the area under the one-versus-rest ROC curve, ties counted half; a class without an
    /// item, or with nothing else, is left out.
    MacroAuc,
    /// Cohen's kappa with quadratic weights over all classes in their order.
    QuadraticKappa,
}

impl Metric {
    /// All of them, in the order of the tables.
    pub const ALL: [Self; 6] =
        [Self::Accuracy, Self::BalancedAccuracy, Self::MacroF1, Self::WeightedF1, Self::MacroAuc, Self::QuadraticKappa];

    /// Its name in the tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Accuracy => "accuracy",
            Self::BalancedAccuracy => "balanced_accuracy",
            Self::MacroF1 => "macro_f1",
            Self::WeightedF1 => "weighted_f1",
            Self::MacroAuc => "macro_auc",
            Self::QuadraticKappa => "quadratic_kappa",
        }
    }
}

/// Truth and scores of a set of items.
#[derive(Clone, Debug)]
pub struct Predictions {
    classes: usize,
    truth: Vec<u32>,
    scores: Vec<f32>,
    predicted: Vec<u32>,
    ascending: OnceLock<Vec<Vec<u32>>>,
}

impl Predictions {
    /// From one row of `classes` scores per item (row-major); the prediction is the largest, the first of equals.
    pub fn new(truth: Vec<u32>, scores: Vec<f32>, classes: usize) -> Result<Self> {
        if classes == 0 || scores.len() != truth.len() * classes {
            return Err(Error::usage(format!(
                "{} scores for {} items and {classes} classes",
                scores.len(),
                truth.len()
            )));
        }
        if let Some(label) = truth.iter().find(|&&label| label as usize >= classes) {
            return Err(Error::usage(format!("label {label} with {classes} classes")));
        }
        if scores.iter().any(|score| score.is_nan()) {
            return Err(Error::usage("a score is not a number"));
        }
        let predicted = scores.chunks_exact(classes).map(argmax).collect();
        Ok(Self { classes, truth, scores, predicted, ascending: OnceLock::new() })
    }

    /// From decisions without scores: the score is 1 for the predicted class, so the AUC is that of the decisions.
    pub fn from_labels(truth: Vec<u32>, predicted: &[u32], classes: usize) -> Result<Self> {
        if truth.len() != predicted.len() {
            return Err(Error::usage(format!("{} predictions for {} items", predicted.len(), truth.len())));
        }
        if let Some(label) = predicted.iter().find(|&&label| label as usize >= classes) {
            return Err(Error::usage(format!("prediction {label} with {classes} classes")));
        }
        let mut scores = vec![0.0; truth.len() * classes];
        predicted.iter().enumerate().for_each(|(item, &class)| scores[item * classes + class as usize] = 1.0);
        Self::new(truth, scores, classes)
    }

    /// Number of items.
    pub fn len(&self) -> usize {
        self.truth.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.truth.is_empty()
    }

    /// Number of classes.
    pub fn classes(&self) -> usize {
        self.classes
    }

    /// True class per item.
    pub fn truth(&self) -> &[u32] {
        &self.truth
    }

    /// Predicted class per item.
    pub fn predicted(&self) -> &[u32] {
        &self.predicted
    }

    /// Scores of item `index`, one per class.
    pub fn scores(&self, index: usize) -> &[f32] {
        &self.scores[index * self.classes..(index + 1) * self.classes]
    }

    /// Classes of which no item is true: they do not count in [`Metric::BalancedAccuracy`] and [`Metric::MacroAuc`],
    /// which a report should say.
    pub fn absent_classes(&self) -> Vec<u32> {
        (0..self.classes as u32).filter(|class| !self.truth.contains(class)).collect()
    }

    /// The value of `metric`; `None` where it is not defined (no items; an AUC with one class; a kappa without
    /// expected disagreement).
    pub fn value(&self, metric: Metric) -> Option<f64> {
        self.weighted(metric, &vec![1; self.len()])
    }

    /// The value of `metric` with each item counted `weights[item]` times.
    pub fn weighted(&self, metric: Metric, weights: &[u32]) -> Option<f64> {
        match metric {
            Metric::MacroAuc => self.macro_auc(weights),
            _ => self.weighted_confusion(weights).value(metric),
        }
    }

    /// Items by true and predicted class.
    pub fn confusion(&self) -> Confusion {
        self.weighted_confusion(&vec![1; self.len()])
    }

    fn weighted_confusion(&self, weights: &[u32]) -> Confusion {
        let mut counts = vec![0; self.classes * self.classes];
        for ((&truth, &predicted), &weight) in self.truth.iter().zip(&self.predicted).zip(weights) {
            counts[truth as usize * self.classes + predicted as usize] += u64::from(weight);
        }
        Confusion { classes: self.classes, counts }
    }

    /// Area under the one-versus-rest ROC curve per class; `None` for a class without an item or with nothing else.
    pub fn class_auc(&self) -> Vec<Option<f64>> {
        let weights = vec![1; self.len()];
        (0..self.classes).map(|class| self.auc(class, &weights)).collect()
    }

    fn macro_auc(&self, weights: &[u32]) -> Option<f64> {
        mean((0..self.classes).filter_map(|class| self.auc(class, weights)))
    }

    fn auc(&self, class: usize, weights: &[u32]) -> Option<f64> {
        let score = |item: u32| self.scores[item as usize * self.classes + class];
        let order = &self.ascending()[class];
        let (mut positives, mut negatives, mut area) = (0.0, 0.0, 0.0);
        for ties in order.chunk_by(|&a, &b| score(a) == score(b)) {
            let (mut tied_positives, mut tied_negatives) = (0.0, 0.0);
            for &item in ties {
                let weight = f64::from(weights[item as usize]);
                match self.truth[item as usize] as usize == class {
                    true => tied_positives += weight,
                    false => tied_negatives += weight,
                }
            }
            area += tied_positives * (negatives + 0.5 * tied_negatives);
            positives += tied_positives;
            negatives += tied_negatives;
        }
        (positives > 0.0 && negatives > 0.0).then(|| area / (positives * negatives))
    }

    /// Items in ascending order of their score, per class; sorted once, on first use.
    fn ascending(&self) -> &[Vec<u32>] {
        self.ascending.get_or_init(|| {
            (0..self.classes)
                .into_par_iter()
                .map(|class| {
                    let mut order: Vec<u32> = (0..self.len() as u32).collect();
                    let score = |item: u32| self.scores[item as usize * self.classes + class];
                    order.sort_by(|&a, &b| score(a).total_cmp(&score(b)));
                    order
                })
                .collect()
        })
    }
}

/// Items by true class (rows) and predicted class (columns).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Confusion {
    classes: usize,
    counts: Vec<u64>,
}

impl Confusion {
    /// Number of classes.
    pub fn classes(&self) -> usize {
        self.classes
    }

    /// Items of class `truth` predicted as `predicted`.
    pub fn count(&self, truth: usize, predicted: usize) -> u64 {
        self.counts[truth * self.classes + predicted]
    }

    /// F1 per class; `None` for a class with neither true nor predicted items.
    pub fn class_f1(&self) -> Vec<Option<f64>> {
        let (truth, predicted) = (self.truth_totals(), self.predicted_totals());
        (0..self.classes)
            .map(|class| {
                let both = truth[class] + predicted[class];
                (both > 0).then(|| 2.0 * self.count(class, class) as f64 / both as f64)
            })
            .collect()
    }

    fn value(&self, metric: Metric) -> Option<f64> {
        let total: u64 = self.counts.iter().sum();
        if total == 0 {
            return None;
        }
        let truth = self.truth_totals();
        let right = |class: usize| self.count(class, class) as f64;
        match metric {
            Metric::Accuracy => Some((0..self.classes).map(right).sum::<f64>() / total as f64),
            Metric::BalancedAccuracy => mean(
                (0..self.classes).filter(|&class| truth[class] > 0).map(|class| right(class) / truth[class] as f64),
            ),
            Metric::MacroF1 => mean(self.class_f1().into_iter().flatten()),
            Metric::WeightedF1 => {
                let f1 = self.class_f1();
                let sum: f64 = f1.iter().zip(&truth).map(|(f1, &n)| f1.unwrap_or(0.0) * n as f64).sum();
                Some(sum / total as f64)
            }
            Metric::QuadraticKappa => self.quadratic_kappa(total as f64),
            Metric::MacroAuc => None,
        }
    }

    /// 1 - Σ w O / Σ w E with w = (i - j)² (the usual 1 / (K - 1)² cancels) and E from the margins.
    fn quadratic_kappa(&self, total: f64) -> Option<f64> {
        let (truth, predicted) = (self.truth_totals(), self.predicted_totals());
        let (mut observed, mut expected) = (0.0, 0.0);
        for (i, &row) in truth.iter().enumerate() {
            for (j, &column) in predicted.iter().enumerate() {
                let weight = (i as f64 - j as f64).powi(2);
                observed += weight * self.count(i, j) as f64;
                expected += weight * row as f64 * column as f64 / total;
            }
        }
        (expected > 0.0).then(|| 1.0 - observed / expected)
    }

    fn truth_totals(&self) -> Vec<u64> {
        self.counts.chunks_exact(self.classes).map(|row| row.iter().sum()).collect()
    }

    fn predicted_totals(&self) -> Vec<u64> {
        (0..self.classes).map(|column| self.counts.iter().skip(column).step_by(self.classes).sum()).collect()
    }
}

/// Index of the largest, the first of equals.
pub(crate) fn argmax(scores: &[f32]) -> u32 {
    let mut best = 0;
    for (class, score) in scores.iter().enumerate() {
        if *score > scores[best] {
            best = class;
        }
    }
    best as u32
}

fn mean(values: impl Iterator<Item = f64>) -> Option<f64> {
    let (n, sum) = values.fold((0usize, 0.0), |(n, sum), value| (n + 1, sum + value));
    (n > 0).then(|| sum / n as f64)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

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
        assert!(cases.len() >= 8);
        for case in cases {
            let p = Predictions::new(case.truth, case.scores, case.classes).unwrap();
            assert_eq!(p.confusion().counts, case.confusion, "{}", case.name);
            for metric in Metric::ALL {
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
    fn classes_without_items_are_left_out_and_named() {
        let p = Predictions::from_labels(vec![0, 0, 2], &[0, 1, 2], 4).unwrap();
        assert_eq!(p.absent_classes(), [1, 3]);
        close(p.value(Metric::BalancedAccuracy), 0.75);
        assert_eq!(p.class_auc()[1], None);
        let one_class = Predictions::from_labels(vec![1, 1], &[1, 1], 2).unwrap();
        assert_eq!(one_class.value(Metric::MacroAuc), None);
        assert_eq!(one_class.value(Metric::QuadraticKappa), None);
        close(one_class.value(Metric::Accuracy), 1.0);
        let nothing = Predictions::new(vec![], vec![], 3).unwrap();
        assert!(Metric::ALL.iter().all(|&metric| nothing.value(metric).is_none()));
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

    proptest! {
        /// Weight w is the same as the item w times.
        #[test]
        fn weights_count(items in items()) {
            let once: Vec<_> = items.iter().map(|&(truth, row, _)| (truth, row)).collect();
            let weights: Vec<u32> = items.iter().map(|item| item.2).collect();
            let repeated: Vec<_> = items.iter().flat_map(|&(t, row, w)| vec![(t, row); w as usize]).collect();
            for metric in Metric::ALL {
                match (of(&once).weighted(metric, &weights), of(&repeated).value(metric)) {
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
}
