//! The program: parse, dispatch, print an error once, exit 0 (done), 1 (failed), 2 (usage) or 3 (done, with failures).

use std::process::ExitCode;

use clap::Parser;
use gensis::cli::Cli;
use gensis::commands;

fn main() -> ExitCode {
    // A driver library may panic in its own threads; its text must not bury our one line.
    std::panic::set_hook(Box::new(|info| {
        if std::env::var_os("RUST_BACKTRACE").is_some() {
            eprintln!("{info}");
        }
    }));
    let cli = Cli::parse();
    match std::panic::catch_unwind(|| commands::dispatch(cli)) {
        Ok(Ok(outcome)) => ExitCode::from(outcome.exit_code()),
        Ok(Err(error)) => {
            eprintln!("error: {}", explained(&error));
            ExitCode::from(1)
        }
        Err(panic) => {
            let text = panic
                .downcast_ref::<String>()
                .map(String::as_str)
                .or_else(|| panic.downcast_ref::<&str>().copied())
                .unwrap_or("unknown cause");
            eprintln!("error: internal fault: {text}. Please report it with RUST_BACKTRACE=1 output");
            ExitCode::from(1)
        }
    }
}

/// The error with its causes, each said once: many errors hold the text of their cause already.
fn explained(error: &anyhow::Error) -> String {
    error.chain().map(ToString::to_string).fold(String::new(), |text, cause| match text.as_str() {
        "" => cause,
        _ if text.contains(&cause) => text,
        _ => format!("{text}: {cause}"),
    })
}
