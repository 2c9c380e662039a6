//! Metrics of the order of the scores, one class against the rest: areas under the ROC and the precision-recall curve.

use rayon::prelude::*;

use super::Predictions;

impl Predictions {
    /// Area under the one-versus-rest ROC curve per class; `None` for a class without an item or with nothing else.
    pub fn class_auc(&self) -> Vec<Option<f64>> {
        self.aucs(&vec![1; self.len()])
    }

    /// Average precision per class, Σ (R_i - R_(i-1)) P_i over the falling thresholds, as scikit-learn's
    /// `average_precision_score`; `None` for a class without an item or with nothing else.
    pub fn class_average_precision(&self) -> Vec<Option<f64>> {
        self.average_precisions(&vec![1; self.len()])
    }

    /// The ROC curve of `class` against the rest: false and true positive rate at every threshold, from (0, 0) to (1, 1), as
    /// scikit-learn's `roc_curve` with `drop_intermediate=False`; `None` for a class without an item or with nothing else.
    pub fn roc(&self, class: usize) -> Option<Vec<(f64, f64)>> {
        let counts = self.falling(class)?;
        let (positives, negatives) = *counts.last()?;
        let rates = counts.iter().map(|(hits, alarms)| (alarms / negatives, hits / positives));
        Some(std::iter::once((0.0, 0.0)).chain(rates).collect())
    }

    /// The precision-recall curve of `class` against the rest: recall and precision at every threshold by ascending recall, from
    /// (0, 1), as scikit-learn's `precision_recall_curve` in reverse, with the thresholds behind full recall too; `None` for a
    /// class without an item or with nothing else.
    pub fn precision_recall(&self, class: usize) -> Option<Vec<(f64, f64)>> {
        let counts = self.falling(class)?;
        let (positives, _) = *counts.last()?;
        let points = counts.iter().map(|(hits, alarms)| (hits / positives, hits / (hits + alarms)));
        Some(std::iter::once((0.0, 1.0)).chain(points).collect())
    }

    /// Positives and negatives at or above every threshold, falling; `None` where one of them is missing.
    fn falling(&self, class: usize) -> Option<Vec<(f64, f64)>> {
        let weights = vec![1; self.len()];
        let mut tied: Vec<Tied> = self.tied(class, &weights).collect();
        tied.reverse();
        let counts: Vec<(f64, f64)> = tied
            .iter()
            .scan((0.0, 0.0), |sum, tied| {
                *sum = (sum.0 + tied.positives, sum.1 + tied.negatives);
                Some(*sum)
            })
            .collect();
        counts.last().is_some_and(|last| last.0 > 0.0 && last.1 > 0.0).then_some(counts)
    }

    pub(super) fn aucs(&self, weights: &[u32]) -> Vec<Option<f64>> {
        (0..self.classes).map(|class| auc(self.tied(class, weights))).collect()
    }

    pub(super) fn average_precisions(&self, weights: &[u32]) -> Vec<Option<f64>> {
        (0..self.classes).map(|class| average_precision(&self.tied(class, weights).collect::<Vec<_>>())).collect()
    }

    /// Items of `class` and others at every score of the class, ascending.
    fn tied<'a>(&'a self, class: usize, weights: &'a [u32]) -> impl Iterator<Item = Tied> + 'a {
        let score = move |item: u32| self.scores[item as usize * self.classes + class];
        self.ascending()[class].chunk_by(move |&a, &b| score(a) == score(b)).map(move |ties| {
            let mut tied = Tied::default();
            for &item in ties {
                let weight = f64::from(weights[item as usize]);
                match self.truth[item as usize] as usize == class {
                    true => tied.positives += weight,
                    false => tied.negatives += weight,
                }
            }
            tied
        })
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

/// Items of one score.
#[derive(Clone, Copy, Default)]
struct Tied {
    positives: f64,
    negatives: f64,
}

/// Share of the pairs of a positive and a negative that are in order, ties counted half.
fn auc(ascending: impl Iterator<Item = Tied>) -> Option<f64> {
    let (mut positives, mut negatives, mut area) = (0.0, 0.0, 0.0);
    for tied in ascending {
        area += tied.positives * (negatives + 0.5 * tied.negatives);
        positives += tied.positives;
        negatives += tied.negatives;
    }
    (positives > 0.0 && negatives > 0.0).then(|| area / (positives * negatives))
}

fn average_precision(ascending: &[Tied]) -> Option<f64> {
    let (mut positives, mut negatives, mut area) = (0.0, 0.0, 0.0);
    // What no item of the resample has is no threshold.
    for tied in ascending.iter().rev().filter(|tied| tied.positives + tied.negatives > 0.0) {
        positives += tied.positives;
        negatives += tied.negatives;
        area += tied.positives * positives / (positives + negatives);
    }
    (positives > 0.0 && negatives > 0.0).then(|| area / positives)
}
