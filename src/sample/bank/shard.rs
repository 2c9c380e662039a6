//! One shard file and its index.

use std::fs::File;
use std::io::BufWriter;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use slide_io::archive::{ArchiveWriter, Place};
use slide_io::{Error, atomic_file};

use super::{Header, Kind, Request};
use crate::run_dir::remove;

/// What lies where in a shard.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Index {
    header: Value,
    shard: usize,
    /// Of the tar file.
    bytes: u64,
    pub images: Vec<Entry>,
}

/// One image of a shard.
#[derive(Clone, Copy, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Entry {
    pub source: usize,
    pub kind: Kind,
    pub k: usize,
    pub secondary: Option<usize>,
    pub alpha: f32,
    pub offset: u64,
    pub length: u32,
    /// CRC-32 of its bytes.
    pub checksum: u32,
}

impl Entry {
    pub fn place(&self) -> Place {
        Place { offset: self.offset, length: self.length }
    }
}

/// The tar file of a shard.
pub(super) fn path(folder: &Path, shard: usize) -> PathBuf {
    folder.join(format!("{shard:05}.tar"))
}

/// The index of shard `shard`, if the shard is finished.
///
/// # Errors
/// A shard of another bank: what differs, with both values.
pub(super) fn index(folder: &Path, header: &Header, shard: usize) -> Result<Option<Index>> {
    let tar = path(folder, shard);
    let json = tar.with_extension("json");
    let Ok(text) = std::fs::read(&json) else { return Ok(None) };
    let Ok(index) = serde_json::from_slice::<Value>(&text) else { return Ok(None) };
    header.refuse_other(&index["header"], &json)?;
    let Ok(index) = serde_json::from_value::<Index>(index) else { return Ok(None) };
    let whole = tar.metadata().is_ok_and(|file| file.len() == index.bytes);
    Ok(Some(index).filter(|index| whole && index.shard == shard && index.images.len() == header.shard_images(shard)))
}

/// Writes a shard from `encoded`, which gives the bytes of its requests one after the other, and stops early where they
/// cannot be made (then nothing is left behind and the answer is false).
pub(super) fn write(
    folder: &Path,
    header: &Header,
    shard: usize,
    requests: &[Request],
    mut encoded: impl FnMut() -> Option<Vec<u8>>,
) -> Result<bool> {
    /// Why a shard is not written.
    enum Stopped {
        Early,
        Failed(Error),
    }
    impl From<Error> for Stopped {
        fn from(error: Error) -> Self {
            Self::Failed(error)
        }
    }
    let tar = path(folder, shard);
    let json = tar.with_extension("json");
    remove(&json)?;
    let mut images = Vec::with_capacity(requests.len());
    let written = atomic_file::replace(&tar, |temporary| {
        let io = |error| Stopped::Failed(Error::io(&tar, error));
        let mut archive = ArchiveWriter::new(BufWriter::new(File::create(temporary).map_err(io)?));
        for request in requests {
            let bytes = encoded().ok_or(Stopped::Early)?;
            let &Request { source, kind, k, secondary, alpha, .. } = request;
            let member = format!("{source:08}_{}_{k}.{}", kind.name(), header.storage.extension());
            let Place { offset, length } = archive.append(&member, &bytes).map_err(io)?;
            let checksum = crc32fast::hash(&bytes);
            images.push(Entry { source, kind, k, secondary, alpha, offset, length, checksum });
        }
        archive.finish().map_err(io)
    });
    match written {
        Err(Stopped::Early) => return Ok(false),
        Err(Stopped::Failed(error)) => return Err(error.into()),
        Ok(()) => {}
    }
    let bytes = tar.metadata().with_context(|| format!("cannot read {}", tar.display()))?.len();
    let index = Index { header: serde_json::to_value(header)?, shard, bytes, images };
    atomic_file::write(&json, &serde_json::to_vec(&index)?)?;
    Ok(true)
}
