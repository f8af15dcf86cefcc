//! `k8s://NAMESPACE/SERVICE[:PORT]`: one port of a Kubernetes Service.

use std::fmt;

/// A port of a Kubernetes Service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServicePort {
    /// The Service's namespace.
    pub namespace: String,
    /// The Service's name.
    pub service: String,
    /// Which port.
    pub port: PodPort,
}

/// Selects a TCP port of the pods behind a Service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PodPort {
    /// The only TCP port, named or not.
    Only,
    /// The port to which the Service gives this name.
    Named(String),
    /// The port with this number on the pods. EndpointSlices do not contain the Service's own port
    /// number, which may differ.
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
