//! One request: its attempts, until it is answered or given up.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::{Instant, sleep, sleep_until, timeout_at};

use super::error::RequestError;
use super::member::{Attempt, Claim, Member, Request};
use super::reply::Reply;
use super::shared::Shared;
use super::slots::Slot;
use super::time::after;

/// The progress of a request.
struct Progress {
    started: Instant,
    /// The endpoints that have failed it so far, one for each attempt.
    failed: Vec<Arc<Member>>,
    /// The endpoint of the current attempt.
    current: Option<Arc<Member>>,
    /// The last endpoint to which it could not be sent.
    unsent: Option<Arc<Member>>,
    queued: bool,
}

/// Makes the attempts that the configuration allows, and counts the outcome. A request whose caller
/// drops this future is counted too.
pub(super) async fn run(shared: &Shared, payload: Bytes) -> Result<Reply, RequestError> {
    let mut progress = Progress {
        started: Instant::now(),
        failed: Vec::new(),
        current: None,
        unsent: None,
        queued: true,
    };
    let counted = Counted { shared, done: false };
    let outcome = attempts(shared, payload, &mut progress).await;
    counted.ended(&outcome);
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
    let deadline = after(progress.started, shared.deadline);
    let slot = take_slot(shared, progress, deadline).await?;
    progress.queued = false;
    let started = progress.started;
    let request = Request { payload, _slot: slot, started, is_retry: false, claim: None };
    let mut request = Box::new(request);
    let mut now = progress.started;
    loop {
        let member = match shared.roster.pick(&progress.failed) {
            Some(member) => member,
            None => {
                let drawing = draw(shared, progress);
                timeout_at(deadline, drawing).await.map_err(|_| progress.out_of_time(shared))??
            }
        };
        let member = progress.current.insert(member);
        // The connection bounds each attempt. A timer here would cost as much as the rest of a
        // request.
        let outcome = if after(now, shared.config.timeout) <= deadline {
            member.attempt(request).await
        } else {
            let claim = Claim::default();
            request.claim = Some(claim.clone());
            match timeout_at(deadline, member.attempt(request)).await {
                Ok(outcome) => outcome,
                Err(_) => {
                    if claim.take() {
                        progress.unsent = progress.current.take();
                    }
                    return Err(progress.out_of_time(shared));
                }
            }
        };
        let pause = match outcome.attempt {
            Attempt::Answered(payload, memory) => {
                // From here on the memory of the reply is the caller's.
                drop(memory);
                let (endpoint, elapsed) = (Arc::clone(&member.endpoint), outcome.elapsed);
                return Ok(Reply { payload, endpoint, attempts: progress.attempts(), elapsed });
            }
            Attempt::NotSent => {
                progress.unsent = progress.current.take();
                Duration::ZERO
            }
            Attempt::Rejected(rejection) if !rejection.retry => {
                return Err(progress.given_up(shared, Attempt::Rejected(rejection)));
            }
            // The request has been worked on, and every server would reply in the same form.
            attempt @ Attempt::NotOneFrame(_) => return Err(progress.given_up(shared, attempt)),
            attempt => {
                if progress.failed.len() as u64 >= u64::from(shared.config.retries) {
                    return Err(progress.given_up(shared, attempt));
                }
                progress.failed.extend(progress.current.take());
                shared.config.retry_backoff.pause(progress.failed.len() as u32 - 1)
            }
        };
        if after(Instant::now(), pause) >= deadline {
            sleep_until(deadline).await;
            return Err(progress.out_of_time(shared));
        }
        match pause {
            // No pause: the endpoint was marked as unusable, so it is picked again only once it is
            // back.
            Duration::ZERO => tokio::task::yield_now().await,
            pause => sleep(pause).await,
        }
        now = Instant::now();
        let Some(again) = outcome.request else { return Err(RequestError::Closed) };
        request = again;
        (request.is_retry, request.claim) = (!progress.failed.is_empty(), None);
    }
}

async fn take_slot(
    shared: &Shared,
    progress: &Progress,
    deadline: Instant,
) -> Result<Slot, RequestError> {
    if let Some(slot) = shared.slots.try_take() {
        return Ok(slot);
    }
    match timeout_at(deadline, shared.slots.wait()).await {
        Ok(Ok(slot)) => Ok(slot),
        Ok(Err(_)) => Err(progress.full()),
        Err(_) => Err(progress.out_of_time(shared)),
    }
}

/// Picks an endpoint to try, if possible one that has not failed this request. Waits if none is
/// usable.
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

    /// The error after the last attempt that was allowed.
    fn given_up(&self, shared: &Shared, attempt: Attempt) -> RequestError {
        let (attempts, elapsed) = (self.attempts(), self.started.elapsed());
        let Some(member) = &self.current else { return no_endpoint(shared, elapsed) };
        let endpoint = Arc::clone(&member.endpoint);
        match attempt {
            Attempt::Disconnected => RequestError::Disconnected { endpoint, attempts, elapsed },
            Attempt::ReplyMemory => RequestError::ReplyMemory { endpoint, attempts, elapsed },
            Attempt::Rejected(rejection) => {
                RequestError::Rejected { endpoint, rejection, attempts, elapsed }
            }
            Attempt::NotOneFrame(frames) => {
                RequestError::NotOneFrame { endpoint, frames, attempts, elapsed }
            }
            _ => RequestError::TimedOut { endpoint, attempts, elapsed },
        }
    }

    /// The error if the deadline passed, during an attempt or between two.
    fn out_of_time(&self, shared: &Shared) -> RequestError {
        let (attempts, elapsed) = (self.attempts(), self.started.elapsed());
        match self.current.as_ref().or(self.failed.last()) {
            Some(last) => {
                RequestError::TimedOut { endpoint: Arc::clone(&last.endpoint), attempts, elapsed }
            }
            None if self.queued => self.full(),
            None => match &self.unsent {
                Some(member) => {
                    RequestError::NotSent { endpoint: Arc::clone(&member.endpoint), elapsed }
                }
                None => no_endpoint(shared, elapsed),
            },
        }
    }
}

fn no_endpoint(shared: &Shared, elapsed: Duration) -> RequestError {
    RequestError::NoEndpoint { reason: shared.unusable().map(Box::new), elapsed }
}

/// Counts each request once, also one whose caller dropped it.
struct Counted<'a> {
    shared: &'a Shared,
    done: bool,
}

impl Counted<'_> {
    fn ended(mut self, outcome: &Result<Reply, RequestError>) {
        self.done = true;
        match outcome {
            Ok(_) => self.shared.metrics.answered.inc(),
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
