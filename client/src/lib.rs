//! A client that knows the endpoints: it connects to every one, follows them as
//! they come and go, spreads its requests over them and retries.
//!
//! A Service balances connections and ZeroMQ keeps its connections: behind one, a
//! client stays on one pod, and loses what was in flight when that pod goes. So this
//! one does what a service mesh would do for HTTP:
//!
//! ```
//! use zmq_echo_client::discovery::Source;
//! use zmq_echo_client::{Client, ClientConfig, ClientMetrics};
//!
//! #[tokio::main(flavor = "current_thread")]
//! async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! #   use zeromq::{Socket, SocketRecv, SocketSend};
//! #   let mut router = zeromq::RouterSocket::new();
//! #   let echo = router.bind("tcp://127.0.0.1:0").await?.to_string();
//! #   tokio::spawn(async move {
//! #       while let Ok(message) = router.recv().await {
//! #           let _ = router.send(message).await;
//! #       }
//! #   });
//! #   let source: Source = echo.parse()?;
//! #   #[cfg(any())]
//!     let source: Source = "tcp://127.0.0.1:5551,tcp://127.0.0.1:5552".parse()?;
//!     let registry = prometheus::Registry::new();
//!     let metrics = ClientMetrics::new(&registry)?;
//!     let client = Client::new(ClientConfig::default(), source.discovery().await?, metrics);
//!
//!     let reply = client.request("hello".into()).await?;
//!     println!("{} answered {:?}", reply.endpoint, reply.payload);
//! #   assert_eq!(reply.payload, "hello");
//!     client.close().await;
//!     Ok(())
//! }
//! ```
//!
//! In a cluster the source is `dns://zmq-echo-headless:5555`, or
//! `k8s://NAMESPACE/zmq-echo:zeromq`, which knows who is about to leave.
//!
//! # What a handler must bear
//!
//! A request whose reply does not come is sent again, and the first one may have
//! been worked on. An echo does not mind: it is idempotent. For a handler that is
//! not, set `retries` to 0 and decide after each error yourself, or put a key into
//! the payload that all attempts of one request share, by which the handler tells
//! that it has done the work and repeats its answer.
//!
//! # How it is put together
//!
//! A pool follows [`discovery`] and has one task for each endpoint, which owns the
//! [`Dealer`](zmtp::Dealer) and makes it again. The caller's own future drives its request:
//! it draws an endpoint, hands it an attempt and is told what came of it. An attempt
//! is three frames: eight bytes of an id, an empty delimiter and the payload. Its reply is the
//! same id and delimiter, and the service's payload or its
//! [error](zmq_echo::service::rejection).
//!
//! [`load`] is the load generator, which stands on this client.
//!
//! # What is bounded
//!
//! Requests outstanding and waiting, endpoints, attempts and times are, and so is what servers
//! can make the client hold: [`ClientConfig::max_reply`] for one reply,
//! [`ClientConfig::max_connection_replies`] and [`ClientConfig::max_replies`] for all that have
//! not been picked up. The handshake is NULL: there is neither authentication nor encryption, so
//! use a network that you trust with what you send.

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

/// A handle to the client; cloning is cheap. Dropping the last one ends its tasks
/// at once, and whatever is outstanding with them; [`Client::close`] waits.
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
    /// Follows `discovery` and connects to what it names, in tasks on the current
    /// tokio runtime.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime.
    pub fn new(
        config: ClientConfig,
        discovery: Box<dyn Discovery>,
        metrics: ClientMetrics,
    ) -> Self {
        let shared = Arc::new(Shared::new(config, metrics, discovery.failures()));
        let pool = tokio::spawn(pool::run(Arc::clone(&shared), discovery)).abort_handle();
        Self(Arc::new(Handle { shared, pool }))
    }

    /// Sends one request and waits for its reply, with as many attempts as the
    /// configuration allows. It is cancel-safe: a request whose future is dropped
    /// holds its room until its attempt is answered or times out, and no longer.
    ///
    /// # Errors
    ///
    /// [`RequestError`] where no attempt was answered within the deadline.
    pub async fn request(&self, payload: Bytes) -> Result<Reply, RequestError> {
        request::run(&self.0.shared, payload).await
    }

    /// Waits until an endpoint is usable.
    pub async fn ready(&self) {
        self.0.shared.roster.wait_until_usable().await;
    }

    /// Why no endpoint gets requests, or `None` if one does: what to tell a user while
    /// [`Client::ready`] waits.
    pub fn unusable(&self) -> Option<Unusable> {
        self.0.shared.unusable()
    }

    /// What is known now of each endpoint, in the order of their addresses.
    pub fn endpoints(&self) -> Vec<EndpointStatus> {
        self.0.shared.roster.statuses()
    }

    /// Sees each change of the endpoints that get requests, of those that are being
    /// drained, and of their addresses. Not in it are those that cannot be reached.
    pub fn changes(&self) -> watch::Receiver<Endpoints> {
        self.0.shared.roster.changes()
    }

    /// Takes nothing new, waits until what is outstanding is answered or has timed
    /// out, and disconnects. Other handles' requests get [`RequestError::Closed`].
    pub async fn close(self) {
        let phase = &self.0.shared.phase;
        phase.send_if_modified(|phase| {
            let open = *phase == Phase::Open;
            if open {
                *phase = Phase::Closing;
            }
            open
        });
        // It cannot fail: the sender is this client's own.
        let _ = phase.subscribe().wait_for(|phase| *phase == Phase::Closed).await;
    }
}
