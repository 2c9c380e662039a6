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
    for pixel in pixels(image) {
        let [h, s, v] = rgb_to_hsv(*pixel);
        *pixel = hsv_to_rgb([h.wrapping_add(shift), s, v]);
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
    let [rc, gc, bc] = [r, g, b].map(|byte| f32::from(max - byte) / range);
    let sixth = if r == max {
        bc - gc
    } else if g == max {
        (2.0 + f64::from(rc) - f64::from(bc)) as f32
    } else {
        (4.0 + f64::from(gc) - f64::from(rc)) as f32
    };
    // Between 5/6 and 11/6, so that taking 1 off is fmod(turn, 1).
    let turn = f64::from(sixth) / 6.0 + 1.0;
    let turn = (if turn >= 1.0 { turn - 1.0 } else { turn }) as f32;
    let saturation = range / f32::from(max);
    [(f64::from(turn) * 255.0) as u8, (f64::from(saturation) * 255.0) as u8, max]
}

/// Sextant and place in it, for every hue.
static SEXTANTS: LazyLock<[(u8, f32); 256]> = LazyLock::new(|| {
    std::array::from_fn(|hue| {
        let sixth = f64::from(hue as f32) * 6.0 / 255.0;
        let sextant = sixth.floor();
        (sextant as u8 % 6, (sixth - sextant as f32 as f64) as f32)
    })
});

/// Pillow's conversion of HSV to RGB for one pixel.
#[inline]
fn hsv_to_rgb([h, s, v]: [u8; 3]) -> [u8; 3] {
    if s == 0 {
        return [v; 3];
    }
    let (sextant, place) = SEXTANTS[usize::from(h)];
    let saturation = (f64::from(s) / 255.0) as f32;
    // C's round() of a number that is never negative.
    let scaled = |share: f64| (f64::from(v) * (1.0 - share) + 0.5) as u8;
    let p = scaled(f64::from(saturation));
    let q = scaled(f64::from(saturation * place));
    let t = scaled(f64::from(saturation) * (1.0 - f64::from(place)));
    match sextant {
        0 => [v, t, p],
        1 => [q, v, p],
        2 => [p, v, t],
        3 => [p, q, v],
        4 => [t, p, v],
        _ => [v, p, q],
    }
}
