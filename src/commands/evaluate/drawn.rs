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
    if classes.len() <= MOST_CLASSES {
        let first = usize::from(classes.len() == 2);
        return RankingCurves { title, classes: (first..classes.len()).map(of_class).collect() };
    }
    let worst = worst(classes.len(), |class| aucs[class].map_or(f64::INFINITY, |auc| auc));
    let title = format!("{title}: the {MOST_CLASSES} of {} classes with the lowest AUC", classes.len());
    RankingCurves { title, classes: worst.into_iter().map(of_class).collect() }
}

/// Items by true and predicted class; of many classes those with the most errors, the others as one.
pub(super) fn confusion(title: String, predictions: &Predictions, classes: &[String]) -> Confusion {
    let matrix = predictions.confusion();
    let all = matrix.classes();
    if all <= MOST_CLASSES {
        let row = |truth| (0..all).map(|predicted| matrix.count(truth, predicted)).collect();
        return Confusion { title, classes: classes.to_vec(), counts: (0..all).map(row).collect() };
    }
    let mut errors = vec![0u64; all];
    for (&truth, &predicted) in predictions.truth().iter().zip(predictions.predicted()).filter(|(a, b)| a != b) {
        errors[truth as usize] += 1;
        errors[predicted as usize] += 1;
    }
    let shown = worst(all, |class| -(errors[class] as f64));
    let place: Vec<usize> =
        (0..all).map(|class| shown.iter().position(|&one| one == class).unwrap_or(MOST_CLASSES)).collect();
    let mut counts = vec![vec![0; MOST_CLASSES + 1]; MOST_CLASSES + 1];
    for (&truth, &predicted) in predictions.truth().iter().zip(predictions.predicted()) {
        counts[place[truth as usize]][place[predicted as usize]] += 1;
    }
    let others = format!("{} others", all - MOST_CLASSES);
    let names = shown.iter().map(|&class| classes[class].clone()).chain([others]).collect();
    let title = format!("{title}: the {MOST_CLASSES} of {all} classes with the most errors");
    Confusion { title, classes: names, counts }
}

/// The [`MOST_CLASSES`] of `all` classes with the lowest `value`, in their order.
fn worst(all: usize, value: impl Fn(usize) -> f64) -> Vec<usize> {
    let mut order: Vec<usize> = (0..all).collect();
    order.sort_by(|&a, &b| value(a).total_cmp(&value(b)));
    order.truncate(MOST_CLASSES);
    order.sort_unstable();
    order
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
