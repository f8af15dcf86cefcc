//! A list of endpoints that does not change.

use std::collections::BTreeSet;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::sync::watch;

use super::following::until_unheard;
use super::{Discovery, Endpoint, EndpointState, Endpoints};
use zmtp::endpoint::ConnectEndpoint;

/// A fixed list of endpoints. It publishes them once, all of them ready.
#[derive(Debug, Clone)]
pub struct Fixed {
    endpoints: BTreeSet<ConnectEndpoint>,
}

impl Fixed {
    /// A source that lists these endpoints.
    pub fn new(endpoints: impl IntoIterator<Item = ConnectEndpoint>) -> Self {
        Self { endpoints: endpoints.into_iter().collect() }
    }
}

impl Discovery for Fixed {
    fn follow(self: Box<Self>, endpoints: watch::Sender<Endpoints>) -> BoxFuture<'static, ()> {
        let ready = Endpoint::new(EndpointState::Ready, Vec::new());
        let set = self.endpoints.into_iter().map(|endpoint| (endpoint, ready.clone())).collect();
        until_unheard("the list".to_owned(), endpoints, |mut publisher| async move {
            publisher.publish(set);
            std::future::pending().await
        })
        .boxed()
    }
}
