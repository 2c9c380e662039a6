//! Few-shot probes: logistic regression on a few training rows of every class, drawn several times.
//!
//! With so few rows none can be held out to choose a penalty by, so it is fixed: `l2 = 1 / rows`, scikit-learn's default
//! `C = 1`. Features are standardised over all training rows, of which no label but those drawn is used.

use burn::tensor::Device;
use rand::seq::SliceRandom;

use super::logistic::{Effort, Logistic};
use super::{Labelled, LinearHead};
use crate::error::{Error, Result};
use crate::seed::{Purpose, stream};
use crate::standard::Standard;

/// Training rows to draw from.
#[derive(Clone, Debug)]
pub struct FewShot<'a> {
    rows: Labelled<'a>,
    /// Of all rows.
    standard: Standard,
    /// Indices of the rows of every class.
    of_class: Vec<Vec<usize>>,
}

impl<'a> FewShot<'a> {
    /// Finds what all draws share.
    pub fn new(rows: &Labelled<'a>) -> Self {
        let mut of_class = vec![Vec::new(); rows.classes()];
        rows.labels().iter().enumerate().for_each(|(row, &label)| of_class[label as usize].push(row));
        Self { rows: *rows, standard: rows.standard(&rows.all()), of_class }
    }

    /// Fits a head on `shots` rows of every class; `draw` and `seed` decide which. The draws of fewer shots are part of
    /// those of more.
    ///
    /// # Errors
    /// A class with fewer rows, by its number; failures of the device.
    pub fn fit(&self, shots: usize, draw: u64, seed: u64, device: &Device) -> Result<LinearHead> {
        let drawn = self.drawn(shots, draw, seed)?;
        let problem = Logistic::scaled(&self.rows, &drawn, Some(self.standard.clone()), Effort::default(), device)?;
        Ok(problem.fit(1.0 / drawn.len() as f64)?.head)
    }

    /// Indices of the rows drawn, class by class.
    fn drawn(&self, shots: usize, draw: u64, seed: u64) -> Result<Vec<usize>> {
        if shots == 0 {
            return Err(Error::usage("a few-shot probe needs at least one row of every class"));
        }
        let mut all = Vec::with_capacity(shots * self.of_class.len());
        for (class, rows) in self.of_class.iter().enumerate() {
            if rows.len() < shots {
                return Err(Error::usage(format!(
                    "class number {class} has {} training images of {shots}",
                    rows.len()
                )));
            }
            let mut rows = rows.clone();
            rows.shuffle(&mut stream(seed, Purpose::Shots, draw, class as u64));
            all.extend(&rows[..shots]);
        }
        Ok(all)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draws_are_balanced_nested_seeded_and_need_enough_rows() {
        let labels: Vec<u32> = (0..60).map(|row| row % 3).collect();
        let values = vec![0.0; 60];
        let few_shot = FewShot::new(&Labelled::new(&values, 1, &labels, 3).unwrap());
        let five = few_shot.drawn(5, 0, 7).unwrap();
        assert_eq!(five.iter().map(|&row| labels[row]).collect::<Vec<_>>(), [[0; 5], [1; 5], [2; 5]].concat());
        let mut distinct = five.clone();
        distinct.sort_unstable();
        distinct.dedup();
        assert_eq!(distinct.len(), 15);
        assert_eq!(five, few_shot.drawn(5, 0, 7).unwrap());
        assert_ne!(five, few_shot.drawn(5, 1, 7).unwrap());
        let two = few_shot.drawn(2, 0, 7).unwrap();
        assert!(two.iter().all(|row| five.contains(row)));
        let error = few_shot.drawn(21, 0, 7).unwrap_err().to_string();
        assert!(error.contains("class number 0 has 20 training images of 21"), "{error}");
        assert!(few_shot.drawn(0, 0, 7).is_err());
    }
}
