//! The poll loop: one thread that runs one turn after the other, each for one event.
//!
//! Nothing in here runs concurrently, and there are no locks. If one process has too much to do,
//! add another replica. If a process cannot continue, it ends, and an orchestrator replaces it.

use std::any::Any;
use std::error::Error;
use std::future::Future;
use std::io;
use std::panic::resume_unwind;
use std::pin::pin;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use prometheus::local::LocalHistogram;
use tokio::time::{Instant as TokioInstant, sleep_until, timeout_at};
use tracing::{debug, info, trace, warn};
use zmtp::Message;
use zmtp::event::Observer;
use zmtp::router::{Closed, ConnectedPeer, Origin, PeerId, Router, SendError};

use crate::log;
use crate::metrics::Metrics;
use crate::metrics::methods::Label;
use crate::service::drain::{Action, Drain, DrainPolicy, Ending};
use crate::service::health::{Health, Phase};
use crate::service::in_flight::{Entry, InFlight, Ticket};
use crate::service::interface::{Completion, Service};
use crate::service::panics::Panics;
use crate::service::rejection::{CHECK, Rejection, is_reserved};
use crate::service::request::{Answer, Kind, Peers, Request, check_payload, envelope};
use crate::service::termination::{AsyncTermination, Signal, TerminationSocket};
use crate::service::time_limit::{self, TIME_LIMIT};
use crate::service::turn::{Due, TurnClock};

/// The longest time between two turns while draining, so that the loop soon notices that a peer has
/// left. While serving, it is [`Health::TICK`].
const DRAIN_TICK: Duration = Duration::from_millis(50);

/// After the drain decides to end, how often the loop checks whether everything that had arrived
/// has been read.
const LAST_LOOK: Duration = Duration::from_millis(5);

/// The maximum number of requests that one turn answers, and of finished replies that it sends, so
/// that a flood does not hold up signals, deadlines and the socket's own work. 256 small echoes
/// take well under a millisecond. [`TurnClock`] limits the time of a turn as well.
const BATCH: u64 = 256;

/// A turn that takes this long is counted and reported, because every peer has waited for it.
const SLOW_TURN: Duration = Duration::from_millis(100);

/// The shortest time between two reports of slow turns.
const REPORT_INTERVAL: Duration = Duration::from_secs(10);

/// The event that a turn of the loop handles.
enum Event {
    /// A request, which is in [`PollLoop::message`].
    Request(Origin),
    /// A reply to a request in flight.
    Completed(Completion),
    /// A byte from the termination socket.
    Terminate(io::Result<Signal>),
    /// The timer, which the loop sets to [`PollLoop::wake_at`].
    Tick,
}

/// How a loop ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Report {
    /// Why serving ended.
    pub ending: Ending,
    /// Requests answered since the signal.
    pub answered: u64,
    /// Requests and replies, since the signal, of peers whose connection ended before they were
    /// done: they left, broke the protocol or were closed for another reason.
    pub lost: u64,
    /// Requests that the service had not finished by the deadline. Their clients were sent the
    /// error `draining`.
    pub unfinished: u64,
    /// What was left when the socket was closed: unsent replies and discarded requests.
    pub closed: Closed,
    /// Time from the signal until the last connection was closed.
    pub duration: Duration,
}

/// Why the loop cannot serve any more.
#[derive(Debug, thiserror::Error)]
pub enum LoopError {
    /// The service could not be created at the start.
    #[error("the service could not be created")]
    Service(#[source] ServiceError),
    /// The service has panicked, and could not be created again.
    #[error("the service could not be created again after a panic")]
    Rebuild(#[source] ServiceError),
    /// The termination socket cannot be read.
    #[error("the termination socket cannot be read")]
    Termination(#[source] io::Error),
}

/// Why a service could not be created.
pub type ServiceError = Box<dyn Error + Send + Sync>;

/// The settings of the loop.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// How the loop drains after a signal.
    pub drain: DrainPolicy,
    /// A request is rejected if it has waited for this long before work on it begins. `None` for no
    /// limit.
    pub request_deadline: Option<Duration>,
    /// Whether clients may set a deadline for each request: see [`time_limit`].
    pub client_deadlines: bool,
    /// Whether a panic of the service ends the process instead of costing only its request.
    pub exit_on_panic: bool,
}

/// Answers the requests that `socket` receives with the service that `make` creates. A byte from
/// `termination` starts a drain, and the loop returns when the drain is over.
///
/// # Errors
///
/// [`LoopError`] if the loop cannot serve any more. A fault of one peer is not an error.
pub async fn run<O: Observer, S: Service>(
    socket: Router<O>,
    termination: TerminationSocket,
    settings: Settings,
    mut make: impl FnMut() -> Result<S, ServiceError>,
    metrics: &Metrics,
    health: &Health,
) -> Result<Report, LoopError> {
    let termination = termination.into_async().map_err(LoopError::Termination)?;
    let now = Instant::now();
    let mut turns = PollLoop {
        service: make().map_err(LoopError::Service)?,
        make,
        socket,
        termination,
        drain: Drain::new(settings.drain),
        client_deadlines: settings.client_deadlines,
        exit_on_panic: settings.exit_on_panic,
        message: Message::default(),
        in_flight: InFlight::new(settings.request_deadline),
        clock: TurnClock::new(now),
        calling: None,
        panics: Panics::default(),
        queue_duration: metrics.queue_duration.local(),
        work_duration: metrics.work_duration.local(),
        slow_turns: 0,
        reported_at: None,
        metrics,
        health,
        replied: 0,
        unreachable: 0,
        gone_before: 0,
        lost_before: 0,
    };
    let ending = turns.serve().await?;
    Ok(turns.finish(ending).await)
}

struct PollLoop<'a, O, S, F> {
    service: S,
    make: F,
    socket: Router<O>,
    termination: AsyncTermination,
    drain: Drain,
    client_deadlines: bool,
    exit_on_panic: bool,
    /// The request that is being answered, and then its reply.
    message: Message,
    in_flight: InFlight,
    clock: TurnClock,
    /// The label of the request, while the loop calls the service. If it is set during a panic, the
    /// service has panicked.
    calling: Option<Label>,
    panics: Panics,
    /// Added to the metrics once per batch, because an atomic operation per reply is too slow.
    queue_duration: LocalHistogram,
    work_duration: LocalHistogram,
    /// The number of slow turns since the last report, and the time of that report.
    slow_turns: u64,
    reported_at: Option<Instant>,
    metrics: &'a Metrics,
    health: &'a Health,
    /// Since the signal: replies that the socket accepted, and replies and requests in flight whose
    /// peer had left.
    replied: u64,
    unreachable: u64,
    /// Replies and requests that had been lost with their peers before the signal.
    gone_before: u64,
    lost_before: u64,
}

impl<O: Observer> Peers for Router<O> {
    fn peer(&self, id: PeerId) -> Option<ConnectedPeer> {
        self.connected_peer(id)
    }
}

/// What a batch adds to the counters. Other threads read those, so they are updated once per batch
/// and not once per message.
#[derive(Default)]
struct Tally {
    client_requests: u64,
    probe_requests: u64,
    replied: u64,
}

impl Tally {
    fn requests(&self) -> u64 {
        self.client_requests + self.probe_requests
    }

    #[inline(always)]
    fn request(&mut self, origin: &Origin) {
        if origin.is_monitor {
            self.probe_requests += 1;
        } else {
            self.client_requests += 1;
        }
    }
}

impl<O, S, F> PollLoop<'_, O, S, F>
where
    O: Observer,
    S: Service,
    F: FnMut() -> Result<S, ServiceError>,
{
    async fn serve(&mut self) -> Result<Ending, LoopError> {
        self.health.turned(Instant::now());
        self.health.enter(Phase::Serving);
        let mut alarm = pin!(sleep_until(self.wake_at(Instant::now())));
        loop {
            // Each arm is cancel-safe: a read from a socket, a timer that is kept, `completed`,
            // which [`Service`] requires to be, and `recv_from`. `biased` polls the arms in order,
            // so a flood of requests cannot hide the other events.
            let event = tokio::select! {
                biased;
                signal = self.termination.recv(), if !self.drain.begun() => Event::Terminate(signal),
                () = &mut alarm => Event::Tick,
                completion = self.service.completed() => Event::Completed(completion),
                origin = self.socket.recv_from(&mut self.message) => Event::Request(origin),
            };
            let now = Instant::now();
            self.health.turned(now);
            match event {
                Event::Request(origin) => self.answer_batch(origin, now).await?,
                Event::Completed(completion) => self.complete_batch(completion, now).await?,
                Event::Terminate(signal) => {
                    self.begin_drain(signal.map_err(LoopError::Termination)?);
                    alarm.as_mut().reset(self.wake_at(now));
                }
                Event::Tick => alarm.as_mut().reset(self.wake_at(now)),
            }
            self.cancel_abandoned();
            self.metrics.in_flight.set(self.in_flight.len() as i64);
            let (connections, socket) = (self.socket.connections(), &mut self.socket);
            match self.drain.next(now, connections, || socket.active_at()) {
                Action::Serve => {}
                Action::StopListening => {
                    self.socket.stop_listening();
                    info!("stopped listening; connected peers are still served");
                }
                Action::Finish(ending) => {
                    let more_had_come = self.answer_arrived().await?;
                    let active_at = self.socket.active_at();
                    let is_quiet = !more_had_come && self.drain.is_quiet(Instant::now(), active_at);
                    if ending != Ending::Quiet || is_quiet {
                        return Ok(ending);
                    }
                }
            }
        }
    }

    /// When the loop turns next if no other event comes.
    fn wake_at(&self, now: Instant) -> TokioInstant {
        let wake_at = match self.drain.wake_at() {
            None => now + Health::TICK,
            Some(due) => due.clamp(now + Duration::from_millis(1), now + DRAIN_TICK),
        };
        TokioInstant::from_std(wake_at)
    }

    fn begin_drain(&mut self, signal: Signal) {
        self.drain.begin(signal.at);
        self.gone_before = self.metrics.socket.undeliverable_peer_gone.get();
        self.lost_before = self.metrics.socket.lost_requests.get();
        self.health.enter(Phase::Draining);
        self.metrics.drain_deadline.set(self.deadline_in_unix_time());
        self.metrics.draining.set(1);
        info!(signal = signal.name, peers = self.metrics.socket.peers.get(), "draining");
    }

    /// The drain's deadline in seconds. Converted to the wall clock, because it is the only clock
    /// that a scraper shares with the server.
    fn deadline_in_unix_time(&self) -> f64 {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let left = self.drain.deadline().map(|at| at.saturating_duration_since(Instant::now()));
        (now + left.unwrap_or_default()).as_secs_f64()
    }

    /// Answers the request from `first` and those that are ready after it, at most [`BATCH`], in a
    /// turn that began at `began`.
    async fn answer_batch(&mut self, first: Origin, began: Instant) -> Result<(), LoopError> {
        let mut tally = Tally::default();
        self.clock.begin(began);
        let answered = if self.exit_on_panic {
            Ok(self.answer_ready(first, &mut tally))
        } else {
            log::caught(|| self.answer_ready(first, &mut tally))
        };
        let outcome = answered.or_else(|panic| self.recover(panic, &mut tally));
        self.count(&tally);
        let is_cut = outcome.as_ref().is_ok_and(|more| *more);
        let duration = self.clock.end(Instant::now);
        if is_cut && self.clock.is_slow() {
            // The service is slow, so probes and other clients must not wait for the whole batch.
            self.socket.yield_batch();
        } else if is_cut {
            self.socket.flush_batch();
        }
        if duration >= SLOW_TURN {
            self.report_slow_turn(duration);
        }
        if is_cut {
            // More may be ready, but first let the runtime see signals, timers and other sockets.
            tokio::task::yield_now().await;
        }
        outcome.map(|_| ())
    }

    /// Answers the request from `first` and those that are ready after it. Returns whether more may
    /// be ready.
    ///
    /// This is the inner loop, and it is built for speed. It is not an `async fn`, every function
    /// on a message's path here and in [`zmtp::router`] is inlined, and all messages reuse the same
    /// memory. Moving a new message would stall the CPU, which would read in one piece what it has
    /// just written in several.
    fn answer_ready(&mut self, first: Origin, tally: &mut Tally) -> bool {
        let mut next = Some(first);
        while let Some(origin) = next {
            self.answer(&origin, tally);
            match self.clock.message(Instant::now) {
                Due::Nothing => {}
                Due::Flush => self.socket.flush_batch(),
                Due::End => return true,
            }
            if tally.requests() == BATCH {
                return true;
            }
            next = self.socket.try_recv_from(&mut self.message);
        }
        false
    }

    /// Answers one request.
    #[inline(always)]
    fn answer(&mut self, origin: &Origin, tally: &mut Tally) {
        tally.request(origin);
        let payload_at = envelope(&self.message);
        trace!(
            identity = %self.identity(origin.peer).escape_ascii(),
            frames = self.message.frames().len(),
            bytes = self.message.bytes(),
            "request"
        );
        let first = self.message.frames().get(payload_at);
        let is_reserved = first.is_some_and(|frame| is_reserved(frame));
        let (label, Answer(kind)) = if origin.is_monitor || is_reserved {
            self.answer_reserved(origin, payload_at)
        } else {
            self.call(origin, payload_at, None)
        };
        // A closure, because a value that all arms share would have to be in memory for the hot arm
        // as well.
        let labelled = || Origin { label: label.number(), ..*origin };
        match kind {
            Kind::Reply => self.send(&labelled(), tally),
            Kind::Later(ticket) => self.hold(origin, ticket),
            Kind::Reject(rejection) => self.reject(&labelled(), payload_at, &rejection, tally),
        }
    }

    /// Passes a request to the service, or rejects it if its deadline has passed. Also returns the
    /// label under which the request is counted.
    #[inline(always)]
    fn call(
        &mut self,
        origin: &Origin,
        payload_at: usize,
        deadline: Option<Instant>,
    ) -> (Label, Answer) {
        self.calling = Some(Label::NO_METHOD);
        let mut request = Request {
            message: &mut self.message,
            payload_at,
            origin: *origin,
            peers: &self.socket,
            in_flight: &mut self.in_flight,
            deadline,
        };
        let label = Label::of_method(self.service.method(&request));
        self.calling = Some(label);
        request.origin.label = label.number();
        // The server's deadline is compared with the time of the last look, because this runs for
        // each message. If the service is slow, that is the time before this call.
        let own = request.in_flight.deadline(origin.read_at);
        let is_late = own.is_some_and(|deadline| self.clock.looked() >= deadline)
            || deadline.is_some_and(|deadline| Instant::now() >= deadline);
        let answer = if is_late {
            request.reject(Rejection::deadline())
        } else {
            self.service.call(request)
        };
        self.calling = None;
        (label, answer)
    }

    /// Answers a probe, or a request whose payload begins with a reserved frame. Probes and checks
    /// are not passed to the service: they fail only if it is unhealthy.
    #[cold]
    #[inline(never)]
    fn answer_reserved(&mut self, origin: &Origin, payload_at: usize) -> (Label, Answer) {
        let own = |kind| (Label::NO_METHOD, Answer(kind));
        let is = |frame: &[u8]| self.message.frames().get(payload_at).is_some_and(|it| it == frame);
        if origin.is_monitor || is(CHECK) {
            return match self.service.health() {
                Ok(()) => own(Kind::Reply),
                Err(text) => own(Kind::Reject(Rejection::unhealthy(text))),
            };
        }
        if !self.client_deadlines || !is(TIME_LIMIT) {
            return own(Kind::Reject(Rejection::reserved()));
        }
        let limit = match time_limit::take(&mut self.message, payload_at) {
            Ok(limit) => limit,
            Err(rejection) => return own(Kind::Reject(rejection)),
        };
        let first = self.message.frames().get(payload_at);
        if first.is_some_and(|frame| is_reserved(frame)) {
            return own(Kind::Reject(Rejection::reserved()));
        }
        self.call(origin, payload_at, Some(origin.read_at + limit))
    }

    /// Sends the reply, which has replaced the request in the message.
    #[inline(always)]
    fn send(&mut self, origin: &Origin, tally: &mut Tally) {
        match self.socket.send_to(origin, &mut self.message) {
            Ok(()) => tally.replied += 1,
            Err(error) => self.not_delivered(&error),
        }
    }

    #[cold]
    #[inline(never)]
    fn not_delivered(&mut self, error: &SendError) {
        self.metrics.socket.undeliverable_peer_gone.inc();
        self.unreachable += u64::from(self.drain.begun());
        debug!(%error, "reply not delivered");
    }

    /// Counts a request as in flight, towards the limits of its peer and of the socket.
    #[inline(never)]
    fn hold(&mut self, origin: &Origin, ticket: Ticket) {
        if let Some(entry) = self.in_flight.get_mut(ticket) {
            entry.held = true;
            self.socket.hold(origin, entry.bytes);
        }
    }

    /// Rejects the request in the message: sends an error reply with its envelope.
    #[cold]
    #[inline(never)]
    fn reject(
        &mut self,
        origin: &Origin,
        payload_at: usize,
        rejection: &Rejection,
        tally: &mut Tally,
    ) {
        self.metrics.rejected.inc();
        debug!(%rejection, "request rejected");
        let frames = self.message.frames_mut();
        frames.truncate(payload_at);
        frames.extend(rejection.frames());
        self.send(&as_error(origin), tally);
    }

    /// Sends the replies that are ready, and then answers the requests that are ready. A flood of
    /// replies must not hold up requests, or the other way round.
    async fn complete_batch(&mut self, first: Completion, began: Instant) -> Result<(), LoopError> {
        let mut next = Some(first);
        let mut left = BATCH;
        while let Some(completion) = next {
            self.complete(completion);
            left -= 1;
            next = if left > 0 { self.service.try_completed() } else { None };
        }
        self.queue_duration.flush();
        self.work_duration.flush();
        match self.socket.try_recv_from(&mut self.message) {
            Some(origin) => self.answer_batch(origin, began).await,
            None => Ok(()),
        }
    }

    /// Sends one reply to a request in flight.
    fn complete(&mut self, completion: Completion) {
        let Completion { ticket, reply, is_last, worked, token, panicked } = completion;
        if panicked {
            self.panicked();
        }
        let Some(entry) = self.in_flight.get(ticket) else { return };
        let origin = entry.origin;
        if let Some(reply) = reply {
            let reply = reply.and_then(|payload| check_payload(&payload).map(|()| payload));
            let is_sent = match reply {
                Ok(payload) => self.send_later(ticket, payload, false),
                Err(rejection) => self.reject_later(ticket, &rejection),
            };
            if is_sent {
                self.replied += u64::from(self.drain.begun());
            }
            if let Some(token) = token {
                self.socket.keep_until_room(&origin, token);
            }
        }
        if is_last {
            self.settle(ticket);
            if let Some((began, ended)) = worked {
                let queued = began.saturating_duration_since(origin.read_at);
                self.queue_duration.observe(queued.as_secs_f64());
                self.work_duration.observe((ended - began).as_secs_f64());
            }
        }
    }

    /// Counts a panic that an adapter has caught and the log has recorded. Too many of them end the
    /// process, like panics of the service itself.
    fn panicked(&mut self) {
        self.metrics.panics.inc();
        if self.exit_on_panic || !self.panics.may_go_on(Instant::now()) {
            resume_unwind(Box::new("the service panicked"));
        }
    }

    /// Sends an error reply to a request in flight. Returns the same as [`Self::send_later`].
    fn reject_later(&mut self, ticket: Ticket, rejection: &Rejection) -> bool {
        self.metrics.rejected.inc();
        debug!(%rejection, "request rejected");
        self.send_later(ticket, rejection.into(), true)
    }

    /// Sends a reply to a request in flight. Returns whether its peer is still connected.
    fn send_later(&mut self, ticket: Ticket, payload: Message, is_error: bool) -> bool {
        let Some(entry) = self.in_flight.get(ticket) else { return false };
        self.message.clone_from(&entry.envelope);
        self.message.frames_mut().extend(payload.into_frames());
        let origin = if is_error { as_error(&entry.origin) } else { entry.origin };
        let sent = self.socket.send_to(&origin, &mut self.message);
        sent.map_err(|error| self.not_delivered(&error)).is_ok()
    }

    /// Ends a request in flight: it gets no more replies, and no longer counts towards the limits.
    fn settle(&mut self, ticket: Ticket) {
        if let Some(Entry { origin, bytes, held: true, .. }) = self.in_flight.remove(ticket) {
            self.socket.release(&origin, bytes);
        }
    }

    /// Cancels the requests in flight of peers that have left.
    fn cancel_abandoned(&mut self) {
        for peer in self.socket.take_abandoned() {
            for ticket in self.in_flight.remove_of(peer) {
                self.metrics.socket.undeliverable_peer_gone.inc();
                self.unreachable += u64::from(self.drain.begun());
                self.service.cancel(ticket);
            }
        }
    }

    /// Continues after a panic of the service, with a new service. The client whose request caused
    /// it gets an error reply. A panic elsewhere, or one too many, ends the process.
    fn recover(
        &mut self,
        panic: Box<dyn Any + Send>,
        tally: &mut Tally,
    ) -> Result<bool, LoopError> {
        self.metrics.panics.inc();
        let Some(label) = self.calling.take().filter(|_| self.panics.may_go_on(Instant::now()))
        else {
            resume_unwind(panic);
        };
        if let Some(mut origin) = self.socket.batch_origin() {
            origin.label = label.number();
            let payload_at = envelope(&self.message);
            self.reject(&origin, payload_at, &Rejection::panicked(), tally);
        }
        // The requests that the old service had in flight are lost with it.
        for ticket in self.in_flight.all() {
            if self.in_flight.get(ticket).is_some_and(|entry| entry.held) {
                let is_sent = self.reject_later(ticket, &Rejection::panicked().retryable());
                self.replied += u64::from(is_sent && self.drain.begun());
                self.settle(ticket);
            } else {
                // The service accepted the request that has just been rejected, and then panicked.
                self.in_flight.remove(ticket);
            }
        }
        // If there is no new service, the connections end, but this client should know why.
        self.socket.flush_batch();
        let service = (self.make)().map_err(LoopError::Rebuild)?;
        let old = std::mem::replace(&mut self.service, service);
        // It is half changed, so it may panic again.
        let _ = log::caught(|| drop(old));
        self.clock.message(Instant::now);
        Ok(true)
    }

    /// Counts a slow turn, and logs at most one report per [`REPORT_INTERVAL`].
    #[cold]
    fn report_slow_turn(&mut self, duration: Duration) {
        self.metrics.slow_turns.inc();
        self.slow_turns += 1;
        let now = self.clock.looked();
        if self.reported_at.is_some_and(|at| now - at < REPORT_INTERVAL) {
            return;
        }
        self.reported_at = Some(now);
        let turns = std::mem::take(&mut self.slow_turns);
        let duration = duration.as_secs_f64();
        warn!(turns, duration, "slow turns: the service blocks the loop");
    }

    fn identity(&self, peer: PeerId) -> Bytes {
        self.socket.connected_peer(peer).map(|peer| peer.identity).unwrap_or_default()
    }

    fn count(&mut self, tally: &Tally) {
        self.metrics.client_requests.inc_by(tally.client_requests);
        self.metrics.probe_requests.inc_by(tally.probe_requests);
        if self.drain.begun() {
            self.replied += tally.replied;
        }
    }

    /// Answers the requests that have already arrived. Takes at most a quarter of the time that is
    /// left, because there may be too many to answer them all. Returns whether there were any
    /// requests, or there are still unread bytes.
    async fn answer_arrived(&mut self) -> Result<bool, LoopError> {
        let now = Instant::now();
        let until = now + self.drain.close_by(now).saturating_duration_since(now) / 4;
        let mut any = false;
        // If the loop was stuck, the kernel may have bytes that the runtime has not noticed yet, so
        // wait for them. Wait only briefly each time, because the bytes may not be a request.
        self.socket.note_arrived();
        while self.socket.has_arrived() && Instant::now() < until {
            let look_at = until.min(Instant::now() + LAST_LOOK);
            let received = self.socket.recv_from(&mut self.message);
            if let Ok(origin) = timeout_at(look_at.into(), received).await {
                self.answer_batch(origin, Instant::now()).await?;
                any = true;
            }
            self.health.turned(Instant::now());
        }
        Ok(any || self.socket.has_arrived())
    }

    /// Rejects the requests that are still in flight, sends all replies and closes the socket.
    async fn finish(mut self, ending: Ending) -> Report {
        // Their peers may have left during the last look.
        self.cancel_abandoned();
        let unfinished = self.in_flight.all();
        for ticket in &unfinished {
            self.service.cancel(*ticket);
            self.reject_later(*ticket, &Rejection::draining());
            self.settle(*ticket);
        }
        let unfinished = unfinished.len() as u64;
        // The service stays in `self`, so it is dropped only after the last replies are sent.
        // Dropping it may take long.
        let Self { socket, drain, metrics, health, replied, unreachable, .. } = self;
        let deadline = drain.close_by(Instant::now());
        let closed = turning(health, socket.close(deadline)).await;
        // A few of the discarded requests may come from probes. It is unknown which, so all of them
        // count as client requests.
        metrics.client_requests.inc_by(closed.discarded);
        metrics.undeliverable_deadline.inc_by(closed.owed);
        let gone = metrics.socket.undeliverable_peer_gone.get() - self.gone_before;
        // A reply that the socket accepted may have been lost with its peer, or may be unsent.
        let answered = replied.saturating_sub(gone - unreachable + closed.owed);
        let lost = gone + metrics.socket.lost_requests.get() - self.lost_before;
        let duration = drain.elapsed(Instant::now());
        info!(
            reason = ending.as_str(),
            answered,
            unfinished,
            owed = closed.owed,
            owed_bytes = closed.owed_bytes,
            discarded = closed.discarded,
            discarded_bytes = closed.discarded_bytes,
            lost,
            duration = duration.as_secs_f64(),
            "drained"
        );
        Report { ending, answered, lost, unfinished, closed, duration }
    }
}

/// The same origin, with the label under which an error reply is counted.
fn as_error(origin: &Origin) -> Origin {
    Origin { label: Label::of_number(origin.label).error().number(), ..*origin }
}

/// Waits for `future`, and records turns meanwhile: liveness must not fail before the last
/// connection is closed.
async fn turning<T>(health: &Health, future: impl Future<Output = T>) -> T {
    let mut future = pin!(future);
    loop {
        tokio::select! {
            output = &mut future => return output,
            () = tokio::time::sleep(DRAIN_TICK) => health.turned(Instant::now()),
        }
    }
}
