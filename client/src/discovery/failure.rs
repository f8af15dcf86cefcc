//! Why a source could not be asked, for whoever has to tell a user.

use tokio::sync::watch;

/// The last failure of a source, until it answers again.
pub type Failures = watch::Receiver<Option<SourceFailure>>;

/// Why a source could not be asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text}")]
pub struct SourceFailure {
    /// What kind of failure it is.
    pub kind: FailureKind,
    /// What the source says, in one printable line.
    pub text: String,
}

/// What kinds of failure there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FailureKind {
    /// The source refuses to answer: credentials or rights are missing.
    Denied,
    /// The source cannot be reached, or does not answer in time.
    Unreachable,
    /// The source answers that it does not know any endpoint by this name.
    NotFound,
    /// The source knows the Service, but no port of this name.
    NoSuchPort,
    /// The source answers, but with an error or with something that is not understood.
    Failed,
}

impl FailureKind {
    /// What a user can do about it, as a question.
    pub const fn advice(self) -> &'static str {
        match self {
            Self::Denied => "may this account list and watch EndpointSlices there?",
            Self::Unreachable => "is it running, and does a network policy let this host reach it?",
            Self::NotFound => "does the Service exist, and is one of its pods ready?",
            Self::NoSuchPort => "which of these ports is it?",
            Self::Failed => "what does the source's own log say?",
        }
    }
}
