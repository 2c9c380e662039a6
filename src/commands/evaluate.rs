//! `gensis evaluate`: stored embeddings to scores to the result table. Nothing is chosen on a test part.

use anyhow::{Context, Result, bail, ensure};
use evaluation::bag::{Bag, StreamedBags};
use evaluation::bootstrap::Bootstrap;
use evaluation::embeddings::EmbeddingTable;
use evaluation::knn::{KnnConfig, classify};
use evaluation::metric::{Metric, Predictions};
use evaluation::mil::{CrossValidation, FoldPrediction, GatedAbmil, MilConfig, score_all};
use evaluation::split::{Fold, Part, Strata};
use evaluation::table::{ResultRow, ResultTable, slide_scores, write_csv, write_parquet};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use slide_io::manifest::Split;
use slide_io::{Cohort, ImageFolder, PatchSource, SlideRecord, atomic_file, h5};

use super::Run;
use super::embed::is_current;
use super::pretrain::require_encoder;
use super::progress::Progress;
use super::sources::{self, ENCODER_NAME, ImageSets, Input, UNTRAINED_NAME};
use crate::cli::Task;
use crate::config::{Baseline, Experiment, SlideLevel};
use crate::device::{self, DeviceChoice};
use crate::run_dir::{Failure, StageRecord, as_stored, remove};

/// The result table of a run, without extension: `.parquet`, `.csv` and `.md` lie there.
pub(super) const RESULTS: &str = "results/results";

/// Which class was taken for which; kept for the report.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct StoredConfusion {
    pub title: String,
    pub classes: Vec<String>,
    pub counts: Vec<Vec<u64>>,
}

/// What a benchmark gives.
#[derive(Default)]
struct Scores {
    rows: Vec<ResultRow>,
    confusions: Vec<StoredConfusion>,
    failures: Vec<Failure>,
}

/// Scores whatever the data allow, or the one task asked for.
pub(super) fn evaluate(run: &Run, task: Task) -> Result<()> {
    let input = Input::open(&run.experiment.data)?;
    check_folds(run)?;
    let (_, encoder) = &require_encoder(run, &input)?;
    let embed = run.dir.record("embed").context("there are no embeddings: run `gensis embed` first")?;
    ensure!(
        embed.summary["encoder"] == **encoder && embed.header["embed"] == as_stored(&json!(run.experiment.embed)),
        "the embeddings are of another encoder or of other settings: run `gensis embed` first"
    );
    let header = header(run, &input, encoder);
    let stem = run.dir.file(RESULTS)?;
    if task == Task::All && run.dir.current("evaluate", &header).is_some() {
        eprintln!("evaluate: up to date");
        return Ok(());
    }
    run.dir.forget("evaluate")?;
    for extension in ["parquet", "csv", "md"] {
        // Figures of other settings must not stand beside these settings if this fails.
        remove(&stem.with_extension(extension))?;
    }
    let scores = match (&input, task) {
        (Input::Images(images), Task::All | Task::Knn) => knn(run, images, encoder)?,
        (Input::Slides(cohort), Task::All | Task::Slide) => slide_level(run, cohort, &embed.summary)?,
        (Input::Images(_), Task::Slide) => bail!("image folders have no slides: only `gensis evaluate knn` applies"),
        (Input::Slides(_), Task::Knn) => {
            bail!("the patches of slides have no labels of their own: only `gensis evaluate slide` applies")
        }
    };
    for failure in &scores.failures {
        eprintln!("evaluate: {}: {}", failure.item, failure.reason);
    }
    if scores.rows.is_empty() {
        eprintln!("evaluate: no labelled test items, so there is nothing to score");
    } else {
        let table = ResultTable::new(&scores.rows)?;
        table.write(&stem)?;
        print!("{}", table.markdown()?);
    }
    atomic_file::write(&run.dir.file("results/confusion.json")?, &serde_json::to_vec_pretty(&scores.confusions)?)?;
    let summary = json!({ "rows": scores.rows.len() });
    run.dir.finish("evaluate", &StageRecord { header, failures: scores.failures, summary })
}

/// Everything the scores depend on.
fn header(run: &Run, input: &Input, encoder: &str) -> Value {
    let items: Vec<Value> = match input {
        Input::Slides(cohort) => cohort
            .slides
            .iter()
            .map(|slide| {
                let features = has_features(run, slide, ENCODER_NAME, encoder)
                    .then(|| sources::features_header(run, encoder, slide));
                json!([slide.id, slide.label_name, slide.group, slide.split, features])
            })
            .collect(),
        Input::Images(images) => {
            let folders = std::iter::once(&images.train).chain(images.test.as_ref());
            folders.map(|folder| sources::table_header(run, encoder, folder)).collect()
        }
    };
    let Experiment { seed, evaluate, .. } = &run.experiment;
    json!({ "stage": "evaluate", "format": sources::FORMAT, "settings": evaluate, "seed": seed, "items": items })
}

/// Whether a slide has features of this encoder and of its coordinates as they are now.
fn has_features(run: &Run, slide: &SlideRecord, name: &str, encoder: &str) -> bool {
    let header = sources::features_header(run, encoder, slide);
    h5::is_current(&sources::features_path(run, name, &slide.id), &header).unwrap_or(false)
}

fn data_name(run: &Run) -> String {
    let data = &run.experiment.data;
    let path = if data.slides.is_empty() { data.images.clone() } else { data.slides.clone().into() };
    let named = path.iter().rev().map(|part| part.to_string_lossy().into_owned());
    named.into_iter().find(|part| !part.contains('*') && !part.is_empty()).unwrap_or_default()
}

fn rows_of(
    base: &ResultRow,
    predictions: &Predictions,
    groups: Option<&[String]>,
    bootstrap: &Bootstrap,
) -> Result<Vec<ResultRow>> {
    let intervals = bootstrap.intervals(predictions, groups, &Metric::ALL)?;
    Ok(Metric::ALL.into_iter().zip(intervals).map(|(metric, interval)| base.with(metric, interval)).collect())
}

fn confusion(title: String, predictions: &Predictions, classes: &[String]) -> StoredConfusion {
    let matrix = predictions.confusion();
    let row = |truth| (0..matrix.classes()).map(|predicted| matrix.count(truth, predicted)).collect();
    StoredConfusion { title, classes: classes.to_vec(), counts: (0..matrix.classes()).map(row).collect() }
}

/// Weighted k-NN of the test images among the training images.
fn knn(run: &Run, images: &ImageSets, encoder: &str) -> Result<Scores> {
    let Some(test_folder) = images.test.as_ref().filter(|folder| !folder.classes().is_empty()) else {
        return Ok(Scores::default());
    };
    let settings = &run.experiment.evaluate.knn;
    let bootstrap = bootstrap(run);
    let config = KnnConfig { k: settings.k.clone(), temperature: settings.temperature };
    let device = device::open(run.device)?;
    let baselines = settings.baselines.iter().map(|baseline| match baseline {
        Baseline::Random => (UNTRAINED_NAME, None),
        Baseline::Pixels => ("pixels", Some("pixels")),
    });
    let mut scores = Scores::default();
    for (name, hash) in std::iter::once((ENCODER_NAME, Some(encoder))).chain(baselines) {
        let load = |part: &str, folder: &ImageFolder| -> Result<EmbeddingTable> {
            let path = run.dir.root().join(format!("features/{name}-{part}.parquet"));
            // The hash of the untrained network is in its table only.
            let current = hash.is_none_or(|hash| is_current(&path, &sources::table_header(run, hash, folder)));
            ensure!(path.exists() && current, "{} is missing or of other settings: run `gensis embed`", path.display());
            Ok(EmbeddingTable::load(&path)?)
        };
        let (train, test) = (load("train", &images.train)?, load("test", test_folder)?);
        for result in classify(&train, &test, &config, &device)? {
            let head = format!("{}-NN", result.k);
            if result.used < result.k && name == ENCODER_NAME {
                eprintln!("evaluate: {head}: there are only {} training images, so all of them vote", result.used);
            }
            let base = ResultRow {
                task: "knn".into(),
                data: data_name(run),
                encoder: name.into(),
                head: head.clone(),
                seed: Some(run.experiment.seed),
                n: test.len() as u64,
                ..ResultRow::default()
            };
            scores.rows.extend(rows_of(&base, &result.predictions, None, &bootstrap)?);
            if name == ENCODER_NAME {
                scores.confusions.push(confusion(format!("{name}, {head}"), &result.predictions, &test.classes));
            }
        }
    }
    Ok(scores)
}

fn bootstrap(run: &Run) -> Bootstrap {
    Bootstrap { resamples: run.experiment.evaluate.slide.bootstrap, seed: run.experiment.seed, ..Bootstrap::default() }
}

/// Stops before hours of work if the labels cannot be split as asked: a patient in two parts, too few per class.
pub(super) fn check_folds(run: &Run) -> Result<()> {
    if let Input::Slides(cohort) = Input::open(&run.experiment.data)? {
        let labelled: Vec<&SlideRecord> = cohort.slides.iter().filter(|slide| slide.label.is_some()).collect();
        if !labelled.is_empty() {
            folds(&run.experiment.evaluate.slide, &labelled)?;
        }
    }
    Ok(())
}

/// Gated attention MIL on the given split, or on stratified grouped folds, for the encoder and its baselines.
fn slide_level(run: &Run, cohort: &Cohort, embed: &Value) -> Result<Scores> {
    let labelled: Vec<&SlideRecord> = cohort.slides.iter().filter(|slide| slide.label.is_some()).collect();
    let mut scores = Scores::default();
    if labelled.is_empty() {
        return Ok(scores);
    }
    let untrained = run.experiment.evaluate.slide.baselines.contains(&Baseline::Random);
    for name in std::iter::once(ENCODER_NAME).chain(untrained.then_some(UNTRAINED_NAME)) {
        let encoder = embed["hashes"][name].as_str();
        let encoder = encoder.with_context(|| format!("no features of {name}: run `gensis embed` again"))?;
        let trained = Trained { name, encoder, dim: embed["dim"].as_u64().unwrap_or(0) as usize };
        score_slides(run, cohort, &labelled, &trained, &mut scores)?;
    }
    Ok(scores)
}

/// An encoder whose features of slides are stored.
struct Trained<'a> {
    name: &'a str,
    /// Hash of its weights.
    encoder: &'a str,
    dim: usize,
}

fn score_slides(
    run: &Run,
    cohort: &Cohort,
    labelled: &[&SlideRecord],
    &Trained { name, encoder, dim }: &Trained,
    scores: &mut Scores,
) -> Result<()> {
    let settings = &run.experiment.evaluate.slide;
    let mut left_out = |slide: &SlideRecord, reason: &str| {
        let failure = Failure { stage: "evaluate".into(), item: slide.id.clone(), reason: reason.into() };
        if !scores.failures.contains(&failure) {
            scores.failures.push(failure);
        }
    };
    let (slides, missing): (Vec<&SlideRecord>, Vec<_>) =
        labelled.iter().partition(|slide| has_features(run, slide, name, encoder));
    missing.into_iter().for_each(|slide| left_out(slide, "labelled, but without features: it counts in no score"));
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
    let bags = StreamedBags::new(dim, cohort.classes.len(), labels, groups.clone(), |index: usize| {
        let slide = slides[index];
        let features = h5::read_features(&sources::features_path(run, name, &slide.id))?;
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
        encoder: name.into(),
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
        if name == ENCODER_NAME {
            let title = format!("{name}, abmil, seed {seed}, test slides");
            scores.confusions.push(confusion(title, &predictions, &cohort.classes));
        }
    }
    if name == ENCODER_NAME {
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
