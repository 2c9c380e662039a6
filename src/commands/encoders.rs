//! The encoders of a run: those it trains, and those that somebody else trained (`[[encoders]]`).

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use burn::tensor::Device;
use serde_json::{Value, json};

use super::sources::Input;
use super::{Run, digest, gen_dino};
use crate::config::{ForeignEncoder, View};
use crate::model::{Encoder, foreign};
use crate::run_dir::Failure;

/// In the summary of `embed`: names and hashes of encoders whose files could not be loaded.
pub(super) const UNLOADABLE: &str = "unloadable";

/// Scales that differ by more than this share are not the same.
const SAME_SCALE: f64 = 0.1;

/// An encoder whose embeddings are made and scored.
#[derive(Clone, Debug)]
pub(super) struct Trained {
    /// In tables and paths.
    pub name: String,
    /// What its embeddings are known by: SHA-256 of its weights, or of the file and the description of one from elsewhere.
    pub hash: String,
    // Not to be loaded but by `load`, which knows what kind of file it is.
    path: PathBuf,
    foreign: Option<Foreign>,
}

/// What is known of an encoder from elsewhere before it is loaded.
#[derive(Clone, Debug)]
pub(super) struct Foreign {
    described: ForeignEncoder,
    /// What the headers of its embeddings say: the file's SHA-256 and the description.
    weights: Value,
}

impl Trained {
    /// One that this run trained.
    pub fn own(name: impl Into<String>, path: PathBuf, hash: String) -> Self {
        Self { name: name.into(), hash, path, foreign: None }
    }

    fn elsewhere(run: &Run, described: &ForeignEncoder) -> Result<Self> {
        let (name, path) = (described.name(), &described.weights);
        let hash = digest::of_whole_file(run, path);
        let unreadable = || format!("encoders.{name}.weights: cannot read {}", path.display());
        let weights = json!({ "sha256": hash.with_context(unreadable)?, "description": described.description()? });
        Ok(Self {
            name: name.to_owned(),
            hash: digest::of_text(&weights.to_string()),
            path: path.clone(),
            foreign: Some(Foreign { described: described.clone(), weights }),
        })
    }

    /// Reads its weights.
    ///
    /// # Errors
    /// As [`Encoder::load`] and [`foreign::load`].
    pub fn load(&self, device: &Device) -> Result<Encoder> {
        match &self.foreign {
            None => Encoder::load(&self.path, device),
            Some(Foreign { described, .. }) => foreign::load(described, &self.hash, device),
        }
    }

    /// What becomes of an encoder that `error` kept from being loaded: one from elsewhere costs its own figures alone.
    ///
    /// # Errors
    /// `error` itself, where this run trained the encoder.
    pub fn unloadable(&self, stage: &str, error: anyhow::Error) -> Result<Failure> {
        match self.foreign {
            None => Err(error),
            Some(_) => Ok(Failure {
                stage: stage.to_owned(),
                item: format!("encoder {}", self.name),
                reason: format!("it has no embeddings and no figures: {error:#}"),
            }),
        }
    }

    /// Says what happens to patches on their way into `encoder`, which is this one, loaded.
    pub fn announce(&self, run: &Run, input: &Input, encoder: &Encoder) -> Result<()> {
        let Some(Foreign { described, .. }) = &self.foreign else { return Ok(()) };
        let (name, grid) = (&self.name, &run.experiment.grid);
        let (mpp, side) = (grid.mpp.0, grid.size);
        let slides = matches!(input, Input::Slides(_));
        if let Some(made_for) = described.mpp()?.filter(|made_for| slides && (mpp / made_for - 1.0).abs() > SAME_SCALE)
        {
            eprintln!("embed: warning: {name} was made for patches of {made_for} µm/px, and grid.mpp is {mpp}");
        }
        let Some(View { resize, crop }) = encoder.view else { return Ok(()) };
        let resized = (resize > 0 && (resize != side || !slides)).then(|| match slides {
            true => format!("resized to {resize} px ({:.3} µm/px)", mpp * f64::from(side) / f64::from(resize)),
            false => format!("resized to {resize} px on the short side"),
        });
        let whole = if resize == 0 && slides { side } else { resize };
        let cut = (crop > 0 && crop != whole).then(|| format!("cut to the centre {crop} px"));
        let done: Vec<String> = resized.into_iter().chain(cut).collect();
        let what = if slides { format!("patches of {side} px") } else { "images".to_owned() };
        if !done.is_empty() {
            eprintln!("embed: {name}: {what} are {}", done.join(" and "));
        }
        Ok(())
    }
}

/// The encoders of the experiment whose embeddings can be had: [`all_encoders`] but for those that `embed` could not load.
///
/// # Errors
/// As [`all_encoders`].
pub(super) fn require_encoders(run: &Run, input: &Input) -> Result<Vec<Trained>> {
    let mut encoders = all_encoders(run, input)?;
    if let Some(embed) = run.dir.record("embed") {
        encoders.retain(|encoder| embed.summary[UNLOADABLE][&encoder.name] != *encoder.hash);
    }
    ensure!(
        !encoders.is_empty(),
        "no encoder could be loaded: see failures.csv, correct [[encoders]] and run `gensis embed`"
    );
    Ok(encoders)
}

/// The encoders of the experiment that are there by now: the vanilla one, those of Gen-DINO that are trained, and those from
/// elsewhere.
///
/// # Errors
/// No vanilla one with these settings on these patches, where the experiment trains one; a file that cannot be read.
pub(super) fn ready_encoders(run: &Run, input: &Input) -> Result<Vec<Trained>> {
    let mut encoders = match run.experiment.pretrained_only {
        true => Vec::new(),
        false => gen_dino::ready_encoders(run, input)?,
    };
    encoders.extend(foreign_encoders(run)?.iter().cloned());
    Ok(encoders)
}

/// All encoders of the experiment: its own, the vanilla one first, then those from elsewhere.
///
/// # Errors
/// An own one that is not trained with these settings on these patches, unless the run never began to train and there are
/// others; a file that cannot be read; no encoder at all.
pub(super) fn all_encoders(run: &Run, input: &Input) -> Result<Vec<Trained>> {
    let foreign = foreign_encoders(run)?;
    let mut encoders = match run.experiment.pretrained_only {
        true => Vec::new(),
        false => match gen_dino::own_encoders(run, input) {
            Err(_) if !foreign.is_empty() && !run.dir.root().join("pretrain").exists() => {
                eprintln!("no encoder was trained here: those of [[encoders]] are used");
                Vec::new()
            }
            own => own?,
        },
    };
    encoders.extend(foreign.iter().cloned());
    ensure!(!encoders.is_empty(), "pretrained_only is set, and there are no [[encoders]]");
    Ok(encoders)
}

/// Those from elsewhere; their files are read once a run.
///
/// # Errors
/// A file that cannot be read.
pub(super) fn foreign_encoders(run: &Run) -> Result<&[Trained]> {
    if let Some(known) = run.foreign.get() {
        return Ok(known);
    }
    let encoders = run.experiment.encoders.iter().map(|described| Trained::elsewhere(run, described));
    let encoders = encoders.collect::<Result<Vec<_>>>()?;
    Ok(run.foreign.get_or_init(|| encoders))
}

/// `header` of embeddings by the encoder of this `hash`, with what is known of its file where it is from elsewhere.
pub(super) fn with_weights(run: &Run, hash: &str, mut header: Value) -> Value {
    let known = run.foreign.get().into_iter().flatten().find(|encoder| encoder.hash == hash);
    if let Some(Foreign { weights, .. }) = known.and_then(|encoder| encoder.foreign.as_ref()) {
        header["weights"] = weights.clone();
    }
    header
}
