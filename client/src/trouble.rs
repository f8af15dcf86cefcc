//! Why an endpoint, or the whole client, cannot be used: text for a user, with advice on what to
//! do.

use std::fmt;
use std::io;
use std::sync::Arc;

use zmq_echo::probe::ProbeError;
use zmtp::Reason;
use zmtp::dealer::ConnectError;
use zmtp::endpoint::ConnectEndpoint;

use super::discovery::SourceFailure;

/// The last thing that went wrong at an endpoint. `Display` writes one printable line.
#[derive(Debug, Clone)]
pub enum Trouble {
    /// The last attempt to connect failed.
    Connect(Arc<ConnectError>),
    /// The connection broke or was closed.
    Lost(Reason),
    /// A request got no reply in time.
    NoReply,
    /// A request got no reply in time, and the check that followed failed as well.
    Check(Arc<ProbeError>),
}

impl Trouble {
    /// What to check, as a question to the user.
    pub fn advice(&self) -> &'static str {
        const IS_BUSY: &str = "is the server stuck or overloaded?";
        const WHICH_PORT: &str =
            "is this the port of --bind, 5555 by default, and not the server's HTTP port?";
        let error = match self {
            Self::Connect(error) => error,
            Self::Lost(_) => return "is the server restarting, or does a proxy close connections?",
            Self::NoReply | Self::Check(_) => return IS_BUSY,
        };
        match **error {
            ConnectError::Resolve(_) | ConnectError::NoAddress => "is the name right?",
            ConnectError::ResolveTimeout(_) => "can this host reach its name server?",
            ConnectError::ConnectTimeout(_) => {
                "is the address right, and does a firewall or network policy drop packets?"
            }
            ConnectError::Connect { .. } => "is the server running?",
            ConnectError::HandshakeTimeout { .. } => {
                "is this a ZeroMQ port, and is the server alive?"
            }
            ConnectError::Handshake { reason, ref refusal, .. } => match reason {
                _ if refusal.is_some() => "what does the server's log say?",
                Reason::Closed | Reason::Error => "is the server full, or draining?",
                Reason::Version | Reason::Mechanism => {
                    "does the server speak ZMTP 3 with the NULL mechanism?"
                }
                _ => WHICH_PORT,
            },
        }
    }
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Connect(error) => match &**error {
                ConnectError::Resolve(error) => {
                    let words = words(error);
                    let words = words.trim_start_matches("failed to lookup address information: ");
                    write!(f, "the name cannot be resolved: {words}")
                }
                ConnectError::Connect { source, .. } => f.write_str(&words(source)),
                error => error.fmt(f),
            },
            Self::Lost(Reason::Closed) => f.write_str("the server closed the connection"),
            Self::Lost(Reason::Error) => f.write_str("the connection broke"),
            Self::Lost(Reason::Vanished) => f.write_str("the server's host no longer answers"),
            Self::Lost(reason) => {
                write!(f, "the connection was closed: {}", reason.as_str())
            }
            Self::NoReply => f.write_str("no reply"),
            Self::Check(error) => write!(f, "no reply, and the check failed: {}", error.reason),
        }
    }
}

/// The kernel's error text without its number: "connection refused".
fn words(error: &io::Error) -> String {
    let text = error.to_string();
    let text = text.split(" (os error ").next().unwrap_or_default();
    let mut letters = text.chars();
    let first = letters.next().map(|first| first.to_ascii_lowercase());
    first.into_iter().chain(letters).collect()
}

/// Why no endpoint gets requests, as far as the client knows. `Display` writes one printable line.
#[derive(Debug, Clone)]
pub enum Unusable {
    /// The source has neither answered nor failed yet.
    NotAsked,
    /// The source failed, and no endpoint is known.
    Source(SourceFailure),
    /// The source answered that there are no endpoints.
    NoneNamed,
    /// Endpoints are known, and none has failed yet.
    Connecting,
    /// Every known endpoint is about to leave.
    Draining,
    /// Endpoints are known, but none is usable. This is what went wrong last.
    Endpoint {
        /// The endpoint.
        endpoint: Arc<ConnectEndpoint>,
        /// What went wrong there.
        trouble: Trouble,
    },
}

impl Unusable {
    /// What to check, as a question to the user.
    pub fn advice(&self) -> &'static str {
        match self {
            Self::NotAsked => "does it just need more time?",
            Self::Connecting => "does it just need more time, or is this not a ZeroMQ port?",
            Self::Source(failure) => failure.kind().advice(),
            Self::NoneNamed => "is a pod ready, and does the Service have this port?",
            Self::Draining => "is the service restarting, or scaled to zero?",
            Self::Endpoint { trouble, .. } => trouble.advice(),
        }
    }
}

impl fmt::Display for Unusable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotAsked => f.write_str("the endpoint source has not answered yet"),
            Self::Source(failure) => failure.fmt(f),
            Self::NoneNamed => f.write_str("the endpoint source lists no endpoints"),
            Self::Connecting => f.write_str("no endpoint has completed its handshake yet"),
            Self::Draining => f.write_str("every endpoint is terminating or not ready"),
            Self::Endpoint { endpoint, trouble } => write!(f, "{endpoint}: {trouble}"),
        }
    }
}

/// Two values are equal if they read the same. The errors that they hold cannot be compared.
impl PartialEq for Unusable {
    fn eq(&self, other: &Self) -> bool {
        self.to_string() == other.to_string()
    }
}

impl Eq for Unusable {}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, SocketAddr};
    use std::time::Duration;

    use super::*;

    const LIMIT: Duration = Duration::from_secs(1);

    #[test]
    fn each_kind_of_failure_has_its_own_text_and_advice() {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, 1));
        let refused = io::Error::from_raw_os_error(111);
        let handshake = |reason| ConnectError::Handshake { address, reason, refusal: None };
        let connect: Vec<Trouble> = [
            ConnectError::Resolve(io::Error::other("no such name")),
            ConnectError::ResolveTimeout(LIMIT),
            ConnectError::Connect { address, source: refused },
            ConnectError::ConnectTimeout(LIMIT),
            ConnectError::HandshakeTimeout { address, limit: LIMIT },
            handshake(Reason::NotZmtp),
            handshake(Reason::SocketType),
            handshake(Reason::Closed),
            handshake(Reason::Mechanism),
        ]
        .map(|error| Trouble::Connect(Arc::new(error)))
        .into();
        let others = [Trouble::Lost(Reason::Closed), Trouble::Lost(Reason::Vanished)];
        let texts: Vec<_> =
            connect.iter().chain(&others).map(|trouble| trouble.to_string()).collect();
        assert_eq!(texts[2], "connection refused");
        for (at, text) in texts.iter().enumerate() {
            assert!(!text.contains('\n') && !text.contains("os error"), "{text}");
            assert!(!texts[..at].contains(text), "{text} describes two kinds of failure");
        }
        assert!(connect.iter().all(|trouble| trouble.advice().ends_with('?')));
    }
}
