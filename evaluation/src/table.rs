//! The result table: one figure a row, in long form, as a polars data frame; Parquet, CSV and Markdown files of it.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs::File;
use std::io::Write as _;
use std::path::Path;

pub use polars::prelude::DataFrame;
use polars::prelude::*;
use serde::{Deserialize, Serialize};

use crate::atomic_file;
use crate::bootstrap::Interval;
use crate::error::{Error, Result};
use crate::metric::Metric;
use crate::spread::{Spread, three_digits};

/// One figure.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ResultRow {
    /// What was asked: `knn` or `slide`, for example.
    pub task: String,
    /// The data set.
    pub data: String,
    /// The encoder.
    pub encoder: String,
    /// What turns embeddings into scores: `k=20`, `abmil`.
    pub head: String,
    /// Name of the metric.
    pub metric: String,
    /// Fold of a cross-validation; none for a given split or for all folds pooled.
    pub fold: Option<u32>,
    /// Seed of the training; none where nothing is drawn.
    pub seed: Option<u64>,
    /// The figure; none where it is not defined.
    pub value: Option<f64>,
    /// Lower end of its interval.
    pub low: Option<f64>,
    /// Upper end of its interval.
    pub high: Option<f64>,
    /// Items it was computed from.
    pub n: u64,
}

impl ResultRow {
    /// This row for `metric` with its interval.
    pub fn with(&self, metric: Metric, interval: Interval) -> Self {
        let Interval { value, low, high, .. } = interval;
        Self { metric: metric.name().to_owned(), value, low, high, ..self.clone() }
    }
}

/// Figures of one or many experiments.
#[derive(Clone, Debug)]
pub struct ResultTable {
    frame: DataFrame,
}

impl ResultTable {
    /// A table of `rows`.
    pub fn new(rows: &[ResultRow]) -> Result<Self> {
        fn text<'a>(name: &str, rows: &'a [ResultRow], of: impl Fn(&'a ResultRow) -> &'a String) -> Column {
            Column::new(name.into(), rows.iter().map(|row| of(row).as_str()).collect::<Vec<&str>>())
        }
        let number = |name: &str, of: fn(&ResultRow) -> Option<f64>| {
            Column::new(name.into(), rows.iter().map(of).collect::<Vec<Option<f64>>>())
        };
        let frame = DataFrame::new(
            rows.len(),
            vec![
                text("task", rows, |row| &row.task),
                text("data", rows, |row| &row.data),
                text("encoder", rows, |row| &row.encoder),
                text("head", rows, |row| &row.head),
                text("metric", rows, |row| &row.metric),
                Column::new("fold".into(), rows.iter().map(|row| row.fold).collect::<Vec<_>>()),
                Column::new("seed".into(), rows.iter().map(|row| row.seed).collect::<Vec<_>>()),
                number("value", |row| row.value),
                number("low", |row| row.low),
                number("high", |row| row.high),
                Column::new("n".into(), rows.iter().map(|row| row.n).collect::<Vec<_>>()),
            ],
        )?;
        Ok(Self { frame })
    }

    /// The polars data frame: `task, data, encoder, head, metric, fold, seed, value, low, high, n`.
    pub fn frame(&self) -> &DataFrame {
        &self.frame
    }

    /// Number of figures.
    pub fn len(&self) -> usize {
        self.frame.height()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Appends `rows`.
    pub fn extend(&mut self, rows: &[ResultRow]) -> Result<()> {
        self.append(&Self::new(rows)?)
    }

    /// Appends another table.
    pub fn append(&mut self, other: &Self) -> Result<()> {
        self.frame.vstack_mut(&other.frame)?;
        self.frame.rechunk_mut();
        Ok(())
    }

    /// The figures as rows.
    pub fn rows(&self) -> Result<Vec<ResultRow>> {
        let text = |name| self.frame.column(name)?.str();
        let number = |name| self.frame.column(name)?.f64();
        let (task, data, encoder) = (text("task")?, text("data")?, text("encoder")?);
        let (head, metric) = (text("head")?, text("metric")?);
        let (value, low, high) = (number("value")?, number("low")?, number("high")?);
        let (fold, seed) = (self.frame.column("fold")?.u32()?, self.frame.column("seed")?.u64()?);
        let n = self.frame.column("n")?.u64()?;
        let word = |column: &StringChunked, row| column.get(row).unwrap_or_default().to_owned();
        let row = |row| ResultRow {
            task: word(task, row),
            data: word(data, row),
            encoder: word(encoder, row),
            head: word(head, row),
            metric: word(metric, row),
            fold: fold.get(row),
            seed: seed.get(row),
            value: value.get(row),
            low: low.get(row),
            high: high.get(row),
            n: n.get(row).unwrap_or_default(),
        };
        Ok((0..self.len()).map(row).collect())
    }

    /// Writes `<stem>.parquet`, `<stem>.csv` and `<stem>.md`; each appears whole or not at all.
    pub fn write(&self, stem: &Path) -> Result<()> {
        write_parquet(&self.frame, &stem.with_extension("parquet"))?;
        write_csv(&self.frame, &stem.with_extension("csv"))?;
        let path = stem.with_extension("md");
        let text = self.markdown()?;
        atomic_file::replace(&path, |file| file.write_all(text.as_bytes()).map_err(|e| Error::io(&path, e)))
    }

    /// Reads the Parquet file of a table.
    pub fn read(path: &Path) -> Result<Self> {
        let table = Self { frame: read_parquet(path)? };
        table.rows().map_err(|e| Error::bad(path, format!("not a result table: {e}")))?;
        Ok(table)
    }

    /// A summary for people: a table per task, in it a row per data set, encoder and head, and a column per metric. Several
    /// folds or seeds are given as mean ± standard deviation; a single figure with its interval.
    pub fn markdown(&self) -> Result<String> {
        let rows = self.rows()?;
        let mut text = String::new();
        for task in distinct(rows.iter().map(|row| row.task.as_str())) {
            let of_task: Vec<&ResultRow> = rows.iter().filter(|row| row.task == task).collect();
            text.push_str(&Self::markdown_of_task(&of_task));
            text.push('\n');
        }
        text.push_str("Several folds or seeds: mean ± standard deviation. One run: the figure (bootstrap interval).\n");
        Ok(text)
    }

    fn markdown_of_task(rows: &[&ResultRow]) -> String {
        let metrics = distinct(rows.iter().map(|row| row.metric.as_str()));
        let name = |row: &ResultRow| [row.task.clone(), row.data.clone(), row.encoder.clone(), row.head.clone()];
        let mut text = String::from("| task | data | encoder | head | n |");
        metrics.iter().for_each(|metric| text.extend([" ", &metric.replace('_', " "), " |"]));
        text.extend(["\n|---|---|---|---|---:|", &"---:|".repeat(metrics.len()), "\n"]);
        for line in distinct(rows.iter().copied().map(name)) {
            let of_line: Vec<&ResultRow> = rows.iter().copied().filter(|row| name(row) == line).collect();
            for part in &line {
                text.extend(["| ", &part.replace('|', "\\|"), " "]);
            }
            let of_metric = |metric: &str| {
                let of_metric: Vec<&ResultRow> = of_line.iter().copied().filter(|row| row.metric == metric).collect();
                // Where folds are given, figures of all folds pooled would count twice.
                let folds: Vec<&ResultRow> = of_metric.iter().copied().filter(|row| row.fold.is_some()).collect();
                if folds.is_empty() { of_metric } else { folds }
            };
            let items = metrics.iter().map(|metric| items_per_seed(&of_metric(metric))).max().unwrap_or(0);
            let _ = write!(text, "| {items} |");
            metrics.iter().for_each(|metric| text.extend([" ", &cell(&of_metric(metric)), " |"]));
            text.push('\n');
        }
        text
    }
}

/// Whether less of a metric is better: calibration errors, Brier's score, distances, error rates, and decay.
pub fn lower_is_better(metric: &str) -> bool {
    let words: Vec<&str> = metric.split('_').collect();
    let lower = ["ece", "brier", "mce", "ce", "error", "distance", "decay", "loss"];
    words.iter().any(|word| lower.contains(word))
}

/// Each value once, in order of appearance.
pub fn distinct<T: Ord + Clone>(values: impl Iterator<Item = T>) -> Vec<T> {
    let mut seen = BTreeSet::new();
    values.filter(|value| seen.insert(value.clone())).collect()
}

/// Items behind a figure: those of all folds together, counted once however many seeds there are.
fn items_per_seed(rows: &[&ResultRow]) -> u64 {
    let seeds = distinct(rows.iter().map(|row| row.seed)).len().max(1) as u64;
    rows.iter().map(|row| row.n).sum::<u64>() / seeds
}

fn cell(rows: &[&ResultRow]) -> String {
    let values: Vec<f64> = rows.iter().filter_map(|row| row.value).collect();
    let Some(Spread { mean, deviation }) = Spread::of(&values) else { return "–".to_owned() };
    match (deviation, rows) {
        (Some(deviation), _) => format!("{} ± {deviation:.3}", three_digits(mean)),
        (None, [ResultRow { low: Some(low), high: Some(high), .. }]) => {
            format!("{} ({}–{})", three_digits(mean), three_digits(*low), three_digits(*high))
        }
        (None, _) => three_digits(mean),
    }
}

/// Writes the results of several runs, each with its name, as `<stem>.parquet` and `<stem>.csv`: the columns of a
/// [`ResultTable`] behind a column `run`.
///
/// # Errors
/// A file that cannot be written.
pub fn write_runs(runs: &[(&str, &[ResultRow])], stem: &Path) -> Result<()> {
    let rows: Vec<ResultRow> = runs.iter().flat_map(|(_, rows)| rows.iter().cloned()).collect();
    let mut frame = ResultTable::new(&rows)?.frame;
    let names: Vec<&str> = runs.iter().flat_map(|(name, rows)| std::iter::repeat_n(*name, rows.len())).collect();
    frame.insert_column(0, Column::new("run".into(), names))?;
    write_parquet(&frame, &stem.with_extension("parquet"))?;
    write_csv(&frame, &stem.with_extension("csv"))
}

/// Reads a data frame from a Parquet file.
///
/// # Errors
/// A file that cannot be read or is damaged.
pub fn read_parquet(path: &Path) -> Result<DataFrame> {
    let file = File::open(path).map_err(|e| Error::io(path, e))?;
    ParquetReader::new(file).finish().map_err(|e| Error::bad(path, e.to_string()))
}

/// Writes any data frame as Parquet; the file appears whole or not at all.
pub fn write_parquet(frame: &DataFrame, path: &Path) -> Result<()> {
    atomic_file::replace(path, |file| Ok(ParquetWriter::new(file).finish(&mut frame.clone()).map(|_| ())?))
}

/// Writes any data frame as CSV; the file appears whole or not at all.
pub fn write_csv(frame: &DataFrame, path: &Path) -> Result<()> {
    atomic_file::replace(path, |file| Ok(CsvWriter::new(file).finish(&mut frame.clone())?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_and_distances_are_better_low() {
        for metric in Metric::ALL {
            assert_eq!(lower_is_better(metric.name()), [Metric::Ece, Metric::Brier].contains(&metric), "{metric:?}");
        }
        assert!(lower_is_better("frechet_distance") && lower_is_better("j_decay") && !lower_is_better("precision"));
    }

    fn row(head: &str, metric: Metric, fold: Option<u32>, seed: u64, value: f64) -> ResultRow {
        let base = ResultRow {
            task: "slide".into(),
            data: "demo".into(),
            encoder: "vit|tiny".into(),
            head: head.into(),
            fold,
            seed: Some(seed),
            n: 6,
            ..ResultRow::default()
        };
        let interval = Interval { value: Some(value), low: Some(value - 0.1), high: Some(value + 0.1), skipped: 0 };
        base.with(metric, interval)
    }

    fn table() -> ResultTable {
        let mut rows = Vec::new();
        for (fold, value) in [0.5, 0.75, 1.0].into_iter().enumerate() {
            rows.push(row("abmil", Metric::Accuracy, Some(fold as u32), 0, value));
        }
        rows.push(row("abmil", Metric::Accuracy, None, 0, 0.1));
        rows.push(row("mean", Metric::Accuracy, None, 0, 0.5));
        rows.push(ResultRow { value: None, low: None, high: None, ..row("mean", Metric::MacroAuc, None, 0, 0.0) });
        ResultTable::new(&rows).unwrap()
    }

    #[test]
    fn the_summary_takes_the_mean_over_folds_and_the_interval_of_one_run() {
        let expected = "\
| task | data | encoder | head | n | accuracy | macro auc |
|---|---|---|---|---:|---:|---:|
| slide | demo | vit\\|tiny | abmil | 18 | 0.750 ± 0.250 | – |
| slide | demo | vit\\|tiny | mean | 6 | 0.500 (0.400–0.600) | – |

Several folds or seeds: mean ± standard deviation. One run: the figure (bootstrap interval).
";
        assert_eq!(table().markdown().unwrap(), expected);
    }

    #[test]
    fn every_task_has_a_table_of_its_own_metrics() {
        let other = ResultRow { task: "knn".into(), head: "20-NN".into(), ..row("", Metric::MacroF1, None, 0, 0.25) };
        let both = ResultTable::new(&[row("mean", Metric::Accuracy, None, 0, 0.5), other]).unwrap().markdown().unwrap();
        let expected = "\
| task | data | encoder | head | n | accuracy |
|---|---|---|---|---:|---:|
| slide | demo | vit\\|tiny | mean | 6 | 0.500 (0.400–0.600) |

| task | data | encoder | head | n | macro f1 |
|---|---|---|---|---:|---:|
| knn | demo | vit\\|tiny | 20-NN | 6 | 0.250 (0.150–0.350) |

Several folds or seeds: mean ± standard deviation. One run: the figure (bootstrap interval).
";
        assert_eq!(both, expected);
    }

    #[test]
    fn a_table_is_written_three_ways_and_read_back() {
        let folder = tempfile::tempdir().unwrap();
        let stem = folder.path().join("results");
        let table = table();
        table.write(&stem).unwrap();
        let read = ResultTable::read(&stem.with_extension("parquet")).unwrap();
        assert_eq!(read.rows().unwrap(), table.rows().unwrap());
        let csv = std::fs::read_to_string(stem.with_extension("csv")).unwrap();
        let mut lines = csv.lines();
        assert_eq!(lines.next(), Some("task,data,encoder,head,metric,fold,seed,value,low,high,n"));
        assert_eq!(lines.next(), Some("slide,demo,vit|tiny,abmil,accuracy,0,0,0.5,0.4,0.6,6"));
        assert_eq!(lines.last(), Some("slide,demo,vit|tiny,mean,macro_auc,,0,,,,6"));
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 3);
        // Written again, the bytes are the same.
        let before = std::fs::read(stem.with_extension("parquet")).unwrap();
        read.write(&stem).unwrap();
        assert_eq!(std::fs::read(stem.with_extension("parquet")).unwrap(), before);
    }

    #[test]
    fn tables_are_joined_end_to_end() {
        let mut joined = ResultTable::new(&[]).unwrap();
        assert!(joined.is_empty());
        joined.append(&table()).unwrap();
        joined.extend(&table().rows().unwrap()[..2]).unwrap();
        assert_eq!(joined.len(), 8);
        assert_eq!(joined.rows().unwrap()[6], table().rows().unwrap()[0]);
    }

    #[test]
    fn another_file_is_not_a_result_table() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.parquet");
        write_parquet(&DataFrame::new(1, vec![Column::new("item".into(), ["a"])]).unwrap(), &path).unwrap();
        let error = ResultTable::read(&path).unwrap_err().to_string();
        assert!(error.contains("not a result table"), "{error}");
        std::fs::write(&path, "PAR1").unwrap();
        assert!(matches!(ResultTable::read(&path), Err(Error::File(slide_io::Error::BadFile { .. }))));
    }
}
