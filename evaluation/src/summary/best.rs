//! Which figure is better than all others beyond chance.

use super::{Figure, RunResults};
use crate::comparison::Comparison;
use crate::table::lower_is_better;

/// A difference counts below this p.
const LEVEL: f64 = 0.05;

/// What stands in a head's name if something was chosen on the test part: such a figure is no evidence.
const CHOSEN_ON_TEST: &str = "on test";

/// Marks the figures that are better than those of every other encoder of their task, data set, head and metric.
pub(super) fn mark(figures: &mut [Figure], runs: &[RunResults]) {
    let best = |figure: &Figure| {
        let rivals = figures.iter().filter(|other| {
            other.encoder != figure.encoder
                && (&other.task, &other.data, &other.head, &other.metric)
                    == (&figure.task, &figure.data, &figure.head, &figure.metric)
                && other.cell.mean.is_some()
        });
        let rivals: Vec<&Figure> = rivals.collect();
        // Distances of generated images stand under the encoder that measures them: those of two are no rivals.
        figure.task != "fid"
            // How near shifted images stay to the clean ones is a property of each encoder's own space.
            && figure.metric != "cosine"
            && !figure.head.contains(CHOSEN_ON_TEST)
            && !rivals.is_empty()
            && rivals.iter().all(|rival| is_better(figure, rival, runs))
    };
    let marked: Vec<bool> = figures.iter().map(best).collect();
    figures.iter_mut().zip(marked).for_each(|(figure, best)| figure.best = best);
}

fn is_better(figure: &Figure, rival: &Figure, runs: &[RunResults]) -> bool {
    let (Some(ours), Some(theirs)) = (figure.cell.mean, rival.cell.mean) else { return false };
    let sign = if lower_is_better(&figure.metric) { -1.0 } else { 1.0 };
    if sign * (ours - theirs) <= 0.0 {
        return false;
    }
    let tests: Vec<(f64, Option<f64>)> = runs
        .iter()
        // A run's tests are of its slides.
        .filter(|run| run.rows.iter().any(|row| row.task == figure.task && row.data == figure.data))
        .flat_map(|run| &run.comparisons)
        .filter_map(|test| paired(test, figure, rival))
        .collect();
    match tests.is_empty() {
        false => tests.iter().all(|(difference, p)| sign * difference > 0.0 && p.is_some_and(|p| p < LEVEL)),
        true if !(figure.cell.of_items && rival.cell.of_items) => false,
        true => match (figure.cell.interval, rival.cell.interval) {
            (Some(ours), Some(theirs)) if sign > 0.0 => ours.0 > theirs.1,
            (Some(ours), Some(theirs)) => ours.1 < theirs.0,
            _ => false,
        },
    }
}

/// The difference of the two figures in a paired test of them, and its p; none where the test is of others.
fn paired(test: &Comparison, figure: &Figure, rival: &Figure) -> Option<(f64, Option<f64>)> {
    let same =
        test.class.is_none() && test.head == figure.head && test.metric == figure.metric && figure.task == "slide";
    let difference = test.values[0].zip(test.values[1]).map_or(0.0, |(first, second)| first - second);
    if same && (&test.first, &test.second) == (&figure.encoder, &rival.encoder) {
        Some((difference, test.p))
    } else if same && (&test.first, &test.second) == (&rival.encoder, &figure.encoder) {
        Some((-difference, test.p))
    } else {
        None
    }
}
