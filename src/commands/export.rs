//! `gensis export`: what a run holds, in the files of other tools. The run folder itself is TRIDENT's layout already.

mod clam;
mod patches;

use std::fs::File;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail, ensure};
use serde_json::Value;
use slide_io::{Cohort, SlideRecord, atomic_file};

use super::sources::Input;
use super::{Outcome, Run};
use crate::cli::{ComputeArgs, ExportArgs, ExportTask};
use crate::device::DeviceChoice;
use crate::run_dir::{self, RunDir, as_stored};

/// The file that says what an exported folder holds.
const RECORD: &str = "export.json";

pub(super) fn export(args: &ExportArgs) -> Result<Outcome> {
    match &args.task {
        ExportTask::Clam(args) => clam::clam(args),
        ExportTask::Patches(args) => patches::patches(args),
    }
}

/// A run of slides, its cohort, and the slides of it that are asked for: those `named`, or all.
fn open(root: &Path, threads: usize, named: &[String]) -> Result<(Run, Cohort, Vec<SlideRecord>)> {
    let experiment = RunDir::experiment(root)?;
    let run = Run::open(experiment, root, false, &ComputeArgs { device: DeviceChoice::Cpu, threads })?;
    let Input::Slides(cohort) = Input::open(&run.experiment.data)? else {
        bail!("{} works on image folders, which other tools read as they are", root.display());
    };
    for name in named {
        ensure!(cohort.slides.iter().any(|slide| slide.id == *name), "--slides: there is no slide {name} in this run");
    }
    let asked = |slide: &&SlideRecord| named.is_empty() || named.contains(&slide.id);
    let slides = cohort.slides.iter().filter(asked).cloned().collect();
    Ok((run, cohort, slides))
}

/// A folder that one export fills. Files in it are complete, so that a stopped export goes on where it was.
struct Folder {
    root: PathBuf,
    _lock: File,
}

impl Folder {
    /// Opens or creates the folder of the export that `header` describes.
    ///
    /// # Errors
    /// A folder with other files, or with another export.
    fn open(root: &Path, header: &Value) -> Result<Self> {
        let record = root.join(RECORD);
        let lock = run_dir::take(root, RECORD)?;
        if let Ok(text) = std::fs::read(&record) {
            let same = serde_json::from_slice(&text).is_ok_and(|stored: Value| stored == as_stored(header));
            ensure!(
                same,
                "{} holds an export of other patches, features or settings; choose another folder with --out",
                root.display()
            );
        }
        atomic_file::write(&record, &serde_json::to_vec_pretty(header)?)?;
        Ok(Self { root: root.to_owned(), _lock: lock })
    }

    fn file(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// Writes a table, first row first.
    fn write_table(&self, name: &str, rows: &[Vec<String>]) -> Result<()> {
        let mut table = csv::Writer::from_writer(Vec::new());
        rows.iter().try_for_each(|row| table.write_record(row))?;
        Ok(atomic_file::write(&self.file(name), &table.into_inner()?)?)
    }
}

/// The class of a slide; empty where it has none.
fn label(slide: &SlideRecord) -> String {
    slide.label_name.clone().unwrap_or_default()
}
