//! Splits that somebody else made, a file a fold: CLAM's `splits_<k>.csv`, with slides in the columns train, val and test.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use evaluation::split::{Fold, Part, Strata};
use slide_io::manifest::{csv_text, slide_id};

use super::subjects::Subject;

/// The columns and what they mean. Other columns, such as the number of the row, are passed over.
const COLUMNS: [(&str, Part); 3] = [("train", Part::Train), ("val", Part::Val), ("test", Part::Test)];

/// A fold of every file, and the names in the files that are no labelled slide's: a slide's extension may follow. Subjects that a
/// file leaves out are in no part. Where a file has no slides to choose by, about the share `validation` of its training slides
/// is held out.
///
/// # Errors
/// A file that cannot be read, names no subject, or has a group in two parts.
pub(super) fn folds(
    files: &[PathBuf],
    subjects: &[Subject],
    strata: &Strata,
    validation: f64,
    seed: u64,
) -> Result<(Vec<Fold>, Vec<Unknown>)> {
    let of_slide: BTreeMap<&str, usize> = subjects
        .iter()
        .enumerate()
        .flat_map(|(place, subject)| subject.slides.iter().map(move |slide| (&slide[..], place)))
        .collect();
    let mut unknown = Vec::new();
    let mut fold = |file: &PathBuf| -> Result<Fold> {
        let parts = parts(file, &of_slide, subjects, &mut unknown)?;
        Ok(strata.given(&parts, validation, seed)?)
    };
    let folds = files
        .iter()
        .map(|file| fold(file).with_context(|| format!("evaluate.slide.splits: {}", file.display())))
        .collect::<Result<_>>()?;
    Ok((folds, unknown))
}

/// A name in a file of a split that is no labelled slide's.
#[derive(Clone, Debug, PartialEq)]
pub(in crate::commands) struct Unknown {
    pub name: String,
    pub file: PathBuf,
}

fn parts(
    file: &Path,
    of_slide: &BTreeMap<&str, usize>,
    subjects: &[Subject],
    unknown: &mut Vec<Unknown>,
) -> Result<Vec<Option<Part>>> {
    let (text, separator) = csv_text(file)?;
    let mut builder = csv::ReaderBuilder::new();
    let mut table = builder.delimiter(separator).flexible(true).trim(csv::Trim::All).from_reader(text.as_bytes());
    let headers = table.headers()?.clone();
    let place = |name: &str| headers.iter().position(|header| header == name);
    let columns: Vec<(usize, Part)> = COLUMNS.iter().filter_map(|(name, part)| Some((place(name)?, *part))).collect();
    ensure!(
        place("train").is_some() && place("test").is_some(),
        "there are no columns train and test, as in CLAM's splits_<k>.csv; it has {}",
        headers.iter().collect::<Vec<_>>().join(", ")
    );
    let mut parts: Vec<Option<Part>> = vec![None; subjects.len()];
    for row in table.records() {
        let row = row?;
        for (column, part) in &columns {
            let Some(name) = row.get(*column).filter(|name| !name.is_empty()) else { continue };
            let Some(&subject) = of_slide.get(name).or_else(|| of_slide.get(slide_id(name))) else {
                unknown.push(Unknown { name: name.to_owned(), file: file.to_owned() });
                continue;
            };
            match parts[subject].replace(*part) {
                Some(other) if other != *part => {
                    bail!("{} is in two parts ({other:?} and {part:?})", subjects[subject].id)
                }
                _ => {}
            }
        }
    }
    let mut named = unknown.iter().filter(|unknown| unknown.file == file).peekable();
    ensure!(
        parts.iter().any(Option::is_some),
        match named.peek().is_some() && named.all(|unknown| is_truth_value(&unknown.name)) {
            true =>
                "it says True and False, as CLAM's splits_<k>_bool.csv: give splits_<k>.csv, which names the slides",
            false => "none of its slides is one of this cohort",
        }
    );
    Ok(parts)
}

fn is_truth_value(text: &str) -> bool {
    ["true", "false", "0", "1"].iter().any(|value| text.eq_ignore_ascii_case(value))
}
