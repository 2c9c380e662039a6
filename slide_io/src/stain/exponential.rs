//! Exponential and logarithm of many pixels at a time.
//!
//! A pixel needs three to nine of them, and one call of the standard library's takes 15 to 30 ns. These have neither
//! branches nor calls, so the loop of [`map_pixels`] becomes vector code: a tenth of that, with errors stated and tested.

use std::f32::consts::{FRAC_1_SQRT_2, LN_2, LOG2_E};

/// Pixels that are mapped in one loop.
const BLOCK: usize = 64;

/// Adding this to a number below 2^21 leaves its nearest whole number in the low bits.
const WHOLE: f32 = 12_582_912.0;

/// `e^x` with a relative error of 5e-6 between -12 and 12, a thousandth of a grey level. Beyond ±83 that of the border.
#[inline(always)]
pub(super) fn exp(x: f32) -> f32 {
    let power = (x * LOG2_E).clamp(-120.0, 120.0);
    let shifted = power + WHOLE;
    let rest = (power - (shifted - WHOLE)) * LN_2;
    // Taylor: the rest is 0.347 at most.
    let fraction = 1.0 + rest * (1.0 + rest * (0.5 + rest * (1.0 / 6.0 + rest * (1.0 / 24.0 + rest * (1.0 / 120.0)))));
    // The whole powers of two go into the exponent.
    f32::from_bits((shifted.to_bits() << 23).wrapping_add(fraction.to_bits()))
}

/// `ln x` of a positive normal number, with an error of 6e-7 for the numbers from 0.5 to 512.
#[inline(always)]
pub(super) fn ln(x: f32) -> f32 {
    // Split into 2^exponent times a mantissa from √½ to √2.
    let bits = x.to_bits().wrapping_sub(FRAC_1_SQRT_2.to_bits());
    let exponent = (bits as i32 >> 23) as f32;
    let mantissa = f32::from_bits((bits & 0x007F_FFFF) + FRAC_1_SQRT_2.to_bits());
    // 2 artanh s, and s is 0.172 at most.
    let s = (mantissa - 1.0) / (mantissa + 1.0);
    let square = s * s;
    exponent * LN_2 + 2.0 * s * (1.0 + square * (1.0 / 3.0 + square * (1.0 / 5.0 + square * (1.0 / 7.0))))
}

/// Replaces every pixel by what `map` makes of it, rounded and cut to 0 to 255.
///
/// Neither this nor `map` should use `array::map` or `array::from_fn`: the compiler may leave them as calls, and one call
/// in the loop costs ten times all the rest.
#[inline(always)]
pub(super) fn map_pixels(pixels: &mut [[u8; 3]], map: impl Fn([f32; 3]) -> [f32; 3]) {
    let (mut red, mut green, mut blue) = ([0.0f32; BLOCK], [0.0f32; BLOCK], [0.0f32; BLOCK]);
    for block in pixels.chunks_mut(BLOCK) {
        for (i, &[r, g, b]) in block.iter().enumerate() {
            (red[i], green[i], blue[i]) = (f32::from(r), f32::from(g), f32::from(b));
        }
        for i in 0..BLOCK {
            let [r, g, b] = map([red[i], green[i], blue[i]]);
            let rounded = |v: f32| v.clamp(0.0, 255.0) + WHOLE;
            (red[i], green[i], blue[i]) = (rounded(r), rounded(g), rounded(b));
        }
        for (i, pixel) in block.iter_mut().enumerate() {
            *pixel = [red[i].to_bits() as u8, green[i].to_bits() as u8, blue[i].to_bits() as u8];
        }
    }
}

/// The scalar product.
#[inline(always)]
pub(super) fn times(a: [f32; 3], b: [f32; 3]) -> f32 {
    a[0] * b[0] + a[1] * b[1] + a[2] * b[2]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_near_that_of_the_standard_library() {
        for i in -80_000..=80_000 {
            let x = i as f32 / 1000.0;
            let exact = f64::from(x).exp();
            // x log2(e) is rounded, which costs more the larger it is; densities and logarithms are below 12.
            let allowed = if x.abs() <= 12.0 { 5e-6 } else { 1.2e-5 };
            assert!((f64::from(exp(x)) / exact - 1.0).abs() < allowed, "{x}: {} {exact}", exp(x));
        }
        assert_eq!(exp(0.0), 1.0);
        assert!(exp(-1e9) > 0.0 && exp(-1e9) < 1e-30 && exp(1e9).is_finite());
    }

    #[test]
    fn ln_is_near_that_of_the_standard_library() {
        for i in 500..=512_000 {
            let x = i as f32 / 1000.0;
            let exact = f64::from(x).ln();
            assert!((f64::from(ln(x)) - exact).abs() < 6e-7, "{x}: {} {exact}", ln(x));
        }
        assert_eq!(ln(1.0), 0.0);
    }

    #[test]
    fn pixels_are_mapped_rounded_and_cut_whatever_their_number() {
        for count in [0, 1, 63, 64, 65, 200] {
            let before: Vec<[u8; 3]> = (0..count).map(|i| [i as u8, 255 - i as u8, 7]).collect();
            let mut after = before.clone();
            map_pixels(&mut after, |pixel| pixel);
            assert_eq!(after, before);
            map_pixels(&mut after, |[red, green, blue]| [2.0 * red - 100.0, green + 0.6, blue * 1e9]);
            for ([red, green, _], after) in before.iter().zip(&after) {
                let red = (2 * i32::from(*red) - 100).clamp(0, 255) as u8;
                assert_eq!(*after, [red, green.saturating_add(1), 255]);
            }
        }
    }
}
