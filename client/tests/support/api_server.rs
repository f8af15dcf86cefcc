//! A Kubernetes API server for tests: it lists the EndpointSlices of one namespace in pages and
//! lets clients watch them, on loopback and without TLS.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use futures_channel::{mpsc, oneshot};
use futures_util::StreamExt;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Bytes, Frame, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use kube::Config;
use kube::config::{KubeConfigOptions, Kubeconfig};
use serde_json::{Value as Json, json};
use tokio::net::TcpListener;
use zmq_echo_client::discovery::Source;
use zmq_echo_client::discovery::kubernetes::{Kubernetes, client_of};

use super::runtime;

/// The state of an endpoint in the API.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Condition {
    Ready,
    NotReady,
    /// Terminating, but still serving.
    Terminating,
    /// Terminating and no longer serving.
    Stopping,
}

/// How a watch ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// The API ends it because its time is up.
    Complete,
    /// The connection breaks in the middle of an event.
    Broken,
}

/// How the API rejects an expired version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gone {
    /// By the status of the answer.
    Status,
    /// By an event in a watch.
    Event,
}

/// A request that the server received.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Asked {
    List,
    /// A watch from this version.
    Watch(u64),
}

type Body = UnsyncBoxBody<Bytes, io::Error>;
type Line = io::Result<Frame<Bytes>>;

struct Watcher {
    service: String,
    lines: mpsc::UnboundedSender<Line>,
}

/// What the API knows, and how it behaves.
#[derive(Default)]
struct State {
    /// The version of the last change.
    version: u64,
    slices: BTreeMap<String, Json>,
    /// The changes with their versions, from [`Self::oldest`] on.
    history: Vec<(u64, Json)>,
    /// A watch from an older version is rejected.
    oldest: u64,
    gone: Option<Gone>,
    failure: Option<u16>,
    /// The `Retry-After` header of each refusal.
    retry_after: Option<String>,
    /// Sent instead of every list and of every refusal's status.
    body: Option<Bytes>,
    delay: Duration,
    watchers: Vec<Watcher>,
    /// How many watches have begun, and how many of the first ones stay silent forever.
    begun: usize,
    silent: usize,
    /// The silent watches, kept so that they stay open.
    held: Vec<Watcher>,
    asked: Vec<Asked>,
}

/// The server. Dropping it stops it.
pub struct ApiServer {
    directory: PathBuf,
    state: Arc<Mutex<State>>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl ApiServer {
    pub const SERVICE: &str = "zmq-echo";
    pub const PORT: &str = "zmq";
    /// The URL for a client with [`Self::kubeconfig`].
    pub const URL: &str = "k8s://default/zmq-echo:zmq";

    pub fn start() -> Self {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(Mutex::new(State { version: 100, oldest: 100, ..State::default() }));
        let (stop, stopped) = oneshot::channel();
        let of_thread = Arc::clone(&state);
        let thread = thread::spawn(move || {
            runtime().block_on(async {
                tokio::select! {
                    () = accept(listener, of_thread) => {}
                    _ = stopped => {}
                }
            });
        });
        let directory = write_kubeconfig(address);
        Self { directory, state, stop: Some(stop), thread: Some(thread) }
    }

    /// For `$KUBECONFIG`.
    pub fn kubeconfig(&self) -> PathBuf {
        self.directory.join("kubeconfig")
    }

    /// The source for [`Self::URL`], as a process with this kubeconfig would set it up.
    pub async fn source(kubeconfig: &Path) -> Kubernetes {
        Self::source_of(kubeconfig, Self::URL).await
    }

    /// The same for another URL.
    pub async fn source_of(kubeconfig: &Path, url: &str) -> Kubernetes {
        let Ok(Source::Kubernetes(port)) = url.parse() else {
            panic!("not the URL of a Kubernetes source")
        };
        let kubeconfig = Kubeconfig::read_from(kubeconfig).unwrap();
        let options = KubeConfigOptions::default();
        let config = Config::from_custom_kubeconfig(kubeconfig, &options).await.unwrap();
        Kubernetes::new(port, client_of(config).unwrap())
    }

    /// Sets the state of an endpoint. Each endpoint has its own slice, because all endpoints in a
    /// slice share a port, and these are on one host.
    pub fn set(&self, endpoint: SocketAddr, condition: Condition) {
        self.set_pod(None, &[endpoint], condition);
    }

    /// The same for a pod with several addresses. Each address has its own slice, as address
    /// families do.
    pub fn set_pod(&self, uid: Option<&str>, addresses: &[SocketAddr], condition: Condition) {
        let (ready, serving, terminating) = match condition {
            Condition::Ready => (true, true, false),
            Condition::NotReady => (false, false, false),
            Condition::Terminating => (false, true, true),
            Condition::Stopping => (false, false, true),
        };
        for address in addresses {
            let slice = json!({
                "addressType": if address.is_ipv4() { "IPv4" } else { "IPv6" },
                "ports": [{"name": Self::PORT, "port": address.port(), "protocol": "TCP"}],
                "endpoints": [{
                    "addresses": [address.ip().to_string()],
                    "conditions": {
                        "ready": ready, "serving": serving, "terminating": terminating,
                    },
                    "targetRef": uid.map(|uid| json!({"kind": "Pod", "uid": uid})),
                }],
            });
            self.put(&slice_name(*address), slice);
        }
    }

    /// Removes an endpoint.
    pub fn remove(&self, endpoint: SocketAddr) {
        self.delete(&slice_name(endpoint));
    }

    /// Creates or changes a slice of the Service: its `addressType`, `ports` and `endpoints`.
    pub fn put(&self, name: &str, content: Json) {
        self.put_of(Self::SERVICE, name, content);
    }

    /// Creates or changes a slice of another Service.
    pub fn put_of(&self, service: &str, name: &str, mut slice: Json) {
        let mut state = self.state();
        state.version += 1;
        let kind = if state.slices.contains_key(name) { "MODIFIED" } else { "ADDED" };
        slice["apiVersion"] = json!("discovery.k8s.io/v1");
        slice["kind"] = json!("EndpointSlice");
        slice["metadata"] = json!({
            "name": name,
            "namespace": "default",
            "labels": {"kubernetes.io/service-name": service},
            "resourceVersion": state.version.to_string(),
        });
        state.slices.insert(name.to_owned(), slice.clone());
        state.happened(kind, slice);
    }

    pub fn delete(&self, name: &str) {
        let mut state = self.state();
        let mut slice = state.slices.remove(name).expect("the slice exists");
        state.version += 1;
        slice["metadata"]["resourceVersion"] = json!(state.version.to_string());
        state.happened("DELETED", slice);
    }

    /// Sends a bookmark to all watches, as if changes of other objects had advanced the version.
    pub fn bookmark(&self) -> u64 {
        let mut state = self.state();
        state.version += 10;
        let version = state.version;
        let event = json!({"type": "BOOKMARK", "object": {
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": {"resourceVersion": version.to_string()},
        }});
        state.send(&event, |_| true);
        version
    }

    /// Expires all versions so far: a watch from one of them is refused in this way.
    pub fn compact(&self, gone: Gone) {
        let mut state = self.state();
        // Other objects have changed meanwhile.
        state.version += 1;
        state.oldest = state.version;
        state.history.clear();
        state.gone = Some(gone);
    }

    /// Ends all watches.
    pub fn end_watches(&self, ending: Ending) {
        for watcher in self.state().watchers.drain(..) {
            if ending == Ending::Broken {
                let half = Bytes::from_static(b"{\"type\":\"MODIFIED\",\"object\":{\"ki");
                let _ = watcher.lines.unbounded_send(Ok(Frame::data(half)));
                let _ = watcher.lines.unbounded_send(Err(io::ErrorKind::ConnectionReset.into()));
            }
        }
    }

    /// Refuses all requests with this status, or stops refusing.
    pub fn fail_with(&self, status: Option<u16>) {
        self.state().failure = status;
    }

    /// Adds this `Retry-After` header to each refusal.
    pub fn retry_after(&self, value: &str) {
        self.state().retry_after = Some(value.to_owned());
    }

    /// Answers with this instead of each list. With [`Self::fail_with`], it replaces each status.
    pub fn answer_with(&self, body: impl Into<Bytes>) {
        self.state().body = Some(body.into());
    }

    /// Sends these bytes on all watches.
    pub fn send(&self, bytes: impl Into<Bytes>) {
        let bytes = bytes.into();
        for watcher in &self.state().watchers {
            let _ = watcher.lines.unbounded_send(Ok(Frame::data(bytes.clone())));
        }
    }

    /// Waits this long before each answer.
    pub fn delay_by(&self, delay: Duration) {
        self.state().delay = delay;
    }

    /// The current watches neither send anything nor end, as if a device in between had dropped the
    /// connection. New watches are served.
    pub fn silence_watches(&self) {
        let mut state = self.state();
        state.silent = state.begun;
        let silent = std::mem::take(&mut state.watchers);
        state.held.extend(silent);
    }

    pub fn asked(&self) -> Vec<Asked> {
        self.state().asked.clone()
    }

    /// The number of open watches that are not silent.
    pub fn watchers(&self) -> usize {
        let mut state = self.state();
        state.watchers.retain(|watcher| !watcher.lines.is_closed());
        state.watchers.len()
    }

    pub fn version(&self) -> u64 {
        self.state().version
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        drop(self.stop.take());
        let _ = self.thread.take().map(JoinHandle::join);
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

impl State {
    fn happened(&mut self, kind: &str, slice: Json) {
        let event = json!({"type": kind, "object": slice});
        self.history.push((self.version, event.clone()));
        self.send(&event, |service| belongs(&event["object"], service));
    }

    fn send(&mut self, event: &Json, to: impl Fn(&str) -> bool) {
        for watcher in self.watchers.iter().filter(|watcher| to(&watcher.service)) {
            let _ = watcher.lines.unbounded_send(line(event));
        }
    }

    fn list(&self, service: &str, query: &BTreeMap<String, String>) -> Json {
        let number = |name: &str| query.get(name).and_then(|text| text.parse::<usize>().ok());
        let (from, limit) = (number("continue").unwrap_or(0), number("limit").unwrap_or(500));
        let all: Vec<_> = self.slices.values().filter(|slice| belongs(slice, service)).collect();
        let page: Vec<_> = all.iter().skip(from).take(limit).collect();
        let rest = all.len().saturating_sub(from + page.len());
        let next = if rest > 0 { (from + page.len()).to_string() } else { String::new() };
        json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSliceList", "items": page,
            "metadata": {"resourceVersion": self.version.to_string(), "continue": next},
        })
    }

    /// The lines of a watch: the changes since `from`, and those to come.
    fn watch(&mut self, service: &str, from: u64) -> Result<mpsc::UnboundedReceiver<Line>, ()> {
        let (lines, stream) = mpsc::unbounded();
        if from < self.oldest {
            if self.gone != Some(Gone::Event) {
                return Err(());
            }
            let event = json!({"type": "ERROR", "object": status(410)});
            lines.unbounded_send(line(&event)).unwrap();
            return Ok(stream);
        }
        let missed = self.history.iter().filter(|(version, _)| *version > from);
        for (_, event) in missed.filter(|(_, event)| belongs(&event["object"], service)) {
            lines.unbounded_send(line(event)).unwrap();
        }
        self.watchers.push(Watcher { service: service.to_owned(), lines });
        self.begun += 1;
        Ok(stream)
    }
}

fn belongs(slice: &Json, service: &str) -> bool {
    slice["metadata"]["labels"]["kubernetes.io/service-name"] == service
}

fn line(event: &Json) -> Line {
    Ok(Frame::data(Bytes::from(format!("{event}\n"))))
}

fn status(code: u16) -> Json {
    json!({
        "apiVersion": "v1", "kind": "Status", "status": "Failure", "code": code,
        "message": format!("the test wants {code}"), "reason": "Test",
    })
}

async fn accept(listener: std::net::TcpListener, state: Arc<Mutex<State>>) {
    let listener = TcpListener::from_std(listener).unwrap();
    while let Ok((stream, _)) = listener.accept().await {
        let state = Arc::clone(&state);
        tokio::spawn(async move {
            let answer = service_fn(|request| answer(request, Arc::clone(&state)));
            let connection = hyper::server::conn::http1::Builder::new();
            let _ = connection.serve_connection(TokioIo::new(stream), answer).await;
        });
    }
}

async fn answer(
    request: Request<Incoming>,
    state: Arc<Mutex<State>>,
) -> Result<Response<Body>, Infallible> {
    let query = parse(request.uri().query().unwrap_or_default());
    let watched = query.contains_key("watch");
    let from = query.get("resourceVersion").and_then(|text| text.parse().ok()).unwrap_or(0);
    let (delay, failure, body, retry_after) = {
        let mut state = state.lock().unwrap();
        state.asked.push(if watched { Asked::Watch(from) } else { Asked::List });
        (state.delay, state.failure, state.body.clone(), state.retry_after.clone())
    };
    tokio::time::sleep(delay).await;
    let selector = query.get("labelSelector").map(String::as_str).unwrap_or_default();
    let service = selector.strip_prefix("kubernetes.io/service-name=");
    let path = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices";
    let mut response = match (failure, service, body) {
        (code, _, Some(body)) if code.is_some() || !watched => bytes(code.unwrap_or(200), body),
        (Some(code), _, _) => whole(code, &status(code)),
        (None, Some(service), _) if request.uri().path() == path => {
            if watched {
                watch(&state, service, from, &query)
            } else {
                let list = state.lock().unwrap().list(service, &query);
                whole(200, &list)
            }
        }
        _ => whole(404, &status(404)),
    };
    if let Some(value) = retry_after.filter(|_| !response.status().is_success()) {
        response.headers_mut().insert("retry-after", value.parse().unwrap());
    }
    Ok(response)
}

/// The names and values in a query string. Decodes only the escapes that occur in a label selector.
fn parse(query: &str) -> BTreeMap<String, String> {
    let pairs = query.split('&').filter_map(|pair| pair.split_once('='));
    pairs
        .map(|(name, value)| (name.to_owned(), value.replace("%2F", "/").replace("%3D", "=")))
        .collect()
}

fn watch(
    state: &Arc<Mutex<State>>,
    service: &str,
    from: u64,
    query: &BTreeMap<String, String>,
) -> Response<Body> {
    let (lines, number) = {
        let mut state = state.lock().unwrap();
        (state.watch(service, from), state.begun)
    };
    let Ok(lines) = lines else { return whole(410, &status(410)) };
    let seconds = query.get("timeoutSeconds").and_then(|text| text.parse().ok()).unwrap_or(3600);
    let state = Arc::clone(state);
    let time_is_up = Box::pin(async move {
        tokio::time::sleep(Duration::from_secs(seconds)).await;
        let silent = number <= state.lock().unwrap().silent;
        if silent {
            std::future::pending::<()>().await;
        }
    });
    Response::new(StreamBody::new(lines.take_until(time_is_up)).boxed_unsync())
}

fn whole(status: u16, body: &Json) -> Response<Body> {
    bytes(status, body.to_string().into())
}

fn bytes(status: u16, body: Bytes) -> Response<Body> {
    let body = Full::new(body).map_err(|never| match never {});
    Response::builder().status(status).body(body.boxed_unsync()).unwrap()
}

fn slice_name(endpoint: SocketAddr) -> String {
    let ip = endpoint.ip().to_string().replace([':', '.'], "-");
    format!("{}-{ip}-{}", ApiServer::SERVICE, endpoint.port())
}

/// Writes a kubeconfig, as kubectl would, into its own directory.
fn write_kubeconfig(address: SocketAddr) -> PathBuf {
    static COUNT: AtomicUsize = AtomicUsize::new(0);
    let name = format!("api-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let kubeconfig = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "test",
        "clusters": [{"name": "test", "cluster": {"server": format!("http://{address}")}}],
        "users": [{"name": "test", "user": {}}],
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
    });
    std::fs::create_dir_all(&directory).unwrap();
    // JSON is valid YAML.
    std::fs::write(directory.join("kubeconfig"), kubeconfig.to_string()).unwrap();
    directory
}
