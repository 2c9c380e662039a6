//! How different two images look: the distance of their features, beside the difference of their pixels. What the
//! autoencoder is trained with.
//!
//! The default looks through the encoder that was pretrained on the same unlabelled images, so that nothing else enters
//! the training; LPIPS looks through a VGG16 that learnt from ImageNet's labels.

mod lpips;

pub use lpips::{Lpips, VGG};

use super::vit::Vit;
use super::weights::{Encoder, EncoderConfig};
use burn::module::Module;
use burn::tensor::{Device, Tensor, TensorData};

/// Blocks of the encoder whose tokens are compared, evenly over its depth.
const BLOCKS: usize = 4;
/// Added to the length of a feature vector.
const EPS: f64 = 1e-10;

/// A way to compare images.
#[derive(Clone, Debug)]
pub enum Perceptual {
    /// Not at all.
    None,
    /// By the tokens of an encoder.
    Encoder(Box<Encoder>),
    /// By LPIPS.
    Lpips(Box<Lpips>),
}

impl Perceptual {
    /// SHA-256 of the weights it looks through.
    pub fn hash(&self) -> Option<&str> {
        match self {
            Self::None => None,
            Self::Encoder(encoder) => Some(&encoder.hash),
            Self::Lpips(lpips) => Some(&lpips.hash),
        }
    }

    /// Distances of `reconstructions` (which may carry autodiff) to `images` (which do not), both `[B, 3, H, W]` in
    /// [-1, 1]: `[B, 1, 1, 1]`; `None` where nothing is compared.
    pub fn distances(&self, images: Tensor<4>, reconstructions: Tensor<4>) -> Option<Tensor<4>> {
        let distances = match self {
            Self::None => return None,
            Self::Encoder(encoder) => {
                let vit = encoder.vit.clone();
                let live = if reconstructions.is_autodiff() { vit.clone().no_grad().train() } else { vit.clone() };
                let expected = tokens(&vit, &encoder.config, images);
                let found = tokens(&live, &encoder.config, reconstructions);
                let distances: Vec<Tensor<3>> = expected
                    .into_iter()
                    .zip(found)
                    .map(|(a, b)| (unit(b.clone(), 2) - like(unit(a, 2), &b)).square().sum_dim(2).mean_dim(1))
                    .collect();
                let count = distances.len() as f64;
                distances.into_iter().reduce(|sum, d| sum + d)?.div_scalar(count)
            }
            Self::Lpips(lpips) => return Some(lpips.distances(images, reconstructions)),
        };
        let batch = distances.dims()[0];
        Some(distances.reshape([batch, 1, 1, 1]))
    }
}

/// Tokens of the patches (CLS has no place) after some blocks, each `[B, N, D]`. The images are normalised as the
/// encoder's were, and made whole patches where they are not: what is left over would not be seen.
fn tokens(vit: &Vit, config: &EncoderConfig, images: Tensor<4>) -> Vec<Tensor<3>> {
    let [_, _, height, width] = images.dims();
    let patch = config.model.patch;
    let whole = |side: usize| side.next_multiple_of(patch);
    let images = resized(images, whole(height), whole(width));
    let constant = |values: [f32; 3]| {
        let values: Tensor<4> = Tensor::from_data(TensorData::new(values.to_vec(), [1, 3, 1, 1]), &plain(&images));
        like(values, &images)
    };
    // ((x + 1) / 2 - mean) / std.
    let (mean, std) = (constant(config.mean.map(|m| 2.0 * m - 1.0)), constant(config.std.map(|s| 2.0 * s)));
    let outputs = vit.intermediate((images - mean) / std, config.model.depth);
    chosen(outputs.len())
        .map(|block| {
            let [_, tokens, _] = outputs[block].dims();
            outputs[block].clone().narrow(1, 1, tokens - 1)
        })
        .collect()
}

/// Indices of up to [`BLOCKS`] of `depth` blocks, evenly, the last one among them.
fn chosen(depth: usize) -> impl Iterator<Item = usize> {
    let count = BLOCKS.min(depth);
    (1..=count).map(move |i| (i * depth).div_ceil(count) - 1)
}

/// `x` with vectors along `dim` of length 1; those of length 0 stay 0, with a gradient of 0.
fn unit<const D: usize>(x: Tensor<D>, dim: usize) -> Tensor<D> {
    let length = x.clone().square().sum_dim(dim).clamp_min(EPS * EPS).sqrt();
    x / (length + EPS)
}

/// `x` with autodiff where `other` has it.
fn like<const D: usize, const E: usize>(x: Tensor<D>, other: &Tensor<E>) -> Tensor<D> {
    if other.is_autodiff() { Tensor::from_inner(x) } else { x }
}

fn plain<const D: usize>(x: &Tensor<D>) -> Device {
    x.clone().without_autodiff().device()
}

/// Bilinear, as PyTorch without aligned corners: `[B, C, H, W] -> [B, C, height, width]`.
fn resized(x: Tensor<4>, height: usize, width: usize) -> Tensor<4> {
    let [_, _, from_height, from_width] = x.dims();
    let device = plain(&x);
    let matrix = |from: usize, to: usize| {
        let matrix: Tensor<4> = Tensor::from_data(TensorData::new(bilinear(from, to), [1, 1, to, from]), &device);
        like(matrix, &x)
    };
    let mut y = x.clone();
    if height != from_height {
        y = matrix(from_height, height).matmul(y);
    }
    if width != from_width {
        y = y.matmul(matrix(from_width, width).swap_dims(2, 3));
    }
    y
}

/// Row-major `[to, from]`.
fn bilinear(from: usize, to: usize) -> Vec<f32> {
    let mut matrix = vec![0.0; to * from];
    for row in 0..to {
        let source = ((row as f64 + 0.5) * from as f64 / to as f64 - 0.5).max(0.0);
        let (low, share) = (source.floor() as usize, source.fract());
        matrix[row * from + low.min(from - 1)] += (1.0 - share) as f32;
        matrix[row * from + (low + 1).min(from - 1)] += share as f32;
    }
    matrix
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Model;
    use crate::model::random;

    fn encoder() -> Perceptual {
        let model =
            Model { arch: "custom".into(), patch: 8, image_size: 16, dim: 16, depth: 6, heads: 2, drop_path: 0.0 };
        let (model, device) = (model.resolve().unwrap(), Device::flex());
        let config = EncoderConfig { model, mean: [0.5, 0.4, 0.3], std: [0.2; 3], origin: serde_json::Value::Null };
        Perceptual::Encoder(Box::new(Encoder::new(Vit::new(&config.model, 1, &device), config, &device)))
    }

    fn images(seed: u64, side: usize) -> Tensor<4> {
        let values = random::uniform(&mut random::keyed(seed, "images", &[]), 1.0, 2 * 3 * side * side);
        Tensor::from_data(TensorData::new(values, [2, 3, side, side]), &Device::flex())
    }

    fn list<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
        tensor.into_data().try_into_vec().unwrap()
    }

    #[test]
    fn blocks_are_taken_evenly_and_the_last_is_among_them() {
        assert_eq!(chosen(12).collect::<Vec<_>>(), [2, 5, 8, 11]);
        assert_eq!(chosen(6).collect::<Vec<_>>(), [1, 2, 4, 5]);
        assert_eq!(chosen(2).collect::<Vec<_>>(), [0, 1]);
    }

    #[test]
    fn an_image_is_at_distance_0_of_itself_and_nearer_to_a_similar_one() {
        let perceptual = encoder();
        let (one, other) = (images(1, 16), images(2, 16));
        assert_eq!(list(perceptual.distances(one.clone(), one.clone()).unwrap()), [0.0, 0.0]);
        let near = one.clone().mul_scalar(0.9) + other.clone().mul_scalar(0.1);
        let distance = |to: Tensor<4>| list(perceptual.distances(one.clone(), to).unwrap());
        let (near, far) = (distance(near), distance(other));
        assert!(near.iter().zip(&far).all(|(near, far)| 0.0 < *near && near < far), "{near:?} {far:?}");
        assert!(Perceptual::None.distances(one.clone(), one).is_none());
    }

    /// A slope along a random direction against the difference of two distances: f32 leaves three digits of it. Sides that
    /// are no whole patches are stretched, so that every pixel has a gradient.
    #[test]
    fn the_gradient_is_that_of_the_distance_and_reaches_every_pixel() {
        let perceptual = encoder();
        let (target, at, direction) = (images(1, 19), images(2, 19), images(3, 19));
        let leaf = Tensor::from_inner(at.clone()).require_grad();
        let sum = perceptual.distances(target.clone(), leaf.clone()).unwrap().sum();
        let gradient = leaf.grad(&sum.backward()).unwrap();
        assert!(list(gradient.clone()).iter().all(|g| *g != 0.0));
        let step = 1e-2;
        let value = |sign: f64| {
            let moved = at.clone() + direction.clone().mul_scalar(sign * step);
            f64::from(list(perceptual.distances(target.clone(), moved).unwrap().sum())[0])
        };
        let expected = (value(1.0) - value(-1.0)) / (2.0 * step);
        let found = f64::from(list((gradient * direction.clone()).sum())[0]);
        assert!((found - expected).abs() < 0.02 * expected.abs().max(0.01), "{found} is not {expected}");
    }

    #[test]
    fn vectors_of_length_0_have_no_gradient() {
        let leaf = Tensor::from_inner(Tensor::<2>::zeros([2, 3], &Device::flex())).require_grad();
        let gradient = leaf.grad(&unit(leaf.clone(), 1).sum().backward()).unwrap();
        assert!(list(gradient).iter().all(|g| g.is_finite()));
    }
}
