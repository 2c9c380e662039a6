//! The latents and embeddings of the training images, computed once for all diffusion models of a run folder.

use std::collections::{BTreeSet, HashSet};
use std::ops::Range;
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use slide_io::PatchSource;

use super::progress::Progress;
use super::sources::Input;
use super::training::{self, AHEAD, Unreadable};
use super::{Run, item};
use crate::config::{Condition, Embed, Experiment};
use crate::data::ReadFailure;
use crate::data::latents::{LatentFile, LatentHeader, LatentWriter};
use crate::data::loader::{image_size, read, require_most, require_size};
use crate::data::prefetch::{Prefetch, Work, thread_pool};
use crate::device;
use crate::model::{Encoder, FirstStage};
use crate::run_dir::{Failure, as_stored, remove};
use crate::sample::encode::{Eyes, View};
use crate::train::checkpoint::first_difference;

/// The stage that makes them.
const STAGE: &str = "diffusion";
/// Their folder: not the training's, which another training sets aside.
const FOLDER: &str = "latents";
/// Their file there.
const FILE: &str = "latents.bin";
/// Images encoded at a time.
const ENCODED: usize = 32;

/// What the latents of a diffusion model with this header are: they depend on everything but how it is trained on them.
pub(super) fn header(run: &Run, model: &Value, stage: &FirstStage, embedding: usize) -> LatentHeader {
    let mut origin = model.clone();
    if let Some(origin) = origin.as_object_mut() {
        origin.remove("settings");
        origin.remove("seed");
    }
    let side = run.experiment.autoencoder.image_size / stage.factor();
    let diffusion = &run.experiment.diffusion;
    origin["flips"] = json!({ "horizontal": diffusion.hflip, "vertical": diffusion.vflip });
    let flips = (1 + usize::from(diffusion.hflip)) * (1 + usize::from(diffusion.vflip));
    LatentHeader { shape: [stage.latent_channels(), side, side], embedding, flips, origin }
}

/// Whether there are some, of whatever settings.
pub(super) fn exist(run: &Run) -> bool {
    run.dir.root().join(FOLDER).join(FILE).exists()
}

/// The file of latents and embeddings the model was trained on.
pub(super) fn open(run: &Run, input: &Input, stage: &FirstStage, encoder: &Encoder) -> Result<LatentFile> {
    let model = super::diffusion::header(run, input, &encoder.hash, &stage.hash)?;
    let header = header(run, &model, stage, encoder.dim());
    let path = run.dir.root().join(FOLDER).join(FILE);
    if let Some(file) = LatentFile::open(&path, &header)? {
        return Ok(file);
    }
    let there = LatentFile::header_at(&path).map(|there| json!(there));
    let differing = there.and_then(|there| first_difference("", &there, &as_stored(&json!(header))));
    let difference =
        differing.map_or(String::new(), |(key, there, asked)| format!(" ({key} is {there} there, and {asked} here)"));
    bail!("{} is missing or of other settings{difference}: run `gensis diffusion` again", path.display())
}

/// The latents that the model was trained on, where they are not on disk: of all images but `known_without`, ascending.
///
/// # Errors
/// One of these that cannot be read any more.
pub(super) fn make_again(
    run: &Run,
    input: &Input,
    (stage, encoder): (FirstStage, Encoder),
    known_without: &[usize],
) -> Result<LatentFile> {
    let (source, _) = training::patches(run, STAGE, Input::open(&run.experiment.data)?)?;
    let model = super::diffusion::header(run, input, &encoder.hash, &stage.hash)?;
    let header = header(run, &model, &stage, encoder.dim());
    let Experiment { autoencoder, embed, diffusion, .. } = &run.experiment;
    let device = device::open(run.device)?;
    let eyes = Eyes::new(stage, encoder, autoencoder.image_size as u32, embed, diffusion, &device);
    let (file, failures) = make(run, &source, eyes, &header)?;
    let lost = without(&file, source.len())?.into_iter().find(|image| known_without.binary_search(image).is_err());
    if let Some(image) = lost {
        let item = item(&source.key(image));
        let why =
            failures.iter().find(|failure| failure.item == item).map_or("it cannot be read", |failure| &failure.reason);
        let path = run.dir.file(&format!("{FOLDER}/{FILE}"))?;
        // Not to be taken for whole by the next run.
        remove(&path)?;
        bail!("{item} was there when the diffusion model was trained, and now: {why}. Put it back and run this again");
    }
    Ok(file)
}

/// That real images are embedded at the size of generated ones, where they are embedded as they are.
///
/// # Errors
/// Another size, with what to do.
pub(super) fn check_sizes(run: &Run, source: &dyn PatchSource) -> Result<()> {
    let Experiment { autoencoder, embed, .. } = &run.experiment;
    if embed.resize > 0 {
        return Ok(());
    }
    let (width, height) = image_size(source, &Embed { crop: 0, ..embed.clone() })?;
    let side = autoencoder.image_size;
    ensure!(
        [width, height].map(|side| side as usize) == [side; 2],
        "images of {width} x {height} px are embedded as they are (embed.resize = 0), and generated ones have {side} x {side} \
         (autoencoder.image_size): give embed.resize and embed.crop, or make the sizes alike"
    );
    Ok(())
}

/// The latents of the training images: those on disk, or made now.
pub(super) fn make(
    run: &Run,
    source: &Arc<dyn PatchSource>,
    eyes: Eyes,
    header: &LatentHeader,
) -> Result<(LatentFile, Vec<Failure>)> {
    let path = run.dir.file(&format!("{FOLDER}/{FILE}"))?;
    let folder = run.dir.root().join(FOLDER);
    if let Some(file) = LatentFile::open(&path, header)? {
        return Ok((file, Unreadable::open(STAGE, &folder, true).failures));
    }
    let mut writer = LatentWriter::open(&path, header)?;
    let mut unreadable = Unreadable::open(STAGE, &folder, !writer.begun().is_empty());
    let done = writer.begun().last().map_or(0, |last| last + 1);
    // What comes after that is read again, as after a share that had dropped out.
    let mut lost: BTreeSet<usize> = (0..done).collect();
    writer.begun().iter().for_each(|image| _ = lost.remove(image));
    let items: HashSet<String> = lost.iter().map(|&image| item(&source.key(image))).collect();
    unreadable.keep(|failure| items.contains(&failure.item))?;
    let progress = Progress::new("latents", source.len() as u64, "images");
    progress.start_at(done as u64);
    let pool = thread_pool(run.threads)?;
    let eyes = Arc::new(eyes);
    let size = image_size(&**source, &run.experiment.embed)?;
    let work = Reading { source: source.clone(), eyes: eyes.clone(), size };
    let mut met: Vec<ReadFailure> = Vec::new();
    for batch in Prefetch::start(pool, work, done..source.len(), ENCODED, AHEAD) {
        let (numbers, read) = batch.map_err(anyhow::Error::msg)?;
        let (mut images, mut views) = (Vec::new(), Vec::new());
        for (number, read) in numbers.clone().zip(read) {
            match read {
                Ok(read) => {
                    images.push(number);
                    views.extend(read);
                }
                Err(failure) => met.push(failure),
            }
        }
        unreadable.take(&met)?;
        // Of all: images come in their order, and one damaged slide may be the first.
        require_most(&met, lost.len() + met.len(), source.len())?;
        let encoded = eyes.encode(&views)?;
        for (image, flips) in images.iter().zip(encoded.chunks(eyes.flips())) {
            writer.add(*image, flips)?;
        }
        progress.advance(numbers.len() as u64);
    }
    writer.finish()?;
    progress.finish(&format!("{} images, {} failure(s)", source.len(), unreadable.failures.len()));
    if !unreadable.failures.is_empty() {
        eprintln!(
            "latents: the model is trained without what failed; to have it read again, stop now and remove {}",
            folder.display()
        );
    }
    let file = LatentFile::open(&path, header)?.context("the latents just written")?;
    Ok((file, unreadable.failures))
}

/// Records of `count` images, evenly over the file.
pub(super) fn some(file: &LatentFile, count: usize) -> impl Iterator<Item = usize> + use<> {
    let (count, records) = (count.min(file.len()), file.len());
    (0..count).map(move |i| i * records / count)
}

/// Images of a data set of `count` that are not in the file, ascending.
pub(super) fn without(file: &LatentFile, count: usize) -> Result<Vec<usize>> {
    let mut without: BTreeSet<usize> = (0..count).collect();
    for record in 0..file.len() {
        without.remove(&file.source(record)?);
    }
    Ok(without.into_iter().collect())
}

/// Mean and deviation of every channel of the embeddings, where they condition.
pub(super) fn statistics(file: &LatentFile, condition: Condition) -> Result<[Vec<f32>; 2]> {
    if condition == Condition::Sphere {
        return Ok([vec![], vec![]]);
    }
    let width = file.header().embedding;
    let (mut sums, mut squares) = (vec![0.0f64; width], vec![0.0f64; width]);
    for record in 0..file.len() {
        for (i, value) in file.embedding(record)?.into_iter().enumerate() {
            sums[i] += f64::from(value);
            squares[i] += f64::from(value).powi(2);
        }
    }
    let count = file.len().max(1) as f64;
    let means: Vec<f64> = sums.iter().map(|sum| sum / count).collect();
    let deviation = |(square, mean): (&f64, &f64)| (square / count - mean * mean).max(0.0).sqrt() as f32;
    let deviations = squares.iter().zip(&means).map(deviation).collect();
    Ok([means.iter().map(|&mean| mean as f32).collect(), deviations])
}

/// Reads images and makes their views, on threads ahead of the networks.
struct Reading {
    source: Arc<dyn PatchSource>,
    eyes: Arc<Eyes>,
    /// Of all images as the encoder sees them.
    size: (u32, u32),
}

impl Work for Reading {
    type Item = Result<Vec<View>, ReadFailure>;
    type Batch = (Range<usize>, Vec<Self::Item>);

    fn item(&self, number: usize) -> Self::Item {
        let image = read(&*self.source, number)?;
        let failure = |reason| ReadFailure { index: number, key: self.source.key(number), reason };
        let views = self.eyes.views(&image).map_err(|error| failure(format!("{error:#}")))?;
        views.iter().try_for_each(|view| require_size(view.evaluation(), self.size)).map_err(failure)?;
        Ok(views)
    }

    fn batch(&self, numbers: Range<usize>, items: Vec<Self::Item>) -> Self::Batch {
        (numbers, items)
    }
}
