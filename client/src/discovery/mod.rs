//! Where the endpoints come from: a source that says which there are, again and
//! again as they come and go.
//!
//! 1. [`source`]: the URL that names a source, `dns://zmq-echo-headless:5555`.
//! 2. [`fixed`]: a list that does not change.
//! 3. [`dns`]: a name, asked again and again: its addresses or its SRV records.
//! 4. [`kubernetes`]: the EndpointSlices of a Service, listed and watched.
//! 5. [`failure`]: why a source could not be asked.
//! 6. [`service_port`]: which port of a Service.
//! 7. `slices`: what EndpointSlices say of endpoints, free of any connection.
//! 8. `answers`: what is read of the API's answers, within bounds.
//! 9. `retry_after`: how long the API asks to wait.
//! 10. `addresses`: which addresses a source may name.
//!
//! A source going away never removes endpoints: what could not be asked says
//! nothing, and the last set stands until a new one is known.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use futures_util::future::BoxFuture;
use tokio::sync::watch;

use zmtp::endpoint::ConnectEndpoint;

mod addresses;
mod answers;
pub mod dns;
pub mod failure;
pub mod fixed;
mod following;
pub mod kubernetes;
mod lines;
mod retry_after;
pub mod service_port;
mod slices;
pub mod source;

pub use failure::{FailureKind, Failures, SourceFailure};
pub use fixed::Fixed;
pub use service_port::{PodPort, ServicePort};
pub use source::{DiscoveryError, Source, SourceError};

/// The most endpoints that are taken from a source: the 1,000 of Kubernetes' own
/// Endpoints API, rounded up. A client has a connection to each, and a source that
/// says more is more likely wrong than meant. Beyond it those that are ready come
/// first.
pub const MAX_ENDPOINTS: usize = 1024;

/// What a source says of an endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EndpointState {
    /// Takes requests.
    Ready,
    /// Terminating or not ready while others are ready: gets nothing new, and answers what it
    /// has.
    Draining,
}

/// What a source knows of an endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// Whether it takes requests.
    pub state: EndpointState,
    /// Its addresses, in the order in which they are to be tried. They are all the same server,
    /// and the first that connects is used. If there are none, the host that names the endpoint
    /// is resolved for each connection.
    pub addresses: Vec<SocketAddr>,
    /// It takes requests only because no endpoint is ready: it may not answer.
    pub doubtful: bool,
}

impl Endpoint {
    /// An endpoint that is what its state says.
    pub fn new(state: EndpointState, addresses: Vec<SocketAddr>) -> Self {
        Self { state, addresses, doubtful: false }
    }
}

/// Every endpoint that a source knows, by what logs and reports call it: its name, or its first
/// address. An endpoint that is not in it has gone.
pub type Endpoints = BTreeMap<ConnectEndpoint, Endpoint>;

/// A source of endpoints.
pub trait Discovery: Send + 'static {
    /// Follows the source for ever, and puts the whole set into `endpoints` whenever
    /// it has changed. It sends nothing before it knows something; a source that
    /// cannot be asked leaves the last set as it is, logs why, and is asked again
    /// with backoff. It ends where nobody listens to `endpoints` any more.
    fn follow(self: Box<Self>, endpoints: watch::Sender<Endpoints>) -> BoxFuture<'static, ()>;

    /// The source's last failure while it is followed, `None` if it answered since. It is for
    /// people: a source that cannot fail, or that does not tell, keeps the default.
    fn failures(&self) -> Failures {
        watch::channel(None).1
    }
}
