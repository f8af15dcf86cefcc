//! The HTTP side port: metrics for scrapers, health checks for orchestrators that prefer HTTP, and
//! a live page for people.
//!
//! It has its own thread and runtime, so a scrape is answered while the poll loop is saturated, and a
//! slow scraper never delays an echo. Clients are not trusted, so their connections, header bytes and
//! time are limited.
//!
//! The modules, in reading order:
//!
//! 1. [`address`]: where it listens; [`own_addresses`]: the addresses that reach it.
//! 2. `connections`: which connection gives way to the next if there is no room.
//! 3. `answer`: the paths, and the form of every answer.
//! 4. `page`: the live page.
//! 5. [`faults`]: shows and sets simulated faults.

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

use futures_util::future::join_all;
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

/// Maximum number of connections, if there are enough descriptors. Beyond that, one of them gives
/// way to the next: `side_port/connections.rs` says which.
pub const CONNECTIONS: usize = 256;

/// Time limit for one request, from the accepted connection to the last byte of the answer. It
/// includes reading the head, an echo if the path needs one, and the client reading the answer.
const CONNECTION_LIMIT: Duration = Duration::from_secs(5);

/// The buffer for a request's head: the smallest that hyper allows.
const HEADER_BYTES: usize = 8 << 10;

/// Time limit for the echo of `/livez`: the probe's default.
pub const LIVE_LIMIT: Duration = Duration::from_millis(500);

/// How long the result of an echo is shared, so that requests for `/livez` do not become a load of
/// their own.
const LIVE_SHARED: Duration = Duration::from_secs(1);

/// The data behind the side port's answers.
pub struct SidePort {
    metrics: Metrics,
    health: Arc<Health>,
    addresses: OwnAddresses,
    page: Page,
    /// The simulated faults, if they may be set.
    switches: Option<Switches>,
    /// The last echo's end and result. The lock is held during an echo, so there is one at a time.
    last_echo: Mutex<Option<(Instant, Result<Duration, String>)>>,
}

/// Starts the thread that serves `side_port` on `listeners` for as long as the process lives.
/// Together the listeners serve at most this many `connections` at a time.
///
/// # Errors
///
/// If the thread or its runtime cannot be started.
pub fn spawn(
    listeners: Vec<std::net::TcpListener>,
    side_port: SidePort,
    connections: usize,
) -> io::Result<()> {
    for listener in &listeners {
        listener.set_nonblocking(true)?;
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let connections = Connections::new(connections).into();
    let open = Arc::new(Open { connections, changed: Notify::new() });
    let side_port = Arc::new(side_port);
    thread::Builder::new().name("side-port".to_owned()).spawn(move || {
        runtime.block_on(async {
            let each = listeners.into_iter().map(|listener| {
                let listener =
                    TcpListener::from_std(listener).expect("the runtime accepts the listener");
                accept(listener, Arc::clone(&side_port), Arc::clone(&open))
            });
            join_all(each).await;
        });
    })?;
    Ok(())
}

async fn accept(listener: TcpListener, side_port: Arc<SidePort>, open: Arc<Open>) {
    loop {
        let (stream, from) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                debug!(%error, "the side port cannot accept a connection");
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
    /// Notified when a connection enters another stage or ends.
    changed: Notify,
}

impl Open {
    /// Waits until there is room for another connection. There nearly always is a connection that
    /// gives way at once.
    async fn make_room(&self) {
        while !self.lock().has_room() {
            // Lets other tasks read requests that have arrived, before a connection gives way.
            tokio::task::yield_now().await;
            // Registered before checking, so that no change goes unnoticed.
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
        // Several listeners may wait for room.
        self.changed.notify_waiters();
    }

    fn lock(&self) -> MutexGuard<'_, Connections<AbortHandle>> {
        // No code under the lock can panic halfway through a change.
        self.connections.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A connection's place among the open ones. Dropping it gives the place back.
struct Place {
    open: Arc<Open>,
    id: Id,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.open.change(|connections| connections.ended(self.id));
    }
}

async fn serve(stream: TcpStream, from: IpAddr, side_port: Arc<SidePort>, place: Place) {
    let place = &place;
    let service = service_fn(|request| {
        let side_port = Arc::clone(&side_port);
        async move {
            place.open.change(|connections| connections.request_read(place.id));
            let answer = side_port.answer(request, from).await;
            // If the kernel does not accept all of it now, the client has to read first.
            place.open.change(|connections| connections.answer_made(place.id, Instant::now()));
            Ok::<_, Infallible>(answer)
        }
    });
    let connection = http1::Builder::new()
        .max_buf_size(HEADER_BYTES)
        // An idle connection that waits for the next request would need a bound as well.
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service);
    // Only the client can cause an error here.
    let _ = tokio::time::timeout(CONNECTION_LIMIT, connection).await;
}

impl SidePort {
    /// A side port that shows `metrics` and `health` and probes the server at its own `addresses`.
    /// `instance` is the name of the pod or host.
    pub fn new(
        metrics: Metrics,
        health: Arc<Health>,
        addresses: OwnAddresses,
        instance: &str,
    ) -> Self {
        let page = Page::new(instance);
        Self { metrics, health, addresses, page, switches: None, last_echo: Mutex::new(None) }
    }

    /// Lets this host set `switches`, if there are any.
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
            return line(StatusCode::NOT_FOUND, format!("no such path; the paths are {}", paths()));
        }
        // hyper leaves out the body of an answer to HEAD.
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            let mut answer =
                line(StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD are allowed".to_owned());
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

    /// Whether the process should be kept alive, with a line for people in both cases.
    async fn alive(&self) -> Result<String, String> {
        if self.health.phase() != Phase::Draining {
            match self.shared_echo().await {
                Ok(round_trip) => {
                    return Ok(format!("alive, echoed in {}", milliseconds(round_trip)));
                }
                // A drain may have closed the listener during the echo.
                Err(_) if self.health.phase() == Phase::Draining => {}
                Err(reason) => return Err(format!("not alive: {reason}")),
            }
        }
        let since = self.health.since_turn(Instant::now());
        let text = format!("draining, the loop ran {} ago", milliseconds(since));
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
