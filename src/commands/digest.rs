//! What tells one file from another: SHA-256, hexadecimal.

use std::collections::HashMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use sha2::{Digest, Sha256};

use super::Run;

/// Up to this many bytes a file is known by all of them.
const WHOLE: u64 = 2 << 20;
/// A larger one is known by its length and this many stretches of [`SAMPLE`] bytes at equal distances. Every command looks at every
/// slide, and each stretch is a seek.
const SAMPLES: u64 = 4;
const SAMPLE: u64 = 1 << 16;

/// Of a slide, a table of features, weights: read once a run; nothing for a file that cannot be read. Above 2 MiB it is of the
/// file's length and of stretches of it, its first and its last bytes among them: slides have gigabytes. What repairs less than
/// a third of a file of the same length may lie between two of them.
pub(super) fn of_file(run: &Run, path: &Path) -> Option<String> {
    once(run, path, false, sampled)
}

/// Of all bytes of a file, read once a run: what people draw is small, and a vertex may move in the middle of it.
pub(super) fn of_whole_file(run: &Run, path: &Path) -> Option<String> {
    once(run, path, true, sha256)
}

/// The digests known by now, each with whether it is of the whole file.
pub(super) type Digests = Mutex<HashMap<(PathBuf, bool), Option<String>>>;

fn once(run: &Run, path: &Path, whole: bool, of: impl Fn(&Path) -> std::io::Result<String>) -> Option<String> {
    let (key, known) = ((path.to_owned(), whole), || run.digests.lock().unwrap_or_else(PoisonError::into_inner));
    if let Some(digest) = known().get(&key) {
        return digest.clone();
    }
    let digest = of(path).ok();
    known().insert(key, digest.clone());
    digest
}

/// Of a file as it is now.
pub(super) fn sha256(path: &Path) -> std::io::Result<String> {
    let mut hash = Sha256::new();
    std::io::copy(&mut File::open(path)?, &mut HashWriter(&mut hash))?;
    Ok(hex(hash))
}

/// [`of_file`] of a file as it is now.
pub(super) fn sampled(path: &Path) -> std::io::Result<String> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    let mut hash = Sha256::new();
    hash.update(length.to_le_bytes());
    if length <= WHOLE {
        std::io::copy(&mut file, &mut HashWriter(&mut hash))?;
        return Ok(hex(hash));
    }
    for sample in 0..SAMPLES {
        file.seek(SeekFrom::Start((length - SAMPLE) * sample / (SAMPLES - 1)))?;
        std::io::copy(&mut (&mut file).take(SAMPLE), &mut HashWriter(&mut hash))?;
    }
    Ok(hex(hash))
}

/// Of a text.
pub(super) fn of_text(text: &str) -> String {
    let mut hash = Sha256::new();
    hash.update(text.as_bytes());
    hex(hash)
}

pub(super) fn hex(hash: Sha256) -> String {
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

struct HashWriter<'a>(&'a mut Sha256);

impl Write for HashWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_of_the_same_length_with_another_middle_is_another() {
        let folder = tempfile::tempdir().unwrap();
        let digest = |length: usize, changed: std::ops::Range<usize>| {
            let path = folder.path().join("file");
            let mut bytes = vec![7; length];
            bytes[changed].fill(8);
            std::fs::write(&path, bytes).unwrap();
            sampled(&path).unwrap()
        };
        // One byte of a file that is read whole; a third of a larger one, wherever it lies; its ends to the byte.
        let (small, large) = (2 << 20, 40 << 20);
        assert_ne!(digest(small, 0..0), digest(small, 1_000_000..1_000_001));
        let same = digest(large, 0..0);
        for start in [1 << 20, 9_000_000, 20_000_000] {
            assert_ne!(same, digest(large, start..start + large / 3), "{start}");
        }
        assert_ne!(same, digest(large, 0..1));
        assert_ne!(same, digest(large, large - 1..large));
        assert_ne!(same, digest(large + 1, 0..0));
    }
}
