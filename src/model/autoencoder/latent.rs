//! The bottleneck: a normal distribution for every latent (KL), or the nearest entry of a codebook (VQ).

use crate::model::layers::parameter;
use crate::model::random;
use anyhow::{Result, anyhow};
use burn::module::{Module, Param};
use burn::tensor::{Device, Int, Tensor, TensorData};
use rand::RngExt;
use rand_chacha::ChaCha8Rng;
use std::collections::BTreeSet;

/// Bounds of a log-variance.
const LOG_VARIANCE: [f64; 2] = [-30.0, 20.0];
/// Share of the codebook's own move towards the latents, beside the latents' move towards it.
const BETA: f64 = 0.25;
/// Latents compared with the codebook at a time: their distances to 16384 codes take 128 MiB.
const ROWS: usize = 2048;

/// The distribution of latents `[B, z, h, w]` given an image: independent normal distributions.
#[derive(Clone, Debug)]
pub struct Posterior {
    /// Means.
    pub mean: Tensor<4>,
    /// Logarithms of the variances, clamped to [-30, 20].
    pub log_variance: Tensor<4>,
}

impl Posterior {
    /// Of an encoder's `[B, 2 z, h, w]`: means first.
    pub fn new(moments: Tensor<4>) -> Self {
        let channels = moments.dims()[1] / 2;
        let [low, high] = LOG_VARIANCE;
        Self {
            mean: moments.clone().narrow(1, 0, channels),
            log_variance: moments.narrow(1, channels, channels).clamp(low, high),
        }
    }

    /// Latents, given `noise` of a standard normal distribution: mean + deviation · noise.
    pub fn sample(&self, noise: Tensor<4>) -> Tensor<4> {
        self.mean.clone() + self.log_variance.clone().mul_scalar(0.5).exp() * noise
    }

    /// Divergence from the standard normal distribution, summed over everything, `[1]`: ½ Σ (μ² + σ² - 1 - log σ²).
    pub fn divergence(&self) -> Tensor<1> {
        let log_variance = self.log_variance.clone();
        (self.mean.clone().square() + log_variance.clone().exp() - 1.0 - log_variance).sum().mul_scalar(0.5)
    }
}

/// The codes that latents are quantised to (van den Oord et al. 2017).
#[derive(Module, Debug)]
pub struct Codebook {
    /// Codes.
    pub embedding: Embedding,
}

/// A table of vectors.
#[derive(Module, Debug)]
pub struct Embedding {
    /// `[z, K]`: the transpose of PyTorch's, as all matrices here.
    pub weight: Param<Tensor<2>>,
}

/// Latents after the codebook.
#[derive(Clone, Debug)]
pub struct Quantized {
    /// The nearest codes, `[B, z, h, w]`; their gradient passes straight through to the latents.
    pub latents: Tensor<4>,
    /// mean (sg[code] - latent)² + β · mean (code - sg[latent])², `[1]`. That β weighs the codebook's side, not the
    /// encoder's as in the paper, is latent-diffusion's "legacy" form.
    pub loss: Tensor<1>,
    /// Numbers of the codes, one a latent in the order `[B, h, w]`.
    pub codes: Tensor<1, Int>,
}

impl Codebook {
    /// `size` codes of `channels` numbers, uniform on ±1/size.
    pub fn new(size: usize, channels: usize, seed: u64, device: &Device) -> Self {
        let mut rng = random::keyed(seed, "quantize.embedding.weight", &[]);
        let values = random::uniform(&mut rng, 1.0 / size as f64, size * channels);
        Self { embedding: Embedding { weight: parameter(values, [channels, size], device) } }
    }

    /// Number of codes.
    pub fn size(&self) -> usize {
        self.embedding.weight.dims()[1]
    }

    /// The codebook whose codes that are none of `used` are latents of `rows` (`[N][z]`, row-major) drawn by `rng`: codes
    /// without latents get no gradient, and would stay where they are for good (Dhariwal et al. 2020).
    ///
    /// # Errors
    /// A device that cannot be read.
    pub fn revived(&self, used: &BTreeSet<i64>, rows: &[f32], rng: &mut ChaCha8Rng) -> Result<Self> {
        let weight = self.embedding.weight.val();
        let [channels, size] = weight.dims();
        let mut values = weight.clone().try_into_vec_as::<f32>().map_err(|e| anyhow!("{e:?}"))?;
        for code in (0..size).filter(|&code| !used.contains(&(code as i64))) {
            let row = rng.random_range(0..rows.len() / channels) * channels;
            (0..channels).for_each(|channel| values[channel * size + code] = rows[row + channel]);
        }
        let device = weight.device();
        let weight = self.embedding.weight.clone();
        let revived = Tensor::from_data(TensorData::new(values, [channels, size]), &device);
        Ok(Self { embedding: Embedding { weight: weight.map(|_| revived) } })
    }

    /// The code nearest (L2) to each latent; of equals the first.
    pub fn quantize(&self, latents: Tensor<4>) -> Quantized {
        let [batch, channels, height, width] = latents.dims();
        let rows = by_position(latents);
        let weight = self.embedding.weight.val();
        let codes = nearest(rows.clone().without_autodiff(), weight.clone().without_autodiff());
        let chosen = weight.select(1, codes.clone()).transpose();
        let towards_codes = (chosen.clone().detach() - rows.clone()).square().mean();
        let towards_rows = (chosen.clone() - rows.clone().detach()).square().mean();
        let straight = rows.clone() + (chosen - rows).detach();
        Quantized {
            latents: straight.reshape([batch, height, width, channels]).permute([0, 3, 1, 2]),
            loss: towards_codes + towards_rows.mul_scalar(BETA),
            codes,
        }
    }
}

/// `[B, z, h, w] -> [B h w, z]`.
pub fn by_position(latents: Tensor<4>) -> Tensor<2> {
    let [batch, channels, height, width] = latents.dims();
    latents.permute([0, 2, 3, 1]).reshape([batch * height * width, channels])
}

/// For each of `rows` `[N, z]` the nearest column of `codes` `[z, K]`: |c|² - 2 r·c is the squared distance but for |r|².
fn nearest(rows: Tensor<2>, codes: Tensor<2>) -> Tensor<1, Int> {
    let squares = codes.clone().square().sum_dim(0);
    let count = rows.dims()[0];
    let parts = (0..count).step_by(ROWS).map(|from| {
        let part = rows.clone().narrow(0, from, ROWS.min(count - from));
        (squares.clone() - part.matmul(codes.clone()).mul_scalar(2.0)).argmin(1).squeeze_dim(1)
    });
    Tensor::cat(parts.collect(), 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
        tensor.into_data().try_into_vec().unwrap()
    }

    fn tensor<const D: usize>(values: &[f32], shape: [usize; D]) -> Tensor<D> {
        Tensor::from_data(TensorData::new(values.to_vec(), shape), &Device::flex())
    }

    #[test]
    fn divergence_is_the_worked_number() {
        // μ = 1, log σ² = 0.5: ½ (1 + e^0.5 - 1 - 0.5) = 0.5743606.
        let posterior = Posterior::new(tensor(&[1.0, 0.5], [1, 2, 1, 1]));
        assert!((list(posterior.divergence())[0] - 0.574_360_6).abs() < 1e-6);
        let sample = posterior.sample(tensor(&[2.0], [1, 1, 1, 1]));
        assert!((list(sample)[0] - (1.0 + 2.0 * 0.25f32.exp())).abs() < 1e-6);
        let clamped = Posterior::new(tensor(&[0.0, 0.0, 99.0, -99.0], [1, 4, 1, 1]));
        assert_eq!(list(clamped.log_variance), [20.0, -30.0]);
    }

    fn two_codes() -> Codebook {
        // Codes (0, 0) and (1, 2).
        Codebook { embedding: Embedding { weight: parameter(vec![0.0, 1.0, 0.0, 2.0], [2, 2], &Device::flex()) } }
    }

    #[test]
    fn latents_take_the_nearest_code_and_the_legacy_loss() {
        // Latents (0.1, 0.2) and (1, 1).
        let quantized = two_codes().quantize(tensor(&[0.1, 1.0, 0.2, 1.0], [1, 2, 1, 2]));
        assert_eq!(quantized.codes.into_data().convert::<i64>().try_into_vec::<i64>().unwrap(), [0, 1]);
        let latents = list(quantized.latents);
        assert!(latents.iter().zip([0.0, 1.0, 0.0, 2.0]).all(|(a, b)| (a - b).abs() < 1e-6), "{latents:?}");
        // Squared differences 0.01 + 0.04 + 0 + 1 over four numbers, once and a quarter.
        assert!((list(quantized.loss)[0] - 1.25 * 1.05 / 4.0).abs() < 1e-6);
    }

    #[test]
    fn gradients_pass_straight_through_and_pull_both_sides() {
        let codebook = two_codes().train();
        let latents = Tensor::from_inner(tensor(&[0.1, 1.0, 0.2, 1.0], [1, 2, 1, 2])).require_grad();
        let quantized = codebook.quantize(latents.clone());
        let slope = Tensor::from_inner(tensor(&[3.0, 4.0, 5.0, 6.0], [1, 2, 1, 2]));
        let gradients = (quantized.latents * slope).sum().backward();
        assert_eq!(list(latents.grad(&gradients).unwrap()), [3.0, 4.0, 5.0, 6.0]);
        let none = codebook.embedding.weight.grad(&gradients).map_or(0.0, |g| list(g.abs().sum())[0]);
        assert_eq!(none, 0.0, "the decoder's gradient must not reach the codebook");
        let gradients = codebook.quantize(latents.clone()).loss.backward();
        // 2 (latent - code) / 4, and of the codes the opposite, a quarter of it.
        let close = |found: Vec<f32>, expected: [f32; 4]| {
            assert!(found.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-6), "{found:?} is not {expected:?}");
        };
        close(list(latents.grad(&gradients).unwrap()), [0.05, 0.0, 0.1, -0.5]);
        close(list(codebook.embedding.weight.grad(&gradients).unwrap()), [-0.0125, 0.0, -0.025, 0.125]);
    }

    #[test]
    fn codes_that_are_not_used_become_latents() {
        let mut rng = random::keyed(0, "revive", &[]);
        let rows = [0.5, 0.25, -0.5, -0.25];
        let revived = two_codes().revived(&BTreeSet::from([0]), &rows, &mut rng).unwrap();
        let codes = list(revived.embedding.weight.val());
        assert_eq!((codes[0], codes[2]), (0.0, 0.0), "a code that is used stays");
        assert!(rows.chunks(2).any(|row| row == [codes[1], codes[3]]), "{codes:?}");
    }

    #[test]
    fn many_latents_are_compared_in_parts() {
        let device = Device::flex();
        let codebook = Codebook::new(37, 3, 1, &device);
        let values = random::normal(&mut random::keyed(0, "rows", &[]), 0.02, 3 * (ROWS + 5));
        let rows = tensor(&values, [ROWS + 5, 3]);
        let found = nearest(rows, codebook.embedding.weight.val()).into_data().convert::<i64>();
        let found = found.try_into_vec::<i64>().unwrap();
        let codes = list(codebook.embedding.weight.val());
        let distance = |row: &[f32], code: usize| (0..3).map(|i| (row[i] - codes[i * 37 + code]).powi(2)).sum::<f32>();
        for (row, code) in values.chunks(3).zip(found) {
            let best = (0..37).map(|code| distance(row, code)).fold(f32::INFINITY, f32::min);
            // Rounding may prefer another of two codes that are equally near.
            assert!(distance(row, code as usize) <= best + 1e-7);
        }
    }
}
