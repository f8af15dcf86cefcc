//! What EndpointSlices say of endpoints, free of any connection.
//!
//! The endpoints of the best [`Tier`] that is not empty take requests, and the others are drained.
//! For terminating endpoints that still serve this is what kube-proxy does. The last tier goes
//! further: if a kubelet is down for a minute, all of its pods count as not ready while they
//! serve on, so a doubtful endpoint is better than none. The client finds out which of them
//! answer.
//!
//! A pod with two families of addresses is in two slices, and is one endpoint here.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use tracing::warn;

use super::addresses::is_of_a_host;
use super::answers::{AddressType, Name, Protocol, Slice, Tier};
use super::{Endpoint, EndpointState, Endpoints, MAX_ENDPOINTS};

/// The most endpoints that are kept, of all slices together: an endpoint may be in
/// several while the API moves it.
const MAX_KEPT: usize = 4 * MAX_ENDPOINTS;

/// The most addresses of an endpoint. A pod has one of each family.
const MAX_ADDRESSES: usize = 4;

/// The slices of one Service, reduced to one of its ports.
#[derive(Debug)]
pub struct Slices {
    port: String,
    /// By the slice's name; one without endpoints is not kept.
    slices: BTreeMap<String, Vec<Listed>>,
    kept: usize,
    cut: bool,
    /// If endpoints have no port of this name: the names that there are.
    misnamed: Option<String>,
    left_out: Option<IpAddr>,
}

impl Slices {
    /// None yet, of the Service's port of this name.
    pub fn new(port: &str) -> Self {
        Self {
            port: port.to_owned(),
            slices: BTreeMap::new(),
            kept: 0,
            cut: false,
            misnamed: None,
            left_out: None,
        }
    }

    /// Takes a slice that is new or has changed, and says whether its endpoints have.
    pub fn put(&mut self, slice: &Slice) -> bool {
        let name = slice.metadata.name.as_ref();
        let before = self.take(name);
        self.warn_if_misnamed(slice);
        let mut endpoints = endpoints(slice, &self.port);
        endpoints.retain(|listed| {
            let address = listed.address.ip();
            let keep = is_of_a_host(address);
            if !keep {
                self.left_out.get_or_insert(address);
            }
            keep
        });
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

    /// The first address that was left out, because no host can have it.
    pub fn left_out(&self) -> Option<IpAddr> {
        self.left_out
    }

    /// Forgets a slice that is gone, and says whether it had endpoints.
    pub fn remove(&mut self, name: Option<&Name>) -> bool {
        !self.take(name).is_empty()
    }

    fn take(&mut self, name: Option<&Name>) -> Vec<Listed> {
        let endpoints = self.slices.remove(text(name)).unwrap_or_default();
        self.kept -= endpoints.len();
        endpoints
    }

    /// Whether there were more endpoints than are kept, so that only a new list tells
    /// which there are now.
    pub fn is_cut(&self) -> bool {
        self.cut
    }

    /// All endpoints, each named by its first address.
    pub fn endpoints(&self) -> Endpoints {
        let servers = self.servers();
        let best = servers.values().map(|server| server.tier).min();
        let known = |server: Server| {
            let used = Some(server.tier) == best;
            Endpoint {
                state: if used { EndpointState::Ready } else { EndpointState::Draining },
                addresses: server.addresses.into_iter().take(MAX_ADDRESSES).collect(),
                doubtful: used && server.tier != Tier::Ready,
            }
        };
        servers.into_iter().map(|(first, server)| (first.into(), known(server))).collect()
    }

    /// All servers, by their first address. Those with the same one are the same: with the
    /// host's network the next pod may have the address of the last, which is still in a slice
    /// as terminating.
    fn servers(&self) -> BTreeMap<SocketAddr, Server> {
        let mut pods: BTreeMap<(Option<&str>, Option<SocketAddr>), Server> = BTreeMap::new();
        for listed in self.slices.values().flatten() {
            let pod = listed.pod.as_deref();
            let address = pod.is_none().then_some(listed.address);
            let server = Server { tier: listed.tier, addresses: [listed.address].into() };
            pods.entry((pod, address)).and_modify(|known| known.join(&server)).or_insert(server);
        }
        let mut servers: BTreeMap<SocketAddr, Server> = BTreeMap::new();
        for server in pods.into_values() {
            let Some(first) = server.addresses.first() else { continue };
            servers.entry(*first).and_modify(|known| known.join(&server)).or_insert(server);
        }
        servers
    }
}

/// An endpoint of a slice.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Listed {
    address: SocketAddr,
    tier: Tier,
    pod: Option<String>,
}

/// What all slices together say of one server.
struct Server {
    tier: Tier,
    /// In the order in which they are tried: IPv4 first.
    addresses: BTreeSet<SocketAddr>,
}

impl Server {
    /// The best word counts, as slices change one after the other.
    fn join(&mut self, other: &Self) {
        self.tier = self.tier.min(other.tier);
        self.addresses.extend(&other.addresses);
    }
}

fn text(name: Option<&Name>) -> &str {
    name.map(Name::as_str).unwrap_or_default()
}

fn endpoints(slice: &Slice, port: &str) -> Vec<Listed> {
    if slice.address_type == AddressType::Other {
        return Vec::new();
    }
    let Some(port) = port_number(slice, port) else { return Vec::new() };
    let with_address = slice.endpoints.0.iter().filter_map(|endpoint| {
        let address = SocketAddr::new(endpoint.ip?, port);
        Some(Listed { address, tier: endpoint.tier, pod: endpoint.pod.clone() })
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

    fn said(slices: &[Slice]) -> Endpoints {
        let mut known = Slices::new("zmq");
        slices.iter().for_each(|slice| {
            known.put(slice);
        });
        known.endpoints()
    }

    fn known(slices: &[Slice]) -> Vec<(String, EndpointState)> {
        said(slices).into_iter().map(|(key, said)| (key.to_string(), said.state)).collect()
    }

    /// An endpoint with these conditions.
    fn at(address: &str, conditions: Value) -> Value {
        json!({"addresses": [address], "conditions": conditions})
    }

    /// An endpoint which is this object.
    fn of(target: Value, address: &str) -> Value {
        json!({"addresses": [address], "targetRef": target})
    }

    #[test]
    fn conditions_that_are_not_set_mean_ready_serving_and_not_terminating() {
        use Tier::{Doubtful, Ready, Serving};
        for (conditions, tier) in [
            (json!(null), Ready),
            (json!({}), Ready),
            (json!({"ready": true}), Ready),
            (json!({"ready": true, "serving": true, "terminating": false}), Ready),
            (json!({"ready": false}), Doubtful),
            (json!({"ready": false, "serving": false, "terminating": false}), Doubtful),
            (json!({"ready": false, "serving": true, "terminating": true}), Serving),
            (json!({"ready": false, "terminating": true}), Serving),
            (json!({"ready": false, "serving": false, "terminating": true}), Doubtful),
            // A Service that publishes addresses that are not ready.
            (json!({"ready": true, "serving": false, "terminating": false}), Ready),
            (json!({"ready": true, "serving": true, "terminating": true}), Serving),
            (json!({"ready": true, "serving": false, "terminating": true}), Doubtful),
            (json!({"terminating": true}), Serving),
        ] {
            let slice = of_zmq("a", json!([at("10.0.0.1", conditions.clone())]));
            assert_eq!(slice.endpoints.0[0].tier, tier, "{conditions}");
        }
    }

    #[test]
    fn the_best_tier_that_is_not_empty_takes_requests() {
        let [ready, serving, doubtful] = [
            at("10.0.0.1", json!({"ready": true})),
            at("10.0.0.2", json!({"ready": false, "serving": true, "terminating": true})),
            at("10.0.0.3", json!({"ready": false, "serving": false})),
        ];
        for (endpoints, used, doubtful) in [
            (json!([ready, serving, doubtful]), "tcp://10.0.0.1:5555", false),
            (json!([serving, doubtful]), "tcp://10.0.0.2:5555", true),
            (json!([doubtful]), "tcp://10.0.0.3:5555", true),
            (json!([doubtful, ready]), "tcp://10.0.0.1:5555", false),
        ] {
            let all = said(&[of_zmq("a", endpoints.clone())]);
            assert_eq!(all.len(), endpoints.as_array().unwrap().len(), "the others are drained");
            let mut of_ready = all.iter().filter(|(_, said)| said.state == EndpointState::Ready);
            let (name, said) = of_ready.next().unwrap();
            assert_eq!((&*name.to_string(), said.doubtful), (used, doubtful));
            assert!(of_ready.next().is_none(), "{all:?}");
            assert_eq!(all.values().filter(|said| said.doubtful).count(), usize::from(doubtful));
        }
    }

    #[test]
    fn a_pod_with_two_families_of_addresses_is_one_endpoint() {
        let ports = || json!([{"name": "zmq", "port": 5555}]);
        let named = |name: &str| json!({"kind": "Pod", "namespace": "default", "name": name});
        let with_uid = |uid: &str| json!({"kind": "Pod", "name": "same", "uid": uid});
        for (one, other) in [(named("a"), named("b")), (with_uid("1"), with_uid("2"))] {
            let v4 = [of(one.clone(), "10.0.0.1"), of(other.clone(), "10.0.0.2")];
            let v6 = [of(one.clone(), "fd00::1"), of(other.clone(), "fd00::2")];
            // Whatever the order of the slices is.
            for names in [["a", "b"], ["b", "a"]] {
                let all = said(&[
                    slice(names[0], "IPv4", ports(), json!(v4)),
                    slice(names[1], "IPv6", ports(), json!(v6)),
                ]);
                let names: Vec<_> = all.keys().map(ToString::to_string).collect();
                assert_eq!(names, ["tcp://10.0.0.1:5555", "tcp://10.0.0.2:5555"], "{one}");
                let addresses: Vec<_> = all.values().map(|said| said.addresses.clone()).collect();
                let pairs =
                    [["10.0.0.1:5555", "[fd00::1]:5555"], ["10.0.0.2:5555", "[fd00::2]:5555"]];
                let expected = pairs.map(|pair| pair.map(|text| text.parse().unwrap()).to_vec());
                assert_eq!(addresses, expected, "{one}");
            }
        }
    }

    #[test]
    fn endpoints_that_are_not_known_to_be_one_pod_are_not_paired() {
        let nothing_in_common = [
            (json!(null), json!(null)),
            (json!({"uid": "1"}), json!({"uid": "2"})),
            (
                json!({"kind": "VM", "namespace": "a", "name": "b"}),
                json!({"kind": "Pod", "name": "b"}),
            ),
            (
                json!({"kind": "VM", "namespace": "a", "name": "b"}),
                json!({"kind": "VM", "namespace": "a", "name": "b"}),
            ),
            (json!({"uid": "1".repeat(1000)}), json!({"uid": "1".repeat(1000)})),
        ];
        for (one, other) in nothing_in_common {
            let ports = json!([{"name": "zmq", "port": 5555}]);
            let all = said(&[
                of_zmq("a", json!([of(one, "10.0.0.1")])),
                slice("b", "IPv6", ports, json!([of(other.clone(), "fd00::1")])),
            ]);
            assert_eq!(all.len(), 2, "{other}");
        }
    }

    #[test]
    fn addresses_that_no_host_can_have_are_left_out() {
        let mut slices = Slices::new("zmq");
        let addresses = ["10.0.0.1", "0.0.0.0", "224.0.0.1", "255.255.255.255"];
        let endpoints = addresses.map(|address| json!({"addresses": [address]}));
        slices.put(&of_zmq("a", json!(endpoints)));
        let names: Vec<_> = slices.endpoints().into_keys().map(|key| key.to_string()).collect();
        assert_eq!(names, ["tcp://10.0.0.1:5555"]);
        assert_eq!(slices.left_out(), Some(addresses[1].parse().unwrap()));
    }

    #[test]
    fn the_addresses_of_an_endpoint_are_bounded() {
        let pod = json!({"uid": "1"});
        let endpoints: Vec<_> =
            (0..100).map(|at| of(pod.clone(), &format!("10.0.0.{at}"))).collect();
        let all = said(&[of_zmq("a", json!(endpoints))]);
        assert_eq!(all.len(), 1);
        assert!(all.values().all(|said| said.addresses.len() == MAX_ADDRESSES));
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
