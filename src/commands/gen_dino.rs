//! `gensis pretrain --gen-dino`: DINO again, each variant from scratch, with the images of the bank among its views.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use slide_io::PatchSource;

use super::Run;
use super::augment::{self, Models, models};
use super::encoder_training::Training;
use super::encoders::Trained;
use super::pretrain::{require_encoder, settings_header};
use super::sources::{self, ENCODER_NAME, Input};
use super::training;
use crate::config::{Interpolation, Recipe, Variant};
use crate::data::{Interpolations, Synthetics};
use crate::run_dir::StageRecord;
use crate::sample::bank::SyntheticBank;
use crate::train::dino::Settings;

/// Trains the configured variants, or continues where the run was stopped; with `must_resume`, only that.
pub(super) fn gen_dino(run: &Run, must_resume: bool) -> Result<()> {
    let input = Input::open(&run.experiment.data)?;
    let models = models(run, &input)?;
    train(run, input, &models, must_resume)
}

/// Trains the variants with the bank of `models`.
pub(super) fn train(run: &Run, input: Input, models: &Models, must_resume: bool) -> Result<()> {
    let trainings = trainings(run, &input, models)?;
    let left: Vec<&Training> = trainings.iter().filter(|training| training.finished().is_none()).collect();
    let header = json!(trainings.iter().map(|training| &training.header).collect::<Vec<_>>());
    if left.is_empty() && run.dir.current("gen_dino", &header).is_some() {
        eprintln!("gen_dino: up to date");
        return Ok(());
    }
    ensure!(!must_resume || !left.is_empty(), "there is nothing to resume: all variants are trained");
    if let Some(first) = left.first() {
        run.experiment.gen_dino.check_variants()?;
        first.check_begun(must_resume)?;
        run.dir.forget("gen_dino")?;
        let (source, unusable) = training::patches(run, "gen_dino", Input::open(&run.experiment.data)?)?;
        let banks = Banks::open(run, &input, models, &left, &source)?;
        for training in left {
            let recipe = training.settings.gen_dino.as_ref().context("a variant has a recipe")?;
            training.train(source.clone(), Some(banks.synthetics(run, models, recipe, &source)), unusable.clone())?;
        }
    }
    let records = trainings.iter().filter_map(|training| run.dir.record(&training.record));
    let mut failures: Vec<_> = records.flat_map(|record| record.failures).collect();
    failures.sort_by(|a, b| a.item.cmp(&b.item));
    failures.dedup();
    let named = trainings.iter().filter_map(|training| Some((training.encoder.clone(), training.finished()?.1)));
    let summary = json!({ "encoders": named.collect::<BTreeMap<_, _>>() });
    run.dir.finish("gen_dino", &StageRecord { header, failures, summary })
}

/// The trainings of the configured variants.
fn trainings<'a>(run: &'a Run, input: &Input, models: &Models) -> Result<Vec<Training<'a>>> {
    let (_, vanilla) = require_encoder(run, input)?;
    let training = |recipe: Recipe| {
        let variant = recipe.variant;
        let read_of = |bank: Interpolation| -> Result<Value> {
            let mut header = json!(augment::header(run, input, models, bank)?);
            if let Some(header) = header.as_object_mut().filter(|_| recipe.bank_of_interpolations() != Some(bank)) {
                // It reads none of them, so how they are made is nothing to it.
                for key in ["alpha", "interpolated", "interpolation"] {
                    header.remove(key);
                }
            }
            Ok(header)
        };
        let banks = recipe.banks().into_iter().map(read_of).collect::<Result<Vec<_>>>()?;
        let settings = Settings { gen_dino: Some(recipe), ..Settings::of(&run.experiment)? };
        let header = json!({
            "stage": "gen_dino",
            "format": sources::FORMAT,
            "settings": settings_header(&settings)?,
            "data": training::fingerprint(run, input),
            "dino": vanilla,
            "banks": banks,
            // What pixels are mixed by, where there is no bank to say it.
            "mixing": (variant == Variant::PixelMixing).then_some(json!([run.experiment.bank.alpha, run.experiment.bank.interpolated])),
        });
        Ok(Training {
            run,
            stage: "gen_dino",
            record: format!("gen_dino/{}", variant.name()),
            encoder: variant.encoder(),
            header: sources::with_stain(run, header),
            settings,
        })
    };
    run.experiment.gen_dino.recipes().into_iter().map(training).collect()
}

/// The banks of the variants, each opened once.
struct Banks(BTreeMap<Interpolation, Arc<SyntheticBank>>);

impl Banks {
    fn open(
        run: &Run,
        input: &Input,
        models: &Models,
        trainings: &[&Training],
        source: &Arc<dyn PatchSource>,
    ) -> Result<Self> {
        let mut banks = BTreeMap::new();
        for bank in trainings.iter().filter_map(|training| training.settings.gen_dino.as_ref()).flat_map(Recipe::banks)
        {
            if let Entry::Vacant(place) = banks.entry(bank) {
                place.insert(Arc::new(augment::open(run, input, models, bank, source.clone())?));
            }
        }
        Ok(Self(banks))
    }

    /// What a variant shows beside the patches.
    fn synthetics(&self, run: &Run, models: &Models, recipe: &Recipe, source: &Arc<dyn PatchSource>) -> Synthetics {
        let bank = &run.experiment.bank;
        let mixed = || Interpolations::Pixels {
            seed: run.experiment.seed,
            count: bank.interpolated.max(1),
            alpha: bank.alpha,
            without: models.without.clone(),
        };
        let stored = |kind: Interpolation| self.0.get(&kind).cloned().map(Interpolations::Stored);
        let interpolated = match recipe.variant {
            Variant::PixelMixing if recipe.disentangle > 0.0 => Some(mixed()),
            _ => recipe.bank_of_interpolations().and_then(stored),
        };
        Synthetics {
            recipe: recipe.clone(),
            source: source.clone(),
            generative: self.0.get(&Interpolation::Slerp).filter(|_| recipe.synthetic > 0.0).cloned(),
            interpolated,
        }
    }
}

/// The encoders that the experiment trains, the vanilla one first.
///
/// # Errors
/// One that is not trained with these settings on these patches.
pub(super) fn own_encoders(run: &Run, input: &Input) -> Result<Vec<Trained>> {
    if !run.experiment.gen_dino.enabled {
        return encoders(run, input, None);
    }
    encoders(run, input, Some(&models(run, input)?))
}

/// Those of [`own_encoders`] that are trained by now, the vanilla one among them.
///
/// # Errors
/// One that is not trained with these settings on these patches.
pub(super) fn ready_encoders(run: &Run, input: &Input) -> Result<Vec<Trained>> {
    let mut encoders = encoders(run, input, None)?;
    if run.experiment.gen_dino.enabled
        && let Ok(models) = models(run, input)
    {
        let trainings = trainings(run, input, &models)?;
        let ready = trainings.iter().filter_map(|training| Some((&training.encoder, training.finished()?)));
        encoders.extend(ready.map(|(name, (path, hash))| Trained::own(name.clone(), path, hash)));
    }
    Ok(encoders)
}

/// As [`own_encoders`], with Gen-DINO's encoders where there are `models`.
pub(super) fn encoders(run: &Run, input: &Input, models: Option<&Models>) -> Result<Vec<Trained>> {
    let (path, hash) = require_encoder(run, input)?;
    let mut encoders = vec![Trained::own(ENCODER_NAME, path, hash)];
    let Some(models) = models else { return Ok(encoders) };
    for training in trainings(run, input, models)? {
        let missing = || {
            let name = &training.encoder;
            format!("there is no encoder {name} trained with these settings: run `gensis pretrain --gen-dino` first")
        };
        let (path, hash) = training.finished().with_context(missing)?;
        encoders.push(Trained::own(training.encoder.clone(), path, hash));
    }
    Ok(encoders)
}
