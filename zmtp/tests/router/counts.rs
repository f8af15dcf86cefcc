//! Counts a socket's events.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use zmtp::event::{Event, Observer};

/// An observer, and the handle to its counters.
#[derive(Clone, Default)]
pub struct Counts(Arc<Mutex<Counted>>);

/// The events of a socket so far.
#[derive(Clone, Default)]
pub struct Counted {
    pub established: u64,
    pub peers: usize,
    pub malformed: u64,
    pub replied: usize,
    /// Sum of the latencies of all replies.
    pub latencies: Duration,
    pub undeliverable: u64,
    pub pending_replies: usize,
    pub buffered_bytes: usize,
    failures: BTreeMap<&'static str, u64>,
    disconnections: BTreeMap<&'static str, u64>,
}

impl Counts {
    /// A copy of the counters.
    pub fn get(&self) -> Counted {
        self.0.lock().unwrap().clone()
    }
}

impl Counted {
    /// Number of failed handshakes.
    pub fn failed(&self) -> u64 {
        self.failures.values().sum()
    }

    /// Number of handshakes that failed for this reason.
    pub fn failures(&self, reason: &str) -> u64 {
        self.failures.get(reason).copied().unwrap_or(0)
    }

    /// Number of established connections that ended for this reason.
    pub fn disconnections(&self, reason: &str) -> u64 {
        self.disconnections.get(reason).copied().unwrap_or(0)
    }
}

impl Observer for Counts {
    fn event(&mut self, event: Event) {
        let counted = &mut *self.0.lock().unwrap();
        match event {
            Event::Connected => counted.established += 1,
            Event::HandshakeFailed(reason) => {
                *counted.failures.entry(reason.as_str()).or_default() += 1;
            }
            Event::Disconnected(reason) => {
                *counted.disconnections.entry(reason.as_str()).or_default() += 1;
            }
            Event::Peers(peers) => counted.peers = peers,
            Event::Malformed => counted.malformed += 1,
            Event::Replied { replies, latency, .. } => {
                counted.replied += replies;
                counted.latencies += latency * replies as u32;
            }
            Event::Undeliverable(replies) => counted.undeliverable += replies,
            // The result of closing a socket contains the same numbers.
            Event::Lost(_) | Event::Discarded { .. } => {}
            Event::Turned(totals) => {
                counted.pending_replies = totals.pending_replies;
                counted.buffered_bytes = totals.buffered_bytes;
            }
        }
    }
}
