//! Writing slides: true pyramids of JPEG tiles, as scanners and PANDA have them.
//!
//! The crate `tiff` writes the directories; its low-level encoder takes any bytes as a tile. Tiles are encoded by
//! libjpeg-turbo on all threads, one row of tiles at a time, and share the JPEG tables of their directory. The file
//! appears under its name only when it is complete.

use std::fs::File;
use std::io::{BufWriter, Seek, Write};
use std::path::Path;

use image::RgbImage;
use rayon::prelude::*;
use tiff::TiffError;
use tiff::encoder::{Rational, TiffEncoder, TiffKind, TiffKindBig, TiffKindStandard};
use tiff::tags::Tag;

use crate::atomic_file;
use crate::error::{Error, Result};
use crate::geometry::Mpp;
pub use crate::jpeg::ColorModel;
use crate::jpeg::{self, JpegError};

/// How a slide is written.
#[derive(Clone, Debug)]
pub struct PyramidSpec {
    /// Side of a tile in pixels, a multiple of 16 (as TIFF asks).
    pub tile: u32,
    /// JPEG quality, 1 to 100.
    pub quality: u8,
    /// Whole downsample factors of the levels, finest first; the first is 1.
    pub levels: Vec<u32>,
    /// Scale of level 0, written as resolution tags per centimetre.
    pub mpp: Option<Mpp>,
    /// Image description of level 0, ASCII. `Aperio Image Library v1\r\n...|MPP = 0.5` makes an SVS of the file.
    pub description: Option<String>,
    /// What the JPEG components are.
    pub color: ColorModel,
}

impl Default for PyramidSpec {
    /// PANDA's layout: tiles of 512 pixels, levels at 1, 4 and 16, JPEG 70 with halved chroma.
    fn default() -> Self {
        let (tile, quality, levels) = (512, 70, vec![1, 4, 16]);
        Self { tile, quality, levels, mpp: None, description: None, color: ColorModel::YCbCr }
    }
}

/// Writes `level0` and its reduced copies to `path`; an existing file is replaced once the new one is complete.
///
/// A reduced level has `floor(side / factor)` pixels, each the mean of its `factor` x `factor` pixels of level 0. It is
/// a classic TIFF, or a BigTIFF where the uncompressed levels together pass 4 GB. The same image and spec give the same
/// bytes.
///
/// # Errors
/// A spec that makes no sense ([`Error::Usage`]), and whatever the operating system reports.
pub fn write_pyramid(path: impl AsRef<Path>, level0: &RgbImage, spec: &PyramidSpec) -> Result<()> {
    let path = path.as_ref();
    check(spec, level0).map_err(Error::Usage)?;
    atomic_file::replace(path, |temporary| {
        write_file(temporary, level0, spec).map_err(|error| match error {
            WriteError::Tiff(TiffError::IoError(e)) => Error::io(path, e),
            WriteError::Tiff(e) => Error::Usage(format!("{}: cannot be written: {e}", path.display())),
            WriteError::Jpeg(e) => Error::Usage(format!("{}: a tile cannot be encoded: {e}", path.display())),
        })
    })
}

fn write_file(path: &Path, level0: &RgbImage, spec: &PyramidSpec) -> std::result::Result<(), WriteError> {
    let mut writer = BufWriter::with_capacity(1 << 20, File::create(path).map_err(TiffError::IoError)?);
    let bytes = |factor: &u32| u64::from(level0.width() / factor) * u64::from(level0.height() / factor) * 3;
    match spec.levels.iter().map(bytes).sum::<u64>() > u64::from(u32::MAX) {
        false => write_levels::<_, TiffKindStandard>(&mut writer, level0, spec)?,
        true => write_levels::<_, TiffKindBig>(&mut writer, level0, spec)?,
    }
    Ok(writer.flush().map_err(TiffError::IoError)?)
}

fn check(spec: &PyramidSpec, level0: &RgbImage) -> std::result::Result<(), String> {
    let PyramidSpec { tile, quality, levels, .. } = spec;
    let shortest = level0.width().min(level0.height());
    if *tile == 0 || tile % 16 != 0 || *tile > 4096 {
        return Err(format!("a tile of {tile} px; it must be a multiple of 16 up to 4096"));
    }
    if !(1..=100).contains(quality) {
        return Err(format!("JPEG quality {quality}; it must be 1 to 100"));
    }
    if levels.first() != Some(&1) || !levels.is_sorted_by(|a, b| a < b) {
        return Err(format!("levels {levels:?}; they must begin with 1 and grow"));
    }
    if levels.last().is_some_and(|last| *last > shortest) {
        return Err(format!("levels {levels:?} of an image with a side of {shortest} px"));
    }
    if spec.mpp.is_some_and(|mpp| !(1e-3..=10.0).contains(&mpp.0)) {
        return Err(format!("a scale of {:?} µm/px; it must be 0.001 to 10", spec.mpp));
    }
    Ok(())
}

#[derive(Debug, thiserror::Error)]
enum WriteError {
    #[error(transparent)]
    Tiff(#[from] TiffError),
    #[error(transparent)]
    Jpeg(#[from] JpegError),
}

fn write_levels<W: Write + Seek, K: TiffKind>(
    writer: W,
    level0: &RgbImage,
    spec: &PyramidSpec,
) -> std::result::Result<(), WriteError> {
    let mut encoder = TiffEncoder::<W, K>::new_generic(writer)?;
    for factor in &spec.levels {
        let reduced = (*factor > 1).then(|| reduce(level0, *factor));
        write_level(&mut encoder, reduced.as_ref().unwrap_or(level0), *factor, spec)?;
    }
    Ok(())
}

fn write_level<W: Write + Seek, K: TiffKind>(
    encoder: &mut TiffEncoder<W, K>,
    image: &RgbImage,
    factor: u32,
    spec: &PyramidSpec,
) -> std::result::Result<(), WriteError> {
    const JPEG: u16 = 7;
    const CENTIMETER: u16 = 3;
    let mut directory = encoder.image_directory()?;
    let (mut tables, mut offsets, mut lengths) = (Vec::new(), Vec::new(), Vec::new());
    for row in 0..image.height().div_ceil(spec.tile) {
        let columns = 0..image.width().div_ceil(spec.tile);
        let tiles = columns
            .into_par_iter()
            .map(|column| jpeg::split(&jpeg::encode(&cut(image, column, row, spec.tile), spec.quality, spec.color)?));
        for (its_tables, tile) in tiles.collect::<std::result::Result<Vec<_>, _>>()? {
            tables = its_tables;
            lengths.push(tile.len() as u64);
            offsets.push(directory.write_data(&tile[..])?);
        }
    }
    directory.write_tag(Tag::NewSubfileType, u32::from(factor > 1))?;
    directory.write_tag(Tag::ImageWidth, image.width())?;
    directory.write_tag(Tag::ImageLength, image.height())?;
    directory.write_tag(Tag::BitsPerSample, &[8_u16, 8, 8][..])?;
    directory.write_tag(Tag::Compression, JPEG)?;
    directory.write_tag(Tag::SamplesPerPixel, 3_u16)?;
    directory.write_tag(Tag::PlanarConfiguration, 1_u16)?;
    directory.write_tag(Tag::TileWidth, spec.tile)?;
    directory.write_tag(Tag::TileLength, spec.tile)?;
    directory.write_tag(Tag::JPEGTables, Undefined(&tables))?;
    match spec.color {
        ColorModel::Rgb => directory.write_tag(Tag::PhotometricInterpretation, 2_u16)?,
        ColorModel::YCbCr => {
            directory.write_tag(Tag::PhotometricInterpretation, 6_u16)?;
            directory.write_tag(Tag::ChromaSubsampling, &[2_u16, 2][..])?;
        }
    }
    if let Some(mpp) = spec.mpp {
        // Pixels per centimetre are 1e4 / µm: scales of up to five decimals come back exactly.
        let (n, d) = (4_000_000_000, (mpp.0 * f64::from(factor) * 4e5).round() as u32);
        for tag in [Tag::XResolution, Tag::YResolution] {
            directory.write_tag(tag, Rational { n, d })?;
        }
        directory.write_tag(Tag::ResolutionUnit, CENTIMETER)?;
    }
    if let Some(description) = spec.description.as_ref().filter(|_| factor == 1) {
        directory.write_tag(Tag::ImageDescription, description.as_str())?;
    }
    if offsets.last().copied().unwrap_or(0) > u64::from(u32::MAX) {
        directory.write_tag(Tag::TileOffsets, &offsets[..])?;
    } else {
        let offsets: Vec<u32> = offsets.iter().map(|offset| *offset as u32).collect();
        directory.write_tag(Tag::TileOffsets, &offsets[..])?;
    }
    let lengths: Vec<u32> = lengths.iter().map(|length| *length as u32).collect();
    directory.write_tag(Tag::TileByteCounts, &lengths[..])?;
    directory.finish()?;
    Ok(())
}

/// Bytes of no further type, as JPEG tables are.
struct Undefined<'a>(&'a [u8]);

impl tiff::encoder::TiffValue for Undefined<'_> {
    const BYTE_LEN: u8 = 1;
    const FIELD_TYPE: tiff::tags::Type = tiff::tags::Type::UNDEFINED;

    fn count(&self) -> usize {
        self.0.len()
    }

    fn data(&self) -> std::borrow::Cow<'_, [u8]> {
        self.0.into()
    }
}

/// One tile; beyond the image's edge its last pixels go on, which JPEG codes cheaply and without a halo.
fn cut(image: &RgbImage, column: u32, row: u32, side: u32) -> RgbImage {
    let (width, height) = image.dimensions();
    let (left, top) = (column * side, row * side);
    let inside = side.min(width - left) as usize;
    let mut pixels = Vec::with_capacity(side as usize * side as usize * 3);
    for y in 0..side {
        let start = ((top + y).min(height - 1) as usize * width as usize + left as usize) * 3;
        let line = &image.as_raw()[start..start + inside * 3];
        pixels.extend_from_slice(line);
        let last = &line[line.len() - 3..];
        pixels.extend(std::iter::repeat_n(last, side as usize - inside).flatten());
    }
    RgbImage::from_raw(side, side, pixels).expect("it was filled to its size above")
}

/// The image reduced by a whole factor: means of `factor` x `factor` pixels, rounded; what is left over is dropped.
fn reduce(image: &RgbImage, factor: u32) -> RgbImage {
    let (width, height) = (image.width() / factor, image.height() / factor);
    let mut reduced = RgbImage::new(width, height);
    let count = u64::from(factor) * u64::from(factor);
    let (stride, factor) = (image.width() as usize * 3, factor as usize);
    reduced.par_chunks_exact_mut(width as usize * 3).enumerate().for_each(|(row, line)| {
        let rows = image.as_raw()[row * factor * stride..].chunks_exact(stride).take(factor);
        let mut sums = vec![0_u64; line.len()];
        for source in rows {
            for (sum, block) in sums.chunks_exact_mut(3).zip(source.chunks_exact(3 * factor)) {
                for pixel in block.chunks_exact(3) {
                    sum.iter_mut().zip(pixel).for_each(|(sum, color)| *sum += u64::from(*color));
                }
            }
        }
        line.iter_mut().zip(sums).for_each(|(pixel, sum)| *pixel = ((sum + count / 2) / count) as u8);
    });
    reduced
}

#[cfg(test)]
mod tests {
    use image::Rgb;

    use super::*;
    use crate::geometry::{Point, Region};
    use crate::slide::Slide;

    #[test]
    fn reduced_pixels_are_means() {
        let image = RgbImage::from_fn(7, 5, |x, y| Rgb([x as u8, y as u8 * 10, 200]));
        let reduced = reduce(&image, 2);
        assert_eq!(reduced.dimensions(), (3, 2));
        assert_eq!(*reduced.get_pixel(0, 0), Rgb([1, 5, 200]), "0.5 is rounded up");
        assert_eq!(*reduced.get_pixel(2, 1), Rgb([5, 25, 200]));
    }

    #[test]
    fn tiles_continue_the_edge() {
        let image = RgbImage::from_fn(20, 18, |x, y| Rgb([x as u8, y as u8, 0]));
        let tile = cut(&image, 1, 1, 16);
        assert_eq!(tile.dimensions(), (16, 16));
        assert_eq!(*tile.get_pixel(0, 0), Rgb([16, 16, 0]));
        assert_eq!(*tile.get_pixel(15, 15), Rgb([19, 17, 0]));
    }

    #[test]
    fn big_tiff_holds_the_same_slide() {
        let image = RgbImage::from_fn(300, 200, |x, y| Rgb([(x * y) as u8, x as u8, y as u8]));
        let spec = PyramidSpec { tile: 64, levels: vec![1, 2], mpp: Some(Mpp(0.25)), ..PyramidSpec::default() };
        let folder = tempfile::tempdir().unwrap();
        let [classic, big] = ["classic.tiff", "big.tiff"].map(|name| folder.path().join(name));
        write_pyramid(&classic, &image, &spec).unwrap();
        write_levels::<_, TiffKindBig>(std::fs::File::create(&big).unwrap(), &image, &spec).unwrap();
        assert_eq!(std::fs::read(&big).unwrap()[2], 43, "the version that BigTIFF has");
        let expected = Slide::open(&classic).unwrap();
        for format in crate::format::FORMATS.iter().filter(|format| format.name != "image") {
            let slide = Slide::open_as(&big, format.name).unwrap();
            assert_eq!(slide.levels(), expected.levels());
            assert!((slide.mpp().unwrap().0 - 0.25).abs() < 1e-9);
            for level in 0..2 {
                let region = Region { level, origin: Point::new(0, 0), size: slide.levels()[level].size };
                assert!(slide.read(&region).unwrap() == expected.read(&region).unwrap(), "{} {level}", format.name);
            }
        }
    }

    #[test]
    fn senseless_specs_are_refused() {
        let image = RgbImage::new(100, 100);
        let spec = PyramidSpec::default;
        for bad in [
            PyramidSpec { tile: 100, ..spec() },
            PyramidSpec { quality: 0, ..spec() },
            PyramidSpec { levels: vec![], ..spec() },
            PyramidSpec { levels: vec![1, 4, 2], ..spec() },
            PyramidSpec { levels: vec![1, 128], ..spec() },
            PyramidSpec { mpp: Some(Mpp(0.0)), ..spec() },
        ] {
            assert!(matches!(write_pyramid("never.tiff", &image, &bad), Err(Error::Usage(_))), "{bad:?}");
        }
    }
}
