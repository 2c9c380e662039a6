//! Confusion matrices.

use super::Confusion;
use super::html::{escape, scroll_box};
use super::number::grouped;

/// Counts, shaded by their share of the true class, with the recall of each class. Nothing if nothing was counted.
pub fn table(matrix: &Confusion) -> String {
    let total: u64 = matrix.counts.iter().flatten().sum();
    if total == 0 {
        return String::new();
    }
    let right: u64 = matrix.counts.iter().enumerate().filter_map(|(i, row)| row.get(i)).sum();
    let head: String =
        matrix.classes.iter().map(|c| format!(r#"<th scope="col" class="num">{}</th>"#, escape(c))).collect();
    let body: String = matrix
        .classes
        .iter()
        .zip(&matrix.counts)
        .enumerate()
        .map(|(i, (class, row))| true_class(i, class, row))
        .collect();
    let title = escape(&matrix.title);
    let table = format!(
        r#"<table class="confusion"><caption class="quiet">{title}</caption><thead><tr><th scope="col" class="corner">true ↓ &nbsp; predicted →</th>{head}<th scope="col" class="num">recall</th></tr></thead><tbody>{body}</tbody></table>"#
    );
    let share = 100.0 * right as f64 / total as f64;
    format!(
        r#"<div><h3>{title}</h3><p class="note">{} of {} right ({share:.0}&nbsp;%). Shade: share of the true class.</p>{}</div>"#,
        grouped(right),
        grouped(total),
        scroll_box(&matrix.title, &table),
    )
}

fn true_class(index: usize, class: &str, counts: &[u64]) -> String {
    let total: u64 = counts.iter().sum();
    let percent = |count: u64| if total == 0 { 0.0 } else { 100.0 * count as f64 / total as f64 };
    let cells: String = counts
        .iter()
        .enumerate()
        .map(|(i, &count)| {
            let share = percent(count);
            let class = if i == index { "num right" } else { "num wrong" };
            format!(r#"<td class="{class}" style="--share:{share:.0}%">{}</td>"#, grouped(count))
        })
        .collect();
    let recall = if total == 0 {
        "–".into()
    } else {
        format!("{:.0}&nbsp;%", percent(counts.get(index).copied().unwrap_or(0)))
    };
    format!(r#"<tr><th scope="row">{}</th>{cells}<td class="num recall">{recall}</td></tr>"#, escape(class))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_are_shaded_by_row_and_an_empty_class_has_no_recall() {
        let matrix = Confusion {
            title: "slide".into(),
            classes: vec!["a".into(), "b<".into(), "c".into()],
            counts: vec![vec![6, 2, 0], vec![1, 3, 0], vec![0, 0, 0]],
        };
        let html = table(&matrix);
        assert!(html.contains("9 of 12 right (75&nbsp;%)"), "{html}");
        assert!(html.contains(
            r#"<td class="num right" style="--share:75%">6</td><td class="num wrong" style="--share:25%">2</td>"#
        ));
        assert!(html.contains("b&lt;") && html.contains(r#"recall">–</td>"#));
        assert_eq!(table(&Confusion { counts: vec![vec![0; 3]; 3], ..matrix }), "");
    }
}
