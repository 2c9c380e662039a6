//! Features made elsewhere: folders of one HDF5 file a slide, as TRIDENT, CLAM or another run of gensis leave them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use slide_io::h5::{self, FeaturesShape};
use slide_io::{Cohort, SlideRecord};

use super::Scores;
use super::slides::Stored;
use crate::commands::{Run, digest};
use crate::run_dir::Failure;

/// A folder of features that TRIDENT, CLAM or another run made.
pub(super) struct Foreign {
    folder: PathBuf,
    /// Slides' ids and files, those of the cohort that have one.
    files: Vec<(String, PathBuf)>,
}

/// The folders that `evaluate.slide.features` names.
pub(super) fn foreign_features(run: &Run, cohort: &Cohort) -> Vec<Foreign> {
    let found = |folder: &PathBuf| {
        let file = |slide: &SlideRecord| (slide.id.clone(), folder.join(format!("{}.h5", slide.id)));
        let files = cohort.slides.iter().map(file).filter(|(_, file)| file.is_file()).collect();
        Foreign { folder: folder.clone(), files }
    };
    run.experiment.evaluate.slide.features.iter().map(found).collect()
}

impl Foreign {
    /// Where it is.
    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    /// What it holds, by content: scores of other files are made anew.
    pub(super) fn digest(&self, run: &Run) -> Value {
        self.files.iter().map(|(slide, file)| json!([slide, digest::of_file(run, file)])).collect()
    }

    /// The features of the labelled slides, under a name that is none of `taken`. A file that cannot be read, is empty or of another width is listed.
    ///
    /// # Errors
    /// A folder without features of any slide of the cohort that can be read.
    pub(super) fn stored(&self, labelled: &[&SlideRecord], taken: &[String], scores: &mut Scores) -> Result<Stored> {
        let none =
            || format!("evaluate.slide.features: {} holds no <slide id>.h5 of this cohort", self.folder.display());
        ensure!(!self.files.is_empty(), none());
        let mut listed = Vec::new();
        let mut left_out = |slide: &str, reason: String| {
            listed.push(slide.to_owned());
            let reason = format!("{}: {reason}", self.folder.display());
            scores.failures.push(Failure { stage: "evaluate".into(), item: slide.into(), reason });
        };
        let mut shapes = BTreeMap::new();
        for (slide, file) in &self.files {
            match h5::features_shape(file) {
                Ok(shape) if shape.patches > 0 => drop(shapes.insert(slide.as_str(), shape)),
                Ok(_) => left_out(slide, format!("{} holds no patch", file.display())),
                Err(error) => left_out(slide, error.to_string()),
            }
        }
        // The encoder of most slides, the first of equals: one stray file does not decide.
        let made = |shape: &FeaturesShape| (shape.dim, shape.encoder.clone());
        let same = |a: &FeaturesShape, b: &FeaturesShape| made(a) == made(b);
        let mut counts: BTreeMap<(usize, String), usize> = BTreeMap::new();
        shapes.values().for_each(|shape| *counts.entry(made(shape)).or_default() += 1);
        let like = |shape: &FeaturesShape| counts[&made(shape)];
        let known = self.files.iter().filter_map(|(slide, _)| shapes.get(slide.as_str()));
        let first = known.reduce(|best, shape| if like(shape) > like(best) { shape } else { best });
        let first = first.with_context(|| format!("no features in {} can be read", self.folder.display()))?.clone();
        for (slide, shape) in shapes.iter().filter(|(_, shape)| !same(shape, &first)) {
            let of = |shape: &FeaturesShape| match shape.encoder.as_str() {
                "" => format!("an unnamed encoder of width {}", shape.dim),
                name => format!("the encoder {name} of width {}", shape.dim),
            };
            left_out(slide, format!("its features are of {}, most of the folder's of {}", of(shape), of(&first)));
        }
        let file = |slide: &&SlideRecord| {
            let usable = shapes.get(slide.id.as_str()).is_some_and(|shape| same(shape, &first));
            usable.then(|| self.folder.join(format!("{}.h5", slide.id)))
        };
        let folder = self.folder.file_name().unwrap_or_default().to_string_lossy();
        let named = folder.strip_prefix("features_").unwrap_or(&folder).to_owned();
        // The encoder's name, the folder's, or its whole path: two scales of one encoder are told apart.
        let names = [first.encoder.clone(), named, self.folder.display().to_string()];
        let free = |name: &String| !name.is_empty() && !taken.contains(name);
        let name = names.into_iter().find(free).with_context(|| format!("{} is named twice", self.folder.display()))?;
        let folder = std::path::absolute(&self.folder).unwrap_or_else(|_| self.folder.clone());
        let files = labelled.iter().map(file).collect();
        Ok(Stored { name, dim: first.dim, files, listed, hash: String::new(), folder })
    }
}
