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

    /// Images of one size as `[n, 3, height, width]`; on the threads of the current rayon pool.
    pub fn images(&self, images: &[&RgbImage]) -> Vec<f32> {
        let Some(first) = images.first() else { return Vec::new() };
        debug_assert!(images.iter().all(|image| image.dimensions() == first.dimensions()));
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
    use image::Rgb;

    #[test]
    fn channel_major_and_equal_to_torchvision() {
        let normalize = Normalize::new([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]);
        let first = RgbImage::from_fn(2, 1, |x, _| if x == 0 { Rgb([0, 0, 0]) } else { Rgb([255, 128, 1]) });
        let second = RgbImage::from_pixel(2, 1, Rgb([124, 116, 104]));
        let out = normalize.images(&[&first, &second]);
        // torchvision 0.29: Normalize(mean, std)(ToTensor()(image)); the same f32 operations, so equal to the last bit.
        let expected = [
            -2.117_903_9,
            2.248_908_3,
            -2.035_714_1,
            0.205_181_93,
            -1.804_444_4,
            -1.787_015_2,
            0.005_565_535_3,
            0.005_565_535_3,
            -0.004_901_919_5,
            -0.004_901_919_5,
            0.008_191_721_6,
            0.008_191_721_6,
        ];
        assert_eq!(out.len(), expected.len());
        for (value, expected) in out.iter().zip(expected) {
            assert!((value - expected).abs() < 1e-6, "{value} {expected}");
        }
        assert!(normalize.images(&[]).is_empty());
    }
}
