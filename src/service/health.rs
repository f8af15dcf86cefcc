//! What the poll loop tells the side port about itself, without a lock.

use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Where the service is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Phase {
    /// The loop has not taken its first turn.
    Starting = 0,
    /// Ready for traffic.
    Serving = 1,
    /// Asked to end: no new traffic, please.
    Draining = 2,
}

/// Written by the loop once a turn, read by the side port at each request.
#[derive(Debug)]
pub struct Health {
    started: Instant,
    phase: AtomicU8,
    /// Milliseconds from `started` to the loop's last turn.
    last_turn: AtomicU64,
}

impl Health {
    /// An idle loop turns this often.
    pub const TICK: Duration = Duration::from_millis(500);

    /// The longest time between two turns of a working loop on a busy machine.
    pub const TURN_LIMIT: Duration = Self::TICK.saturating_mul(2);

    /// A service that is starting.
    pub fn new(now: Instant) -> Self {
        Self {
            started: now,
            phase: AtomicU8::new(Phase::Starting as u8),
            last_turn: AtomicU64::new(0),
        }
    }

    /// The loop has turned.
    pub fn turned(&self, now: Instant) {
        self.last_turn.store((now - self.started).as_millis() as u64, Ordering::Relaxed);
    }

    /// The service has come to `phase`.
    pub fn enter(&self, phase: Phase) {
        self.phase.store(phase as u8, Ordering::Relaxed);
    }

    /// Where the service is.
    pub fn phase(&self) -> Phase {
        match self.phase.load(Ordering::Relaxed) {
            0 => Phase::Starting,
            1 => Phase::Serving,
            _ => Phase::Draining,
        }
    }

    /// How long ago the loop turned.
    pub fn since_turn(&self, now: Instant) -> Duration {
        let last_turn =
            self.started + Duration::from_millis(self.last_turn.load(Ordering::Relaxed));
        now.saturating_duration_since(last_turn)
    }
}
