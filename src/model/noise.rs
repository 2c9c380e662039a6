//! The forward process of diffusion: how much of an image is left after every time step, and what follows from it.

use crate::config::{BetaSchedule, Noise, Prediction};
use burn::tensor::{Device, Tensor, TensorData};

/// ᾱ where nothing is left: as diffusers' DPM-Solver++, not 0, which has no logarithm.
const NOTHING_LEFT: f64 = 1.0 / (1 << 24) as f64;

/// ᾱ of every time step, and what the network predicts.
#[derive(Clone, Debug)]
pub struct NoiseSchedule {
    alphas: Vec<f64>,
    prediction: Prediction,
}

impl NoiseSchedule {
    /// The tables of `noise`, in f64.
    pub fn new(noise: &Noise) -> Self {
        let Noise { steps, schedule, beta_start, beta_end, prediction, zero_terminal_snr } = *noise;
        let share = |i: usize| i as f64 / (steps - 1).max(1) as f64;
        let beta = |i: usize| match schedule {
            BetaSchedule::Linear => beta_start + (beta_end - beta_start) * share(i),
            BetaSchedule::ScaledLinear => {
                (beta_start.sqrt() + (beta_end.sqrt() - beta_start.sqrt()) * share(i)).powi(2)
            }
        };
        let left = (0..steps).scan(1.0, |left, i| {
            *left *= 1.0 - beta(i);
            Some(*left)
        });
        let mut alphas: Vec<f64> = left.collect();
        if zero_terminal_snr {
            let (first, last) = (alphas[0].sqrt(), alphas[steps - 1].sqrt());
            let rescaled = |alpha: f64| ((alpha.sqrt() - last) * first / (first - last)).powi(2);
            alphas.iter_mut().for_each(|alpha| *alpha = rescaled(*alpha).max(NOTHING_LEFT));
        }
        Self { alphas, prediction }
    }

    /// Time steps.
    pub fn steps(&self) -> usize {
        self.alphas.len()
    }

    /// ᾱ of time step `t`, counted from 0.
    pub fn alpha(&self, t: usize) -> f64 {
        self.alphas[t]
    }

    /// `x_t = sqrt(ᾱ) x0 + sqrt(1 - ᾱ) ε`, each row at its own time step.
    pub fn add(&self, clean: Tensor<4>, noise: Tensor<4>, times: &[usize]) -> Tensor<4> {
        let (signal, spread) = self.rows(times, &clean.device());
        clean * signal + noise * spread
    }

    /// What the network should answer: ε or `sqrt(ᾱ) ε - sqrt(1 - ᾱ) x0`.
    pub fn target(&self, clean: Tensor<4>, noise: Tensor<4>, times: &[usize]) -> Tensor<4> {
        match self.prediction {
            Prediction::Epsilon => noise,
            Prediction::Velocity => {
                let (signal, spread) = self.rows(times, &clean.device());
                noise * signal - clean * spread
            }
        }
    }

    /// The noise in `x` and the clean image behind it, from the network's answer at `t`.
    pub fn split(&self, x: Tensor<4>, answer: Tensor<4>, t: usize) -> (Tensor<4>, Tensor<4>) {
        let (signal, spread) = (self.alpha(t).sqrt(), (1.0 - self.alpha(t)).sqrt());
        match self.prediction {
            Prediction::Epsilon => (answer.clone(), (x - answer.mul_scalar(spread)).div_scalar(signal)),
            Prediction::Velocity => (
                answer.clone().mul_scalar(signal) + x.clone().mul_scalar(spread),
                x.mul_scalar(signal) - answer.mul_scalar(spread),
            ),
        }
    }

    /// sqrt(ᾱ) and sqrt(1 - ᾱ) as `[B, 1, 1, 1]`.
    fn rows(&self, times: &[usize], device: &Device) -> (Tensor<4>, Tensor<4>) {
        let column = |of: fn(f64) -> f64| {
            let values: Vec<f32> = times.iter().map(|&t| of(self.alphas[t]).sqrt() as f32).collect();
            Tensor::from_data(TensorData::new(values, [times.len(), 1, 1, 1]), device)
        };
        (column(|alpha| alpha), column(|alpha| 1.0 - alpha))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn alphas_are_the_worked_ones() {
        let ours = NoiseSchedule::new(&Noise::default());
        let found = [0, 1, 500, 999].map(|t| ours.alpha(t));
        let expected = [0.9985, 0.996_994_427_1, 0.114_922_000_9, 1.423_039_752e-4];
        assert!(found.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-10), "{found:?}");
        let stable = NoiseSchedule::new(&Noise { beta_start: 0.00085, beta_end: 0.012, ..Noise::default() });
        let found = [0, 500, 999].map(|t| stable.alpha(t));
        let expected = [0.99915, 0.276_332_683_8, 0.004_660_098_5];
        assert!(found.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-10), "{found:?}");
    }

    /// Rounding of f32, divided by sqrt(ᾱ) at the noisiest step used (0.34): 1e-5.
    #[test]
    fn both_predictions_give_the_noise_and_the_image_back() {
        let device = Device::flex();
        let [clean, noise] = [1.0, -0.7].map(|value| Tensor::<4>::full([2, 1, 2, 2], value, &device));
        for prediction in [Prediction::Epsilon, Prediction::Velocity] {
            let schedule = NoiseSchedule::new(&Noise { prediction, ..Noise::default() });
            let noisy = schedule.add(clean.clone(), noise.clone(), &[500, 20]);
            let answer = schedule.target(clean.clone(), noise.clone(), &[500, 20]);
            for (row, t) in [500, 20].into_iter().enumerate() {
                let pick = |x: &Tensor<4>| x.clone().narrow(0, row, 1);
                let (found, behind) = schedule.split(pick(&noisy), pick(&answer), t);
                for (a, b) in [(found, &noise), (behind, &clean)] {
                    assert!((a - pick(b)).abs().max().into_scalar::<f32>() < 1e-5);
                }
            }
        }
    }

    /// Lin et al. 2024: the first step keeps its ᾱ, the last has nothing, and the image is still found there.
    #[test]
    fn nothing_is_left_at_the_last_step_where_that_is_asked_for() {
        let noise = Noise { zero_terminal_snr: true, prediction: Prediction::Velocity, ..Noise::default() };
        let [ours, usual] = [&noise, &Noise::default()].map(NoiseSchedule::new);
        assert!((ours.alpha(0) - usual.alpha(0)).abs() < 1e-12);
        assert_eq!(ours.alpha(999), 2f64.powi(-24));
        assert!((1..1000).all(|t| ours.alpha(t) < usual.alpha(t) && ours.alpha(t) <= ours.alpha(t - 1)));
        let [clean, noise] = [0.3, 1.7].map(|value| Tensor::<4>::full([1, 1, 2, 2], value, &Device::flex()));
        let noisy = ours.add(clean.clone(), noise.clone(), &[999]);
        let answer = ours.target(clean.clone(), noise.clone(), &[999]);
        let (found, behind) = ours.split(noisy, answer, 999);
        for (found, expected) in [(found, noise), (behind, clean)] {
            assert!((found - expected).abs().max().into_scalar::<f32>() < 1e-6);
        }
    }

    #[test]
    fn a_linear_schedule_is_linear_in_beta() {
        let noise =
            Noise { schedule: BetaSchedule::Linear, steps: 3, beta_start: 0.1, beta_end: 0.3, ..Noise::default() };
        let schedule = NoiseSchedule::new(&noise);
        assert!((schedule.alpha(2) - 0.9 * 0.8 * 0.7).abs() < 1e-12);
    }
}
