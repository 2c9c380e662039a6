//! Which images are right for which query.
//!
//! The revisited Oxford and Paris data sets (Radenović et al. 2018) come as `gnd_<name>.pkl` beside `jpg/`: lists of database
//! and query images, and for every query the easy, hard and junk images by their place in the database, and the box of the
//! building in the query image. The same as JSON, `gnd_<name>.json`, is read too, so that ground truth of one's own needs no
//! Python.

use std::fs::{self, File};
use std::io::Read as _;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::Value;

use super::pickle::{self, MAX_BYTES, MAX_VALUES, PickleError};
use crate::error::{Error, Result};

/// Which images have to be found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Difficulty {
    /// The easy ones; hard ones are junk.
    Easy,
    /// Easy and hard ones.
    Medium,
    /// The hard ones; easy ones are junk.
    Hard,
}

impl Difficulty {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Easy, Self::Medium, Self::Hard];

    /// In tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Easy => "easy",
            Self::Medium => "medium",
            Self::Hard => "hard",
        }
    }
}

/// What is right for one query: places in the database.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct QueryTruth {
    /// Right, and clearly seen.
    pub easy: Vec<usize>,
    /// Right, but hard to see.
    pub hard: Vec<usize>,
    /// Neither right nor wrong.
    pub junk: Vec<usize>,
    /// What the query asks for in its image: left, top, right and bottom, px.
    #[serde(rename = "bbx", default)]
    pub bounds: Option<[f64; 4]>,
}

impl QueryTruth {
    /// The images that are right and those that do not count.
    pub fn right_and_junk(&self, difficulty: Difficulty) -> (Vec<usize>, Vec<usize>) {
        let both = |a: &[usize], b: &[usize]| [a, b].concat();
        match difficulty {
            Difficulty::Easy => (self.easy.clone(), both(&self.junk, &self.hard)),
            Difficulty::Medium => (both(&self.easy, &self.hard), self.junk.clone()),
            Difficulty::Hard => (self.hard.clone(), both(&self.junk, &self.easy)),
        }
    }
}

/// A data set of queries and a database.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct GroundTruth {
    /// Names of the database's images, without extension.
    #[serde(rename = "imlist")]
    pub images: Vec<String>,
    /// Names of the query images.
    #[serde(rename = "qimlist")]
    pub queries: Vec<String>,
    /// What is right for each query.
    #[serde(rename = "gnd")]
    pub truth: Vec<QueryTruth>,
}

impl GroundTruth {
    /// The ground truth file of a folder, `gnd_*.pkl` or `gnd_*.json`; `None` where there is none.
    ///
    /// # Errors
    /// A folder that cannot be read or holds several of them.
    pub fn file_in(folder: &Path) -> Result<Option<PathBuf>> {
        let refused = |e| Error::io(folder, e);
        let entries = fs::read_dir(folder).map_err(refused)?;
        let paths = entries.map(|entry| Ok(entry.map_err(refused)?.path())).collect::<Result<Vec<_>>>()?;
        let is_one = |path: &PathBuf| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            name.starts_with("gnd_") && [".pkl", ".json"].iter().any(|end| name.ends_with(end))
        };
        let mut found: Vec<PathBuf> = paths.into_iter().filter(is_one).collect();
        if found.len() > 1 {
            return Err(Error::usage(format!("{} holds several gnd_* files: leave one", folder.display())));
        }
        Ok(found.pop())
    }

    /// Reads a ground truth file. A pickle is read without running anything in it.
    ///
    /// # Errors
    /// A file that is damaged, asks for more than data, is over the limits of pickles (which JSON has to keep too), or
    /// contradicts itself.
    pub fn load(path: &Path) -> Result<Self> {
        let mut bytes = Vec::new();
        let file = File::open(path).map_err(|e| Error::io(path, e))?;
        file.take(MAX_BYTES as u64 + 1).read_to_end(&mut bytes).map_err(|e| Error::io(path, e))?;
        if bytes.len() > MAX_BYTES {
            return Err(Error::limit(path, format!("it has more than {MAX_BYTES} bytes")));
        }
        let value: Value = match path.extension().is_some_and(|extension| extension == "json") {
            true if json_values(&bytes) > MAX_VALUES => {
                return Err(Error::limit(path, format!("it holds more than {MAX_VALUES} values")));
            }
            true => serde_json::from_slice(&bytes).map_err(|e| Error::bad(path, e.to_string()))?,
            false => pickle::read(&bytes).map_err(|e| refusal(path, &e))?,
        };
        let truth: Self = serde_json::from_value(value)
            .map_err(|e| Error::bad(path, format!("not imlist, qimlist and gnd of easy, hard, junk and bbx: {e}")))?;
        truth.check().map_err(|what| Error::bad(path, what))?;
        Ok(truth)
    }

    fn check(&self) -> std::result::Result<(), String> {
        if self.queries.len() != self.truth.len() {
            return Err(format!("{} queries, but ground truth of {}", self.queries.len(), self.truth.len()));
        }
        for (name, truth) in self.queries.iter().zip(&self.truth) {
            let places = truth.easy.iter().chain(&truth.hard).chain(&truth.junk);
            if let Some(place) = places.into_iter().find(|place| **place >= self.images.len()) {
                return Err(format!("query {name} names image {place} of {}", self.images.len()));
            }
            let mut places: Vec<&usize> = truth.easy.iter().chain(&truth.hard).chain(&truth.junk).collect();
            places.sort_unstable();
            if let Some(twice) = places.windows(2).find(|pair| pair[0] == pair[1]) {
                return Err(format!("query {name} names image {} twice in easy, hard and junk", twice[0]));
            }
        }
        // A name is a file in jpg/, never a way out of it.
        let leads_away = |name: &&String| name.is_empty() || name.contains(['/', '\\']) || name.starts_with('.');
        match self.images.iter().chain(&self.queries).find(leads_away) {
            Some(name) => Err(format!("`{name}` is not the name of an image")),
            None => Ok(()),
        }
    }
}

/// Why a pickle is not read, by what its owner can do about it.
fn refusal(path: &Path, error: &PickleError) -> Error {
    let what = error.to_string();
    match error {
        PickleError::Damaged(_) => Error::bad(path, what),
        PickleError::Limit(_) => Error::limit(path, what),
        PickleError::Refused(_) | PickleError::Protocol(_) => Error::unsupported(path, what),
    }
}

/// Values that JSON text holds at most: the whole, and one behind every bracket, comma and colon outside of strings. Known
/// before any of them is made.
fn json_values(text: &[u8]) -> usize {
    let (mut values, mut in_string, mut escaped) = (1, false, false);
    for byte in text {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = in_string,
            b'"' => in_string = !in_string,
            b'[' | b',' | b':' if !in_string => values += 1,
            _ => {}
        }
    }
    values
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRUTH: &str = r#"{"imlist": ["a", "b", "c", "d"], "qimlist": ["q"], "gnd": [
        {"easy": [0], "hard": [1], "junk": [2], "bbx": [1.0, 2.0, 30.5, 40.0]}]}"#;

    #[test]
    fn what_is_right_depends_on_the_difficulty() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("gnd_own.json");
        assert_eq!(GroundTruth::file_in(folder.path()).unwrap(), None);
        fs::write(&path, TRUTH).unwrap();
        assert_eq!(GroundTruth::file_in(folder.path()).unwrap(), Some(path.clone()));
        let truth = GroundTruth::load(&path).unwrap();
        let of = |difficulty| truth.truth[0].right_and_junk(difficulty);
        assert_eq!(of(Difficulty::Easy), (vec![0], vec![2, 1]));
        assert_eq!(of(Difficulty::Medium), (vec![0, 1], vec![2]));
        assert_eq!(of(Difficulty::Hard), (vec![1], vec![2, 0]));
        assert_eq!(truth.truth[0].bounds, Some([1.0, 2.0, 30.5, 40.0]));
        fs::write(folder.path().join("gnd_own.pkl"), b"").unwrap();
        assert!(GroundTruth::file_in(folder.path()).unwrap_err().to_string().contains("several"));
    }

    #[test]
    fn contradictions_and_attacks_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("gnd_own.json");
        let message = |text: &str| {
            fs::write(&path, text).unwrap();
            GroundTruth::load(&path).unwrap_err().to_string()
        };
        assert!(message(&TRUTH.replace("[1]", "[9]")).contains("query q names image 9 of 4"));
        assert!(message(&TRUTH.replace("\"b\"", "\"../b\"")).contains("`../b` is not the name"));
        assert!(message(&TRUTH.replace("[\"q\"]", "[\"q\", \"r\"]")).contains("2 queries"));
        assert!(message(&TRUTH.replace("hard", "difficult")).contains("missing field `hard`"));
        assert!(message("{").contains("damaged"));
        let path = folder.path().join("gnd_own.pkl");
        fs::write(&path, b"\x80\x02cposix\nsystem\nX\x04\x00\x00\x00true\x85R.").unwrap();
        let error = GroundTruth::load(&path).unwrap_err().to_string();
        assert!(error.contains("posix.system") && error.contains("not read"), "{error}");
    }

    #[test]
    fn files_that_are_not_read_are_told_from_damaged_ones() {
        let folder = tempfile::tempdir().unwrap();
        let load = |name: &str, bytes: &[u8]| {
            let path = folder.path().join(name);
            fs::write(&path, bytes).unwrap();
            GroundTruth::load(&path).unwrap_err()
        };
        for attack in [&b"\x80\x02cos\nsystem\n."[..], b"\x80\x05N."] {
            assert!(matches!(load("gnd_own.pkl", attack), Error::File(slide_io::Error::Unsupported { .. })));
        }
        assert!(
            matches!(load("gnd_own.pkl", b"\x80\x02]q\x00h\x00a."), Error::File(slide_io::Error::Limit { .. })),
            "a list that holds itself"
        );
        assert!(matches!(load("gnd_own.pkl", b"\x80\x02"), Error::File(slide_io::Error::BadFile { .. })));
        assert!(matches!(load("gnd_own.json", b"{"), Error::File(slide_io::Error::BadFile { .. })));
        let many = [&b"["[..], &b"0,".repeat(MAX_VALUES)[..], b"0]"].concat();
        assert!(matches!(load("gnd_own.json", &many), Error::File(slide_io::Error::Limit { .. })));
    }

    #[test]
    fn values_of_json_are_counted_outside_of_strings() {
        assert_eq!(json_values(b"7"), 1);
        assert_eq!(json_values(br#"{"a": [1, 2], "b": "c, [d\", e: \\"}"#), 6);
    }
}
