//! Files that appear whole or not at all: written beside their place under a temporary name, then renamed.

use std::fs::{self, File};
use std::path::Path;

use crate::error::{Error, Result};

/// Writes `path` through `write`, replacing what was there only once every byte is on disk. A write that fails
/// leaves the old file as it was and nothing beside it; a killed one leaves `.<name>.<pid>.tmp`.
pub fn replace(path: &Path, write: impl FnOnce(&mut File) -> Result<()>) -> Result<()> {
    let name = path.file_name().ok_or_else(|| Error::usage(format!("{}: not a file name", path.display())))?;
    let temporary = path.with_file_name(format!(".{}.{}.tmp", name.to_string_lossy(), std::process::id()));
    if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        fs::create_dir_all(folder).map_err(|e| Error::io(folder, e))?;
    }
    let attempt = || -> Result<()> {
        let mut file = File::create(&temporary).map_err(|e| Error::io(&temporary, e))?;
        write(&mut file)?;
        file.sync_all().map_err(|e| Error::io(&temporary, e))?;
        fs::rename(&temporary, path).map_err(|e| Error::io(path, e))
    };
    let outcome = attempt();
    if outcome.is_err() {
        // The error that is reported is the first one; a temporary file that was never made cannot be removed.
        let _ = fs::remove_file(&temporary);
    }
    outcome
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn a_failed_write_leaves_the_old_file_and_nothing_beside_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("deeper").join("table.csv");
        replace(&path, |file| file.write_all(b"old").map_err(|e| Error::io("x", e))).unwrap();
        let error = replace(&path, |file| {
            file.write_all(b"new, but").map_err(|e| Error::io("x", e))?;
            Err(Error::usage("stopped half-way"))
        });
        assert!(matches!(error, Err(Error::Usage(_))));
        assert_eq!(fs::read_to_string(&path).unwrap(), "old");
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
    }
}
