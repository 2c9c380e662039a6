//! The native reader of TIFF and BigTIFF pyramids: generic tiled TIFF, OME-TIFF, Aperio SVS, flat images in strips.
//!
//! Tiles of JPEG go through libjpeg-turbo, Aperio's of JPEG 2000 through hayro-jpeg2000, uncompressed, LZW, deflate and
//! PackBits through the crate `tiff`. Bytes are read by position, so that threads share nothing but the cache of decoded
//! tiles. What it does not read (planar or 16-bit samples, vendors with rules of their own) is left to the next format.
//!
//! Limits, each an error when passed: a tile of [`MAX_CHUNK_BYTES`], [`MAX_DIRECTORIES`](super::directory::MAX_DIRECTORIES)
//! directories, and every table and tile must lie inside the file. A tile of length zero is background: white.

use std::fs::File;
use std::io::Cursor;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use image::RgbImage;
use tiff::TiffResult;
use tiff::decoder::Decoder;
use tiff::encoder::TiffEncoder;
use tiff::tags::Tag;

use super::directory::{Directory, read_directories};
use super::tile_cache::{self, ReaderId, Tile, TileKey};
use super::{Area, Head, Info, Opened, Reader, Storage, metadata};
use crate::error::{Error, Result};
use crate::geometry::{Level, Size};
use crate::jpeg::{self, ColorModel};

/// Largest tile or strip, in bytes of RGB, and so also the most that one compressed tile may have.
pub(super) const MAX_CHUNK_BYTES: u64 = 64 << 20;

/// TIFF's compression number of JPEG.
const JPEG: u16 = 7;
/// Aperio's number of JPEG 2000 of YCbCr components.
const JPEG_2000_YCBCR: u16 = 33003;
/// Aperio's number of JPEG 2000 of RGB components.
const JPEG_2000_RGB: u16 = 33005;

const REDUCED: u32 = 1;
const MASK: u32 = 4;

/// TIFFs, but for Hamamatsu's: beyond 4 GB their offsets follow no standard.
pub(super) fn detect(path: &Path, head: &Head) -> bool {
    head.is_tiff() && !path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("ndpi"))
}

pub(super) fn open(path: &Path) -> Result<Opened> {
    let file = File::open(path).map_err(|e| Error::io(path, e))?;
    let length = file.metadata().map_err(|e| Error::io(path, e))?.len();
    let directories = read_directories(path, &file)?;
    if let Some(vendor) = directories.first().and_then(foreign_vendor) {
        return Err(Error::unsupported(path, format!("{vendor} files have rules of their own, left to OpenSlide")));
    }
    let (pyramid, others) = pyramid(directories);
    let Some(base) = pyramid.first() else {
        return Err(Error::unsupported(path, "it has no image"));
    };
    for (index, directory) in pyramid.iter().enumerate() {
        check_decodable(directory).map_err(|what| Error::unsupported(path, format!("level {index}: {what}")))?;
        check_inside(directory, length).map_err(|what| Error::bad(path, format!("level {index}: {what}")))?;
    }
    let associated = if is_aperio(base) { aperio_associated(others) } else { Vec::new() };
    let info = info(&pyramid, &associated);
    let names = vec![None; pyramid.len()];
    let mut reader = TiffReader { id: ReaderId::new(), path: path.to_owned(), file, names, images: pyramid };
    for (name, directory) in associated {
        reader.names.push(Some(name));
        reader.images.push(directory);
    }
    Ok(Opened { info, reader: Box::new(reader) })
}

/// The vendor of a TIFF whose levels do not simply follow from its directories.
fn foreign_vendor(first: &Directory) -> Option<&'static str> {
    let (description, software) = (first.text("tiff.ImageDescription"), first.text("tiff.Software"));
    [
        ("Hamamatsu", first.is_ndpi),
        ("Leica", description.contains("http://www.leica-microsystems.com/scn")),
        // Levels are padded to whole tiles.
        ("Philips", software.starts_with("Philips") && description.contains("DPUfsImport")),
        // Tiles overlap.
        ("Ventana", first.xmp.contains("iScan")),
        ("Trestle", software.starts_with("MedScan")),
    ]
    .into_iter()
    .find_map(|(vendor, found)| found.then_some(vendor))
}

fn is_aperio(first: &Directory) -> bool {
    first.text("tiff.ImageDescription").starts_with("Aperio")
}

/// Parts the directories into the pyramid, finest first, and the rest in file order (with their numbers).
///
/// Level 0 is the largest tiled image, or the first image of a file without tiles; the other levels are the tiled
/// images of its aspect and smaller. Masks are none.
fn pyramid(directories: Vec<Directory>) -> (Vec<Directory>, Vec<(usize, Directory)>) {
    let area = |directory: &Directory| u64::from(directory.size.width) * u64::from(directory.size.height);
    let tiled = |directory: &&Directory| directory.tiled && directory.subfile & MASK == 0;
    // The first of equals: max_by_key would take the last.
    let base = directories.iter().filter(tiled).rev().max_by_key(|directory| area(directory)).or(directories.first());
    let Some(base) = base.map(|base| base.size) else { return (Vec::new(), Vec::new()) };
    let any_tiled = directories.iter().any(|directory| tiled(&directory));
    let mut levels: Vec<Directory> = Vec::new();
    let mut others = Vec::new();
    for (number, directory) in directories.into_iter().enumerate() {
        let known = levels.iter().any(|level| level.size == directory.size);
        let level = directory.tiled == any_tiled && directory.subfile & MASK == 0 && is_reduction(directory.size, base);
        let flat_copy = !any_tiled && number > 0 && directory.subfile & REDUCED == 0;
        match level && !known && !flat_copy {
            true => levels.push(directory),
            false => others.push((number, directory)),
        }
    }
    levels.sort_by_key(|level| std::cmp::Reverse(area(level)));
    (levels, others)
}

/// Whether `size` is that of `base`, or a smaller one of its aspect: each side within 1 % or 2 pixels of it.
fn is_reduction(size: Size, base: Size) -> bool {
    let [w, h, w0, h0] = [size.width, size.height, base.width, base.height].map(f64::from);
    let near = |a: f64, b: f64| (a - b).abs() <= f64::max(2.0, 0.01 * b);
    w <= w0 && h <= h0 && (near(w, w0 * h / h0) || near(h, h0 * w / w0))
}

/// Why the pixels of a directory cannot be read here.
fn check_decodable(directory: &Directory) -> std::result::Result<(), String> {
    let Directory { samples, photometric, chunk, .. } = *directory;
    if directory.bits.iter().any(|bits| *bits != 8) || directory.sample_format != 1 {
        return Err(format!("samples of {:?} bits are not read natively, only 8", directory.bits));
    }
    if directory.planar != 1 && samples > 1 {
        return Err("planes stored apart are not read natively".to_owned());
    }
    let colors_known = match directory.compression {
        JPEG => matches!((samples, photometric), (1, 1) | (3, 2) | (3, 6)),
        1 | 5 | 8 | 32773 | 32946 => matches!((samples, photometric), (1, 1) | (3, 2)),
        JPEG_2000_YCBCR | JPEG_2000_RGB => samples == 3,
        other => return Err(format!("TIFF compression {other} is not read natively")),
    };
    if !colors_known {
        return Err(format!("{samples} samples of photometric kind {photometric} are not read natively"));
    }
    let bytes = u64::from(chunk.width) * u64::from(chunk.height) * 3;
    if bytes > MAX_CHUNK_BYTES {
        let Size { width, height } = chunk;
        return Err(format!(
            "tiles or strips of {width} x {height} px are above the native limit of {MAX_CHUNK_BYTES} bytes"
        ));
    }
    Ok(())
}

/// Why the chunk tables do not fit the file.
fn check_inside(directory: &Directory, length: u64) -> std::result::Result<(), String> {
    for (offset, bytes) in directory.offsets.iter().zip(&directory.lengths) {
        let end = offset.saturating_add(*bytes);
        if *bytes > 0 && end > length {
            return Err(format!("tiles reach to byte {end}, but the file ends at {length}: it is cut off"));
        }
        if *bytes > MAX_CHUNK_BYTES {
            return Err(format!("a tile of {bytes} bytes; the limit is {MAX_CHUNK_BYTES}"));
        }
    }
    Ok(())
}

/// Aperio's other images: the second of the file is the thumbnail, the rest are named in their descriptions' second line.
fn aperio_associated(others: Vec<(usize, Directory)>) -> Vec<(String, Directory)> {
    let name = |number: usize, directory: &Directory| {
        if number == 1 {
            return Some("thumbnail".to_owned());
        }
        let word = directory.text("tiff.ImageDescription").lines().nth(1)?.split_whitespace().next()?.to_owned();
        Some(word)
    };
    let stripped = others.into_iter().filter(|(_, directory)| !directory.tiled);
    stripped.filter_map(|(number, directory)| Some((name(number, &directory)?, directory))).collect()
}

fn info(pyramid: &[Directory], associated: &[(String, Directory)]) -> Info {
    let base = &pyramid[0];
    let level = |directory: &Directory| {
        let [w, h, w0, h0] =
            [directory.size.width, directory.size.height, base.size.width, base.size.height].map(f64::from);
        Level { size: directory.size, downsample: (w0 / w + h0 / h) / 2.0 }
    };
    let levels: Vec<Level> = pyramid.iter().map(level).collect();
    let mut properties = base.properties.clone();
    let description = base.text("tiff.ImageDescription");
    let vendor = if is_aperio(base) { "aperio" } else { "generic-tiff" };
    properties.insert("openslide.vendor".to_owned(), vendor.to_owned());
    if !description.is_empty() {
        properties.insert("openslide.comment".to_owned(), description.to_owned());
    }
    if is_aperio(base) {
        for (key, value) in metadata::aperio_pairs(description) {
            properties.insert(format!("aperio.{key}"), value.to_owned());
            let same: &[&str] = match key {
                "MPP" => &[metadata::MPP_X, metadata::MPP_Y],
                "AppMag" => &[metadata::OBJECTIVE_POWER],
                _ => &[],
            };
            properties.extend(same.iter().map(|name| (name.to_string(), value.to_owned())));
        }
    }
    metadata::describe_levels(&levels, &mut properties);
    for (index, directory) in pyramid.iter().enumerate().filter(|(_, directory)| directory.tiled) {
        properties.insert(format!("openslide.level[{index}].tile-width"), directory.chunk.width.to_string());
        properties.insert(format!("openslide.level[{index}].tile-height"), directory.chunk.height.to_string());
    }
    Info {
        vendor: vendor.to_owned(),
        levels,
        storage: pyramid.iter().map(storage).collect(),
        mpp: metadata::scale(&mut properties),
        magnification: metadata::magnification(&properties),
        properties,
        associated: associated.iter().map(|(name, _)| name.clone()).collect(),
    }
}

/// Tiles and strips can be halved while they are decoded if whole pixels come of it.
fn storage(directory: &Directory) -> Storage {
    let Directory { size, chunk, tiled, compression, .. } = *directory;
    let halves = |halvings: u8| {
        let whole = |side: u32| side.is_multiple_of(1 << halvings) && side >> halvings > 0;
        // The width of strips is the image's, its last pixel belongs to no other strip.
        whole(chunk.height) && (whole(chunk.width) || !tiled) && size.width.min(size.height) >> halvings > 0
    };
    let halvings = (1..=jpeg::MAX_HALVINGS).take_while(|&halvings| compression == JPEG && halves(halvings));
    Storage { tile: chunk, halvings: halvings.last().unwrap_or(0) }
}

struct TiffReader {
    id: ReaderId,
    path: PathBuf,
    file: File,
    /// The levels, then the associated images.
    images: Vec<Directory>,
    /// Of the associated images; `None` for levels.
    names: Vec<Option<String>>,
}

impl Drop for TiffReader {
    fn drop(&mut self) {
        tile_cache::shared().forget_reader(self.id);
    }
}

impl Reader for TiffReader {
    fn read(&self, area: Area) -> Result<RgbImage> {
        let Area { level, halvings, x, y, size } = area;
        let chunk = self.images[level].chunk.halved(halvings);
        let (right, bottom) = (x + size.width, y + size.height);
        // Appended line by line, so that no byte is written twice.
        let mut pixels = Vec::with_capacity(size.width as usize * size.height as usize * 3);
        for row in y / chunk.height..bottom.div_ceil(chunk.height) {
            let columns = x / chunk.width..right.div_ceil(chunk.width);
            let tiles = columns.clone().map(|column| self.tile(level, halvings, column, row));
            let tiles = tiles.collect::<Result<Vec<_>>>()?;
            let top = row * chunk.height;
            for line in y.max(top)..bottom.min(top.saturating_add(chunk.height)) {
                for (column, tile) in columns.clone().zip(&tiles) {
                    let left = column * chunk.width;
                    let (from, to) = (x.max(left), right.min(left.saturating_add(chunk.width)));
                    let run = (to - from) as usize * 3;
                    match tile {
                        Some(tile) => {
                            let start = pixel(line - top, from - left, chunk.width);
                            pixels.extend_from_slice(&tile[start..start + run]);
                        }
                        None => pixels.resize(pixels.len() + run, 255),
                    }
                }
            }
        }
        Ok(RgbImage::from_raw(size.width, size.height, pixels).expect("every line was appended"))
    }

    fn release(&self, level: usize, halvings: u8, column: u32, row: u32) {
        let index = row as usize * self.images[level].across() as usize + column as usize;
        tile_cache::shared().release(TileKey { reader: self.id, image: level, halvings, index });
    }

    fn stored_jpeg(&self, level: usize, column: u32, row: u32) -> Result<Option<Vec<u8>>> {
        let image = &self.images[level];
        let index = row as usize * image.across() as usize + column as usize;
        if image.compression != JPEG || !image.tiled || image.lengths[index] == 0 {
            return Ok(None);
        }
        let mut stream = Vec::new();
        let spliced = self.compressed(level, index).and_then(|bytes| splice(image, &bytes, &mut stream));
        spliced.map_err(|what| self.bad_tile(level, column, row, what))?;
        Ok(Some(stream))
    }

    fn read_associated(&self, name: &str) -> Result<RgbImage> {
        let level = self.names.iter().position(|known| known.as_deref() == Some(name));
        let level = level.ok_or_else(|| Error::Usage(format!("no associated image `{name}`")))?;
        check_decodable(&self.images[level])
            .map_err(|what| Error::unsupported(&self.path, format!("image `{name}`: {what}")))?;
        self.read(Area { level, halvings: 0, x: 0, y: 0, size: self.images[level].size })
    }
}

/// Index of the first byte of a pixel in an RGB image `width` pixels wide.
fn pixel(row: u32, column: u32, width: u32) -> usize {
    (row as usize * width as usize + column as usize) * 3
}

impl TiffReader {
    /// The decoded tile, `None` where none is stored.
    fn tile(&self, level: usize, halvings: u8, column: u32, row: u32) -> Result<Option<Tile>> {
        let image = &self.images[level];
        let index = row as usize * image.across() as usize + column as usize;
        if image.lengths[index] == 0 {
            return Ok(None);
        }
        // The last strip ends with the image; tiles are whole.
        let rows = if image.tiled {
            image.chunk.height
        } else {
            image.chunk.height.min(image.size.height - row * image.chunk.height)
        };
        let size = Size::new(image.chunk.width, rows);
        let decode = || {
            let bytes = self.compressed(level, index);
            let pixels = bytes.and_then(|bytes| decode_chunk(image, size, halvings, &bytes));
            pixels.map(Arc::new).map_err(|what| self.bad_tile(level, column, row, what))
        };
        let Size { width, height } = size.halved(halvings);
        let key = TileKey { reader: self.id, image: level, halvings, index };
        tile_cache::shared().get(key, width as usize * height as usize * 3, decode).map(Some)
    }
}

impl TiffReader {
    /// The stored bytes of a tile.
    fn compressed(&self, level: usize, index: usize) -> std::result::Result<Vec<u8>, String> {
        let image = &self.images[level];
        let mut bytes = vec![0; image.lengths[index].min(MAX_CHUNK_BYTES) as usize];
        self.file.read_exact_at(&mut bytes, image.offsets[index]).map_err(|e| e.to_string())?;
        Ok(bytes)
    }

    fn bad_tile(&self, level: usize, column: u32, row: u32, what: String) -> Error {
        let image = self.names[level].as_ref().map_or(format!("level {level}"), |name| format!("image `{name}`"));
        Error::bad(&self.path, format!("{image}, tile (column {column}, row {row}): {what}"))
    }
}

/// A JPEG tile with its tables, and the colour model that the directory states, in `stream`.
fn splice(image: &Directory, bytes: &[u8], stream: &mut Vec<u8>) -> std::result::Result<jpeg::Frame, String> {
    let color = if image.photometric == 2 { ColorModel::Rgb } else { ColorModel::YCbCr };
    stream.reserve(bytes.len() + image.jpeg_tables.len() + 16);
    jpeg::splice(&image.jpeg_tables, bytes, color, stream).map_err(|e| e.to_string())
}

/// The RGB pixels of one chunk of `size` pixels, halved `halvings` times.
fn decode_chunk(image: &Directory, size: Size, halvings: u8, bytes: &[u8]) -> std::result::Result<Vec<u8>, String> {
    if image.compression == JPEG {
        let mut stream = Vec::new();
        let frame = splice(image, bytes, &mut stream)?;
        if frame.width != size.width as usize || frame.height != size.height as usize {
            let (Size { width, height }, jpeg::Frame { width: w, height: h }) = (size, frame);
            return Err(format!("its JPEG has {w} x {h} px, the directory says {width} x {height}"));
        }
        let Size { width, height } = size.halved(halvings);
        let mut pixels = tile_cache::shared().buffer(width as usize * height as usize * 3);
        jpeg::decode_frame(&stream, frame, halvings, &mut pixels).map_err(|e| e.to_string())?;
        return Ok(pixels);
    }
    if matches!(image.compression, JPEG_2000_YCBCR | JPEG_2000_RGB) {
        return jpeg2000(bytes, size, image.compression == JPEG_2000_YCBCR);
    }
    let samples = decode_by_tiff(image, size, bytes).map_err(|e| e.to_string())?;
    Ok(match image.samples {
        1 => samples.into_iter().flat_map(|gray| [gray; 3]).collect(),
        _ => samples,
    })
}

/// The RGB pixels of a JPEG 2000 code stream, whose three components are RGB or, as the TIFF says and the stream does
/// not, YCbCr.
fn jpeg2000(stream: &[u8], size: Size, ycbcr: bool) -> std::result::Result<Vec<u8>, String> {
    use hayro_jpeg2000::{DecodeSettings, DecoderContext, Image};
    let settings = DecodeSettings { strict: true, ..DecodeSettings::default() };
    let image = Image::new(stream, &settings).map_err(|e| format!("its JPEG 2000 is damaged: {e}"))?;
    // Before any memory is spent on it.
    if image.width() != size.width || image.height() != size.height || image.color_space().num_channels() != 3 {
        let (w, h, channels) = (image.width(), image.height(), image.color_space().num_channels());
        let Size { width, height } = size;
        return Err(format!(
            "its JPEG 2000 has {w} x {h} px of {channels} components, the directory says {width} x {height} of 3"
        ));
    }
    let mut context = DecoderContext::default();
    let decoded = image.decode(&mut context).map_err(|e| format!("its JPEG 2000 is damaged: {e}"))?;
    let components = decoded.components();
    let whole = size.width as usize * size.height as usize;
    if components.len() != 3 || components.iter().any(|component| component.samples().len() != whole) {
        return Err("its JPEG 2000 components are not of one size".to_owned());
    }
    let mut pixels = decoded.data_u8();
    if ycbcr {
        for pixel in pixels.as_chunks_mut::<3>().0 {
            // ITU-R BT.601, full range (JFIF 1.02).
            let [y, blue, red] = pixel.map(f32::from);
            let (blue, red) = (blue - 128.0, red - 128.0);
            let rgb = [y + 1.402 * red, y - 0.344_136 * blue - 0.714_136 * red, y + 1.772 * blue];
            // The cast saturates.
            *pixel = rgb.map(|value| (value + 0.5) as u8);
        }
    }
    Ok(pixels)
}

/// Decodes a chunk as the only strip of a TIFF in memory: the crate `tiff` knows every compression and predictor, but
/// as a reader of files it holds a position, which threads could not share.
fn decode_by_tiff(image: &Directory, size: Size, bytes: &[u8]) -> TiffResult<Vec<u8>> {
    let mut file = Cursor::new(Vec::with_capacity(bytes.len() + 256));
    let mut encoder = TiffEncoder::new(&mut file)?;
    let mut directory = encoder.image_directory()?;
    let offset = directory.write_data(bytes)?;
    directory.write_tag(Tag::ImageWidth, size.width)?;
    directory.write_tag(Tag::ImageLength, size.height)?;
    directory.write_tag(Tag::RowsPerStrip, size.height)?;
    directory.write_tag(Tag::BitsPerSample, &image.bits[..])?;
    directory.write_tag(Tag::SamplesPerPixel, image.samples)?;
    directory.write_tag(Tag::Compression, image.compression)?;
    directory.write_tag(Tag::Predictor, image.predictor)?;
    directory.write_tag(Tag::PhotometricInterpretation, image.photometric)?;
    directory.write_tag(Tag::StripOffsets, u32::try_from(offset)?)?;
    directory.write_tag(Tag::StripByteCounts, u32::try_from(bytes.len())?)?;
    directory.finish()?;
    file.set_position(0);
    let mut samples = vec![0; size.width as usize * size.height as usize * usize::from(image.samples)];
    Decoder::new(file)?.read_chunk_bytes(0, &mut samples)?;
    Ok(samples)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reductions_have_the_aspect_of_level_0() {
        let base = Size::new(4729, 3558);
        for (w, h) in [(4729, 3558), (1182, 889), (295, 222), (1183, 890), (5, 4)] {
            assert!(is_reduction(Size::new(w, h), base), "{w} x {h}");
        }
        for (w, h) in [(9458, 7116), (387, 463), (1280, 431), (4729, 889)] {
            assert!(!is_reduction(Size::new(w, h), base), "{w} x {h}");
        }
    }
}
