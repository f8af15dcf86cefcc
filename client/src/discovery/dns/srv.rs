//! Discovery by SRV records (RFC 2782), which include the port.
//!
//! Each target is one endpoint, with the record's port and all of the target's addresses. A pod
//! with its own name, as in a StatefulSet, has addresses of both families under it. For pods
//! without names, cluster DNS makes each address a target, and the two addresses of a dual-stack
//! pod cannot be paired. So if some targets have only IPv4 addresses and others only IPv6
//! addresses, only one family is used: IPv4, unless this host has a route only to the IPv6
//! addresses.
//!
//! - Only the lowest priority with a reachable target counts: one that has an address.
//! - Weights are ignored: the client spreads its requests by load.
//! - The target `.` means that the service is not available, so its endpoints are gone.
//! - If the addresses of a target cannot be looked up, its last ones stay.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::fmt;
use std::net::{IpAddr, SocketAddr};

use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;
use futures_util::{FutureExt, StreamExt, stream};
use hickory_resolver::lookup::Lookup;
use hickory_resolver::proto::rr::{Name, RData, RecordType};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use super::families::{self, Answer, Family, RESOLUTION_DELAY, at};
use super::resolver::{AskError, ROUND_LIMIT};
use super::walk::Walk;
use super::{Asker, LEAST_INTERVAL, Round, Rounds, read_resolv_conf};
use crate::discovery::following::{Publisher, until_unheard};
use crate::discovery::{
    Discovery, DiscoveryError, Endpoint, EndpointState, Endpoints, Failures, MAX_ENDPOINTS,
};
use zmtp::endpoint::ConnectEndpoint;

/// The most address queries for targets at a time.
const MAX_QUESTIONS: usize = 32;

/// `dns://_SERVICE._PROTO.NAME`: hosts and ports come from SRV records.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SrvName {
    /// The name. The search domains apply unless it ends with a dot.
    pub name: String,
    /// The name server to ask instead of those in `/etc/resolv.conf`, over UDP and TCP.
    pub server: Option<SocketAddr>,
}

impl SrvName {
    /// Whether a name has the form `_SERVICE._PROTO.NAME`.
    pub(in crate::discovery) fn has_form(name: &str) -> bool {
        let mut labels = name.trim_end_matches('.').split('.');
        let mut is_underscored =
            || labels.next().is_some_and(|label| label.len() > 1 && label.starts_with('_'));
        is_underscored() && is_underscored() && labels.next().is_some()
    }
}

impl fmt::Display for SrvName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "dns://{}", self.name)?;
        self.server.map_or(Ok(()), |server| write!(f, "?server={server}"))
    }
}

/// A source that looks up the SRV records of a name and the addresses of their targets.
pub struct Srv {
    name: SrvName,
    asker: Asker,
    rounds: Rounds,
}

impl Srv {
    /// Looks up a name as `/etc/resolv.conf` says.
    ///
    /// # Errors
    ///
    /// If the name is not a valid DNS name.
    pub fn new(name: SrvName) -> Result<Self, DiscoveryError> {
        Self::with_resolv_conf(name, &read_resolv_conf())
    }

    /// Looks up a name as the text of a `resolv.conf` says.
    ///
    /// # Errors
    ///
    /// Same as [`Self::new`].
    pub fn with_resolv_conf(name: SrvName, text: &str) -> Result<Self, DiscoveryError> {
        let asker = Asker::new(name.to_string(), &name.name, name.server, text)?;
        let rounds = Rounds::new(name.to_string());
        Ok(Self { name, asker, rounds })
    }

    async fn run(mut self, mut publisher: Publisher) -> Infallible {
        let mut known = Known::default();
        loop {
            let started = Instant::now();
            let result = self.ask(&mut known, &mut publisher, started + ROUND_LIMIT).await;
            let left_out = self.asker.take_left_out();
            let interval = self.rounds.ended(result, left_out, publisher.len());
            sleep_until(started + interval).await;
        }
    }

    /// One round of queries. Publishes endpoints as soon as they are found.
    async fn ask(
        &self,
        known: &mut Known,
        publisher: &mut Publisher,
        until: Instant,
    ) -> Result<Round, AskError> {
        let candidates = &self.asker.candidates;
        let at = candidates.iter().position(|name| known.name.as_ref() == Some(name));
        let mut walk =
            Walk::new(candidates.len(), at, |at| self.records(&candidates[at], until).boxed());
        let mut walks = true;
        let mut targets: Option<Targets<'_>> = None;
        let mut result = None;
        loop {
            // Both are cancel-safe: their state is in `walk`, `targets` and `known`.
            tokio::select! {
                found = walk.next(LEAST_INTERVAL), if walks => match found {
                    Some((at, records)) => {
                        known.is_of(&candidates[at]);
                        targets = Some(Targets::new(&self.asker, records, until));
                    }
                    None => walks = false,
                },
                step = next_step(&mut targets, known), if targets.is_some() => {
                    let Step { endpoints, end } = step;
                    if let Some(endpoints) = endpoints {
                        publisher.publish(endpoints);
                    }
                    if let Some(end) = end {
                        result = Some(end);
                        targets = None;
                    }
                }
                else => break,
            }
        }
        result.unwrap_or_else(|| Err(walk.into_failure().unwrap_or(AskError::NoRecord)))
    }

    async fn records(&self, name: &Name, until: Instant) -> Result<Option<Records>, AskError> {
        let lookup = self.asker.resolver.look_up(name, RecordType::SRV, until).await?;
        Ok(lookup.and_then(|lookup| Records::new(&lookup, &self.asker)))
    }
}

impl Discovery for Srv {
    fn follow(self: Box<Self>, endpoints: watch::Sender<Endpoints>) -> BoxFuture<'static, ()> {
        until_unheard(self.name.to_string(), endpoints, |publisher| self.run(publisher)).boxed()
    }

    fn failures(&self) -> Failures {
        self.rounds.outage.failures()
    }
}

/// The host name and port of a target.
type Target = (Name, u16);

/// The contents of an SRV answer.
struct Records {
    /// The targets by priority. If it is empty, the service is not available.
    priorities: BTreeMap<u16, BTreeSet<Target>>,
    /// Addresses that came in the same answer.
    additional: BTreeMap<Name, BTreeSet<IpAddr>>,
    time_to_live: Option<u32>,
}

impl Records {
    /// Returns `None` if there is no SRV record.
    fn new(lookup: &Lookup, asker: &Asker) -> Option<Self> {
        let mut records =
            Self { priorities: BTreeMap::new(), additional: BTreeMap::new(), time_to_live: None };
        for record in lookup.answers() {
            let RData::SRV(srv) = &record.data else { continue };
            let least = records.time_to_live.unwrap_or(record.ttl).min(record.ttl);
            records.time_to_live = Some(least);
            if !srv.target.is_root() {
                let target = (srv.target.to_lowercase(), srv.port);
                records.priorities.entry(srv.priority).or_default().insert(target);
            }
        }
        for record in lookup.additionals() {
            if let Some(address) = record.data.ip_addr() {
                let addresses = records.additional.entry(record.name.to_lowercase());
                addresses.or_default().extend(asker.of_hosts([address].into_iter()));
            }
        }
        records.time_to_live.is_some().then_some(records)
    }
}

/// The last known addresses of each target, since each may fail on its own.
#[derive(Default)]
struct Known {
    /// The fully qualified name that has the records.
    name: Option<Name>,
    addresses: BTreeMap<(Name, Family), BTreeSet<IpAddr>>,
}

impl Known {
    fn is_of(&mut self, name: &Name) {
        if self.name.as_ref() != Some(name) {
            *self = Self { name: Some(name.clone()), ..Self::default() };
        }
    }

    fn set(&mut self, target: &Name, family: Family, addresses: BTreeSet<IpAddr>) {
        self.addresses.insert((target.clone(), family), addresses);
    }

    fn of(&self, target: &Name, family: Family) -> impl Iterator<Item = IpAddr> {
        let addresses = self.addresses.get(&(target.clone(), family));
        addresses.into_iter().flatten().copied()
    }
}

/// What to do with the results so far.
struct Step {
    endpoints: Option<Endpoints>,
    /// Present if the round is over.
    end: Option<Result<Round, AskError>>,
}

async fn next_step(targets: &mut Option<Targets<'_>>, known: &mut Known) -> Step {
    match targets {
        Some(targets) => targets.next(known).await,
        None => std::future::pending().await,
    }
}

/// The targets of one answer while their addresses are looked up.
struct Targets<'a> {
    asker: &'a Asker,
    until: Instant,
    records: Records,
    /// The targets of the current priority.
    targets: BTreeSet<Target>,
    questions: BoxStream<'a, (Name, Family, Result<Answer, AskError>)>,
    failure: Option<AskError>,
    time_to_live: Option<u32>,
    /// When to publish the addresses found so far without waiting for the others.
    due: Option<Instant>,
}

impl<'a> Targets<'a> {
    fn new(asker: &'a Asker, records: Records, until: Instant) -> Self {
        let time_to_live = records.time_to_live;
        let mut targets = Self {
            asker,
            until,
            records,
            targets: BTreeSet::new(),
            questions: stream::empty().boxed(),
            failure: None,
            time_to_live,
            due: None,
        };
        targets.try_next_priority();
        targets
    }

    /// Looks up the addresses that were missing in the answer. Returns whether there was another
    /// priority.
    fn try_next_priority(&mut self) -> bool {
        let Some((_, targets)) = self.records.priorities.pop_first() else { return false };
        let (asker, until) = (self.asker, self.until);
        let names: BTreeSet<_> = targets.iter().map(|(name, _)| name.clone()).collect();
        let missing = names.into_iter().filter(|name| !self.records.additional.contains_key(name));
        let questions: Vec<_> = missing
            .take(MAX_ENDPOINTS)
            .flat_map(|name| Family::BOTH.map(|family| (name.clone(), family)))
            .collect();
        let ask = move |(name, family)| async move {
            let answer = asker.addresses(&name, family, until).await;
            (name, family, answer)
        };
        self.questions = stream::iter(questions).map(ask).buffer_unordered(MAX_QUESTIONS).boxed();
        self.targets = targets;
        true
    }

    /// Waits until there is something to publish, or the round is over. Cancel-safe.
    async fn next(&mut self, known: &mut Known) -> Step {
        for (target, addresses) in std::mem::take(&mut self.records.additional) {
            for family in Family::BOTH {
                let of_family = addresses.iter().filter(|ip| Family::of(**ip) == family);
                known.set(&target, family, of_family.copied().collect());
            }
        }
        loop {
            tokio::select! {
                answer = self.questions.next() => match answer {
                    Some((name, family, Ok(answer))) => {
                        let (last, now) = (self.time_to_live, answer.time_to_live);
                        self.time_to_live = last.into_iter().chain(now).min();
                        known.set(&name, family, answer.addresses);
                        self.due.get_or_insert_with(|| Instant::now() + RESOLUTION_DELAY);
                    }
                    Some((.., Err(error))) => {
                        self.failure.get_or_insert(error);
                    }
                    None => match self.end(known) {
                        Some(step) => return step,
                        None => continue,
                    },
                },
                () = at(self.due) => {
                    self.due = None;
                    let endpoints = self.endpoints(known);
                    if !endpoints.is_empty() {
                        return Step { endpoints: Some(endpoints), end: None };
                    }
                }
            }
        }
    }

    /// Returns `None` if another priority is tried next.
    fn end(&mut self, known: &mut Known) -> Option<Step> {
        // RFC 2782: a single target "." means that there is no such service.
        let unavailable = self.targets.is_empty();
        let endpoints = self.endpoints(known);
        if endpoints.is_empty() && !unavailable {
            if self.try_next_priority() {
                return None;
            }
            let failure = self.failure.take().unwrap_or(AskError::NoTarget);
            return Some(Step { endpoints: None, end: Some(Err(failure)) });
        }
        known.addresses.retain(|(name, _), _| self.targets.iter().any(|target| target.0 == *name));
        let round = Round::new(self.time_to_live, self.failure.take());
        Some(Step { endpoints: Some(endpoints), end: Some(Ok(round)) })
    }

    fn endpoints(&mut self, known: &Known) -> Endpoints {
        let with_addresses = self.targets.iter().filter_map(|(name, port)| {
            let addresses: Vec<_> =
                Family::BOTH.iter().flat_map(|family| known.of(name, *family)).collect();
            (!addresses.is_empty()).then_some((name, *port, addresses))
        });
        let mut found: Vec<_> = with_addresses.collect();
        keep_one_family(&mut found);
        let mut endpoints = Endpoints::new();
        for (name, port, addresses) in found {
            let addresses = addresses.into_iter().map(|ip| SocketAddr::new(ip, port)).collect();
            match endpoint(name, port) {
                Some(key) => {
                    endpoints.insert(key, Endpoint::new(EndpointState::Ready, addresses));
                }
                None => self.failure = Some(AskError::Target(name.to_string())),
            }
        }
        endpoints
    }
}

fn endpoint(name: &Name, port: u16) -> Option<ConnectEndpoint> {
    format!("tcp://{}:{port}", name.to_string().trim_end_matches('.')).parse().ok()
}

/// If some targets have only IPv4 addresses and others only IPv6 addresses, they may be the same
/// pods. Keeps only the targets with an address of one family.
fn keep_one_family(found: &mut Vec<(&Name, u16, Vec<IpAddr>)>) {
    let has = |addresses: &[IpAddr], family| addresses.iter().any(|ip| Family::of(*ip) == family);
    let lacking = |family| found.iter().any(|(.., addresses)| !has(addresses, family));
    if !(lacking(Family::V4) && lacking(Family::V6)) {
        return;
    }
    let routed = |family| {
        let of_family = found.iter().flat_map(|(.., addresses)| addresses);
        families::routed(&of_family.filter(|ip| Family::of(**ip) == family).copied().collect())
    };
    let use_v6 = !routed(Family::V4) && routed(Family::V6);
    let family = if use_v6 { Family::V6 } else { Family::V4 };
    found.retain(|(.., addresses)| has(addresses, family));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn srv_names_have_the_form_service_proto_name() {
        for name in ["_zeromq._tcp.zmq-echo-headless", "_a._udp.b.", "_a._b.c.d.e"] {
            assert!(SrvName::has_form(name), "{name}");
        }
        for name in
            ["", "a", "_a", "_a._tcp", "_a._tcp.", "_a.b.c", "a._tcp.c", "_._tcp.c", "._a._tcp.b"]
        {
            assert!(!SrvName::has_form(name), "{name}");
        }
    }
}
