//! `gensis run`: the stages of an experiment in their order.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use slide_io::stain::Target;

use super::sources::Input;
use super::{
    Outcome, Run, augment, autoencoder, diffusion, embed, encoders, evaluate, figures, gen_dino, heatmap, pretrain,
    report, tile,
};
use crate::cli::{RunArgs, Task};
use crate::config::Experiment;
use crate::device::{self, DeviceChoice};
use crate::model::require_precision;
use crate::run_dir::read_record;
use crate::sample::bank::Part;

pub(super) fn run(args: &RunArgs) -> Result<Outcome> {
    let experiment = Experiment::load(Some(&args.experiment), &args.settings.all())?;
    let out = match &args.out {
        Some(out) => out.clone(),
        None => PathBuf::from("runs").join(args.experiment.file_stem().context("the experiment needs a file name")?),
    };
    // A run without its data should leave no folder behind.
    Input::open(&experiment.data)?;
    check_trainings(&experiment, &out, args.compute.device)?;
    stages(&Run::open(experiment, &out, args.update, &args.compute)?)
}

/// What would stop a training that is still to come: not to be found out after hours of tiling.
fn check_trainings(experiment: &Experiment, out: &Path, choice: DeviceChoice) -> Result<()> {
    let Experiment { pretrain, diffusion, pretrained_only, gen_dino, .. } = experiment;
    let missing = |stage: &str| read_record(out, stage).is_none();
    if !pretrained_only && missing("pretrain") {
        pretrain.check_temperatures()?;
        require_precision("pretrain", pretrain.precision, &device::open(choice)?)?;
    }
    if gen_dino.enabled && missing("diffusion") {
        gen_dino.check_variants()?;
        require_precision("diffusion", diffusion.precision, &device::open(choice)?)?;
    }
    Ok(())
}

/// Tile, pretrain, with Gen-DINO the autoencoder, the diffusion model, the bank and training again, embed, evaluate,
/// heatmap, figures, report.
pub(super) fn stages(run: &Run) -> Result<Outcome> {
    // What failed on the way is worth knowing all the more when a stage fails; its own error is the one to tell.
    let result = work(run);
    let put_back = if result.is_err() { run.dir.put_back() } else { Ok(()) };
    let (outcome, report) = (run.close(), report::write(run.dir.root()));
    result.and(put_back).and(outcome).and_then(|outcome| report.map(|_| outcome))
}

fn work(run: &Run) -> Result<()> {
    evaluate::check_folds(run)?;
    // A stain reference or an encoder that cannot be read should not be found out after hours of tiling.
    Target::new(&run.experiment.stain)?;
    encoders::foreign_encoders(run)?;
    tile::tile(run)?;
    if !run.experiment.pretrained_only {
        pretrain::pretrain(run, false)?;
    }
    if run.experiment.gen_dino.enabled {
        autoencoder::autoencoder(run, false)?;
        diffusion::diffusion(run, false)?;
        augment::augment(run, Part::WHOLE)?;
        gen_dino::gen_dino(run, false)?;
    }
    embed::embed(run)?;
    evaluate::evaluate(run, Task::All)?;
    heatmap::stage(run)?;
    figures::figures(run)
}
