//! One run: clients, workers and the pacer that tells them what is due.

use std::cell::{Cell, RefCell};
use std::convert::Infallible;
use std::io;
use std::time::{Duration, Instant, SystemTime};

use futures_util::future::{BoxFuture, join, join_all};
use prometheus::Registry;
use tokio::sync::{Notify, Semaphore, watch};
use tokio::task::unconstrained;
use tokio::time::{interval, sleep, timeout};

use super::completion::{ALTERED, Completion, UNSENT};
use super::config::{LoadConfig, Rate};
use super::error::LoadError;
use super::payload::Payloads;
use super::progress::{Look, Progress};
use super::recorder::{Recorder, Times};
use super::result::LoadResult;
use super::schedule::{Schedule, Timer};
use crate::discovery::{Discovery, EndpointState, Endpoints};
use crate::{Client, ClientConfig, ClientMetrics, Reply, RequestError};
use zmq_echo::service::termination::{AsyncTermination, TerminationSocket};

/// How long an endpoint has to answer at the start: several times the pauses after
/// which a refused connection is tried again.
const START_LIMIT: Duration = Duration::from_secs(5);

/// How long the others have when one answers: several round trips between two zones.
const SETTLE_LIMIT: Duration = Duration::from_secs(1);

/// How long a worker of a closed loop rests after a failure, so that a service that
/// refuses at once is not asked a million times a second.
const AFTER_FAILURE: Duration = Duration::from_millis(10);

/// See [`super::run`].
pub async fn run(
    config: &LoadConfig,
    command: String,
    termination: TerminationSocket,
    progress: &Progress,
) -> Result<LoadResult, LoadError> {
    let mut termination = termination.into_async()?;
    let clients = tokio::select! {
        clients = start(config) => clients?,
        signal = termination.recv() => return Err(signal.map_or_else(LoadError::Start, |_| LoadError::Interrupted)),
    };
    let timer = Timer::new()?;
    let started = SystemTime::now();
    let run = Run::new(config, Instant::now());
    let endpoints = clients[0].changes().borrow().clone();
    run.recorder.borrow_mut().endpoints_are(&endpoints, run.start);
    let interrupted = run.drive(&clients, timer, &mut termination, progress).await?;
    let elapsed = run.start.elapsed();
    let recorder = &mut *run.recorder.borrow_mut();
    recorder.advance(Instant::now());
    Ok(LoadResult::new(config, command, started, elapsed, interrupted, recorder))
}

/// Clients that share one source of endpoints, each with an endpoint that answers.
async fn start(config: &LoadConfig) -> Result<Vec<Client>, LoadError> {
    let (sender, endpoints) = watch::channel(Endpoints::new());
    tokio::spawn(config.source().discovery().await?.follow(sender));
    let metrics = ClientMetrics::new(&Registry::new()).expect("a registry of its own");
    let clients: Vec<Client> = (0..config.connections)
        .map(|_| {
            let shared = Box::new(Shared(endpoints.clone()));
            Client::new(client_config(config), shared, metrics.clone())
        })
        .collect();
    let ready = join_all(clients.iter().map(Client::ready));
    if timeout(START_LIMIT, ready).await.is_err() {
        return Err(no_endpoint(config, &endpoints.borrow()));
    }
    // Of one that does not answer the result will say that it came later, or never.
    let known = endpoints.borrow().len();
    let settled = join_all(clients.iter().map(|client| settled(client, known)));
    let _ = timeout(SETTLE_LIMIT, settled).await;
    Ok(clients)
}

/// Waits until a client is connected to as many endpoints.
async fn settled(client: &Client, known: usize) {
    let _ = client.changes().wait_for(|endpoints| endpoints.len() >= known).await;
}

fn no_endpoint(config: &LoadConfig, endpoints: &Endpoints) -> LoadError {
    let known: Vec<String> = endpoints.keys().map(ToString::to_string).collect();
    let found = if known.is_empty() { config.source().to_string() } else { known.join(", ") };
    LoadError::NoEndpoint { found, after: humantime::format_duration(START_LIMIT) }
}

fn client_config(config: &LoadConfig) -> ClientConfig {
    ClientConfig {
        timeout: config.timeout,
        retries: config.retries,
        // The workers are the bound; a client of its own may be slower to see that an
        // attempt has ended than the worker that makes the next.
        max_outstanding: config.in_flight as usize * 2,
        max_payload: config.size.most,
        max_reply: config.max_reply.bytes(),
        max_connection_replies: config.max_connection_replies.bytes(),
        max_replies: config.max_replies.bytes(),
        ..ClientConfig::default()
    }
}

/// A source that is followed once for all clients. It has not been looked at yet: the
/// first set is a change.
struct Shared(watch::Receiver<Endpoints>);

impl Discovery for Shared {
    fn follow(mut self: Box<Self>, endpoints: watch::Sender<Endpoints>) -> BoxFuture<'static, ()> {
        Box::pin(async move {
            loop {
                tokio::select! {
                    Ok(()) = self.0.changed() => {}
                    () = endpoints.closed() => return,
                }
                endpoints.send_replace(self.0.borrow_and_update().clone());
            }
        })
    }
}

/// What the workers, the pacer and the progress share.
struct Run<'a> {
    config: &'a LoadConfig,
    start: Instant,
    /// In an open loop, when each request is due.
    schedule: Option<Schedule>,
    /// A permit for each request that is due and that no worker has taken.
    due: Semaphore,
    /// How many requests were due so far.
    released: Cell<u64>,
    /// How many of them a worker has taken.
    taken: Cell<u64>,
    /// No more requests come due.
    over: Cell<bool>,
    /// And a worker has taken the last.
    all_taken: Notify,
    payloads: RefCell<Payloads>,
    recorder: RefCell<Recorder>,
}

impl<'a> Run<'a> {
    fn new(config: &'a LoadConfig, start: Instant) -> Self {
        let schedule = match config.rate {
            Rate::PerSecond(rate) => Some(Schedule::new(start, rate, config.duration)),
            Rate::Max => None,
        };
        Self {
            config,
            start,
            schedule,
            due: Semaphore::new(0),
            released: Cell::new(0),
            taken: Cell::new(0),
            over: Cell::new(false),
            all_taken: Notify::new(),
            payloads: RefCell::new(Payloads::new(config.size)),
            recorder: RefCell::new(Recorder::new(start, slice(config.duration))),
        }
    }

    /// Makes all requests and waits for their outcomes; whether a signal ended it.
    async fn drive(
        &self,
        clients: &[Client],
        timer: Timer,
        termination: &mut AsyncTermination,
        progress: &Progress,
    ) -> Result<bool, LoadError> {
        let workers = (0..self.config.outstanding()).map(|n| &clients[n % clients.len()]);
        let workers = join_all(workers.map(|client| self.work(client)));
        // Without tokio's budget, which is made for tasks: the workers share one, and
        // would be sent to the back of the queue for being many.
        let requests = unconstrained(join(self.pace(timer, termination), workers));
        let (interrupted, _) = tokio::select! {
            done = requests => done,
            never = self.watch(&clients[0], progress) => match never {},
        };
        self.recorder.borrow_mut().failed(UNSENT, self.not_taken());
        Ok(interrupted?)
    }

    /// One worker: takes what is due, one request at a time.
    async fn work(&self, client: &Client) {
        while let Some(due) = self.next().await {
            let payload = self.payloads.borrow_mut().draw();
            let bytes = self.payloads.borrow().bytes(payload);
            self.recorder.borrow_mut().sent += 1;
            let sent = Instant::now();
            let reply = client.request(bytes).await;
            // The client has looked at the clock already.
            let done = reply.as_ref().map_or_else(|_| Instant::now(), |reply| sent + reply.elapsed);
            let matches = |reply: &[u8]| self.payloads.borrow().matches(payload, reply);
            let (attempts, completion) = completion(reply, matches);
            let rests = due.is_none() && matches!(completion, Completion::Failed(_));
            let times = Times { due: due.unwrap_or(sent), sent, done };
            self.recorder.borrow_mut().record(times, attempts, completion);
            if rests {
                sleep(AFTER_FAILURE).await;
            }
        }
    }

    /// The next request: when it was due, which in a closed loop is now. None where
    /// there is no more.
    async fn next(&self) -> Option<Option<Instant>> {
        let Some(schedule) = &self.schedule else { return (!self.over.get()).then_some(None) };
        self.due.acquire().await.ok()?.forget();
        let number = self.taken.get();
        self.taken.set(number + 1);
        self.close_when_all_are_taken();
        Some(Some(schedule.due(number)))
    }

    /// Lets requests become due until their time is over or a signal comes; whether
    /// one came.
    async fn pace(&self, timer: Timer, termination: &mut AsyncTermination) -> io::Result<bool> {
        let interrupted = tokio::select! {
            released = self.release(timer) => released.map(|()| false),
            signal = termination.recv() => signal.map(|_| true),
        };
        self.over.set(true);
        self.close_when_all_are_taken();
        if !self.due.is_closed() {
            // What waits now has one more timeout; what is not sent by then has failed.
            let _ = timeout(self.config.timeout, self.all_taken.notified()).await;
            self.due.close();
        }
        interrupted
    }

    fn close_when_all_are_taken(&self) {
        if self.over.get() && self.not_taken() == 0 {
            self.due.close();
            self.all_taken.notify_one();
        }
    }

    /// Waits for each due time in turn, and catches up on those that passed.
    async fn release(&self, mut timer: Timer) -> io::Result<()> {
        let Some(schedule) = &self.schedule else {
            sleep(self.config.duration).await;
            return Ok(());
        };
        while self.released.get() < schedule.total() {
            self.release_what_is_due(schedule, Instant::now());
            timer.sleep_until(schedule.due(self.released.get())).await?;
        }
        Ok(())
    }

    fn release_what_is_due(&self, schedule: &Schedule, now: Instant) {
        let (before, due) = (self.released.get(), schedule.due_by(now));
        self.due.add_permits((due - before) as usize);
        self.released.set(due);
        let mut recorder = self.recorder.borrow_mut();
        (before..due).for_each(|number| recorder.noticed(schedule.due(number), now));
        let idle = self.config.outstanding() as u64 - recorder.outstanding();
        let waiting = self.not_taken().saturating_sub(idle);
        recorder.most_waiting = recorder.most_waiting.max(waiting);
    }

    /// How many requests are due and with no worker yet.
    fn not_taken(&self) -> u64 {
        self.released.get() - self.taken.get()
    }

    /// Shows the progress, and records which endpoints there are.
    async fn watch(&self, client: &Client, progress: &Progress) -> Infallible {
        let mut changes = client.changes();
        let mut ticks = interval(progress.period());
        ticks.reset();
        let mut last = Instant::now();
        loop {
            let endpoints = changes.borrow_and_update().clone();
            self.recorder.borrow_mut().endpoints_are(&endpoints, Instant::now());
            tokio::select! {
                Ok(()) = changes.changed() => {}
                _ = ticks.tick() => {
                    progress.show(&self.look(&endpoints, last.elapsed()));
                    last = Instant::now();
                }
            }
        }
    }

    fn look(&self, endpoints: &Endpoints, period: Duration) -> Look {
        let mut recorder = self.recorder.borrow_mut();
        Look {
            elapsed: self.start.elapsed(),
            recent: recorder.recent.take(),
            period,
            failed: recorder.failures(),
            endpoints: endpoints
                .values()
                .filter(|known| known.state == EndpointState::Ready)
                .count(),
        }
    }
}

/// How many attempts a request took, and how it ended.
fn completion(
    reply: Result<Reply, RequestError>,
    matches: impl FnOnce(&[u8]) -> bool,
) -> (u32, Completion) {
    match reply {
        Ok(reply) if matches(&reply.payload) => {
            (reply.attempts, Completion::Answered(reply.endpoint))
        }
        Ok(reply) => (reply.attempts, Completion::Failed(ALTERED)),
        Err(error) => (attempts(&error), Completion::Failed(error.kind())),
    }
}

fn attempts(error: &RequestError) -> u32 {
    match error {
        RequestError::TimedOut { attempts, .. } | RequestError::Disconnected { attempts, .. } => {
            *attempts
        }
        _ => 0,
    }
}

/// How finely the timeline of a run is cut: some hundred slices of a short one, and
/// seconds of a long one.
fn slice(duration: Duration) -> Duration {
    match duration.as_secs() {
        0..2 => Duration::from_millis(10),
        2..60 => Duration::from_millis(100),
        _ => Duration::from_secs(1),
    }
}
