//! Where the side port listens.

use std::fmt;
use std::io;
use std::net::TcpListener;
use std::str::FromStr;

use zmtp::endpoint::{BindEndpoint, EndpointError};

/// Where the side port listens: `HOST:PORT`, or `*:PORT` for all interfaces. The syntax is that of
/// the endpoint for clients, without `tcp://`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HttpAddress(BindEndpoint);

impl HttpAddress {
    /// Opens the listeners, as [`BindEndpoint::listen`] does.
    ///
    /// # Errors
    ///
    /// The resolver's or the kernel's error: unknown name, no permission, or address in use.
    pub fn listen(&self) -> io::Result<Vec<TcpListener>> {
        self.0.listen()
    }
}

impl FromStr for HttpAddress {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        format!("tcp://{text}").parse().map(Self).map_err(|error| match error {
            EndpointError::Port { .. } => {
                "expected a port from 0 to 65535 after the last colon, such as 127.0.0.1:8080"
            }
            EndpointError::Brackets if !text.contains("://") => {
                "expected an IPv6 address in brackets, such as [::1]:8080"
            }
            _ => "expected HOST:PORT, such as 127.0.0.1:8080, or *:8080 for all interfaces",
        })
    }
}

impl fmt::Display for HttpAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.to_string().trim_start_matches("tcp://"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_side_port_accepts_the_same_addresses_as_clients_endpoint_without_the_scheme() {
        for text in ["127.0.0.1:8080", "[::1]:0", "*:8080", "localhost:8080"] {
            assert_eq!(text.parse::<HttpAddress>().unwrap().to_string(), text);
        }
        for (text, right) in [
            ("8080", "*:8080 for all interfaces"),
            ("*", "*:8080 for all interfaces"),
            ("http://127.0.0.1:8080", "*:8080 for all interfaces"),
            ("tcp://127.0.0.1:8080", "*:8080 for all interfaces"),
            ("*:", "a port from 0 to 65535"),
            ("*:+1", "a port from 0 to 65535"),
            ("*:65536", "a port from 0 to 65535"),
            ("::1:8080", "such as [::1]:8080"),
        ] {
            let error = text.parse::<HttpAddress>().unwrap_err();
            assert!(error.contains(right), "{text}: {error}");
        }
    }
}
