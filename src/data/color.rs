//! Pillow's 8-bit colour operations, byte for byte, as torchvision calls them on PIL images.
//!
//! Sources: Pillow `Blend.c`, `Convert.c`, `ImageEnhance.py`, `ImageOps.py`; torchvision `_functional_pil.py`. All work
//! in place. The floating-point operations below are in Pillow's order and precision: do not simplify them.

use image::RgbImage;
use std::sync::LazyLock;

fn pixels(image: &mut RgbImage) -> &mut [[u8; 3]] {
    image.as_chunks_mut().0
}

/// ITU-R 601 luma in 16-bit fixed point, Pillow's `convert("L")`.
#[inline]
pub fn luma([r, g, b]: [u8; 3]) -> u8 {
    ((19595 * u32::from(r) + 38470 * u32::from(g) + 7471 * u32::from(b) + 0x8000) >> 16) as u8
}

/// Pillow's `Image.blend(from, to, factor)` for one byte: truncated, clipped where it extrapolates.
#[inline]
fn blend(from: f32, to: f32, factor: f32) -> u8 {
    (from + factor * (to - from)) as u8
}

fn map_bytes(image: &mut RgbImage, table: &[u8; 256]) {
    for byte in image.iter_mut() {
        *byte = table[usize::from(*byte)];
    }
}

/// A blend from one grey value towards every byte of the image.
fn blend_from(image: &mut RgbImage, gray: u8, factor: f32) {
    map_bytes(image, &std::array::from_fn(|byte| blend(f32::from(gray), byte as f32, factor)));
}

/// Brightness: 0 is black, 1 the image.
pub fn brightness(image: &mut RgbImage, factor: f32) {
    blend_from(image, 0, factor);
}

/// Contrast: 0 is the image's mean luma, 1 the image.
pub fn contrast(image: &mut RgbImage, factor: f32) {
    let pixels = pixels(image);
    if pixels.is_empty() {
        return;
    }
    let sum: u64 = pixels.iter().map(|&pixel| u64::from(luma(pixel))).sum();
    let mean = sum as f64 / pixels.len() as f64;
    blend_from(image, (mean + 0.5) as u8, factor);
}

/// Saturation: 0 is the greyscale image, 1 the image.
pub fn saturation(image: &mut RgbImage, factor: f32) {
    for pixel in pixels(image) {
        let gray = f32::from(luma(*pixel));
        *pixel = pixel.map(|byte| blend(gray, f32::from(byte), factor));
    }
}

/// Shifts the hue by `shift` turns of the colour circle, -0.5 to 0.5, through Pillow's 8-bit HSV. The way there and
/// back loses precision, so a shift of 0 is not the identity.
pub fn hue(image: &mut RgbImage, shift: f64) {
    let shift = (shift * 255.0) as i32 as u8;
    let sextants = &*SEXTANTS;
    for pixel in pixels(image) {
        let [h, s, v] = rgb_to_hsv(*pixel);
        *pixel = hsv_to_rgb([s, v], sextants[usize::from(h.wrapping_add(shift))]);
    }
}

/// Greyscale on three channels.
pub fn grayscale(image: &mut RgbImage) {
    for pixel in pixels(image) {
        *pixel = [luma(*pixel); 3];
    }
}

/// Inverts bytes of at least `threshold`.
pub fn solarize(image: &mut RgbImage, threshold: u8) {
    map_bytes(
        image,
        &std::array::from_fn(|byte| if byte < usize::from(threshold) { byte as u8 } else { 255 - byte as u8 }),
    );
}

/// Mirrors left and right.
pub fn flip_horizontal(image: &mut RgbImage) {
    let width = image.width() as usize;
    if width > 0 {
        pixels(image).chunks_exact_mut(width).for_each(<[_]>::reverse);
    }
}

/// Mirrors top and bottom.
pub fn flip_vertical(image: &mut RgbImage) {
    let (width, height) = (image.width() as usize, image.height() as usize);
    let (top, bottom) = pixels(image).split_at_mut(height / 2 * width);
    let below_middle = (height % 2) * width;
    if width > 0 {
        let mirrored = bottom[below_middle..].chunks_exact_mut(width).rev();
        top.chunks_exact_mut(width).zip(mirrored).for_each(|(upper, lower)| upper.swap_with_slice(lower));
    }
}

/// Pillow's `convert("HSV")` for one pixel.
#[inline]
fn rgb_to_hsv([r, g, b]: [u8; 3]) -> [u8; 3] {
    let (max, min) = (r.max(g).max(b), r.min(g).min(b));
    if max == min {
        return [0, 0, max];
    }
    let range = f32::from(max - min);
    let (sextant, ahead, behind) = if r == max {
        (0.0, b, g)
    } else if g == max {
        (2.0, r, b)
    } else {
        (4.0, g, r)
    };
    let [ahead, behind] = [ahead, behind].map(|byte| f64::from(f32::from(max - byte) / range));
    let sixth = (sextant + ahead - behind) as f32;
    // Between 5/6 and 11/6, so that taking 1 off is fmod(turn, 1).
    let turn = f64::from(sixth) / 6.0 + 1.0;
    let turn = (if turn >= 1.0 { turn - 1.0 } else { turn }) as f32;
    let saturation = range / f32::from(max);
    [(f64::from(turn) * 255.0) as i32 as u8, (f64::from(saturation) * 255.0) as i32 as u8, max]
}

/// What the way back needs of a hue.
#[derive(Clone, Copy)]
struct Sextant {
    /// Which of v, p, q, t becomes red, green and blue.
    order: [u8; 3],
    /// The place in the sextant, 0 to 1.
    place: f32,
}

/// For every hue. Six branches that cannot be predicted would cost more than the arithmetic.
static SEXTANTS: LazyLock<[Sextant; 256]> = LazyLock::new(|| {
    const V: u8 = 0;
    const P: u8 = 1;
    const Q: u8 = 2;
    const T: u8 = 3;
    let orders = [[V, T, P], [Q, V, P], [P, V, T], [P, Q, V], [T, P, V], [V, P, Q]];
    std::array::from_fn(|hue| {
        let sixth = hue as f64 * 6.0 / 255.0;
        let number = sixth.floor();
        Sextant { order: orders[number as usize % 6], place: (sixth - number) as f32 }
    })
});

/// Pillow's conversion of HSV to RGB for one pixel.
#[inline]
fn hsv_to_rgb([s, v]: [u8; 2], sextant: Sextant) -> [u8; 3] {
    let saturation = (f64::from(s) / 255.0) as f32;
    // C's round() of a number that is never negative. Without saturation all four are v, as in Pillow.
    let scaled = |share: f64| (f64::from(v) * (1.0 - share) + 0.5) as i32 as u8;
    let p = scaled(f64::from(saturation));
    let q = scaled(f64::from(saturation * sextant.place));
    let t = scaled(f64::from(saturation) * (1.0 - f64::from(sextant.place)));
    let vpqt = [v, p, q, t];
    sextant.order.map(|part| vpqt[usize::from(part & 3)])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::golden::{Golden, sha256};

    fn two_pixels() -> RgbImage {
        RgbImage::from_raw(2, 1, vec![200, 100, 50, 10, 20, 30]).unwrap()
    }

    fn after(op: impl Fn(&mut RgbImage)) -> Vec<u8> {
        let mut image = two_pixels();
        op(&mut image);
        image.into_raw()
    }

    #[test]
    fn worked_numbers() {
        assert_eq!((luma([200, 100, 50]), luma([10, 20, 30])), (124, 18));
        assert_eq!(after(|image| brightness(image, 1.4)), [255, 140, 70, 14, 28, 42]);
        assert_eq!(after(|image| contrast(image, 0.6)), [148, 88, 58, 34, 40, 46]);
        assert_eq!(after(|image| saturation(image, 0.8)), [184, 104, 64, 11, 19, 27]);
        assert_eq!(after(grayscale), [124, 124, 124, 18, 18, 18]);
        assert_eq!(rgb_to_hsv([200, 100, 50]), [14, 191, 200]);
        let mut image = RgbImage::from_raw(2, 1, vec![0, 127, 128, 200, 255, 0]).unwrap();
        solarize(&mut image, 128);
        assert_eq!(image.into_raw(), [0, 127, 127, 55, 0, 0]);
    }

    #[test]
    fn all_colors_convert_as_pillow_converts_them() {
        let golden = Golden::load().exhaustive;
        let every = || (0..1u32 << 24).map(|color| [(color >> 16) as u8, (color >> 8) as u8, color as u8]);
        assert_eq!(sha256(every().map(|color| [luma(color)])), golden.luma);
        assert_eq!(sha256(every().map(rgb_to_hsv)), golden.rgb_to_hsv);
        assert_eq!(sha256(every().map(|[h, s, v]| hsv_to_rgb([s, v], SEXTANTS[usize::from(h)]))), golden.hsv_to_rgb);
    }

    #[test]
    fn empty_images_stay_empty() {
        for op in [flip_horizontal, flip_vertical, grayscale, |image: &mut RgbImage| contrast(image, 0.5)] {
            let mut image = RgbImage::new(0, 0);
            op(&mut image);
            assert_eq!(image.dimensions(), (0, 0));
        }
    }
}
