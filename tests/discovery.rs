//! Every endpoint that discovery names is usable: a real server replies there.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::time::Duration;

use prometheus::Registry;
use rustix::process::Signal;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use zmq_echo_client::discovery::EndpointState::Ready;
use zmq_echo_client::discovery::{Endpoint, Endpoints};
use zmq_echo_client::{Client, ClientConfig, ClientMetrics, Reply, RequestError};

use crate::support::api_server::{ApiServer, Condition};
use crate::support::{DEADLINE, Server, until};

/// A client that learns its endpoints from the API and is ready.
async fn client_of(api: &ApiServer, config: ClientConfig) -> Client {
    let source = ApiServer::source(&api.kubeconfig()).await;
    let metrics = ClientMetrics::new(&Registry::new()).unwrap();
    let client = Client::new(config, Box::new(source), metrics);
    timeout(DEADLINE, client.ready()).await.expect("an endpoint becomes usable");
    client
}

/// An attempt that gets a reply gets it within this time, even on a busy machine.
fn patient() -> ClientConfig {
    ClientConfig { timeout: DEADLINE, ..ClientConfig::default() }
}

/// Makes one request after the other while the test does something else.
struct Load {
    stop: watch::Sender<bool>,
    task: JoinHandle<Vec<Result<Reply, RequestError>>>,
}

impl Load {
    fn start(client: &Client) -> Self {
        let (client, stop) = (client.clone(), watch::Sender::new(false));
        let stopped = stop.subscribe();
        let task = tokio::spawn(async move {
            let mut replies = Vec::new();
            while !*stopped.borrow() {
                replies.push(client.request("a".into()).await);
                sleep(Duration::from_millis(1)).await;
            }
            replies
        });
        Self { stop, task }
    }

    /// Checks that every request was answered at its first attempt.
    async fn expect_no_loss(self) {
        self.stop.send_replace(true);
        let replies = self.task.await.unwrap();
        assert!(!replies.is_empty());
        for reply in replies {
            assert_eq!(reply.expect("every request is answered").attempts, 1);
        }
    }
}

fn answered(client: &Client) -> u64 {
    client.endpoints().iter().map(|status| status.answered).sum()
}

async fn until_more_are_answered(client: &Client) {
    let before = answered(client);
    until("50 more requests are answered", || answered(client) > before + 50).await;
}

/// Waits until the client is connected to `count` usable endpoints, for all of which `holds` is
/// true.
async fn until_used(client: &Client, count: usize, holds: impl Fn(&Endpoint) -> bool) {
    let are_used = |endpoints: &Endpoints| {
        let used: Vec<_> = endpoints.values().filter(|known| known.state == Ready).collect();
        used.len() == count && used.into_iter().all(&holds)
    };
    let mut changes = client.changes();
    let used = timeout(DEADLINE, changes.wait_for(are_used));
    used.await.expect("the client uses the expected endpoints").unwrap();
}

#[tokio::test]
async fn an_ipv6_endpoint_of_an_endpoint_slice_answers() {
    let server = Server::start_on("tcp://[::1]:0", &[]);
    let api = ApiServer::start();
    api.set(server.address(), Condition::Ready);
    let client = client_of(&api, patient()).await;
    let reply = client.request("a".into()).await.unwrap();
    assert_eq!(reply.endpoint.to_string(), server.endpoint);
}

#[tokio::test]
async fn a_pod_that_listens_on_one_of_its_two_addresses_answers() {
    let listens_on = |bind: &str| {
        let server = Server::start_on(bind, &[]);
        let port = server.address().port();
        let v4 = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let v6 = SocketAddr::from((Ipv6Addr::LOCALHOST, port));
        (server, [v4, v6])
    };
    for bind in ["tcp://127.0.0.1:0", "tcp://[::1]:0"] {
        let (_server, addresses) = listens_on(bind);
        let api = ApiServer::start();
        api.set_pod(Some("1"), &addresses, Condition::Ready);
        let client = client_of(&api, patient()).await;
        let reply = client.request("a".into()).await.unwrap();
        assert_eq!(reply.endpoint.to_string(), format!("tcp://{}", addresses[0]), "{bind}");
        assert_eq!(client.endpoints().len(), 1, "{bind}");
    }
}

#[tokio::test]
async fn a_pod_with_two_addresses_counts_once_and_gets_one_share() {
    let dual = Server::start_on("tcp://*:0", &[]);
    let single = Server::start(&[]);
    let port = dual.address().port();
    let addresses = [(Ipv4Addr::LOCALHOST, port).into(), (Ipv6Addr::LOCALHOST, port).into()];
    let api = ApiServer::start();
    api.set_pod(Some("1"), &addresses, Condition::Ready);
    api.set_pod(Some("2"), &[single.address()], Condition::Ready);
    let client = client_of(&api, patient()).await;
    until_used(&client, 2, |_| true).await;
    assert_eq!(client.endpoints().len(), 2);
    for _ in 0..1000 {
        client.request("a".into()).await.unwrap();
    }
    let shares: Vec<_> = client.endpoints().iter().map(|status| status.answered).collect();
    // If the address counted as two endpoints of three, it would get 667.
    assert!(
        shares.iter().all(|share| (420..=580).contains(share)),
        "the pods do not get equal shares: {shares:?}"
    );
}

/// Three servers keep answering while the API reports `condition` for all of them.
async fn answer_while_all_are(condition: Condition) {
    let servers: Vec<_> = (0..3).map(|_| Server::start(&[])).collect();
    let api = ApiServer::start();
    servers.iter().for_each(|server| api.set(server.address(), Condition::Ready));
    let client = client_of(&api, patient()).await;
    until_used(&client, 3, |known| !known.doubtful).await;
    let load = Load::start(&client);
    servers.iter().for_each(|server| api.set(server.address(), condition));
    until_used(&client, 3, |known| known.doubtful).await;
    until_more_are_answered(&client).await;
    // A client that starts now uses them too.
    let another = client_of(&api, patient()).await;
    another.request("a".into()).await.unwrap();
    servers.iter().for_each(|server| api.set(server.address(), Condition::Ready));
    until_used(&client, 3, |known| !known.doubtful).await;
    until_more_are_answered(&client).await;
    load.expect_no_loss().await;
}

#[tokio::test]
async fn pods_that_are_all_terminating_but_serving_answer() {
    answer_while_all_are(Condition::Terminating).await;
}

#[tokio::test]
async fn endpoints_are_used_even_if_none_is_ready_or_serving() {
    answer_while_all_are(Condition::NotReady).await;
}

#[tokio::test]
async fn if_no_pod_is_surely_ready_those_that_answer_are_used() {
    let (server, mut dead) = (Server::start(&[]), Server::start(&[]));
    let api = ApiServer::start();
    for pod in [&server, &dead] {
        api.set(pod.address(), Condition::NotReady);
    }
    let client = client_of(&api, patient()).await;
    until_used(&client, 2, |known| known.doubtful).await;
    dead.signal(Signal::KILL);
    until("the killed server has exited", || !dead.is_running()).await;
    until_used(&client, 1, |known| known.doubtful).await;
    let load = Load::start(&client);
    until_more_are_answered(&client).await;
    load.expect_no_loss().await;
}

#[tokio::test]
async fn an_evicted_replica_answers_until_its_replacement_is_ready() {
    let old = Server::start(&[]);
    let replacement = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let api = ApiServer::start();
    api.set(old.address(), Condition::Ready);
    let client = client_of(&api, patient()).await;
    let load = Load::start(&client);
    until_more_are_answered(&client).await;
    api.set(old.address(), Condition::Terminating);
    old.signal(Signal::TERM);
    until_used(&client, 1, |known| known.doubtful).await;
    until_more_are_answered(&client).await;
    api.set(replacement, Condition::NotReady);
    // Its readiness probe fails while it drains.
    api.set(old.address(), Condition::Stopping);
    until("the client knows the replacement", || client.endpoints().len() == 2).await;
    until_more_are_answered(&client).await;
    let _new = Server::start_on(&format!("tcp://{replacement}"), &[]);
    api.set(replacement, Condition::Ready);
    until_used(&client, 1, |known| !known.doubtful).await;
    until("the evicted server has drained", || old.find_record("drained").is_some()).await;
    api.remove(old.address());
    until_more_are_answered(&client).await;
    load.expect_no_loss().await;
}
