//! Where a crop lies (torchvision's rules) and Pillow's antialiased bicubic resize.

use std::cell::RefCell;

use anyhow::{Context, Result, ensure};
use fast_image_resize::images::{TypedCroppedImage, TypedImage, TypedImageRef};
use fast_image_resize::pixels::U8x3;
use fast_image_resize::{FilterType, ImageView, ResizeAlg, ResizeOptions, Resizer};
use image::RgbImage;
use rand::{Rng, RngExt};

/// Width over height of a random crop, smallest and largest: torchvision's and DINO's.
pub const RATIO: [f64; 2] = [3.0 / 4.0, 4.0 / 3.0];
/// Tries before a random crop falls back to the centre.
const TRIES: usize = 10;

/// A rectangle of an image, px.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rect {
    /// From the left edge.
    pub x: u32,
    /// From the top edge.
    pub y: u32,
    /// Along x.
    pub width: u32,
    /// Along y.
    pub height: u32,
}

/// A uniform number from `low` up to `high`.
pub(crate) fn uniform([low, high]: [f64; 2], rng: &mut impl Rng) -> f64 {
    low + (high - low) * rng.random::<f64>()
}

impl Rect {
    /// Where torchvision's `RandomResizedCrop` cuts a `width` x `height` image: a share of the area uniform in `scale`,
    /// a width over height log-uniform in [`RATIO`], ten tries, then as much of the centre as the ratio allows.
    ///
    /// Draws per try: area, ratio; and where it fits: y, x.
    pub fn random((width, height): (u32, u32), scale: [f64; 2], rng: &mut impl Rng) -> Self {
        let area = f64::from(width) * f64::from(height);
        for _ in 0..TRIES {
            let share = uniform(scale, rng);
            let ratio = uniform(RATIO.map(f64::ln), rng).exp();
            let (w, h) = area_and_ratio(area * share, ratio);
            if (1..=width).contains(&w) && (1..=height).contains(&h) {
                let y = rng.random_range(0..=height - h);
                let x = rng.random_range(0..=width - w);
                return Self { x, y, width: w, height: h };
            }
        }
        Self::largest_center((width, height))
    }

    /// The largest centred rectangle with a width over height in [`RATIO`].
    fn largest_center((width, height): (u32, u32)) -> Self {
        let (w, h) = (f64::from(width), f64::from(height));
        let (w, h) = if w / h < RATIO[0] {
            (width, (w / RATIO[0]).round_ties_even() as u32)
        } else if w / h > RATIO[1] {
            ((h * RATIO[1]).round_ties_even() as u32, height)
        } else {
            (width, height)
        };
        Self { x: (width - w) / 2, y: (height - h) / 2, width: w, height: h }
    }

    /// The largest centred rectangle of an image of `size` that has the shape of `shape`, to a pixel.
    pub fn center_of_shape((width, height): (u32, u32), shape: (u32, u32)) -> Self {
        let [w, h, shape_w, shape_h] = [width, height, shape.0, shape.1].map(u64::from);
        let narrowed = |length: u64, by: u64, over: u64| ((length * by + over / 2) / over.max(1)).max(1) as u32;
        let (width_in, height_in) = match w * shape_h > h * shape_w {
            true => (narrowed(h, shape_w, shape_h).min(width), height),
            false => (width, narrowed(w, shape_h, shape_w).min(height)),
        };
        Self { x: (width - width_in) / 2, y: (height - height_in) / 2, width: width_in, height: height_in }
    }

    /// Torchvision's `CenterCrop` of `side` px.
    fn center((width, height): (u32, u32), side: u32) -> Self {
        let offset = |length: u32| (f64::from(length - side) / 2.0).round_ties_even() as u32;
        Self { x: offset(width), y: offset(height), width: side, height: side }
    }
}

/// Width and height of a rectangle of `area` px² and `ratio` width over height, rounded as Python rounds.
fn area_and_ratio(area: f64, ratio: f64) -> (u32, u32) {
    ((area * ratio).sqrt().round_ties_even() as u32, (area / ratio).sqrt().round_ties_even() as u32)
}

thread_local! {
    // Keeps its buffers from image to image.
    static RESIZER: RefCell<Resizer> = RefCell::new(Resizer::new());
}

/// Cuts `rect` out and resizes it to `size` with Pillow's bicubic filter (a = -0.5, widened where it shrinks), columns
/// before rows as Pillow does. Coefficients have 16 bits where Pillow's have 22, so a byte may differ by 1.
///
/// # Errors
/// A rectangle that is empty or outside the image.
pub fn crop_and_resize(image: &RgbImage, rect: Rect, size: (u32, u32)) -> Result<RgbImage> {
    crop_and_resize_by(FilterType::CatmullRom, image, rect, size)
}

/// As [`crop_and_resize`], with Pillow's bilinear filter (widened where it shrinks): torchvision's default.
///
/// # Errors
/// A rectangle that is empty or outside the image.
pub fn crop_and_resize_bilinear(image: &RgbImage, rect: Rect, size: (u32, u32)) -> Result<RgbImage> {
    crop_and_resize_by(FilterType::Bilinear, image, rect, size)
}

fn crop_and_resize_by(
    filter: FilterType,
    image: &RgbImage,
    rect: Rect,
    (width, height): (u32, u32),
) -> Result<RgbImage> {
    let pixels = |image| -> Result<TypedImageRef<U8x3>> {
        let (width, height) = RgbImage::dimensions(image);
        Ok(TypedImageRef::from_buffer(width, height, image.as_raw())?)
    };
    let source = pixels(image)?;
    let source = TypedCroppedImage::from_ref(&source, rect.x, rect.y, rect.width, rect.height)
        .with_context(|| format!("crop {rect:?} of {} x {} px", image.width(), image.height()))?;
    let narrowed = if rect.width == width { None } else { Some(resize_to(filter, &source, width, rect.height)?) };
    match &narrowed {
        Some(narrowed) => resize_to(filter, &pixels(narrowed)?, width, height),
        None => resize_to(filter, &source, width, height),
    }
}

fn resize_to(filter: FilterType, source: &impl ImageView<Pixel = U8x3>, width: u32, height: u32) -> Result<RgbImage> {
    resize_with(&ResizeOptions::new(), filter, source, width, height)
}

/// Resizes what the options say of `source` by a filter.
pub(super) fn resize_with(
    options: &ResizeOptions,
    filter: FilterType,
    source: &impl ImageView<Pixel = U8x3>,
    width: u32,
    height: u32,
) -> Result<RgbImage> {
    let options = options.resize_alg(ResizeAlg::Convolution(filter)).use_alpha(false);
    let mut out = RgbImage::new(width, height);
    // Of this one kind of pixel: code for all that the library knows would be 4 MB of the program.
    let mut target = TypedImage::from_buffer(width, height, &mut out)?;
    RESIZER.with_borrow_mut(|resizer| resizer.resize_typed(source, &mut target, &options))?;
    Ok(out)
}

/// Size after torchvision's `Resize(short)`: the short side becomes `short`, the long one is rounded down; 0 keeps it.
pub fn resized((width, height): (u32, u32), short: u32) -> (u32, u32) {
    let long = |long: u32, side: u32| (f64::from(short) * f64::from(long) / f64::from(side)) as u32;
    match short {
        0 => (width, height),
        _ if width <= height => (short, long(height, width)),
        _ => (long(width, height), short),
    }
}

/// The evaluation transform: the short side resized to `resize` px (0: as it is), then the centre `crop` px square
/// (0: the whole).
///
/// # Errors
/// An image smaller than the crop.
pub fn evaluation_view(image: RgbImage, resize: u32, crop: u32) -> Result<RgbImage> {
    let size = resized(image.dimensions(), resize);
    let image = if size == image.dimensions() {
        image
    } else {
        let whole = Rect { x: 0, y: 0, width: image.width(), height: image.height() };
        crop_and_resize(&image, whole, size)?
    };
    if crop == 0 || size == (crop, crop) {
        return Ok(image);
    }
    ensure!(
        size.0 >= crop && size.1 >= crop,
        "{} x {} px is smaller than the centre crop of {crop}: set embed.resize or a smaller embed.crop",
        size.0,
        size.1
    );
    let Rect { x, y, width, height } = Rect::center(size, crop);
    Ok(image::imageops::crop_imm(&image, x, y, width, height).to_image())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::golden::Golden;
    use crate::data::order::item_rng;
    use image::Rgb;
    use proptest::prelude::*;

    #[test]
    fn sizes_and_fallbacks_are_those_of_torchvision() {
        let golden = Golden::load();
        assert!(golden.crop_sizes.len() > 12 && golden.crop_fallbacks.len() == 5);
        for case in golden.crop_sizes {
            let area = f64::from(case.size.0) * f64::from(case.size.1);
            assert_eq!(area_and_ratio(area * case.share, case.ratio), case.crop, "{:?} {}", case.size, case.share);
        }
        for case in golden.crop_fallbacks {
            let Rect { x, y, width, height } = Rect::largest_center(case.size);
            assert_eq!((x, y, width, height), case.rect, "{:?}", case.size);
            // An area of 5 times the image never fits.
            let random = Rect::random(case.size, [5.0, 5.0], &mut item_rng(0, 0, 0));
            assert_eq!(random, Rect::largest_center(case.size));
        }
    }

    proptest! {
        #[test]
        fn a_random_crop_lies_inside_and_honours_scale_and_ratio(
            width in 1u32..600, height in 1u32..600, low in 0.05f64..1.0, seed in any::<u64>(),
        ) {
            let scale = [low, (low + 0.3).min(1.0)];
            let rect = Rect::random((width, height), scale, &mut item_rng(seed, 0, 0));
            prop_assert!(rect.width > 0 && rect.height > 0);
            prop_assert!(rect.x + rect.width <= width && rect.y + rect.height <= height);
            if rect != Rect::largest_center((width, height)) {
                // Each side is rounded by up to half a pixel.
                let (w, h) = (f64::from(rect.width), f64::from(rect.height));
                let area = f64::from(width) * f64::from(height);
                prop_assert!((w + 0.5) * (h + 0.5) >= scale[0] * area && (w - 0.5) * (h - 0.5) <= scale[1] * area);
                prop_assert!((w + 0.5) / (h - 0.5) >= RATIO[0] && (w - 0.5) / (h + 0.5) <= RATIO[1]);
            }
        }
    }

    #[test]
    fn random_crops_cover_their_ranges_evenly() {
        let (n, side) = (20_000, 1000u32);
        let mut rng = item_rng(3, 0, 0);
        let rects: Vec<Rect> = (0..n).map(|_| Rect::random((side, side), [0.05, 0.4], &mut rng)).collect();
        let mean = |value: &dyn Fn(&Rect) -> f64| rects.iter().map(value).sum::<f64>() / n as f64;
        let share = |r: &Rect| f64::from(r.width) * f64::from(r.height) / 1e6;
        let log_ratio = |r: &Rect| (f64::from(r.width) / f64::from(r.height)).ln();
        // Uniform in 0.05..0.4: mean 0.225, standard deviation of the mean 0.0007; log ratio: mean 0, 0.0012; 4 deviations.
        assert!((mean(&share) - 0.225).abs() < 0.003, "{}", mean(&share));
        assert!(mean(&log_ratio).abs() < 0.005, "{}", mean(&log_ratio));
        assert!((mean(&|r| f64::from(r.x) / f64::from(side - r.width)) - 0.5).abs() < 0.009);
        assert!((mean(&|r| f64::from(r.y) / f64::from(side - r.height)) - 0.5).abs() < 0.009);
    }

    fn row(values: &[u8]) -> RgbImage {
        RgbImage::from_fn(values.len() as u32, 1, |x, _| Rgb([values[x as usize]; 3]))
    }

    #[test]
    fn bicubic_worked_numbers() {
        for (values, expected) in [
            (vec![0, 30, 60, 90, 120, 150, 180, 210], vec![16, 74, 136, 194]),
            (vec![0, 100, 200, 50], vec![0, 17, 71, 131, 193, 174, 81, 37]),
        ] {
            let (from, to) = (row(&values), row(&expected));
            let whole = Rect { x: 0, y: 0, width: from.width(), height: 1 };
            assert_eq!(crop_and_resize(&from, whole, to.dimensions()).unwrap(), to);
        }
    }

    /// Pillow 12's `resize(..., BILINEAR)`; coefficients have fewer bits here, so a byte may differ by 1.
    #[test]
    fn bilinear_worked_numbers() {
        for (values, expected) in [
            (vec![0, 30, 60, 90, 120, 150, 180, 210], vec![21, 75, 135, 189]),
            (vec![0, 100, 200, 50], vec![0, 25, 75, 125, 175, 163, 88, 50]),
            (vec![10, 200, 30, 90, 250, 0, 60], vec![96, 115, 75]),
        ] {
            let (from, to) = (row(&values), row(&expected));
            let whole = Rect { x: 0, y: 0, width: from.width(), height: 1 };
            let found = crop_and_resize_bilinear(&from, whole, to.dimensions()).unwrap();
            assert!(found.iter().zip(to.iter()).all(|(a, b)| a.abs_diff(*b) <= 1), "{found:?}");
        }
    }

    #[test]
    fn evaluation_sizes() {
        assert_eq!(resized((640, 427), 256), (383, 256));
        assert_eq!(resized((427, 640), 256), (256, 383));
        assert_eq!(resized((96, 96), 0), (96, 96));
        let image = RgbImage::new(30, 20);
        assert_eq!(evaluation_view(image.clone(), 0, 0).unwrap(), image);
        let error = evaluation_view(image, 0, 24).unwrap_err().to_string();
        assert!(error.contains("30 x 20 px is smaller than the centre crop of 24"), "{error}");
    }
}
