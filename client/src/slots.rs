//! Limits the number of outstanding requests. Each one holds a slot.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use prometheus::IntGauge;
use tokio::sync::{Semaphore, SemaphorePermit};

use super::config::{ClientConfig, WhenFull};
use super::metrics::ClientMetrics;

/// One slot for each request that may be outstanding, and a limit on the callers that wait for one.
#[derive(Debug, Clone)]
pub(super) struct Slots(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    /// Slots that any caller may take. A slot handed to a waiting caller is a permit of `handed`
    /// instead, so a request that finds a free slot costs one atomic operation.
    free: AtomicUsize,
    handed: Semaphore,
    waiting: AtomicUsize,
    max_waiting: usize,
    outstanding: IntGauge,
    queued: IntGauge,
}

/// A request's slot. Dropping it frees the slot.
#[derive(Debug)]
pub(super) struct Slot(Arc<Shared>);

/// No slot is free, and the maximum number of callers is already waiting.
#[derive(Debug)]
pub(super) struct Full;

impl Slots {
    pub fn new(config: &ClientConfig, metrics: &ClientMetrics) -> Self {
        Self(Arc::new(Shared {
            free: AtomicUsize::new(config.slots()),
            handed: Semaphore::new(0),
            waiting: AtomicUsize::new(0),
            max_waiting: match config.when_full {
                WhenFull::Wait => config.max_queued,
                WhenFull::Refuse => 0,
            },
            outstanding: metrics.outstanding.clone(),
            queued: metrics.queued.clone(),
        }))
    }

    /// Takes a slot if one is free.
    pub fn try_take(&self) -> Option<Slot> {
        // A permit is left over if the caller that it was meant for stopped waiting.
        let is_taken = self.0.take_free() || self.0.handed.try_acquire().is_ok_and(forget);
        is_taken.then(|| self.slot())
    }

    /// Waits in turn for a slot. Call it if [`Slots::try_take`] found none.
    pub async fn wait(&self) -> Result<Slot, Full> {
        let may = |waiting| (waiting < self.0.max_waiting).then_some(waiting + 1);
        self.0.waiting.fetch_update(SeqCst, SeqCst, may).map_err(|_| Full)?;
        self.0.queued.inc();
        let _waiting = Waiting(&self.0);
        // A slot may have been returned before this caller was counted as waiting.
        if let Some(slot) = self.try_take() {
            return Ok(slot);
        }
        forget(self.0.handed.acquire().await.expect("the semaphore is never closed"));
        Ok(self.slot())
    }

    fn slot(&self) -> Slot {
        self.0.outstanding.inc();
        Slot(Arc::clone(&self.0))
    }
}

impl Shared {
    fn take_free(&self) -> bool {
        self.free.fetch_update(SeqCst, SeqCst, |free| free.checked_sub(1)).is_ok()
    }
}

/// Keeps the permit, so that dropping it does not return it to the semaphore.
fn forget(permit: SemaphorePermit<'_>) -> bool {
    permit.forget();
    true
}

/// Counts a waiting caller until it stops waiting.
struct Waiting<'a>(&'a Shared);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, SeqCst);
        self.0.queued.dec();
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let slots = &self.0;
        slots.outstanding.dec();
        slots.free.fetch_add(1, SeqCst);
        // A caller that starts to wait after this point checks the free slots again.
        if slots.waiting.load(SeqCst) > 0 && slots.take_free() {
            slots.handed.add_permits(1);
        }
    }
}
