//! `gensis evaluate`: stored embeddings to scores to the result table. Nothing is chosen on a test part.

mod copies;
mod curves;
pub(super) mod examples;
mod features;
mod foreign;
mod generation;
mod given_splits;
pub(super) mod heads;
mod imagenet;
mod linear;
mod own_images;
mod probed;
mod retrieval;
mod robustness;
mod slides;
mod subjects;
mod submission;
mod usable;
mod video;

pub(crate) use slides::mil_config;
pub(super) use slides::{COMPARISONS, SCORES, check_folds, exchanges};
pub(super) use subjects::{Subject, folds, subjects};
pub(super) use video::masks;

use anyhow::{Context, Result, bail, ensure};
use evaluation::bootstrap::Bootstrap;
use evaluation::embeddings::EmbeddingTable;
use evaluation::knn::{KnnConfig, classify};
use evaluation::metric::{Metric, Predictions};
use evaluation::table::{ResultRow, ResultTable};
use serde_json::{Value, json};
use slide_io::{ImageFolder, PatchSource, SlideRecord, atomic_file, h5};

use super::Run;
use super::embed::is_current;
use super::encoders::{Trained, require_encoders};
use super::output::say;
use super::sources::{self, ImageSets, Input, UNTRAINED_NAME};
use crate::cli::Task;
use crate::config::{Baseline, Experiment};
use crate::device;
use crate::report::{Confusion, RankingCurves};
use crate::run_dir::{Failure, StageRecord, as_stored, remove};

/// The result table of a run, without extension: `.parquet`, `.csv` and `.md` lie there.
pub(super) const RESULTS: &str = "results/results";

/// Confusion matrices and curves of the table's predictions, for the report.
const CONFUSIONS: &str = "results/confusion.json";
const CURVES: &str = "results/curves.json";

/// What a benchmark gives.
#[derive(Default)]
struct Scores {
    rows: Vec<ResultRow>,
    confusions: Vec<Confusion>,
    curves: Vec<RankingCurves>,
    failures: Vec<Failure>,
    heads: Vec<heads::EncoderHeads>,
}

impl Scores {
    /// Those of another benchmark behind these.
    fn add(&mut self, other: Self) {
        self.rows.extend(other.rows);
        self.confusions.extend(other.confusions);
        self.curves.extend(other.curves);
        self.heads.extend(other.heads);
        for failure in other.failures {
            if !self.failures.contains(&failure) {
                self.failures.push(failure);
            }
        }
    }
}

/// What one task after another gave with the same settings and embeddings: another of them is added to it.
#[derive(Default)]
struct Earlier {
    tasks: Vec<Task>,
    scores: Scores,
}

impl Earlier {
    /// Nothing where anything that the figures depend on has changed, or a file of them is gone.
    fn of(run: &Run, header: &Value) -> Self {
        let read = || -> Option<Self> {
            let record = run.dir.current("evaluate", header)?;
            let tasks: Vec<Task> = serde_json::from_value(record.summary["tasks"].clone()).ok()?;
            let root = run.dir.root();
            let table = root.join(RESULTS).with_extension("parquet");
            let rows =
                if record.summary["rows"] == 0 { vec![] } else { ResultTable::read(&table).ok()?.rows().ok()? };
            let scores = Scores {
                rows,
                confusions: serde_json::from_slice(&std::fs::read(root.join(CONFUSIONS)).ok()?).ok()?,
                curves: serde_json::from_slice(&std::fs::read(root.join(CURVES)).ok()?).ok()?,
                failures: record.failures,
                heads: vec![],
            };
            Some(Self { tasks, scores })
        };
        read().unwrap_or_default()
    }
}

/// Scores whatever the data allow, or the one task asked for.
pub(super) fn evaluate(run: &Run, task: Task) -> Result<()> {
    let input = Input::open(&run.experiment.data)?;
    check_task(run, task, &input)?;
    if matches!(task, Task::All | Task::Slide) {
        check_folds(run)?;
    }
    let trained = match require_encoders(run, &input) {
        Err(_) if only_foreign(run, &input) && run.experiment.encoders.is_empty() => {
            eprintln!("evaluate: only features made elsewhere: no encoder was trained here");
            None
        }
        trained => Some(trained?),
    };
    evaluate_with(run, task, &input, trained)
}

/// Scores the embeddings of `trained`.
pub(super) fn evaluate_with(run: &Run, task: Task, input: &Input, trained: Option<Vec<Trained>>) -> Result<()> {
    if matches!(task, Task::Video | Task::Retrieval | Task::Copies) {
        return only_own_images(run, task, input, trained.as_deref());
    }
    let own = trained.map(|trained| own_embeddings(run, trained)).transpose()?;
    let header = header(run, input, own.as_ref())?;
    let stem = run.dir.file(RESULTS)?;
    let mut earlier = Earlier::of(run, &header);
    if earlier.tasks.iter().any(|&done| covers(run, done, task)) {
        eprintln!("evaluate: up to date");
        return Ok(());
    }
    if task == Task::All {
        earlier = Earlier::default();
    }
    if earlier.tasks.is_empty() {
        // Figures of other settings must not stand beside these settings if this fails.
        run.dir.forget("evaluate")?;
        for extension in ["parquet", "csv", "md"] {
            remove(&stem.with_extension(extension))?;
        }
        for file in [CONFUSIONS, CURVES, linear::RECORD] {
            remove(&run.dir.root().join(file))?;
        }
    }
    if matches!(task, Task::All | Task::Slide) {
        slides::remove_scores(run)?;
    }
    let mut scores = match (input, task) {
        (Input::Images(images), Task::All | Task::Knn) => {
            knn(run, images, own.as_ref().map_or(&[], |own| &own.encoders))?
        }
        (Input::Slides(cohort), Task::All | Task::Slide) => {
            slides::slide_level(run, cohort, own.as_ref(), &heads::evaluation_digest(&header))?
        }
        _ => Scores::default(),
    };
    if let (Input::Images(images), Some(own)) = (input, own.as_ref()) {
        let mut heads = linear::Heads::new();
        if linear::asked(run, task) {
            let (linear, fitted) = linear::linear(run, images, own)?;
            scores.add(linear);
            heads = fitted;
        }
        if robustness::asked(run, task) {
            scores.add(robustness::robustness(run, images, own, &heads)?);
        }
    }
    if task == Task::Fid || (task == Task::All && generation::has_bank(run)) {
        match generation::generation(run, input) {
            Err(error) if task == Task::All => scores.failures.push(Failure {
                stage: "evaluate".into(),
                item: "the bank's images".into(),
                reason: format!("{error:#}"),
            }),
            generated => scores.add(generated?),
        }
    }
    // Their failures are in records of their own.
    scores.rows.extend(own_images::rows(run, task, input, own.as_ref().map(|own| &own.encoders[..]))?);
    let Earlier { mut tasks, scores: mut all } = earlier;
    tasks.push(task);
    all.add(scores);
    let scores = all;
    for failure in &scores.failures {
        eprintln!("evaluate: {}: {}", failure.item, failure.reason);
    }
    // From here on the files may hold more than an earlier record says.
    run.dir.forget("evaluate")?;
    if scores.rows.is_empty() {
        ensure!(scores.failures.is_empty() || task == Task::All, "nothing could be scored, for the reasons above");
        eprintln!("evaluate: no labelled test items, so there is nothing to score");
    } else {
        let table = ResultTable::new(&scores.rows)?;
        table.write(&stem)?;
        say!("{}", table.markdown()?)?;
    }
    atomic_file::write(&run.dir.file(CONFUSIONS)?, &serde_json::to_vec_pretty(&scores.confusions)?)?;
    atomic_file::write(&run.dir.file(CURVES)?, &serde_json::to_vec(&scores.curves)?)?;
    let summary = json!({ "rows": scores.rows.len(), "tasks": tasks });
    run.dir.finish("evaluate", &StageRecord { header, failures: scores.failures, summary })
}

/// Whether `task` has been done with `done`: everything is what the settings ask for.
fn covers(run: &Run, done: Task, task: Task) -> bool {
    let in_all = match task {
        Task::All | Task::Knn | Task::Slide => true,
        Task::Linear => linear::asked(run, Task::All),
        Task::Robustness => robustness::asked(run, Task::All),
        Task::Fid => generation::has_bank(run),
        // These keep records of their own.
        Task::Video | Task::Retrieval | Task::Copies => false,
    };
    done == task || (done == Task::All && in_all)
}

/// Refuses a task that does not apply to the run's data or settings.
fn check_task(run: &Run, task: Task, input: &Input) -> Result<()> {
    let evaluate = &run.experiment.evaluate;
    match (input, task) {
        (_, Task::Video | Task::Retrieval | Task::Copies) => Ok(()),
        (Input::Images(_), Task::Slide) => bail!("image folders have no slides to score"),
        (Input::Slides(_), Task::Knn | Task::Linear | Task::Robustness) => {
            bail!("the patches of slides have no labels of their own: `gensis evaluate slide` scores the slides")
        }
        (Input::Slides(cohort), _) => submission::check(&evaluate.slide.submission, &cohort.classes),
        (Input::Images(_), Task::Robustness) => robustness::check(&evaluate.robustness),
        (Input::Images(_), _) => Ok(()),
    }
}

/// A benchmark with images of its own, which needs no embeddings of the run.
fn only_own_images(run: &Run, task: Task, input: &Input, trained: Option<&[Trained]>) -> Result<()> {
    let rows = own_images::rows(run, task, input, trained)?;
    ensure!(!rows.is_empty(), "there is nothing to score: see failures.csv");
    say!("{}", ResultTable::new(&rows)?.markdown()?)?;
    Ok(())
}

/// Whether there is nothing to score but features made elsewhere.
fn only_foreign(run: &Run, input: &Input) -> bool {
    let named = matches!(input, Input::Slides(_)) && !run.experiment.evaluate.slide.features.is_empty();
    named && !run.dir.root().join("pretrain").exists()
}

/// The embeddings of the run's own encoders.
struct Own {
    /// Those encoders, the vanilla one first.
    encoders: Vec<Trained>,
    /// What `embed` recorded.
    summary: Value,
}

/// The embeddings of the encoders that were trained with these settings.
fn own_embeddings(run: &Run, encoders: Vec<Trained>) -> Result<Own> {
    let embed = run.dir.record("embed").context("there are no embeddings: run `gensis embed` first")?;
    let current = encoders.iter().all(|trained| embed.summary["hashes"][&trained.name] == *trained.hash);
    ensure!(
        current && embed.header["embed"] == as_stored(&json!(run.experiment.embed)),
        "the embeddings are of another encoder or of other settings: run `gensis embed` first"
    );
    Ok(Own { encoders, summary: embed.summary })
}

/// Everything the scores depend on.
fn header(run: &Run, input: &Input, own: Option<&Own>) -> Result<Value> {
    let encoders: &[Trained] = own.map_or(&[], |own| &own.encoders);
    let items: Vec<Value> = match input {
        Input::Slides(cohort) => cohort
            .slides
            .iter()
            .map(|slide| {
                let features = |trained: &Trained| {
                    let there = has_features(run, slide, &trained.name, &trained.hash);
                    json!(there.then(|| sources::features_header(run, &trained.hash, slide)))
                };
                let mut item = vec![json!(slide.id), json!(slide.label_name), json!(slide.group), json!(slide.split)];
                item.extend(slide.stratum.iter().map(|stratum| json!(stratum)));
                item.extend(encoders.iter().map(features));
                json!(item)
            })
            .collect(),
        Input::Images(images) => {
            let folders: Vec<_> = std::iter::once(&images.train).chain(images.test.as_ref()).collect();
            let tables = |trained: &Trained| -> Vec<Value> {
                folders.iter().map(|folder| sources::table_header(run, &trained.hash, folder)).collect()
            };
            encoders.iter().flat_map(tables).collect()
        }
    };
    let Experiment { seed, evaluate, .. } = &run.experiment;
    let foreign = match input {
        Input::Slides(cohort) => foreign::foreign_features(run, cohort)?.iter().map(|f| f.digest(run)).collect(),
        Input::Images(_) => Vec::new(),
    };
    let mut header = json!({
        "stage": "evaluate",
        "format": sources::FORMAT,
        "data": data_name(run),
        "settings": evaluate,
        "seed": seed,
        "items": items,
        "foreign": foreign,
        "bank": generation::header(run),
        "allow_missing": run.experiment.data.allow_missing,
        "own_images": own_images::header(run),
        "untrained": own.map(|own| &own.summary["hashes"][UNTRAINED_NAME]),
    });
    let splits = &run.experiment.evaluate.slide.splits;
    if !splits.is_empty() {
        header["splits"] = splits.iter().map(|file| json!(sources::digest(run, file))).collect();
    }
    if !run.experiment.data.classes.is_empty() {
        header["classes"] = json!(run.experiment.data.classes);
    }
    if let Some(shifted) = robustness::header(run) {
        header["shifted"] = shifted;
    }
    Ok(header)
}

/// Whether a slide has features of this encoder and of its coordinates as they are now.
fn has_features(run: &Run, slide: &SlideRecord, name: &str, encoder: &str) -> bool {
    let header = sources::features_header(run, encoder, slide);
    h5::is_current(&sources::features_path(run, name, &slide.id), &header).unwrap_or(false)
}

fn data_name(run: &Run) -> String {
    let data = &run.experiment.data;
    if !data.name.is_empty() {
        return data.name.clone();
    }
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
    let metrics = Metric::of(predictions.classes());
    let intervals = bootstrap.intervals(predictions, groups, &metrics)?;
    Ok(metrics.into_iter().zip(intervals).map(|(metric, interval)| base.with(metric, interval)).collect())
}

fn confusion(title: String, predictions: &Predictions, classes: &[String]) -> Confusion {
    let matrix = predictions.confusion();
    let row = |truth| (0..matrix.classes()).map(|predicted| matrix.count(truth, predicted)).collect();
    Confusion { title, classes: classes.to_vec(), counts: (0..matrix.classes()).map(row).collect() }
}

/// Weighted k-NN of the test images among the training images.
fn knn(run: &Run, images: &ImageSets, encoders: &[Trained]) -> Result<Scores> {
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
    let own = encoders.iter().map(|trained| (trained.name.as_str(), Some(trained.hash.as_str())));
    for (number, (name, hash)) in own.chain(baselines).enumerate() {
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
            if result.used < result.k && number == 0 {
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
            if number < encoders.len() {
                let title = format!("{name}, {head}");
                scores.curves.push(curves::curves(title.clone(), &result.predictions, &test.classes));
                scores.confusions.push(confusion(title, &result.predictions, &test.classes));
            }
        }
    }
    Ok(scores)
}

fn bootstrap(run: &Run) -> Bootstrap {
    Bootstrap { resamples: run.experiment.evaluate.slide.bootstrap, seed: run.experiment.seed, ..Bootstrap::default() }
}
