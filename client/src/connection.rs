//! The task of one endpoint: connects, sends what is submitted, matches what comes
//! back, and knows when it had better not be used.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures_channel::mpsc::Receiver as Events;
use futures_util::future::BoxFuture;
use futures_util::{FutureExt, StreamExt};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, Sleep, sleep, sleep_until, timeout};
use tracing::debug;
use zeromq::{
    DealerRecvHalf, DealerSendHalf, DealerSocket, Socket, SocketEvent, SocketOptions, SocketRecv,
    SocketSend, ZmqMessage, ZmqResult,
};

use super::Shared;
use super::member::{Member, Outcome, State, Submission};
use super::pending::{Arrival, Pending};
use zmq_echo::probe;
use zmtp::endpoint::ConnectEndpoint;

/// How many messages are taken in one go, each way: what is ready then costs one
/// turn of the task and one write to the kernel.
const BATCH: usize = 128;

/// One endpoint's connection, made again for as long as the endpoint is wanted.
pub(super) struct Connection {
    shared: Arc<Shared>,
    member: Arc<Member>,
    queue: mpsc::Receiver<Submission>,
    draining: watch::Receiver<bool>,
    /// Failures in a row: of connecting, of checks, of requests.
    failures: u32,
}

/// Why a connection is not used any more.
enum End {
    /// The endpoint is not wanted, and nothing is outstanding.
    Drained,
    /// The connection broke, and the endpoint may be `suspect` as well.
    Broken { suspect: bool },
}

/// A connected socket: its halves, and what tells when the peer has left, which
/// the crate's `recv` does not.
struct Wire {
    sender: DealerSendHalf,
    receiver: DealerRecvHalf,
    events: Events<SocketEvent>,
}

impl Connection {
    pub fn new(
        shared: Arc<Shared>,
        member: Arc<Member>,
        queue: mpsc::Receiver<Submission>,
    ) -> Self {
        let draining = member.draining.subscribe();
        Self { shared, member, queue, draining, failures: 0 }
    }

    /// Runs until the endpoint is drained.
    pub async fn run(mut self) {
        let mut connected = self.connect().await;
        while let Some(wire) = connected {
            self.set_state(State::Ready);
            connected = match self.serve(wire).await {
                End::Drained => None,
                End::Broken { suspect } => self.reconnect(suspect).await,
            };
        }
    }

    /// Connects again after a pause, and after a check where the endpoint is
    /// suspect. `None` where it is not wanted any more.
    async fn reconnect(&mut self, suspect: bool) -> Option<Wire> {
        if suspect {
            let check = self.check();
            self.unconnected(check).await?;
        } else {
            let pause = self.pause();
            self.unconnected(sleep(pause)).await?;
        }
        self.connect().await
    }

    /// Connects, as often as it takes. `None` where the endpoint is not wanted any
    /// more.
    async fn connect(&mut self) -> Option<Wire> {
        self.set_state(State::Connecting);
        loop {
            let connecting =
                connect(self.member.endpoint.clone(), self.shared.config.connect_timeout);
            match self.unconnected(connecting).await? {
                Ok(wire) => {
                    debug!(endpoint = %self.member.endpoint, "connected");
                    self.shared.metrics.connected.inc();
                    return Some(wire);
                }
                Err(reason) => {
                    debug!(endpoint = %self.member.endpoint, reason, "cannot connect");
                    self.shared.metrics.connect_failed.inc();
                    let pause = self.pause();
                    self.unconnected(sleep(pause)).await?;
                }
            }
        }
    }

    /// Does `work` while there is no connection. What is submitted meanwhile was
    /// drawn before that was known, and goes elsewhere at once.
    async fn unconnected<T>(&mut self, work: impl Future<Output = T>) -> Option<T> {
        tokio::pin!(work);
        loop {
            tokio::select! {
                done = &mut work => return Some(done),
                Some(submission) = self.queue.recv() => submission.ticket.settle(Outcome::Disconnected),
                _ = self.draining.wait_for(|draining| *draining) => return None,
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
    /// as a probe.
    fn check(&mut self) -> BoxFuture<'static, ()> {
        let (shared, member) = (Arc::clone(&self.shared), Arc::clone(&self.member));
        let mut pause = self.pause();
        let mut failures = self.failures;
        Box::pin(async move {
            loop {
                sleep(pause).await;
                match probe::check(&member.endpoint, shared.config.timeout).await {
                    Ok(_) => break shared.metrics.checks_answered.inc(),
                    Err(error) => debug!(%error, "still suspect"),
                }
                shared.metrics.checks_failed.inc();
                pause = shared.config.reconnect_backoff.pause(failures);
                failures = failures.saturating_add(1);
            }
        })
    }

    /// Serves one connection until it ends; what is outstanding then is told.
    async fn serve(&mut self, wire: Wire) -> End {
        let mut session = Session {
            connection: self,
            sender: wire.sender,
            pending: Pending::default(),
            alarm: None,
            check: None,
            alive: true,
            lost: 0,
        };
        let end = session.run(wire.receiver, wire.events).await;
        let mut pending = session.pending;
        // Before anybody is told, who would draw this endpoint again.
        if let End::Broken { suspect } = end {
            self.set_state(if suspect { State::Suspect } else { State::Connecting });
        }
        while let Some(ticket) = pending.take_any() {
            ticket.settle(Outcome::Disconnected);
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
    }
}

/// Connects within `limit`, or says why not.
async fn connect(endpoint: Arc<ConnectEndpoint>, limit: Duration) -> Result<Wire, String> {
    let connecting = async {
        // The crate would try a refused connection again at its own pace, and not
        // say so: whether somebody listens is found out before.
        drop(
            TcpStream::connect(endpoint.host_and_port())
                .await
                .map_err(|error| error.to_string())?,
        );
        let mut options = SocketOptions::default();
        options.no_connect_timeout();
        let mut socket = DealerSocket::with_options(options);
        let events = socket.monitor();
        socket.connect(&endpoint.to_string()).await.map_err(|error| error.to_string())?;
        let (sender, receiver) = socket.split();
        Ok(Wire { sender, receiver, events })
    };
    timeout(limit, connecting).await.unwrap_or_else(|_| Err("no handshake in time".to_owned()))
}

/// One connection while it lasts.
struct Session<'a> {
    connection: &'a mut Connection,
    sender: DealerSendHalf,
    pending: Pending,
    /// Rings no later than the oldest attempt times out. It is set again only when
    /// it has rung, so that an attempt which is answered costs no timer.
    alarm: Option<Pin<Box<Sleep>>>,
    /// Under way while the endpoint is suspect.
    check: Option<BoxFuture<'static, ()>>,
    /// A reply has come since the endpoint became suspect.
    alive: bool,
    /// How many attempts here have timed out, each of which may still be in the
    /// crate's send queue.
    lost: usize,
}

impl Session<'_> {
    /// Each arm is cancel-safe: the queue's, the socket's and the watch's futures
    /// take nothing before they are ready, and the others are kept.
    async fn run(&mut self, mut receiver: DealerRecvHalf, mut events: Events<SocketEvent>) -> End {
        let mut batch = Vec::with_capacity(BATCH);
        loop {
            if self.draining() && self.pending.is_empty() && self.connection.queue.is_empty() {
                return End::Drained;
            }
            tokio::select! {
                _ = self.connection.queue.recv_many(&mut batch, BATCH) => {
                    if !self.send(&mut batch) {
                        return self.broken("cannot send");
                    }
                }
                message = receiver.recv() => {
                    let received = message.map(|message| self.arrived(message));
                    // What else is there already costs no further turn.
                    if let Err(error) = received.and_then(|()| self.receive(BATCH, &mut receiver)) {
                        return self.broken(error);
                    }
                }
                event = events.next() => match event {
                    Some(SocketEvent::Disconnected(_)) | None => {
                        return self.broken("the peer closed the connection");
                    }
                    Some(_) => {}
                },
                () = due(&mut self.alarm) => {
                    // Where it was this process that stood still, replies are there.
                    let all = self.pending.len() + BATCH;
                    if let Err(error) = self.receive(all, &mut receiver) {
                        return self.broken(error);
                    }
                    self.expire();
                }
                () = due(&mut self.check) => {
                    if let Some(end) = self.checked() {
                        return end;
                    }
                }
                Ok(()) = self.connection.draining.changed() => self.show_state(),
            }
        }
    }

    /// Sends what was submitted. False where the connection takes nothing.
    fn send(&mut self, batch: &mut Vec<Submission>) -> bool {
        let deadline = Instant::now() + self.connection.shared.config.timeout;
        self.alarm.get_or_insert_with(|| Box::pin(sleep_until(deadline)));
        let mut taken = true;
        for Submission { payload, ticket } in batch.drain(..) {
            let message = self.pending.enter(ticket, payload, deadline);
            // The queue has room for all that may be outstanding, so that this is
            // ready at once; where it were not, nobody would read at the other end.
            taken = taken && matches!(self.sender.send(message).now_or_never(), Some(Ok(())));
        }
        taken
    }

    /// Takes the messages that are there already.
    fn receive(&mut self, at_most: usize, receiver: &mut DealerRecvHalf) -> ZmqResult<()> {
        for _ in 0..at_most {
            let Some(message) = receiver.recv().now_or_never() else { break };
            self.arrived(message?);
        }
        Ok(())
    }

    fn arrived(&mut self, message: ZmqMessage) {
        let metrics = &self.connection.shared.metrics;
        match self.pending.arrived(message) {
            Arrival::Reply(ticket, payload) => {
                self.alive = true;
                if self.check.is_none() {
                    self.connection.failures = 0;
                }
                ticket.settle(Outcome::Answered(payload));
            }
            Arrival::Late => {
                self.alive = true;
                metrics.late_replies.inc();
            }
            Arrival::Unknown => metrics.unknown_replies.inc(),
        }
    }

    /// The alarm has rung: tells those whose time is over.
    fn expire(&mut self) {
        let now = Instant::now();
        if self.pending.first_deadline().is_some_and(|deadline| deadline <= now) {
            // Before anybody is told, who would draw this endpoint again.
            self.suspect();
        }
        while let Some(ticket) = self.pending.take_expired(now) {
            self.lost += 1;
            ticket.settle(Outcome::TimedOut);
        }
        self.alarm = self.pending.first_deadline().map(|deadline| Box::pin(sleep_until(deadline)));
    }

    /// A request timed out: the endpoint gets no new one until a check of its own
    /// was answered.
    fn suspect(&mut self) {
        if self.check.is_none() {
            debug!(endpoint = %self.connection.member.endpoint, "suspect");
            self.alive = false;
            self.check = Some(self.connection.check());
            self.show_state();
        }
    }

    /// The check was answered. The connection goes on where it has answered as
    /// well, and is made again where it has not, or holds too much that was lost.
    fn checked(&mut self) -> Option<End> {
        self.check = None;
        let good = self.alive && self.lost < self.connection.shared.config.slots();
        if !good && !self.draining() {
            return Some(End::Broken { suspect: false });
        }
        self.show_state();
        None
    }

    /// What callers may know of the connection.
    fn show_state(&self) {
        self.connection.set_state(match (self.draining(), &self.check) {
            (true, _) => State::Draining,
            (false, Some(_)) => State::Suspect,
            (false, None) => State::Ready,
        });
    }

    fn draining(&self) -> bool {
        *self.connection.draining.borrow()
    }

    fn broken(&self, reason: impl std::fmt::Display) -> End {
        debug!(endpoint = %self.connection.member.endpoint, %reason, "connection lost");
        End::Broken { suspect: self.check.is_some() }
    }
}

/// Waits for a future that may not be there.
async fn due<F: Future<Output = ()> + Unpin>(future: &mut Option<F>) {
    match future {
        Some(future) => future.await,
        None => std::future::pending().await,
    }
}
