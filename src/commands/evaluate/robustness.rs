//! `gensis evaluate robustness`: classifiers fitted on clean training images, asked about changed ones. Here the changes of
//! tissue; ImageNet's data sets are in `imagenet.rs`.
//!
//! Rows have the head `<shift>@<severity>`, `clean@0` for the images as they are, and `<shift>@mean` and `all@mean`; the
//! metrics `knn_accuracy`, `linear_accuracy` and `cosine` (of the embedding to that of the clean image, the mean).

use std::collections::HashMap;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use burn::tensor::Device;
use evaluation::knn::nearest;
use evaluation::linear::LinearHead;
use evaluation::metric::{Metric, Predictions};
use evaluation::table::ResultRow;
use serde_json::{Value, json};
use slide_io::{ImageFolder, PatchSource};

use super::linear::{self, Heads, failed, labelled_test};
use super::probed::{Probed, embedded, names};
use super::{Own, Scores, bootstrap, data_name, imagenet};
use crate::commands::Run;
use crate::commands::sources::{self, ImageSets, Input};
use crate::config::Robustness;
use crate::data::shift::{SEVERITIES, Shift, Shifted};
use crate::device;

/// Whether the settings ask for it: of slides for the changes of tissue.
pub(super) fn asked(run: &Run, input: &Input) -> bool {
    let settings = &run.experiment.evaluate.robustness;
    match input {
        Input::Images(_) => settings.enabled(),
        Input::Slides(_) => settings.tissue,
    }
}

/// What the figures depend on beside settings and encoders: the data sets. None where nothing is asked for.
pub(super) fn header(run: &Run) -> Option<Value> {
    run.experiment.evaluate.robustness.enabled().then(|| json!({ "sets": imagenet::fingerprints(run) }))
}

/// Refuses settings that ask for nothing.
pub(super) fn check(settings: &Robustness) -> Result<()> {
    ensure!(
        settings.enabled(),
        "nothing is asked for: set evaluate.robustness.tissue=true for changes of the test images, or name a folder with \
         evaluate.robustness.imagenet_a, _r, _sketch or _c, or folders with imagenet_v2"
    );
    Ok(())
}

/// Rows of everything that is configured, for every encoder. `heads` holds linear heads that are fitted already.
pub(super) fn robustness(run: &Run, images: &ImageSets, own: &Own, heads: &Heads) -> Result<Scores> {
    let settings = &run.experiment.evaluate.robustness;
    let test = labelled_test(images)
        .context("robustness needs test images in class folders: data.images with train/ and test/ (or val/)")?;
    let mut scores = Scores::default();
    for name in names(run, own) {
        let probed = match Probed::open(run, images, test, own, &name, &mut scores.failures) {
            Ok(probed) => probed,
            Err(error) => {
                scores.failures.push(failed(&name, &error));
                continue;
            }
        };
        let encoder = &probed.encoder;
        let head = match heads.get(&name) {
            Some(head) => Ok(head.clone()),
            None => linear::first_head(run, images, &probed, &mut scores.failures),
        };
        let head = match head {
            Ok(head) => head,
            Err(error) => {
                scores.failures.push(failed(&format!("{name}, linear probe"), &error));
                continue;
            }
        };
        let last = probed.last_block(&probed.train.table.values);
        let classifiers = Classifiers { run, probed: &probed, encoder, head, last, device: device::open(run.device)? };
        if settings.tissue
            && let Err(error) = tissue(&classifiers, test, &mut scores)
        {
            scores.failures.push(failed(&format!("{name}, shifted tissue"), &error));
        }
        if let Err(error) = imagenet::sets(&classifiers, &mut scores) {
            scores.failures.push(failed(&format!("{name}, ImageNet's sets"), &error));
        }
    }
    Ok(scores)
}

/// k-NN and the linear head of one encoder, fitted on clean training images.
pub(super) struct Classifiers<'a> {
    pub run: &'a Run,
    pub probed: &'a Probed,
    pub encoder: &'a crate::model::Encoder,
    head: LinearHead,
    /// The last block's features of the training images.
    last: Vec<f32>,
    device: Device,
}

impl Classifiers<'_> {
    /// Number of classes.
    pub fn classes(&self) -> &[String] {
        &self.probed.train.table.classes
    }

    /// Scores of every class by each classifier, by the prefix of its metrics: row-major `[rows, classes]`. `values` are
    /// features of all blocks.
    pub fn scores(&self, values: &[f32]) -> Result<Vec<(&'static str, Vec<f32>)>> {
        let mut all = Vec::new();
        let k = self.run.experiment.evaluate.robustness.k;
        if k > 0 {
            let (dim, queries) = (self.probed.train.table.dim / self.probed.blocks, self.probed.last_block(values));
            let neighbours = nearest(&self.last, &queries, dim, k, &self.device)?;
            let temperature = self.run.experiment.evaluate.knn.temperature;
            all.push(("knn", neighbours.votes(&self.probed.train.labels, self.classes().len(), k, temperature)));
        }
        all.push(("linear", self.head.probabilities(values, &self.device)?));
        Ok(all)
    }

    /// A row of this encoder without figures.
    pub fn base(&self, data: String, head: String, n: usize) -> ResultRow {
        ResultRow {
            task: "robustness".into(),
            data,
            encoder: self.probed.name.clone(),
            head,
            seed: Some(self.run.experiment.seed),
            n: n as u64,
            ..ResultRow::default()
        }
    }

    /// One accuracy with its interval, under a name with the classifier in front.
    pub fn accuracy(&self, base: &ResultRow, classifier: &str, predictions: &Predictions) -> Result<ResultRow> {
        let intervals = bootstrap(self.run).intervals(predictions, None, &[Metric::Accuracy])?;
        Ok(ResultRow { metric: format!("{classifier}_accuracy"), ..base.with(Metric::Accuracy, intervals[0]) })
    }
}

/// The test images as they are, and with every shift at every severity.
fn tissue(classifiers: &Classifiers, test: &Arc<ImageFolder>, scores: &mut Scores) -> Result<()> {
    let Classifiers { run, probed, encoder, .. } = classifiers;
    let clean = &probed.test;
    let row = |head: String, n: usize| classifiers.base(data_name(run), head, n);
    scores.rows.extend(accuracies(
        classifiers,
        &row("clean@0".into(), clean.labels.len()),
        &clean.table.values,
        &clean.labels,
    )?);
    let of_key: HashMap<_, usize> = clean.table.keys.iter().enumerate().map(|(at, key)| (key.clone(), at)).collect();
    // Images that the clean features lack are listed already.
    let known: Vec<usize> = (0..test.len()).filter(|&index| of_key.contains_key(&test.key(index))).collect();
    let mut shifted = Vec::new();
    for &shift in &run.experiment.evaluate.robustness.shifts {
        let mut of_shift = Vec::new();
        for severity in 1..=SEVERITIES {
            let name = format!("{}@{severity}", shift.name());
            let view = encoder.view.map_or(run.experiment.embed.resize, |view| view.resize);
            let source = shifted_source(run, test, shift, severity, view)?;
            let title = format!("{}, {name}", probed.name);
            let settings = &run.experiment.embed;
            let embedded =
                embedded(run, encoder, probed.blocks, source, known.clone(), settings, &title, &mut scores.failures)?;
            let kept: Vec<usize> = embedded.indices.iter().map(|&index| of_key[&test.key(index)]).collect();
            if kept.is_empty() {
                continue;
            }
            let labels: Vec<u32> = kept.iter().map(|&at| clean.labels[at]).collect();
            let base = row(name, labels.len());
            let mut rows = accuracies(classifiers, &base, &embedded.values, &labels)?;
            let before: Vec<f32> = kept.iter().flat_map(|&at| clean.table.row(at)).copied().collect();
            let width = clean.table.dim / probed.blocks;
            let cosine = mean_cosine(&probed.last_block(&embedded.values), &probed.last_block(&before), width);
            rows.push(ResultRow { metric: "cosine".into(), value: Some(cosine), ..base });
            of_shift.extend(rows);
        }
        let name = format!("{}@mean", shift.name());
        let means = means(&row(name, known.len()), &of_shift);
        scores.rows.extend(of_shift.iter().cloned().chain(means));
        shifted.extend(of_shift);
    }
    scores.rows.extend(means(&row("all@mean".into(), known.len()), &shifted));
    Ok(())
}

/// The shift comes before the stain is normalised, as it would from another laboratory.
fn shifted_source(
    run: &Run,
    test: &Arc<ImageFolder>,
    shift: Shift,
    severity: usize,
    view: u32,
) -> Result<Arc<dyn PatchSource>> {
    let seed = run.experiment.seed;
    let shifted = Arc::new(Shifted { source: test.clone(), shift, severity, view, seed });
    Ok(match sources::normalized(run, shifted.clone())? {
        Some(normalized) => normalized,
        None => shifted,
    })
}

/// A row for each classifier.
fn accuracies(classifiers: &Classifiers, base: &ResultRow, values: &[f32], labels: &[u32]) -> Result<Vec<ResultRow>> {
    let classes = classifiers.classes().len();
    let row = |(classifier, scores): (&'static str, Vec<f32>)| {
        classifiers.accuracy(base, classifier, &Predictions::new(labels.to_vec(), scores, classes)?)
    };
    classifiers.scores(values)?.into_iter().map(row).collect()
}

/// Means over rows, one for each of their metrics, in order of appearance.
pub(super) fn means(base: &ResultRow, rows: &[ResultRow]) -> Vec<ResultRow> {
    let mut metrics: Vec<&String> = Vec::new();
    for row in rows {
        if !metrics.contains(&&row.metric) {
            metrics.push(&row.metric);
        }
    }
    let mean = |metric: &&String| {
        let values: Vec<f64> = rows.iter().filter(|row| row.metric == **metric).filter_map(|row| row.value).collect();
        let mean = values.iter().sum::<f64>() / values.len() as f64;
        ResultRow { metric: (*metric).clone(), value: (!values.is_empty()).then_some(mean), ..base.clone() }
    };
    metrics.iter().map(mean).collect()
}

/// Mean cosine of the rows of two matrices with rows of `dim` numbers.
pub(super) fn mean_cosine(a: &[f32], b: &[f32], dim: usize) -> f64 {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
    let cosine = |(a, b): (&[f32], &[f32])| dot(a, b) / (dot(a, a) * dot(b, b)).sqrt().max(1e-12);
    let rows = a.len() / dim;
    a.chunks_exact(dim).zip(b.chunks_exact(dim)).map(cosine).sum::<f64>() / rows.max(1) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn means_are_of_each_metric_and_cosines_of_each_row() {
        let row = |metric: &str, value| ResultRow { metric: metric.into(), value, ..ResultRow::default() };
        let rows = [row("a", Some(0.5)), row("b", Some(3.0)), row("a", Some(1.0)), row("b", None), row("c", None)];
        let found: Vec<_> =
            means(&ResultRow::default(), &rows).into_iter().map(|row| (row.metric, row.value)).collect();
        let named = |metric: &str, value| (metric.to_owned(), value);
        assert_eq!(found, [named("a", Some(0.75)), named("b", Some(3.0)), named("c", None)]);
        let cosine = mean_cosine(&[1.0, 0.0, 0.0, 2.0], &[3.0, 4.0, 0.0, -1.0], 2);
        assert!((cosine - (0.6 - 1.0) / 2.0).abs() < 1e-12, "{cosine}");
    }
}
