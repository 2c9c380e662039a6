//! Logistic regression with the penalty chosen on a part of the training rows that is held out, then fitted on all.

use burn::tensor::Device;
use rand::seq::SliceRandom;
use serde::{Deserialize, Serialize};

use super::logistic::{Effort, Fitted, Logistic};
use super::{Labelled, LinearHead};
use crate::error::{Error, Result};
use crate::metric::{Metric, Predictions};
use crate::seed::{Purpose, stream};

/// What is chosen from, and how.
#[derive(Clone, Debug, PartialEq)]
pub struct Sweep {
    /// Penalties; a single one needs no choice.
    pub l2: Vec<f64>,
    /// Share of every class's training rows held out for the choice, 0 to 1.
    pub validation: f64,
    /// Seed of who is held out.
    pub seed: u64,
    /// When a fit ends.
    pub effort: Effort,
}

/// What one penalty gives on the rows held out.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Candidate {
    /// The penalty.
    pub l2: f64,
    /// Share of the held-out rows that are right.
    pub accuracy: f64,
    /// Their mean cross-entropy.
    pub loss: f64,
}

/// The head of the chosen penalty.
#[derive(Clone, Debug)]
pub struct Chosen {
    /// Fitted on all training rows.
    pub fitted: Fitted,
    /// Its penalty.
    pub l2: f64,
    /// Everything tried, strongest penalty first; empty where there was nothing to choose.
    pub candidates: Vec<Candidate>,
    /// Rows held out for the choice.
    pub held_out: usize,
}

impl Sweep {
    /// Fits `rows` with the penalty that classifies most of the held-out rows rightly; of equals the one of the lowest
    /// loss there, then the strongest.
    ///
    /// # Errors
    /// No penalty, a share outside 0 to 1, or no class with two rows to hold one of them out.
    pub fn fit(&self, rows: &Labelled, device: &Device) -> Result<Chosen> {
        if let [l2] = self.l2[..] {
            let fitted = Logistic::standardised(rows, self.effort, device)?.fit(l2)?;
            return Ok(Chosen { fitted, l2, candidates: vec![], held_out: 0 });
        }
        let (fitting, held_out) = self.parts(rows)?;
        // The copies of both parts are gone before all rows are copied for the last fit.
        let candidates = self.candidates(rows, &fitting, &held_out, device)?;
        let l2 = best(&candidates).ok_or_else(|| Error::usage("a linear probe needs an L2 penalty"))?.l2;
        let fitted = Logistic::standardised(rows, self.effort, device)?.fit(l2)?;
        Ok(Chosen { fitted, l2, candidates, held_out: held_out.len() })
    }

    /// What every penalty, fitted on one part, gives on the other; strongest first.
    fn candidates(
        &self,
        rows: &Labelled,
        fitting: &[usize],
        held_out: &[usize],
        device: &Device,
    ) -> Result<Vec<Candidate>> {
        let (values, labels) = rows.chosen(held_out);
        let held = Labelled { values: &values, labels: &labels, ..*rows };
        let mut penalties = self.l2.clone();
        penalties.sort_by(|a, b| b.total_cmp(a));
        let problem = Logistic::of_part(rows, fitting, self.effort, device)?;
        let (mut start, mut candidates) = (None, Vec::new());
        for &l2 in &penalties {
            // A weaker penalty's optimum is reached sooner from that of the next stronger one.
            let (at, fitted) = problem.fit_from(start, l2)?;
            start = Some(at);
            candidates.push(judged(&fitted.head, &held, l2, device)?);
        }
        Ok(candidates)
    }

    /// Indices of the rows to fit and of those held out, each ascending: of every class about the share, at least one
    /// where it has two rows, and never all.
    fn parts(&self, rows: &Labelled) -> Result<(Vec<usize>, Vec<usize>)> {
        if !(self.validation > 0.0 && self.validation < 1.0) {
            let share = self.validation;
            return Err(Error::usage(format!("the share held out for the choice lies between 0 and 1, not {share}")));
        }
        let mut held_out = vec![false; rows.len()];
        for class in 0..rows.classes() as u32 {
            let mut of_class: Vec<usize> = (0..rows.len()).filter(|&row| rows.labels[row] == class).collect();
            of_class.shuffle(&mut stream(self.seed, Purpose::Split, u64::from(class), 1));
            let most = of_class.len().saturating_sub(1);
            let count = ((of_class.len() as f64 * self.validation).round() as usize).max(1).min(most);
            of_class[..count].iter().for_each(|&row| held_out[row] = true);
        }
        let (held, fitting): (Vec<usize>, Vec<usize>) = (0..rows.len()).partition(|&row| held_out[row]);
        if held.is_empty() {
            return Err(Error::usage(
                "no class has two training images, one of which could be held out to choose the L2 penalty by: give one \
                 penalty",
            ));
        }
        Ok((fitting, held))
    }
}

/// Of candidates, strongest penalty first, the one that is right most often; of equals the one of the lowest loss, then the
/// strongest.
fn best(candidates: &[Candidate]) -> Option<&Candidate> {
    let better = |a: &Candidate, b: &Candidate| a.accuracy.total_cmp(&b.accuracy).then(b.loss.total_cmp(&a.loss));
    // `max_by` takes the last of equals, which is the strongest once the order is turned.
    candidates.iter().rev().max_by(|a, b| better(a, b))
}

fn judged(head: &LinearHead, rows: &Labelled, l2: f64, device: &Device) -> Result<Candidate> {
    let predictions = head.predictions(rows, device)?;
    let accuracy = predictions.value(Metric::Accuracy).unwrap_or(0.0);
    Ok(Candidate { l2, accuracy, loss: cross_entropy(&predictions) })
}

/// Mean of -ln of the probability of the truth.
fn cross_entropy(predictions: &Predictions) -> f64 {
    let of = |(row, &truth): (usize, &u32)| {
        // Below the smallest 32-bit number a probability is 0.
        -f64::from(predictions.scores(row)[truth as usize].max(f32::MIN_POSITIVE)).ln()
    };
    predictions.truth().iter().enumerate().map(of).sum::<f64>() / predictions.len() as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sweep() -> Sweep {
        Sweep { l2: vec![1.0, 0.1], validation: 0.2, seed: 3, effort: Effort::default() }
    }

    #[test]
    fn every_class_is_in_both_parts_where_it_can_be() {
        let labels: Vec<u32> = [vec![0; 10], vec![1; 2], vec![2; 1]].concat();
        let values = vec![0.0; labels.len()];
        let rows = Labelled::new(&values, 1, &labels, 4).unwrap();
        let (fitting, held) = sweep().parts(&rows).unwrap();
        let count = |part: &[usize], class| part.iter().filter(|&&row| labels[row] == class).count();
        assert_eq!([0, 1, 2].map(|class| (count(&fitting, class), count(&held, class))), [(8, 2), (1, 1), (1, 0)]);
        assert_eq!(sweep().parts(&rows).unwrap().1, held);
        assert_ne!(Sweep { seed: 4, ..sweep() }.parts(&rows).unwrap().1, held);
    }

    #[test]
    fn equal_accuracies_go_by_loss_and_equal_losses_by_strength() {
        let chosen = |figures: [(f64, f64); 3]| {
            let candidates = [1.0, 0.1, 0.01].into_iter().zip(figures);
            let candidates: Vec<Candidate> =
                candidates.map(|(l2, (accuracy, loss))| Candidate { l2, accuracy, loss }).collect();
            best(&candidates).unwrap().l2
        };
        assert_eq!(chosen([(0.8, 0.5), (0.9, 0.7), (0.8, 0.4)]), 0.1, "accuracy before loss");
        assert_eq!(chosen([(0.9, 0.5), (0.9, 0.4), (0.9, 0.6)]), 0.1, "the lowest loss of equal accuracies");
        assert_eq!(chosen([(0.8, 0.1), (0.9, 0.4), (0.9, 0.4)]), 0.1, "the stronger of two equal ones");
        assert_eq!(chosen([(0.9, 0.4); 3]), 1.0, "the strongest of all");
        assert_eq!(best(&[]), None);
    }

    #[test]
    fn what_cannot_be_chosen_by_is_refused() {
        let rows = |labels: &'static [u32]| Labelled::new(&[0.0; 3][..labels.len()], 1, labels, 3).unwrap();
        let error = sweep().parts(&rows(&[0, 1, 2])).unwrap_err().to_string();
        assert!(error.contains("give one penalty"), "{error}");
        assert!(Sweep { validation: 0.0, ..sweep() }.parts(&rows(&[0, 0])).is_err());
    }
}
