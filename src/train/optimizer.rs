//! AdamW as in PyTorch, with what DINO adds: clipping tensor by tensor, a weight decay that changes every step, and the
//! teacher's moving average, all in one pass over each parameter.
//!
//! burn's own AdamW fixes its weight decay when it is made and walks over every parameter in ten separate operations;
//! here the CPU goes over the memory once, and an accelerator gets the same formulas as tensor operations.

use crate::model::parameters;
use burn::module::{Module, ModuleVisitor, Param};
use burn::tensor::{Device, Tensor, TensorData};
use rayon::prelude::*;

/// Adam's own decay rates of the two moments.
const BETAS: [f64; 2] = [0.9, 0.999];
const EPS: f64 = 1e-8;

/// Elements one thread works on at a time. Sums go chunk by chunk in order, so that threads do not change them.
const CHUNK: usize = 1 << 15;

/// Gradients of one micro-batch, flat, in the order of the parameters; none for a frozen parameter.
pub type Gradients = Vec<Option<Tensor<1>>>;

/// The gradient of every parameter of `module` (which carries autodiff), taken out of `gradients`.
pub fn take_gradients<M: Module>(module: &M, gradients: &mut burn::tensor::Gradients) -> Gradients {
    struct Take<'a>(&'a mut burn::tensor::Gradients, Gradients);
    impl ModuleVisitor for Take<'_> {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            self.1.push(param.val().grad_remove(self.0).map(|gradient| gradient.reshape([-1])));
        }
    }
    let mut taken = Take(gradients, Vec::new());
    module.visit(&mut taken);
    taken.1
}

/// What one step of the optimiser does.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Update {
    /// Learning rate.
    pub lr: f64,
    /// Weight decay of the parameters that are decayed.
    pub weight_decay: f64,
    /// What the average keeps of itself: the teacher's momentum, the decay of an EMA.
    pub momentum: f64,
    /// Parameters with this in their name are left as they are.
    pub frozen: Option<&'static str>,
}

/// The optimiser of a network: its state is aligned with the network's parameters.
#[derive(Clone, Debug)]
pub struct AdamW {
    /// Name, shape and moments of every parameter.
    pub states: Vec<State>,
    betas: [f64; 2],
    clip: f64,
    in_place: bool,
    decay_vectors: bool,
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
    /// Whether DINO decays it: biases and other vectors are not, everything else is, CLS token and position embedding too.
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
        Self { states, betas: BETAS, clip, in_place, decay_vectors: false }
    }

    /// The same with other decay rates of the moments.
    pub fn with_betas(self, betas: [f64; 2]) -> Self {
        Self { betas, ..self }
    }

    /// The same with every parameter decayed, biases and normalisations too, as `torch.optim.AdamW` does by itself.
    pub fn decaying_vectors(self) -> Self {
        Self { decay_vectors: true, ..self }
    }

    /// Updates the network with the sum of the micro-batches' gradients, then its moving average (DINO's teacher, a
    /// diffusion model's EMA) towards it. The order is DINO's: clip, drop what is frozen, step, average. Returns the
    /// largest norm before clipping, where it is known without waiting for a device.
    pub fn step<M: Module>(
        &mut self,
        network: &mut M,
        average: &mut M,
        gradients: Vec<Gradients>,
        update: Update,
    ) -> Option<f64> {
        let mut theirs = parameters::take(average);
        let norm = self.advance(network, theirs.iter_mut().map(Some), gradients, update);
        parameters::put(average, theirs, &self.shapes());
        norm
    }

    /// As [`step`](Self::step), for a network without a moving average.
    pub fn step_alone<M: Module>(&mut self, network: &mut M, gradients: Vec<Gradients>, update: Update) -> Option<f64> {
        self.advance(network, std::iter::repeat_with(|| None), gradients, update)
    }

    fn advance<'a, M: Module>(
        &mut self,
        network: &mut M,
        averages: impl Iterator<Item = Option<&'a mut Tensor<1>>>,
        gradients: Vec<Gradients>,
        update: Update,
    ) -> Option<f64> {
        let mut ours = parameters::take(network);
        let mut gradients: Vec<_> = gradients.into_iter().map(Vec::into_iter).collect();
        let mut largest = 0f64;
        let rule = Rule { update, betas: self.betas, clip: self.clip, decay_vectors: self.decay_vectors };
        for (state, (ours, theirs)) in self.states.iter_mut().zip(ours.iter_mut().zip(averages)) {
            let parts: Vec<_> = gradients.iter_mut().filter_map(|part| part.next().flatten()).collect();
            let frozen = parts.is_empty() || update.frozen.is_some_and(|part| state.name.contains(part));
            let parts = if frozen { Vec::new() } else { parts };
            match self.in_place {
                true => largest = largest.max(update_in_place(state, ours, theirs, parts, rule)),
                false => update_on_device(state, ours, theirs, parts, rule),
            }
        }
        parameters::put(network, ours, &self.shapes());
        self.in_place.then_some(largest)
    }

    fn shapes(&self) -> Vec<Vec<usize>> {
        self.states.iter().map(|state| state.shape.clone()).collect()
    }
}

/// How every parameter is updated in a step.
#[derive(Clone, Copy)]
struct Rule {
    update: Update,
    betas: [f64; 2],
    clip: f64,
    decay_vectors: bool,
}

impl State {
    fn advance(&mut self, Rule { update, betas, decay_vectors, .. }: Rule) -> Coefficients {
        self.steps += 1;
        let decay = if decay_vectors || self.decays() { update.weight_decay } else { 0.0 };
        let t = i32::try_from(self.steps).unwrap_or(i32::MAX);
        Coefficients {
            shrink: (1.0 - update.lr * decay) as f32,
            size: (update.lr / (1.0 - betas[0].powi(t))) as f32,
            correction: (1.0 - betas[1].powi(t)).sqrt() as f32,
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
    theirs: Option<&mut Tensor<1>>,
    parts: Vec<Tensor<1>>,
    rule: Rule,
) -> f64 {
    let norm = if parts.is_empty() { 0.0 } else { descend_in_place(state, ours, parts, rule) };
    if let Some(theirs) = theirs {
        let (keep, gain) = (rule.update.momentum as f32, (1.0 - rule.update.momentum) as f32);
        replace(theirs, |tensor| {
            let mut average = Host::open(tensor);
            let mut source = Host::open(ours.clone());
            let source = source.values();
            average
                .values()
                .par_chunks_mut(CHUNK)
                .zip(source.par_chunks(CHUNK))
                .for_each(|(average, ours)| average.iter_mut().zip(ours).for_each(|(t, o)| *t = *t * keep + o * gain));
            average.close()
        });
    }
    norm
}

fn descend_in_place(state: &mut State, ours: &mut Tensor<1>, parts: Vec<Tensor<1>>, rule: Rule) -> f64 {
    let length = ours.dims()[0];
    let device = ours.device();
    let mut parts: Vec<_> = parts.into_iter().map(Host::open).collect();
    let Some((first, rest)) = parts.split_first_mut() else { return 0.0 };

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
    let scale = clip_factor(norm, rule.clip) as f32;

    let c = state.advance(rule);
    let [mut m, mut v] = state.take_moments(length, &device).map(Host::open);
    replace(ours, |ours| {
        let mut ours = Host::open(ours);
        let (b1, b2, eps) = ((1.0 - rule.betas[0]) as f32, rule.betas[1] as f32, EPS as f32);
        let b2_gain = (1.0 - rule.betas[1]) as f32;
        ours.values()
            .par_chunks_mut(CHUNK)
            .zip(m.values().par_chunks_mut(CHUNK).zip(v.values().par_chunks_mut(CHUNK)))
            .zip(first.values().par_chunks(CHUNK))
            .for_each(|((ours, (m, v)), g)| {
                for i in 0..g.len() {
                    let g = g[i] * scale;
                    m[i] += (g - m[i]) * b1;
                    v[i] = v[i] * b2 + g * g * b2_gain;
                    let denominator = v[i].sqrt() / c.correction + eps;
                    ours[i] = ours[i] * c.shrink - c.size * m[i] / denominator;
                }
            });
        ours.close()
    });
    state.moments = Some([m.close(), v.close()]);
    norm
}

fn update_on_device(
    state: &mut State,
    ours: &mut Tensor<1>,
    theirs: Option<&mut Tensor<1>>,
    parts: Vec<Tensor<1>>,
    rule: Rule,
) {
    let Rule { update, betas, clip, .. } = rule;
    if let Some(gradient) = parts.into_iter().reduce(|sum, part| sum + part) {
        let length = ours.dims()[0];
        // The norm stays on the device: reading it would wait for every parameter in turn.
        let scale = match clip > 0.0 {
            true => (gradient.clone().square().sum().sqrt() + 1e-6).recip().mul_scalar(clip).clamp_max(1.0),
            false => Tensor::ones([1], &ours.device()),
        };
        let g = gradient * scale;
        let c = state.advance(rule);
        let [m, v] = state.take_moments(length, &ours.device());
        let m = m.clone() + (g.clone() - m).mul_scalar(1.0 - betas[0]);
        let v = v.mul_scalar(betas[1]) + g.square().mul_scalar(1.0 - betas[1]);
        let step = m.clone() / (v.clone().sqrt().div_scalar(c.correction) + EPS);
        replace(ours, |ours| ours.mul_scalar(c.shrink) - step.mul_scalar(c.size));
        state.moments = Some([m, v]);
    }
    if let Some(theirs) = theirs {
        let ours = ours.clone();
        replace(theirs, |theirs| theirs.mul_scalar(update.momentum) + ours.mul_scalar(1.0 - update.momentum));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::layers::Linear;

    fn rule(lr: f64, weight_decay: f64, clip: f64) -> Rule {
        Rule { update: update(lr, weight_decay), betas: BETAS, clip, decay_vectors: false }
    }

    fn update(lr: f64, weight_decay: f64) -> Update {
        Update { lr, weight_decay, momentum: 0.9, frozen: None }
    }

    fn state(name: &str, shape: &[usize]) -> State {
        State { name: name.into(), shape: shape.to_vec(), steps: 0, moments: None }
    }

    fn list(tensor: &Tensor<1>) -> Vec<f32> {
        tensor.to_data().try_into_vec().unwrap()
    }

    type Way = fn(&mut State, &mut Tensor<1>, &mut Tensor<1>, Vec<Tensor<1>>, Rule);
    const WAYS: [Way; 2] = [
        |s, o, t, p, r| {
            update_in_place(s, o, Some(t), p, r);
        },
        |s, o, t, p, r| update_on_device(s, o, Some(t), p, r),
    ];

    #[test]
    fn one_step_of_adamw_is_pytorchs() {
        let device = Device::flex();
        for way in WAYS {
            let tensor = |v: f32| Tensor::<1>::from_floats([v], &device);
            let (mut ours, mut theirs) = (tensor(1.0), tensor(0.0));
            // p = 1, g = 0.5, lr = 0.1, wd = 0.04 gives 0.896, and the teacher a tenth of it. A handful of roundings of f32,
            // each 6e-8 of numbers up to 1, and a tenth of that.
            way(&mut state("w", &[1, 1]), &mut ours, &mut theirs, vec![tensor(0.5)], rule(0.1, 0.04, 0.0));
            assert!((list(&ours)[0] - 0.896).abs() < 1e-6, "{ours}");
            assert!((list(&theirs)[0] - 0.0896).abs() < 1e-7, "{theirs}");
        }
    }

    #[test]
    fn vectors_and_biases_are_not_decayed_but_cls_and_positions_are() {
        for (name, shape, decays) in [
            ("backbone.cls_token", vec![1, 1, 8], true),
            ("backbone.pos_embed", vec![1, 5, 8], true),
            ("backbone.patch_embed.proj.weight", vec![8, 3, 4, 4], true),
            ("head.last_layer.weight_v", vec![16, 8], true),
            ("backbone.blocks.0.attn.qkv.bias", vec![24], false),
            ("backbone.norm.weight", vec![8], false),
        ] {
            assert_eq!(state(name, &shape).decays(), decays, "{name}");
        }
    }

    #[test]
    fn the_clip_factor_shortens_what_is_longer_than_the_limit() {
        // (3, 4) has norm 5: clipped to 3 it is (1.7999996, 2.3999995), to the decimals shown.
        let factor = clip_factor(5.0, 3.0);
        assert!((3.0 * factor - 1.7999996).abs() < 1e-7 && (4.0 * factor - 2.3999995).abs() < 1e-7);
        assert_eq!((clip_factor(2.0, 3.0), clip_factor(1e9, 0.0)), (1.0, 1.0));
    }

    /// Both ways of computing agree over many elements and steps, with parts summed and clipping at work. The rounding
    /// of a different order of operations is 1e-7 of values near 1.
    #[test]
    fn in_place_and_on_device_agree() {
        let device = Device::flex();
        let length = 2 * CHUNK + 17;
        let tensor = |phase: usize| {
            let values: Vec<f32> = (0..length).map(|i| ((i * 37 + phase * 101) % 1000) as f32 / 500.0 - 1.0).collect();
            Tensor::<1>::from_data(TensorData::new(values, [length]), &device)
        };
        let results = WAYS.map(|way| {
            let (mut ours, mut theirs, mut state) = (tensor(0), tensor(1), state("w", &[length, 1]));
            for step in 0..3 {
                let parts = vec![tensor(2 + step), tensor(7 + step)];
                way(&mut state, &mut ours, &mut theirs, parts, rule(0.01, 0.1, 3.0));
            }
            way(&mut state, &mut ours, &mut theirs, vec![], rule(0.01, 0.1, 3.0));
            assert_eq!(state.steps, 3);
            [list(&ours), list(&theirs)].concat()
        });
        let worst = results[0].iter().zip(&results[1]).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(worst < 1e-6, "{worst}");
    }

    #[test]
    fn a_frozen_last_layer_keeps_still_and_gathers_no_moments() {
        let device = Device::flex();
        let mut student = Linear::new(3, 2, 0, "student", &device);
        let mut teacher = Linear::new(3, 2, 1, "teacher", &device);
        let before = parameters::export(&student);
        let mut optimizer = AdamW::new(&student, 3.0, true);
        for state in &mut optimizer.states {
            state.name = format!("head.last_layer.{}", state.name);
        }
        let gradient = || vec![Some(Tensor::ones([6], &device)), Some(Tensor::ones([2], &device))];
        let frozen = Update { frozen: Some("last_layer"), ..update(0.1, 0.04) };
        optimizer.step(&mut student, &mut teacher, vec![gradient()], frozen);
        assert_eq!(parameters::export(&student), before);
        assert!(optimizer.states.iter().all(|state| state.steps == 0 && state.moments.is_none()));
        optimizer.step(&mut student, &mut teacher, vec![gradient()], update(0.1, 0.04));
        assert_ne!(parameters::export(&student), before);
        assert!(optimizer.states.iter().all(|state| state.steps == 1));
    }
}
