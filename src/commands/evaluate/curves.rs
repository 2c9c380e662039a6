//! ROC and precision-recall curves of predictions, kept for the report.

use evaluation::metric::Predictions;

use crate::report::{ClassCurve, RankingCurves};

/// Points kept of a curve, at most: more are closer together than a screen shows.
const MOST_POINTS: usize = 400;

/// The curves of every class; of two classes the second, whose curve is the first's turned round.
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
    let first = usize::from(classes.len() == 2);
    RankingCurves { title, classes: (first..classes.len()).map(of_class).collect() }
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
