//! Where the endpoints come from: a source that says which there are, again and
//! again as they come and go.

mod fixed;

use std::collections::BTreeMap;

use futures_util::future::BoxFuture;
use tokio::sync::watch;

use crate::endpoint::ConnectEndpoint;

pub use fixed::Fixed;

/// What a source says of an endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EndpointState {
    /// Takes requests.
    Ready,
    /// Terminating or not ready: gets nothing new, and answers what it has.
    Draining,
}

/// Every endpoint that a source knows. One that is not in it has gone.
pub type Endpoints = BTreeMap<ConnectEndpoint, EndpointState>;

/// A source of endpoints.
pub trait Discovery: Send + 'static {
    /// Follows the source for ever, and puts the whole set into `endpoints` whenever
    /// it has changed. It sends nothing before it knows something; a source that
    /// cannot be asked leaves the last set as it is, logs why, and is asked again
    /// with backoff. It ends where nobody listens to `endpoints` any more.
    fn follow(self: Box<Self>, endpoints: watch::Sender<Endpoints>) -> BoxFuture<'static, ()>;
}
