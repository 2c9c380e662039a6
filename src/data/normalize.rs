//! Bytes to normalised floats, channel-major.

use image::RgbImage;
use rayon::prelude::*;

/// `(byte / 255 - mean) / std` for every byte and channel, as torchvision's `ToTensor` and `Normalize` compute it.
#[derive(Clone, Debug)]
pub struct Normalize([[f32; 256]; 3]);

impl Normalize {
    /// Tables for a mean and standard deviation per channel, RGB.
    pub fn new(mean: [f32; 3], std: [f32; 3]) -> Self {
        Self(std::array::from_fn(|c| std::array::from_fn(|byte| (byte as f32 / 255.0 - mean[c]) / std[c])))
    }

    /// Images of one size, which the caller has seen to, as `[n, 3, height, width]`; on the threads of the current rayon pool.
    pub fn images(&self, images: &[&RgbImage]) -> Vec<f32> {
        let Some(first) = images.first() else { return Vec::new() };
        assert!(images.iter().all(|image| image.dimensions() == first.dimensions()), "images of one size");
        let values = first.as_raw().len();
        let mut out = vec![0.0; images.len() * values];
        out.par_chunks_mut(values).zip(images).for_each(|(out, image)| {
            let (red, rest) = out.split_at_mut(values / 3);
            let (green, blue) = rest.split_at_mut(values / 3);
            let (pixels, _) = image.as_raw().as_chunks::<3>();
            for (((&[r, g, b], red), green), blue) in pixels.iter().zip(red).zip(green).zip(blue) {
                (*red, *green, *blue) = (self.0[0][r as usize], self.0[1][g as usize], self.0[2][b as usize]);
            }
        });
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::presets::{IMAGENET_MEAN, IMAGENET_STD};
    use crate::data::golden::Golden;
    use image::Rgb;

    #[test]
    fn every_byte_is_that_of_torchvision() {
        let ramp = RgbImage::from_fn(256, 1, |x, _| Rgb([x as u8; 3]));
        // The same f32 operations in the same order: equal to the last bit.
        assert_eq!(Normalize::new(IMAGENET_MEAN, IMAGENET_STD).images(&[&ramp]), Golden::load().normalized_ramp());
    }

    #[test]
    fn images_are_channel_major_one_after_the_other() {
        let normalize = Normalize::new([0.0; 3], [1.0 / 255.0; 3]);
        let first = RgbImage::from_raw(2, 1, vec![1, 2, 3, 4, 5, 6]).unwrap();
        let second = RgbImage::from_raw(2, 1, vec![7, 8, 9, 10, 11, 12]).unwrap();
        let out: Vec<u8> = normalize.images(&[&first, &second]).iter().map(|value| value.round() as u8).collect();
        assert_eq!(out, [1, 4, 2, 5, 3, 6, 7, 10, 8, 11, 9, 12]);
        assert!(normalize.images(&[]).is_empty());
    }
}
