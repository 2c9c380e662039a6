//! Dual-stream MIL (Li, Li, Eliceiri, CVPR 2021): one stream scores every patch and takes the highest, the other attends to what
//! resembles that critical patch, class by class.
//!
//! c = I x; m_c = the patch with the largest c; A = softmax over the patches of q · q_m / √128; B_c = Σ A v; logits = a
//! convolution over all of B, that is a linear layer. The features enter as they are, without a hidden layer.
//!
//! The original trains one sigmoid per class; classes exclude one another here, so that both streams have a cross-entropy, half
//! of the loss each, as PromptMIL trains it on BRIGHT. Each class has its own critical patch, as in the paper and in the
//! published code since April 2021 (its first version mixed the patches up from the second class on). q is linear and v a linear
//! layer behind dropout, as in that code; since September 2022 its defaults are a deeper q and v = identity.

use burn::module::Module;
use burn::nn::Linear;
use burn::tensor::activation::softmax;
use burn::tensor::{Device, Tensor};
use rand_chacha::ChaCha8Rng;

use super::layers::{cross_entropy, dropout, linear, of_predicted};
use super::{Aggregator, BagAttention, BagOutput, HeadShape};

/// Width of the queries.
const QUERY: usize = 128;

/// The dual-stream head.
#[derive(Module, Debug)]
pub struct Dsmil {
    /// I: `dim` to `classes`, of every patch.
    pub instance: Linear,
    /// `dim` to the query.
    pub query: Linear,
    /// `dim` to the value, as wide.
    pub value: Linear,
    /// `classes` × `dim` to `classes`.
    pub classify: Linear,
    /// Share of the features dropped in training before they become values.
    pub dropout: f64,
}

impl Aggregator for Dsmil {
    const NAME: &'static str = "dsmil";

    fn init(shape: &HeadShape, rng: &mut ChaCha8Rng, device: &Device) -> Self {
        let HeadShape { dim, classes, dropout, .. } = *shape;
        Self {
            instance: linear(dim, classes, rng, device),
            query: linear(dim, QUERY, rng, device),
            value: linear(dim, dim, rng, device),
            classify: linear(classes * dim, classes, rng, device),
            dropout,
        }
    }

    fn forward(&self, bag: Tensor<2>, dropout: Option<&mut ChaCha8Rng>) -> BagOutput {
        let (_, BagAttention { logits, attention }) = self.streams(bag, dropout);
        let attention = of_predicted(attention, &logits);
        BagOutput { logits, attention }
    }

    fn attend(&self, bag: Tensor<2>) -> Option<BagAttention> {
        Some(self.streams(bag, None).1)
    }

    fn loss(&self, bag: Tensor<2>, label: usize, dropout: &mut ChaCha8Rng) -> Tensor<1> {
        let (critical, output) = self.streams(bag, Some(dropout));
        (cross_entropy(critical, label) + cross_entropy(output.logits, label)) / 2.0
    }
}

impl Dsmil {
    /// The scores of the critical patches, `[1, classes]`, and those of the bag with the attention of every class.
    fn streams(&self, bag: Tensor<2>, rng: Option<&mut ChaCha8Rng>) -> (Tensor<2>, BagAttention) {
        let [_, dim] = bag.dims();
        let scores = self.instance.forward(bag.clone());
        let [_, classes] = scores.dims();
        let critical = scores.clone().detach().argmax(0).reshape([classes]);
        let query = self.query.forward(bag.clone());
        let [_, width] = query.dims();
        let of_critical = query.clone().select(0, critical);
        let attention = softmax(of_critical.matmul(query.transpose()) / (width as f64).sqrt(), 1);
        let value = self.value.forward(dropout(bag, self.dropout, rng));
        let pooled = attention.clone().matmul(value).reshape([1, classes * dim]);
        let logits = self.classify.forward(pooled);
        (scores.max_dim(0), BagAttention { logits, attention })
    }
}
