//! The tests' own echo, which stays when you replace the service.

use zmq_echo::service::{Answer, Request, Service};

/// Replies to each request with its own payload.
#[derive(Debug, Clone, Copy)]
pub struct TestEcho;

impl Service for TestEcho {
    fn methods(&self) -> &'static [&'static str] {
        &["echo"]
    }

    fn call(&mut self, request: Request<'_>) -> Answer {
        request.echo()
    }
}
