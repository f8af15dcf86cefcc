//! The sources of endpoints, each against a stand-in for the server that it queries.

mod dns;
mod fixed;
mod kubernetes;
mod memory;
mod srv;

use std::collections::BTreeMap;

use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use zmq_echo_client::discovery::{Discovery, EndpointState, Endpoints};

use crate::support::{DEADLINE, until};

/// A source that is being followed, and what it publishes.
struct Followed {
    endpoints: watch::Receiver<Endpoints>,
    task: JoinHandle<()>,
}

impl Followed {
    fn start(source: impl Discovery) -> Self {
        let (sender, endpoints) = watch::channel(Endpoints::new());
        Self { endpoints, task: tokio::spawn(Box::new(source).follow(sender)) }
    }

    /// Waits until the source has published exactly these endpoints and states.
    #[track_caller]
    fn publishes(&mut self, expected: &[(&str, EndpointState)]) -> impl Future<Output = ()> {
        let expected = set(expected);
        async move { self.publishes_a_set_that(|said| states(said) == expected).await }
    }

    async fn publishes_a_set_that(&mut self, holds: impl Fn(&Endpoints) -> bool) {
        // The initial value of the channel was not published by the source.
        if self.endpoints.has_changed().is_ok_and(|changed| !changed) {
            let unsaid = self.endpoints.borrow().is_empty();
            if unsaid {
                self.change().await;
            }
        }
        while !holds(&self.endpoints.borrow_and_update()) {
            self.change().await;
        }
    }

    async fn change(&mut self) {
        let changed = timeout(DEADLINE, self.endpoints.changed()).await;
        let known = || format!("{:?}", self.endpoints.borrow());
        changed
            .unwrap_or_else(|_| {
                panic!("no new set within {DEADLINE:?}; the last one is {}", known())
            })
            .expect("the source is running");
    }

    /// Checks that the source has published nothing since the last check.
    #[track_caller]
    fn has_published_nothing_new(&self) {
        assert!(
            !self.endpoints.has_changed().unwrap(),
            "the source has published another set: {:?}",
            self.endpoints.borrow()
        );
    }

    /// Checks that the source ends once nobody listens.
    async fn assert_ends(self) {
        drop(self.endpoints);
        timeout(DEADLINE, self.task).await.expect("the source ends once nobody listens").unwrap();
    }
}

fn states(endpoints: &Endpoints) -> BTreeMap<String, EndpointState> {
    endpoints.iter().map(|(endpoint, known)| (endpoint.to_string(), known.state)).collect()
}

fn set(endpoints: &[(&str, EndpointState)]) -> BTreeMap<String, EndpointState> {
    endpoints.iter().map(|(text, state)| ((*text).to_owned(), *state)).collect()
}
