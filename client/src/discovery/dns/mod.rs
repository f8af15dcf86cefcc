//! Discovery by DNS: the addresses of a name, such as a headless Service, or its SRV records.
//!
//! Use it through [`Source`](super::Source) with the URL `dns://HOST:PORT` or
//! `dns://_SERVICE._PROTO.NAME`. The name is looked up again when its time to live ends, but at
//! least every 5 s and at most once per second. DNS tells neither which pods are ready nor which
//! are draining; the [Kubernetes API](super::kubernetes) does.
//!
//! # What an answer means
//!
//! - The addresses in an answer are the new set. An address that is missing has gone.
//! - If a server fails, refuses or does not answer, the last set stays. No query delays another one
//!   for long.
//! - A and AAAA records cannot be paired: two addresses may be two pods or one dual-stack pod. So
//!   only one family is used: IPv4 at first, then the family in use for as long as it has
//!   addresses. If its queries fail, its last addresses stay.
//! - NXDOMAIN or an answer without addresses also leaves the last set. A headless Service without a
//!   ready pod looks like that, but so does a name server that has just started, and a search that
//!   went past a server's failure. Endpoints that still answer are worth more, and the client finds
//!   out by itself which ones do not.
//! - Addresses that cannot belong to a host, such as multicast or `0.0.0.0`, are ignored.
//!
//! # Modules
//!
//! 1. `resolv_conf`: which servers to ask, and how to complete a name.
//! 2. `resolver`: one query.
//! 3. `walk`: the fully qualified names that a name may stand for, in order.
//! 4. `families`: which of a name's A and AAAA records to use.
//! 5. [`srv`]: SRV records, whose targets may use both families.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::fmt;
use std::fs;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Mutex;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use hickory_resolver::proto::rr::Name;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};
use tracing::warn;

use self::families::{Answer, Family, Found, InUse, Preference};
use self::resolv_conf::ResolvConf;
use self::resolver::{AskError, ROUND_LIMIT, Resolver};
use self::walk::Walk;
use super::addresses::{LeftOut, is_of_a_host};
use super::following::{Outage, Publisher, Waits, until_unheard};
use super::{
    Discovery, DiscoveryError, Endpoint, EndpointState, Endpoints, Failures, SourceFailure,
};

mod families;
mod resolv_conf;
mod resolver;
pub mod srv;
mod walk;

/// The name servers, search domains and options of this host.
const RESOLV_CONF: &str = "/etc/resolv.conf";

/// The shortest interval between queries, whatever the time to live is. CoreDNS itself takes about
/// this long to learn of a change.
const LEAST_INTERVAL: Duration = Duration::from_secs(1);

/// The longest interval between queries: a new pod gets its share within seconds, although the
/// usual time to live is 30 s.
const MOST_INTERVAL: Duration = Duration::from_secs(5);

/// `dns://HOST:PORT`: every address of the host is an endpoint at this port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DnsName {
    /// The name. The search domains apply unless it ends with a dot.
    pub host: String,
    /// The port, the same at each address.
    pub port: u16,
    /// The name server to ask instead of those in `/etc/resolv.conf`, over UDP and TCP.
    pub server: Option<SocketAddr>,
}

impl fmt::Display for DnsName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "dns://{}:{}", self.host, self.port)?;
        self.server.map_or(Ok(()), |server| write!(f, "?server={server}"))
    }
}

/// A source that looks up the addresses of a name.
pub struct Dns {
    name: DnsName,
    asker: Asker,
    rounds: Rounds,
}

impl Dns {
    /// Looks up a name as `/etc/resolv.conf` says.
    ///
    /// # Errors
    ///
    /// If the name is not a valid DNS name.
    pub fn new(name: DnsName) -> Result<Self, DiscoveryError> {
        Self::with_resolv_conf(name, &read_resolv_conf())
    }

    /// Looks up a name as the text of a `resolv.conf` says.
    ///
    /// # Errors
    ///
    /// Same as [`Self::new`].
    pub fn with_resolv_conf(name: DnsName, text: &str) -> Result<Self, DiscoveryError> {
        let asker = Asker::new(name.to_string(), &name.host, name.server, text)?;
        let rounds = Rounds::new(name.to_string());
        Ok(Self { name, asker, rounds })
    }

    async fn run(mut self, mut publisher: Publisher) -> Infallible {
        let mut in_use = None;
        loop {
            let started = Instant::now();
            let result = self.ask(&mut in_use, &mut publisher, started + ROUND_LIMIT).await;
            let left_out = self.asker.take_left_out();
            let interval = self.rounds.ended(result, left_out, publisher.len());
            sleep_until(started + interval).await;
        }
    }

    /// One round of queries. Publishes addresses as soon as they are found.
    async fn ask(
        &self,
        in_use: &mut Option<InUse>,
        publisher: &mut Publisher,
        until: Instant,
    ) -> Result<Round, AskError> {
        let candidates = &self.asker.candidates;
        let known = in_use.as_ref().and_then(|in_use| {
            let at = candidates.iter().position(|name| *name == in_use.name)?;
            Some((at, in_use.preference(families::routed)))
        });
        let mut walk = Walk::new(candidates.len(), known.map(|(at, _)| at), |at| {
            let of_known = known.filter(|(known, _)| at == *known);
            let preference = of_known.map_or(Preference::FIRST, |(_, preference)| preference);
            self.addresses(&candidates[at], preference, until).boxed()
        });
        let mut round = None;
        while let Some((at, found)) = walk.next(LEAST_INTERVAL).await {
            let next = InUse::update(in_use.take(), &candidates[at], found.verdict);
            publisher.publish(self.endpoints(in_use.insert(next)));
            round = Some(Round::new(found.time_to_live, found.failure));
        }
        round.ok_or_else(|| walk.into_failure().unwrap_or(AskError::NoAddress))
    }

    async fn addresses(
        &self,
        name: &Name,
        preference: Preference,
        until: Instant,
    ) -> Result<Option<Found>, AskError> {
        let look_up = |family| self.asker.addresses(name, family, until);
        families::ask(preference, families::routed, look_up).await
    }

    fn endpoints(&self, in_use: &InUse) -> Endpoints {
        in_use
            .addresses()
            .map(|ip| SocketAddr::new(ip, self.name.port))
            .map(|address| (address.into(), Endpoint::new(EndpointState::Ready, vec![address])))
            .collect()
    }
}

impl Discovery for Dns {
    fn follow(self: Box<Self>, endpoints: watch::Sender<Endpoints>) -> BoxFuture<'static, ()> {
        until_unheard(self.name.to_string(), endpoints, |publisher| self.run(publisher)).boxed()
    }

    fn failures(&self) -> Failures {
        self.rounds.outage.failures()
    }
}

/// The servers to ask, and the names to ask for.
struct Asker {
    resolver: Resolver,
    /// The fully qualified names to ask for, in order, until one has records.
    candidates: Vec<Name>,
    no_aaaa: bool,
    /// An address that was ignored in this round.
    left_out: Mutex<Option<IpAddr>>,
}

impl Asker {
    fn new(
        source: String,
        host: &str,
        server: Option<SocketAddr>,
        resolv_conf: &str,
    ) -> Result<Self, DiscoveryError> {
        let mut conf = ResolvConf::parse(resolv_conf);
        if let Some(server) = server {
            conf.servers = vec![server];
        }
        if !conf.left_out.is_empty() {
            let error = format!("{RESOLV_CONF}: {}", conf.left_out.join(", "));
            warn!(source, error, "ignoring invalid lines of the resolver configuration");
        }
        let name = Name::from_str_relaxed(host)
            .map_err(|error| DiscoveryError::Name { name: host.to_owned(), error: error.into() })?;
        let resolver = Resolver::new(&conf)
            .map_err(|error| DiscoveryError::Resolver { path: RESOLV_CONF, error: error.into() })?;
        let candidates = candidates(&name, &conf);
        Ok(Self { resolver, candidates, no_aaaa: conf.no_aaaa, left_out: Mutex::default() })
    }

    /// Looks up the addresses of one family, without those that cannot belong to a host.
    async fn addresses(
        &self,
        name: &Name,
        family: Family,
        until: Instant,
    ) -> Result<Answer, AskError> {
        if family == Family::V6 && self.no_aaaa {
            return Ok(Answer::default());
        }
        let lookup = self.resolver.look_up(name, family.record(), until).await?;
        let records = lookup.as_ref().map(|lookup| lookup.answers()).unwrap_or_default();
        let addresses = records.iter().filter_map(|record| record.data.ip_addr());
        Ok(Answer {
            addresses: self.of_hosts(addresses),
            time_to_live: records.iter().map(|record| record.ttl).min(),
        })
    }

    fn of_hosts(&self, addresses: impl Iterator<Item = IpAddr>) -> BTreeSet<IpAddr> {
        let (of_hosts, others): (BTreeSet<_>, BTreeSet<_>) =
            addresses.partition(|address| is_of_a_host(*address));
        if let Some(other) = others.first() {
            *self.lock_left_out() = Some(*other);
        }
        of_hosts
    }

    fn take_left_out(&self) -> Option<IpAddr> {
        self.lock_left_out().take()
    }

    fn lock_left_out(&self) -> std::sync::MutexGuard<'_, Option<IpAddr>> {
        self.left_out.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// A round that found endpoints.
struct Round {
    time_to_live: Duration,
    /// Why a part of the answer is missing.
    failure: Option<AskError>,
}

impl Round {
    fn new(time_to_live: Option<u32>, failure: Option<AskError>) -> Self {
        let seconds = time_to_live.map(u64::from).map(Duration::from_secs);
        Self { time_to_live: seconds.unwrap_or(MOST_INTERVAL), failure }
    }
}

/// The outcome of the rounds so far.
struct Rounds {
    outage: Outage,
    left_out: LeftOut,
    waits: Waits,
}

impl Rounds {
    fn new(source: String) -> Self {
        Self {
            outage: Outage::new(source.clone()),
            left_out: LeftOut::new(source),
            waits: Waits::new(LEAST_INTERVAL * 2, MOST_INTERVAL),
        }
    }

    /// Logs the outcome of a round, after which `endpoints` are in use. Returns the time from its
    /// start to the next round.
    fn ended(
        &mut self,
        result: Result<Round, AskError>,
        left_out: Option<IpAddr>,
        endpoints: usize,
    ) -> Duration {
        // A round without an answer does not end a warning.
        if result.is_ok() || left_out.is_some() {
            self.left_out.report(left_out);
        }
        let interval = match result {
            Ok(Round { time_to_live, failure }) => {
                self.waits.reset();
                match failure {
                    Some(error) => {
                        self.outage.failed_in_part(SourceFailure::from(&error), endpoints)
                    }
                    None => self.outage.recovered(),
                }
                time_to_live
            }
            Err(error) => {
                self.outage.failed(SourceFailure::from(&error), endpoints);
                self.waits.next()
            }
        };
        interval.clamp(LEAST_INTERVAL, MOST_INTERVAL)
    }
}

/// The text of the file. A missing or unreadable file counts as empty, as in glibc.
fn read_resolv_conf() -> String {
    match fs::read(RESOLV_CONF) {
        Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
        Err(error) => {
            if error.kind() != io::ErrorKind::NotFound {
                let error = format!("{RESOLV_CONF}: {error}");
                warn!(error, "cannot read the resolver configuration");
            }
            String::new()
        }
    }
}

/// The fully qualified names that a name may stand for, in the order of resolv.conf(5).
fn candidates(host: &Name, conf: &ResolvConf) -> Vec<Name> {
    let mut complete = host.clone();
    complete.set_fqdn(true);
    if host.is_fqdn() {
        return vec![complete];
    }
    // A name that gets too long is skipped.
    let searched = conf.search.iter().filter_map(|domain| host.clone().append_domain(domain).ok());
    let mut candidates: Vec<_> = searched
        .map(|mut name| {
            name.set_fqdn(true);
            name
        })
        .collect();
    let dots = usize::from(host.num_labels()).saturating_sub(1);
    let at = if dots >= conf.ndots { 0 } else { candidates.len() };
    candidates.insert(at, complete);
    let mut seen = BTreeSet::new();
    candidates.retain(|name| seen.insert(name.clone()));
    candidates
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As kubelet writes it for a pod in the namespace `default`.
    const OF_A_POD: &str = "search default.svc.cluster.local svc.cluster.local cluster.local\n\
                            nameserver 10.96.0.10\noptions ndots:5\n";

    fn candidates_of(host: &str, resolv_conf: &str) -> Vec<String> {
        let name = DnsName { host: host.to_owned(), port: 5555, server: None };
        let dns = Dns::with_resolv_conf(name, resolv_conf).unwrap();
        dns.asker.candidates.iter().map(Name::to_string).collect()
    }

    #[test]
    fn search_domains_and_ndots_decide_which_names_are_tried() {
        assert_eq!(
            candidates_of("zmq-echo-headless", OF_A_POD),
            [
                "zmq-echo-headless.default.svc.cluster.local.",
                "zmq-echo-headless.svc.cluster.local.",
                "zmq-echo-headless.cluster.local.",
                "zmq-echo-headless.",
            ]
        );
        assert_eq!(
            candidates_of("echo.example.com", "search lan\nnameserver 10.0.0.1\n"),
            ["echo.example.com.", "echo.example.com.lan."]
        );
        assert_eq!(candidates_of("echo.example.com.", OF_A_POD), ["echo.example.com."]);
        assert_eq!(
            candidates_of("a.b", "options ndots:0\nsearch lan . lan\n"),
            ["a.b.", "a.b.lan."]
        );
    }
}
