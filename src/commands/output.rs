//! What a command tells on standard output: a pipe whose reader has left (`gensis inspect slides | head`) wants no more,
//! and anything else that cannot be written is an error like any other.

use std::fmt::Arguments;
use std::io::{self, ErrorKind, Write};

use anyhow::{Context, Result};

/// Writes a text to standard output.
///
/// # Errors
/// A full disk, or whatever else stands behind standard output. A closed pipe is none.
pub(super) fn text(text: Arguments) -> Result<()> {
    write(&mut io::stdout().lock(), text).context("cannot write to standard output")
}

fn write(out: &mut impl Write, text: Arguments) -> io::Result<()> {
    match out.write_fmt(text).and_then(|()| out.flush()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        written => written,
    }
}

/// As [`text`], with the end of a line.
pub(super) fn line(line: Arguments) -> Result<()> {
    text(format_args!("{line}\n"))
}

/// As `print!`, with an error instead of a panic.
macro_rules! say {
    ($($text:tt)*) => { $crate::commands::output::text(format_args!($($text)*)) };
}
/// As `println!`, with an error instead of a panic.
macro_rules! say_line {
    ($($text:tt)*) => { $crate::commands::output::line(format_args!($($text)*)) };
}
pub(super) use {say, say_line};

#[cfg(test)]
mod tests {
    use super::*;

    struct Broken(ErrorKind);

    impl Write for Broken {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(self.0.into())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_reader_that_left_is_no_error_and_a_full_disk_is() {
        assert!(write(&mut Broken(ErrorKind::BrokenPipe), format_args!("x")).is_ok());
        let full = write(&mut Broken(ErrorKind::StorageFull), format_args!("x")).unwrap_err();
        assert_eq!(full.kind(), ErrorKind::StorageFull);
        let mut written = Vec::new();
        write(&mut written, format_args!("{}", 7)).unwrap();
        assert_eq!(written, b"7");
    }
}
