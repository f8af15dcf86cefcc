//! The task of one endpoint: it connects, sends the submitted requests, matches replies to them,
//! and decides when the endpoint should not be used.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, Sleep, sleep, sleep_until};
use tracing::debug;
use zmq_echo::probe;
use zmq_echo::service::time_limit;
use zmtp::dealer::DealerConfig;
use zmtp::memory_pool::MemoryPool;
use zmtp::{Dealer, Reason};

use super::discovery::{Endpoint, EndpointState};
use super::member::{Attempt, Member, Settled, State, Ticket};
use super::pending::{Arrival, Pending, Tagged};
use super::reply::ReplyMemory;
use super::shared::Shared;
use super::time::after;
use super::trouble::Trouble;

/// The most requests taken from the queue at once. They cost one turn of the task and one write to
/// the kernel.
const BATCH: usize = 128;

/// The most bytes handed to the socket before the kernel takes them. Requests queued behind them
/// have certainly not been sent and can still go to another endpoint.
const UNWRITTEN: usize = 64 << 10;

/// The connection to one endpoint. It is reopened for as long as the endpoint is wanted.
pub(super) struct Connection {
    shared: Arc<Shared>,
    member: Arc<Member>,
    queue: mpsc::UnboundedReceiver<Ticket>,
    /// What the source says about the endpoint.
    wanted: watch::Receiver<Endpoint>,
    /// The same, to notice changes since the last attempt to connect or to check began.
    news: watch::Receiver<Endpoint>,
    /// Consecutive failures: failed connects, failed checks and requests without a reply.
    failures: u32,
    /// Attempts that have ended and whose callers have not been told yet.
    settled: Settled,
}

/// Why a connection is no longer used.
enum End {
    /// The endpoint is no longer wanted, and no request is outstanding.
    Drained,
    /// The connection broke. The endpoint may be `suspect` as well.
    Broken { suspect: bool },
}

impl Connection {
    pub fn new(
        shared: Arc<Shared>,
        member: Arc<Member>,
        queue: mpsc::UnboundedReceiver<Ticket>,
    ) -> Self {
        let (wanted, news) = (member.wanted.subscribe(), member.wanted.subscribe());
        let settled = Settled::new(Arc::clone(&member));
        Self { shared, member, queue, wanted, news, failures: 0, settled }
    }

    /// Runs until the endpoint is drained.
    pub async fn run(mut self) {
        let mut connected = self.connect().await;
        while let Some(dealer) = connected {
            self.set_state(State::Ready);
            connected = match self.serve(dealer).await {
                End::Drained => None,
                End::Broken { suspect } => self.reconnect(suspect).await,
            };
        }
    }

    /// Connects again after a pause, or after a check if the endpoint is suspect. Returns `None` if
    /// the endpoint is no longer wanted.
    async fn reconnect(&mut self, suspect: bool) -> Option<Dealer> {
        if suspect {
            let mut pause = self.pause();
            while !self.until_news(self.check(pause)).await? {
                pause = Duration::ZERO;
            }
        } else {
            let pause = self.pause();
            self.until_news(sleep(pause)).await?;
        }
        self.connect().await
    }

    /// Tries to connect until it succeeds. Returns `None` if the endpoint is no longer wanted.
    async fn connect(&mut self) -> Option<Dealer> {
        self.set_state(State::Connecting);
        let config = self.dealer_config();
        let endpoint = Arc::clone(&self.member.endpoint);
        loop {
            let addresses = self.news.borrow_and_update().addresses.clone();
            let connecting = Dealer::connect_at(&endpoint, &addresses, &config);
            match self.unconnected(connecting).await? {
                Ok(dealer) => {
                    debug!(%endpoint, "connected");
                    self.member.is_well();
                    self.shared.metrics.connected.inc();
                    return Some(dealer);
                }
                Err(error) => {
                    let reason = zmq_echo::log::chain(&error);
                    debug!(%endpoint, reason, "cannot connect");
                    self.member.is_in(Trouble::Connect(Arc::new(error)));
                    self.shared.metrics.connect_failed.inc();
                    let pause = self.pause();
                    self.until_news(sleep(pause)).await?;
                }
            }
        }
    }

    /// Does `work` while there is no connection. Returns whether it finished before the source had
    /// news of the endpoint. After news, earlier failures say nothing about the next attempt: an
    /// endpoint that becomes ready is connected to at once.
    async fn until_news(&mut self, work: impl Future<Output = ()>) -> Option<bool> {
        let mut news = self.news.clone();
        let race = async {
            tokio::select! {
                biased;
                Ok(()) = news.changed() => false,
                () = work => true,
            }
        };
        let done = self.unconnected(race).await?;
        if !done {
            self.start_afresh();
        }
        Some(done)
    }

    fn start_afresh(&mut self) {
        self.news.mark_unchanged();
        self.failures = 0;
    }

    fn dealer_config(&self) -> DealerConfig {
        let config = &self.shared.config;
        let mut dealer = DealerConfig {
            connect_timeout: config.connect_timeout,
            heartbeat_interval: config.heartbeat_interval,
            heartbeat_timeout: config.heartbeat_timeout,
            memory: Some(self.shared.reply_memory.clone()),
            ..DealerConfig::default()
        };
        dealer.limits.message_bytes = config.max_reply.saturating_add(size_of::<u64>());
        dealer
    }

    /// Does `work` while there is no connection. Requests submitted meanwhile picked this endpoint
    /// before it was marked as unconnected, so they go elsewhere at once.
    async fn unconnected<T>(&mut self, work: impl Future<Output = T>) -> Option<T> {
        tokio::pin!(work);
        loop {
            tokio::select! {
                done = &mut work => return Some(done),
                Some(ticket) = self.queue.recv() => {
                    self.settled.push(ticket, Attempt::NotSent);
                    self.settled.tell();
                }
                _ = self.wanted.wait_for(is_draining) => return None,
            }
        }
    }

    /// Counts one more failure and returns the pause that follows it.
    fn pause(&mut self) -> Duration {
        let pause = self.shared.config.reconnect_backoff.pause(self.failures);
        self.failures = self.failures.saturating_add(1);
        pause
    }

    /// Completes once the endpoint has answered a request that identifies itself as a probe. It
    /// sends the first one after a pause.
    fn check(&self, mut pause: Duration) -> BoxFuture<'static, ()> {
        let (shared, member) = (Arc::clone(&self.shared), Arc::clone(&self.member));
        let mut failures = self.failures;
        Box::pin(async move {
            loop {
                sleep(pause).await;
                let addresses = member.wanted.borrow().addresses.clone();
                let limit = shared.config.timeout;
                match probe::check_at(&member.endpoint, &addresses, limit).await {
                    Ok(_) => break shared.metrics.checks_answered.inc(),
                    Err(error) => {
                        debug!(%error, "endpoint is still suspect");
                        member.is_in(Trouble::Check(Arc::new(error)));
                    }
                }
                shared.metrics.checks_failed.inc();
                pause = shared.config.reconnect_backoff.pause(failures);
                failures = failures.saturating_add(1);
            }
        })
    }

    /// Serves one connection until it ends. The callers of outstanding attempts are told then.
    async fn serve(&mut self, dealer: Dealer) -> End {
        let replies = MemoryPool::new(self.shared.config.max_connection_replies);
        let mut session = Session {
            connection: self,
            dealer,
            replies,
            waiting: VecDeque::new(),
            pending: Pending::default(),
            alarm: None,
            check: None,
            alive: true,
            retiring: false,
        };
        let end = session.run().await;
        // Callers that are told may pick an endpoint again, so this one must be marked first.
        if let End::Broken { suspect } = end {
            session.connection.set_state(if suspect { State::Suspect } else { State::Connecting });
        }
        end
    }

    fn set_state(&self, state: State) {
        self.shared.roster.set_state(&self.member, state);
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.shared.roster.remove(&self.member);
        // These requests picked this endpoint before it was removed.
        self.queue.close();
        while let Ok(ticket) = self.queue.try_recv() {
            self.settled.push(ticket, Attempt::NotSent);
        }
        self.settled.tell();
    }
}

/// One connection, from its handshake to its end.
struct Session<'a> {
    connection: &'a mut Connection,
    dealer: Dealer,
    /// Memory of this connection's replies that their callers have not received yet.
    replies: MemoryPool,
    /// Requests not yet handed to the socket, each with its deadline.
    waiting: VecDeque<(Instant, Ticket)>,
    pending: Pending,
    /// Fires no later than the deadline of the oldest attempt. It is set again only after it has
    /// fired, so an attempt that is answered costs no timer.
    alarm: Option<Pin<Box<Sleep>>>,
    /// The check that runs while the endpoint is suspect.
    check: Option<BoxFuture<'static, ()>>,
    /// Whether a reply has arrived since the endpoint became suspect.
    alive: bool,
    /// The endpoint has answered a check, but this connection has answered nothing since the
    /// endpoint became suspect. The connection is replaced once nothing is outstanding.
    retiring: bool,
}

impl Session<'_> {
    /// Each arm is cancel-safe: the futures of the queue, the socket and the watch consume nothing
    /// before they are ready, and the others are kept in `self`.
    async fn run(&mut self) -> End {
        let mut batch = Vec::with_capacity(BATCH);
        loop {
            self.send_waiting();
            self.connection.settled.tell();
            if self.is_idle() && (self.retiring || self.draining()) {
                return match self.retiring && !self.draining() {
                    true => End::Broken { suspect: false },
                    false => End::Drained,
                };
            }
            // Waiting requests go on as soon as the kernel has taken what is in front of them.
            let room = if self.waiting.is_empty() { 0 } else { UNWRITTEN };
            tokio::select! {
                _ = self.connection.queue.recv_many(&mut batch, BATCH) => self.submit(&mut batch),
                received = self.dealer.recv_or_room(room, |received| received.into_tagged()) => {
                    let received =
                        received.map(|message| message.into_iter().for_each(|it| self.arrived(it)));
                    // Takes the other messages that have been read, without another turn of the
                    // loop.
                    if let Err(reason) = received.and_then(|()| self.receive()) {
                        return self.broken(reason);
                    }
                }
                () = due(&mut self.alarm) => {
                    if let Err(reason) = self.expire().await {
                        return self.broken(reason);
                    }
                }
                () = due(&mut self.check) => self.checked(),
                Ok(()) = self.connection.wanted.changed() => self.told(),
            }
        }
    }

    fn is_idle(&self) -> bool {
        self.pending.is_empty() && self.waiting.is_empty() && self.connection.queue.is_empty()
    }

    /// Takes the submitted requests.
    fn submit(&mut self, batch: &mut Vec<Ticket>) {
        let deadline = after(Instant::now(), self.connection.shared.config.timeout);
        self.alarm.get_or_insert_with(|| Box::pin(sleep_until(deadline)));
        self.waiting.extend(batch.drain(..).map(|ticket| (deadline, ticket)));
    }

    /// Hands the socket the next requests to write.
    fn send_waiting(&mut self) {
        while self.dealer.unwritten() < UNWRITTEN
            && let Some((deadline, ticket)) = self.waiting.pop_front()
        {
            if ticket.is_abandoned() || !ticket.claim() {
                self.connection.settled.push(ticket, Attempt::NotSent);
                continue;
            }
            let id = self.pending.next_id();
            let tag = id.to_be_bytes();
            if self.connection.shared.config.send_deadlines {
                let ends_at =
                    deadline.min(after(ticket.started(), self.connection.shared.deadline));
                let [marker, limit] =
                    time_limit::frames(ends_at.saturating_duration_since(Instant::now()));
                self.dealer.send_tagged(&tag, &[&marker, &limit], ticket.payload());
            } else {
                self.dealer.send_tagged(&tag, &[], ticket.payload());
            }
            self.pending.enter(ticket, deadline);
        }
    }

    /// Takes the messages that have already been read.
    fn receive(&mut self) -> Result<(), Reason> {
        while let Some(message) = self.dealer.try_recv_as(|received| received.into_tagged())? {
            self.arrived(message);
        }
        Ok(())
    }

    fn arrived(&mut self, message: Tagged) {
        let metrics = &self.connection.shared.metrics;
        match self.pending.arrived(message) {
            Arrival::Reply(ticket, payload) => {
                self.alive = true;
                if self.check.is_none() {
                    self.connection.failures = 0;
                }
                let memory = &self.connection.shared.reply_memory;
                let room = ReplyMemory::take(payload.len(), &self.replies, memory);
                let attempt = match room {
                    Some(memory) => Attempt::Answered(payload, memory),
                    None => Attempt::ReplyMemory,
                };
                self.connection.settled.push(ticket, attempt);
            }
            Arrival::Rejected(ticket, rejection) => {
                self.alive = true;
                self.connection.settled.push(ticket, Attempt::Rejected(Box::new(rejection)));
            }
            Arrival::NotOneFrame(ticket, frames) => {
                self.alive = true;
                self.connection.settled.push(ticket, Attempt::NotOneFrame(frames));
            }
            Arrival::Late => {
                self.alive = true;
                metrics.late_replies.inc();
            }
            Arrival::Unknown => metrics.unknown_replies.inc(),
        }
    }

    /// The alarm has fired: ends the attempts whose deadline has passed.
    ///
    /// If it was this process that was paused, replies may be waiting in the kernel. So they are
    /// read first.
    async fn expire(&mut self) -> Result<(), Reason> {
        for _ in 0..self.pending.len() {
            tokio::select! {
                biased;
                received = self.dealer.recv_as(|received| received.into_tagged()) => self.arrived(received?),
                () = tokio::task::yield_now() => break,
            }
            self.receive()?;
        }
        let now = Instant::now();
        if self.first_deadline().is_some_and(|deadline| deadline <= now) {
            // Callers that are told may pick an endpoint again, so this one must be marked first.
            self.suspect();
        }
        while let Some(ticket) = self.pending.take_expired(now) {
            self.connection.settled.push(ticket, Attempt::TimedOut);
        }
        while let Some(ticket) = self.take_unsent(now) {
            self.connection.settled.push(ticket, Attempt::NotSent);
        }
        self.alarm = self.first_deadline().map(|deadline| Box::pin(sleep_until(deadline)));
        Ok(())
    }

    fn first_deadline(&self) -> Option<Instant> {
        let waiting = self.waiting.front().map(|(deadline, _)| *deadline);
        self.pending.first_deadline().into_iter().chain(waiting).min()
    }

    fn take_unsent(&mut self, now: Instant) -> Option<Ticket> {
        self.waiting.front().filter(|(deadline, _)| *deadline <= now)?;
        self.waiting.pop_front().map(|(_, ticket)| ticket)
    }

    /// A request timed out: the endpoint gets no new requests until it has answered a check.
    /// Outstanding attempts keep their own deadlines.
    fn suspect(&mut self) {
        if self.check.is_none() && !self.retiring {
            debug!(endpoint = %self.connection.member.endpoint, "endpoint is suspect");
            self.connection.member.is_in(Trouble::NoReply);
            self.alive = false;
            let pause = self.connection.pause();
            self.check = Some(self.connection.check(pause));
            self.show_state();
        }
    }

    /// The source has news of the endpoint. If it is suspect, it is checked again at once.
    fn told(&mut self) {
        if self.check.is_some() {
            self.connection.start_afresh();
            self.check = Some(self.connection.check(Duration::ZERO));
        }
        self.show_state();
    }

    /// The check was answered. The connection stays if a reply has arrived on it since the endpoint
    /// became suspect, or if it has answered the newest attempt that timed out or a later one.
    /// Otherwise it is replaced.
    fn checked(&mut self) {
        self.check = None;
        self.connection.member.is_well();
        self.retiring = !self.alive && !self.pending.answers_after_a_loss();
        self.show_state();
    }

    /// Updates the state that callers see.
    fn show_state(&self) {
        let is_suspect = self.check.is_some() || self.retiring;
        self.connection.set_state(match (self.draining(), is_suspect) {
            (true, _) => State::Draining,
            (false, true) => State::Suspect,
            (false, false) => State::Ready,
        });
    }

    fn draining(&self) -> bool {
        is_draining(&self.connection.wanted.borrow())
    }

    fn broken(&self, reason: Reason) -> End {
        let endpoint = &self.connection.member.endpoint;
        debug!(%endpoint, reason = reason.as_str(), "connection lost");
        self.connection.member.is_in(Trouble::Lost(reason));
        End::Broken { suspect: self.check.is_some() }
    }
}

impl Drop for Session<'_> {
    /// Ends the outstanding attempts, also if the client is dropped.
    fn drop(&mut self) {
        let (settled, written) = (&mut self.connection.settled, self.dealer.written());
        while let Some((id, ticket)) = self.pending.take_any() {
            // The server cannot act on a request that is missing a byte.
            let is_sent = id < written;
            settled.push(ticket, if is_sent { Attempt::Disconnected } else { Attempt::NotSent });
        }
        for (_, ticket) in self.waiting.drain(..) {
            settled.push(ticket, Attempt::NotSent);
        }
        settled.tell();
    }
}

fn is_draining(wanted: &Endpoint) -> bool {
    wanted.state == EndpointState::Draining
}

/// Waits for an optional future. Never completes if there is none.
async fn due<F: Future<Output = ()> + Unpin>(future: &mut Option<F>) {
    match future {
        Some(future) => future.await,
        None => std::future::pending().await,
    }
}
