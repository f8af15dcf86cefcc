//! One request: its attempts, until it is answered or given up.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::{Instant, sleep, timeout_at};

use super::Shared;
use super::error::RequestError;
use super::member::{Member, Outcome, Settled};
use super::slots::Slot;
use zmtp::endpoint::ConnectEndpoint;

/// A reply, and how it came about.
#[derive(Debug, Clone)]
pub struct Reply {
    /// What the service answered.
    pub payload: Bytes,
    /// Who answered.
    pub endpoint: Arc<ConnectEndpoint>,
    /// How many attempts it took, the answered one included.
    pub attempts: u32,
}

/// How far a request has come.
struct Progress {
    started: Instant,
    /// Every endpoint that failed it so far, one for each attempt.
    failed: Vec<Arc<Member>>,
    /// Where the attempt under way is.
    current: Option<Arc<Member>>,
    queued: bool,
}

/// Makes the attempts that the configuration allows, and counts what came of them.
/// A caller that drops this future is counted as well.
pub(super) async fn run(shared: &Shared, payload: Bytes) -> Result<Reply, RequestError> {
    let mut progress =
        Progress { started: Instant::now(), failed: Vec::new(), current: None, queued: true };
    let counted = Counted { shared, done: false };
    let deadline = progress.started + shared.deadline;
    let outcome = match timeout_at(deadline, attempts(shared, payload, &mut progress)).await {
        Ok(outcome) => outcome,
        Err(_) => Err(progress.out_of_time()),
    };
    counted.ended(&outcome, progress.started.elapsed());
    outcome
}

async fn attempts(
    shared: &Shared,
    payload: Bytes,
    progress: &mut Progress,
) -> Result<Reply, RequestError> {
    let limit = shared.config.max_payload;
    if payload.len() > limit {
        return Err(RequestError::TooLarge { size: payload.len(), limit });
    }
    let mut slot = shared.slots.take().await.map_err(|_| progress.full())?;
    progress.queued = false;
    loop {
        let member = draw(shared, progress).await?;
        let settled = attempt(shared, &member, payload.clone(), slot, progress).await;
        match settled.outcome {
            Outcome::Answered(payload) => {
                let endpoint = Arc::clone(&member.endpoint);
                return Ok(Reply { payload, endpoint, attempts: progress.attempts() });
            }
            outcome if progress.failed.len() as u64 >= u64::from(shared.config.retries) => {
                return Err(progress.given_up(&outcome));
            }
            _ => {}
        }
        let pause = shared.config.retry_backoff.pause(progress.failed.len() as u32);
        progress.current = None;
        progress.failed.push(member);
        sleep(pause).await;
        slot = match settled.slot {
            Some(slot) => slot,
            None => shared.slots.take().await.map_err(|_| progress.full())?,
        };
    }
}

async fn attempt(
    shared: &Shared,
    member: &Arc<Member>,
    payload: Bytes,
    slot: Slot,
    progress: &mut Progress,
) -> Settled {
    let metrics = &shared.metrics;
    metrics.attempts.inc();
    if !progress.failed.is_empty() {
        metrics.retries.inc();
    }
    progress.current = Some(Arc::clone(member));
    member.attempt(payload, slot).await
}

/// An endpoint to try: another than the ones that failed, where there is one.
async fn draw(shared: &Shared, progress: &Progress) -> Result<Arc<Member>, RequestError> {
    loop {
        if let Some(member) = shared.roster.pick(&progress.failed) {
            return Ok(member);
        }
        tokio::select! {
            () = shared.roster.wait_until_usable() => {}
            () = shared.closed() => return Err(RequestError::Closed),
        }
    }
}

impl Progress {
    fn attempts(&self) -> u32 {
        (self.failed.len() + usize::from(self.current.is_some())) as u32
    }

    fn full(&self) -> RequestError {
        RequestError::Full { elapsed: self.started.elapsed() }
    }

    /// The attempt under way was the last that there may be.
    fn given_up(&self, outcome: &Outcome) -> RequestError {
        let (attempts, elapsed) = (self.attempts(), self.started.elapsed());
        let Some(member) = &self.current else { return RequestError::NoEndpoint { elapsed } };
        let endpoint = Arc::clone(&member.endpoint);
        match outcome {
            Outcome::Disconnected => RequestError::Disconnected { endpoint, attempts, elapsed },
            _ => RequestError::TimedOut { endpoint, attempts, elapsed },
        }
    }

    /// The deadline passed, with an attempt under way or between two.
    fn out_of_time(&self) -> RequestError {
        let (attempts, elapsed) = (self.attempts(), self.started.elapsed());
        match self.current.as_ref().or(self.failed.last()) {
            Some(last) => {
                RequestError::TimedOut { endpoint: Arc::clone(&last.endpoint), attempts, elapsed }
            }
            None if self.queued => self.full(),
            None => RequestError::NoEndpoint { elapsed },
        }
    }
}

/// Counts each request once, also one whose caller has left.
struct Counted<'a> {
    shared: &'a Shared,
    done: bool,
}

impl Counted<'_> {
    fn ended(mut self, outcome: &Result<Reply, RequestError>, elapsed: Duration) {
        self.done = true;
        match outcome {
            Ok(_) => {
                self.shared.metrics.answered.inc();
                self.shared.metrics.request_duration.observe(elapsed.as_secs_f64());
            }
            Err(error) => self.shared.metrics.failed(error),
        }
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        if !self.done {
            self.shared.metrics.abandoned.inc();
        }
    }
}
