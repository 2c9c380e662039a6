//! Group normalisation, alone or followed by SiLU, and SiLU alone: f32 values in memory, forward and backward.
//!
//! A group's values lie side by side and mostly fit into the cache, so that each pass reads memory once. Loops are plain;
//! `macerator`, which burn's CPU backend uses as well, compiles them for the vector instructions of the machine it finds
//! itself on. Sums run in 16 columns on every machine.

use macerator::{AutoArch, Simd, WithSimd};
use rayon::prelude::*;

/// Columns of a sum: the widest vector.
const COLUMNS: usize = 16;
/// Values of one piece of work of [`silu`].
const PIECE: usize = 16 * 1024;

/// Sizes of a group normalisation of `[B, C, H, W]`.
#[derive(Clone, Copy, Debug)]
pub struct Normalisation {
    pub channels: usize,
    /// Height times width.
    pub pixels: usize,
    pub groups: usize,
    pub eps: f64,
    /// Whether SiLU follows.
    pub silu: bool,
}

/// Mean of a group and 1 / sqrt(variance + eps).
#[derive(Clone, Copy, Debug)]
pub struct Moments {
    mean: f32,
    scale: f32,
}

impl Normalisation {
    fn group(&self) -> usize {
        self.channels / self.groups * self.pixels
    }

    /// Gain and shift of the channels of group number `index` of a batch.
    fn parameters<'a>(&self, index: usize, weight: &'a [f32], bias: &'a [f32]) -> (&'a [f32], &'a [f32]) {
        let channels = self.channels / self.groups;
        let first = index % self.groups * channels;
        (&weight[first..][..channels], &bias[first..][..channels])
    }

    /// The result and the moments of every group, `[B, groups]`.
    pub fn forward(&self, x: &[f32], weight: &[f32], bias: &[f32]) -> (Vec<f32>, Vec<Moments>) {
        let mut y = vec![0.0; x.len()];
        let moments = y
            .par_chunks_mut(self.group())
            .zip(x.par_chunks(self.group()))
            .enumerate()
            .map(|(index, (y, x))| {
                let (weight, bias) = self.parameters(index, weight, bias);
                AutoArch::new().dispatch(Forward { sizes: *self, x, weight, bias, y })
            })
            .collect();
        (y, moments)
    }

    /// The gradients of x `[B, C, H, W]`, weight and bias `[C]` from that of the result.
    pub fn backward(
        &self,
        (x, weight, bias): (&[f32], &[f32], &[f32]),
        moments: &[Moments],
        grad: &[f32],
    ) -> (Vec<f32>, Vec<f32>, Vec<f32>) {
        let mut dx = vec![0.0; x.len()];
        let mut sums = vec![[0.0; 2]; x.len() / self.pixels.max(1)];
        dx.par_chunks_mut(self.group()).zip(sums.par_chunks_mut(self.channels / self.groups)).enumerate().for_each(
            |(index, (dx, sums))| {
                let place = index * self.group()..(index + 1) * self.group();
                let (weight, bias) = self.parameters(index, weight, bias);
                let (x, grad, moments) = (&x[place.clone()], &grad[place], moments[index]);
                AutoArch::new().dispatch(Backward { sizes: *self, x, weight, bias, moments, grad, dx, sums });
            },
        );
        let (mut dweight, mut dbias) = (vec![0.0; self.channels], vec![0.0; self.channels]);
        for image in sums.chunks(self.channels) {
            for (c, [plain, weighted]) in image.iter().enumerate() {
                dbias[c] += plain;
                dweight[c] += weighted;
            }
        }
        (dx, dweight, dbias)
    }
}

/// The forward pass of one group.
struct Forward<'a> {
    sizes: Normalisation,
    x: &'a [f32],
    weight: &'a [f32],
    bias: &'a [f32],
    y: &'a mut [f32],
}

impl WithSimd for Forward<'_> {
    type Output = Moments;

    #[inline(always)]
    fn with_simd<S: Simd>(self) -> Moments {
        let Self { sizes, x, weight, bias, y } = self;
        let count = x.len() as f64;
        let mean = (total(x) / count) as f32;
        let variance = total_squares(x, mean) / count;
        let scale = (1.0 / (variance + sizes.eps).sqrt()) as f32;
        let planes = x.chunks_exact(sizes.pixels).zip(y.chunks_exact_mut(sizes.pixels));
        for ((x, y), (weight, bias)) in planes.zip(weight.iter().zip(bias)) {
            let gain = weight * scale;
            if sizes.silu {
                for (y, x) in y.iter_mut().zip(x) {
                    let z = (x - mean) * gain + bias;
                    *y = z * sigmoid(z);
                }
            } else {
                for (y, x) in y.iter_mut().zip(x) {
                    *y = (x - mean) * gain + bias;
                }
            }
        }
        Moments { mean, scale }
    }
}

/// The backward pass of one group. With z the result before SiLU and n = (x - mean) scale:
/// dx = scale (w dz - mean(w dz) - n mean(w dz n)).
struct Backward<'a> {
    sizes: Normalisation,
    x: &'a [f32],
    weight: &'a [f32],
    bias: &'a [f32],
    moments: Moments,
    grad: &'a [f32],
    /// Holds dz between the two passes.
    dx: &'a mut [f32],
    /// Per channel the sums of dz and of dz n.
    sums: &'a mut [[f32; 2]],
}

impl WithSimd for Backward<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self) {
        let Self { sizes, x, weight, bias, moments: Moments { mean, scale }, grad, dx, sums } = self;
        let count = x.len() as f64;
        let pixels = sizes.pixels;
        let (mut plain, mut weighted) = (0.0, 0.0);
        for (channel, sums) in sums.iter_mut().enumerate() {
            let place = channel * pixels..(channel + 1) * pixels;
            let (x, grad, dx) = (&x[place.clone()], &grad[place.clone()], &mut dx[place]);
            let (weight, bias) = (weight[channel], bias[channel]);
            if sizes.silu {
                let gain = weight * scale;
                for ((dx, x), grad) in dx.iter_mut().zip(x).zip(grad) {
                    *dx = grad * silu_slope((x - mean) * gain + bias);
                }
            } else {
                dx.copy_from_slice(grad);
            }
            let (dz, dz_x) = total_products(dx, x, mean);
            let dz_n = f64::from(scale) * dz_x;
            *sums = [dz as f32, dz_n as f32];
            plain += f64::from(weight) * dz;
            weighted += f64::from(weight) * dz_n;
        }
        let (plain, weighted) = ((plain / count) as f32, (weighted / count) as f32);
        for (channel, dx) in dx.chunks_exact_mut(pixels).enumerate() {
            for (dx, x) in dx.iter_mut().zip(&x[channel * pixels..]) {
                *dx = scale * (weight[channel] * *dx - plain - (x - mean) * scale * weighted);
            }
        }
    }
}

/// `x sigmoid(x)`.
pub fn silu(x: &[f32]) -> Vec<f32> {
    let mut y = vec![0.0; x.len()];
    y.par_chunks_mut(PIECE).zip(x.par_chunks(PIECE)).for_each(|(y, x)| AutoArch::new().dispatch(Silu { x, y }));
    y
}

/// The gradient of x of [`silu`] from that of the result.
pub fn silu_backward(x: &[f32], grad: &[f32]) -> Vec<f32> {
    let mut dx = grad.to_vec();
    dx.par_chunks_mut(PIECE)
        .zip(x.par_chunks(PIECE))
        .for_each(|(dx, x)| AutoArch::new().dispatch(SiluBackward { x, dx }));
    dx
}

struct Silu<'a> {
    x: &'a [f32],
    y: &'a mut [f32],
}

impl WithSimd for Silu<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self) {
        for (y, x) in self.y.iter_mut().zip(self.x) {
            *y = x * sigmoid(*x);
        }
    }
}

struct SiluBackward<'a> {
    x: &'a [f32],
    /// The result's gradient, to be multiplied.
    dx: &'a mut [f32],
}

impl WithSimd for SiluBackward<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self) {
        for (dx, x) in self.dx.iter_mut().zip(self.x) {
            *dx *= silu_slope(*x);
        }
    }
}

/// The sum of some values. Plain loops over arrays here and below: what the compiler leaves a call in is not compiled for
/// the machine's vectors.
#[inline(always)]
fn total(values: &[f32]) -> f64 {
    let mut columns = [0.0; COLUMNS];
    let (chunks, rest) = values.as_chunks::<COLUMNS>();
    for chunk in chunks {
        for i in 0..COLUMNS {
            columns[i] += chunk[i];
        }
    }
    for (i, value) in rest.iter().enumerate() {
        columns[i] += value;
    }
    folded(&columns)
}

/// The sum of squared distances from `mean`.
#[inline(always)]
fn total_squares(values: &[f32], mean: f32) -> f64 {
    let mut columns = [0.0; COLUMNS];
    let (chunks, rest) = values.as_chunks::<COLUMNS>();
    for chunk in chunks {
        for i in 0..COLUMNS {
            columns[i] += (chunk[i] - mean) * (chunk[i] - mean);
        }
    }
    for (i, value) in rest.iter().enumerate() {
        columns[i] += (value - mean) * (value - mean);
    }
    folded(&columns)
}

/// The sum of `a`, and that of its products with the distances of `b` from `mean`.
#[inline(always)]
fn total_products(a: &[f32], b: &[f32], mean: f32) -> (f64, f64) {
    let (mut columns, mut products) = ([0.0; COLUMNS], [0.0; COLUMNS]);
    let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<COLUMNS>(), b.as_chunks::<COLUMNS>());
    for (a, b) in a.iter().zip(b) {
        for i in 0..COLUMNS {
            columns[i] += a[i];
            products[i] += a[i] * (b[i] - mean);
        }
    }
    for (i, (a, b)) in a_rest.iter().zip(b_rest).enumerate() {
        columns[i] += a;
        products[i] += a * (b - mean);
    }
    (folded(&columns), folded(&products))
}

/// The sum of the columns, half by half.
#[inline(always)]
fn folded(columns: &[f32; COLUMNS]) -> f64 {
    let mut sums = [0.0; COLUMNS];
    for i in 0..COLUMNS {
        sums[i] = f64::from(columns[i]);
    }
    let mut half = COLUMNS / 2;
    while half > 0 {
        for i in 0..half {
            sums[i] += sums[half + i];
        }
        half /= 2;
    }
    sums[0]
}

#[inline(always)]
fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// The derivative of `x sigmoid(x)`.
#[inline(always)]
fn silu_slope(x: f32) -> f32 {
    let s = sigmoid(x);
    s + x * s * (1.0 - s)
}

/// e^x within 2e-7 of the value, in operations that vectors have: 2^n times a polynomial on ±ln(2)/2 (Cephes, Moshier).
/// Constant below -87 and above 88.
#[inline(always)]
fn exp(x: f32) -> f32 {
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
}
