//! One file a subcommand; each reads as a recipe. The stages of a run are functions of a [`Run`], so that `gensis run`
//! and `gensis demo` are nothing but their sequence.

mod augment;
mod autoencoder;
mod config;
mod demo;
mod diffusion;
mod digest;
mod doctor;
mod duplicates;
mod embed;
mod encoder_training;
mod encoders;
mod evaluate;
mod export;
mod figures;
mod gen_dino;
mod heatmap;
mod inspect;
mod latents;
mod output;
mod pack;
mod pretrain;
mod progress;
mod report;
mod run;
mod sample;
mod selftest;
mod sources;
mod tables;
mod tile;
mod training;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::{Mutex, OnceLock};

use anyhow::{Context, Result};

use crate::cli::{Cli, Command, ComputeArgs, StageArgs};
use crate::config::Experiment;
use crate::data::ReadFailure;
use crate::data::prefetch::panic_message;
use crate::device::DeviceChoice;
use crate::run_dir::{Failure, RunDir};

/// How a command that did not fail ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Everything worked.
    Done,
    /// The rest is done, but this many things are listed in `failures.csv` (or were printed).
    DoneWithFailures(usize),
}

impl Outcome {
    fn of(failures: usize) -> Self {
        if failures == 0 { Self::Done } else { Self::DoneWithFailures(failures) }
    }

    /// 0 done, 3 done with failures.
    pub fn exit_code(self) -> u8 {
        match self {
            Self::Done => 0,
            Self::DoneWithFailures(_) => 3,
        }
    }
}

/// An experiment with its folder and where to compute: what every stage works on.
pub(crate) struct Run {
    pub experiment: Experiment,
    pub dir: RunDir,
    pub device: DeviceChoice,
    pub threads: usize,
    /// Whether outputs of other settings may be made anew.
    pub update: bool,
    /// Digests of slide files, read once.
    digests: digest::Digests,
    /// Encoders from elsewhere, once they are known by their content.
    foreign: OnceLock<Vec<encoders::Trained>>,
}

impl Run {
    /// Opens `out` for an experiment, and sets the number of threads.
    fn open(experiment: Experiment, out: &Path, update: bool, compute: &ComputeArgs) -> Result<Self> {
        // Probing first: a run without its device should leave no folder behind.
        crate::device::open(compute.device)?;
        let threads = start_threads(compute.threads)?;
        let dir = RunDir::open(out, &experiment, update)?;
        let provenance = serde_json::json!({
            "version": env!("CARGO_PKG_VERSION"),
            "arguments": std::env::args().skip(1).collect::<Vec<_>>(),
            "device": compute.device.to_string(),
            "threads": threads,
        });
        dir.log("started", provenance)?;
        Ok(Self {
            experiment,
            dir,
            device: compute.device,
            threads,
            update,
            digests: Mutex::default(),
            foreign: OnceLock::new(),
        })
    }

    /// Opens the run of a single stage: the given configuration, or the one recorded in the folder. Data that cannot be
    /// found leave the folder, and what it records, as it was.
    fn open_stage(args: &StageArgs, more: &[&str]) -> Result<Self> {
        let experiment = Self::experiment(args, more)?;
        sources::Input::open(&experiment.data)?;
        Self::open(experiment, &args.out, args.update, &args.compute)
    }

    /// The configuration of a single stage.
    fn experiment(args: &StageArgs, more: &[&str]) -> Result<Experiment> {
        let recorded = args.out.join("experiment.toml");
        let file = args.config.as_deref().or(recorded.exists().then_some(recorded.as_path()));
        let settings = args.settings.all().into_iter().chain(more.iter().map(|setting| setting.to_string()));
        Experiment::load(file, &settings.collect::<Vec<_>>())
    }

    /// Writes `failures.csv` and turns its length into the outcome.
    fn close(&self) -> Result<Outcome> {
        let failures = self.dir.write_failures()?;
        if !failures.is_empty() {
            eprintln!("{} failure(s), listed in {}", failures.len(), self.dir.root().join("failures.csv").display());
        }
        Ok(Outcome::of(failures.len()))
    }
}

/// A decoder that panics on one slide must not end the cohort.
fn guarded<T>(work: impl FnOnce() -> slide_io::Result<T>) -> Result<T, String> {
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(result) => result.map_err(|error| error.to_string()),
        Err(panic) => Err(format!("internal fault while reading it: {}", panic_message(&*panic))),
    }
}

/// A patch that `stage` could not read, for `failures.csv`.
fn unreadable(stage: &str, failure: &ReadFailure) -> Failure {
    Failure { stage: stage.into(), item: item(&failure.key), reason: failure.reason.clone() }
}

/// A patch's name in `failures.csv`.
fn item(key: &slide_io::PatchKey) -> String {
    match key.origin {
        Some(origin) => format!("{} (x {}, y {})", key.item, origin.x, origin.y),
        None => key.item.clone(),
    }
}

/// Runs a parsed command line.
pub fn dispatch(cli: Cli) -> Result<Outcome> {
    match cli.command {
        Command::Inspect(args) => inspect::inspect(&args),
        Command::Duplicates(args) => duplicates::duplicates(&args),
        Command::Tile(args) => {
            let packed = if args.pack { &["pack.enabled=true"][..] } else { &[] };
            stage(&args.stage, packed, tile::tile)
        }
        Command::Augment(args) => stage(&args.stage, &[], |run| augment::augment(run, args.shard)),
        Command::Pretrain(args) if args.gen_dino => {
            let args = &args.training;
            stage(&args.stage, &["gen_dino.enabled=true"], |run| gen_dino::gen_dino(run, args.resume))
        }
        Command::Pretrain(args) => {
            let args = &args.training;
            stage(&args.stage, &[], |run| pretrain::pretrain(run, args.resume))
        }
        Command::Autoencoder(args) => stage(&args.stage, &[], |run| autoencoder::autoencoder(run, args.resume)),
        Command::Diffusion(args) => stage(&args.stage, &[], |run| diffusion::diffusion(run, args.resume)),
        Command::Sample(args) => sample::sample(&args),
        Command::Embed(args) => stage(&args, &[], embed::embed),
        Command::Evaluate(args) if args.masks.is_some() => evaluate::masks(&args),
        Command::Evaluate(args) => stage(&args.stage, &[], |run| evaluate::evaluate(run, args.task)),
        Command::Export(args) => export::export(&args),
        Command::Figures(args) => stage(&args, &[], figures::figures),
        Command::Heatmap(args) => heatmap::heatmap(&args),
        Command::Run(args) => run::run(&args),
        Command::Report(args) => tables::report(&args),
        Command::Demo(args) => demo::demo(&args),
        Command::Config(args) => config::config(&args),
        Command::Doctor(args) => doctor::doctor(&args),
    }
}

/// Starts the worker threads, 0 for one per core, and returns how many there are.
fn start_threads(threads: usize) -> Result<usize> {
    let threads = match threads {
        0 => std::thread::available_parallelism().map_or(1, usize::from),
        threads => threads,
    };
    rayon::ThreadPoolBuilder::new().num_threads(threads).build_global().context("cannot start the worker threads")?;
    Ok(threads)
}

/// Runs one stage with the settings of the command line and `more`.
fn stage(args: &StageArgs, more: &[&str], work: impl FnOnce(&Run) -> Result<()>) -> Result<Outcome> {
    let run = Run::open_stage(args, more)?;
    // What failed on the way is worth knowing all the more when the stage fails; its own error is the one to tell.
    let result = work(&run);
    let (put_back, outcome) = (if result.is_err() { run.dir.put_back() } else { Ok(()) }, run.close());
    result.and(put_back).and(outcome)
}
