//! What the poll loop tells the side port about itself, without a lock.

use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// The phases of the service's life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Phase {
    /// The loop has not begun its first turn.
    Starting = 0,
    /// Ready for traffic.
    Serving = 1,
    /// A signal has come. Clients should send new traffic elsewhere.
    Draining = 2,
}

/// The loop's phase and its last turn. The loop writes it in every turn, and the side port reads it
/// when it is asked about the server's health.
#[derive(Debug)]
pub struct Health {
    started: Instant,
    phase: AtomicU8,
    /// Milliseconds from `started` to the loop's last turn.
    last_turn: AtomicU64,
}

impl Health {
    /// How often an idle loop turns.
    pub const TICK: Duration = Duration::from_millis(500);

    /// A loop that has not turned for longer than this counts as hung. It is twice the tick,
    /// because the loop may be late on a busy machine.
    pub const TURN_LIMIT: Duration = Self::TICK.saturating_mul(2);

    /// The health of a service that starts at `now`.
    pub fn new(now: Instant) -> Self {
        Self {
            started: now,
            phase: AtomicU8::new(Phase::Starting as u8),
            last_turn: AtomicU64::new(0),
        }
    }

    /// Records that the loop has turned at `now`.
    pub fn turned(&self, now: Instant) {
        self.last_turn.store((now - self.started).as_millis() as u64, Ordering::Relaxed);
    }

    /// Records that the service has entered `phase`.
    pub fn enter(&self, phase: Phase) {
        self.phase.store(phase as u8, Ordering::Relaxed);
    }

    /// The current phase.
    pub fn phase(&self) -> Phase {
        match self.phase.load(Ordering::Relaxed) {
            0 => Phase::Starting,
            1 => Phase::Serving,
            _ => Phase::Draining,
        }
    }

    /// Time since the loop last turned.
    pub fn since_turn(&self, now: Instant) -> Duration {
        let last_turn =
            self.started + Duration::from_millis(self.last_turn.load(Ordering::Relaxed));
        now.saturating_duration_since(last_turn)
    }
}
