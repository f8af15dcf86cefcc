//! `k8s://NAMESPACE/SERVICE[:PORT]`: one port of a Kubernetes Service.

use std::fmt;

/// A Service, and which of its ports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServicePort {
    /// The Service's namespace.
    pub namespace: String,
    /// The Service's name.
    pub service: String,
    /// The port.
    pub port: PodPort,
}

/// Which TCP port of the pods behind a Service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PodPort {
    /// The only one, whether the Service has a name for it or not.
    Only,
    /// The one that the Service calls by this name.
    Named(String),
    /// The one with this number, on which the pods listen. EndpointSlices do not hold the number
    /// at the Service's own address, which may be another.
    Numbered(u16),
}

impl fmt::Display for ServicePort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "k8s://{}/{}", self.namespace, self.service)?;
        match &self.port {
            PodPort::Only => Ok(()),
            PodPort::Named(name) => write!(f, ":{name}"),
            PodPort::Numbered(number) => write!(f, ":{number}"),
        }
    }
}
