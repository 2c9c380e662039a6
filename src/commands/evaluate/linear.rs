//! `gensis evaluate linear`: linear probes of the frozen encoders on image folders, and few-shot probes.

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::{Context, Result, anyhow};
use burn::tensor::Device;
use evaluation::bootstrap::Bootstrap;
use evaluation::linear::sgd::{self, SgdConfig, Trained};
use evaluation::linear::sweep::{Chosen, Sweep};
use evaluation::linear::{LinearHead, few_shot::FewShot, logistic::Effort};
use evaluation::metric::Predictions;
use evaluation::table::ResultRow;
use serde_json::{Value, json};
use slide_io::{ImageFolder, PatchSource};

use super::probed::{Features, Probed, names};
use super::{Own, Scores, bootstrap, data_name, drawn, rows_of};
use crate::commands::progress::Progress;
use crate::commands::sources::{self, ImageSets};
use crate::commands::{Run, unreadable};
use crate::config::{Linear, Probe};
use crate::data::ProbeCrops;
use crate::data::loader::{Batches, TrainingLoader};
use crate::device;
use crate::run_dir::Failure;

/// What was chosen and how trainings went, for whoever doubts a figure.
pub(super) const RECORD: &str = "results/linear.json";

/// Batches of crops made ahead of the encoder.
const AHEAD: usize = 4;

/// Heads by the name of their encoder.
pub(super) type Heads = BTreeMap<String, LinearHead>;

/// Rows of every probe of every encoder, and the head of the first probe of each.
pub(super) fn linear(run: &Run, images: &ImageSets, own: &Own) -> Result<(Scores, Heads)> {
    let (mut scores, mut heads) = (Scores::default(), Heads::new());
    let Some(test) = labelled_test(images) else { return Ok((scores, heads)) };
    let mut records = Vec::new();
    for name in names(run, own) {
        let probed = match Probed::open(run, images, test, own, &name, &mut scores.failures) {
            Ok(probed) => probed,
            Err(error) => {
                scores.failures.push(failed(&name, &error));
                continue;
            }
        };
        for (number, &probe) in run.experiment.evaluate.linear.probes.iter().enumerate() {
            match fit(run, images, &probed, probe, &mut scores.failures) {
                Ok(fit) => {
                    scores.take(run, &probed, &fit)?;
                    records.push(fit.record);
                    if number == 0 {
                        heads.insert(name.clone(), fit.head);
                    }
                }
                Err(error) => scores.failures.push(failed(&format!("{name}, {}", title(probe)), &error)),
            }
        }
        few_shots(run, &probed, &mut scores)?;
    }
    if !records.is_empty() {
        slide_io::atomic_file::write(&run.dir.file(RECORD)?, &serde_json::to_vec_pretty(&records)?)?;
    }
    Ok((scores, heads))
}

/// The test images, if they have classes.
pub(super) fn labelled_test(images: &ImageSets) -> Option<&Arc<ImageFolder>> {
    images.test.as_ref().filter(|folder| !folder.classes().is_empty())
}

/// The head of the first probe.
pub(super) fn first_head(
    run: &Run,
    images: &ImageSets,
    probed: &Probed,
    failures: &mut Vec<Failure>,
) -> Result<LinearHead> {
    let probe = run.experiment.evaluate.linear.probes[0];
    Ok(fit(run, images, probed, probe, failures)?.head)
}

fn title(probe: Probe) -> &'static str {
    match probe {
        Probe::Logistic => "logistic",
        Probe::Sgd => "sgd",
    }
}

/// Something of which the rest goes on.
pub(super) fn failed(item: &str, error: &anyhow::Error) -> Failure {
    Failure { stage: "evaluate".into(), item: item.into(), reason: format!("{error:#}") }
}

/// A fitted probe.
struct Fit {
    head: LinearHead,
    /// Names of heads for the table, with what they say of the test images.
    predictions: Vec<(String, Predictions)>,
    record: Value,
}

fn fit(run: &Run, images: &ImageSets, probed: &Probed, probe: Probe, failures: &mut Vec<Failure>) -> Result<Fit> {
    let device = device::open(run.device)?;
    match probe {
        Probe::Logistic => logistic(run, probed, &device),
        Probe::Sgd => descent(run, images, probed, &device, failures),
    }
}

fn logistic(run: &Run, probed: &Probed, device: &Device) -> Result<Fit> {
    let Linear { l2, validation, .. } = &run.experiment.evaluate.linear;
    let sweep = Sweep { l2: l2.clone(), validation: *validation, seed: run.experiment.seed, effort: Effort::default() };
    let progress = Progress::new("evaluate", 1, "probe");
    let chosen = sweep.fit(&probed.train.rows()?, device)?;
    let Chosen { fitted, l2, candidates, held_out } = chosen;
    let words = match candidates.iter().find(|candidate| candidate.l2 == l2) {
        Some(best) => format!("l2 {l2} chosen by {held_out} held-out training images ({:.3} right)", best.accuracy),
        None => format!("l2 {l2}"),
    };
    let name = format!("logistic{}", probed.suffix());
    progress.finish(&format!("{}, {name}: {words}, {} steps", probed.name, fitted.iterations));
    let edges = candidates.first().zip(candidates.last());
    if edges.is_some_and(|(first, last)| candidates.len() > 1 && (l2 == first.l2 || l2 == last.l2)) {
        eprintln!(
            "evaluate: {}, {name}: {l2} lies at an end of evaluate.linear.l2: a wider range may do better",
            probed.name
        );
    }
    let record = json!({
        "encoder": probed.name, "head": name, "l2": l2, "held_out": held_out, "candidates": candidates,
        "steps": fitted.iterations, "gradient": fitted.gradient,
    });
    let predictions = fitted.head.predictions(&probed.test.rows()?, device)?;
    Ok(Fit { head: fitted.head, predictions: vec![(name, predictions)], record })
}

fn descent(
    run: &Run,
    images: &ImageSets,
    probed: &Probed,
    device: &Device,
    failures: &mut Vec<Failure>,
) -> Result<Fit> {
    let Linear { epochs, batch, lr, momentum, augment, .. } = run.experiment.evaluate.linear;
    let config = SgdConfig { epochs, batch, lr, momentum, seed: run.experiment.seed };
    let trained = if augment {
        streamed(run, images, probed, &config, device, failures)?
    } else {
        let progress = Progress::new("evaluate", 1, "probe");
        let trained = sgd::train_on(&probed.train.rows()?, &probed.test.rows()?, &config, device)?;
        progress.finish(&format!("{}, sgd, {epochs} epochs", probed.name));
        trained
    };
    let name = format!("sgd{}{}", if augment { ", augmented" } else { "" }, probed.suffix());
    let best = trained.best_epoch();
    let Trained { last, last_predictions, best_on_test, history } = trained;
    let record = json!({ "encoder": probed.name, "head": name, "settings": config, "best_epoch_on_test": best, "history": history });
    let predictions =
        vec![(format!("{name}, last epoch"), last_predictions), (format!("{name}, best epoch on test"), best_on_test)];
    Ok(Fit { head: last, predictions, record })
}

/// DINO's whole protocol: every epoch shows a new random crop of each training image, which goes through the frozen
/// encoder. What does not fill a batch is left out of that epoch.
fn streamed(
    run: &Run,
    images: &ImageSets,
    probed: &Probed,
    config: &SgdConfig,
    device: &Device,
    failures: &mut Vec<Failure>,
) -> Result<Trained> {
    let encoder = &probed.encoder;
    let side = match encoder.view.map_or(run.experiment.embed.crop, |view| view.crop) {
        0 => encoder.config.model.image_size,
        crop => crop as usize,
    };
    let source = sources::images(run, &images.train)?;
    let scale = run.experiment.evaluate.linear.crop_scale;
    let crops = ProbeCrops::new(side as u32, scale, encoder.config.mean, encoder.config.std)?;
    let size = config.batch.min(source.len());
    let batches = Batches { size, per_epoch: 0, seed: config.seed, threads: run.threads, ahead: AHEAD };
    let loader = TrainingLoader::treated(source.clone(), crops, batches)?;
    let total = loader.steps_per_epoch() * size * config.epochs;
    let progress = Progress::new("evaluate", total as u64, "crops");
    let config = &SgdConfig { batch: size, ..config.clone() };
    let trained = sgd::train::<anyhow::Error>(config, &probed.test.rows()?, device, |epoch, step| {
        for batch in loader.epoch(epoch, 0) {
            let batch = batch?;
            let count = batch.indices.len();
            let labels = batch.indices.iter().map(|&index| source.label(index)).collect::<Option<Vec<u32>>>();
            let labels = labels.context("a training image has no label")?;
            step(encoder.embed_blocks(batch.pixels, count, side, side, probed.blocks)?, &labels)?;
            progress.advance(count as u64);
        }
        Ok(())
    })?;
    progress.finish(&format!("{}, sgd on random crops, {} epochs", probed.name, config.epochs));
    for failure in loader.failures() {
        let failure = unreadable("evaluate", &failure);
        if !failures.contains(&failure) {
            failures.push(failure);
        }
    }
    Ok(trained)
}

/// A row per metric and draw, so that tables show the mean and the spread of the draws.
fn few_shots(run: &Run, probed: &Probed, scores: &mut Scores) -> Result<()> {
    let Linear { shots, draws, .. } = &run.experiment.evaluate.linear;
    if shots.is_empty() {
        return Ok(());
    }
    let device = device::open(run.device)?;
    let plain = Bootstrap { resamples: 0, ..bootstrap(run) };
    let few_shot = FewShot::new(&probed.train.rows()?);
    let Features { table, labels } = &probed.train;
    let images = |class: usize| labels.iter().filter(|&&label| label as usize == class).count();
    for &shots in shots {
        let few = (0..table.classes.len()).find(|&class| images(class) < shots);
        if let Some((name, count)) = few.map(|class| (&table.classes[class], images(class))) {
            let error = anyhow!("class {name} has {count} training images of {shots}");
            scores.failures.push(failed(&format!("{}, {shots}-shot", probed.name), &error));
            continue;
        }
        for draw in 0..*draws as u64 {
            let head = match few_shot.fit(shots, draw, run.experiment.seed, &device) {
                Ok(head) => head,
                Err(error) => {
                    scores.failures.push(failed(&format!("{}, {shots}-shot", probed.name), &error.into()));
                    break;
                }
            };
            let predictions = head.predictions(&probed.test.rows()?, &device)?;
            let base = ResultRow {
                head: format!("{shots}-shot{}", probed.suffix()),
                seed: Some(draw),
                ..base(run, probed, predictions.len())
            };
            scores.rows.extend(rows_of(&base, &predictions, None, &plain)?);
        }
    }
    Ok(())
}

fn base(run: &Run, probed: &Probed, n: usize) -> ResultRow {
    ResultRow {
        task: "linear".into(),
        data: data_name(run),
        encoder: probed.name.clone(),
        seed: Some(run.experiment.seed),
        n: n as u64,
        ..ResultRow::default()
    }
}

impl Scores {
    /// Rows and confusions of a fitted probe.
    fn take(&mut self, run: &Run, probed: &Probed, fit: &Fit) -> Result<()> {
        let bootstrap = bootstrap(run);
        for (number, (head, predictions)) in fit.predictions.iter().enumerate() {
            let base = ResultRow { head: head.clone(), ..base(run, probed, predictions.len()) };
            self.rows.extend(rows_of(&base, predictions, None, &bootstrap)?);
            if probed.own && number == 0 {
                let title = format!("{}, {head}", probed.name);
                self.confusions.push(drawn::confusion(title, predictions, &probed.test.table.classes));
            }
        }
        Ok(())
    }
}
