//! Paired tests between the encoders of different runs.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Result;
use evaluation::comparison::{Comparison, compare};
use evaluation::scored::Scored;

use super::Read;
use crate::commands::evaluate::exchanges;

/// Tests every two encoders that no run has compared already, in runs of one seed over the same data. Two runs whose slides
/// have other labels, groups or folds are not compared, which is told. The places of the two runs stand before each test.
///
/// # Errors
/// A slide without a label among those scored.
pub(super) fn compare_runs(runs: &[Read]) -> Result<Vec<([usize; 2], Comparison)>> {
    let within: BTreeSet<[&str; 2]> = runs
        .iter()
        .flat_map(|run| &run.results.comparisons)
        .flat_map(|test| [[&test.first[..], &test.second], [&test.second, &test.first]])
        .collect();
    let mut found = Vec::new();
    for (place, first) in runs.iter().enumerate() {
        for (offset, second) in runs[place + 1..].iter().enumerate() {
            let settings = [first, second].map(|run| &run.experiment.evaluate.slide);
            let asked = settings.iter().all(|settings| settings.permutations > 0);
            if !asked || first.experiment.seed != second.experiment.seed {
                continue;
            }
            if data(first) != data(second) {
                if let (Some(a), Some(b)) = (data(first), data(second))
                    && share_slides(first, second)
                {
                    eprintln!(
                        "report: no paired tests between {} and {}, and columns of their own: one calls its slides {a:?}, the other \
                         {b:?}. Where they are the same, run both with one data.name",
                        first.results.run, second.results.run
                    );
                }
                continue;
            }
            let pairs: Vec<(&Scored, &Scored)> = pairs(first, second)
                .filter(|(a, b)| !within.contains(&[a.encoder.as_str(), b.encoder.as_str()]))
                .collect();
            let hindrance = if first.classes == second.classes {
                pairs.iter().find_map(|(a, b)| difference(a, b))
            } else {
                Some(format!("their classes are {:?} and {:?}", first.classes, second.classes))
            };
            if let (false, Some(hindrance)) = (pairs.is_empty(), hindrance) {
                let [a, b] = [first, second].map(|run| &run.results.run);
                eprintln!("report: no paired tests between {a} and {b}: {hindrance}");
                continue;
            }
            for (a, b) in pairs {
                let tests = compare(a, b, &first.classes, &exchanges(settings[0]))?;
                found.extend(tests.into_iter().map(|test| ([place, place + 1 + offset], test)));
            }
        }
    }
    Ok(found)
}

/// The cohort whose slides a run has scored.
fn data(run: &Read) -> Option<&str> {
    run.results.rows.iter().find(|row| row.task == "slide").map(|row| &row.data[..])
}

/// Whether a slide of that name was tested in both.
fn share_slides(first: &Read, second: &Read) -> bool {
    let tested = |run: &'_ Read| -> BTreeSet<String> {
        run.scored.iter().flat_map(|scored| &scored.slides).map(|slide| slide.id.clone()).collect()
    };
    !tested(first).is_disjoint(&tested(second))
}

/// Two encoders under the same head and seed of the head.
fn pairs<'a>(first: &'a Read, second: &'a Read) -> impl Iterator<Item = (&'a Scored, &'a Scored)> {
    let same = |a: &Scored, b: &Scored| a.encoder != b.encoder && (&a.head, a.seed) == (&b.head, b.seed);
    first.scored.iter().flat_map(move |a| second.scored.iter().filter(move |b| same(a, b)).map(move |b| (a, b)))
}

/// Why the scores of the two are no pair.
fn difference(first: &Scored, second: &Scored) -> Option<String> {
    let of_second: BTreeMap<_, _> = second.tested().collect();
    let known: BTreeSet<&str> = second.slides.iter().map(|slide| slide.id.as_str()).collect();
    let mut none = true;
    for (place, slide) in first.tested().filter(|((id, _), _)| known.contains(id)) {
        none = false;
        let differs = match of_second.get(&place) {
            None => "was tested in another fold",
            Some(other) if slide.label != other.label => "has another label",
            Some(other) if slide.group != other.group => "is of another group",
            Some(_) => continue,
        };
        return Some(format!("{} {differs}", slide.id));
    }
    none.then(|| "they have no slide in common".to_owned())
}
