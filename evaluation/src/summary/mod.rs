//! Many runs in few tables: figures of several runs and seeds become means with their spread, laid out as the tables of the
//! Gen-SIS paper and as one table for every task and data set, in Markdown and LaTeX.
//!
//! What is compared is the encoder: a column holds one head and metric, a row one encoder. The best figure of a column is set in
//! bold only if it is better than every other beyond chance ([`Figure::best`]); most of the time nothing is.
//!
//! | File | What it does |
//! |---|---|
//! | `cell.rs` | folds, seeds and runs of one figure to mean, spread and interval |
//! | `best.rs` | which figure is better than all others |
//! | `layout.rs`, `paper.rs` | figures to rows and columns; the paper's tables |
//! | `markdown.rs`, `latex.rs` | the text of a table |

mod best;
mod cell;
mod latex;
mod layout;
mod markdown;
mod paper;

use polars::prelude::{Column as PolarsColumn, DataFrame};

pub use cell::{Cell, Over};
pub use latex::latex;
pub use layout::{Column, Entry, Grid, general_tables, paper_tables};
pub use markdown::markdown;

use crate::comparison::Comparison;
use crate::error::Result;
use crate::table::ResultRow;

/// The results of one run. Encoders that are not the same in all runs must have different names.
#[derive(Clone, Debug, Default)]
pub struct RunResults {
    /// The run's name.
    pub run: String,
    /// Its figures.
    pub rows: Vec<ResultRow>,
    /// Its paired tests between encoders.
    pub comparisons: Vec<Comparison>,
}

/// One figure over all runs.
#[derive(Clone, Debug, PartialEq)]
pub struct Figure {
    /// What was asked.
    pub task: String,
    /// The data set.
    pub data: String,
    /// The encoder.
    pub encoder: String,
    /// What turns embeddings into scores.
    pub head: String,
    /// Name of the metric.
    pub metric: String,
    /// The numbers.
    pub cell: Cell,
    /// Whether it is better than that of every other encoder under the same head: by a paired test with p < 0.05 in each run and
    /// seed that compares the two; where there is none, by 95 % bootstrap intervals of the test items that do not touch.
    pub best: bool,
}

/// Every figure of the runs, in the order in which it first appears.
pub fn figures(runs: &[RunResults]) -> Vec<Figure> {
    let mut figures: Vec<Figure> = Vec::new();
    let mut rows_of: Vec<Vec<(usize, &ResultRow)>> = Vec::new();
    let mut places = std::collections::HashMap::new();
    for (run, row) in runs.iter().enumerate().flat_map(|(run, results)| results.rows.iter().map(move |row| (run, row)))
    {
        let key = [&row.task, &row.data, &row.encoder, &row.head, &row.metric];
        let place = *places.entry(key).or_insert_with(|| {
            let [task, data, encoder, head, metric] = key.map(String::clone);
            figures.push(Figure { task, data, encoder, head, metric, cell: Cell::default(), best: false });
            rows_of.push(Vec::new());
            figures.len() - 1
        });
        rows_of[place].push((run, row));
    }
    for (figure, rows) in figures.iter_mut().zip(&rows_of) {
        figure.cell = Cell::of(rows);
    }
    best::mark(&mut figures, runs);
    figures
}

/// The figures as a data frame: `task, data, encoder, head, metric, mean, sd, over, replicates, n, low, high, best`.
pub fn frame(figures: &[Figure]) -> Result<DataFrame> {
    let text = |name: &str, of: fn(&Figure) -> &String| {
        PolarsColumn::new(name.into(), figures.iter().map(|figure| of(figure).as_str()).collect::<Vec<&str>>())
    };
    let number = |name: &str, of: fn(&Cell) -> Option<f64>| {
        PolarsColumn::new(name.into(), figures.iter().map(|figure| of(&figure.cell)).collect::<Vec<Option<f64>>>())
    };
    Ok(DataFrame::new(
        figures.len(),
        vec![
            text("task", |figure| &figure.task),
            text("data", |figure| &figure.data),
            text("encoder", |figure| &figure.encoder),
            text("head", |figure| &figure.head),
            text("metric", |figure| &figure.metric),
            number("mean", |cell| cell.mean),
            number("sd", |cell| cell.sd),
            PolarsColumn::new(
                "over".into(),
                figures.iter().map(|figure| figure.cell.over.name()).collect::<Vec<&str>>(),
            ),
            PolarsColumn::new(
                "replicates".into(),
                figures.iter().map(|figure| figure.cell.replicates as u64).collect::<Vec<_>>(),
            ),
            PolarsColumn::new("n".into(), figures.iter().map(|figure| figure.cell.items).collect::<Vec<_>>()),
            number("low", |cell| cell.interval.map(|interval| interval.0)),
            number("high", |cell| cell.interval.map(|interval| interval.1)),
            PolarsColumn::new("best".into(), figures.iter().map(|figure| figure.best).collect::<Vec<bool>>()),
        ],
    )?)
}

#[cfg(test)]
mod tests;
