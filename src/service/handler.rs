//! The work that the service does: replace [`handle`] with your own.

use zeromq::ZmqMessage;

/// A request that cannot be answered, and why.
///
/// It is counted (`zmq_echo_rejected_total`) and the loop goes on: nothing that
/// a client sends may end the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("request rejected: {0}")]
pub struct Rejected(pub &'static str);

/// Answers one request.
///
/// `request` is the whole envelope: frame 0 is the identity of the peer that
/// sent it, then every frame as it came (a REQ client puts an empty delimiter
/// first, REQ_CORRELATE a request id before that). The reply must start with
/// the same identity, which routes it back, and must return whatever the client
/// put before its payload. An echo keeps all of it.
///
/// Runs on the poll loop's thread: what it waits for, every peer waits for.
///
/// # Errors
///
/// [`Rejected`] where the request makes no sense. The peer gets no reply.
pub fn handle(request: ZmqMessage) -> Result<ZmqMessage, Rejected> {
    Ok(request)
}
