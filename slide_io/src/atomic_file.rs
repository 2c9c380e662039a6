//! Files that appear whole or not at all: written beside their place under a temporary name, synced, then renamed.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::path::Path;

use crate::error::{Error, Result};

/// Prefix of a file being written. A killed program leaves at most one such file per name; the next write replaces it.
pub const TEMPORARY_PREFIX: &str = ".gensis-";

/// Writes `path` through `fill`, which is given the temporary path. What was at `path` is replaced only once every byte is
/// on the disk; after an error it is as it was, and nothing lies beside it. Missing folders are made.
///
/// # Errors
/// [`Error::Io`] of the operating system, and whatever `fill` returns.
pub fn replace<E: From<Error>>(path: &Path, fill: impl FnOnce(&Path) -> Result<(), E>) -> Result<(), E> {
    let Some(name) = path.file_name() else {
        return Err(Error::Usage(format!("{} is no name for a file", path.display())).into());
    };
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    fs::create_dir_all(folder).map_err(|e| Error::io(folder, e))?;
    let temporary = folder.join(format!("{TEMPORARY_PREFIX}{}", name.to_string_lossy()));
    let written = fill(&temporary).and_then(|()| publish(&temporary, folder, path).map_err(E::from));
    if written.is_err() {
        // The first error is the one to report; the file may not even exist.
        let _ = fs::remove_file(&temporary);
    }
    written
}

/// Writes `bytes` to `path` through [`replace`].
///
/// # Errors
/// [`Error::Io`] if it cannot be written.
pub fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    replace(path, |temporary| fs::write(temporary, bytes).map_err(|e| Error::io(path, e)))
}

/// Writes `bytes` to `path` if nothing is there, and says whether it did. Of several programs at once one succeeds.
///
/// # Errors
/// As [`write`].
pub fn create(path: &Path, bytes: &[u8]) -> Result<bool> {
    if path.exists() {
        return Ok(false);
    }
    // A folder of its own, so that programs that write the same name do not meet.
    let parent = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    fs::create_dir_all(parent).map_err(|e| Error::io(parent, e))?;
    let folder = parent.join(format!("{TEMPORARY_PREFIX}{}", std::process::id()));
    let temporary = folder.join("file");
    let linked = write(&temporary, bytes).and_then(|()| match fs::hard_link(&temporary, path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(false),
        // Not every file system has links.
        Err(_) if path.exists() => Ok(false),
        Err(_) => fs::rename(&temporary, path).map(|()| true).map_err(|e| Error::io(path, e)),
    });
    let _ = fs::remove_dir_all(&folder);
    linked
}

fn publish(temporary: &Path, folder: &Path, path: &Path) -> Result<()> {
    let sync = |at: &Path| File::open(at).and_then(|file| file.sync_all());
    sync(temporary).and_then(|()| fs::rename(temporary, path)).map_err(|e| Error::io(path, e))?;
    // The rename is on the disk once the folder is. Not every system can sync a folder; the file is complete either way.
    let _ = sync(folder);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_there_is_not_replaced_by_what_is_created() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("deeper").join("picture.png");
        assert!(create(&path, b"first").unwrap());
        assert!(!create(&path, b"second").unwrap());
        assert_eq!(fs::read(&path).unwrap(), b"first");
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1, "nothing is left beside it");
        assert!(create(&folder.path().join("deeper/picture.png/below"), b"x").is_err());
    }

    #[test]
    fn a_failed_write_leaves_the_old_file_and_nothing_beside_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("deeper").join("table.csv");
        write(&path, b"old").unwrap();
        let error: Result<()> = replace(&path, |temporary| {
            fs::write(temporary, b"new, but").unwrap();
            Err(Error::Usage("stopped half-way".into()))
        });
        assert!(matches!(error, Err(Error::Usage(_))));
        assert_eq!(fs::read_to_string(&path).unwrap(), "old");
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
        write(&path, b"new").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "new");
    }
}
