//! Slide-level scores: attention MIL over bags of stored features, the run's own and those made elsewhere.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use evaluation::bag::{Bag, StreamedBags};
use evaluation::bootstrap::Bootstrap;
use evaluation::metric::Predictions;
use evaluation::mil::{CrossValidation, FoldPrediction, GatedAbmil, MilConfig, score_all};
use evaluation::split::{Fold, Part, Strata};
use evaluation::table::{ResultRow, slide_scores, write_csv, write_parquet};
use serde_json::{Value, json};
use slide_io::manifest::Split;
use slide_io::{Cohort, SlideRecord, h5};

use super::{Own, Scores, bootstrap, confusion, data_name, has_features, rows_of};
use crate::commands::Run;
use crate::commands::progress::Progress;
use crate::commands::sources::{self, ENCODER_NAME, Input, UNTRAINED_NAME};
use crate::config::{Baseline, SlideLevel};
use crate::device::{self, DeviceChoice};
use crate::run_dir::Failure;

/// Stops before hours of work if the labels cannot be split as asked: a patient in two parts, too few per class.
pub(in crate::commands) fn check_folds(run: &Run) -> Result<()> {
    if let Input::Slides(cohort) = Input::open(&run.experiment.data)? {
        let labelled: Vec<&SlideRecord> = cohort.slides.iter().filter(|slide| slide.label.is_some()).collect();
        if !labelled.is_empty() {
            folds(&run.experiment.evaluate.slide, &labelled)?;
        }
    }
    Ok(())
}

/// Gated attention MIL on the given split, or on stratified grouped folds, for the run's own encoder and its baselines, and
/// for features made elsewhere.
pub(super) fn slide_level(run: &Run, cohort: &Cohort, own: Option<&Own>) -> Result<Scores> {
    let labelled: Vec<&SlideRecord> = cohort.slides.iter().filter(|slide| slide.label.is_some()).collect();
    let mut scores = Scores::default();
    if labelled.is_empty() {
        return Ok(scores);
    }
    let untrained = run.experiment.evaluate.slide.baselines.contains(&Baseline::Random);
    let names = [Some(ENCODER_NAME), untrained.then_some(UNTRAINED_NAME)].into_iter().flatten();
    for (name, own) in names.filter_map(|name| own.map(|own| (name, own))) {
        let hash = own.summary["hashes"][name].as_str();
        let hash = hash.with_context(|| format!("no features of {name}: run `gensis embed` again"))?;
        let file = |slide: &SlideRecord| {
            has_features(run, slide, name, hash).then(|| sources::features_path(run, name, &slide.id))
        };
        let dim = own.summary["dim"].as_u64().unwrap_or(0) as usize;
        let files = labelled.iter().map(|slide| file(slide)).collect();
        let stored = Stored { name: name.into(), own: name == ENCODER_NAME, dim, files };
        score_slides(run, cohort, &labelled, &stored, &mut scores)?;
    }
    let mut names = vec![ENCODER_NAME.to_owned(), UNTRAINED_NAME.to_owned()];
    for foreign in foreign_features(run, cohort)? {
        let stored = foreign.stored(&labelled, &names, &mut scores)?;
        names.push(stored.name.clone());
        score_slides(run, cohort, &labelled, &stored, &mut scores)?;
    }
    Ok(scores)
}

/// Features of slides, in files.
struct Stored {
    /// The encoder's name.
    name: String,
    /// Whether it is the run's own trained encoder.
    own: bool,
    dim: usize,
    /// Of every labelled slide, where it has features.
    files: Vec<Option<PathBuf>>,
}

/// A folder of features that TRIDENT, CLAM or another run made.
pub(super) struct Foreign {
    folder: PathBuf,
    /// Slides' ids and files, those of the cohort that have one.
    files: Vec<(String, PathBuf)>,
}

/// The folders that `evaluate.slide.features` names.
///
/// # Errors
/// A folder without features of any slide of the cohort.
pub(super) fn foreign_features(run: &Run, cohort: &Cohort) -> Result<Vec<Foreign>> {
    let found = |folder: &PathBuf| {
        let file = |slide: &SlideRecord| (slide.id.clone(), folder.join(format!("{}.h5", slide.id)));
        let files: Vec<_> = cohort.slides.iter().map(file).filter(|(_, file)| file.is_file()).collect();
        let none = || format!("evaluate.slide.features: {} holds no <slide id>.h5 of this cohort", folder.display());
        ensure!(!files.is_empty(), none());
        Ok(Foreign { folder: folder.clone(), files })
    };
    run.experiment.evaluate.slide.features.iter().map(found).collect()
}

impl Foreign {
    /// What it holds, by content: scores of other files are made anew.
    pub(super) fn digest(&self, run: &Run) -> Value {
        self.files.iter().map(|(slide, file)| json!([slide, sources::digest(run, file)])).collect()
    }

    /// The features of the labelled slides, under a name that is none of `taken`. A file that cannot be read, is empty or of another width is listed.
    fn stored(&self, labelled: &[&SlideRecord], taken: &[String], scores: &mut Scores) -> Result<Stored> {
        let mut left_out = |slide: &str, reason: String| {
            scores.failures.push(Failure { stage: "evaluate".into(), item: slide.into(), reason });
        };
        let mut shapes = BTreeMap::new();
        for (slide, file) in &self.files {
            match h5::features_shape(file) {
                Ok(shape) if shape.patches > 0 => drop(shapes.insert(slide.as_str(), shape)),
                Ok(_) => left_out(slide, format!("{} holds no patch", file.display())),
                Err(error) => left_out(slide, error.to_string()),
            }
        }
        let first = self.files.iter().find_map(|(slide, _)| shapes.get(slide.as_str()));
        let first = first.with_context(|| format!("no features in {} can be read", self.folder.display()))?.clone();
        for (slide, shape) in shapes.iter().filter(|(_, shape)| shape.dim != first.dim) {
            left_out(slide, format!("its features have width {}, those of the others {}", shape.dim, first.dim));
        }
        let file = |slide: &&SlideRecord| {
            let usable = shapes.get(slide.id.as_str()).is_some_and(|shape| shape.dim == first.dim);
            usable.then(|| self.folder.join(format!("{}.h5", slide.id)))
        };
        let folder = self.folder.file_name().unwrap_or_default().to_string_lossy();
        let named = folder.strip_prefix("features_").unwrap_or(&folder).to_owned();
        // The encoder's name, the folder's, or its whole path: two scales of one encoder are told apart.
        let names = [first.encoder.clone(), named, self.folder.display().to_string()];
        let free = |name: &String| !name.is_empty() && !taken.contains(name);
        let name = names.into_iter().find(free).with_context(|| format!("{} is named twice", self.folder.display()))?;
        Ok(Stored { name, own: false, dim: first.dim, files: labelled.iter().map(file).collect() })
    }
}

/// Scores one encoder's features.
fn score_slides(
    run: &Run,
    cohort: &Cohort,
    labelled: &[&SlideRecord],
    Stored { name, own, dim, files }: &Stored,
    scores: &mut Scores,
) -> Result<()> {
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
    let folds = folds(settings, &slides)?;
    let groups = groups(&slides);
    let given = folds.len() == 1;
    let labels = slides.iter().map(|slide| slide.label).collect();
    // Bags stay in their files until they are needed: a cohort need not fit in memory.
    let bags = StreamedBags::new(*dim, cohort.classes.len(), labels, groups.clone(), |index: usize| {
        let slide = slides[index];
        let features = h5::read_features(paths[index])?;
        Ok(Bag {
            id: slide.id.clone(),
            dim: features.dim,
            features: features.values,
            coords: features.coordinates.origins,
            label: slide.label,
            group: groups[index].clone(),
        })
    })?;

    let device = device::open(run.device)?;
    let progress = Progress::new("evaluate", (folds.len() * settings.seeds.len()) as u64, "folds");
    let validation = CrossValidation {
        source: &bags,
        folds: &folds,
        config: &mil_config(settings),
        seeds: &settings.seeds,
        device: &device.autodiff(),
        workers: if run.device == DeviceChoice::Cpu { run.threads } else { 1 },
    };
    let predicted: Vec<FoldPrediction<GatedAbmil>> = validation.run(|_| progress.advance(1))?;
    progress.finish(&format!("{name}, {} folds x {} seeds", folds.len(), settings.seeds.len()));

    let base = ResultRow {
        task: "slide".into(),
        data: data_name(run),
        encoder: name.clone(),
        head: "abmil".into(),
        ..ResultRow::default()
    };
    let bootstrap = bootstrap(run);
    for prediction in &predicted {
        let fold = (!given).then_some(prediction.fold as u32);
        let base = ResultRow { fold, ..base.clone() };
        scores.rows.extend(rows_for(&base, prediction.seed, &prediction.scores, cohort, &bootstrap)?.0);
    }
    for &seed in &settings.seeds {
        let pooled: Vec<_> =
            predicted.iter().filter(|p| p.seed == seed).flat_map(|p| p.scores.iter().cloned()).collect();
        let (rows, predictions) = rows_for(&base, seed, &pooled, cohort, &bootstrap)?;
        if !given {
            scores.rows.extend(rows);
        }
        if *own {
            let title = format!("{name}, abmil, seed {seed}, test slides");
            scores.confusions.push(confusion(title, &predictions, &cohort.classes));
        }
    }
    if *own {
        let slides = slide_scores(&predicted, &cohort.classes)?;
        write_parquet(&slides, &run.dir.file("results/slide_scores.parquet")?)?;
        write_csv(&slides, &run.dir.file("results/slide_scores.csv")?)?;
    }
    Ok(())
}

fn rows_for(
    base: &ResultRow,
    seed: u64,
    slides: &[evaluation::mil::SlideScore],
    cohort: &Cohort,
    bootstrap: &Bootstrap,
) -> Result<(Vec<ResultRow>, Predictions)> {
    let (predictions, groups) = score_all(slides, cohort.classes.len())?;
    let base = ResultRow { seed: Some(seed), n: slides.len() as u64, ..base.clone() };
    Ok((rows_of(&base, &predictions, Some(&groups), bootstrap)?, predictions))
}

/// The given split as one fold, or cross-validation folds.
fn folds(settings: &SlideLevel, slides: &[&SlideRecord]) -> Result<Vec<Fold>> {
    let labels: Vec<u32> = slides.iter().filter_map(|slide| slide.label).collect();
    let groups = groups(slides);
    let strata = Strata::new(&labels, &groups)?;
    let parts: Vec<Option<Part>> = slides
        .iter()
        .map(|slide| {
            slide.split.map(|split| match split {
                Split::Train => Part::Train,
                Split::Val => Part::Val,
                Split::Test => Part::Test,
            })
        })
        .collect();
    // The folds are those of the first seed: seeds differ in the head's training, not in what is tested.
    let seed = settings.seeds[0];
    if parts.iter().any(Option::is_some) {
        Ok(vec![strata.given(&parts, settings.validation, seed)?])
    } else {
        Ok(strata.k_fold(settings.folds, settings.validation, seed)?)
    }
}

/// What must stay together: the patient, or the slide itself.
fn groups(slides: &[&SlideRecord]) -> Vec<String> {
    slides.iter().map(|slide| slide.group.clone().unwrap_or_else(|| slide.id.clone())).collect()
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
        ..MilConfig::default()
    }
}
