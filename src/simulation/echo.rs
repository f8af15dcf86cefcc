//! The echo with simulated work and faults.

use std::borrow::Cow;
use std::io;
use std::thread;

use fastrand::Rng;
use tracing::warn;
use zmtp::Message;

use super::faults::{Outcome, Switches};
use super::work::Work;
use crate::service::{Answer, Blocking, Call, Completion, Rejection, Request, Service, Ticket};

/// The error code by which a thread tells the service that a request gets no reply. It never
/// leaves the process.
const SILENT: &str = "silent";

/// An echo on a pool of threads, each of which works on one request at a time.
#[derive(Debug)]
pub struct SimulatedEcho {
    pool: Blocking,
}

impl SimulatedEcho {
    /// An echo that does this `work` for each request, on this many `threads`, and has the faults
    /// in `switches`.
    ///
    /// # Errors
    ///
    /// If a thread cannot be started.
    pub fn new(work: Work, threads: usize, switches: Switches) -> io::Result<Self> {
        let answer = move |rng: &mut Rng, call: &Call| answer(&work, &switches, rng, call);
        let pool = Blocking::new(threads, || Ok(Rng::new()), answer)?;
        warn!(work = work.to_string(), threads, "simulating work");
        Ok(Self { pool })
    }
}

impl Service for SimulatedEcho {
    fn methods(&self) -> &'static [&'static str] {
        &["echo"]
    }

    fn call(&mut self, request: Request<'_>) -> Answer {
        self.pool.call(request)
    }

    /// Cancel-safe, because the pool's is.
    async fn completed(&mut self) -> Completion {
        silenced(self.pool.completed().await)
    }

    fn try_completed(&mut self) -> Option<Completion> {
        self.pool.try_completed().map(silenced)
    }

    fn cancel(&mut self, ticket: Ticket) {
        self.pool.cancel(ticket);
    }
}

/// Works on one request.
fn answer(
    work: &Work,
    switches: &Switches,
    rng: &mut Rng,
    call: &Call,
) -> Result<Message, Rejection> {
    let (delay, outcome) = switches.draw(rng);
    work.perform(rng);
    if !delay.is_zero() {
        thread::sleep(delay);
    }
    match outcome {
        Outcome::Echo => Ok(call.payload.clone()),
        Outcome::Error => Err(Rejection::new("simulated", "a simulated error").retryable()),
        Outcome::Silence => Err(Rejection::new(SILENT, "")),
        Outcome::Panic => panic!("a simulated panic"),
    }
}

/// Ends a request that gets no reply, as a stream of replies ends.
fn silenced(completion: Completion) -> Completion {
    match completion.reply {
        Some(Err(Rejection { code: Cow::Borrowed(SILENT), .. })) => {
            Completion { reply: None, ..completion }
        }
        _ => completion,
    }
}
