//! One progress bar per stage, on standard error, with rate and time left; plain lines where there is no terminal.

use std::time::Instant;

use indicatif::{ProgressBar, ProgressStyle};

/// The bar of one stage.
pub(super) struct Progress {
    bar: ProgressBar,
    stage: &'static str,
    started: Instant,
}

impl Progress {
    /// A bar of `total` things called `unit` (`slides`, `patches`).
    pub fn new(stage: &'static str, total: u64, unit: &str) -> Self {
        let template =
            format!("{{prefix:>9}} {{bar:28}} {{human_pos}}/{{human_len}} {unit}, {{per_sec}}, {{eta}} left {{msg}}");
        // The template is ours, so it parses.
        let style = ProgressStyle::with_template(&template).unwrap_or_else(|_| ProgressStyle::default_bar());
        let bar = ProgressBar::new(total).with_style(style).with_prefix(stage);
        if bar.is_hidden() {
            eprintln!("{stage}: {total} {unit}");
        }
        Self { bar, stage, started: Instant::now() }
    }

    /// `count` more are done.
    pub fn advance(&self, count: u64) {
        self.bar.inc(count);
    }

    /// Starts from `count` (a resumed stage), so that the rate counts only new work.
    pub fn start_at(&self, count: u64) {
        self.bar.set_position(count);
        self.bar.reset_eta();
    }

    /// A few words behind the bar.
    pub fn message(&self, text: String) {
        self.bar.set_message(text);
    }

    /// Prints a line without disturbing the bar.
    pub fn line(&self, text: &str) {
        if self.bar.is_hidden() {
            eprintln!("{text}");
        } else {
            self.bar.println(text);
        }
    }

    /// Ends the bar with a one-line summary; returns the seconds it took.
    pub fn finish(self, summary: &str) -> f64 {
        let seconds = self.started.elapsed().as_secs_f64();
        self.bar.finish_and_clear();
        eprintln!("{}: {summary} ({seconds:.1} s)", self.stage);
        seconds
    }
}

/// The bar of a training: it begins where the training does, and counts what this process shows.
pub(super) struct Steps {
    pub bar: Progress,
    /// Images of a step, and of all steps by this process.
    batch: u64,
    pub shown: u64,
}

impl Steps {
    /// A bar of `steps` steps of `batch` things called `unit`.
    pub fn new(stage: &'static str, steps: usize, batch: usize, unit: &str) -> Self {
        Self { bar: Progress::new(stage, (steps * batch) as u64, unit), batch: batch as u64, shown: 0 }
    }

    /// Step `step`, from 0, is done.
    pub fn done(&mut self, step: usize, message: String) {
        if self.shown == 0 {
            self.bar.start_at(step as u64 * self.batch);
        }
        self.shown += self.batch;
        self.bar.advance(self.batch);
        self.bar.message(message);
    }
}
