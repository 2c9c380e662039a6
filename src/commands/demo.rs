//! `gensis demo`: draw a cohort, run the whole experiment on it.

use anyhow::{Result, ensure};
use serde_json::json;
use slide_io::atomic_file;

use super::output::say_line;
use super::progress::Progress;
use super::{Outcome, Run, run};
use crate::cli::DemoArgs;
use crate::config::Experiment;
use crate::demo::{DemoSpec, paint_cohort};

/// The demo's experiment; its paths are set here.
const DEMO_TOML: &str = include_str!("../../configs/demo.toml");

pub(super) fn demo(args: &DemoArgs) -> Result<Outcome> {
    let cohort = args.out.join("cohort");
    ensure!(cohort.to_str().is_some(), "--out {}: the demo needs a folder whose name is UTF-8", args.out.display());
    let mut settings = vec![
        format!("data.slides={}", json!(cohort.join("slides"))),
        format!("data.labels={}", json!(cohort.join("labels.csv"))),
    ];
    settings.extend(args.settings.iter().cloned());
    let experiment = Experiment::parse(DEMO_TOML, "configs/demo.toml", &settings)?;
    let run = Run::open(experiment, &args.out, args.update, &args.compute)?;

    let spec = DemoSpec { seed: run.experiment.seed, slides: args.slides, ..DemoSpec::default() };
    let painted = run.dir.file("cohort/painted.json")?;
    let description = json!({ "version": env!("CARGO_PKG_VERSION"), "slides": spec.slides, "side_um": spec.side_um, "seed": spec.seed }).to_string();
    if std::fs::read_to_string(&painted).is_ok_and(|text| text == description) {
        eprintln!("paint: up to date");
    } else {
        let progress = Progress::new("paint", spec.slides as u64, "slides");
        paint_cohort(&cohort, &spec, |_| progress.advance(1))?;
        atomic_file::write(&painted, description.as_bytes())?;
        progress.finish(&format!("{} slides in {}", spec.slides, cohort.display()));
    }

    let outcome = run::stages(&run)?;
    say_line!("\nReport: {}", args.out.join("report.html").display())?;
    Ok(outcome)
}
