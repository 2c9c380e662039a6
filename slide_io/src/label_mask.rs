//! Label masks: an image of a slide whose red channel holds a class number for every pixel, as in PANDA.
//!
//! From it comes the share of each class in a patch ([`LabelMask::fractions`]), which makes labels for patches where
//! the slide's own label says too little. PANDA's Radboud masks hold 0 background, 1 stroma, 2 benign epithelium and 3,
//! 4, 5 for the Gleason patterns; Karolinska's 0 background, 1 benign and 2 cancer. In the flow it stands beside the
//! grid.
//!
//! Class numbers cannot be averaged, so level 0 of the mask is read and nothing is resampled: the shares are areas,
//! pixels cut by a patch's border counted in proportion.

use std::path::{Path, PathBuf};

use image::RgbImage;

use crate::error::{Error, Result};
use crate::geometry::{Mpp, Point, Size};
use crate::grid::GridSpec;
use crate::mask_file::{self, Kind};
use crate::slide::Slide;
use crate::walk::Walk;

/// PANDA's classes at Radboud: background, stroma, benign epithelium, Gleason 3, 4 and 5.
pub const RADBOUD: [u8; 6] = [0, 1, 2, 3, 4, 5];
/// PANDA's classes at Karolinska: background, benign, cancer.
pub const KAROLINSKA: [u8; 3] = [0, 1, 2];

/// Coarsest mask: one pixel for this many level-0 pixels along a side.
const MAX_FACTOR: u32 = 64;

/// An open label mask of one slide.
#[derive(Debug)]
pub struct LabelMask {
    mask: Slide,
    /// Level-0 pixels of the slide along a side of a mask pixel.
    factor: u32,
    labels: Vec<u8>,
}

impl LabelMask {
    /// Opens the mask of a slide of `slide` level-0 pixels, whose pixels are to be among `labels` (such as
    /// [`RADBOUD`]).
    ///
    /// The mask has the slide's size, or a whole fraction of it: each side divided by the same whole number up to 64,
    /// then rounded up or down. TIFFs of 8 bits that [`Slide`] reads without losses will do, and PNGs of 8 bits;
    /// values are those of the red channel, or of the only one.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for another size (both are named), a mask that is compressed with losses (JPEG),
    /// tiles that are not stored, and colours of a palette or samples of other than 8 bits instead of class numbers;
    /// [`Error::Usage`] if there are no labels or one is there twice; errors of opening the file.
    pub fn open(path: &Path, slide: Size, labels: &[u8]) -> Result<Self> {
        if labels.is_empty() || labels.iter().enumerate().any(|(place, label)| labels[..place].contains(label)) {
            return Err(Error::Usage(format!("{labels:?} are no labels of a mask: name each value once")));
        }
        let refused = |what: String| Err(Error::unsupported(path, format!("no label mask: {what}")));
        match Kind::of(path)? {
            Kind::Tiff { sparse: true, .. } => return refused("some of its tiles are not stored".to_owned()),
            Kind::Png { palette: true, .. } | Kind::Tiff { palette: true, .. } => {
                return refused("it holds colours of a palette, not class numbers".to_owned());
            }
            Kind::Png { depth, .. } | Kind::Tiff { depth, lossy: false, .. } if depth != 8 => {
                return refused(format!("it has {depth} bits a sample, where 8 are read as they are"));
            }
            // At quality 70 a flat area of 0 comes back as 1, which is another class: nothing in the file tells.
            Kind::Tiff { lossy: true, .. } | Kind::Jpeg => {
                let what = "it is compressed with losses (JPEG), which changes labels. Use a lossless copy";
                return refused(what.to_owned());
            }
            Kind::Tiff { .. } | Kind::Png { .. } | Kind::Other => {}
        }
        let mask = Slide::open(path)?;
        let own = mask.size();
        let factor = (1..=MAX_FACTOR).find(|&factor| is_fraction(own, slide, factor)).ok_or_else(|| {
            let (Size { width: w, height: h }, Size { width, height }) = (own, slide);
            let what = format!("it has {w} x {h} px, the slide {width} x {height}: a label mask has the slide's size");
            Error::unsupported(path, format!("{what}, or a whole fraction of it"))
        })?;
        Ok(Self { mask, factor, labels: labels.to_vec() })
    }

    /// The values that pixels may have, in the order of the shares.
    pub fn labels(&self) -> &[u8] {
        &self.labels
    }

    /// The share of each of [`labels`](Self::labels) in the square patch whose top left corner is the level-0 pixel
    /// `origin` and whose sides are `side` level-0 pixels, which need not be whole. Shares are of the part of the patch
    /// that lies on the mask and add up to 1.
    ///
    /// # Errors
    /// [`Error::Unsupported`] that names a value that is no label, with its place; [`Error::Usage`] for a
    /// patch that does not touch the mask; errors of reading the mask.
    pub fn fractions(&self, origin: Point, side: f64) -> Result<Vec<f32>> {
        let scale = f64::from(self.factor);
        let columns = Covered::new(origin.x as f64 / scale, side / scale, self.mask.size().width);
        let rows = Covered::new(origin.y as f64 / scale, side / scale, self.mask.size().height);
        let (Some(columns), Some(rows)) = (columns, rows) else {
            let what = format!("a patch of {side} px at ({}, {}) is not on the mask", origin.x, origin.y);
            return Err(Error::Usage(format!("{}: {what}", self.mask.path().display())));
        };
        let size = Size::new(columns.weights.len() as u32, rows.weights.len() as u32);
        let pixels = self.mask.read_at(0, columns.first.into(), rows.first.into(), size)?;
        let areas = areas(&pixels, &columns.weights, &rows.weights);
        if let Some(value) = (0..=255u8).find(|&value| areas[usize::from(value)] > 0.0 && !self.labels.contains(&value))
        {
            return Err(self.no_label(value, &pixels, &columns, &rows));
        }
        let whole: f64 = areas.iter().sum();
        Ok(self.labels.iter().map(|&label| (areas[usize::from(label)] / whole) as f32).collect())
    }

    /// The [`fractions`](Self::fractions) of many patches, in their order. They are read along a [`Walk`], so that each
    /// tile of the mask is decoded once.
    ///
    /// # Errors
    /// The first error of any patch.
    pub fn all_fractions(&self, origins: &[Point], side: f64) -> Result<Vec<Vec<f32>>> {
        let factor = i64::from(self.factor);
        let corners: Vec<_> =
            origins.iter().map(|o| Point::new(o.x.div_euclid(factor), o.y.div_euclid(factor))).collect();
        let pixels = (side / f64::from(self.factor)).ceil().max(1.0) as u32 + 1;
        // Level 0 of the mask as it is: a scale of its own for which the walk need not resample.
        let spec = GridSpec { mpp: Mpp(1.0), size: pixels, stride: pixels, min_tissue: 0.0 };
        let walk = Walk::new(&self.mask, Mpp(1.0), &spec, &corners);
        let mut all = vec![Vec::new(); origins.len()];
        for &index in walk.order() {
            all[index] = self.fractions(origins[index], side)?;
            walk.done(&self.mask, index);
        }
        Ok(all)
    }

    fn no_label(&self, value: u8, pixels: &RgbImage, columns: &Covered, rows: &Covered) -> Error {
        let found = pixels.enumerate_pixels().find(|(x, y, pixel)| {
            pixel.0[0] == value && columns.weights[*x as usize] > 0.0 && rows.weights[*y as usize] > 0.0
        });
        let (x, y) = found.map_or((0, 0), |(x, y, _)| (columns.first + x, rows.first + y));
        let labels: Vec<_> = self.labels.iter().map(u8::to_string).collect();
        let what = format!("its pixel ({x}, {y}) has the value {value}, which is none of {}", labels.join(", "));
        Error::unsupported(self.mask.path(), what)
    }
}

/// The label mask of slide `id` in `folder`: `<id>_mask.tiff` as PANDA names it, or `<id>.tiff`, with `.tif` and `.png`
/// for `.tiff`. `None` if there is none: 100 slides of PANDA have no mask.
///
/// # Errors
/// [`Error::Usage`] if there are several: which one is meant cannot be told.
pub fn for_slide(folder: &Path, id: &str) -> Result<Option<PathBuf>> {
    let names = ["_mask", ""].map(|mark| ["tiff", "tif", "png"].map(|extension| format!("{id}{mark}.{extension}")));
    mask_file::find(folder, names.into_iter().flatten())
}

/// Whether a mask of `own` pixels has one pixel for `factor` x `factor` pixels of the slide.
fn is_fraction(own: Size, slide: Size, factor: u32) -> bool {
    let fits = |own: u32, slide: u32| own > 0 && (own == slide / factor || own == slide.div_ceil(factor));
    fits(own.width, slide.width) && fits(own.height, slide.height)
}

/// Pixels along one axis under a patch.
struct Covered {
    first: u32,
    /// Of each pixel: how much of it the patch covers, 0 to 1.
    weights: Vec<f64>,
}

impl Covered {
    /// Under `start..start + length` on an axis of `limit` pixels; `None` if there are none.
    fn new(start: f64, length: f64, limit: u32) -> Option<Self> {
        let (from, to) = (start.max(0.0), (start + length).min(f64::from(limit)));
        if length.is_nan() || from >= to {
            return None;
        }
        let (first, end) = (from.floor() as u32, to.ceil() as u32);
        let weight = |pixel: u32| to.min(f64::from(pixel) + 1.0) - from.max(f64::from(pixel));
        Some(Self { first, weights: (first..end).map(weight).collect() })
    }
}

/// The area of each value of the red channel, in mask pixels.
fn areas(pixels: &RgbImage, columns: &[f64], rows: &[f64]) -> [f64; 256] {
    let mut areas = [0.0; 256];
    for (line, height) in pixels.rows().zip(rows) {
        let mut lengths = [0.0; 256];
        for (pixel, width) in line.zip(columns) {
            lengths[usize::from(pixel.0[0])] += width;
        }
        areas.iter_mut().zip(lengths).for_each(|(area, length)| *area += length * height);
    }
    areas
}

#[cfg(test)]
mod tests;
