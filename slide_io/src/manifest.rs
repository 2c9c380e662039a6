//! Which slides there are, with labels, groups and splits from a csv.
//!
//! Slides are files found in a folder or by a glob; the csv only describes them. A row without a slide file and a slide
//! without a row are no errors, since cohorts are rarely complete: both are listed in [`Cohort::problems`], and the slide
//! is kept without a label. What would make results wrong in silence is an error: a missing column, one slide with two
//! labels, a scale or a split that cannot be read.

mod dicom_series;
mod labels;
mod search;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::folder::sort_names;
use crate::format::PLAUSIBLE_MPP;
use crate::geometry::Mpp;
use labels::Row;
pub use labels::csv_text;
use search::Found;
pub use search::slide_id;

/// Column names of a labels csv; an empty name means there is none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ColumnNames {
    /// Slide id: the file name, with or without its extension, or its path below the folder of slides. Required.
    pub slide: String,
    /// Class. Required unless the name is empty.
    pub label: String,
    /// Patient, site or duplicate group: never split across folds.
    pub group: String,
    /// `train`, `val` or `test`.
    pub split: String,
    /// µm/px of level 0.
    pub mpp: String,
    /// What folds spread evenly beside the class: a scanner, a hospital.
    pub stratum: String,
}

impl Default for ColumnNames {
    /// CLAM's names, the most common csv of the field.
    fn default() -> Self {
        let [slide, label, group, split, mpp] = ["slide_id", "label", "case_id", "split", "mpp"].map(String::from);
        Self { slide, label, group, split, mpp, stratum: String::new() }
    }
}

/// The part of a study a slide belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Split {
    /// Seen in training.
    Train,
    /// Used to choose a model.
    Val,
    /// Used once, for the result.
    Test,
}

/// One slide of a study.
#[derive(Clone, Debug, PartialEq)]
pub struct SlideRecord {
    /// The file's name without its extension; where several files share that, the path below the folder of slides with
    /// `__` for `/`. Unique, and a valid file name. The files of a DICOM series are one slide, called as the folder that holds
    /// nothing else, otherwise as the first of them.
    pub id: String,
    /// The file; of a DICOM series the first.
    pub path: PathBuf,
    /// Class index.
    pub label: Option<u32>,
    /// Class name.
    pub label_name: Option<String>,
    /// Patient, site or duplicate group.
    pub group: Option<String>,
    /// Part of the study.
    pub split: Option<Split>,
    /// What folds spread evenly beside the class.
    pub stratum: Option<String>,
    /// µm/px of level 0 that overrides the file: from the csv where it gives one, otherwise the one given for all slides.
    pub mpp: Option<Mpp>,
}

/// Something about a slide that the user should know, and that did not stop the run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The slide, or the csv's row.
    pub item: String,
    /// What is wrong with it.
    pub reason: String,
}

/// The slides of a study.
#[derive(Clone, Debug, PartialEq)]
pub struct Cohort {
    /// The slides, sorted by path.
    pub slides: Vec<SlideRecord>,
    /// Class names by class index: those that occur among the slides, sorted; as numbers if all of them are.
    pub classes: Vec<String>,
    /// Rows without a slide, slides without a row or a label.
    pub problems: Vec<Problem>,
}

impl Cohort {
    /// Finds the slides in `slides`, a folder (searched to the bottom for known extensions), a glob (`slides/**/*.tif`,
    /// any extension) or one file, and describes them by the csv. `mpp` is the µm/px of every slide for which the csv gives
    /// none; `None` believes the files.
    ///
    /// # Errors
    /// [`Error::Usage`] with what to do: no slide found, a column that does not exist, conflicting rows, values that cannot
    /// be read. [`Error::Io`] and [`Error::BadFile`] for the csv itself.
    pub fn load(slides: &str, csv: Option<&Path>, columns: &ColumnNames, mpp: Option<Mpp>) -> Result<Self> {
        if let Some(Mpp(value)) = mpp.filter(|mpp| !PLAUSIBLE_MPP.contains(&mpp.0)) {
            return Err(Error::Usage(format!("{value} µm/px is no scale of a slide: give a number such as 0.5")));
        }
        let found = search::slides(slides)?;
        let rows = csv.map(|csv| labels::read(csv, columns)).transpose()?;
        let mut cohort = Self { slides: Vec::new(), classes: Vec::new(), problems: Vec::new() };
        let mut rows = match (&rows, csv) {
            (Some(rows), Some(csv)) => cohort.matched(&found, rows, csv, slides)?,
            _ => BTreeMap::new(),
        };
        let classes: BTreeSet<&String> = rows.values().filter_map(|row| row.label.as_ref()).collect();
        cohort.classes = classes.into_iter().cloned().collect();
        sort_names(&mut cohort.classes);
        for (index, slide) in found.into_iter().enumerate() {
            let row = rows.remove(&index).unwrap_or_default();
            let rank = |name: &String| cohort.classes.iter().position(|class| class == name).map(|rank| rank as u32);
            cohort.slides.push(SlideRecord {
                id: slide.id,
                path: slide.path,
                label: row.label.as_ref().and_then(rank),
                label_name: row.label,
                group: row.group,
                split: row.split,
                stratum: row.stratum,
                mpp: row.mpp.or(mpp),
            });
        }
        Ok(cohort)
    }

    /// The same slides with their classes in the order of `classes`, where those that do not occur are left out.
    ///
    /// # Errors
    /// [`Error::Usage`] for a class that is not among them, or named twice.
    pub fn with_classes(mut self, classes: &[String]) -> Result<Self> {
        let rank = |name: &String| classes.iter().position(|class| class == name);
        if let Some(other) = self.classes.iter().find(|name| rank(name).is_none()) {
            return Err(Error::Usage(format!("there are slides of class {other:?}, which is not among {classes:?}")));
        }
        if let Some((_, twice)) = classes.iter().enumerate().find(|&(place, name)| rank(name) != Some(place)) {
            return Err(Error::Usage(format!("class {twice:?} is named twice")));
        }
        self.classes.sort_by_key(rank);
        for slide in &mut self.slides {
            let name = slide.label_name.as_ref();
            slide.label =
                name.and_then(|name| self.classes.iter().position(|class| class == name)).map(|rank| rank as u32);
        }
        Ok(self)
    }

    /// The row of each slide, by the slide's position in `found`. Notes what is left over on either side.
    fn matched(&mut self, found: &[Found], rows: &[Row], csv: &Path, slides: &str) -> Result<BTreeMap<usize, Row>> {
        let names = Names::new(found);
        let mut matched: BTreeMap<usize, Row> = BTreeMap::new();
        for row in rows {
            let Some(slide) = names.find(&row.slide, csv)? else {
                let reason = format!("line {} of {}: no such slide in {slides}", row.line, csv.display());
                self.problems.push(Problem { item: row.slide.clone(), reason });
                continue;
            };
            match matched.get(&slide) {
                None => drop(matched.insert(slide, row.clone())),
                Some(first) => first.agrees(row, csv)?,
            }
        }
        if let (true, Some(row)) = (matched.is_empty(), rows.first()) {
            return Err(Error::Usage(format!(
                "{}: none of its {} rows names a slide in {slides} (a row says {:?}, a slide is called {:?}). Is data.columns.slide the right column?",
                csv.display(),
                rows.len(),
                row.slide,
                found[0].id
            )));
        }
        for (index, slide) in found.iter().enumerate() {
            let reason = match matched.get(&index) {
                None => format!("not in {}: kept, without a label", csv.display()),
                Some(row) if row.no_label => {
                    format!("line {} of {}: no label given: kept, without a label", row.line, csv.display())
                }
                Some(_) => continue,
            };
            self.problems.push(Problem { item: slide.id.clone(), reason });
        }
        Ok(matched)
    }
}

/// The names by which a csv may call a slide.
struct Names<'a> {
    slides: BTreeMap<String, Vec<usize>>,
    found: &'a [Found],
}

impl<'a> Names<'a> {
    fn new(found: &'a [Found]) -> Self {
        let mut slides: BTreeMap<String, Vec<usize>> = BTreeMap::new();
        for (index, slide) in found.iter().enumerate() {
            let names: BTreeSet<String> = slide.names().into_iter().collect();
            names.into_iter().for_each(|name| slides.entry(name).or_default().push(index));
        }
        Self { slides, found }
    }

    /// The slide called `name`, which may carry an extension the file does not have.
    fn find(&self, name: &str, csv: &Path) -> Result<Option<usize>> {
        let name = name.replace('\\', "/");
        let known = self.slides.get(&name).or_else(|| self.slides.get(search::without_extension(&name)));
        match known.map(Vec::as_slice) {
            None => Ok(None),
            Some(&[one]) => Ok(Some(one)),
            Some(several) => {
                let paths: Vec<_> = several.iter().map(|&i| self.found[i].below.as_str()).collect();
                Err(Error::Usage(format!(
                    "{}: {name:?} may be any of {}. Write the path below the folder of slides instead",
                    csv.display(),
                    paths.join(", ")
                )))
            }
        }
    }
}

#[cfg(test)]
mod tests;
