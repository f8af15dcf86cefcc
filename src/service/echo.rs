//! The service that this project comes with: replace it with your own.

use super::interface::Service;
use super::request::{Answer, Request};

/// Replies with what was asked.
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
