//! Where the side port listens.

use std::fmt;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::str::FromStr;

use zmtp::listeners;

/// Where the side port listens: `IP:PORT`, or `*:PORT` for all interfaces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HttpAddress {
    /// On all interfaces.
    All(u16),
    /// On this address.
    One(SocketAddr),
}

impl HttpAddress {
    /// Opens the listener; `*` is what it is to [`zmtp::endpoint::BindEndpoint::listen`].
    ///
    /// # Errors
    ///
    /// What the kernel says: no permission, in use.
    pub fn listen(self) -> io::Result<TcpListener> {
        match self {
            Self::All(port) => listeners::open_on_all(port),
            Self::One(address) => listeners::open(address),
        }
    }
}

impl FromStr for HttpAddress {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let address = match text.strip_prefix("*:") {
            // `parse` would take a plus sign.
            Some(port) if port.starts_with('+') => None,
            Some(port) => port.parse().ok().map(Self::All),
            None => text.parse().ok().map(Self::One),
        };
        address.ok_or("expected IP:PORT, such as 127.0.0.1:8080, or *:8080 for all interfaces")
    }
}

impl fmt::Display for HttpAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All(port) => write!(f, "*:{port}"),
            Self::One(address) => address.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_side_port_takes_an_address_or_all_interfaces() {
        for text in ["127.0.0.1:8080", "[::1]:0", "*:8080"] {
            assert_eq!(text.parse::<HttpAddress>().unwrap().to_string(), text);
        }
        for text in ["8080", "localhost:8080", "*", "*:", "*:+1", "*:65536"] {
            assert!(text.parse::<HttpAddress>().unwrap_err().contains("*:8080"), "{text}");
        }
    }
}
