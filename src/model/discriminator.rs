//! The discriminator of patches (Isola et al. 2017) as latent-diffusion uses it: strided convolutions whose every output
//! says of one square of the image how real it looks. Only training needs it.

use super::convolution::{Conv2d, convolved};
use super::layers::parameter;
use super::random;
use burn::module::{Module, Param};
use burn::tensor::activation::leaky_relu;
use burn::tensor::{Device, Tensor};

/// Channels of the first layer.
pub const WIDTH: usize = 64;
/// Multiples of the width that later layers stop at.
const WIDEST: usize = 8;
const KERNEL: usize = 4;
/// Standard deviation of initial weights.
const DEVIATION: f64 = 0.02;
/// Slope of the activation below 0.
const SLOPE: f64 = 0.2;
/// Added to variances.
const EPS: f64 = 1e-5;
/// What running statistics take of a new batch.
const MOMENTUM: f64 = 0.1;

/// Judges squares of an image.
#[derive(Module, Debug)]
pub struct Discriminator {
    first: Conv2d,
    layers: Vec<Layer>,
    last: Conv2d,
}

/// Convolution, normalisation over the batch.
#[derive(Module, Debug)]
struct Layer {
    /// `[out, in, 4, 4]`; a bias would be normalised away.
    weight: Param<Tensor<4>>,
    /// Gain and shift of the normalisation, `[out]`.
    gain: Param<Tensor<1>>,
    shift: Param<Tensor<1>>,
    #[module(skip)]
    stride: usize,
}

/// Mean and unbiased variance of every normalised layer, `[C]` each: of a batch, or their running means.
pub type Statistics = Vec<[Tensor<1>; 2]>;

/// What the discriminator says of a batch.
#[derive(Clone, Debug)]
pub struct Judgement {
    /// How real each square looks, `[B, 1, h, w]`; no bounds.
    pub logits: Tensor<4>,
    /// The batch's own statistics.
    pub statistics: Statistics,
}

impl Discriminator {
    /// With `layers` layers of stride 2, of `width` channels at first, doubled by each: weights normal with deviation
    /// 0.02, gains around 1.
    pub fn new(layers: usize, width: usize, seed: u64, device: &Device) -> Self {
        let channels = |layer: usize| width * WIDEST.min(1 << layer);
        let normal = |name: &str, count| {
            random::normal(&mut random::keyed(seed, &format!("discriminator.{name}"), &[]), DEVIATION, count)
        };
        let conv = |name: &str, input: usize, output: usize, stride: usize| {
            let mut conv = Conv2d::new(input, output, KERNEL, seed, &format!("discriminator.{name}"), device);
            let weight = normal(&format!("{name}.weight"), output * input * KERNEL * KERNEL);
            conv.weight = parameter(weight, [output, input, KERNEL, KERNEL], device);
            conv.with_stride(stride, 1)
        };
        let layer = |i: usize| {
            let (input, output) = (channels(i - 1), channels(i));
            let weight = normal(&format!("layers.{i}.weight"), output * input * KERNEL * KERNEL);
            let gain = normal(&format!("layers.{i}.gain"), output).into_iter().map(|x| 1.0 + x).collect();
            Layer {
                weight: parameter(weight, [output, input, KERNEL, KERNEL], device),
                gain: parameter(gain, [output], device),
                shift: parameter(vec![0.0; output], [output], device),
                // The one behind the strided ones only widens.
                stride: if i < layers { 2 } else { 1 },
            }
        };
        Self {
            first: conv("first", 3, width, 2),
            layers: (1..=layers).map(layer).collect(),
            last: conv("last", channels(layers), 1, 1),
        }
    }

    /// Images `[B, 3, H, W]`, judged by the statistics of their own batch.
    pub fn forward(&self, images: Tensor<4>) -> Judgement {
        let mut x = leaky_relu(self.first.forward(images), SLOPE);
        let mut statistics = Vec::new();
        for layer in &self.layers {
            let (y, of_batch) = layer.forward(x);
            statistics.push(of_batch);
            x = leaky_relu(y, SLOPE);
        }
        Judgement { logits: self.last.forward(x), statistics }
    }

    /// Running statistics before the first batch: means 0, variances 1.
    pub fn initial_statistics(&self) -> Statistics {
        let of = |layer: &Layer| {
            let (channels, device) = (layer.shift.dims()[0], layer.shift.device());
            [Tensor::zeros([channels], &device), Tensor::ones([channels], &device)]
        };
        self.layers.iter().map(of).collect()
    }
}

impl Layer {
    fn forward(&self, x: Tensor<4>) -> (Tensor<4>, [Tensor<1>; 2]) {
        let y = convolved(x, self.weight.val(), None, self.stride, 1);
        let [batch, channels, height, width] = y.dims();
        let count = (batch * height * width) as f64;
        let by_channel: Tensor<2> = y.swap_dims(0, 1).reshape([channels, batch * height * width]);
        let mean = by_channel.clone().mean_dim(1);
        let centred = by_channel - mean.clone();
        let variance = centred.clone().square().mean_dim(1);
        let normal = centred / (variance.clone() + EPS).sqrt();
        let scaled = normal * self.gain.val().reshape([channels, 1]) + self.shift.val().reshape([channels, 1]);
        // As PyTorch, whose normalisation divides by n and whose running variance by n - 1.
        let unbiased = variance.mul_scalar(count / (count - 1.0).max(1.0));
        let statistics = [mean, unbiased].map(|s| s.without_autodiff().squeeze_dim(1));
        (scaled.reshape([channels, batch, height, width]).swap_dims(0, 1), statistics)
    }
}

/// Running statistics after a batch.
pub fn followed(running: Statistics, batch: &Statistics) -> Statistics {
    let follow = |old: Tensor<1>, new: &Tensor<1>| old.mul_scalar(1.0 - MOMENTUM) + new.clone().mul_scalar(MOMENTUM);
    running
        .into_iter()
        .zip(batch)
        .map(|([mean, variance], [new_mean, new_variance])| [follow(mean, new_mean), follow(variance, new_variance)])
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As PyTorch counts latent-diffusion's with 3 and with 2 layers.
    #[test]
    fn default_sizes_have_the_published_numbers_of_parameters() {
        let device = Device::flex();
        for (layers, expected) in [(3, 2_765_633), (2, 663_361)] {
            assert_eq!(Discriminator::new(layers, WIDTH, 0, &device).num_params(), expected);
        }
        let judged = Discriminator::new(3, 4, 0, &device).forward(Tensor::zeros([2, 3, 64, 32], &device));
        assert_eq!(judged.logits.dims(), [2, 1, 6, 2]);
    }
}
