//! What is outstanding on one connection, matched by id.

use std::collections::BTreeMap;

use bytes::Bytes;
use tokio::time::Instant;
use zeromq::ZmqMessage;

use super::member::Ticket;

/// The attempts that wait for their replies. Ids rise, so the first is the oldest.
#[derive(Debug, Default)]
pub(super) struct Pending {
    next_id: u64,
    tickets: BTreeMap<u64, (Instant, Ticket)>,
}

/// What a message from the peer is.
#[derive(Debug)]
pub(super) enum Arrival {
    /// The reply to an attempt that waits.
    Reply(Ticket, Bytes),
    /// A reply to one that does not wait any more, or a second one.
    Late,
    /// Nothing that was asked for.
    Unknown,
}

impl Pending {
    /// The message for an attempt, which waits from now on: its id and the payload.
    pub fn enter(&mut self, ticket: Ticket, payload: Bytes, deadline: Instant) -> ZmqMessage {
        let id = self.next_id;
        self.next_id += 1;
        self.tickets.insert(id, (deadline, ticket));
        let frames = vec![Bytes::copy_from_slice(&id.to_be_bytes()), payload];
        frames.try_into().expect("two frames")
    }

    /// Finds what a message answers.
    pub fn arrived(&mut self, message: ZmqMessage) -> Arrival {
        let mut frames = message.into_vecdeque();
        let (Some(id), Some(payload), None) =
            (frames.pop_front(), frames.pop_front(), frames.pop_front())
        else {
            return Arrival::Unknown;
        };
        let Ok(id) = id[..].try_into().map(u64::from_be_bytes) else { return Arrival::Unknown };
        match self.tickets.remove(&id) {
            Some((_, ticket)) => Arrival::Reply(ticket, payload),
            None if id < self.next_id => Arrival::Late,
            None => Arrival::Unknown,
        }
    }

    /// When the oldest attempt times out.
    pub fn first_deadline(&self) -> Option<Instant> {
        self.tickets.first_key_value().map(|(_, (deadline, _))| *deadline)
    }

    /// Takes the oldest attempt, where its deadline has passed.
    pub fn take_expired(&mut self, now: Instant) -> Option<Ticket> {
        self.first_deadline().filter(|deadline| *deadline <= now)?;
        self.take_any()
    }

    /// Takes the oldest attempt.
    pub fn take_any(&mut self) -> Option<Ticket> {
        self.tickets.pop_first().map(|(_, (_, ticket))| ticket)
    }

    pub fn len(&self) -> usize {
        self.tickets.len()
    }

    pub fn is_empty(&self) -> bool {
        self.tickets.is_empty()
    }
}
