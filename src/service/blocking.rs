//! Runs work that blocks, such as a database query or a long calculation, on a pool of threads.
//!
//! ```
//! use zmq_echo::service::{Blocking, Call, Rejection};
//! use zmtp::Message;
//!
//! let counted = |count: &mut u64, call: &Call| -> Result<Message, Rejection> {
//!     *count += 1;
//!     Ok([bytes::Bytes::from(format!("{count}: {} bytes", call.payload.bytes()))].into())
//! };
//! // Four threads, each with its own counter.
//! let service = Blocking::new(4, || Ok(0), counted)?;
//! # Ok::<(), std::io::Error>(())
//! ```
//!
//! The queue in front of the threads has no limit of its own. It is bounded by the server's limits
//! on requests in flight: beyond them, further requests wait in the kernel and at the clients.
//!
//! A panic costs its request and the state of its thread, which is then created again. If that
//! fails, the process ends. A thread cannot be stopped. If the client has left or the server is
//! shutting down, it still finishes the request that it has begun. A client that sends the request
//! again gets the work done twice.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Instant;

use zmtp::Message;

use crate::log;

use super::completions::{Completions, ReplySender};
use super::in_flight::Ticket;
use super::interface::{Completion, Service};
use super::rejection::Rejection;
use super::request::{Answer, Call, Request};

/// A pool of threads that answers requests.
#[derive(Debug)]
pub struct Blocking {
    queue: Arc<Queue>,
    replies: Completions,
}

/// The requests that no thread has begun to work on.
#[derive(Debug, Default)]
struct Queue {
    calls: Mutex<Calls>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Calls {
    waiting: VecDeque<Call>,
    /// The number of threads that wait for a call.
    idle: usize,
    closed: bool,
}

impl Blocking {
    /// Starts `threads` threads, at least one. Each creates its own state with `state` before its
    /// first request, and answers requests with `work`.
    ///
    /// # Errors
    ///
    /// The error of `state`, which is called once to try it, or that of starting a thread.
    pub fn new<S: 'static>(
        threads: usize,
        state: impl Fn() -> io::Result<S> + Send + Sync + 'static,
        work: impl Fn(&mut S, &Call) -> Result<Message, Rejection> + Send + Sync + 'static,
    ) -> io::Result<Self> {
        let queue = Arc::new(Queue::default());
        let (sender, replies) = Completions::channel();
        let pool = Self { queue, replies };
        // Try it now, so that a wrong setting is found at the start and not at the first request.
        drop(state()?);
        let worker = Arc::new((state, work));
        for number in 0..threads.max(1) {
            let (queue, sender) = (Arc::clone(&pool.queue), sender.clone());
            let worker = Arc::clone(&worker);
            let run = move || run(&queue, &sender, &worker.0, &worker.1);
            thread::Builder::new().name(format!("worker-{number}")).spawn(run)?;
        }
        Ok(pool)
    }
}

impl Drop for Blocking {
    fn drop(&mut self) {
        self.queue.lock().closed = true;
        self.queue.changed.notify_all();
    }
}

impl Service for Blocking {
    fn call(&mut self, request: Request<'_>) -> Answer {
        let (call, answer) = request.later();
        let mut calls = self.queue.lock();
        calls.waiting.push_back(call);
        if calls.idle > 0 {
            self.queue.changed.notify_one();
        }
        answer
    }

    async fn completed(&mut self) -> Completion {
        self.replies.next().await
    }

    fn try_completed(&mut self) -> Option<Completion> {
        self.replies.try_next()
    }

    fn cancel(&mut self, ticket: Ticket) {
        self.queue.lock().waiting.retain(|call| call.ticket != ticket);
    }
}

impl Queue {
    /// Waits for a request. Returns `None` once the pool has been dropped.
    fn next(&self) -> Option<Call> {
        let mut calls = self.lock();
        loop {
            if calls.closed {
                return None;
            }
            if let Some(call) = calls.waiting.pop_front() {
                return Some(call);
            }
            calls.idle += 1;
            calls = self.changed.wait(calls).unwrap_or_else(PoisonError::into_inner);
            calls.idle -= 1;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Calls> {
        // No code that may panic runs while the lock is held, so a poisoned lock is impossible.
        self.calls.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a thread keeps from one request to the next.
enum State<S> {
    /// Not created yet.
    New,
    Ready(S),
    /// A panic may have left it half changed.
    Lost,
}

/// Runs one thread: works on requests until the pool has been dropped.
fn run<S>(
    queue: &Queue,
    replies: &ReplySender,
    make: &impl Fn() -> io::Result<S>,
    work: &impl Fn(&mut S, &Call) -> Result<Message, Rejection>,
) {
    let mut state = State::New;
    while let Some(call) = queue.next() {
        let started = Instant::now();
        let reply = if call.deadline.is_some_and(|deadline| started >= deadline) {
            Ok(Err(Rejection::deadline()))
        } else {
            answer(&mut state, make, &call, work)
        };
        let panicked = reply.is_err();
        let reply = reply.unwrap_or_else(|_| Err(Rejection::panicked()));
        let completion = Completion {
            ticket: call.ticket,
            reply: Some(reply),
            is_last: true,
            worked: Some((started, Instant::now())),
            token: None,
            panicked,
        };
        if !replies.blocking_send(completion) {
            return;
        }
    }
}

/// Works on one request. A panic may leave the state half changed, so it is then not used again.
fn answer<S>(
    state: &mut State<S>,
    make: &impl Fn() -> io::Result<S>,
    call: &Call,
    work: &impl Fn(&mut S, &Call) -> Result<Message, Rejection>,
) -> thread::Result<Result<Message, Rejection>> {
    let before = std::mem::replace(state, State::Lost);
    let mut own = match before {
        State::Ready(own) => own,
        before => match make() {
            Ok(own) => own,
            Err(error) if matches!(before, State::New) => {
                *state = State::New;
                return Ok(Err(Rejection::failed(error.to_string()).retryable()));
            }
            // Not caught, so it ends the process: without its state the thread could only fail.
            Err(error) => panic!("the state cannot be created again after a panic: {error}"),
        },
    };
    match log::caught(|| work(&mut own, call)) {
        Ok(reply) => {
            *state = State::Ready(own);
            Ok(reply)
        }
        Err(panic) => {
            // It is half changed, so it may panic again.
            let _ = log::caught(|| drop(own));
            Err(panic)
        }
    }
}
