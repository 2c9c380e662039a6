//! Shifts of the image that another laboratory, scanner or export would bring, at five severities, for measuring how much
//! of a classifier survives them. Not an augmentation: training never sees them.
//!
//! After the plan of Hendrycks and Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and
//! Perturbations", 2019, with what changes between sections of tissue in place of weather:
//!
//! | Shift | At severity 1 to 5 | Which way |
//! |---|---|---|
//! | stain | amounts of haematoxylin, eosin and DAB times or over 1.1, 1.2, 1.35, 1.5, 1.75 | drawn for each stain |
//! | blur | Gaussian of 0.5, 1, 1.5, 2, 3 px of the view that the encoder sees | |
//! | jpeg | recompressed at quality 80, 60, 40, 20, 10 | |
//! | brightness | times or over 1.1, 1.2, 1.35, 1.5, 1.75 | drawn |
//! | scale | µm/px times or over 1.1, 1.2, 1.35, 1.5, 1.75, same size in pixels | drawn |
//!
//! What is drawn belongs to the image (of slides: to the slide, whose patches one laboratory made) and the shift, not to the
//! severity: a curve over the severities shows the same images going the same way.

use std::sync::Arc;

use anyhow::Result;
use image::RgbImage;
use rand::RngExt;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use slide_io::jpeg::{self, ColorModel};
use slide_io::{Patch, PatchKey, PatchSource};

use super::blur::gaussian_blur;
use super::crop::{Rect, crop_and_resize};
use super::order::shift_rng;
use super::{color, stain};

/// Severities are 1 to this.
pub const SEVERITIES: usize = 5;

/// Factors of stain, brightness and scale.
const FACTORS: [f64; SEVERITIES] = [1.1, 1.2, 1.35, 1.5, 1.75];
/// Standard deviations of the blur, px of the view.
const SIGMAS: [f64; SEVERITIES] = [0.5, 1.0, 1.5, 2.0, 3.0];
/// JPEG qualities.
const QUALITIES: [u8; SEVERITIES] = [80, 60, 40, 20, 10];

/// A kind of change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Shift {
    /// Amounts of the stains.
    Stain,
    /// Out of focus.
    Blur,
    /// Strong compression.
    Jpeg,
    /// Light of the lamp.
    Brightness,
    /// µm/px.
    Scale,
}

impl Shift {
    /// All of them, in the order of the tables.
    pub const ALL: [Self; 5] = [Self::Stain, Self::Blur, Self::Jpeg, Self::Brightness, Self::Scale];

    /// Its name in the tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Stain => "stain",
            Self::Blur => "blur",
            Self::Jpeg => "jpeg",
            Self::Brightness => "brightness",
            Self::Scale => "scale",
        }
    }

    /// Changes `image`, which is of number `index` (itself, or its slide), at `severity` (1 to [`SEVERITIES`]). `view` is the short
    /// side that the encoder's transform resizes to, px; 0 where it does not.
    ///
    /// # Errors
    /// An empty image.
    pub fn apply(self, mut image: RgbImage, severity: usize, view: u32, seed: u64, index: usize) -> Result<RgbImage> {
        let level = severity.clamp(1, SEVERITIES) - 1;
        let mut rng = shift_rng(seed, self as usize, index);
        let mut factor = || if rng.random::<bool>() { FACTORS[level] } else { FACTORS[level].recip() };
        match self {
            Self::Stain => stain::change(&mut image, [factor(), factor(), factor()], [0.0; 3]),
            Self::Blur => {
                let short = f64::from(image.width().min(image.height()));
                let magnified = if view == 0 { 1.0 } else { short / f64::from(view) };
                gaussian_blur(&mut image, SIGMAS[level] * magnified);
            }
            Self::Jpeg => image = jpeg::decode(&jpeg::encode(&image, QUALITIES[level], ColorModel::YCbCr)?)?,
            Self::Brightness => color::brightness(&mut image, factor() as f32),
            Self::Scale => image = rescaled(&image, factor())?,
        }
        Ok(image)
    }
}

/// The image as it would be with `factor` times the µm/px, of the same size: smaller and mirrored beyond its edges for a
/// factor above 1, the centre enlarged below 1.
fn rescaled(image: &RgbImage, factor: f64) -> Result<RgbImage> {
    let size = image.dimensions();
    let scaled = |length: u32, by: f64| ((f64::from(length) * by).round() as u32).max(1);
    if factor <= 1.0 {
        let (width, height) = (scaled(size.0, factor), scaled(size.1, factor));
        let rect = Rect { x: (size.0 - width) / 2, y: (size.1 - height) / 2, width, height };
        return crop_and_resize(image, rect, size);
    }
    let whole = Rect { x: 0, y: 0, width: size.0, height: size.1 };
    let small = crop_and_resize(image, whole, (scaled(size.0, 1.0 / factor), scaled(size.1, 1.0 / factor)))?;
    let margin = |length: u32, of: u32| i64::from((length - of) / 2);
    let (left, top) = (margin(size.0, small.width()), margin(size.1, small.height()));
    Ok(RgbImage::from_fn(size.0, size.1, |x, y| {
        *small.get_pixel(mirrored(i64::from(x) - left, small.width()), mirrored(i64::from(y) - top, small.height()))
    }))
}

/// The place in 0 to `length` - 1 that a mirror at each edge shows at `place`, the edge pixel once (`d c b | a b c d | c b a`).
fn mirrored(place: i64, length: u32) -> u32 {
    let last = i64::from(length) - 1;
    if last == 0 {
        return 0;
    }
    let folded = place.rem_euclid(2 * last);
    folded.min(2 * last - folded) as u32
}

/// The images of another source, all of them shifted.
pub struct Shifted {
    /// The images as they are.
    pub source: Arc<dyn PatchSource>,
    /// What is done to them.
    pub shift: Shift,
    /// How strongly, 1 to [`SEVERITIES`].
    pub severity: usize,
    /// Short side that the encoder's transform resizes to, px; 0 where it does not.
    pub view: u32,
    /// Of what is drawn.
    pub seed: u64,
}

impl PatchSource for Shifted {
    fn len(&self) -> usize {
        self.source.len()
    }

    fn key(&self, index: usize) -> PatchKey {
        self.source.key(index)
    }

    fn label(&self, index: usize) -> Option<u32> {
        self.source.label(index)
    }

    fn classes(&self) -> &[String] {
        self.source.classes()
    }

    fn slide_ends(&self) -> &[usize] {
        self.source.slide_ends()
    }

    fn prefers_few_slides(&self) -> bool {
        self.source.prefers_few_slides()
    }

    fn read(&self, index: usize) -> slide_io::Result<Patch> {
        let mut patch = self.source.read(index)?;
        let number = match self.slide_ends() {
            [] => index,
            // By its name: whichever other slides there are.
            _ => Sha256::digest(&patch.key.item)[..4].iter().fold(0, |number, &byte| number << 8 | usize::from(byte)),
        };
        let shifted = self.shift.apply(patch.image, self.severity, self.view, self.seed, number);
        patch.image = shifted.map_err(|error| {
            slide_io::Error::unsupported(
                &patch.key.item,
                format!("it cannot be shifted ({}): {error:#}", self.shift.name()),
            )
        })?;
        Ok(patch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use image::Rgb;

    /// Something like tissue: pink with darker blue spots.
    fn tissue() -> RgbImage {
        RgbImage::from_fn(64, 48, |x, y| match (x / 5 + y / 7) % 3 {
            0 => Rgb([120 + (x % 5) as u8, 70, 150]),
            1 => Rgb([220, 150 + (y % 9) as u8, 190]),
            _ => Rgb([240, 235, 240]),
        })
    }

    fn difference(a: &RgbImage, b: &RgbImage) -> f64 {
        a.iter().zip(b.iter()).map(|(a, b)| f64::from(a.abs_diff(*b))).sum::<f64>() / a.len() as f64
    }

    #[test]
    fn every_shift_keeps_the_size_repeats_and_grows_with_its_severity() {
        for shift in Shift::ALL {
            let at = |severity, index| shift.apply(tissue(), severity, 48, 3, index).unwrap();
            for index in 0..4 {
                let changes: Vec<f64> = (1..=SEVERITIES).map(|s| difference(&tissue(), &at(s, index))).collect();
                assert!(changes[0] > 0.1, "{shift:?} {changes:?}");
                // A pattern that is moved (scale) is not ever farther from where it was.
                let grows = changes.windows(2).all(|pair| pair[0] < pair[1]);
                assert!(grows || shift == Shift::Scale, "{shift:?} {changes:?}");
                assert_eq!(at(2, index).dimensions(), (64, 48));
                assert_eq!(at(2, index), at(2, index));
            }
        }
    }

    #[test]
    fn both_ways_are_drawn_and_belong_to_the_image() {
        let gray = RgbImage::from_pixel(2, 2, Rgb([100; 3]));
        let brightness = |severity, index| {
            let image = Shift::Brightness.apply(gray.clone(), severity, 0, 9, index).unwrap();
            image.get_pixel(0, 0).0[0]
        };
        let up: Vec<bool> = (0..40).map(|index| brightness(1, index) > 100).collect();
        assert!((8..=32).contains(&up.iter().filter(|up| **up).count()));
        for (index, &up) in up.iter().enumerate() {
            let expected = if up { [110, 120, 135, 150, 175] } else { [90, 83, 74, 66, 57] };
            let found: Vec<u8> = (1..=5).map(|severity| brightness(severity, index)).collect();
            assert!(found.iter().zip(expected).all(|(a, b)| a.abs_diff(b) <= 1), "{found:?} {expected:?}");
        }
    }

    #[test]
    fn blur_is_in_pixels_of_the_view() {
        let mut by_hand = tissue();
        gaussian_blur(&mut by_hand, 2.0 * 48.0 / 24.0);
        assert_eq!(Shift::Blur.apply(tissue(), 4, 24, 0, 0).unwrap(), by_hand);
        let mut as_it_is = tissue();
        gaussian_blur(&mut as_it_is, 0.5);
        assert_eq!(Shift::Blur.apply(tissue(), 1, 0, 0, 0).unwrap(), as_it_is);
    }

    #[test]
    fn scale_enlarges_the_centre_or_mirrors_the_edges() {
        let places: Vec<u32> = (-5..7).map(|place| mirrored(place, 4)).collect();
        assert_eq!(places, [1, 2, 3, 2, 1, 0, 1, 2, 3, 2, 1, 0]);
        assert_eq!(mirrored(-3, 1), 0);
        // A dot of 8 px in the middle grows to 10, or shrinks to 6.4.
        let inside = |place: u32| (16..24).contains(&place);
        let dot = RgbImage::from_fn(40, 40, |x, y| Rgb([if inside(x) && inside(y) { 255 } else { 0 }; 3]));
        let bright = |image: &RgbImage| image.pixels().filter(|pixel| pixel.0[0] > 127).count();
        let rescaled_dot = |factor| rescaled(&dot, factor).unwrap();
        assert_eq!((bright(&dot), bright(&rescaled_dot(0.8)), bright(&rescaled_dot(1.25))), (64, 100, 36));
        assert_eq!(rescaled(&dot, 1.0).unwrap(), dot);
    }

    #[test]
    fn a_shifted_source_is_the_source_with_other_pixels() {
        let source = crate::data::loader::fake::Pictures::new(6, |_| false);
        let shifted = Shifted { source: source.clone(), shift: Shift::Brightness, severity: 5, view: 0, seed: 1 };
        assert_eq!((shifted.len(), shifted.key(3), shifted.label(3)), (source.len(), source.key(3), source.label(3)));
        let image = source.read(3).unwrap().image;
        let expected = Shift::Brightness.apply(image, 5, 0, 1, 3).unwrap();
        assert_eq!(shifted.read(3).unwrap().image, expected);
    }
}
