//! The requests in flight: those that are answered later. Keeps the connection that each came from,
//! and its envelope.

use std::time::{Duration, Instant};

use slab::Slab;
use zmtp::Message;
use zmtp::router::{Origin, PeerId};

/// What each frame of a request costs in addition to its bytes: its entry in the message, and what
/// the allocator adds. Measured with a flood of one-byte frames: 65 bytes. A frame of the envelope
/// takes 32 more once it is shared with a reply.
const FRAME: usize = 96;

/// Identifies a request in flight. Unlike a peer's identity, a ticket is never reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Ticket {
    slot: usize,
    number: u64,
}

impl Ticket {
    /// A small number that no other request in flight has at the same time.
    pub(super) fn slot(self) -> usize {
        self.slot
    }
}

/// All requests in flight.
#[derive(Debug, Default)]
pub struct InFlight {
    entries: Slab<Entry>,
    accepted: u64,
    time_limit: Option<Duration>,
}

/// One request in flight.
#[derive(Debug)]
pub(super) struct Entry {
    number: u64,
    pub origin: Origin,
    pub envelope: Message,
    /// The memory that the request takes.
    pub bytes: usize,
    /// Whether the request counts towards the socket's limits. It does not while the service is
    /// still being called.
    pub held: bool,
}

impl InFlight {
    /// Starts without requests. A request that has waited for `time_limit` is not worked on.
    pub(super) fn new(time_limit: Option<Duration>) -> Self {
        Self { time_limit, ..Self::default() }
    }

    /// Adds a request with this envelope, which is kept here, and this payload, which the service
    /// keeps.
    pub(super) fn add(&mut self, origin: Origin, envelope: Message, payload: &Message) -> Ticket {
        self.accepted += 1;
        let number = self.accepted;
        let bytes = held(&envelope) + held(payload);
        let slot = self.entries.insert(Entry { number, origin, envelope, bytes, held: false });
        Ticket { slot, number }
    }

    /// When the time limit of a request that was read at `read_at` ends. `None` if there is no time
    /// limit.
    pub(super) fn deadline(&self, read_at: Instant) -> Option<Instant> {
        self.time_limit.map(|limit| read_at + limit)
    }

    pub(super) fn get(&self, ticket: Ticket) -> Option<&Entry> {
        self.entries.get(ticket.slot).filter(|entry| entry.number == ticket.number)
    }

    pub(super) fn get_mut(&mut self, ticket: Ticket) -> Option<&mut Entry> {
        let entry = self.entries.get_mut(ticket.slot)?;
        (entry.number == ticket.number).then_some(entry)
    }

    pub(super) fn remove(&mut self, ticket: Ticket) -> Option<Entry> {
        self.get(ticket)?;
        self.entries.try_remove(ticket.slot)
    }

    /// Removes the requests of a connection and returns their tickets, the newest first. If they
    /// are cancelled in this order, cancelling one never starts another that is cancelled next.
    pub(super) fn remove_of(&mut self, peer: PeerId) -> Vec<Ticket> {
        let mut tickets = self.tickets(|entry| entry.origin.peer == peer);
        tickets.sort_unstable_by_key(|ticket| std::cmp::Reverse(ticket.number));
        tickets.iter().for_each(|ticket| drop(self.entries.try_remove(ticket.slot)));
        tickets
    }

    /// The tickets of all requests in flight.
    pub(super) fn all(&self) -> Vec<Ticket> {
        self.tickets(|_| true)
    }

    fn tickets(&self, holds: impl Fn(&Entry) -> bool) -> Vec<Ticket> {
        let entries = self.entries.iter().filter(|(_, entry)| holds(entry));
        entries.map(|(slot, entry)| Ticket { slot, number: entry.number }).collect()
    }

    /// The number of requests in flight.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether no request is in flight.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}

/// The memory that a message takes.
fn held(message: &Message) -> usize {
    message.bytes() + message.frames().len() * FRAME
}
