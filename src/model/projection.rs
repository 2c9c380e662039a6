//! DINO's projection head, and the network that is trained: encoder and head.

use super::kernels::gelu;
use super::layers::{Linear, for_product, parameter, single};
use super::random;
use super::vit::{StochasticDepth, Vit};
use crate::config::{Head, Model, Precision};
use burn::module::{Module, Param};
use burn::tensor::{Device, Tensor};

/// Encoder and head: the network of which student and teacher are two copies.
#[derive(Module, Debug)]
pub struct Dino {
    /// The encoder, which is kept.
    pub backbone: Vit,
    /// The head, which is only for training.
    pub head: DinoHead,
}

impl Dino {
    /// A network with the reference's initialisation; `model` is resolved.
    pub fn new(model: &Model, head: &Head, precision: Precision, seed: u64, device: &Device) -> Self {
        Self {
            backbone: Vit::new(model, seed, device).with_precision(precision),
            head: DinoHead::new(model.dim, head, seed, device),
        }
    }

    /// Logits of several batches of equally large crops: one pass through the encoder each, then one head pass.
    pub fn forward(&self, batches: Vec<(Tensor<4>, Option<StochasticDepth>)>, precision: Precision) -> Tensor<2> {
        let features =
            batches.into_iter().map(|(images, depth)| self.backbone.encode(images, depth.as_ref())).collect();
        self.head.forward(Tensor::cat(features, 0), precision)
    }
}

/// Three linear layers, a projection to the sphere, and a weight-normalised layer to the prototypes.
#[derive(Module, Debug)]
pub struct DinoHead {
    /// The layers of the reference's `nn.Sequential`; None stands for a GELU, so that the numbers in names agree.
    pub mlp: Vec<Option<Linear>>,
    /// Prototypes.
    pub last_layer: Prototypes,
}

/// `logits_k = g_k <x, v_k / |v_k|>`: PyTorch's `weight_norm` without bias.
#[derive(Module, Debug)]
pub struct Prototypes {
    /// Gains, `[1, out]`; 1 and frozen under `norm_last_layer`.
    pub weight_g: Param<Tensor<2>>,
    /// Directions, `[bottleneck, out]`.
    pub weight_v: Param<Tensor<2>>,
}

impl DinoHead {
    /// A head on features of width `dim`.
    pub fn new(dim: usize, head: &Head, seed: u64, device: &Device) -> Self {
        let linear = |from, to, i: usize| Some(Linear::new(from, to, seed, &format!("head.mlp.{i}.weight"), device));
        let mlp = vec![
            linear(dim, head.hidden, 0),
            None,
            linear(head.hidden, head.hidden, 2),
            None,
            linear(head.hidden, head.bottleneck, 4),
        ];
        // PyTorch's initialisation of a linear layer, which the reference leaves alone here.
        let bound = 1.0 / (head.bottleneck as f64).sqrt();
        let mut rng = random::keyed(seed, "head.last_layer.weight_v", &[]);
        let directions = random::uniform(&mut rng, bound, head.out * head.bottleneck);
        let gains = parameter(vec![1.0; head.out], [1, head.out], device);
        Self {
            mlp,
            last_layer: Prototypes {
                weight_g: gains.set_require_grad(!head.norm_last_layer),
                weight_v: parameter(directions, [head.bottleneck, head.out], device),
            },
        }
    }

    /// `[B, dim] -> [B, out]` in f32.
    pub fn forward(&self, features: Tensor<2>, precision: Precision) -> Tensor<2> {
        let x = self.mlp.iter().fold(features, |x, layer| match layer {
            Some(linear) => linear.forward(x, precision),
            None => gelu(x),
        });
        let x = single(x, precision);
        let length = x.clone().square().sum_dim(1).sqrt().clamp_min(1e-12);
        self.last_layer.forward(x / length, precision)
    }
}

impl Prototypes {
    fn forward(&self, x: Tensor<2>, precision: Precision) -> Tensor<2> {
        let v = self.weight_v.val();
        // Scaling the logits instead of the matrix saves passes over the largest parameter.
        let scale = self.weight_g.val() / v.clone().square().sum_dim(0).sqrt();
        single(for_product(x, precision).matmul(for_product(v, precision)), precision) * scale
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(tensor: Tensor<2>) -> Vec<f32> {
        tensor.into_data().try_into_vec().unwrap()
    }

    /// Directions are uniform in ±1/√256 = ±1/16 and gains are 1, so logits are cosines, in -1 to 1.
    #[test]
    fn the_last_layer_begins_as_the_reference_does() {
        let device = Device::flex();
        for norm_last_layer in [true, false] {
            let settings = Head { hidden: 64, out: 1000, norm_last_layer, ..Head::default() };
            let head = DinoHead::new(32, &settings, 3, &device);
            let directions = list(head.last_layer.weight_v.val());
            let (low, high) = directions.iter().fold((1f32, -1f32), |(low, high), v| (low.min(*v), high.max(*v)));
            assert!((-0.0625..-0.0624).contains(&low) && (0.0624..=0.0625).contains(&high), "{low} {high}");
            // The deviation of a uniform distribution is its bound / √3; 256,000 draws know it to 0.1 %.
            let deviation = (directions.iter().map(|v| v * v).sum::<f32>() / directions.len() as f32).sqrt();
            assert!((deviation * 16.0 * 3f32.sqrt() - 1.0).abs() < 5e-3, "{deviation}");
            assert!(list(head.last_layer.weight_g.val()).iter().all(|gain| *gain == 1.0));

            let mut rng = random::keyed(5, "features", &[]);
            let features = parameter(random::normal(&mut rng, 3.0, 8 * 32), [8, 32], &device).val();
            let logits = list(head.forward(features, Precision::F32));
            assert_eq!(logits.len(), 8 * 1000);
            assert!(logits.iter().all(|logit| logit.abs() <= 1.0 + 1e-6));
            assert!(logits.iter().any(|logit| logit.abs() > 0.1), "they are not all 0");
        }
    }
}
