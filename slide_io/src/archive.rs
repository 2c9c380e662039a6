//! Many small files in one tar file, any of which is read with one read: packed patches and stored synthetic images.
//!
//! Any tar program, WebDataset and DALI read them too. Owner and time are left out: the same members give the same file.

use std::fs::File;
use std::io::{Result as IoResult, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::error::{Error, Result};
use crate::patch::OpenSlides;

/// Bytes of a block of a tar file.
const BLOCK: u64 = 512;

/// Where the bytes of a member lie in its tar file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Position of the first byte.
    pub offset: u64,
    /// Number of bytes.
    pub length: u32,
}

/// Writes a tar file and says where every member lies.
pub struct ArchiveWriter<W: Write> {
    archive: tar::Builder<W>,
    position: u64,
}

impl<W: Write> ArchiveWriter<W> {
    /// Writes to `output`.
    pub fn new(output: W) -> Self {
        Self { archive: tar::Builder::new(output), position: 0 }
    }

    /// Adds a file called `member`.
    ///
    /// # Errors
    /// Those of the output; 4 GiB and more in one member.
    pub fn append(&mut self, member: &str, bytes: &[u8]) -> IoResult<Place> {
        let length = u32::try_from(bytes.len()).map_err(|_| std::io::ErrorKind::FileTooLarge)?;
        let mut head = tar::Header::new_gnu();
        head.set_size(bytes.len() as u64);
        head.set_mode(0o644);
        self.archive.append_data(&mut head, member, bytes)?;
        // A name that does not fit the header has a header and blocks of its own before it.
        let long = member.len() > 100;
        let extra = if long { BLOCK + (member.len() as u64 + 1).next_multiple_of(BLOCK) } else { 0 };
        let offset = self.position + extra + BLOCK;
        self.position = offset + u64::from(length).next_multiple_of(BLOCK);
        Ok(Place { offset, length })
    }

    /// Writes the end of the file.
    ///
    /// # Errors
    /// Those of the output.
    pub fn finish(self) -> IoResult<()> {
        self.archive.into_inner()?.flush()
    }
}

/// Tar files kept open for reading, shared between threads; the one used longest ago is closed first.
pub struct OpenArchives(OpenSlides<File>);

impl Default for OpenArchives {
    fn default() -> Self {
        Self(OpenSlides::new())
    }
}

impl OpenArchives {
    /// The bytes at `place` in the tar file `path`, which is number `number` of the caller's files.
    ///
    /// # Errors
    /// [`Error::Io`] if it cannot be opened or is too short.
    pub fn read(&self, number: usize, path: &Path, place: Place) -> Result<Vec<u8>> {
        let io = |error| Error::io(path, error);
        let file = self.0.get(number, || File::open(path).map_err(io))?;
        let mut bytes = vec![0; place.length as usize];
        file.read_exact_at(&mut bytes, place.offset).map_err(io)?;
        Ok(bytes)
    }
}
