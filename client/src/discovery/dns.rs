//! The addresses of a name, as of a headless Service: A and AAAA, asked again when
//! their time is up.
//!
//! What an answer means:
//!
//! - The addresses in it are the set; one that is no longer in it has gone.
//! - A server that fails, refuses or does not answer says nothing: the last set
//!   stands. A and AAAA are asked apart, and one that failed keeps its last part.
//! - No address at all, NXDOMAIN or an empty answer, also leaves the last set. A
//!   headless Service without a ready pod looks like that, but so do a name server
//!   that has just started and knows nothing yet, and a search that went past a
//!   server's failure. Endpoints that still answer are worth more than that word,
//!   and for those that do not the client has their connections.
//!
//! DNS tells of neither draining nor readiness; the Kubernetes API does.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::fmt;
use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use hickory_resolver::TokioResolver;
use hickory_resolver::config::{ConnectionConfig, NameServerConfig, ResolverConfig, ResolverOpts};
use hickory_resolver::net::NetError;
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::proto::rr::{Name, RecordType};
use hickory_resolver::system_conf::parse_resolv_conf;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until, timeout_at};

use super::following::{Outage, Publisher, Waits, until_unheard};
use super::{
    Discovery, DiscoveryError, Endpoint, EndpointState, Endpoints, FailureKind, Failures,
    SourceFailure,
};

/// The name servers, search domains and options of this host.
const RESOLV_CONF: &str = "/etc/resolv.conf";

/// No more often than this, whatever the time to live says: CoreDNS itself is told
/// of a change after about as long.
const LEAST_INTERVAL: Duration = Duration::from_secs(1);

/// At least as often as this: a new pod gets its share within seconds, although the
/// usual time to live is 30 s.
const MOST_INTERVAL: Duration = Duration::from_secs(5);

/// For one round of questions, all retries and search domains included: less than
/// [`MOST_INTERVAL`], so that a server that is silent is asked as often as another.
const ROUND_LIMIT: Duration = Duration::from_secs(4);

/// As many as kubelet writes for a pod at most.
const MAX_SEARCH_DOMAINS: usize = 32;

/// `dns://HOST:PORT`: the port is the endpoints', the addresses are the host's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DnsName {
    /// The name; with a dot at its end it is complete, else the search domains apply.
    pub host: String,
    /// The port on each of its addresses.
    pub port: u16,
    /// Asked in place of the name servers in `/etc/resolv.conf`, over UDP and TCP.
    pub server: Option<SocketAddr>,
}

impl fmt::Display for DnsName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "dns://{}:{}", self.host, self.port)?;
        self.server.map_or(Ok(()), |server| write!(f, "?server={server}"))
    }
}

/// Asks for the addresses of a name.
pub struct Dns {
    name: DnsName,
    resolver: TokioResolver,
    /// The complete names to ask for, one after the other until one has an address.
    candidates: Vec<Name>,
    outage: Outage,
}

impl Dns {
    /// A name, to be asked for as `/etc/resolv.conf` says.
    ///
    /// # Errors
    ///
    /// The file cannot be read or names no server, or the name is too long.
    pub fn new(name: DnsName) -> Result<Self, DiscoveryError> {
        let configuration = match fs::read_to_string(RESOLV_CONF) {
            Ok(text) => text,
            Err(_) if name.server.is_some() => String::new(),
            Err(error) => return Err(unusable(error)),
        };
        Self::with_resolv_conf(name, &configuration)
    }

    /// A name, to be asked for as the text of a `resolv.conf` says.
    ///
    /// # Errors
    ///
    /// As [`Self::new`].
    pub fn with_resolv_conf(name: DnsName, text: &str) -> Result<Self, DiscoveryError> {
        let (mut configuration, options) = match name.server {
            Some(server) => parse_resolv_conf(format!("{text}\nnameserver {}\n", server.ip())),
            None => parse_resolv_conf(text),
        }
        .map_err(unusable)?;
        if let Some(server) = name.server {
            configuration.name_servers = vec![name_server(server)];
        }
        let host = Name::from_str_relaxed(&name.host).map_err(|error| DiscoveryError::Name {
            name: name.host.clone(),
            error: error.into(),
        })?;
        let candidates = candidates(&host, &configuration, options.ndots);
        let resolver = resolver(configuration, options).map_err(unusable)?;
        let outage = Outage::new(name.to_string());
        Ok(Self { name, resolver, candidates, outage })
    }

    async fn run(mut self, mut publisher: Publisher) -> Infallible {
        let mut waits = Waits::new(LEAST_INTERVAL * 2, MOST_INTERVAL);
        let mut addresses = Addresses::default();
        loop {
            let started = Instant::now();
            let interval = match self.ask(&mut addresses, started + ROUND_LIMIT).await {
                Ok(round) => {
                    publisher.publish(addresses.endpoints(self.name.port));
                    waits.reset();
                    match &round.failure {
                        Some(error) => self.outage.failed_in_part(error.into(), publisher.len()),
                        None => self.outage.recovered(),
                    }
                    round.time_to_live
                }
                Err(error) => {
                    self.outage.failed((&error).into(), publisher.len());
                    waits.next()
                }
            };
            sleep_until(started + interval.clamp(LEAST_INTERVAL, MOST_INTERVAL)).await;
        }
    }

    /// Asks for each candidate until one has an address, as getaddrinfo does: past a
    /// server's failure too, as one dead search domain must not hide the others.
    async fn ask(&self, addresses: &mut Addresses, until: Instant) -> Result<Round, AskError> {
        let mut failure = None;
        for name in &self.candidates {
            let (v4, v6) = tokio::join!(
                self.look_up(name, RecordType::A, until),
                self.look_up(name, RecordType::AAAA, until)
            );
            if [&v4, &v6].into_iter().flatten().any(|answer| !answer.addresses.is_empty()) {
                return Ok(addresses.update(name, v4, v6));
            }
            failure = failure.or(v4.err()).or(v6.err());
            // Where the set came from this name, no other one's answer replaces it.
            if failure.is_some() && addresses.name.as_ref() == Some(name) {
                break;
            }
        }
        Err(failure.unwrap_or(AskError::NoAddress))
    }

    async fn look_up(
        &self,
        name: &Name,
        kind: RecordType,
        until: Instant,
    ) -> Result<Answer, AskError> {
        match timeout_at(until, self.resolver.lookup(name.clone(), kind)).await {
            Ok(Ok(lookup)) => Ok(Answer {
                addresses: lookup
                    .answers()
                    .iter()
                    .filter_map(|record| record.data.ip_addr())
                    .collect(),
                time_to_live: lookup.answers().iter().map(|record| record.ttl).min(),
            }),
            Ok(Err(error)) if error.is_no_records_found() => Ok(Answer::default()),
            Ok(Err(error)) => Err(AskError::Server { name: name.clone(), kind, error }),
            Err(_) => Err(AskError::Server { name: name.clone(), kind, error: NetError::Timeout }),
        }
    }
}

impl Discovery for Dns {
    fn follow(self: Box<Self>, endpoints: watch::Sender<Endpoints>) -> BoxFuture<'static, ()> {
        until_unheard(self.name.to_string(), endpoints, |publisher| self.run(publisher)).boxed()
    }

    fn failures(&self) -> Failures {
        self.outage.failures()
    }
}

/// Why there is no new set.
#[derive(Debug, thiserror::Error)]
enum AskError {
    #[error("{kind} of {name}: {error}")]
    Server { name: Name, kind: RecordType, error: NetError },
    #[error("the name has no address")]
    NoAddress,
}

impl From<&AskError> for SourceFailure {
    fn from(error: &AskError) -> Self {
        let kind = match error {
            AskError::NoAddress => FailureKind::NotFound,
            AskError::Server { error: NetError::Timeout | NetError::Io(_), .. } => {
                FailureKind::Unreachable
            }
            AskError::Server { .. } => FailureKind::Failed,
        };
        Self { kind, text: error.to_string() }
    }
}

/// The addresses in one answer, and for how many seconds they may be believed.
#[derive(Debug, Default)]
struct Answer {
    addresses: BTreeSet<IpAddr>,
    time_to_live: Option<u32>,
}

/// Answers, of which at most one is missing.
struct Round {
    time_to_live: Duration,
    failure: Option<AskError>,
}

/// What is known of the name, by the kind of record, as each may fail alone.
#[derive(Default)]
struct Addresses {
    /// The candidate that had them.
    name: Option<Name>,
    v4: BTreeSet<IpAddr>,
    v6: BTreeSet<IpAddr>,
}

impl Addresses {
    fn update(
        &mut self,
        name: &Name,
        v4: Result<Answer, AskError>,
        v6: Result<Answer, AskError>,
    ) -> Round {
        if self.name.as_ref() != Some(name) {
            *self = Self { name: Some(name.clone()), ..Self::default() };
        }
        let mut round = Round { time_to_live: MOST_INTERVAL, failure: None };
        for (known, answer) in [(&mut self.v4, v4), (&mut self.v6, v6)] {
            match answer {
                Ok(answer) => {
                    *known = answer.addresses;
                    let seconds = answer.time_to_live.map(u64::from).map(Duration::from_secs);
                    round.time_to_live = seconds.unwrap_or(MOST_INTERVAL).min(round.time_to_live);
                }
                Err(error) => round.failure = Some(error),
            }
        }
        round
    }

    fn endpoints(&self, port: u16) -> Endpoints {
        let addresses = self.v4.iter().chain(&self.v6);
        addresses
            .map(|ip| SocketAddr::new(*ip, port))
            .map(|address| (address.into(), Endpoint::new(EndpointState::Ready, vec![address])))
            .collect()
    }
}

/// The complete names that a name may stand for, in the order of resolv.conf(5).
fn candidates(host: &Name, configuration: &ResolverConfig, ndots: usize) -> Vec<Name> {
    let mut complete = host.clone();
    complete.set_fqdn(true);
    if host.is_fqdn() {
        return vec![complete];
    }
    let searched = configuration
        .search()
        .iter()
        .take(MAX_SEARCH_DOMAINS)
        // One that would be too long is none.
        .filter_map(|domain| host.clone().append_domain(domain).ok());
    let mut candidates: Vec<_> = searched.collect();
    let dots = usize::from(host.num_labels()).saturating_sub(1);
    let at = if dots >= ndots { 0 } else { candidates.len() };
    candidates.insert(at, complete);
    candidates
}

fn resolver(
    configuration: ResolverConfig,
    mut options: ResolverOpts,
) -> Result<TokioResolver, NetError> {
    // Nothing is remembered: the intervals here decide how old an answer may be.
    options.cache_size = 0;
    // A second try fits into the round, over whatever resolv.conf says.
    options.timeout = options.timeout.min(ROUND_LIMIT / 2);
    options.attempts = 1;
    let mut builder =
        TokioResolver::builder_with_config(configuration, TokioRuntimeProvider::default());
    *builder.options_mut() = options;
    builder.build()
}

fn name_server(address: SocketAddr) -> NameServerConfig {
    let connections = [ConnectionConfig::udp(), ConnectionConfig::tcp()].map(|mut connection| {
        connection.port = address.port();
        connection
    });
    NameServerConfig::new(address.ip(), true, connections.into())
}

fn unusable(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> DiscoveryError {
    DiscoveryError::Resolver { path: RESOLV_CONF, error: error.into() }
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
        dns.candidates.iter().map(Name::to_string).collect()
    }

    #[test]
    fn search_domains_apply_as_the_file_says() {
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
    }

    #[test]
    fn a_configuration_without_a_server_is_refused() {
        let name = DnsName { host: "a".to_owned(), port: 1, server: None };
        let error = Dns::with_resolv_conf(name, "search lan\n").err().unwrap().to_string();
        assert!(error.starts_with("/etc/resolv.conf: "), "{error}");
    }
}
