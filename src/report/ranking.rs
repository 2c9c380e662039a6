//! ROC and precision-recall curves, each class against the rest, in two squares from 0 to 1.

use super::RankingCurves;
use super::html::escape;
use super::number::{grouped, score};
use std::fmt::Write as _;

/// User units of a square: the plot's side, and the room for numbers left and below.
const SIDE: f64 = 300.0;
const LEFT: f64 = 40.0;
const TOP: f64 = 10.0;
const BELOW: f64 = 28.0;
/// Colours of the page's palette (`--s1` to `--s6`); further classes repeat them dashed.
const PALETTE: usize = 6;

/// Both plots of one set of predictions with a legend, or nothing if no class has a curve.
pub fn figure(curves: &RankingCurves) -> String {
    let shown: Vec<_> = curves.classes.iter().enumerate().filter(|(_, class)| !class.roc.is_empty()).collect();
    if shown.is_empty() {
        return String::new();
    }
    let lines = |points: fn(&super::ClassCurve) -> Vec<(f64, f64)>| -> String {
        shown.iter().map(|(place, class)| line(*place, &points(class))).collect()
    };
    let legend: String = shown
        .iter()
        .map(|(place, class)| {
            let value = |value: Option<f64>| value.map_or("–".into(), score);
            format!(
                r#"<li style="--c:var(--s{})"><span class="key{}"></span>{} <small>AUC {}, AP {}; {} of {}</small></li>"#,
                place % PALETTE + 1,
                if *place < PALETTE { "" } else { " dashed" },
                escape(&class.name),
                value(class.auc),
                value(class.average_precision),
                grouped(class.positives),
                grouped(class.items),
            )
        })
        .collect();
    let title = escape(&curves.title);
    let diagonal = format!(r#"<path class="chance" d="M{LEFT} {}L{} {TOP}"/>"#, TOP + SIDE, LEFT + SIDE);
    let roc =
        square(&title, "false positive rate", "true positive rate", &(diagonal + &lines(|class| class.roc.clone())));
    let pr = square(&title, "recall", "precision", &lines(|class| steps(&class.precision_recall)));
    format!(
        r#"<figure class="chart"><figcaption><h3>{title}</h3></figcaption><div class="squares">{roc}{pr}</div><ul class="legend">{legend}</ul></figure>
"#
    )
}

/// Axes from 0 to 1 around `inner`.
fn square(title: &str, x: &str, y: &str, inner: &str) -> String {
    let mut axes = String::new();
    for tick in [0.0, 0.5, 1.0] {
        let (across, down) = (LEFT + tick * SIDE, TOP + (1.0 - tick) * SIDE);
        let _ = write!(
            axes,
            r#"<path class="grid" d="M{LEFT} {down}h{SIDE}M{across} {TOP}v{SIDE}"/><text x="{across}" y="{}" text-anchor="middle">{tick}</text><text x="{}" y="{}" text-anchor="end">{tick}</text>"#,
            TOP + SIDE + 20.0,
            LEFT - 6.0,
            down + 5.0,
        );
    }
    let (width, height) = (LEFT + SIDE + 14.0, TOP + SIDE + BELOW);
    format!(
        r#"<div><p class="axis">{y}</p><svg viewBox="0 0 {width} {height}" role="img" aria-label="{title}: {y} against {x}">{axes}{inner}</svg><p class="axis x">{x}</p></div>"#
    )
}

/// Recall and precision as the steps that the average precision is the area under: between two thresholds no precision is known.
/// What comes behind full recall is left out.
fn steps(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let mut steps: Vec<(f64, f64)> = points.first().copied().into_iter().collect();
    for pair in points.windows(2).take_while(|pair| pair[0].0 < 1.0) {
        steps.extend([(pair[0].0, pair[1].1), pair[1]]);
    }
    steps
}

fn line(place: usize, points: &[(f64, f64)]) -> String {
    let mut path = String::new();
    for (number, (x, y)) in points.iter().enumerate() {
        let command = if number == 0 { 'M' } else { 'L' };
        let _ = write!(path, "{command}{:.1} {:.1}", LEFT + x * SIDE, TOP + (1.0 - y) * SIDE);
    }
    let dash = if place < PALETTE { "" } else { r#" stroke-dasharray="7 5""# };
    format!(r#"<path class="curve" style="stroke:var(--s{})"{dash} d="{path}"/>"#, place % PALETTE + 1)
}

#[cfg(test)]
mod tests {
    use super::super::ClassCurve;
    use super::*;

    #[test]
    fn precision_goes_in_steps_up_to_full_recall() {
        let points = [(0.0, 1.0), (0.5, 1.0), (0.5, 0.5), (1.0, 0.75), (1.0, 0.5)];
        let expected = [(0.0, 1.0), (0.0, 1.0), (0.5, 1.0), (0.5, 0.5), (0.5, 0.5), (0.5, 0.75), (1.0, 0.75)];
        assert_eq!(steps(&points), expected);
        assert!(steps(&[]).is_empty());
    }

    #[test]
    fn curves_start_and_end_at_the_corners_and_classes_without_one_are_left_out() {
        let class = |name: &str, roc: Vec<(f64, f64)>| ClassCurve {
            name: name.into(),
            positives: 3,
            items: 1200,
            auc: (!roc.is_empty()).then_some(0.75),
            average_precision: None,
            precision_recall: roc.iter().map(|&(x, _)| (x, 1.0)).collect(),
            roc,
        };
        let mut curves = RankingCurves {
            title: "dino, <abmil>".into(),
            classes: vec![class("a", vec![(0.0, 0.0), (0.0, 0.5), (1.0, 1.0)]), class("b", vec![])],
        };
        let html = figure(&curves);
        assert!(html.contains("M40.0 310.0L40.0 160.0L340.0 10.0"), "{html}");
        assert!(html.contains("AUC 0.750, AP –; 3 of 1\u{202f}200") && html.contains("dino, &lt;abmil&gt;"));
        assert_eq!(html.matches("class=\"curve\"").count(), 2, "one class, two plots");
        assert!(!html.contains("--s2"));
        curves.classes.remove(0);
        assert_eq!(figure(&curves), "");
        let many = (0..8).map(|i| class(&i.to_string(), vec![(0.0, 0.0), (1.0, 1.0)])).collect();
        assert_eq!(figure(&RankingCurves { classes: many, ..curves }).matches("stroke-dasharray").count(), 4);
    }
}
