//! From noise to image, step by step: DDIM, DPM-Solver++(2M) and ancestral DDPM over the same time steps.

use crate::config::{Sample, Solver, Spacing};
use crate::model::noise::NoiseSchedule;
use burn::tensor::Tensor;

/// The time steps of `count` sampling steps, from noise to image. Leading: `1 + steps i / count`, which are latent-diffusion's
/// where `count` divides `steps`; all of them where it is `steps`. A `count` that does not divide still begins near the last
/// step, where images are noise. Trailing: `steps i / count - 1`, rounded, which begins at the last step.
/// Quadratic: `steps (i / count)² - 1`, rounded, each time step once.
pub fn times(steps: usize, count: usize, spacing: Spacing) -> Vec<usize> {
    match spacing {
        Spacing::Leading => {
            let offset = usize::from(steps / count > 1);
            (0..count).rev().map(|i| offset + i * steps / count).collect()
        }
        Spacing::Trailing => {
            (1..=count).rev().map(|i| (steps as f64 * i as f64 / count as f64).round_ties_even() as usize - 1).collect()
        }
        Spacing::Quadratic => {
            let share = |i: usize| (i as f64 / count as f64).powi(2);
            (1..=count).rev().map(|i| ((steps as f64 * share(i)).round() as usize).max(i) - 1).collect()
        }
    }
}

/// One trajectory (of a batch) in the making.
#[derive(Clone, Debug)]
pub struct Trajectory<'a> {
    schedule: &'a NoiseSchedule,
    settings: &'a Sample,
    times: Vec<usize>,
    /// The clean image of the step before, for the second-order solver.
    previous: Option<Tensor<4>>,
}

impl<'a> Trajectory<'a> {
    /// A trajectory of `settings.steps` steps.
    pub fn new(schedule: &'a NoiseSchedule, settings: &'a Sample) -> Self {
        Self { schedule, settings, times: times(schedule.steps(), settings.steps, settings.spacing), previous: None }
    }

    /// The time steps at which the network is asked, in order.
    pub fn times(&self) -> &[usize] {
        &self.times
    }

    /// ᾱ of step `i` and of the one it leads to. DDIM ends at the first time step, as latent-diffusion has it; the others
    /// end at the clean image.
    fn alphas(&self, i: usize) -> (f64, f64) {
        let end = if self.settings.solver == Solver::Ddim { self.schedule.alpha(0) } else { 1.0 };
        let next = self.times.get(i + 1).map_or(end, |&t| self.schedule.alpha(t));
        (self.schedule.alpha(self.times[i]), next)
    }

    /// Whether step `i` asks for noise.
    pub fn is_random(&self, i: usize) -> bool {
        match self.settings.solver {
            Solver::Ddim => self.settings.eta > 0.0,
            Solver::Ddpm => i + 1 < self.times.len(),
            Solver::Dpm => false,
        }
    }

    /// Step `i`: `x` at its time and the network's `answer` to it become `x` at the next. `noise` is asked for where
    /// [`is_random`](Self::is_random).
    pub fn step(&mut self, i: usize, x: Tensor<4>, answer: Tensor<4>, noise: impl FnOnce() -> Tensor<4>) -> Tensor<4> {
        let (now, next) = self.alphas(i);
        let (epsilon, clean) = self.schedule.split(x.clone(), answer, self.times[i]);
        let random = self.is_random(i);
        match self.settings.solver {
            Solver::Dpm => self.second_order(i, x, clean),
            Solver::Ddim | Solver::Ddpm => {
                // Ancestral sampling is DDIM with η = 1: its mean and variance are the posterior's (Song et al., eq. 12).
                let eta = if self.settings.solver == Solver::Ddpm { 1.0 } else { self.settings.eta };
                let sigma = eta * ((1.0 - next) / (1.0 - now) * (1.0 - now / next)).max(0.0).sqrt();
                let direction = (1.0 - next - sigma * sigma).max(0.0).sqrt();
                let mean = clean.mul_scalar(next.sqrt()) + epsilon.mul_scalar(direction);
                if random { mean + noise().mul_scalar(sigma) } else { mean }
            }
        }
    }

    /// DPM-Solver++(2M), midpoint (Lu et al. 2022, algorithm 2); the first step and the last, which ends at the clean
    /// image, are of first order.
    fn second_order(&mut self, i: usize, x: Tensor<4>, clean: Tensor<4>) -> Tensor<4> {
        let (now, next) = self.alphas(i);
        let before = self.previous.replace(clean.clone());
        if next == 1.0 {
            return clean;
        }
        let half_log_snr = |alpha: f64| 0.5 * (alpha / (1.0 - alpha)).ln();
        let h = half_log_snr(next) - half_log_snr(now);
        let image = match before {
            None => clean,
            Some(before) => {
                let h_before = half_log_snr(now) - half_log_snr(self.schedule.alpha(self.times[i - 1]));
                // Steps with the same trace of the image, the least that zero_terminal_snr leaves, tell no direction.
                let slope = if h_before > 0.0 { h / (2.0 * h_before) } else { 0.0 };
                clean.mul_scalar(1.0 + slope) - before.mul_scalar(slope)
            }
        };
        let keep = ((1.0 - next) / (1.0 - now)).sqrt();
        x.mul_scalar(keep) + image.mul_scalar(next.sqrt() * (1.0 - (-h).exp()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Noise, Prediction};
    use burn::tensor::{Device, TensorData};
    use serde_json::Value;

    #[test]
    fn times_are_latent_diffusions() {
        let leading = |steps, count| times(steps, count, Spacing::Leading);
        let fifty = leading(1000, 50);
        assert_eq!((fifty.len(), fifty[0], fifty[48], fifty[49]), (50, 981, 21, 1));
        assert_eq!(leading(1000, 1000), (0..1000).rev().collect::<Vec<_>>());
        assert_eq!(leading(1000, 600).len(), 600);
        assert_eq!(leading(7, 3), [5, 3, 1]);
        // Halves go to the even step, as with diffusers: 812.5 of 16 steps is 812.
        assert_eq!(times(1000, 16, Spacing::Trailing)[2..4], [874, 811]);
        // Every whole step of 7 / 3, rounded.
        assert_eq!(times(7, 3, Spacing::Trailing), [6, 4, 1]);
        assert_eq!(times(1000, 1000, Spacing::Trailing), (0..1000).rev().collect::<Vec<_>>());
        // 1000 (i / 20)² for i = 20, 19, ..., 1.
        let quadratic = times(1000, 20, Spacing::Quadratic);
        assert_eq!((quadratic[0], quadratic[1], &quadratic[17..]), (999, 902, &[22, 9, 2][..]));
        for count in 1..=1000 {
            let times = times(1000, count, Spacing::Quadratic);
            assert_eq!((times.len(), times[0]), (count, 999));
            assert!(times.is_sorted_by(|a, b| a > b), "{times:?}");
        }
    }

    /// The worked step: x = 1, ε = 0.5, ᾱ = 0.25, next ᾱ = 0.5.
    #[test]
    fn a_step_of_ddim_is_the_worked_one() {
        // β1 = 0.5 and β2 = 0.5 give ᾱ = 0.5, 0.25.
        let noise = Noise { steps: 2, beta_start: 0.5, beta_end: 0.5, ..Noise::default() };
        let schedule = NoiseSchedule::new(&noise);
        let one = |value: f32| Tensor::<4>::full([1, 1, 1, 1], value, &Device::flex());
        for (eta, expected) in [(0.0, 1.155_394_5), (1.0, 1.210_182_5)] {
            let settings = Sample { steps: 2, eta, ..Sample::default() };
            let mut trajectory = Trajectory::new(&schedule, &settings);
            let x = trajectory.step(0, one(1.0), one(0.5), || one(0.0)).into_scalar::<f32>();
            // With η = 1, σ = 0.5773503 and the direction is sqrt(0.5 - 1/3).
            let mean = 1.133_974_6 * 0.5f64.sqrt() + if eta == 0.0 { 0.5 * 0.5f64.sqrt() } else { 0.5 / 6f64.sqrt() };
            assert!((f64::from(x) - mean).abs() < 1e-6, "{x} is not {mean}");
            assert!(eta > 0.0 || (x - expected).abs() < 1e-6);
        }
    }

    /// Of many steps several hold the least trace of the image that there is, and nothing lies between them.
    #[test]
    fn steps_with_one_and_the_same_noise_end_at_an_image() {
        let noise = Noise { prediction: Prediction::Velocity, zero_terminal_snr: true, ..Noise::default() };
        let schedule = NoiseSchedule::new(&noise);
        assert_eq!(schedule.alpha(998), schedule.alpha(999));
        for solver in [Solver::Dpm, Solver::Ddim, Solver::Ddpm] {
            let settings = Sample { solver, steps: 1000, spacing: Spacing::Trailing, ..Sample::default() };
            let mut trajectory = Trajectory::new(&schedule, &settings);
            let one = || Tensor::<4>::full([1, 1, 1, 1], 1.0, &Device::flex());
            // The answer of a network that knows the image to be 0.3.
            let mut x = one();
            for i in 0..1000 {
                let alpha = schedule.alpha(trajectory.times()[i]);
                let epsilon = (x.clone() - 0.3 * alpha.sqrt()).div_scalar((1.0 - alpha).sqrt());
                let answer = epsilon.mul_scalar(alpha.sqrt()) - 0.3 * (1.0 - alpha).sqrt();
                x = trajectory.step(i, x, answer, one);
            }
            let end = x.into_scalar::<f32>();
            assert!((end - 0.3).abs() < 0.05, "{solver:?}: {end}");
        }
    }

    /// Against diffusers' schedulers (f64) under a network that is a formula, each noise given. Ours is f32: 1e-5 of the
    /// largest value after each of up to 20 steps.
    #[test]
    fn trajectories_are_those_of_diffusers() {
        let text = include_str!("../../tests/golden/diffusion/samples.json");
        let golden: Value = serde_json::from_str(text).unwrap();
        let device = Device::flex();
        let tensor = |values: Vec<f32>| Tensor::<4>::from_data(TensorData::new(values, [1, 1, 2, 3]), &device);
        let list = |value: &Value| -> Vec<f32> {
            value.as_array().unwrap().iter().map(|v| v.as_f64().unwrap() as f32).collect()
        };
        let mut compared = 0;
        for case in golden["cases"].as_array().unwrap() {
            let prediction = match case["prediction"].as_str().unwrap() {
                "epsilon" => Prediction::Epsilon,
                _ => Prediction::Velocity,
            };
            let solver = serde_json::from_value(case["solver"].clone()).unwrap();
            let steps = case["steps"].as_u64().unwrap() as usize;
            let spacing = serde_json::from_value(case["spacing"].clone()).unwrap();
            let settings = Sample { solver, steps, spacing, eta: case["eta"].as_f64().unwrap(), ..Sample::default() };
            let zero_terminal_snr = case["zero_snr"].as_bool().unwrap();
            let schedule = NoiseSchedule::new(&Noise { prediction, zero_terminal_snr, ..Noise::default() });
            let mut trajectory = Trajectory::new(&schedule, &settings);
            let times: Vec<usize> = serde_json::from_value(case["times"].clone()).unwrap();
            assert_eq!(trajectory.times(), times);
            let mut x = tensor(list(&golden["start"]));
            for (i, expected) in case["trajectory"].as_array().unwrap().iter().enumerate() {
                let t = trajectory.times()[i];
                let answer = (x.clone().mul_scalar(1.3) + t as f64 / 300.0).sin().mul_scalar(0.6);
                let noise = || tensor((0..6).map(|j| (1.7 * j as f64 + 200.0 + i as f64).sin() as f32).collect());
                x = trajectory.step(i, x, answer, noise);
                let found: Vec<f32> = x.clone().into_data().try_into_vec().unwrap();
                let expected = list(expected);
                let size = expected.iter().fold(1f32, |size, v| size.max(v.abs()));
                let worst = found.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
                assert!(worst < 2e-5 * size, "{case:?}: step {i}: {found:?} is not {expected:?}");
                compared += 1;
            }
        }
        assert_eq!(compared, 2 * (10 + 10 + 10 + 20) + 3 * (8 + 8 + 12 + 20) + 3 * (12 + 20));
    }
}
