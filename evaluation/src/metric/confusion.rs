//! Metrics of decisions: they need only how often which class was taken for which.

use super::{Metric, mean};

/// Items by true class (rows) and predicted class (columns).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Confusion {
    pub(super) classes: usize,
    /// Row-major.
    pub(super) counts: Vec<u64>,
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

    /// `metric`, where it counts decisions; `None` for any other.
    pub(super) fn value(&self, metric: Metric) -> Option<f64> {
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
            Metric::Top5Accuracy | Metric::MacroAuc | Metric::MacroAuprc | Metric::Ece | Metric::Brier => None,
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
