//! The service that comes with this project. Replace it with your own.

use super::interface::Service;
use super::request::{Answer, Request};

/// Replies to each request with its own payload.
#[derive(Debug, Clone, Copy, Default)]
pub struct Echo;

impl Service for Echo {
    fn methods(&self) -> &'static [&'static str] {
        &["echo"]
    }

    #[inline(always)]
    fn call(&mut self, request: Request<'_>) -> Answer {
        request.echo()
    }
}
