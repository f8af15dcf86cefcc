//! Endpoints that are given once and do not change.

use futures_util::future::BoxFuture;
use tokio::sync::watch;

use super::{Discovery, EndpointState, Endpoints};
use crate::endpoint::ConnectEndpoint;

/// A list that stays as it is.
#[derive(Debug, Clone)]
pub struct Fixed(Vec<ConnectEndpoint>);

impl Fixed {
    /// These, all of them ready.
    pub fn new(endpoints: impl IntoIterator<Item = ConnectEndpoint>) -> Self {
        Self(endpoints.into_iter().collect())
    }
}

impl Discovery for Fixed {
    fn follow(self: Box<Self>, endpoints: watch::Sender<Endpoints>) -> BoxFuture<'static, ()> {
        Box::pin(async move {
            let ready = self.0.into_iter().map(|endpoint| (endpoint, EndpointState::Ready));
            endpoints.send_replace(ready.collect());
            endpoints.closed().await;
        })
    }
}
