//! What lies below a folder, hidden files aside.

use std::path::{Path, PathBuf};

use walkdir::WalkDir;

use crate::error::{Error, Result};

/// What a path leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    File,
    Folder,
    /// A link to nothing.
    Dangling,
    /// A folder that cannot be listed, or a link to one that it lies in.
    Closed,
}

/// Everything below `root`, at most `depth` folders deep, sorted by name; links are followed. What cannot be listed is an entry
/// of its own, so that it costs itself alone.
///
/// # Errors
/// [`Error::Io`] if `root` itself cannot be listed.
pub(crate) fn below(root: &Path, depth: usize) -> Result<Vec<(PathBuf, Kind)>> {
    let hidden = |path: &Path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.'));
    let mut found = Vec::new();
    let entries = WalkDir::new(root).max_depth(depth).follow_links(true).sort_by_file_name().into_iter();
    for entry in entries.filter_entry(|entry| entry.depth() == 0 || !hidden(entry.path())) {
        match entry {
            Ok(entry) if entry.depth() == 0 => {}
            // A pipe or a device is nothing to read.
            Ok(entry) if entry.file_type().is_dir() => found.push((entry.into_path(), Kind::Folder)),
            Ok(entry) if entry.file_type().is_file() => found.push((entry.into_path(), Kind::File)),
            Ok(_) => {}
            Err(error) => {
                let path = error.path().unwrap_or(root).to_owned();
                if error.depth() == 0 || path == root {
                    let why =
                        error.into_io_error().unwrap_or_else(|| std::io::Error::other("a link to a folder around it"));
                    return Err(Error::io(path, why));
                }
                let kind = if path.is_dir() { Kind::Closed } else { Kind::Dangling };
                found.retain(|(known, _)| *known != path);
                if !hidden(&path) {
                    found.push((path, kind));
                }
            }
        }
    }
    Ok(found)
}

/// The files anywhere below `folder` that `wanted` accepts. A link to nothing, and a folder that cannot be listed, stand among them
/// for what they should hold: nothing opens them, so that they are reported as any file that cannot be read.
///
/// # Errors
/// As [`below`].
pub(crate) fn files(folder: &Path, wanted: impl Fn(&Path) -> bool) -> Result<Vec<PathBuf>> {
    let kept = |(path, kind): (PathBuf, Kind)| match kind {
        Kind::Folder => None,
        Kind::File | Kind::Dangling => wanted(&path).then_some(path),
        Kind::Closed => Some(path),
    };
    Ok(below(folder, usize::MAX)?.into_iter().filter_map(kept).collect())
}

/// Every file below `folder`, sorted, hidden ones aside; links to nothing and folders that cannot be listed stand among them.
///
/// # Errors
/// A folder that is not there or cannot be listed.
pub fn files_below(folder: &Path) -> Result<Vec<PathBuf>> {
    files(folder, |_| true)
}

/// A path below `root`, with `/` on every system.
pub(crate) fn relative(root: &Path, path: &Path) -> String {
    let below = path.strip_prefix(root).unwrap_or(path);
    below.iter().map(|part| part.to_string_lossy()).collect::<Vec<_>>().join("/")
}

#[cfg(all(test, unix))]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn what_cannot_be_listed_costs_itself_alone() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        fs::create_dir(root.join("sub")).unwrap();
        fs::write(root.join("sub/a.svs"), b"").unwrap();
        fs::write(root.join(".hidden"), b"").unwrap();
        symlink("/nowhere", root.join("b.svs")).unwrap();
        symlink("/nowhere", root.join(".c")).unwrap();
        symlink(root, root.join("sub/loop")).unwrap();
        let found = below(root, usize::MAX).unwrap();
        let names: Vec<(String, Kind)> = found.iter().map(|(path, kind)| (relative(root, path), *kind)).collect();
        let expected =
            [("b.svs", Kind::Dangling), ("sub", Kind::Folder), ("sub/a.svs", Kind::File), ("sub/loop", Kind::Closed)];
        assert_eq!(names, expected.map(|(name, kind)| (name.to_owned(), kind)));
        assert_eq!(below(root, 1).unwrap().len(), 2);
        let slides = files(root, |path| path.extension().is_some_and(|extension| extension == "svs")).unwrap();
        let slides: Vec<String> = slides.iter().map(|path| relative(root, path)).collect();
        assert_eq!(slides, ["b.svs", "sub/a.svs", "sub/loop"]);
        assert!(matches!(below(&root.join("none"), 1), Err(Error::Io { .. })));
    }
}
