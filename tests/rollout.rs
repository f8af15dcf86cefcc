//! A rollout on one machine: three server processes under load are replaced one after the other.
//! The client learns about it from a fake cluster made for the test.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::{Arc, mpsc};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use prometheus::Registry;
use rustix::process::Signal;
use tokio::sync::{Semaphore, watch};
use tokio::time::{MissedTickBehavior, interval};
use zmq_echo_client::discovery::{Discovery, Source};
use zmq_echo_client::{Client, ClientConfig, ClientMetrics, Reply, RequestError, State};

use crate::support::api_server::{ApiServer, Condition};
use crate::support::dns_server::{DnsServer, Service};
use crate::support::{Server, runtime, wait_until};

/// 2,000 requests/s on a machine that can handle it: requests per tick, and the tick.
const BURST: u64 = 10;
const TICK: Duration = Duration::from_millis(5);

/// Maximum requests in flight. On a slower machine, requests would otherwise pile up until they
/// time out.
const MOST: usize = 500;

/// How long a draining server waits for silence. A busy machine may delay the client for a while.
/// That must not look like silence before the client knows about the drain.
const QUIET: &str = "3s";

/// How long a stopped server must have sent no reply before it is killed. By then, the client has
/// read its earlier replies.
const SILENCE: Duration = Duration::from_millis(200);

/// How many requests each server must answer before the next step, so that every server gets its
/// share and every step of a rollout happens under load.
const SHARE: u64 = 500;

const NAME: &str = "zmq-echo-headless.test.";

/// The same servers, as SRV records.
const SERVICES: &str = "_zeromq._tcp.zmq-echo-headless.test.";

/// Where the client learns about the servers.
enum Cluster {
    Api(ApiServer),
    /// All servers have the same port, as pods do, and an address each.
    Dns {
        server: DnsServer,
        port: u16,
        ready: BTreeSet<IpAddr>,
        started: u8,
        /// Whether the client asks for SRV records.
        services: bool,
    },
}

/// What the client needs for discovery.
enum Way {
    Kubeconfig(PathBuf),
    Url(String),
}

impl Cluster {
    fn api() -> Self {
        Self::Api(ApiServer::start())
    }

    fn dns(services: bool) -> Self {
        let server = DnsServer::start();
        Self::Dns { server, port: common_port(), ready: BTreeSet::new(), started: 0, services }
    }

    fn way(&self) -> Way {
        match self {
            Self::Api(api) => Way::Kubeconfig(api.kubeconfig()),
            Self::Dns { server, services: true, .. } => {
                Way::Url(format!("dns://{SERVICES}?server={}", server.address()))
            }
            Self::Dns { server, port, .. } => Way::Url(server.url(NAME, *port)),
        }
    }

    /// A server at an address that no server has used before.
    fn start_server(&mut self) -> Server {
        let bind = match self {
            Self::Api(_) => "tcp://127.0.0.1:0".to_owned(),
            Self::Dns { port, started, .. } => {
                *started += 1;
                format!("tcp://{}:{port}", of_dns(*started))
            }
        };
        Server::start_on(&bind, &["--drain-quiet", QUIET])
    }

    fn ready(&mut self, address: SocketAddr) {
        match self {
            Self::Api(api) => api.set(address, Condition::Ready),
            Self::Dns { ready, .. } => {
                ready.insert(address.ip());
            }
        }
        self.publish_name();
    }

    fn terminating(&mut self, address: SocketAddr) {
        match self {
            Self::Api(api) => api.set(address, Condition::Terminating),
            Self::Dns { ready, .. } => {
                ready.remove(&address.ip());
            }
        }
        self.publish_name();
    }

    fn gone(&mut self, address: SocketAddr) {
        match self {
            Self::Api(api) => api.remove(address),
            // It may already have been removed from the answer.
            Self::Dns { .. } => self.terminating(address),
        }
    }

    fn publish_name(&self) {
        if let Self::Dns { server, port, ready, .. } = self {
            let addresses: Vec<_> = ready.iter().map(IpAddr::to_string).collect();
            server.set(NAME, &addresses.iter().map(String::as_str).collect::<Vec<_>>(), 1);
            let targets: Vec<_> = ready.iter().map(|address| target(*address)).collect();
            for (target, address) in targets.iter().zip(&addresses) {
                server.set(target, &[address], 1);
            }
            let services: Vec<_> =
                targets.iter().map(|target| Service { priority: 0, port: *port, target }).collect();
            server.set_services(SERVICES, &services, 1);
        }
    }
}

/// The name of the server at an address, as cluster DNS names pods.
fn target(address: IpAddr) -> String {
    format!("{}.zmq-echo-headless.test", address.to_string().replace('.', "-"))
}

/// How the client names a server: by its address or by its name.
fn names(server: &Server) -> [String; 2] {
    let address = server.address();
    [server.endpoint.clone(), format!("tcp://{}:{}", target(address.ip()), address.port())]
}

/// The address of the n-th server started.
fn of_dns(started: u8) -> Ipv4Addr {
    Ipv4Addr::new(127, 0, 7, started)
}

/// A port that is free on every address that a rollout needs.
fn common_port() -> u16 {
    for _ in 0..100 {
        let first = TcpListener::bind((of_dns(1), 0)).unwrap();
        let port = first.local_addr().unwrap().port();
        if (2..=6).all(|started| TcpListener::bind((of_dns(started), port)).is_ok()) {
            return port;
        }
    }
    panic!("found no port that is free on all addresses");
}

/// One request of the load and its outcome.
struct Request {
    started: Instant,
    ended: Instant,
    payload: String,
    reply: Result<Reply, RequestError>,
}

impl Request {
    /// The service's reply, and the number of attempts it took.
    #[track_caller]
    fn answered(&self) -> u32 {
        let reply = self.reply.as_ref().unwrap_or_else(|error| panic!("a request failed: {error}"));
        assert_eq!(reply.payload, self.payload);
        reply.attempts
    }
}

/// A client with an open loop of requests, on its own thread, so that waits of the test do not
/// delay it.
struct Load {
    client: Client,
    stop: watch::Sender<bool>,
    thread: JoinHandle<Vec<Request>>,
}

impl Load {
    fn start(way: Way) -> Self {
        let (stop, stopped) = watch::channel(false);
        let (give, given) = mpsc::channel();
        let thread = thread::spawn(move || {
            runtime().block_on(async {
                let client = client(way).await;
                client.ready().await;
                give.send(client.clone()).unwrap();
                run(client, stopped).await
            })
        });
        Self { client: given.recv().expect("the client starts"), stop, thread }
    }

    /// Ends the load and waits for all of its requests.
    fn stop(self) -> Vec<Request> {
        self.stop.send_replace(true);
        self.thread.join().expect("the load does not panic")
    }

    fn state(&self, server: &Server) -> Option<State> {
        self.of(server, |status| status.state)
    }

    fn wait_until_used(&self, server: &Server) {
        wait_until("the new server answers its share of requests", || {
            self.state(server) == Some(State::Ready)
                && self.of(server, |status| status.answered) >= Some(SHARE)
        });
    }

    fn of<T>(
        &self,
        server: &Server,
        what: impl Fn(&zmq_echo_client::EndpointStatus) -> T,
    ) -> Option<T> {
        let (statuses, names) = (self.client.endpoints(), names(server));
        let status = statuses.iter().find(|status| names.contains(&status.endpoint.to_string()));
        status.map(what)
    }
}

async fn client(way: Way) -> Client {
    let discovery: Box<dyn Discovery> = match way {
        Way::Kubeconfig(path) => Box::new(ApiServer::source(&path).await),
        Way::Url(url) => url.parse::<Source>().unwrap().discovery().await.unwrap(),
    };
    // An attempt that gets an answer gets it within this time, even on a busy machine. So if a
    // request is sent again, its connection broke.
    let config = ClientConfig { timeout: Duration::from_secs(20), ..ClientConfig::default() };
    Client::new(config, discovery, ClientMetrics::new(&Registry::new()).unwrap())
}

/// Sends at the rate while fewer than [`MOST`] requests are in flight.
async fn run(client: Client, stopped: watch::Receiver<bool>) -> Vec<Request> {
    let mut ticks = interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let under_way = Arc::new(Semaphore::new(MOST));
    let mut requests = Vec::new();
    while !*stopped.borrow() {
        ticks.tick().await;
        for _ in 0..BURST {
            let Ok(permit) = Arc::clone(&under_way).try_acquire_owned() else { break };
            let (client, payload) = (client.clone(), format!("request {}", requests.len()));
            requests.push(tokio::spawn(async move {
                let started = Instant::now();
                let reply = client.request(payload.clone().into()).await;
                drop(permit);
                Request { started, ended: Instant::now(), payload, reply }
            }));
        }
    }
    let mut ended = Vec::new();
    for request in requests {
        ended.push(request.await.expect("the request does not panic"));
    }
    ended
}

/// Three servers and the load on them.
struct Rollout {
    cluster: Cluster,
    servers: Vec<Server>,
    load: Load,
}

impl Rollout {
    fn start(mut cluster: Cluster) -> Self {
        let servers: Vec<_> = (0..3).map(|_| cluster.start_server()).collect();
        servers.iter().for_each(|server| cluster.ready(server.address()));
        let load = Load::start(cluster.way());
        servers.iter().for_each(|server| load.wait_until_used(server));
        Self { cluster, servers, load }
    }

    /// Replaces one server as a rollout does.
    fn replace(&mut self, at: usize) {
        let old = &mut self.servers[at];
        self.cluster.terminating(old.address());
        old.signal(Signal::TERM);
        assert_eq!(old.wait(), 0, "{:?}", old.lines());
        let drained = old.wait_for_record("drained");
        assert_eq!((&drained["owed"], &drained["discarded"]), (&0.into(), &0.into()), "{drained}");
        // A client that kept sending would keep the server alive until its deadline.
        assert_ne!(
            drained["reason"], "deadline",
            "the client kept sending until the deadline of the drain: {drained}"
        );
        self.bring_another(at);
    }

    /// Kills one server with requests in flight and replaces it. Returns the period in which the
    /// client may have believed that it was alive.
    fn replace_dead(&mut self, at: usize) -> (Instant, Instant) {
        let old = &mut self.servers[at];
        let began = Instant::now();
        old.stop();
        let (mut answered, mut since) = (None, began);
        wait_until("requests are in flight on the stopped server", || {
            let now = self.load.of(old, |status| status.answered);
            if std::mem::replace(&mut answered, now) != now {
                since = Instant::now();
            }
            since.elapsed() > SILENCE && self.load.of(old, |status| status.outstanding) > Some(0)
        });
        old.signal(Signal::KILL);
        wait_until("the killed server has exited", || !old.is_running());
        wait_until("the client notices that the server was killed", || {
            self.load.state(old) != Some(State::Ready)
        });
        let noticed = Instant::now();
        self.bring_another(at);
        (began, noticed)
    }

    fn bring_another(&mut self, at: usize) {
        self.cluster.gone(self.servers[at].address());
        let new = self.cluster.start_server();
        self.cluster.ready(new.address());
        self.load.wait_until_used(&new);
        self.servers[at] = new;
    }
}

/// Drains each server in turn: every request is answered, and none is sent twice.
fn roll(cluster: Cluster) {
    let mut rollout = Rollout::start(cluster);
    (0..3).for_each(|at| rollout.replace(at));
    let requests = rollout.load.stop();
    let sent_again = requests.iter().filter(|request| request.answered() > 1).count();
    eprintln!("{} requests, {sent_again} sent again", requests.len());
    assert_eq!(sent_again, 0, "requests were sent again, of {}", requests.len());
}

#[test]
fn a_rollout_loses_no_request_with_discovery_by_api() {
    roll(Cluster::api());
}

#[test]
fn a_rollout_loses_no_request_with_discovery_by_dns() {
    roll(Cluster::dns(false));
}

#[test]
fn a_rollout_loses_no_request_with_discovery_by_srv_records() {
    roll(Cluster::dns(true));
}

/// Kills each server in turn: every request is answered, and only requests in flight on a killed
/// server are sent again, once.
fn kill(cluster: Cluster) {
    let mut rollout = Rollout::start(cluster);
    let deaths: Vec<_> = (0..3).map(|at| rollout.replace_dead(at)).collect();
    let requests = rollout.load.stop();
    let again: Vec<_> = requests.iter().filter(|request| request.answered() > 1).collect();
    eprintln!("{} requests, {} sent again", requests.len(), again.len());
    let in_flight = |request: &Request, (began, noticed): &(_, _)| {
        request.started <= *noticed && request.ended >= *began
    };
    for request in &again {
        assert_eq!(request.answered(), 2);
        let known = deaths.iter().any(|death| in_flight(request, death));
        assert!(
            known,
            "{} was sent again although it was not in flight on a killed server",
            request.payload
        );
    }
    for death in &deaths {
        assert!(
            again.iter().any(|request| in_flight(request, death)),
            "no request was in flight when a server was killed"
        );
    }
}

#[test]
fn killed_servers_lose_no_request_and_cost_each_at_most_one_more_attempt() {
    kill(Cluster::api());
}

#[test]
fn killed_servers_lose_no_request_with_discovery_by_dns() {
    kill(Cluster::dns(false));
}
