//! A list that does not change.

use zmq_echo_client::discovery::EndpointState::Ready;
use zmq_echo_client::discovery::{Endpoints, MAX_ENDPOINTS, Source};

use super::{set, states};
use crate::support::DEADLINE;

/// Follows the source that a URL describes, and returns its first set.
async fn first_set(url: &str) -> Endpoints {
    let source: Source = url.parse().unwrap();
    let (sender, mut endpoints) = tokio::sync::watch::channel(Endpoints::new());
    let task = tokio::spawn(source.discovery().await.unwrap().follow(sender));
    let said = tokio::time::timeout(DEADLINE, endpoints.changed()).await.unwrap();
    said.unwrap();
    let set = endpoints.borrow_and_update().clone();
    assert!(!task.is_finished(), "a source must keep running while somebody listens");
    drop(endpoints);
    tokio::time::timeout(DEADLINE, task).await.unwrap().unwrap();
    set
}

#[tokio::test]
async fn a_list_is_published_once_without_duplicates() {
    let expected = set(&[("tcp://127.0.0.1:1", Ready), ("tcp://[::1]:2", Ready)]);
    let said = first_set("tcp://127.0.0.1:1,tcp://[::1]:2,tcp://127.0.0.1:1").await;
    assert_eq!(states(&said), expected);
}

#[tokio::test]
async fn a_list_has_a_maximum_length() {
    let list: Vec<_> = (1..=2000).map(|port| format!("tcp://127.0.0.1:{port}")).collect();
    assert_eq!(first_set(&list.join(",")).await.len(), MAX_ENDPOINTS);
}
