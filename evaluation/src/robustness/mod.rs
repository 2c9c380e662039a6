//! Benchmarks of distribution shift on ImageNet's classes: which classes a data set has, scores among them alone, and the
//! corruption errors of ImageNet-C.
//!
//! Sources: Hendrycks et al., "Natural Adversarial Examples", 2021 (ImageNet-A) and "The Many Faces of Robustness", 2021
//! (ImageNet-R); Wang et al., "Learning Robust Global Representations by Penalizing Local Predictive Power", 2019
//! (ImageNet-Sketch); Recht et al., "Do ImageNet Classifiers Generalize to ImageNet?", 2019 (ImageNet-V2); Hendrycks and
//! Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and Perturbations", 2019 (ImageNet-C).

use crate::error::{Error, Result};
use crate::metric::Predictions;

/// Number of classes of ImageNet.
pub const IMAGENET_CLASSES: usize = 1000;

/// A data set with some of ImageNet's classes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Subset {
    /// ImageNet-A.
    A,
    /// ImageNet-R.
    R,
}

impl Subset {
    /// Its 200 class indices, ascending: ranks of the WordNet ids among ImageNet's thousand, sorted.
    pub fn classes(self) -> Vec<u32> {
        let lines = match self {
            Self::A => include_str!("imagenet_a.txt"),
            Self::R => include_str!("imagenet_r.txt"),
        };
        lines.split_whitespace().filter_map(|line| line.parse().ok()).collect()
    }
}

/// Index among the classes `known` of each of the class folders `names`, where it is one of them.
pub fn by_name(names: &[String], known: &[String]) -> Vec<Option<u32>> {
    names.iter().map(|name| known.iter().position(|known| known == name).map(|rank| rank as u32)).collect()
}

/// As [`by_name`] for folders that are named by class index, as ImageNet-V2's. They are numbers, not text: "10" is not
/// before "2".
///
/// # Errors
/// A name that is no index of `classes`.
pub fn by_number(names: &[String], classes: usize) -> Result<Vec<Option<u32>>> {
    let index = |name: &String| match name.parse::<u32>() {
        Ok(index) if (index as usize) < classes => Ok(Some(index)),
        _ => Err(Error::usage(format!("the class folder {name} is not a number from 0 to {}", classes - 1))),
    };
    names.iter().map(index).collect()
}

/// Scores among the classes `kept` (ascending) alone, with `scores` row-major over all `classes` and `truth` one of those
/// kept. Rows are scaled to a sum of 1, which changes no order; a row without any score among them becomes uniform.
///
/// # Errors
/// A true class that is not kept, a class beyond `classes`, or lengths that do not match.
pub fn among(scores: &[f32], classes: usize, truth: &[u32], kept: &[u32]) -> Result<Predictions> {
    if classes == 0 || scores.len() != truth.len() * classes || kept.iter().any(|&class| class as usize >= classes) {
        return Err(Error::usage(format!("{} scores of {classes} classes for {} images", scores.len(), truth.len())));
    }
    let rank = |class: &u32| {
        let found = kept.binary_search(class).map(|rank| rank as u32);
        found.map_err(|_| Error::usage(format!("class number {class} is not among the {} that are scored", kept.len())))
    };
    let truth = truth.iter().map(rank).collect::<Result<Vec<u32>>>()?;
    let mut masked = Vec::with_capacity(truth.len() * kept.len());
    for row in scores.chunks_exact(classes) {
        let total: f32 = kept.iter().map(|&class| row[class as usize]).sum();
        let share = |&class: &u32| if total > 0.0 { row[class as usize] / total } else { 1.0 / kept.len() as f32 };
        masked.extend(kept.iter().map(share));
    }
    Predictions::new(truth, masked, kept.len())
}

/// Severities of ImageNet-C.
pub const SEVERITIES: usize = 5;

/// The corruptions of ImageNet-C that count in the mean, with the mean error of AlexNet over their severities.
pub const CORRUPTIONS: [(&str, f64); 15] = [
    ("gaussian_noise", 0.886428),
    ("shot_noise", 0.894468),
    ("impulse_noise", 0.922640),
    ("defocus_blur", 0.819880),
    ("glass_blur", 0.826268),
    ("motion_blur", 0.785948),
    ("zoom_blur", 0.798360),
    ("snow", 0.866816),
    ("frost", 0.826572),
    ("fog", 0.819324),
    ("brightness", 0.564592),
    ("contrast", 0.853204),
    ("elastic_transform", 0.646056),
    ("pixelate", 0.717840),
    ("jpeg_compression", 0.606500),
];

/// The extra corruptions, which do not count in the mean.
pub const EXTRA_CORRUPTIONS: [&str; 4] = ["speckle_noise", "gaussian_blur", "spatter", "saturate"];

/// Corruption error: the mean error over the five severities relative to AlexNet's; `None` for an extra corruption.
pub fn corruption_error(corruption: &str, errors: [f64; SEVERITIES]) -> Option<f64> {
    let (_, alexnet) = CORRUPTIONS.into_iter().find(|(name, _)| *name == corruption)?;
    Some(errors.iter().sum::<f64>() / SEVERITIES as f64 / alexnet)
}

/// mCE: the mean of the fifteen corruption errors; `None` unless each of them is there. 1 is AlexNet; the field quotes it
/// times 100.
pub fn mean_corruption_error(errors: &[(String, f64)]) -> Option<f64> {
    let of = |(name, _): (&str, f64)| errors.iter().find(|(known, _)| known == name).map(|(_, error)| *error);
    let all = CORRUPTIONS.into_iter().map(of).collect::<Option<Vec<f64>>>()?;
    Some(all.iter().sum::<f64>() / all.len() as f64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metric::Metric;

    #[test]
    fn the_subsets_have_200_classes_each_86_of_them_in_both() {
        let (a, r) = (Subset::A.classes(), Subset::R.classes());
        for classes in [&a, &r] {
            assert_eq!(classes.len(), 200);
            assert!(classes.is_sorted_by(|a, b| a < b) && classes[199] < 1000);
        }
        assert_eq!(a.iter().filter(|class| r.contains(class)).count(), 86);
        assert_eq!((a[0], a[199], r[0], r[199]), (6, 988, 1, 988));
    }

    #[test]
    fn folders_are_matched_by_name_or_number() {
        let names = |names: &[&str]| names.iter().map(|name| name.to_string()).collect::<Vec<_>>();
        let known = names(&["n01", "n02", "n03"]);
        assert_eq!(by_name(&names(&["n03", "n09"]), &known), [Some(2), None]);
        assert_eq!(by_number(&names(&["0", "2", "10"]), 11).unwrap(), [Some(0), Some(2), Some(10)]);
        let error = by_number(&names(&["n01"]), 1000).unwrap_err().to_string();
        assert!(error.contains("n01 is not a number from 0 to 999"), "{error}");
        assert!(by_number(&names(&["11"]), 11).is_err());
    }

    #[test]
    fn masked_scores_are_compared_among_the_kept_classes_alone() {
        // Class 0 would win both rows.
        let scores = [0.7, 0.1, 0.2, 0.9, 0.1, 0.0];
        let p = among(&scores, 3, &[2, 1], &[1, 2]).unwrap();
        assert_eq!((p.predicted(), p.truth()), (&[1, 0][..], &[1, 0][..]));
        assert_eq!(p.value(Metric::Accuracy), Some(1.0));
        assert!((p.scores(0)[1] - 2.0 / 3.0).abs() < 1e-6 && p.are_probabilities());
        // No vote for a kept class at all.
        assert_eq!(among(&[1.0, 0.0, 0.0], 3, &[2], &[1, 2]).unwrap().scores(0), [0.5, 0.5]);
        assert!(among(&scores, 3, &[0, 1], &[1, 2]).is_err());
        assert!(among(&scores, 3, &[2], &[1, 2]).is_err());
        assert!(among(&scores, 3, &[2, 1], &[1, 3]).is_err());
    }

    /// AlexNet is 1 by definition; halving one corruption's error takes half of a fifteenth.
    #[test]
    fn corruption_errors_are_relative_to_alexnet() {
        let mut all: Vec<(String, f64)> = CORRUPTIONS
            .iter()
            .map(|(name, error)| (name.to_string(), corruption_error(name, [*error; 5]).unwrap()))
            .collect();
        assert!((mean_corruption_error(&all).unwrap() - 1.0).abs() < 1e-12);
        all[3].1 *= 0.5;
        assert!((mean_corruption_error(&all).unwrap() - (1.0 - 0.5 / 15.0)).abs() < 1e-12);
        assert_eq!(corruption_error("saturate", [0.5; 5]), None);
        let fog = corruption_error("fog", [0.1, 0.2, 0.3, 0.4, 0.5]).unwrap();
        assert!((fog - 0.3 / 0.819324).abs() < 1e-12);
        all.pop();
        assert_eq!(mean_corruption_error(&all), None);
    }
}
