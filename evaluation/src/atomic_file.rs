//! [`slide_io::atomic_file`] for writers that want an open file.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;

use crate::error::{Error, Result};

/// Writes `path` through `write`; it appears whole or not at all. Where the operating system refuses, its reason is the
/// error, whatever the writer made of it.
pub fn replace(path: &Path, write: impl FnOnce(&mut Output) -> Result<()>) -> Result<()> {
    slide_io::atomic_file::replace(path, |temporary| {
        let file = File::create(temporary).map_err(|e| Error::io(path, e))?;
        let mut output = Output { file, refusal: None };
        let written = write(&mut output);
        match output.refusal {
            Some(refusal) => Err(Error::io(path, refusal)),
            None => written,
        }
    })
}

/// A file that remembers why it could not be written.
pub struct Output {
    file: File,
    refusal: Option<io::Error>,
}

impl Output {
    fn noting<T>(&mut self, result: io::Result<T>) -> io::Result<T> {
        result.inspect_err(|error| {
            if error.kind() == io::ErrorKind::Interrupted {
                // Writers try again.
                return;
            }
            // An error of the system is made again from its number, since it cannot be copied.
            let again = error.raw_os_error().map_or_else(|| error.kind().into(), io::Error::from_raw_os_error);
            self.refusal.get_or_insert(again);
        })
    }
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let result = self.file.write(bytes);
        self.noting(result)
    }

    fn flush(&mut self) -> io::Result<()> {
        let result = self.file.flush();
        self.noting(result)
    }
}
