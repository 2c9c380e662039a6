//! The native reader of TIFF and BigTIFF pyramids: generic tiled TIFF, OME-TIFF, Aperio SVS, flat images in strips.
//!
//! This file finds the pyramid and puts regions together from tiles; [`directory`](super::directory) reads what the file
//! says of itself, [`chunk`] decodes a tile. Bytes are read by position, so that threads share nothing but the cache of
//! decoded tiles. What it does not read (vendors with rules of their own, rare kinds of samples) is left to the next
//! format.
//!
//! Limits, each an error when passed: a tile of [`MAX_CHUNK_BYTES`], [`MAX_DIRECTORIES`](super::directory::MAX_DIRECTORIES)
//! directories, and every table and tile must lie inside the file. A tile of length zero is background: white
//! (in a reduced level of Aperio, whatever a finer level has there).

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use image::{GenericImage, Rgb, RgbImage, imageops};

use super::chunk::{self, JPEG, MAX_CHUNK_BYTES, PLANES_APART, check_decodable};
use super::directory::{Directory, read_directories};
use super::tile_cache::{self, ReaderId, Tile, TileKey};
use super::{Area, Head, Info, Opened, Reader, Storage, metadata};
use crate::error::{Error, Result};
use crate::geometry::{Level, Size};
use crate::jpeg;
use crate::slide::Slide;

/// Decoded tiles held at once for one region; what needs more is read in two halves.
const MAX_HELD_BYTES: u64 = 256 << 20;

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
    if let Some(channels) = directories.first().and_then(channels_apart) {
        let what = format!("its {channels} channels are images of their own, of one colour each: save it as RGB");
        return Err(Error::unsupported(path, what));
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
    let (id, fills_gaps) = (ReaderId::new(), is_aperio(base));
    let mut reader = TiffReader { id, path: path.to_owned(), file, length, names, images: pyramid, fills_gaps };
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

/// Of an OME-TIFF whose channels are stored as one grey image after the other: how many.
fn channels_apart(first: &Directory) -> Option<u32> {
    let size = first.text("tiff.ImageDescription").split("SizeC=\"").nth(1)?;
    let channels = size.split('"').next()?.parse().ok()?;
    (first.samples == 1 && channels > 1).then_some(channels)
}

fn is_aperio(first: &Directory) -> bool {
    first.text("tiff.ImageDescription").starts_with("Aperio")
}

/// Parts the directories into the pyramid, finest first, and the rest in file order (with their numbers).
///
/// Level 0 is the largest tiled image, or the first image of a file without tiles; the other levels are the tiled
/// images of its aspect that say they are reduced copies, by a flag or by being sub-directories. Aperio's have no flag: there
/// what is tiled is a level, label and macro are not. Masks are none.
fn pyramid(directories: Vec<Directory>) -> (Vec<Directory>, Vec<(usize, Directory)>) {
    let area = |directory: &Directory| u64::from(directory.size.width) * u64::from(directory.size.height);
    let tiled = |directory: &&Directory| directory.tiled && directory.subfile & MASK == 0;
    // The first of equals: max_by_key would take the last.
    let base = directories.iter().filter(tiled).rev().max_by_key(|directory| area(directory)).or(directories.first());
    let Some(base) = base.map(|base| base.size) else { return (Vec::new(), Vec::new()) };
    let any_tiled = directories.iter().any(|directory| tiled(&directory));
    let flagless = any_tiled && directories.first().is_some_and(is_aperio);
    let mut levels: Vec<Directory> = Vec::new();
    let mut others = Vec::new();
    for (number, directory) in directories.into_iter().enumerate() {
        let known = levels.iter().any(|level| level.size == directory.size);
        let level = directory.tiled == any_tiled && directory.subfile & MASK == 0 && is_reduction(directory.size, base);
        // Another image of the same aspect may be anything, a label too.
        let says_so = flagless || directory.nested || directory.subfile & REDUCED != 0;
        let is_base = directory.size == base && levels.is_empty();
        match level && !known && (is_base || says_so) {
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

/// Why the chunk tables do not fit the file.
fn check_inside(directory: &Directory, length: u64) -> std::result::Result<(), String> {
    /// Bytes of the shortest header.
    const HEADER: u64 = 8;
    for (offset, bytes) in directory.offsets.iter().zip(&directory.lengths) {
        if *bytes > 0 && *offset < HEADER {
            return Err(format!("a tile is said to begin at byte {offset}, which is in the file's header"));
        }
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

/// Aperio's other images: what their descriptions' second line calls them. The second of the file is the thumbnail, unless it
/// says that it is another.
fn aperio_associated(others: Vec<(usize, Directory)>) -> Vec<(String, Directory)> {
    let said = |directory: &Directory| {
        let description = directory.text("tiff.ImageDescription");
        description.lines().nth(1).and_then(|line| line.split_whitespace().next()).map(str::to_owned)
    };
    let name = |number: usize, directory: &Directory| match said(directory) {
        Some(word) if number > 1 || ["label", "macro"].contains(&word.as_str()) => Some(word),
        _ => (number == 1).then(|| "thumbnail".to_owned()),
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
    for (name, axis) in [(metadata::MPP_X, 'X'), (metadata::MPP_Y, 'Y')] {
        if let Some(mpp) = metadata::ome_scale(description, axis) {
            properties.insert(name.to_owned(), mpp.to_string());
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
    let wavelets = chunk::is_jpeg_2000(compression);
    let scales = compression == JPEG || wavelets;
    let halvings = (1..=jpeg::MAX_HALVINGS).take_while(|&halvings| scales && halves(halvings));
    Storage { tile: chunk, halvings: halvings.last().unwrap_or(0), shifts: wavelets }
}

struct TiffReader {
    id: ReaderId,
    path: PathBuf,
    file: File,
    /// Of the file when it was opened, bytes.
    length: u64,
    /// The levels, then the associated images.
    images: Vec<Directory>,
    /// Of the associated images; `None` for levels.
    names: Vec<Option<String>>,
    /// Whether tiles that a reduced level does not store are made from a finer one, as for Aperio's files.
    fills_gaps: bool,
}

impl Drop for TiffReader {
    fn drop(&mut self) {
        tile_cache::shared().forget_reader(self.id);
    }
}

impl Reader for TiffReader {
    fn read(&self, area: Area) -> Result<RgbImage> {
        self.compose(area, self.fills_gaps)
    }

    fn release(&self, level: usize, halvings: u8, column: u32, row: u32) {
        let index = row as usize * self.images[level].across() as usize + column as usize;
        tile_cache::shared().release(TileKey { reader: self.id, image: level, halvings, index });
    }

    fn stored_jpeg(&self, level: usize, column: u32, row: u32) -> Result<Option<Vec<u8>>> {
        let image = &self.images[level];
        let index = row as usize * image.across() as usize + column as usize;
        let whole = image.tiled && image.planar != PLANES_APART;
        if image.compression != JPEG || !whole || image.lengths[index] == 0 {
            return Ok(None);
        }
        let named = |what: String| self.bad_tile(level, column, row, &what);
        let bytes = self.stored(image.offsets[index], image.lengths[index])?.map_err(named)?;
        chunk::complete_jpeg(image, &bytes).map(Some).map_err(named)
    }

    fn probe(&self, level: usize, column: u32, row: u32) -> Result<()> {
        let image = &self.images[level];
        let index = row as usize * image.across() as usize + column as usize;
        let planes = if image.planar == PLANES_APART { usize::from(image.samples) } else { 1 };
        let stored = (0..planes).map(|plane| index + plane * (image.lengths.len() / planes));
        let suspect = |index: usize| {
            let (offset, length) = (image.offsets[index], image.lengths[index]);
            let ends = [offset, offset + length.saturating_sub(chunk::PROBE as u64)].map(|at| {
                let mut bytes = [0; chunk::PROBE];
                self.file.read_exact_at(&mut bytes, at).map(|()| bytes)
            });
            match ends {
                [Ok(first), Ok(last)] => length > chunk::PROBE as u64 && chunk::is_suspect(image, &first, &last),
                _ => true,
            }
        };
        if stored.filter(|index| image.lengths[*index] > 0).any(suspect) {
            self.tile(level, 0, column, row, false)?;
        }
        Ok(())
    }

    fn read_associated(&self, name: &str) -> Result<RgbImage> {
        let level = self.names.iter().position(|known| known.as_deref() == Some(name));
        let level = level.ok_or_else(|| Error::Usage(format!("no associated image `{name}`")))?;
        let image = &self.images[level];
        check_decodable(image).map_err(|what| Error::unsupported(&self.path, format!("image `{name}`: {what}")))?;
        let Size { width, height } = image.size;
        if u64::from(width) * u64::from(height) > Slide::MAX_REGION_PIXELS {
            let limit = Slide::MAX_REGION_PIXELS;
            return Err(Error::limit(
                &self.path,
                format!("image `{name}` of {width} x {height} px; the limit is {limit} px"),
            ));
        }
        self.read(Area { level, halvings: 0, x: 0, y: 0, size: image.size })
    }
}

/// Index of the first byte of a pixel in an RGB image `width` pixels wide.
fn pixel(row: u32, column: u32, width: u32) -> usize {
    (row as usize * width as usize + column as usize) * 3
}

impl TiffReader {
    /// The pixels of an area; with `fill`, tiles that are not stored are made from a finer level where there is one.
    fn compose(&self, area: Area, fill: bool) -> Result<RgbImage> {
        let Area { level, halvings, x, y, size } = area;
        let chunk = self.images[level].chunk.halved(halvings);
        let (right, bottom) = (x + size.width, y + size.height);
        let across = right.div_ceil(chunk.width) - x / chunk.width;
        let held = u64::from(across) * u64::from(chunk.width) * u64::from(chunk.height) * 3;
        if held > MAX_HELD_BYTES && across > 1 {
            return self.compose_halves(area, fill, (x / chunk.width + across / 2) * chunk.width - x);
        }
        // Appended line by line, so that no byte is written twice.
        let mut pixels = Vec::with_capacity(size.width as usize * size.height as usize * 3);
        for row in y / chunk.height..bottom.div_ceil(chunk.height) {
            let columns = x / chunk.width..right.div_ceil(chunk.width);
            let tiles = columns.clone().map(|column| self.tile(level, halvings, column, row, fill));
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

    /// The two parts of an area `left` pixels from its left edge, one after the other.
    fn compose_halves(&self, area: Area, fill: bool, left: u32) -> Result<RgbImage> {
        let Size { width, height } = area.size;
        let mut whole = RgbImage::new(width, height);
        for (from, to) in [(0, left), (left, width)] {
            let part = self.compose(Area { x: area.x + from, size: Size::new(to - from, height), ..area }, fill)?;
            whole.copy_from(&part, from, 0).expect("the parts fill the whole");
        }
        Ok(whole)
    }

    /// The decoded tile, `None` where it is background.
    fn tile(&self, level: usize, halvings: u8, column: u32, row: u32, fill: bool) -> Result<Option<Tile>> {
        let image = &self.images[level];
        let index = row as usize * image.across() as usize + column as usize;
        // Where planes are stored apart, all chunks of one come before those of the next.
        let planes = if image.planar == PLANES_APART { usize::from(image.samples) } else { 1 };
        let stored = (0..planes).map(|plane| index + plane * (image.lengths.len() / planes));
        let key = TileKey { reader: self.id, image: level, halvings, index };
        if stored.clone().all(|index| image.lengths[index] == 0) {
            return if fill { self.tile_from_finer(key, column, row) } else { Ok(None) };
        }
        // The last strip ends with the image; tiles are whole.
        let rows = if image.tiled {
            image.chunk.height
        } else {
            image.chunk.height.min(image.size.height - row * image.chunk.height)
        };
        let size = Size::new(image.chunk.width, rows);
        let decode = || {
            let named = |what: String| self.bad_tile(level, column, row, &what);
            let read = |index| self.stored(image.offsets[index], image.lengths[index]);
            let planes = stored.clone().map(read).collect::<Result<Vec<_>>>()?;
            let planes = planes.into_iter().collect::<std::result::Result<Vec<_>, _>>().map_err(named)?;
            Ok(Arc::new(chunk::decode(image, size, halvings, &planes).map_err(named)?))
        };
        let Size { width, height } = size.halved(halvings);
        tile_cache::shared().get(key, width as usize * height as usize * 3, decode).map(Some)
    }

    /// A tile that is not stored, reduced from the same place of the nearest finer level that has anything there: Aperio's
    /// encoder left out single tiles of reduced levels, and OpenSlide mends them so. `None` where no level has anything.
    fn tile_from_finer(&self, key: TileKey, column: u32, row: u32) -> Result<Option<Tile>> {
        if self.names[key.image].is_some() {
            return Ok(None);
        }
        let image = &self.images[key.image];
        let chunk = image.chunk;
        let (x, y) = (column * chunk.width, row * chunk.height);
        let inside = Size::new(chunk.width.min(image.size.width - x), chunk.height.min(image.size.height - y));
        let sources = (0..key.image).rev().map(|level| self.enlarged(key.image, level, x, y, inside));
        let Some(source) = sources.into_iter().find(|area| self.holds_anything(*area)) else { return Ok(None) };
        let Size { width, height } = source.size;
        if u64::from(width) * u64::from(height) * 3 > MAX_HELD_BYTES {
            let what = format!("level {}, tile (column {column}, row {row})", key.image);
            return Err(Error::limit(&self.path, format!("{what}: it is not stored, and too large to be made anew")));
        }
        let make = || {
            let (whole, part) = (chunk.halved(key.halvings), inside.halved(key.halvings));
            let reduced = imageops::thumbnail(&self.compose(source, false)?, part.width, part.height);
            let mut tile = RgbImage::from_pixel(whole.width, whole.height, Rgb([255; 3]));
            tile.copy_from(&reduced, 0, 0).expect("the part is no larger than the whole");
            Ok(Arc::new(tile.into_raw()))
        };
        let Size { width, height } = chunk.halved(key.halvings);
        tile_cache::shared().get(key, width as usize * height as usize * 3, make).map(Some)
    }

    /// The area of a finer level that covers `size` pixels of level `coarse` at (`x`, `y`).
    fn enlarged(&self, coarse: usize, level: usize, x: u32, y: u32, size: Size) -> Area {
        let (from, to) = (self.images[coarse].size, self.images[level].size);
        let span = |start: u32, length: u32, from: u32, to: u32| {
            let scale = |position: u32| u64::from(position) * u64::from(to);
            let first = scale(start) / u64::from(from);
            let last = scale(start + length).div_ceil(u64::from(from));
            (first as u32, (last - first) as u32)
        };
        let (x, width) = span(x, size.width, from.width, to.width);
        let (y, height) = span(y, size.height, from.height, to.height);
        Area { level, halvings: 0, x, y, size: Size::new(width, height) }
    }

    /// Whether any tile of an area is stored.
    fn holds_anything(&self, area: Area) -> bool {
        let image = &self.images[area.level];
        let tiles = |start: u32, length: u32, side: u32| start / side..(start + length).div_ceil(side);
        let mut rows = tiles(area.y, area.size.height, image.chunk.height);
        rows.any(|row| {
            let mut columns = tiles(area.x, area.size.width, image.chunk.width);
            columns.any(|column| image.lengths[row as usize * image.across() as usize + column as usize] > 0)
        })
    }

    fn bad_tile(&self, level: usize, column: u32, row: u32, what: &str) -> Error {
        let image = self.names[level].as_ref().map_or(format!("level {level}"), |name| format!("image `{name}`"));
        Error::bad(&self.path, format!("{image}, tile (column {column}, row {row}): {what}"))
    }

    /// The bytes of one chunk, or what is wrong with the file where there are none. The outer error is the disk's, which may
    /// answer another time.
    fn stored(&self, offset: u64, length: u64) -> Result<std::result::Result<Vec<u8>, String>> {
        // Also of associated images, whose tables are not checked when the file is opened.
        if length == 0 || length > MAX_CHUNK_BYTES || offset.saturating_add(length) > self.length {
            return Ok(Err(format!("{length} bytes at byte {offset} are not in the file, or none, or too many")));
        }
        let mut bytes = vec![0; length as usize];
        match self.file.read_exact_at(&mut bytes, offset) {
            Ok(()) => Ok(Ok(bytes)),
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => {
                Ok(Err("the file has become shorter since it was opened".into()))
            }
            Err(error) => Err(Error::io(&self.path, error)),
        }
    }
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
