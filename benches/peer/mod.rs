//! The other program of a benchmark: a Python script beside it, which answers every line with the seconds of one run.

use std::io::{BufRead, BufReader, Lines, Write};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};

use anyhow::{Context, Result};

/// The running script. It ends with its input.
pub struct Peer {
    process: Child,
    answers: Lines<BufReader<ChildStdout>>,
}

impl Peer {
    /// Starts benches/`script` with `python` and these arguments.
    pub fn start(python: &str, script: &str, arguments: &[String]) -> Result<Self> {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches").join(script);
        let mut command = Command::new(python);
        command.arg(&path).args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = command.spawn().with_context(|| format!("{python} {}", path.display()))?;
        let answers = BufReader::new(process.stdout.take().context("a pipe")?).lines();
        Ok(Self { process, answers })
    }

    /// Seconds that the script takes for `case`.
    pub fn time(&mut self, case: &str) -> Result<f64> {
        writeln!(self.process.stdin.as_mut().context("a pipe")?, "{case}")?;
        Ok(self.answers.next().context("the other program ended")??.trim().parse()?)
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        drop(self.process.stdin.take());
        let _ = self.process.wait();
    }
}

/// The middle value; of an even number the larger of the two. NaN of none.
pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}
