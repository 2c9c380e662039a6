//! `gensis pretrain`: DINO on the patches of the training slides or images.

use std::path::PathBuf;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::Run;
use super::encoder_training::Training;
use super::sources::{self, ENCODER_NAME, Input};
use super::training;
use crate::train::dino::Settings;

/// Trains the encoder, or continues where the run was stopped; with `must_resume`, only that.
pub(super) fn pretrain(run: &Run, must_resume: bool) -> Result<()> {
    let input = Input::open(&run.experiment.data)?;
    let vanilla = vanilla(run, &input)?;
    if vanilla.finished().is_some() {
        eprintln!("pretrain: up to date");
        return Ok(());
    }
    vanilla.check_begun(must_resume)?;
    let (source, unusable) = training::patches(run, "pretrain", input)?;
    vanilla.train(source, None, unusable)?;
    Ok(())
}

/// The vanilla training of the run.
fn vanilla<'a>(run: &'a Run, input: &Input) -> Result<Training<'a>> {
    let settings = Settings::of(&run.experiment)?;
    let header = json!({
        "stage": "pretrain",
        "format": sources::FORMAT,
        "settings": settings_header(&settings)?,
        "data": training::fingerprint(run, input),
    });
    Ok(Training {
        run,
        stage: "pretrain",
        record: "pretrain".into(),
        encoder: ENCODER_NAME.into(),
        header: sources::with_stain(run, header),
        settings,
    })
}

/// The settings an encoder depends on.
pub(super) fn settings_header(settings: &Settings) -> Result<Value> {
    let mut settings = serde_json::to_value(settings)?;
    if let Some(pretrain) = settings["pretrain"].as_object_mut() {
        // How often to look does not change what is learnt.
        pretrain.remove("knn_every");
        pretrain.remove("checkpoint_every");
    }
    Ok(settings)
}

/// The encoder's file and hash, if it was trained with these settings on these patches.
pub(super) fn require_encoder(run: &Run, input: &Input) -> Result<(PathBuf, String)> {
    let vanilla = vanilla(run, input)?;
    vanilla.finished().with_context(|| training::missing(run, "encoder", "pretrain", &vanilla.header))
}
