//! The kernels as operations of burn's backends: what they compute on the CPU, and their gradients.
//!
//! `burn::backend::backend_extension` writes the routing from a tensor to the backend that holds it. Only the CPU backend is
//! listed: [`super`] asks for the device first and has other devices compute the same from burn's own operations.

use super::convolution::Convolution;
use super::elementwise;
use super::normalisation::Normalisation;
use super::rows::{self, RowNormalisation};
use super::sums::Moments;
use burn::backend::autodiff::NodeId;
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind, unary};
use burn::backend::flex::FlexTensor;
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Backend, Flex, TensorMetadata, backend_extension};
use burn::tensor::{Shape, TensorData};

/// The operations; arguments as in [`super`].
#[backend_extension(Flex, Autodiff)]
pub trait Kernels: Backend {
    /// See [`super::conv2d`].
    fn convolve(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        stride: usize,
        padding: [usize; 4],
    ) -> FloatTensor<Self>;

    /// See [`super::group_norm`]; followed by [`super::silu`] if `silu`.
    fn normalise(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        groups: usize,
        eps: f64,
        silu: bool,
    ) -> FloatTensor<Self>;

    /// See [`super::silu`].
    fn silu(x: FloatTensor<Self>) -> FloatTensor<Self>;

    /// See [`super::gelu`].
    fn exact_gelu(x: FloatTensor<Self>) -> FloatTensor<Self>;

    /// See [`super::softmax`].
    fn softmax_rows(x: FloatTensor<Self>) -> FloatTensor<Self>;

    /// See [`super::layer_norm`].
    fn normalise_rows(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        eps: f64,
    ) -> FloatTensor<Self>;
}

impl Kernels for Flex {
    fn convolve(x: FlexTensor, weight: FlexTensor, bias: FlexTensor, stride: usize, padding: [usize; 4]) -> FlexTensor {
        let sizes = sizes(&x, &weight, stride, padding);
        let (x, weight, bias) = (x.to_contiguous(), weight.to_contiguous(), bias.to_contiguous());
        let y = sizes.forward(x.storage(), weight.storage(), bias.storage());
        tensor(y, [sizes.batch, sizes.outputs, sizes.out_height(), sizes.out_width()])
    }

    fn normalise(
        x: FlexTensor,
        weight: FlexTensor,
        bias: FlexTensor,
        groups: usize,
        eps: f64,
        silu: bool,
    ) -> FlexTensor {
        normalised(&x, &weight, &bias, normalisation(&x, groups, eps, silu)).0
    }

    fn silu(x: FlexTensor) -> FlexTensor {
        tensor(elementwise::silu(x.to_contiguous().storage()), x.shape())
    }

    fn exact_gelu(x: FlexTensor) -> FlexTensor {
        tensor(elementwise::gelu(x.to_contiguous().storage()), x.shape())
    }

    fn softmax_rows(x: FlexTensor) -> FlexTensor {
        tensor(rows::softmax(x.to_contiguous().storage(), width(&x)), x.shape())
    }

    fn normalise_rows(x: FlexTensor, weight: FlexTensor, bias: FlexTensor, eps: f64) -> FlexTensor {
        normalised_rows(&x, &weight, &bias, RowNormalisation { width: width(&x), eps }).0
    }
}

impl<C: CheckpointStrategy> Kernels for Autodiff<Flex, C> {
    fn convolve(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        stride: usize,
        padding: [usize; 4],
    ) -> FloatTensor<Self> {
        let (x, x_node) = x.into_parts();
        let (weight, weight_node) = weight.into_parts();
        let (bias, bias_node) = bias.into_parts();
        match Convolve.prepare::<C>([x_node, weight_node, bias_node]).compute_bound().stateful() {
            OpsKind::Tracked(operation) => {
                let sizes = sizes(&x, &weight, stride, padding);
                let y = Flex::convolve(x.clone(), weight.clone(), bias, stride, padding);
                operation.finish((sizes, x, weight), y)
            }
            OpsKind::UnTracked(operation) => operation.finish(Flex::convolve(x, weight, bias, stride, padding)),
        }
    }

    fn normalise(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        groups: usize,
        eps: f64,
        silu: bool,
    ) -> FloatTensor<Self> {
        let (x, x_node) = x.into_parts();
        let (weight, weight_node) = weight.into_parts();
        let (bias, bias_node) = bias.into_parts();
        let sizes = normalisation(&x, groups, eps, silu);
        let (y, moments) = normalised(&x, &weight, &bias, sizes);
        match Normalise.prepare::<C>([x_node, weight_node, bias_node]).compute_bound().stateful() {
            OpsKind::Tracked(operation) => operation.finish((sizes, [x, weight, bias], moments), y),
            OpsKind::UnTracked(operation) => operation.finish(y),
        }
    }

    fn silu(x: FloatTensor<Self>) -> FloatTensor<Self> {
        of_one::<C>(x, Flex::silu, elementwise::silu_backward)
    }

    fn exact_gelu(x: FloatTensor<Self>) -> FloatTensor<Self> {
        of_one::<C>(x, Flex::exact_gelu, elementwise::gelu_backward)
    }

    fn softmax_rows(x: FloatTensor<Self>) -> FloatTensor<Self> {
        let (x, node) = x.into_parts();
        let y = Flex::softmax_rows(x);
        match SoftmaxRows.prepare::<C>([node]).compute_bound().stateful() {
            OpsKind::Tracked(operation) => operation.finish(y.clone(), y),
            OpsKind::UnTracked(operation) => operation.finish(y),
        }
    }

    fn normalise_rows(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        eps: f64,
    ) -> FloatTensor<Self> {
        let (x, x_node) = x.into_parts();
        let (weight, weight_node) = weight.into_parts();
        let (bias, bias_node) = bias.into_parts();
        let sizes = RowNormalisation { width: width(&x), eps };
        let (y, moments) = normalised_rows(&x, &weight, &bias, sizes);
        match NormaliseRows.prepare::<C>([x_node, weight_node, bias_node]).compute_bound().stateful() {
            OpsKind::Tracked(operation) => operation.finish((sizes, [x, weight], moments), y),
            OpsKind::UnTracked(operation) => operation.finish(y),
        }
    }
}

/// The backward pass of [`Kernels::convolve`].
#[derive(Debug)]
struct Convolve;

impl Backward<Flex, 3> for Convolve {
    type State = (Convolution, FlexTensor, FlexTensor);

    fn backward(self, ops: Ops<Self::State, 3>, grads: &mut Gradients, _: &mut Checkpointer) {
        let grad = grads.consume::<Flex>(&ops.node).to_contiguous();
        let (sizes, x, weight) = ops.state;
        let [x_node, weight_node, bias_node] = ops.parents;
        if let Some(node) = x_node {
            let values = sizes.backward_x(grad.storage(), weight.to_contiguous().storage());
            grads.register::<Flex>(node.id, tensor(values, x.shape()));
        }
        if let Some(node) = weight_node {
            let values = sizes.backward_weight(x.to_contiguous().storage(), grad.storage());
            grads.register::<Flex>(node.id, tensor(values, weight.shape()));
        }
        if let Some(node) = bias_node {
            grads.register::<Flex>(node.id, tensor(sizes.backward_bias(grad.storage()), [sizes.outputs]));
        }
    }
}

/// The backward pass of [`Kernels::normalise`].
#[derive(Debug)]
struct Normalise;

impl Backward<Flex, 3> for Normalise {
    type State = (Normalisation, [FlexTensor; 3], Vec<Moments>);

    fn backward(self, ops: Ops<Self::State, 3>, grads: &mut Gradients, _: &mut Checkpointer) {
        let grad = grads.consume::<Flex>(&ops.node).to_contiguous();
        let (sizes, inputs, moments) = ops.state;
        let shape = grad.shape();
        let [x, weight, bias] = inputs.map(|input| input.to_contiguous());
        let (dx, dweight, dbias) =
            sizes.backward((x.storage(), weight.storage(), bias.storage()), &moments, grad.storage());
        register(
            grads,
            ops.parents.map(|node| Some(node?.id)),
            [(dx, shape), (dweight, weight.shape()), (dbias, bias.shape())],
        );
    }
}

/// A function of every value alone, and how its gradient is made.
fn of_one<C: CheckpointStrategy>(
    x: FloatTensor<Autodiff<Flex, C>>,
    function: fn(FlexTensor) -> FlexTensor,
    gradient: fn(&[f32], &[f32]) -> Vec<f32>,
) -> FloatTensor<Autodiff<Flex, C>> {
    let (x, node) = x.into_parts();
    let y = function(x.clone());
    match OfOne(gradient).prepare::<C>([node]).compute_bound().stateful() {
        OpsKind::Tracked(operation) => operation.finish(x, y),
        OpsKind::UnTracked(operation) => operation.finish(y),
    }
}

/// The backward pass of a function of every value alone: the gradient of x from x and that of the result.
#[derive(Debug)]
struct OfOne(fn(&[f32], &[f32]) -> Vec<f32>);

impl Backward<Flex, 1> for OfOne {
    type State = FlexTensor;

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let x = ops.state.to_contiguous();
        unary::<Flex, _>(ops.parents, ops.node, grads, |grad| {
            tensor(self.0(x.storage(), grad.to_contiguous().storage()), x.shape())
        });
    }
}

/// The backward pass of [`Kernels::softmax_rows`].
#[derive(Debug)]
struct SoftmaxRows;

impl Backward<Flex, 1> for SoftmaxRows {
    /// The result.
    type State = FlexTensor;

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let y = ops.state;
        unary::<Flex, _>(ops.parents, ops.node, grads, |grad| {
            tensor(rows::softmax_backward(y.storage(), grad.to_contiguous().storage(), width(&y)), y.shape())
        });
    }
}

/// The backward pass of [`Kernels::normalise_rows`].
#[derive(Debug)]
struct NormaliseRows;

impl Backward<Flex, 3> for NormaliseRows {
    type State = (RowNormalisation, [FlexTensor; 2], Vec<Moments>);

    fn backward(self, ops: Ops<Self::State, 3>, grads: &mut Gradients, _: &mut Checkpointer) {
        let grad = grads.consume::<Flex>(&ops.node).to_contiguous();
        let (sizes, inputs, moments) = ops.state;
        let [x, weight] = inputs.map(|input| input.to_contiguous());
        let (dx, dweight, dbias) = sizes.backward((x.storage(), weight.storage()), &moments, grad.storage());
        register(
            grads,
            ops.parents.map(|node| Some(node?.id)),
            [(dx, x.shape()), (dweight, weight.shape()), (dbias, weight.shape())],
        );
    }
}

/// Hands the gradients of three arguments to those that have asked for theirs.
fn register(grads: &mut Gradients, ids: [Option<NodeId>; 3], values: [(Vec<f32>, Shape); 3]) {
    for (id, (values, shape)) in ids.into_iter().zip(values) {
        if let Some(id) = id {
            grads.register::<Flex>(id, tensor(values, shape));
        }
    }
}

/// # Panics
/// Channels of x that are not the weight's, or a kernel that is not square.
fn sizes(x: &FlexTensor, weight: &FlexTensor, stride: usize, padding: [usize; 4]) -> Convolution {
    let [batch, channels, height, width] = x.shape().dims();
    let [outputs, inputs, kernel, columns] = weight.shape().dims();
    assert_eq!(
        (channels, kernel),
        (inputs, columns),
        "channels of x and of the weight; height and width of the kernel"
    );
    Convolution { batch, channels, height, width, outputs, kernel, stride, padding }
}

/// # Panics
/// Channels that cannot be grouped.
fn normalisation(x: &FlexTensor, groups: usize, eps: f64, silu: bool) -> Normalisation {
    let [_, channels, height, width] = x.shape().dims();
    assert!(channels % groups == 0, "{channels} channels in {groups} groups");
    Normalisation { channels, pixels: height * width, groups, eps, silu }
}

fn normalised(
    x: &FlexTensor,
    weight: &FlexTensor,
    bias: &FlexTensor,
    sizes: Normalisation,
) -> (FlexTensor, Vec<Moments>) {
    let [x, weight, bias] = [x, weight, bias].map(|input| input.to_contiguous());
    let (y, moments) = sizes.forward(x.storage(), weight.storage(), bias.storage());
    (tensor(y, x.shape()), moments)
}

fn normalised_rows(
    x: &FlexTensor,
    weight: &FlexTensor,
    bias: &FlexTensor,
    sizes: RowNormalisation,
) -> (FlexTensor, Vec<Moments>) {
    let [x, weight, bias] = [x, weight, bias].map(|input| input.to_contiguous());
    let (y, moments) = sizes.forward(x.storage(), weight.storage(), bias.storage());
    (tensor(y, x.shape()), moments)
}

/// Length of the last dimension.
fn width(x: &FlexTensor) -> usize {
    let shape = x.shape();
    shape[shape.num_dims() - 1]
}

fn tensor(values: Vec<f32>, shape: impl Into<Shape>) -> FlexTensor {
    FlexTensor::from_data(TensorData::new(values, shape))
}
