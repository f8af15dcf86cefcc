//! Exit codes: the first thing that an orchestrator, a script or a person on call looks at.

use std::process::ExitCode;

/// How the server, the probe and the load generator end. The remaining codes come from elsewhere:
/// clap exits with 2, a panic that is not caught with 101 (see [`crate::log`]), and a second signal
/// with 128 plus its number (see [`crate::service::termination`]).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Everything that was received was answered, the echo came back, or the run succeeded.
    Success = 0,
    /// The program could not start or continue, or the probe or the run failed.
    Failed = 1,
    /// A signal cut the load generator's run short. It has printed the result up to then.
    Interrupted = 3,
    /// The drain ended with unfinished requests, with replies owed to connected peers, or with
    /// discarded requests.
    Deadline = 4,
    /// The service has panicked and cannot be created again, so the process ends like one whose
    /// panic was not caught.
    Panicked = PANIC,
}

impl Exit {
    /// The code as the operating system sees it.
    pub const fn code(self) -> u8 {
        self as u8
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        ExitCode::from(exit.code())
    }
}

/// A panic in any thread.
pub const PANIC: u8 = 101;

/// The server's exit codes with their meaning, for `--help` and docs/.
pub const SERVER: [(&str, &str); 6] = [
    ("0", "every request of a client that stayed connected was answered"),
    ("1", "could not start or serve"),
    ("2", "usage: a flag or environment variable is wrong"),
    (
        "4",
        "the drain ended with unfinished requests, replies owed to connected clients, or discarded \
         requests",
    ),
    ("101", "panic"),
    ("128+N", "a second signal N (130 SIGINT, 143 SIGTERM) cut the drain short"),
];

/// The probe's exit codes with their meaning, for `--help` and docs/.
pub const PROBE: [(&str, &str); 3] = [
    ("0", "the echo came back, verified, within the limit"),
    ("1", "it did not; one line on stderr says which step failed and after how long"),
    ("2", "usage: a flag or environment variable is wrong"),
];

/// The load generator's exit codes with their meaning, for `--help` and docs/.
pub const LOAD: [(&str, &str); 6] = [
    ("0", "every request was answered, or at most --max-failures failed"),
    ("1", "more requests failed, or the run could not start; one line on stderr says why"),
    ("2", "usage: a flag or environment variable is wrong"),
    ("3", "a signal cut the run short; until then at most --max-failures had failed"),
    ("101", "panic"),
    ("128+N", "a second signal N (130 SIGINT, 143 SIGTERM) ended it without a result"),
];

/// A table of codes as the last section of a `--help` text.
pub fn help(codes: &[(&str, &str)]) -> String {
    let mut text = String::from("Exit codes:");
    for (code, meaning) in codes {
        text.push_str(&format!("\n  {code:<6} {meaning}"));
    }
    text
}
