//! The side port's connections, and which of them is closed when there is no room for the next
//! one.
//!
//! Serving a client takes milliseconds: it sends its request, the request is answered, and the kernel
//! takes the answer. Connections that take longer give way, in this order:
//!
//! 1. Connections whose client has not read its answer for [`UNREAD_LIMIT`], the oldest first.
//!    While there are more unread answers than [`UNREAD_SHARE`] allows, their age does not matter.
//! 2. Connections that have not sent a whole request, in the order that [`Newcomers`] chooses.
//! 3. All other connections whose client has not read its answer yet, the oldest first.
//!
//! A connection whose request is being answered never gives way. If there are only such
//! connections, the next one waits: making an answer takes [`super::LIVE_LIMIT`] at most.
//!
//! Nothing here depends on sockets: a connection is an id and a handle that ends it.

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use zmtp::newcomers::{Newcomers, Ticket};

/// How long a client may take to read an answer that is larger than the kernel's buffer, while
/// others wait for its place. A scrape takes milliseconds.
pub const UNREAD_LIMIT: Duration = Duration::from_secs(1);

/// If more than one in this many connections waits for its client to read, such a connection gives
/// way first. Otherwise clients that do not read could take nearly all places, and a connection
/// that is about to send its request would have to give way to the next.
const UNREAD_SHARE: usize = 2;

/// Identifies a connection.
pub type Id = u64;

/// What a connection is waiting for.
#[derive(Debug, Clone, Copy)]
enum Stage {
    /// The rest of its request.
    Asking(Ticket),
    /// Its answer, which is being made.
    Answering,
    /// Its client, which has to read the answer that was made at this time.
    Unread(Instant),
}

/// All open connections, each with a handle of type `E` that ends it.
#[derive(Debug)]
pub struct Connections<E> {
    most: usize,
    open: HashMap<Id, (Stage, E)>,
    asking: Newcomers<Id>,
    unread: BTreeSet<(Instant, Id)>,
    next: Id,
}

impl<E> Connections<E> {
    /// No connections yet, with room for `most`.
    pub fn new(most: usize) -> Self {
        Self {
            most,
            open: HashMap::new(),
            asking: Newcomers::default(),
            unread: BTreeSet::new(),
            next: 0,
        }
    }

    /// Whether there is room for another one.
    pub fn has_room(&self) -> bool {
        self.open.len() < self.most
    }

    /// Adds a connection from `address`; `start` makes the handle that ends it.
    pub fn admit(&mut self, address: IpAddr, now: Instant, start: impl FnOnce(Id) -> E) {
        let id = self.next;
        self.next += 1;
        let ticket = self.asking.insert(address, id, now);
        self.open.insert(id, (Stage::Asking(ticket), start(id)));
    }

    /// The connection has sent its request.
    pub fn request_read(&mut self, id: Id) {
        self.enter(id, Stage::Answering);
    }

    /// The connection's answer was made at `now` and is on its way to the kernel.
    pub fn answer_made(&mut self, id: Id, now: Instant) {
        self.enter(id, Stage::Unread(now));
    }

    /// The connection has ended.
    pub fn ended(&mut self, id: Id) {
        self.remove(id);
    }

    /// Removes the connection that gives way at `now`, if there is one, and returns its handle.
    pub fn make_room(&mut self, now: Instant) -> Option<E> {
        let unread = self.unread.first().copied();
        let overdue = unread.filter(|(since, _)| {
            self.unread.len() > self.most / UNREAD_SHARE
                || now.saturating_duration_since(*since) >= UNREAD_LIMIT
        });
        let asking = || self.asking.candidate(now).map(|candidate| candidate.key);
        let id = overdue.map(|(_, id)| id).or_else(asking).or(unread.map(|(_, id)| id))?;
        self.remove(id)
    }

    fn enter(&mut self, id: Id, stage: Stage) {
        let Some((left, _)) = self.open.get_mut(&id) else { return };
        let left = std::mem::replace(left, stage);
        self.forget(id, left);
        if let Stage::Unread(since) = stage {
            self.unread.insert((since, id));
        }
    }

    fn remove(&mut self, id: Id) -> Option<E> {
        let (stage, end) = self.open.remove(&id)?;
        self.forget(id, stage);
        Some(end)
    }

    fn forget(&mut self, id: Id, stage: Stage) {
        match stage {
            Stage::Asking(ticket) => self.asking.remove(ticket),
            Stage::Answering => {}
            Stage::Unread(since) => _ = self.unread.remove(&(since, id)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHORT: Duration = Duration::from_millis(1);

    /// Eight connections from one address, opened one after the other.
    fn eight() -> (Connections<Id>, Instant) {
        let start = Instant::now();
        let mut connections = Connections::new(8);
        for number in 0..8 {
            assert!(connections.has_room());
            connections.admit(IpAddr::from([10, 0, 0, 1]), start + number * SHORT, |id| id);
        }
        assert!(!connections.has_room());
        (connections, start + 8 * SHORT)
    }

    #[test]
    fn a_connection_without_a_whole_request_gives_way_before_any_that_has_one() {
        let (mut connections, now) = eight();
        for id in [0, 1, 2, 5] {
            connections.request_read(id);
        }
        connections.answer_made(2, now);
        let order: Vec<_> = std::iter::from_fn(|| connections.make_room(now)).collect();
        assert_eq!(order, [3, 4, 6, 7, 2]);
        assert_eq!(connections.open.len(), 3, "connections whose request is being answered stay");
        assert!(connections.has_room());
    }

    #[test]
    fn an_unread_answer_gives_way_first_after_a_second() {
        let (mut connections, now) = eight();
        for (id, after) in [(6, SHORT), (4, 2 * SHORT)] {
            connections.request_read(id);
            connections.answer_made(id, now + after);
        }
        assert_eq!(connections.make_room(now + UNREAD_LIMIT), Some(0));
        assert_eq!(connections.make_room(now + SHORT + UNREAD_LIMIT), Some(6));
        assert_eq!(connections.make_room(now + SHORT + UNREAD_LIMIT), Some(1));
        assert_eq!(connections.make_room(now + 2 * SHORT + UNREAD_LIMIT), Some(4));
    }

    #[test]
    fn unread_answers_keep_at_most_half_of_the_connections_when_others_arrive() {
        let (mut connections, now) = eight();
        for id in 1..8 {
            connections.request_read(id);
            connections.answer_made(id, now);
        }
        // The one that has not sent its request keeps its place while too many answers are unread.
        assert_eq!([(); 3].map(|()| connections.make_room(now)), [Some(1), Some(2), Some(3)]);
        assert_eq!(connections.make_room(now), Some(0));
        assert_eq!(connections.make_room(now), Some(4), "nothing else can give way");
    }

    #[test]
    fn many_connections_from_one_address_do_not_displace_one_from_another() {
        let (mut connections, now) = eight();
        assert_eq!(connections.make_room(now), Some(0));
        connections.admit(IpAddr::from([10, 0, 0, 2]), now, |id| id);
        for oldest in (1..8).chain(9..20) {
            assert_eq!(connections.make_room(now), Some(oldest));
            connections.admit(IpAddr::from([10, 0, 0, 1]), now, |id| id);
        }
    }

    #[test]
    fn a_connection_that_has_ended_is_forgotten() {
        let (mut connections, now) = eight();
        connections.ended(0);
        connections.request_read(0);
        connections.request_read(1);
        connections.answer_made(1, now);
        connections.ended(1);
        connections.ended(1);
        assert_eq!(connections.make_room(now), Some(2));
        assert!(connections.unread.is_empty());
        assert_eq!((connections.open.len(), connections.asking.len()), (5, 5));
    }
}
