//! The bound on requests outstanding: each holds a slot.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use prometheus::IntGauge;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::config::{ClientConfig, WhenFull};
use super::metrics::ClientMetrics;

/// As many slots as requests may be outstanding, and a bound on who waits for one.
#[derive(Debug)]
pub(super) struct Slots {
    free: Arc<Semaphore>,
    waiting: AtomicUsize,
    max_waiting: usize,
    outstanding: IntGauge,
    queued: IntGauge,
}

/// The room that a request takes, free again when this is dropped.
#[derive(Debug)]
pub(super) struct Slot {
    _permit: OwnedSemaphorePermit,
    outstanding: IntGauge,
}

/// No slot is free, and as many wait as may.
#[derive(Debug)]
pub(super) struct Full;

impl Slots {
    pub fn new(config: &ClientConfig, metrics: &ClientMetrics) -> Self {
        Self {
            free: Arc::new(Semaphore::new(config.slots())),
            waiting: AtomicUsize::new(0),
            max_waiting: match config.when_full {
                WhenFull::Wait => config.max_queued,
                WhenFull::Refuse => 0,
            },
            outstanding: metrics.outstanding.clone(),
            queued: metrics.queued.clone(),
        }
    }

    /// A slot, if one is free and nobody waits.
    pub fn try_take(&self) -> Option<Slot> {
        Arc::clone(&self.free).try_acquire_owned().ok().map(|permit| self.slot(permit))
    }

    /// A slot, at once or in turn.
    pub async fn take(&self) -> Result<Slot, Full> {
        if let Some(slot) = self.try_take() {
            return Ok(slot);
        }
        let _waiting = self.wait()?;
        let permit = Arc::clone(&self.free).acquire_owned().await.expect("it is never closed");
        Ok(self.slot(permit))
    }

    fn slot(&self, permit: OwnedSemaphorePermit) -> Slot {
        self.outstanding.inc();
        Slot { _permit: permit, outstanding: self.outstanding.clone() }
    }

    fn wait(&self) -> Result<Waiting<'_>, Full> {
        let may = |waiting| (waiting < self.max_waiting).then_some(waiting + 1);
        self.waiting.fetch_update(Relaxed, Relaxed, may).map_err(|_| Full)?;
        self.queued.inc();
        Ok(Waiting(self))
    }
}

/// A caller that waits, counted until it does not.
struct Waiting<'a>(&'a Slots);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Relaxed);
        self.0.queued.dec();
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.outstanding.dec();
    }
}
