//! A head against PyTorch: scores, loss, gradients and one step with the same weights on the same bags.

use std::collections::BTreeMap;

use burn::module::{ModuleMapper, ModuleVisitor, Param};
use burn::optim::GradientsParams;
use burn::tensor::{Device, Tensor, TensorData};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use safetensors::SafeTensors;

use super::layers::of_predicted;
use super::training::{Accumulation, optimiser};
use super::*;

struct Array {
    shape: Vec<usize>,
    values: Vec<f32>,
}

type Arrays = BTreeMap<String, Array>;

fn open(name: &str) -> Arrays {
    let path = format!("{}/../tests/golden/evaluation/{name}.safetensors", env!("CARGO_MANIFEST_DIR"));
    let file = std::fs::read(path).unwrap();
    let of_bytes =
        |bytes: &[u8]| bytes.chunks_exact(4).map(|four| f32::from_le_bytes(four.try_into().unwrap())).collect();
    let arrays = SafeTensors::deserialize(&file).unwrap();
    let array = |(name, view): (String, safetensors::tensor::TensorView)| {
        (name, Array { shape: view.shape().to_vec(), values: of_bytes(view.data()) })
    };
    arrays.tensors().into_iter().map(array).collect()
}

impl Array {
    fn tensor<const D: usize>(&self, device: &Device) -> Tensor<D> {
        Tensor::from_data(TensorData::new(self.values.clone(), self.shape.clone()), device)
    }
}

/// Puts the arrays `<prefix>.<path>` into a module. Every parameter must have one; matrices are stored as PyTorch does,
/// `[outputs, inputs]`, but for the ones that are no layer's weight.
struct Fill<'a> {
    arrays: &'a Arrays,
    path: Vec<String>,
}

impl ModuleMapper for Fill<'_> {
    fn enter_module(&mut self, name: &str, _: &str) {
        self.path.push(name.to_owned());
    }

    fn exit_module(&mut self, _: &str, _: &str) {
        self.path.pop();
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let path = self.path.join(".");
        let array = self.arrays.get(&path).unwrap_or_else(|| panic!("no {path}"));
        let value = array.tensor::<D>(&param.val().device());
        let value = if path.ends_with(".weight") && D == 2 { value.transpose() } else { value };
        assert_eq!(value.dims(), param.val().dims(), "{path}");
        param.map(|_| value.detach().require_grad())
    }
}

/// Path and numbers of every parameter, or of its gradient, laid out as [`Fill`] takes them.
struct Flat<'a> {
    gradients: Option<&'a GradientsParams>,
    path: Vec<String>,
    found: Vec<(String, Vec<f32>)>,
}

impl ModuleVisitor for Flat<'_> {
    fn enter_module(&mut self, name: &str, _: &str) {
        self.path.push(name.to_owned());
    }

    fn exit_module(&mut self, _: &str, _: &str) {
        self.path.pop();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let path = self.path.join(".");
        let value = match self.gradients {
            Some(gradients) => gradients.get::<D>(param.id).unwrap_or_else(|| panic!("{path} has no gradient")),
            None => param.val().detach(),
        };
        let value = if path.ends_with(".weight") && D == 2 { value.transpose() } else { value };
        self.found.push((path, numbers(value)));
    }
}

fn flat<A: Aggregator>(head: &A, gradients: Option<&GradientsParams>) -> Vec<(String, Vec<f32>)> {
    let mut flat = Flat { gradients, path: vec![], found: vec![] };
    head.visit(&mut flat);
    flat.found
}

fn numbers<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor.to_data().try_into_vec().unwrap()
}

/// The tolerance is relative to the largest number of the array.
fn assert_close(what: &str, ours: &[f32], theirs: &[f32], tolerance: f32) {
    assert_eq!(ours.len(), theirs.len(), "{what}");
    let size = theirs.iter().fold(1e-3f32, |size, x| size.max(x.abs()));
    for (at, (a, b)) in ours.iter().zip(theirs).enumerate() {
        assert!((a - b).abs() <= tolerance * size, "{what}[{at}]: {a} is not {b}, of at most {size}");
    }
}

/// `tests/golden/evaluation/heads.py` wrote these with PyTorch in float64 from float32 weights and features, so that all the
/// rounding is ours. `forward` and `gradient` bound it relative to the largest number of each array. After a step of Adam,
/// which divides a gradient by its own size, a weight whose gradient is nearly 0 may be off by a part of the step: 1 % of
/// its length, 2e-6.
fn check<A: Aggregator>(shape: &HeadShape, forward: f32, gradient: f32) {
    let golden = open(A::NAME);
    let device = Device::flex().autodiff();
    let rng = &mut ChaCha8Rng::seed_from_u64(0);
    let of_prefix = |prefix: &str| -> Arrays {
        let named = golden.iter().filter_map(|(name, array)| {
            let path = name.strip_prefix(prefix)?.strip_prefix('.')?;
            Some((path.to_owned(), Array { shape: array.shape.clone(), values: array.values.clone() }))
        });
        named.collect()
    };
    let mut head = A::init(shape, rng, &device);
    head = head.map(&mut Fill { arrays: &of_prefix("before"), path: vec![] });
    let bags = golden.keys().filter(|name| name.ends_with(".features")).count();
    assert_eq!(bags, 3);
    let mut step = Accumulation::new();
    for bag in 0..bags {
        let of = |what: &str| &golden[&format!("bag{bag}.{what}")];
        let label = of("label").values[0] as usize;
        let output = head.forward(of("features").tensor(&device), None);
        assert_close("logits", &numbers(output.logits), &of("logits").values, forward);
        assert_close("attention", &numbers(output.attention), &of("attention").values, forward);
        if let Some(attended) = head.attend(of("features").tensor(&device)) {
            assert_close(
                "logits beside the attention",
                &numbers(attended.logits.clone()),
                &of("logits").values,
                forward,
            );
            let predicted = of_predicted(attended.attention.clone(), &attended.logits);
            assert_close("attention of the predicted class", &numbers(predicted), &of("attention").values, forward);
            let [rows, patches] = attended.attention.dims();
            let sums = numbers(attended.attention.sum_dim(1));
            assert!(rows == 1 || rows == shape.classes, "{rows} rows of {patches}");
            assert!(sums.iter().all(|sum| (sum - 1.0).abs() < 1e-5), "{sums:?}");
        }
        let loss = head.loss(of("features").tensor(&device), label, rng);
        assert_close("loss", &numbers(loss.clone()), &of("loss").values, forward);
        step.add(&head, loss, 1.0, bags);
    }
    let gradients = step.gradients();
    let expected = of_prefix("gradient");
    let found = flat(&head, Some(&gradients));
    assert_eq!(found.len(), expected.len());
    found.iter().for_each(|(path, ours)| assert_close(path, ours, &expected[path].values, gradient));

    let config = MilConfig { weight_decay: f64::from(golden["weight_decay"].values[0]), ..MilConfig::default() };
    head = optimiser(&config).step(f64::from(golden["lr"].values[0]), head, gradients);
    let expected = of_prefix("after");
    for (path, ours) in flat(&head, None) {
        let pairs = ours.iter().zip(&expected[&path].values);
        let off = pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(off <= 2e-6, "{path} after a step: {off}");
    }
}

const SHAPE: HeadShape = HeadShape { dim: 12, classes: 3, hidden: 10, attention: 6, dropout: 0.0 };

#[test]
fn mean_as_pytorch() {
    check::<MeanPool>(&SHAPE, 1e-6, 2e-6);
}

#[test]
fn max_as_pytorch() {
    check::<MaxPool>(&SHAPE, 1e-6, 2e-6);
}

#[test]
fn clam_sb_as_pytorch() {
    check::<ClamSb>(&SHAPE, 2e-6, 5e-6);
}

#[test]
fn clam_mb_as_pytorch() {
    check::<ClamMb>(&SHAPE, 2e-6, 5e-6);
}

#[test]
fn dsmil_as_pytorch() {
    check::<Dsmil>(&SHAPE, 2e-6, 5e-6);
}

/// Six steps towards an inverse lose digits: a factor of ten is left for them.
#[test]
fn transmil_as_pytorch() {
    check::<TransMil>(&HeadShape { hidden: 16, ..SHAPE }, 2e-5, 5e-5);
}
