//! The layers that heads share. Their initial weights and dropout come from the generator handed in, never from the device.

use burn::module::Param;
use burn::nn::Linear;
use burn::tensor::activation::log_softmax;
use burn::tensor::{Device, Tensor, TensorData};
use rand::{Rng, RngExt};
use rand_chacha::ChaCha8Rng;

/// A layer with PyTorch's initial weights: all of them uniform in ± 1/√inputs.
pub(super) fn linear(inputs: usize, outputs: usize, rng: &mut ChaCha8Rng, device: &Device) -> Linear {
    let weight = uniform([inputs, outputs], inputs, rng, device);
    Linear { weight, bias: Some(uniform([outputs], inputs, rng, device)) }
}

/// A parameter uniform in ± 1/√inputs, PyTorch's choice for a layer whose outputs are sums of `inputs` products.
pub(super) fn uniform<const D: usize>(
    shape: [usize; D],
    inputs: usize,
    rng: &mut ChaCha8Rng,
    device: &Device,
) -> Param<Tensor<D>> {
    let bound = (inputs as f32).sqrt().recip();
    let values: Vec<f32> = (0..shape.iter().product()).map(|_| rng.random_range(-bound..bound)).collect();
    Param::from_data(TensorData::new(values, shape), device)
}

/// `x` with a share `p` of its numbers at 0 and the others larger by 1 / (1 - p), where there is a generator.
pub(super) fn dropout(x: Tensor<2>, p: f64, rng: Option<&mut ChaCha8Rng>) -> Tensor<2> {
    match rng.filter(|_| p > 0.0) {
        Some(rng) => {
            let mask = dropout_mask(x.dims(), p, rng, &x.device());
            x * mask
        }
        None => x,
    }
}

/// Zeros with probability `p`, otherwise 1 / (1 - p).
fn dropout_mask(shape: [usize; 2], p: f64, rng: &mut ChaCha8Rng, device: &Device) -> Tensor<2> {
    let dropped_below = (p * 2f64.powi(32)) as u32;
    let kept = (1.0 / (1.0 - p)) as f32;
    let mask: Vec<f32> =
        (0..shape[0] * shape[1]).map(|_| if rng.next_u32() < dropped_below { 0.0 } else { kept }).collect();
    Tensor::from_data(TensorData::new(mask, shape), device)
}

/// Cross-entropy of rows of logits `[rows, classes]` that all have one label, their mean, `[1]`.
pub(super) fn cross_entropy(logits: Tensor<2>, label: usize) -> Tensor<1> {
    let [rows, _] = logits.dims();
    log_softmax(logits, 1).slice([0..rows, label..label + 1]).mean().neg()
}

/// The attention of the predicted class: row argmax(`logits`) of `[classes, patches]`; the only row where there is one.
pub(super) fn of_predicted(attention: Tensor<2>, logits: &Tensor<2>) -> Tensor<1> {
    let [rows, patches] = attention.dims();
    if rows == 1 {
        return attention.reshape([patches]);
    }
    let predicted = logits.clone().detach().argmax(1).reshape([1]);
    attention.select(0, predicted).reshape([patches])
}

#[cfg(all(test, feature = "flex"))]
mod tests {
    use rand::SeedableRng;

    use super::*;

    #[test]
    fn dropout_keeps_the_mean_and_repeats() {
        let device = Device::flex();
        let draw = |seed| -> Vec<f32> {
            let mut rng = ChaCha8Rng::seed_from_u64(seed);
            dropout_mask([200, 300], 0.25, &mut rng, &device).to_data().try_into_vec().unwrap()
        };
        let mask = draw(1);
        let dropped = mask.iter().filter(|&&x| x == 0.0).count() as f64 / 60_000.0;
        // Four standard errors of a share of 60,000.
        assert!((dropped - 0.25).abs() < 4.0 * (0.25f64 * 0.75 / 60_000.0).sqrt(), "{dropped}");
        assert!(mask.iter().all(|&x| x == 0.0 || (x - 4.0 / 3.0).abs() < 1e-6));
        assert_eq!(mask, draw(1));
        assert_ne!(mask, draw(2));
    }
}
