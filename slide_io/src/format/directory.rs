//! The directories of a TIFF or BigTIFF: what each image in the file is and where its tiles lie.
//!
//! The crate `tiff` follows the chain of directories and reads the tags. Everything a file claims is checked here
//! against the file's length before memory is spent on it.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::BufReader;
use std::os::unix::fs::FileExt;
use std::path::Path;

use tiff::decoder::ifd::Value;
use tiff::decoder::{Decoder, IfdDecoder};
use tiff::tags::{ByteOrder, IfdPointer, Tag, ValueBuffer};
use tiff::{Directory as Tags, TiffError};

use super::chunk::{PLANES_APART, UNCOMPRESSED};
use crate::error::{Error, Result};
use crate::geometry::Size;

/// More directories than this are a stack of planes, not a pyramid.
pub(super) const MAX_DIRECTORIES: usize = 512;
/// The version number of BigTIFF.
const BIG: u8 = 43;
/// Longest text or table of one tag, in bytes.
const MAX_TAG_BYTES: u64 = 16 << 20;
/// Most that all texts and tables of a file may take in memory, in bytes.
const MAX_TAG_BYTES_IN_ALL: u64 = 256 << 20;

/// One image of the file, cut into chunks: tiles, or strips as wide as the image.
pub(super) struct Directory {
    pub size: Size,
    pub tiled: bool,
    pub chunk: Size,
    /// Where the chunks lie and how many bytes they have, row by row; a length of 0 is a chunk that is not stored.
    pub offsets: Vec<u64>,
    pub lengths: Vec<u64>,
    pub compression: u16,
    pub photometric: u16,
    pub predictor: u16,
    pub planar: u16,
    pub samples: u16,
    pub bits: Vec<u16>,
    /// 1 for unsigned integers.
    pub sample_format: u16,
    /// What the samples beyond the colours are: 1 and 2 for alpha, with the colours multiplied by it or not.
    pub extra_samples: Option<Vec<u16>>,
    /// Of a palette: red of all its entries, then green, then blue; empty where there is none.
    pub color_map: Vec<u16>,
    /// 2 where the bits of every byte are reversed.
    pub fill_order: u16,
    /// Whether numbers of several bytes have the highest first.
    pub big_endian: bool,
    /// Bit 0: a reduced copy of another image. Bit 2: a mask.
    pub subfile: u32,
    /// Whether it is a sub-directory of the first.
    pub nested: bool,
    pub jpeg_tables: Vec<u8>,
    /// Texts and resolution under OpenSlide's names: `tiff.ImageDescription`, `tiff.XResolution`.
    pub properties: BTreeMap<String, String>,
    /// Whether it has the tag that only Hamamatsu's NDPI has.
    pub is_ndpi: bool,
    /// The XMP packet, by which Ventana's files are known.
    pub xmp: String,
}

impl Directory {
    /// Chunks in a row.
    pub fn across(&self) -> u32 {
        self.size.width.div_ceil(self.chunk.width)
    }

    /// Cuts the one strip of an uncompressed image, as scientific software writes it, into strips of which a few can be read.
    fn cut_strip(&mut self) {
        /// Bytes of a strip that is made.
        const STRIP: u64 = 1 << 20;
        let planes = if self.planar == PLANES_APART { u64::from(self.samples) } else { 1 };
        let per_pixel = u64::from(self.samples) / planes * u64::from(self.bits.first().copied().unwrap_or(1) / 8);
        let row = u64::from(self.size.width).saturating_mul(per_pixel);
        let height = u64::from(self.size.height);
        let one_strip = !self.tiled && self.compression == UNCOMPRESSED && self.chunk.height == self.size.height;
        let whole = |length: &u64| *length >= row.saturating_mul(height);
        if !one_strip || row == 0 || row.saturating_mul(height) <= STRIP || !self.lengths.iter().all(whole) {
            return;
        }
        let rows = (STRIP / row).max(1);
        let strips = |start: u64| {
            (0..height.div_ceil(rows)).map(move |strip| {
                let first = strip * rows;
                (start.saturating_add(first * row), (height - first).min(rows) * row)
            })
        };
        (self.offsets, self.lengths) = self.offsets.iter().flat_map(|start| strips(*start)).unzip();
        self.chunk.height = rows as u32;
    }

    /// A text property, empty where there is none.
    pub fn text(&self, name: &str) -> &str {
        self.properties.get(name).map_or("", String::as_str)
    }
}

/// All directories of the file in their order, with the sub-directories of the first (where OME-TIFF keeps its levels).
pub(super) fn read_directories(path: &Path, file: &File) -> Result<Vec<Directory>> {
    let length = file.metadata().map_err(|e| Error::io(path, e))?.len();
    let mut header = [0; 16];
    let read = file.read_at(&mut header, 0).map_err(|e| Error::io(path, e))?;
    let first = if header[2..4].contains(&BIG) { 8..16 } else { 4..8 };
    if read >= first.end && header[first].iter().all(|byte| *byte == 0) {
        return Err(Error::bad(path, "it has no directory: whatever wrote it was stopped before the end"));
    }
    let mut decoder = Decoder::new(BufReader::new(file)).map_err(|e| refused(path, "its first directory", e))?;
    // With whether its successor is to be read: sub-directories are all listed in their parent, chained or not.
    let mut waiting: Vec<(IfdPointer, bool)> = decoder.ifd_pointer().map(|first| (first, true)).into_iter().collect();
    let mut seen = Vec::new();
    let mut directories = Vec::new();
    let big_endian = decoder.byte_order() == ByteOrder::BigEndian;
    let mut spent = 0;
    while let Some((pointer, in_chain)) = waiting.pop() {
        if seen.contains(&pointer.0) {
            return Err(Error::bad(path, format!("its directories form a loop at byte {}", pointer.0)));
        }
        seen.push(pointer.0);
        if seen.len() > MAX_DIRECTORIES {
            return Err(Error::unsupported(path, format!("it has more than {MAX_DIRECTORIES} directories")));
        }
        let what = format!("directory {}", seen.len() - 1);
        let tags = decoder.read_directory(pointer).map_err(|e| refused(path, &what, e))?;
        waiting.extend(tags.next().filter(|_| in_chain).map(|next| (next, true)));
        let mut reader = TagReader { path, what, length, big_endian, spent, tags: decoder.read_directory_tags(&tags) };
        if directories.is_empty() {
            waiting.extend(reader.sub_directories(&tags)?.into_iter().map(|sub| (sub, false)));
        }
        directories.push(Directory { nested: !in_chain, ..reader.directory()? });
        spent = reader.spent;
    }
    Ok(directories)
}

/// A failure of the crate `tiff` as ours; `what` was being read.
pub(super) fn refused(path: &Path, what: &str, error: TiffError) -> Error {
    match error {
        TiffError::IoError(e) if e.kind() == std::io::ErrorKind::UnexpectedEof => {
            Error::bad(path, format!("{what} is cut off by the end of the file"))
        }
        TiffError::IoError(e) => Error::io(path, e),
        TiffError::UnsupportedError(e) => Error::unsupported(path, format!("{what}: {e}")),
        TiffError::LimitsExceeded => {
            Error::limit(path, format!("{what} asks for more memory than the reader's limit of 256 MiB"))
        }
        other => Error::bad(path, format!("{what}: {other}")),
    }
}

/// Reads the tags of one directory.
struct TagReader<'a> {
    path: &'a Path,
    /// The directory, for messages.
    what: String,
    /// Of the file, bytes.
    length: u64,
    big_endian: bool,
    /// Bytes of memory that texts and tables took so far, those of earlier directories included.
    spent: u64,
    tags: IfdDecoder<'a>,
}

impl TagReader<'_> {
    fn directory(&mut self) -> Result<Directory> {
        let size = Size::new(self.required(Tag::ImageWidth)?, self.required(Tag::ImageLength)?);
        let tiled = self.tags.find_entry(Tag::TileOffsets).is_some();
        let chunk = if tiled {
            Size::new(self.required(Tag::TileWidth)?, self.required(Tag::TileLength)?)
        } else {
            Size::new(size.width, self.number(Tag::RowsPerStrip)?.unwrap_or(size.height).min(size.height))
        };
        if size.width == 0 || size.height == 0 || chunk.width == 0 || chunk.height == 0 {
            return Err(self.bad("an image or tile side of 0 pixels"));
        }
        let samples = self.number(Tag::SamplesPerPixel)?.unwrap_or(1);
        let planar = self.number(Tag::PlanarConfiguration)?.unwrap_or(1);
        let planes = if planar == 2 { u64::from(samples) } else { 1 };
        let chunks = u64::from(size.width.div_ceil(chunk.width)) * u64::from(size.height.div_ceil(chunk.height));
        let chunks = chunks.saturating_mul(planes);
        let (offsets, lengths) = match tiled {
            true => (Tag::TileOffsets, Tag::TileByteCounts),
            false => (Tag::StripOffsets, Tag::StripByteCounts),
        };
        let mut directory = Directory {
            size,
            tiled,
            chunk,
            offsets: self.table(offsets, chunks)?,
            lengths: self.table(lengths, chunks)?,
            compression: self.number(Tag::Compression)?.unwrap_or(1),
            photometric: self.number(Tag::PhotometricInterpretation)?.unwrap_or(u16::MAX),
            predictor: self.number(Tag::Predictor)?.unwrap_or(1),
            planar,
            samples,
            bits: self.numbers(Tag::BitsPerSample)?.unwrap_or_else(|| vec![1]),
            sample_format: self.numbers(Tag::SampleFormat)?.and_then(|all| all.first().copied()).unwrap_or(1),
            extra_samples: self.numbers(Tag::ExtraSamples)?,
            color_map: self.numbers(Tag::ColorMap)?.unwrap_or_default(),
            fill_order: self.number(Tag::FillOrder)?.unwrap_or(1),
            big_endian: self.big_endian,
            subfile: self.number(Tag::NewSubfileType)?.unwrap_or(0),
            nested: false,
            jpeg_tables: self.bytes(Tag::JPEGTables)?.unwrap_or_default(),
            properties: self.properties()?,
            is_ndpi: self.tags.find_entry(Tag::Unknown(65420)).is_some(),
            xmp: self
                .bytes(Tag::Unknown(700))?
                .map(|xmp| String::from_utf8_lossy(&xmp).into_owned())
                .unwrap_or_default(),
        };
        directory.cut_strip();
        Ok(directory)
    }

    /// Pointers to sub-directories, last first, so that they are taken in order from the end of a stack.
    fn sub_directories(&mut self, tags: &Tags) -> Result<Vec<IfdPointer>> {
        match tags.get(Tag::SubIfd) {
            Some(entry) if entry.count() > MAX_DIRECTORIES as u64 => Err(self.bad("too many sub-directories")),
            Some(_) => {
                let found = self.tags.get_tag(Tag::SubIfd).and_then(|value| value.into_ifd_vec());
                Ok(found.map_err(|e| refused(self.path, &self.what, e))?.into_iter().rev().collect())
            }
            None => Ok(Vec::new()),
        }
    }

    fn properties(&mut self) -> Result<BTreeMap<String, String>> {
        let mut properties = BTreeMap::new();
        let texts = [
            (Tag::ImageDescription, "tiff.ImageDescription"),
            (Tag::Make, "tiff.Make"),
            (Tag::Model, "tiff.Model"),
            (Tag::Software, "tiff.Software"),
            (Tag::DateTime, "tiff.DateTime"),
            (Tag::Artist, "tiff.Artist"),
            (Tag::HostComputer, "tiff.HostComputer"),
            (Tag::Unknown(33432), "tiff.Copyright"),
            (Tag::Unknown(269), "tiff.DocumentName"),
        ];
        for (tag, name) in texts {
            if let Some(bytes) = self.bytes(tag)? {
                let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
                properties.insert(name.to_owned(), String::from_utf8_lossy(&bytes[..end]).into_owned());
            }
        }
        for (tag, name) in [(Tag::XResolution, "tiff.XResolution"), (Tag::YResolution, "tiff.YResolution")] {
            // A resolution of an odd type is no resolution; it is not worth a slide.
            let value =
                match self.tags.find_entry(tag).filter(|entry| entry.count() == 1).map(|_| self.tags.get_tag(tag)) {
                    Some(Ok(Value::Rational(units, per))) => f64::from(units) / f64::from(per),
                    Some(Ok(Value::Float(value))) => value.into(),
                    Some(Ok(Value::Double(value))) => value,
                    _ => continue,
                };
            properties.insert(name.to_owned(), value.to_string());
        }
        let unit = match self.number::<u16>(Tag::ResolutionUnit)? {
            Some(1) => "none",
            None | Some(2) => "inch",
            Some(3) => "centimeter",
            Some(_) => "unknown",
        };
        properties.insert("tiff.ResolutionUnit".to_owned(), unit.to_owned());
        Ok(properties)
    }

    /// A table with one number a chunk.
    fn table(&mut self, tag: Tag, chunks: u64) -> Result<Vec<u64>> {
        let found = self.tags.find_entry(tag).map_or(0, |entry| entry.count());
        if found != chunks {
            return Err(self.bad(&format!("{tag:?} has {found} entries, the image's size asks for {chunks}")));
        }
        self.numbers(tag)?.ok_or_else(|| self.bad(&format!("no {tag:?}")))
    }

    fn required<T: TryFrom<u64>>(&mut self, tag: Tag) -> Result<T> {
        self.number(tag)?.ok_or_else(|| self.bad(&format!("no {tag:?}")))
    }

    fn number<T: TryFrom<u64>>(&mut self, tag: Tag) -> Result<Option<T>> {
        let count = self.check_length(tag)?;
        if count > 1 {
            return Err(self.bad(&format!("{tag:?} has {count} values instead of one")));
        }
        self.tags.find_tag_unsigned(tag).map_err(|e| refused(self.path, &self.what, e))
    }

    fn numbers<T: TryFrom<u64>>(&mut self, tag: Tag) -> Result<Option<Vec<T>>> {
        let count = self.check_length(tag)?;
        self.spend(tag, count.saturating_mul(size_of::<T>() as u64))?;
        self.tags.find_tag_unsigned_vec(tag).map_err(|e| refused(self.path, &self.what, e))
    }

    fn bytes(&mut self, tag: Tag) -> Result<Option<Vec<u8>>> {
        let count = self.check_length(tag)?;
        if count > MAX_TAG_BYTES {
            let what = format!("{}: {tag:?} of {count} bytes; the limit is {MAX_TAG_BYTES}", self.what);
            return Err(Error::limit(self.path, what));
        }
        self.spend(tag, count)?;
        let mut buffer = ValueBuffer::empty(tiff::tags::Type::BYTE);
        let found = self.tags.find_tag_buf(tag, &mut buffer).map_err(|e| refused(self.path, &self.what, e))?;
        Ok(found.map(|_| buffer.as_bytes().to_vec()))
    }

    /// Counts the memory that a tag's values are about to take.
    fn spend(&mut self, tag: Tag, bytes: u64) -> Result<()> {
        self.spent = self.spent.saturating_add(bytes);
        if self.spent > MAX_TAG_BYTES_IN_ALL {
            let what = format!("{}, {tag:?}: the texts and tables of the file", self.what);
            return Err(Error::limit(self.path, format!("{what} are above the limit of {MAX_TAG_BYTES_IN_ALL} bytes")));
        }
        Ok(())
    }

    /// Number of values of a tag, after checking that they fit the file (a value has at least one byte).
    fn check_length(&self, tag: Tag) -> Result<u64> {
        let count = self.tags.find_entry(tag).map_or(0, |entry| entry.count());
        if count > self.length {
            return Err(self.bad(&format!("{tag:?} has {count} entries, more than the file has bytes")));
        }
        Ok(count)
    }

    fn bad(&self, what: &str) -> Error {
        Error::bad(self.path, format!("{}: {what}", self.what))
    }
}
