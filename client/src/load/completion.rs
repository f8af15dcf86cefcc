//! How one request can end.

use std::sync::Arc;

use zmtp::endpoint::ConnectEndpoint;

/// How one request ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Completion {
    /// A reply came that is right, from this endpoint.
    Answered(Arc<ConnectEndpoint>),
    /// It failed, for a reason of a closed set.
    Failed(&'static str),
}

/// With `--expect echo`, a reply that is not its request's payload.
pub const ALTERED: &str = "altered";

/// With `--expect contains:TEXT`, a reply without that text.
pub const UNEXPECTED: &str = "unexpected";

/// A request that was due and never sent.
pub const UNSENT: &str = "unsent";

/// Why a request can fail, for docs/load-generator.md. The client's other kinds do not occur: its
/// bounds are those of the load.
pub const FAILURES: [(&str, &str); 9] = [
    (ALTERED, "the reply is not the payload that was sent"),
    ("disconnected", "the connection broke on the last attempt"),
    ("no_endpoint", "no endpoint could be reached before the deadline of all attempts"),
    ("not_sent", "connections broke before it was written, until the deadline of all attempts"),
    ("rejected", "the server answered with an error"),
    ("reply_memory", "its reply is larger than replies may be in all"),
    ("timed_out", "the last attempt had no reply in time"),
    (UNEXPECTED, "the reply does not contain the text of --expect"),
    (UNSENT, "it was due and could not be sent, as the replies of others did not come"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_failures_that_are_the_clients_are_called_as_it_calls_them() {
        let own = FAILURES.iter().map(|(kind, _)| kind);
        let others = own.filter(|kind| ![ALTERED, UNEXPECTED, UNSENT].contains(*kind));
        for kind in others {
            assert!(crate::RequestError::KINDS.contains(kind), "{kind}");
        }
    }
}
