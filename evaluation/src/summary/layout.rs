//! Figures to rows and columns.

use super::paper::{TABLES, encoder};
use super::{Cell, Figure, Over};
use crate::spread::three_digits;
use crate::table::lower_is_better;

/// A table ready to be written.
#[derive(Clone, Debug, PartialEq)]
pub struct Grid {
    /// Short name, for labels: `table9`, `slide_panda`.
    pub id: String,
    /// Heading.
    pub title: String,
    /// Headings of the row names.
    pub stub: Vec<String>,
    /// Columns.
    pub columns: Vec<Column>,
    /// Names and entries of the rows; an entry for each column.
    pub rows: Vec<(Vec<String>, Vec<Option<Entry>>)>,
}

/// A column of figures.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Column {
    /// What stands above neighbouring columns together; may be empty.
    pub group: String,
    /// Heading.
    pub name: String,
    /// Whether lower is better.
    pub lower: bool,
}

/// A figure as it is printed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The mean.
    pub mean: String,
    /// Its spread.
    pub spread: Option<String>,
    /// What the spread is over.
    pub over: Over,
    /// Whether it is better than the rest of its column.
    pub best: bool,
    /// Whether it is not defined in some folds or runs.
    pub partly: bool,
}

impl Entry {
    fn of(cell: &Cell, best: bool, percent: bool) -> Option<Self> {
        let number = |value: f64| match percent {
            true => format!("{:.1}", 100.0 * value),
            false if value.abs() >= 100.0 => format!("{value:.1}"),
            false => three_digits(value),
        };
        let spread = cell.sd.map(number);
        Some(Self { mean: number(cell.mean?), spread, over: cell.over, best, partly: cell.undefined > 0 })
    }
}

/// The paper's tables that the figures can fill: encoders as rows, data sets, heads and metrics as columns.
pub fn paper_tables(figures: &[Figure]) -> Vec<Grid> {
    TABLES
        .iter()
        .filter_map(|table| {
            let shown = |figure: &&Figure| {
                table.tasks.contains(&figure.task.as_str())
                    && (table.shows)(&figure.head)
                    && table.metrics.iter().any(|(metric, _)| *metric == figure.metric)
            };
            let figures: Vec<&Figure> = figures.iter().filter(shown).collect();
            if figures.is_empty() {
                return None;
            }
            let places = distinct(figures.iter().map(|figure| (figure.data.as_str(), figure.head.as_str())));
            let columns: Vec<(&str, &str, &str, &str)> = places
                .iter()
                .flat_map(|&(data, head)| table.metrics.iter().map(move |&(metric, name)| (data, head, metric, name)))
                .filter(|&(data, head, metric, _)| {
                    figures.iter().any(|figure| (&*figure.data, &*figure.head, &*figure.metric) == (data, head, metric))
                })
                .collect();
            let row = |encoder_name: &str| {
                let entry = |&(data, head, metric, _): &(&str, &str, &str, &str)| {
                    let key = (data, head, metric, encoder_name);
                    let of =
                        |figure: &&&Figure| (&*figure.data, &*figure.head, &*figure.metric, &*figure.encoder) == key;
                    figures.iter().find(of).and_then(|figure| Entry::of(&figure.cell, figure.best, table.percent))
                };
                (vec![encoder(encoder_name).1], columns.iter().map(entry).collect())
            };
            let unit = if table.percent { ", %" } else { "" };
            Some(Grid {
                id: format!("table{}", table.number),
                title: format!("Table {}: {}{unit}", table.number, table.title),
                stub: vec!["Encoder".into()],
                columns: columns
                    .iter()
                    .map(|&(data, head, metric, name)| Column {
                        group: format!("{data}, {head}"),
                        name: name.into(),
                        lower: lower_is_better(metric),
                    })
                    .collect(),
                rows: encoders(&figures).into_iter().map(row).collect(),
            })
        })
        .collect()
}

/// Whether a figure is one point of a curve over the severity of a shift, `<shift>@<severity>`: tables hold means over them.
fn is_point(figure: &Figure) -> bool {
    let severity = figure.head.rsplit_once('@').and_then(|(_, severity)| severity.parse::<f64>().ok());
    figure.task == "robustness" && severity.is_some_and(|severity| severity > 0.0)
}

/// One table for every task and data set: encoders and heads as rows, metrics as columns.
pub fn general_tables(figures: &[Figure]) -> Vec<Grid> {
    let table = |(task, data): (&str, &str)| {
        let of_table = |figure: &&Figure| figure.task == task && figure.data == data && !is_point(figure);
        let figures: Vec<&Figure> = figures.iter().filter(of_table).collect();
        let metrics = distinct(figures.iter().map(|figure| figure.metric.as_str()));
        let heads = distinct(figures.iter().map(|figure| figure.head.as_str()));
        let row = |head: &str, encoder_name: &str| {
            let entry = |metric: &&str| {
                let of = |f: &&&Figure| (&*f.head, &*f.encoder, &*f.metric) == (head, encoder_name, *metric);
                figures.iter().find(of).and_then(|figure| Entry::of(&figure.cell, figure.best, false))
            };
            (vec![head.to_owned(), encoder(encoder_name).1], metrics.iter().map(entry).collect::<Vec<_>>())
        };
        let row = &row;
        let rows = heads.iter().flat_map(|head| encoders(&figures).into_iter().map(move |encoder| row(head, encoder)));
        Grid {
            id: slug(&format!("{task}_{data}")),
            title: format!("{task} on {data}"),
            stub: vec!["Head".into(), "Encoder".into()],
            columns: metrics
                .iter()
                .map(|metric| Column {
                    group: String::new(),
                    name: metric.replace('_', " "),
                    lower: lower_is_better(metric),
                })
                .collect(),
            rows: rows.filter(|(_, entries)| entries.iter().any(Option::is_some)).collect(),
        }
    };
    distinct(figures.iter().map(|figure| (figure.task.as_str(), figure.data.as_str()))).into_iter().map(table).collect()
}

/// The encoders, those of the paper first, then in order of appearance.
fn encoders<'a>(figures: &[&'a Figure]) -> Vec<&'a str> {
    let mut names = distinct(figures.iter().map(|figure| figure.encoder.as_str()));
    names.sort_by_key(|name| encoder(name).0);
    names
}

/// Each item once, in order of appearance.
fn distinct<T: PartialEq>(items: impl Iterator<Item = T>) -> Vec<T> {
    items.fold(Vec::new(), |mut seen, item| {
        if !seen.contains(&item) {
            seen.push(item);
        }
        seen
    })
}

/// A name of letters, digits and `_`.
fn slug(text: &str) -> String {
    text.chars().map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '_' }).collect()
}
