//! Whole patches as squares in [-1, 1]: what the autoencoder and the diffusion model are trained on.

use std::sync::Arc;

use anyhow::{Result, ensure};
use image::RgbImage;
use rand::RngExt;
use rand_chacha::ChaCha8Rng;
use slide_io::PatchSource;

use super::training::{Batches, EpochBatches, TrainingLoader, Treatment};
use crate::data::normalize::Normalize;
use crate::data::{color, crop};

/// A batch of square images.
#[derive(Clone, Debug, PartialEq)]
pub struct SquareBatch {
    /// `[indices.len(), 3, side, side]`, in [-1, 1].
    pub pixels: Vec<f32>,
    /// Pixels of a side.
    pub side: usize,
    /// Where the images are in the source.
    pub indices: Vec<usize>,
}

/// Square images for training: see [`TrainingLoader`].
pub type SquareLoader = TrainingLoader<Squares>;
/// The square images of one epoch.
pub type SquareBatches = EpochBatches<Squares>;

/// The short side is resized to `side` (bicubic), the centre cut out, and flipped at random.
#[derive(Clone, Debug)]
pub struct Squares {
    side: u32,
    /// Probabilities of a horizontal and of a vertical flip.
    flips: [f64; 2],
    normalize: Normalize,
}

impl Squares {
    /// Squares of `side` px, flipped horizontally and vertically with the probabilities `flips`.
    pub fn new(side: u32, flips: [f64; 2]) -> Self {
        Self { side, flips, normalize: Normalize::new([0.5; 3], [0.5; 3]) }
    }

    /// The square of an image, as it is.
    ///
    /// # Errors
    /// An image without pixels.
    pub fn of(&self, image: RgbImage) -> Result<RgbImage> {
        crop::evaluation_view(image, self.side, self.side)
    }

    /// Squares as `[n, 3, side, side]` in [-1, 1].
    pub fn pixels(&self, squares: &[&RgbImage]) -> Vec<f32> {
        self.normalize.images(squares)
    }
}

impl SquareLoader {
    /// Batches of squares of `source`.
    ///
    /// # Errors
    /// A side of 0, or fewer patches than a batch.
    pub fn new(source: Arc<dyn PatchSource>, squares: Squares, batches: Batches) -> Result<Self> {
        ensure!(squares.side > 0, "an image needs a side of at least one pixel");
        Self::treated(source, squares, batches)
    }
}

impl Treatment for Squares {
    type Views = RgbImage;
    type Batch = SquareBatch;

    fn views(&self, _: usize, image: RgbImage, rng: &mut ChaCha8Rng) -> Result<RgbImage> {
        let mut square = self.of(image)?;
        // Both are drawn, so that the second does not depend on the first.
        let [horizontal, vertical] = self.flips.map(|probability| rng.random::<f64>() < probability);
        if horizontal {
            color::flip_horizontal(&mut square);
        }
        if vertical {
            color::flip_vertical(&mut square);
        }
        Ok(square)
    }

    fn batch(&self, indices: Vec<usize>, squares: Vec<RgbImage>) -> SquareBatch {
        let pixels = self.pixels(&squares.iter().collect::<Vec<_>>());
        SquareBatch { pixels, side: self.side as usize, indices }
    }
}

/// `count` images `[count, 3, side, side]` in [-1, 1] as bytes: `trunc(255 · clamp((x + 1) / 2, 0, 1))`, as
/// latent-diffusion writes its samples.
pub fn to_images(pixels: &[f32], side: usize) -> Vec<RgbImage> {
    let plane = side * side;
    let byte = |x: f32| (255.0 * ((x + 1.0) / 2.0).clamp(0.0, 1.0)) as u8;
    pixels
        .chunks_exact(3 * plane)
        .map(|image| {
            RgbImage::from_fn(side as u32, side as u32, |x, y| {
                let at = y as usize * side + x as usize;
                image::Rgb([0, 1, 2].map(|channel| byte(image[channel * plane + at])))
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::super::fake::Pictures;
    use super::*;

    fn batches(threads: usize) -> Batches {
        Batches { size: 4, per_epoch: 0, seed: 5, threads, ahead: 2 }
    }

    fn epoch(flips: [f64; 2], threads: usize) -> Vec<SquareBatch> {
        let loader =
            SquareLoader::new(Pictures::new(13, |i| i == 3), Squares::new(16, flips), batches(threads)).unwrap();
        loader.epoch(1, 0).map(Result::unwrap).collect()
    }

    #[test]
    fn squares_are_seeded_and_in_range_and_flips_are_flips() {
        let plain = epoch([0.0; 2], 1);
        assert_eq!(plain, epoch([0.0; 2], 3));
        assert_eq!(plain.iter().map(|batch| batch.pixels.len()).collect::<Vec<_>>(), [4 * 3 * 256; 3]);
        assert!(plain.iter().all(|batch| batch.pixels.iter().all(|x| (-1.0..=1.0).contains(x))));
        let flipped = epoch([1.0, 0.0], 1);
        assert_eq!(plain[0].indices, flipped[0].indices);
        let row = |batch: &SquareBatch| batch.pixels[..16].to_vec();
        let mut turned = row(&flipped[0]);
        turned.reverse();
        assert_eq!(row(&plain[0]), turned);
    }

    #[test]
    fn bytes_survive_the_way_to_floats_and_back() {
        let image = RgbImage::from_fn(16, 16, |x, y| image::Rgb([(16 * x + y) as u8, 255 - x as u8, 7 * y as u8]));
        let pixels = Squares::new(16, [0.0; 2]).pixels(&[&image]);
        // Truncation may lose the last bit of a value that is not exact in f32.
        let worst = to_images(&pixels, 16)[0].iter().zip(image.iter()).map(|(a, b)| a.abs_diff(*b)).max();
        assert!(worst.unwrap() <= 1, "{worst:?}");
        assert_eq!(to_images(&[-2.0, 0.0, 0.999], 1)[0].get_pixel(0, 0).0, [0, 127, 254]);
    }
}
