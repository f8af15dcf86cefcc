//! What is outstanding on one connection, matched by id.

use std::collections::VecDeque;

use bytes::Bytes;
use tokio::time::Instant;

use super::member::Ticket;

/// A message as an id and a payload, or `None` if it has another shape.
pub(super) type Tagged = Option<([u8; size_of::<u64>()], Bytes)>;

/// The attempts that wait for their replies.
///
/// Ids count from 0, and every attempt of a connection has the same time, so that the first is
/// the oldest and times out first.
#[derive(Debug, Default)]
pub(super) struct Pending {
    /// The id of the first entry.
    first: u64,
    /// `None` where a reply has come. The first entry is never `None`.
    tickets: VecDeque<Option<(Instant, Ticket)>>,
    /// How many are not `None`.
    count: usize,
}

/// What a message from the server is.
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
    /// The id of the next attempt.
    pub fn next_id(&self) -> u64 {
        self.first + self.tickets.len() as u64
    }

    /// Has an attempt wait, which has that id.
    pub fn enter(&mut self, ticket: Ticket, deadline: Instant) {
        self.tickets.push_back(Some((deadline, ticket)));
        self.count += 1;
    }

    /// Finds what a message answers.
    pub fn arrived(&mut self, message: Tagged) -> Arrival {
        let Some((id, payload)) = message else { return Arrival::Unknown };
        let id = u64::from_be_bytes(id);
        if id >= self.next_id() {
            return Arrival::Unknown;
        }
        let entry = id.checked_sub(self.first).map(|at| &mut self.tickets[at as usize]);
        match entry.and_then(Option::take) {
            Some((_, ticket)) => {
                self.count -= 1;
                self.drop_answered();
                Arrival::Reply(ticket, payload)
            }
            None => Arrival::Late,
        }
    }

    /// When the oldest attempt times out.
    pub fn first_deadline(&self) -> Option<Instant> {
        self.tickets.front().map(|first| first.as_ref().expect("the first is there").0)
    }

    /// Takes the oldest attempt, if its deadline has passed.
    pub fn take_expired(&mut self, now: Instant) -> Option<Ticket> {
        self.first_deadline().filter(|deadline| *deadline <= now)?;
        self.take_any().map(|(_, ticket)| ticket)
    }

    /// Takes the oldest attempt, with its id.
    pub fn take_any(&mut self) -> Option<(u64, Ticket)> {
        let id = self.first;
        let (_, ticket) = self.tickets.front_mut()?.take().expect("the first is there");
        self.count -= 1;
        self.drop_answered();
        Some((id, ticket))
    }

    pub fn len(&self) -> usize {
        self.count
    }

    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    fn drop_answered(&mut self) {
        while let Some(None) = self.tickets.front() {
            self.tickets.pop_front();
            self.first += 1;
        }
    }
}
