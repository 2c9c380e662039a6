//! Figures to rows and columns.

use super::paper::{PaperTable, TABLES, encoder};
use super::{Figure, Over};
use crate::spread::three_digits;
use crate::table::{distinct, lower_is_better};

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
    /// Whether it is on fewer test items than another encoder's.
    pub fewer: bool,
}

impl Entry {
    /// `among` are all figures of the table.
    fn of(figure: &Figure, among: &[&Figure], percent: bool) -> Option<Self> {
        let (cell, best) = (&figure.cell, figure.best);
        let rivals = among.iter().filter(|other| {
            (&other.task, &other.data, &other.head, &other.metric)
                == (&figure.task, &figure.data, &figure.head, &figure.metric)
        });
        let fewer = rivals.into_iter().any(|other| other.cell.items > cell.items);
        let number = |value: f64| match percent {
            true => format!("{:.1}", 100.0 * value),
            false if value.abs() >= 100.0 => format!("{value:.1}"),
            false => three_digits(value),
        };
        let spread = cell.sd.map(number);
        Some(Self { mean: number(cell.mean?), spread, over: cell.over, best, partly: cell.undefined > 0, fewer })
    }
}

/// Columns of figures that a page is wide enough for.
const WIDEST: usize = 9;

/// The paper's tables that the figures can fill: encoders as rows, data sets, heads and metrics as columns; where these would
/// be more than a page is wide, heads are rows.
pub fn paper_tables(figures: &[Figure]) -> Vec<Grid> {
    TABLES.iter().filter_map(|table| paper_table(table, figures)).collect()
}

fn paper_table(table: &PaperTable, figures: &[Figure]) -> Option<Grid> {
    let shown = |figure: &&Figure| {
        table.tasks.contains(&figure.task.as_str())
            && (table.shows)(&figure.head)
            && table.metrics.iter().any(|(metric, _)| *metric == figure.metric)
    };
    let figures: Vec<&Figure> = figures.iter().filter(shown).collect();
    if figures.is_empty() {
        return None;
    }
    // Data set, head (none where heads are rows) and metric of every column.
    let columns_of = |of_head: fn(&Figure) -> Option<&str>| {
        let places = distinct(figures.iter().map(|&figure| (figure.data.as_str(), of_head(figure))));
        let of_place = |(data, head)| table.metrics.iter().map(move |&(metric, name)| (data, head, metric, name));
        let there = |&(data, head, metric, _): &(&str, Option<&str>, &str, &str)| {
            figures.iter().any(|&figure| (&*figure.data, of_head(figure), &*figure.metric) == (data, head, metric))
        };
        places.into_iter().flat_map(of_place).filter(there).collect::<Vec<_>>()
    };
    let wide = columns_of(|figure| Some(&figure.head));
    let (columns, heads) = match wide.len() > WIDEST {
        true => (columns_of(|_| None), distinct(figures.iter().map(|figure| Some(figure.head.as_str())))),
        false => (wide, vec![None]),
    };
    let row = |of_row: Option<&str>, encoder_name: &str| {
        let entry = |&(data, head, metric, _): &(&str, Option<&str>, &str, &str)| {
            let key = (data, head.or(of_row)?, metric, encoder_name);
            let of = |figure: &&&Figure| (&*figure.data, &*figure.head, &*figure.metric, &*figure.encoder) == key;
            figures.iter().find(of).and_then(|figure| Entry::of(figure, &figures, table.percent))
        };
        let names = of_row.into_iter().map(str::to_owned).chain([encoder(encoder_name).1]);
        (names.collect(), columns.iter().map(entry).collect::<Vec<_>>())
    };
    let (row, encoders) = (&row, &encoders(&figures));
    let rows = heads.iter().flat_map(|&head| encoders.iter().map(move |encoder| row(head, encoder)));
    let stub = if heads == [None] { vec!["Encoder".into()] } else { vec!["Head".into(), "Encoder".into()] };
    let unit = if table.percent { ", %" } else { "" };
    Some(Grid {
        id: format!("table{}", table.number),
        title: format!("Table {}: {}{unit}", table.number, table.title),
        stub,
        columns: columns
            .iter()
            .map(|&(data, head, metric, name)| Column {
                group: head.map_or(data.to_owned(), |head| format!("{data}, {head}")),
                name: name.into(),
                lower: lower_is_better(metric),
            })
            .collect(),
        rows: rows.filter(|(_, entries)| entries.iter().any(Option::is_some)).collect(),
    })
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
                figures.iter().find(of).and_then(|figure| Entry::of(figure, &figures, false))
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

/// A name of letters, digits and `_`.
fn slug(text: &str) -> String {
    text.chars().map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '_' }).collect()
}
