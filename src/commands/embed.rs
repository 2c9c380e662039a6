//! `gensis embed`: patches through the encoder. One HDF5 file per slide, one Parquet table per image folder.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use anyhow::{Context, Result};
use evaluation::embeddings::EmbeddingTable;
use serde_json::{Value, json};
use slide_io::stain::Normalized;
use slide_io::{Cohort, ImageFolder, PatchSource, SlidePatches, SlideRecord, atomic_file, h5};

use super::encoders::{Trained, UNLOADABLE, all_encoders};
use super::guarded;
use super::progress::Progress;
use super::sources::{self, Input, UNTRAINED_NAME};
use super::{Run, unreadable};
use crate::config::{Baseline, Embed, View};
use crate::data::{EvalLoader, ReadFailure};
use crate::device::{self, DeviceChoice};
use crate::model::{Encoder, EncoderConfig, Vit};
use crate::run_dir::{Failure, StageRecord, as_stored, remove};

/// Batches decoded ahead of the encoder.
const AHEAD: usize = 4;

/// Embeddings of some patches of a source.
pub(super) struct Embedded {
    /// Which patches, those that could be read.
    pub indices: Vec<usize>,
    /// One row per patch.
    pub values: Vec<f32>,
    /// Patches that could not be read.
    pub failures: Vec<ReadFailure>,
}

/// Embeds all patches of the experiment with the encoders of its run folder.
pub(super) fn embed(run: &Run) -> Result<()> {
    let input = Input::open(&run.experiment.data)?;
    let trained = all_encoders(run, &input)?;
    embed_with(run, input, &trained)
}

/// Embeds all patches with `trained`, the vanilla encoder first. One encoder is in memory at a time: those of others may be
/// large.
pub(super) fn embed_with(run: &Run, input: Input, trained: &[Trained]) -> Result<()> {
    let device = device::open(run.device)?;
    run.dir.forget("embed")?;
    let stage = Stage::open(run, &input)?;
    let evaluate = &run.experiment.evaluate;
    let baselines = match input {
        Input::Images(_) => &evaluate.knn.baselines,
        Input::Slides(_) => &evaluate.slide.baselines,
    };
    let mut failures = Vec::new();
    let (mut lost, mut unloadable) = (Vec::new(), BTreeMap::new());
    let mut hashes = BTreeMap::new();
    let mut dims = BTreeMap::new();
    let mut embed = |name: &str, encoder: &Encoder| -> Result<()> {
        failures.extend(stage.embed(name, encoder)?);
        hashes.insert(name.to_owned(), encoder.hash.clone());
        dims.insert(name.to_owned(), encoder.dim());
        Ok(())
    };
    let mut first = None;
    for encoder in trained {
        match encoder.load(&device) {
            Ok(loaded) => {
                encoder.announce(run, &input, &loaded)?;
                embed(&encoder.name, &loaded)?;
                first.get_or_insert(encoder);
            }
            Err(error) if trained.len() == 1 => return Err(error),
            Err(error) => {
                let failure = encoder.unloadable("embed", error)?;
                eprintln!("embed: {}: {}", failure.item, failure.reason);
                unloadable.insert(&encoder.name, &encoder.hash);
                lost.push(failure);
            }
        }
    }
    let first = first.context("no encoder could be loaded, for the reasons above")?;
    if baselines.contains(&Baseline::Random) {
        embed(UNTRAINED_NAME, &untrained(run)?)?;
    }
    if baselines.contains(&Baseline::Pixels) {
        failures.extend(stage.pixels()?);
    }
    failures.extend(lost);
    failures.sort_by(|a, b| a.item.cmp(&b.item));
    failures.dedup();
    let header =
        json!({ "encoder": first.hash, "embed": sources::embed_header(&run.experiment.embed), "baselines": baselines });
    let mut summary = json!({ "encoder": first.hash, "dim": dims[&first.name], "dims": dims, "hashes": hashes });
    if !unloadable.is_empty() {
        summary[UNLOADABLE] = json!(unloadable);
    }
    run.dir.finish("embed", &StageRecord { header, failures, summary })
}

/// The patches that all encoders embed.
enum Stage<'a> {
    Slides(&'a Run, &'a Cohort, SlideSource),
    Images(&'a Run, Vec<Part<'a>>),
}

/// The patches of the slides.
struct SlideSource {
    patches: Arc<SlidePatches>,
    /// The same with another stain, where that is asked for.
    normalized: Option<Arc<Normalized>>,
}

/// The training or the test images.
struct Part<'a> {
    name: &'static str,
    folder: &'a Arc<ImageFolder>,
    source: Arc<dyn PatchSource>,
}

impl<'a> Stage<'a> {
    fn open(run: &'a Run, input: &'a Input) -> Result<Self> {
        let images = match input {
            Input::Slides(cohort) => {
                let all: Vec<_> = cohort.slides.iter().collect();
                let patches = Arc::new(sources::slide_patches(run, &all, &cohort.classes)?);
                let normalized = sources::normalized(run, patches.clone())?;
                return Ok(Self::Slides(run, cohort, SlideSource { patches, normalized }));
            }
            Input::Images(images) => images,
        };
        let parts = [("train", Some(&images.train)), ("test", images.test.as_ref())];
        let parts = parts.into_iter().filter_map(|(name, folder)| Some((name, folder?)));
        let open = |(name, folder)| Ok(Part { name, folder, source: sources::images(run, folder)? });
        Ok(Self::Images(run, parts.map(open).collect::<Result<_>>()?))
    }

    /// With one encoder.
    fn embed(&self, name: &str, encoder: &Encoder) -> Result<Vec<Failure>> {
        match self {
            Self::Slides(run, cohort, source) => embed_slides(run, name, encoder, cohort, source),
            Self::Images(run, parts) => {
                let mut failures = Vec::new();
                for Part { name: part, folder, source } in parts {
                    let header = sources::table_header(run, &encoder.hash, folder);
                    failures.extend(embed_folder(run, part, name, folder, header, |progress| {
                        let (all, settings) = ((0..folder.len()).collect(), &run.experiment.embed);
                        let threads = (run.threads, workers(run));
                        let advance = |count| progress.advance(count as u64);
                        Ok((features(encoder, 1, source.clone(), all, settings, threads, advance)?, encoder.dim()))
                    })?);
                }
                Ok(failures)
            }
        }
    }

    /// The pixels themselves, of images.
    fn pixels(&self) -> Result<Vec<Failure>> {
        let mut failures = Vec::new();
        if let Self::Images(run, parts) = self {
            for Part { name: part, folder, source } in parts {
                let header = sources::table_header(run, "pixels", folder);
                failures.extend(embed_folder(run, part, "pixels", folder, header, |progress| {
                    pixels(run, source.clone(), progress)
                })?);
            }
        }
        Ok(failures)
    }
}

/// Embeds `indices` of `source` by the last `blocks` blocks beside each other, read in that order and returned sorted, on
/// `workers` threads that share one queue of batches. An encoder with a view of its own sees that, whatever `settings` say.
pub(super) fn features(
    encoder: &Encoder,
    blocks: usize,
    source: Arc<dyn PatchSource>,
    indices: Vec<usize>,
    settings: &crate::config::Embed,
    (decoders, workers): (usize, usize),
    on_batch: impl Fn(usize) + Sync,
) -> Result<Embedded> {
    let settings = match encoder.view {
        Some(View { resize, crop }) => Embed { batch: settings.batch, resize, crop },
        None => settings.clone(),
    };
    let loader = EvalLoader::new(source, &settings, encoder.config.mean, encoder.config.std, decoders, AHEAD)?;
    let batches = Mutex::new(loader.batches_of(indices));
    let done = Mutex::new(Vec::new());
    let work = || -> Result<()> {
        loop {
            let next = batches.lock().unwrap_or_else(PoisonError::into_inner).next();
            let Some(batch) = next else { return Ok(()) };
            let batch = batch?;
            let count = batch.indices.len();
            let values = encoder.embed_blocks(batch.pixels, count, batch.height, batch.width, blocks)?;
            done.lock().unwrap_or_else(PoisonError::into_inner).push((batch.indices, values));
            on_batch(count);
        }
    };
    thread::scope(|scope| {
        let threads: Vec<_> = (0..workers.max(1)).map(|_| scope.spawn(work)).collect();
        threads.into_iter().try_for_each(|thread| match thread.join() {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        })
    })?;
    let done = done.into_inner().unwrap_or_else(PoisonError::into_inner);
    let dim = blocks * encoder.dim();
    let mut rows: Vec<(usize, &[f32])> =
        done.iter().flat_map(|(indices, values)| indices.iter().copied().zip(values.chunks_exact(dim))).collect();
    rows.sort_unstable_by_key(|(index, _)| *index);
    let values = rows.iter().flat_map(|(_, row)| row.iter().copied()).collect();
    Ok(Embedded { indices: rows.iter().map(|(index, _)| *index).collect(), values, failures: loader.failures() })
}

/// Forward passes at a time: the CPU backend computes one image batch on one core, an accelerator wants few queues.
pub(super) fn workers(run: &Run) -> usize {
    match run.device {
        DeviceChoice::Cpu => run.threads,
        _ => run.threads.min(4),
    }
}

/// Slide after slide, several at a time, so that the device stays fed across their borders; a slide's file depends on
/// that slide alone. Slides whose features are current are left as they are.
fn embed_slides(
    run: &Run,
    name: &str,
    encoder: &Encoder,
    cohort: &Cohort,
    source: &SlideSource,
) -> Result<Vec<Failure>> {
    let SlideSource { patches, normalized } = source;
    remove_features_of_others(run, name, encoder, cohort, patches)?;
    let workers = workers(run);
    let stage = SlideEmbedding {
        run,
        name,
        encoder,
        records: cohort.slides.iter().map(|slide| (slide.id.as_str(), slide)).collect(),
        progress: Progress::new("embed", patches.len() as u64, "patches"),
        patches: patches.clone(),
        normalized: normalized.clone(),
        decoders: (run.threads / workers).max(1),
        next: AtomicUsize::new(0),
        reused: AtomicUsize::new(0),
        failures: Mutex::new(BTreeMap::new()),
    };
    thread::scope(|scope| {
        let threads: Vec<_> = (0..workers).map(|_| scope.spawn(|| stage.work())).collect();
        threads.into_iter().try_for_each(|thread| match thread.join() {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        })
    })?;
    let SlideEmbedding { patches, progress, reused, failures, .. } = stage;
    let failures = failures.into_inner().unwrap_or_else(PoisonError::into_inner);
    let failures: Vec<Failure> = failures.into_values().flatten().collect();
    let (slides, reused) = (patches.slides().len(), reused.into_inner());
    progress.finish(&format!(
        "{name}, {} patches of {slides} slides ({reused} up to date), {} failure(s)",
        patches.len(),
        failures.len()
    ));
    Ok(failures)
}

/// Features of slides that no longer have patches are of other settings; other tools would take them for these.
fn remove_features_of_others(
    run: &Run,
    name: &str,
    encoder: &Encoder,
    cohort: &Cohort,
    patches: &SlidePatches,
) -> Result<()> {
    let embedded: HashSet<&str> = (0..patches.slides().len())
        .filter(|&slide| !patches.range(slide).is_empty())
        .map(|slide| patches.slides()[slide].id.as_str())
        .collect();
    let others = cohort.slides.iter().filter(|slide| !embedded.contains(slide.id.as_str()));
    others.map(|slide| (slide, sources::features_path(run, name, &slide.id))).try_for_each(|(slide, path)| {
        // Those of a slide that is away are right when it is back.
        let away = !sources::is_readable(run, slide);
        let asked = || sources::features_header(run, &encoder.hash, slide);
        if away && sources::is_current_but_for_content(&path, &asked()) { Ok(()) } else { remove(&path) }
    })
}

/// The slides being embedded, shared by the threads that take them one by one.
struct SlideEmbedding<'a> {
    run: &'a Run,
    name: &'a str,
    encoder: &'a Encoder,
    patches: Arc<SlidePatches>,
    /// The patches with another stain, where that is asked for.
    normalized: Option<Arc<Normalized>>,
    records: HashMap<&'a str, &'a SlideRecord>,
    /// Threads that decode one slide.
    decoders: usize,
    progress: Progress,
    next: AtomicUsize,
    reused: AtomicUsize,
    failures: Mutex<BTreeMap<usize, Vec<Failure>>>,
}

impl SlideEmbedding<'_> {
    fn work(&self) -> Result<()> {
        loop {
            let slide = self.next.fetch_add(1, Ordering::SeqCst);
            if slide >= self.patches.slides().len() {
                return Ok(());
            }
            // An error here would meet every slide (a full disk): the other threads stop too.
            let failed = self.embed(slide).inspect_err(|_| self.next.store(usize::MAX / 2, Ordering::SeqCst))?;
            self.failures.lock().unwrap_or_else(PoisonError::into_inner).insert(slide, failed);
        }
    }

    fn embed(&self, slide: usize) -> Result<Vec<Failure>> {
        let Self { run, name, encoder, patches, progress, .. } = self;
        let (range, id) = (patches.range(slide), &patches.slides()[slide].id);
        let record = self.records[id.as_str()];
        if range.is_empty() {
            return Ok(vec![]);
        }
        let path = sources::features_path(run, name, id);
        let header = sources::features_header(run, &encoder.hash, record);
        let failures_path = run.dir.file(&format!("stages/embed/{name}/{id}.json"))?;
        if h5::is_current(&path, &header)?
            && let Ok(text) = std::fs::read_to_string(&failures_path)
            && let Ok(failures) = serde_json::from_str(&text)
        {
            progress.advance(range.len() as u64);
            self.reused.fetch_add(1, Ordering::SeqCst);
            return Ok(failures);
        }
        // Features vouch for the list of failures, which is therefore written before them.
        let write_failures = |failures: &[Failure]| -> Result<()> {
            Ok(atomic_file::write(&failures_path, &serde_json::to_vec_pretty(failures)?)?)
        };
        let failures = match self.features_of(slide)? {
            Err(reason) => {
                remove(&path)?;
                let failures = vec![Failure { stage: "embed".into(), item: id.clone(), reason }];
                write_failures(&failures)?;
                failures
            }
            Ok(embedded) => {
                let mut kept = h5::read_coordinates(&sources::coordinates_path(run, id))?;
                // They belong to the coordinates, whose patches need not all be here.
                kept.labels = None;
                kept.origins = embedded.indices.iter().map(|&index| kept.origins[index - range.start]).collect();
                let (encoder, dim) = ((*name).to_owned(), encoder.dim());
                let features = h5::Features { encoder, dim, values: embedded.values, coordinates: kept };
                let failures: Vec<_> = embedded.failures.iter().map(|failure| unreadable("embed", failure)).collect();
                remove(&path)?;
                write_failures(&failures)?;
                h5::write_features(&path, &features, &header)
                    .with_context(|| format!("cannot write the features of {id}"))?;
                failures
            }
        };
        if let [first, more @ ..] = &failures[..] {
            progress.line(&format!("embed: {}: {}", first.item, first.reason));
            if !more.is_empty() {
                progress.line(&format!("embed: {id}: {} more patches cannot be read, see failures.csv", more.len()));
            }
        }
        Ok(failures)
    }

    /// Embeds a slide that has patches; the inner error is a slide of which nothing can be embedded.
    fn features_of(&self, slide: usize) -> Result<Result<Embedded, String>> {
        let patches = &self.patches;
        let source: Arc<dyn PatchSource> = match &self.normalized {
            None => patches.clone(),
            // Before the walk begins, since the sample is not read in its order.
            Some(normalized) => match guarded(|| normalized.estimate_slide(slide)) {
                Ok(()) => normalized.clone(),
                Err(reason) => return Ok(Err(reason)),
            },
        };
        let range = patches.range(slide);
        // A slide that does not open gives its reason with every patch.
        let order = patches.reading_order(slide).unwrap_or_else(|_| range.clone().collect());
        let advance = |count| self.progress.advance(count as u64);
        let settings = &self.run.experiment.embed;
        let embedded = features(self.encoder, 1, source, order, settings, (self.decoders, 1), advance)?;
        if embedded.indices.is_empty() {
            let reason = unreadable("embed", &embedded.failures[0]).reason;
            return Ok(Err(format!("none of its {} patches can be read: {reason}", range.len())));
        }
        Ok(Ok(embedded))
    }
}

/// The network before training: what a run of this seed begins with.
pub(super) fn untrained(run: &Run) -> Result<Encoder> {
    let device = device::open(run.device)?;
    let crops = &run.experiment.crops;
    let config = EncoderConfig {
        model: run.experiment.model.resolve()?,
        mean: crops.mean,
        std: crops.std,
        origin: json!({ "method": "untrained", "seed": run.experiment.seed }),
    };
    Ok(Encoder::new(Vit::new(&config.model, run.experiment.seed, &device), config, &device))
}

/// One table of a part's images.
fn embed_folder(
    run: &Run,
    part: &str,
    name: &str,
    folder: &ImageFolder,
    header: Value,
    compute: impl FnOnce(&Progress) -> Result<(Embedded, usize)>,
) -> Result<Vec<Failure>> {
    let path = run.dir.file(&format!("features/{name}-{part}.parquet"))?;
    let failures_path = run.dir.file(&format!("stages/embed/{name}-{part}.json"))?;
    if is_current(&path, &header)
        && let Ok(text) = std::fs::read_to_string(&failures_path)
    {
        eprintln!("embed: {name}, {part}: up to date");
        return Ok(serde_json::from_str(&text)?);
    }
    let progress = Progress::new("embed", folder.len() as u64, "images");
    let (mut embedded, dim) = compute(&progress)?;
    let mut failed: Vec<Failure> = embedded.failures.iter().map(|failure| unreadable("embed", failure)).collect();
    let reason =
        || format!("{name} gives it an embedding with numbers that are not finite: it counts in no score of it");
    for index in take_unusable(&mut embedded, dim) {
        failed.push(Failure { stage: "embed".into(), item: folder.key(index).item, reason: reason() });
    }
    let table = EmbeddingTable {
        header,
        dim,
        keys: embedded.indices.iter().map(|&index| folder.key(index)).collect(),
        labels: embedded.indices.iter().map(|&index| folder.label(index)).collect(),
        classes: folder.classes().to_vec(),
        values: embedded.values,
    };
    atomic_file::write(&failures_path, &serde_json::to_vec_pretty(&failed)?)?;
    table.save(&path)?;
    progress.finish(&format!("{name}, {part}: {} images, {} failure(s)", table.len(), failed.len()));
    Ok(failed)
}

/// Removes the images whose embedding is not finite; their numbers.
pub(super) fn take_unusable(embedded: &mut Embedded, dim: usize) -> Vec<usize> {
    let usable = |row: &[f32]| row.iter().all(|x| x.is_finite());
    if usable(&embedded.values) {
        return vec![];
    }
    let (indices, values) = (std::mem::take(&mut embedded.indices), std::mem::take(&mut embedded.values));
    let (kept, removed): (Vec<_>, Vec<_>) =
        indices.into_iter().zip(values.chunks_exact(dim)).partition(|(_, row)| usable(row));
    embedded.indices = kept.iter().map(|(index, _)| *index).collect();
    embedded.values = kept.iter().flat_map(|(_, row)| row.iter().copied()).collect();
    removed.into_iter().map(|(index, _)| index).collect()
}

/// Side of the pixel baseline's images, px, at most: 12,288 numbers an image.
const PIXELS_SIDE: u32 = 64;

/// The normalised pixels themselves as an embedding, after the evaluation transform at [`PIXELS_SIDE`] or less.
fn pixels(run: &Run, source: Arc<dyn PatchSource>, progress: &Progress) -> Result<(Embedded, usize)> {
    let (mean, std) = (run.experiment.crops.mean, run.experiment.crops.std);
    let Embed { batch, resize, crop } = run.experiment.embed;
    let side = if crop == 0 { PIXELS_SIDE } else { crop.min(PIXELS_SIDE) };
    let shrunk = if crop == 0 { side } else { (u64::from(resize) * u64::from(side) / u64::from(crop)) as u32 };
    let settings = Embed { batch, resize: shrunk, crop: side };
    let loader = EvalLoader::new(source, &settings, mean, std, run.threads, AHEAD)?;
    let mut embedded = Embedded { indices: vec![], values: vec![], failures: vec![] };
    let mut dim = 0;
    for batch in loader.batches() {
        let batch = batch?;
        dim = 3 * batch.height * batch.width;
        progress.advance(batch.indices.len() as u64);
        embedded.indices.extend(batch.indices);
        embedded.values.extend(batch.pixels);
    }
    embedded.failures = loader.failures();
    Ok((embedded, dim))
}

/// Whether `path` holds a table with this header.
pub(super) fn is_current(path: &Path, header: &Value) -> bool {
    path.exists() && EmbeddingTable::load_header(path).is_ok_and(|found| found == as_stored(header))
}
