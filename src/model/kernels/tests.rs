//! The kernels against burn's own operations and against PyTorch.

use super::*;
use burn::tensor::{Device, TensorData};
use proptest::prelude::*;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::collections::HashMap;

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

/// The largest difference, relative to the largest value or to 1, the size of what is summed.
fn difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    let largest = a.iter().fold(1.0, |m: f32, v| m.max(v.abs()));
    a.iter().zip(b).fold(0.0, |m: f32, (a, b)| m.max((a - b).abs())) / largest
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    /// Sums of up to some thousand products in f32 in another order, which may nearly cancel: 1e-4.
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
            prop_assert!(difference(burns, ours) < 1e-4, "{part}: {}", difference(burns, ours));
        }
    }
}

/// As above, where an image takes several blocks of rows, or a block several images, in each of the ways of computing.
#[test]
fn blocks_join() {
    for sizes in [
        [2, 70, 50, 40, 20, 3, 1],
        [2, 70, 48, 40, 24, 4, 2],
        [2, 3, 90, 90, 20, 3, 1],
        [2, 150, 40, 30, 2, 3, 1],
        [5, 40, 4, 4, 70, 3, 1],
        [9, 20, 7, 7, 64, 3, 1],
        [1, 130, 30, 30, 130, 1, 1],
    ] {
        let (ours, burns) = (run(conv2d, sizes, [1; 4]), run(composed_conv2d, sizes, [1; 4]));
        for (part, (ours, burns)) in ["y", "x", "weight", "bias"].iter().zip(ours.iter().zip(&burns)) {
            assert!(difference(burns, ours) < 1e-4, "{sizes:?}, {part}: {}", difference(burns, ours));
        }
    }
}

/// A normalisation of random values with a mean: the result and the gradients of x, weight and bias.
fn run_norm(norm: impl Fn([Tensor<4>; 3]) -> Tensor<4>, [b, c, h, w]: [usize; 4]) -> Vec<Vec<f32>> {
    let mut rng = ChaCha8Rng::seed_from_u64(2);
    let x = leaf(uniform(b * c * h * w, &mut rng), [b, c, h, w]);
    let [weight, bias] = [(); 2].map(|()| leaf(uniform(c, &mut rng), [1, c, 1, 1]));
    let y = norm([x.clone() * 3.0 + 1.0, weight.clone(), bias.clone()]);
    let pull = Tensor::from_data(
        TensorData::new(uniform(y.shape().num_elements(), &mut rng), y.shape()),
        &Device::flex().autodiff(),
    );
    let grads = (y.clone() * pull).sum().backward();
    let grads = [&x, &weight, &bias].map(|leaf| values(leaf.grad(&grads).unwrap()));
    std::iter::once(values(y)).chain(grads).collect()
}

fn flat(parameter: Tensor<4>) -> Tensor<1> {
    parameter.flatten(0, 3)
}

proptest! {
    /// Sums of some hundred values in f32 in another order, which may nearly cancel: 1e-4. Groups of two values and more:
    /// with one, the result is the shift and the gradient rounding.
    #[test]
    fn normalisation_and_its_gradients_are_burns(
        (b, groups, members) in (1..4usize, 1..4usize, 1..5usize),
        (h, w) in (2..12usize, 2..12usize),
        with_silu in any::<bool>(),
    ) {
        let after = |y: Tensor<4>| if with_silu { composed_silu(y) } else { y };
        let ours = run_norm(
            |[x, weight, bias]| normalised(x, flat(weight), flat(bias), groups, 1e-5, with_silu),
            [b, groups * members, h, w],
        );
        let burns = run_norm(
            |[x, weight, bias]| after(composed_group_norm(x, flat(weight), flat(bias), groups, 1e-5)),
            [b, groups * members, h, w],
        );
        for (part, (ours, burns)) in ["y", "x", "weight", "bias"].iter().zip(ours.iter().zip(&burns)) {
            prop_assert!(difference(burns, ours) < 1e-4, "{part}: {}", difference(burns, ours));
        }
    }

    /// The exponential is within 2e-7 of the standard library's.
    #[test]
    fn silu_and_its_gradient_are_burns(count in 1..50_000usize) {
        let x = leaf((0..count).map(|i| (i as f32 * 0.37).sin() * 20.0).collect(), [count]);
        let run = |y: Tensor<1>| (values(y.clone()), values(x.grad(&y.square().sum().backward()).unwrap()));
        let (ours, burns) = (run(silu(x.clone())), run(composed_silu(x.clone())));
        prop_assert!(difference(&burns.0, &ours.0) < 1e-6);
        prop_assert!(difference(&burns.1, &ours.1) < 1e-6);
    }
}

/// A layer of rows of random values: the result and the gradients of x, weight and bias, each of which the result depends on.
fn run_rows(layer: impl Fn([Tensor<2>; 3]) -> Tensor<2>, [rows, width]: [usize; 2]) -> Vec<Vec<f32>> {
    let norm = |[x, weight, bias]: [Tensor<4>; 3]| {
        let x = x.reshape([rows, width]);
        layer([x, weight.reshape([1, width]), bias.reshape([1, width])]).reshape([rows, width, 1, 1])
    };
    run_norm(norm, [rows, width, 1, 1])
}

proptest! {
    /// Sums of some hundred values in f32 in another order, as above; exponentials within 5e-7 of the standard library's.
    #[test]
    fn layers_of_rows_and_their_gradients_are_burns(
        rows in prop_oneof![1..40usize, 300..500usize],
        width in prop_oneof![2..50usize, 100..200usize],
    ) {
        type Layer = fn([Tensor<2>; 3]) -> Tensor<2>;
        let layers: [(&str, Layer, Layer); 3] = [
            ("layer norm", |[x, w, b]| layer_norm(x, w.squeeze_dim(0), b.squeeze_dim(0), 1e-5),
                |[x, w, b]| module::layer_norm(x, w.squeeze_dim(0), Some(b.squeeze_dim(0)), 1e-5)),
            ("gelu", |[x, w, b]| gelu(x * w + b), |[x, w, b]| activation::gelu(x * w + b)),
            ("softmax", |[x, w, b]| softmax(x * w + b), |[x, w, b]| activation::softmax(x * w + b, 1)),
        ];
        for (name, ours, burns) in layers {
            let (ours, burns) = (run_rows(ours, [rows, width]), run_rows(burns, [rows, width]));
            for (part, (ours, burns)) in ["y", "x", "weight", "bias"].iter().zip(ours.iter().zip(&burns)) {
                prop_assert!(difference(burns, ours) < 1e-4, "{name}, {part}: {}", difference(burns, ours));
            }
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
            pool.install(|| {
                let norm = |[x, weight, bias]: [Tensor<4>; 3]| group_norm_silu(x, flat(weight), flat(bias), 2, 1e-5);
                let rows =
                    |[x, w, b]: [Tensor<2>; 3]| softmax(gelu(layer_norm(x, w.squeeze_dim(0), b.squeeze_dim(0), 1e-5)));
                (
                    run(conv2d, sizes, [0, 0, 1, 1]),
                    run_norm(norm, [sizes[0], 8, sizes[2], sizes[3]]),
                    run_rows(rows, [sizes[0] * sizes[2] * 20, sizes[3]]),
                )
            })
        };
        let one = run(1);
        for threads in [2, 5] {
            assert!(run(threads) == one, "{sizes:?} on {threads} threads");
        }
    }
}

/// Inputs as in tests/golden/kernels/make.py: sines.
fn sines(count: usize, phase: f64) -> Vec<f32> {
    (0..count).map(|i| (i as f64 * 0.7 + phase).sin() as f32).collect()
}

/// The result and the gradients of x, weight and bias against PyTorch's in f64: some ten roundings of f32.
fn assert_pytorchs<const D: usize, const W: usize>(
    name: &str,
    function: impl Fn(Tensor<D>, Tensor<W>, Tensor<1>) -> Tensor<D>,
    (x, weight): ([usize; D], [usize; W]),
) {
    let golden: HashMap<String, Vec<Vec<f32>>> =
        serde_json::from_str(include_str!("../../../tests/golden/kernels/kernels.json")).unwrap();
    let x = leaf(sines(x.iter().product(), 0.0), x);
    let bias = leaf(sines(weight[0], 2.0), [weight[0]]);
    let weight = leaf(sines(weight.iter().product(), 1.0), weight);
    let y = function(x.clone(), weight.clone(), bias.clone());
    let pull = TensorData::new(sines(y.shape().num_elements(), 9.0), y.shape());
    let grads = (y.clone() * Tensor::from_data(pull, &y.device())).sum().backward();
    let ours = [
        values(y),
        values(x.grad(&grads).unwrap()),
        values(weight.grad(&grads).unwrap()),
        values(bias.grad(&grads).unwrap()),
    ];
    for (part, (ours, theirs)) in ["y", "x", "weight", "bias"].iter().zip(ours.iter().zip(&golden[name])) {
        assert!(difference(theirs, ours) < 2e-6, "{name}, {part}: {}", difference(theirs, ours));
    }
}

#[test]
fn results_and_gradients_are_pytorchs() {
    assert_pytorchs::<4, 4>("convolution", |x, w, b| conv2d(x, w, b, 2, [0, 0, 1, 1]), ([2, 3, 6, 5], [4, 3, 3, 3]));
    assert_pytorchs::<4, 1>("group_norm_silu", |x, w, b| group_norm_silu(x, w, b, 2, 1e-6), ([2, 4, 3, 5], [4]));
    assert_pytorchs::<2, 1>("layer_norm", |x, w, b| layer_norm(x, w, b, 1e-6), ([5, 37], [37]));
    let spread = |x: Tensor<2>, w: Tensor<1>, b: Tensor<1>| x * 9.0 * w.unsqueeze() + b.unsqueeze();
    assert_pytorchs("gelu", |x, w, b| gelu(spread(x, w, b)), ([5, 37], [37]));
    assert_pytorchs("softmax", |x, w, b| softmax(spread(x, w, b)), ([5, 37], [37]));
}
