//! Why a source could not be asked, for whoever has to tell a user.

use tokio::sync::watch;
use zmtp::printable;

/// The last failure of a source, until it answers again.
pub type Failures = watch::Receiver<Option<SourceFailure>>;

/// Why a source could not be asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text}")]
pub struct SourceFailure {
    kind: FailureKind,
    text: String,
}

impl SourceFailure {
    /// The most characters of a text that are kept.
    const LONGEST: usize = 500;

    /// A failure of this kind. What the source says of it is cut and made printable.
    pub fn new(kind: FailureKind, text: &str) -> Self {
        let end = text.char_indices().nth(Self::LONGEST).map(|(end, _)| end);
        let cut = printable(&text[..end.unwrap_or(text.len())]);
        Self { kind, text: format!("{cut}{}", if end.is_some() { "…" } else { "" }) }
    }

    /// What kind of failure it is.
    pub fn kind(&self) -> FailureKind {
        self.kind
    }

    /// What the source says, in one printable line.
    pub fn text(&self) -> &str {
        &self.text
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_source_says_is_cut_and_made_printable() {
        let failure = |text: &str| SourceFailure::new(FailureKind::Failed, text).to_string();
        assert_eq!(failure("é\n\u{202e}no"), r"é\n\u{202e}no");
        assert_eq!(failure(&"é".repeat(500)), "é".repeat(500));
        assert_eq!(failure(&"é".repeat(501)), "é".repeat(500) + "…");
        assert!(failure(&"\u{202e}".repeat(100_000)).len() < 5000);
    }
}
