//! From an experiment to its patches: the cohort of slides with the coordinates that `tile` wrote, or image folders.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use slide_io::manifest::{ColumnNames, Problem, Split, csv_text, slide_id};
use slide_io::pack::{self, PackedPatches, PackedSlide};
use slide_io::stain::{Method, Normalized, StainParams, Target};
use slide_io::{
    Cohort, Error, GridSpec, ImageFolder, Mpp, PatchSource, Point, SlidePatches, SlideRecord, TissueMethod, folder, h5,
    label_mask, regions,
};

use super::{Run, digest, encoders};
use crate::config::{Data, Embed};
use crate::run_dir::{Failure, as_stored};

/// What an experiment works on.
pub(super) enum Input {
    /// Whole-slide images.
    Slides(Cohort),
    /// Image folders.
    Images(ImageSets),
}

/// The training images, and the test images where the folder is split.
pub(super) struct ImageSets {
    pub train: Arc<ImageFolder>,
    pub test: Option<Arc<ImageFolder>>,
}

impl Input {
    /// Finds the slides or images that `data` names.
    pub fn open(data: &Data) -> Result<Self> {
        match (data.slides.is_empty(), data.images.as_os_str().is_empty()) {
            (false, _) => Ok(Self::Slides(cohort(data)?)),
            (true, false) => Ok(Self::Images(image_sets(&data.images)?)),
            (true, true) => bail!("nothing to work on: give data.slides (--slides) or data.images (--images)"),
        }
    }
}

/// The cohort of slides, with what the csv says about them.
pub(super) fn cohort(data: &Data) -> Result<Cohort> {
    let folders =
        [("data.roi", &data.roi), ("data.label_masks", &data.label_masks), ("data.coordinates", &data.coordinates)];
    for (key, folder) in folders {
        ensure!(folder.as_os_str().is_empty() || folder.is_dir(), "{key}: there is no folder {}", folder.display());
    }
    ensure!(
        data.coordinates.as_os_str().is_empty() || data.roi.as_os_str().is_empty(),
        "data.coordinates says where the patches are, and so does data.roi: give one of them"
    );
    let columns = ColumnNames {
        slide: data.columns.slide.clone(),
        label: data.columns.label.clone(),
        group: data.columns.group.clone(),
        split: data.columns.split.clone(),
        mpp: data.columns.mpp.clone(),
        stratum: data.columns.stratum.clone(),
    };
    let csv = Some(data.labels.as_path()).filter(|path| !path.as_os_str().is_empty());
    let mpp = (data.mpp > 0.0).then_some(Mpp(data.mpp));
    let cohort = restricted(Cohort::load(&data.slides, csv, &columns, mpp)?, data)?;
    if data.classes.is_empty() { Ok(cohort) } else { cohort.with_classes(&data.classes).context("data.classes") }
}

/// The cohort without the slides that `data.include` does not name or `data.exclude` does. A name without a slide is noted.
fn restricted(mut cohort: Cohort, data: &Data) -> Result<Cohort> {
    let included = match data.include.as_os_str().is_empty() {
        true => None,
        false => Some(listed(&data.include, &data.columns.slide)?),
    };
    if included.is_none() && data.exclude.is_empty() {
        return Ok(cohort);
    }
    let within = |names: &[String], id: &str| names.iter().any(|name| name == id || slide_id(name) == id);
    let kept = |id: &str| included.as_ref().is_none_or(|names| within(names, id)) && !within(&data.exclude, id);
    let known = |name: &String| cohort.slides.iter().any(|slide| slide.id == *name || slide.id == slide_id(name));
    let unknown = |key: &str, names: &[String]| -> Vec<Problem> {
        let reason = format!("{key} names it, but there is no such slide");
        let missing = names.iter().filter(|name| !known(name));
        missing.map(|name| Problem { item: name.clone(), reason: reason.clone() }).collect()
    };
    let mut notes = unknown("data.include", included.as_deref().unwrap_or_default());
    notes.extend(unknown("data.exclude", &data.exclude));
    cohort.slides.retain(|slide| kept(&slide.id));
    // What else is wrong with a slide that is not used is nobody's concern.
    let concerns = |item: &str| {
        let either = |names: &[String]| within(names, item) || within(names, slide_id(item));
        included.as_deref().is_none_or(either) && !either(&data.exclude)
    };
    cohort.problems.retain(|problem| concerns(&problem.item));
    cohort.problems.extend(notes);
    ensure!(!cohort.slides.is_empty(), "data.include and data.exclude leave no slide");
    Ok(cohort)
}

/// Rows without a slide, slides without a row or a label: failures of `stage`, or lines on standard error where
/// `data.allow_missing` allows them.
pub(super) fn missing(run: &Run, cohort: &Cohort, stage: &str) -> Vec<Failure> {
    if run.experiment.data.allow_missing {
        cohort.problems.iter().for_each(|problem| eprintln!("{stage}: {}: {} (allowed)", problem.item, problem.reason));
        return vec![];
    }
    let failure =
        |problem: &Problem| Failure { stage: stage.into(), item: problem.item.clone(), reason: problem.reason.clone() };
    cohort.problems.iter().map(failure).collect()
}

/// The slides in a list: a name a line, or a csv with a column of that name or the slides in its first.
fn listed(path: &Path, column: &str) -> Result<Vec<String>> {
    let open = || format!("cannot read data.include {}", path.display());
    let (text, separator) = csv_text(path).with_context(open)?;
    let mut builder = csv::ReaderBuilder::new();
    let builder = builder.delimiter(separator).has_headers(false).flexible(true).trim(csv::Trim::All);
    let mut reader = builder.from_reader(text.as_bytes());
    let rows: Vec<csv::StringRecord> = reader.records().collect::<Result<_, _>>().with_context(open)?;
    let headed = rows.first().and_then(|row| row.iter().position(|field| field == column));
    let names = rows.iter().skip(usize::from(headed.is_some())).filter_map(|row| row.get(headed.unwrap_or(0)));
    Ok(names.filter(|name| !name.is_empty()).map(str::to_owned).collect())
}

fn image_sets(root: &Path) -> Result<ImageSets> {
    let Some(folders) = folder::split_folders(root) else {
        ensure!(
            !root.join("train").is_dir(),
            "{} holds train/, but neither test/ nor val/; name the training folder itself where there is no test part",
            root.display()
        );
        return Ok(ImageSets { train: Arc::new(ImageFolder::open(root)?), test: None });
    };
    let train = ImageFolder::open(folders.train)?;
    let test = ImageFolder::open(folders.test)?.with_classes(train.classes())?;
    Ok(ImageSets { train: Arc::new(train), test: Some(Arc::new(test)) })
}

/// Whether a slide may be learnt from: not one of the test split, nor another slide of a test patient.
pub(super) fn training_slides(cohort: &Cohort) -> Vec<&SlideRecord> {
    let tested = |slide: &&SlideRecord| slide.split == Some(Split::Test);
    let groups: HashSet<&str> =
        cohort.slides.iter().filter(tested).filter_map(|slide| slide.group.as_deref()).collect();
    let shared = |slide: &SlideRecord| slide.group.as_deref().is_some_and(|group| groups.contains(group));
    cohort.slides.iter().filter(|slide| !tested(slide) && !shared(slide)).collect()
}

/// Everything a slide's coordinates depend on. The file is known by its content, not by its folder: a cohort may move.
pub(super) fn coordinates_header(run: &Run, record: &SlideRecord) -> Value {
    let data = &run.experiment.data;
    let mut header = patches_header(run, record);
    if !data.label_masks.as_os_str().is_empty() {
        let content = label_mask(data, record).ok().flatten().and_then(|path| digest::of_whole_file(run, &path));
        header["label_mask"] = json!({ "content": content, "labels": data.mask_labels });
    }
    header
}

/// Everything the patches of a slide depend on: its coordinates but for what a label mask says of them.
fn patches_header(run: &Run, record: &SlideRecord) -> Value {
    let mut header = json!({
        "stage": "tile",
        "format": FORMAT,
        "file": record.path.file_name().map(|name| name.to_string_lossy()),
        "content": digest::of_file(run, &record.path),
        "mpp": record.mpp,
        "grid": run.experiment.grid.resolved(),
        "tissue": run.experiment.tissue,
        "quality": run.experiment.quality,
        "roi": roi_header(run, record),
    });
    if let Ok(Some(path)) = given_coordinates(&run.experiment.data, record) {
        header["coordinates"] = json!(digest::of_whole_file(run, &path));
    }
    if run.experiment.tissue.method == TissueMethod::Entropy {
        header["entropy"] = json!(ENTROPY_VERSION);
    }
    header
}

/// What somebody drew on a slide, by the content of the file; nothing where the experiment does not ask for it.
fn roi_header(run: &Run, record: &SlideRecord) -> Value {
    let data = &run.experiment.data;
    if data.roi.as_os_str().is_empty() {
        return Value::Null;
    }
    let content = roi(data, record).ok().flatten().and_then(|path| digest::of_whole_file(run, &path));
    json!({ "content": content, "within_tissue": data.roi_within_tissue })
}

/// The file with the regions drawn on a slide, where the experiment asks for them.
///
/// # Errors
/// A slide without one: whether all or nothing of it is meant cannot be told.
pub(super) fn roi(data: &Data, record: &SlideRecord) -> slide_io::Result<Option<PathBuf>> {
    if data.roi.as_os_str().is_empty() {
        return Ok(None);
    }
    let missing = || {
        let place = data.roi.join(format!("{}.geojson", record.id));
        Error::Usage(format!("no regions are drawn on it: there is neither {} nor a .png", place.display()))
    };
    regions::for_slide(&data.roi, &record.id)?.ok_or_else(missing).map(Some)
}

/// The file with the coordinates that somebody made for a slide, where the experiment takes them from elsewhere.
///
/// # Errors
/// A slide without one.
pub(super) fn given_coordinates(data: &Data, record: &SlideRecord) -> slide_io::Result<Option<PathBuf>> {
    if data.coordinates.as_os_str().is_empty() {
        return Ok(None);
    }
    let places = ["_patches.h5", ".h5"].map(|end| data.coordinates.join(format!("{}{end}", record.id)));
    let missing = || Error::Usage(format!("there are no coordinates of it: neither {} nor .h5", places[0].display()));
    places.iter().find(|path| path.is_file()).cloned().ok_or_else(missing).map(Some)
}

/// How the patches of a slide of `mpp` µm/px are read: as the experiment says, or with the footprint of coordinates that
/// somebody made.
pub(super) fn grid_spec(run: &Run, geometry: &h5::Geometry, mpp: Mpp) -> GridSpec {
    if run.experiment.data.coordinates.as_os_str().is_empty() {
        run.experiment.grid.clone()
    } else {
        geometry.spec(mpp)
    }
}

/// The label mask of a slide, where the experiment asks for them and there is one.
pub(super) fn label_mask(data: &Data, record: &SlideRecord) -> slide_io::Result<Option<PathBuf>> {
    match data.label_masks.as_os_str().is_empty() {
        true => Ok(None),
        false => label_mask::for_slide(&data.label_masks, &record.id),
    }
}

/// Whether a slide's file is there and can be read. What was made of one that is not stays, and is not used meanwhile.
pub(super) fn is_readable(run: &Run, record: &SlideRecord) -> bool {
    digest::of_file(run, &record.path).is_some()
}

/// Whether the header in a file of a slide is the one that is asked for, but for the slide's own content, which cannot be read.
pub(super) fn is_current_but_for_content(path: &Path, asked: &Value) -> bool {
    let without = |header: &Value| {
        let mut header = as_stored(header);
        for place in ["/content", "/coordinates/content"] {
            if let Some(content) = header.pointer_mut(place) {
                *content = Value::Null;
            }
        }
        header
    };
    h5::read_header(path).is_ok_and(|found| found.is_some_and(|found| without(&found) == without(asked)))
}

/// How patches are put before an encoder, as headers have it. How many at a time changes no embedding.
pub(super) fn embed_header(embed: &Embed) -> Value {
    json!({ "resize": embed.resize, "crop": embed.crop })
}

/// Raised when the entropy of the same pixels becomes another.
const ENTROPY_VERSION: u32 = 2;

/// Everything a slide's packed patches depend on.
pub(super) fn pack_header(run: &Run, record: &SlideRecord) -> Value {
    json!({ "stage": "pack", "quality": run.experiment.pack.quality, "coordinates": patches_header(run, record) })
}

/// Everything a slide's features depend on.
pub(super) fn features_header(run: &Run, encoder_hash: &str, record: &SlideRecord) -> Value {
    let header = json!({
        "stage": "embed",
        "format": FORMAT,
        "encoder": encoder_hash,
        "embed": embed_header(&run.experiment.embed),
        "coordinates": patches_header(run, record),
    });
    with_stain(run, encoders::with_weights(run, encoder_hash, header))
}

/// The header of what is made of patches, with how their stain was normalised. Without normalisation it stays as it is,
/// so that older outputs stay current. The reference is known by its content.
pub(super) fn with_stain(run: &Run, mut header: Value) -> Value {
    let stain = &run.experiment.stain;
    if stain.normalize != Method::None {
        header["stain"] = stain_header(stain, digest::of_file(run, &stain.reference));
    }
    header
}

/// How stain is normalised, with the digest of its reference.
pub(super) fn stain_header(stain: &StainParams, reference: Option<String>) -> Value {
    let mut header = json!(stain);
    header["reference"] = json!(reference);
    header
}

/// `source` with the stain that the experiment asks for; `None` where it asks for none.
///
/// # Errors
/// A reference image that cannot be read, or has too little tissue.
pub(super) fn normalized(run: &Run, source: Arc<dyn PatchSource>) -> Result<Option<Arc<Normalized>>> {
    let target = Target::new(&run.experiment.stain)?;
    Ok(target.map(|target| Arc::new(Normalized::new(source, target))))
}

/// The images of a folder, with the stain that the experiment asks for.
pub(super) fn images(run: &Run, folder: &Arc<ImageFolder>) -> Result<Arc<dyn PatchSource>> {
    Ok(match normalized(run, folder.clone())? {
        Some(normalized) => normalized,
        None => folder.clone(),
    })
}

/// Everything the embeddings of an image folder depend on; `encoder` is a weights hash, or `pixels`.
pub(super) fn table_header(run: &Run, encoder: &str, folder: &ImageFolder) -> Value {
    let header = json!({
        "stage": "embed",
        "format": FORMAT,
        "encoder": encoder,
        "embed": embed_header(&run.experiment.embed),
        "data": images_fingerprint(folder),
    });
    with_stain(run, encoders::with_weights(run, encoder, header))
}

/// The patches of those `slides` that `tile` cut, with their class and footprint from the coordinates files.
///
/// # Errors
/// Coordinates that were made with other settings, or of another file.
pub(super) fn slide_patches(run: &Run, slides: &[&SlideRecord], classes: &[String]) -> Result<SlidePatches> {
    some_patches(run, slides, classes, |_, origins| origins)
}

/// As [`slide_patches`], of those positions that `choose` takes of a slide's.
pub(super) fn some_patches(
    run: &Run,
    slides: &[&SlideRecord],
    classes: &[String],
    choose: impl Fn(&str, Vec<Point>) -> Vec<Point>,
) -> Result<SlidePatches> {
    let mut grids = Vec::new();
    for slide in slides {
        let path = coordinates_path(run, &slide.id);
        if !path.exists() {
            // Listed among the failures of `tile`.
            continue;
        }
        if !is_readable(run, slide) {
            let listed = run.dir.record("tile").is_some_and(|tiled| tiled.failures.iter().any(|f| f.item == slide.id));
            ensure!(
                listed,
                "{} cannot be read: put it back, or run `gensis tile` to go on without it",
                slide.path.display()
            );
            continue;
        }
        ensure!(
            h5::is_current(&path, &coordinates_header(run, slide))?,
            "{} was made with other settings or of another file: run `gensis tile` again",
            path.display()
        );
        let coordinates = h5::read_coordinates(&path)?;
        let geometry = coordinates.geometry.as_ref().and_then(|geometry| Some((geometry, geometry.mpp?)));
        let (geometry, mpp) =
            geometry.with_context(|| format!("{} does not say its µm/px; tile again", path.display()))?;
        grids.push(slide_io::patch::SlideGrid {
            id: slide.id.clone(),
            path: slide.path.clone(),
            mpp,
            label: slide.label,
            spec: grid_spec(run, geometry, mpp),
            origins: choose(&slide.id, coordinates.origins),
        });
    }
    let patches = SlidePatches::new(grids, classes.to_vec())?;
    ensure!(!patches.is_empty(), "no slide has patches: run `gensis tile` first, and look at failures.csv");
    Ok(patches)
}

/// The patches that training reads: packed ones where the experiment packs them, otherwise those of the slides.
///
/// # Errors
/// As [`slide_patches`]; a slide with coordinates whose patches are not packed with these settings.
pub(super) fn training_patches(run: &Run, slides: &[&SlideRecord], classes: &[String]) -> Result<Arc<dyn PatchSource>> {
    if !run.experiment.pack.enabled {
        return Ok(Arc::new(slide_patches(run, slides, classes)?));
    }
    let mut packed = Vec::new();
    // A slide that `tile` could not pack is among its failures.
    let failures = run.dir.record("tile").map_or(vec![], |record| record.failures);
    for slide in slides.iter().filter(|slide| coordinates_path(run, &slide.id).exists()) {
        let tar = pack_path(run, &slide.id);
        let index = pack::current_index(&tar, &pack_header(run, slide));
        if index.is_none() && failures.iter().any(|failure| failure.item == slide.id) {
            continue;
        }
        let index = index.with_context(|| {
            format!("{} is missing, cut short or of other settings: run `gensis tile --pack`", tar.display())
        })?;
        packed.push(PackedSlide { id: slide.id.clone(), tar, label: slide.label, patches: index.patches });
    }
    let patches = PackedPatches::new(packed, classes.to_vec())?;
    ensure!(!patches.is_empty(), "no slide has patches: run `gensis tile` first, and look at failures.csv");
    Ok(Arc::new(patches))
}

/// Where `tile` packs a slide's patches.
pub(super) fn pack_path(run: &Run, slide: &str) -> PathBuf {
    pack::path(run.dir.root(), &run.experiment.grid, slide)
}

/// Where `tile` writes a slide's coordinates.
pub(super) fn coordinates_path(run: &Run, slide: &str) -> PathBuf {
    h5::coordinates_path(run.dir.root(), &run.experiment.grid, slide)
}

/// Where `embed` writes a slide's features of the encoder called `name`.
pub(super) fn features_path(run: &Run, name: &str, slide: &str) -> PathBuf {
    h5::features_path(run.dir.root(), &run.experiment.grid, name, slide)
}

/// Part of every header: raised when the meaning of an output changes, so that old ones are made anew.
pub(super) const FORMAT: u32 = 1;

/// The encoder's name in paths and tables.
pub(super) const ENCODER_NAME: &str = "dino";

/// The name of the same network before training.
pub(super) const UNTRAINED_NAME: &str = "random";

/// Which patches the training saw: part of the header of everything that depends on the encoder.
pub(super) fn slides_fingerprint(run: &Run, cohort: &Cohort) -> Value {
    let mut hash = Sha256::new();
    for slide in training_slides(cohort).into_iter().filter(|slide| coordinates_path(run, &slide.id).exists()) {
        hash.update(slide.id.as_bytes());
        hash.update(patches_header(run, slide).to_string());
        if run.experiment.pack.enabled {
            hash.update(pack_header(run, slide).to_string());
        }
    }
    json!(digest::hex(hash))
}

/// Which images a folder holds: their paths and sizes in bytes.
pub(super) fn images_fingerprint(folder: &ImageFolder) -> Value {
    let mut hash = Sha256::new();
    for index in 0..folder.len() {
        let path = folder.key(index).item;
        hash.update(path.as_bytes());
        hash.update([0]);
        hash.update(folder.root().join(&path).metadata().map_or(0, |metadata| metadata.len()).to_le_bytes());
    }
    json!(digest::hex(hash))
}
