//! The ways in which a request can end.

use std::sync::Arc;

use zmtp::endpoint::ConnectEndpoint;

/// How one request ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Completion {
    /// This endpoint sent a correct reply.
    Answered(Arc<ConnectEndpoint>),
    /// It failed, with a reason from a closed set.
    Failed(&'static str),
}

/// With `--expect echo`, a reply that differs from the request's payload.
pub const ALTERED: &str = "altered";

/// With `--expect contains:TEXT`, a reply without that text.
pub const UNEXPECTED: &str = "unexpected";

/// A request that was due and never sent.
pub const UNSENT: &str = "unsent";

/// Why a request can fail, for the documentation. The client's other kinds do not occur here,
/// because its limits follow from the load.
pub const FAILURES: [(&str, &str); 10] = [
    (ALTERED, "the reply is not the payload that was sent"),
    ("disconnected", "the connection broke on the last attempt"),
    ("no_endpoint", "no endpoint could be reached before the deadline"),
    ("not_one_frame", "the reply has several frames, or none, so it cannot be checked"),
    ("not_sent", "every connection broke before the request was written"),
    ("rejected", "the server answered with an error"),
    ("reply_memory", "the reply did not fit in --max-replies or --max-connection-replies"),
    ("timed_out", "the last attempt had no reply in time"),
    (UNEXPECTED, "the reply does not contain the text of --expect"),
    (UNSENT, "never sent: all --in-flight slots were waiting for replies"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_have_the_same_names_as_in_the_client() {
        let own = FAILURES.iter().map(|(kind, _)| kind);
        let others = own.filter(|kind| ![ALTERED, UNEXPECTED, UNSENT].contains(*kind));
        for kind in others {
            assert!(crate::RequestError::KINDS.contains(kind), "{kind}");
        }
    }
}
