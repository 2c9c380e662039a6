//! `gensis doctor --selftest`: the golden numbers and the training step on a device, with a verdict per line.
//!
//! Needs no data and no other file. `scripts/selftest_peer.py` times the same step in PyTorch.

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use burn::tensor::Device;
use serde::{Deserialize, Serialize};

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

#[derive(Serialize, Deserialize)]
struct Selftest {
    version: String,
    device: String,
    /// Kernel fusion is chosen when building (cargo feature `fusion`).
    fusion: bool,
    lines: Vec<Line>,
    readings: Vec<Reading>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Verdict {
    Pass,
    Fail,
    /// Not asked for, or not there to be asked.
    Skipped,
    /// Asked, and the device does not say.
    Unknown,
}

/// One line of the table.
#[derive(Serialize, Deserialize)]
struct Line {
    what: String,
    result: String,
    verdict: Verdict,
}

/// Rate and memory after some steps.
#[derive(Serialize, Deserialize)]
struct Reading {
    precision: Precision,
    step: usize,
    images_per_second: f64,
    memory_mib: Option<f64>,
    loss: f64,
}

pub(super) fn selftest(args: &DoctorArgs) -> Result<Outcome> {
    let own = judge(args)?;
    let other = args.beside.as_ref().map(|binary| judged_by(binary, args)).transpose()?;
    match (&other, args.json) {
        (None, true) => say_line!("{}", serde_json::to_string_pretty(&own)?)?,
        (Some(other), true) => say_line!("{}", serde_json::to_string_pretty(&[&own, other])?)?,
        (other, false) => print(&own, other.as_ref())?,
    }
    let lines: Vec<&Line> = own.lines.iter().chain(other.iter().flat_map(|other| &other.lines)).collect();
    let count = |verdict| lines.iter().filter(|line| line.verdict == verdict).count();
    let (failed, unknown) = (count(Verdict::Fail), count(Verdict::Unknown));
    if unknown > 0 {
        eprintln!("warning: {unknown} line(s) of the self-test could not be judged on {}", own.device);
    }
    if failed > 0 {
        bail!("{failed} line(s) of the self-test failed on {}", own.device);
    }
    Ok(Outcome::Done)
}

fn judge(args: &DoctorArgs) -> Result<Selftest> {
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
    Ok(Selftest {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        device: args.compute.device.to_string(),
        fusion: cfg!(feature = "fusion"),
        lines,
        readings,
    })
}

/// The self-test of another binary on the same device.
fn judged_by(binary: &Path, args: &DoctorArgs) -> Result<Selftest> {
    let numbers = [args.steps, args.batch, args.compute.threads].map(|number| number.to_string());
    let output = Command::new(binary)
        .args(["doctor", "--selftest", "--json", "--device", &args.compute.device.to_string()])
        .args(["--steps", &numbers[0], "--batch", &numbers[1], "--threads", &numbers[2]])
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("--beside {}", binary.display()))?;
    // Failing lines are in the table too, and its own message is on standard error.
    serde_json::from_slice(&output.stdout).with_context(|| format!("--beside {} gave no self-test", binary.display()))
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
    // Else this precision would seem to need what the one before it has reserved.
    device.memory_cleanup();
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

/// Speed and memory of one precision. The first reading holds what warming up needed (kernels are compiled, memory pools
/// grow): it counts for neither where there are others. `scripts/selftest_peer.py` takes its median in the same way.
fn verdicts(what: String, readings: &[Reading]) -> Vec<Line> {
    let Some(last) = readings.last() else { return vec![] };
    let warm = if readings.len() > 1 { &readings[1..] } else { readings };
    let mut rates: Vec<f64> = warm.iter().map(|reading| reading.images_per_second).collect();
    rates.sort_by(f64::total_cmp);
    let finite = readings.iter().all(|reading| reading.loss.is_finite());
    let speed = Line {
        result: format!("median {:.2} images/s, loss {:.4}", rates[rates.len() / 2], last.loss),
        verdict: if finite { Verdict::Pass } else { Verdict::Fail },
        what: what.clone(),
    };
    let (result, verdict) = match (warm[0].memory_mib, last.memory_mib) {
        (Some(base), Some(end)) if warm.len() > 1 => {
            let flat = end <= base * GROWTH;
            (format!("{base:.0} -> {end:.0} MiB"), if flat { Verdict::Pass } else { Verdict::Fail })
        }
        (Some(_), Some(_)) => ("too few readings".to_owned(), Verdict::Skipped),
        _ => ("memory unknown: this device does not report it".to_owned(), Verdict::Unknown),
    };
    vec![speed, Line { what: format!("{what}: memory stays flat"), result, verdict }]
}

fn failed(what: &str, error: &anyhow::Error) -> Line {
    Line { what: what.to_owned(), result: format!("{error:#}"), verdict: Verdict::Fail }
}

fn print(own: &Selftest, other: Option<&Selftest>) -> Result<()> {
    let fusion = |selftest: &Selftest| if selftest.fusion { "on" } else { "off" };
    match other {
        None => say_line!(
            "gensis {} self-test on {}, kernel fusion {} in this build",
            own.version,
            own.device,
            fusion(own)
        )?,
        Some(other) => {
            let (ours, theirs) = (fusion(own), fusion(other));
            say_line!(
                "gensis {} and {} self-test on {}, kernel fusion {ours} | {theirs}",
                own.version,
                other.version,
                own.device
            )?;
        }
    }
    let verdict = |line: &Line| match line.verdict {
        Verdict::Pass => "pass",
        Verdict::Fail => "FAIL",
        Verdict::Skipped => "skipped",
        Verdict::Unknown => "unknown",
    };
    let Some(other) = other else {
        for line in &own.lines {
            say_line!("  {:<7}  {}: {}", verdict(line), line.what, line.result)?;
        }
        return Ok(());
    };
    // Lines of one name in their order: each name may have several.
    let mut theirs: Vec<&Line> = other.lines.iter().collect();
    for line in &own.lines {
        let same = theirs.iter().position(|their| their.what == line.what).map(|place| theirs.remove(place));
        let (judged, result) = same.map_or(("", "-"), |same| (verdict(same), &same.result[..]));
        say_line!("  {:<7}  {judged:<7}  {}: {} | {result}", verdict(line), line.what, line.result)?;
    }
    for line in theirs {
        say_line!("  {:<7}  {:<7}  {}: - | {}", "", verdict(line), line.what, line.result)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(readings: &[(f64, Option<f64>)]) -> Vec<(String, Verdict)> {
        let reading = |(i, &(images_per_second, memory_mib)): (usize, &(f64, Option<f64>))| Reading {
            precision: Precision::F32,
            step: EVERY * (i + 1),
            images_per_second,
            memory_mib,
            loss: 1.0,
        };
        let readings: Vec<Reading> = readings.iter().enumerate().map(reading).collect();
        verdicts("steps".into(), &readings).into_iter().map(|line| (line.result, line.verdict)).collect()
    }

    #[test]
    fn the_first_reading_counts_where_there_is_no_other() {
        let warm = judged(&[(1.0, Some(10.0)), (4.0, Some(100.0)), (8.0, Some(102.0)), (6.0, Some(104.0))]);
        assert!(warm[0].0.starts_with("median 6.00 images/s"), "{warm:?}");
        assert_eq!(warm[1], ("100 -> 104 MiB".into(), Verdict::Pass));
        let alone = judged(&[(1.0, Some(10.0))]);
        assert!(alone[0].0.starts_with("median 1.00 images/s"), "{alone:?}");
        assert_eq!(alone[1], ("too few readings".into(), Verdict::Skipped));
    }

    #[test]
    fn memory_that_grows_fails_and_memory_that_is_not_reported_is_unknown() {
        assert_eq!(judged(&[(1.0, Some(1.0)), (1.0, Some(100.0)), (1.0, Some(106.0))])[1].1, Verdict::Fail);
        let silent = judged(&[(1.0, None); 3]);
        assert_eq!(silent[1], ("memory unknown: this device does not report it".into(), Verdict::Unknown));
    }
}
