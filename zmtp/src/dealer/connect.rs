//! From a name to a connection with a completed handshake.
//!
//! The addresses of a name are raced (RFC 8305, "Happy Eyeballs"). The next address is tried when
//! an attempt fails or has not connected within [`ATTEMPT_DELAY`]. The first connection is used
//! and the other attempts are dropped, so one logical connection is one TCP connection.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout_at};

use super::DealerConfig;
use super::socket::Dealer;
use crate::endpoint::ConnectEndpoint;
use crate::printable::printable;
use crate::reason::Reason;

/// How long an address may take to connect before the next one is tried as well (RFC 8305,
/// "Connection Attempt Delay").
pub const ATTEMPT_DELAY: Duration = Duration::from_millis(250);

/// Why connecting failed.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The name cannot be resolved.
    #[error("cannot resolve the name")]
    Resolve(#[source] io::Error),
    /// Resolving the name took too long.
    #[error("the name was not resolved within {0:?}")]
    ResolveTimeout(Duration),
    /// The name has no address.
    #[error("the name has no address")]
    NoAddress,
    /// No address accepted a connection. This is the kernel's error for the last one.
    #[error("cannot connect to {address}")]
    Connect {
        /// The last address.
        address: SocketAddr,
        /// The kernel's error.
        source: io::Error,
    },
    /// Connecting took too long.
    #[error("no connection within {0:?}")]
    ConnectTimeout(Duration),
    /// The connection ended during the handshake.
    #[error("{}", handshake_text(*reason, refusal.as_deref()))]
    Handshake {
        /// The server's address.
        address: SocketAddr,
        /// Why it ended.
        reason: Reason,
        /// The reason that the server gave when it refused us, made printable.
        refusal: Option<String>,
    },
    /// The connection was made, but the handshake took too long.
    #[error("connected, but no handshake within {limit:?}")]
    HandshakeTimeout {
        /// The server's address.
        address: SocketAddr,
        /// The time allowed for connecting in total.
        limit: Duration,
    },
}

impl ConnectError {
    /// Whether a TCP connection was made.
    pub fn is_of_handshake(&self) -> bool {
        matches!(self, Self::Handshake { .. } | Self::HandshakeTimeout { .. })
    }
}

/// Describes a failed handshake.
fn handshake_text(reason: Reason, refusal: Option<&str>) -> String {
    match (reason, refusal) {
        (_, Some(refusal)) => format!("the server refuses the connection: {refusal}"),
        (Reason::Closed | Reason::Error, None) => {
            "the server closed the connection during the handshake".to_owned()
        }
        (Reason::NotZmtp, None) => {
            "this is not a ZeroMQ port: the peer does not speak ZMTP".to_owned()
        }
        (Reason::Version, None) => {
            "the server speaks ZMTP 2.0 or older, but 3.0 or later is needed".to_owned()
        }
        (Reason::Mechanism, None) => {
            "the server requires a security mechanism other than NULL".to_owned()
        }
        (Reason::SocketType, None) => "the peer is not a ROUTER".to_owned(),
        (reason, None) => format!("the handshake failed: {}", reason.as_str()),
    }
}

impl Dealer {
    /// Connects to `endpoint` and completes the handshake.
    ///
    /// # Errors
    ///
    /// [`ConnectError`] if that fails or takes longer than [`DealerConfig::connect_timeout`].
    pub async fn connect(
        endpoint: &ConnectEndpoint,
        config: &DealerConfig,
    ) -> Result<Self, ConnectError> {
        let deadline = deadline(config.connect_timeout);
        let resolving = tokio::net::lookup_host(endpoint.host_and_port());
        let addresses = match timeout_at(deadline, resolving).await {
            Ok(addresses) => addresses.map_err(ConnectError::Resolve)?,
            Err(_) => return Err(ConnectError::ResolveTimeout(config.connect_timeout)),
        };
        race(addresses.collect(), config, deadline).await
    }

    /// Connects to one of `addresses`, like [`connect_to`]. If there are none, connects to
    /// `endpoint`.
    ///
    /// # Errors
    ///
    /// See [`Dealer::connect`].
    pub async fn connect_at(
        endpoint: &ConnectEndpoint,
        addresses: &[SocketAddr],
        config: &DealerConfig,
    ) -> Result<Self, ConnectError> {
        match addresses {
            [] => Self::connect(endpoint, config).await,
            _ => connect_to(addresses, config).await,
        }
    }
}

/// Connects to one of `addresses`. They are tried in order, alternating between IPv6 and IPv4.
///
/// # Errors
///
/// See [`Dealer::connect`].
pub async fn connect_to(
    addresses: &[SocketAddr],
    config: &DealerConfig,
) -> Result<Dealer, ConnectError> {
    race(addresses.to_vec(), config, deadline(config.connect_timeout)).await
}

/// Avoids an overflow for very long timeouts.
fn deadline(timeout: Duration) -> Instant {
    let far = Duration::from_secs(365 * 24 * 60 * 60);
    Instant::now() + timeout.min(far)
}

async fn race(
    addresses: Vec<SocketAddr>,
    config: &DealerConfig,
    deadline: Instant,
) -> Result<Dealer, ConnectError> {
    let mut waiting = alternating(addresses);
    let mut attempts = JoinSet::new();
    let mut last = ConnectError::NoAddress;
    loop {
        if let Some(address) = waiting.pop_front() {
            attempts.spawn(async move { (address, TcpStream::connect(address).await) });
        }
        let (address, stream) = match first_of(&mut attempts, &waiting, deadline).await {
            Attempt::Ended(ended) => ended,
            Attempt::Late => continue,
            Attempt::None => return Err(last),
            Attempt::TimedOut => {
                return Err(match last {
                    // This says more than the fact that another address did not answer.
                    last @ ConnectError::HandshakeTimeout { .. } => last,
                    last @ ConnectError::Handshake { .. } => last,
                    _ => ConnectError::ConnectTimeout(config.connect_timeout),
                });
            }
        };
        last = match stream {
            Err(source) => ConnectError::Connect { address, source },
            Ok(stream) => {
                let others = !waiting.is_empty() || !attempts.is_empty();
                match shake_hands(stream, address, config, deadline, others).await {
                    Ok(dealer) => return Ok(dealer),
                    Err(error) => error,
                }
            }
        };
    }
}

/// The result of waiting for attempts.
enum Attempt {
    /// One has ended.
    Ended((SocketAddr, io::Result<TcpStream>)),
    /// None has ended, and it is time to start the next one.
    Late,
    /// There are none.
    None,
    /// The deadline has passed.
    TimedOut,
}

async fn first_of(
    attempts: &mut JoinSet<(SocketAddr, io::Result<TcpStream>)>,
    waiting: &VecDeque<SocketAddr>,
    deadline: Instant,
) -> Attempt {
    let next = Instant::now() + ATTEMPT_DELAY;
    // All branches are cancel-safe.
    tokio::select! {
        ended = attempts.join_next() => match ended {
            Some(Ok(ended)) => Attempt::Ended(ended),
            // The task cannot panic and is never aborted while we wait.
            Some(Err(_)) => Attempt::Late,
            None => Attempt::None,
        },
        () = sleep_until(next), if !waiting.is_empty() => Attempt::Late,
        () = sleep_until(deadline) => Attempt::TimedOut,
    }
}

/// If there are `others` to try, the handshake may take half of the remaining time.
async fn shake_hands(
    stream: TcpStream,
    address: SocketAddr,
    config: &DealerConfig,
    deadline: Instant,
    others: bool,
) -> Result<Dealer, ConnectError> {
    let now = Instant::now();
    let left = deadline.saturating_duration_since(now);
    let until = if others { now + left / 2 } else { deadline };
    let mut dealer = Dealer::new(stream, address, config);
    match timeout_at(until, dealer.shake_hands()).await {
        Ok(Ok(())) => Ok(dealer),
        Ok(Err(reason)) => {
            let refusal = dealer.refusal();
            let refusal =
                refusal.map(|bytes| printable(&String::from_utf8_lossy(bytes)).into_owned());
            Err(ConnectError::Handshake { address, reason, refusal })
        }
        Err(_) => Err(ConnectError::HandshakeTimeout { address, limit: config.connect_timeout }),
    }
}

/// Orders the addresses so that the families alternate, beginning with the first one's (RFC 8305,
/// "Sorting Addresses").
fn alternating(addresses: Vec<SocketAddr>) -> VecDeque<SocketAddr> {
    let first = addresses.first().is_some_and(SocketAddr::is_ipv6);
    let (mut one, mut other): (VecDeque<_>, VecDeque<_>) =
        addresses.into_iter().partition(|address| address.is_ipv6() == first);
    let mut sorted = VecDeque::new();
    while !one.is_empty() || !other.is_empty() {
        sorted.extend(one.pop_front());
        sorted.extend(other.pop_front());
    }
    sorted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn address_families_alternate_beginning_with_the_first() {
        let addresses = |texts: &[&str]| -> Vec<SocketAddr> {
            texts.iter().map(|text| text.parse().unwrap()).collect()
        };
        let given = addresses(&["[::1]:1", "[::2]:1", "[::3]:1", "1.1.1.1:1", "2.2.2.2:1"]);
        let sorted = addresses(&["[::1]:1", "1.1.1.1:1", "[::2]:1", "2.2.2.2:1", "[::3]:1"]);
        assert_eq!(Vec::from(alternating(given)), sorted);
    }
}
