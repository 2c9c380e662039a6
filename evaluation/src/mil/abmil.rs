//! Gated attention-based multiple-instance learning (Ilse, Tomczak, Welling, ICML 2018), with CLAM's hidden layer:
//! h = dropout(ReLU(E x)), a = softmax over the patches of wᵀ(tanh(V h) ⊙ σ(U h)), logits = C Σ a h.

use burn::module::Module;
use burn::nn::Linear;
use burn::tensor::activation::{relu, softmax};
use burn::tensor::{Device, Tensor};
use rand_chacha::ChaCha8Rng;

use super::gate::gated;
use super::layers::{dropout, linear};
use super::{Aggregator, BagAttention, BagOutput, HeadShape};

/// The gated ABMIL head.
#[derive(Module, Debug)]
pub struct GatedAbmil {
    /// E: `dim` to `hidden`.
    pub embed: Linear,
    /// V: `hidden` to `attention`, through tanh.
    pub attend: Linear,
    /// U: `hidden` to `attention`, through the sigmoid.
    pub gate: Linear,
    /// w: `attention` to one score per patch.
    pub score: Linear,
    /// C: `hidden` to `classes`.
    pub classify: Linear,
    /// Share of the hidden units dropped in training.
    pub dropout: f64,
}

impl Aggregator for GatedAbmil {
    const NAME: &'static str = "abmil";

    fn init(shape: &HeadShape, rng: &mut ChaCha8Rng, device: &Device) -> Self {
        let HeadShape { dim, classes, hidden, attention, dropout } = *shape;
        Self {
            embed: linear(dim, hidden, rng, device),
            attend: linear(hidden, attention, rng, device),
            gate: linear(hidden, attention, rng, device),
            score: linear(attention, 1, rng, device),
            classify: linear(hidden, classes, rng, device),
            dropout,
        }
    }

    fn forward(&self, bag: Tensor<2>, rng: Option<&mut ChaCha8Rng>) -> BagOutput {
        let [patches, _] = bag.dims();
        let hidden = dropout(relu(self.embed.forward(bag)), self.dropout, rng);
        let attention = softmax(self.scores(hidden.clone()).reshape([1, patches]), 1);
        let pooled = attention.clone().matmul(hidden);
        BagOutput { logits: self.classify.forward(pooled), attention: attention.reshape([patches]) }
    }

    fn attend(&self, bag: Tensor<2>) -> Option<BagAttention> {
        let BagOutput { logits, attention } = self.forward(bag, None);
        Some(BagAttention { logits, attention: attention.unsqueeze() })
    }
}

impl GatedAbmil {
    /// wᵀ(tanh(V h) ⊙ σ(U h)) of the hidden patches `[patches, hidden]`, `[patches, 1]`: attention before the softmax.
    fn scores(&self, hidden: Tensor<2>) -> Tensor<2> {
        let gate = self.gate.forward(hidden.clone());
        self.score.forward(gated(self.attend.forward(hidden), gate))
    }
}

#[cfg(all(test, feature = "flex"))]
mod tests {
    use burn::module::Param;
    use burn::tensor::TensorData;
    use rand::SeedableRng;
    use serde::Deserialize;

    use super::*;
    use crate::mil::MilConfig;
    use crate::mil::layers::cross_entropy;
    use crate::mil::training::{Accumulation, optimiser};

    fn matrix(rows: &[Vec<f32>], device: &Device) -> Tensor<2> {
        let shape = [rows.len(), rows[0].len()];
        Tensor::from_data(TensorData::new(rows.concat(), shape), device)
    }

    fn vector(values: &[f32], device: &Device) -> Tensor<1> {
        Tensor::from_data(TensorData::new(values.to_vec(), [values.len()]), device)
    }

    fn numbers<const D: usize>(tensor: &Tensor<D>) -> Vec<f32> {
        tensor.to_data().try_into_vec().unwrap()
    }

    fn assert_close(what: &str, ours: &[f32], theirs: &[f32], tolerance: f32) {
        assert_eq!(ours.len(), theirs.len(), "{what}");
        for (a, b) in ours.iter().zip(theirs) {
            assert!((a - b).abs() <= tolerance * (1.0 + b.abs()), "{what}: {a} is not {b}");
        }
    }

    /// The worked number: h = (2,0), (0,1), V = U = I, w = 1, no biases; E = C = I lets h in and z out.
    #[test]
    fn worked_attention() {
        let device = Device::flex();
        let layer = |rows: &[Vec<f32>]| Linear { weight: Param::from_tensor(matrix(rows, &device)), bias: None };
        let identity = [vec![1.0, 0.0], vec![0.0, 1.0]];
        let head = GatedAbmil {
            embed: layer(&identity),
            attend: layer(&identity),
            gate: layer(&identity),
            score: layer(&[vec![1.0], vec![1.0]]),
            classify: layer(&identity),
            dropout: 0.25,
        };
        let bag = matrix(&[vec![2.0, 0.0], vec![0.0, 1.0]], &device);
        assert_close("scores", &numbers(&head.scores(bag.clone())), &[0.849_112_7, 0.556_769_9], 1e-6);
        let output = head.forward(bag, None);
        assert_close("attention", &numbers(&output.attention), &[0.572_569_6, 0.427_430_4], 1e-6);
        assert_close("z", &numbers(&output.logits), &[1.145_139_2, 0.427_430_4], 1e-6);
    }

    /// Weights in PyTorch's layout, `[outputs, inputs]`.
    #[derive(Deserialize)]
    struct Layer {
        weight: Vec<Vec<f32>>,
        bias: Vec<f32>,
    }

    impl Layer {
        fn linear(&self, device: &Device) -> Linear {
            let weight = matrix(&self.weight, device).transpose();
            let bias = vector(&self.bias, device);
            Linear { weight: Param::from_tensor(weight.detach()), bias: Some(Param::from_tensor(bias)) }
        }

        fn assert_equals(&self, what: &str, ours: &Linear, tolerance: f32) {
            let weight = numbers(&ours.weight.val().transpose());
            assert_close(&format!("{what}.weight"), &weight, &self.weight.concat(), tolerance);
            let bias = ours.bias.as_ref().unwrap().val();
            assert_close(&format!("{what}.bias"), &numbers(&bias), &self.bias, tolerance);
        }
    }

    #[derive(Deserialize)]
    struct Weights {
        embed: Layer,
        attend: Layer,
        gate: Layer,
        score: Layer,
        classify: Layer,
    }

    #[derive(Deserialize)]
    struct GoldenBag {
        features: Vec<Vec<f32>>,
        label: usize,
        logits: Vec<f32>,
        attention: Vec<f32>,
        loss: f32,
    }

    #[derive(Deserialize)]
    struct Golden {
        lr: f64,
        weight_decay: f64,
        before: Weights,
        bags: Vec<GoldenBag>,
        steps: Vec<Weights>,
    }

    /// `tests/golden/evaluation/abmil.py` wrote these with PyTorch (float32, CPU): forward, loss, and the weights
    /// after each of three Adam steps on the mean loss of all bags.
    ///
    /// Tolerances: 2e-6 forward (sums of at most 12 float32 products in another order). Weights 2e-6 too: Adam divides
    /// the gradient by its own size, so a relative error of a gradient moves a weight by lr (2e-4) times that; no
    /// gradient is near zero, since the decay alone gives every weight one.
    #[test]
    fn as_pytorch() {
        let text = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/golden/evaluation/abmil.json"));
        let golden: Golden = serde_json::from_str(text).unwrap();
        let device = Device::flex().autodiff();
        let mut head = GatedAbmil {
            embed: golden.before.embed.linear(&device),
            attend: golden.before.attend.linear(&device),
            gate: golden.before.gate.linear(&device),
            score: golden.before.score.linear(&device),
            classify: golden.before.classify.linear(&device),
            dropout: 0.0,
        };
        for bag in &golden.bags {
            let output = head.forward(matrix(&bag.features, &device), None);
            assert_close("logits", &numbers(&output.logits), &bag.logits, 2e-6);
            assert_close("attention", &numbers(&output.attention), &bag.attention, 2e-6);
            let loss = cross_entropy(output.logits, bag.label);
            assert_close("loss", &numbers(&loss), &[bag.loss], 2e-6);
        }
        let mut rng = ChaCha8Rng::seed_from_u64(0);
        let mut optimiser = optimiser(&MilConfig { weight_decay: golden.weight_decay, ..MilConfig::default() });
        for after in &golden.steps {
            let mut step = Accumulation::new();
            for bag in &golden.bags {
                let loss = head.loss(matrix(&bag.features, &device), bag.label, &mut rng);
                step.add(&head, loss, 1.0, golden.bags.len());
            }
            head = optimiser.step(golden.lr, head, step.gradients());
            after.embed.assert_equals("embed", &head.embed, 2e-6);
            after.attend.assert_equals("attend", &head.attend, 2e-6);
            after.gate.assert_equals("gate", &head.gate, 2e-6);
            after.score.assert_equals("score", &head.score, 2e-6);
            after.classify.assert_equals("classify", &head.classify, 2e-6);
        }
    }

    #[test]
    fn the_order_of_patches_does_not_matter() {
        let device = Device::flex();
        let shape = HeadShape { dim: 3, classes: 2, hidden: 5, attention: 4, dropout: 0.5 };
        let head = GatedAbmil::init(&shape, &mut ChaCha8Rng::seed_from_u64(0), &device);
        let rows = [vec![0.1, 0.2, 0.3], vec![-1.0, 0.5, 2.0], vec![0.7, -0.7, 0.0]];
        let reversed: Vec<Vec<f32>> = rows.iter().rev().cloned().collect();
        let (a, b) = (head.forward(matrix(&rows, &device), None), head.forward(matrix(&reversed, &device), None));
        assert_close("logits", &numbers(&a.logits), &numbers(&b.logits), 1e-6);
        let mut attention = numbers(&b.attention);
        attention.reverse();
        assert_close("attention", &numbers(&a.attention), &attention, 1e-6);
        assert!((attention.iter().sum::<f32>() - 1.0).abs() < 1e-6);
    }
}
