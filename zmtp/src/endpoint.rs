//! ZeroMQ endpoints, `tcp://HOST:PORT`, to bind to and to connect to.

use std::fmt;
use std::io;
use std::net::{Ipv6Addr, SocketAddr, TcpListener, ToSocketAddrs};
use std::str::FromStr;

use crate::listeners;

/// Where a server listens: `tcp://HOST:PORT`, or `tcp://*:PORT` for all
/// interfaces. Port 0 lets the kernel choose.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BindEndpoint {
    host: BindHost,
    port: u16,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum BindHost {
    All,
    Name(String),
}

/// Where a client connects: `tcp://HOST:PORT`, the host a name or an address.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnectEndpoint {
    host: String,
    port: u16,
}

/// Why a text is not an endpoint; says what would be one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EndpointError {
    /// Not of the form at all.
    #[error("expected tcp://HOST:PORT, such as {0}")]
    Form(&'static str),
    /// The port is not one.
    #[error("expected a port from {from} to 65535 after the last colon, such as {example}")]
    Port {
        /// The lowest port that would do.
        from: u16,
        /// A whole endpoint that would do.
        example: &'static str,
    },
    /// `*` says nothing about where to connect.
    #[error(
        "a client needs a host to connect to, such as tcp://127.0.0.1:5555; `*` is for binding"
    )]
    Wildcard,
    /// An IPv6 address without its brackets.
    #[error("expected an IPv6 address in brackets, such as tcp://[::1]:5555")]
    Brackets,
}

impl BindEndpoint {
    const EXAMPLE: &str = "tcp://127.0.0.1:5555, or tcp://*:5555 for all interfaces";

    /// Opens the listeners, which share one port.
    ///
    /// `*` is IPv6 and IPv4 in one socket, or IPv4 alone if the host has no IPv6. A name
    /// gets a listener on each of its addresses: [`listeners::open_each`].
    ///
    /// # Errors
    ///
    /// What the resolver or the kernel says: no such name, no permission, in use.
    pub fn listen(&self) -> io::Result<Vec<TcpListener>> {
        match &self.host {
            BindHost::All => Ok(vec![listeners::open_on_all(self.port)?]),
            BindHost::Name(name) => {
                let addresses: Vec<_> = (name.as_str(), self.port).to_socket_addrs()?.collect();
                listeners::open_each(&addresses)
            }
        }
    }
}

impl ConnectEndpoint {
    const EXAMPLE: &str = "tcp://127.0.0.1:5555";

    /// Host and port, for a resolver.
    pub fn host_and_port(&self) -> (&str, u16) {
        (&self.host, self.port)
    }
}

impl FromStr for BindEndpoint {
    type Err = EndpointError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (host, port) = split(text, Self::EXAMPLE, 0)?;
        let host = match host {
            "*" => BindHost::All,
            name => BindHost::Name(name.to_owned()),
        };
        Ok(Self { host, port })
    }
}

impl FromStr for ConnectEndpoint {
    type Err = EndpointError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (host, port) = split(text, Self::EXAMPLE, 1)?;
        if host == "*" {
            return Err(EndpointError::Wildcard);
        }
        Ok(Self { host: host.to_owned(), port })
    }
}

impl From<SocketAddr> for ConnectEndpoint {
    fn from(address: SocketAddr) -> Self {
        Self { host: address.ip().to_string(), port: address.port() }
    }
}

/// Host (without brackets) and port of `tcp://HOST:PORT`.
fn split<'a>(
    text: &'a str,
    example: &'static str,
    lowest_port: u16,
) -> Result<(&'a str, u16), EndpointError> {
    let form = EndpointError::Form(example);
    let rest = text.strip_prefix("tcp://").ok_or(form.clone())?;
    let (host, port) = rest.rsplit_once(':').ok_or(form.clone())?;
    let port = Some(port)
        // `parse` would take a plus sign.
        .filter(|port| port.bytes().all(|byte| byte.is_ascii_digit()))
        .and_then(|port| port.parse().ok())
        .filter(|port| *port >= lowest_port)
        .ok_or(EndpointError::Port { from: lowest_port, example })?;
    let bracketed = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    if let Some(inner) = bracketed {
        inner.parse::<Ipv6Addr>().map_err(|_| EndpointError::Brackets)?;
        return Ok((inner, port));
    }
    if host.contains(':') {
        return Err(EndpointError::Brackets);
    }
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    if host == "*" || (!host.is_empty() && host.chars().all(plain)) {
        Ok((host, port))
    } else {
        Err(form)
    }
}

impl fmt::Display for BindEndpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.host {
            BindHost::All => write!(f, "tcp://*:{}", self.port),
            BindHost::Name(name) => write_endpoint(f, name, self.port),
        }
    }
}

impl fmt::Display for ConnectEndpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_endpoint(f, &self.host, self.port)
    }
}

fn write_endpoint(f: &mut fmt::Formatter<'_>, host: &str, port: u16) -> fmt::Result {
    if host.contains(':') {
        write!(f, "tcp://[{host}]:{port}")
    } else {
        write!(f, "tcp://{host}:{port}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_parsed_is_printed_the_same() {
        for text in [
            "tcp://127.0.0.1:5555",
            "tcp://*:0",
            "tcp://[::1]:5555",
            "tcp://zmq-echo.default.svc:80",
        ] {
            assert_eq!(text.parse::<BindEndpoint>().unwrap().to_string(), text);
        }
        for text in ["tcp://127.0.0.1:5555", "tcp://[fe80::1]:1", "tcp://localhost:65535"] {
            assert_eq!(text.parse::<ConnectEndpoint>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn what_is_wrong_is_refused_with_what_would_be_right() {
        for text in [
            "",
            "5555",
            "127.0.0.1:5555",
            "ipc:///tmp/a",
            "tcp://",
            "tcp://:1",
            "tcp://a b:1",
            "TCP://a:1",
        ] {
            let message = text.parse::<BindEndpoint>().unwrap_err().to_string();
            assert!(message.contains("tcp://127.0.0.1:5555"), "{text}: {message}");
        }
        for text in ["tcp://a:", "tcp://a:65536", "tcp://a:-1", "tcp://a:+1", "tcp://a:http"] {
            let message = text.parse::<BindEndpoint>().unwrap_err().to_string();
            assert!(message.contains("from 0 to 65535"), "{text}: {message}");
        }
        for text in ["tcp://::1:5555", "tcp://[::g]:5555", "tcp://[]:5555"] {
            assert_eq!(text.parse::<BindEndpoint>(), Err(EndpointError::Brackets), "{text}");
        }
        assert_eq!("tcp://*:5555".parse::<ConnectEndpoint>(), Err(EndpointError::Wildcard));
        assert!(
            "tcp://a:0"
                .parse::<ConnectEndpoint>()
                .unwrap_err()
                .to_string()
                .contains("from 1 to 65535")
        );
    }
}
