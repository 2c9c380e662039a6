//! Benchmarks with images of their own, whose encoders need no embeddings of the run: videos, retrieval, copy detection.
//!
//! Each is a stage with a record and a result table `results/<task>`, and is not computed again while its record is current;
//! its rows join the table of all.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use evaluation::table::{ResultRow, ResultTable, write_csv};
use evaluation::video::{ObjectScores, score};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use slide_io::{ImageFolder, PatchSource};

use super::kept::without_enabled;
use super::{copies, data_name, examples, retrieval, video};
use crate::cli::Task;
use crate::commands::embed;
use crate::commands::encoders::Trained;
use crate::commands::sources::{self, FORMAT, ImageSets, Input, UNTRAINED_NAME};
use crate::commands::{Run, digest};
use crate::config::Baseline;
use crate::device;
use crate::model::Encoder;
use crate::run_dir::{Failure, StageRecord, as_stored, remove};

/// One of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Benchmark {
    Video,
    Retrieval,
    Copies,
}

/// What one gives.
#[derive(Default)]
pub(super) struct Found {
    pub rows: Vec<ResultRow>,
    pub failures: Vec<Failure>,
    /// Of videos: encoders with the figures of every object.
    pub objects: Vec<(String, Vec<ObjectScores>)>,
    /// What rows of other data sets, scored before by the same encoders, depend on.
    pub beside: Vec<Value>,
    /// Whether an encoder could not be scored, which is tried again the next time.
    pub incomplete: bool,
}

impl Found {
    /// What an earlier run of the benchmark found on other data sets than `name` by the same encoders: Oxford's figures stay when
    /// Paris is asked for with its own settings.
    fn beside(run: &Run, benchmark: Benchmark, name: &str, trained: &[Trained]) -> Self {
        let read = || -> Option<Self> {
            let record = run.dir.record(benchmark.stage())?;
            let mut beside: Vec<Value> = serde_json::from_value(record.summary["beside"].clone()).unwrap_or_default();
            if !beside.contains(&record.header) {
                beside.push(record.header);
            }
            beside.retain(|header| header["encoders"] == as_stored(&encoders(trained)));
            // A video's figures have details beside them that are written whole.
            let same = benchmark != Benchmark::Video && !beside.is_empty();
            let path = run.dir.root().join(format!("results/{}.parquet", benchmark.stage()));
            let mut rows = if same { ResultTable::read(&path).ok()?.rows().ok()? } else { vec![] };
            rows.retain(|row| !is_of(&row.data, name));
            let name = |header: &Value| header["name"].as_str().unwrap_or_default().to_owned();
            rows.retain(|row| beside.iter().any(|header| is_of(&row.data, &name(header))));
            beside.retain(|header| rows.iter().any(|row| is_of(&row.data, &name(header))));
            Some(Self { rows, beside, ..Self::default() })
        };
        read().unwrap_or_default()
    }
}

/// Whether a row's data set is the one called `name`, or a part of it: copies are of `<name>/<set>` or `<name>:<attack>`.
fn is_of(data: &str, name: &str) -> bool {
    data.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest.starts_with(['/', ':', '+']))
}

/// Where its images are.
pub(super) struct Place {
    pub folder: PathBuf,
    /// Their name in tables.
    pub name: String,
    /// The run's own test images, where no folder is named.
    pub own: Option<Arc<ImageFolder>>,
}

impl Place {
    /// The images of a folder at the place, or the run's own with the stain that the run gives them.
    pub fn images(&self, run: &Run) -> Result<(Arc<ImageFolder>, Arc<dyn PatchSource>)> {
        Ok(match &self.own {
            Some(own) => (own.clone(), sources::images(run, own)?),
            None => {
                let named = Arc::new(ImageFolder::open(&self.folder)?);
                (named.clone(), named)
            }
        })
    }
}

/// An encoder to judge.
pub(super) struct Judged {
    pub name: String,
    pub encoder: Encoder,
}

impl Benchmark {
    const ALL: [Self; 3] = [Self::Video, Self::Retrieval, Self::Copies];

    /// Those that a task asks for: one by its name, or all that name a folder or are to take the run's own test images.
    pub fn asked(run: &Run, task: Task) -> Vec<Self> {
        let evaluate = &run.experiment.evaluate;
        let named = |benchmark: &Self| {
            let enabled = match benchmark {
                Self::Video => false,
                Self::Retrieval => evaluate.retrieval.enabled,
                Self::Copies => evaluate.copies.enabled,
            };
            enabled || !benchmark.named_folder(run).as_os_str().is_empty()
        };
        match task {
            Task::Video => vec![Self::Video],
            Task::Retrieval => vec![Self::Retrieval],
            Task::Copies => vec![Self::Copies],
            Task::All => Self::ALL.into_iter().filter(named).collect(),
            _ => vec![],
        }
    }

    /// In records, files and settings.
    pub fn stage(self) -> &'static str {
        match self {
            Self::Video => "video",
            Self::Retrieval => "retrieval",
            Self::Copies => "copies",
        }
    }

    fn named_folder(self, run: &Run) -> &Path {
        let evaluate = &run.experiment.evaluate;
        match self {
            Self::Video => &evaluate.video.folder,
            Self::Retrieval => &evaluate.retrieval.folder,
            Self::Copies => &evaluate.copies.folder,
        }
    }

    /// The folder named in the settings, or the run's own test images.
    fn place(self, run: &Run, input: &Input) -> Result<Place> {
        let named = self.named_folder(run);
        if !named.as_os_str().is_empty() {
            return Ok(Place { folder: named.to_owned(), name: name_of(named), own: None });
        }
        match (self, input) {
            (Self::Retrieval | Self::Copies, Input::Images(ImageSets { test: Some(test), .. })) => {
                Ok(Place { folder: test.root().to_owned(), name: data_name(run), own: Some(test.clone()) })
            }
            _ => bail!(
                "evaluate.{0} names no images: add --set evaluate.{0}.folder=FOLDER (`gensis config default` says what it holds)",
                self.stage()
            ),
        }
    }

    fn settings(self, run: &Run) -> Value {
        let evaluate = &run.experiment.evaluate;
        without_enabled(match self {
            Self::Video => json!(evaluate.video),
            Self::Retrieval => json!(evaluate.retrieval),
            Self::Copies => json!(evaluate.copies),
        })
    }

    fn baselines(self, run: &Run) -> &[Baseline] {
        let evaluate = &run.experiment.evaluate;
        match self {
            Self::Video => &evaluate.video.baselines,
            Self::Retrieval => &evaluate.retrieval.baselines,
            Self::Copies => &evaluate.copies.baselines,
        }
    }

    /// Other folders that the figures depend on.
    fn more_folders(self, run: &Run) -> Vec<&Path> {
        let copies = &run.experiment.evaluate.copies;
        let all = match self {
            Self::Copies => vec![copies.whitening.as_path(), copies.distractors.as_path()],
            _ => vec![],
        };
        all.into_iter().filter(|folder| !folder.as_os_str().is_empty()).collect()
    }
}

/// Rows of the benchmarks that the task asks for, made where they are not current. Where all are asked for, one that cannot be
/// scored at all is a failure beside the others; asked for by its name, an error.
pub(super) fn rows(run: &Run, task: Task, input: &Input, trained: Option<&[Trained]>) -> Result<Vec<ResultRow>> {
    let mut rows = Vec::new();
    if task == Task::All {
        forget_outdated(run, trained.unwrap_or_default())?;
    }
    for benchmark in Benchmark::asked(run, task) {
        match scored(run, benchmark, input, trained) {
            Err(error) if task == Task::All => {
                let folder = benchmark.named_folder(run);
                let kept = Found::beside(run, benchmark, &name_of(folder), trained.unwrap_or_default());
                forget(run, benchmark)?;
                let item = folder.display().to_string();
                let failure = Failure { stage: benchmark.stage().into(), item, reason: format!("{error:#}") };
                rows.extend(kept.rows.iter().cloned());
                finish(run, benchmark, Value::Null, Found { failures: vec![failure], ..kept })?;
            }
            scored => rows.extend(scored?),
        }
    }
    if task == Task::All {
        // What was asked for by name stays beside them.
        let others = Benchmark::ALL.into_iter().filter(|benchmark| !Benchmark::asked(run, task).contains(benchmark));
        rows.extend(others.filter_map(|benchmark| current_of(run, benchmark, input, trained)).flatten());
    }
    Ok(rows)
}

fn scored(run: &Run, benchmark: Benchmark, input: &Input, trained: Option<&[Trained]>) -> Result<Vec<ResultRow>> {
    let trained = trained.context("there is no encoder of this run: run `gensis pretrain` first")?;
    let place = benchmark.place(run, input)?;
    let header = benchmark_header(run, benchmark, &place, trained)?;
    let whole = run.dir.record(benchmark.stage()).is_some_and(|record| record.summary["incomplete"] != true);
    if let Some(rows) = stored(run, benchmark, &header).filter(|_| whole) {
        eprintln!("{}: up to date", benchmark.stage());
        return Ok(rows);
    }
    let beside = Found::beside(run, benchmark, &place.name, trained);
    forget(run, benchmark)?;
    let mut found = Found { rows: beside.rows.clone(), beside: beside.beside.clone(), ..Found::default() };
    match judge(run, benchmark, &place, trained, &mut found) {
        Err(error) => {
            // What other data sets gave stays.
            if let Some(header) = beside.beside.last() {
                finish(run, benchmark, header.clone(), beside)?;
            }
            Err(error)
        }
        Ok(()) => {
            let rows = found.rows.clone();
            finish(run, benchmark, header, found)?;
            Ok(rows)
        }
    }
}

/// The table of a benchmark with this header.
fn stored(run: &Run, benchmark: Benchmark, header: &Value) -> Option<Vec<ResultRow>> {
    let (record, header) = (run.dir.record(benchmark.stage())?, as_stored(header));
    let beside = || record.summary["beside"].as_array().is_some_and(|all| all.contains(&header));
    if record.header != header && !beside() {
        return None;
    }
    let path = run.dir.root().join(format!("results/{}.parquet", benchmark.stage()));
    ResultTable::read(&path).ok()?.rows().ok()
}

/// Rows of those benchmarks that are current.
pub(super) fn current(run: &Run, input: &Input, trained: Option<&[Trained]>) -> Vec<ResultRow> {
    Benchmark::ALL.into_iter().filter_map(|benchmark| current_of(run, benchmark, input, trained)).flatten().collect()
}

fn current_of(run: &Run, benchmark: Benchmark, input: &Input, trained: Option<&[Trained]>) -> Option<Vec<ResultRow>> {
    let trained = trained?;
    if run.dir.record(benchmark.stage())?.header.is_null() {
        // It failed; other data sets have theirs.
        return Some(Found::beside(run, benchmark, &name_of(benchmark.named_folder(run)), trained).rows);
    }
    let header = benchmark_header(run, benchmark, &benchmark.place(run, input).ok()?, trained).ok()?;
    stored(run, benchmark, &header)
}

/// Adds what a benchmark gives at a place, for every encoder. One that cannot be scored is listed, and is an error where it is so
/// with all of them.
fn judge(run: &Run, benchmark: Benchmark, place: &Place, trained: &[Trained], found: &mut Found) -> Result<()> {
    let device = device::open(run.device)?;
    let untrained = benchmark.baselines(run).contains(&Baseline::Random);
    let (mut judged_any, mut refused) = (false, None);
    // One encoder in memory at a time.
    for trained in trained.iter().map(Some).chain(untrained.then_some(None)) {
        let judged = match trained {
            Some(trained) => match trained.load(&device) {
                Ok(encoder) => Judged { name: trained.name.clone(), encoder },
                Err(error) => {
                    found.failures.push(trained.unloadable(benchmark.stage(), error)?);
                    continue;
                }
            },
            None => Judged { name: UNTRAINED_NAME.into(), encoder: embed::untrained(run)? },
        };
        let done = match benchmark {
            Benchmark::Video => video::video(run, &judged, place, found),
            Benchmark::Retrieval => retrieval::retrieval(run, &judged, place, found),
            Benchmark::Copies => copies::copies(run, &judged, place, found),
        };
        match done {
            Ok(()) => judged_any = true,
            Err(error) => {
                let (stage, item) = (benchmark.stage().to_owned(), judged.name);
                found.failures.push(Failure { stage, item, reason: format!("it could not be scored: {error:#}") });
                found.incomplete = true;
                refused.get_or_insert(error);
            }
        }
    }
    match refused {
        Some(error) if !judged_any => Err(error),
        _ => Ok(()),
    }
}

/// Removes what benchmarks that are no longer asked for made of encoders that are no longer these, or failed to make.
fn forget_outdated(run: &Run, trained: &[Trained]) -> Result<()> {
    let asked = Benchmark::asked(run, Task::All);
    let encoders = as_stored(&encoders(trained));
    let outdated = |benchmark: &Benchmark| {
        run.dir.record(benchmark.stage()).is_some_and(|record| {
            record.header.is_null() || record.header.get("encoders").is_some_and(|known| *known != encoders)
        })
    };
    let gone = Benchmark::ALL.into_iter().filter(|benchmark| !asked.contains(benchmark)).filter(outdated);
    gone.into_iter().try_for_each(|benchmark| forget(run, benchmark))
}

/// What the figures depend on of the encoders.
fn encoders(trained: &[Trained]) -> Value {
    json!(trained.iter().map(|trained| json!([trained.name, trained.hash])).collect::<Vec<_>>())
}

/// Removes the record and the tables of other settings.
pub(super) fn forget(run: &Run, benchmark: Benchmark) -> Result<()> {
    run.dir.forget(benchmark.stage())?;
    let stem = run.dir.file(&format!("results/{}", benchmark.stage()))?;
    match benchmark {
        Benchmark::Video => remove(&run.dir.root().join(video::DETAILS))?,
        Benchmark::Retrieval => examples::pictures(run.dir.root()).iter().try_for_each(|path| remove(path))?,
        Benchmark::Copies => {}
    }
    ["parquet", "csv", "md"].iter().try_for_each(|extension| remove(&stem.with_extension(extension)))
}

/// Writes the tables and the record of a benchmark.
pub(super) fn finish(run: &Run, benchmark: Benchmark, header: Value, found: Found) -> Result<()> {
    let Found { rows, failures, objects, beside, incomplete } = found;
    for failure in &failures {
        eprintln!("{}: {}: {}", benchmark.stage(), failure.item, failure.reason);
    }
    if !rows.is_empty() {
        ResultTable::new(&rows)?.write(&run.dir.file(&format!("results/{}", benchmark.stage()))?)?;
    }
    if !objects.is_empty() {
        write_csv(&score::table(&objects)?, &run.dir.file(video::DETAILS)?)?;
    }
    let summary = json!({ "rows": rows.len(), "beside": beside, "incomplete": incomplete });
    run.dir.finish(benchmark.stage(), &StageRecord { header, failures, summary })
}

/// What the figures of all benchmarks that name a folder depend on; a folder that cannot be read is null.
pub(super) fn header(run: &Run) -> Value {
    let each = |benchmark: Benchmark| -> Vec<Option<Value>> {
        let folders = std::iter::once(benchmark.named_folder(run)).chain(benchmark.more_folders(run));
        folders.map(|folder| fingerprint(folder).ok()).collect()
    };
    json!(Benchmark::asked(run, Task::All).into_iter().map(each).collect::<Vec<_>>())
}

fn benchmark_header(run: &Run, benchmark: Benchmark, place: &Place, trained: &[Trained]) -> Result<Value> {
    let crops = &run.experiment.crops;
    let untrained = benchmark.baselines(run).contains(&Baseline::Random);
    let folders = std::iter::once(&*place.folder).chain(benchmark.more_folders(run));
    let mut header = json!({
        "stage": benchmark.stage(),
        "format": FORMAT,
        "settings": benchmark.settings(run),
        "bootstrap": run.experiment.evaluate.slide.bootstrap,
        "seed": run.experiment.seed,
        "encoders": encoders(trained),
        "untrained": untrained.then(|| json!([run.experiment.model, crops.mean, crops.std])),
        "data": folders.map(fingerprint).collect::<Result<Vec<_>>>()?,
        "name": place.name,
    });
    if place.own.is_some() {
        header = sources::with_stain(run, header);
    }
    Ok(header)
}

/// What a folder holds: paths and sizes of all its files; of what cannot be read, the path.
///
/// # Errors
/// A folder that is not there or cannot be read.
pub(super) fn fingerprint(folder: &Path) -> Result<Value> {
    let mut hash = Sha256::new();
    for path in slide_io::files_below(folder)? {
        hash.update(path.strip_prefix(folder).unwrap_or(&path).as_os_str().as_encoded_bytes());
        hash.update([0]);
        hash.update(path.metadata().map_or(0, |metadata| metadata.len()).to_le_bytes());
    }
    Ok(json!(digest::hex(hash)))
}

/// The name of a folder in tables: its own, with its parent's where it is only a part of a data set.
pub(super) fn name_of(folder: &Path) -> String {
    let parts: Vec<_> = folder.iter().map(|part| part.to_string_lossy()).collect();
    match &parts[..] {
        [.., whole, part] if ["train", "val", "test"].contains(&&**part) => format!("{whole}/{part}"),
        [.., last] => last.to_string(),
        [] => String::new(),
    }
}

/// A base for the rows of a benchmark.
pub(super) fn row(task: &str, data: String, encoder: &str, head: &str, n: usize) -> ResultRow {
    ResultRow {
        task: task.into(),
        data,
        encoder: encoder.into(),
        head: head.into(),
        n: n as u64,
        ..ResultRow::default()
    }
}
