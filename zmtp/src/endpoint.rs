//! ZeroMQ endpoints to bind to and to connect to, in the form `tcp://HOST:PORT`.

use std::fmt;
use std::io;
use std::net::{Ipv6Addr, SocketAddr, TcpListener, ToSocketAddrs};
use std::str::FromStr;

use crate::listeners;

/// An endpoint to listen on: `tcp://HOST:PORT`, or `tcp://*:PORT` for all interfaces. With port 0
/// the kernel chooses a port.
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

/// An endpoint to connect to: `tcp://HOST:PORT`, where the host is a name or an address.
///
/// ```
/// use zmtp::endpoint::ConnectEndpoint;
///
/// let endpoint: ConnectEndpoint = "tcp://[::1]:5555".parse()?;
/// assert_eq!(endpoint.host_and_port(), ("::1", 5555));
/// # Ok::<_, zmtp::endpoint::EndpointError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnectEndpoint {
    host: String,
    port: u16,
}

/// Why a text is not a valid endpoint. The message gives an example of a valid one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EndpointError {
    /// The text does not have the form `tcp://HOST:PORT`.
    #[error("expected tcp://HOST:PORT, such as {0}")]
    Form(&'static str),
    /// The port is missing or out of range.
    #[error("expected a port from {from} to 65535 after the last colon, such as {example}")]
    Port {
        /// The lowest valid port.
        from: u16,
        /// A complete valid endpoint.
        example: &'static str,
    },
    /// `*` does not name a host to connect to.
    #[error(
        "a client needs a host to connect to, such as tcp://127.0.0.1:5555; `*` is for binding"
    )]
    Wildcard,
    /// An IPv6 address without brackets.
    #[error("expected an IPv6 address in brackets, such as tcp://[::1]:5555")]
    Brackets,
}

impl BindEndpoint {
    const EXAMPLE: &str = "tcp://127.0.0.1:5555, or tcp://*:5555 for all interfaces";

    /// Opens the listeners. They share one port.
    ///
    /// `*` opens one socket for IPv6 and IPv4, or an IPv4 socket if the host has no IPv6. A name
    /// gets a listener on each of its addresses (see [`listeners::open_each`]).
    ///
    /// # Errors
    ///
    /// The resolver's or the kernel's error: unknown name, no permission, address in use.
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

    /// Host and port, in the form that resolvers take.
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

/// Splits `tcp://HOST:PORT` into the host, without brackets, and the port.
fn split<'a>(
    text: &'a str,
    example: &'static str,
    lowest_port: u16,
) -> Result<(&'a str, u16), EndpointError> {
    let form = EndpointError::Form(example);
    let rest = text.strip_prefix("tcp://").ok_or(form.clone())?;
    let (host, port) = rest.rsplit_once(':').ok_or(form.clone())?;
    let port = Some(port)
        // `parse` alone would accept a leading plus sign.
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
    fn endpoints_print_as_they_were_parsed() {
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
    fn invalid_endpoints_are_rejected_with_a_valid_example() {
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
