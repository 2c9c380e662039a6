//! Slide-level scores: multiple-instance heads over bags of stored features, the run's own and those made elsewhere.

use std::path::PathBuf;

use anyhow::{Context, Result};
use evaluation::bag::StreamedBags;
use evaluation::bootstrap::Bootstrap;
use evaluation::metric::Predictions;
use evaluation::mil::{CrossValidation, FoldScores, MilConfig, SlideScore, score_all};
use evaluation::table::{ResultRow, comparisons, slide_scores, write_csv, write_parquet};
use slide_io::{Cohort, SlideRecord};

use super::comparison::{Scored, compare};
use super::foreign::foreign_features;
use super::subjects::{folds, subjects};
use super::{Own, Scores, bootstrap, confusion, data_name, has_features, rows_of};
use crate::commands::Run;
use crate::commands::progress::Progress;
use crate::commands::sources::{self, ENCODER_NAME, Input, UNTRAINED_NAME};
use crate::config::{Baseline, SlideLevel};
use crate::device::{self, DeviceChoice};
use crate::run_dir::{Failure, remove};

/// The table of every test slide's scores, without extension; that of another encoder than the vanilla one has its name
/// behind it.
const SCORES: &str = "slide_scores";

/// Removes the scores of slides of an earlier evaluation, of whatever encoder.
pub(super) fn remove_scores(run: &Run) -> Result<()> {
    let folder = run.dir.root().join("results");
    let files = folder.read_dir().into_iter().flatten().flatten().map(|entry| entry.path());
    let of_slides = |path: &PathBuf| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(SCORES));
    files.filter(of_slides).try_for_each(|path| remove(&path))
}

/// Stops before hours of work if the labels cannot be split as asked: a patient in two parts, too few per class.
pub(in crate::commands) fn check_folds(run: &Run) -> Result<()> {
    let settings = &run.experiment.evaluate.slide;
    if let Input::Slides(cohort) = Input::open(&run.experiment.data)? {
        let labelled: Vec<&SlideRecord> = cohort.slides.iter().filter(|slide| slide.label.is_some()).collect();
        if !labelled.is_empty() {
            folds(settings, &subjects(&labelled, &[], settings.by_patient)?)?;
        }
    }
    Ok(())
}

/// Every head on the given split, or on stratified grouped folds, for the run's own encoder and its baselines, and for features
/// made elsewhere; then the encoders against each other.
pub(super) fn slide_level(run: &Run, cohort: &Cohort, own: Option<&Own>) -> Result<Scores> {
    let labelled: Vec<&SlideRecord> = cohort.slides.iter().filter(|slide| slide.label.is_some()).collect();
    let mut scores = Scores::default();
    if labelled.is_empty() {
        return Ok(scores);
    }
    let settings = &run.experiment.evaluate.slide;
    let untrained = settings.baselines.contains(&Baseline::Random);
    let trained: Vec<&str> = own.map_or(vec![], |own| own.encoders.iter().map(|encoder| &encoder.name[..]).collect());
    let names = trained.iter().copied().chain(untrained.then_some(UNTRAINED_NAME));
    let mut scored = Vec::new();
    for (name, own) in names.filter_map(|name| own.map(|own| (name, own))) {
        let hash = own.summary["hashes"][name].as_str();
        let hash = hash.with_context(|| format!("no features of {name}: run `gensis embed` again"))?;
        let file = |slide: &SlideRecord| {
            has_features(run, slide, name, hash).then(|| sources::features_path(run, name, &slide.id))
        };
        let dim = own.summary["dims"][name].as_u64().or(own.summary["dim"].as_u64()).unwrap_or(0) as usize;
        let files = labelled.iter().map(|slide| file(slide)).collect();
        let stored = Stored { name: name.into(), own: trained.contains(&name), dim, files };
        scored.extend(score_slides(run, cohort, &labelled, &stored, &mut scores)?);
    }
    let mut names: Vec<String> = [ENCODER_NAME, UNTRAINED_NAME].iter().chain(&trained).map(|n| n.to_string()).collect();
    for foreign in foreign_features(run, cohort)? {
        let stored = foreign.stored(&labelled, &names, &mut scores)?;
        names.push(stored.name.clone());
        scored.extend(score_slides(run, cohort, &labelled, &stored, &mut scores)?);
    }
    if settings.permutations > 0 && scored.iter().any(|other| other.encoder != scored[0].encoder) {
        let table = comparisons(&compare(&scored, settings, &cohort.classes)?)?;
        write_parquet(&table, &run.dir.file("results/comparisons.parquet")?)?;
        write_csv(&table, &run.dir.file("results/comparisons.csv")?)?;
    }
    Ok(scores)
}

/// Features of slides, in files.
pub(super) struct Stored {
    /// The encoder's name.
    pub name: String,
    /// Whether it is one of the run's own trained encoders.
    pub own: bool,
    pub dim: usize,
    /// Of every labelled slide, where it has features.
    pub files: Vec<Option<PathBuf>>,
}

/// Scores one encoder's features with every head; the test slides of each head and seed.
fn score_slides(
    run: &Run,
    cohort: &Cohort,
    labelled: &[&SlideRecord],
    stored: &Stored,
    scores: &mut Scores,
) -> Result<Vec<Scored>> {
    let Stored { name, own, dim, files } = stored;
    let settings = &run.experiment.evaluate.slide;
    let mut left_out = |slide: &SlideRecord, reason: &str| {
        let failure = Failure { stage: "evaluate".into(), item: slide.id.clone(), reason: reason.into() };
        if !scores.failures.contains(&failure) {
            scores.failures.push(failure);
        }
    };
    let mut slides: Vec<&SlideRecord> = Vec::new();
    let mut paths = Vec::new();
    for (slide, file) in labelled.iter().zip(files) {
        match file {
            Some(file) => {
                slides.push(slide);
                paths.push(file);
            }
            None => {
                left_out(slide, &format!("labelled, but without features of {name}: it counts in no score of these"))
            }
        }
    }
    if slides.iter().any(|slide| slide.split.is_some()) {
        let unsplit = slides.iter().filter(|slide| slide.split.is_none());
        unsplit.for_each(|slide| {
            left_out(slide, "labelled, but without a split where others have one: it counts in no score")
        });
    }
    let subjects = subjects(&slides, &paths, settings.by_patient)?;
    let folds = folds(settings, &subjects)?;
    let labels = subjects.iter().map(|subject| subject.label).collect();
    let groups = subjects.iter().map(|subject| subject.group.clone()).collect();
    // Bags stay in their files until they are needed: a cohort need not fit in memory.
    let bags = StreamedBags::new(*dim, cohort.classes.len(), labels, groups, |index: usize| subjects[index].load())?;

    let device = device::open(run.device)?;
    let work = folds.len() * settings.seeds.len() * settings.aggregators.len();
    let progress = Progress::new("evaluate", work as u64, "folds");
    let config = mil_config(settings);
    let validation = CrossValidation {
        source: &bags,
        folds: &folds,
        config: &config,
        seeds: &settings.seeds,
        device: &device.autodiff(),
        workers: if run.device == DeviceChoice::Cpu { run.threads } else { 1 },
    };
    let mut predicted = Vec::new();
    for &head in &settings.aggregators {
        predicted.extend(validation.scores(head, || progress.advance(1))?);
    }
    let heads: Vec<&str> = settings.aggregators.iter().map(|head| head.name()).collect();
    let (folds, seeds) = (folds.len(), settings.seeds.len());
    progress.finish(&format!("{name}, {folds} folds x {seeds} seeds of {}", heads.join(", ")));
    if *own {
        let slides = slide_scores(&predicted, &cohort.classes)?;
        let stem = if name == ENCODER_NAME { SCORES.to_owned() } else { format!("{SCORES}_{name}") };
        write_parquet(&slides, &run.dir.file(&format!("results/{stem}.parquet"))?)?;
        write_csv(&slides, &run.dir.file(&format!("results/{stem}.csv"))?)?;
    }
    tabulate(run, cohort, stored, folds == 1, &predicted, scores)
}

/// Rows of every fold, and of all folds pooled where the split is not `given`; the test slides of each head and seed.
fn tabulate(
    run: &Run,
    cohort: &Cohort,
    Stored { name, own, .. }: &Stored,
    given: bool,
    predicted: &[FoldScores],
    scores: &mut Scores,
) -> Result<Vec<Scored>> {
    let settings = &run.experiment.evaluate.slide;
    let bootstrap = bootstrap(run);
    let mut scored = Vec::new();
    for &head in &settings.aggregators {
        let base = ResultRow {
            task: "slide".into(),
            data: data_name(run),
            encoder: name.clone(),
            head: head.name().into(),
            ..ResultRow::default()
        };
        let of_head = || predicted.iter().filter(|prediction| prediction.head == head);
        for prediction in of_head() {
            let fold = (!given).then_some(prediction.fold as u32);
            let base = ResultRow { fold, ..base.clone() };
            scores.rows.extend(rows_for(&base, prediction.seed, &prediction.scores, cohort, &bootstrap)?.0);
        }
        for &seed in &settings.seeds {
            let slides: Vec<SlideScore> =
                of_head().filter(|p| p.seed == seed).flat_map(|p| p.scores.iter().cloned()).collect();
            let (rows, predictions) = rows_for(&base, seed, &slides, cohort, &bootstrap)?;
            if !given {
                scores.rows.extend(rows);
            }
            if *own {
                let title = format!("{name}, {}, seed {seed}, test slides", head.name());
                scores.confusions.push(confusion(title, &predictions, &cohort.classes));
            }
            scored.push(Scored { encoder: name.clone(), head, seed, slides });
        }
    }
    Ok(scored)
}

fn rows_for(
    base: &ResultRow,
    seed: u64,
    slides: &[SlideScore],
    cohort: &Cohort,
    bootstrap: &Bootstrap,
) -> Result<(Vec<ResultRow>, Predictions)> {
    let (predictions, groups) = score_all(slides, cohort.classes.len())?;
    let base = ResultRow { seed: Some(seed), n: slides.len() as u64, ..base.clone() };
    Ok((rows_of(&base, &predictions, Some(&groups), bootstrap)?, predictions))
}

/// The settings of the heads.
pub(crate) fn mil_config(settings: &SlideLevel) -> MilConfig {
    MilConfig {
        epochs: settings.epochs,
        patience: settings.patience,
        lr: settings.lr,
        weight_decay: settings.weight_decay,
        hidden: settings.hidden,
        attention: settings.attention,
        dropout: settings.dropout,
        standardize: settings.standardize,
        accumulate: settings.accumulate,
        max_patches: settings.max_patches,
        balanced: settings.balanced,
        ..MilConfig::default()
    }
}
