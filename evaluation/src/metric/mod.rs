//! Figures of merit of a classification, each checked against scikit-learn.
//!
//! Every metric is computed from integer weights of the items, so that a bootstrap resample is a vector of counts and
//! costs no copying and no new sorting. What counts decisions is in `confusion`, what depends on the order of the scores
//! in `ranking`, what takes them as probabilities in `calibration`.

mod calibration;
mod confusion;
mod ranking;
#[cfg(test)]
mod tests;

use std::sync::OnceLock;

pub use confusion::Confusion;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// Classes among which the truth has to be for [`Metric::Top5Accuracy`].
const TOP: usize = 5;

/// A figure of merit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Metric {
    /// Share of items that are right: top-1.
    Accuracy,
    /// Share of items whose true class has one of the five largest scores; of equals the first.
    Top5Accuracy,
    /// Mean over the classes of the share that is right; classes without an item are left out.
    BalancedAccuracy,
    /// Mean of the classes' F1; a class without true and predicted items is left out, 0/0 counts as 0.
    MacroF1,
    /// Mean of the classes' F1 weighted by their numbers of items.
    WeightedF1,
    /// Mean over the classes of the area under the one-versus-rest ROC curve, ties counted half; a class without an
    /// item, or with nothing else, is left out.
    MacroAuc,
    /// Mean over the classes of the average precision of the one-versus-rest ranking, the area under the precision-recall
    /// curve by steps; a class without an item, or with nothing else, is left out.
    MacroAuprc,
    /// Cohen's kappa with quadratic weights over all classes in their order.
    QuadraticKappa,
    /// Expected calibration error: the mean distance of confidence and accuracy over 15 bins of the largest probability.
    /// Lower is better.
    Ece,
    /// Brier score over all classes, 0 to 2: the mean of Σ (p - y)². Lower is better.
    Brier,
}

impl Metric {
    /// All but the top 5, in the order of the tables.
    pub const ALL: [Self; 9] = [
        Self::Accuracy,
        Self::BalancedAccuracy,
        Self::MacroF1,
        Self::WeightedF1,
        Self::MacroAuc,
        Self::MacroAuprc,
        Self::QuadraticKappa,
        Self::Ece,
        Self::Brier,
    ];

    /// Those that say something of `classes` classes: [`ALL`](Self::ALL), and the top 5 where there are more.
    pub fn of(classes: usize) -> Vec<Self> {
        let top_5 = (classes > TOP).then_some(Self::Top5Accuracy);
        Self::ALL[..1].iter().copied().chain(top_5).chain(Self::ALL[1..].iter().copied()).collect()
    }

    /// Whether it takes a ranking of all items for every class.
    pub(crate) fn ranks_classes(self) -> bool {
        matches!(self, Self::MacroAuc | Self::MacroAuprc)
    }

    /// Whether it is a mean over the classes that are there.
    pub(crate) fn averages_classes(self) -> bool {
        matches!(self, Self::BalancedAccuracy | Self::MacroF1 | Self::MacroAuc | Self::MacroAuprc)
    }

    /// Its name in the tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Accuracy => "accuracy",
            Self::Top5Accuracy => "top5_accuracy",
            Self::BalancedAccuracy => "balanced_accuracy",
            Self::MacroF1 => "macro_f1",
            Self::WeightedF1 => "weighted_f1",
            Self::MacroAuc => "macro_auc",
            Self::MacroAuprc => "macro_auprc",
            Self::QuadraticKappa => "quadratic_kappa",
            Self::Ece => "ece",
            Self::Brier => "brier",
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
    /// Whether the scores are probabilities, once asked.
    probabilities: OnceLock<bool>,
    /// Whether each item's true class is among the top 5, once asked.
    in_top: OnceLock<Vec<f64>>,
    /// Each item's squared distance from certainty of its true class, once asked.
    squares: OnceLock<Vec<f64>>,
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
        let (ascending, probabilities, in_top, squares) = Default::default();
        Ok(Self { classes, truth, scores, predicted, ascending, probabilities, in_top, squares })
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

    /// The items of both, first these, then those of `other`, which has the same classes.
    pub(crate) fn followed_by(&self, other: &Self) -> Result<Self> {
        Self::new([&self.truth[..], &other.truth].concat(), [&self.scores[..], &other.scores].concat(), self.classes)
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

    /// The value of `metric`; `None` where it is not defined (no items; an AUC with one class; a kappa without expected
    /// disagreement; a calibration of scores that are no probabilities).
    pub fn value(&self, metric: Metric) -> Option<f64> {
        self.weighted(metric, &vec![1; self.len()])
    }

    /// Whether every true class of the items is among those with a weight.
    pub(crate) fn has_all_classes(&self, weights: &[u32]) -> bool {
        let (mut there, mut left) = (vec![false; self.classes], vec![false; self.classes]);
        for (&truth, &weight) in self.truth.iter().zip(weights) {
            there[truth as usize] = true;
            left[truth as usize] |= weight > 0;
        }
        there == left
    }

    /// The value of `metric` with each item counted `weights[item]` times.
    pub fn weighted(&self, metric: Metric, weights: &[u32]) -> Option<f64> {
        match metric {
            Metric::Top5Accuracy => self.top_accuracy(weights),
            Metric::MacroAuc => mean(self.aucs(weights).into_iter().flatten()),
            Metric::MacroAuprc => mean(self.average_precisions(weights).into_iter().flatten()),
            Metric::Ece => self.calibration_error(weights),
            Metric::Brier => self.brier(weights),
            _ => self.weighted_confusion(weights).value(metric),
        }
    }

    /// Share of the weight of items whose true class is among the [`TOP`]. Where classes with equal scores compete for the
    /// last places, as those without a vote do in k-NN, the true class counts by its chance to be among them.
    fn top_accuracy(&self, weights: &[u32]) -> Option<f64> {
        let in_top = self.in_top.get_or_init(|| {
            let among = |(item, &truth): (usize, &u32)| {
                let (scores, own) = (self.scores(item), self.scores(item)[truth as usize]);
                let above = scores.iter().filter(|score| **score > own).count();
                let equal = scores.iter().filter(|score| **score == own).count();
                (TOP.saturating_sub(above) as f64 / equal as f64).min(1.0)
            };
            self.truth.iter().enumerate().map(among).collect()
        });
        let total: u64 = weights.iter().map(|&weight| u64::from(weight)).sum();
        let hits = in_top.iter().zip(weights).map(|(chance, &weight)| chance * f64::from(weight));
        (total > 0).then(|| hits.sum::<f64>() / total as f64)
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
