//! From an experiment to its patches: the cohort of slides with the coordinates that `tile` wrote, or image folders.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use slide_io::manifest::{ColumnNames, Split};
use slide_io::{Cohort, ImageFolder, Mpp, PatchSource, SlidePatches, SlideRecord, folder, h5};

use super::Run;
use crate::config::{Data, Experiment};

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
    let columns = ColumnNames {
        slide: data.columns.slide.clone(),
        label: data.columns.label.clone(),
        group: data.columns.group.clone(),
        split: data.columns.split.clone(),
        mpp: data.columns.mpp.clone(),
    };
    let csv = Some(data.labels.as_path()).filter(|path| !path.as_os_str().is_empty());
    let mpp = (data.mpp > 0.0).then_some(Mpp(data.mpp));
    Ok(Cohort::load(&data.slides, csv, &columns, mpp)?)
}

fn image_sets(root: &Path) -> Result<ImageSets> {
    let Some(folders) = folder::split_folders(root) else {
        return Ok(ImageSets { train: Arc::new(ImageFolder::open(root)?), test: None });
    };
    let train = ImageFolder::open(folders.train)?;
    let test = ImageFolder::open(folders.test)?.with_classes(train.classes())?;
    Ok(ImageSets { train: Arc::new(train), test: Some(Arc::new(test)) })
}

/// Whether a slide may be learnt from. Without a split every slide may: the labels are not looked at.
pub(super) fn may_train(slide: &SlideRecord) -> bool {
    slide.split != Some(Split::Test)
}

/// The patches of those `slides` that `tile` cut, with their class and footprint from the coordinates files.
pub(super) fn slide_patches(run: &Run, slides: &[&SlideRecord], classes: &[String]) -> Result<SlidePatches> {
    let mut grids = Vec::new();
    for slide in slides {
        let path = coordinates_path(run, &slide.id);
        if !path.exists() {
            // Listed among the failures of `tile`.
            continue;
        }
        let coordinates = h5::read_coordinates(&path)?;
        let mpp = coordinates.geometry.as_ref().and_then(|geometry| geometry.mpp);
        grids.push(slide_io::patch::SlideGrid {
            id: slide.id.clone(),
            path: slide.path.clone(),
            mpp: mpp.with_context(|| format!("{} does not say its µm/px; tile again", path.display()))?,
            label: slide.label,
            spec: run.experiment.grid.clone(),
            origins: coordinates.origins,
        });
    }
    let patches = SlidePatches::new(grids, classes.to_vec())?;
    ensure!(!patches.is_empty(), "no slide has patches: run `gensis tile` first, and look at failures.csv");
    Ok(patches)
}

/// Where `tile` writes a slide's coordinates.
pub(super) fn coordinates_path(run: &Run, slide: &str) -> PathBuf {
    h5::coordinates_path(run.dir.root(), &run.experiment.grid, slide)
}

/// Where `embed` writes a slide's features.
pub(super) fn features_path(run: &Run, slide: &str) -> PathBuf {
    h5::features_path(run.dir.root(), &run.experiment.grid, ENCODER_NAME, slide)
}

/// The encoder's name in paths and tables.
pub(super) const ENCODER_NAME: &str = "dino";

/// Which data the training saw: part of the header of everything that depends on the encoder.
pub(super) fn fingerprint(experiment: &Experiment, source: &dyn PatchSource) -> Value {
    use sha2::{Digest, Sha256};
    let mut hash = Sha256::new();
    for index in 0..source.len() {
        let key = source.key(index);
        hash.update(key.item.as_bytes());
        if let Some(origin) = key.origin {
            hash.update(origin.x.to_le_bytes());
            hash.update(origin.y.to_le_bytes());
        }
        hash.update([0]);
    }
    let hex: String = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    json!({ "patches": source.len(), "keys": hex, "grid": experiment.grid })
}
