//! Is one encoder better than the others, or luckier? Paired tests on the slides that both have scored.

use std::collections::BTreeMap;

use anyhow::Result;
use evaluation::metric::Metric;
use evaluation::mil::{HeadKind, SlideScore, score_all};
use evaluation::paired::{Exchanges, delong, permutation};
use evaluation::table::Comparison;

use crate::config::SlideLevel;

/// All test slides of one encoder, head and seed.
pub(super) struct Scored {
    pub encoder: String,
    pub head: HeadKind,
    pub seed: u64,
    pub slides: Vec<SlideScore>,
}

/// Every pair of encoders under the same head and seed: DeLong's test for the area of each class, where no patient has several
/// slides, and a permutation of whole patients for every metric.
pub(super) fn compare(scored: &[Scored], settings: &SlideLevel, classes: &[String]) -> Result<Vec<Comparison>> {
    let mut found = Vec::new();
    for (at, first) in scored.iter().enumerate() {
        let same = |second: &&Scored| second.head == first.head && second.seed == first.seed;
        for second in scored[at + 1..].iter().filter(same) {
            pair(first, second, settings, classes, &mut found)?;
        }
    }
    Ok(found)
}

fn pair(
    first: &Scored,
    second: &Scored,
    settings: &SlideLevel,
    classes: &[String],
    found: &mut Vec<Comparison>,
) -> Result<()> {
    let of_second: BTreeMap<&str, &SlideScore> = second.slides.iter().map(|slide| (slide.id.as_str(), slide)).collect();
    let both = first.slides.iter().filter_map(|slide| Some((slide, *of_second.get(slide.id.as_str())?)));
    let (of_first, of_second): (Vec<&SlideScore>, Vec<&SlideScore>) = both.unzip();
    let (a, groups) = score_all(of_first, classes.len())?;
    let (b, _) = score_all(of_second, classes.len())?;
    let base = Comparison {
        head: first.head.name().to_owned(),
        seed: first.seed,
        first: first.encoder.clone(),
        second: second.encoder.clone(),
        n: a.len() as u64,
        ..Comparison::default()
    };
    let mut patients = groups.clone();
    patients.sort_unstable();
    patients.dedup();
    if patients.len() == groups.len() {
        for (class, test) in classes.iter().zip(delong(&a, &b)?) {
            let Some(test) = test else { continue };
            found.push(Comparison {
                test: "delong".into(),
                metric: "auc".into(),
                class: Some(class.clone()),
                values: test.auc.map(Some),
                p: test.p,
                ..base.clone()
            });
        }
    }
    let exchanges = Exchanges { draws: settings.permutations, seed: settings.seeds[0] };
    for metric in Metric::ALL {
        let test = permutation(&a, &b, Some(&groups), metric, &exchanges)?;
        found.push(Comparison {
            test: "permutation".into(),
            metric: metric.name().to_owned(),
            values: [a.value(metric), b.value(metric)],
            p: test.map(|test| test.p),
            ..base.clone()
        });
    }
    Ok(())
}
