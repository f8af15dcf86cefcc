//! The interface between the poll loop and the work that it is there for.
//!
//! A service is a value with a method, [`Service::call`]. For work of microseconds a closure is
//! enough:
//!
//! ```
//! use zmq_echo::service::{Rejection, Request};
//!
//! let upper = |request: Request<'_>| match request.frame(0) {
//!     Some(text) => {
//!         let reply = bytes::Bytes::from(text.to_ascii_uppercase());
//!         request.reply([reply])
//!     }
//!     None => request.reject(Rejection::new("empty", "expected a frame")),
//! };
//! # fn is_service(_: impl zmq_echo::service::Service) {}
//! # is_service(upper);
//! ```
//!
//! Whatever takes longer belongs behind [`Blocking`](super::Blocking), a pool of threads, or
//! [`Concurrent`](super::Concurrent), futures on a runtime of their own: while a call runs, the
//! loop serves nobody else.

use std::any::Any;
use std::future::{Future, pending};
use std::time::Instant;

use zmtp::Message;

use super::in_flight::Ticket;
use super::rejection::Rejection;
use super::request::{Answer, Request};

/// The work of a server.
pub trait Service {
    /// Answers a request, or takes it for later. Runs on the loop's thread: while it does,
    /// nobody else is served.
    ///
    /// If it panics, its client gets an error reply, and a new service takes this one's place.
    fn call(&mut self, request: Request<'_>) -> Answer;

    /// Waits for the next reply to a request that was taken for later. Replies to one request
    /// are sent in this order.
    ///
    /// Must be cancel-safe: the loop drops it whenever something else happens first.
    fn completed(&mut self) -> impl Future<Output = Completion> {
        pending()
    }

    /// The next such reply if there is one already.
    fn try_completed(&mut self) -> Option<Completion> {
        None
    }

    /// Nobody waits for this request any more: its client has left, or has been told that the
    /// server is shutting down. Replies to it are ignored from now on.
    fn cancel(&mut self, _ticket: Ticket) {}

    /// The names of the methods by which requests are counted. They are values of a label, so
    /// there are few of them, and each once. The loop asks once, at the start.
    fn methods(&self) -> &'static [&'static str] {
        &["any"]
    }

    /// Which of its methods a request asks for: its index in [`Service::methods`]. A request
    /// with another number is counted as `other`. The loop asks before each [`Service::call`].
    #[inline(always)]
    fn method(&self, _request: &Request<'_>) -> usize {
        0
    }

    /// Whether the service can do its work. If not, probes and checks fail with this text.
    ///
    /// # Errors
    ///
    /// What is wrong, in a few words.
    fn health(&mut self) -> Result<(), String> {
        Ok(())
    }
}

/// A reply to a request that was taken for later.
#[derive(Debug)]
pub struct Completion {
    /// Which request it answers.
    pub ticket: Ticket,
    /// The payload or the error; `None` if a stream of replies has ended.
    pub reply: Option<Result<Message, Rejection>>,
    /// Whether no more replies to this request follow.
    pub is_last: bool,
    /// From when to when the request was worked on, with the last reply.
    pub worked: Option<(Instant, Instant)>,
    /// Dropped once its client has room for more replies. A stream waits for that, so that a
    /// client which reads slowly slows it down.
    pub token: Option<Box<dyn Any + Send>>,
}

impl<F: FnMut(Request<'_>) -> Answer> Service for F {
    #[inline(always)]
    fn call(&mut self, request: Request<'_>) -> Answer {
        self(request)
    }
}
