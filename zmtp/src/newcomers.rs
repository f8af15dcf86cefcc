//! Connections whose handshake has not finished, and which of them to close when there is no room
//! for the next one.
//!
//! A host that opens connections and sends nothing should take room only from itself. So the host
//! with the most newcomers loses its oldest one. Newcomers younger than [`PATIENCE`] are spared
//! while there is an older one, because an honest client needs a moment for its handshake. Each
//! operation costs O(log n), so a flood of connections stays affordable.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv6Addr};
use std::time::{Duration, Instant};

/// How long a newcomer is spared while an older one can be closed: several round trips around the
/// world.
pub const PATIENCE: Duration = Duration::from_secs(1);

/// What counts as one host: an IPv4 address, or the /64 network of an IPv6 address.
///
/// An IPv6 host usually has a whole /64 and may connect from any address in it, so counting
/// single addresses would not limit it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Host(IpAddr);

impl From<IpAddr> for Host {
    fn from(address: IpAddr) -> Self {
        Self(match address.to_canonical() {
            IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() >> 64 << 64)),
            v4 => v4,
        })
    }
}

/// Identifies a newcomer. Later arrivals have larger tickets.
pub type Ticket = u64;

/// The newcomers, each with a key that the caller chooses.
#[derive(Debug)]
pub struct Newcomers<K> {
    waiting: BTreeMap<Ticket, (Host, Instant, K)>,
    hosts: BTreeMap<Host, BTreeSet<Ticket>>,
    /// Each host with its number of newcomers. If two have the same number, the one whose oldest
    /// newcomer arrived first ranks higher.
    crowds: BTreeSet<(usize, Reverse<Ticket>, Host)>,
    next: Ticket,
}

/// The newcomer to close. Of two candidates, the greater one goes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Candidate<K> {
    has_had_time: bool,
    crowd: usize,
    came_at: Reverse<Instant>,
    /// The candidate's ticket.
    pub ticket: Ticket,
    /// The candidate's key.
    pub key: K,
}

impl<K> Default for Newcomers<K> {
    fn default() -> Self {
        Self { waiting: BTreeMap::new(), hosts: BTreeMap::new(), crowds: BTreeSet::new(), next: 0 }
    }
}

impl<K: Copy + Ord> Newcomers<K> {
    /// Adds a newcomer from `address` that arrived at `now`.
    pub fn insert(&mut self, address: IpAddr, key: K, now: Instant) -> Ticket {
        let ticket = self.next;
        self.next += 1;
        let host = Host::from(address);
        self.waiting.insert(ticket, (host, now, key));
        self.change(host, |tickets| _ = tickets.insert(ticket));
        ticket
    }

    /// Removes a newcomer, if it is still there.
    pub fn remove(&mut self, ticket: Ticket) {
        if let Some((host, ..)) = self.waiting.remove(&ticket) {
            self.change(host, |tickets| _ = tickets.remove(&ticket));
        }
    }

    /// Number of newcomers.
    pub fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// The newcomer to close at `now`: the oldest of the host with the most newcomers. If that
    /// one is younger than [`PATIENCE`], it is the oldest of all, unless that is too young as
    /// well.
    pub fn candidate(&self, now: Instant) -> Option<Candidate<K>> {
        let (_, Reverse(of_crowd), _) = *self.crowds.last()?;
        let of_crowd = self.as_candidate(of_crowd, now);
        if of_crowd.has_had_time {
            return Some(of_crowd);
        }
        let (oldest, _) = self.waiting.first_key_value()?;
        Some(of_crowd.max(self.as_candidate(*oldest, now)))
    }

    fn as_candidate(&self, ticket: Ticket, now: Instant) -> Candidate<K> {
        let (host, came_at, key) = self.waiting[&ticket];
        Candidate {
            has_had_time: now.saturating_duration_since(came_at) >= PATIENCE,
            crowd: self.hosts[&host].len(),
            came_at: Reverse(came_at),
            ticket,
            key,
        }
    }

    /// Changes the tickets of `host`, and its rank accordingly.
    fn change(&mut self, host: Host, change: impl FnOnce(&mut BTreeSet<Ticket>)) {
        let rank = |tickets: &BTreeSet<Ticket>| {
            tickets.first().map(|oldest| (tickets.len(), Reverse(*oldest), host))
        };
        let tickets = self.hosts.entry(host).or_default();
        let before = rank(tickets);
        change(tickets);
        let after = rank(tickets);
        if after.is_none() {
            self.hosts.remove(&host);
        }
        if let Some(rank) = before {
            self.crowds.remove(&rank);
        }
        self.crowds.extend(after);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    fn address(number: u8) -> IpAddr {
        IpAddr::from([10, 0, 0, number])
    }

    fn next(newcomers: &Newcomers<u32>, now: Instant) -> Option<u32> {
        newcomers.candidate(now).map(|candidate| candidate.key)
    }

    #[test]
    fn the_host_with_the_most_newcomers_loses_its_oldest() {
        let start = Instant::now();
        let mut newcomers = Newcomers::default();
        assert_eq!(next(&newcomers, start), None);
        newcomers.insert(address(1), 0, start);
        let oldest = newcomers.insert(address(2), 1, start);
        newcomers.insert(address(2), 2, start);
        assert_eq!(next(&newcomers, start + PATIENCE), Some(1));
        newcomers.remove(oldest);
        // Each host has one, so the one that has waited longer is closed.
        assert_eq!(next(&newcomers, start + PATIENCE), Some(0));
        newcomers.remove(oldest);
        assert_eq!(newcomers.len(), 2, "a ticket works only once");
    }

    #[test]
    fn a_young_newcomer_is_closed_only_if_there_is_no_older_one() {
        let start = Instant::now();
        let mut newcomers = Newcomers::default();
        let alone = newcomers.insert(address(1), 0, start);
        for key in 1..=5 {
            newcomers.insert(address(2), key, start + PATIENCE);
        }
        assert_eq!(next(&newcomers, start + PATIENCE), Some(0));
        newcomers.remove(alone);
        assert_eq!(next(&newcomers, start + PATIENCE), Some(1));
        newcomers.insert(address(1), 6, start + PATIENCE);
        assert_eq!(
            next(&newcomers, start + PATIENCE),
            Some(1),
            "all are young, so the crowd loses one"
        );
    }

    #[test]
    fn ipv6_hosts_count_by_their_64_bit_network_and_mapped_ones_as_ipv4() {
        let host = |text: &str| Host::from(text.parse::<IpAddr>().unwrap());
        assert_eq!(host("2001:db8:1:2:3:4:5:6"), host("2001:db8:1:2::1"));
        assert_ne!(host("2001:db8:1:2::1"), host("2001:db8:1:3::1"));
        assert_eq!(host("::ffff:10.0.0.1"), host("10.0.0.1"));
        assert_ne!(host("10.0.0.1"), host("10.0.0.2"));
    }

    proptest! {
        /// Compares with a search through all newcomers.
        #[test]
        fn candidates_match_a_search_through_all_newcomers(
            steps in vec((0u8..4, any::<bool>(), 0u64..400), 1..200),
        ) {
            let mut now = Instant::now();
            let mut newcomers = Newcomers::default();
            let mut all: Vec<(Ticket, u8, Instant)> = Vec::new();
            for (step, (host, leaves, passed)) in steps.into_iter().enumerate() {
                now += Duration::from_millis(passed);
                if leaves && !all.is_empty() {
                    let (ticket, ..) = all.remove(step % all.len());
                    newcomers.remove(ticket);
                } else {
                    all.push((newcomers.insert(address(host), step as u32, now), host, now));
                }
                let mut crowds: HashMap<u8, usize> = HashMap::new();
                all.iter().for_each(|(_, host, _)| *crowds.entry(*host).or_default() += 1);
                let most = crowds.values().max();
                let is_old = |(_, _, at): &&(Ticket, u8, Instant)| now - *at >= PATIENCE;
                // In order of arrival, so the first of the largest crowds is the oldest.
                let of_crowd = all.iter().find(|(_, host, _)| crowds.get(host) == most);
                let expected = of_crowd.filter(is_old).or(all.first().filter(is_old)).or(of_crowd);
                let told = newcomers.candidate(now).map(|candidate| candidate.ticket);
                prop_assert_eq!(told, expected.map(|(ticket, ..)| *ticket));
                prop_assert_eq!(newcomers.len(), all.len());
            }
        }
    }
}
