//! The HTTP side port: metrics for a scraper, health for those who prefer HTTP, a
//! live page for people.
//!
//! It has a thread and a runtime of its own: a scrape answers while the poll loop
//! is saturated, and a slow scraper never delays an echo. What a stranger can take
//! of it is bounded: connections, header bytes, time.

pub mod address;
mod answer;
mod connections;
pub mod faults;
pub mod own_addresses;
mod page;

use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use hyper::body::Incoming;
use hyper::header::{ALLOW, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Mutex, Notify};
use tokio::task::AbortHandle;
use tracing::debug;
use zmtp::listeners::ACCEPT_PAUSE;

use crate::metrics::{self, Metrics};
use crate::probe;
use crate::service::health::{Health, Phase};
use crate::simulation::Switches;
use crate::units::milliseconds;
pub use answer::PATHS;
use answer::{Answer, body, line, paths};
use connections::{Connections, Id};
use own_addresses::OwnAddresses;
use page::Page;

/// Connections at a time, if there are descriptors for them. Beyond that, one of them
/// gives way to the next: `side_port/connections.rs` says which.
pub const CONNECTIONS: usize = 256;

/// From the accepted connection to the last byte of the answer, for one request:
/// its head, an echo where one is asked for, and a reader of the answer.
const CONNECTION_LIMIT: Duration = Duration::from_secs(5);

/// For the request's head: the smallest buffer that hyper takes.
const HEADER_BYTES: usize = 8 << 10;

/// How long an echo may take for `/livez`, as with the probe binary.
pub const LIVE_LIMIT: Duration = Duration::from_millis(500);

/// How long the result of an echo is shared: callers of `/livez` are not to be a
/// load of their own.
const LIVE_SHARED: Duration = Duration::from_secs(1);

/// What the side port answers from.
pub struct SidePort {
    metrics: Metrics,
    health: Arc<Health>,
    addresses: OwnAddresses,
    page: Page,
    /// The simulated faults, if they may be switched.
    switches: Option<Switches>,
    /// The last echo's end and result. The lock is held through an echo: there is
    /// one at a time.
    last_echo: Mutex<Option<(Instant, Result<Duration, String>)>>,
}

/// Starts the thread that serves `side_port` on `listener`, for as long as the
/// process lives, to at most so many `connections` at a time.
///
/// # Errors
///
/// Where there is no thread or no runtime to be had.
pub fn spawn(
    listener: std::net::TcpListener,
    side_port: SidePort,
    connections: usize,
) -> io::Result<()> {
    listener.set_nonblocking(true)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    thread::Builder::new().name("side-port".to_owned()).spawn(move || {
        runtime.block_on(async {
            let listener = TcpListener::from_std(listener).expect("the runtime takes a listener");
            accept(listener, Arc::new(side_port), connections).await;
        });
    })?;
    Ok(())
}

async fn accept(listener: TcpListener, side_port: Arc<SidePort>, most: usize) {
    let open =
        Arc::new(Open { connections: Connections::new(most).into(), changed: Notify::new() });
    loop {
        let (stream, from) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                debug!(%error, "the side port cannot accept");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        open.make_room().await;
        open.start(stream, from, &side_port);
    }
}

/// The open connections, shared by the loop that accepts and the tasks that serve.
struct Open {
    connections: std::sync::Mutex<Connections<AbortHandle>>,
    /// One of them has another stage now, or has ended.
    changed: Notify,
}

impl Open {
    /// Waits until there is room for another connection. Nearly always another one gives
    /// way at once.
    async fn make_room(&self) {
        while !self.lock().has_room() {
            // Requests that have arrived are read before anyone gives way.
            tokio::task::yield_now().await;
            // Registered before the look, so that no change goes unnoticed.
            let changed = self.changed.notified();
            let gives_way = {
                let mut connections = self.lock();
                if connections.has_room() {
                    return;
                }
                connections.make_room(Instant::now())
            };
            match gives_way {
                Some(connection) => connection.abort(),
                None => changed.await,
            }
        }
    }

    fn start(self: &Arc<Self>, stream: TcpStream, from: SocketAddr, side_port: &Arc<SidePort>) {
        self.lock().admit(from.ip(), Instant::now(), |id| {
            let place = Place { open: Arc::clone(self), id };
            tokio::spawn(serve(stream, from.ip(), Arc::clone(side_port), place)).abort_handle()
        });
    }

    fn change(&self, change: impl FnOnce(&mut Connections<AbortHandle>)) {
        change(&mut self.lock());
        self.changed.notify_one();
    }

    fn lock(&self) -> MutexGuard<'_, Connections<AbortHandle>> {
        // Nothing under the lock can leave the accounts half changed.
        self.connections.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A connection's place among the open ones, which it leaves when it is dropped.
struct Place {
    open: Arc<Open>,
    id: Id,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.open.change(|connections| connections.has_ended(self.id));
    }
}

async fn serve(stream: TcpStream, from: IpAddr, side_port: Arc<SidePort>, place: Place) {
    let place = &place;
    let service = service_fn(|request| {
        let side_port = Arc::clone(&side_port);
        async move {
            place.open.change(|connections| connections.has_asked(place.id));
            let answer = side_port.answer(request, from).await;
            // What the kernel takes now is done; else it is the client's turn to read.
            place.open.change(|connections| connections.has_its_answer(place.id, Instant::now()));
            Ok::<_, Infallible>(answer)
        }
    });
    let connection = http1::Builder::new()
        .max_buf_size(HEADER_BYTES)
        // A connection kept for the next request is a connection to be bounded.
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service);
    // What goes wrong here is the client's doing, and it knows.
    let _ = tokio::time::timeout(CONNECTION_LIMIT, connection).await;
}

impl SidePort {
    /// A side port that shows `metrics` and `health`, and probes the server at its own
    /// `addresses`, of the `instance` of that name: a pod's or a host's.
    pub fn new(
        metrics: Metrics,
        health: Arc<Health>,
        addresses: OwnAddresses,
        instance: &str,
    ) -> Self {
        let page = Page::new(instance);
        Self { metrics, health, addresses, page, switches: None, last_echo: Mutex::new(None) }
    }

    /// This side port, which lets this host set `switches` if there are any.
    #[must_use]
    pub fn with_switches(self, switches: Option<Switches>) -> Self {
        Self { switches, ..self }
    }

    async fn answer(&self, request: Request<Incoming>, from: IpAddr) -> Answer {
        let path = request.uri().path();
        if path == faults::PATH
            && let Some(switches) = &self.switches
        {
            return faults::answer(switches, request, from).await;
        }
        if !PATHS.iter().any(|(known, _)| *known == path) {
            return line(StatusCode::NOT_FOUND, format!("no such page; see {}", paths()));
        }
        // hyper leaves out the body of an answer to HEAD.
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            let mut answer = line(StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD".to_owned());
            answer.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
            return answer;
        }
        match path {
            "/metrics" => body(StatusCode::OK, metrics::CONTENT_TYPE, self.metrics.render()),
            "/livez" | "/healthz" => verdict(self.alive().await),
            "/readyz" => verdict(self.ready()),
            _ => self.page.answer(request.headers()),
        }
    }

    /// Whether the process should live, as a line for people either way.
    async fn alive(&self) -> Result<String, String> {
        if self.health.phase() != Phase::Draining {
            match self.shared_echo().await {
                Ok(round_trip) => {
                    return Ok(format!("alive, echoed in {}", milliseconds(round_trip)));
                }
                // The listener may have closed under the echo.
                Err(_) if self.health.phase() == Phase::Draining => {}
                Err(reason) => return Err(format!("not alive: {reason}")),
            }
        }
        let since = self.health.since_turn(Instant::now());
        let text = format!("draining, the loop turned {} ago", milliseconds(since));
        if since <= Health::TURN_LIMIT { Ok(text) } else { Err(text) }
    }

    async fn shared_echo(&self) -> Result<Duration, String> {
        let mut last_echo = self.last_echo.lock().await;
        if let Some((at, result)) = &*last_echo
            && at.elapsed() < LIVE_SHARED
        {
            return result.clone();
        }
        let endpoint = self.addresses.reachable().into();
        let result = probe::check(&endpoint, LIVE_LIMIT).await.map_err(|error| error.to_string());
        *last_echo = Some((Instant::now(), result.clone()));
        result
    }

    fn ready(&self) -> Result<String, String> {
        match self.health.phase() {
            Phase::Starting => Err("starting".to_owned()),
            Phase::Serving => Ok("ready".to_owned()),
            Phase::Draining => Err("draining".to_owned()),
        }
    }
}

fn verdict(verdict: Result<String, String>) -> Answer {
    match verdict {
        Ok(text) => line(StatusCode::OK, text),
        Err(text) => line(StatusCode::SERVICE_UNAVAILABLE, text),
    }
}
