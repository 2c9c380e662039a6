//! A trained head: scoring slides with it, and keeping it in a file.

use std::path::Path;

use burn::store::{ModuleSnapshot, SafetensorsStore};
use burn::tensor::activation::softmax;
use burn::tensor::{Device, Tensor};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use super::training::patches_of;
use super::{Aggregator, EpochRecord, HeadShape};
use crate::bag::{Bag, BagSource};
use crate::device::host;
use crate::error::{Error, Result};
use crate::metric::Predictions;
use crate::standard::Standard;

/// The weights of the best epoch, on the plain device (no gradients).
#[derive(Clone, Debug)]
pub struct TrainedHead<A> {
    /// The head.
    pub model: A,
    /// Its sizes.
    pub shape: HeadShape,
    /// The scale its features are put on; none for features as they are.
    pub standard: Option<Standard>,
    /// The epoch the weights are from.
    pub best_epoch: usize,
    /// Losses of every epoch that ran.
    pub history: Vec<EpochRecord>,
}

/// What a head says about one slide.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SlideScore {
    /// The slide's id.
    pub id: String,
    /// Its group (patient).
    pub group: String,
    /// Its class, where known.
    pub label: Option<u32>,
    /// Probability per class.
    pub probabilities: Vec<f32>,
    /// Attention per patch, in the order of the bag.
    pub attention: Vec<f32>,
}

#[derive(Serialize, Deserialize)]
struct Description {
    aggregator: String,
    shape: HeadShape,
    standard: Option<Standard>,
    best_epoch: usize,
    history: Vec<EpochRecord>,
    header: serde_json::Value,
}

const METADATA_KEY: &str = "gensis";

impl<A: Aggregator> TrainedHead<A> {
    /// Scores the slides `indices` of `source`, all patches of each.
    pub fn predict(&self, source: &dyn BagSource, indices: &[usize], device: &Device) -> Result<Vec<SlideScore>> {
        let device = device.clone().inner();
        let score = |&index: &usize| {
            let mut bag = source.load(index)?;
            let output = self.model.forward(self.patches(&mut bag, &device)?, None);
            let probabilities = probabilities(output.logits, &bag.id)?;
            let attention = host(output.attention)?;
            Ok(SlideScore { id: bag.id, group: bag.group, label: source.label(index), probabilities, attention })
        };
        indices.iter().map(score).collect()
    }

    /// The patches of a bag on the scale the head was trained with.
    pub(super) fn patches(&self, bag: &mut Bag, device: &Device) -> Result<Tensor<2>> {
        bag.check()?;
        if bag.dim != self.shape.dim {
            return Err(Error::usage(format!(
                "slide {} has {} numbers per patch, the head takes {}",
                bag.id, bag.dim, self.shape.dim
            )));
        }
        if let Some(standard) = &self.standard {
            standard.apply(&mut bag.features);
        }
        Ok(patches_of(bag, device))
    }

    /// Writes weights, sizes, history and the caller's `header` as one safetensors file, whole or not at all.
    pub fn save(&self, path: &Path, header: &serde_json::Value) -> Result<()> {
        let description = Description {
            aggregator: A::NAME.to_owned(),
            shape: self.shape.clone(),
            standard: self.standard.clone(),
            best_epoch: self.best_epoch,
            history: self.history.clone(),
            header: header.clone(),
        };
        let json = serde_json::to_string(&description).map_err(|e| Error::usage(format!("head header: {e}")))?;
        // One key alone: several would stand in another order each time, and equal heads make equal files.
        let mut store = SafetensorsStore::from_bytes(None).clear_metadata().metadata(METADATA_KEY, json);
        let unwritable =
            |e: &dyn std::fmt::Display| Error::usage(format!("{}: a head that makes no file: {e}", path.display()));
        self.model.save_into(&mut store).map_err(|e| unwritable(&e))?;
        let bytes = store.get_bytes().map_err(|e| unwritable(&e))?;
        Ok(slide_io::atomic_file::write(path, &bytes)?)
    }

    /// Reads a head written by [`save`](Self::save) onto `device`, with the header it was saved with.
    pub fn load(path: &Path, device: &Device) -> Result<(Self, serde_json::Value)> {
        let Description { aggregator, shape, standard, best_epoch, history, header } = read_description(path)?;
        if aggregator != A::NAME {
            return Err(Error::usage(format!("{}: a head of kind {aggregator}, not {}", path.display(), A::NAME)));
        }
        // The drawn weights are all replaced: the store refuses a file that lacks one.
        let mut model = A::init(&shape, &mut ChaCha8Rng::seed_from_u64(0), &device.clone().inner());
        let mut store = SafetensorsStore::from_file(path);
        model.load_from(&mut store).map_err(|e| Error::bad(path, e.to_string()))?;
        Ok((Self { model, shape, standard, best_epoch, history }, header))
    }
}

/// The truth and probabilities of labelled slides, ready for [`Metric`](crate::metric::Metric)s, and their groups for
/// the [`Bootstrap`](crate::bootstrap::Bootstrap).
pub fn score_all<'a>(
    slides: impl IntoIterator<Item = &'a SlideScore>,
    classes: usize,
) -> Result<(Predictions, Vec<String>)> {
    let (mut truth, mut scores, mut groups) = (Vec::new(), Vec::new(), Vec::new());
    for slide in slides {
        truth.push(slide.label.ok_or_else(|| Error::usage(format!("slide {} has no label to test with", slide.id)))?);
        scores.extend_from_slice(&slide.probabilities);
        groups.push(slide.group.clone());
    }
    Ok((Predictions::new(truth, scores, classes)?, groups))
}

/// The softmax of the scores of slide `id`, which must be finite.
pub(super) fn probabilities(logits: Tensor<2>, id: &str) -> Result<Vec<f32>> {
    let probabilities = host(softmax(logits, 1))?;
    match probabilities.iter().all(|p| p.is_finite()) {
        true => Ok(probabilities),
        false => Err(Error::Training(format!("the head gives slide {id} a score that is not finite"))),
    }
}

/// The name of the aggregator whose weights a file holds.
pub(super) fn aggregator_of(path: &Path) -> Result<String> {
    read_description(path).map(|description| description.aggregator)
}

/// The description in a safetensors file's metadata: 8 bytes of length, then JSON with the texts in `__metadata__`.
fn read_description(path: &Path) -> Result<Description> {
    use std::io::Read;

    let mut file = std::fs::File::open(path).map_err(|e| Error::io(path, e))?;
    let size = file.metadata().map_err(|e| Error::io(path, e))?.len();
    let mut length = [0; 8];
    file.read_exact(&mut length).map_err(|_| Error::bad(path, "too short for a safetensors file"))?;
    let length = u64::from_le_bytes(length);
    if length > size.saturating_sub(8) {
        return Err(Error::bad(path, "truncated, or not a safetensors file"));
    }
    let mut json = vec![0; length as usize];
    file.read_exact(&mut json).map_err(|e| Error::io(path, e))?;
    let header: serde_json::Value = serde_json::from_slice(&json).map_err(|e| Error::bad(path, e.to_string()))?;
    let text = header["__metadata__"][METADATA_KEY].as_str();
    let text = text.ok_or_else(|| Error::bad(path, "no description of the head: not a file written by gensis"))?;
    serde_json::from_str(text).map_err(|e| Error::bad(path, format!("description of the head: {e}")))
}
