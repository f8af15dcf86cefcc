//! Slots for connections: who gets one, and who loses one when none is left.
//!
//! A host that opens connections and sends nothing would lock out everyone else until its
//! handshakes time out. So when the server is full, the unfinished handshake that [`Newcomers`]
//! picks makes room for the next connection. Established peers never do.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Instant;

use crate::newcomers::{Host, Newcomers, Ticket};

/// The connections, by origin.
#[derive(Debug, Default)]
pub struct Places {
    /// Unfinished handshakes from this host. They are kept apart because they do not make room
    /// for other hosts: a flood must not close the probe's handshake.
    here: Newcomers<usize>,
    /// Unfinished handshakes from other hosts.
    elsewhere: Newcomers<usize>,
    /// Number of connections of each other host. Empty if there is no limit.
    of_host: HashMap<Host, usize>,
    /// Maximum number of connections from one other host, or 0 for no limit.
    limit: usize,
}

/// A connection's place.
#[derive(Debug)]
pub struct Place {
    host: Host,
    /// Whether the peer is on this host: it connected from loopback, or from the address at which
    /// it was accepted.
    pub of_this_host: bool,
    /// Present while its handshake is unfinished.
    ticket: Option<Ticket>,
}

impl Places {
    /// Allows at most `limit` connections from each other host, or any number if it is 0.
    pub fn new(limit: usize) -> Self {
        Self { limit, ..Self::default() }
    }

    /// Whether the host of `address` has reached its limit.
    pub fn are_used_up(&self, address: IpAddr, of_this_host: bool) -> bool {
        let has = || self.of_host.get(&Host::from(address)).copied().unwrap_or_default();
        self.limit > 0 && !of_this_host && has() >= self.limit
    }

    /// The slot whose handshake makes room for a connection from this host or another.
    pub fn giving_way(&self, of_this_host: bool, now: Instant) -> Option<usize> {
        let here = of_this_host.then(|| self.here.candidate(now)).flatten();
        self.elsewhere.candidate(now).max(here).map(|candidate| candidate.key)
    }

    /// Registers a connection from `address` that begins its handshake in `slot`.
    pub fn take(
        &mut self,
        address: IpAddr,
        of_this_host: bool,
        slot: usize,
        now: Instant,
    ) -> Place {
        let host = Host::from(address);
        if self.limit > 0 && !of_this_host {
            *self.of_host.entry(host).or_default() += 1;
        }
        let ticket = Some(self.newcomers(of_this_host).insert(address, slot, now));
        Place { host, of_this_host, ticket }
    }

    /// Call this when the handshake is complete. The peer no longer makes room for others.
    pub fn keep(&mut self, place: &mut Place) {
        if let Some(ticket) = place.ticket.take() {
            self.newcomers(place.of_this_host).remove(ticket);
        }
    }

    /// Call this when the connection has ended.
    pub fn leave(&mut self, place: &mut Place) {
        self.keep(place);
        if let Some(count) = self.of_host.get_mut(&place.host).filter(|_| !place.of_this_host) {
            *count -= 1;
            if *count == 0 {
                self.of_host.remove(&place.host);
            }
        }
    }

    fn newcomers(&mut self, of_this_host: bool) -> &mut Newcomers<usize> {
        if of_this_host { &mut self.here } else { &mut self.elsewhere }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

    fn address(number: u8) -> IpAddr {
        IpAddr::from([10, 0, 0, number])
    }

    #[test]
    fn a_handshake_from_this_host_makes_room_only_for_this_host() {
        let now = Instant::now();
        let mut places = Places::new(0);
        let probe = places.take(HERE, true, 0, now);
        assert_eq!(places.giving_way(false, now), None);
        assert_eq!(places.giving_way(true, now), Some(0));
        let mut peers: Vec<_> =
            (1..4).map(|slot| places.take(address(1), false, slot, now)).collect();
        // Of both groups, the oldest handshake of the host with the most handshakes.
        assert_eq!(places.giving_way(true, now), Some(1));
        assert_eq!(places.giving_way(false, now), Some(1));
        peers.iter_mut().for_each(|place| places.keep(place));
        assert_eq!(places.giving_way(false, now), None, "an established peer stays");
        assert_eq!(places.giving_way(true, now), Some(0));
        peers.into_iter().chain([probe]).for_each(|mut place| places.leave(&mut place));
        assert_eq!(places.giving_way(true, now), None);
        assert!(places.here.is_empty() && places.elsewhere.is_empty());
    }

    #[test]
    fn the_address_limit_counts_established_peers_and_exempts_this_host() {
        let now = Instant::now();
        let mut places = Places::new(2);
        let mut first = places.take(address(1), false, 0, now);
        assert!(!places.are_used_up(address(1), false));
        let mut second = places.take(address(1), false, 1, now);
        assert!(places.are_used_up(address(1), false));
        assert!(!places.are_used_up(address(2), false));
        places.keep(&mut first);
        assert!(places.are_used_up(address(1), false));
        for slot in 2..9 {
            places.take(HERE, true, slot, now);
        }
        assert!(!places.are_used_up(HERE, true));
        places.leave(&mut second);
        assert!(!places.are_used_up(address(1), false));
        places.leave(&mut first);
        assert!(places.of_host.is_empty());
        let mut unlimited = Places::new(0);
        unlimited.take(address(1), false, 0, now);
        assert!(!unlimited.are_used_up(address(1), false) && unlimited.of_host.is_empty());
    }
}
