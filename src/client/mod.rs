//! A client that knows the endpoints: it connects to every one, follows them as
//! they come and go, spreads its requests over them and retries.

mod backoff;
mod config;
mod connection;
pub mod discovery;
mod error;
mod member;
mod metrics;
mod pending;
mod pool;
mod request;
mod slots;
mod spread;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::watch;
use tokio::task::AbortHandle;

pub use backoff::Backoff;
pub use config::{ClientConfig, WhenFull};
pub use error::RequestError;
pub use member::{EndpointStatus, State};
pub use metrics::ClientMetrics;
pub use request::Reply;

use discovery::{Discovery, Endpoints};
use member::Roster;
use slots::Slots;

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

/// What callers and tasks share.
#[derive(Debug)]
struct Shared {
    config: ClientConfig,
    deadline: Duration,
    metrics: ClientMetrics,
    slots: Slots,
    roster: Roster,
    phase: watch::Sender<Phase>,
}

/// The life of a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Open,
    /// Nothing new; what is outstanding is still read.
    Closing,
    Closed,
}

impl Shared {
    /// Waits until nothing new is taken any more.
    async fn closed(&self) {
        // It cannot fail: the sender is this.
        let _ = self.phase.subscribe().wait_for(|phase| *phase != Phase::Open).await;
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
        let shared = Arc::new(Shared {
            deadline: config.overall_deadline(),
            slots: Slots::new(&config, &metrics),
            roster: Roster::new(metrics.clone()),
            phase: watch::Sender::new(Phase::Open),
            metrics,
            config,
        });
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

    /// What is known now of each endpoint, in the order of their addresses.
    pub fn endpoints(&self) -> Vec<EndpointStatus> {
        self.0.shared.roster.statuses()
    }

    /// Sees each change of the endpoints that get requests, and of those that are
    /// being drained. Not in it are those that cannot be reached.
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
