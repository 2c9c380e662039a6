//! One tensor as `torch.save` writes it: the `.pt` files that CLAM and its heirs read.
//!
//! PyTorch's format is a zip file of stored members: `data.pkl`, a pickle that says which storage, shape and strides the
//! tensor has; `data/0`, its numbers; `version` and `byteorder`. The pickle names nothing but what
//! `torch.load(weights_only=True)` allows.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipWriter};

use crate::atomic_file;
use crate::error::{Error, Result};

/// Writes `values`, row-major, as a `torch.float32` tensor of shape (rows, `width`), folders included. It replaces an older
/// file only when it is complete.
///
/// # Errors
/// [`Error::Usage`] if the values do not fill whole rows; [`Error::Io`] if it cannot be written; then nothing is left of it.
pub fn write_tensor(path: &Path, values: &[f32], width: usize) -> Result<()> {
    let rows = values.len().checked_div(width).unwrap_or(0);
    if rows * width != values.len() {
        return Err(Error::Usage(format!("{}: {} values are not rows of {width}", path.display(), values.len())));
    }
    atomic_file::replace(path, |temporary| {
        fill(temporary, values, [rows, width]).map_err(|error| Error::io(path, std::io::Error::other(error)))
    })
}

fn fill(path: &Path, values: &[f32], shape: [usize; 2]) -> zip::result::ZipResult<()> {
    let mut archive = ZipWriter::new(BufWriter::new(File::create(path)?));
    let stored = SimpleFileOptions::default()
        .compression_method(CompressionMethod::Stored)
        .large_file(size_of_val(values) >= u32::MAX as usize);
    for (name, bytes) in [("data.pkl", &pickle(shape)[..]), ("byteorder", b"little")] {
        archive.start_file(format!("archive/{name}"), stored)?;
        archive.write_all(bytes)?;
    }
    archive.start_file("archive/data/0", stored)?;
    for block in values.chunks(1 << 14) {
        archive.write_all(&block.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>())?;
    }
    archive.start_file("archive/version", stored)?;
    archive.write_all(b"3\n")?;
    archive.finish()?.flush()?;
    Ok(())
}

/// The pickle (protocol 2) of `torch._utils._rebuild_tensor_v2(storage, 0, shape, strides, False, OrderedDict())`, with
/// the storage as persistent id `("storage", torch.FloatStorage, "0", "cpu", numbers)`.
fn pickle([rows, width]: [usize; 2]) -> Vec<u8> {
    const MARK: &[u8] = b"(";
    const TUPLE: &[u8] = b"t";
    const EMPTY_TUPLE: &[u8] = b")";
    const PERSISTENT_ID: &[u8] = b"Q";
    const FALSE: &[u8] = b"\x89";
    const CALL: &[u8] = b"R";
    const STOP: &[u8] = b".";
    let pair = |first, second| [MARK, &integer(first), &integer(second), TUPLE].concat();
    [
        &b"\x80\x02"[..],
        &global("torch._utils", "_rebuild_tensor_v2"),
        MARK,
        MARK,
        &text("storage"),
        &global("torch", "FloatStorage"),
        &text("0"),
        &text("cpu"),
        &integer(rows * width),
        TUPLE,
        PERSISTENT_ID,
        &integer(0),
        &pair(rows, width),
        &pair(width, 1),
        FALSE,
        &global("collections", "OrderedDict"),
        EMPTY_TUPLE,
        CALL,
        TUPLE,
        CALL,
        STOP,
    ]
    .concat()
}

/// GLOBAL: a class or function by its name.
fn global(module: &str, name: &str) -> Vec<u8> {
    format!("c{module}\n{name}\n").into_bytes()
}

/// BINUNICODE.
fn text(value: &str) -> Vec<u8> {
    [b"X", &(value.len() as u32).to_le_bytes()[..], value.as_bytes()].concat()
}

/// BININT where it fits, otherwise LONG1 of nine bytes, the ninth for the sign.
fn integer(value: usize) -> Vec<u8> {
    match i32::try_from(value) {
        Ok(value) => [b"J", &value.to_le_bytes()[..]].concat(),
        Err(_) => [b"\x8a\x09", &(value as u64).to_le_bytes()[..], b"\0"].concat(),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    #[test]
    fn members_are_stored_in_the_order_and_form_that_pytorch_writes() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pt_files/s.pt");
        write_tensor(&path, &[1.0, -2.5, 0.0, 3.0, 4.0, f32::MIN_POSITIVE], 3).unwrap();
        let mut archive = zip::ZipArchive::new(File::open(&path).unwrap()).unwrap();
        let names: Vec<String> = archive.file_names().map(|name| name.unwrap().into_owned()).collect();
        assert_eq!(names, ["archive/data.pkl", "archive/byteorder", "archive/data/0", "archive/version"]);
        let mut numbers = Vec::new();
        let mut member = archive.by_name("archive/data/0").unwrap();
        assert_eq!(member.compression(), CompressionMethod::Stored);
        member.read_to_end(&mut numbers).unwrap();
        let expected = [1.0f32, -2.5, 0.0, 3.0, 4.0, f32::MIN_POSITIVE].map(f32::to_le_bytes).concat();
        assert_eq!(numbers, expected);
        let again = folder.path().join("again.pt");
        write_tensor(&again, &[1.0, -2.5, 0.0, 3.0, 4.0, f32::MIN_POSITIVE], 3).unwrap();
        assert_eq!(std::fs::read(path).unwrap(), std::fs::read(again).unwrap());
    }

    #[test]
    fn the_pickle_is_the_one_that_pytorch_has_read() {
        // torch.load(path, weights_only=True), also with mmap=True, of PyTorch 2.15 gives the (343, 32) tensor that h5py
        // reads from the HDF5 file beside it; python3 -m pickletools shows what these bytes say.
        let expected = b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n((X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\x000\
            X\x03\0\0\0cpuJ\x06\0\0\0tQJ\0\0\0\0(J\x02\0\0\0J\x03\0\0\0t(J\x03\0\0\0J\x01\0\0\0t\x89ccollections\nOrderedDict\n)RtR.";
        assert_eq!(pickle([2, 3]), expected);
    }

    #[test]
    fn numbers_beyond_31_bits_are_long() {
        // python3: pickle.dumps(3_000_000_000, 2)[2:-1] is 8a 05 ..., the same number in its shortest form.
        assert_eq!(integer(7), b"J\x07\0\0\0");
        assert_eq!(integer(3_000_000_000), b"\x8a\x09\x00\x5e\xd0\xb2\0\0\0\0\0");
    }

    #[test]
    fn rows_that_are_not_whole_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s.pt");
        let error = write_tensor(&path, &[1.0, 2.0, 3.0], 2).unwrap_err().to_string();
        assert!(error.contains("3 values are not rows of 2"), "{error}");
        assert!(!path.exists());
        write_tensor(&path, &[], 384).unwrap();
    }
}
