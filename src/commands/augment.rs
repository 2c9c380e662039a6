//! `gensis augment`: synthetic and interpolated images of every patch that training sees, made once.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use slide_io::PatchSource;

use super::autoencoder::require_first_stage;
use super::diffusion::require_model;
use super::pretrain::require_encoder;
use super::progress::Progress;
use super::sources::{self, Input};
use super::training::{self, set_aside};
use super::{Run, latents};
use crate::config::{Bank, Condition, Interpolation};
use crate::data::latents::LatentFile;
use crate::device;
use crate::model::diffusion::DiffusionModel;
use crate::model::{Encoder, FirstStage};
use crate::run_dir::{StageRecord, as_stored};
use crate::sample::bank::{Decoder, Generator, Header, Origin, Part, SyntheticBank, Work};
use crate::sample::generator::EmbeddingGenerator;
use crate::sample::painter::Painter;
use crate::sample::reconstructions::Reconstructions;
use crate::train::checkpoint::first_difference;

/// Makes what is missing of `part` of the banks that the experiment needs.
pub(super) fn augment(run: &Run, part: Part) -> Result<()> {
    let input = Input::open(&run.experiment.data)?;
    let models = models(run, &input)?;
    make(run, &input, &models, part, |interpolation| {
        let (painter, stage, encoder) = networks(run, &input)?;
        // They may have been removed to make room, or be of an earlier version.
        let latents = match latents::open(run, &input, &stage, &encoder) {
            Ok(latents) => latents,
            Err(_) => latents::make_again(run, &input, (stage, encoder), &models.without)?,
        };
        Ok(Box::new(EmbeddingGenerator::new(painter, latents, interpolation)?))
    })
}

/// What a bank depends on beside the encoder and the experiment.
#[derive(Clone, Debug)]
pub(super) struct Models {
    /// Hash of the autoencoder.
    pub autoencoder: String,
    /// Hash of the diffusion model.
    pub diffusion: String,
    /// Settings of the sampler.
    pub sampler: Value,
    /// Width and height of its images, px.
    pub size: [u32; 2],
    /// Patches it was trained for.
    pub images: usize,
    /// Those without an embedding, ascending.
    pub without: Vec<usize>,
}

/// The diffusion model of the run, as banks know it.
///
/// # Errors
/// One that is not trained with these settings on these patches.
pub(super) fn models(run: &Run, input: &Input) -> Result<Models> {
    let (_, diffusion) = require_model(run, input)?;
    let (_, autoencoder) = require_first_stage(run, input)?;
    let record = run.dir.record("diffusion").context("there is no record of the diffusion model")?;
    let number = |key: &str| record.summary[key].as_u64();
    let lacking = "the record of the diffusion model lacks its images: run `gensis diffusion` again";
    let (images, side) = number("images").zip(number("image_side")).context(lacking)?;
    let without: Vec<usize> = serde_json::from_value(record.summary["without"].clone()).context(lacking)?;
    let sampler = run.experiment.sample.recorded()?;
    Ok(Models { autoencoder, diffusion, sampler, size: [side as u32; 2], images: images as usize, without })
}

/// What draws images, and the embeddings it draws from.
pub(super) fn painter(run: &Run, input: &Input) -> Result<(Painter, LatentFile)> {
    let (painter, stage, encoder) = networks(run, input)?;
    let latents = latents::open(run, input, &stage, &encoder)?;
    Ok((painter, latents))
}

/// What draws images, and the autoencoder and the encoder behind it.
fn networks(run: &Run, input: &Input) -> Result<(Painter, FirstStage, Encoder)> {
    let device = device::open(run.device)?;
    let (encoder_path, encoder_hash) = require_encoder(run, input)?;
    let (stage_path, stage_hash) = require_first_stage(run, input)?;
    let (model_path, model_hash) = require_model(run, input)?;
    let encoder = Encoder::load(&encoder_path, &device)?;
    let stage = FirstStage::load(&stage_path, &device)?;
    let model = DiffusionModel::load(&model_path, &device)?;
    training::same_weights(&encoder_path, &encoder.hash, &encoder_hash)?;
    training::same_weights(&stage_path, &stage.hash, &stage_hash)?;
    training::same_weights(&model_path, &model.hash, &model_hash)?;
    model.require(&encoder.hash, &stage.hash)?;
    Ok((Painter::new(model, stage.clone(), &run.experiment.sample, &device)?, stage, encoder))
}

/// The images of `source` after the autoencoder.
///
/// # Errors
/// Latents that are not stored, as on a machine that was given the bank alone.
pub(super) fn reconstructions(run: &Run, input: &Input, source: Arc<dyn PatchSource>) -> Result<Reconstructions> {
    let (painter, latents) = painter(run, input)?;
    Reconstructions::new(painter, latents, source)
}

/// Makes the banks with the generator that `of` gives for a line between embeddings.
pub(super) fn make(
    run: &Run,
    input: &Input,
    models: &Models,
    part: Part,
    of: impl Fn(Interpolation) -> Result<Box<dyn Generator>>,
) -> Result<()> {
    let banks = banks(run);
    let headers = banks.iter().map(|&bank| header(run, input, models, bank)).collect::<Result<Vec<_>>>()?;
    let record = json!({ "stage": "bank", "format": sources::FORMAT, "banks": headers });
    if let Some(most) = headers.iter().map(Header::shards).max() {
        ensure!(
            (0..most).any(|shard| part.holds(shard)),
            "--shard {part}: there are only {most} shard files (bank.shard), so that this part has none to make"
        );
    }
    let mut complete = true;
    for (&interpolation, header) in banks.iter().zip(&headers) {
        let folder = folder(run, interpolation);
        let name = interpolation.name();
        let mut generator = None;
        let work = match Work::new(&folder, header, part) {
            // Only a bank of other settings is refused. It stays where nothing can be drawn in its place.
            Err(_) if run.update => {
                generator = Some(of(interpolation)?);
                set_aside("augment", "bank", &folder)?;
                Work::new(&folder, header, part)?
            }
            work => work?,
        };
        if work.done == work.images {
            eprintln!("augment: {name}: up to date");
        } else {
            let generator = match generator {
                Some(generator) => generator,
                None => of(interpolation)?,
            };
            run.dir.forget("bank")?;
            let progress = Progress::new("augment", work.images as u64, "images");
            progress.start_at(work.done as u64);
            let batch = run.experiment.sample.batch;
            let made = work.run(&*generator, batch, |images| progress.advance(images as u64))?;
            progress.finish(&format!("{name}: {made}"));
            let shares: Value = made.shares().map(|(part, share)| json!([part, share])).into_iter().collect();
            let figures = json!({ "images": made.images, "seconds": made.seconds, "busy": shares });
            run.dir.log("bank made", json!({ "bank": name, "made": figures, "shard": part.to_string() }))?;
        }
        let whole = Work::new(&folder, header, Part::WHOLE)?;
        complete &= whole.done == whole.images;
    }
    if !complete {
        eprintln!("augment: other parts are missing; copy their files into {}", run.dir.root().join("bank").display());
        return Ok(());
    }
    let images: usize = headers.iter().map(|header| (header.images - header.without.len()) * header.per_image()).sum();
    run.dir.finish("bank", &StageRecord { header: record, failures: vec![], summary: json!({ "images": images }) })
}

/// That the whole bank has been made with these settings by these models.
///
/// # Errors
/// No bank, an unfinished one, or one of other settings: the first key and both values.
pub(super) fn require_bank(run: &Run, input: &Input) -> Result<()> {
    let models = models(run, input)?;
    let made =
        run.dir.record("bank").context("there is no whole bank of generated images: run `gensis augment` first")?;
    for (number, interpolation) in banks(run).into_iter().enumerate() {
        let asked = as_stored(&json!(header(run, input, &models, interpolation)?));
        if let Some((key, there, asked)) = first_difference("", &made.header["banks"][number], &asked) {
            bail!(
                "the bank of {} interpolations was made with {key} = {there}, and this run has {asked}: make it anew with \
                 `gensis augment --update`",
                interpolation.name()
            );
        }
    }
    Ok(())
}

/// The banks that the experiment's variants need; the usual one where no variant is trained.
fn banks(run: &Run) -> Vec<Interpolation> {
    let needed: BTreeSet<Interpolation> =
        run.experiment.gen_dino.recipes().iter().flat_map(|recipe| recipe.banks()).collect();
    match needed.is_empty() && !run.experiment.gen_dino.enabled {
        true => vec![Interpolation::Slerp],
        false => needed.into_iter().collect(),
    }
}

/// The bank whose images are shown and judged: the usual one where the variants need it.
pub(super) fn shown_bank(run: &Run) -> Option<Interpolation> {
    banks(run).into_iter().min_by_key(|&bank| bank != Interpolation::Slerp)
}

fn folder(run: &Run, interpolation: Interpolation) -> PathBuf {
    run.dir.root().join("bank").join(interpolation.name())
}

/// Everything the bank of this interpolation depends on.
pub(super) fn header(run: &Run, input: &Input, models: &Models, interpolation: Interpolation) -> Result<Header> {
    let experiment = &run.experiment;
    let bank = match interpolation {
        Interpolation::Slerp => experiment.bank.clone(),
        // Synthetic images of one image lie in the other bank.
        Interpolation::Lerp => Bank { generative: 0, ..experiment.bank.clone() },
    };
    let (_, encoder) = require_encoder(run, input)?;
    let mut sampler = models.sampler.clone();
    if interpolation == Interpolation::Lerp && experiment.diffusion.condition == Condition::Sphere {
        // An earlier version brought the points of the line back up to the sphere.
        sampler["line"] = json!("chord");
    }
    let origin = Origin {
        data: sources::with_stain(run, json!({ "patches": training::fingerprint(run, input) })),
        images: models.images,
        without: models.without.clone(),
        encoder,
        autoencoder: models.autoencoder.clone(),
        diffusion: models.diffusion.clone(),
        sampler,
        size: models.size,
    };
    Header::new(&bank, origin, interpolation, experiment.seed)
}

/// Opens the bank of this interpolation, made of `source`.
pub(super) fn open(
    run: &Run,
    input: &Input,
    models: &Models,
    interpolation: Interpolation,
    source: Arc<dyn PatchSource>,
) -> Result<SyntheticBank> {
    let header = header(run, input, models, interpolation)?;
    let decoder =
        if header.stores_latents() { Some(Arc::new(networks(run, input)?.0) as Arc<dyn Decoder>) } else { None };
    SyntheticBank::open(&folder(run, interpolation), &header, source, decoder)
        .with_context(|| format!("the bank of {} interpolations", interpolation.name()))
}

#[cfg(test)]
mod tests;
