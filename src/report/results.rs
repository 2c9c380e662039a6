//! Results: the long-form table pivoted to one table per task and data set, and the long form itself.

use evaluation::spread::Spread;
use evaluation::table::{distinct, lower_is_better};

use super::html::{escape, scroll_box};
use super::number::{grouped, score};
use super::{ResultRow, robustness};

/// All pivot tables and the long form behind a fold-out.
pub fn tables(rows: &[ResultRow]) -> String {
    if rows.is_empty() {
        return String::new();
    }
    // Points of a curve are drawn, not tabulated.
    let tabulated: Vec<ResultRow> = rows.iter().filter(|row| robustness::point(row).is_none()).cloned().collect();
    pivot(&tabulated).iter().map(Pivot::to_html).collect::<String>() + &long_form(rows)
}

/// Results of one task on one data set: a line per encoder and head, a column per metric.
#[derive(Debug)]
struct Pivot<'a> {
    task: &'a str,
    data: &'a str,
    metrics: Vec<&'a str>,
    lines: Vec<(&'a str, &'a str, Vec<Option<Cell>>)>,
}

/// What the rows of one metric say together.
#[derive(Debug, PartialEq)]
struct Cell {
    /// Mean over folds and seeds; none where only the pooled value is defined.
    mean: Option<f64>,
    /// Standard deviation over them (n - 1), where there are at least two.
    sd: Option<f64>,
    /// Folds and seeds averaged.
    runs: usize,
    /// Folds and seeds in which the metric is not defined.
    undefined: usize,
    /// Bootstrap interval; over several seeds, the lowest end to the highest. None where folds have different test
    /// items and no value was pooled over them.
    interval: Option<(f64, f64)>,
    /// Whether that interval spans those of several seeds.
    spans: bool,
    /// Mean of the values pooled over the folds.
    pooled: Option<f64>,
    /// Items of all folds together, counted once however many seeds there are.
    items: u64,
}

impl Cell {
    /// None where no value is defined.
    fn of<'a>(rows: &[&'a ResultRow]) -> Option<Self> {
        // A row without a fold is pooled over the folds where there are some, and a run of its own where not.
        let (folds, whole): (Vec<&ResultRow>, Vec<_>) = rows.iter().partition(|r| r.fold.is_some());
        let (all_runs, all_pooled) = if folds.is_empty() { (whole, folds) } else { (folds, whole) };
        let defined = |rows: &[&'a ResultRow]| -> Vec<(&'a ResultRow, f64)> {
            rows.iter().filter_map(|r| Some((*r, r.value?))).collect()
        };
        let (runs, pooled) = (&defined(&all_runs), &defined(&all_pooled));
        if runs.is_empty() && pooled.is_empty() {
            return None;
        }
        let spread = |rows: &[(&ResultRow, f64)]| Spread::of(&rows.iter().map(|r| r.1).collect::<Vec<f64>>());
        let over_runs = spread(runs);
        let one_fold = runs.iter().all(|(r, _)| r.fold == runs[0].0.fold);
        let bounded: &[(&ResultRow, f64)] = match (pooled.is_empty(), one_fold) {
            (false, _) => pooled,
            (true, true) => runs,
            (true, false) => &[],
        };
        let low = bounded.iter().filter_map(|(r, _)| r.low).min_by(f64::total_cmp);
        let high = bounded.iter().filter_map(|(r, _)| r.high).max_by(f64::total_cmp);
        let seeds = distinct(runs.iter().map(|(r, _)| r.seed)).len().max(1) as u64;
        Some(Self {
            mean: over_runs.map(|spread| spread.mean),
            sd: over_runs.and_then(|spread| spread.deviation),
            runs: runs.len(),
            undefined: all_runs.len() - runs.len(),
            interval: low.zip(high),
            spans: bounded.len() > 1,
            pooled: spread(pooled).map(|spread| spread.mean),
            items: runs.iter().map(|(r, _)| r.n).sum::<u64>() / seeds,
        })
    }

    fn to_html(&self) -> String {
        let sd = self.sd.map_or(String::new(), |sd| format!(" <small>± {}</small>", score(sd)));
        let undefined = match self.undefined {
            0 => String::new(),
            n => format!("undefined in {n} of {} ", n + self.runs),
        };
        let pooled = self.pooled.map_or(String::new(), |v| format!("pooled {} ", score(v)));
        let bounds = self.interval.map_or(String::new(), |(low, high)| {
            format!(r#"<span class="whole">[{}, {}]</span>"#, score(low), score(high))
        });
        format!(
            r#"<td class="num"><b>{}</b>{sd}<span class="note">{undefined}{pooled}{bounds}</span>{}</td>"#,
            self.mean.map_or("–".into(), score),
            self.whisker().unwrap_or_default(),
        )
    }

    /// The interval and its value drawn on a scale from 0 to 1.
    fn whisker(&self) -> Option<String> {
        let (low, high) = self.interval?;
        let value = self.pooled.or(self.mean)?;
        ([low, high, value].iter().all(|v| (0.0..=1.0).contains(v)) && low <= high).then(|| {
            let [low, width, at] = [low, high - low, value].map(|v| v * 100.0);
            format!(
                r#"<span class="whisker" aria-hidden="true"><i style="left:{low:.1}%;width:{width:.1}%"></i><b style="left:{at:.1}%"></b></span>"#
            )
        })
    }
}

/// Groups rows in the order they come in.
fn pivot(rows: &[ResultRow]) -> Vec<Pivot<'_>> {
    let groups = distinct(rows.iter().map(|r| (r.task.as_str(), r.data.as_str())));
    let table = |(task, data): (&'_ str, &'_ str)| -> Vec<&ResultRow> {
        rows.iter().filter(|r| r.task == task && r.data == data).collect()
    };
    groups
        .into_iter()
        .map(|(task, data)| {
            let rows = table((task, data));
            let metrics = distinct(rows.iter().map(|r| r.metric.as_str()));
            let line = |(encoder, head)| {
                let cell = |metric: &&str| {
                    let same = |r: &&&ResultRow| r.encoder == encoder && r.head == head && r.metric == *metric;
                    Cell::of(&rows.iter().filter(same).copied().collect::<Vec<_>>())
                };
                (encoder, head, metrics.iter().map(cell).collect())
            };
            let lines = distinct(rows.iter().map(|r| (r.encoder.as_str(), r.head.as_str())));
            Pivot { task, data, lines: lines.into_iter().map(line).collect(), metrics }
        })
        .collect()
}

/// A metric as it is read: `macro_auc` as `macro AUC`.
pub fn spelled(metric: &str) -> String {
    let word = |word: &str| match word {
        "auc" | "auprc" | "ece" | "f1" => word.to_uppercase(),
        "brier" => "Brier".to_owned(),
        _ => word.to_owned(),
    };
    metric.split('_').map(word).collect::<Vec<_>>().join(" ")
}

/// The metric as a heading, with an arrow where lower is better.
fn heading(metric: &str) -> String {
    let arrow = if lower_is_better(metric) { r#" <span title="lower is better">↓</span>"# } else { "" };
    escape(&spelled(metric)) + arrow
}

impl Pivot<'_> {
    fn to_html(&self) -> String {
        let title = [self.task, self.data].into_iter().filter(|s| !s.is_empty()).collect::<Vec<_>>().join(" on ");
        let metrics: String =
            self.metrics.iter().map(|m| format!(r#"<th scope="col" class="num">{}</th>"#, heading(m))).collect();
        let lines: String = self.lines.iter().map(line).collect();
        let table = format!(
            r#"<table class="pivot"><caption class="quiet">{title}</caption><thead><tr><th scope="col">Encoder and head</th>{metrics}<th scope="col" class="num">Runs</th><th scope="col" class="num">Items</th></tr></thead><tbody>{lines}</tbody></table>"#,
            title = escape(&title),
        );
        format!("<h3>{}</h3><p class=\"note\">{}</p>{}", escape(&title), self.reading(), scroll_box(&title, &table))
    }

    /// How the cells of this table are to be read.
    fn reading(&self) -> String {
        let any = |test: fn(&Cell) -> bool| self.lines.iter().flat_map(|l| &l.2).flatten().any(test);
        let mut parts = Vec::new();
        if any(|c| c.sd.is_some()) {
            parts.push("Mean ± standard deviation over the runs (folds and seeds).");
        }
        if any(|c| c.pooled.is_some()) {
            parts.push("Pooled: over the test predictions of all folds.");
        }
        if any(|c| c.interval.is_some()) {
            parts.push("In brackets the 95 % bootstrap interval; the bars run from 0 to 1.");
        }
        if any(|c| c.interval.is_some() && c.spans) {
            parts.push("With several seeds it spans all of theirs.");
        }
        if self.metrics.iter().any(|metric| lower_is_better(metric)) {
            parts.push("Lower is better where an arrow ↓ says so.");
        }
        parts.join(" ")
    }
}

fn line((encoder, head, cells): &(&str, &str, Vec<Option<Cell>>)) -> String {
    let known = || cells.iter().flatten();
    let runs = known().map(|c| c.runs).max().unwrap_or(0);
    let items = grouped(known().map(|c| c.items).max().unwrap_or(0));
    let cells: String =
        cells.iter().map(|c| c.as_ref().map_or(r#"<td class="num none">–</td>"#.into(), Cell::to_html)).collect();
    format!(
        r#"<tr><th scope="row">{} <small>{}</small></th>{cells}<td class="num">{runs}</td><td class="num">{items}</td></tr>"#,
        // Long names break where their words do.
        escape(encoder).replace('_', "_<wbr>"),
        escape(head),
    )
}

fn long_form(rows: &[ResultRow]) -> String {
    let score = |v: Option<f64>| v.map_or("–".into(), score);
    let number = |v: Option<u64>| v.map_or("–".into(), |v| v.to_string());
    let body: String = rows
        .iter()
        .map(|r| {
            let words = [&r.task, &r.data, &r.encoder, &r.head, &r.metric].map(|s| format!("<td>{}</td>", escape(s)));
            let figures = [score(r.value), score(r.low), score(r.high), grouped(r.n)];
            let numbers = [number(r.fold.map(u64::from)), number(r.seed)].into_iter().chain(figures);
            let numbers: String = numbers.map(|s| format!(r#"<td class="num">{s}</td>"#)).collect();
            format!("<tr>{}{numbers}</tr>\n", words.concat())
        })
        .collect();
    let words: String =
        ["Task", "Data", "Encoder", "Head", "Metric"].map(|h| format!(r#"<th scope="col">{h}</th>"#)).concat();
    let numbers: String = ["Fold", "Seed", "Value", "Low", "High", "n"]
        .map(|h| format!(r#"<th scope="col" class="num">{h}</th>"#))
        .concat();
    let table = format!(
        r#"<table class="sortable"><caption class="quiet">Every result: one row per metric, fold and seed</caption><thead><tr>{words}{numbers}</tr></thead><tbody>{body}</tbody></table>"#
    );
    format!(
        "<details><summary>Long form: all {} rows</summary>{}</details>",
        grouped(rows.len() as u64),
        scroll_box("All results", &table)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(metric: &str, fold: Option<u32>, seed: u64, value: f64, interval: Option<(f64, f64)>) -> ResultRow {
        ResultRow {
            task: "slide".into(),
            data: "cohort".into(),
            encoder: "dino".into(),
            head: "abmil".into(),
            metric: metric.into(),
            fold,
            seed: Some(seed),
            value: Some(value),
            low: interval.map(|i| i.0),
            high: interval.map(|i| i.1),
            n: 10,
        }
    }

    fn cell(rows: &[ResultRow]) -> Cell {
        Cell::of(&rows.iter().collect::<Vec<_>>()).unwrap()
    }

    #[test]
    fn folds_are_averaged_and_the_interval_is_that_of_the_pooled_predictions() {
        let fold = |fold, value| row("auc", Some(fold), 0, value, Some((0.0, 1.0)));
        let pooled = row("auc", None, 0, 0.75, Some((0.6, 0.9)));
        let rows = [fold(0, 0.7), fold(1, 0.8), fold(2, 0.9), pooled];
        let whole = cell(&rows);
        assert!((whole.mean.unwrap() - 0.8).abs() < 1e-12 && (whole.sd.unwrap() - 0.1).abs() < 1e-12);
        assert_eq!((whole.runs, whole.items), (3, 30));
        assert_eq!((whole.interval, whole.spans, whole.pooled), (Some((0.6, 0.9)), false, Some(0.75)));
        assert_eq!(cell(&rows[..3]).interval, None, "folds differ in their items: no common interval");
        let second_seed = rows.clone().map(|r| ResultRow { seed: Some(1), ..r });
        let both = cell(&[rows, second_seed].concat());
        assert_eq!((both.runs, both.items, both.spans), (6, 30, true));
    }

    #[test]
    fn seeds_on_one_split_span_their_intervals_and_one_run_has_its_own() {
        let rows = [row("acc", None, 0, 0.6, Some((0.4, 0.8))), row("acc", None, 1, 0.7, Some((0.5, 0.85)))];
        assert_eq!((cell(&rows).interval, cell(&rows).spans), (Some((0.4, 0.85)), true));
        let one = cell(&rows[..1]);
        assert_eq!((one.mean, one.sd, one.runs, one.interval, one.items), (Some(0.6), None, 1, Some((0.4, 0.8)), 10));
        let undefined = ResultRow { value: None, ..row("acc", None, 0, 0.0, None) };
        assert_eq!(Cell::of(&[&undefined]), None);
        let partly = cell(&[rows[0].clone(), undefined]);
        assert_eq!((partly.mean, partly.runs, partly.undefined), (Some(0.6), 1, 1));
        assert!(partly.to_html().contains("undefined in 1 of 2"));
    }

    #[test]
    fn a_metric_that_no_fold_defines_is_not_taken_from_the_pooled_value() {
        let fold = ResultRow { value: None, ..row("auc", Some(0), 0, 0.0, None) };
        let pooled = row("auc", None, 0, 0.9, Some((0.8, 1.0)));
        let cell = cell(&[fold, pooled]);
        assert_eq!((cell.mean, cell.pooled, cell.runs), (None, Some(0.9), 0));
        assert!(cell.to_html().contains("<b>–</b>") && cell.to_html().contains("pooled 0.900"));
    }

    #[test]
    fn pivots_keep_the_order_of_the_rows_and_leave_holes_open() {
        let mut rows = vec![row("top1", None, 0, 0.5, None), row("macro_auc", None, 0, 0.6, None)];
        rows.push(ResultRow { head: "knn-20".into(), ..row("top1", None, 0, 0.4, None) });
        rows.push(ResultRow { task: "knn".into(), ..row("top1", None, 0, 0.3, None) });
        let tables = pivot(&rows);
        assert_eq!(tables.iter().map(|t| t.task).collect::<Vec<_>>(), ["slide", "knn"]);
        assert_eq!(tables[0].metrics, ["top1", "macro_auc"]);
        assert_eq!(tables[0].lines.len(), 2);
        assert_eq!(tables[0].lines[1].2[1], None);
        let html = super::tables(&rows);
        assert!(
            html.contains("0.500")
                && html.contains("all 4 rows")
                && html.contains("slide on cohort")
                && html.contains("macro AUC")
        );
        assert!(!html.contains("whisker"), "no interval, no bar");
        assert_eq!(super::tables(&[]), "");
    }
}
