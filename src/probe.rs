//! One real echo through the public endpoint, within a limit.

use std::fmt;
use std::future::Future;
use std::io;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::{Instant, sleep_until, timeout_at};
use uuid::Uuid;
use zeromq::util::PeerIdentity;
use zeromq::{ReqSocket, Socket, SocketOptions, SocketRecv, SocketSend, ZmqError, ZmqMessage};
use zmtp::endpoint::ConnectEndpoint;

use crate::metrics::PROBE_IDENTITY;
use crate::units::milliseconds;

/// The part of the limit after which a probe that is not connected asks the
/// kernel whether anybody listens: 1/5.
const DIAGNOSE_AFTER: u32 = 5;

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

/// A probe that failed: where, at which step, why and after how long.
#[derive(Debug, thiserror::Error)]
#[error("{endpoint}: {step} failed after {}: {reason}", milliseconds(*after))]
pub struct ProbeError {
    /// What was probed.
    pub endpoint: ConnectEndpoint,
    /// The step that failed.
    pub step: Step,
    /// Why, in a few words.
    pub reason: String,
    /// From the start to the failure.
    pub after: Duration,
}

/// A failed step, before it is known when and where.
struct Failure(Step, String);

impl Failure {
    fn of(self, endpoint: &ConnectEndpoint, after: Duration) -> ProbeError {
        let Self(step, reason) = self;
        ProbeError { endpoint: endpoint.clone(), step, reason, after }
    }
}

/// Connects to `endpoint`, sends a payload that no other probe sends and requires
/// exactly that payload back. Returns how long it took, connecting included.
///
/// # Errors
///
/// [`ProbeError`] where that did not happen within `limit`. One fault of a peer is
/// beyond it: the crate aborts the process where a frame of 2^47 bytes is
/// announced to it.
pub async fn check(endpoint: &ConnectEndpoint, limit: Duration) -> Result<Duration, ProbeError> {
    let started = Instant::now();
    match echo(endpoint, started, limit, &Mutex::new(Step::Handshake)).await {
        Ok(()) => Ok(started.elapsed()),
        Err(failure) => Err(failure.of(endpoint, started.elapsed())),
    }
}

/// `reached` tells from outside which step it has come to.
async fn echo(
    endpoint: &ConnectEndpoint,
    started: Instant,
    limit: Duration,
    reached: &Mutex<Step>,
) -> Result<(), Failure> {
    let deadline = started + limit;
    let mut options = SocketOptions::default();
    let identity = format!("{PROBE_IDENTITY}{}", Uuid::new_v4().simple());
    options.peer_identity(identity.parse::<PeerIdentity>().expect("shorter than 256 bytes"));
    options.no_connect_timeout();
    let mut socket = ReqSocket::with_options(options);

    let address = endpoint.to_string();
    tokio::select! {
        connected = socket.connect(&address) => connected.map_err(|error| Failure(refuser(&error), error.to_string()))?,
        failure = diagnose(endpoint, started + limit / DIAGNOSE_AFTER, deadline) => return Err(failure),
    }

    let payload = format!("{PROBE_IDENTITY}{}", Uuid::new_v4().simple());
    let enter = |step| *reached.lock().unwrap_or_else(PoisonError::into_inner) = step;
    enter(Step::Send);
    let sending = socket.send(payload.clone().into());
    within(deadline, Step::Send, "the peer does not read", sending).await?;
    enter(Step::Receive);
    let reply = within(deadline, Step::Receive, "no reply", socket.recv()).await?;
    verify(&reply, payload.as_bytes())
}

/// The crate connects and shakes hands in one call, and tries a refused
/// connection again and again. So a probe that is not through soon looks for
/// itself: it fails at once where nobody listens, and knows at the deadline
/// whether it was the connection or the handshake that did not come.
async fn diagnose(endpoint: &ConnectEndpoint, from: Instant, deadline: Instant) -> Failure {
    sleep_until(from).await;
    match timeout_at(deadline, TcpStream::connect(endpoint.host_and_port())).await {
        Ok(Ok(connection)) => {
            drop(connection);
            sleep_until(deadline).await;
            Failure(Step::Handshake, "no handshake".to_owned())
        }
        Ok(Err(error)) => Failure(Step::Connect, error.to_string()),
        Err(_) => Failure(Step::Connect, "no connection".to_owned()),
    }
}

/// Which half of the crate's `connect` an error comes from.
fn refuser(error: &ZmqError) -> Step {
    match error {
        ZmqError::Network(_) | ZmqError::Endpoint(_) => Step::Connect,
        _ => Step::Handshake,
    }
}

async fn within<T>(
    deadline: Instant,
    step: Step,
    too_late: &str,
    future: impl Future<Output = Result<T, ZmqError>>,
) -> Result<T, Failure> {
    match timeout_at(deadline, future).await {
        Ok(Ok(output)) => Ok(output),
        Ok(Err(ZmqError::NoMessage)) => {
            Err(Failure(step, "the peer closed the connection".to_owned()))
        }
        Ok(Err(error)) => Err(Failure(step, error.to_string())),
        Err(_) => Err(Failure(step, too_late.to_owned())),
    }
}

fn verify(reply: &ZmqMessage, payload: &[u8]) -> Result<(), Failure> {
    match (reply.len(), reply.get(0)) {
        (1, Some(frame)) if frame == payload => Ok(()),
        (1, Some(frame)) => {
            let reason =
                format!("another payload came back, {} bytes for {}", frame.len(), payload.len());
            Err(Failure(Step::Verify, reason))
        }
        (frames, _) => Err(Failure(Step::Verify, format!("{frames} frames came back for one"))),
    }
}

/// How often a probe process looks how large it has become.
const LOOK: Duration = Duration::from_millis(20);

/// How long past its limit the echo may take to say itself what has failed: a few
/// milliseconds, or more where the machine has too much to do.
const OVERTIME: Duration = Duration::from_millis(250);

/// The most memory that a probe process may hold, in KiB: ten times what it needs.
/// It runs in its server's container, whose memory is not its own; and what it
/// holds takes the kernel time to free, which the limit does not have.
const RESIDENT_LIMIT: u64 = 64 << 10;

/// Runs one probe in a process of its own: the body of `zmq-echo-probe`.
///
/// The echo has a thread for itself, so that the limit holds even where the crate
/// does not come up for breath: a peer that sends frames without end keeps it
/// decoding, and then freeing. That thread ends with the process.
///
/// # Errors
///
/// [`check`]'s, or what the kernel says where no thread can be had.
pub fn run(endpoint: &ConnectEndpoint, limit: Duration) -> Result<Duration, RunError> {
    let started = Instant::now();
    // What keeps the crate from breathing comes through a connection.
    let step = Arc::new(Mutex::new(Step::Handshake));
    let (done, outcome) = mpsc::sync_channel(1);
    let (target, reached) = (endpoint.clone(), Arc::clone(&step));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    thread::Builder::new().name("echo".to_owned()).spawn(move || {
        // Sent from within, for leaving takes time: the socket is dropped then.
        runtime.block_on(async { done.send(echo(&target, started, limit, &reached).await) })
    })?;
    let reason = loop {
        let left = (limit + OVERTIME).saturating_sub(started.elapsed());
        match outcome.recv_timeout(left.min(LOOK)) {
            Ok(Ok(())) => return Ok(started.elapsed()),
            Ok(Err(failure)) => return Err(failure.of(endpoint, started.elapsed()).into()),
            Err(RecvTimeoutError::Disconnected) => break "the zeromq crate panicked",
            Err(RecvTimeoutError::Timeout) if left.is_zero() || resident() > RESIDENT_LIMIT => {
                break "the peer sends without end";
            }
            Err(RecvTimeoutError::Timeout) => {}
        }
    };
    let step = *step.lock().unwrap_or_else(PoisonError::into_inner);
    Err(Failure(step, reason.to_owned()).of(endpoint, started.elapsed()).into())
}

/// What this process holds, in KiB, or 0 where the kernel does not say (proc(5)).
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|line| line.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}

/// Why a probe process failed.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The echo did not come back.
    #[error(transparent)]
    Probe(#[from] ProbeError),
    /// No runtime or no thread.
    #[error("cannot start")]
    Start(#[from] io::Error),
}
