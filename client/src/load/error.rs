//! Why a run has no result.

use std::io;
use std::path::PathBuf;

use zmq_echo::exit::Exit;

use crate::discovery::DiscoveryError;

/// Why there is no result.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// No runtime, timer or signal handler could be set up.
    #[error("cannot start")]
    Start(#[from] io::Error),
    /// The source of endpoints could not be set up.
    #[error("cannot discover endpoints")]
    Discovery(#[from] DiscoveryError),
    /// No endpoint answered before the first request.
    #[error("no endpoint answers at {found} after {after}: {reason}; {advice}")]
    NoEndpoint {
        /// The endpoints that were tried, or the source if it listed none.
        found: String,
        /// How long the run waited.
        after: humantime::FormattedDuration,
        /// What went wrong.
        reason: String,
        /// What the user can check, as a question.
        advice: &'static str,
    },
    /// A signal came before the first request.
    #[error("ended by a signal before the first request")]
    Interrupted,
    /// The report cannot be written.
    #[error("{}: cannot write the report", path.display())]
    Report {
        /// The file of the report.
        path: PathBuf,
        /// Why it cannot be written.
        source: io::Error,
    },
}

impl LoadError {
    /// The exit code of a run that ends with this error.
    pub fn exit(&self) -> Exit {
        match self {
            Self::Interrupted => Exit::Interrupted,
            _ => Exit::Failed,
        }
    }
}
