//! One run: the clients, the workers, and the pacer that lets requests become due.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::future::pending;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use futures_util::future::{BoxFuture, join, join_all, select_all};
use prometheus::Registry;
use tokio::sync::{Notify, Semaphore, watch};
use tokio::task::unconstrained;
use tokio::time::{interval, sleep, timeout};

use super::completion::{ALTERED, Completion, UNEXPECTED, UNSENT};
use super::config::{LoadConfig, Rate};
use super::error::LoadError;
use super::payload::{Expect, Payload, Payloads, contains};
use super::progress::{Look, Progress};
use super::recorder::{Recorder, Times};
use super::result::LoadResult;
use super::schedule::{Schedule, Timer};
use crate::discovery::{Discovery, EndpointState, Endpoints, Failures};
use crate::{Client, ClientConfig, ClientMetrics, Reply, RequestError, Trouble, Unusable};
use zmq_echo::service::termination::{AsyncTermination, TerminationSocket};
use zmtp::endpoint::ConnectEndpoint;

/// How long the other clients may take once one has an endpoint that answers: several times the
/// pause before a refused connection is tried again.
const FOLLOW_LIMIT: Duration = Duration::from_secs(5);

/// How long the other endpoints may take once one answers: several round trips between two zones.
const SETTLE_LIMIT: Duration = Duration::from_secs(1);

/// How long a closed-loop worker rests after a failure. Otherwise a service that refuses at once
/// would get a million requests per second.
const AFTER_FAILURE: Duration = Duration::from_millis(10);

/// See [`super::run`].
pub async fn run(
    config: &LoadConfig,
    command: String,
    termination: TerminationSocket,
    progress: &Progress,
) -> Result<LoadResult, LoadError> {
    let mut termination = termination.into_async()?;
    let (clients, mut source) = tokio::select! {
        started = start(config, progress) => started?,
        signal = termination.recv() => return Err(signal.map_or_else(LoadError::Start, |_| LoadError::Interrupted)),
    };
    let timer = Timer::new()?;
    let started = SystemTime::now();
    let run = Run::new(config, Instant::now());
    let endpoints = clients[0].changes().borrow().clone();
    run.recorder.borrow_mut().endpoints_are(&endpoints, run.start);
    let interrupted = run.drive(&clients, &mut source, timer, &mut termination, progress).await?;
    let elapsed = run.start.elapsed();
    let recorder = &mut *run.recorder.borrow_mut();
    recorder.advance(Instant::now());
    recorder.troubles = troubles(&clients);
    Ok(LoadResult::new(config, command, started, elapsed, interrupted, recorder))
}

/// Starts clients that share one source of endpoints, and waits until each has an endpoint that
/// answers. Also returns what the source lists.
async fn start(
    config: &LoadConfig,
    progress: &Progress,
) -> Result<(Vec<Client>, watch::Receiver<Endpoints>), LoadError> {
    let (sender, endpoints) = watch::channel(Endpoints::new());
    let discovery = config.source().discovery().await?;
    let failures = discovery.failures();
    tokio::spawn(discovery.follow(sender));
    let metrics = ClientMetrics::new(&Registry::new()).expect("a registry of its own");
    let clients: Vec<Client> = (0..config.connections)
        .map(|_| {
            let shared = Shared { endpoints: endpoints.clone(), failures: failures.clone() };
            let shared = Box::new(shared);
            Client::new(client_config(config), shared, metrics.clone())
        })
        .collect();
    let waited = tokio::select! {
        waited = wait_until_ready(&clients, config.wait) => waited,
        never = show_waiting(&clients[0], config, progress) => match never {},
    };
    let unusable = || clients.iter().find_map(|client| Some((client, client.unusable()?)));
    if let Err(after) = waited
        && let Some((client, unusable)) = unusable()
    {
        return Err(no_endpoint(config, client, &unusable, &endpoints.borrow(), after));
    }
    // An endpoint that does not answer by now appears in the result as one that came later, or that
    // never came.
    let known = endpoints.borrow().len();
    let settled = join_all(clients.iter().map(|client| settled(client, known)));
    let _ = timeout(SETTLE_LIMIT, settled).await;
    Ok((clients, endpoints))
}

/// Waits for the first endpoint that answers, and then until every client is connected to one. If
/// it fails, returns how long it waited.
async fn wait_until_ready(clients: &[Client], wait: Duration) -> Result<(), Duration> {
    let first = select_all(clients.iter().map(|client| Box::pin(client.ready())));
    timeout(wait, first).await.map_err(|_| wait)?;
    let all = join_all(clients.iter().map(Client::ready));
    timeout(FOLLOW_LIMIT, all).await.map(|_| ()).map_err(|_| FOLLOW_LIMIT)
}

/// Shows every few seconds why the run has not started yet, if `--wait` is long enough.
async fn show_waiting(client: &Client, config: &LoadConfig, progress: &Progress) -> Infallible {
    let started = Instant::now();
    let mut ticks = interval(progress.period());
    ticks.reset();
    if config.wait <= progress.period() {
        return pending().await;
    }
    loop {
        ticks.tick().await;
        if let Some(unusable) = client.unusable() {
            progress.show_waiting(started.elapsed(), &unusable.to_string());
        }
    }
}

/// Waits until a client is connected to `known` endpoints.
async fn settled(client: &Client, known: usize) {
    let _ = client.changes().wait_for(|endpoints| endpoints.len() >= known).await;
}

/// The most endpoints and reasons that the error lists if no endpoint answers.
const SHOWN: usize = 3;

fn no_endpoint(
    config: &LoadConfig,
    client: &Client,
    unusable: &Unusable,
    endpoints: &Endpoints,
    after: Duration,
) -> LoadError {
    let found = match endpoints.len() {
        0 => config.source().to_string(),
        _ => listed(endpoints.keys().map(ToString::to_string), ", "),
    };
    LoadError::NoEndpoint {
        found,
        after: humantime::format_duration(after),
        reason: reason(client, unusable),
        advice: unusable.advice(),
    }
}

/// What went wrong, listed by endpoint if the reasons differ.
fn reason(client: &Client, unusable: &Unusable) -> String {
    let Unusable::Endpoint { trouble, .. } = unusable else { return unusable.to_string() };
    let last = trouble.to_string();
    let text = |trouble: Option<Trouble>| {
        trouble.map_or_else(|| Unusable::Connecting.to_string(), |trouble| trouble.to_string())
    };
    let each: Vec<_> = client
        .endpoints()
        .into_iter()
        .map(|status| (status.endpoint, text(status.trouble)))
        .collect();
    if each.iter().all(|(_, text)| *text == last) {
        return last;
    }
    listed(each.into_iter().map(|(endpoint, text)| format!("{endpoint}: {text}")), "; ")
}

/// Joins the first few texts, and says how many more there are.
fn listed(texts: impl ExactSizeIterator<Item = String>, separator: &str) -> String {
    let more = texts.len().saturating_sub(SHOWN);
    let mut shown: Vec<_> = texts.take(SHOWN).collect();
    if more > 0 {
        shown.push(format!("and {more} more"));
    }
    shown.join(separator)
}

/// The endpoints that do not work at the end, for any of the clients, with the reason.
fn troubles(clients: &[Client]) -> BTreeMap<Arc<ConnectEndpoint>, String> {
    let statuses = clients.iter().flat_map(Client::endpoints);
    statuses.filter_map(|status| Some((status.endpoint, status.trouble?.to_string()))).collect()
}

fn client_config(config: &LoadConfig) -> ClientConfig {
    ClientConfig {
        timeout: config.timeout,
        retries: config.retries,
        // The number of workers is the real limit. The client needs some room on top, because it
        // may notice the end of an attempt later than the worker that makes the next one.
        max_outstanding: config.in_flight as usize * 2,
        max_payload: config.payloads().most(),
        max_reply: config.max_reply.bytes(),
        max_connection_replies: config.max_connection_replies.bytes(),
        max_replies: config.max_replies.bytes(),
        ..ClientConfig::default()
    }
}

/// A source that is followed once for all clients. Its receiver has not seen the first set, so that
/// set counts as a change.
struct Shared {
    endpoints: watch::Receiver<Endpoints>,
    failures: Failures,
}

impl Discovery for Shared {
    fn follow(mut self: Box<Self>, endpoints: watch::Sender<Endpoints>) -> BoxFuture<'static, ()> {
        Box::pin(async move {
            loop {
                tokio::select! {
                    Ok(()) = self.endpoints.changed() => {}
                    () = endpoints.closed() => return,
                }
                endpoints.send_replace(self.endpoints.borrow_and_update().clone());
            }
        })
    }

    fn failures(&self) -> Failures {
        self.failures.clone()
    }
}

/// State that the workers, the pacer and the progress share.
struct Run<'a> {
    config: &'a LoadConfig,
    start: Instant,
    /// When each request is due, in an open loop.
    schedule: Option<Schedule>,
    /// One permit for each request that is due and not yet taken by a worker.
    due: Semaphore,
    /// How many requests have become due.
    released: Cell<u64>,
    /// How many of them workers have taken.
    taken: Cell<u64>,
    /// No more requests will become due.
    over: Cell<bool>,
    /// Notified once no more requests will become due and all have been taken.
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
            payloads: RefCell::new(Payloads::new(config.payloads())),
            recorder: RefCell::new(Recorder::new(start, slice(config.duration))),
        }
    }

    /// Makes all requests and waits for their outcomes. Returns whether a signal ended it.
    async fn drive(
        &self,
        clients: &[Client],
        source: &mut watch::Receiver<Endpoints>,
        timer: Timer,
        termination: &mut AsyncTermination,
        progress: &Progress,
    ) -> Result<bool, LoadError> {
        let workers = (0..self.config.outstanding()).map(|n| &clients[n % clients.len()]);
        let workers = join_all(workers.map(|client| self.work(client)));
        // Not limited by tokio's budget, which is meant for one task: the workers would share it,
        // and their future would be rescheduled all the time.
        let requests = unconstrained(join(self.pace(timer, termination), workers));
        let (interrupted, _) = tokio::select! {
            done = requests => done,
            never = self.watch(&clients[0], source, progress) => match never {},
        };
        self.recorder.borrow_mut().failed(UNSENT, self.not_taken());
        Ok(interrupted?)
    }

    /// One worker: takes requests that are due, one at a time.
    async fn work(&self, client: &Client) {
        while let Some(due) = self.next().await {
            let payload = self.payloads.borrow_mut().draw();
            let bytes = self.payloads.borrow().bytes(payload);
            self.recorder.borrow_mut().sent += 1;
            let sent = Instant::now();
            let reply = client.request(bytes).await;
            // The client has measured the time already.
            let done = reply.as_ref().map_or_else(|_| Instant::now(), |reply| sent + reply.elapsed);
            let (attempts, completion) = completion(reply, |reply| self.check(payload, reply));
            let rests = due.is_none() && matches!(completion, Completion::Failed(_));
            let times = Times { due: due.unwrap_or(sent), sent, done };
            self.recorder.borrow_mut().record(times, attempts, completion);
            if rests {
                sleep(AFTER_FAILURE).await;
            }
        }
    }

    /// Why a reply is wrong, if it is.
    fn check(&self, payload: Payload, reply: &[u8]) -> Option<&'static str> {
        let (is_right, otherwise) = match &self.config.expect {
            Expect::Echo => (self.payloads.borrow().matches(payload, reply), ALTERED),
            Expect::Any => return None,
            Expect::Contains(part) => (contains(reply, part.as_bytes()), UNEXPECTED),
        };
        (!is_right).then_some(otherwise)
    }

    /// Waits for the next request and returns when it was due; in a closed loop that is now.
    /// Returns `None` if there are no more.
    async fn next(&self) -> Option<Option<Instant>> {
        let Some(schedule) = &self.schedule else { return (!self.over.get()).then_some(None) };
        self.due.acquire().await.ok()?.forget();
        let number = self.taken.get();
        self.taken.set(number + 1);
        self.close_when_all_are_taken();
        Some(Some(schedule.due(number)))
    }

    /// Lets requests become due until the run is over or a signal comes. Returns whether a signal
    /// came.
    async fn pace(&self, timer: Timer, termination: &mut AsyncTermination) -> io::Result<bool> {
        let interrupted = tokio::select! {
            released = self.release(timer) => released.map(|()| false),
            signal = termination.recv() => signal.map(|_| true),
        };
        self.over.set(true);
        self.close_when_all_are_taken();
        if !self.due.is_closed() {
            // Queued requests have one more timeout. Those that are not sent by then have failed.
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

    /// Waits for each due time in turn, and catches up on those that have passed.
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

    /// How many requests are due but not yet taken.
    fn not_taken(&self) -> u64 {
        self.released.get() - self.taken.get()
    }

    /// Shows the progress, and records changes of the endpoints.
    async fn watch(
        &self,
        client: &Client,
        source: &mut watch::Receiver<Endpoints>,
        progress: &Progress,
    ) -> Infallible {
        let mut changes = client.changes();
        let mut ticks = interval(progress.period());
        ticks.reset();
        let mut last = Instant::now();
        self.names(&source.borrow_and_update());
        loop {
            let endpoints = changes.borrow_and_update().clone();
            self.recorder.borrow_mut().endpoints_are(&endpoints, Instant::now());
            tokio::select! {
                Ok(()) = changes.changed() => {}
                Ok(()) = source.changed() => self.names(&source.borrow_and_update()),
                _ = ticks.tick() => {
                    progress.show(&self.look(&endpoints, last.elapsed()));
                    last = Instant::now();
                }
            }
        }
    }

    fn names(&self, endpoints: &Endpoints) {
        let mut recorder = self.recorder.borrow_mut();
        endpoints.keys().for_each(|endpoint| recorder.names(endpoint));
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

/// The number of attempts of a request, and how it ended.
fn completion(
    reply: Result<Reply, RequestError>,
    check: impl FnOnce(&[u8]) -> Option<&'static str>,
) -> (u32, Completion) {
    match reply {
        Ok(reply) => match check(&reply.payload) {
            None => (reply.attempts, Completion::Answered(reply.endpoint)),
            Some(wrong) => (reply.attempts, Completion::Failed(wrong)),
        },
        Err(error) => (attempts(&error), Completion::Failed(error.kind())),
    }
}

fn attempts(error: &RequestError) -> u32 {
    match error {
        RequestError::TimedOut { attempts, .. }
        | RequestError::Disconnected { attempts, .. }
        | RequestError::ReplyMemory { attempts, .. }
        | RequestError::Rejected { attempts, .. }
        | RequestError::NotOneFrame { attempts, .. } => *attempts,
        _ => 0,
    }
}

/// The length of a timeline slice: some hundred slices in a short run, one per second in a long
/// one.
fn slice(duration: Duration) -> Duration {
    match duration.as_secs() {
        0..2 => Duration::from_millis(10),
        2..60 => Duration::from_millis(100),
        _ => Duration::from_secs(1),
    }
}
