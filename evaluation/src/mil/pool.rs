//! Pooling without attention, the baselines of every other head: h = dropout(ReLU(E x)) as in gated attention, the mean or the
//! maximum of each hidden unit over the patches, logits = C z.

use burn::module::Module;
use burn::nn::Linear;
use burn::tensor::activation::relu;
use burn::tensor::{Device, Tensor};
use rand_chacha::ChaCha8Rng;

use super::layers::{dropout, linear};
use super::{Aggregator, BagOutput, HeadShape};

/// The mean of the hidden patches; every patch has the same weight.
#[derive(Module, Debug)]
pub struct MeanPool {
    /// E: `dim` to `hidden`.
    pub embed: Linear,
    /// C: `hidden` to `classes`.
    pub classify: Linear,
    /// Share of the hidden units dropped in training.
    pub dropout: f64,
}

/// The largest value of each hidden unit; a patch weighs as the share of the units in which it is the largest.
#[derive(Module, Debug)]
pub struct MaxPool {
    /// E: `dim` to `hidden`.
    pub embed: Linear,
    /// C: `hidden` to `classes`.
    pub classify: Linear,
    /// Share of the hidden units dropped in training.
    pub dropout: f64,
}

impl Aggregator for MeanPool {
    const NAME: &'static str = "mean";

    fn init(shape: &HeadShape, rng: &mut ChaCha8Rng, device: &Device) -> Self {
        let HeadShape { dim, classes, hidden, dropout, .. } = *shape;
        Self { embed: linear(dim, hidden, rng, device), classify: linear(hidden, classes, rng, device), dropout }
    }

    fn forward(&self, bag: Tensor<2>, rng: Option<&mut ChaCha8Rng>) -> BagOutput {
        let [patches, _] = bag.dims();
        let hidden = dropout(relu(self.embed.forward(bag)), self.dropout, rng);
        let attention = Tensor::ones([patches], &hidden.device()) / patches as f64;
        BagOutput { logits: self.classify.forward(hidden.mean_dim(0)), attention }
    }
}

impl Aggregator for MaxPool {
    const NAME: &'static str = "max";

    fn init(shape: &HeadShape, rng: &mut ChaCha8Rng, device: &Device) -> Self {
        let HeadShape { dim, classes, hidden, dropout, .. } = *shape;
        Self { embed: linear(dim, hidden, rng, device), classify: linear(hidden, classes, rng, device), dropout }
    }

    fn forward(&self, bag: Tensor<2>, rng: Option<&mut ChaCha8Rng>) -> BagOutput {
        let [patches, _] = bag.dims();
        let hidden = dropout(relu(self.embed.forward(bag)), self.dropout, rng);
        let pooled = hidden.clone().max_dim(0);
        // A unit that several patches share, as one that none excites, is divided among them.
        let largest = hidden.detach();
        let largest = largest.clone().equal(largest.max_dim(0).expand([patches, pooled.dims()[1]])).float();
        let attention = (largest.clone() / largest.sum_dim(0)).mean_dim(1).reshape([patches]);
        BagOutput { logits: self.classify.forward(pooled), attention }
    }
}
