//! What EndpointSlices say of endpoints, free of any connection.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use tracing::warn;

use super::answers::{AddressType, Name, Protocol, Slice};
use super::{EndpointState, Endpoints, MAX_ENDPOINTS};
use zmtp::endpoint::ConnectEndpoint;

/// The most endpoints that are kept, of all slices together: an endpoint may be in
/// several while the API moves it.
const MAX_KEPT: usize = 4 * MAX_ENDPOINTS;

/// The slices of one Service, reduced to one of its ports.
#[derive(Debug)]
pub struct Slices {
    port: String,
    /// By the slice's name; one without endpoints is not kept.
    slices: BTreeMap<String, Vec<(ConnectEndpoint, EndpointState)>>,
    kept: usize,
    cut: bool,
    /// If endpoints have no port of this name: the names that there are.
    misnamed: Option<String>,
}

impl Slices {
    /// None yet, of the Service's port of this name.
    pub fn new(port: &str) -> Self {
        Self { port: port.to_owned(), slices: BTreeMap::new(), kept: 0, cut: false, misnamed: None }
    }

    /// Takes a slice that is new or has changed, and says whether its endpoints have.
    pub fn put(&mut self, slice: &Slice) -> bool {
        let name = slice.metadata.name.as_ref();
        let before = self.take(name);
        self.warn_if_misnamed(slice);
        let mut endpoints = endpoints(slice, &self.port);
        if endpoints.len() > MAX_KEPT - self.kept {
            endpoints.truncate(MAX_KEPT - self.kept);
            self.cut = true;
        }
        let changed = before != endpoints;
        if !endpoints.is_empty() {
            self.kept += endpoints.len();
            self.slices.insert(text(name).to_owned(), endpoints);
        }
        changed
    }

    /// A name that no port has would look like a Service without endpoints.
    fn warn_if_misnamed(&mut self, slice: &Slice) {
        if !slice.endpoints.0.is_empty()
            && self.misnamed.is_none()
            && port_number(slice, &self.port).is_none()
        {
            let ports =
                slice.ports.0.iter().filter_map(|port| port.name.as_ref()).map(Name::as_str);
            let ports = ports.collect::<Vec<_>>().join(",");
            warn!(port = self.port, ports, "endpoints without a TCP port of this name");
            self.misnamed = Some(ports);
        }
    }

    /// The names of the ports that endpoints have, if one was seen without a port of this name.
    pub fn other_ports(&self) -> Option<&str> {
        self.misnamed.as_deref()
    }

    /// Forgets a slice that is gone, and says whether it had endpoints.
    pub fn remove(&mut self, name: Option<&Name>) -> bool {
        !self.take(name).is_empty()
    }

    fn take(&mut self, name: Option<&Name>) -> Vec<(ConnectEndpoint, EndpointState)> {
        let endpoints = self.slices.remove(text(name)).unwrap_or_default();
        self.kept -= endpoints.len();
        endpoints
    }

    /// Whether there were more endpoints than are kept, so that only a new list tells
    /// which there are now.
    pub fn is_cut(&self) -> bool {
        self.cut
    }

    /// All endpoints. One that is in several slices is ready where one of them says
    /// so: with the host's network the next pod may have the address of the last,
    /// which is still in a slice as terminating.
    pub fn endpoints(&self) -> Endpoints {
        let mut all = Endpoints::new();
        for (endpoint, state) in self.slices.values().flatten() {
            let known = all.entry(endpoint.clone()).or_insert(*state);
            if *state == EndpointState::Ready {
                *known = EndpointState::Ready;
            }
        }
        all
    }
}

fn text(name: Option<&Name>) -> &str {
    name.map(Name::as_str).unwrap_or_default()
}

fn endpoints(slice: &Slice, port: &str) -> Vec<(ConnectEndpoint, EndpointState)> {
    if slice.address_type == AddressType::Other {
        return Vec::new();
    }
    let Some(port) = port_number(slice, port) else { return Vec::new() };
    let with_address = slice.endpoints.0.iter().filter_map(|endpoint| {
        Some((ConnectEndpoint::from(SocketAddr::new(endpoint.ip?, port)), endpoint.state))
    });
    with_address.collect()
}

/// The number of the TCP port of this name.
fn port_number(slice: &Slice, name: &str) -> Option<u16> {
    let ports = slice.ports.0.iter();
    ports
        .filter(|port| port.protocol.as_ref().is_none_or(|protocol| *protocol == Protocol::Tcp))
        .filter(|port| port.name.as_ref().map(Name::as_str) == Some(name))
        .find_map(|port| u16::try_from(port.port?).ok().filter(|port| *port != 0))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn slice(name: &str, kind: &str, ports: Value, endpoints: Value) -> Slice {
        serde_json::from_value(json!({
            "metadata": {"name": name}, "addressType": kind, "ports": ports, "endpoints": endpoints,
        }))
        .unwrap()
    }

    fn of_zmq(name: &str, endpoints: Value) -> Slice {
        slice(name, "IPv4", json!([{"name": "zmq", "port": 5555}]), endpoints)
    }

    fn known(slices: &[Slice]) -> Vec<(String, EndpointState)> {
        let mut known = Slices::new("zmq");
        slices.iter().for_each(|slice| {
            known.put(slice);
        });
        known.endpoints().into_iter().map(|(key, state)| (key.to_string(), state)).collect()
    }

    #[test]
    fn an_endpoint_gets_requests_where_it_is_ready_and_not_terminating() {
        use EndpointState::{Draining, Ready};
        for (conditions, state) in [
            (json!(null), Ready),
            (json!({}), Ready),
            (json!({"ready": true}), Ready),
            (json!({"ready": true, "serving": true, "terminating": false}), Ready),
            (json!({"ready": false}), Draining),
            (json!({"ready": false, "serving": true, "terminating": true}), Draining),
            (json!({"ready": true, "terminating": true}), Draining),
            (json!({"terminating": true}), Draining),
        ] {
            let endpoints = json!([{"addresses": ["10.0.0.1"], "conditions": conditions}]);
            let expected = vec![("tcp://10.0.0.1:5555".to_owned(), state)];
            assert_eq!(known(&[of_zmq("a", endpoints)]), expected, "{conditions}");
        }
    }

    #[test]
    fn the_port_is_found_by_its_name_in_each_slice() {
        let endpoints = json!([{"addresses": ["10.0.0.1"]}]);
        for (ports, found) in [
            (json!([{"name": "http", "port": 80}, {"name": "zmq", "port": 7777}]), true),
            (json!([{"name": "zmq", "port": 7777, "protocol": "TCP"}]), true),
            (json!([{"name": "zmq", "port": 7777, "protocol": "UDP"}]), false),
            (json!([{"name": "http", "port": 7777}]), false),
            (json!([{"port": 7777}]), false),
            (json!([{"name": "zmq"}]), false),
            (json!([{"name": "zmq", "port": 0}]), false),
            (json!(null), false),
        ] {
            let known = known(&[slice("a", "IPv4", ports.clone(), endpoints.clone())]);
            let names: Vec<_> = known.into_iter().map(|(name, _)| name).collect();
            let expected: &[&str] = if found { &["tcp://10.0.0.1:7777"] } else { &[] };
            assert_eq!(names, expected, "{ports}");
        }
    }

    #[test]
    fn slices_are_merged_and_names_are_ignored() {
        let ports = json!([{"name": "zmq", "port": 5555}]);
        let known = known(&[
            of_zmq("a", json!([{"addresses": ["10.0.0.1"], "conditions": {"terminating": true}}])),
            of_zmq("b", json!([{"addresses": ["10.0.0.1"]}, {"addresses": ["10.0.0.2"]}])),
            of_zmq("c", json!([{"addresses": ["10.0.0.1"], "conditions": {"ready": false}}])),
            slice("d", "IPv6", ports.clone(), json!([{"addresses": ["fd00::1"]}])),
            slice("e", "FQDN", ports, json!([{"addresses": ["a.example.com"]}])),
        ]);
        let names: Vec<_> = known.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["tcp://10.0.0.1:5555", "tcp://10.0.0.2:5555", "tcp://[fd00::1]:5555"]);
        assert!(known.iter().all(|(_, state)| *state == EndpointState::Ready), "{known:?}");
    }

    #[test]
    fn what_is_kept_is_bounded_and_said_to_be_cut() {
        let endpoints: Vec<_> = (0..1000u32)
            .map(|at| json!({"addresses": [format!("10.0.{}.{}", at / 250, at % 250)]}))
            .collect();
        let mut slices = Slices::new("zmq");
        for at in 0..4 {
            slices.put(&of_zmq(&at.to_string(), json!(endpoints)));
        }
        assert!(!slices.is_cut());
        slices.put(&of_zmq("4", json!(endpoints)));
        slices.put(&of_zmq("5", json!(endpoints)));
        assert!(slices.is_cut());
        assert_eq!(slices.kept, MAX_KEPT);
        for at in 0..6 {
            slices.remove(of_zmq(&at.to_string(), json!([])).metadata.name.as_ref());
        }
        assert_eq!(slices.kept, 0);
    }

    #[test]
    fn only_a_slice_whose_endpoints_differ_is_a_change() {
        let endpoints = json!([{"addresses": ["10.0.0.1"]}]);
        let terminating = json!([{"addresses": ["10.0.0.1"], "conditions": {"terminating": true}}]);
        let slice = of_zmq("a", endpoints);
        let mut slices = Slices::new("zmq");
        assert!(!slices.put(&of_zmq("a", json!([]))));
        assert!(slices.put(&slice));
        assert!(!slices.put(&slice));
        assert!(slices.put(&of_zmq("a", terminating)));
        assert!(slices.remove(slice.metadata.name.as_ref()));
        assert!(!slices.remove(slice.metadata.name.as_ref()));
    }
}
