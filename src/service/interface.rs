//! The interface between the poll loop and the work that a server does.
//!
//! A service has one required method, [`Service::call`]. If the work takes microseconds, a closure
//! is enough:
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
//! While a call runs, the loop serves no other request. So work that takes longer belongs behind
//! [`Blocking`](super::Blocking), a pool of threads, or [`Concurrent`](super::Concurrent), which
//! runs futures on a runtime outside the loop.

use std::any::Any;
use std::future::{Future, pending};
use std::time::Instant;

use zmtp::Message;

use super::in_flight::Ticket;
use super::rejection::Rejection;
use super::request::{Answer, Request};

/// The work of a server.
pub trait Service {
    /// Answers a request, or accepts it with [`Request::later`] to answer it later. Runs on the
    /// loop's thread, and no other request is served meanwhile.
    ///
    /// If it panics, the client gets an error reply, and a new service replaces this one. With
    /// `--on-panic exit`, or after too many panics, the process ends instead.
    fn call(&mut self, request: Request<'_>) -> Answer;

    /// Waits for the next reply to a request in flight, which is one that was accepted with
    /// [`Request::later`]. The loop sends the replies to a request in the order in which it gets
    /// them here.
    ///
    /// Must be cancel-safe: the loop drops the future whenever another event comes first.
    fn completed(&mut self) -> impl Future<Output = Completion> {
        pending()
    }

    /// Returns the next such reply if one is ready. Never waits.
    fn try_completed(&mut self) -> Option<Completion> {
        None
    }

    /// Cancels a request in flight: its client has left, or is told that the server is shutting
    /// down. The loop ignores further replies to it.
    fn cancel(&mut self, _ticket: Ticket) {}

    /// The names of the methods by which requests are counted. They become values of a metric's
    /// label, so keep them few and distinct. Called once, at the start.
    fn methods(&self) -> &'static [&'static str] {
        &["any"]
    }

    /// Returns the index in [`Service::methods`] of the method that a request asks for. A request
    /// with any other number counts as `other`. Called before each [`Service::call`].
    #[inline(always)]
    fn method(&self, _request: &Request<'_>) -> usize {
        0
    }

    /// Checks whether the service can do its work. If not, probes and checks fail.
    ///
    /// # Errors
    ///
    /// A short text that says what is wrong. Probes and checks are answered with it.
    fn health(&mut self) -> Result<(), String> {
        Ok(())
    }
}

/// A reply to a request in flight, or the end of a stream of replies.
#[derive(Debug)]
pub struct Completion {
    /// Which request it answers.
    pub ticket: Ticket,
    /// The payload or an error. `None` if a stream of replies has ended.
    pub reply: Option<Result<Message, Rejection>>,
    /// Whether this is the last completion of its request.
    pub is_last: bool,
    /// When work on the request started and when it ended. Set it in the last completion.
    pub worked: Option<(Instant, Instant)>,
    /// Dropped when the client has room for more replies, or has left. A stream waits for that,
    /// so a client that reads slowly slows it down.
    pub token: Option<Box<dyn Any + Send>>,
    /// Whether an adapter has caught a panic of the work on this request. The loop counts it. An
    /// error that the work has passed on from another server is not a panic, whatever its code.
    pub panicked: bool,
}

impl<F: FnMut(Request<'_>) -> Answer> Service for F {
    #[inline(always)]
    fn call(&mut self, request: Request<'_>) -> Answer {
        self(request)
    }
}
