//! Layer normalisation and softmax: functions of the rows of a matrix of f32 values in memory, forward and backward.
//!
//! Rows are worked on in pieces that stay in the nearest cache.

use super::elementwise::{PIECE, exp};
use super::sums::{Moments, largest, total, total_products};
use macerator::{AutoArch, Simd, WithSimd};
use rayon::prelude::*;

/// Values of one piece of work: whole rows of `width` values.
fn piece(width: usize) -> usize {
    (PIECE / width.max(1)).max(1) * width.max(1)
}

/// Sizes of a layer normalisation of rows (Ba et al. 2016).
#[derive(Clone, Copy, Debug)]
pub struct RowNormalisation {
    pub width: usize,
    pub eps: f64,
}

impl RowNormalisation {
    /// The result and the moments of every row.
    pub fn forward(&self, x: &[f32], weight: &[f32], bias: &[f32]) -> (Vec<f32>, Vec<Moments>) {
        let (mut y, mut moments) = (vec![0.0; x.len()], vec![Moments::default(); x.len() / self.width]);
        let piece = piece(self.width);
        y.par_chunks_mut(piece).zip(moments.par_chunks_mut(piece / self.width)).zip(x.par_chunks(piece)).for_each(
            |((y, moments), x)| {
                AutoArch::new().dispatch(NormaliseRows { sizes: *self, x, weight, bias, y, moments });
            },
        );
        (y, moments)
    }

    /// The gradients of x, of weight and of bias from that of the result.
    pub fn backward(
        &self,
        (x, weight): (&[f32], &[f32]),
        moments: &[Moments],
        grad: &[f32],
    ) -> (Vec<f32>, Vec<f32>, Vec<f32>) {
        let piece = piece(self.width);
        let mut dx = vec![0.0; x.len()];
        let sums: Vec<[Vec<f32>; 2]> = dx
            .par_chunks_mut(piece)
            .zip(moments.par_chunks(piece / self.width))
            .zip(x.par_chunks(piece).zip(grad.par_chunks(piece)))
            .map(|((dx, moments), (x, grad))| {
                let mut sums = [vec![0.0; self.width], vec![0.0; self.width]];
                let [dweight, dbias] = &mut sums;
                AutoArch::new().dispatch(PullRows { sizes: *self, x, weight, moments, grad, dx, dweight, dbias });
                sums
            })
            .collect();
        let (mut dweight, mut dbias) = (vec![0.0; self.width], vec![0.0; self.width]);
        for [of_weight, of_bias] in &sums {
            dweight.iter_mut().zip(of_weight).for_each(|(sum, part)| *sum += part);
            dbias.iter_mut().zip(of_bias).for_each(|(sum, part)| *sum += part);
        }
        (dx, dweight, dbias)
    }
}

struct NormaliseRows<'a> {
    sizes: RowNormalisation,
    x: &'a [f32],
    weight: &'a [f32],
    bias: &'a [f32],
    y: &'a mut [f32],
    moments: &'a mut [Moments],
}

impl WithSimd for NormaliseRows<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self) {
        let Self { sizes: RowNormalisation { width, eps }, x, weight, bias, y, moments } = self;
        for ((x, y), moments) in x.chunks_exact(width).zip(y.chunks_exact_mut(width)).zip(moments) {
            let Moments { mean, scale } = Moments::of(x, eps);
            for ((y, x), (weight, bias)) in y.iter_mut().zip(x).zip(weight.iter().zip(bias)) {
                *y = (x - mean) * scale * weight + bias;
            }
            *moments = Moments { mean, scale };
        }
    }
}

/// With n = (x - mean) scale and g the result's gradient: dx = scale (w g - mean(w g) - n mean(w g n)).
struct PullRows<'a> {
    sizes: RowNormalisation,
    x: &'a [f32],
    weight: &'a [f32],
    moments: &'a [Moments],
    grad: &'a [f32],
    dx: &'a mut [f32],
    dweight: &'a mut [f32],
    dbias: &'a mut [f32],
}

impl WithSimd for PullRows<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self) {
        let Self { sizes: RowNormalisation { width, .. }, x, weight, moments, grad, dx, dweight, dbias } = self;
        let rows = x.chunks_exact(width).zip(grad.chunks_exact(width)).zip(dx.chunks_exact_mut(width));
        for (((x, grad), dx), &Moments { mean, scale }) in rows.zip(moments) {
            for ((dx, grad), weight) in dx.iter_mut().zip(grad).zip(weight) {
                *dx = grad * weight;
            }
            for ((sum, grad), x) in dweight.iter_mut().zip(grad).zip(x) {
                *sum += grad * ((x - mean) * scale);
            }
            for (sum, grad) in dbias.iter_mut().zip(grad) {
                *sum += grad;
            }
            let (plain, weighted) = total_products(dx, x, mean);
            let plain = (plain / width as f64) as f32;
            let weighted = (weighted * f64::from(scale) / width as f64) as f32;
            for (dx, x) in dx.iter_mut().zip(x) {
                *dx = scale * (*dx - plain - (x - mean) * scale * weighted);
            }
        }
    }
}

/// e^x over the sum of e^x of its row, of rows of `width` values.
pub fn softmax(x: &[f32], width: usize) -> Vec<f32> {
    let mut y = vec![0.0; x.len()];
    y.par_chunks_mut(piece(width))
        .zip(x.par_chunks(piece(width)))
        .for_each(|(y, x)| AutoArch::new().dispatch(Softmax { x, width, y }));
    y
}

/// The gradient of x of [`softmax`] from the result and its gradient: dx = y (g - sum(y g)).
pub fn softmax_backward(y: &[f32], grad: &[f32], width: usize) -> Vec<f32> {
    let mut dx = vec![0.0; y.len()];
    dx.par_chunks_mut(piece(width))
        .zip(y.par_chunks(piece(width)).zip(grad.par_chunks(piece(width))))
        .for_each(|(dx, (y, grad))| AutoArch::new().dispatch(PullSoftmax { y, grad, width, dx }));
    dx
}

struct Softmax<'a> {
    x: &'a [f32],
    width: usize,
    y: &'a mut [f32],
}

impl WithSimd for Softmax<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self) {
        let Self { x, width, y } = self;
        for (y, x) in y.chunks_exact_mut(width).zip(x.chunks_exact(width)) {
            let largest = largest(x);
            for (y, x) in y.iter_mut().zip(x) {
                *y = x - largest;
            }
        }
        // The piece as a whole: rows are short and no multiple of a vector.
        for y in y.iter_mut() {
            *y = exp(*y);
        }
        for y in y.chunks_exact_mut(width) {
            let factor = (1.0 / total(y)) as f32;
            for y in y {
                *y *= factor;
            }
        }
    }
}

struct PullSoftmax<'a> {
    y: &'a [f32],
    grad: &'a [f32],
    width: usize,
    dx: &'a mut [f32],
}

impl WithSimd for PullSoftmax<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self) {
        let Self { y, grad, width, dx } = self;
        for ((dx, y), grad) in dx.chunks_exact_mut(width).zip(y.chunks_exact(width)).zip(grad.chunks_exact(width)) {
            let mean = total_products(y, grad, 0.0).1 as f32;
            for ((dx, y), grad) in dx.iter_mut().zip(y).zip(grad) {
                *dx = y * (grad - mean);
            }
        }
    }
}
