//! Running the program.

use std::ffi::OsStr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// A command that ended by itself.
#[derive(Debug)]
pub struct Ended {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Ended {
    /// The same, if it ended with `code`.
    #[track_caller]
    pub fn with_code(self, code: i32) -> Self {
        assert_eq!(self.code, Some(code), "exit code; standard error:\n{}", self.stderr);
        self
    }

    /// The same, if standard error holds all of these.
    #[track_caller]
    pub fn saying<const N: usize>(self, texts: [&str; N]) -> Self {
        for text in texts {
            assert!(self.stderr.contains(text), "standard error lacks {text:?}:\n{}", self.stderr);
        }
        self
    }

    /// The same, if it failed with a message meant for people: exit code 1, one `error:`, no trace of a panic.
    #[track_caller]
    pub fn with_error<const N: usize>(self, texts: [&str; N]) -> Self {
        let ended = self.with_code(1).saying(texts);
        assert_eq!(ended.stderr.matches("error:").count(), 1, "{}", ended.stderr);
        assert!(ended.stderr.matches("(os error ").count() <= 1, "the cause is told twice:\n{}", ended.stderr);
        for word in ["panicked", "internal fault", "RUST_BACKTRACE", "unwrap"] {
            assert!(!ended.stderr.contains(word), "{}", ended.stderr);
        }
        ended
    }
}

/// Runs `gensis` to its end.
pub fn gensis<S: AsRef<OsStr>>(arguments: impl IntoIterator<Item = S>) -> Ended {
    ended(Command::new(env!("CARGO_BIN_EXE_gensis")).args(arguments))
}

/// Runs `gensis` where no file may grow beyond `blocks` of 512 bytes: a write that would fails, as on a full disk.
pub fn gensis_with_small_files<S: AsRef<OsStr>>(blocks: u64, arguments: impl IntoIterator<Item = S>) -> Ended {
    // An ignored signal stays ignored in the program that takes the shell's place.
    let script = format!("trap '' XFSZ; ulimit -f {blocks}; exec \"$0\" \"$@\"");
    ended(Command::new("sh").arg("-c").arg(script).arg(env!("CARGO_BIN_EXE_gensis")).args(arguments))
}

fn ended(command: &mut Command) -> Ended {
    let output = command.env_remove("RUST_BACKTRACE").stdin(Stdio::null()).output().unwrap();
    Ended {
        code: output.status.code(),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

/// How a command that was to be killed ended.
pub enum Stopped {
    /// By the kill.
    Killed,
    /// By itself, before it came to that.
    Ended(Option<i32>),
}

/// Runs `gensis` and kills it (signal 9) as soon as `now` holds of its standard error so far.
pub fn kill_when<S: AsRef<OsStr>>(
    arguments: impl IntoIterator<Item = S>,
    mut now: impl FnMut(&str) -> bool,
) -> Stopped {
    let said = tempfile::NamedTempFile::new().unwrap();
    let mut child: Child = Command::new(env!("CARGO_BIN_EXE_gensis"))
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(said.reopen().unwrap())
        .spawn()
        .unwrap();
    let begun = Instant::now();
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return Stopped::Ended(status.code());
        }
        if now(&std::fs::read_to_string(said.path()).unwrap()) {
            child.kill().unwrap();
            let status = child.wait().unwrap();
            return if status.success() { Stopped::Ended(Some(0)) } else { Stopped::Killed };
        }
        assert!(begun.elapsed() < Duration::from_secs(120), "it neither ended nor came to the moment of the kill");
        thread::sleep(Duration::from_millis(1));
    }
}

/// Whether `folder` holds a file that is visible and, where `suffix` is not empty, ends with it.
pub fn holds_file(folder: &Path, suffix: &str) -> bool {
    folder.read_dir().is_ok_and(|entries| {
        entries
            .flatten()
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .any(|name| !name.starts_with('.') && name.ends_with(suffix))
    })
}
