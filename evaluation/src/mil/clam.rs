//! CLAM (Lu et al., Nature Biomedical Engineering 2021): gated attention that is also told which patches it should tell apart.
//!
//! h = dropout(ReLU(E x)); attention as in `abmil`, with one branch for all classes (SB) or one for each (MB). In training the
//! patches with the most and the least attention become examples for a two-way classifier per class: of the true class the top
//! k are 1 and the bottom k are 0, of every other class the top k are 0 (the original's "subtyping", since classes exclude one
//! another here). The loss is 0.7 of the bag's cross-entropy and 0.3 of the examples' smooth SVM loss, as in the original.

use burn::module::Module;
use burn::nn::Linear;
use burn::tensor::activation::{relu, softmax};
use burn::tensor::{Device, Int, Tensor, TensorData};
use rand_chacha::ChaCha8Rng;

use super::gate::gated;
use super::layers::{cross_entropy, dropout, linear, of_predicted};
use super::{Aggregator, BagAttention, BagOutput, HeadShape};

/// Examples at either end of the attention; a smaller bag gives all its patches.
const EXAMPLES: usize = 8;
/// Share of the bag's loss.
const BAG_WEIGHT: f64 = 0.7;

/// The layers of both forms.
#[derive(Module, Debug)]
pub struct Clam {
    /// E: `dim` to `hidden`.
    pub embed: Linear,
    /// V: `hidden` to `attention`, through tanh.
    pub attend: Linear,
    /// U: `hidden` to `attention`, through the sigmoid.
    pub gate: Linear,
    /// w: `attention` to one score per branch.
    pub score: Linear,
    /// C: `hidden` to `classes`; with several branches class c reads branch c.
    pub classify: Linear,
    /// `hidden` to two scores per class, "no example of it" and "an example": columns 2c and 2c + 1.
    pub examples: Linear,
    /// Share dropped in training, of the hidden units and of both sides of the gate.
    pub dropout: f64,
}

/// One attention branch for all classes.
#[derive(Module, Debug)]
pub struct ClamSb {
    /// The layers.
    pub clam: Clam,
}

/// One attention branch per class.
#[derive(Module, Debug)]
pub struct ClamMb {
    /// The layers.
    pub clam: Clam,
}

impl Aggregator for ClamSb {
    const NAME: &'static str = "clam_sb";

    fn init(shape: &HeadShape, rng: &mut ChaCha8Rng, device: &Device) -> Self {
        Self { clam: Clam::init(shape, 1, rng, device) }
    }

    fn forward(&self, bag: Tensor<2>, dropout: Option<&mut ChaCha8Rng>) -> BagOutput {
        self.clam.attended(bag, dropout).output(&self.clam)
    }

    fn attend(&self, bag: Tensor<2>) -> Option<BagAttention> {
        Some(self.clam.attend(bag))
    }

    fn loss(&self, bag: Tensor<2>, label: usize, dropout: &mut ChaCha8Rng) -> Tensor<1> {
        self.clam.loss(bag, label, dropout)
    }
}

impl Aggregator for ClamMb {
    const NAME: &'static str = "clam_mb";

    fn init(shape: &HeadShape, rng: &mut ChaCha8Rng, device: &Device) -> Self {
        Self { clam: Clam::init(shape, shape.classes, rng, device) }
    }

    fn forward(&self, bag: Tensor<2>, dropout: Option<&mut ChaCha8Rng>) -> BagOutput {
        self.clam.attended(bag, dropout).output(&self.clam)
    }

    fn attend(&self, bag: Tensor<2>) -> Option<BagAttention> {
        Some(self.clam.attend(bag))
    }

    fn loss(&self, bag: Tensor<2>, label: usize, dropout: &mut ChaCha8Rng) -> Tensor<1> {
        self.clam.loss(bag, label, dropout)
    }
}

/// Hidden patches and their attention.
struct Attended {
    /// `[patches, hidden]`.
    hidden: Tensor<2>,
    /// `[branches, patches]`, rows summing to 1.
    attention: Tensor<2>,
}

impl Clam {
    fn init(shape: &HeadShape, branches: usize, rng: &mut ChaCha8Rng, device: &Device) -> Self {
        let HeadShape { dim, classes, hidden, attention, dropout } = *shape;
        Self {
            embed: linear(dim, hidden, rng, device),
            attend: linear(hidden, attention, rng, device),
            gate: linear(hidden, attention, rng, device),
            score: linear(attention, branches, rng, device),
            classify: linear(hidden, classes, rng, device),
            examples: linear(hidden, 2 * classes, rng, device),
            dropout,
        }
    }

    fn attended(&self, bag: Tensor<2>, mut rng: Option<&mut ChaCha8Rng>) -> Attended {
        let hidden = dropout(relu(self.embed.forward(bag)), self.dropout, rng.as_deref_mut());
        let gated = gated(self.attend.forward(hidden.clone()), self.gate.forward(hidden.clone()));
        // Both factors are dropped from.
        let gated = dropout(dropout(gated, self.dropout, rng.as_deref_mut()), self.dropout, rng);
        let attention = softmax(self.score.forward(gated).transpose(), 1);
        Attended { hidden, attention }
    }

    fn attend(&self, bag: Tensor<2>) -> BagAttention {
        let attended = self.attended(bag, None);
        let attention = attended.attention.clone();
        BagAttention { logits: attended.output(self).logits, attention }
    }

    fn loss(&self, bag: Tensor<2>, label: usize, rng: &mut ChaCha8Rng) -> Tensor<1> {
        let attended = self.attended(bag, Some(rng));
        let examples = self.examples_loss(&attended, label);
        let bag = cross_entropy(attended.output(self).logits, label);
        bag * BAG_WEIGHT + examples * (1.0 - BAG_WEIGHT)
    }

    /// Mean over the classes of the smooth SVM loss of their examples, `[1]`. Which patches are examples is not learned from.
    fn examples_loss(&self, Attended { hidden, attention }: &Attended, label: usize) -> Tensor<1> {
        let [branches, patches] = attention.dims();
        let [_, scores] = self.examples.weight.dims();
        let (classes, count) = (scores / 2, EXAMPLES.min(patches));
        let branch = |branch: usize| {
            let row = attention.clone().detach().slice([branch..branch + 1, 0..patches]);
            row.reshape([patches]).argsort_descending(0)
        };
        let by_attention: Vec<Tensor<1, Int>> = (0..branches).map(branch).collect();
        let of_class = |class: usize| {
            let order = &by_attention[class.min(branches - 1)];
            let scores = |first: usize| {
                let patches = order.clone().narrow(0, first, count);
                let scores = self.examples.forward(hidden.clone().select(0, patches));
                scores.slice([0..count, 2 * class..2 * class + 2])
            };
            match class == label {
                true => (smooth_svm(scores(0), 1) + smooth_svm(scores(patches - count), 0)) / 2.0,
                false => smooth_svm(scores(0), 0),
            }
        };
        Tensor::cat((0..classes).map(of_class).collect(), 0).mean()
    }
}

impl Attended {
    /// The pooled patches classified.
    fn output(self, clam: &Clam) -> BagOutput {
        let pooled = self.attention.clone().matmul(self.hidden);
        let [branches, _] = pooled.dims();
        let logits = match branches {
            1 => clam.classify.forward(pooled),
            // Class c of branch c: the diagonal of all classes of all branches.
            _ => {
                let scores = (pooled * clam.classify.weight.val().transpose()).sum_dim(1).transpose();
                match &clam.classify.bias {
                    Some(bias) => scores + bias.val().unsqueeze(),
                    None => scores,
                }
            }
        };
        let attention = of_predicted(self.attention, &logits);
        BagOutput { logits, attention }
    }
}

/// The smooth top-1 SVM loss with temperature and margin 1 (Berrada, Zisserman, Kumar, ICLR 2018, equation 9), which at k = 1 is a
/// cross-entropy whose wrong class has a head start of 1. `scores`: `[n, 2]`, all of one label. (The original's library leaves
/// the loss out where the scores differ by more than ln 1000: 0.003 at most.)
fn smooth_svm(scores: Tensor<2>, label: usize) -> Tensor<1> {
    let margin = if label == 0 { [0.0f32, 1.0] } else { [1.0, 0.0] };
    let margin = Tensor::from_data(TensorData::from([margin]), &scores.device());
    cross_entropy(scores + margin, label)
}
