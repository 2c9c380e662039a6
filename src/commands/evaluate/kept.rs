//! What each benchmark of a run gave, kept apart, so that a change of settings costs the figures that depend on it and no
//! others: `stages/evaluate/<task>.json`, written when the benchmark is done. The result table is gathered from them.

use std::path::{Path, PathBuf};

use anyhow::Result;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use slide_io::atomic_file;

use super::{Scores, heads, linear, slides};
use crate::cli::Task;
use crate::commands::Run;
use crate::run_dir::{as_stored, remove};

/// The benchmarks on the run's own embeddings, in the order of the table. The others keep records of their own.
pub(super) const TASKS: [Task; 5] = [Task::Knn, Task::Slide, Task::Linear, Task::Robustness, Task::Fid];

/// Parts of an evaluation's header that only some benchmarks depend on.
const OF_SOME: [&str; 8] = ["settings", "foreign", "splits", "bank", "own_images", "shifted", "items", "untrained"];

#[derive(Serialize, Deserialize)]
struct Kept {
    /// Everything the figures depend on.
    inputs: Value,
    scores: Scores,
    /// Files that were written beside it, below the run folder: without them it does not count.
    files: Vec<String>,
}

/// What a benchmark gave with the header `header` of the evaluation; none where it was not asked for, or with other settings.
pub(super) fn kept(run: &Run, header: &Value, task: Task) -> Option<Scores> {
    let text = std::fs::read(path(run, task)).ok()?;
    let kept: Kept = serde_json::from_slice(&text).ok()?;
    let whole = kept.files.iter().all(|file| run.dir.root().join(file).exists());
    (whole && kept.inputs == as_stored(&inputs(header, task))).then_some(kept.scores)
}

/// Keeps what a benchmark gave.
pub(super) fn keep(run: &Run, header: &Value, task: Task, scores: Scores) -> Result<()> {
    let files = files(run, task);
    let kept = Kept { inputs: inputs(header, task), scores, files };
    run.dir.file("stages/evaluate/.")?;
    Ok(atomic_file::write(&path(run, task), &serde_json::to_vec(&kept)?)?)
}

/// Whether any benchmark gave something with other settings or embeddings, of which tables that others read go. With the settings
/// of then they are written again, without training anew.
pub(super) fn hide_outdated(run: &Run, header: &Value) -> Result<bool> {
    let outdated = |task: &Task| path(run, *task).exists() && kept(run, header, *task).is_none();
    if outdated(&Task::Slide) {
        slides::remove_tables(run)?;
    }
    Ok(TASKS.iter().any(outdated))
}

/// Removes what benchmarks gave with other settings or embeddings; whether there was any.
pub(super) fn forget_outdated(run: &Run, header: &Value) -> Result<bool> {
    let mut any = false;
    for task in TASKS.into_iter().filter(|&task| kept(run, header, task).is_none()) {
        any |= path(run, task).exists();
        remove(&path(run, task))?;
        match task {
            Task::Slide => slides::remove_scores(run, &heads::evaluation_digest(header))?,
            Task::Linear => remove(&run.dir.root().join(linear::RECORD))?,
            _ => {}
        }
    }
    Ok(any)
}

fn path(run: &Run, task: Task) -> PathBuf {
    run.dir.root().join(format!("stages/evaluate/{}.json", name(task)))
}

/// In files and result rows.
fn name(task: Task) -> String {
    json!(task).as_str().unwrap_or_default().to_owned()
}

/// The settings of `[evaluate]` that the figures of a task depend on, as JSON pointers.
fn settings_of(task: Task, slides: bool) -> &'static [&'static str] {
    match (task, slides) {
        (Task::Knn, _) => &["/knn"],
        (Task::Slide, _) => &["/slide"],
        // Whose baselines are probed too.
        (Task::Linear, _) => &["/linear", "/knn/baselines"],
        (Task::Robustness, true) => &["/robustness", "/slide"],
        (Task::Robustness, false) => &["/robustness", "/linear", "/knn/baselines", "/knn/temperature"],
        (Task::Fid, _) => &["/fid"],
        _ => &[],
    }
}

/// What of an evaluation's header the figures of a task depend on.
fn inputs(header: &Value, task: Task) -> Value {
    let mut inputs = header.clone();
    if let Some(parts) = inputs.as_object_mut() {
        parts.retain(|key, _| !OF_SOME.contains(&key.as_str()));
    }
    let of_task: &[&str] = match task {
        Task::Slide => &["items", "untrained", "foreign", "splits"],
        Task::Robustness => &["items", "untrained", "foreign", "splits", "shifted"],
        // It embeds what it looks at.
        Task::Fid => &["bank"],
        _ => &["items", "untrained"],
    };
    for key in of_task.iter().filter(|key| header.get(**key).is_some()) {
        inputs[*key] = header[*key].clone();
    }
    let settings = &header["settings"];
    let of_settings = settings_of(task, header["of"] == "slides").iter();
    let of = |&place: &&str| (place.to_owned(), without_enabled(json!(settings.pointer(place))));
    inputs["settings"] = of_settings.map(of).collect();
    // The intervals of all of them.
    inputs["bootstrap"] = settings["slide"]["bootstrap"].clone();
    inputs
}

/// Settings without `enabled`: whether `run` scores a benchmark changes no figure of it.
pub(super) fn without_enabled(mut settings: Value) -> Value {
    if let Some(keys) = settings.as_object_mut() {
        keys.remove("enabled");
    }
    settings
}

/// Files that a benchmark wrote beside its figures, below the run folder.
fn files(run: &Run, task: Task) -> Vec<String> {
    let starts: &[&str] = match task {
        Task::Slide => &["results/slide_scores", "results/comparisons", "results/submission", "heads/"],
        Task::Linear => &[linear::RECORD],
        Task::Fid => &["results/fid_reference"],
        _ => &[],
    };
    let root = run.dir.root();
    let entries = ["results", "heads"].into_iter().flat_map(|folder| below(&root.join(folder)));
    let names = entries.filter_map(|path| Some(path.strip_prefix(root).ok()?.to_string_lossy().into_owned()));
    let mut files: Vec<String> = names.filter(|name| starts.iter().any(|start| name.starts_with(start))).collect();
    files.sort_unstable();
    files
}

/// All files below a folder.
fn below(folder: &Path) -> Vec<PathBuf> {
    let entries = folder.read_dir().into_iter().flatten().flatten().map(|entry| entry.path());
    entries.flat_map(|path| if path.is_dir() { below(&path) } else { vec![path] }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_task_depends_on_its_own_settings_and_on_what_all_share() {
        let header = json!({
            "stage": "evaluate", "seed": 0, "items": [1], "bank": "a", "splits": ["b"], "own_images": [],
            "settings": { "knn": { "k": [1], "baselines": [] }, "linear": { "epochs": 1 }, "slide": { "bootstrap": 9, "folds": 5 }, "fid": {} },
        });
        let changed_of = |of: &str, pointer: &str| -> Vec<Task> {
            let mut header = header.clone();
            header["of"] = json!(of);
            let mut other = header.clone();
            *other.pointer_mut(pointer).unwrap() = json!("other");
            TASKS.into_iter().filter(|&task| inputs(&header, task) != inputs(&other, task)).collect()
        };
        let changed = |pointer: &str| changed_of("images", pointer);
        assert_eq!(changed("/items"), &TASKS[..4]);
        assert_eq!(changed("/settings/slide/bootstrap"), TASKS);
        assert_eq!(changed("/settings/slide/folds"), [Task::Slide]);
        assert_eq!(changed_of("slides", "/settings/slide/folds"), [Task::Slide, Task::Robustness]);
        assert_eq!(changed("/settings/knn/baselines"), [Task::Knn, Task::Linear, Task::Robustness]);
        assert_eq!(changed("/settings/linear/epochs"), [Task::Linear, Task::Robustness]);
        assert_eq!(changed("/settings/knn/k"), [Task::Knn]);
        assert_eq!(changed("/bank"), [Task::Fid]);
        assert_eq!(changed("/splits"), [Task::Slide, Task::Robustness]);
        assert_eq!(changed("/own_images"), []);
    }
}
