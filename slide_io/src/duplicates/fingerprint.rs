//! What is kept of a picture to find its copies: a few hundred bits and a small grey copy, per view.

use fast_image_resize::images::{TypedImage, TypedImageRef};
use fast_image_resize::pixels::U8;
use fast_image_resize::{FilterType, ResizeAlg, ResizeOptions, Resizer};
use image::RgbImage;

use super::hash::{self, Hash};
use super::orientation::Orientation;
use super::similarity::{self, Detail};
use crate::error::{Error, Result};
use crate::geometry::Mpp;
use crate::slide::Slide;
use crate::thumbnail::thumbnail;
use crate::tissue::{TissueMask, TissueParams};

/// Longer side of the copy of a slide that is looked at, px.
const THUMBNAIL_SIDE: u32 = 1024;

/// A usual scale for slides that state none: it only decides how fine the tissue mask is.
const USUAL_MPP: Mpp = Mpp(0.5);

/// Share of the tissue that may lie outside the frame on each side: a speck that one scan has and the other lacks must
/// not move the frame.
const CUT_OFF: f64 = 0.005;

/// Grey levels of detail under which a picture is too plain to be told from another: blank glass, a black tile.
const PLAIN: f32 = 1.0;

/// How much the aspects of two copies may differ, as a factor.
const ASPECT_TOLERANCE: f32 = 1.25;

/// How far from white or black the padding around an image may be, grey levels: what JPEG adds.
const PADDING: u8 = 8;

/// What copies of a picture have in common. About 4 KB a view.
#[derive(Clone, Debug)]
pub struct Fingerprint {
    pub(super) views: Vec<View>,
}

/// One way to frame a picture.
#[derive(Clone, Debug)]
pub(super) struct View {
    pub(super) hash: Hash,
    /// 64 x 64, row-major.
    grey: Vec<u8>,
    /// Logarithm of width over height.
    aspect: f32,
}

/// Part of a picture, px, borders fractional.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Frame {
    left: f64,
    top: f64,
    right: f64,
    bottom: f64,
}

/// Grey values, row-major.
struct Grey {
    width: u32,
    height: u32,
    values: Vec<u8>,
}

impl Fingerprint {
    /// Of a whole image; where it has white or black padding, also of what lies within. `None` where the image is too
    /// plain to be told from another.
    ///
    /// # Errors
    /// [`Error::Usage`] if the image cannot be resampled.
    pub fn of_image(image: &RgbImage) -> Result<Option<Self>> {
        let grey = Grey::new(image);
        let whole = Frame::whole(&grey);
        let frames = [Some(whole), Some(grey.without_padding()).filter(|frame| *frame != whole)];
        Self::of_frames(&grey, frames.into_iter().flatten())
    }

    /// Of the tissue on a slide: its bounding box, wherever it lies on the glass. The whole slide where no tissue is
    /// found (fluorescence). `None` for a slide too plain to be told from another (blank glass). `mpp` overrides the
    /// file's µm/px; where neither is known 0.5 is taken.
    ///
    /// # Errors
    /// Errors of reading the slide.
    pub fn of_slide(slide: &Slide, mpp: Option<Mpp>, tissue: &TissueParams) -> Result<Option<Self>> {
        let mask = TissueMask::compute(slide, mpp.or(slide.mpp()).unwrap_or(USUAL_MPP), tissue)?;
        let mut grey = Grey::new(&thumbnail(slide, THUMBNAIL_SIDE)?);
        let frame = match Frame::of_tissue(&mask, &grey) {
            Some(frame) => {
                grey.clear_background(&mask);
                frame
            }
            None => Frame::whole(&grey),
        };
        Self::of_frames(&grey, [frame])
    }

    fn of_frames(grey: &Grey, frames: impl IntoIterator<Item = Frame>) -> Result<Option<Self>> {
        let views = frames.into_iter().map(|frame| View::new(grey, frame)).collect::<Result<Vec<_>>>()?;
        let views: Vec<View> = views.into_iter().flatten().collect();
        Ok(if views.is_empty() { None } else { Some(Self { views }) })
    }
}

impl View {
    fn new(grey: &Grey, frame: Frame) -> Result<Option<Self>> {
        let small = grey.resized(frame, similarity::SIDE as u32)?;
        if Detail::new(&small).contrast() < PLAIN {
            return Ok(None);
        }
        let picture: Vec<f32> = grey.resized(frame, hash::PICTURE as u32)?.into_iter().map(f32::from).collect();
        let aspect = ((frame.right - frame.left) / (frame.bottom - frame.top)).ln() as f32;
        Ok(Some(Self { hash: Hash::new(&picture), grey: small, aspect }))
    }

    /// The picture without its local mean, brought into `orientation`.
    pub(super) fn detail(&self, orientation: Orientation) -> Detail {
        Detail::new(&orientation.apply(&self.grey, similarity::SIDE))
    }

    /// Whether the two frames have about the same shape once `other` is brought into `orientation`.
    pub(super) fn fits(&self, other: &Self, orientation: Orientation) -> bool {
        let aspect = if orientation.transposed { -other.aspect } else { other.aspect };
        (self.aspect - aspect).abs() <= ASPECT_TOLERANCE.ln()
    }
}

impl Frame {
    fn whole(grey: &Grey) -> Self {
        Self { left: 0.0, top: 0.0, right: f64::from(grey.width), bottom: f64::from(grey.height) }
    }

    /// The box that holds all tissue but [`CUT_OFF`] on each side, px of `grey`; `None` where there is no tissue.
    fn of_tissue(mask: &TissueMask, grey: &Grey) -> Option<Self> {
        let (width, height) = (mask.size().width as usize, mask.size().height as usize);
        let (mut columns, mut rows) = (vec![0u32; width], vec![0u32; height]);
        for (at, _) in mask.data().iter().enumerate().filter(|(_, tissue)| **tissue) {
            columns[at % width] += 1;
            rows[at / width] += 1;
        }
        let (left, right) = extent(&columns)?;
        let (top, bottom) = extent(&rows)?;
        let (x, y) = (f64::from(grey.width) / width as f64, f64::from(grey.height) / height as f64);
        let frame = Self { left: left * x, top: top * y, right: right * x, bottom: bottom * y };
        // Not even a pixel wide: nothing to be seen at this resolution.
        (frame.right - frame.left >= 1.0 && frame.bottom - frame.top >= 1.0).then_some(frame)
    }
}

/// Where the middle part of the counts begins and ends, [`CUT_OFF`] left out on each side; between two entries the
/// place is interpolated. `None` where all counts are 0.
fn extent(counts: &[u32]) -> Option<(f64, f64)> {
    let total: f64 = counts.iter().map(|&count| f64::from(count)).sum();
    let place = |counts: &mut dyn Iterator<Item = u32>| {
        let mut left = CUT_OFF * total;
        for (at, count) in counts.enumerate() {
            if f64::from(count) >= left && count > 0 {
                return Some(at as f64 + left / f64::from(count));
            }
            left -= f64::from(count);
        }
        None
    };
    let start = place(&mut counts.iter().copied())?;
    let end = place(&mut counts.iter().rev().copied())?;
    Some((start, counts.len() as f64 - end))
}

impl Grey {
    /// Luminance as Pillow's `convert("L")` rounds it.
    fn new(image: &RgbImage) -> Self {
        let luminance = |[r, g, b]: [u8; 3]| {
            ((u32::from(r) * 19_595 + u32::from(g) * 38_470 + u32::from(b) * 7_471 + 0x8000) >> 16) as u8
        };
        let values = image.pixels().map(|pixel| luminance(pixel.0)).collect();
        Self { width: image.width(), height: image.height(), values }
    }

    /// Paints everything that is not tissue with its own mean: dust, pen and tinted glass differ between scans.
    fn clear_background(&mut self, mask: &TissueMask) {
        let (width, height) = (u64::from(self.width), u64::from(self.height));
        let (columns, rows) = (u64::from(mask.size().width), u64::from(mask.size().height));
        let is_background = |at: usize| {
            let (x, y) = (at as u64 % width * columns / width, at as u64 / width * rows / height);
            !mask.data()[(y * columns + x) as usize]
        };
        let background: Vec<usize> = (0..self.values.len()).filter(|&at| is_background(at)).collect();
        let sum: u64 = background.iter().map(|&at| u64::from(self.values[at])).sum();
        let mean = sum.checked_div(background.len() as u64).unwrap_or(0) as u8;
        background.into_iter().for_each(|at| self.values[at] = mean);
    }

    /// What lies within white or black padding; at least half of each side is kept.
    fn without_padding(&self) -> Frame {
        let (width, height) = (self.width as usize, self.height as usize);
        let column = |x: usize| is_padding(self.values.iter().skip(x).step_by(width));
        let row = |y: usize| is_padding(self.values[y * width..(y + 1) * width].iter());
        let left = (0..width / 4).take_while(|&x| column(x)).count();
        let right = width - (0..width / 4).take_while(|&x| column(width - 1 - x)).count();
        let top = (0..height / 4).take_while(|&y| row(y)).count();
        let bottom = height - (0..height / 4).take_while(|&y| row(height - 1 - y)).count();
        Frame { left: left as f64, top: top as f64, right: right as f64, bottom: bottom as f64 }
    }

    /// The frame at `side` x `side`, as Pillow's Lanczos filter resizes it.
    fn resized(&self, frame: Frame, side: u32) -> Result<Vec<u8>> {
        let failed = |error: &dyn std::fmt::Display| Error::Usage(format!("cannot resample a picture: {error}"));
        let source: TypedImageRef<U8> =
            TypedImageRef::from_buffer(self.width, self.height, &self.values).map_err(|e| failed(&e))?;
        let mut resized = vec![0; (side * side) as usize];
        let mut target = TypedImage::from_buffer(side, side, &mut resized).map_err(|e| failed(&e))?;
        let options = ResizeOptions::new().resize_alg(ResizeAlg::Convolution(FilterType::Lanczos3)).crop(
            frame.left,
            frame.top,
            frame.right - frame.left,
            frame.bottom - frame.top,
        );
        Resizer::new().resize_typed(&source, &mut target, &options).map_err(|e| failed(&e))?;
        Ok(resized)
    }
}

/// Whether a row or column is all white or all black.
fn is_padding<'a>(values: impl Iterator<Item = &'a u8> + Clone) -> bool {
    values.clone().all(|&value| value <= PADDING) || values.clone().all(|&value| value >= 255 - PADDING)
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    #[test]
    fn the_extent_leaves_out_half_a_per_cent_on_each_side() {
        assert_eq!(extent(&[0, 0, 0]), None);
        assert_eq!(extent(&[]), None);
        // 1 of 200 is cut off on each side: all of the first entry, and a hundredth of the last.
        assert_eq!(extent(&[0, 1, 0, 99, 100, 0]), Some((2.0, 4.99)));
        let (start, end) = extent(&[100, 100]).unwrap();
        assert!((start - 0.01).abs() < 1e-9 && (end - 1.99).abs() < 1e-9, "{start} {end}");
    }

    #[test]
    fn padding_is_white_or_black_and_the_rest_stays() {
        let mut image = RgbImage::from_pixel(40, 20, image::Rgb([250; 3]));
        (5..33).for_each(|x| (2..20).for_each(|y| image.put_pixel(x, y, image::Rgb([x as u8 * 3, 90, 200]))));
        let frame = Grey::new(&image).without_padding();
        assert_eq!(frame, Frame { left: 5.0, top: 2.0, right: 33.0, bottom: 20.0 });
        let black = Grey::new(&RgbImage::new(40, 20)).without_padding();
        assert_eq!(black, Frame { left: 10.0, top: 5.0, right: 30.0, bottom: 15.0 });
    }

    #[test]
    fn plain_images_have_no_fingerprint() {
        let grain = RgbImage::from_fn(300, 200, |x, y| image::Rgb([240 + ((x * 7 + y * 13) % 3) as u8; 3]));
        assert!(Fingerprint::of_image(&grain).unwrap().is_none());
        assert!(Fingerprint::of_image(&RgbImage::new(0, 0)).unwrap().is_none());
    }

    /// `tests/golden/duplicates`: the small grey copy is Pillow's.
    #[test]
    fn the_grey_copy_is_pillows() {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/duplicates");
        let golden: Value = serde_json::from_slice(&std::fs::read(folder.join("cases.json")).unwrap()).unwrap();
        for case in golden["cases"].as_array().unwrap() {
            let name = case["picture"].as_str().unwrap();
            let image = crate::folder::read_image(&folder.join(format!("{name}.png"))).unwrap();
            let grey = Grey::new(&image);
            let found = grey.resized(Frame::whole(&grey), hash::PICTURE as u32).unwrap();
            let expected: Vec<u8> =
                case["grey"].as_array().unwrap().iter().map(|value| value.as_u64().unwrap() as u8).collect();
            assert_eq!(found.len(), expected.len());
            // 16-bit coefficients instead of Pillow's 22-bit ones, in two passes that both round. Where a picture is
            // enlarged the passes clip what they overshoot, and here columns come first, in Pillow rows: 18 at worst.
            let enlarged = image.width().min(image.height()) < hash::PICTURE as u32;
            let worst = found.iter().zip(&expected).map(|(a, b)| a.abs_diff(*b)).max().unwrap();
            assert!(worst <= if enlarged { 20 } else { 2 }, "{name}: {worst}");
            let hash = |grey: &[u8]| Hash::new(&grey.iter().map(|&value| f32::from(value)).collect::<Vec<_>>());
            let distance = hash(&found).distance(hash(&expected), Orientation::ALL[0]);
            assert!(distance <= 1, "{name}: {distance} bits differ");
        }
    }
}
