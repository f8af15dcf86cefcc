//! The task of one endpoint: connects, sends what is submitted, matches what comes
//! back, and knows when the endpoint had better not be used.

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

/// How many requests are taken in one go: they cost one turn of the task and one write to the
/// kernel.
const BATCH: usize = 128;

/// How many bytes are handed to the socket before the kernel takes them. What waits behind
/// them has certainly not been sent, and can still go elsewhere.
const UNWRITTEN: usize = 64 << 10;

/// One endpoint's connection, made again for as long as the endpoint is wanted.
pub(super) struct Connection {
    shared: Arc<Shared>,
    member: Arc<Member>,
    queue: mpsc::UnboundedReceiver<Ticket>,
    /// What the source says of the endpoint.
    wanted: watch::Receiver<Endpoint>,
    /// The same, not seen since the last attempt to connect or to check began.
    news: watch::Receiver<Endpoint>,
    /// Failures in a row: of connecting, of checks, of requests.
    failures: u32,
    /// Attempts whose callers are to be told.
    settled: Settled,
}

/// Why a connection is not used any more.
enum End {
    /// The endpoint is no longer wanted, and no request is outstanding.
    Drained,
    /// The connection broke, and the endpoint may be `suspect` as well.
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

    /// Connects again after a pause, or after a check if the endpoint is suspect. `None` if it
    /// is not wanted any more.
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

    /// Connects, as often as it takes. `None` if the endpoint is not wanted any more.
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

    /// Does `work` while there is no connection, and says whether it was done before the source
    /// had news of the endpoint. With news, failures so far say nothing about the next attempt:
    /// an endpoint that becomes ready is connected to at once.
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

    /// Does `work` while there is no connection. What is submitted meanwhile was
    /// drawn before that was known, and goes elsewhere at once.
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

    /// The bounded wait after one more failure.
    fn pause(&mut self) -> Duration {
        let pause = self.shared.config.reconnect_backoff.pause(self.failures);
        self.failures = self.failures.saturating_add(1);
        pause
    }

    /// Comes back once the endpoint has answered a request that announces itself
    /// as a probe. The first one is sent after a pause.
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
                        debug!(%error, "still suspect");
                        member.is_in(Trouble::Check(Arc::new(error)));
                    }
                }
                shared.metrics.checks_failed.inc();
                pause = shared.config.reconnect_backoff.pause(failures);
                failures = failures.saturating_add(1);
            }
        })
    }

    /// Serves one connection until it ends; what is outstanding then is told.
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
        // Before anybody is told, who would draw this endpoint again.
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
        // Drawn before that was known.
        self.queue.close();
        while let Ok(ticket) = self.queue.try_recv() {
            self.settled.push(ticket, Attempt::NotSent);
        }
        self.settled.tell();
    }
}

/// One connection while it lasts.
struct Session<'a> {
    connection: &'a mut Connection,
    dealer: Dealer,
    /// What this connection's replies take that their callers have not picked up.
    replies: MemoryPool,
    /// Requests that the socket has not been given yet, each with its deadline.
    waiting: VecDeque<(Instant, Ticket)>,
    pending: Pending,
    /// Rings no later than the oldest attempt times out. It is set again only when
    /// it has rung, so that an attempt which is answered costs no timer.
    alarm: Option<Pin<Box<Sleep>>>,
    /// Under way while the endpoint is suspect.
    check: Option<BoxFuture<'static, ()>>,
    /// A reply has come since the endpoint became suspect.
    alive: bool,
    /// The endpoint has answered a check, and this connection nothing since the endpoint
    /// became suspect: it is made again once nothing is outstanding.
    retiring: bool,
}

impl Session<'_> {
    /// Each arm is cancel-safe: the queue's, the socket's and the watch's futures
    /// take nothing before they are ready, and the others are kept.
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
            // Those that wait go on as soon as the kernel has taken what is before them.
            let room = if self.waiting.is_empty() { 0 } else { UNWRITTEN };
            tokio::select! {
                _ = self.connection.queue.recv_many(&mut batch, BATCH) => self.submit(&mut batch),
                received = self.dealer.recv_or_room(room, |received| received.into_tagged()) => {
                    let received =
                        received.map(|message| message.into_iter().for_each(|it| self.arrived(it)));
                    // What else has been read costs no further turn.
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

    /// Takes what was submitted.
    fn submit(&mut self, batch: &mut Vec<Ticket>) {
        let deadline = after(Instant::now(), self.connection.shared.config.timeout);
        self.alarm.get_or_insert_with(|| Box::pin(sleep_until(deadline)));
        self.waiting.extend(batch.drain(..).map(|ticket| (deadline, ticket)));
    }

    /// Hands to the socket what it is to write next.
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

    /// Takes the messages that have been read already.
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
            Arrival::Late => {
                self.alive = true;
                metrics.late_replies.inc();
            }
            Arrival::Unknown => metrics.unknown_replies.inc(),
        }
    }

    /// The alarm has rung: tells those whose time is over.
    ///
    /// If it was this process that stood still, replies may lie in the kernel: they are
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
            // Before anybody is told, who would draw this endpoint again.
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

    /// A request timed out: the endpoint gets no new one until a check of its own
    /// was answered. What is outstanding keeps its own deadlines.
    fn suspect(&mut self) {
        if self.check.is_none() && !self.retiring {
            debug!(endpoint = %self.connection.member.endpoint, "suspect");
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

    /// The check was answered. The connection goes on if it has answered as well: something
    /// since then, or what was sent after the request that was lost. Otherwise it is made again.
    fn checked(&mut self) {
        self.check = None;
        self.connection.member.is_well();
        self.retiring = !self.alive && !self.pending.answers_after_a_loss();
        self.show_state();
    }

    /// What callers may know of the connection.
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
    /// Tells those whose attempts are outstanding, also if the client ends at once.
    fn drop(&mut self) {
        let (settled, written) = (&mut self.connection.settled, self.dealer.written());
        while let Some((id, ticket)) = self.pending.take_any() {
            // The server cannot act on a request of which a byte is missing.
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

/// Waits for a future that may not be there.
async fn due<F: Future<Output = ()> + Unpin>(future: &mut Option<F>) {
    match future {
        Some(future) => future.await,
        None => std::future::pending().await,
    }
}
