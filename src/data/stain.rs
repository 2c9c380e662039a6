//! Stain augmentation: the amounts of haematoxylin, eosin and DAB of a whole view are changed by random factors and
//! shifts, as another laboratory's stain or another scanner would.
//!
//! Light is absorbed exponentially, so the optical density `-ln(v / 255)` of a pixel is the sum of what its stains
//! absorb (Beer and Lambert), and a change of the amounts is one linear map of densities. Sources: Ruifrok and Johnston,
//! "Quantification of histochemical staining by color deconvolution", 2001 (the stain vectors); Tellez et al.,
//! "Whole-slide mitosis detection in H&E breast histology using PHH3 as a reference", 2018 (the augmentation).

use std::sync::LazyLock;

use image::RgbImage;
use slide_io::stain::inverse;

/// Optical densities in red, green and blue of the unit amount of haematoxylin, eosin and DAB, of length 1.
pub const STAINS: [[f64; 3]; 3] = [[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]];

/// The optical density of every byte; 0 counts as 1, since nothing is perfectly black.
static DENSITY: LazyLock<[f32; 256]> = LazyLock::new(|| std::array::from_fn(|byte| -(byte.max(1) as f32 / 255.0).ln()));

/// Multiplies the amount of each stain by its factor and adds its shift, in units of optical density.
///
/// Factors of 1 and shifts of 0 leave the image as it is. What no light is left of, or more than there was, is clipped.
pub fn change(image: &mut RgbImage, factors: [f64; 3], shifts: [f64; 3]) {
    let stains = STAINS.map(|stain| {
        let length = stain.iter().map(|v| v * v).sum::<f64>().sqrt();
        stain.map(|v| v / length)
    });
    let amounts = inverse(stains);
    // density' = density * amounts * diag(factors) * stains + shifts * stains
    let sum = |term: &dyn Fn(usize) -> f64| (0..3).map(term).sum::<f64>() as f32;
    let map: [[f32; 3]; 3] = std::array::from_fn(|from| {
        std::array::from_fn(|to| sum(&|stain| amounts[from][stain] * factors[stain] * stains[stain][to]))
    });
    let offset: [f32; 3] = std::array::from_fn(|to| sum(&|stain| shifts[stain] * stains[stain][to]));
    let densities = &*DENSITY;
    for pixel in image.as_chunks_mut::<3>().0 {
        let density = pixel.map(|byte| densities[usize::from(byte)]);
        *pixel = std::array::from_fn(|to| {
            let changed = (0..3).map(|from| density[from] * map[from][to]).sum::<f32>() + offset[to];
            // The cast saturates.
            (255.0 * (-changed).exp() + 0.5) as u8
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use image::Rgb;

    fn colours() -> RgbImage {
        RgbImage::from_fn(64, 64, |x, y| Rgb([(x * 4 + 3) as u8, (y * 4 + 1) as u8, (x * y / 16) as u8]))
    }

    #[test]
    fn the_inverse_is_one() {
        let product: Vec<f64> =
            (0..9).map(|i| (0..3).map(|k| STAINS[i / 3][k] * inverse(STAINS)[k][i % 3]).sum::<f64>()).collect();
        for (i, value) in product.iter().enumerate() {
            assert!((value - f64::from(u8::from(i % 4 == 0))).abs() < 1e-12);
        }
    }

    #[test]
    fn no_change_is_the_image_and_black_is_nearly_black() {
        let mut image = colours();
        change(&mut image, [1.0; 3], [0.0; 3]);
        for (before, after) in colours().iter().zip(image.iter()) {
            assert_eq!(*after, (*before).max(1));
        }
    }

    #[test]
    fn glass_stays_glass_under_any_factor() {
        let mut image = RgbImage::from_pixel(8, 8, Rgb([255; 3]));
        change(&mut image, [0.3, 1.9, 1.2], [0.0; 3]);
        assert!(image.iter().all(|&v| v == 255));
        change(&mut image, [1.0; 3], [-0.2; 3]);
        assert!(image.iter().all(|&v| v == 255), "there is no more light than the lamp's");
    }

    #[test]
    fn a_pixel_of_one_stain_is_changed_by_that_stain_alone() {
        // Amount 0.8 of haematoxylin, to be doubled: Beer and Lambert by hand.
        let length = STAINS[0].iter().map(|v| v * v).sum::<f64>().sqrt();
        let of = |amount: f64| STAINS[0].map(|v| (255.0 * (-amount * v / length).exp()).round() as u8);
        let mut image = RgbImage::from_pixel(1, 1, Rgb(of(0.8)));
        change(&mut image, [2.0, 1.0, 1.0], [0.0; 3]);
        for (found, expected) in image.get_pixel(0, 0).0.iter().zip(of(1.6)) {
            // The rounding of the byte before, doubled in density.
            assert!(found.abs_diff(expected) <= 1, "{found} {expected}");
        }
        let mut image = RgbImage::from_pixel(1, 1, Rgb(of(0.8)));
        change(&mut image, [1.0, 3.0, 0.2], [0.0; 3]);
        for (found, expected) in image.get_pixel(0, 0).0.iter().zip(of(0.8)) {
            assert!(found.abs_diff(expected) <= 2, "{found} {expected}");
        }
        let mut image = RgbImage::from_pixel(1, 1, Rgb([255; 3]));
        change(&mut image, [1.0; 3], [0.5, 0.0, 0.0]);
        assert_eq!(image.get_pixel(0, 0).0, of(0.5));
    }
}
