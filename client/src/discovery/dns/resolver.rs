//! Makes one DNS query: a name and a record type.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr, SocketAddrV6};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use hickory_resolver::Resolver as HickoryResolver;
use hickory_resolver::config::{ConnectionConfig, NameServerConfig, ResolverConfig};
use hickory_resolver::lookup::Lookup;
use hickory_resolver::net::NetError;
use hickory_resolver::net::runtime::{
    DnsUdpSocket, RuntimeProvider, TokioHandle, TokioRuntimeProvider, TokioTime,
};
use hickory_resolver::proto::rr::{Name, RecordType};
use tokio::net::UdpSocket;
use tokio::time::{Instant, timeout_at};

use super::resolv_conf::ResolvConf;
use crate::discovery::{FailureKind, SourceFailure};

/// The limit for one round of queries, including all retries and search domains. It is shorter than
/// the longest interval between rounds, so a silent server is asked as often as any other.
pub(super) const ROUND_LIMIT: Duration = Duration::from_secs(4);

/// Why a query has no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum AskError {
    #[error("{kind} query for {name}: {error}")]
    Server { name: Box<Name>, kind: RecordType, error: Box<NetError> },
    #[error("{0} query: no answer yet")]
    Slow(RecordType),
    #[error("the name has no address")]
    NoAddress,
    #[error("the name has no SRV record")]
    NoRecord,
    #[error("no target of the SRV records has an address")]
    NoTarget,
    #[error("the SRV target `{0}` is not a valid host name")]
    Target(String),
}

impl From<&AskError> for SourceFailure {
    fn from(error: &AskError) -> Self {
        let kind = match error {
            AskError::NoAddress | AskError::NoRecord | AskError::NoTarget => FailureKind::NotFound,
            AskError::Slow(_) => FailureKind::Unreachable,
            AskError::Server { error, .. } => match **error {
                NetError::Timeout | NetError::Io(_) | NetError::NoConnections => {
                    FailureKind::Unreachable
                }
                _ => FailureKind::Failed,
            },
            AskError::Target(_) => FailureKind::Failed,
        };
        Self::new(kind, &error.to_string())
    }
}

/// A resolver for the servers of a configuration.
pub(super) struct Resolver(HickoryResolver<Scoped>);

impl Resolver {
    pub fn new(conf: &ResolvConf) -> Result<Self, NetError> {
        let servers = conf.servers.iter().map(|server| name_server(*server, conf.tcp_only));
        let config = ResolverConfig::from_parts(None, Vec::new(), servers.collect());
        let mut builder = HickoryResolver::builder_with_config(config, Scoped::new(&conf.servers));
        let options = builder.options_mut();
        // No cache: the interval between rounds decides how old an answer may be.
        options.cache_size = 0;
        // Leaves time for a second try in the round, whatever resolv.conf says.
        options.timeout = conf.timeout.min(ROUND_LIMIT / 2);
        options.attempts = 1;
        options.edns0 = conf.edns0;
        builder.build().map(Self)
    }

    /// The answer that arrived before `until`, or `None` if there is no such record.
    pub async fn look_up(
        &self,
        name: &Name,
        kind: RecordType,
        until: Instant,
    ) -> Result<Option<Lookup>, AskError> {
        let error = match timeout_at(until, self.0.lookup(name.clone(), kind)).await {
            Ok(Ok(lookup)) => return Ok(Some(lookup)),
            Ok(Err(error)) if error.is_no_records_found() => return Ok(None),
            Ok(Err(error)) => error,
            Err(_) => NetError::Timeout,
        };
        Err(AskError::Server { name: Box::new(name.clone()), kind, error: Box::new(error) })
    }
}

fn name_server(address: SocketAddr, tcp_only: bool) -> NameServerConfig {
    let kinds = if tcp_only {
        vec![ConnectionConfig::tcp()]
    } else {
        vec![ConnectionConfig::udp(), ConnectionConfig::tcp()]
    };
    let connections = kinds.into_iter().map(|mut connection| {
        connection.port = address.port();
        connection
    });
    NameServerConfig::new(address.ip(), true, connections.collect())
}

/// Adds the scope to link-local server addresses, because the resolver does not keep it.
#[derive(Clone)]
struct Scoped {
    tokio: TokioRuntimeProvider,
    scopes: Scopes,
}

type Scopes = Arc<BTreeMap<IpAddr, u32>>;

impl Scoped {
    fn new(servers: &[SocketAddr]) -> Self {
        let scopes = servers.iter().filter_map(|server| match server {
            SocketAddr::V6(server) if server.scope_id() != 0 => {
                Some((IpAddr::V6(*server.ip()), server.scope_id()))
            }
            _ => None,
        });
        Self { tokio: TokioRuntimeProvider::default(), scopes: Arc::new(scopes.collect()) }
    }
}

fn scoped(scopes: &Scopes, address: SocketAddr) -> SocketAddr {
    match (address, scopes.get(&address.ip())) {
        (SocketAddr::V6(address), Some(scope)) => {
            SocketAddrV6::new(*address.ip(), address.port(), 0, *scope).into()
        }
        _ => address,
    }
}

impl RuntimeProvider for Scoped {
    type Handle = TokioHandle;
    type Timer = TokioTime;
    type Udp = ScopedUdp;
    type Tcp = <TokioRuntimeProvider as RuntimeProvider>::Tcp;

    fn create_handle(&self) -> Self::Handle {
        self.tokio.create_handle()
    }

    fn connect_tcp(
        &self,
        server: SocketAddr,
        bind: Option<SocketAddr>,
        timeout: Option<Duration>,
    ) -> Pin<Box<dyn Send + Future<Output = io::Result<Self::Tcp>>>> {
        self.tokio.connect_tcp(scoped(&self.scopes, server), bind, timeout)
    }

    fn bind_udp(
        &self,
        local: SocketAddr,
        _server: SocketAddr,
    ) -> Pin<Box<dyn Send + Future<Output = io::Result<Self::Udp>>>> {
        let scopes = Arc::clone(&self.scopes);
        Box::pin(async move { Ok(ScopedUdp { socket: UdpSocket::bind(local).await?, scopes }) })
    }
}

struct ScopedUdp {
    socket: UdpSocket,
    scopes: Scopes,
}

impl DnsUdpSocket for ScopedUdp {
    type Time = TokioTime;

    fn poll_recv_from(
        &self,
        cx: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<io::Result<(usize, SocketAddr)>> {
        DnsUdpSocket::poll_recv_from(&self.socket, cx, buffer)
    }

    fn poll_send_to(
        &self,
        cx: &mut Context<'_>,
        buffer: &[u8],
        target: SocketAddr,
    ) -> Poll<io::Result<usize>> {
        self.socket.poll_send_to(cx, buffer, scoped(&self.scopes, target))
    }
}
