//! The load generator, `zmq-echo-load`: for ZeroMQ services what wrk and siege are for HTTP.
//!
//! In an open loop, requests are sent on a fixed schedule, and latency is measured from the
//! scheduled time. A generator that waits for replies sends nothing while the service stalls. It
//! then reports one slow request where users would have seen thousands.
//!
//! Everything runs on one thread. [`run()`] has one worker for each request that may be in flight,
//! all in one future. So they share their counters without a lock, and a request needs no task of
//! its own.
//!
//! The modules, in reading order:
//!
//! 1. [`config`]: the flags.
//! 2. [`run()`]: clients, workers and the pacer.
//! 3. [`schedule`]: when each request of an open loop is due.
//! 4. [`payload`]: what is sent, and which replies are correct.
//! 5. [`Completion`]: the ways in which a request can end.
//! 6. [`recorder`]: counts what happened.
//! 7. [`progress`]: how the run is going, on stderr.
//! 8. [`result`]: the result as a table and as JSON.
//! 9. [`report`]: the result as an HTML page.
//! 10. [`LoadError`]: why a run has no result.

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

/// Puts the service under load as `config` says, and measures its latency and failures.
///
/// `command` is shown in the result. A byte in `termination` ends the run early; the result then
/// covers the requests made so far.
///
/// # Errors
///
/// [`LoadError`] if no request was made.
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

/// Prints the result, and writes the report if one was requested.
///
/// # Errors
///
/// [`LoadError::Report`] if the report cannot be written. The result has been printed by then.
/// Errors while printing are ignored.
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

/// A command line, quoted for a shell.
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
    fn a_command_line_is_quoted_for_a_shell() {
        let words = ["load", "tcp://[::1]:5555", "--report", "it's a.html", "$(x)", ""];
        let line = command_line(words.map(Into::into));
        let shell = std::process::Command::new("sh")
            .args(["-c", &format!("printf '%s\\n' {line}")])
            .output()
            .unwrap();
        assert_eq!(String::from_utf8(shell.stdout).unwrap(), words.join("\n") + "\n");
    }
}
