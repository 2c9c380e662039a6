//! The gate of gated attention, tanh(a) σ(b), which is half of the exponentials of a slide-level head.
//!
//! On the CPU (burn-flex, f32) it is one pass with the machine's vectors, forward and backward: burn computes the functions one
//! value at a time. Elsewhere it is composed of burn's operations.

use burn::tensor::Tensor;
use burn::tensor::activation::sigmoid;

/// `tanh(value) σ(gate)`, both of one shape.
pub(super) fn gated(value: Tensor<2>, gate: Tensor<2>) -> Tensor<2> {
    #[cfg(feature = "flex")]
    if cpu::holds(&value) && cpu::holds(&gate) {
        return cpu::gated(value, gate);
    }
    composed(value, gate)
}

/// [`gated`] from burn's operations.
fn composed(value: Tensor<2>, gate: Tensor<2>) -> Tensor<2> {
    value.tanh() * sigmoid(gate)
}

#[cfg(feature = "flex")]
mod cpu {
    use burn::backend::autodiff::checkpoint::base::Checkpointer;
    use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
    use burn::backend::autodiff::grads::Gradients;
    use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
    use burn::backend::flex::FlexTensor;
    use burn::backend::tensor::FloatTensor;
    use burn::backend::{Autodiff, Backend, Dispatch, Flex, TensorMetadata, backend_extension};
    use burn::tensor::{DType, Device, Shape, Tensor, TensorData};
    use macerator::{AutoArch, Simd, WithSimd};

    /// Whether the code of this module is for `x`.
    pub fn holds(x: &Tensor<2>) -> bool {
        x.device().without_autodiff() == Device::flex() && x.dtype() == DType::F32
    }

    pub fn gated(value: Tensor<2>, gate: Tensor<2>) -> Tensor<2> {
        Tensor::from_dispatch(Dispatch::gated(value.into_dispatch(), gate.into_dispatch()))
    }

    #[backend_extension(Flex, Autodiff)]
    pub trait Gated: Backend {
        /// See [`super::gated`].
        fn gated(value: FloatTensor<Self>, gate: FloatTensor<Self>) -> FloatTensor<Self>;
    }

    impl Gated for Flex {
        fn gated(value: FlexTensor, gate: FlexTensor) -> FlexTensor {
            let (shape, value, gate) = (value.shape(), value.to_contiguous(), gate.to_contiguous());
            tensor(forward(value.storage(), gate.storage()), shape)
        }
    }

    impl<C: CheckpointStrategy> Gated for Autodiff<Flex, C> {
        fn gated(value: FloatTensor<Self>, gate: FloatTensor<Self>) -> FloatTensor<Self> {
            let (value, value_node) = value.into_parts();
            let (gate, gate_node) = gate.into_parts();
            let y = Flex::gated(value.clone(), gate.clone());
            match Gate.prepare::<C>([value_node, gate_node]).compute_bound().stateful() {
                OpsKind::Tracked(operation) => operation.finish([value, gate], y),
                OpsKind::UnTracked(operation) => operation.finish(y),
            }
        }
    }

    /// The backward pass of [`Gated::gated`].
    #[derive(Debug)]
    struct Gate;

    impl Backward<Flex, 2> for Gate {
        type State = [FlexTensor; 2];

        fn backward(self, ops: Ops<Self::State, 2>, grads: &mut Gradients, _: &mut Checkpointer) {
            let grad = grads.consume::<Flex>(&ops.node).to_contiguous();
            let [value, gate] = ops.state.map(|input| input.to_contiguous());
            let both = backward(value.storage(), gate.storage(), grad.storage());
            for (node, values) in ops.parents.into_iter().zip(both) {
                if let Some(node) = node {
                    grads.register::<Flex>(node.id, tensor(values, grad.shape()));
                }
            }
        }
    }

    fn tensor(values: Vec<f32>, shape: Shape) -> FlexTensor {
        FlexTensor::from_data(TensorData::new(values, shape))
    }

    fn forward(value: &[f32], gate: &[f32]) -> Vec<f32> {
        let mut y = vec![0.0; value.len()];
        AutoArch::new().dispatch(Forward { value, gate, y: &mut y });
        y
    }

    /// The gradients of value and gate from that of the result.
    fn backward(value: &[f32], gate: &[f32], grad: &[f32]) -> [Vec<f32>; 2] {
        let [mut dvalue, mut dgate] = [vec![0.0; value.len()], vec![0.0; value.len()]];
        AutoArch::new().dispatch(Pull { value, gate, grad, dvalue: &mut dvalue, dgate: &mut dgate });
        [dvalue, dgate]
    }

    struct Forward<'a> {
        value: &'a [f32],
        gate: &'a [f32],
        y: &'a mut [f32],
    }

    impl WithSimd for Forward<'_> {
        type Output = ();

        #[inline(always)]
        fn with_simd<S: Simd>(self) {
            for ((y, value), gate) in self.y.iter_mut().zip(self.value).zip(self.gate) {
                *y = tanh(*value) * sigmoid(*gate);
            }
        }
    }

    struct Pull<'a> {
        value: &'a [f32],
        gate: &'a [f32],
        grad: &'a [f32],
        dvalue: &'a mut [f32],
        dgate: &'a mut [f32],
    }

    impl WithSimd for Pull<'_> {
        type Output = ();

        #[inline(always)]
        fn with_simd<S: Simd>(self) {
            let inputs = self.value.iter().zip(self.gate).zip(self.grad);
            for (((value, gate), grad), (dvalue, dgate)) in inputs.zip(self.dvalue.iter_mut().zip(self.dgate)) {
                let (t, s) = (tanh(*value), sigmoid(*gate));
                *dvalue = grad * s * (1.0 - t * t);
                *dgate = grad * t * s * (1.0 - s);
            }
        }
    }

    #[inline(always)]
    fn sigmoid(x: f32) -> f32 {
        0.5 + 0.5 * tanh(0.5 * x)
    }

    /// tanh with a relative error of 4e-7, in operations that vectors have: a ratio of polynomials in x² fitted to tanh(x) / x up to
    /// 8.7, where it is 1, so that the largest relative error is smallest, 1.5e-8.
    #[inline(always)]
    fn tanh(x: f32) -> f32 {
        let x = x.clamp(-8.7, 8.7);
        let t = x * x;
        let (mut above, mut below) = (1.389_734_4e-8, 7.996_409e-7);
        for (a, b) in
            [(2.099_362e-5, 3.323_627e-4), (3.518_731e-3, 2.596_484_5e-2), (0.134_004_56, 0.467_337_76), (1.0, 1.0)]
        {
            above = above * t + a;
            below = below * t + b;
        }
        (x * above / below).clamp(-1.0, 1.0)
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        /// What the documentation of [`tanh`] says; the sigmoid's error is that of 1, near 0 too.
        #[test]
        fn functions_are_those_of_the_standard_library() {
            for i in -20_000..20_000 {
                let x = i as f32 / 1000.0;
                let right = f64::from(x).tanh();
                assert!((f64::from(tanh(x)) - right).abs() <= 4e-7 * right.abs(), "{x}");
                let right = 1.0 / (1.0 + f64::from(-x).exp());
                assert!((f64::from(sigmoid(x)) - right).abs() < 2e-7, "{x}");
            }
            assert!(tanh(f32::NAN).is_nan() && sigmoid(f32::NAN).is_nan());
            assert_eq!((tanh(f32::INFINITY), tanh(f32::NEG_INFINITY)), (1.0, -1.0));
        }
    }
}

#[cfg(all(test, feature = "flex"))]
mod tests {
    use burn::tensor::{Device, TensorData};

    use super::*;

    fn leaf(phase: f32, scale: f32) -> Tensor<2> {
        let values: Vec<f32> = (0..777 * 5).map(|i| (i as f32 * 0.37 + phase).sin() * scale).collect();
        Tensor::from_data(TensorData::new(values, [777, 5]), &Device::flex().autodiff()).require_grad()
    }

    /// Values and both gradients; the functions are within 4e-7 of burn's, of numbers up to 1.
    #[test]
    fn is_what_burn_composes() {
        let run = |function: fn(Tensor<2>, Tensor<2>) -> Tensor<2>| {
            let (value, gate) = (leaf(0.0, 4.0), leaf(1.0, 9.0));
            // Turned on the way, as a layer's output may be.
            let y = function(value.clone().transpose(), gate.clone().transpose());
            let grads = (y.clone() * leaf(2.0, 1.0).detach().transpose()).sum().backward();
            [y, value.grad(&grads).unwrap(), gate.grad(&grads).unwrap()]
                .map(|tensor| tensor.into_data().try_to_vec::<f32>().unwrap())
        };
        for (part, (ours, burns)) in ["y", "value", "gate"].iter().zip(run(gated).iter().zip(&run(composed))) {
            assert!(ours.iter().zip(burns).all(|(a, b)| (a - b).abs() < 2e-6), "{part}");
            assert!(burns.iter().any(|x| x.abs() > 0.1));
        }
    }
}
