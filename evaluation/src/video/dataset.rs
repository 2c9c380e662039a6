//! The folders of DAVIS: `JPEGImages/480p/<sequence>/<frame>.jpg`, `Annotations/480p/<sequence>/<frame>.png` and the list
//! of sequences `ImageSets/2017/val.txt`.

use std::fs;
use std::path::{Component, Path, PathBuf};

use crate::error::{Error, Result};

/// The list of sequences that the results of DAVIS-2017 are quoted on.
const LIST: &str = "ImageSets/2017/val.txt";

/// A folder of videos with annotated frames.
#[derive(Clone, Debug)]
pub struct Davis {
    root: PathBuf,
    sequences: Vec<String>,
}

/// One video.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sequence {
    /// Name of its folder.
    pub name: String,
    /// Its frames in order; none where only masks are scored.
    pub frames: Vec<Frame>,
    /// Its annotations in order.
    pub masks: Vec<Frame>,
}

/// A file of a frame.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Frame {
    /// Its name without extension, `00000`.
    pub id: String,
    /// The file.
    pub path: PathBuf,
}

impl Davis {
    /// The sequences of `root`: those of `ImageSets/2017/val.txt`, or where there is no such list, all that are annotated.
    ///
    /// # Errors
    /// A folder without annotations, or a list that names something else than folders.
    pub fn open(root: &Path) -> Result<Self> {
        let annotations = root.join("Annotations/480p");
        let list = root.join(LIST);
        let sequences: Vec<String> = if list.exists() {
            let text = fs::read_to_string(&list).map_err(|e| Error::io(&list, e))?;
            text.lines().map(str::trim).filter(|line| !line.is_empty()).map(str::to_owned).collect()
        } else {
            folders(&annotations)?
        };
        if let Some(name) = sequences.iter().find(|name| !is_plain(name)) {
            return Err(Error::bad(&list, format!("`{name}` is not the name of a sequence")));
        }
        if sequences.is_empty() {
            return Err(Error::usage(format!("{} holds no sequences", annotations.display())));
        }
        Ok(Self { root: root.to_owned(), sequences })
    }

    /// Names of the sequences.
    pub fn sequences(&self) -> &[String] {
        &self.sequences
    }

    /// The files of a sequence, with its frames where they are asked for.
    ///
    /// # Errors
    /// Fewer than three annotations (the first and the last are not scored), and an annotated frame without an image.
    pub fn sequence(&self, name: &str, with_frames: bool) -> Result<Sequence> {
        let folder = self.root.join("Annotations/480p").join(name);
        let masks = files(&folder, &["png"])?;
        if masks.len() < 3 {
            return Err(Error::usage(format!(
                "{} has {} annotated frame(s): three are needed, since the first and the last are not scored",
                folder.display(),
                masks.len()
            )));
        }
        let mut frames = Vec::new();
        if with_frames {
            let folder = self.root.join("JPEGImages/480p").join(name);
            frames = files(&folder, &["jpg", "jpeg", "png"])?;
            if let Some(mask) = masks.iter().find(|mask| frames.binary_search_by(|f| f.id.cmp(&mask.id)).is_err()) {
                return Err(Error::usage(format!(
                    "frame {} is annotated, but missing in {}",
                    mask.id,
                    folder.display()
                )));
            }
            // What lies before the first annotation cannot be followed.
            frames.retain(|frame| frame.id >= masks[0].id);
        }
        Ok(Sequence { name: name.to_owned(), frames, masks })
    }
}

/// Whether a name is one folder, not a way out of its parent.
fn is_plain(name: &str) -> bool {
    let mut parts = Path::new(name).components();
    matches!((parts.next(), parts.next()), (Some(Component::Normal(_)), None))
}

fn entries(folder: &Path) -> Result<Vec<PathBuf>> {
    let refused = |e| Error::io(folder, e);
    let entries = fs::read_dir(folder).map_err(refused)?;
    entries.map(|entry| Ok(entry.map_err(refused)?.path())).collect()
}

/// Names of the folders in `folder`, sorted.
fn folders(folder: &Path) -> Result<Vec<String>> {
    let names = entries(folder)?.into_iter().filter(|path| path.is_dir());
    let mut names: Vec<String> =
        names.filter_map(|path| Some(path.file_name()?.to_string_lossy().into_owned())).collect();
    names.retain(|name| !name.starts_with('.'));
    names.sort();
    Ok(names)
}

/// The files with one of these extensions, by name.
fn files(folder: &Path, extensions: &[&str]) -> Result<Vec<Frame>> {
    let is_one = |path: &Path| {
        let extension = path.extension().map(|extension| extension.to_string_lossy().to_ascii_lowercase());
        extension.is_some_and(|extension| extensions.contains(&extension.as_str()))
    };
    let files = entries(folder)?.into_iter().filter(|path| is_one(path));
    let named = |path: PathBuf| Some(Frame { id: path.file_stem()?.to_string_lossy().into_owned(), path });
    let mut files: Vec<Frame> = files.filter_map(named).filter(|frame| !frame.id.starts_with('.')).collect();
    // By number where all are numbers: 10 comes after 2.
    let number = |frame: &Frame| frame.id.parse::<u64>().ok();
    files.sort();
    if files.iter().all(|frame| number(frame).is_some()) {
        files.sort_by_key(number);
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn touch(path: PathBuf) {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, b"").unwrap();
    }

    #[test]
    fn the_list_decides_and_what_is_missing_is_named() {
        let root = tempfile::tempdir().unwrap();
        let at = |path: &str| root.path().join(path);
        assert!(Davis::open(root.path()).is_err());
        for (sequence, frames) in [("dog", 4), ("cat", 3), ("ant", 2)] {
            for i in 0..frames {
                touch(at(&format!("Annotations/480p/{sequence}/0000{i}.png")));
                touch(at(&format!("JPEGImages/480p/{sequence}/0000{i}.jpg")));
            }
        }
        let davis = Davis::open(root.path()).unwrap();
        assert_eq!(davis.sequences(), ["ant", "cat", "dog"]);
        let dog = davis.sequence("dog", true).unwrap();
        assert_eq!((dog.frames.len(), dog.masks[3].id.as_str()), (4, "00003"));
        assert!(davis.sequence("ant", true).unwrap_err().to_string().contains("three are needed"));
        fs::remove_file(at("JPEGImages/480p/cat/00001.jpg")).unwrap();
        let error = davis.sequence("cat", true).unwrap_err().to_string();
        assert!(error.contains("frame 00001") && error.contains("missing"), "{error}");
        assert_eq!(davis.sequence("cat", false).unwrap().masks.len(), 3);
        fs::create_dir_all(at("ImageSets/2017")).unwrap();
        fs::write(at(LIST), "dog\n\nowl\n").unwrap();
        let davis = Davis::open(root.path()).unwrap();
        assert_eq!(davis.sequences(), ["dog", "owl"]);
        assert!(davis.sequence("owl", true).unwrap_err().to_string().contains("owl"));
        fs::write(at(LIST), "../../etc\n").unwrap();
        assert!(Davis::open(root.path()).unwrap_err().to_string().contains("../../etc"));
    }
}
