//! AdamW as in PyTorch, with what DINO adds: clipping tensor by tensor, a weight decay that changes every step, and the
//! teacher's moving average, all in one pass over each parameter.
//!
//! burn's own AdamW fixes its weight decay when it is made and walks over every parameter in ten separate operations;
//! here the CPU goes over the memory once, and an accelerator gets the same formulas as tensor operations.

use super::schedule::StepValues;
use crate::model::parameters;
use burn::module::Module;
use burn::tensor::{Device, Tensor, TensorData};
use rayon::prelude::*;

const BETA1: f64 = 0.9;
const BETA2: f64 = 0.999;
const EPS: f64 = 1e-8;

/// Parameters whose gradient is dropped while the last layer is frozen.
const LAST_LAYER: &str = "last_layer";

/// Elements one thread works on at a time. Sums go chunk by chunk in order, so that threads do not change them.
const CHUNK: usize = 1 << 15;

/// Gradients of one micro-batch, flat, in the order of the parameters; none for a frozen parameter.
pub type Gradients = Vec<Option<Tensor<1>>>;

/// The optimiser of a network: its state is aligned with the network's parameters.
#[derive(Clone, Debug)]
pub struct AdamW {
    /// Name, shape and moments of every parameter.
    pub states: Vec<State>,
    clip: f64,
    in_place: bool,
}

/// What the optimiser keeps of one parameter.
#[derive(Clone, Debug)]
pub struct State {
    /// The reference's name.
    pub name: String,
    /// Shape in PyTorch's layout.
    pub shape: Vec<usize>,
    /// Updates so far.
    pub steps: u64,
    /// Moving averages of the gradient and of its square, flat; none before the first update.
    pub moments: Option<[Tensor<1>; 2]>,
}

impl State {
    /// Biases and other vectors are not decayed; everything else is, CLS token and position embedding too.
    pub fn decays(&self) -> bool {
        !self.name.ends_with(".bias") && self.shape.len() > 1
    }
}

/// One parameter's coefficients of this step.
#[derive(Clone, Copy)]
struct Coefficients {
    /// 1 - lr * weight decay.
    shrink: f32,
    /// lr / (1 - β1^t).
    size: f32,
    /// sqrt(1 - β2^t).
    correction: f32,
}

impl AdamW {
    /// For `module`; `clip` is the largest norm of a tensor's gradient, 0 for no clipping. `in_place` works on the
    /// tensors' own memory, which is right where they live on the CPU.
    pub fn new<M: Module>(module: &M, clip: f64, in_place: bool) -> Self {
        let states = parameters::shapes(module)
            .into_iter()
            .map(|(name, shape)| State { name, shape, steps: 0, moments: None })
            .collect();
        Self { states, clip, in_place }
    }

    /// Updates the student with the sum of the micro-batches' gradients, then the teacher towards it. The order is
    /// DINO's: clip, drop the last layer's gradient, step, teacher. Also returns the largest norm before clipping.
    pub fn step<M: Module>(&mut self, student: M, teacher: M, gradients: Vec<Gradients>, values: StepValues) -> (M, M, f64) {
        let shapes: Vec<_> = self.states.iter().map(|state| state.shape.clone()).collect();
        let (student, mut ours) = parameters::take(student);
        let (teacher, mut theirs) = parameters::take(teacher);
        let mut gradients: Vec<_> = gradients.into_iter().map(Vec::into_iter).collect();
        let mut largest = 0f64;
        for (state, (ours, theirs)) in self.states.iter_mut().zip(ours.iter_mut().zip(&mut theirs)) {
            let parts: Vec<_> = gradients.iter_mut().filter_map(|part| part.next().flatten()).collect();
            let frozen = parts.is_empty() || (!values.train_last_layer && state.name.contains(LAST_LAYER));
            let parts = if frozen { Vec::new() } else { parts };
            let norm = match self.in_place {
                true => update_in_place(state, ours, theirs, parts, values, self.clip),
                false => update_on_device(state, ours, theirs, parts, values, self.clip),
            };
            largest = largest.max(norm);
        }
        (parameters::put(student, ours, &shapes), parameters::put(teacher, theirs, &shapes), largest)
    }
}

impl State {
    fn advance(&mut self, values: StepValues) -> Coefficients {
        self.steps += 1;
        let decay = if self.decays() { values.weight_decay } else { 0.0 };
        let t = i32::try_from(self.steps).unwrap_or(i32::MAX);
        Coefficients {
            shrink: (1.0 - values.lr * decay) as f32,
            size: (values.lr / (1.0 - BETA1.powi(t))) as f32,
            correction: (1.0 - BETA2.powi(t)).sqrt() as f32,
        }
    }

    fn take_moments(&mut self, length: usize, device: &Device) -> [Tensor<1>; 2] {
        self.moments.take().unwrap_or_else(|| std::array::from_fn(|_| Tensor::zeros([length], device)))
    }
}

/// g · clip / (|g| + 1e-6) where that shrinks it.
fn clip_factor(norm: f64, clip: f64) -> f64 {
    if clip > 0.0 { (clip / (norm + 1e-6)).min(1.0) } else { 1.0 }
}

/// The memory of a tensor, its own if nobody else holds it.
struct Host(TensorData, Device);

impl Host {
    fn open(tensor: Tensor<1>) -> Self {
        let device = tensor.device();
        Self(tensor.into_data(), device)
    }
    fn values(&mut self) -> &mut [f32] {
        self.0.as_mut_slice().expect("parameters, moments and gradients are f32")
    }
    fn close(self) -> Tensor<1> {
        Tensor::from_data(self.0, &self.1)
    }
}

fn replace(slot: &mut Tensor<1>, with: impl FnOnce(Tensor<1>) -> Tensor<1>) {
    let device = slot.device();
    let old = std::mem::replace(slot, Tensor::zeros([1], &device));
    *slot = with(old);
}

fn update_in_place(
    state: &mut State,
    ours: &mut Tensor<1>,
    theirs: &mut Tensor<1>,
    parts: Vec<Tensor<1>>,
    values: StepValues,
    clip: f64,
) -> f64 {
    let length = ours.dims()[0];
    let device = ours.device();
    let (keep, gain) = (values.momentum as f32, (1.0 - values.momentum) as f32);
    let follow = |theirs: &mut f32, ours: f32| *theirs = *theirs * keep + ours * gain;
    let mut parts: Vec<_> = parts.into_iter().map(Host::open).collect();
    let Some((first, rest)) = parts.split_first_mut() else {
        replace(theirs, |tensor| {
            let mut host = Host::open(tensor);
            let mut source = Host::open(ours.clone());
            host.values().iter_mut().zip(source.values()).for_each(|(t, o)| follow(t, *o));
            host.close()
        });
        return 0.0;
    };

    let rest: Vec<_> = rest.iter_mut().map(|part| &*part.values()).collect();
    let squares: Vec<f64> = first
        .values()
        .par_chunks_mut(CHUNK)
        .enumerate()
        .map(|(i, sum)| {
            for part in &rest {
                sum.iter_mut().zip(&part[i * CHUNK..]).for_each(|(s, p)| *s += p);
            }
            sum.iter().map(|g| f64::from(*g) * f64::from(*g)).sum()
        })
        .collect();
    let norm = squares.iter().sum::<f64>().sqrt();
    let scale = clip_factor(norm, clip) as f32;

    let c = state.advance(values);
    let [mut m, mut v] = state.take_moments(length, &device).map(Host::open);
    replace(ours, |ours| {
        let mut ours = Host::open(ours);
        replace(theirs, |theirs| {
            let mut theirs = Host::open(theirs);
            let (b1, b2, eps) = ((1.0 - BETA1) as f32, BETA2 as f32, EPS as f32);
            let b2_gain = (1.0 - BETA2) as f32;
            ours.values()
                .par_chunks_mut(CHUNK)
                .zip(theirs.values().par_chunks_mut(CHUNK))
                .zip(m.values().par_chunks_mut(CHUNK).zip(v.values().par_chunks_mut(CHUNK)))
                .zip(first.values().par_chunks(CHUNK))
                .for_each(|(((ours, theirs), (m, v)), g)| {
                    for i in 0..g.len() {
                        let g = g[i] * scale;
                        m[i] += (g - m[i]) * b1;
                        v[i] = v[i] * b2 + g * g * b2_gain;
                        let denominator = v[i].sqrt() / c.correction + eps;
                        ours[i] = ours[i] * c.shrink - c.size * m[i] / denominator;
                        follow(&mut theirs[i], ours[i]);
                    }
                });
            theirs.close()
        });
        ours.close()
    });
    state.moments = Some([m.close(), v.close()]);
    norm
}

fn update_on_device(
    state: &mut State,
    ours: &mut Tensor<1>,
    theirs: &mut Tensor<1>,
    parts: Vec<Tensor<1>>,
    values: StepValues,
    clip: f64,
) -> f64 {
    if let Some(gradient) = parts.into_iter().reduce(|sum, part| sum + part) {
        let length = ours.dims()[0];
        // The norm stays on the device: reading it would wait for every parameter in turn.
        let scale = match clip > 0.0 {
            true => (gradient.clone().square().sum().sqrt() + 1e-6).recip().mul_scalar(clip).clamp_max(1.0),
            false => Tensor::ones([1], &ours.device()),
        };
        let g = gradient * scale;
        let c = state.advance(values);
        let [m, v] = state.take_moments(length, &ours.device());
        let m = m.clone() + (g.clone() - m).mul_scalar(1.0 - BETA1);
        let v = v.mul_scalar(BETA2) + g.square().mul_scalar(1.0 - BETA2);
        let step = m.clone() / (v.clone().sqrt().div_scalar(c.correction) + EPS);
        replace(ours, |ours| ours.mul_scalar(c.shrink) - step.mul_scalar(c.size));
        state.moments = Some([m, v]);
    }
    let ours = ours.clone();
    replace(theirs, |theirs| theirs.mul_scalar(values.momentum) + ours.mul_scalar(1.0 - values.momentum));
    f64::NAN
}
