//! Folds, seeds and runs of one figure to mean, spread and interval.

use std::collections::BTreeMap;

use crate::spread::Spread;
use crate::table::ResultRow;

/// What a spread is over.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Over {
    /// One number: there is none.
    #[default]
    One,
    /// The folds of one run.
    Folds,
    /// Runs and seeds.
    Runs,
}

impl Over {
    /// Its name in tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::One => "one",
            Self::Folds => "folds",
            Self::Runs => "runs",
        }
    }
}

/// A figure over runs, seeds and folds.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Cell {
    /// The mean over runs and seeds, of each the mean over its folds; none where the figure is never defined.
    pub mean: Option<f64>,
    /// Standard deviation (n - 1) over what [`Self::over`] says.
    pub sd: Option<f64>,
    /// What the deviation is over.
    pub over: Over,
    /// How many of them.
    pub replicates: usize,
    /// 95 % interval: from the lowest to the highest end of the bootstrap intervals of all runs and seeds; where one has
    /// none, Student's of the mean over runs and seeds.
    pub interval: Option<(f64, f64)>,
    /// Whether that interval is of the test items, by bootstrap: what seeds alone tell apart, other test items may not.
    pub of_items: bool,
    /// Folds and runs in which the figure is not defined.
    pub undefined: usize,
    /// Test items of a run and seed: the fewest.
    pub items: u64,
}

impl Cell {
    /// From rows of one figure with the numbers of their runs.
    pub(super) fn of(rows: &[(usize, &ResultRow)]) -> Self {
        let mut replicates: BTreeMap<(usize, Option<u64>), Vec<&ResultRow>> = BTreeMap::new();
        rows.iter().for_each(|(run, row)| replicates.entry((*run, row.seed)).or_default().push(row));
        let replicates: Vec<Replicate> = replicates.values().map(|rows| Replicate::of(rows)).collect();
        let values: Vec<f64> =
            replicates.iter().filter_map(|replicate| Some(Spread::of(&replicate.values)?.mean)).collect();
        let (apart, over) = match (&replicates[..], values.len()) {
            ([only], _) if only.values.len() > 1 => (&only.values, Over::Folds),
            (_, 2..) => (&values, Over::Runs),
            _ => (&values, Over::One),
        };
        let intervals: Option<Vec<(f64, f64)>> = replicates.iter().map(|replicate| replicate.interval).collect();
        let spanned = intervals.and_then(|intervals| span(intervals.into_iter()));
        let of_mean = || (over == Over::Runs).then(|| student(&values)).flatten();
        Self {
            mean: Spread::of(&values).map(|spread| spread.mean),
            sd: Spread::of(apart).and_then(|spread| spread.deviation),
            over,
            replicates: apart.len(),
            of_items: spanned.is_some(),
            interval: spanned.or_else(of_mean),
            items: replicates.iter().map(|replicate| replicate.items).min().unwrap_or(0),
            undefined: replicates.iter().map(|replicate| replicate.undefined).sum(),
        }
    }
}

/// One run with one seed.
struct Replicate {
    /// Of its folds, or its one value.
    values: Vec<f64>,
    /// Bootstrap interval of its one value, or of the value pooled over its folds.
    interval: Option<(f64, f64)>,
    undefined: usize,
    items: u64,
}

impl Replicate {
    fn of(rows: &[&ResultRow]) -> Self {
        // A row without a fold is pooled over the folds where there are some: it would count twice.
        let (folds, whole): (Vec<&ResultRow>, Vec<&ResultRow>) = rows.iter().partition(|row| row.fold.is_some());
        let interval = span(whole.iter().filter_map(|row| row.low.zip(row.high)));
        let counted = if folds.is_empty() { whole } else { folds };
        let values: Vec<f64> = counted.iter().filter_map(|row| row.value).collect();
        let items = counted.iter().map(|row| row.n).sum();
        Self { undefined: counted.len() - values.len(), values, interval, items }
    }
}

fn span(intervals: impl Iterator<Item = (f64, f64)>) -> Option<(f64, f64)> {
    intervals.reduce(|a, b| (a.0.min(b.0), a.1.max(b.1)))
}

/// Student's t at 97.5 % with 1 to 30 degrees of freedom; the normal's beyond.
const T: [f64; 30] = [
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131, 2.120,
    2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
];

/// 95 % interval of the mean.
fn student(values: &[f64]) -> Option<(f64, f64)> {
    let Spread { mean, deviation } = Spread::of(values)?;
    // None of a single value, which has no degree of freedom left.
    let deviation = deviation?;
    let t = T.get(values.len() - 2).copied().unwrap_or(1.960);
    let half = t * deviation / (values.len() as f64).sqrt();
    Some((mean - half, mean + half))
}
