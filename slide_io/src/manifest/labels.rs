//! Reading the labels csv.

use std::fs;
use std::path::Path;

use csv::{ReaderBuilder, StringRecord, Trim};

use super::{ColumnNames, Split};
use crate::error::{Error, Result};
use crate::format::PLAUSIBLE_MPP;
use crate::geometry::Mpp;

/// One row of a labels csv.
#[derive(Clone, Debug, Default)]
pub(super) struct Row {
    pub(super) slide: String,
    pub(super) line: u64,
    pub(super) label: Option<String>,
    /// There is a column for the label, and nothing in it.
    pub(super) no_label: bool,
    pub(super) group: Option<String>,
    pub(super) split: Option<Split>,
    pub(super) mpp: Option<Mpp>,
    pub(super) stratum: Option<String>,
}

impl Row {
    /// A slide may stand in several rows (one per case, CLAM) as long as they say the same.
    pub(super) fn agrees(&self, other: &Self, csv: &Path) -> Result<()> {
        let differs = [
            ("labels", self.label != other.label),
            ("groups", self.group != other.group),
            ("splits", self.split != other.split),
            ("µm/px", self.mpp != other.mpp),
            ("strata", self.stratum != other.stratum),
        ];
        match differs.into_iter().find(|(_, differs)| *differs) {
            None => Ok(()),
            Some((what, _)) => Err(Error::Usage(format!(
                "{}: lines {} and {} give slide {:?} different {what}. Remove the wrong one",
                csv.display(),
                self.line,
                other.line,
                other.slide
            ))),
        }
    }
}

/// The text of a csv as spreadsheets save it, without a byte order mark, and what separates its columns: a comma, a semicolon
/// or a tab.
///
/// # Errors
/// A file that cannot be read, or is not UTF-8.
pub fn csv_text(path: &Path) -> Result<(String, u8)> {
    let bytes = fs::read(path).map_err(|e| Error::io(path, e))?;
    let text = String::from_utf8(bytes).map_err(|_| Error::bad(path, "it is not UTF-8 text: save it as CSV UTF-8"))?;
    let text = text.trim_start_matches('\u{feff}').to_owned();
    let header = text.lines().next().unwrap_or_default();
    let separator =
        [b',', b';', b'\t'].into_iter().max_by_key(|&s| (header.bytes().filter(|&b| b == s).count(), s == b','));
    Ok((text, separator.unwrap_or(b',')))
}

/// The rows of a csv, rows without a slide aside.
pub(super) fn read(path: &Path, columns: &ColumnNames) -> Result<Vec<Row>> {
    let (text, separator) = csv_text(path)?;
    let mut reader = ReaderBuilder::new().delimiter(separator).trim(Trim::All).from_reader(text.as_bytes());
    let damaged = |error: csv::Error| Error::bad(path, error.to_string());
    let headers = reader.headers().map_err(damaged)?.clone();
    if headers.iter().all(str::is_empty) {
        return Err(Error::bad(path, "it is empty: the first line names the columns"));
    }
    let places = Places::new(&headers, columns, path)?;
    let mut rows = Vec::new();
    for record in reader.records() {
        let record = record.map_err(damaged)?;
        let row = places.row(&record, path)?;
        if !row.slide.is_empty() {
            rows.push(row);
        }
    }
    if rows.is_empty() {
        return Err(Error::bad(path, "it has no rows"));
    }
    Ok(rows)
}

/// Where the columns are.
struct Places {
    slide: usize,
    label: Option<usize>,
    group: Option<usize>,
    split: Option<usize>,
    mpp: Option<usize>,
    stratum: Option<usize>,
}

impl Places {
    fn new(headers: &StringRecord, columns: &ColumnNames, path: &Path) -> Result<Self> {
        let place = |name: &str| headers.iter().position(|header| !name.is_empty() && header == name);
        let required = |key: &str, name: &str| {
            place(name).ok_or_else(|| {
                let found = headers.iter().map(|h| format!("{h:?}")).collect::<Vec<_>>().join(", ");
                let nearest = nearest(name, headers).map(|n| format!(" (perhaps {n:?})")).unwrap_or_default();
                let none = if key == "label" { ", or to \"\" if slides have no labels" } else { "" };
                Error::Usage(format!(
                    "{}: there is no column {name:?}. It has {found}. Set data.columns.{key} to one of them{nearest}{none}",
                    path.display()
                ))
            })
        };
        // A column that is named on purpose has to be there: patients must not end up on both sides of a fold unnoticed.
        let usual = ColumnNames::default();
        let optional = |key: &str, name: &str, usual: &str| match place(name) {
            None if !name.is_empty() && name != usual => required(key, name).map(Some),
            found => Ok(found),
        };
        let used = [&columns.slide, &columns.label, &columns.group, &columns.split, &columns.mpp, &columns.stratum];
        let twice = |name: &&&String| headers.iter().filter(|header| *header == name.as_str()).count() > 1;
        if let Some(name) = used.iter().find(twice) {
            return Err(Error::Usage(format!("{}: there are two columns {name:?}: rename one", path.display())));
        }
        Ok(Self {
            slide: required("slide", &columns.slide)?,
            label: optional("label", &columns.label, "")?,
            group: optional("group", &columns.group, &usual.group)?,
            split: optional("split", &columns.split, &usual.split)?,
            mpp: optional("mpp", &columns.mpp, &usual.mpp)?,
            stratum: optional("stratum", &columns.stratum, "")?,
        })
    }

    fn row(&self, record: &StringRecord, path: &Path) -> Result<Row> {
        let line = record.position().map_or(0, csv::Position::line);
        let get = |place: Option<usize>| place.and_then(|i| record.get(i)).filter(|value| !value.is_empty());
        let wrong = |what: String| Error::Usage(format!("{}: line {line}: {what}", path.display()));
        let split = match get(self.split).map(str::to_lowercase).as_deref() {
            None => None,
            Some("train") => Some(Split::Train),
            Some("val") => Some(Split::Val),
            Some("test") => Some(Split::Test),
            Some(other) => return Err(wrong(format!("the split {other:?} is neither train, val nor test"))),
        };
        let mpp = match get(self.mpp) {
            None => None,
            Some(text) => match text.parse::<f64>() {
                Ok(value) if PLAUSIBLE_MPP.contains(&value) => Some(Mpp(value)),
                _ => return Err(wrong(format!("{text:?} is no µm/px: give a number such as 0.25, or leave it empty"))),
            },
        };
        Ok(Row {
            slide: get(Some(self.slide)).unwrap_or_default().to_owned(),
            line,
            label: get(self.label).map(String::from),
            no_label: self.label.is_some() && get(self.label).is_none(),
            group: get(self.group).map(String::from),
            split,
            mpp,
            stratum: get(self.stratum).map(String::from),
        })
    }
}

/// The column whose name is closest to `name`, if any is close at all.
fn nearest<'a>(name: &str, headers: &'a StringRecord) -> Option<&'a str> {
    let name = name.to_lowercase();
    let distance = |header: &str| {
        let header = header.to_lowercase();
        let contained = !name.is_empty() && (header.contains(&name) || name.contains(&header)) && !header.is_empty();
        if contained { 1 } else { edits(&name, &header) }
    };
    let best = headers.iter().min_by_key(|header| distance(header))?;
    (distance(best) <= name.len().max(best.len()) / 2).then_some(best)
}

/// Levenshtein's distance.
fn edits(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, &y) in b.iter().enumerate() {
            let change = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = change.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances_by_hand() {
        assert_eq!(edits("kitten", "sitting"), 3);
        assert_eq!(edits("", "abc"), 3);
        assert_eq!(edits("label", "label"), 0);
    }

    #[test]
    fn the_nearest_column() {
        let headers = StringRecord::from(vec!["image_id", "data_provider", "isup_grade", "Labels"]);
        assert_eq!(nearest("label", &headers), Some("Labels"));
        assert_eq!(nearest("isup", &headers), Some("isup_grade"));
        assert_eq!(nearest("zzzzzzzz", &headers), None);
    }
}
