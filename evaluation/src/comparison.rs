//! Is one encoder better than another, or luckier? Paired tests on the slides that both have scored, and their table.

use std::collections::BTreeMap;

use polars::prelude::{Column, DataFrame, StringChunked};

use crate::error::{Error, Result};
use crate::metric::Metric;
use crate::mil::{SlideScore, score_all};
use crate::paired::{Exchanges, delong, permutation};
use crate::scored::Scored;

/// A paired test of two encoders under one head and seed.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Comparison {
    /// The head.
    pub head: String,
    /// Seed of the training.
    pub seed: u64,
    /// One encoder.
    pub first: String,
    /// The other.
    pub second: String,
    /// `delong`, `obuchowski` (the same where a patient has several slides) or `permutation`.
    pub test: String,
    /// Name of the metric.
    pub metric: String,
    /// The class against the rest, where the test is of one.
    pub class: Option<String>,
    /// The figures of both; none where not defined.
    pub values: [Option<f64>; 2],
    /// Two-sided p; none where the test is not defined.
    pub p: Option<f64>,
    /// Slides that both have scored.
    pub n: u64,
}

/// One row per test: `head, seed, first, second, test, metric, class, value_first, value_second, p, n`.
pub fn table(tests: &[Comparison]) -> Result<DataFrame> {
    let text = |name: &str, of: fn(&Comparison) -> &String| {
        Column::new(name.into(), tests.iter().map(|test| of(test).as_str()).collect::<Vec<&str>>())
    };
    let number = |name: &str, of: fn(&Comparison) -> Option<f64>| {
        Column::new(name.into(), tests.iter().map(of).collect::<Vec<Option<f64>>>())
    };
    Ok(DataFrame::new(
        tests.len(),
        vec![
            text("head", |test| &test.head),
            Column::new("seed".into(), tests.iter().map(|test| test.seed).collect::<Vec<_>>()),
            text("first", |test| &test.first),
            text("second", |test| &test.second),
            text("test", |test| &test.test),
            text("metric", |test| &test.metric),
            Column::new("class".into(), tests.iter().map(|test| test.class.as_deref()).collect::<Vec<Option<&str>>>()),
            number("value_first", |test| test.values[0]),
            number("value_second", |test| test.values[1]),
            number("p", |test| test.p),
            Column::new("n".into(), tests.iter().map(|test| test.n).collect::<Vec<_>>()),
        ],
    )?)
}

/// The same behind `first_run, second_run`, the runs of the two encoders of each test.
pub fn table_of_runs(tests: &[([&str; 2], Comparison)]) -> Result<DataFrame> {
    let (runs, tests): (Vec<[&str; 2]>, Vec<Comparison>) = tests.iter().cloned().unzip();
    let mut frame = table(&tests)?;
    for (at, name) in ["first_run", "second_run"].into_iter().enumerate() {
        frame.insert_column(at, Column::new(name.into(), runs.iter().map(|runs| runs[at]).collect::<Vec<&str>>()))?;
    }
    Ok(frame)
}

/// The tests of a table that [`table`] made.
///
/// # Errors
/// A table of other columns.
pub fn read(frame: &DataFrame) -> Result<Vec<Comparison>> {
    let text = |name: &str| Ok::<_, Error>(frame.column(name)?.str()?.clone());
    let number = |name: &str| Ok::<_, Error>(frame.column(name)?.f64()?.clone());
    let count = |name: &str| Ok::<_, Error>(frame.column(name)?.u64()?.clone());
    let (head, first, second) = (text("head")?, text("first")?, text("second")?);
    let (test, metric, class) = (text("test")?, text("metric")?, text("class")?);
    let (seed, n, p) = (count("seed")?, count("n")?, number("p")?);
    let values = [number("value_first")?, number("value_second")?];
    let word = |column: &StringChunked, row| column.get(row).unwrap_or_default().to_owned();
    let row = |row| Comparison {
        head: word(&head, row),
        seed: seed.get(row).unwrap_or_default(),
        first: word(&first, row),
        second: word(&second, row),
        test: word(&test, row),
        metric: word(&metric, row),
        class: class.get(row).map(str::to_owned),
        values: [values[0].get(row), values[1].get(row)],
        p: p.get(row),
        n: n.get(row).unwrap_or_default(),
    };
    Ok((0..frame.height()).map(row).collect())
}

/// Compares two encoders under one head on the slides that both have scored in the same fold: DeLong's test for the area of each
/// class, with Obuchowski's variance where a patient has several slides, and a permutation of whole patients for every
/// metric.
///
/// # Errors
/// A slide without a label, or with two.
pub fn compare(first: &Scored, second: &Scored, classes: &[String], exchanges: &Exchanges) -> Result<Vec<Comparison>> {
    let of_second: BTreeMap<(&str, u32), &SlideScore> = second.tested().collect();
    let both = first.tested().filter_map(|(place, slide)| Some((slide, *of_second.get(&place)?)));
    let (of_first, of_second): (Vec<&SlideScore>, Vec<&SlideScore>) = both.unzip();
    let (a, groups) = score_all(of_first, classes.len())?;
    let (b, _) = score_all(of_second, classes.len())?;
    let base = Comparison {
        head: first.head.clone(),
        seed: first.seed,
        first: first.encoder.clone(),
        second: second.encoder.clone(),
        n: a.len() as u64,
        ..Comparison::default()
    };
    let mut found = Vec::new();
    let mut patients = groups.clone();
    patients.sort_unstable();
    patients.dedup();
    let name = if patients.len() == groups.len() { "delong" } else { "obuchowski" };
    for (class, test) in classes.iter().zip(delong(&a, &b, Some(&groups))?) {
        let Some(test) = test else { continue };
        found.push(Comparison {
            test: name.into(),
            metric: "auc".into(),
            class: Some(class.clone()),
            values: test.auc.map(Some),
            p: test.p,
            ..base.clone()
        });
    }
    for metric in Metric::ALL {
        let test = permutation(&a, &b, Some(&groups), metric, exchanges)?;
        found.push(Comparison {
            test: "permutation".into(),
            metric: metric.name().to_owned(),
            values: [a.value(metric), b.value(metric)],
            p: test.map(|test| test.p),
            ..base.clone()
        });
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comparisons_have_a_row_per_test() {
        let test = Comparison {
            head: "abmil".into(),
            seed: 2,
            first: "a".into(),
            second: "b".into(),
            test: "delong".into(),
            metric: "auc".into(),
            class: Some("tumour".into()),
            values: [Some(0.75), None],
            p: Some(0.5),
            n: 9,
        };
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("comparisons.csv");
        crate::table::write_csv(&table(&[test.clone(), Comparison { class: None, ..test }]).unwrap(), &path).unwrap();
        let expected = "\
head,seed,first,second,test,metric,class,value_first,value_second,p,n
abmil,2,a,b,delong,auc,tumour,0.75,,0.5,9
abmil,2,a,b,delong,auc,,0.75,,0.5,9
";
        assert_eq!(std::fs::read_to_string(path).unwrap(), expected);
    }

    #[test]
    fn only_slides_that_both_have_scored_are_compared() {
        let scored = |encoder: &str, sure: f32, slides: std::ops::Range<u32>| Scored {
            encoder: encoder.into(),
            head: "abmil".into(),
            seed: 3,
            slides: slides
                .clone()
                .map(|slide| SlideScore {
                    id: slide.to_string(),
                    group: slide.to_string(),
                    label: Some(slide % 2),
                    probabilities: if slide % 2 == 0 { vec![sure, 1.0 - sure] } else { vec![1.0 - sure, sure] },
                    attention: vec![],
                })
                .collect(),
            folds: vec![0; slides.len()],
        };
        let classes = ["benign", "tumour"].map(str::to_owned);
        let exchanges = Exchanges { draws: 200, seed: 0 };
        let tests = compare(&scored("right", 0.9, 0..12), &scored("wrong", 0.2, 2..20), &classes, &exchanges).unwrap();
        assert_eq!(tests.len(), 2 + Metric::ALL.len());
        assert!(tests.iter().all(|test| (test.n, test.seed, &test.head[..]) == (10, 3, "abmil")));
        let accuracy = tests.iter().find(|test| test.metric == "accuracy").unwrap();
        assert_eq!(accuracy.values, [Some(1.0), Some(0.0)]);
        assert!(accuracy.p.unwrap() < 0.05, "{accuracy:?}");
        assert_eq!(tests[0].test, "delong");
        // Two slides of each patient, one of each class: the areas are still compared, with another variance.
        let paired = |scored: Scored| Scored {
            slides: scored
                .slides
                .into_iter()
                .map(|slide| SlideScore { group: (slide.id.parse::<u32>().unwrap() / 2).to_string(), ..slide })
                .collect(),
            ..scored
        };
        let [a, b] = [("right", 0.9), ("wrong", 0.2)].map(|(name, sure)| paired(scored(name, sure, 0..12)));
        assert_eq!(compare(&a, &b, &classes, &exchanges).unwrap()[1].test, "obuchowski");
        let unlabelled = Scored {
            slides: vec![SlideScore { label: None, ..scored("x", 0.5, 2..3).slides[0].clone() }],
            ..scored("x", 0.5, 2..3)
        };
        assert!(compare(&unlabelled, &unlabelled, &classes, &exchanges).is_err());
    }
}
