//! Functions of every value alone, among them SiLU and GELU: f32 values in memory, forward and backward.
//!
//! They are made of operations that vectors have. Loops are plain; `macerator`, which burn's CPU backend uses as well,
//! compiles them for the vector instructions of the machine it finds itself on.

use macerator::{AutoArch, Simd, WithSimd};
use rayon::prelude::*;

/// Values of one piece of work.
pub const PIECE: usize = 16 * 1024;

/// `x sigmoid(x)`.
pub fn silu(x: &[f32]) -> Vec<f32> {
    map(x, |x| x * sigmoid(x))
}

/// The gradient of x of [`silu`] from that of the result.
pub fn silu_backward(x: &[f32], grad: &[f32]) -> Vec<f32> {
    map_pairs(x, grad, |x, grad| grad * silu_slope(x))
}

/// `x Φ(x)` with the normal distribution function Φ.
pub fn gelu(x: &[f32]) -> Vec<f32> {
    map(x, |x| x * normal(x).0)
}

/// The gradient of x of [`gelu`] from that of the result.
pub fn gelu_backward(x: &[f32], grad: &[f32]) -> Vec<f32> {
    map_pairs(x, grad, |x, grad| {
        let (distribution, density) = normal(x);
        grad * (distribution + x * density)
    })
}

fn map(x: &[f32], f: impl Fn(f32) -> f32 + Copy + Sync) -> Vec<f32> {
    let mut y = vec![0.0; x.len()];
    y.par_chunks_mut(PIECE).zip(x.par_chunks(PIECE)).for_each(|(y, x)| AutoArch::new().dispatch(Map { x, y, f }));
    y
}

fn map_pairs(a: &[f32], b: &[f32], f: impl Fn(f32, f32) -> f32 + Copy + Sync) -> Vec<f32> {
    let mut y = vec![0.0; a.len()];
    y.par_chunks_mut(PIECE)
        .zip(a.par_chunks(PIECE).zip(b.par_chunks(PIECE)))
        .for_each(|(y, (a, b))| AutoArch::new().dispatch(MapPairs { a, b, y, f }));
    y
}

struct Map<'a, F> {
    x: &'a [f32],
    y: &'a mut [f32],
    f: F,
}

impl<F: Fn(f32) -> f32> WithSimd for Map<'_, F> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self) {
        for (y, x) in self.y.iter_mut().zip(self.x) {
            *y = (self.f)(*x);
        }
    }
}

struct MapPairs<'a, F> {
    a: &'a [f32],
    b: &'a [f32],
    y: &'a mut [f32],
    f: F,
}

impl<F: Fn(f32, f32) -> f32> WithSimd for MapPairs<'_, F> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self) {
        for ((y, a), b) in self.y.iter_mut().zip(self.a).zip(self.b) {
            *y = (self.f)(*a, *b);
        }
    }
}

#[inline(always)]
pub fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// The derivative of `x sigmoid(x)`.
#[inline(always)]
pub fn silu_slope(x: f32) -> f32 {
    let s = sigmoid(x);
    s + x * s * (1.0 - s)
}

/// e^x within 2e-7 of the value, in operations that vectors have: 2^n times a polynomial on ±ln(2)/2 (Cephes, Moshier).
/// Constant below -87 and above 88.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    /// Adding it leaves a whole number in the lowest bits.
    const ROUND: f32 = 12_582_912.0;
    let x = x.clamp(-87.0, 88.0);
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = x - n * 0.693_359_4 + n * 2.121_944_4e-4;
    let mut p = 1.987_569_1e-4;
    for coefficient in [1.398_2e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5] {
        p = p * r + coefficient;
    }
    let power = f32::from_bits(shifted.to_bits().wrapping_add(127).wrapping_shl(23));
    (p * r * r + r + 1.0) * power
}

/// Distribution function Φ and density of the standard normal distribution at x, with a relative error of 5e-7 plus that of a
/// rounded x²/2 in the exponent, 6e-8 x². Φ(-|x|) = exp(-x²/2) M(|x|), and M a polynomial in 1 / (1 + 0.35 |x|) fitted to it
/// up to 13.3 so that its largest relative error is smallest, 3e-8.
#[inline(always)]
fn normal(x: f32) -> (f32, f32) {
    /// 1 / √(2π).
    const PEAK: f32 = 0.398_942_3;
    let bell = exp(-0.5 * x * x);
    let u = 1.0 / (1.0 + 0.35 * x.abs());
    let mut m = -0.029_115_09;
    for coefficient in [
        0.143_818_78,
        -0.255_391_78,
        0.158_797_41,
        -0.022_844_002,
        0.105_392_38,
        0.119_863_03,
        0.139_857_58,
        0.139_621_66,
    ] {
        m = m * u + coefficient;
    }
    let tail = bell * (m * u);
    (if x < 0.0 { tail } else { 1.0 - tail }, bell * PEAK)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the documentation of [`exp`] says, and that what is not a number stays so.
    #[test]
    fn exponential_is_that_of_the_standard_library() {
        for i in -87_000..88_000 {
            let x = i as f32 / 1000.0;
            let right = f64::from(x).exp();
            assert!((f64::from(exp(x)) / right - 1.0).abs() < 2e-7, "{x}");
        }
        assert!(exp(f32::NAN).is_nan());
        assert_eq!((sigmoid(-1e30), sigmoid(1e30)), (1.0 / (1.0 + exp(88.0)), 1.0));
    }

    /// What the documentation of [`normal`] says, against the complementary error function in f64.
    #[test]
    fn normal_distribution_is_that_of_the_error_function() {
        for i in -12_000..12_000 {
            let x = i as f32 / 1000.0;
            let allowed = 5e-7 + 6e-8 * f64::from(x).powi(2);
            let right = 0.5 * libm::erfc(-f64::from(x) / std::f64::consts::SQRT_2);
            let (distribution, density) = normal(x);
            assert!((f64::from(distribution) / right - 1.0).abs() < allowed, "{x}: {distribution} {right}");
            let right = (-0.5 * f64::from(x).powi(2)).exp() / std::f64::consts::TAU.sqrt();
            assert!((f64::from(density) / right - 1.0).abs() < allowed, "{x}: {density} {right}");
        }
        assert!(normal(f32::NAN).0.is_nan());
        assert_eq!((normal(-1e30).0, normal(1e30).0), (0.0, 1.0));
    }
}
