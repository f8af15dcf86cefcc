//! The client: its promises about spreading, draining, retries and bounds.

mod addresses;
mod bounds;
mod deadlines;
mod draining;
mod heartbeats;
mod losses;
mod peers;
mod rejections;
mod replies;
mod spreading;
mod trouble;
mod unsent;

use std::collections::BTreeSet;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::{BoxFuture, join_all};
use prometheus::Registry;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use zmq_echo_client::discovery::{Discovery, Endpoint, EndpointState, Endpoints, Fixed};
use zmq_echo_client::{Client, ClientConfig, ClientMetrics, Reply, RequestError, State};
use zmtp::endpoint::ConnectEndpoint;

use crate::support::{DEADLINE, Server, parse_metrics, sample, until};

/// A source that publishes what the test tells it.
struct TestSource(watch::Receiver<Endpoints>);

impl Discovery for TestSource {
    fn follow(mut self: Box<Self>, endpoints: watch::Sender<Endpoints>) -> BoxFuture<'static, ()> {
        Box::pin(async move {
            loop {
                endpoints.send_replace(self.0.borrow_and_update().clone());
                if self.0.changed().await.is_err() {
                    return;
                }
            }
        })
    }
}

/// The test's handle to a [`TestSource`]: it sets what the source publishes.
struct Publisher(watch::Sender<Endpoints>);

impl Publisher {
    fn new() -> (Self, Box<dyn Discovery>) {
        let (sender, receiver) = watch::channel(Endpoints::new());
        (Self(sender), Box::new(TestSource(receiver)))
    }

    fn publish(&self, endpoints: &[(&str, EndpointState)]) {
        let known = |state| Endpoint::new(state, Vec::new());
        let parsed = endpoints.iter().map(|(endpoint, state)| (parse(endpoint), known(*state)));
        self.0.send_replace(parsed.collect());
    }
}

fn parse(endpoint: &str) -> ConnectEndpoint {
    endpoint.parse().expect("an endpoint")
}

fn fixed(endpoints: &[&str]) -> Box<dyn Discovery> {
    Box::new(Fixed::new(endpoints.iter().map(|endpoint| parse(endpoint))))
}

/// A client, and the registry that holds its metrics.
struct Counted {
    client: Client,
    registry: Registry,
}

impl Counted {
    fn new(config: ClientConfig, discovery: Box<dyn Discovery>) -> Self {
        let registry = Registry::new();
        let metrics = ClientMetrics::new(&registry).unwrap();
        Self { client: Client::new(config, discovery, metrics), registry }
    }

    async fn request(&self, payload: &'static str) -> Result<Reply, RequestError> {
        self.client.request(payload.into()).await
    }

    /// Starts a request that runs while the test does something else.
    fn spawn(&self, payload: &'static str) -> JoinHandle<Result<Reply, RequestError>> {
        let client = self.client.clone();
        tokio::spawn(async move { client.request(payload.into()).await })
    }

    fn metric(&self, series: &str) -> f64 {
        let text =
            prometheus::TextEncoder::new().encode_to_string(&self.registry.gather()).unwrap();
        sample(&parse_metrics(&text), series)
            .unwrap_or_else(|| panic!("no series {series} in {text}"))
    }

    fn state(&self, endpoint: &str) -> Option<State> {
        let statuses = self.client.endpoints();
        let status = statuses.iter().find(|status| *status.endpoint == parse(endpoint));
        status.map(|status| status.state)
    }

    fn outstanding(&self, endpoint: &str) -> usize {
        let statuses = self.client.endpoints();
        let status = statuses.iter().find(|status| *status.endpoint == parse(endpoint));
        status.map_or(0, |status| status.outstanding)
    }

    /// Waits until this many more requests are answered.
    async fn wait_for_answers(&self, more: f64) {
        let answered = || self.metric("zmq_echo_client_requests_total{outcome=\"answered\"}");
        let goal = answered() + more;
        until("the expected number of requests is answered", || answered() >= goal).await;
    }

    async fn wait_for_state(&self, endpoint: &str, state: Option<State>) {
        until(&format!("{endpoint} is {state:?}"), || self.state(endpoint) == state).await;
    }

    /// Lets `callers` callers make one request at a time, a few thousand requests/s in total, until
    /// `done` finishes. Returns their results.
    async fn load(&self, callers: usize, done: impl Future<Output = ()>) -> Vec<Got> {
        self.load_with_pauses(Duration::from_millis(5), callers, done).await
    }

    async fn load_with_pauses(
        &self,
        pause: Duration,
        callers: usize,
        done: impl Future<Output = ()>,
    ) -> Vec<Got> {
        let stop = Arc::new(watch::Sender::new(false));
        let callers = (0..callers).map(|caller| {
            let (client, stop) = (self.client.clone(), stop.subscribe());
            tokio::spawn(async move {
                let mut got = Vec::new();
                while !*stop.borrow() {
                    // No two payloads are equal.
                    let payload = format!("{caller} {}", got.len());
                    got.push(Got { reply: client.request(payload.into()).await });
                    tokio::time::sleep(pause).await;
                }
                got
            })
        });
        let callers: Vec<_> = callers.collect();
        done.await;
        stop.send_replace(true);
        join_all(callers)
            .await
            .into_iter()
            .flat_map(|got| got.expect("no caller panicked"))
            .collect()
    }
}

/// Starts a server without blocking the runtime that the client runs on.
async fn started() -> Server {
    tokio::task::spawn_blocking(|| Server::start(&[])).await.expect("the server starts")
}

/// The outcome of one request.
struct Got {
    reply: Result<Reply, RequestError>,
}

/// Timeouts so long that no request that gets a reply times out.
fn patient() -> ClientConfig {
    ClientConfig { timeout: DEADLINE, deadline: Some(DEADLINE), ..ClientConfig::default() }
}

/// Timeouts so short that a test does not wait long for a reply that never comes. On a busy
/// machine, replies that do come may take longer, so a test that waits for one has retries left.
fn hasty() -> ClientConfig {
    ClientConfig {
        timeout: Duration::from_secs(1),
        deadline: Some(DEADLINE),
        ..ClientConfig::default()
    }
}

#[tokio::test]
async fn a_named_endpoint_answers_a_request() {
    let server = Server::start(&[]);
    let client = Counted::new(patient(), fixed(&[&server.endpoint]));
    let reply = client.request("hello").await.unwrap();
    assert_eq!(reply.payload, "hello");
    assert_eq!(reply.endpoint.to_string(), server.endpoint);
    assert_eq!(reply.attempts, 1);
}

#[tokio::test]
async fn an_ipv6_address_works_as_an_endpoint() {
    let server = Server::start_on("tcp://[::1]:0", &[]);
    let client = Counted::new(patient(), fixed(&[&server.endpoint]));
    assert_eq!(client.request("hello").await.unwrap().payload, "hello");
}

/// Every series of a client, as `name{label="value"}`, with its type.
pub fn series() -> BTreeSet<(String, String)> {
    let registry = Registry::new();
    ClientMetrics::new(&registry).unwrap();
    let mut series = BTreeSet::new();
    for family in registry.gather() {
        let kind = format!("{:?}", family.get_field_type()).to_lowercase();
        for metric in family.get_metric() {
            let labels = metric.get_label().iter();
            let labels: String =
                labels.map(|at| format!("{{{}=\"{}\"}}", at.name(), at.value())).collect();
            series.insert((format!("{}{labels}", family.name()), kind.clone()));
        }
    }
    series
}

#[tokio::test]
async fn every_client_series_exists_at_zero_from_the_start() {
    let client = Counted::new(patient(), fixed(&[]));
    for (series, _) in series() {
        assert_eq!(client.metric(&series), 0.0, "{series}");
    }
}

#[tokio::test]
async fn closing_waits_for_open_requests_then_disconnects() {
    let server = Server::start(&[]);
    let client = Counted::new(patient(), fixed(&[&server.endpoint]));
    client.client.ready().await;
    server.stop();
    let asked = client.spawn("asked before");
    until("the request is open at the endpoint", || client.outstanding(&server.endpoint) == 1)
        .await;
    let closing = tokio::spawn(client.client.clone().close());
    client.wait_for_state(&server.endpoint, Some(State::Draining)).await;
    assert!(matches!(client.request("too late").await, Err(RequestError::Closed)));
    server.signal(rustix::process::Signal::CONT);
    assert_eq!(asked.await.unwrap().unwrap().payload, "asked before");
    closing.await.unwrap();
    server.wait_for_metric("zmq_echo_peers", |peers| peers == 0.0);
}

#[tokio::test]
async fn dropping_the_last_handle_disconnects_and_resets_its_gauges() {
    let server = Server::start(&[]);
    let Counted { client, registry } = Counted::new(patient(), fixed(&[&server.endpoint]));
    client.ready().await;
    server.wait_for_metric("zmq_echo_peers", |peers| peers == 1.0);
    drop(client);
    let gauges = || {
        let families = registry.gather();
        let gauges = families.iter().filter(|family| family.name().contains("client_endpoints"));
        gauges.map(|family| family.get_metric()[0].get_gauge().get_value()).sum::<f64>()
    };
    until("the gauges of the dropped client are back at 0", || gauges() == 0.0).await;
    server.wait_for_metric("zmq_echo_peers", |peers| peers == 0.0);
}
