//! State that callers and connection tasks share.

use std::time::Duration;

use tokio::sync::watch;
use zmtp::memory_pool::MemoryPool;

use super::config::ClientConfig;
use super::discovery::Failures;
use super::member::Roster;
use super::metrics::ClientMetrics;
use super::slots::Slots;
use super::trouble::Unusable;

/// State that callers and connection tasks share.
#[derive(Debug)]
pub(super) struct Shared {
    pub config: ClientConfig,
    pub deadline: Duration,
    pub metrics: ClientMetrics,
    pub slots: Slots,
    pub reply_memory: MemoryPool,
    pub roster: Roster,
    pub phase: watch::Sender<Phase>,
    /// The last failure of the endpoint source.
    pub failures: Failures,
}

/// The life cycle of a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    Open,
    /// New requests are refused. Replies to outstanding ones are still read.
    Closing,
    Closed,
}

impl Shared {
    pub fn new(config: ClientConfig, metrics: ClientMetrics, failures: Failures) -> Self {
        Self {
            deadline: config.overall_deadline(),
            slots: Slots::new(&config, &metrics),
            reply_memory: MemoryPool::new(config.max_replies),
            roster: Roster::new(metrics.clone()),
            phase: watch::Sender::new(Phase::Open),
            failures,
            metrics,
            config,
        }
    }

    /// See [`Client::unusable`](super::Client::unusable).
    pub fn unusable(&self) -> Option<Unusable> {
        let unusable = self.roster.unusable()?;
        if let Unusable::NotAsked | Unusable::NoneNamed = unusable {
            let failure = self.failures.borrow().clone();
            return Some(failure.map_or(unusable, Unusable::Source));
        }
        Some(unusable)
    }

    /// Waits until the client stops accepting requests.
    pub async fn closed(&self) {
        // This cannot fail: `self` owns the sender.
        let _ = self.phase.subscribe().wait_for(|phase| *phase != Phase::Open).await;
    }
}
