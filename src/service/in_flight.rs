//! The requests that are answered later: which connection each came from, and its envelope.

use std::time::{Duration, Instant};

use slab::Slab;
use zmtp::Message;
use zmtp::router::{Origin, PeerId};

/// Names a request that is answered later. Unlike a peer's identity it never names another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Ticket {
    slot: usize,
    number: u64,
}

impl Ticket {
    /// A small number that no other request in flight has.
    pub(super) fn slot(self) -> usize {
        self.slot
    }
}

/// All requests that are answered later.
#[derive(Debug, Default)]
pub struct InFlight {
    entries: Slab<Entry>,
    accepted: u64,
    time_limit: Option<Duration>,
}

/// One of them.
#[derive(Debug)]
pub(super) struct Entry {
    number: u64,
    pub origin: Origin,
    pub envelope: Message,
    /// Bytes of the payload.
    pub bytes: usize,
}

impl InFlight {
    /// None yet. A request that has waited for `time_limit` is not worth working on.
    pub(super) fn new(time_limit: Option<Duration>) -> Self {
        Self { time_limit, ..Self::default() }
    }

    pub(super) fn add(&mut self, origin: Origin, envelope: Message, bytes: usize) -> Ticket {
        self.accepted += 1;
        let number = self.accepted;
        let slot = self.entries.insert(Entry { number, origin, envelope, bytes });
        Ticket { slot, number }
    }

    /// When a request that was read at `read_at` is not worth working on any more.
    pub(super) fn deadline(&self, read_at: Instant) -> Option<Instant> {
        self.time_limit.map(|limit| read_at + limit)
    }

    pub(super) fn get(&self, ticket: Ticket) -> Option<&Entry> {
        self.entries.get(ticket.slot).filter(|entry| entry.number == ticket.number)
    }

    pub(super) fn remove(&mut self, ticket: Ticket) -> Option<Entry> {
        self.get(ticket)?;
        self.entries.try_remove(ticket.slot)
    }

    /// Takes all that came from a connection, the newest first: if they are cancelled in this
    /// order, none is begun in the place of another.
    pub(super) fn remove_of(&mut self, peer: PeerId) -> Vec<Ticket> {
        let mut tickets = self.tickets(|entry| entry.origin.peer == peer);
        tickets.sort_unstable_by_key(|ticket| std::cmp::Reverse(ticket.number));
        tickets.iter().for_each(|ticket| drop(self.entries.try_remove(ticket.slot)));
        tickets
    }

    /// Every ticket.
    pub(super) fn all(&self) -> Vec<Ticket> {
        self.tickets(|_| true)
    }

    fn tickets(&self, holds: impl Fn(&Entry) -> bool) -> Vec<Ticket> {
        let entries = self.entries.iter().filter(|(_, entry)| holds(entry));
        entries.map(|(slot, entry)| Ticket { slot, number: entry.number }).collect()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}
