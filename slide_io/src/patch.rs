//! Patches: the one interface behind which slides, image folders and stored synthetic images look the same, and
//! patches read from slides at an exact µm/px.
//!
//! A patch is read from the coarsest level that is at least as fine as its scale and resampled once, with its true
//! fractional borders, by an antialiased bicubic filter: its pixel centres lie exactly where the scale puts them, whatever
//! the pyramid's factors are. Where a level has the scale already its pixels are copied unchanged.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use fast_image_resize::images::{TypedImage, TypedImageRef};
use fast_image_resize::pixels::U8x3;
use fast_image_resize::{FilterType, ResizeAlg, ResizeOptions, Resizer};
use image::RgbImage;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::geometry::{Level, Mpp, Point, Size};
use crate::grid::GridSpec;
use crate::slide::Slide;
use crate::walk::Walk;

/// Where a patch comes from: a slide and a position, or an image file.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PatchKey {
    /// The slide's id, or the image's path relative to its folder.
    pub item: String,
    /// Top left corner in level-0 pixels; `None` for an image file.
    pub origin: Option<Point>,
}

/// One patch with its label.
#[derive(Clone, Debug)]
pub struct Patch {
    /// Where it comes from.
    pub key: PatchKey,
    /// Its pixels.
    pub image: RgbImage,
    /// Class index, where known.
    pub label: Option<u32>,
}

/// A finite, indexed, thread-safe collection of patches.
pub trait PatchSource: Send + Sync {
    /// Number of patches.
    fn len(&self) -> usize;

    /// Whether there are none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Where patch `index` comes from, without reading it.
    fn key(&self, index: usize) -> PatchKey;

    /// Class of patch `index`, without reading it.
    fn label(&self, index: usize) -> Option<u32>;

    /// Names of the classes, by class index; empty where there are no labels.
    fn classes(&self) -> &[String];

    /// Where the patches of each slide end, one slide after the other; empty where there are no slides.
    fn slide_ends(&self) -> &[usize] {
        &[]
    }

    /// Whether reading few slides at a time is faster than any order: where slides must be opened.
    fn prefers_few_slides(&self) -> bool {
        !self.slide_ends().is_empty()
    }

    /// Reads and decodes patch `index`.
    fn read(&self, index: usize) -> Result<Patch>;
}

/// How much coarser than asked a level may be, relative. Pyramids are rarely exact (4.0005 for 4), and reading the next
/// finer level for that would cost sixteen times the pixels. The resampling uses the level's true scale all the same.
pub(crate) const LEVEL_TOLERANCE: f64 = 1e-3;

/// Ratios and offsets closer than this to a whole number are whole: a millionth is 0.0003 px over a patch of 256.
const EXACT: f64 = 1e-6;

/// Pixels on either side of an output pixel that the bicubic filter weighs, in output pixels.
const SUPPORT: f64 = 2.0;

/// Slides kept open at a time: enough that a batch mixes many, few enough for the default limit of 1024 file handles,
/// since some formats take a dozen each.
pub const OPEN_SLIDES: usize = 32;

/// Index of the coarsest level that is at least as fine as `downsample` level-0 pixels per pixel; level 0 if none is.
pub fn coarsest_level(levels: &[Level], downsample: f64) -> usize {
    let fine = |level: &&Level| level.downsample <= downsample * (1.0 + LEVEL_TOLERANCE);
    let coarsest = levels.iter().filter(fine).map(|level| level.downsample).fold(f64::NEG_INFINITY, f64::max);
    levels.iter().position(|level| level.downsample == coarsest).unwrap_or(0)
}

/// Reads the patch whose top left corner is the level-0 pixel `origin`, at exactly `spec.mpp` and `spec.size`, from a
/// slide whose level 0 has `native` µm/px. A slide coarser than `spec.mpp` is upsampled. Parts outside the slide are white.
///
/// # Errors
/// Errors of reading the slide, with the patch's position.
pub fn read_patch(slide: &Slide, native: Mpp, origin: Point, spec: &GridSpec) -> Result<RgbImage> {
    let resolution = slide.resolution_for(spec.ratio(native));
    let read = |x, y, size| slide.read_at(resolution, x, y, size);
    resampled(&slide.resolutions()[resolution], origin, spec.ratio(native), spec.size, read)
        .map_err(|error| at(error, origin))
}

/// A patch of `size` px, `ratio` level-0 pixels each, from one level. `read` gives a rectangle in the level's pixels.
fn resampled(
    level: &Level,
    origin: Point,
    ratio: f64,
    size: u32,
    read: impl Fn(i64, i64, Size) -> Result<RgbImage>,
) -> Result<RgbImage> {
    let Footprint { scale, corner, x, y, copied } = Footprint::new(level, origin, ratio, size);
    let image = read(x.start, y.start, Size::new(x.length, y.length))?;
    if copied {
        return Ok(image);
    }
    let covered = f64::from(size) * scale;
    let start = (corner.0 - x.start as f64, corner.1 - y.start as f64);
    let image = replicate(image, x.replicated, y.replicated);
    resample(&image, start, (covered, covered), Size::square(size), FilterType::CatmullRom)
}

/// The pixels of a level that one patch is made from.
pub(crate) struct Footprint {
    /// Level pixels per patch pixel.
    scale: f64,
    /// The patch's corner in level pixels.
    corner: (f64, f64),
    pub x: Span,
    pub y: Span,
    /// Whether the patch is these very pixels.
    copied: bool,
}

/// Pixels of a level along one axis.
pub(crate) struct Span {
    pub start: i64,
    pub length: u32,
    /// Times the last pixel is repeated after them.
    replicated: u32,
}

impl Footprint {
    /// Of a patch of `size` px, `ratio` level-0 pixels each, with its corner at the level-0 pixel `origin`.
    pub(crate) fn new(level: &Level, origin: Point, ratio: f64, size: u32) -> Self {
        let scale = whole(ratio / level.downsample);
        let corner = (whole(origin.x as f64 / level.downsample), whole(origin.y as f64 / level.downsample));
        let copied = scale == 1.0 && corner.0.fract() == 0.0 && corner.1.fract() == 0.0;
        let span = |corner: f64, limit: u32| match copied {
            true => Span { start: corner as i64, length: size, replicated: 0 },
            false => window(corner, f64::from(size) * scale, scale, limit),
        };
        Self { scale, corner, x: span(corner.0, level.size.width), y: span(corner.1, level.size.height), copied }
    }

    /// The first pixel of a patch that is the level's own pixels, unchanged.
    pub(crate) fn copied_from(&self) -> Option<(i64, i64)> {
        self.copied.then_some((self.x.start, self.y.start))
    }
}

/// The whole number `value` is meant to be, or `value`.
fn whole(value: f64) -> f64 {
    if (value - value.round()).abs() < EXACT { value.round() } else { value }
}

/// Pixels of a level to read along one axis for resampling.
///
/// The margin of the filter is cut at the slide's border, where the filter then weighs what there is, but never the patch
/// itself: what lies outside is read (as white). A level may be up to a pixel shorter than level 0 divided by its
/// downsample, which is a rounding and no outside: its last pixel is replicated.
fn window(corner: f64, covered: f64, scale: f64, limit: u32) -> Span {
    let margin = (SUPPORT * scale.max(1.0)).ceil() as i64 + 1;
    let (first, last, limit) = (corner.floor() as i64, (corner + covered).ceil() as i64, i64::from(limit));
    let start = (first - margin).max(first.min(0));
    let end = (last + margin).min(last.max(limit));
    let rounded = corner + covered <= limit as f64 + 1.0;
    let pad = if rounded { (end - limit).max(0) } else { 0 };
    Span { start, length: (end - pad - start).max(1) as u32, replicated: pad as u32 }
}

/// Repeats the last column `x` times and the last row `y` times.
fn replicate(image: RgbImage, x: u32, y: u32) -> RgbImage {
    if x == 0 && y == 0 {
        return image;
    }
    let (width, height) = image.dimensions();
    RgbImage::from_fn(width + x, height + y, |i, j| *image.get_pixel(i.min(width - 1), j.min(height - 1)))
}

/// Resamples the rectangle of `image` that starts at `corner` and covers `covered` pixels, both fractional, to `out`.
/// Pixels around the rectangle are used by the filter where there are any.
pub(crate) fn resample(
    image: &RgbImage,
    corner: (f64, f64),
    covered: (f64, f64),
    out: Size,
    filter: FilterType,
) -> Result<RgbImage> {
    let failed = |error: &dyn std::fmt::Display| Error::Usage(format!("cannot resample: {error}"));
    let source: TypedImageRef<U8x3> =
        TypedImageRef::from_buffer(image.width(), image.height(), image.as_raw()).map_err(|e| failed(&e))?;
    let mut resampled = RgbImage::new(out.width, out.height);
    let mut target = TypedImage::from_buffer(out.width, out.height, &mut resampled).map_err(|e| failed(&e))?;
    // Sums of borders may pass the image's by a rounding; the crop box must not.
    let corner = (corner.0.max(0.0), corner.1.max(0.0));
    let covered =
        (covered.0.min(f64::from(image.width()) - corner.0), covered.1.min(f64::from(image.height()) - corner.1));
    let options =
        ResizeOptions::new().resize_alg(ResizeAlg::Convolution(filter)).crop(corner.0, corner.1, covered.0, covered.1);
    Resizer::new().resize_typed(&source, &mut target, &options).map_err(|e| failed(&e))?;
    Ok(resampled)
}

/// Adds the patch's position to an error of reading it.
fn at(error: Error, origin: Point) -> Error {
    let place = format!("patch at level-0 ({}, {})", origin.x, origin.y);
    match error {
        Error::BadFile { path, what } => Error::BadFile { path, what: format!("{what} ({place})") },
        Error::Unsupported { path, what } => Error::Unsupported { path, what: format!("{what} ({place})") },
        Error::Limit { path, what } => Error::Limit { path, what: format!("{what} ({place})") },
        Error::Io { path, source } => {
            Error::Io { path, source: std::io::Error::new(source.kind(), format!("{source} ({place})")) }
        }
        Error::Usage(what) => Error::Usage(format!("{what} ({place})")),
        Error::NoScale { path } => Error::NoScale { path },
    }
}

/// The patches of one slide, from a [`Grid`](crate::grid::Grid) or a coordinates file.
#[derive(Clone, Debug, PartialEq)]
pub struct SlideGrid {
    /// The slide's id.
    pub id: String,
    /// Its file.
    pub path: PathBuf,
    /// µm/px of its level 0.
    pub mpp: Mpp,
    /// Class index, where known.
    pub label: Option<u32>,
    /// Scale and size of the patches.
    pub spec: GridSpec,
    /// Top left corners in level-0 pixels.
    pub origins: Vec<Point>,
}

/// The patches of a cohort of slides, read from the slides themselves: slide after slide, each in the order of its origins.
pub struct SlidePatches {
    slides: Vec<SlideGrid>,
    classes: Vec<String>,
    /// Number of patches up to and including each slide.
    ends: Vec<usize>,
    open: OpenSlides<Opened>,
}

impl SlidePatches {
    /// The patches of `slides`; `classes` names their labels.
    ///
    /// # Errors
    /// [`Error::Usage`] for a label without a class or a specification that makes no sense.
    pub fn new(slides: Vec<SlideGrid>, classes: Vec<String>) -> Result<Self> {
        for slide in &slides {
            slide.spec.check()?;
            if !(slide.mpp.0.is_finite() && slide.mpp.0 > 0.0) {
                return Err(Error::Usage(format!("slide {}: {} µm/px makes no sense", slide.id, slide.mpp.0)));
            }
            if slide.label.is_some_and(|label| label as usize >= classes.len()) {
                return Err(Error::Usage(format!("slide {}: its label has no class name", slide.id)));
            }
        }
        let ends = ends(slides.iter().map(|slide| slide.origins.len()));
        Ok(Self { slides, classes, ends, open: OpenSlides::new() })
    }

    /// The slides, in order.
    pub fn slides(&self) -> &[SlideGrid] {
        &self.slides
    }

    /// Indices of the patches of slide `slide`.
    pub fn range(&self, slide: usize) -> std::ops::Range<usize> {
        self.ends[slide] - self.slides[slide].origins.len()..self.ends[slide]
    }

    /// Index of the slide that patch `index` belongs to.
    pub fn slide_of(&self, index: usize) -> usize {
        self.ends.partition_point(|&end| end <= index)
    }

    /// The patches of slide `slide` in an order that decodes every tile once (see [`Walk`]). Tiles are forgotten when
    /// the last patch that needs them was read, in that order.
    ///
    /// # Errors
    /// Errors of opening the slide.
    pub fn reading_order(&self, slide: usize) -> Result<Vec<usize>> {
        let grid = &self.slides[slide];
        let open = self.open.get(slide, || Opened::open(&grid.path))?;
        let walk = open.walk.get_or_init(|| Walk::new(&open.slide, grid.mpp, &grid.spec, &grid.origins));
        let start = self.range(slide).start;
        Ok(walk.order().iter().map(|&index| start + index).collect())
    }

    fn locate(&self, index: usize) -> (usize, Point) {
        let slide = self.slide_of(index);
        (slide, self.slides[slide].origins[index - self.range(slide).start])
    }
}

impl PatchSource for SlidePatches {
    fn len(&self) -> usize {
        self.ends.last().copied().unwrap_or(0)
    }

    fn key(&self, index: usize) -> PatchKey {
        let (slide, origin) = self.locate(index);
        PatchKey { item: self.slides[slide].id.clone(), origin: Some(origin) }
    }

    fn label(&self, index: usize) -> Option<u32> {
        self.slides[self.slide_of(index)].label
    }

    fn classes(&self) -> &[String] {
        &self.classes
    }

    fn slide_ends(&self) -> &[usize] {
        &self.ends
    }

    fn read(&self, index: usize) -> Result<Patch> {
        let (slide, origin) = self.locate(index);
        let grid = &self.slides[slide];
        let open = self.open.get(slide, || Opened::open(&grid.path))?;
        let image = read_patch(&open.slide, grid.mpp, origin, &grid.spec)?;
        if let Some(walk) = open.walk.get() {
            walk.done(&open.slide, index - self.range(slide).start);
        }
        Ok(Patch { key: self.key(index), image, label: grid.label })
    }
}

/// Where slides of these numbers of patches end, one after the other.
pub(crate) fn ends(lengths: impl Iterator<Item = usize>) -> Vec<usize> {
    lengths
        .scan(0, |end, length| {
            *end += length;
            Some(*end)
        })
        .collect()
}

/// An open slide, and the walk over it once one has begun.
struct Opened {
    slide: Slide,
    walk: OnceLock<Walk>,
}

impl Opened {
    fn open(path: &Path) -> Result<Self> {
        Ok(Self { slide: Slide::open(path)?, walk: OnceLock::new() })
    }
}

/// Slides kept open, shared between threads; the one used longest ago is closed first.
pub(crate) struct OpenSlides<T> {
    slots: Mutex<VecDeque<(usize, Arc<Slot<T>>)>>,
}

/// A slide that is open, or about to be opened by whoever locks it first.
type Slot<T> = Mutex<Option<Arc<T>>>;

impl<T> OpenSlides<T> {
    pub(crate) fn new() -> Self {
        Self { slots: Mutex::default() }
    }

    /// Slide `index`, opened by `open` unless it is open. Threads that want the same slide wait for one opening; those
    /// that want another do not.
    pub(crate) fn get(&self, index: usize, open: impl FnOnce() -> Result<T>) -> Result<Arc<T>> {
        let slot = self.slot(index);
        let mut slide = slot.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(slide) = slide.as_ref() {
            return Ok(Arc::clone(slide));
        }
        let opened = Arc::new(open()?);
        *slide = Some(Arc::clone(&opened));
        Ok(opened)
    }

    fn slot(&self, index: usize) -> Arc<Slot<T>> {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        let slot = match slots.iter().position(|(i, _)| *i == index) {
            Some(place) => slots.remove(place).map(|(_, slot)| slot).unwrap_or_default(),
            None => Arc::default(),
        };
        slots.push_front((index, Arc::clone(&slot)));
        // Dropping the last reference closes the slide; a thread that still reads from it holds another.
        let closed = if slots.len() > OPEN_SLIDES { slots.pop_back() } else { None };
        drop(slots);
        drop(closed);
        slot
    }
}

/// Some patches of another source, in the order given: the training part of an image folder, a seeded sample.
pub struct Subset {
    source: Arc<dyn PatchSource>,
    indices: Vec<usize>,
    /// Of the slides that are left; empty where the order is not the source's.
    slide_ends: Vec<usize>,
}

impl Subset {
    /// The patches of `source` at `indices`.
    ///
    /// # Errors
    /// [`Error::Usage`] for an index beyond the end.
    pub fn new(source: Arc<dyn PatchSource>, indices: Vec<usize>) -> Result<Self> {
        let length = source.len();
        match indices.iter().find(|&&index| index >= length) {
            Some(index) => Err(Error::Usage(format!("there is no patch {index}: the source has {length}"))),
            None => {
                let in_order = indices.is_sorted();
                let ends = source.slide_ends().iter().filter(|_| in_order);
                let mut slide_ends: Vec<usize> = ends.map(|end| indices.partition_point(|index| index < end)).collect();
                slide_ends.dedup();
                slide_ends.retain(|&end| end > 0);
                Ok(Self { source, indices, slide_ends })
            }
        }
    }
}

impl PatchSource for Subset {
    fn len(&self) -> usize {
        self.indices.len()
    }

    fn key(&self, index: usize) -> PatchKey {
        self.source.key(self.indices[index])
    }

    fn label(&self, index: usize) -> Option<u32> {
        self.source.label(self.indices[index])
    }

    fn classes(&self) -> &[String] {
        self.source.classes()
    }

    fn slide_ends(&self) -> &[usize] {
        &self.slide_ends
    }

    fn prefers_few_slides(&self) -> bool {
        self.source.prefers_few_slides() && !self.slide_ends.is_empty()
    }

    fn read(&self, index: usize) -> Result<Patch> {
        self.source.read(self.indices[index])
    }
}

#[cfg(test)]
mod tests;
