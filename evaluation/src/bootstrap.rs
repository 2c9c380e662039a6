//! Percentile bootstrap: how much a figure would move with another sample of patients.

use std::collections::HashMap;

use rand::RngExt;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::metric::{Metric, Predictions};
use crate::seed::{Purpose, stream};

/// Places of items in the rankings of classes that an interval may cost: some minutes of two cores.
const MOST_RANKED: u64 = 20_000_000_000;

/// How intervals are made.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Bootstrap {
    /// Number of resamples; 0 gives no intervals.
    pub resamples: usize,
    /// Coverage, such as 0.95.
    pub level: f64,
    /// Seed of the resamples.
    pub seed: u64,
}

impl Default for Bootstrap {
    fn default() -> Self {
        // 1000 resamples move the ends of a 95 % interval by about a tenth of its width between seeds.
        Self { resamples: 1000, level: 0.95, seed: 0 }
    }
}

/// A figure with its interval.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Interval {
    /// The figure on the items as they are; `None` where it is not defined.
    pub value: Option<f64>,
    /// Lower end; `None` where no resample defines the figure.
    pub low: Option<f64>,
    /// Upper end.
    pub high: Option<f64>,
    /// Resamples on which the figure is not defined (for example an AUC when only one class was drawn): they are
    /// left out of the interval.
    pub skipped: usize,
}

impl Bootstrap {
    /// The value and interval of each of `metrics`. Where `groups` (patients) are given, whole groups are drawn with
    /// replacement, as many as there are; otherwise single items. The resamples are the same for every metric and
    /// depend on nothing but the seed. A single group or item tells nothing of others, and has no interval.
    ///
    /// The expected calibration error is a sum of absolute gaps, which the noise of a resample only widens: its resamples lie
    /// higher than the figure itself, often all of them. Its interval is moved by the difference of their mean to the figure
    /// (the bootstrap's estimate of that bias; Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 10).
    ///
    /// A mean over classes has no value on a resample that lacks a class of the items: it would be a mean over others. Where that
    /// is so of three in four resamples, which several classes of a single item bring about, it has no interval.
    ///
    /// Metrics that rank all items once for every class have no interval where that would take hours: with the 1,000 classes
    /// and 50,000 items of ImageNet.
    pub fn intervals(
        &self,
        predictions: &Predictions,
        groups: Option<&[String]>,
        metrics: &[Metric],
    ) -> Result<Vec<Interval>> {
        let (unit_of, units) = self.units(predictions.len(), groups)?;
        let resamples = if units > 1 { self.resamples } else { 0 };
        let ranked = (predictions.len() * predictions.classes()) as u64 * resamples as u64;
        let too_much = |metric: Metric| metric.ranks_classes() && ranked > MOST_RANKED;
        let drawn: Vec<Vec<Option<f64>>> = (0..resamples)
            .into_par_iter()
            .map(|resample| {
                let mut rng = stream(self.seed, Purpose::Bootstrap, resample as u64, 0);
                let mut times = vec![0u32; units];
                (0..units).for_each(|_| times[rng.random_range(0..units)] += 1);
                let weights: Vec<u32> = unit_of.iter().map(|&unit| times[unit]).collect();
                let whole = predictions.has_all_classes(&weights);
                let defined = |metric: Metric| !too_much(metric) && (whole || !metric.averages_classes());
                let value = |&metric| defined(metric).then(|| predictions.weighted(metric, &weights)).flatten();
                metrics.iter().map(value).collect()
            })
            .collect();
        let interval = |(at, &metric): (usize, &Metric)| {
            let mut values: Vec<f64> = drawn.iter().filter_map(|resample| resample[at]).collect();
            let (value, skipped) = (predictions.value(metric), resamples - values.len());
            if metric.averages_classes() && 4 * skipped > 3 * resamples {
                values.clear();
            }
            let bias = match (metric, value) {
                (Metric::Ece, Some(value)) => values.iter().sum::<f64>() / values.len().max(1) as f64 - value,
                _ => 0.0,
            };
            let interval = self.interval(value, values);
            let moved = |end: Option<f64>| end.map(|end| if bias == 0.0 { end } else { (end - bias).clamp(0.0, 1.0) });
            Interval { low: moved(interval.low), high: moved(interval.high), skipped, ..interval }
        };
        Ok(metrics.iter().enumerate().map(interval).collect())
    }

    /// The mean of `values` and its interval. Where `groups` are given (the sequence of an object), whole groups are drawn;
    /// a single group tells nothing of others, and has no interval.
    ///
    /// # Errors
    /// Another number of groups than of values, and a level outside 0 to 1.
    pub fn mean(&self, values: &[f64], groups: Option<&[String]>) -> Result<Interval> {
        let (unit_of, units) = self.units(values.len(), groups)?;
        // Of each unit, the sum and the number of its values.
        let mut parts = vec![(0.0, 0.0); units];
        for (&unit, value) in unit_of.iter().zip(values) {
            parts[unit] = (parts[unit].0 + value, parts[unit].1 + 1.0);
        }
        let resamples = if units > 1 { self.resamples } else { 0 };
        let drawn: Vec<f64> = (0..resamples)
            .into_par_iter()
            .map(|resample| {
                let mut rng = stream(self.seed, Purpose::Bootstrap, resample as u64, 0);
                let (sum, n) = (0..units).fold((0.0, 0.0), |(sum, n), _| {
                    let (more, values) = parts[rng.random_range(0..units)];
                    (sum + more, n + values)
                });
                sum / n
            })
            .collect();
        let value = (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64);
        Ok(self.interval(value, drawn))
    }

    /// What is drawn as one: the number of each of `n` items' unit, and how many units there are.
    fn units(&self, n: usize, groups: Option<&[String]>) -> Result<(Vec<usize>, usize)> {
        if !(self.level > 0.0 && self.level < 1.0) {
            return Err(Error::usage(format!("the level of an interval lies between 0 and 1, not {}", self.level)));
        }
        if let Some(groups) = groups.filter(|groups| groups.len() != n) {
            return Err(Error::usage(format!("{} groups for {n} items", groups.len())));
        }
        Ok(match groups {
            Some(groups) => number_groups(groups),
            None => ((0..n).collect(), n),
        })
    }

    /// A value with the interval of what was drawn.
    fn interval(&self, value: Option<f64>, mut drawn: Vec<f64>) -> Interval {
        drawn.sort_by(f64::total_cmp);
        let tail = (1.0 - self.level) / 2.0;
        Interval { value, low: quantile(&drawn, tail), high: quantile(&drawn, 1.0 - tail), skipped: 0 }
    }
}

/// The number of each item's group, in order of appearance, and how many there are.
pub(crate) fn number_groups(groups: &[String]) -> (Vec<usize>, usize) {
    let mut numbers = HashMap::new();
    let unit_of = groups
        .iter()
        .map(|group| {
            let next = numbers.len();
            *numbers.entry(group).or_insert(next)
        })
        .collect();
    (unit_of, numbers.len())
}

/// The `q` quantile of ascending values with linear interpolation, numpy's default.
fn quantile(ascending: &[f64], q: f64) -> Option<f64> {
    let last = ascending.len().checked_sub(1)?;
    let at = q * last as f64;
    let below = at.floor() as usize;
    let above = ascending[(below + 1).min(last)];
    Some(ascending[below] + (at - below as f64) * (above - ascending[below]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn right_and_wrong(right: usize, wrong: usize) -> Predictions {
        let predicted: Vec<u32> = (0..right + wrong).map(|i| u32::from(i >= right)).collect();
        Predictions::from_labels(vec![0; right + wrong], &predicted, 2).unwrap()
    }

    #[test]
    fn quantiles_as_numpy() {
        let values = [1.0, 2.0, 4.0, 8.0];
        assert_eq!(quantile(&values, 0.0), Some(1.0));
        assert_eq!(quantile(&values, 0.5), Some(3.0));
        assert!((quantile(&values, 0.9).unwrap() - 6.8).abs() < 1e-12);
        assert_eq!(quantile(&values, 1.0), Some(8.0));
        assert_eq!(quantile(&[], 0.5), None);
    }

    /// The accuracy of n independent items has standard error √(p(1-p)/n), so the 95 % interval is ± 1.96 of it.
    #[test]
    fn the_interval_of_an_accuracy_is_the_binomial_one() {
        let bootstrap = Bootstrap { resamples: 4000, level: 0.95, seed: 1 };
        let interval = bootstrap.intervals(&right_and_wrong(320, 80), None, &[Metric::Accuracy]).unwrap()[0];
        let half = 1.96 * (0.8f64 * 0.2 / 400.0).sqrt();
        assert_eq!(interval.value, Some(0.8));
        assert!((interval.low.unwrap() - (0.8 - half)).abs() < 0.1 * half, "{interval:?}");
        assert!((interval.high.unwrap() - (0.8 + half)).abs() < 0.1 * half, "{interval:?}");
    }

    /// The survival of seven mice (Efron and Tibshirani, An Introduction to the Bootstrap, 1993, table 2.1): all 7^7 resamples
    /// give the published standard error of the mean (table 2.2, B = ∞: 23.36), and drawn ones their quantiles.
    #[test]
    fn the_mouse_data() {
        let days = [94.0, 197.0, 16.0, 38.0, 99.0, 141.0, 23.0];
        let count = 7_usize.pow(7);
        let mean = |mut number: usize| {
            let one = |_| (days[number % 7], number /= 7).0;
            (0..7).map(one).sum::<f64>() / 7.0
        };
        let mut means: Vec<f64> = (0..count).map(mean).collect();
        let centre = means.iter().sum::<f64>() / count as f64;
        let error = (means.iter().map(|mean| (mean - centre).powi(2)).sum::<f64>() / count as f64).sqrt();
        assert!((error - 23.36).abs() < 0.005, "{error}");
        means.sort_by(f64::total_cmp);
        let bootstrap = Bootstrap { resamples: 20_000, level: 0.95, seed: 3 };
        let found = bootstrap.mean(&days, None).unwrap();
        assert!((found.value.unwrap() - 86.857).abs() < 0.001);
        for (drawn, share) in [(found.low.unwrap(), 0.025), (found.high.unwrap(), 0.975)] {
            let exact = quantile(&means, share).unwrap();
            // Of 20,000 draws a quantile is known to about a fiftieth of the standard error, 0.5.
            assert!((drawn - exact).abs() < 1.5, "{drawn} for {exact}");
        }
    }

    /// Scores that are right as often as they say: no resample has as small an error as all items, which the interval of the
    /// resamples themselves would leave out.
    #[test]
    fn the_interval_of_a_calibration_error_holds_it() {
        let items = || (0..200).map(|i| (0.55 + 0.1 * f64::from(i % 4), i / 4));
        let scores = items().flat_map(|(p, _)| [1.0 - p as f32, p as f32]).collect();
        let labels = items().map(|(p, turn)| u32::from((f64::from(turn) * p).fract() < p)).collect();
        let predictions = Predictions::new(labels, scores, 2).unwrap();
        let found = Bootstrap::default().intervals(&predictions, None, &[Metric::Ece]).unwrap()[0];
        let (value, low, high) = (found.value.unwrap(), found.low.unwrap(), found.high.unwrap());
        assert!(low <= value && value <= high && high - low > 0.02, "{found:?}");
    }

    /// Items of one patient stand or fall together: with 100 groups of 4 the interval is as that of 100 items, twice as
    /// wide as that of 400.
    #[test]
    fn groups_are_drawn_whole() {
        let predictions = right_and_wrong(320, 80);
        let groups: Vec<String> = (0..400).map(|i| format!("patient {}", i / 4)).collect();
        let bootstrap = Bootstrap { resamples: 4000, ..Bootstrap::default() };
        let interval = bootstrap.intervals(&predictions, Some(&groups), &[Metric::Accuracy]).unwrap()[0];
        let alone = bootstrap.intervals(&predictions, None, &[Metric::Accuracy]).unwrap()[0];
        let width = |i: Interval| i.high.unwrap() - i.low.unwrap();
        let ratio = width(interval) / width(alone);
        assert!((ratio - 2.0).abs() < 0.2, "{ratio}");
    }

    #[test]
    fn undefined_resamples_are_skipped_and_counted() {
        let predictions = Predictions::from_labels(vec![0, 1], &[0, 1], 2).unwrap();
        let bootstrap = Bootstrap { resamples: 1000, ..Bootstrap::default() };
        let intervals = bootstrap.intervals(&predictions, None, &[Metric::MacroAuc, Metric::Accuracy]).unwrap();
        // Two draws of two items are equal half of the time.
        assert!((400..600).contains(&intervals[0].skipped), "{intervals:?}");
        assert_eq!((intervals[0].low, intervals[0].high), (Some(1.0), Some(1.0)));
        assert_eq!(intervals[1].skipped, 0);
        let hopeless = right_and_wrong(3, 0);
        let none = bootstrap.intervals(&hopeless, None, &[Metric::MacroAuc]).unwrap()[0];
        assert_eq!(none, Interval { value: None, low: None, high: None, skipped: 1000 });
        let empty = Predictions::new(vec![], vec![], 2).unwrap();
        assert_eq!(bootstrap.intervals(&empty, None, &[Metric::Accuracy]).unwrap()[0].value, None);
    }

    /// 500 classes and 45,000 items take minutes to rank 1,000 times; the share that is right takes a moment.
    #[test]
    fn what_would_take_hours_has_no_interval() {
        let truth: Vec<u32> = (0..45_000).map(|i| i % 500).collect();
        let predicted: Vec<u32> =
            truth.iter().map(|&class| if class % 3 == 0 { (class + 1) % 500 } else { class }).collect();
        let predictions = Predictions::from_labels(truth, &predicted, 500).unwrap();
        let metrics = [Metric::Accuracy, Metric::MacroAuc];
        let [accuracy, auc] = Bootstrap::default().intervals(&predictions, None, &metrics).unwrap()[..] else {
            panic!()
        };
        assert!(accuracy.low.unwrap() < 0.666 && accuracy.high.unwrap() > 0.666, "{accuracy:?}");
        assert!(auc.value.is_some_and(|value| value > 0.8), "{auc:?}");
        assert_eq!((auc.low, auc.high, auc.skipped), (None, None, 1000));
    }

    #[test]
    fn means_have_the_interval_of_their_spread() {
        let values: Vec<f64> = (0..100).map(|i| f64::from(i % 10)).collect();
        let bootstrap = Bootstrap { resamples: 4000, ..Bootstrap::default() };
        let found = bootstrap.mean(&values, None).unwrap();
        // The mean of 100 draws of deviation 2.87 has one of 0.287: ±0.563, known to a few hundredths from 4000 resamples.
        assert_eq!(found.value, Some(4.5));
        assert!((found.low.unwrap() - 3.937).abs() < 0.05 && (found.high.unwrap() - 5.063).abs() < 0.05, "{found:?}");
        // Groups of equal values: as if each were one value.
        let groups: Vec<String> = (0..100).map(|i| (i % 10).to_string()).collect();
        let grouped = bootstrap.mean(&values, Some(&groups)).unwrap();
        let ten: Vec<f64> = (0..10).map(f64::from).collect();
        assert_eq!(grouped, bootstrap.mean(&ten, None).unwrap());
        assert_eq!(bootstrap.mean(&[1.0], None).unwrap().low, None);
        assert_eq!(bootstrap.mean(&[], None).unwrap().value, None);
        assert!(bootstrap.mean(&values, Some(&groups[1..])).is_err());
    }

    #[test]
    fn the_seed_decides() {
        let predictions = right_and_wrong(30, 13);
        let run = |seed| Bootstrap { seed, resamples: 50, level: 0.9 }.intervals(&predictions, None, &Metric::ALL);
        assert_eq!(run(1).unwrap(), run(1).unwrap());
        assert_ne!(run(1).unwrap(), run(2).unwrap());
        assert!(Bootstrap { level: 1.0, ..Bootstrap::default() }.intervals(&predictions, None, &[]).is_err());
        assert!(Bootstrap::default().intervals(&predictions, Some(&["a".to_owned()]), &[]).is_err());
    }
}
