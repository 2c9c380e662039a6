//! Copies of an image that are strongly altered, for copy detection where there is no data set of them: as Copydays has
//! them (Douze et al. 2009), and the turns that tissue adds, which has no up.

use anyhow::{Context, Result};
use image::codecs::jpeg::JpegEncoder;
use image::{ImageFormat, RgbImage, imageops};
use rand::{Rng, RngExt};

use super::crop::{Rect, crop_and_resize, uniform};
use super::{blur, color};

/// Share of the area that is left by a crop.
const CROP: [f64; 2] = [0.2, 0.5];
/// Quality of a strong JPEG compression.
const JPEG: [u8; 2] = [3, 15];
/// Deviation of a blur, as a share of the short side.
const BLUR: [f64; 2] = [0.01, 0.03];
/// What printing and scanning leave of contrast and saturation, and make of brightness.
const CONTRAST: [f64; 2] = [0.4, 0.7];
const SATURATION: [f64; 2] = [0.3, 0.7];
const BRIGHTNESS: [f64; 2] = [0.7, 1.3];

/// How a copy is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attack {
    /// 20 to 50 % of the area, enlarged to the size it was cut from.
    Crop,
    /// JPEG at quality 3 to 15.
    Jpeg,
    /// Gaussian blur of 1 to 3 % of the short side.
    Blur,
    /// Weaker contrast and colours, another brightness and a slight blur, as after printing and scanning.
    PrintScan,
    /// One of the seven turns and reflections of a square.
    Turn,
    /// All of them, one after the other.
    Strong,
}

impl Attack {
    /// All of them, the strongest last.
    pub const ALL: [Self; 6] = [Self::Crop, Self::Jpeg, Self::Blur, Self::PrintScan, Self::Turn, Self::Strong];

    /// In tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Crop => "crop",
            Self::Jpeg => "jpeg",
            Self::Blur => "blur",
            Self::PrintScan => "print_scan",
            Self::Turn => "turn",
            Self::Strong => "strong",
        }
    }

    /// A copy of `image`; how strongly it is altered is drawn from `rng`.
    ///
    /// # Errors
    /// An image without pixels.
    pub fn apply(self, mut image: RgbImage, rng: &mut impl Rng) -> Result<RgbImage> {
        let short = f64::from(image.width().min(image.height()));
        match self {
            Self::Crop => {
                let rect = Rect::random(image.dimensions(), CROP, rng);
                crop_and_resize(&image, rect, image.dimensions())
            }
            Self::Jpeg => compressed(&image, rng.random_range(JPEG[0]..=JPEG[1])),
            Self::Blur => {
                blur::gaussian_blur(&mut image, uniform(BLUR, rng) * short);
                Ok(image)
            }
            Self::PrintScan => {
                color::contrast(&mut image, uniform(CONTRAST, rng) as f32);
                color::saturation(&mut image, uniform(SATURATION, rng) as f32);
                color::brightness(&mut image, uniform(BRIGHTNESS, rng) as f32);
                blur::gaussian_blur(&mut image, BLUR[0] / 2.0 * short);
                Ok(image)
            }
            Self::Turn => Ok(turned(&image, rng.random_range(1..8))),
            Self::Strong => {
                let parts = [Self::Crop, Self::Turn, Self::PrintScan, Self::Blur, Self::Jpeg];
                parts.into_iter().try_fold(image, |image, attack| attack.apply(image, rng))
            }
        }
    }
}

/// What JPEG leaves of an image.
fn compressed(image: &RgbImage, quality: u8) -> Result<RgbImage> {
    let mut bytes = Vec::new();
    JpegEncoder::new_with_quality(&mut bytes, quality).encode_image(image).context("cannot compress the image")?;
    Ok(image::load_from_memory_with_format(&bytes, ImageFormat::Jpeg)?.into_rgb8())
}

/// Quarter turns for 0 to 3, then the same of the mirrored image.
fn turned(image: &RgbImage, which: u32) -> RgbImage {
    let image = if which >= 4 { imageops::flip_horizontal(image) } else { image.clone() };
    match which % 4 {
        0 => image,
        1 => imageops::rotate90(&image),
        2 => imageops::rotate180(&image),
        _ => imageops::rotate270(&image),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::data::order::item_rng;

    fn picture() -> RgbImage {
        RgbImage::from_fn(64, 48, |x, y| image::Rgb([(x * 4) as u8, (y * 5) as u8, ((x * y) % 256) as u8]))
    }

    #[test]
    fn every_attack_alters_the_image_and_depends_on_the_seed_alone() {
        for attack in Attack::ALL {
            let copy = |index| attack.apply(picture(), &mut item_rng(1, 0, index)).unwrap();
            let first = copy(0);
            assert_ne!(first, picture(), "{attack:?}");
            assert_eq!(first, copy(0), "{attack:?}");
            assert!((1..20).any(|index| copy(index) != first), "{attack:?}");
            let sides = HashSet::from([first.width(), first.height()]);
            assert_eq!(sides, HashSet::from([64, 48]), "{attack:?}");
        }
        assert_eq!(Attack::ALL.map(Attack::name).into_iter().collect::<HashSet<_>>().len(), 6);
    }

    #[test]
    fn the_turns_are_the_eight_of_a_square() {
        let turns: HashSet<Vec<u8>> = (0..8).map(|which| turned(&picture(), which).into_raw()).collect();
        assert_eq!(turns.len(), 8);
        assert_eq!(turned(&picture(), 0), picture());
    }
}
