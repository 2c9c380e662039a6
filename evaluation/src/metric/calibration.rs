//! Metrics of the scores as probabilities: does a confidence of 0.8 mean right in 8 of 10?

use super::Predictions;

/// Bins of the confidence (Guo et al., ICML 2017): (0, 1/15], (1/15, 2/15] and so on.
const BINS: usize = 15;
/// How far a row of float32 probabilities may sum up to other than 1.
const SUM_TOLERANCE: f64 = 1e-3;

impl Predictions {
    /// Whether every row of scores is a probability distribution.
    pub fn are_probabilities(&self) -> bool {
        self.scores.chunks_exact(self.classes).all(|row| {
            let sum: f64 = row.iter().map(|&p| f64::from(p)).sum();
            row.iter().all(|p| (0.0..=1.0).contains(p)) && (sum - 1.0).abs() <= SUM_TOLERANCE
        })
    }

    /// Σ over the bins of the share of items in the bin times |accuracy - mean confidence| there.
    pub(super) fn calibration_error(&self, weights: &[u32]) -> Option<f64> {
        let total = self.total_of_probabilities(weights)?;
        let mut gaps = [0.0; BINS];
        for (item, &weight) in weights.iter().enumerate() {
            let predicted = self.predicted[item];
            let confidence = f64::from(self.scores(item)[predicted as usize]);
            let bin = (1..BINS).take_while(|&edge| confidence > edge as f64 / BINS as f64).count();
            gaps[bin] += f64::from(weight) * (f64::from(u8::from(predicted == self.truth[item])) - confidence);
        }
        Some(gaps.iter().map(|gap| gap.abs()).sum::<f64>() / total)
    }

    /// Mean over the items of Σ over the classes of (p - y)², as scikit-learn's `brier_score_loss(scale_by_half=False)`.
    pub(super) fn brier(&self, weights: &[u32]) -> Option<f64> {
        let total = self.total_of_probabilities(weights)?;
        let squares = self.squares.get_or_init(|| {
            let of_item = |(item, &truth): (usize, &u32)| {
                let row = self.scores(item).iter().enumerate();
                let error = |(class, &p)| (f64::from(p) - f64::from(u8::from(class == truth as usize))).powi(2);
                row.map(error).sum()
            };
            self.truth.iter().enumerate().map(of_item).collect()
        });
        let weighted = squares.iter().zip(weights).map(|(square, &weight)| f64::from(weight) * square);
        Some(weighted.sum::<f64>() / total)
    }

    /// The sum of the weights; `None` without items, or where the scores are no probabilities.
    fn total_of_probabilities(&self, weights: &[u32]) -> Option<f64> {
        let total: u64 = weights.iter().map(|&weight| u64::from(weight)).sum();
        (total > 0 && *self.probabilities.get_or_init(|| self.are_probabilities())).then_some(total as f64)
    }
}
