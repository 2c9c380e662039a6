//! Paired tests between encoders on the same items.

use super::html::{escape, scroll_box};
use super::number::{grouped, score};
use super::{Comparison, results};

/// Below this a p is set off.
const NOTABLE: f64 = 0.05;

/// One row per test; nothing where there are none.
pub fn table(tests: &[Comparison]) -> String {
    if tests.is_empty() {
        return String::new();
    }
    let rows: String = tests.iter().map(row).collect();
    let words = ["Head", "Seed", "First", "Second", "Metric", "Test"].map(|h| format!(r#"<th scope="col">{h}</th>"#));
    let numbers =
        ["First", "Second", "Difference", "p", "n"].map(|h| format!(r#"<th scope="col" class="num">{h}</th>"#));
    let table = format!(
        r#"<table class="sortable"><caption class="quiet">Paired tests between encoders</caption><thead><tr>{}{}</tr></thead><tbody>{rows}</tbody></table>"#,
        words.concat(),
        numbers.concat(),
    );
    let count = grouped(tests.len() as u64);
    let has = |name: &str| tests.iter().any(|test| test.test == name);
    let areas = match (has("delong"), has("obuchowski")) {
        (false, false) => "",
        (true, false) => "DeLong's for the area under the curve of one class, ",
        (_, true) => {
            "DeLong's, or Obuchowski's where patients have several slides, for the area under the curve of one class, "
        }
    };
    format!(
        r#"<p class="note">{count} two-sided tests of two encoders on the same items: {areas}an exchange of whole groups for the rest. A p below {NOTABLE} is set off; p are not corrected for the number of tests, so that of twenty without any difference about one is below it.</p>{}"#,
        scroll_box("Paired tests", &table)
    )
}

fn row(test: &Comparison) -> String {
    let number = |value: Option<f64>| value.map_or("–".into(), score);
    let difference = test.values[0].zip(test.values[1]).map(|(first, second)| first - second);
    let metric = match &test.class {
        Some(class) => format!("{} of {class}", results::spelled(&test.metric)),
        None => results::spelled(&test.metric),
    };
    let p = match test.p {
        Some(p) if p < NOTABLE => format!("<b>{}</b>", probability(p)),
        Some(p) => probability(p),
        None => "–".into(),
    };
    let words = [&test.head, &test.seed.to_string(), &test.first, &test.second, &metric, &test.test]
        .map(|text| format!("<td>{}</td>", escape(text)));
    let numbers = [number(test.values[0]), number(test.values[1]), number(difference), p, grouped(test.n)]
        .map(|text| format!(r#"<td class="num">{text}</td>"#));
    format!("<tr>{}{}</tr>\n", words.concat(), numbers.concat())
}

fn probability(p: f64) -> String {
    if p < 0.001 { "&lt;\u{202f}0.001".into() } else { score(p) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notable_differences_are_set_off() {
        let test = |p: Option<f64>| Comparison {
            head: "abmil".into(),
            seed: 3,
            first: "dino".into(),
            second: "random<".into(),
            test: "delong".into(),
            metric: "auc".into(),
            class: Some("tumour".into()),
            values: [Some(0.9), Some(0.75)],
            p,
            n: 30,
        };
        let html = table(&[test(Some(0.0002)), test(Some(0.2)), test(None)]);
        assert!(
            html.contains("<b>&lt;\u{202f}0.001</b>") && html.contains(">0.200<") && html.contains("AUC of tumour")
        );
        assert!(html.contains("random&lt;") && html.contains("0.150") && html.contains("3 two-sided tests"), "{html}");
        assert_eq!(table(&[]), "");
    }
}
