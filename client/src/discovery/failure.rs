//! Why a source failed, with text and advice for a user.

use tokio::sync::watch;
use zmtp::printable;

/// The last failure of a source, or `None` if it has answered since.
pub type Failures = watch::Receiver<Option<SourceFailure>>;

/// Why a source failed. `Display` writes one printable line.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text}")]
pub struct SourceFailure {
    kind: FailureKind,
    text: String,
}

impl SourceFailure {
    /// The longest text that is kept, in characters.
    const LONGEST: usize = 500;

    /// Creates a failure. The source's text is truncated and made printable.
    pub fn new(kind: FailureKind, text: &str) -> Self {
        let end = text.char_indices().nth(Self::LONGEST).map(|(end, _)| end);
        let cut = printable(&text[..end.unwrap_or(text.len())]);
        Self { kind, text: format!("{cut}{}", if end.is_some() { "…" } else { "" }) }
    }

    /// The kind of failure.
    pub fn kind(&self) -> FailureKind {
        self.kind
    }

    /// The source's text, in one printable line.
    pub fn text(&self) -> &str {
        &self.text
    }
}

/// The kinds of failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FailureKind {
    /// The source refused to answer: credentials or permissions are missing.
    Denied,
    /// The source cannot be reached, or did not answer in time.
    Unreachable,
    /// The source answered that it knows no endpoint by this name.
    NotFound,
    /// The source knows the Service, but not this port.
    NoSuchPort,
    /// The source answered with an error or with something that cannot be parsed.
    Failed,
}

impl FailureKind {
    /// What to check, as a question to the user.
    pub const fn advice(self) -> &'static str {
        match self {
            Self::Denied => "may this account list and watch EndpointSlices there?",
            Self::Unreachable => "is it running, and does a network policy let this host reach it?",
            Self::NotFound => "does the Service exist, and is one of its pods ready?",
            Self::NoSuchPort => "which of these ports do you want?",
            Self::Failed => "what does the source's own log say?",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_of_a_source_is_truncated_and_made_printable() {
        let failure = |text: &str| SourceFailure::new(FailureKind::Failed, text).to_string();
        assert_eq!(failure("é\n\u{202e}no"), r"é\n\u{202e}no");
        assert_eq!(failure(&"é".repeat(500)), "é".repeat(500));
        assert_eq!(failure(&"é".repeat(501)), "é".repeat(500) + "…");
        assert!(failure(&"\u{202e}".repeat(100_000)).len() < 5000);
    }
}
