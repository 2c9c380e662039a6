//! A whole-slide image: open it, ask its levels and its scale, read regions of it from any thread.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use image::{GenericImage, Rgb, RgbImage};

use crate::error::{Error, Result};
use crate::format::metadata::ANISOTROPY;
use crate::format::{self, Area, Format, Info, Reader, Storage};
use crate::geometry::{Level, Mpp, Region, Size};
use crate::patch::LEVEL_TOLERANCE;

/// How much finer than asked a halving must be. The inverse DCT halves with a filter of its own, and what the resampling
/// to follow does must outweigh it. With a margin of 2 the result differs from that of decoding whole and resampling by
/// at most 1 grey level on average and 10 in 99.9 % of the values, half as much as the choice between a bicubic and a
/// bilinear filter makes (measured on real tissue; the test
/// `halving_while_decoding_is_close_to_decoding_and_resampling` holds it to that).
pub(crate) const HALVING_MARGIN: f64 = 2.0;

/// An open whole-slide image. Reading takes `&self`, so one slide serves many threads.
///
/// It holds one file handle. Decoded tiles of the native reader are kept in a cache that all slides of the process share
/// (64 MiB for every core, at least 256 MiB and at most 2 GiB); those of a slide go when it is dropped.
pub struct Slide {
    path: PathBuf,
    format: &'static Format,
    info: Info,
    reader: Box<dyn Reader>,
    resolutions: Vec<Level>,
    /// Of every resolution: the level it is decoded from, and how often it is halved.
    sources: Vec<(usize, u8)>,
}

impl Slide {
    /// Largest region one [`read`](Self::read) gives, in pixels: 2^28, which is 805 MB of RGB.
    pub const MAX_REGION_PIXELS: u64 = 1 << 28;

    /// Opens a slide through [`crate::format::FORMATS`], the first format that recognises the file and can read it.
    ///
    /// # Errors
    /// A file that is missing, empty, damaged, or that no format can read; the message names every reason.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        Self::open_with(path.as_ref(), None)
    }

    /// Opens a slide with the format of that name only (`tiff`, `openslide`), to compare readers.
    ///
    /// # Errors
    /// As for [`open`](Self::open), and for a name that is not in [`crate::format::FORMATS`].
    pub fn open_as(path: impl AsRef<Path>, format: &str) -> Result<Self> {
        if format::FORMATS.iter().all(|known| known.name != format) {
            let known: Vec<_> = format::FORMATS.iter().map(|format| format.name).collect();
            return Err(Error::Usage(format!("no format `{format}` in this build; it has {}", known.join(", "))));
        }
        Self::open_with(path.as_ref(), Some(format))
    }

    fn open_with(path: &Path, only: Option<&str>) -> Result<Self> {
        let (format, opened) = format::open(path, only)?;
        let (resolutions, sources) = resolutions(&opened.info);
        Ok(Self { path: path.to_owned(), format, info: opened.info, reader: opened.reader, resolutions, sources })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Which reader serves the file, with its vendor: `tiff (aperio)`, `openslide (hamamatsu)`.
    pub fn format(&self) -> String {
        format!("{} ({})", self.format.name, self.info.vendor)
    }

    /// The pyramid, finest first; never empty.
    pub fn levels(&self) -> &[Level] {
        &self.info.levels
    }

    /// What the slide can be read at, finest first: its levels, and between them those that a decoder makes while it
    /// decodes a finer one, at a fraction of the cost of decoding it whole.
    pub(crate) fn resolutions(&self) -> &[Level] {
        &self.resolutions
    }

    /// The coarsest resolution that is fine enough for pixels of `downsample` level-0 pixels: a level at least as fine, or
    /// a halving at least [`HALVING_MARGIN`] times as fine.
    pub(crate) fn resolution_for(&self, downsample: f64) -> usize {
        self.coarsest(downsample, |storage| !storage.shifts)
    }

    /// The same for a picture of the whole slide, for which halvings that lie up to half a pixel off will do.
    pub(crate) fn resolution_for_overview(&self, downsample: f64) -> usize {
        self.coarsest(downsample, |_| true)
    }

    fn coarsest(&self, downsample: f64, halve: impl Fn(&Storage) -> bool) -> usize {
        let fine = |(resolution, (level, halvings)): (&Level, &(usize, u8))| {
            let margin = if *halvings > 0 { HALVING_MARGIN } else { 1.0 };
            (*halvings == 0 || halve(&self.info.storage[*level]))
                && resolution.downsample * margin <= downsample * (1.0 + LEVEL_TOLERANCE)
        };
        self.resolutions.iter().zip(&self.sources).rposition(fine).unwrap_or(0)
    }

    /// The next finer resolution that is made from another level, for what a damaged tile of this one hides.
    pub(crate) fn finer_level(&self, resolution: usize) -> Option<usize> {
        (0..resolution).rev().find(|&finer| self.sources[finer].0 != self.sources[resolution].0)
    }

    /// How far right of and below its place the picture lies in a resolution, in its pixels. A wavelet's coarse pixel n is the
    /// fine one 2n made smooth, not the mean of 2n and 2n + 1; so half the difference of a coarse and a fine pixel.
    pub(crate) fn shift(&self, resolution: usize) -> f64 {
        let (level, halvings) = self.sources[resolution];
        if self.info.storage[level].shifts { 0.5 - 0.5 / f64::from(1_u32 << halvings) } else { 0.0 }
    }

    /// Pixels of a resolution that are decoded at a time.
    pub(crate) fn tile(&self, resolution: usize) -> Size {
        let (level, halvings) = self.sources[resolution];
        self.info.storage[level].tile.halved(halvings)
    }

    /// Forgets a decoded tile that will not be read again soon.
    pub(crate) fn release(&self, resolution: usize, column: u32, row: u32) {
        let (level, halvings) = self.sources[resolution];
        self.reader.release(level, halvings, column, row);
    }

    /// The stored JPEG of a tile as a complete stream, where the resolution is a level and stored so.
    pub(crate) fn stored_jpeg(&self, resolution: usize, column: u32, row: u32) -> Result<Option<Vec<u8>>> {
        match self.sources[resolution] {
            (level, 0) => self.reader.stored_jpeg(level, column, row),
            _ => Ok(None),
        }
    }

    /// Whether a tile begins and ends as it should; see [`Reader::probe`].
    pub(crate) fn probe(&self, resolution: usize, column: u32, row: u32) -> Result<()> {
        self.reader.probe(self.sources[resolution].0, column, row)
    }

    /// Size of level 0.
    pub fn size(&self) -> Size {
        self.levels()[0].size
    }

    /// True µm/px of level 0 as the file states it; `None` where it does not.
    ///
    /// Where the scales along x and y differ, it is their geometric mean; if by more than 1 %,
    /// [`mpp_x_over_y`](Self::mpp_x_over_y) tells their ratio.
    pub fn mpp(&self) -> Option<Mpp> {
        self.info.mpp
    }

    /// µm/px along x over that along y, where they differ by more than 1 %: the pixels are not square.
    pub fn mpp_x_over_y(&self) -> Option<f64> {
        self.info.properties.get(ANISOTROPY)?.parse().ok()
    }

    /// Nominal magnification (20, 40) where the file states it.
    pub fn magnification(&self) -> Option<f64> {
        self.info.magnification
    }

    /// Vendor properties, named as OpenSlide names them where it has a name.
    pub fn properties(&self) -> &BTreeMap<String, String> {
        &self.info.properties
    }

    /// Reads a region as RGB. Parts outside the slide are white; transparent pixels are composited on white.
    ///
    /// The region begins at the level's pixel nearest to `origin`. Pixels are those stored: nothing is resampled, also
    /// where the origin falls between two pixels of the level (OpenSlide by itself would blur them).
    ///
    /// # Errors
    /// A tile that cannot be decoded is an error, never a blank area; so are an unknown level, an empty region and one
    /// above [`MAX_REGION_PIXELS`](Self::MAX_REGION_PIXELS).
    pub fn read(&self, region: &Region) -> Result<RgbImage> {
        let level = self.levels().get(region.level).ok_or_else(|| {
            let count = self.levels().len();
            Error::Usage(format!("{}: no level {}; it has {count}", self.path.display(), region.level))
        })?;
        let [x, y] = [region.origin.x, region.origin.y].map(|origin| nearest_pixel(origin, level.downsample));
        let resolution = self.sources.iter().position(|source| *source == (region.level, 0));
        self.read_at(resolution.expect("every level is a resolution"), x, y, region.size)
    }

    /// Reads pixels of a resolution, from its pixel (`x`, `y`); see [`read`](Self::read).
    pub(crate) fn read_at(&self, resolution: usize, x: i64, y: i64, size: Size) -> Result<RgbImage> {
        let Size { width, height } = size;
        let pixels = u64::from(width) * u64::from(height);
        if pixels == 0 {
            return Err(Error::Usage(format!("{}: a region of {width} x {height} px", self.path.display())));
        }
        if pixels > Self::MAX_REGION_PIXELS {
            let limit = Self::MAX_REGION_PIXELS;
            let what = format!("a region of {width} x {height} px; the limit is {limit} px");
            return Err(Error::limit(&self.path, what));
        }
        let ((level, halvings), extent) = (self.sources[resolution], self.resolutions[resolution].size);
        let (left, columns) = clip(x, width, extent.width);
        let (top, rows) = clip(y, height, extent.height);
        let inside = Size::new(columns.length, rows.length);
        let area = Area { level, halvings, x: columns.start, y: rows.start, size: inside };
        if inside == size {
            return self.reader.read(area);
        }
        let mut canvas = RgbImage::from_pixel(width, height, Rgb([255; 3]));
        if inside.width > 0 && inside.height > 0 {
            let part = self.reader.read(area)?;
            canvas.copy_from(&part, left, top).map_err(|error| Error::Usage(error.to_string()))?;
        }
        Ok(canvas)
    }

    /// Names of the associated images (`label`, `macro`, `thumbnail`).
    pub fn associated_names(&self) -> Vec<String> {
        self.info.associated.clone()
    }

    /// Reads an associated image by name.
    ///
    /// # Errors
    /// A name that is not among [`associated_names`](Self::associated_names), or an image that cannot be decoded.
    pub fn read_associated(&self, name: &str) -> Result<RgbImage> {
        if self.info.associated.iter().any(|known| known == name) {
            return self.reader.read_associated(name);
        }
        let known = self.info.associated.join(", ");
        Err(Error::Usage(format!("{}: no associated image `{name}`; it has: {known}", self.path.display())))
    }
}

impl std::fmt::Debug for Slide {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Slide({}, {})", self.path.display(), self.format())
    }
}

/// Part of one axis of a level.
#[derive(Debug, PartialEq)]
struct Span {
    start: u32,
    length: u32,
}

/// The pixel of a level that is nearest to a level-0 position; half a pixel goes to the higher one.
fn nearest_pixel(origin: i64, downsample: f64) -> i64 {
    // The cast saturates, which is far outside either way.
    (origin as f64 / downsample + 0.5).floor() as i64
}

/// Of `length` pixels from pixel `first` on, those on a level `extent` pixels long; and how many come before them.
fn clip(first: i64, length: u32, extent: u32) -> (u32, Span) {
    let last = first.saturating_add(length.into()).clamp(0, extent.into());
    let start = first.clamp(0, last);
    let before = start.saturating_sub(first).clamp(0, length.into());
    (before as u32, Span { start: start as u32, length: (last - start) as u32 })
}

/// The levels and their halvings, finest first; a halving no finer than the next level is left out.
fn resolutions(info: &Info) -> (Vec<Level>, Vec<(usize, u8)>) {
    let mut all = Vec::new();
    for (index, (level, storage)) in info.levels.iter().zip(&info.storage).enumerate() {
        let coarser = info.levels.iter().map(|other| other.downsample).filter(|other| *other > level.downsample);
        let next = coarser.fold(f64::INFINITY, f64::min);
        for halvings in 0..=storage.halvings {
            let size = Size::new(level.size.width >> halvings, level.size.height >> halvings);
            let downsample = level.downsample * f64::from(1 << halvings);
            if halvings == 0 || downsample < 0.99 * next {
                all.push((Level { size, downsample }, (index, halvings)));
            }
        }
    }
    all.sort_by(|a, b| a.0.downsample.total_cmp(&b.0.downsample));
    all.into_iter().unzip()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn regions_are_clipped_to_the_level() {
        let span = |start, length| Span { start, length };
        assert_eq!(clip(10, 5, 100), (0, span(10, 5)));
        assert_eq!(clip(-2, 5, 100), (2, span(0, 3)));
        assert_eq!(clip(98, 5, 100), (0, span(98, 2)));
        assert_eq!(clip(-10, 200, 100), (10, span(0, 100)));
        assert_eq!(clip(100, 5, 100).1.length, 0);
        assert_eq!(clip(-5, 5, 100).1.length, 0);
        assert_eq!(clip(i64::MAX, 5, 100).1.length, 0);
        assert_eq!(clip(i64::MIN, 5, 100).1.length, 0);
    }

    #[test]
    fn origins_go_to_the_nearest_level_pixel() {
        assert_eq!([7, 8, 9, 10].map(|origin| nearest_pixel(origin, 4.0)), [2, 2, 2, 3]);
        // PANDA's downsamples are not whole: the level-0 position of pixel k, rounded, must lead back to k.
        for downsample in [4.0005, 16.006] {
            for k in 0..5000_i64 {
                assert_eq!(nearest_pixel((k as f64 * downsample).round() as i64, downsample), k);
            }
        }
    }

    #[test]
    fn halvings_fill_the_gaps_between_levels() {
        let level = |side, downsample| Level { size: Size::square(side), downsample };
        let storage = |halvings| Storage { tile: Size::square(256), halvings, shifts: false };
        let info = Info {
            levels: vec![level(1001, 1.0), level(250, 4.004), level(62, 16.1)],
            storage: vec![storage(3), storage(1), storage(0)],
            ..Info::default()
        };
        let (levels, sources) = resolutions(&info);
        assert_eq!(sources, [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0)]);
        let found: Vec<_> = levels.iter().map(|level| (level.size.width, level.downsample)).collect();
        assert_eq!(found, [(1001, 1.0), (500, 2.0), (250, 4.004), (125, 8.008), (62, 16.1)]);
    }
}
