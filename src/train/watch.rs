//! The collapse watch: says early that a run is learning nothing.
//!
//! DINO collapses in two ways: the teacher puts everything on one prototype (its entropy goes to 0), or spreads
//! everything evenly (its entropy goes to ln K). Centring works against the first, sharpening against the second. A
//! centre that only grows says that all images get the same answer.
//!
//! The watch is no part of a checkpoint. It sees what is written to `metrics.jsonl` and nothing else, so that a resumed run
//! shows it the lines of the earlier part first, and it goes on with the same windows and repeats no warning.

use super::dino::StepReport;

/// Windows in a row that must agree before the watch speaks.
const PATIENCE: usize = 3;

/// Watches the reports of a run.
#[derive(Clone, Debug)]
pub struct CollapseWatch {
    uniform: f64,
    /// Observations in a window.
    window: usize,
    entropies: Vec<f64>,
    centers: Vec<f64>,
    /// Means of the windows so far: entropy as a share of ln K, norm of the centre.
    windows: Vec<[f64; 2]>,
    told: [bool; 3],
}

impl CollapseWatch {
    /// For `out` prototypes and a run of `steps`, of which every `every`-th is observed; judges windows of 1/50 of the run,
    /// of 20 to 200 steps and at least 20 observations.
    pub fn new(out: usize, steps: usize, every: usize) -> Self {
        Self {
            uniform: (out as f64).ln(),
            window: ((steps / 50).clamp(20, 200) / every).max(20),
            entropies: Vec::new(),
            centers: Vec::new(),
            windows: Vec::new(),
            told: [false; 3],
        }
    }

    /// Takes note of a step; a warning where something is wrong, each kind once.
    pub fn observe(&mut self, report: &StepReport) -> Option<String> {
        self.entropies.push(report.teacher_entropy / self.uniform);
        self.centers.push(report.center_norm);
        if self.entropies.len() < self.window {
            return None;
        }
        let mean = |values: &mut Vec<f64>| values.drain(..).sum::<f64>() / self.window as f64;
        self.windows.push([mean(&mut self.entropies), mean(&mut self.centers)]);
        let recent = self.windows.get(self.windows.len().checked_sub(PATIENCE)?..)?;
        let share = recent[PATIENCE - 1][0];
        let center = recent[PATIENCE - 1][1];
        let grows = recent.windows(2).all(|pair| pair[1][1] > 1.02 * pair[0][1]);
        let signs = [
            recent.iter().all(|w| w[0] < 0.01),
            recent.iter().all(|w| w[0] > 0.995),
            grows && center > 4.0 * self.windows[0][1] && share > 0.98,
        ];
        let kind = (0..3).find(|i| signs[*i] && !self.told[*i])?;
        self.told[kind] = true;
        let step = report.step;
        Some(match kind {
            0 => format!(
                "step {step}: the teacher's entropy is {:.1} % of the largest: it gives one answer to everything. Try a \
                 higher pretrain.teacher_temp, a lower pretrain.center_momentum, or a lower pretrain.lr",
                100.0 * share
            ),
            1 => format!(
                "step {step}: the teacher's entropy is {:.1} % of the largest: its answers are uniform. For a \
                 short run try a lower pretrain.teacher_momentum (0.97) and pretrain.center_momentum (0.5), a lower \
                 pretrain.teacher_temp or fewer prototypes (head.out)",
                100.0 * share
            ),
            _ => format!(
                "step {step}: the centre has grown to {center:.3} and still grows while the teacher's answers are nearly \
                 uniform: all images get the same answer. Try a lower pretrain.lr or a higher pretrain.teacher_momentum"
            ),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(step: usize, teacher_entropy: f64, center_norm: f64) -> StepReport {
        StepReport {
            step,
            epoch: 0,
            loss: 1.0,
            parts: None,
            lr: 0.0,
            weight_decay: 0.0,
            momentum: 0.0,
            teacher_temp: 0.04,
            teacher_entropy,
            center_norm,
            gradient_norm: None,
        }
    }

    fn warnings(entropy: impl Fn(usize) -> f64, center: impl Fn(usize) -> f64) -> Vec<String> {
        let mut watch = CollapseWatch::new(1000, 500, 1);
        (0..500).filter_map(|i| watch.observe(&report(i, entropy(i) * 1000f64.ln(), center(i)))).collect()
    }

    #[test]
    fn a_healthy_run_is_left_alone() {
        assert_eq!(warnings(|i| 0.9 - 0.001 * i as f64, |i| 1.0 + 0.01 * (i as f64).sin()), Vec::<String>::new());
    }

    #[test]
    fn windows_are_short_in_steps_and_not_too_short_in_observations() {
        let window = |steps, every| CollapseWatch::new(40, steps, every).window;
        assert_eq!((window(80, 1), window(5_000, 1), window(19_999, 1)), (20, 100, 200));
        assert_eq!((window(20_000, 2), window(100_000, 10), window(1_000_000, 100)), (100, 20, 20));
    }

    #[test]
    fn each_collapse_is_told_once_and_says_what_to_try() {
        let point = warnings(|i| if i < 100 { 0.5 } else { 0.001 }, |_| 1.0);
        assert_eq!(point.len(), 1);
        // Three windows of 20 after step 100.
        assert!(point[0].starts_with("step 159:") && point[0].contains("pretrain.teacher_temp"), "{}", point[0]);
        let uniform = warnings(|_| 0.999, |_| 1.0);
        assert_eq!(uniform.len(), 1);
        assert!(uniform[0].contains("99.9 %"), "{}", uniform[0]);
        let center = warnings(|_| 0.99, |i| 0.1 * 1.01f64.powi(i as i32));
        assert_eq!(center.len(), 1);
        assert!(center[0].contains("centre"), "{}", center[0]);
    }
}
