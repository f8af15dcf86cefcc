//! One real echo through the public endpoint, within a time limit.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::{Instant, sleep, timeout_at};
use uuid::Uuid;
use zmtp::dealer::{ConnectError, DealerConfig};
use zmtp::endpoint::ConnectEndpoint;
use zmtp::proto::peer_info::SocketType;
use zmtp::{Dealer, Message, Reason};

use crate::log;
use crate::metrics::PROBE_IDENTITY;
use crate::service::Rejection;
use crate::service::rejection::CHECK;
use crate::units::milliseconds;

/// A refused connection is tried again during the first fifth of the limit.
const RETRIED: u32 = 5;

/// The pause before a refused connection is tried again.
const PAUSE: Duration = Duration::from_millis(20);

/// The largest reply that is accepted. The correct one has about fifty bytes.
const REPLY_BYTES: usize = 4 << 10;

/// What the probe was doing when it failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Resolving the name and making the TCP connection.
    Connect,
    /// Greeting and READY.
    Handshake,
    /// Handing the request to the kernel.
    Send,
    /// Waiting for the reply.
    Receive,
    /// Comparing the reply with the request.
    Verify,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Step::Connect => "connect",
            Step::Handshake => "handshake",
            Step::Send => "send",
            Step::Receive => "receive",
            Step::Verify => "verify",
        })
    }
}

/// A failed probe: the endpoint, the step that failed, the reason and the time until then.
#[derive(Debug, thiserror::Error)]
#[error("{endpoint}: {step} failed after {}: {reason}", milliseconds(*after))]
pub struct ProbeError {
    /// The endpoint that was probed.
    pub endpoint: ConnectEndpoint,
    /// The step that failed.
    pub step: Step,
    /// The reason, in a few words.
    pub reason: String,
    /// The time from the start to the failure.
    pub after: Duration,
}

/// A failed step and its reason, not yet with the endpoint and the time.
struct Failure(Step, String);

impl Failure {
    fn to_connect(error: ConnectError, limit: Duration) -> Self {
        let step = if error.is_of_handshake() { Step::Handshake } else { Step::Connect };
        let limit = humantime::format_duration(limit);
        // The error contains the time that was left. The whole limit is more useful to the reader.
        let reason = match error {
            ConnectError::ResolveTimeout(_) => format!("the name was not resolved within {limit}"),
            ConnectError::ConnectTimeout(_) => format!("no connection within {limit}"),
            ConnectError::HandshakeTimeout { .. } => {
                format!("connected, but no handshake within {limit}")
            }
            error @ ConnectError::Resolve(_) => {
                format!("{}; is the name in --endpoint right?", log::chain(&error))
            }
            error @ ConnectError::Connect { .. } => {
                format!("{}; is the server running?", log::chain(&error))
            }
            error => log::chain(&error),
        };
        Self(step, reason)
    }

    fn of(self, endpoint: &ConnectEndpoint, after: Duration) -> ProbeError {
        let Self(step, reason) = self;
        ProbeError { endpoint: endpoint.clone(), step, reason, after }
    }
}

/// Connects to `endpoint`, sends a unique payload and requires exactly that payload back. Returns
/// how long it took, connecting included.
///
/// # Errors
///
/// [`ProbeError`] if the payload did not come back within `limit`.
pub async fn check(endpoint: &ConnectEndpoint, limit: Duration) -> Result<Duration, ProbeError> {
    check_at(endpoint, &[], limit).await
}

/// Like [`check`], for an endpoint whose `addresses` are known (see [`Dealer::connect_at`]).
///
/// # Errors
///
/// As for [`check`].
pub async fn check_at(
    endpoint: &ConnectEndpoint,
    addresses: &[SocketAddr],
    limit: Duration,
) -> Result<Duration, ProbeError> {
    let started = Instant::now();
    match echo(endpoint, addresses, started, limit).await {
        Ok(()) => Ok(started.elapsed()),
        Err(failure) => Err(failure.of(endpoint, started.elapsed())),
    }
}

async fn echo(
    endpoint: &ConnectEndpoint,
    addresses: &[SocketAddr],
    started: Instant,
    limit: Duration,
) -> Result<(), Failure> {
    let unique = || Bytes::from(format!("{PROBE_IDENTITY}{}", Uuid::new_v4().simple()));
    let mut config = DealerConfig {
        socket_type: SocketType::Req,
        identity: unique(),
        connect_timeout: limit,
        // The probe ends before a heartbeat would be due.
        heartbeat_interval: Duration::ZERO,
        ..DealerConfig::default()
    };
    config.limits.message_bytes = REPLY_BYTES;
    let mut dealer = connect(endpoint, addresses, &config, started, limit).await?;
    // A REQ's request: an empty frame, then its payload (RFC 28). The server's loop answers this
    // one without asking the service.
    let request = Message::from([Bytes::new(), Bytes::from_static(CHECK), unique()]);
    dealer.send(request.clone()).expect("nothing is queued");
    match timeout_at(started + limit, dealer.recv()).await {
        Ok(Ok(reply)) => verify(&reply, &request),
        Ok(Err(reason)) => Err(Failure(Step::Receive, end_of(reason))),
        Err(_) if dealer.written() == 0 => {
            Err(Failure(Step::Send, "the server does not read".to_owned()))
        }
        Err(_) => Err(Failure(Step::Receive, "no reply".to_owned())),
    }
}

/// Connects. A refused connection or an unknown name is tried again during the first part of the
/// limit (see [`RETRIED`]), so that a Job that waits for its service needs no loop of its own.
async fn connect(
    endpoint: &ConnectEndpoint,
    addresses: &[SocketAddr],
    config: &DealerConfig,
    started: Instant,
    limit: Duration,
) -> Result<Dealer, Failure> {
    loop {
        let left = limit.saturating_sub(started.elapsed());
        let config = DealerConfig { connect_timeout: left, ..config.clone() };
        match Dealer::connect_at(endpoint, addresses, &config).await {
            Ok(dealer) => return Ok(dealer),
            Err(error) if !error.is_of_handshake() && started.elapsed() < limit / RETRIED => {
                sleep(PAUSE.min(limit / RETRIED)).await;
            }
            Err(error) => return Err(Failure::to_connect(error, limit)),
        }
    }
}

/// Says in words why a connection has ended.
fn end_of(reason: Reason) -> String {
    match reason {
        Reason::Closed => "the server closed the connection".to_owned(),
        Reason::Error => "the connection broke".to_owned(),
        Reason::MessageLimit | Reason::FrameLimit => {
            format!("the reply is larger than {REPLY_BYTES} bytes")
        }
        reason => format!("the server broke the protocol: {}", reason.as_str()),
    }
}

fn verify(reply: &Message, request: &Message) -> Result<(), Failure> {
    if reply == request {
        return Ok(());
    }
    let payload = reply.frames().iter().skip(1).map(|frame| &frame[..]);
    if let Some(rejection) = Rejection::of_payload(payload) {
        let reason = format!("the server answered with an error: {rejection}");
        return Err(Failure(Step::Verify, reason));
    }
    let reason = match (reply.frames().len(), request.frames().len()) {
        (frames, sent) if frames != sent => {
            format!("the reply has {frames} frames, the request had {sent}")
        }
        _ => {
            let (got, sent) = (reply.bytes(), request.bytes());
            format!("the reply is not the payload that was sent: {got} bytes instead of {sent}")
        }
    };
    Err(Failure(Step::Verify, reason))
}

/// Runs one probe on a runtime of its own. This is what `zmq-echo-probe` does.
///
/// # Errors
///
/// As for [`check`], or the kernel's error if the runtime cannot be created.
pub fn run(endpoint: &ConnectEndpoint, limit: Duration) -> Result<Duration, RunError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let outcome = runtime.block_on(check(endpoint, limit));
    // Dropping the runtime would wait for the thread of a resolver that hangs.
    runtime.shutdown_background();
    Ok(outcome?)
}

/// Why a probe process failed.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The echo did not come back in time, or it came back changed.
    #[error(transparent)]
    Probe(#[from] ProbeError),
    /// The runtime could not be created.
    #[error("cannot start")]
    Start(#[from] io::Error),
}
