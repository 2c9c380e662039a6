//! Several figures of one thing, as of folds, seeds or runs: their mean and how far they lie apart. All tables quote these.

/// A figure with three digits behind the point; what rounds to nothing has no sign.
pub fn three_digits(value: f64) -> String {
    format!("{:.3}", (value * 1000.0).round() / 1000.0 + 0.0)
}

/// Mean and standard deviation of some figures.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spread {
    /// x̄ = Σ x / n.
    pub mean: f64,
    /// √(Σ (x - x̄)² / (n - 1)); none of a single figure.
    pub deviation: Option<f64>,
}

impl Spread {
    /// Of these figures; none of no figure.
    pub fn of(values: &[f64]) -> Option<Self> {
        let n = values.len() as f64;
        let mean = (!values.is_empty()).then(|| values.iter().sum::<f64>() / n)?;
        let squares = || values.iter().map(|value| (value - mean).powi(2)).sum::<f64>();
        Some(Self { mean, deviation: (values.len() > 1).then(|| (squares() / (n - 1.0)).sqrt()) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn worked_spreads() {
        assert_eq!(Spread::of(&[]), None);
        assert_eq!(Spread::of(&[0.75]), Some(Spread { mean: 0.75, deviation: None }));
        // Distances of -2, 0 and 2 from the mean: √(8 / 2).
        assert_eq!(Spread::of(&[1.0, 3.0, 5.0]), Some(Spread { mean: 3.0, deviation: Some(2.0) }));
    }
}
