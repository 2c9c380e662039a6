//! `gensis doctor --selftest`: the golden numbers and the training step on a device, with a verdict per line.
//!
//! Needs no data and no other file. `scripts/selftest_peer.py` times the same step in PyTorch.

use anyhow::{Result, bail};
use burn::tensor::Device;
use serde::Serialize;

use super::Outcome;
use super::output::say_line;
use crate::cli::DoctorArgs;
use crate::config::Precision;
use crate::device;
use crate::train::selftest::{Comparison, golden_encoders, golden_forward, golden_gen_dino, golden_step, throughput};

/// Steps between two readings.
const EVERY: usize = 50;
/// Growth of memory between the second reading and the last that still counts as flat.
const GROWTH: f64 = 1.05;

#[derive(Serialize)]
struct Selftest {
    version: &'static str,
    device: String,
    /// Kernel fusion is chosen when building (cargo feature `fusion`).
    fusion: bool,
    lines: Vec<Line>,
    readings: Vec<Reading>,
}

#[derive(Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Verdict {
    Pass,
    Fail,
    Skipped,
}

/// One line of the table.
#[derive(Serialize)]
struct Line {
    what: String,
    result: String,
    verdict: Verdict,
}

/// Rate and memory after some steps.
#[derive(Serialize)]
struct Reading {
    precision: Precision,
    step: usize,
    images_per_second: f64,
    memory_mib: Option<f64>,
    loss: f64,
}

pub(super) fn selftest(args: &DoctorArgs) -> Result<Outcome> {
    let device = device::open(args.compute.device)?;
    let mut lines = golden("network", golden_forward(&device));
    lines.extend(golden("encoders of others", golden_encoders(&device)));
    lines.extend(golden("training step", golden_step(&device)));
    lines.extend(golden("Gen-DINO's training step", golden_gen_dino(&device)));
    let mut readings = Vec::new();
    if args.steps > 0 {
        for precision in [Precision::F32, Precision::Bf16] {
            lines.extend(train(&device, args, precision, &mut readings));
        }
    }
    let selftest = Selftest {
        version: env!("CARGO_PKG_VERSION"),
        device: args.compute.device.to_string(),
        fusion: cfg!(feature = "fusion"),
        lines,
        readings,
    };
    if args.json {
        say_line!("{}", serde_json::to_string_pretty(&selftest)?)?;
    } else {
        print(&selftest)?;
    }
    let failed = selftest.lines.iter().filter(|line| line.verdict == Verdict::Fail).count();
    if failed > 0 {
        bail!("{failed} line(s) of the self-test failed on {}", selftest.device);
    }
    Ok(Outcome::Done)
}

/// Golden comparisons: every failing one, or the worst of those that pass.
fn golden(what: &str, comparisons: Result<Vec<Comparison>>) -> Vec<Line> {
    let comparisons = match comparisons {
        Ok(comparisons) => comparisons,
        Err(error) => return vec![failed(what, &error)],
    };
    let line = |comparison: &Comparison, what: String| Line {
        what,
        result: format!("differs by {:.1e}, allowed {:.0e}", comparison.difference, comparison.allowed),
        verdict: if comparison.passes() { Verdict::Pass } else { Verdict::Fail },
    };
    let failing: Vec<Line> = comparisons
        .iter()
        .filter(|c| !c.passes())
        .map(|c| line(c, format!("{what} against PyTorch: {}", c.name)))
        .collect();
    if !failing.is_empty() {
        return failing;
    }
    let share = |c: &&Comparison| c.difference / c.allowed;
    let worst = comparisons.iter().max_by(|a, b| share(a).total_cmp(&share(b)));
    worst
        .map(|worst| {
            line(worst, format!("{what} against PyTorch: {} tensors, worst {}", comparisons.len(), worst.name))
        })
        .into_iter()
        .collect()
}

/// DINO steps of ViT-S/16, logged every [`EVERY`].
fn train(device: &Device, args: &DoctorArgs, precision: Precision, readings: &mut Vec<Reading>) -> Vec<Line> {
    let name = match precision {
        Precision::F32 => "f32",
        Precision::Bf16 => "bf16",
    };
    let what = format!("{} steps of ViT-S/16, 2x224 + 8x96, batch {}, {name}", args.steps, args.batch);
    let steps = match throughput(device, "vit_small", args.batch, args.steps, precision) {
        Ok(steps) => steps,
        // The CPU backend has no bf16; a device that was asked for must have both.
        Err(error) if precision == Precision::Bf16 && device::is_host(device) => {
            return vec![Line { what, result: format!("{error:#}"), verdict: Verdict::Skipped }];
        }
        Err(error) => return vec![failed(&what, &error)],
    };
    let first = readings.len();
    let (mut seconds, mut count) = (0.0, 0usize);
    for step in steps {
        let step = match step {
            Ok(step) => step,
            Err(error) => return vec![failed(&what, &error)],
        };
        (seconds, count) = (seconds + step.seconds, count + 1);
        let done = step.step + 1;
        if done % EVERY == 0 || done == args.steps {
            let images_per_second = (count * args.batch) as f64 / seconds;
            let memory_mib = device::memory_in_use(device).map(|bytes| bytes as f64 / 1048576.0);
            eprintln!(
                "selftest: {name} step {done}: {images_per_second:.2} images/s, {}, loss {:.4}",
                memory_mib.map_or("memory unknown".into(), |mib| format!("{mib:.0} MiB")),
                step.loss
            );
            readings.push(Reading { precision, step: done, images_per_second, memory_mib, loss: step.loss });
            (seconds, count) = (0.0, 0);
        }
    }
    verdicts(what, &readings[first..])
}

fn verdicts(what: String, readings: &[Reading]) -> Vec<Line> {
    let Some(last) = readings.last() else { return vec![] };
    let mut rates: Vec<f64> = readings.iter().map(|reading| reading.images_per_second).collect();
    rates.sort_by(f64::total_cmp);
    let finite = readings.iter().all(|reading| reading.loss.is_finite());
    let speed = Line {
        result: format!("median {:.2} images/s, loss {:.4}", rates[rates.len() / 2], last.loss),
        verdict: if finite { Verdict::Pass } else { Verdict::Fail },
        what: what.clone(),
    };
    // The first reading still holds what warming up needed.
    let base = readings.get(1).unwrap_or(last);
    let memory = match (base.memory_mib, last.memory_mib) {
        (Some(base), Some(end)) if readings.len() > 2 => Line {
            what: format!("{what}: memory stays flat"),
            result: format!("{base:.0} -> {end:.0} MiB"),
            verdict: if end <= base * GROWTH { Verdict::Pass } else { Verdict::Fail },
        },
        _ => Line {
            what: format!("{what}: memory stays flat"),
            result: "too few readings".into(),
            verdict: Verdict::Skipped,
        },
    };
    vec![speed, memory]
}

fn failed(what: &str, error: &anyhow::Error) -> Line {
    Line { what: what.to_owned(), result: format!("{error:#}"), verdict: Verdict::Fail }
}

fn print(selftest: &Selftest) -> Result<()> {
    let fusion = if selftest.fusion { "on" } else { "off" };
    say_line!("gensis {} self-test on {}, kernel fusion {fusion} in this build", selftest.version, selftest.device)?;
    for line in &selftest.lines {
        let verdict = match line.verdict {
            Verdict::Pass => "pass",
            Verdict::Fail => "FAIL",
            Verdict::Skipped => "skipped",
        };
        say_line!("  {verdict:<7}  {}: {}", line.what, line.result)?;
    }
    Ok(())
}
