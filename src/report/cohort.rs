//! The table of slides: what was found in each, what was kept of it, and why some were left out.

use super::SlideRow;
use super::html::{escape, scroll_box};
use super::number::grouped;

/// Headings of words, in order.
const WORDS: [&str; 5] = ["Slide", "Status", "Label", "Split", "Format"];
/// Headings of numbers, with their units.
const NUMBERS: [(&str, &str); 6] = [
    ("Size", "px"),
    ("Scale", "µm/px"),
    ("Levels", ""),
    ("Tissue", "%"),
    ("Positions", "of the grid"),
    ("Kept", "patches"),
];

/// Sortable where scripts run, complete where they do not.
pub fn table(rows: &[SlideRow]) -> String {
    if rows.is_empty() {
        return String::new();
    }
    let failed = rows.iter().filter(|r| r.failure.is_some()).count();
    let most = rows.iter().filter_map(|r| r.kept).max().unwrap_or(0).max(1);
    let words = WORDS.map(|name| format!(r#"<th scope="col">{name}</th>"#)).concat();
    let numbers =
        NUMBERS.map(|(name, unit)| format!(r#"<th scope="col" class="num">{name} <small>{unit}</small></th>"#));
    let head = words + &numbers.concat();
    let body: String = rows.iter().map(|row| line(row, most)).collect();
    let sum = |of: fn(&SlideRow) -> Option<usize>| grouped(rows.iter().filter_map(of).sum::<usize>() as u64);
    let done = if rows.iter().all(|row| row.only_features) { "with features" } else { "tiled" };
    let foot = format!(
        r#"<th scope="row">{} slides</th><td>{} {done}, {failed} left out</td><td colspan="7"></td><td class="num">{}</td><td class="num">{}</td>"#,
        grouped(rows.len() as u64),
        grouped((rows.len() - failed) as u64),
        sum(|r| r.candidates),
        sum(|r| r.kept),
    );
    let only_failed = if failed == 0 {
        String::new()
    } else {
        format!(r#"<label><input type="checkbox" class="only-failed"> only the {failed} left out</label>"#)
    };
    let table = format!(
        r#"<table class="sortable cohort"><caption class="quiet">Slides of the cohort</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody><tfoot><tr>{foot}</tr></tfoot></table>"#
    );
    format!(
        r#"<div class="filter" hidden><label>Find <input type="search" placeholder="slide, label, reason"></label>{only_failed}<output aria-live="polite"></output></div>{}"#,
        scroll_box("Slides of the cohort", &table)
    )
}

fn line(row: &SlideRow, most: usize) -> String {
    let words: String = [&row.label, &row.split, &row.format].map(|s| format!("<td>{}</td>", escape(s))).concat();
    let size = row.size.map(|(w, h)| ((w * h) as f64, format!("{} × {}", grouped(w), grouped(h))));
    let count = |n: usize| (n as f64, grouped(n as u64));
    let kept = row.kept.map_or(r#"<td class="num none">–</td>"#.into(), |n| {
        let share = 100.0 * n as f64 / most as f64;
        format!(r#"<td class="num bar" data-value="{n}" style="--share:{share:.1}%">{}</td>"#, grouped(n as u64))
    });
    let numbers: String = [
        size,
        row.mpp.map(|v| (v, format!("{v:.4}"))),
        row.levels.map(count),
        row.tissue_share.map(|v| (v, format!("{:.1}", v * 100.0))),
        row.candidates.map(count),
    ]
    .map(numeric)
    .concat();
    let (class, mut status) = match &row.failure {
        Some(reason) => (r#" class="failed""#, format!(r#"<strong>left out:</strong> {}"#, escape(reason))),
        None if row.only_features && row.problem.is_empty() => ("", "features made elsewhere".into()),
        None if row.only_features => ("", format!("features made elsewhere, but {}", escape(&row.problem))),
        None if row.problem.is_empty() => ("", "tiled".into()),
        None => ("", format!("tiled, but {}", escape(&row.problem))),
    };
    if !row.dropped.is_empty() {
        status += &format!("<small>dropped: {}</small>", escape(&row.dropped));
    }
    format!(
        "<tr{class}><th scope=\"row\">{}</th><td class=\"status\">{status}</td>{words}{numbers}{kept}</tr>\n",
        escape(&row.id),
    )
}

/// A cell that sorts by its value and not by its text.
fn numeric(value: Option<(f64, String)>) -> String {
    value.map_or(r#"<td class="num none">–</td>"#.into(), |(value, text)| {
        format!(r#"<td class="num" data-value="{value}">{text}</td>"#)
    })
}
