//! The outstanding attempts of one connection, matched to replies by id.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use tokio::time::Instant;
use zmq_echo::service::Rejection;

use super::member::Ticket;

/// A message split into an id, the first frame of its payload and the others, or `None` if it has
/// another shape.
pub(super) type Tagged = Option<([u8; size_of::<u64>()], Option<Bytes>, Vec<Bytes>)>;

/// The attempts that wait for their replies.
///
/// Ids count from 0, and all attempts on a connection have the same timeout. So the attempt with
/// the lowest id is the oldest and times out first.
#[derive(Debug)]
pub(super) struct Pending<T = Ticket> {
    /// Attempts that still wait although most later ones have been answered, by id.
    old: BTreeMap<u64, (Instant, T)>,
    /// The id of the first entry in `tickets`.
    first: u64,
    /// An entry becomes `None` when its reply arrives. The first entry is never `None`.
    tickets: VecDeque<Option<(Instant, T)>>,
    /// How many attempts wait.
    count: usize,
    /// The newest attempt that was answered, in time or late.
    answered: Option<u64>,
    /// The newest attempt that timed out.
    expired: Option<u64>,
}

/// Answered entries may exceed the waiting ones by at most this many before waiting entries move to
/// `old`.
const SPARE: usize = 1024;

/// What a message from the server turned out to be.
#[derive(Debug)]
pub(super) enum Arrival<T = Ticket> {
    /// The reply to a waiting attempt.
    Reply(T, Bytes),
    /// An error reply to a waiting attempt.
    Rejected(T, Rejection),
    /// A reply to a waiting attempt whose payload has this many frames: none, or several.
    NotOneFrame(T, usize),
    /// A reply to an attempt that no longer waits, or a second reply.
    Late,
    /// A message that answers no attempt of this connection.
    Unknown,
}

impl<T> Default for Pending<T> {
    fn default() -> Self {
        Self {
            old: BTreeMap::new(),
            first: 0,
            tickets: VecDeque::new(),
            count: 0,
            answered: None,
            expired: None,
        }
    }
}

impl<T> Pending<T> {
    /// The id of the next attempt.
    pub fn next_id(&self) -> u64 {
        self.first + self.tickets.len() as u64
    }

    /// Adds an attempt. Its id is the one that [`Pending::next_id`] returned.
    pub fn enter(&mut self, ticket: T, deadline: Instant) {
        self.tickets.push_back(Some((deadline, ticket)));
        self.count += 1;
    }

    /// Finds the attempt that a message answers.
    pub fn arrived(&mut self, message: Tagged) -> Arrival<T> {
        let Some((id, payload, more)) = message else { return Arrival::Unknown };
        let id = u64::from_be_bytes(id);
        if id >= self.next_id() {
            return Arrival::Unknown;
        }
        self.answered = self.answered.max(Some(id));
        let entry = match id.checked_sub(self.first) {
            Some(at) => self.tickets[at as usize].take(),
            None => self.old.remove(&id),
        };
        match entry {
            Some((_, ticket)) => {
                self.count -= 1;
                self.drop_answered();
                let Some(payload) = payload else { return Arrival::NotOneFrame(ticket, 0) };
                if more.is_empty() {
                    return Arrival::Reply(ticket, payload);
                }
                let frames = [&payload].into_iter().chain(&more).map(|frame| &frame[..]);
                match Rejection::of_payload(frames) {
                    Some(rejection) => Arrival::Rejected(ticket, rejection),
                    None => Arrival::NotOneFrame(ticket, 1 + more.len()),
                }
            }
            None => Arrival::Late,
        }
    }

    /// When the oldest attempt times out.
    pub fn first_deadline(&self) -> Option<Instant> {
        if let Some((_, (deadline, _))) = self.old.first_key_value() {
            return Some(*deadline);
        }
        self.tickets.front().map(|first| first.as_ref().expect("the first is there").0)
    }

    /// Removes the oldest attempt if its deadline has passed.
    pub fn take_expired(&mut self, now: Instant) -> Option<T> {
        self.first_deadline().filter(|deadline| *deadline <= now)?;
        let (id, ticket) = self.take_any()?;
        self.expired = Some(id);
        Some(ticket)
    }

    /// Whether the newest attempt that timed out was answered late, or a newer one was answered. If
    /// so, the connection works and only some requests are lost.
    pub fn answers_after_a_loss(&self) -> bool {
        self.answered >= self.expired
    }

    /// Removes the oldest attempt and returns it with its id.
    pub fn take_any(&mut self) -> Option<(u64, T)> {
        if let Some((id, (_, ticket))) = self.old.pop_first() {
            self.count -= 1;
            return Some((id, ticket));
        }
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
        loop {
            while let Some(None) = self.tickets.front() {
                self.tickets.pop_front();
                self.first += 1;
            }
            // Moves an attempt that is never answered out of the way, or the entries of all later
            // attempts would have to be kept.
            if self.tickets.len() <= SPARE + 2 * self.count {
                return;
            }
            if let Some(Some(entry)) = self.tickets.pop_front() {
                self.old.insert(self.first, entry);
                self.first += 1;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn reply(id: u64) -> Tagged {
        Some((id.to_be_bytes(), Some(Bytes::new()), Vec::new()))
    }

    /// Adds the next attempt, with its id as its ticket.
    fn enter(pending: &mut Pending<u64>, start: Instant) -> u64 {
        let id = pending.next_id();
        pending.enter(id, start + Duration::from_millis(id));
        id
    }

    #[test]
    fn an_attempt_that_is_never_answered_keeps_its_deadline_and_memory_stays_bounded() {
        let start = Instant::now();
        let mut pending = Pending::default();
        for id in 0..100_000 {
            assert_eq!(enter(&mut pending, start), id);
            if id % 40_000 != 7 {
                let Arrival::Reply(ticket, _) = pending.arrived(reply(id)) else { panic!("{id}") };
                assert_eq!(ticket, id);
            }
            assert!(pending.tickets.len() <= SPARE + 2 * pending.count + 1);
        }
        assert_eq!(pending.len(), 3);
        assert_eq!(pending.first_deadline(), Some(start + Duration::from_millis(7)));
        let now = start + Duration::from_millis(50_000);
        assert_eq!(pending.take_expired(now), Some(7));
        assert!(matches!(pending.arrived(reply(7)), Arrival::Late));
        assert!(matches!(pending.arrived(reply(40_007)), Arrival::Reply(40_007, _)));
        assert!(matches!(pending.arrived(reply(40_007)), Arrival::Late));
        assert!(matches!(pending.arrived(reply(100_000)), Arrival::Unknown));
        assert_eq!(pending.take_expired(now), None);
        assert_eq!(pending.take_any(), Some((80_007, 80_007)));
        assert!(pending.is_empty() && pending.take_any().is_none());
    }

    #[test]
    fn a_connection_works_after_a_timeout_if_the_lost_attempt_or_a_newer_one_is_answered() {
        let start = Instant::now();
        let mut pending = Pending::default();
        for _ in 0..4 {
            enter(&mut pending, start);
        }
        assert!(pending.answers_after_a_loss());
        pending.arrived(reply(0));
        assert_eq!(pending.take_expired(start + Duration::from_millis(1)), Some(1));
        assert!(!pending.answers_after_a_loss());
        pending.arrived(reply(2));
        assert!(pending.answers_after_a_loss());
        assert_eq!(pending.take_expired(start + Duration::from_millis(3)), Some(3));
        assert!(!pending.answers_after_a_loss());
        assert!(matches!(pending.arrived(reply(3)), Arrival::Late));
        assert!(pending.answers_after_a_loss());
    }
}
