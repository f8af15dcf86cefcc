//! The load generator, `zmq-echo-load`: what siege is for HTTP.
//!
//! In an open loop requests are due at times that nothing moves, and latency counts
//! from there. A generator that waits for replies before it goes on asks nothing
//! while the service stalls, and shows one slow request where there were thousands.
//!
//! Everything runs on one thread: [`run()`] has as many workers as requests may be
//! outstanding, which take their turns in one future. They share what they count
//! without a lock, and a request costs no task of its own.

mod completion;
pub mod config;
mod error;
pub mod payload;
pub mod progress;
pub mod recorder;
pub mod report;
pub mod result;
mod run;
pub mod schedule;

use std::io;

use zmq_echo::service::termination::TerminationSocket;

pub use completion::{Completion, FAILURES};
use config::{LoadConfig, Output};
pub use error::LoadError;
use progress::Progress;
use report::Destination;
use result::LoadResult;

/// Makes the load that `config` says and finds out how it is answered. `command` is
/// for the result; a byte in `termination` ends the run, and the result is that of
/// what was done until then.
///
/// # Errors
///
/// [`LoadError`] where no request was made.
pub fn run(
    config: &LoadConfig,
    command: String,
    termination: TerminationSocket,
    progress: &Progress,
) -> Result<LoadResult, LoadError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let result = runtime.block_on(run::run(config, command, termination, progress));
    progress.finish();
    result
}

/// Prints the result, and writes the page if one is asked for.
///
/// # Errors
///
/// [`LoadError::Report`] if the page cannot be written. The result is printed all the same,
/// whether or not anybody reads it.
pub fn publish(
    result: &LoadResult,
    output: Output,
    report: Option<Destination>,
    mut stdout: impl io::Write,
) -> Result<(), LoadError> {
    let _ = match output {
        Output::Table => write!(stdout, "{result}"),
        Output::Json => writeln!(stdout, "{}", result.json()),
    };
    let _ = stdout.flush();
    report.map_or(Ok(()), |report| report.write(result))
}

/// A command line as a shell takes it.
pub fn command_line(args: impl IntoIterator<Item = std::ffi::OsString>) -> String {
    let words: Vec<String> = args.into_iter().map(|word| quoted(&word.to_string_lossy())).collect();
    words.join(" ")
}

fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=,@%+".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_line_can_be_given_to_a_shell_again() {
        let words = ["load", "tcp://[::1]:5555", "--report", "it's a.html", "$(x)", ""];
        let line = command_line(words.map(Into::into));
        let shell = std::process::Command::new("sh")
            .args(["-c", &format!("printf '%s\\n' {line}")])
            .output()
            .unwrap();
        assert_eq!(String::from_utf8(shell.stdout).unwrap(), words.join("\n") + "\n");
    }
}
