//! Several methods in one service, chosen by the first frame of the payload.
//!
//! ```
//! use zmq_echo::service::{Methods, Request};
//!
//! const UPPER: usize = 0;
//! const LOWER: usize = 1;
//!
//! let service = Methods::new(&["upper", "lower"], |request: Request<'_>| {
//!     let text = request.frame(1).unwrap_or_default();
//!     let reply = match request.method() {
//!         UPPER => text.to_ascii_uppercase(),
//!         LOWER => text.to_ascii_lowercase(),
//!         _ => unreachable!("`Methods` rejects all other names"),
//!     };
//!     request.reply([reply.into()])
//! });
//! # fn is_service(_: impl zmq_echo::service::Service) {}
//! # is_service(service);
//! ```
//!
//! A request for any other method is rejected with the code `unknown_method`.

use super::in_flight::Ticket;
use super::interface::{Completion, Service};
use super::rejection::Rejection;
use super::request::{Answer, Request};

/// A service whose requests begin with the name of a method.
#[derive(Debug)]
pub struct Methods<S> {
    names: &'static [&'static str],
    service: S,
}

impl<S: Service> Methods<S> {
    /// If the first frame of a request is one of `names`, passes the request on to `service`,
    /// including that frame. [`Request::method`] is then the index of the name.
    pub fn new(names: &'static [&'static str], service: S) -> Self {
        Self { names, service }
    }
}

impl<S: Service> Service for Methods<S> {
    fn methods(&self) -> &'static [&'static str] {
        self.names
    }

    fn method(&self, request: &Request<'_>) -> usize {
        let asked = request.frame(0);
        let known = self.names.iter().position(|name| asked == Some(name.as_bytes()));
        known.unwrap_or(usize::MAX)
    }

    fn call(&mut self, request: Request<'_>) -> Answer {
        if request.method() < self.names.len() {
            return self.service.call(request);
        }
        let text = format!("expected one of these methods: {}", self.names.join(", "));
        request.reject(Rejection::new("unknown_method", text))
    }

    /// Cancel-safe, because the inner service's `completed` is.
    async fn completed(&mut self) -> Completion {
        self.service.completed().await
    }

    fn try_completed(&mut self) -> Option<Completion> {
        self.service.try_completed()
    }

    fn cancel(&mut self, ticket: Ticket) {
        self.service.cancel(ticket);
    }

    fn health(&mut self) -> Result<(), String> {
        self.service.health()
    }
}
