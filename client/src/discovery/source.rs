//! The URL that names a source of endpoints.

use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use super::Discovery;
use super::dns::srv::{Srv, SrvName};
use super::dns::{Dns, DnsName};
use super::fixed::Fixed;
use super::kubernetes::{self, Kubernetes};
use super::service_port::{PodPort, ServicePort};
use zmtp::endpoint::{ConnectEndpoint, EndpointError};

/// A source of endpoints, usually parsed from a URL.
///
/// | URL | endpoints |
/// |---|---|
/// | `tcp://HOST:PORT[,tcp://HOST:PORT…]` | this list |
/// | `dns://HOST:PORT[?server=IP:PORT]` | the addresses of a name, such as a headless Service |
/// | `dns://_SERVICE._PROTO.NAME[?server=IP:PORT]` | the targets and ports of SRV records |
/// | `k8s://NAMESPACE/SERVICE[:PORT]` | the EndpointSlices of a Kubernetes Service |
///
/// ```
/// use zmq_echo_client::discovery::Source;
///
/// let source: Source = "dns://zmq-echo-headless:5555".parse()?;
/// assert_eq!(source.to_string(), "dns://zmq-echo-headless:5555");
/// let error = "zmq-echo:5555".parse::<Source>().unwrap_err();
/// assert!(error.to_string().starts_with("expected tcp://HOST:PORT"));
/// # Ok::<(), zmq_echo_client::discovery::SourceError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// A fixed list.
    Fixed(BTreeSet<ConnectEndpoint>),
    /// The addresses of a name in DNS.
    Dns(DnsName),
    /// The targets and ports of a name's SRV records.
    Srv(SrvName),
    /// The EndpointSlices of a Kubernetes Service.
    Kubernetes(ServicePort),
}

/// Why a text is not the URL of a source. The message shows what is expected.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SourceError {
    /// It starts with none of the known schemes.
    #[error(
        "expected tcp://HOST:PORT[,tcp://HOST:PORT…], dns://HOST:PORT, \
         dns://_SERVICE._PROTO.NAME or k8s://NAMESPACE/SERVICE[:PORT], such as \
         dns://zmq-echo-headless:5555"
    )]
    Scheme,
    /// An entry in a list is not an endpoint.
    #[error("`{text}`: {error}")]
    Endpoint {
        /// The entry.
        text: String,
        /// What is wrong with it.
        error: EndpointError,
    },
    /// `dns://` is followed by neither a host and port nor the name of SRV records.
    #[error(
        "expected dns://HOST:PORT with a host name and a port from 1 to 65535, such as \
         dns://zmq-echo-headless:5555, or dns://_SERVICE._PROTO.NAME to use SRV records, such as \
         dns://_zeromq._tcp.zmq-echo-headless"
    )]
    Dns,
    /// `dns://` is followed by an address, so there is nothing to look up.
    #[error("expected a name after dns://; to use an address, write {0}")]
    Address(ConnectEndpoint),
    /// The question mark is followed by something other than `server=IP:PORT`.
    #[error(
        "expected server=IP:PORT after the question mark, such as \
         dns://zmq-echo-headless:5555?server=127.0.0.1:53"
    )]
    DnsServer,
    /// `k8s://` is not followed by the valid names of a namespace, a Service and a port.
    #[error(
        "expected k8s://NAMESPACE/SERVICE[:PORT]; names are lower-case letters, digits and dashes, and \
         PORT is the name of a port or its number on the pods, such as k8s://default/zmq-echo:zeromq"
    )]
    Kubernetes,
}

/// Why a source cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum DiscoveryError {
    /// No DNS resolver can be made from this configuration.
    #[error("{path}: {error}")]
    Resolver {
        /// The configuration file.
        path: &'static str,
        /// What is wrong with it.
        error: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The name is not a valid DNS name.
    #[error("`{name}` is not a valid host name: {error}")]
    Name {
        /// The name.
        name: String,
        /// What is wrong with it.
        error: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The configuration for the Kubernetes API is missing or unusable.
    #[error(
        "cannot use the Kubernetes API: {0}; run in a pod with a service account, or provide a \
         kubeconfig in $KUBECONFIG or ~/.kube/config"
    )]
    Kubernetes(Box<dyn std::error::Error + Send + Sync>),
}

impl Source {
    /// Sets up the source, ready to be followed. It sends no query yet.
    ///
    /// # Errors
    ///
    /// If the name is not valid in DNS, or if there is no usable kubeconfig or service account.
    pub async fn discovery(&self) -> Result<Box<dyn Discovery>, DiscoveryError> {
        Ok(match self {
            Self::Fixed(endpoints) => Box::new(Fixed::new(endpoints.iter().cloned())),
            Self::Dns(name) => Box::new(Dns::new(name.clone())?),
            Self::Srv(name) => Box::new(Srv::new(name.clone())?),
            Self::Kubernetes(port) => {
                Box::new(Kubernetes::new(port.clone(), kubernetes::client().await?))
            }
        })
    }
}

impl FromStr for Source {
    type Err = SourceError;

    fn from_str(text: &str) -> Result<Self, SourceError> {
        if let Some(rest) = text.strip_prefix("dns://") {
            dns(rest)
        } else if let Some(rest) = text.strip_prefix("k8s://") {
            service_port(rest).map(Self::Kubernetes)
        } else if text.starts_with("tcp://") {
            text.split(',').map(endpoint).collect::<Result<_, _>>().map(Self::Fixed)
        } else {
            Err(SourceError::Scheme)
        }
    }
}

fn endpoint(text: &str) -> Result<ConnectEndpoint, SourceError> {
    text.parse().map_err(|error| SourceError::Endpoint { text: text.to_owned(), error })
}

fn dns(text: &str) -> Result<Source, SourceError> {
    let (name, query) = match text.split_once('?') {
        Some((name, query)) => (name, Some(query)),
        None => (text, None),
    };
    let server = || query.map(dns_server).transpose();
    // Hosts and ports are the same as in an endpoint, so its parser checks them.
    let endpoint = |text: &str| format!("tcp://{text}").parse::<ConnectEndpoint>();
    let Some((host, port)) = name.rsplit_once(':') else {
        if !SrvName::has_form(name) || endpoint(&format!("{name}:1")).is_err() {
            return Err(SourceError::Dns);
        }
        return Ok(Source::Srv(SrvName { name: name.to_owned(), server: server()? }));
    };
    let endpoint = endpoint(name).map_err(|_| SourceError::Dns)?;
    if host.trim_matches(['[', ']']).parse::<IpAddr>().is_ok() {
        return Err(SourceError::Address(endpoint));
    }
    let port = port.parse().map_err(|_| SourceError::Dns)?;
    Ok(Source::Dns(DnsName { host: host.to_owned(), port, server: server()? }))
}

fn dns_server(query: &str) -> Result<SocketAddr, SourceError> {
    query
        .strip_prefix("server=")
        .and_then(|server| server.parse().ok())
        .filter(|server: &SocketAddr| server.port() != 0)
        .ok_or(SourceError::DnsServer)
}

fn service_port(text: &str) -> Result<ServicePort, SourceError> {
    let (namespace, rest) = text.split_once('/').ok_or(SourceError::Kubernetes)?;
    let (service, port) = match rest.split_once(':') {
        Some((service, port)) => (service, pod_port(port)?),
        None => (rest, PodPort::Only),
    };
    if !is_label(namespace) || !is_label(service) {
        return Err(SourceError::Kubernetes);
    }
    Ok(ServicePort { namespace: namespace.to_owned(), service: service.to_owned(), port })
}

/// A number, or a name, which has at least one letter.
fn pod_port(text: &str) -> Result<PodPort, SourceError> {
    if !is_label(text) {
        return Err(SourceError::Kubernetes);
    }
    if !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Ok(PodPort::Named(text.to_owned()));
    }
    let number = text.parse().ok().filter(|number| *number != 0);
    number.map(PodPort::Numbered).ok_or(SourceError::Kubernetes)
}

/// An RFC 1123 label, the form of Kubernetes names.
fn is_label(text: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    (1..=63).contains(&text.len())
        && text.bytes().all(plain)
        && !text.starts_with('-')
        && !text.ends_with('-')
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fixed(endpoints) => {
                for (at, endpoint) in endpoints.iter().enumerate() {
                    write!(f, "{}{endpoint}", if at == 0 { "" } else { "," })?;
                }
                Ok(())
            }
            Self::Dns(name) => name.fmt(f),
            Self::Srv(name) => name.fmt(f),
            Self::Kubernetes(port) => port.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_is_printed_as_the_url_it_was_parsed_from() {
        for text in [
            "tcp://127.0.0.1:5555",
            "tcp://10.0.0.1:5555,tcp://[fd00::1]:5555,tcp://zmq-echo-0:5555",
            "dns://zmq-echo-headless:5555",
            "dns://zmq-echo-headless.default.svc.cluster.local.:5555",
            "dns://zmq-echo-headless:5555?server=127.0.0.1:5353",
            "dns://zmq-echo-headless:5555?server=[::1]:53",
            "dns://_zeromq._tcp.zmq-echo-headless",
            "dns://_zeromq._tcp.zmq-echo-headless.default.svc.cluster.local.?server=[::1]:53",
            "dns://_zeromq._tcp.zmq-echo-headless:5555",
            "k8s://default/zmq-echo",
            "k8s://default/zmq-echo:zeromq",
            "k8s://default/zmq-echo:5555",
        ] {
            assert_eq!(text.parse::<Source>().unwrap().to_string(), text);
        }
    }

    #[track_caller]
    fn assert_refused_with(text: &str, example: &str) {
        let message = text.parse::<Source>().unwrap_err().to_string();
        assert!(message.contains(example), "{text}: {message}");
    }

    #[test]
    fn an_invalid_url_is_refused_with_an_example_of_a_valid_one() {
        for text in ["", "zmq-echo:5555", "http://a:1", "DNS://a:1"] {
            assert_refused_with(text, "dns://zmq-echo-headless:5555");
        }
        assert_refused_with("tcp://a:1,b:2", "`b:2`: expected tcp://HOST:PORT");
        assert_refused_with("tcp://a:1,", "``: expected tcp://HOST:PORT");
        for text in ["dns://", "dns://a", "dns://a:0", "dns://a:+1", "dns://a:zmq", "dns://*:1"] {
            assert_refused_with(text, "expected dns://HOST:PORT");
        }
        for text in ["dns://zmq-echo", "dns://_a._tcp", "dns://_a.b.c", "dns://_a._tcp.b c"] {
            assert_refused_with(text, "dns://zmq-echo-headless:5555");
            assert_refused_with(text, "dns://_zeromq._tcp.zmq-echo-headless");
        }
        assert_refused_with("dns://_a._tcp.b?server=dns", "server=127.0.0.1:53");
        assert_refused_with("dns://10.0.0.1:5555", "tcp://10.0.0.1:5555");
        assert_refused_with("dns://[fd00::1]:5555", "tcp://[fd00::1]:5555");
        for query in ["", "server", "server=dns", "server=127.0.0.1", "server=127.0.0.1:0", "a=b"] {
            assert_refused_with(&format!("dns://a:1?{query}"), "server=127.0.0.1:53");
        }
        for text in ["k8s://", "k8s://a", "k8s://a/", "k8s://a/b:", "k8s://A/b:c", "k8s:///b:c"] {
            assert_refused_with(text, "k8s://default/zmq-echo:zeromq");
        }
        for text in ["k8s://a/b/c:d", "k8s://a/b:c:d", "k8s://a/-b:c", "k8s://a/b:c?d=e"] {
            assert_refused_with(text, "k8s://default/zmq-echo:zeromq");
        }
        for text in ["k8s://a/b:0", "k8s://a/b:65536", "k8s://a/b:-1", "k8s://a/:5555"] {
            assert_refused_with(
                text,
                "its number on the pods, such as k8s://default/zmq-echo:zeromq",
            );
        }
    }
}
