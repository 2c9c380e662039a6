//! Learning rate, weight decay, teacher momentum and teacher temperature of every step, as DINO tabulates them.

use super::optimizer::Update;
use crate::config::Pretrain;
use anyhow::{Result, ensure};
use std::f64::consts::PI;

/// The values of one step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepValues {
    /// Learning rate.
    pub lr: f64,
    /// Weight decay of the parameters that are decayed.
    pub weight_decay: f64,
    /// Momentum of the teacher.
    pub momentum: f64,
    /// Temperature of the teacher.
    pub teacher_temp: f64,
    /// Whether the last layer is trained.
    pub train_last_layer: bool,
}

impl StepValues {
    /// What the optimiser does with them.
    pub fn update(&self) -> Update {
        Update {
            lr: self.lr,
            weight_decay: self.weight_decay,
            momentum: self.momentum,
            frozen: (!self.train_last_layer).then_some("last_layer"),
        }
    }
}

/// Share of a rate that falls to 0 along half a cosine over the last `decay` steps, with `left` of them to do; 1 before.
pub fn decayed(decay: usize, left: usize) -> f64 {
    if left < decay { (1.0 - (PI * left as f64 / decay as f64).cos()) / 2.0 } else { 1.0 }
}

/// The tables of a run.
#[derive(Clone, Debug)]
pub struct Schedule {
    lr: Vec<f64>,
    weight_decay: Vec<f64>,
    momentum: Vec<f64>,
    teacher_temp: Vec<f64>,
    steps_per_epoch: usize,
    freeze_last_layer: usize,
}

impl Schedule {
    /// Tables of `settings.epochs` epochs of `steps_per_epoch` steps.
    ///
    /// # Errors
    /// A warm-up that is longer than the run, or a run without steps.
    pub fn new(settings: &Pretrain, steps_per_epoch: usize) -> Result<Self> {
        let Pretrain { epochs, warmup_epochs, warmup_teacher_temp_epochs, .. } = *settings;
        ensure!(epochs > 0, "pretrain.epochs = 0 trains nothing");
        ensure!(
            steps_per_epoch > 0,
            "not one whole batch of pretrain.batch = {} in an epoch: lower it, or give more patches",
            settings.batch
        );
        ensure!(
            warmup_epochs <= epochs,
            "pretrain.warmup_epochs = {warmup_epochs} is longer than pretrain.epochs = {epochs}"
        );
        settings.check_temperatures()?;
        let steps = epochs * steps_per_epoch;
        let warmup = warmup_epochs * steps_per_epoch;
        let peak = settings.lr * settings.batch as f64 / 256.0;
        let mut lr = linspace(0.0, peak, warmup);
        lr.extend(cosine(peak, settings.min_lr, steps - warmup));
        let mut teacher_temp =
            linspace(settings.warmup_teacher_temp, settings.teacher_temp, warmup_teacher_temp_epochs);
        teacher_temp.resize(epochs, settings.teacher_temp);
        Ok(Self {
            lr,
            weight_decay: cosine(settings.weight_decay, settings.weight_decay_end, steps).collect(),
            momentum: cosine(settings.teacher_momentum, 1.0, steps).collect(),
            teacher_temp,
            steps_per_epoch,
            freeze_last_layer: settings.freeze_last_layer,
        })
    }

    /// Steps of the run.
    pub fn steps(&self) -> usize {
        self.lr.len()
    }

    /// Steps of an epoch.
    pub fn steps_per_epoch(&self) -> usize {
        self.steps_per_epoch
    }

    /// The epoch of a step.
    pub fn epoch(&self, step: usize) -> usize {
        step / self.steps_per_epoch
    }

    /// The values of `step`, which is below [`steps`](Self::steps).
    pub fn at(&self, step: usize) -> StepValues {
        let epoch = self.epoch(step);
        StepValues {
            lr: self.lr[step],
            weight_decay: self.weight_decay[step],
            momentum: self.momentum[step],
            teacher_temp: self.teacher_temp[epoch],
            train_last_layer: epoch >= self.freeze_last_layer,
        }
    }
}

/// numpy's: both ends included.
fn linspace(from: f64, to: f64, count: usize) -> Vec<f64> {
    let step = (to - from) / count.saturating_sub(1).max(1) as f64;
    let mut values: Vec<_> = (0..count).map(|i| from + i as f64 * step).collect();
    if count > 1 {
        values[count - 1] = to;
    }
    values
}

/// f + (b - f) (1 + cos(π i / N)) / 2 for i = 0..N: the end is not quite reached.
fn cosine(from: f64, to: f64, count: usize) -> impl Iterator<Item = f64> {
    (0..count).map(move |i| to + 0.5 * (from - to) * (1.0 + (PI * i as f64 / count as f64).cos()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Epoch means of the published log of the reference (ImageNet, batch 512, 2502 steps an epoch, 100 epochs).
    #[test]
    fn epoch_means_are_those_of_the_published_log() {
        let settings = Pretrain { batch: 512, ..Pretrain::default() };
        let schedule = Schedule::new(&settings, 2502).unwrap();
        let mean = |table: &[f64], epoch: usize| table[epoch * 2502..(epoch + 1) * 2502].iter().sum::<f64>() / 2502.0;
        let check = |table: &[f64], epoch: usize, published: f64| {
            let found = mean(table, epoch);
            // The published figures have 12 digits.
            assert!((found / published - 1.0).abs() < 5e-12, "epoch {epoch}: {found} is not {published}");
        };
        for (epoch, lr) in [
            (0, 4.99820136696e-5),
            (1, 1.49986010632e-4),
            (5, 5.50001998481e-4),
            (9, 9.50017986330e-4),
            (10, 9.99898629379e-4),
        ] {
            check(&schedule.lr, epoch, lr);
        }
        for (epoch, decay) in [(0, 0.0400295896048), (1, 0.0402071631726), (5, 0.0426874189002), (9, 0.0479639999532)] {
            check(&schedule.weight_decay, epoch, decay);
        }
        for (epoch, momentum) in [(0, 0.99600032877), (50, 0.99803140079), (99, 0.99999967083)] {
            let found = mean(&schedule.momentum, epoch);
            assert!((found - momentum).abs() < 5e-12, "epoch {epoch}: {found} is not {momentum}");
        }
    }

    #[test]
    fn the_peak_is_touched_at_the_end_of_the_warm_up() {
        let settings = Pretrain { epochs: 3, warmup_epochs: 1, batch: 128, lr: 1e-3, ..Pretrain::default() };
        let schedule = Schedule::new(&settings, 5).unwrap();
        assert_eq!(schedule.at(0).lr, 0.0);
        assert_eq!(schedule.at(4).lr, 5e-4);
        assert_eq!(schedule.at(5).lr, 5e-4);
        assert!(schedule.at(14).lr > settings.min_lr);
        assert_eq!((schedule.steps(), schedule.epoch(4), schedule.epoch(5)), (15, 0, 1));
    }

    #[test]
    fn the_teacher_warms_up_by_epoch_and_the_last_layer_waits() {
        let settings = Pretrain {
            epochs: 5,
            warmup_epochs: 0,
            warmup_teacher_temp_epochs: 3,
            teacher_temp: 0.07,
            freeze_last_layer: 2,
            ..Pretrain::default()
        };
        let schedule = Schedule::new(&settings, 2).unwrap();
        let temps: Vec<_> = (0..10).map(|i| schedule.at(i).teacher_temp).collect();
        for (found, expected) in temps.iter().zip([0.04, 0.04, 0.055, 0.055, 0.07, 0.07, 0.07, 0.07, 0.07, 0.07]) {
            assert!((found - expected).abs() < 1e-15);
        }
        let trained: Vec<_> = (0..6).map(|i| schedule.at(i).train_last_layer).collect();
        assert_eq!(trained, [false, false, false, false, true, true]);
    }

    #[test]
    fn impossible_runs_are_refused_by_the_name_of_the_key() {
        let message = |settings: Pretrain, steps| Schedule::new(&settings, steps).unwrap_err().to_string();
        assert!(message(Pretrain { epochs: 5, ..Pretrain::default() }, 3).contains("pretrain.warmup_epochs = 10"));
        assert!(message(Pretrain::default(), 0).contains("pretrain.batch = 64"));
    }
}
