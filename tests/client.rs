//! The client: what it promises of spreading, draining, retries and bounds.

mod bounds;
mod draining;
mod peers;
mod replies;
mod spreading;
mod trouble;

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::{BoxFuture, join_all};
use prometheus::Registry;
use prometheus_parse::Scrape;
use tokio::sync::watch;
use zmq_echo::client::discovery::{Discovery, EndpointState, Endpoints, Fixed};
use zmq_echo::client::{Client, ClientConfig, ClientMetrics, Reply, RequestError, State};
use zmq_echo::endpoint::ConnectEndpoint;

use crate::support::{DEADLINE, Server, sample};

/// A source that says what the test has told it.
struct Told(watch::Receiver<Endpoints>);

impl Discovery for Told {
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

/// What tells a [`Told`].
struct Teller(watch::Sender<Endpoints>);

impl Teller {
    fn new() -> (Self, Box<dyn Discovery>) {
        let (sender, receiver) = watch::channel(Endpoints::new());
        (Self(sender), Box::new(Told(receiver)))
    }

    fn say(&self, endpoints: &[(&str, EndpointState)]) {
        let parsed = endpoints.iter().map(|(endpoint, state)| (parse(endpoint), *state));
        self.0.send_replace(parsed.collect());
    }
}

fn parse(endpoint: &str) -> ConnectEndpoint {
    endpoint.parse().expect("an endpoint")
}

fn fixed(endpoints: &[&str]) -> Box<dyn Discovery> {
    Box::new(Fixed::new(endpoints.iter().map(|endpoint| parse(endpoint))))
}

/// A client, and the registry in which it counts.
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

    fn metric(&self, series: &str) -> f64 {
        let text =
            prometheus::TextEncoder::new().encode_to_string(&self.registry.gather()).unwrap();
        let scrape = Scrape::parse(text.lines().map(|line| Ok(line.to_owned()))).unwrap();
        sample(&scrape, series).unwrap_or_else(|| panic!("no series {series} in {text}"))
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

    async fn wait_for_state(&self, endpoint: &str, state: Option<State>) {
        until(&format!("{endpoint} is {state:?}"), || self.state(endpoint) == state).await;
    }

    /// Keeps `callers` callers busy, each with one request at a time, until `done`
    /// says so. Returns what they got.
    async fn load(&self, callers: usize, done: impl Future<Output = ()>) -> Vec<Got> {
        let stop = Arc::new(watch::Sender::new(false));
        let callers = (0..callers).map(|_| {
            let (client, stop) = (self.client.clone(), stop.subscribe());
            tokio::spawn(async move {
                let mut got = Vec::new();
                while !*stop.borrow() {
                    let started = std::time::Instant::now();
                    let reply = client.request("load".into()).await;
                    got.push(Got { reply, took: started.elapsed() });
                }
                got
            })
        });
        let callers: Vec<_> = callers.collect();
        done.await;
        stop.send_replace(true);
        join_all(callers).await.into_iter().flat_map(|got| got.expect("no panic")).collect()
    }
}

/// What one request came to, and how long that took.
struct Got {
    reply: Result<Reply, RequestError>,
    took: Duration,
}

/// Waits on a condition, without stopping the runtime that it needs.
async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = tokio::time::Instant::now() + DEADLINE;
    while !holds() {
        assert!(tokio::time::Instant::now() < deadline, "waited {DEADLINE:?} until {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// Long enough that nothing times out that is answered.
fn patient() -> ClientConfig {
    ClientConfig { timeout: DEADLINE, deadline: Some(DEADLINE), ..ClientConfig::default() }
}

/// Short enough that a test need not wait long for what is never answered.
fn hasty() -> ClientConfig {
    ClientConfig {
        timeout: Duration::from_millis(300),
        deadline: Some(DEADLINE),
        ..ClientConfig::default()
    }
}

#[tokio::test]
async fn a_request_is_answered_by_an_endpoint_that_is_named() {
    let server = Server::start(&[]);
    let client = Counted::new(patient(), fixed(&[&server.endpoint]));
    let reply = client.request("hello").await.unwrap();
    assert_eq!(reply.payload, "hello");
    assert_eq!(reply.endpoint.to_string(), server.endpoint);
    assert_eq!(reply.attempts, 1);
}

#[tokio::test]
async fn every_series_is_there_from_the_start() {
    let client = Counted::new(patient(), fixed(&[]));
    for (name, labels) in [
        (
            "requests_total",
            [
                "outcome",
                "answered abandoned timed_out disconnected no_endpoint full too_large closed",
            ],
        ),
        ("attempt_failures_total", ["reason", "timed_out disconnected"]),
        ("stray_replies_total", ["kind", "late unknown"]),
        ("connections_total", ["outcome", "established failed"]),
        ("checks_total", ["outcome", "answered failed"]),
    ] {
        let [label, values] = labels;
        for value in values.split(' ') {
            let series = format!("zmq_echo_client_{name}{{{label}=\"{value}\"}}");
            assert_eq!(client.metric(&series), 0.0, "{series}");
        }
    }
    for name in [
        "attempts_total",
        "retries_total",
        "outstanding",
        "queued",
        "request_duration_seconds",
        "endpoints_known",
        "endpoints_usable",
    ] {
        assert_eq!(client.metric(&format!("zmq_echo_client_{name}")), 0.0, "{name}");
    }
}

#[tokio::test]
async fn closing_waits_for_what_is_outstanding_and_disconnects() {
    let server = Server::start(&[]);
    let client = Counted::new(patient(), fixed(&[&server.endpoint]));
    client.client.ready().await;
    server.signal(rustix::process::Signal::STOP);
    let (other, asked) = (client.client.clone(), client.client.clone());
    let asked = tokio::spawn(async move { asked.request("asked before".into()).await });
    until("it is outstanding", || client.outstanding(&server.endpoint) == 1).await;
    let closing = tokio::spawn(client.client.clone().close());
    client.wait_for_state(&server.endpoint, Some(State::Draining)).await;
    assert!(matches!(other.request("too late".into()).await, Err(RequestError::Closed)));
    server.signal(rustix::process::Signal::CONT);
    assert_eq!(asked.await.unwrap().unwrap().payload, "asked before");
    closing.await.unwrap();
    server.wait_for_metric("zmq_echo_peers", |peers| peers == 0.0);
}

#[tokio::test]
async fn dropping_the_last_handle_disconnects_and_takes_its_gauges_back() {
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
    until("the gauges are back", || gauges() == 0.0).await;
    server.wait_for_metric("zmq_echo_peers", |peers| peers == 0.0);
}
