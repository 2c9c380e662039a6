//! Where the tissue is, at low resolution.
//!
//! The mask is a threshold on one measure of a low-resolution copy of the slide (8 µm/px): a median against speckle,
//! Otsu's threshold kept between a floor and a ceiling, then holes filled and specks removed by their area in mm². The
//! measure is a choice ([`TissueMethod`]): saturation, since stained tissue is coloured and glass is not; optical density,
//! which sees faint grey tissue as well; or local entropy, which sees the texture of fat. The same rules serve H&E and
//! DAB. A slide with a dark background (fluorescence) has no tissue by them; [`TissueMask::empty_reason`] says so.

mod density;
pub(crate) mod filter;

use std::fmt;
use std::ops::Deref;

use image::RgbImage;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::geometry::{Mpp, Size};
use crate::mask::Mask;
use crate::slide::Slide;
use crate::thumbnail::read_mended;

pub(crate) use density::densities;

/// Longest side of a mask, px: 33 mm at 8 µm/px, beyond which the mask gets coarser instead of larger. Bounds memory.
const MAX_SIDE: f64 = 4096.0;

/// Luminance (Rec. 601) below which a pixel is padding or a fold and never tissue.
const DARK: u8 = 50;

/// Half the side of the window of the entropy, px of the mask: 9 x 9 px are 72 µm, a fat cell.
const ENTROPY_RADIUS: usize = 4;

/// White that a scanner filled up with has at least this in every channel, once it went through JPEG.
const PADDING: u8 = 250;

/// Glass may be darker than the slide's by this, grey values.
const LIGHT_VARIES: u8 = 12;

/// Steps of the stored measures: an optical density of 2.55 and an entropy of 5 bits (32 grey levels) are 255.
const STEPS_PER_OD: f64 = 100.0;
const STEPS_PER_BIT: f64 = 51.0;

/// What tells tissue from glass.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TissueMethod {
    /// Saturation of HSV: colour. The first choice for H&E and DAB.
    #[default]
    Saturation,
    /// Mean optical density of the three channels against the slide's own glass: also finds what is faint or grey. Dust and
    /// the edges of the cover slip come with it.
    OpticalDensity,
    /// Shannon entropy of the grey levels (steps of 8 around the median) in a window of 9 x 9 px: texture, whatever its colour.
    /// Finds fat, whose cells are empty.
    Entropy,
}

/// Rules of the tissue mask.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TissueParams {
    /// What tells tissue from glass.
    pub method: TissueMethod,
    /// Scale at which the mask is computed, µm/px.
    pub mpp: f64,
    /// Side of the median filter, px of the mask, odd; 1 turns it off.
    pub smooth: u32,
    /// Smallest threshold on the saturation, 0 to 255.
    pub min_saturation: u8,
    /// Largest threshold on the saturation, 0 to 255. Equal to `min_saturation` for a fixed threshold.
    pub max_saturation: u8,
    /// Smallest threshold on the optical density, 0 to 2.55.
    pub min_optical_density: f64,
    /// Largest threshold on the optical density.
    pub max_optical_density: f64,
    /// Smallest threshold on the entropy, 0 to 5 bits.
    pub min_entropy: f64,
    /// Largest threshold on the entropy.
    pub max_entropy: f64,
    /// Green may exceed red by this much; more is pen ink and no tissue, as is red that no stain gives. 255 turns both rules
    /// off.
    pub max_green_over_red: u8,
    /// Holes up to this area are filled, mm²; 0 fills none.
    pub max_hole_mm2: f64,
    /// Pieces smaller than this area are removed, mm²; 0 removes none.
    pub min_piece_mm2: f64,
    /// Width by which the tissue is widened at the end, µm; 0 leaves it.
    pub dilate_um: f64,
}

impl Default for TissueParams {
    fn default() -> Self {
        Self {
            method: TissueMethod::Saturation,
            // A 256 px patch at 0.5 µm/px is 16 x 16 pixels of this mask: fine enough for a share of tissue, small
            // enough that a whole slide takes a second. CLAM works at 8 to 16 µm/px, TRIDENT's Otsu at 8.
            mpp: 8.0,
            // 40 µm: removes JPEG speckle and dust, keeps a strand of stroma. (CLAM: 7 at a coarser level.)
            smooth: 5,
            // Glass, even tinted, stays under 12 after the median; without a floor Otsu would split a blank slide's noise.
            min_saturation: 12,
            // Where dark nuclei dominate, Otsu lands at 50 to 80 and loses pale stroma and fat, which start near 32.
            max_saturation: 32,
            // Glass varies by up to 0.02 around itself, pale stroma has 0.04 and more.
            min_optical_density: 0.035,
            max_optical_density: 0.12,
            // Three of the 81 pixels 5 grey values darker than the glass give 0.23 bits, more than glass has. Strands of fat have
            // 0.2 to 1.5, other tissue 2 to 4: Otsu's threshold lies between these two, so it is not asked.
            min_entropy: 0.2,
            max_entropy: 0.2,
            // Eosin, haematoxylin and DAB all leave more red than green; blue, green and black ink do not.
            max_green_over_red: 25,
            // Lumina and tears belong to the tissue around them; larger holes are glass.
            max_hole_mm2: 0.05,
            // Smaller than a patch (0.016 mm² at 256 px and 0.5 µm/px), so no biopsy fragment is lost; dust is.
            min_piece_mm2: 0.01,
            dilate_um: 0.0,
        }
    }
}

impl TissueParams {
    /// Checks the values on their own.
    ///
    /// # Errors
    /// [`Error::Usage`] naming the value that makes no sense.
    pub fn check(&self) -> Result<()> {
        let wrong = |what: String| Err(Error::Usage(what));
        if !(self.mpp.is_finite() && self.mpp > 0.0) {
            return wrong(format!("tissue.mpp is {}: give the µm/px of the mask, for example 8", self.mpp));
        }
        if self.smooth.is_multiple_of(2) || self.smooth > 51 {
            return wrong(format!("tissue.smooth is {}: the side of the median is odd, 1 to 51", self.smooth));
        }
        for (name, min, max, most) in [
            ("saturation", f64::from(self.min_saturation), f64::from(self.max_saturation), 255.0),
            ("optical_density", self.min_optical_density, self.max_optical_density, 255.0 / STEPS_PER_OD),
            ("entropy", self.min_entropy, self.max_entropy, 255.0 / STEPS_PER_BIT),
        ] {
            if !(min >= 0.0 && max <= most) {
                return wrong(format!("tissue.min_{name} and max_{name} are {min} and {max}: they lie in 0 to {most}"));
            }
            if min > max {
                return wrong(format!("tissue.min_{name} is {min}, above tissue.max_{name}, {max}"));
            }
        }
        for (name, value) in
            [("max_hole_mm2", self.max_hole_mm2), ("min_piece_mm2", self.min_piece_mm2), ("dilate_um", self.dilate_um)]
        {
            if !(value.is_finite() && value >= 0.0) {
                return wrong(format!("tissue.{name} is {value}: it is 0 or more"));
            }
        }
        Ok(())
    }

    /// Smallest and largest threshold on the chosen measure, in its stored steps.
    fn thresholds(&self) -> (u8, u8) {
        let steps = |value: f64, per: f64| (value * per).round() as u8;
        match self.method {
            TissueMethod::Saturation => (self.min_saturation, self.max_saturation),
            TissueMethod::OpticalDensity => {
                (steps(self.min_optical_density, STEPS_PER_OD), steps(self.max_optical_density, STEPS_PER_OD))
            }
            TissueMethod::Entropy => (steps(self.min_entropy, STEPS_PER_BIT), steps(self.max_entropy, STEPS_PER_BIT)),
        }
    }
}

/// Why a mask has no tissue at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EmptyReason {
    /// The background is dark: fluorescence, or an image that is no stained section.
    DarkBackground,
    /// No pixel is above the threshold.
    Blank,
    /// Some pixels are, but only in pieces smaller than `min_piece_mm2`.
    OnlySpecks,
}

impl fmt::Display for EmptyReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::DarkBackground => "dark background (fluorescence?): no tissue by the rules for stained sections",
            Self::Blank => "blank: nothing differs enough from glass to be tissue",
            Self::OnlySpecks => "only specks: every piece of tissue is smaller than tissue.min_piece_mm2",
        })
    }
}

/// Tissue or background for every pixel of a low-resolution copy of the slide; a [`Mask`] that knows how it was made.
#[derive(Clone, Debug)]
pub struct TissueMask {
    mask: Mask,
    threshold: f64,
    empty_reason: Option<EmptyReason>,
}

impl Deref for TissueMask {
    type Target = Mask;

    fn deref(&self) -> &Mask {
        &self.mask
    }
}

impl From<Mask> for TissueMask {
    /// A mask that somebody else made.
    fn from(mask: Mask) -> Self {
        Self { mask, threshold: 0.0, empty_reason: None }
    }
}

impl TissueMask {
    /// The mask of a slide whose level 0 has `mpp` µm/px. Reads the coarsest level that is fine enough; memory is
    /// bounded even where that is a huge level 0.
    ///
    /// # Errors
    /// Values that make no sense, and errors of reading the slide.
    pub fn compute(slide: &Slide, mpp: Mpp, params: &TissueParams) -> Result<Self> {
        params.check()?;
        Self::from_rgb(&Overview::read(slide, mpp, params)?.image, slide.size(), mpp, params)
    }

    /// The mask of a low-resolution copy `image` of a whole slide of `slide` level-0 pixels at `mpp` µm/px.
    ///
    /// # Errors
    /// Values that make no sense.
    pub fn from_rgb(image: &RgbImage, slide: Size, mpp: Mpp, params: &TissueParams) -> Result<Self> {
        params.check()?;
        let size = Size::new(image.width(), image.height());
        let (width, height) = (size.width as usize, size.height as usize);
        let mask = Mask::new(size, slide, vec![false; width * height])?;
        // Side lengths of a mask pixel in µm.
        let (um_x, um_y) = (mask.scale().0 * mpp.0, mask.scale().1 * mpp.0);
        let pixels = |mm2: f64| mm2 * 1e6 / (um_x * um_y);

        if dark_background(image) {
            return Ok(Self { mask, threshold: 0.0, empty_reason: Some(EmptyReason::DarkBackground) });
        }
        let measure = filter::median(&measure(image, params.method), width, height, params.smooth as usize / 2);
        let stainable: Vec<bool> = image.pixels().map(|p| stainable(p.0, params.max_green_over_red)).collect();
        let mut histogram = [0u64; 256];
        for (&value, _) in measure.iter().zip(&stainable).filter(|&(_, &ok)| ok) {
            histogram[usize::from(value)] += 1;
        }
        let (least, most) = params.thresholds();
        let threshold = filter::otsu(&histogram).clamp(least, most);
        let mut data: Vec<bool> = measure.iter().map(|&m| m > threshold).collect();
        let blank = !data.iter().zip(&stainable).any(|(&above, &ok)| above && ok);
        if params.method == TissueMethod::Entropy {
            // A window sees what lies half its side away; a straight edge, as where two scans meet, then leaves nothing.
            filter::fill_holes(&mut data, width, height, pixels(params.max_hole_mm2));
            filter::erode(&mut data, width, height, ENTROPY_RADIUS);
        }
        data.iter_mut().zip(&stainable).for_each(|(pixel, &ok)| *pixel &= ok);
        filter::fill_holes(&mut data, width, height, pixels(params.max_hole_mm2));
        filter::remove_pieces(&mut data, width, height, pixels(params.min_piece_mm2));
        let radius = |um: f64| (params.dilate_um / um).round() as usize;
        filter::dilate(&mut data, width, height, radius(um_x), radius(um_y));

        let mask = Mask::new(size, slide, data)?;
        let empty_reason = match (blank, mask.share() == 0.0) {
            (true, _) => Some(EmptyReason::Blank),
            (false, true) => Some(EmptyReason::OnlySpecks),
            _ => None,
        };
        let steps = match params.method {
            TissueMethod::Saturation => 1.0,
            TissueMethod::OpticalDensity => STEPS_PER_OD,
            TissueMethod::Entropy => STEPS_PER_BIT,
        };
        Ok(Self { mask, threshold: f64::from(threshold) / steps, empty_reason })
    }

    /// A mask given pixel by pixel, row-major, over a slide of `slide` level-0 pixels.
    ///
    /// # Errors
    /// [`Error::Usage`] if the number of pixels is not `size`, or a side is 0.
    pub fn from_pixels(size: Size, slide: Size, data: Vec<bool>) -> Result<Self> {
        Mask::new(size, slide, data).map(Self::from)
    }

    /// A mask that calls the whole slide tissue: for cutting it all up.
    pub fn full(slide: Size) -> Self {
        Mask::full(slide).into()
    }

    /// The threshold that was used, in the unit of the method: 0 to 255, optical density, or bits.
    pub fn threshold(&self) -> f64 {
        self.threshold
    }

    /// Why there is no tissue; `None` where there is some.
    pub fn empty_reason(&self) -> Option<EmptyReason> {
        self.empty_reason
    }
}

/// The low-resolution copy of a slide that masks are made from.
#[derive(Clone, Debug)]
pub struct Overview {
    /// The whole slide; what cannot be read is white.
    pub image: RgbImage,
    /// What cannot be read.
    pub unreadable: Mask,
    /// Why the first part of that cannot be read.
    pub damage: Option<String>,
}

impl Overview {
    /// The overview at the scale of `params` of a slide whose level 0 has `mpp` µm/px.
    ///
    /// # Errors
    /// Errors of reading the slide; a few damaged tiles are none.
    pub fn read(slide: &Slide, mpp: Mpp, params: &TissueParams) -> Result<Self> {
        params.check()?;
        let (image, damaged) = read_mended(slide, mask_size(slide.size(), mpp, params))?;
        if damaged.is_empty() {
            return Ok(Self { image, unreadable: Mask::none(slide.size()), damage: None });
        }
        let size = Size::new(image.width(), image.height());
        let blank = Mask::new(size, slide.size(), vec![false; size.width as usize * size.height as usize])?;
        let (mut data, scale) = (blank.data().to_vec(), blank.scale());
        for part in &damaged {
            let pixels = |start: f64, length: f64, scale: f64, limit: u32| {
                (start / scale).floor().max(0.0) as u32..(((start + length) / scale).ceil() as u32).min(limit)
            };
            for y in pixels(part.corner.1, part.size.1, scale.1, size.height) {
                for x in pixels(part.corner.0, part.size.0, scale.0, size.width) {
                    data[y as usize * size.width as usize + x as usize] = true;
                }
            }
        }
        let damage = damaged.into_iter().next().map(|part| part.reason);
        Ok(Self { image, unreadable: Mask::new(size, slide.size(), data)?, damage })
    }
}

/// Size of the mask of a slide: never finer than the slide, never longer than [`MAX_SIDE`].
fn mask_size(slide: Size, mpp: Mpp, params: &TissueParams) -> Size {
    let longest = f64::from(slide.width.max(slide.height));
    let factor = (params.mpp / mpp.0).max(1.0).max(longest / MAX_SIDE);
    let side = |pixels: u32| (f64::from(pixels) / factor).round().max(1.0) as u32;
    Size::new(side(slide.width), side(slide.height))
}

/// What the method looks at, for every pixel, in stored steps.
fn measure(image: &RgbImage, method: TissueMethod) -> Vec<u8> {
    match method {
        TissueMethod::Saturation => image.pixels().map(|p| saturation(p.0)).collect(),
        TissueMethod::OpticalDensity => {
            densities(image).into_iter().map(|density| (density * STEPS_PER_OD).round() as u8).collect()
        }
        TissueMethod::Entropy => {
            // White padding is as bright as glass, or there would be texture where they meet.
            let glass = luminance(density::glass(image));
            let is_padding = |rgb: [u8; 3]| rgb.iter().all(|&value| value >= PADDING);
            let grey: Vec<u8> = image.pixels().map(|p| if is_padding(p.0) { glass } else { luminance(p.0) }).collect();
            filter::entropy(
                &grey,
                image.width() as usize,
                image.height() as usize,
                ENTROPY_RADIUS,
                glass.saturating_sub(LIGHT_VARIES),
            )
        }
    }
}

/// Saturation of HSV, 0 to 255.
pub(crate) fn saturation([r, g, b]: [u8; 3]) -> u8 {
    let (max, min) = (r.max(g).max(b), r.min(g).min(b));
    if max == 0 { 0 } else { ((u32::from(max - min) * 255 + u32::from(max) / 2) / u32::from(max)) as u8 }
}

/// Luminance of Rec. 601, 0 to 255.
pub(crate) fn luminance([r, g, b]: [u8; 3]) -> u8 {
    ((u32::from(r) * 299 + u32::from(g) * 587 + u32::from(b) * 114) / 1000) as u8
}

/// Whether a pixel can be stained tissue at all: neither near black nor of a pen's colour.
fn stainable(rgb: [u8; 3], max_green_over_red: u8) -> bool {
    let ink = rgb[1].saturating_sub(rgb[0]) > max_green_over_red || (max_green_over_red < 255 && is_red_ink(rgb));
    luminance(rgb) >= DARK && !ink
}

/// Whether a pixel is red as a pen's ink is: eosin and blood hold more blue.
pub(crate) fn is_red_ink([r, g, b]: [u8; 3]) -> bool {
    r >= 150 && saturation([r, g, b]) > 180 && g.abs_diff(b) < 60
}

/// Whether most of the image is dark and the rest is no section on bright glass in a dark frame.
fn dark_background(image: &RgbImage) -> bool {
    let mut histogram = [0u64; 256];
    image.pixels().for_each(|p| histogram[usize::from(luminance(p.0))] += 1);
    let total: u64 = histogram.iter().sum();
    let dark: u64 = histogram[..usize::from(DARK)].iter().sum();
    let dim: u64 = histogram[usize::from(DARK)..128].iter().sum();
    dark * 2 > total && dim * 2 >= total - dark
}

#[cfg(test)]
mod tests;
