//! What a training loop tells while it runs: `metrics.jsonl`.

use anyhow::{Context, Result};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::Path;

/// Reports kept of a run, about.
const LINES: usize = 10_000;

/// Steps between two reports of a run of `steps`.
pub fn report_every(steps: usize) -> usize {
    (steps / LINES).max(1)
}

/// `metrics.jsonl`, one JSON object a line.
pub struct Metrics(File);

impl Metrics {
    /// Keeps the lines of steps before `step`: what came after the checkpoint is done, and written, again.
    ///
    /// # Errors
    /// A folder that cannot be written to.
    pub fn open(path: &Path, step: usize) -> Result<Self> {
        let open = || -> Result<File> {
            let old = if path.exists() && step > 0 { std::fs::read_to_string(path)? } else { String::new() };
            let kept: String = old.split_inclusive('\n').filter(|line| before(line, step)).collect();
            slide_io::atomic_file::write(path, kept.as_bytes())?;
            Ok(OpenOptions::new().append(true).open(path)?)
        };
        open().map(Self).with_context(|| format!("cannot write {}", path.display()))
    }

    /// Adds a line.
    ///
    /// # Errors
    /// A full disk.
    pub fn write(&mut self, line: &impl Serialize) -> Result<()> {
        writeln!(self.0, "{}", serde_json::to_string(line)?).context("cannot write metrics.jsonl")
    }

    /// Waits until the disk has the lines.
    ///
    /// # Errors
    /// A full disk.
    pub fn sync(&mut self) -> Result<()> {
        self.0.sync_data().context("cannot write metrics.jsonl")
    }
}

/// The lines of a `metrics.jsonl` that are a `T`, in their order.
///
/// # Errors
/// A file that cannot be read.
pub fn reports<T: DeserializeOwned>(path: &Path) -> Result<Vec<T>> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    Ok(text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect())
}

fn before(line: &str, step: usize) -> bool {
    let json: Option<serde_json::Value> = serde_json::from_str(line).ok();
    json.and_then(|json| json.get("step")?.as_u64()).is_some_and(|of| (of as usize) < step)
}
