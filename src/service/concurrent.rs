//! Runs work that waits, such as calls to other services, as futures on a runtime outside the loop.
//!
//! It takes any [`tower_service::Service`] over [`Call`], so you can wrap yours in tower's layers
//! for timeouts, concurrency, load shedding and rate limits. [`handler_fn`] makes one from an
//! `async` function:
//!
//! ```
//! use zmq_echo::service::{Call, Concurrent, Rejection, Replies, handler_fn};
//!
//! async fn upper(call: Call) -> Result<Replies, Rejection> {
//!     tokio::time::sleep(std::time::Duration::from_millis(50)).await;
//!     let frames = call.payload.frames().iter();
//!     let reply = frames.map(|frame| frame.to_ascii_uppercase().into());
//!     Ok(Replies::One(reply.collect()))
//! }
//!
//! // At most 200 requests at a time.
//! let service = Concurrent::new(200, || handler_fn(upper))?;
//! # Ok::<(), std::io::Error>(())
//! ```
//!
//! All futures share one thread, so none of them may block: use [`Blocking`](super::Blocking) for
//! that. When a client leaves, the futures of its requests are dropped. A panic in a future costs
//! only its request. A panic in the service's `poll_ready` or `call` costs its request as well, and
//! then the service is created again. A stream of replies waits for a client that reads slowly, and
//! counts towards the limit meanwhile.

use std::any::Any;
use std::collections::VecDeque;
use std::fmt;
use std::future::{Future, poll_fn};
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::thread;
use std::time::{Duration, Instant};

use futures_util::future::{AbortHandle, Abortable};
use futures_util::stream::{BoxStream, FuturesUnordered};
use futures_util::{FutureExt, StreamExt};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use zmtp::Message;
use zmtp::router::ALLOWANCE;

use crate::log;

use super::completions::{Completions, ReplySender};
use super::in_flight::Ticket;
use super::interface::{Completion, Service};
use super::rejection::Rejection;
use super::request::{Answer, Call, Request};

/// How many bytes of a stream's replies may be on their way to its client before the stream is
/// asked for more: those that have not reached the socket, and those that the socket keeps while
/// the client has too many unread replies. It is as large as each peer's allowance.
const WINDOW: usize = ALLOWANCE;

/// How much of the window a reply takes in addition to its bytes.
const REPLY: usize = 64;

/// How many orders the loop collects at most before it sends them.
const ORDERS: usize = 256;

/// How old a reply may be before it is sent, while more requests can start at once.
const REPLY_AGE: Duration = Duration::from_micros(200);

/// What a request is answered with.
pub enum Replies {
    /// One reply.
    One(Message),
    /// Several replies, in order. An error ends them. The stream is asked for the next reply only
    /// while the client reads.
    Stream(BoxStream<'static, Result<Message, Rejection>>),
}

impl From<Message> for Replies {
    fn from(message: Message) -> Self {
        Self::One(message)
    }
}

impl fmt::Debug for Replies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::One(message) => f.debug_tuple("One").field(message).finish(),
            Self::Stream(_) => f.write_str("Stream"),
        }
    }
}

/// A thread that answers requests with futures.
#[derive(Debug)]
pub struct Concurrent {
    orders: mpsc::UnboundedSender<Vec<Order>>,
    /// Orders that are not sent yet. They are sent together at the end of the loop's turn, because
    /// each sending may wake the thread, which would then work on one request at a time.
    unsent: Vec<Order>,
    replies: Completions,
}

/// What the loop tells the runtime. The channel is unbounded, but the limits on requests in flight
/// also limit the number of orders.
#[derive(Debug)]
enum Order {
    Answer(Call),
    Cancel(Ticket),
}

impl Concurrent {
    /// Starts the thread. It creates its service with `make`, and runs at most `limit` requests at
    /// a time. `make` runs in the context of the runtime, so it may spawn tasks and use timers. It
    /// is called again after a panic of the service's `poll_ready` or `call`.
    ///
    /// # Errors
    ///
    /// If the thread or the runtime cannot be created.
    pub fn new<S>(limit: usize, make: impl FnMut() -> S + Send + 'static) -> io::Result<Self>
    where
        S: tower_service::Service<Call, Response = Replies> + 'static,
        S::Error: Into<Rejection>,
    {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (orders, received) = mpsc::unbounded_channel();
        let (sender, replies) = Completions::channel();
        thread::Builder::new().name("futures".to_owned()).spawn(move || {
            runtime.block_on(dispatch(make, limit.max(1), received, sender));
        })?;
        Ok(Self { orders, unsent: Vec::new(), replies })
    }

    fn order(&mut self, order: Order) {
        self.unsent.push(order);
        if self.unsent.len() >= ORDERS {
            self.send_orders();
        }
    }

    fn send_orders(&mut self) {
        if !self.unsent.is_empty() {
            // If the thread has ended, the next request finds out.
            let _ = self.orders.send(std::mem::take(&mut self.unsent));
        }
    }
}

impl Service for Concurrent {
    fn call(&mut self, request: Request<'_>) -> Answer {
        if self.orders.is_closed() {
            // `make` has panicked.
            panic!("the thread that runs the futures has ended");
        }
        let (call, answer) = request.later();
        self.order(Order::Answer(call));
        answer
    }

    /// The loop calls this once per turn, after the turn's requests.
    async fn completed(&mut self) -> Completion {
        self.send_orders();
        self.replies.next().await
    }

    fn try_completed(&mut self) -> Option<Completion> {
        self.replies.try_next()
    }

    fn cancel(&mut self, ticket: Ticket) {
        self.order(Order::Cancel(ticket));
    }
}

/// The runtime's only task: takes orders and drives the futures that they start.
async fn dispatch<S>(
    mut make: impl FnMut() -> S,
    limit: usize,
    mut orders: mpsc::UnboundedReceiver<Vec<Order>>,
    replies: ReplySender,
) where
    S: tower_service::Service<Call, Response = Replies>,
    S::Error: Into<Rejection>,
{
    // Created here and not by the caller, because some of tower's layers need the runtime's context.
    let mut service = make();
    let mut running = FuturesUnordered::new();
    let mut waiting = VecDeque::new();
    let mut handles = Handles::default();
    let mut finished = Vec::new();
    // The memory of futures that are done after one poll is used again.
    let mut work = Box::pin(None);
    loop {
        let may_begin = !waiting.is_empty() && running.len() < limit;
        // Each arm is cancel-safe: `poll_ready` may be called again, and `recv` and `next` take
        // nothing from the channel or the stream unless their arm runs.
        tokio::select! {
            taken = orders.recv() => {
                let Some(taken) = taken else { return };
                for order in taken {
                    match order {
                        Order::Answer(call) => waiting.push_back(call),
                        Order::Cancel(ticket) => {
                            waiting.retain(|call: &Call| call.ticket != ticket);
                            handles.take(ticket).iter().for_each(AbortHandle::abort);
                        }
                    }
                }
            }
            ready = poll_fn(|cx| poll_ready(&mut service, cx)), if may_begin => {
                let mut ready = Some(ready);
                let began = Instant::now();
                let mut started = began;
                // Start everything that can start at once, instead of one request per turn.
                while let Some(now) = ready {
                    let call = waiting.pop_front().expect("a call is waiting");
                    let ticket = call.ticket;
                    let reply = match now {
                        Ok(_) if call.deadline.is_some_and(|deadline| started >= deadline) => {
                            Ok(Err(Rejection::deadline()))
                        }
                        Ok(Ok(())) => log::caught(|| service.call(call)).map(Ok),
                        Ok(Err(error)) => Ok(Err(error.into())),
                        Err(panic) => Err(panic),
                    };
                    let reply = reply.map_err(|_| {
                        // The panic may have left the service half changed.
                        let old = std::mem::replace(&mut service, make());
                        let _ = log::caught(|| drop(old));
                        Panicked
                    });
                    work.set(Some(answer(ticket, started, reply, &replies)));
                    // Work that is done after one poll never joins the running futures. Other work
                    // joins them and is polled again there, which registers the waker of `running`.
                    match poll_fn(|cx| Poll::Ready(current(&mut work).poll(cx))).await {
                        Poll::Ready(done) => {
                            work.set(None);
                            // The end of one request is the start of the next, which saves a look
                            // at the clock.
                            started = done.worked.map_or_else(Instant::now, |(_, ended)| ended);
                            finished.push(done);
                        }
                        Poll::Pending => {
                            let mut work = std::mem::replace(&mut work, Box::pin(None));
                            let work = async move { current(&mut work).await };
                            let (handle, registration) = AbortHandle::new_pair();
                            handles.put(ticket, handle);
                            let work = Abortable::new(work, registration);
                            running.push(work.map(move |done| (ticket, done)));
                            started = Instant::now();
                        }
                    }
                    if !finished.is_empty() && started - began >= REPLY_AGE {
                        break;
                    }
                    ready = if !waiting.is_empty() && running.len() < limit {
                        poll_fn(|cx| poll_ready(&mut service, cx)).now_or_never()
                    } else {
                        None
                    };
                }
                replies.send_all(&mut finished).await;
            }
            ended = running.next(), if !running.is_empty() => {
                let mut ended = ended;
                while let Some((ticket, done)) = ended {
                    handles.take(ticket);
                    finished.extend(done);
                    ended = running.next().now_or_never().flatten();
                }
                replies.send_all(&mut finished).await;
            }
        }
    }
}

/// The service's `poll_ready`, or its panic.
fn poll_ready<S: tower_service::Service<Call>>(
    service: &mut S,
    cx: &mut Context<'_>,
) -> Poll<thread::Result<Result<(), S::Error>>> {
    match log::caught(|| service.poll_ready(cx)) {
        Ok(ready) => ready.map(Ok),
        Err(panic) => Poll::Ready(Err(panic)),
    }
}

/// The service has panicked, and the log has recorded it.
struct Panicked;

/// The future in `work`, which must have one.
fn current<F>(work: &mut Pin<Box<Option<F>>>) -> Pin<&mut F> {
    work.as_mut().as_pin_mut().expect("it was set")
}

/// The abort handles of the running futures, indexed by the slots of their tickets.
#[derive(Default)]
struct Handles(Vec<Option<(Ticket, AbortHandle)>>);

impl Handles {
    fn put(&mut self, ticket: Ticket, handle: AbortHandle) {
        if self.0.len() <= ticket.slot() {
            self.0.resize_with(ticket.slot() + 1, || None);
        }
        self.0[ticket.slot()] = Some((ticket, handle));
    }

    fn take(&mut self, ticket: Ticket) -> Option<AbortHandle> {
        let own = self.0.get_mut(ticket.slot())?.take_if(|(own, _)| *own == ticket)?;
        Some(own.1)
    }
}

/// Drives one request to its end, and returns its last reply. Sends those before it to `replies`.
async fn answer<E: Into<Rejection>>(
    ticket: Ticket,
    started: Instant,
    reply: Result<Result<impl Future<Output = Result<Replies, E>>, Rejection>, Panicked>,
    replies: &ReplySender,
) -> Completion {
    let completion = |reply: Option<Result<Message, Rejection>>, is_last: bool| Completion {
        ticket,
        reply,
        is_last,
        worked: is_last.then(|| (started, Instant::now())),
        token: None,
        panicked: false,
    };
    let panicked =
        || Completion { panicked: true, ..completion(Some(Err(Rejection::panicked())), true) };
    let Ok(reply) = reply else { return panicked() };
    let work = async {
        let made = match reply {
            Ok(future) => future.await.map_err(Into::into),
            Err(rejection) => Err(rejection),
        };
        let mut stream = match made {
            Ok(Replies::Stream(stream)) => stream,
            Ok(Replies::One(message)) => return completion(Some(Ok(message)), true),
            Err(rejection) => return completion(Some(Err(rejection)), true),
        };
        let window = Window::default();
        loop {
            let room = window.room().await;
            match stream.next().await {
                None => return completion(None, true),
                Some(Err(rejection)) => return completion(Some(Err(rejection)), true),
                Some(Ok(message)) => {
                    let token = Some(window.take(room, message.bytes()));
                    let reply = Completion { token, ..completion(Some(Ok(message)), false) };
                    replies.send(reply).await;
                }
            }
        }
    };
    let mut work = pin!(work);
    let caught = poll_fn(|cx| match log::caught(|| work.as_mut().poll(cx)) {
        Ok(poll) => poll.map(Ok),
        Err(panic) => Poll::Ready(Err(panic)),
    });
    caught.await.unwrap_or_else(|_| panicked())
}

/// The part of [`WINDOW`] that a stream has not used.
struct Window(Arc<Semaphore>);

impl Default for Window {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(WINDOW)))
    }
}

impl Window {
    /// Waits until there is room for a reply.
    async fn room(&self) -> OwnedSemaphorePermit {
        let room = Arc::clone(&self.0).acquire_owned().await;
        room.expect("the semaphore is never closed")
    }

    /// Takes as much room as a reply of `bytes` bytes needs, or all of it if the reply is larger.
    /// Dropping the token frees the room.
    fn take(&self, mut room: OwnedSemaphorePermit, bytes: usize) -> Box<dyn Any + Send> {
        // Only this stream takes permits, so the available ones cannot be taken meanwhile.
        let more = (bytes + REPLY - 1).min(self.0.available_permits());
        if let Ok(more) = Arc::clone(&self.0).try_acquire_many_owned(more as u32) {
            room.merge(more);
        }
        Box::new(room)
    }
}

/// Makes a [`tower_service::Service`] from an `async` function.
pub fn handler_fn<F>(function: F) -> HandlerFn<F> {
    HandlerFn(function)
}

/// An `async` function as a [`tower_service::Service`]: see [`handler_fn`].
#[derive(Debug, Clone)]
pub struct HandlerFn<F>(F);

impl<F, Fut, E> tower_service::Service<Call> for HandlerFn<F>
where
    F: FnMut(Call) -> Fut,
    Fut: Future<Output = Result<Replies, E>>,
{
    type Response = Replies;
    type Error = E;
    type Future = Fut;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), E>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, call: Call) -> Fut {
        (self.0)(call)
    }
}
