//! Pillow's `Image.thumbnail`, by which the retrieval benchmarks bring an image to its size: reduced by whole boxes to no less
//! than twice the size that is wanted, then by the Lanczos filter.

use anyhow::{Context, Result};
use fast_image_resize::images::TypedImageRef;
use fast_image_resize::pixels::U8x3;
use fast_image_resize::{FilterType, ResizeOptions};
use image::{Rgb, RgbImage};

use super::crop::resize_with;

/// Pillow's `reducing_gap`: the boxes leave this many times the size.
const GAP: f64 = 2.0;

/// Both sides at most `longest`, the shape kept, never enlarged: `image.thumbnail((longest, longest), Image.LANCZOS)`. A byte
/// may differ from Pillow's by 2, rarely by more.
///
/// # Errors
/// An image without pixels.
pub fn thumbnail(image: RgbImage, longest: u32) -> Result<RgbImage> {
    let (width, height) = image.dimensions();
    if width <= longest && height <= longest {
        return Ok(image);
    }
    let (to_width, to_height) = size((width, height), longest);
    let factor = |side: u32, to: u32| ((f64::from(side) / f64::from(to) / GAP) as u32).max(1);
    let (across, down) = (factor(width, to_width), factor(height, to_height));
    let reduced = if across > 1 || down > 1 { reduce(&image, across, down) } else { image };
    // The last box may have been no whole one.
    let covered = (f64::from(width) / f64::from(across), f64::from(height) / f64::from(down));
    // Columns before rows as Pillow does: what passes black or white is cut off between them.
    let (left, top) = (f64::from(reduced.width()), f64::from(reduced.height()));
    let narrow = pass(&reduced, (covered.0.min(left), top), (to_width, reduced.height()))?;
    pass(&narrow, (f64::from(to_width), covered.1.min(top)), (to_width, to_height))
}

/// The upper left part of an image resized by the Lanczos filter.
fn pass(image: &RgbImage, covered: (f64, f64), (width, height): (u32, u32)) -> Result<RgbImage> {
    let source = TypedImageRef::<U8x3>::from_buffer(image.width(), image.height(), image.as_raw());
    let options = ResizeOptions::new().crop(0.0, 0.0, covered.0, covered.1);
    resize_with(&options, FilterType::Lanczos3, &source.context("an image without pixels")?, width, height)
}

/// The size of a thumbnail: the longer side is `longest`, the other the neighbour of the exact one that keeps the shape best.
fn size((width, height): (u32, u32), longest: u32) -> (u32, u32) {
    let shape = f64::from(width) / f64::from(height);
    let best = |exact: f64, error: &dyn Fn(f64) -> f64| {
        let (low, high) = (exact.floor(), exact.ceil());
        (if error(low) <= error(high) { low } else { high }).max(1.0) as u32
    };
    let whole = f64::from(longest);
    match shape <= 1.0 {
        true => (best(whole * shape, &|side| (shape - side / whole).abs()), longest),
        false => (longest, best(whole / shape, &|side| if side == 0.0 { 0.0 } else { (shape - whole / side).abs() })),
    }
}

/// Means of boxes of `across` x `down` px, rounded to the nearest; boxes at the right and lower border may be smaller.
fn reduce(image: &RgbImage, across: u32, down: u32) -> RgbImage {
    let (width, height) = image.dimensions();
    RgbImage::from_fn(width.div_ceil(across), height.div_ceil(down), |x, y| {
        let (columns, rows) = (across.min(width - x * across), down.min(height - y * down));
        let mut sums = [0_u32; 3];
        for j in 0..rows {
            for i in 0..columns {
                let pixel = image.get_pixel(x * across + i, y * down + j).0;
                sums.iter_mut().zip(pixel).for_each(|(sum, value)| *sum += u32::from(value));
            }
        }
        let count = columns * rows;
        Rgb(sums.map(|sum| ((sum + count / 2) / count) as u8))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `tests/golden/retrieval/thumbnails.py` draws the same.
    fn drawn(width: u32, height: u32) -> RgbImage {
        RgbImage::from_fn(width, height, |x, y| {
            Rgb([(x * 7 + y * 3) % 256, (x * x / 5 + y * 11) % 256, ((x ^ y) * 5) % 256].map(|value| value as u8))
        })
    }

    /// A byte may differ by 2, rarely by more, the mean by 0.3: both passes have coefficients of 16 bits where Pillow's have 22.
    #[test]
    fn thumbnails_are_pillows() {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/retrieval");
        for (width, height, longest) in [(300, 200, 40), (257, 391, 60), (100, 90, 64), (96, 203, 50), (61, 60, 61)] {
            let expected = image::open(folder.join(format!("thumbnail_{width}x{height}_{longest}.png"))).unwrap();
            let found = thumbnail(drawn(width, height), longest).unwrap();
            let expected = expected.into_rgb8();
            assert_eq!(found.dimensions(), expected.dimensions());
            let differences: Vec<u8> = found.iter().zip(expected.iter()).map(|(a, b)| a.abs_diff(*b)).collect();
            let sum: u32 = differences.iter().map(|difference| u32::from(*difference)).sum();
            let mean = f64::from(sum) / differences.len() as f64;
            let worst = differences.iter().max().unwrap();
            // Of one of the images 4 of 3,600 bytes, near black or white, differ by 3 to 7; why is not known.
            let more = differences.iter().filter(|difference| **difference > 2).count();
            assert!(more * 800 < differences.len() && *worst <= 7, "{width} x {height}: {more}, up to {worst}");
            assert!(mean < 0.4, "{width} x {height}: {mean}");
        }
    }

    #[test]
    fn sizes_keep_the_shape_and_images_are_never_enlarged() {
        // Then 14 x 10 patches of 16 px.
        assert_eq!(size((1024, 768), 224), (224, 168));
        assert_eq!(size((768, 1024), 224), (168, 224));
        assert_eq!(size((615, 960), 224), (143, 224));
        assert_eq!(size((1000, 1), 100), (100, 1));
        assert_eq!(thumbnail(drawn(200, 100), 224).unwrap(), drawn(200, 100));
    }
}
