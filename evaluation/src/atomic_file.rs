//! [`slide_io::atomic_file`] for writers that want an open file.

use std::fs::File;
use std::path::Path;

use crate::error::{Error, Result};

/// Writes `path` through `write`; it appears whole or not at all.
pub fn replace(path: &Path, write: impl FnOnce(&mut File) -> Result<()>) -> Result<()> {
    slide_io::atomic_file::replace(path, |temporary| {
        let mut file = File::create(temporary).map_err(|e| Error::io(path, e))?;
        write(&mut file)
    })
}
