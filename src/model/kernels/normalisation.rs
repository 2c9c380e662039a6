//! Group normalisation, alone or followed by SiLU: f32 values in memory, forward and backward.
//!
//! A group's values lie side by side and mostly fit into the cache, so that each pass reads memory once.

use super::elementwise::{sigmoid, silu_slope};
use super::sums::{Moments, total_products};
use macerator::{AutoArch, Simd, WithSimd};
use rayon::prelude::*;

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
        let Moments { mean, scale } = Moments::of(x, sizes.eps);
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
