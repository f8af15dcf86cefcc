//! Sources of endpoints: they tell the client which endpoints exist, and follow them as they come
//! and go.
//!
//! Most programs parse a [`Source`] from a URL and call [`Source::discovery`]:
//!
//! - `tcp://127.0.0.1:5551,tcp://127.0.0.1:5552` is a list that does not change.
//! - `dns://zmq-echo-headless:5555` looks up the addresses of a name every 1 to 5 s.
//! - `dns://_zeromq._tcp.zmq-echo-headless` looks up SRV records, which include the port.
//! - `k8s://default/zmq-echo:zeromq` watches the EndpointSlices of a Kubernetes Service. It is the
//!   only source that announces which pods are about to leave, so prefer it if your pods may use
//!   the API.
//!
//! If a source fails, the last known endpoints stay in use. An outage of DNS or of the API server
//! never removes an endpoint.
//!
//! Implement [`Discovery`] for a source of your own, such as a configuration file:
//!
//! ```
//! use std::collections::BTreeMap;
//!
//! use futures_util::future::BoxFuture;
//! use tokio::sync::watch;
//! use zmq_echo_client::discovery::{Discovery, Endpoint, EndpointState, Endpoints};
//!
//! struct OneEndpoint;
//!
//! impl Discovery for OneEndpoint {
//!     fn follow(self: Box<Self>, endpoints: watch::Sender<Endpoints>) -> BoxFuture<'static, ()> {
//!         Box::pin(async move {
//!             let endpoint = "tcp://127.0.0.1:5555".parse().expect("a valid endpoint");
//!             let ready = Endpoint::new(EndpointState::Ready, Vec::new());
//!             endpoints.send_replace(BTreeMap::from([(endpoint, ready)]));
//!             // Call `send_replace` again whenever the set changes.
//!             endpoints.closed().await;
//!         })
//!     }
//! }
//! #
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() {
//! #     let (sender, mut endpoints) = watch::channel(Endpoints::new());
//! #     let task = tokio::spawn(Box::new(OneEndpoint).follow(sender));
//! #     endpoints.changed().await.unwrap();
//! #     assert_eq!(endpoints.borrow().len(), 1);
//! #     drop(endpoints);
//! #     task.await.unwrap();
//! # }
//! ```
//!
//! The modules, in reading order:
//!
//! 1. [`source`]: the URL that names a source, such as `dns://zmq-echo-headless:5555`.
//! 2. [`fixed`]: a list that does not change.
//! 3. [`dns`]: the addresses or SRV records of a name, looked up repeatedly.
//! 4. [`kubernetes`]: the EndpointSlices of a Service, listed and watched.
//! 5. [`failure`]: why a source failed.
//! 6. [`service_port`]: which port of a Service to use.
//! 7. `slices`: turns EndpointSlices into endpoints, without I/O.
//! 8. `answers`: the parts of the API's answers that are read, with limits.
//! 9. `retry_after`: how long the API asks to wait.
//! 10. `addresses`: which addresses a source may list.
//! 11. `following`: what all sources share: publishing, logging outages, backing off.
//! 12. `lines`: splits a stream into lines.

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

/// The most endpoints that are taken from a source: the 1,000 of Kubernetes' own Endpoints API,
/// rounded up. A client opens a connection to each, and a longer list is more likely a mistake. If
/// there are more, ready endpoints are taken first.
pub const MAX_ENDPOINTS: usize = 1024;

/// The state of an endpoint, as its source reports it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EndpointState {
    /// Gets requests.
    Ready,
    /// Terminating, or not ready while others are. It gets no new requests, but its outstanding
    /// ones are still answered.
    Draining,
}

/// What a source knows about an endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// Whether it gets requests.
    pub state: EndpointState,
    /// Its addresses, in the order in which to try them. They all lead to the same server, and the
    /// first that connects is used. If there are none, the host in the endpoint's name is resolved
    /// for each connection.
    pub addresses: Vec<SocketAddr>,
    /// It gets requests only because no endpoint is ready, so it may not answer.
    pub doubtful: bool,
}

impl Endpoint {
    /// An endpoint in this state that is not doubtful.
    pub fn new(state: EndpointState, addresses: Vec<SocketAddr>) -> Self {
        Self { state, addresses, doubtful: false }
    }
}

/// All endpoints that a source knows. The key is the endpoint's name in logs and reports: its host
/// name or its first address. An endpoint that is missing has gone.
pub type Endpoints = BTreeMap<ConnectEndpoint, Endpoint>;

/// A source of endpoints. See the [module](self) for an example.
pub trait Discovery: Send + 'static {
    /// Follows the source and sends the whole set to `endpoints` whenever it changes. Send nothing
    /// before something is known. If the source fails, keep the last set, log why, and retry with
    /// backoff. Return once `endpoints` has no receivers left.
    fn follow(self: Box<Self>, endpoints: watch::Sender<Endpoints>) -> BoxFuture<'static, ()>;

    /// The source's last failure, or `None` if it has answered since. It explains to a user why
    /// there are no endpoints. Keep the default if the source cannot fail or does not report
    /// failures.
    fn failures(&self) -> Failures {
        watch::channel(None).1
    }
}
