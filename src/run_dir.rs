//! The output folder of one experiment: its resolved configuration, one record per finished stage, failures, a log.
//!
//! Rules: everything is written to a temporary name and renamed; a stage is skipped only when its record holds the
//! very header it would run with; a folder of another experiment is refused.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::SystemTime;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use slide_io::atomic_file::{self, TEMPORARY_PREFIX};

use crate::config::Experiment;

/// The file whose lock keeps a second process out.
const LOCK: &str = ".lock";
/// The configuration of a run folder, its first file.
const EXPERIMENT: &str = "experiment.toml";
/// What failed, stage by stage.
const FAILURES: &str = "failures.csv";
/// What was done when, one line of JSON each.
const LOG: &str = "log.jsonl";

/// Whether a run folder has nothing but what opening it leaves: its first command was refused.
fn holds_nothing(root: &Path) -> bool {
    let opened = [EXPERIMENT, LOG, LOCK, FAILURES];
    let entries = root.read_dir().into_iter().flatten().flatten();
    entries.into_iter().all(|entry| {
        let empty = || entry.path().read_dir().is_ok_and(|mut entries| entries.next().is_none());
        opened.iter().any(|name| entry.file_name() == *name) || empty()
    })
}

/// One thing that did not work while the rest went on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// Stage that met it.
    pub stage: String,
    /// Slide id, patch or csv row.
    pub item: String,
    /// What is wrong, and what to do about it.
    pub reason: String,
}

/// What a finished stage leaves: the header it ran with, what failed, and whatever later stages need to know.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct StageRecord {
    /// Everything the result depends on. Equal headers mean equal results.
    pub header: Value,
    /// What failed.
    pub failures: Vec<Failure>,
    /// Results in brief, for later stages and the report.
    pub summary: Value,
}

/// An open output folder. Only one process holds it at a time.
pub struct RunDir {
    root: PathBuf,
    log: Mutex<File>,
    /// The configuration that this one has replaced.
    replaced: Option<Vec<u8>>,
    /// Whether a stage has begun or ended since.
    touched: AtomicBool,
    /// Held, never read: the lock ends with the process.
    _lock: File,
}

impl RunDir {
    /// Opens or creates the folder for `experiment`. With `update` the folder's configuration is replaced, and stages
    /// whose settings changed run again.
    ///
    /// # Errors
    /// A folder that is not empty and not gensis's, one of another experiment, or one in use.
    pub fn open(root: &Path, experiment: &Experiment, update: bool) -> Result<Self> {
        let recorded = root.join(EXPERIMENT);
        let lock = take(root, EXPERIMENT)?;
        if recorded.exists() {
            let differences = Self::experiment(root)?.differences(experiment)?;
            if !differences.is_empty() && !update && !holds_nothing(root) {
                bail!(
                    "{} belongs to another experiment:\n  {}\nChoose another folder with --out, or add --update to go on in this \
                     one with the new settings (stages they touch run again)",
                    root.display(),
                    differences.join("\n  ")
                );
            }
        }
        remove_temporary_files(root);
        let text = experiment.to_toml()?;
        let there = fs::read(&recorded).ok();
        // What stands there already needs no room on a full disk.
        if there.as_deref() != Some(text.as_bytes()) {
            atomic_file::write(&recorded, text.as_bytes())?;
        }
        let replaced = there.filter(|there| there != text.as_bytes());
        let log = root.join(LOG);
        let opened = File::options().create(true).append(true).open(&log);
        let log = Mutex::new(opened.with_context(|| format!("cannot write {}", log.display()))?);
        Ok(Self { root: root.to_owned(), log, replaced, touched: AtomicBool::new(false), _lock: lock })
    }

    /// Puts the replaced configuration back, unless a stage has begun with this one: after a failure the folder would otherwise
    /// claim settings that nothing in it was made with.
    pub fn put_back(&self) -> Result<()> {
        match &self.replaced {
            Some(text) if !self.touched.load(Ordering::Relaxed) => {
                Ok(atomic_file::write(&self.root.join(EXPERIMENT), text)?)
            }
            _ => Ok(()),
        }
    }

    /// The configuration recorded in a run folder.
    pub fn experiment(root: &Path) -> Result<Experiment> {
        let path = root.join(EXPERIMENT);
        if !path.exists() {
            bail!("{} is not a run folder: it has no experiment.toml", root.display());
        }
        Experiment::load(Some(&path), &[])
    }

    /// The folder.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// A path inside the folder, whose parent exists.
    pub fn file(&self, name: &str) -> Result<PathBuf> {
        let path = self.root.join(name);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).with_context(|| format!("cannot create {}", parent.display()))?;
        }
        Ok(path)
    }

    /// The record of a finished stage, or `None`.
    pub fn record(&self, stage: &str) -> Option<StageRecord> {
        read_record(&self.root, stage)
    }

    /// The record of `stage` if it ran with this very header.
    pub fn current(&self, stage: &str, header: &Value) -> Option<StageRecord> {
        self.record(stage).filter(|record| record.header == as_stored(header))
    }

    /// Records that `stage` is finished.
    pub fn finish(&self, stage: &str, record: &StageRecord) -> Result<()> {
        self.touched.store(true, Ordering::Relaxed);
        let path = self.file(&format!("stages/{stage}.json"))?;
        atomic_file::write(&path, &serde_json::to_vec_pretty(record)?)?;
        self.log("stage finished", json!({ "stage": stage, "failures": record.failures.len() }))
    }

    /// Forgets that `stage` was finished; called before its output is touched.
    pub fn forget(&self, stage: &str) -> Result<()> {
        self.touched.store(true, Ordering::Relaxed);
        remove(&self.root.join(format!("stages/{stage}.json")))
    }

    /// Writes `failures.csv` from the records of all finished stages, and returns them.
    pub fn write_failures(&self) -> Result<Vec<Failure>> {
        let failures: Vec<Failure> =
            STAGES.iter().filter_map(|stage| self.record(stage)).flat_map(|r| r.failures).collect();
        let mut table = csv::Writer::from_writer(Vec::new());
        table.write_record(["stage", "item", "reason"])?;
        for failure in &failures {
            table.write_record([&failure.stage, &failure.item, &failure.reason])?;
        }
        atomic_file::write(&self.root.join(FAILURES), &table.into_inner()?)?;
        Ok(failures)
    }

    /// Appends a line to `log.jsonl`.
    pub fn log(&self, event: &str, fields: Value) -> Result<()> {
        let mut line = json!({ "time": timestamp(), "event": event });
        if let (Value::Object(line), Value::Object(fields)) = (&mut line, fields) {
            line.extend(fields);
        }
        let mut file = self.log.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        writeln!(file, "{line}").context("cannot write log.jsonl")
    }
}

/// Stages in the order of the flow, named as their records are.
pub const STAGES: [&str; 12] = [
    "tile",
    "pretrain",
    "autoencoder",
    "diffusion",
    "bank",
    "gen_dino",
    "embed",
    "video",
    "retrieval",
    "copies",
    "evaluate",
    "heatmap",
];

/// The record of a finished stage of the run in `root`.
pub fn read_record(root: &Path, stage: &str) -> Option<StageRecord> {
    let text = fs::read_to_string(root.join(format!("stages/{stage}.json"))).ok()?;
    serde_json::from_str(&text).ok()
}

/// Now, as RFC 3339 in UTC.
pub fn timestamp() -> String {
    humantime::format_rfc3339_seconds(SystemTime::now()).to_string()
}

/// Removes a file, if there is one.
pub fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// Removes a folder and all in it, if there is one.
pub fn remove_folder(path: &Path) -> Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// A header as it reads after it was stored: JSON may move the last bit of a number, so both sides of a comparison must
/// have gone through it.
pub fn as_stored(header: &Value) -> Value {
    serde_json::from_str(&header.to_string()).unwrap_or_default()
}

/// Makes and locks the folder `root`, or takes one that is empty or holds `record`, the first file that gensis writes
/// into such a folder. Look at the record afterwards only: until then another process may be writing it.
///
/// # Errors
/// A folder that holds files of others, or is in use.
pub fn take(root: &Path, record: &str) -> Result<File> {
    // In this order: whatever a process that began meanwhile has written, its record came before.
    if holds_foreign_files(root) && !root.join(record).exists() {
        bail!("{} holds files that gensis did not write; choose an empty or new folder with --out", root.display());
    }
    fs::create_dir_all(root).with_context(|| format!("cannot create {}", root.display()))?;
    lock(root)
}

/// Keeps every other gensis process out of the folder until the returned file is closed.
///
/// # Errors
/// A folder that is in use.
pub fn lock(root: &Path) -> Result<File> {
    let path = root.join(LOCK);
    let opened = File::options().create(true).append(true).open(&path);
    let file =
        opened.with_context(|| format!("cannot lock {}: {} cannot be written", root.display(), path.display()))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(fs::TryLockError::WouldBlock) => bail!("{} is in use by another gensis process", root.display()),
        Err(fs::TryLockError::Error(error)) => Err(error).with_context(|| format!("cannot lock {}", root.display())),
    }
}

/// Whether there is anything but what a run that was stopped before it wrote its configuration leaves.
fn holds_foreign_files(folder: &Path) -> bool {
    let ours = |name: &str| name == LOCK || name.starts_with(TEMPORARY_PREFIX);
    folder.read_dir().into_iter().flatten().flatten().any(|entry| !ours(&entry.file_name().to_string_lossy()))
}

fn remove_temporary_files(folder: &Path) {
    for entry in folder.read_dir().into_iter().flatten().flatten() {
        let path = entry.path();
        match entry.file_type() {
            // A folder with a lock of its own, such as an export, may be in use.
            Ok(kind) if kind.is_dir() && !path.join(LOCK).exists() => remove_temporary_files(&path),
            Ok(kind) if kind.is_file() && entry.file_name().to_string_lossy().starts_with(TEMPORARY_PREFIX) => {
                // Best effort: a stale temporary file harms nobody.
                let _ = fs::remove_file(&path);
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_of_another_experiment_is_refused_and_named() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("run");
        let experiment = Experiment::default();
        drop(RunDir::open(&root, &experiment, false).unwrap());
        drop(RunDir::open(&root, &experiment, false).unwrap());
        let other = Experiment { seed: 7, ..Experiment::default() };
        // A command that was refused leaves nothing that another one could spoil.
        let refused = dir.path().join("refused");
        drop(RunDir::open(&refused, &experiment, false).unwrap());
        drop(RunDir::open(&refused, &other, false).unwrap());
        fs::create_dir(root.join("pretrain")).unwrap();
        fs::write(root.join("pretrain/metrics.jsonl"), b"{}").unwrap();
        let error = format!("{:#}", RunDir::open(&root, &other, false).err().unwrap());
        assert!(error.contains("another experiment") && error.contains("seed: 0 -> 7"), "{error}");
        drop(RunDir::open(&root, &other, true).unwrap());
        assert_eq!(RunDir::experiment(&root).unwrap().seed, 7);
        let foreign = dir.path().join("foreign");
        fs::create_dir(&foreign).unwrap();
        fs::write(foreign.join("thesis.doc"), b"precious").unwrap();
        assert!(RunDir::open(&foreign, &experiment, true).is_err());
    }

    #[test]
    fn settings_that_nothing_was_made_with_are_not_kept() {
        let dir = tempfile::tempdir().unwrap();
        let seed = || RunDir::experiment(dir.path()).unwrap().seed;
        let open = |seed: u64| RunDir::open(dir.path(), &Experiment { seed, ..Experiment::default() }, true).unwrap();
        open(1).put_back().unwrap();
        assert_eq!(seed(), 1, "there was nothing before");
        open(2).put_back().unwrap();
        assert_eq!(seed(), 1);
        let begun = open(3);
        begun.forget("tile").unwrap();
        begun.put_back().unwrap();
        assert_eq!(seed(), 3);
    }

    #[test]
    fn stages_are_current_only_with_equal_headers() {
        let dir = tempfile::tempdir().unwrap();
        let run = RunDir::open(dir.path(), &Experiment::default(), false).unwrap();
        let mean = json!({ "mean": 0.23f32 });
        run.finish("embed", &StageRecord { header: mean.clone(), failures: vec![], summary: Value::Null }).unwrap();
        assert!(run.current("embed", &mean).is_some(), "a number that JSON does not keep to the last bit");
        let failure = Failure { stage: "tile".into(), item: "a,b".into(), reason: "no \"scale\"".into() };
        let record = StageRecord { header: json!({"seed": 1}), failures: vec![failure], summary: Value::Null };
        run.finish("tile", &record).unwrap();
        assert!(run.current("tile", &json!({"seed": 1})).is_some());
        assert!(run.current("tile", &json!({"seed": 2})).is_none());
        assert_eq!(run.write_failures().unwrap().len(), 1);
        let text = fs::read_to_string(dir.path().join("failures.csv")).unwrap();
        assert_eq!(text, "stage,item,reason\ntile,\"a,b\",\"no \"\"scale\"\"\"\n");
        run.forget("tile").unwrap();
        assert!(run.record("tile").is_none());
    }

    #[test]
    fn leftovers_of_a_killed_run_are_removed_and_two_processes_kept_apart() {
        let dir = tempfile::tempdir().unwrap();
        let run = RunDir::open(dir.path(), &Experiment::default(), false).unwrap();
        let error = RunDir::open(dir.path(), &Experiment::default(), false).err().unwrap();
        assert!(error.to_string().contains("in use"), "{error}");
        let write = |name: &str| {
            let path = run.file(name).unwrap();
            fs::write(&path, b"half").unwrap();
            path
        };
        let left = [".gensis-abc", "x/.gensis-s_patches.h5"].map(write);
        let others = [".note", "x/a.tmp"].map(write);
        drop(run);
        let _run = RunDir::open(dir.path(), &Experiment::default(), false).unwrap();
        assert!(left.iter().all(|path| !path.exists()) && others.iter().all(|path| path.exists()));
    }

    #[test]
    fn a_folder_that_another_process_is_making_is_in_use() {
        let dir = tempfile::tempdir().unwrap();
        let made = take(dir.path(), EXPERIMENT).unwrap();
        let refused = || take(dir.path(), EXPERIMENT).unwrap_err().to_string();
        assert!(refused().ends_with("is in use by another gensis process"));
        fs::write(dir.path().join(EXPERIMENT), b"").unwrap();
        fs::write(dir.path().join("log.jsonl"), b"").unwrap();
        assert!(refused().ends_with("is in use by another gensis process"));
        drop(made);
        assert!(take(dir.path(), EXPERIMENT).is_ok());
        assert!(take(dir.path(), "export.json").unwrap_err().to_string().contains("did not write"));
    }

    #[test]
    fn a_folder_with_no_more_than_a_lock_is_new() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(LOCK), b"").unwrap();
        fs::write(dir.path().join(".gensis-abc"), b"seed").unwrap();
        RunDir::open(dir.path(), &Experiment::default(), false).unwrap();
    }
}
