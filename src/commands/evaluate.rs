//! `gensis evaluate`: stored embeddings to scores to the result table. Nothing is chosen on a test part.

mod copies;
mod drawn;
pub(super) mod examples;
mod features;
mod foreign;
mod generation;
mod given_splits;
mod head_training;
pub(super) mod heads;
mod imagenet;
mod kept;
mod linear;
mod own_images;
mod probed;
mod retrieval;
mod robustness;
mod shifted_slides;
mod slides;
mod subjects;
mod submission;
mod usable;
mod video;

pub(super) use slides::{COMPARISONS, SCORES, check_folds, exchanges};
pub(super) use subjects::{Subject, among, folds, subjects};
pub(super) use video::masks;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use evaluation::bootstrap::Bootstrap;
use evaluation::embeddings::EmbeddingTable;
use evaluation::knn::{KnnConfig, classify};
use evaluation::metric::{Metric, Predictions};
use evaluation::table::{ResultRow, ResultTable};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use slide_io::{ImageFolder, PatchSource, SlideRecord, atomic_file, h5};

use super::embed::is_current;
use super::encoders::{Trained, ready_encoders, require_encoders};
use super::output::say;
use super::sources::{self, ImageSets, Input, UNTRAINED_NAME};
use super::{Run, augment, digest};
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
#[derive(Default, Serialize, Deserialize)]
struct Scores {
    rows: Vec<ResultRow>,
    confusions: Vec<Confusion>,
    curves: Vec<RankingCurves>,
    failures: Vec<Failure>,
    #[serde(skip)]
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

/// Scores whatever the data allow, or the one task asked for.
pub(super) fn evaluate(run: &Run, task: Task) -> Result<()> {
    let input = Input::open(&run.experiment.data)?;
    check_task(run, task, &input)?;
    if matches!(task, Task::All | Task::Slide) {
        check_folds(run)?;
    }
    let trained = match task {
        // Which needs no embeddings, and judges the bank before Gen-DINO learns from it.
        Task::Fid => ready_encoders(run, &input),
        _ => require_encoders(run, &input),
    };
    let trained = match trained {
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
    if task.has_own_images() {
        return only_own_images(run, task, input, trained);
    }
    let own = trained.map(|trained| match own_embeddings(run, trained.clone()) {
        Err(_) if task == Task::Fid => Ok(Own { encoders: trained, summary: Value::Null }),
        own => own,
    });
    let own = own.transpose()?;
    if task == Task::Fid {
        augment::require_bank(run, input)?;
    }
    let encoders = own.as_ref().map(|own| &own.encoders[..]);
    let header = header(run, input, own.as_ref())?;
    let missing = |task: &Task| kept::kept(run, &header, *task).is_none();
    let todo: Vec<Task> = wanted(run, input, own.is_some(), task).into_iter().filter(missing).collect();
    let mut asked: Vec<Task> = match run.dir.current("evaluate", &header) {
        Some(record) => serde_json::from_value(record.summary["tasks"].clone()).unwrap_or_default(),
        None => vec![],
    };
    let covered = asked.contains(&task) || (task != Task::All && asked.contains(&Task::All));
    if todo.is_empty() && covered && has_tables(run) {
        eprintln!("evaluate: up to date");
        return Ok(());
    }
    // Figures of other settings, or of nobody knows which, must not stand beside these settings if this fails.
    let unknown = asked.is_empty() && run.dir.root().join(RESULTS).with_extension("csv").exists();
    let outdated = match task {
        // Encoders may be on their way: what was scored of those before them may come to stand again.
        Task::Fid => kept::hide_outdated(run, &header)?,
        _ => kept::forget_outdated(run, &header)?,
    };
    if outdated || unknown {
        gather(run, &header, &[], own_images::current(run, input, encoders), vec![])?;
    }
    let mut fitted = linear::Heads::new();
    // What fails costs itself alone where all are asked for, and is tried again the next time.
    let (mut lost, mut main_lost) = (Vec::new(), false);
    for one in todo {
        let scores = match score(run, one, input, own.as_ref(), &header, &mut fitted) {
            Err(error) if task == Task::All && !(one == Task::Slide && slides::is_of_the_disk(&error)) => {
                let item = match one {
                    Task::Knn => "k-NN",
                    Task::Slide => "slides",
                    Task::Fid => "the bank's images",
                    Task::Linear => "linear probes",
                    Task::Robustness => "robustness",
                    Task::All | Task::Video | Task::Retrieval | Task::Copies => "images of its own",
                };
                lost.push(slides::failure(item, format!("{error:#}")));
                main_lost |= matches!(one, Task::Knn | Task::Slide);
                tell(&lost[lost.len() - 1..]);
                continue;
            }
            scores => scores?,
        };
        ensure!(
            task == Task::All || !scores.rows.is_empty() || !scores.failures.is_empty(),
            "there is nothing to score{}",
            if matches!(task, Task::Knn | Task::Slide | Task::Linear) {
                ": no test item has a label (data.labels)"
            } else {
                ""
            }
        );
        match scores.rows.is_empty() && !scores.failures.is_empty() {
            true => {
                main_lost |= matches!(one, Task::Knn | Task::Slide);
                tell(&scores.failures);
                lost.extend(scores.failures);
            }
            false => kept::keep(run, &header, one, scores)?,
        }
        ensure!(task == Task::All || lost.is_empty(), "nothing could be scored, for the reasons above");
    }
    let told = lost.clone();
    asked.push(task);
    asked.sort_unstable();
    asked.dedup();
    let own_rows = match task {
        // Their failures are in records of their own.
        Task::All => own_images::rows(run, task, input, encoders)?,
        _ => own_images::current(run, input, encoders),
    };
    let scores = gather(run, &header, &asked, own_rows, lost)?;
    tell(scores.failures.iter().filter(|failure| !told.contains(failure)));
    match scores.rows.is_empty() {
        true if main_lost => bail!("nothing could be scored, for the reasons above"),
        true => eprintln!("evaluate: no labelled test items, so there is nothing to score"),
        false => say!("{}", ResultTable::new(&scores.rows)?.markdown()?)?,
    }
    Ok(())
}

fn tell<'a>(failures: impl IntoIterator<Item = &'a Failure>) {
    failures.into_iter().for_each(|failure| eprintln!("evaluate: {}: {}", failure.item, failure.reason));
}

/// The benchmarks that a task consists of: itself, or what the data allow and the settings ask for.
fn wanted(run: &Run, input: &Input, own: bool, task: Task) -> Vec<Task> {
    let images = matches!(input, Input::Images(_));
    let asked = |one: &Task| match one {
        Task::Knn => images,
        Task::Slide => !images,
        Task::Linear => images && own && run.experiment.evaluate.linear.enabled,
        Task::Robustness => own && robustness::asked(run, input),
        Task::Fid => generation::has_bank(run),
        _ => false,
    };
    match task {
        Task::All => kept::TASKS.into_iter().filter(asked).collect(),
        task => vec![task],
    }
}

/// What one benchmark gives. `fitted` are linear heads that one leaves to the next.
fn score(
    run: &Run,
    task: Task,
    input: &Input,
    own: Option<&Own>,
    header: &Value,
    fitted: &mut linear::Heads,
) -> Result<Scores> {
    let required = || own.context("there is no encoder of this run: run `gensis pretrain` first");
    Ok(match (task, input) {
        (Task::Knn, Input::Images(images)) => knn(run, images, own.map_or(&[], |own| &own.encoders))?,
        (Task::Slide, Input::Slides(cohort)) => {
            slides::slide_level(run, cohort, own, &heads::evaluation_digest(header))?
        }
        (Task::Linear, Input::Images(images)) => {
            let (scores, heads) = linear::linear(run, images, required()?)?;
            *fitted = heads;
            scores
        }
        (Task::Robustness, Input::Images(images)) => robustness::robustness(run, images, required()?, fitted)?,
        (Task::Robustness, Input::Slides(cohort)) => shifted_slides::shifted_slides(run, cohort, required()?, header)?,
        (Task::Fid, _) => generation::generation(run, input)?,
        _ => Scores::default(),
    })
}

/// Whether the tables that the record names are there.
fn has_tables(run: &Run) -> bool {
    let there = |file: PathBuf| run.dir.root().join(file).exists();
    let tables = || ["parquet", "csv", "md"].iter().all(|kind| there(Path::new(RESULTS).with_extension(kind)));
    let rows = run.dir.record("evaluate").is_some_and(|record| record.summary["rows"] != 0);
    [CONFUSIONS, CURVES].iter().all(|file| there(file.into())) && (!rows || tables())
}

/// Writes the tables and the record from what every benchmark gave with these settings, and `own_rows`. `asked` are the tasks
/// that were asked for, `lost` what of them could not be done.
fn gather(run: &Run, header: &Value, asked: &[Task], own_rows: Vec<ResultRow>, lost: Vec<Failure>) -> Result<Scores> {
    let mut scores = Scores::default();
    kept::TASKS.into_iter().filter_map(|task| kept::kept(run, header, task)).for_each(|kept| scores.add(kept));
    scores.rows.extend(own_rows);
    scores.add(Scores { failures: lost, ..Scores::default() });
    // From here on the files may hold more than an earlier record says.
    run.dir.forget("evaluate")?;
    let stem = run.dir.file(RESULTS)?;
    match scores.rows.is_empty() {
        true => ["parquet", "csv", "md"].iter().try_for_each(|kind| remove(&stem.with_extension(kind)))?,
        false => ResultTable::new(&scores.rows)?.write(&stem)?,
    }
    atomic_file::write(&run.dir.file(CONFUSIONS)?, &serde_json::to_vec_pretty(&scores.confusions)?)?;
    atomic_file::write(&run.dir.file(CURVES)?, &serde_json::to_vec(&scores.curves)?)?;
    let summary = json!({ "rows": scores.rows.len(), "tasks": asked });
    let (header, failures) = (header.clone(), scores.failures.clone());
    run.dir.finish("evaluate", &StageRecord { header, failures, summary })?;
    Ok(scores)
}

/// Refuses a task that does not apply to the run's data or settings.
fn check_task(run: &Run, task: Task, input: &Input) -> Result<()> {
    let evaluate = &run.experiment.evaluate;
    match (input, task) {
        (_, task) if task.has_own_images() => Ok(()),
        (Input::Images(_), Task::Slide) => bail!("image folders have no slides to score"),
        (Input::Slides(_), Task::Knn | Task::Linear) => {
            bail!("the patches of slides have no labels of their own: `gensis evaluate slide` scores the slides")
        }
        (Input::Slides(_), Task::Robustness) => shifted_slides::check(&evaluate.robustness),
        (Input::Slides(cohort), _) => submission::check(&evaluate.slide.submission, &cohort.classes),
        (Input::Images(_), Task::Robustness) => robustness::check(&evaluate.robustness),
        (Input::Images(_), _) => Ok(()),
    }
}

/// A benchmark with images of its own, which needs no embeddings of the run.
fn only_own_images(run: &Run, task: Task, input: &Input, trained: Option<Vec<Trained>>) -> Result<()> {
    let rows = own_images::rows(run, task, input, trained.as_deref())?;
    let current = own_images::current(run, input, trained.as_deref());
    // They join the table of all, which embeddings of the run may have filled.
    match trained.map(|trained| own_embeddings(run, trained)).transpose() {
        Ok(own) => {
            let header = header(run, input, own.as_ref())?;
            let before = run.dir.current("evaluate", &header);
            let asked = before.as_ref().map(|record| serde_json::from_value(record.summary["tasks"].clone()));
            let asked: Vec<Task> = asked.transpose().unwrap_or_default().unwrap_or_default();
            gather(run, &header, &asked, current, before.map_or(vec![], |record| record.failures))?;
        }
        Err(_) if run.dir.record("evaluate").is_none() && !current.is_empty() => {
            ResultTable::new(&current)?.write(&run.dir.file(RESULTS)?)?;
        }
        Err(_) => {}
    }
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
        current && embed.header["embed"] == as_stored(&sources::embed_header(&run.experiment.embed)),
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
        Input::Slides(cohort) => foreign::foreign_features(run, cohort).iter().map(|f| f.digest(run)).collect(),
        Input::Images(_) => Vec::new(),
    };
    let mut header = json!({
        "stage": "evaluate",
        "of": match input {
            Input::Slides(_) => "slides",
            Input::Images(_) => "images",
        },
        "format": sources::FORMAT,
        "data": data_name(run),
        "settings": evaluate,
        "seed": seed,
        "items": items,
        "foreign": foreign,
        "bank": generation::header(run, input, encoders),
        "allow_missing": run.experiment.data.allow_missing,
        "own_images": own_images::header(run),
        "untrained": own.map(|own| &own.summary["hashes"][UNTRAINED_NAME]),
    });
    let splits = &run.experiment.evaluate.slide.splits;
    if !splits.is_empty() {
        header["splits"] = splits.iter().map(|file| json!(digest::of_whole_file(run, file))).collect();
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

/// Weighted k-NN of the test images among the training images. An encoder that cannot be scored costs its own rows alone.
fn knn(run: &Run, images: &ImageSets, encoders: &[Trained]) -> Result<Scores> {
    let Some(test) = images.test.as_ref().filter(|folder| !folder.classes().is_empty()) else {
        return Ok(Scores::default());
    };
    let baselines = run.experiment.evaluate.knn.baselines.iter().map(|baseline| match baseline {
        Baseline::Random => (UNTRAINED_NAME, None),
        Baseline::Pixels => ("pixels", Some("pixels")),
    });
    let own = encoders.iter().map(|trained| (trained.name.as_str(), Some(trained.hash.as_str())));
    let (mut scores, mut refused) = (Scores::default(), None);
    for (number, (name, hash)) in own.chain(baselines).enumerate() {
        match knn_of(run, [&images.train, test], name, hash, number < encoders.len()) {
            Ok(found) => scores.add(found),
            Err(error) => {
                scores.failures.push(linear::failed(&format!("{name}, k-NN"), &error));
                refused.get_or_insert(error);
            }
        }
    }
    match refused.filter(|_| scores.rows.is_empty()) {
        Some(error) => Err(error),
        None => Ok(scores),
    }
}

/// The figures of one encoder, `name`; `drawn` with curves and confusion matrices.
fn knn_of(run: &Run, folders: [&ImageFolder; 2], name: &str, hash: Option<&str>, drawn: bool) -> Result<Scores> {
    let settings = &run.experiment.evaluate.knn;
    let bootstrap = bootstrap(run);
    let config = KnnConfig { k: settings.k.clone(), temperature: settings.temperature };
    let load = |part: &str, folder: &ImageFolder| -> Result<EmbeddingTable> {
        let path = run.dir.root().join(format!("features/{name}-{part}.parquet"));
        // The hash of the untrained network is in its table only.
        let current = hash.is_none_or(|hash| is_current(&path, &sources::table_header(run, hash, folder)));
        ensure!(path.exists() && current, "{} is missing or of other settings: run `gensis embed`", path.display());
        Ok(EmbeddingTable::load(&path)?)
    };
    let (train, test) = (load("train", folders[0])?, load("test", folders[1])?);
    let mut scores = Scores::default();
    for result in classify(&train, &test, &config, &device::open(run.device)?)? {
        let head = format!("{}-NN", result.k);
        if drawn && result.used < result.k {
            eprintln!("evaluate: {name}, {head}: there are only {} training images, so all of them vote", result.used);
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
        if drawn {
            let title = format!("{name}, {head}");
            scores.curves.push(drawn::curves(title.clone(), &result.predictions, &test.classes));
            scores.confusions.push(drawn::confusion(title, &result.predictions, &test.classes));
        }
    }
    Ok(scores)
}

fn bootstrap(run: &Run) -> Bootstrap {
    Bootstrap { resamples: run.experiment.evaluate.slide.bootstrap, seed: run.experiment.seed, ..Bootstrap::default() }
}
