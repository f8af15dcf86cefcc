//! The poll loop: one thread, one turn after the other, each with one event.
//!
//! There is no concurrency in here and no lock. A process that has too much to do
//! is joined by another replica; one that cannot go on ends and is replaced.

use std::future::Future;
use std::io;
use std::pin::pin;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use tokio::time::{Instant as TokioInstant, sleep_until, timeout_at};
use tracing::{Level, debug, enabled, info, trace};
use zeromq::{ZmqError, ZmqMessage, ZmqResult};
use zmtp::router::Closed;

use crate::metrics::{Metrics, is_probe};
use crate::service::drain::{Action, Drain, DrainPolicy, Ending};
use crate::service::handler::Rejected;
use crate::service::health::{Health, Phase};
use crate::service::socket::{LoopSocket, payload_bytes};
use crate::service::termination::{AsyncTermination, Signal, TerminationSocket};

/// While draining the loop turns this often, to notice soon that a peer has left. (Otherwise
/// each [`Health::TICK`].)
const DRAIN_TICK: Duration = Duration::from_millis(50);

/// After the drain decides to end, how often it looks whether all that had arrived is read.
const LAST_LOOK: Duration = Duration::from_millis(5);

/// How many requests one turn answers at most, so that a flood lets signals,
/// deadlines and the socket's own tasks have their turn: 256 small echoes take well
/// under a millisecond.
const BATCH: u64 = 256;

/// What a turn of the loop is about.
enum Event {
    /// A request from the socket, or that the socket cannot receive any more.
    Request(ZmqResult<ZmqMessage>),
    /// A byte from the termination socket.
    Terminate(io::Result<Signal>),
    /// Nothing has happened for a while.
    Tick,
}

/// How a loop ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Report {
    /// Why serving ended.
    pub ending: Ending,
    /// Requests answered from the signal on.
    pub answered: u64,
    /// Requests and replies that peers lost from the signal on by their own doing: they left,
    /// broke the protocol or were closed for another reason.
    pub lost: u64,
    /// What was received and not answered.
    pub closed: Closed,
    /// From the signal to the last connection closed.
    pub duration: Duration,
}

/// What makes serving impossible.
#[derive(Debug, thiserror::Error)]
pub enum LoopError {
    /// The ROUTER socket is lost.
    #[error("the ROUTER socket cannot receive")]
    Receive(#[source] ZmqError),
    /// The termination socket is lost.
    #[error("the termination socket cannot be read")]
    Termination(#[source] io::Error),
}

/// Answers what `socket` receives with `handle`, until a byte comes from
/// `termination` and the drain that it starts is over.
///
/// # Errors
///
/// What makes serving impossible, see [`LoopError`]. One peer's fault does not.
pub async fn run<S: LoopSocket>(
    socket: S,
    termination: TerminationSocket,
    policy: DrainPolicy,
    handle: impl Fn(ZmqMessage) -> Result<ZmqMessage, Rejected>,
    metrics: &Metrics,
    health: &Health,
) -> Result<Report, LoopError> {
    let termination = termination.into_async().map_err(LoopError::Termination)?;
    let mut turns = PollLoop {
        socket,
        termination,
        drain: Drain::new(policy),
        handle,
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

struct PollLoop<'a, S, H> {
    socket: S,
    termination: AsyncTermination,
    drain: Drain,
    handle: H,
    metrics: &'a Metrics,
    health: &'a Health,
    /// Replies from the signal on that the socket took, and that it did not.
    replied: u64,
    unreachable: u64,
    /// Replies, and requests, that were lost with their peers before the signal.
    gone_before: u64,
    lost_before: u64,
}

/// What a batch adds to the counters, which other threads read: once a batch, not
/// once a message.
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
    fn request(&mut self, identity: &[u8]) {
        if is_probe(identity) {
            self.probe_requests += 1;
        } else {
            self.client_requests += 1;
        }
    }
}

/// Whose request a reply answers, where that may be logged.
type Sender = Option<Bytes>;

impl<S, H> PollLoop<'_, S, H>
where
    S: LoopSocket,
    H: Fn(ZmqMessage) -> Result<ZmqMessage, Rejected>,
{
    async fn serve(&mut self) -> Result<Ending, LoopError> {
        self.health.turned(Instant::now());
        self.health.enter(Phase::Serving);
        let mut alarm = pin!(sleep_until(self.wake_at(Instant::now())));
        loop {
            // Each arm is cancel-safe: a read from a socket, a timer that stays,
            // and `recv` as [`LoopSocket`] asks it to be. Biased, so that a flood of
            // requests cannot keep the other two from being seen.
            let event = tokio::select! {
                biased;
                signal = self.termination.recv(), if !self.drain.begun() => Event::Terminate(signal),
                () = &mut alarm => Event::Tick,
                request = self.socket.recv() => Event::Request(request),
            };
            let now = Instant::now();
            self.health.turned(now);
            match event {
                Event::Request(request) => self.answer_batch(request).await?,
                Event::Terminate(signal) => {
                    self.begin_drain(signal.map_err(LoopError::Termination)?);
                    alarm.as_mut().reset(self.wake_at(now));
                }
                Event::Tick => alarm.as_mut().reset(self.wake_at(now)),
            }
            let (connections, socket) = (self.socket.connections(), &mut self.socket);
            match self.drain.next(now, connections, || socket.active_at()) {
                Action::Serve => {}
                Action::StopListening => {
                    self.socket.stop_listening().await;
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

    /// When the loop turns next if nothing happens.
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

    /// In seconds, by the wall clock as it stands: what scrapes has no other.
    fn deadline_in_unix_time(&self) -> f64 {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let left = self.drain.deadline().map(|at| at.saturating_duration_since(Instant::now()));
        (now + left.unwrap_or_default()).as_secs_f64()
    }

    /// Answers `first` and what is ready behind it, [`BATCH`] requests at most.
    async fn answer_batch(&mut self, first: ZmqResult<ZmqMessage>) -> Result<(), LoopError> {
        let mut tally = Tally::default();
        let mut next = Some(first);
        let outcome = loop {
            let (reply, sender) = match self.answer_ready(next, &mut tally) {
                Ok(Some(waiting)) => waiting,
                Ok(None) => break Ok(()),
                Err(error) => break Err(error),
            };
            let sent = self.socket.send(reply).await;
            self.account(sent, sender, &mut tally);
            next = if tally.requests() < BATCH { self.socket.try_recv() } else { None };
        };
        self.count(&tally);
        if tally.requests() == BATCH {
            // More may be ready, but signals and the socket's tasks come first.
            tokio::task::yield_now().await;
        }
        outcome
    }

    /// Answers `next` and what is ready behind it, up to a reply that the socket does
    /// not take without waiting.
    ///
    /// This is the inner loop. It is no `async fn`, and what a message passes through
    /// here and in [`zmtp::router`] is always inlined, so that the message is
    /// moved as little as can be. A CPU stalls where it reads in one piece what it has
    /// just written in several, which a move of a fresh message does: without the two
    /// a third of the throughput is lost.
    fn answer_ready(
        &mut self,
        mut next: Option<ZmqResult<ZmqMessage>>,
        tally: &mut Tally,
    ) -> Result<Option<(ZmqMessage, Sender)>, LoopError> {
        while let Some(request) = next {
            let request = request.map_err(LoopError::Receive)?;
            if let Some((reply, sender)) = self.handled(request, tally) {
                match self.socket.try_send(reply) {
                    Ok(sent) => self.account(sent, sender, tally),
                    Err(reply) => return Ok(Some((reply, sender))),
                }
            }
            if tally.requests() == BATCH {
                break;
            }
            next = self.socket.try_recv();
        }
        Ok(None)
    }

    fn count(&mut self, tally: &Tally) {
        self.metrics.client_requests.inc_by(tally.client_requests);
        self.metrics.probe_requests.inc_by(tally.probe_requests);
        if self.drain.begun() {
            self.replied += tally.replied;
        }
    }

    /// Answers what has arrived by now, in a quarter of the time that is left: at the
    /// deadline there may be no end of it. Says whether there was anything, or still is.
    async fn answer_arrived(&mut self) -> Result<bool, LoopError> {
        let now = Instant::now();
        let until = now + self.drain.close_by(now).saturating_duration_since(now) / 4;
        let mut any = false;
        // A loop that stood still is late for everything: the runtime may not have heard yet of
        // what the kernel has. And many peers may have sent something that is no request.
        self.socket.note_arrived();
        while self.socket.has_arrived() && Instant::now() < until {
            let look_at = until.min(Instant::now() + LAST_LOOK);
            if let Ok(request) = timeout_at(look_at.into(), self.socket.recv()).await {
                self.answer_batch(request).await?;
                any = true;
            }
            self.health.turned(Instant::now());
        }
        Ok(any || self.socket.has_arrived())
    }

    /// The handler's reply.
    #[inline(always)]
    fn handled(&self, request: ZmqMessage, tally: &mut Tally) -> Option<(ZmqMessage, Sender)> {
        let identity = request.get(0).map_or(&[][..], |identity| identity);
        trace!(
            identity = %identity.escape_ascii(),
            frames = request.len() - 1,
            bytes = payload_bytes(&request),
            "request"
        );
        tally.request(identity);
        // The handler takes the request; a copy for each only where one may be logged.
        let sender = enabled!(Level::DEBUG).then(|| request.get(0).cloned()).flatten();
        match (self.handle)(request) {
            Ok(reply) => Some((reply, sender)),
            Err(Rejected(reason)) => {
                self.metrics.rejected.inc();
                let identity = sender.as_deref().unwrap_or_default().escape_ascii();
                debug!(%identity, reason, "request rejected");
                None
            }
        }
    }

    /// Counts what has become of a reply.
    #[inline(always)]
    fn account(&mut self, outcome: ZmqResult<()>, sender: Sender, tally: &mut Tally) {
        let identity = || sender.as_deref().unwrap_or_default().escape_ascii();
        match outcome {
            Ok(()) => tally.replied += 1,
            // Not the peer's fault but the handler's: nothing behind the identity.
            Err(ZmqError::Socket(reason)) => {
                self.metrics.rejected.inc();
                debug!(identity = %identity(), reason, "reply malformed");
            }
            Err(error) => {
                self.metrics.socket.undeliverable_peer_gone.inc();
                self.unreachable += u64::from(self.drain.begun());
                debug!(identity = %identity(), %error, "reply not delivered");
            }
        }
    }

    /// Lets every reply out and closes.
    async fn finish(self, ending: Ending) -> Report {
        let Self { socket, drain, metrics, health, replied, unreachable, .. } = self;
        let deadline = drain.close_by(Instant::now());
        let closed = turning(health, socket.close(deadline)).await;
        // Nobody knows whose they were; those of probes are few.
        metrics.client_requests.inc_by(closed.discarded);
        metrics.undeliverable_deadline.inc_by(closed.owed);
        let gone = metrics.socket.undeliverable_peer_gone.get() - self.gone_before;
        // What the socket took may be lost with its peer, or still lie there.
        let answered = replied.saturating_sub(gone - unreachable + closed.owed);
        let lost = gone + metrics.socket.lost_requests.get() - self.lost_before;
        let duration = drain.elapsed(Instant::now());
        info!(
            reason = ending.as_str(),
            answered,
            owed = closed.owed,
            owed_bytes = closed.owed_bytes,
            discarded = closed.discarded,
            discarded_bytes = closed.discarded_bytes,
            lost,
            duration = duration.as_secs_f64(),
            "drained"
        );
        Report { ending, answered, lost, closed, duration }
    }
}

/// Waits for `future` while the loop's turns go on, for liveness stays true until
/// the last connection is closed.
async fn turning<T>(health: &Health, future: impl Future<Output = T>) -> T {
    let mut future = pin!(future);
    loop {
        tokio::select! {
            output = &mut future => return output,
            () = tokio::time::sleep(DRAIN_TICK) => health.turned(Instant::now()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use async_trait::async_trait;
    use zeromq::{SocketRecv, SocketSend};

    use super::*;

    /// What no real socket can be made to do here: it is lost.
    struct Lost;

    #[async_trait]
    impl SocketRecv for Lost {
        async fn recv(&mut self) -> ZmqResult<ZmqMessage> {
            Err(ZmqError::NoMessage)
        }
    }

    #[async_trait]
    impl SocketSend for Lost {
        async fn send(&mut self, _: ZmqMessage) -> ZmqResult<()> {
            Err(ZmqError::NoMessage)
        }
    }

    impl LoopSocket for Lost {
        fn try_recv(&mut self) -> Option<ZmqResult<ZmqMessage>> {
            None
        }

        fn connections(&self) -> usize {
            0
        }

        async fn stop_listening(&mut self) {}

        fn active_at(&mut self) -> Option<Instant> {
            None
        }

        async fn close(self, _: Instant) -> Closed {
            Closed::default()
        }
    }

    #[tokio::test]
    async fn a_lost_socket_ends_the_loop_with_an_error() {
        let (_writer, reader) = UnixStream::pair().unwrap();
        let second = Duration::from_secs(1);
        let policy = DrainPolicy { delay: second, quiet: second, timeout: second };
        let metrics = Metrics::new(&[1.0], crate::metrics::log_records_dropped());
        let health = Health::new(Instant::now());
        let termination = TerminationSocket::new(reader);
        let ended = run(Lost, termination, policy, Ok, &metrics, &health).await;
        assert!(matches!(ended, Err(LoopError::Receive(_))), "{ended:?}");
    }
}
