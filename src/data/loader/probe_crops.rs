//! Random crops for the linear probe, as DINO's `eval_linear.py` shows the training images: `RandomResizedCrop` with
//! torchvision's own scale, ratio and bilinear filter, then a horizontal flip half of the time.

use anyhow::{Result, ensure};
use image::RgbImage;
use rand::RngExt;
use rand_chacha::ChaCha8Rng;

use super::training::Treatment;
use crate::data::color;
use crate::data::crop::{Rect, crop_and_resize_bilinear};
use crate::data::normalize::Normalize;

/// Probability of a horizontal flip.
const FLIP: f64 = 0.5;

/// One random crop of every image.
#[derive(Clone, Debug)]
pub struct ProbeCrops {
    side: u32,
    scale: [f64; 2],
    normalize: Normalize,
}

/// A batch of crops.
#[derive(Clone, Debug, PartialEq)]
pub struct ProbeBatch {
    /// `[indices.len(), 3, side, side]`, normalised.
    pub pixels: Vec<f32>,
    /// Where the images are in the source.
    pub indices: Vec<usize>,
}

impl ProbeCrops {
    /// Crops of `side` px with a share of the area in `scale`, normalised by `mean` and `std` per channel.
    ///
    /// # Errors
    /// A side of 0.
    pub fn new(side: u32, scale: [f64; 2], mean: [f32; 3], std: [f32; 3]) -> Result<Self> {
        ensure!(side > 0, "a crop needs a side of at least one pixel");
        Ok(Self { side, scale, normalize: Normalize::new(mean, std) })
    }
}

impl Treatment for ProbeCrops {
    type Views = RgbImage;
    type Batch = ProbeBatch;

    fn views(&self, _: usize, image: RgbImage, rng: &mut ChaCha8Rng) -> Result<RgbImage> {
        let rect = Rect::random(image.dimensions(), self.scale, rng);
        let mut crop = crop_and_resize_bilinear(&image, rect, (self.side, self.side))?;
        if rng.random::<f64>() < FLIP {
            color::flip_horizontal(&mut crop);
        }
        Ok(crop)
    }

    fn batch(&self, indices: Vec<usize>, crops: Vec<RgbImage>) -> ProbeBatch {
        ProbeBatch { pixels: self.normalize.images(&crops.iter().collect::<Vec<_>>()), indices }
    }
}

#[cfg(test)]
mod tests {
    use super::super::fake::Pictures;
    use super::super::training::{Batches, TrainingLoader};
    use super::*;

    fn epoch(epoch: usize, threads: usize) -> Vec<ProbeBatch> {
        let crops = ProbeCrops::new(16, [0.08, 1.0], [0.0; 3], [1.0 / 255.0; 3]).unwrap();
        let batches = Batches { size: 4, per_epoch: 0, seed: 5, threads, ahead: 2 };
        let loader = TrainingLoader::treated(Pictures::new(12, |i| i == 3), crops, batches).unwrap();
        loader.epoch(epoch, 0).map(Result::unwrap).collect()
    }

    #[test]
    fn crops_are_seeded_and_new_every_epoch() {
        let first = epoch(0, 1);
        assert_eq!(first, epoch(0, 3));
        assert_ne!(first, epoch(1, 1));
        assert_eq!(first.len(), 3);
        for batch in &first {
            assert_eq!(batch.pixels.len(), 4 * 3 * 16 * 16);
            // The red of every picture is its index, whatever is cut out.
            for (pixels, &index) in batch.pixels.chunks(3 * 256).zip(&batch.indices) {
                assert!(pixels[..256].iter().all(|&red| (red - index as f32).abs() < 1e-3));
            }
        }
        // Unreadable ones are replaced, never shown.
        assert!(first.iter().all(|batch| !batch.indices.contains(&3)));
        assert!(ProbeCrops::new(0, [0.08, 1.0], [0.0; 3], [1.0; 3]).is_err());
    }
}
