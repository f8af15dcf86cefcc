//! One endpoint as callers see it, and the roster of all endpoints.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering::{AcqRel, Relaxed};
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use prometheus::local::LocalHistogram;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;

use super::discovery::{Endpoint, EndpointState, Endpoints};
use super::metrics::ClientMetrics;
use super::reply::ReplyMemory;
use super::slots::Slot;
use super::spread;
use super::trouble::{Trouble, Unusable};
use zmq_echo::service::Rejection;
use zmtp::endpoint::ConnectEndpoint;

/// The client's view of an endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum State {
    /// Not connected: connecting, or waiting to try again.
    Connecting,
    /// Connected; gets requests.
    Ready,
    /// A request timed out there; it gets no requests until it has answered a check.
    Suspect,
    /// Gets no new requests. It stays connected until its outstanding requests are answered or time
    /// out.
    Draining,
}

/// A snapshot of what the client knows about an endpoint.
#[derive(Debug, Clone)]
pub struct EndpointStatus {
    /// Its address, or its name and port.
    pub endpoint: Arc<ConnectEndpoint>,
    /// The client's view of it.
    pub state: State,
    /// Attempts there that have no reply yet.
    pub outstanding: usize,
    /// Replies that arrived in time since the endpoint became known.
    pub answered: u64,
    /// The last thing that went wrong there. `None` if it works, or if nothing has been tried yet.
    pub trouble: Option<Trouble>,
}

/// An endpoint's handle: the state that its connection's task and the callers share.
#[derive(Debug)]
pub(super) struct Member {
    pub endpoint: Arc<ConnectEndpoint>,
    state: AtomicU8,
    outstanding: AtomicUsize,
    answered: AtomicU64,
    /// The last thing that went wrong, and when.
    trouble: Mutex<Option<(Instant, Trouble)>>,
    submissions: mpsc::UnboundedSender<Ticket>,
    metrics: ClientMetrics,
    /// What the source says about it.
    pub wanted: watch::Sender<Endpoint>,
}

/// Settles a race between the connection that hands a request to its socket and the caller that
/// gives it up. The first to take the claim wins.
#[derive(Debug, Clone, Default)]
pub(super) struct Claim(Arc<AtomicBool>);

impl Claim {
    /// Takes the claim; returns whether this call was the first.
    pub fn take(&self) -> bool {
        !self.0.swap(true, AcqRel)
    }
}

/// A request and its slot. Each attempt returns it. It is boxed because it is passed on often.
#[derive(Debug)]
pub(super) struct Request {
    pub payload: Bytes,
    /// Held until the request has ended.
    pub _slot: Slot,
    pub started: Instant,
    /// Whether an earlier attempt failed.
    pub is_retry: bool,
    /// Present if its caller may give it up before the connection does.
    pub claim: Option<Claim>,
}

/// The outcome of an attempt.
#[derive(Debug)]
pub(super) enum Attempt {
    Answered(Bytes, ReplyMemory),
    /// Sent, but no reply came in time.
    TimedOut,
    /// Sent, but the connection broke before the reply came.
    Disconnected,
    /// The reply came, but there was no memory for it.
    ReplyMemory,
    /// The server answered with an error.
    Rejected(Box<Rejection>),
    /// The reply's payload has this many frames: none, or several.
    NotOneFrame(usize),
    /// Not all of its bytes were handed to the kernel, and the rest will not be. So the server
    /// cannot have acted on it.
    NotSent,
}

/// What a caller learns about its attempt.
#[derive(Debug)]
pub(super) struct Outcome {
    pub attempt: Attempt,
    /// Time since the start of the request. Meaningful only if it was answered.
    pub elapsed: Duration,
    /// The request, for the next attempt. `None` if the client has ended.
    pub request: Option<Box<Request>>,
}

/// An attempt at an endpoint: the caller and the request. The request keeps its slot until the
/// attempt has ended, even if the caller no longer waits.
#[derive(Debug)]
pub(super) struct Ticket {
    caller: oneshot::Sender<Outcome>,
    request: Box<Request>,
}

impl Ticket {
    /// The payload to send.
    pub fn payload(&self) -> &Bytes {
        &self.request.payload
    }

    /// When the request began, in this attempt or an earlier one.
    pub fn started(&self) -> Instant {
        self.request.started
    }

    /// Whether the request may be handed to the socket. It may not if its caller has given it up,
    /// because the caller was told that it was not sent.
    pub fn claim(&self) -> bool {
        self.request.claim.as_ref().is_none_or(Claim::take)
    }

    /// Whether the caller no longer waits.
    pub fn is_abandoned(&self) -> bool {
        self.caller.is_closed()
    }
}

/// Attempts at one endpoint that have ended and whose callers are told together. Counting them
/// together is much cheaper: updating counters for each attempt would cost more than the rest of a
/// reply.
#[derive(Debug)]
pub(super) struct Settled {
    member: Arc<Member>,
    ended: Vec<(Ticket, Attempt)>,
    duration: LocalHistogram,
}

impl Settled {
    pub fn new(member: Arc<Member>) -> Self {
        let duration = member.metrics.request_duration.local();
        Self { member, ended: Vec::new(), duration }
    }

    /// Adds an attempt that has ended.
    pub fn push(&mut self, ticket: Ticket, attempt: Attempt) {
        self.ended.push((ticket, attempt));
    }

    /// Counts the ended attempts and tells their callers.
    pub fn tell(&mut self) {
        if self.ended.is_empty() {
            return;
        }
        let now = Instant::now();
        self.count(now);
        for (ticket, attempt) in self.ended.drain(..) {
            let elapsed = now.saturating_duration_since(ticket.request.started);
            let outcome = Outcome { attempt, elapsed, request: Some(ticket.request) };
            // If the caller no longer waits, the outcome is dropped here and frees the slot.
            let _ = ticket.caller.send(outcome);
        }
    }

    /// Counts each attempt once. A request that was not sent is not an attempt.
    fn count(&mut self, now: Instant) {
        let [mut answered, mut timed_out, mut disconnected, mut memory, mut not_sent] = [0; 5];
        let [mut rejected, mut not_one_frame] = [0; 2];
        let mut retries = 0;
        for (ticket, attempt) in &self.ended {
            match attempt {
                Attempt::Answered(..) => {
                    answered += 1;
                    if !ticket.is_abandoned() {
                        let elapsed = now.saturating_duration_since(ticket.request.started);
                        self.duration.observe(elapsed.as_secs_f64());
                    }
                }
                Attempt::TimedOut => timed_out += 1,
                Attempt::Disconnected => disconnected += 1,
                Attempt::ReplyMemory => memory += 1,
                Attempt::Rejected(_) => rejected += 1,
                Attempt::NotOneFrame(_) => not_one_frame += 1,
                Attempt::NotSent => {
                    not_sent += 1;
                    continue;
                }
            }
            retries += u64::from(ticket.request.is_retry);
        }
        let metrics = &self.member.metrics;
        self.duration.flush();
        let failed = timed_out + disconnected + memory + rejected + not_one_frame;
        metrics.attempts.inc_by(answered + failed);
        metrics.retries.inc_by(retries);
        metrics.attempts_timed_out.inc_by(timed_out);
        metrics.attempts_disconnected.inc_by(disconnected);
        metrics.attempts_reply_memory.inc_by(memory);
        metrics.attempts_rejected.inc_by(rejected);
        metrics.attempts_not_one_frame.inc_by(not_one_frame);
        metrics.not_sent.inc_by(not_sent);
        self.member.answered.fetch_add(answered, Relaxed);
        self.member.outstanding.fetch_sub(self.ended.len(), Relaxed);
    }
}

impl Member {
    pub fn new(
        endpoint: ConnectEndpoint,
        wanted: Endpoint,
        submissions: mpsc::UnboundedSender<Ticket>,
        metrics: ClientMetrics,
    ) -> Self {
        Self {
            endpoint: Arc::new(endpoint),
            state: AtomicU8::new(State::Connecting as u8),
            outstanding: AtomicUsize::new(0),
            answered: AtomicU64::new(0),
            trouble: Mutex::default(),
            submissions,
            metrics,
            wanted: watch::Sender::new(wanted),
        }
    }

    /// Makes one attempt: hands the request to the connection and waits for the outcome. The
    /// connection's timeout bounds it.
    pub async fn attempt(self: &Arc<Self>, request: Box<Request>) -> Outcome {
        let (caller, outcome) = oneshot::channel();
        self.outstanding.fetch_add(1, Relaxed);
        // The number of slots bounds the queue.
        if let Err(error) = self.submissions.send(Ticket { caller, request }) {
            // The connection's task has ended.
            let mut settled = Settled::new(Arc::clone(self));
            settled.push(error.0, Attempt::NotSent);
            settled.tell();
        }
        let lost =
            |_| Outcome { attempt: Attempt::Disconnected, elapsed: Duration::ZERO, request: None };
        outcome.await.unwrap_or_else(lost)
    }

    pub fn state(&self) -> State {
        const STATES: [State; 4] =
            [State::Connecting, State::Ready, State::Suspect, State::Draining];
        STATES[usize::from(self.state.load(Relaxed))]
    }

    pub fn status(&self) -> EndpointStatus {
        EndpointStatus {
            endpoint: Arc::clone(&self.endpoint),
            state: self.state(),
            outstanding: self.outstanding.load(Relaxed),
            answered: self.answered.load(Relaxed),
            trouble: self.trouble().as_ref().map(|(_, trouble)| trouble.clone()),
        }
    }

    /// Records what went wrong.
    pub fn is_in(&self, trouble: Trouble) {
        *self.trouble() = Some((Instant::now(), trouble));
    }

    /// Records that the endpoint works again.
    pub fn is_well(&self) {
        *self.trouble() = None;
    }

    fn trouble(&self) -> MutexGuard<'_, Option<(Instant, Trouble)>> {
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// All endpoints, and those that may be picked.
#[derive(Debug)]
pub(super) struct Roster {
    members: Mutex<BTreeMap<ConnectEndpoint, Arc<Member>>>,
    usable: watch::Sender<Arc<[Arc<Member>]>>,
    changes: watch::Sender<Endpoints>,
    known: AtomicUsize,
    /// Whether the source has ever answered.
    asked: AtomicBool,
    metrics: ClientMetrics,
}

impl Roster {
    pub fn new(metrics: ClientMetrics) -> Self {
        Self {
            members: Mutex::default(),
            usable: watch::Sender::new(Arc::new([])),
            changes: watch::Sender::default(),
            known: AtomicUsize::new(0),
            asked: AtomicBool::new(false),
            metrics,
        }
    }

    /// Picks the less loaded of two usable endpoints. It avoids those in `avoided` unless there are
    /// no others.
    pub fn pick(&self, avoided: &[Arc<Member>]) -> Option<Arc<Member>> {
        let usable = self.usable.borrow();
        let fresh = |member: &Arc<Member>| {
            !avoided.iter().any(|avoided| avoided.endpoint == member.endpoint)
        };
        let load = |member: &Arc<Member>| member.outstanding.load(Relaxed);
        spread::pick(&usable, fresh, load)
            .or_else(|| spread::pick(&usable, |_| true, load))
            .cloned()
    }

    /// Waits until there are usable endpoints.
    pub async fn wait_until_usable(&self) {
        // This cannot fail: the roster owns the sender.
        let _ = self.usable.subscribe().wait_for(|usable| !usable.is_empty()).await;
    }

    pub fn changes(&self) -> watch::Receiver<Endpoints> {
        self.changes.subscribe()
    }

    pub fn statuses(&self) -> Vec<EndpointStatus> {
        self.members().values().map(|member| member.status()).collect()
    }

    /// Why no endpoint is usable, as far as the endpoints can tell. `None` if one is.
    pub fn unusable(&self) -> Option<Unusable> {
        if !self.usable.borrow().is_empty() {
            return None;
        }
        let members = self.members();
        let latest = members.values().filter_map(|member| {
            let (at, trouble) = member.trouble().clone()?;
            Some((at, Arc::clone(&member.endpoint), trouble))
        });
        let latest = latest.max_by_key(|(at, ..)| *at);
        Some(match latest {
            Some((_, endpoint, trouble)) => Unusable::Endpoint { endpoint, trouble },
            None if members.values().any(|member| member.state() != State::Draining) => {
                Unusable::Connecting
            }
            None if self.known.load(Relaxed) > 0 || !members.is_empty() => Unusable::Draining,
            None if self.asked.load(Relaxed) => Unusable::NoneNamed,
            None => Unusable::NotAsked,
        })
    }

    pub fn get(&self, endpoint: &ConnectEndpoint) -> Option<Arc<Member>> {
        self.members().get(endpoint).cloned()
    }

    pub fn members_where(&self, holds: impl Fn(&ConnectEndpoint) -> bool) -> Vec<Arc<Member>> {
        let members = self.members();
        members.values().filter(|member| holds(&member.endpoint)).cloned().collect()
    }

    pub fn len(&self) -> usize {
        self.members().len()
    }

    pub fn insert(&self, member: Arc<Member>) {
        self.members().insert((*member.endpoint).clone(), member);
    }

    pub fn remove(&self, member: &Member) {
        let mut members = self.members();
        members.remove(&member.endpoint);
        self.publish(&members);
    }

    /// Records how many endpoints the source lists.
    pub fn set_known(&self, known: usize) {
        self.asked.store(true, Relaxed);
        let before = self.known.swap(known, Relaxed);
        self.metrics.known.add(known as i64 - before as i64);
    }

    /// Changes the client's view of an endpoint.
    pub fn set_state(&self, member: &Member, state: State) {
        let members = self.members();
        member.state.store(state as u8, Relaxed);
        self.publish(&members);
    }

    /// Publishes the usable endpoints to those that pick, and all changes to those that watch.
    fn publish(&self, members: &BTreeMap<ConnectEndpoint, Arc<Member>>) {
        let usable: Arc<[_]> =
            members.values().filter(|member| member.state() == State::Ready).cloned().collect();
        let before = self.usable.send_replace(Arc::clone(&usable)).len();
        self.metrics.usable.add(usable.len() as i64 - before as i64);
        let now: Endpoints = members
            .iter()
            .filter_map(|(endpoint, member)| Some((endpoint.clone(), shown(member)?)))
            .collect();
        self.changes.send_if_modified(|last| {
            let modified = *last != now;
            *last = now;
            modified
        });
    }

    fn members(&self) -> MutexGuard<'_, BTreeMap<ConnectEndpoint, Arc<Member>>> {
        self.members.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Roster {
    fn drop(&mut self) {
        // Other clients may share the gauges, so this client's part is subtracted.
        self.set_known(0);
        self.metrics.usable.sub(self.usable.borrow().len() as i64);
    }
}

/// How [`Roster::changes`] shows an endpoint.
fn shown(member: &Member) -> Option<Endpoint> {
    let state = match member.state() {
        State::Ready => EndpointState::Ready,
        State::Draining => EndpointState::Draining,
        State::Connecting | State::Suspect => return None,
    };
    Some(Endpoint { state, ..member.wanted.borrow().clone() })
}
