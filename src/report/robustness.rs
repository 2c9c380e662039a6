//! Curves of a figure over the severity of a shift, from result rows whose head is `<shift>@<severity>`.

use evaluation::table::distinct;

use super::{Chart, ResultRow, Series, results};

/// The task of those rows.
const TASK: &str = "robustness";
/// The images as they are: severity 0 of every shift.
const CLEAN: &str = "clean";

/// Name of the shift and its severity; none where the row is no point of a curve, as `<shift>@mean`.
pub fn point(row: &ResultRow) -> Option<(&str, f64)> {
    let (shift, severity) = row.head.rsplit_once('@')?;
    let severity = severity.trim().parse::<f64>().ok().filter(|severity| severity.is_finite())?;
    (row.task == TASK).then_some((shift.trim(), severity))
}

/// A point of a curve with where it belongs.
struct Point<'a> {
    row: &'a ResultRow,
    shift: &'a str,
    severity: f64,
    value: f64,
}

/// A chart for each data set, metric and shift with a line per encoder; where there is one encoder, a chart for each data set
/// and metric with a line per shift.
pub fn charts(rows: &[ResultRow]) -> Vec<Chart> {
    let points: Vec<Point> = rows
        .iter()
        .filter_map(|row| {
            let ((shift, severity), value) = (point(row)?, row.value?);
            Some(Point { row, shift, severity, value })
        })
        .collect();
    let several = distinct(points.iter().map(|point| point.row.encoder.as_str())).len() > 1;
    // Title of the chart and name of the line.
    let names = |point: &Point| {
        let chart = format!("{}: {}", point.row.data, results::spelled(&point.row.metric));
        match several {
            true => (format!("{chart}, {}", point.shift), point.row.encoder.clone()),
            false => (chart, point.shift.to_owned()),
        }
    };
    let (clean, shifted): (Vec<&Point>, Vec<&Point>) = points.iter().partition(|point| point.shift == CLEAN);
    let named: Vec<((String, String), &Point)> = shifted.into_iter().map(|point| (names(point), point)).collect();
    let series = |title: &str, name: String| {
        let of_line: Vec<&Point> = named
            .iter()
            .filter(|((chart, line), _)| chart == title && *line == name)
            .map(|(_, point)| *point)
            .collect();
        let same = |a: &ResultRow, b: &ResultRow| (&a.data, &a.encoder, &a.metric) == (&b.data, &b.encoder, &b.metric);
        let start = clean.iter().filter(|point| of_line.first().is_some_and(|first| same(point.row, first.row)));
        let mut points: Vec<(f64, f64)> =
            start.copied().chain(of_line.iter().copied()).map(|point| (point.severity, point.value)).collect();
        points.sort_by(|a, b| a.0.total_cmp(&b.0));
        Series { name, points: means(&points) }
    };
    let chart = |title: String| {
        let of_chart = || named.iter().filter(|((chart, _), _)| *chart == title);
        let lines = distinct(of_chart().map(|((_, line), _)| line.clone()));
        Chart {
            x_label: "severity".into(),
            y_label: of_chart().next().map_or(String::new(), |(_, point)| results::spelled(&point.row.metric)),
            series: lines.into_iter().map(|line| series(&title, line)).collect(),
            log_y: false,
            title,
        }
    };
    distinct(named.iter().map(|((chart, _), _)| chart.clone())).into_iter().map(chart).collect()
}

/// Points of one severity (of several seeds) as their mean.
fn means(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let mean = |same: &[(f64, f64)]| (same[0].0, same.iter().map(|point| point.1).sum::<f64>() / same.len() as f64);
    points.chunk_by(|a, b| a.0 == b.0).map(mean).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(encoder: &str, head: &str, seed: u64, value: f64) -> ResultRow {
        ResultRow {
            task: TASK.into(),
            data: "crc".into(),
            encoder: encoder.into(),
            head: head.into(),
            metric: "linear_accuracy".into(),
            seed: Some(seed),
            value: Some(value),
            ..ResultRow::default()
        }
    }

    #[test]
    fn one_encoder_has_a_line_per_shift_and_several_have_a_chart_per_shift() {
        let mut rows = vec![
            row("dino", "clean@0", 0, 0.95),
            row("dino", "blur@2", 0, 0.5),
            row("dino", "blur@1", 0, 0.75),
            row("dino", "blur@2", 1, 0.25),
            row("dino", "stain@1", 0, 0.9),
            row("dino", "blur@mean", 0, 0.1),
        ];
        let found = charts(&rows);
        assert_eq!(found.len(), 1);
        assert_eq!((found[0].title.as_str(), found[0].series.len()), ("crc: linear accuracy", 2));
        assert_eq!(found[0].series[0].points, [(0.0, 0.95), (1.0, 0.75), (2.0, 0.375)]);
        assert_eq!((found[0].series[1].name.as_str(), found[0].series[1].points.len()), ("stain", 2));
        rows.push(row("random", "blur@1", 0, 0.4));
        let found = charts(&rows);
        let titles: Vec<&str> = found.iter().map(|chart| chart.title.as_str()).collect();
        assert_eq!(titles, ["crc: linear accuracy, blur", "crc: linear accuracy, stain"]);
        assert_eq!(found[0].series.iter().map(|line| line.name.as_str()).collect::<Vec<_>>(), ["dino", "random"]);
        assert_eq!(found[0].series[1].points, [(1.0, 0.4)], "the untrained one has no figure of clean images");
        let other = ResultRow { task: "knn".into(), ..row("dino", "x@1", 0, 0.5) };
        assert!(charts(&[other]).is_empty());
    }
}
