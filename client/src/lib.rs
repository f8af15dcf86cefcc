//! A ZeroMQ client that knows all endpoints of a service: it follows them as they come and go,
//! spreads requests over them, and retries elsewhere if a reply does not come.
//!
//! A Kubernetes Service balances connections, and a ZeroMQ client keeps its connection forever.
//! Behind a Service it stays on one pod and gains nothing when you scale out. What it sends while
//! that pod closes the connection gets no reply, because ZeroMQ does not repeat requests. This client
//! does what a service mesh would do for HTTP.
//!
//! # A first client
//!
//! The dependencies, with the path to your checkout:
//!
//! ```toml
//! [dependencies]
//! prometheus = { version = "0.14", default-features = false }
//! tokio = { version = "1", features = ["macros", "rt"] }
//! zmq-echo-client = { path = "../zmq-echo/client" }
//! ```
//!
//! The program:
//!
//! ```
//! use zmq_echo_client::discovery::Source;
//! use zmq_echo_client::{Client, ClientConfig, ClientMetrics};
//!
//! async fn run() -> Result<(), Box<dyn std::error::Error>> {
//! #   use zeromq::{Socket, SocketRecv, SocketSend};
//! #   let mut router = zeromq::RouterSocket::new();
//! #   let source: Source = router.bind("tcp://127.0.0.1:0").await?.to_string().parse()?;
//! #   tokio::spawn(async move {
//! #       while let Ok(message) = router.recv().await {
//! #           let _ = router.send(message).await;
//! #       }
//! #   });
//! #   #[cfg(any())]
//!     let source: Source = "tcp://127.0.0.1:5551,tcp://127.0.0.1:5552".parse()?;
//!     let metrics = ClientMetrics::new(&prometheus::Registry::new())?;
//!     let client = Client::new(ClientConfig::default(), source.discovery().await?, metrics);
//!
//!     let reply = client.request("hello".into()).await?;
//!     println!("{} answered {:?}", reply.endpoint, reply.payload);
//! #   assert_eq!(reply.payload, "hello");
//!     client.close().await;
//!     Ok(())
//! }
//!
//! #[tokio::main(flavor = "current_thread")]
//! async fn main() {
//!     // `Display` says what to do: "…: connection refused; is the server running?"
//!     if let Err(error) = run().await {
//!         eprintln!("{error}");
//!         std::process::exit(1);
//!     }
//! }
//! ```
//!
//! A [`Client`] is a cheap handle: clone it into every task that sends requests. Keep one client
//! for the life of the process. [`Client::close`] waits for outstanding requests before it
//! disconnects.
//!
//! # Where the endpoints come from
//!
//! A [`Source`](discovery::Source) is parsed from a URL:
//!
//! - `tcp://127.0.0.1:5551,tcp://127.0.0.1:5552`: a fixed list.
//! - `dns://zmq-echo-headless:5555`: the addresses of a name, such as a headless Service.
//! - `dns://_zeromq._tcp.zmq-echo-headless`: SRV records, which include the port.
//! - `k8s://default/zmq-echo:zeromq`: the EndpointSlices of a Service. Prefer it in a cluster: it
//!   announces which pods are about to leave, so no request is sent to a pod that drains.
//!
//! If DNS or the API is unreachable, the last known endpoints stay in use. [`discovery`] has the
//! details, and shows how to write your own source.
//!
//! Each request goes to the less loaded of two endpoints drawn at random. An endpoint on which a
//! request timed out is *suspect*: it gets no new requests until it has answered a check.
//! [`Client::endpoints`] shows the [state](State) of each endpoint and what went wrong there last.
//! [`Client::unusable`] explains why none is usable, and what to check.
//!
//! # Retries: a request may run twice
//!
//! If an attempt times out or its connection breaks, the client repeats the request on another
//! endpoint, twice by default. The first attempt may have run even though its reply was lost.
//! So **the service may run the same request more than once**.
//!
//! Echoes and reads are safe to repeat. If your handler has side effects, choose one:
//!
//! - Send an idempotency key in the payload. All attempts of a request have the same payload, so
//!   the handler can recognise work that it has done and repeat its answer.
//! - Set [`retries`](ClientConfig::retries) to 0 and decide after each error yourself.
//!   [`RequestError::may_have_been_seen`] tells whether a server may have seen the request:
//!
//! ```
//! use bytes::Bytes;
//! use zmq_echo_client::{Client, Reply, RequestError};
//!
//! /// Sends an order, and repeats it only if no server can have seen it.
//! async fn order(client: &Client, payload: Bytes) -> Result<Reply, RequestError> {
//!     match client.request(payload.clone()).await {
//!         Err(error) if !error.may_have_been_seen() => client.request(payload).await,
//!         outcome => outcome,
//!     }
//! }
//! ```
//!
//! Requests that were not sent, because a connection broke first, are always repeated. That is
//! safe, and does not count as a retry.
//!
//! # Rejections are typed errors
//!
//! If the service cannot do the work, it answers with a
//! [`Rejection`](zmq_echo::service::Rejection): a code for programs, a text for people, and
//! whether a retry makes sense. The client repeats a retryable rejection elsewhere. Others, and
//! the last one, are returned as [`RequestError::Rejected`]:
//!
//! ```
//! # use zmq_echo::service::Rejection;
//! # use zmq_echo_client::discovery::Source;
//! # use zmq_echo_client::{Client, ClientConfig, ClientMetrics};
//! use zmq_echo_client::RequestError;
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # use zeromq::{Socket, SocketRecv, SocketSend};
//! # let mut router = zeromq::RouterSocket::new();
//! # let source: Source = router.bind("tcp://127.0.0.1:0").await?.to_string().parse()?;
//! # tokio::spawn(async move {
//! #     while let Ok(message) = router.recv().await {
//! #         let mut frames = message.into_vecdeque();
//! #         frames.pop_back();
//! #         frames.extend(Rejection::new("sold_out", "none left").frames());
//! #         let _ = router.send(frames.try_into().unwrap()).await;
//! #     }
//! # });
//! # let metrics = ClientMetrics::new(&prometheus::Registry::new())?;
//! # let client = Client::new(ClientConfig::default(), source.discovery().await?, metrics);
//!
//! match client.request("order 42".into()).await {
//!     Ok(reply) => println!("ordered: {:?}", reply.payload),
//!     Err(RequestError::Rejected { rejection, .. }) if rejection.code == "sold_out" => {
//!         println!("try another product: {}", rejection.text);
//! #       return Ok(());
//!     }
//!     Err(error) => return Err(error.into()),
//! }
//! # panic!("the request was not rejected");
//! # }
//! ```
//!
//! # Metrics
//!
//! [`ClientMetrics`] registers the client's series in your Prometheus registry; its documentation
//! lists them. Clients that share one `ClientMetrics` are counted together:
//!
//! ```
//! use prometheus::{Encoder, Registry, TextEncoder};
//! use zmq_echo_client::ClientMetrics;
//!
//! let registry = Registry::new();
//! let metrics = ClientMetrics::new(&registry)?;
//! // Pass `metrics.clone()` to each client, and serve this text at /metrics:
//! let mut text = Vec::new();
//! TextEncoder::new().encode(&registry.gather(), &mut text)?;
//! assert!(String::from_utf8(text)?.contains("\nzmq_echo_client_retries_total 0\n"));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! The client logs to the program's `tracing` subscriber.
//!
//! # Limits and trust
//!
//! Everything has a limit: outstanding and waiting requests, endpoints, attempts and times, and
//! the memory that servers can make the client hold. [`ClientConfig`] lists them with their
//! defaults. At [`max_outstanding`](ClientConfig::max_outstanding), a request
//! [waits or fails](WhenFull).
//!
//! There is neither authentication nor encryption (the handshake is NULL). Use a network that you
//! trust with your data, or a mesh that encrypts.
//!
//! # On the wire
//!
//! Any ROUTER service that returns its client's envelope works. An attempt has three frames: an id
//! of eight bytes, an empty delimiter, and the payload. A reply repeats the id and the delimiter,
//! followed by one payload frame or the frames of an [error](zmq_echo::service::rejection).
//!
//! A payload is one frame, in both directions. A reply with several frames, or with none, is the
//! final error [`RequestError::NotOneFrame`]. If a service sends several replies to one request, the
//! caller gets the first, and the others count as late.
//!
//! # Inside
//!
//! A pool follows the source and runs one task for each endpoint. The task owns the
//! [`Dealer`](zmtp::Dealer) and reconnects it. The caller's own future drives its request: it
//! picks an endpoint, hands over an attempt and waits for the outcome. The modules, in reading
//! order:
//!
//! 1. `config`, `reply`, `error`, `trouble`: what a caller sets, gets back, and is told.
//! 2. [`discovery`]: which endpoints exist.
//! 3. `request`: one request with its attempts; `slots` limits their number, `spread` picks the
//!    endpoint, and `backoff` and `time` say when to try again.
//! 4. `pool`: opens and drains connections as endpoints appear and disappear.
//! 5. `member`: one endpoint as callers see it; `shared`: what callers and connections share.
//! 6. `connection`: the task of one endpoint; `pending` matches replies to its attempts.
//! 7. `metrics`: the client's series.
//! 8. [`load`]: the load generator `zmq-echo-load`, which is built on this client.
#![deny(missing_docs)]

mod backoff;
mod config;
mod connection;
pub mod discovery;
mod error;
pub mod load;
mod member;
mod metrics;
mod pending;
mod pool;
mod reply;
mod request;
mod shared;
mod slots;
mod spread;
mod time;
mod trouble;

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::watch;
use tokio::task::AbortHandle;

pub use backoff::Backoff;
pub use config::{ClientConfig, WhenFull};
pub use error::RequestError;
pub use member::{EndpointStatus, State};
pub use metrics::ClientMetrics;
pub use reply::Reply;
pub use trouble::{Trouble, Unusable};

use discovery::{Discovery, Endpoints};
use shared::{Phase, Shared};

/// A handle to the client. Cloning is cheap.
///
/// Dropping the last handle ends the client's tasks at once, with all outstanding requests. To
/// wait for these, call [`Client::close`].
#[derive(Debug, Clone)]
pub struct Client(Arc<Handle>);

#[derive(Debug)]
struct Handle {
    shared: Arc<Shared>,
    pool: AbortHandle,
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.pool.abort();
    }
}

impl Client {
    /// Creates a client that follows `discovery` and connects to its endpoints, in tasks on the
    /// current tokio runtime. It does not wait for a connection; see [`Client::ready`].
    ///
    /// # Panics
    ///
    /// If it is called outside a tokio runtime.
    pub fn new(
        config: ClientConfig,
        discovery: Box<dyn Discovery>,
        metrics: ClientMetrics,
    ) -> Self {
        let shared = Arc::new(Shared::new(config, metrics, discovery.failures()));
        let pool = tokio::spawn(pool::run(Arc::clone(&shared), discovery)).abort_handle();
        Self(Arc::new(Handle { shared, pool }))
    }

    /// Sends one request and waits for its reply, with as many attempts as the configuration
    /// allows. The service may run the request more than once; see
    /// [Retries](crate#retries-a-request-may-run-twice).
    ///
    /// Cancel-safe: if the future is dropped, the request keeps its slot only until the current
    /// attempt is answered or times out.
    ///
    /// # Errors
    ///
    /// [`RequestError`] if no attempt succeeded within the deadline, or if the service rejected
    /// the request.
    pub async fn request(&self, payload: Bytes) -> Result<Reply, RequestError> {
        request::run(&self.0.shared, payload).await
    }

    /// Waits until an endpoint is usable.
    pub async fn ready(&self) {
        self.0.shared.roster.wait_until_usable().await;
    }

    /// Why no endpoint gets requests, or `None` if one does. Show it to the user while
    /// [`Client::ready`] waits.
    pub fn unusable(&self) -> Option<Unusable> {
        self.0.shared.unusable()
    }

    /// A snapshot of every known endpoint, sorted by address.
    pub fn endpoints(&self) -> Vec<EndpointStatus> {
        self.0.shared.roster.statuses()
    }

    /// Watches the endpoints that get requests or are being drained, with their addresses.
    /// Endpoints that cannot be reached are not included.
    pub fn changes(&self) -> watch::Receiver<Endpoints> {
        self.0.shared.roster.changes()
    }

    /// Stops accepting requests, waits until outstanding ones are answered or time out, and
    /// disconnects. New requests on other handles fail with [`RequestError::Closed`].
    pub async fn close(self) {
        let phase = &self.0.shared.phase;
        phase.send_if_modified(|phase| {
            let open = *phase == Phase::Open;
            if open {
                *phase = Phase::Closing;
            }
            open
        });
        // This cannot fail: the client owns the sender.
        let _ = phase.subscribe().wait_for(|phase| *phase == Phase::Closed).await;
    }
}

/// Compiles the README's program. It cannot run here because it needs servers on fixed ports; the
/// same program runs in the crate's documentation.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
pub struct Readme;
