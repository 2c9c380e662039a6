//! The latents and embeddings of a data set, computed once: a diffusion model sees every image many times, and its
//! autoencoder and encoder stand still.
//!
//! One file: the length of a JSON header (8 bytes, little-endian), the header, then one record per image:
//! the image's number in the data set (8 bytes), and for each of its flips the latent in half precision
//! (`channels * side * side`) and the embedding in single precision. Images that could not be read have no record. The number
//! of records (8 bytes) is the end.

use anyhow::{Context, Result, ensure};
use burn::tensor::f16;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::fs::File;
use std::io::{BufWriter, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// What the records are.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LatentHeader {
    /// Channels, height and width of a latent.
    pub shape: [usize; 3],
    /// Width of an embedding.
    pub embedding: usize,
    /// Flips of every image, itself included.
    pub flips: usize,
    /// Everything the values depend on.
    pub origin: Value,
}

impl LatentHeader {
    fn latent_len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Bytes of a latent and its embedding.
    fn flip_bytes(&self) -> usize {
        2 * self.latent_len() + 4 * self.embedding
    }

    fn record_bytes(&self) -> usize {
        8 + self.flips * self.flip_bytes()
    }
}

/// One image as the diffusion model sees it.
#[derive(Clone, Debug, PartialEq)]
pub struct Encoded {
    /// `[channels, height, width]`.
    pub latent: Vec<f32>,
    /// Its embedding.
    pub embedding: Vec<f32>,
}

/// A finished file.
#[derive(Debug)]
pub struct LatentFile {
    file: File,
    path: PathBuf,
    header: LatentHeader,
    start: u64,
    records: usize,
}

impl LatentFile {
    /// Opens the file, if there is one and it holds `header`.
    ///
    /// # Errors
    /// A file that cannot be read or was cut.
    pub fn open(path: &Path, header: &LatentHeader) -> Result<Option<Self>> {
        if !path.exists() {
            return Ok(None);
        }
        let context = || format!("cannot read the latents {}", path.display());
        let mut file = File::open(path).with_context(context)?;
        let cut = || format!("{}: remove it, it is made again", context());
        let Some(start) = after_header(&mut file, header).with_context(cut)? else { return Ok(None) };
        let bytes = (file.metadata().with_context(context)?.len() - start).checked_sub(8);
        let record = header.record_bytes() as u64;
        let records = bytes.filter(|bytes| bytes.is_multiple_of(record)).map(|bytes| bytes / record);
        let mut last = [0; 8];
        if let Some(bytes) = bytes {
            file.read_exact_at(&mut last, start + bytes).with_context(context)?;
        }
        let whole = records.filter(|&records| records == u64::from_le_bytes(last));
        let records =
            whole.with_context(|| format!("{}: it was cut; remove it, it is made again", context()))? as usize;
        Ok(Some(Self { file, path: path.to_owned(), header: header.clone(), start, records }))
    }

    /// What the file at `path` holds, if it can be told.
    pub fn header_at(path: &Path) -> Option<LatentHeader> {
        read_header(&mut File::open(path).ok()?).ok()?.0
    }

    /// Images.
    pub fn len(&self) -> usize {
        self.records
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.records == 0
    }

    /// What the records are.
    pub fn header(&self) -> &LatentHeader {
        &self.header
    }

    fn bytes(&self, record: usize, offset: usize, length: usize) -> Result<Vec<u8>> {
        let mut bytes = vec![0; length];
        let at = self.start + (record * self.header.record_bytes() + offset) as u64;
        self.file.read_exact_at(&mut bytes, at).with_context(|| format!("cannot read {}", self.path.display()))?;
        Ok(bytes)
    }

    /// Where image `record` is in the data set.
    ///
    /// # Errors
    /// A disk that fails.
    pub fn source(&self, record: usize) -> Result<usize> {
        let bytes = self.bytes(record, 0, 8)?;
        Ok(bytes.iter().rev().fold(0, |number, &byte| number << 8 | usize::from(byte)))
    }

    /// Embedding of image `record` as it is.
    ///
    /// # Errors
    /// A disk that fails.
    pub fn embedding(&self, record: usize) -> Result<Vec<f32>> {
        Ok(singles(&self.bytes(record, 8 + 2 * self.header.latent_len(), 4 * self.header.embedding)?))
    }

    /// Flip `flip` of image `record`.
    ///
    /// # Errors
    /// A disk that fails.
    pub fn read(&self, record: usize, flip: usize) -> Result<Encoded> {
        let bytes = self.bytes(record, 8 + flip * self.header.flip_bytes(), self.header.flip_bytes())?;
        let (latent, embedding) = bytes.split_at(2 * self.header.latent_len());
        let (halves, _) = latent.as_chunks::<2>();
        Ok(Encoded {
            latent: halves.iter().map(|&half| f16::from_le_bytes(half).to_f32()).collect(),
            embedding: singles(embedding),
        })
    }
}

fn singles(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks::<4>().0.iter().map(|&single| f32::from_le_bytes(single)).collect()
}

/// The header of an open file, if it is of this version, and where it ends.
fn read_header(file: &mut File) -> Result<(Option<LatentHeader>, u64)> {
    let mut length = [0; 8];
    file.read_exact(&mut length)?;
    let length = u64::from_le_bytes(length);
    ensure!(length < 1 << 20, "it is no file of latents");
    let mut text = vec![0; length as usize];
    file.read_exact(&mut text)?;
    Ok((serde_json::from_slice(&text).ok(), 8 + length))
}

/// Where the header of an open file ends, if it is `header`.
fn after_header(file: &mut File, header: &LatentHeader) -> Result<Option<u64>> {
    let (found, end) = read_header(file)?;
    Ok((found == Some(stored(header))).then_some(end))
}

/// A header as it reads after it was stored.
fn stored(header: &LatentHeader) -> LatentHeader {
    LatentHeader { origin: serde_json::from_str(&header.origin.to_string()).unwrap_or_default(), ..header.clone() }
}

/// A file in the making. What is written stays when the process is killed, and is gone on from.
pub struct LatentWriter {
    file: BufWriter<File>,
    part: PathBuf,
    path: PathBuf,
    header: LatentHeader,
    begun: Vec<usize>,
    records: u64,
}

impl LatentWriter {
    /// Goes on with the unfinished file beside `path` if it holds `header`, or begins anew.
    ///
    /// # Errors
    /// A folder that cannot be written to.
    pub fn open(path: &Path, header: &LatentHeader) -> Result<Self> {
        let part = path.with_extension("part");
        let open = || -> Result<(File, Vec<usize>)> {
            if let Some((file, begun)) = unfinished(&part, header)? {
                return Ok((file, begun));
            }
            let mut file = File::create(&part)?;
            let text = serde_json::to_vec(header)?;
            file.write_all(&(text.len() as u64).to_le_bytes())?;
            file.write_all(&text)?;
            Ok((file, vec![]))
        };
        let (file, begun) = open().with_context(|| format!("cannot write {}", part.display()))?;
        let file = BufWriter::with_capacity(1 << 20, file);
        let records = begun.len() as u64;
        Ok(Self { file, part, path: path.to_owned(), header: header.clone(), begun, records })
    }

    /// Images of an earlier run that are in the file already, by their number in the data set.
    pub fn begun(&self) -> &[usize] {
        &self.begun
    }

    /// Adds image `source` in all its flips.
    ///
    /// # Errors
    /// Values that are not finite in half precision, a full disk.
    pub fn add(&mut self, source: usize, flips: &[Encoded]) -> Result<()> {
        debug_assert_eq!(flips.len(), self.header.flips);
        let mut record = (source as u64).to_le_bytes().to_vec();
        for Encoded { latent, embedding } in flips {
            let halves = latent.iter().map(|&value| f16::from_f32(value));
            ensure!(
                halves.clone().all(f16::is_finite) && embedding.iter().all(|value| value.is_finite()),
                "the latent or embedding of image {source} is not finite: the autoencoder or the encoder is broken"
            );
            record.extend(halves.flat_map(f16::to_le_bytes));
            record.extend(embedding.iter().flat_map(|value| value.to_le_bytes()));
        }
        self.records += 1;
        self.file.write_all(&record).with_context(|| format!("cannot write {}", self.part.display()))
    }

    /// The file is complete.
    ///
    /// # Errors
    /// A full disk.
    pub fn finish(mut self) -> Result<()> {
        let mut finish = || -> Result<()> {
            self.file.write_all(&self.records.to_le_bytes())?;
            self.file.flush()?;
            self.file.get_ref().sync_all()?;
            Ok(std::fs::rename(&self.part, &self.path)?)
        };
        finish().with_context(|| format!("cannot write {}", self.path.display()))
    }
}

/// An unfinished file with this header, cut to its whole records, and the images in it.
fn unfinished(part: &Path, header: &LatentHeader) -> Result<Option<(File, Vec<usize>)>> {
    if !part.exists() {
        return Ok(None);
    }
    let mut file = File::options().read(true).write(true).open(part)?;
    // A file that was killed in its header is begun anew.
    let Ok(Some(start)) = after_header(&mut file, header) else { return Ok(None) };
    let record = header.record_bytes() as u64;
    let records = (file.metadata()?.len() - start) / record;
    file.set_len(start + records * record)?;
    let read = LatentFile {
        file: file.try_clone()?,
        path: part.to_owned(),
        header: header.clone(),
        start,
        records: records as usize,
    };
    let begun = (0..read.len()).map(|record| read.source(record)).collect::<Result<_>>()?;
    file.seek(SeekFrom::End(0))?;
    Ok(Some((file, begun)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn header() -> LatentHeader {
        LatentHeader {
            shape: [2, 1, 3],
            embedding: 4,
            flips: 2,
            origin: json!({ "autoencoder": "a", "mean": 0.23f32 }),
        }
    }

    fn encoded(seed: usize) -> Encoded {
        // Quarters are exact in half precision.
        let values = |count: usize| (0..count).map(|i| ((seed * 7 + i * 3) % 16) as f32 / 4.0 - 2.0).collect();
        Encoded { latent: values(6), embedding: values(4) }
    }

    #[test]
    fn what_is_written_is_read_and_other_headers_are_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("latents.bin");
        assert!(LatentFile::open(&path, &header()).unwrap().is_none());
        let mut writer = LatentWriter::open(&path, &header()).unwrap();
        for source in [3, 900, 70_000] {
            writer.add(source, &[encoded(source), encoded(source + 1)]).unwrap();
        }
        writer.finish().unwrap();
        let file = LatentFile::open(&path, &header()).unwrap().unwrap();
        assert_eq!((file.len(), file.source(2).unwrap()), (3, 70_000));
        assert_eq!(file.read(1, 0).unwrap(), encoded(900));
        assert_eq!(file.read(1, 1).unwrap(), encoded(901));
        assert_eq!(file.embedding(1).unwrap(), encoded(900).embedding);
        let other = LatentHeader { origin: json!({ "autoencoder": "b" }), ..header() };
        assert!(LatentFile::open(&path, &other).unwrap().is_none());
        let cut = std::fs::read(&path).unwrap();
        std::fs::write(&path, &cut[..cut.len() - 1]).unwrap();
        assert!(format!("{:#}", LatentFile::open(&path, &header()).unwrap_err()).contains("cut"));
    }

    #[test]
    fn a_killed_writer_is_gone_on_from_and_gives_the_same_file() {
        let folder = tempfile::tempdir().unwrap();
        let (whole, parts) = (folder.path().join("whole.bin"), folder.path().join("parts.bin"));
        let write = |writer: &mut LatentWriter, sources: std::ops::Range<usize>| {
            sources.for_each(|source| writer.add(source, &[encoded(source), encoded(source + 1)]).unwrap());
        };
        let mut writer = LatentWriter::open(&whole, &header()).unwrap();
        write(&mut writer, 0..5);
        writer.finish().unwrap();
        let mut killed = LatentWriter::open(&parts, &header()).unwrap();
        write(&mut killed, 0..3);
        drop(killed);
        // Cut within the third record.
        let part = parts.with_extension("part");
        let bytes = std::fs::read(&part).unwrap();
        std::fs::write(&part, &bytes[..bytes.len() - 5]).unwrap();
        let mut again = LatentWriter::open(&parts, &header()).unwrap();
        assert_eq!(again.begun(), [0, 1]);
        write(&mut again, 2..5);
        again.finish().unwrap();
        assert!(std::fs::read(&whole).unwrap() == std::fs::read(&parts).unwrap());
    }

    #[test]
    fn what_is_not_finite_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let mut writer = LatentWriter::open(&folder.path().join("l.bin"), &header()).unwrap();
        let mut broken = encoded(0);
        broken.latent[0] = 1e6;
        let message = writer.add(4, &[encoded(0), broken]).unwrap_err().to_string();
        assert!(message.contains("image 4 is not finite"), "{message}");
    }
}
