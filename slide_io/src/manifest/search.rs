//! Finding slide files in a folder or by a glob.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use globset::{GlobBuilder, GlobMatcher};

use super::dicom_series;
use crate::error::{Error, Result};
use crate::listing;

/// Extensions of slides: what the readers of this crate open, and what other tools do, so that a slide nobody here can read
/// is reported instead of passed over.
const EXTENSIONS: [&str; 18] = [
    "svs", "tif", "tiff", "btf", "ndpi", "mrxs", "scn", "bif", "vms", "vmu", "dcm", "svslide", "czi", "qptiff",
    "isyntax", "i2syntax", "afi", "sdpc",
];

/// Extensions of images that are slides of one level, where a folder holds no others.
const IMAGES: [&str; 3] = ["png", "jpg", "jpeg"];

/// A slide file, or the first of the files that are one slide.
pub(super) struct Found {
    pub(super) id: String,
    pub(super) path: PathBuf,
    /// Path below the folder searched, with `/` on every system. Of a DICOM series with a folder of its own: the folder's.
    pub(super) below: String,
    /// What else it is called: a series by its UID and by its files.
    other_names: Vec<String>,
}

impl Found {
    fn file(path: PathBuf, below: String) -> Self {
        Self { id: String::new(), path, below, other_names: Vec::new() }
    }

    /// Everything a csv may call it.
    pub(super) fn names(&self) -> Vec<String> {
        let forms = |below: &String| {
            let file = file_name(below);
            [below, without_extension(below), file, without_extension(file)].map(String::from)
        };
        let below = std::iter::once(&self.below).chain(&self.other_names);
        std::iter::once(self.id.clone()).chain(below.flat_map(forms)).collect()
    }
}

/// The slides of a folder, a glob or a single file, sorted by path.
pub(super) fn slides(slides: &str) -> Result<Vec<Found>> {
    let path = Path::new(slides);
    if slides.is_empty() {
        return Err(Error::Usage(
            "data.slides is empty: give a folder of slides, or a glob such as slides/**/*.svs".into(),
        ));
    }
    let found = if path.is_dir() {
        let of = |known: &'static [&str]| {
            move |path: &Path| {
                path.extension().is_some_and(|e| known.contains(&e.to_string_lossy().to_lowercase().as_str()))
            }
        };
        let mut found = walk(path, of(&EXTENSIONS))?;
        if found.is_empty() {
            found = walk(path, of(&IMAGES))?;
        }
        if found.is_empty() {
            return Err(Error::Usage(format!(
                "{slides}: no slides in this folder (searched for {}; for {} where there are none). For another extension give a glob, such as {slides}/*.xyz",
                EXTENSIONS.join(", "),
                IMAGES.join(", ")
            )));
        }
        found
    } else if path.is_file() {
        vec![(path.to_owned(), file_name(slides).to_owned())]
    } else if slides.contains(['*', '?', '[', '{']) {
        let (base, matcher) = glob(slides)?;
        if !base.is_dir() {
            return Err(Error::Usage(format!("{slides}: there is no folder {}", base.display())));
        }
        let found = walk(&base, |path| matcher.is_match(path.strip_prefix("./").unwrap_or(path)))?;
        if found.is_empty() {
            return Err(Error::Usage(format!(
                "{slides}: no file matches. `*` stays within one folder, `**` crosses folders; quote the glob so that the shell leaves it alone"
            )));
        }
        found
    } else {
        return Err(Error::Usage(format!("{slides}: no such folder or file")));
    };
    named(one_of_each_series(found))
}

/// The files with one for all DICOM files of a series in one folder, as OpenSlide opens them: each of them is the whole slide.
/// The first stands for it, under the folder's name where the folder holds nothing else.
fn one_of_each_series(files: Vec<(PathBuf, String)>) -> Vec<Found> {
    let folder = |below: &str| below.rsplit_once('/').map_or("", |(folder, _)| folder).to_owned();
    let mut slides: Vec<Found> = Vec::new();
    let mut series: BTreeMap<(String, String), usize> = BTreeMap::new();
    let mut slides_in: BTreeMap<String, usize> = BTreeMap::new();
    for (path, below) in files {
        let dicom = path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("dcm"));
        if let Some(uid) = dicom.then(|| dicom_series::of(&path)).flatten() {
            let first = *series.entry((folder(&below), uid)).or_insert(slides.len());
            if let Some(slide) = slides.get_mut(first) {
                slide.other_names.push(below);
                continue;
            }
        }
        *slides_in.entry(folder(&below)).or_default() += 1;
        slides.push(Found::file(path, below));
    }
    for ((folder, uid), first) in series {
        let slide = &mut slides[first];
        if slide.other_names.is_empty() {
            continue;
        }
        slide.other_names.push(uid);
        if !folder.is_empty() && slides_in[&folder] == 1 {
            slide.other_names.push(std::mem::replace(&mut slide.below, folder));
        }
    }
    slides
}

/// The files under `folder` that `wanted` accepts, hidden ones aside: their paths, and the same below the folder.
fn walk(folder: &Path, wanted: impl Fn(&Path) -> bool) -> Result<Vec<(PathBuf, String)>> {
    let files = listing::files(folder, wanted)?.into_iter();
    let mut found: Vec<_> = files.map(|path| (path.clone(), listing::relative(folder, &path))).collect();
    found.sort();
    Ok(found)
}

/// The folder a glob starts from, and its matcher.
fn glob(pattern: &str) -> Result<(PathBuf, GlobMatcher)> {
    let fixed = pattern.split('/').take_while(|part| !part.contains(['*', '?', '[', '{']));
    let base: Vec<&str> = fixed.collect();
    let base = match base[..] {
        [] => PathBuf::from("."),
        [""] => PathBuf::from("/"),
        _ => PathBuf::from(base.join("/")),
    };
    let pattern = pattern.strip_prefix("./").unwrap_or(pattern);
    let glob = GlobBuilder::new(pattern).literal_separator(true).build();
    let glob = glob.map_err(|error| Error::Usage(format!("{pattern}: not a glob: {error}")))?;
    Ok((base, glob.compile_matcher()))
}

/// Gives every file an id that is unique and a valid file name.
fn named(mut slides: Vec<Found>) -> Result<Vec<Found>> {
    let stem = |below: &str| without_extension(file_name(below)).to_owned();
    let mut count: BTreeMap<String, usize> = BTreeMap::new();
    slides.iter().for_each(|slide| *count.entry(stem(&slide.below)).or_default() += 1);
    let mut seen: BTreeMap<String, PathBuf> = BTreeMap::new();
    for slide in &mut slides {
        let stem = stem(&slide.below);
        slide.id = if count[&stem] == 1 { stem } else { slide.below.replace('/', "__") };
        if let Some(other) = seen.insert(slide.id.clone(), slide.path.clone()) {
            return Err(Error::Usage(format!(
                "{} and {} would both be called {}: rename one of them",
                other.display(),
                slide.path.display(),
                slide.id
            )));
        }
    }
    Ok(slides)
}

/// The id of the slide that a list means by a name, a file name or a path.
pub fn slide_id(name: &str) -> &str {
    without_extension(file_name(name))
}

fn file_name(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

/// A file name or path without a slide's extension (`.ome.tif` is one). Dots that start no known extension belong to the
/// name: `S.01.svs` is `S.01`, and `S.01` stays as it is.
pub(super) fn without_extension(path: &str) -> &str {
    let Some((stem, extension)) = path.rsplit_once('.') else { return path };
    let slide = EXTENSIONS.contains(&extension.to_lowercase().as_str());
    let other =
        !extension.is_empty() && extension.len() <= 4 && extension.starts_with(|c: char| c.is_ascii_alphabetic());
    if stem.is_empty() || stem.ends_with('/') || extension.contains('/') || !(slide || other) {
        return path;
    }
    match stem.rsplit_once('.') {
        Some((shorter, "ome" | "OME")) if extension.to_lowercase().starts_with("tif") => shorter,
        _ => stem,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extensions_are_taken_off_and_other_dots_kept() {
        for (name, expected) in [
            ("a.svs", "a"),
            ("a.OME.tif", "a"),
            ("a.ome.tiff", "a"),
            ("TCGA-1.01.svs", "TCGA-1.01"),
            ("TCGA-1.01", "TCGA-1.01"),
            ("a.dat", "a"),
            ("sub.x/a", "sub.x/a"),
            ("sub.x/.svs", "sub.x/.svs"),
            (".svs", ".svs"),
            ("a", "a"),
        ] {
            assert_eq!(without_extension(name), expected, "{name}");
        }
    }

    #[test]
    fn globs_start_at_their_fixed_part() {
        for (pattern, base) in [("a/b/*.svs", "a/b"), ("*.svs", "."), ("/x/**/y.tif", "/x"), ("/*.svs", "/")] {
            assert_eq!(glob(pattern).unwrap().0, Path::new(base), "{pattern}");
        }
        assert!(glob("a/[").is_err());
    }
}
