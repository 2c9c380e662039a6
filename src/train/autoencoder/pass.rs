//! Forward and backward of a micro-batch: see [`step`](super::step).

use super::step::{Trainer, read};
use crate::data::SquareBatch;
use crate::model::autoencoder::latent::by_position;
use crate::model::autoencoder::{Autoencoder, Posterior};
use crate::model::discriminator::Statistics;
use crate::train::optimizer::{Gradients, take_gradients};
use anyhow::{Context, Result, anyhow};
use burn::module::Module;
use burn::tensor::activation::relu;
use burn::tensor::{Device, Int, Tensor, TensorData};
use std::collections::BTreeSet;
use std::ops::Range;

/// Added to the norm of the discriminator's gradient, and the largest ratio of norms.
const NORM: f64 = 1e-4;
const LARGEST: f64 = 1e4;

/// Forward and the gradients at the reconstruction of a micro-batch.
pub(super) struct Pass {
    pub live: Autoencoder,
    pub images: Tensor<4>,
    /// On the graph of `live`.
    pub reconstruction: Tensor<4>,
    /// Weighed and divided, on the graph of `live`.
    pub bottleneck: Tensor<1>,
    /// Gradients of the reconstruction's loss, and of the discriminator's share, at the reconstruction.
    pub slopes: Vec<Tensor<4>>,
    /// The same at the last weight, flat; none without a discriminator.
    pub last: Vec<Tensor<1>>,
    /// nll, rec, perceptual, bottleneck (not weighed), generator: this part's share of each.
    pub numbers: [Tensor<1>; 5],
    pub codes: Option<Tensor<1, Int>>,
    /// What was quantised, `[N, z]`; none without a codebook.
    pub quantized: Option<Tensor<2>>,
    pub statistics: Option<Statistics>,
}

/// The backward pass of a micro-batch.
pub(super) struct Part {
    pub gradients: Gradients,
    pub opponent: Option<Opponent>,
}

pub(super) struct Opponent {
    pub gradients: Gradients,
    pub loss: Tensor<1>,
    /// Of images, then of reconstructions.
    pub statistics: [Statistics; 2],
}

impl Trainer {
    /// Forward of the images in `range` of a batch, and gradients as far as the reconstruction.
    pub(super) fn pass(&self, batch: &SquareBatch, noise: &[f32], range: Range<usize>, judged: bool) -> Result<Pass> {
        let section = &self.settings.autoencoder;
        let (size, count, side) = (batch.indices.len(), range.len(), batch.side);
        let share = count as f64 / size as f64;
        let images = rows(&batch.pixels, size, &range, [count, 3, side, side], &self.device);
        let live = self.network.clone().train();
        let moments = live.moments(Tensor::from_inner(images.clone()));
        let mut rows_quantized = None;
        let (latents, bottleneck, codes) = match &live.quantize {
            Some(codebook) => {
                rows_quantized = Some(by_position(moments.clone().inner()));
                let quantized = codebook.quantize(moments);
                (quantized.latents, quantized.loss.mul_scalar(share), Some(quantized.codes))
            }
            None => {
                let posterior = Posterior::new(moments);
                let noise = rows(noise, size, &range, posterior.mean.dims(), &self.device);
                let latents = posterior.sample(Tensor::from_inner(noise));
                (latents, posterior.divergence().div_scalar(size as f64), None)
            }
        };
        let before_last = live.before_last(latents);
        let reconstruction = live.decoder.conv_out.forward(before_last.clone());

        // The reference adds the one distance of an image to each of its differences of pixels, then sums over an image
        // with a posterior, and takes the mean with a codebook.
        let found = Tensor::from_inner(reconstruction.clone().inner()).require_grad();
        let differences = (Tensor::from_inner(images.clone()) - found.clone()).abs();
        let rec = differences.clone().mean().inner().mul_scalar(share);
        let (seen, perceptual) = match self.perceptual.distances(images.clone(), found.clone()) {
            Some(distances) => {
                let mean = distances.clone().mean().inner().mul_scalar(share);
                (differences + distances.mul_scalar(section.perceptual_weight), mean)
            }
            None => (differences, Tensor::zeros([1], &self.device)),
        };
        let elements = (3 * side * side) as f64;
        let divisor = if codes.is_some() { size as f64 * elements } else { size as f64 };
        let nll = seen.sum().div_scalar(divisor);
        let mut slopes = vec![slope(&nll, &found)?];
        let (mut generator, mut statistics, mut last) = (Tensor::zeros([1], &self.device), None, vec![]);
        if judged {
            let found = Tensor::from_inner(reconstruction.clone().inner()).require_grad();
            let judgement = self.discriminator.clone().no_grad().train().forward(found.clone());
            let share = judgement.logits.mean().mul_scalar(-share);
            slopes.push(slope(&share, &found)?);
            (generator, statistics) = (share.inner(), Some(judgement.statistics));
            let layer = self.network.decoder.conv_out.clone();
            let before_last = before_last.inner();
            for slope in &slopes {
                let layer = layer.clone().train();
                let output = layer.forward(Tensor::from_inner(before_last.clone()));
                let gradients = (output * Tensor::from_inner(slope.clone())).sum().backward();
                last.push(layer.weight.val().grad(&gradients).context("the last weight has a gradient")?.reshape([-1]));
            }
        }
        let weight = if codes.is_some() { section.codebook_weight } else { section.kl_weight };
        Ok(Pass {
            numbers: [nll.inner(), rec, perceptual, bottleneck.clone().inner(), generator],
            bottleneck: bottleneck.mul_scalar(weight),
            live,
            images,
            reconstruction,
            slopes,
            last,
            codes,
            quantized: rows_quantized,
            statistics,
        })
    }

    /// Backward of a pass, and the discriminator's own step.
    pub(super) fn part(&self, pass: Pass, size: usize, d_weight: f64, judged: bool) -> Result<Part> {
        let share = pass.images.dims()[0] as f64 / size as f64;
        let found = pass.reconstruction.clone().inner();
        let weights = [1.0, d_weight];
        let slopes = pass.slopes.into_iter().zip(weights).map(|(slope, weight)| slope.mul_scalar(weight));
        let slope = slopes.reduce(|sum, slope| sum + slope).context("the reconstruction has a gradient")?;
        // d(sum of reconstruction * slope) is slope: the gradients above enter the graph as they are.
        let total = (pass.reconstruction * Tensor::from_inner(slope)).sum() + pass.bottleneck;
        let gradients = take_gradients(&pass.live, &mut total.backward());
        if !judged {
            return Ok(Part { gradients, opponent: None });
        }
        let live = self.discriminator.clone().train();
        let real = live.forward(Tensor::from_inner(pass.images));
        let fake = live.forward(Tensor::from_inner(found));
        let hinge = |x: Tensor<4>| relu(x + 1.0).mean();
        let loss = (hinge(-real.logits) + hinge(fake.logits)).mul_scalar(0.5 * share);
        let against = take_gradients(&live, &mut loss.backward());
        let statistics = [real.statistics, fake.statistics];
        Ok(Part { gradients, opponent: Some(Opponent { gradients: against, loss: loss.inner(), statistics }) })
    }
}

fn slope(loss: &Tensor<1>, at: &Tensor<4>) -> Result<Tensor<4>> {
    at.grad(&loss.backward()).context("the loss depends on the reconstruction")
}

/// Rows `range` of `size` rows of `values`, in `shape`.
fn rows(values: &[f32], size: usize, range: &Range<usize>, shape: [usize; 4], device: &Device) -> Tensor<4> {
    let row = values.len() / size;
    let part = values[range.start * row..range.end * row].to_vec();
    Tensor::from_data(TensorData::new(part, shape), device)
}

/// ‖∇ nll‖ / (‖∇ g‖ + 1e-4) at the decoder's last weight, in [0, 1e4].
pub(super) fn ratio_at_last_weight(passes: &[Pass]) -> Result<f64> {
    let norm = |which: usize| -> Result<f64> {
        let parts = passes.iter().map(|pass| pass.last[which].clone());
        let gradient = parts.reduce(|sum, part| sum + part).context("a step has at least one micro-batch")?;
        Ok(read(&[gradient.square().sum().sqrt()])?[0])
    };
    Ok((norm(0)? / (norm(1)? + NORM)).clamp(0.0, LARGEST))
}

/// The codes that a step's images take.
pub(super) fn codes(passes: &[Pass]) -> Result<BTreeSet<i64>> {
    let mut codes = BTreeSet::new();
    for part in passes.iter().filter_map(|pass| pass.codes.clone()) {
        codes.extend(part.try_into_vec_as::<i64>().map_err(|e| anyhow!("{e:?}"))?);
    }
    Ok(codes)
}

/// What a step quantises, row-major `[N][z]`.
pub(super) fn quantized(passes: &[Pass]) -> Result<Vec<f32>> {
    let parts = passes.iter().filter_map(|pass| pass.quantized.clone());
    let rows = parts.map(|part| part.try_into_vec_as::<f32>().map_err(|e| anyhow!("{e:?}")));
    Ok(rows.collect::<Result<Vec<_>>>()?.concat())
}
