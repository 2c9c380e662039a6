//! Files with equal bytes. Only files of equal length are opened, and only those with equal ends are read whole: a
//! cohort of gigabytes costs two small reads a file.

use std::collections::BTreeMap;
use std::fs::File;
use std::hash::Hash;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;

use rayon::prelude::*;
use sha2::{Digest, Sha256};

/// Bytes at either end of a file that are compared first.
const END: u64 = 1 << 16;

/// Bytes read at a time.
const BLOCK: usize = 1 << 20;

type Sha = [u8; 32];

/// The sets of equal files, each sorted; a file that cannot be read is equal to none.
pub(super) fn equal_files<P: AsRef<Path> + Sync>(paths: &[P]) -> Vec<Vec<usize>> {
    let all = (0..paths.len()).collect();
    let length = |file: usize| paths[file].as_ref().metadata().map(|metadata| metadata.len()).ok();
    let ends = |file: usize| ends(paths[file].as_ref()).ok();
    let whole = |file: usize| whole(paths[file].as_ref()).ok();
    let sets = told_apart(vec![all], length);
    let sets = told_apart(sets, ends);
    let mut sets = told_apart(sets, whole);
    sets.sort();
    sets
}

/// Splits sets of files by a key; what stays alone, or has no key, is left out.
fn told_apart<K: Ord + Hash + Send>(sets: Vec<Vec<usize>>, key: impl Fn(usize) -> Option<K> + Sync) -> Vec<Vec<usize>> {
    let split = |set: Vec<usize>| {
        let keys: Vec<Option<K>> = set.par_iter().map(|&file| key(file)).collect();
        let mut parts: BTreeMap<K, Vec<usize>> = BTreeMap::new();
        for (file, key) in set.into_iter().zip(keys) {
            if let Some(key) = key {
                parts.entry(key).or_default().push(file);
            }
        }
        parts.into_values().filter(|part| part.len() > 1)
    };
    sets.into_iter().flat_map(split).collect()
}

/// SHA-256 of the first and last 64 KiB.
fn ends(path: &Path) -> io::Result<Sha> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    let mut bytes = Vec::new();
    (&mut file).take(END).read_to_end(&mut bytes)?;
    file.seek(SeekFrom::Start(length.saturating_sub(END)))?;
    file.take(END).read_to_end(&mut bytes)?;
    Ok(Sha256::digest(&bytes).into())
}

/// SHA-256 of all bytes.
fn whole(path: &Path) -> io::Result<Sha> {
    let mut file = File::open(path)?;
    let mut hash = Sha256::new();
    let mut block = vec![0; BLOCK];
    loop {
        match file.read(&mut block) {
            Ok(0) => return Ok(hash.finalize().into()),
            Ok(count) => hash.update(&block[..count]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_equal_only_if_every_byte_is() {
        let folder = tempfile::tempdir().unwrap();
        let long: Vec<u8> = (0..400_000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        // Differs in the middle only: equal length, equal ends.
        let mut other = long.clone();
        other[200_000] ^= 1;
        let contents: [&[u8]; 7] = [&long, b"short", &other, &long, b"", b"short", b""];
        let mut paths: Vec<_> = (0..contents.len()).map(|i| folder.path().join(i.to_string())).collect();
        contents.iter().zip(&paths).for_each(|(bytes, path)| std::fs::write(path, bytes).unwrap());
        paths.push(folder.path().join("missing"));
        paths.push(folder.path().join("missing"));
        assert_eq!(equal_files(&paths), [vec![0, 3], vec![1, 5], vec![4, 6]]);
    }
}
