//! What the report draws of predictions: ROC and precision-recall curves, and confusion matrices. Of many classes those that
//! went worst: nobody looks at a thousand curves, and a page that holds them opens in no browser.

use evaluation::metric::Predictions;

use crate::report::{ClassCurve, Confusion, RankingCurves};

/// Points kept of a curve, at most: more are closer together than a screen shows.
const MOST_POINTS: usize = 400;
/// Classes that are drawn, at most.
const MOST_CLASSES: usize = 30;

/// The curves of every class, or of those with the lowest AUC; of two classes the second, whose curve is the first's turned
/// round.
pub(super) fn curves(title: String, predictions: &Predictions, classes: &[String]) -> RankingCurves {
    let (aucs, precisions) = (predictions.class_auc(), predictions.class_average_precision());
    let of_class = |class: usize| ClassCurve {
        name: classes[class].clone(),
        positives: predictions.truth().iter().filter(|&&truth| truth as usize == class).count() as u64,
        items: predictions.len() as u64,
        auc: aucs[class],
        average_precision: precisions[class],
        roc: thinned(predictions.roc(class).unwrap_or_default()),
        precision_recall: thinned(predictions.precision_recall(class).unwrap_or_default()),
    };
    let shown = worst(classes.len(), |class| aucs[class].map_or(f64::INFINITY, |auc| auc));
    let title = title + &of_all(shown.len(), classes.len(), "lowest AUC");
    let first = usize::from(classes.len() == 2);
    RankingCurves { title, classes: shown.into_iter().skip(first).map(of_class).collect() }
}

/// Items by true and predicted class; of many classes those with the most errors, the others as one.
pub(super) fn confusion(title: String, predictions: &Predictions, classes: &[String]) -> Confusion {
    let items = || predictions.truth().iter().zip(predictions.predicted()).map(|(&a, &b)| (a as usize, b as usize));
    let mut errors = vec![0u64; classes.len()];
    for (truth, predicted) in items().filter(|(truth, predicted)| truth != predicted) {
        errors[truth] += 1;
        errors[predicted] += 1;
    }
    let shown = worst(classes.len(), |class| -(errors[class] as f64));
    let others = classes.len() - shown.len();
    let mut place = vec![shown.len(); classes.len()];
    shown.iter().enumerate().for_each(|(at, &class)| place[class] = at);
    let side = shown.len() + usize::from(others > 0);
    let mut counts = vec![vec![0; side]; side];
    items().for_each(|(truth, predicted)| counts[place[truth]][place[predicted]] += 1);
    let names = shown.iter().map(|&class| classes[class].clone());
    let names = names.chain((others > 0).then(|| format!("{others} others"))).collect();
    Confusion { title: title + &of_all(shown.len(), classes.len(), "most errors"), classes: names, counts }
}

/// The [`MOST_CLASSES`] of `all` classes with the lowest `value`, in their order.
fn worst(all: usize, value: impl Fn(usize) -> f64) -> Vec<usize> {
    let mut order: Vec<usize> = (0..all).collect();
    order.sort_by(|&a, &b| value(a).total_cmp(&value(b)));
    order.truncate(MOST_CLASSES);
    order.sort_unstable();
    order
}

/// What a title adds where not all classes are shown.
fn of_all(shown: usize, all: usize, chosen: &str) -> String {
    if shown == all { String::new() } else { format!(": the {shown} of {all} classes with the {chosen}") }
}

/// Evenly chosen points, both ends among them, to four decimals.
fn thinned(points: Vec<(f64, f64)>) -> Vec<(f64, f64)> {
    let kept = points.len().min(MOST_POINTS);
    let rounded = |value: f64| (value * 1e4).round() / 1e4;
    let point = |at: usize| points[if kept < 2 { at } else { at * (points.len() - 1) / (kept - 1) }];
    (0..kept).map(point).map(|(x, y)| (rounded(x), rounded(y))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_curves_keep_their_ends() {
        let long: Vec<(f64, f64)> = (0..10_001).map(|i| (i as f64 / 1e4, 1.0)).collect();
        let kept = thinned(long);
        assert_eq!((kept.len(), kept[0], kept[MOST_POINTS - 1]), (MOST_POINTS, (0.0, 1.0), (1.0, 1.0)));
        assert_eq!(thinned(vec![(0.123_456, 1.0)]), [(0.1235, 1.0)]);
        assert!(thinned(vec![]).is_empty());
    }

    /// 1,000 classes of two items, of which those from 970 on go wrong: they are shown, and no item is lost.
    #[test]
    fn of_many_classes_the_worst_are_drawn() {
        let truth: Vec<u32> = (0..2000).map(|i| i / 2).collect();
        let predicted: Vec<u32> = truth.iter().map(|&class| if class < 970 { class } else { 1969 - class }).collect();
        let predictions = Predictions::from_labels(truth, &predicted, 1000).unwrap();
        let names: Vec<String> = (0..1000).map(|class| format!("class {class}")).collect();
        let found = confusion("10-NN".into(), &predictions, &names);
        assert_eq!(
            (found.classes.len(), &found.classes[0][..], &found.classes[30][..]),
            (31, "class 970", "970 others")
        );
        assert_eq!((found.counts[30][30], found.counts[0][29], found.counts[0][0]), (1940, 2, 0));
        assert_eq!(found.counts.concat().iter().sum::<u64>(), 2000);
        let drawn = curves("10-NN".into(), &predictions, &names);
        assert_eq!((drawn.classes.len(), &drawn.classes[0].name[..]), (30, "class 970"));
        assert!(drawn.title.contains("30 of 1000 classes"), "{}", drawn.title);
        assert!(drawn.classes.iter().all(|class| class.auc.unwrap() < 0.5));
    }

    #[test]
    fn two_classes_have_one_curve_and_absent_ones_none() {
        let predictions = Predictions::new(vec![0, 1], vec![0.9, 0.1, 0.2, 0.8], 2).unwrap();
        let stored = curves("x".into(), &predictions, &["a".into(), "b".into()]);
        assert_eq!(stored.classes.len(), 1);
        assert_eq!((stored.classes[0].auc, stored.classes[0].positives), (Some(1.0), 1));
        let absent = Predictions::new(vec![0, 1], vec![0.9, 0.1, 0.0, 0.2, 0.8, 0.0], 3).unwrap();
        let stored = curves("x".into(), &absent, &["a".into(), "b".into(), "c".into()]);
        assert_eq!((stored.classes.len(), stored.classes[2].roc.len(), stored.classes[2].auc), (3, 0, None));
    }
}
