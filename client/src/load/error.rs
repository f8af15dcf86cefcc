//! Why a run has no result.

use std::io;
use std::path::PathBuf;

use zmq_echo::exit::Exit;

use crate::discovery::DiscoveryError;

/// Why there is no result.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// No runtime, no timer, or no signals.
    #[error("cannot start")]
    Start(#[from] io::Error),
    /// The source of endpoints cannot even be asked.
    #[error("cannot discover endpoints")]
    Discovery(#[from] DiscoveryError),
    /// No request could have been answered.
    #[error("no endpoint answers at {found} after {after}: {reason}; {advice}")]
    NoEndpoint {
        /// The endpoints that were tried, or their source if it names none.
        found: String,
        /// For how long.
        after: humantime::FormattedDuration,
        /// What went wrong last.
        reason: String,
        /// What the user can do about it.
        advice: &'static str,
    },
    /// A signal came before the first request.
    #[error("ended by a signal before the first request")]
    Interrupted,
    /// The result has nowhere to go.
    #[error("{}: cannot write the report", path.display())]
    Report {
        /// Where it was to go.
        path: PathBuf,
        /// Why it did not.
        source: io::Error,
    },
}

impl LoadError {
    /// The exit code of a run that ends like this.
    pub fn exit(&self) -> Exit {
        match self {
            Self::Interrupted => Exit::Interrupted,
            _ => Exit::Failed,
        }
    }
}
