//! ImageNet's data sets of shifted images under `gensis evaluate robustness`: each is read from its folder, its classes are
//! matched with those of the training images, and k-NN and the linear head that were fitted on these are asked.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use evaluation::metric::{Metric, Predictions};
use evaluation::robustness::{
    self as protocol, CORRUPTIONS, EXTRA_CORRUPTIONS, IMAGENET_CLASSES, SEVERITIES, Subset, corruption_error,
    mean_corruption_error,
};
use evaluation::table::ResultRow;
use serde_json::{Value, json};
use slide_io::{ImageFolder, PatchSource};

use super::linear::failed;
use super::probed::embedded;
use super::robustness::{Classifiers, means};
use super::{Scores, bootstrap, data_name, rows_of};
use crate::commands::{Run, sources};
use crate::config::View;
use crate::run_dir::Failure;

/// How a set's images are labelled and scored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// Class folders by name, scores of all classes.
    Named,
    /// Class folders by name, scores among the classes of the subset.
    Among(Subset),
    /// Class folders by index.
    Numbered,
}

/// The sets that are configured but ImageNet-C: name, folder, kind.
fn configured(run: &Run) -> Vec<(String, PathBuf, Kind)> {
    let settings = &run.experiment.evaluate.robustness;
    let mut sets = vec![
        ("imagenet-a".to_owned(), settings.imagenet_a.clone(), Kind::Among(Subset::A)),
        ("imagenet-r".to_owned(), settings.imagenet_r.clone(), Kind::Among(Subset::R)),
        ("imagenet-sketch".to_owned(), settings.imagenet_sketch.clone(), Kind::Named),
    ];
    let version_2 = |folder: &PathBuf| {
        // imagenetv2-matched-frequency-format-val, and its two siblings.
        let name = folder.file_name().map_or_else(|| "imagenetv2".into(), |name| name.to_string_lossy().into_owned());
        (name, folder.clone(), Kind::Numbered)
    };
    sets.extend(settings.imagenet_v2.iter().map(version_2));
    sets.retain(|(_, folder, _)| !folder.as_os_str().is_empty());
    sets
}

/// Which images the configured folders hold; null for one that cannot be opened.
pub(super) fn fingerprints(run: &Run) -> Value {
    let folder = |path: &Path| ImageFolder::open(path).ok().map(|folder| sources::images_fingerprint(&folder));
    let sets: Vec<Value> = configured(run).iter().map(|(name, path, _)| json!([name, folder(path)])).collect();
    let corrupted = &run.experiment.evaluate.robustness.imagenet_c;
    let of_corruption = |name: &str| (1..=SEVERITIES).map(|s| corrupted_folder(corrupted, name, s)).collect::<Vec<_>>();
    let corruptions: Vec<Value> = match corrupted.as_os_str().is_empty() {
        true => vec![],
        false => all_corruptions()
            .flat_map(|name| of_corruption(name).into_iter().map(move |path| (name, path)))
            .map(|(name, path)| json!([name, path.map(|path| folder(&path))]))
            .collect(),
    };
    json!([sets, corruptions])
}

/// Rows of every configured set; one that cannot be scored is listed.
pub(super) fn sets(classifiers: &Classifiers, scores: &mut Scores) -> Result<()> {
    for (name, folder, kind) in configured(classifiers.run) {
        if let Err(error) = plain(classifiers, &name, &folder, kind, scores) {
            scores.failures.push(failed(&folder.display().to_string(), &error));
        }
    }
    let corrupted = &classifiers.run.experiment.evaluate.robustness.imagenet_c;
    if !corrupted.as_os_str().is_empty() {
        corruptions(classifiers, corrupted, scores)?;
    }
    Ok(())
}

/// The images of a set whose class is known, with its index among the training classes.
struct Set {
    folder: Arc<ImageFolder>,
    indices: Vec<usize>,
    labels: Vec<u32>,
}

impl Set {
    /// Reads a folder's names. Classes that the training images lack are listed: their images count in no score.
    fn open(path: &Path, kind: Kind, classes: &[String], failures: &mut Vec<Failure>) -> Result<Self> {
        let folder = Arc::new(ImageFolder::open(path)?);
        ensure!(!folder.classes().is_empty(), "its images are not in class folders");
        let of_folder = match kind {
            Kind::Numbered => {
                ensure!(
                    classes.len() == IMAGENET_CLASSES,
                    "its folders are indices of ImageNet's {IMAGENET_CLASSES} classes, and the training images have {}",
                    classes.len()
                );
                protocol::by_number(folder.classes(), classes.len())?
            }
            Kind::Named | Kind::Among(_) => protocol::by_name(folder.classes(), classes),
        };
        let unknown: Vec<&String> = folder
            .classes()
            .iter()
            .zip(&of_folder)
            .filter(|(_, class)| class.is_none())
            .map(|(name, _)| name)
            .collect();
        ensure!(unknown.len() < of_folder.len(), "none of its classes is among those of the training images");
        if let Some(first) = unknown.first() {
            let reason = format!(
                "{} of its classes ({first} ...) are not among the training classes: they count in no score",
                unknown.len()
            );
            let failure = Failure { stage: "evaluate".into(), item: path.display().to_string(), reason };
            if !failures.contains(&failure) {
                failures.push(failure);
            }
        }
        let class = |index: usize| of_folder[folder.label(index)? as usize];
        let (indices, labels) = (0..folder.len()).filter_map(|index| Some((index, class(index)?))).unzip();
        Ok(Self { folder, indices, labels })
    }

    /// Features of the images that can be read, and their labels.
    fn embedded(
        &self,
        classifiers: &Classifiers,
        sizes: Sizes,
        title: &str,
        failures: &mut Vec<Failure>,
    ) -> Result<(Vec<f32>, Vec<u32>)> {
        let Classifiers { run, probed, encoder, .. } = classifiers;
        let (mut encoder, mut settings) = ((*encoder).clone(), run.experiment.embed.clone());
        if sizes == Sizes::Final {
            settings.resize = 0;
            encoder.view = encoder.view.map(|view| View { resize: 0, ..view });
        }
        let source = sources::images(run, &self.folder)?;
        let title = format!("{}, {title}", probed.name);
        let all = self.indices.clone();
        let embedded = embedded(run, &encoder, probed.blocks, source, all, &settings, &title, failures)?;
        ensure!(!embedded.indices.is_empty(), "none of its images can be read");
        let label = |index: &usize| self.indices.binary_search(index).ok().map(|at| self.labels[at]);
        let labels = embedded.indices.iter().map(label).collect::<Option<Vec<u32>>>();
        Ok((embedded.values, labels.context("an image was embedded that was not asked for")?))
    }
}

/// What becomes of an image before the centre crop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sizes {
    /// It is resized, as the encoder's test images are.
    Any,
    /// Nothing: ImageNet-C's are cut to 224 px already.
    Final,
}

/// The classes that a subset's scores are taken among: the published ones of ImageNet's thousand, or with other training
/// classes those that the folder has.
fn kept(subset: Subset, set: &Set, classes: usize) -> Result<Vec<u32>> {
    let mut found = set.labels.clone();
    found.sort_unstable();
    found.dedup();
    if classes != IMAGENET_CLASSES {
        return Ok(found);
    }
    let published = subset.classes();
    if let Some(other) = found.iter().find(|class| published.binary_search(class).is_err()) {
        bail!(
            "class number {other} is not one of the {} of this data set: is the folder the right one?",
            published.len()
        );
    }
    Ok(published)
}

/// A set of natural images: rows of both classifiers with all metrics, and for a subset the clean test images among the same
/// classes.
fn plain(classifiers: &Classifiers, name: &str, path: &Path, kind: Kind, scores: &mut Scores) -> Result<()> {
    let (run, classes) = (classifiers.run, classifiers.classes());
    let set = Set::open(path, kind, classes, &mut scores.failures)?;
    let kept = match kind {
        Kind::Among(subset) => Some(kept(subset, &set, classes.len())?),
        Kind::Named | Kind::Numbered => None,
    };
    let (values, labels) = set.embedded(classifiers, Sizes::Any, name, &mut scores.failures)?;
    scores.rows.extend(rows(classifiers, name, &values, &labels, kept.as_deref())?);
    if let Some(kept) = kept {
        let clean = &classifiers.probed.test;
        let among: Vec<usize> = (0..clean.labels.len()).filter(|&at| kept.contains(&clean.labels[at])).collect();
        let values: Vec<f32> = among.iter().flat_map(|&at| clean.table.row(at)).copied().collect();
        let labels: Vec<u32> = among.iter().map(|&at| clean.labels[at]).collect();
        let name = format!("{}, classes of {name}", data_name(run));
        scores.rows.extend(rows(classifiers, &name, &values, &labels, Some(&kept))?);
    }
    Ok(())
}

/// All metrics of both classifiers, among the classes `kept` where they are given.
fn rows(
    classifiers: &Classifiers,
    data: &str,
    values: &[f32],
    labels: &[u32],
    kept: Option<&[u32]>,
) -> Result<Vec<ResultRow>> {
    let (run, classes) = (classifiers.run, classifiers.classes().len());
    let mut rows = Vec::new();
    for (classifier, scores) in classifiers.scores(values)? {
        let predictions = match kept {
            Some(kept) => protocol::among(&scores, classes, labels, kept)?,
            None => Predictions::new(labels.to_vec(), scores, classes)?,
        };
        let head = match classifier {
            "knn" => format!("{}-NN", run.experiment.evaluate.robustness.k),
            other => other.to_owned(),
        };
        let base = classifiers.base(data.to_owned(), head, labels.len());
        rows.extend(rows_of(&base, &predictions, None, &bootstrap(run))?);
    }
    Ok(rows)
}

fn all_corruptions() -> impl Iterator<Item = &'static str> {
    CORRUPTIONS.into_iter().map(|(name, _)| name).chain(EXTRA_CORRUPTIONS)
}

/// `<root>/<corruption>/<severity>`, or the same within a group of corruptions (`blur`, `digital`, `noise`, ...).
fn corrupted_folder(root: &Path, corruption: &str, severity: usize) -> Option<PathBuf> {
    let within =
        |folder: PathBuf| Some(folder.join(corruption).join(severity.to_string())).filter(|path| path.is_dir());
    let mut groups: Vec<PathBuf> = root.read_dir().ok()?.flatten().map(|entry| entry.path()).collect();
    groups.sort();
    within(root.to_owned()).or_else(|| groups.into_iter().find_map(within))
}

/// ImageNet-C: accuracies per corruption and severity, corruption errors, and their mean where all fifteen are there.
fn corruptions(classifiers: &Classifiers, root: &Path, scores: &mut Scores) -> Result<()> {
    let row = |head: String, n: usize| classifiers.base("imagenet-c".into(), head, n);
    let (mut all, mut errors, mut missing) = (Vec::new(), Vec::new(), Vec::new());
    let (mut images, mut complete) = (0, true);
    for corruption in all_corruptions() {
        let mut of_corruption = Vec::new();
        for severity in 1..=SEVERITIES {
            let name = format!("{corruption}@{severity}");
            let Some(folder) = corrupted_folder(root, corruption, severity) else {
                if !EXTRA_CORRUPTIONS.contains(&corruption) {
                    missing.push(name);
                }
                continue;
            };
            match corrupted(classifiers, &folder, &name, &row, &mut scores.failures) {
                Ok(rows) => of_corruption.extend(rows),
                Err(error) => scores.failures.push(failed(&folder.display().to_string(), &error)),
            }
        }
        images = of_corruption.iter().map(|row: &ResultRow| row.n as usize).max().unwrap_or(0).max(images);
        let base = row(format!("{corruption}@mean"), images);
        // A mean over some of the severities would be compared with means over all of them.
        let whole = of_corruption.iter().filter(|row| row.metric == "linear_accuracy").count() == SEVERITIES;
        complete &= whole || EXTRA_CORRUPTIONS.contains(&corruption);
        let mut means = if whole { means(&base, &of_corruption) } else { vec![] };
        for classifier in ["knn", "linear"] {
            if let Some(error) = relative_error(&of_corruption, corruption, classifier, classifiers.classes().len()) {
                errors.push((classifier, (corruption.to_owned(), error)));
                means.push(ResultRow { metric: format!("{classifier}_ce"), value: Some(error), ..base.clone() });
            }
        }
        scores.rows.extend(of_corruption.iter().cloned().chain(means));
        if !EXTRA_CORRUPTIONS.contains(&corruption) {
            all.extend(of_corruption);
        }
    }
    if !missing.is_empty() {
        let reason = format!(
            "{} of {} folders of ImageNet-C are missing ({} ...): there is no mean corruption error",
            missing.len(),
            CORRUPTIONS.len() * SEVERITIES,
            missing[0]
        );
        let failure = Failure { stage: "evaluate".into(), item: root.display().to_string(), reason };
        if !scores.failures.contains(&failure) {
            scores.failures.push(failure);
        }
    }
    let base = row("all@mean".into(), images);
    if complete {
        scores.rows.extend(means(&base, &all));
    }
    for classifier in ["knn", "linear"] {
        let of_classifier: Vec<(String, f64)> =
            errors.iter().filter(|(name, _)| *name == classifier).map(|(_, error)| error.clone()).collect();
        if let Some(mean) = mean_corruption_error(&of_classifier) {
            scores.rows.push(ResultRow { metric: format!("{classifier}_mce"), value: Some(mean), ..base.clone() });
        }
    }
    Ok(())
}

/// Accuracies of one corruption at one severity.
fn corrupted(
    classifiers: &Classifiers,
    folder: &Path,
    name: &str,
    row: &impl Fn(String, usize) -> ResultRow,
    failures: &mut Vec<Failure>,
) -> Result<Vec<ResultRow>> {
    let set = Set::open(folder, Kind::Named, classifiers.classes(), failures)?;
    let (values, labels) = set.embedded(classifiers, Sizes::Final, name, failures)?;
    let base = row(name.to_owned(), labels.len());
    let accuracy = |(classifier, scores): (&'static str, Vec<f32>)| {
        let predictions = Predictions::new(labels.clone(), scores, classifiers.classes().len())?;
        classifiers.accuracy(&base, classifier, &predictions)
    };
    classifiers.scores(&values)?.into_iter().map(accuracy).collect()
}

/// The corruption error relative to AlexNet's, which is one on all thousand classes; none with others, or where a severity is
/// missing.
fn relative_error(rows: &[ResultRow], corruption: &str, classifier: &str, classes: usize) -> Option<f64> {
    let metric = format!("{classifier}_{}", Metric::Accuracy.name());
    let errors: Vec<f64> =
        rows.iter().filter(|row| row.metric == metric).filter_map(|row| row.value).map(|right| 1.0 - right).collect();
    let errors: [f64; SEVERITIES] = errors.try_into().ok().filter(|_| classes == IMAGENET_CLASSES)?;
    corruption_error(corruption, errors)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(path: PathBuf) {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        image::RgbImage::new(4, 4).save(path).unwrap();
    }

    fn thousand() -> Vec<String> {
        (0..IMAGENET_CLASSES).map(|rank| format!("n{rank:08}")).collect()
    }

    #[test]
    fn classes_come_from_names_or_numbers_and_unknown_ones_are_listed() {
        let root = tempfile::tempdir().unwrap();
        for class in ["n00000006", "n00000011", "n99999999"] {
            image(root.path().join("a").join(class).join("x.png"));
        }
        for class in ["10", "2"] {
            image(root.path().join("v2").join(class).join("x.png"));
        }
        let mut failures = Vec::new();
        let a = Set::open(&root.path().join("a"), Kind::Among(Subset::A), &thousand(), &mut failures).unwrap();
        assert_eq!((&a.indices[..], &a.labels[..]), (&[0, 1][..], &[6, 11][..]));
        assert!(failures.len() == 1 && failures[0].reason.contains("1 of its classes (n99999999"), "{failures:?}");
        assert_eq!(kept(Subset::A, &a, IMAGENET_CLASSES).unwrap(), Subset::A.classes());
        assert_eq!(kept(Subset::A, &a, 12).unwrap(), [6, 11]);
        // 6 and 11 are classes of ImageNet-R too; 15 is not.
        assert!(kept(Subset::R, &a, IMAGENET_CLASSES).is_ok());
        let other = Set { folder: a.folder.clone(), indices: vec![0], labels: vec![15] };
        assert!(kept(Subset::R, &other, IMAGENET_CLASSES).unwrap_err().to_string().contains("class number 15"));
        let v2 = Set::open(&root.path().join("v2"), Kind::Numbered, &thousand(), &mut failures).unwrap();
        assert_eq!(v2.labels, [2, 10]);
        let few = ["a", "b"].map(String::from);
        let error = |kind, folder: &str| {
            let opened = Set::open(&root.path().join(folder), kind, &few, &mut Vec::new());
            format!("{:#}", opened.err().unwrap())
        };
        assert!(error(Kind::Numbered, "v2").contains("the training images have 2"));
        assert!(error(Kind::Named, "a").contains("none of its classes"));
        assert!(error(Kind::Named, "gone").contains("gone"));
    }

    #[test]
    fn corruptions_are_found_within_groups_and_without() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(root.path().join("fog/3")).unwrap();
        std::fs::create_dir_all(root.path().join("blur/defocus_blur/1")).unwrap();
        let found = |name, severity| corrupted_folder(root.path(), name, severity);
        assert_eq!(found("fog", 3), Some(root.path().join("fog/3")));
        assert_eq!(found("defocus_blur", 1), Some(root.path().join("blur/defocus_blur/1")));
        assert_eq!((found("fog", 1), found("snow", 1)), (None, None));
        assert_eq!(all_corruptions().count(), 19);
    }

    #[test]
    fn a_corruption_error_needs_all_severities_and_all_classes() {
        let row = |metric: &str, value| ResultRow { metric: metric.into(), value: Some(value), ..ResultRow::default() };
        let mut rows: Vec<ResultRow> = (1..=5).map(|_| row("linear_accuracy", 1.0 - 0.819324 / 2.0)).collect();
        rows.push(row("knn_accuracy", 0.5));
        let error = relative_error(&rows, "fog", "linear", 1000).unwrap();
        assert!((error - 0.5).abs() < 1e-12);
        assert_eq!(relative_error(&rows, "fog", "linear", 999), None);
        assert_eq!(relative_error(&rows, "fog", "knn", 1000), None);
    }
}
