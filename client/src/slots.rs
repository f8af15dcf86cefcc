//! The bound on requests outstanding: each holds a slot.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use prometheus::IntGauge;
use tokio::sync::{Semaphore, SemaphorePermit};

use super::config::{ClientConfig, WhenFull};
use super::metrics::ClientMetrics;

/// As many slots as requests may be outstanding, and a bound on who waits for one.
#[derive(Debug, Clone)]
pub(super) struct Slots(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    /// Free slots for whoever comes. Those that are handed to waiting callers are permits of
    /// `handed`, so that a request which finds a slot costs one atomic operation.
    free: AtomicUsize,
    handed: Semaphore,
    waiting: AtomicUsize,
    max_waiting: usize,
    outstanding: IntGauge,
    queued: IntGauge,
}

/// The room that a request takes, free again when this is dropped.
#[derive(Debug)]
pub(super) struct Slot(Arc<Shared>);

/// No slot is free, and as many wait as may.
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

    /// A slot, if one is free.
    pub fn try_take(&self) -> Option<Slot> {
        // One may have been handed to a caller that did not wait for it any longer.
        let is_taken = self.0.take_free() || self.0.handed.try_acquire().is_ok_and(forget);
        is_taken.then(|| self.slot())
    }

    /// Waits in turn for a slot, if [`Slots::try_take`] has none.
    pub async fn wait(&self) -> Result<Slot, Full> {
        let may = |waiting| (waiting < self.0.max_waiting).then_some(waiting + 1);
        self.0.waiting.fetch_update(SeqCst, SeqCst, may).map_err(|_| Full)?;
        self.0.queued.inc();
        let _waiting = Waiting(&self.0);
        // One that was given back before it was known that somebody waits.
        if let Some(slot) = self.try_take() {
            return Ok(slot);
        }
        forget(self.0.handed.acquire().await.expect("it is never closed"));
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

/// Keeps what was acquired.
fn forget(permit: SemaphorePermit<'_>) -> bool {
    permit.forget();
    true
}

/// A caller that waits, counted until it does not.
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
        // Whoever begins to wait from here on looks at the free ones once more.
        if slots.waiting.load(SeqCst) > 0 && slots.take_free() {
            slots.handed.add_permits(1);
        }
    }
}
