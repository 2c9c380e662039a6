//! The kernels against burn's own operations and against PyTorch.

use super::*;
use burn::tensor::{Device, TensorData};
use proptest::prelude::*;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

fn uniform(count: usize, rng: &mut ChaCha8Rng) -> Vec<f32> {
    (0..count).map(|_| rng.random_range(-1.0..1.0)).collect()
}

fn leaf<const D: usize>(values: Vec<f32>, shape: [usize; D]) -> Tensor<D> {
    Tensor::from_data(TensorData::new(values, shape), &Device::flex().autodiff()).require_grad()
}

fn values<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor.into_data().try_to_vec().unwrap()
}

type Conv = fn(Tensor<4>, Tensor<4>, Tensor<1>, usize, [usize; 4]) -> Tensor<4>;

/// A convolution of random values: the result and the gradients of x, weight and bias.
fn run(conv: Conv, [b, c, h, w, o, k, stride]: [usize; 7], padding: [usize; 4]) -> Vec<Vec<f32>> {
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let x = leaf(uniform(b * c * h * w, &mut rng), [b, c, h, w]);
    let weight = leaf(uniform(o * c * k * k, &mut rng), [o, c, k, k]);
    let bias = leaf(uniform(o, &mut rng), [o]);
    let y = conv(x.clone(), weight.clone(), bias.clone(), stride, padding);
    let pull = Tensor::from_data(
        TensorData::new(uniform(y.shape().num_elements(), &mut rng), y.shape()),
        &Device::flex().autodiff(),
    );
    let grads = (y.clone() * pull).sum().backward();
    vec![
        values(y),
        values(x.grad(&grads).unwrap()),
        values(weight.grad(&grads).unwrap()),
        values(bias.grad(&grads).unwrap()),
    ]
}

/// The largest difference, relative to the largest value.
fn difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    let largest = a.iter().fold(1e-6, |m: f32, v| m.max(v.abs()));
    a.iter().zip(b).fold(0.0, |m: f32, (a, b)| m.max((a - b).abs())) / largest
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    /// Sums of some hundred products in f32 in another order: 1e-5 of the largest value.
    #[test]
    fn convolution_and_its_gradients_are_burns(
        (b, c, o) in (1..4usize, prop_oneof![1..7usize, 15..20usize, 30..40usize], 1..40usize),
        (h, w) in (4..20usize, 4..20usize),
        (k, stride) in (prop_oneof![Just(1usize), Just(3), Just(4)], 1..3usize),
        padding in prop::array::uniform4(0..3usize),
        even in any::<bool>(),
    ) {
        let padding = if even { [padding[0], padding[1], padding[0], padding[1]] } else { padding };
        let sizes = [b, c, h, w, o, k, stride];
        let (ours, burns) = (run(conv2d, sizes, padding), run(composed_conv2d, sizes, padding));
        for (part, (ours, burns)) in ["y", "x", "weight", "bias"].iter().zip(ours.iter().zip(&burns)) {
            prop_assert!(difference(burns, ours) < 1e-5, "{part}: {}", difference(burns, ours));
        }
    }
}

#[test]
fn threads_change_no_bit() {
    for sizes in
        [[5, 20, 33, 17, 24, 3, 1], [3, 70, 20, 20, 70, 4, 2], [2, 20, 30, 30, 130, 1, 1], [9, 3, 40, 40, 8, 3, 1]]
    {
        let run = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| run(conv2d, sizes, [0, 0, 1, 1]))
        };
        let one = run(1);
        for threads in [2, 5] {
            assert!(run(threads) == one, "{sizes:?} on {threads} threads");
        }
    }
}
