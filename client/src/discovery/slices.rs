//! Turns EndpointSlices into endpoints, without I/O.
//!
//! The endpoints of the best non-empty [`Tier`] get requests, and the others are drained. For
//! terminating endpoints that still serve, kube-proxy does the same. The last tier goes further: if
//! a kubelet is down for a minute, all of its pods count as not ready although they still serve. So
//! a doubtful endpoint is better than none, and the client finds out which of them answer.
//!
//! A dual-stack pod is in two slices, but is one endpoint here.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use tracing::warn;

use super::addresses::is_of_a_host;
use super::answers::{AddressType, Name, Protocol, Slice, Tier};
use super::service_port::PodPort;
use super::{Endpoint, EndpointState, Endpoints, MAX_ENDPOINTS};
use zmtp::printable;

/// The most endpoints that are kept, over all slices. An endpoint may be in several slices while
/// the API moves it.
const MAX_KEPT: usize = 4 * MAX_ENDPOINTS;

/// The most addresses of an endpoint. A pod has one in each family.
const MAX_ADDRESSES: usize = 4;

/// The most ports that an error message lists.
const MAX_NAMED: usize = 10;

/// The slices of one Service, reduced to one of its ports.
#[derive(Debug)]
pub struct Slices {
    port: PodPort,
    /// Endpoints by the name of their slice. A slice without endpoints is not kept.
    slices: BTreeMap<String, Vec<Listed>>,
    kept: usize,
    cut: bool,
    /// Why the last slice does not have the requested port, if so.
    no_port: Option<String>,
    /// Whether that has been logged.
    warned: bool,
    left_out: Option<IpAddr>,
}

impl Slices {
    /// No slices yet, for this port of the Service.
    pub fn new(port: PodPort) -> Self {
        Self {
            port,
            slices: BTreeMap::new(),
            kept: 0,
            cut: false,
            no_port: None,
            warned: false,
            left_out: None,
        }
    }

    /// Adds or replaces a slice. Returns whether its endpoints changed.
    pub fn put(&mut self, slice: &Slice) -> bool {
        let name = slice.metadata.name.as_ref();
        let before = self.take(name);
        let mut endpoints = self.listed(slice);
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

    /// The endpoints of a slice. Logs if they do not have the requested port, because otherwise
    /// they would look like a Service without endpoints.
    fn listed(&mut self, slice: &Slice) -> Vec<Listed> {
        if slice.endpoints.0.is_empty() || slice.address_type == AddressType::Other {
            return Vec::new();
        }
        match port_number(slice, &self.port) {
            Ok(port) => {
                self.no_port = None;
                endpoints(slice, port)
            }
            Err(reason) => {
                if !std::mem::replace(&mut self.warned, true) {
                    warn!(reason, "the endpoints do not have the requested port");
                }
                self.no_port = Some(reason);
                Vec::new()
            }
        }
    }

    /// If there are endpoints, but none has the requested port: which ports they have.
    pub fn no_port(&self) -> Option<&str> {
        self.no_port.as_deref().filter(|_| self.slices.is_empty())
    }

    /// The first address that was ignored because it cannot belong to a host.
    pub fn left_out(&self) -> Option<IpAddr> {
        self.left_out
    }

    /// Removes a slice. Returns whether it had endpoints.
    pub fn remove(&mut self, name: Option<&Name>) -> bool {
        self.no_port = None;
        !self.take(name).is_empty()
    }

    fn take(&mut self, name: Option<&Name>) -> Vec<Listed> {
        let endpoints = self.slices.remove(text(name)).unwrap_or_default();
        self.kept -= endpoints.len();
        endpoints
    }

    /// Whether some endpoints did not fit. If so, only a new list can tell which endpoints exist.
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

    /// All servers by their first address. Those with the same first address are merged: on the
    /// host's network a new pod may have the address of its predecessor, which may still be listed
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

/// An endpoint in a slice.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Listed {
    address: SocketAddr,
    tier: Tier,
    pod: Option<String>,
}

/// What all slices together say about one server.
struct Server {
    tier: Tier,
    /// In the order in which they are tried: IPv4 first.
    addresses: BTreeSet<SocketAddr>,
}

impl Server {
    /// Keeps the better tier, because slices change one after the other.
    fn join(&mut self, other: &Self) {
        self.tier = self.tier.min(other.tier);
        self.addresses.extend(&other.addresses);
    }
}

fn text(name: Option<&Name>) -> &str {
    name.map(Name::as_str).unwrap_or_default()
}

fn endpoints(slice: &Slice, port: u16) -> Vec<Listed> {
    let with_address = slice.endpoints.0.iter().filter_map(|endpoint| {
        let address = SocketAddr::new(endpoint.ip?, port);
        Some(Listed { address, tier: endpoint.tier, pod: endpoint.pod.clone() })
    });
    with_address.collect()
}

/// The number of the requested port, or why the slice does not have it.
fn port_number(slice: &Slice, wanted: &PodPort) -> Result<u16, String> {
    let ports: Vec<_> = tcp_ports(slice).collect();
    let is_meant = |(name, number): &&(&str, u16)| match wanted {
        PodPort::Only => ports.len() == 1,
        PodPort::Named(wanted) => name == wanted,
        PodPort::Numbered(wanted) => number == wanted,
    };
    if let Some((_, number)) = ports.iter().find(is_meant) {
        return Ok(*number);
    }
    let why = match wanted {
        PodPort::Only if ports.is_empty() => return Err("the Service has no TCP port".to_owned()),
        PodPort::Only => "the Service has several TCP ports".to_owned(),
        PodPort::Named(name) => format!("no TCP port is named {name}"),
        PodPort::Numbered(number) => format!("the pods have no TCP port {number}"),
    };
    Err(format!("{why}; the ports are: {}", text_of(&ports)))
}

/// Name and number of each TCP port. The name is empty if the port has none.
fn tcp_ports(slice: &Slice) -> impl Iterator<Item = (&str, u16)> {
    let tcp = |protocol: &Protocol| *protocol == Protocol::Tcp;
    let ports = slice.ports.0.iter();
    ports.filter(move |port| port.protocol.as_ref().is_none_or(tcp)).filter_map(|port| {
        let number = u16::try_from(port.port?).ok().filter(|port| *port != 0)?;
        Some((text(port.name.as_ref()), number))
    })
}

fn text_of(ports: &[(&str, u16)]) -> String {
    let each = ports.iter().take(MAX_NAMED).map(|(name, number)| match *name {
        "" => format!("{number} (unnamed)"),
        name => format!("{} ({number})", printable(name)),
    });
    let mut text = each.collect::<Vec<_>>().join(", ");
    match ports.len() {
        0 => text.push_str("none"),
        count if count > MAX_NAMED => text.push_str(", …"),
        _ => {}
    }
    text
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
        let mut known = Slices::new(PodPort::Named("zmq".to_owned()));
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

    /// An endpoint with this object as its target.
    fn of(target: Value, address: &str) -> Value {
        json!({"addresses": [address], "targetRef": target})
    }

    #[test]
    fn unset_conditions_mean_ready_serving_and_not_terminating() {
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
    fn the_best_tier_with_endpoints_gets_requests() {
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
    fn a_dual_stack_pod_is_one_endpoint() {
        let ports = || json!([{"name": "zmq", "port": 5555}]);
        let named = |name: &str| json!({"kind": "Pod", "namespace": "default", "name": name});
        let with_uid = |uid: &str| json!({"kind": "Pod", "name": "same", "uid": uid});
        for (one, other) in [(named("a"), named("b")), (with_uid("1"), with_uid("2"))] {
            let v4 = [of(one.clone(), "10.0.0.1"), of(other.clone(), "10.0.0.2")];
            let v6 = [of(one.clone(), "fd00::1"), of(other.clone(), "fd00::2")];
            // In either order of the slices.
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
    fn endpoints_are_paired_only_if_known_to_be_the_same_pod() {
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
    fn addresses_that_cannot_belong_to_a_host_are_ignored() {
        let mut slices = Slices::new(PodPort::Named("zmq".to_owned()));
        let addresses = ["10.0.0.1", "0.0.0.0", "224.0.0.1", "255.255.255.255"];
        let endpoints = addresses.map(|address| json!({"addresses": [address]}));
        slices.put(&of_zmq("a", json!(endpoints)));
        let names: Vec<_> = slices.endpoints().into_keys().map(|key| key.to_string()).collect();
        assert_eq!(names, ["tcp://10.0.0.1:5555"]);
        assert_eq!(slices.left_out(), Some(addresses[1].parse().unwrap()));
    }

    #[test]
    fn the_addresses_of_an_endpoint_are_limited() {
        let pod = json!({"uid": "1"});
        let endpoints: Vec<_> =
            (0..100).map(|at| of(pod.clone(), &format!("10.0.0.{at}"))).collect();
        let all = said(&[of_zmq("a", json!(endpoints))]);
        assert_eq!(all.len(), 1);
        assert!(all.values().all(|said| said.addresses.len() == MAX_ADDRESSES));
    }

    /// The port found for endpoints with these ports, or why there is none.
    fn found(wanted: &PodPort, ports: Value) -> Result<String, String> {
        let mut known = Slices::new(wanted.clone());
        known.put(&slice("a", "IPv4", ports, json!([{"addresses": ["10.0.0.1"]}])));
        match (known.endpoints().first_key_value(), known.no_port()) {
            (Some((endpoint, _)), None) => Ok(endpoint.to_string()),
            (None, Some(why)) => Err(why.to_owned()),
            both => panic!("{both:?}"),
        }
    }

    fn ports() -> [Value; 4] {
        let (zmq, http) =
            (json!({"name": "zmq", "port": 7777}), json!({"name": "http", "port": 80}));
        [
            json!([zmq]),
            json!([http, zmq]),
            json!([{"name": "", "port": 7777}]),
            json!([{"port": 7777}]),
        ]
    }

    #[test]
    fn a_port_is_found_by_its_name() {
        let zmq = PodPort::Named("zmq".to_owned());
        let [one, two, unnamed, without] = ports();
        let tcp = json!([{"name": "zmq", "port": 7777, "protocol": "TCP"}]);
        for ports in [one, two, tcp] {
            assert_eq!(found(&zmq, ports).unwrap(), "tcp://10.0.0.1:7777");
        }
        for (ports, there_are) in [
            (unnamed, "7777 (unnamed)"),
            (without, "7777 (unnamed)"),
            (json!([{"name": "http", "port": 80}, {"name": "x", "port": 1}]), "http (80), x (1)"),
            (json!([{"name": "zmq", "port": 7777, "protocol": "UDP"}]), "none"),
            (json!([{"name": "zmq"}]), "none"),
            (json!([{"name": "zmq", "port": 0}]), "none"),
            (json!([]), "none"),
            (json!(null), "none"),
        ] {
            let expected = format!("no TCP port is named zmq; the ports are: {there_are}");
            assert_eq!(found(&zmq, ports.clone()).unwrap_err(), expected, "{ports}");
        }
    }

    #[test]
    fn a_port_is_found_by_its_number() {
        for ports in ports() {
            assert_eq!(
                found(&PodPort::Numbered(7777), ports.clone()).unwrap(),
                "tcp://10.0.0.1:7777"
            );
            let why = found(&PodPort::Numbered(5555), ports).unwrap_err();
            assert!(why.starts_with("the pods have no TCP port 5555; the ports are: "), "{why}");
            assert!(why.contains("7777"), "{why}");
        }
    }

    #[test]
    fn a_single_port_needs_no_name() {
        let [one, several, unnamed, without] = ports();
        let and_udp = json!([{"name": "zmq", "port": 7777}, {"port": 7777, "protocol": "UDP"}]);
        for ports in [one, unnamed, without, and_udp] {
            assert_eq!(found(&PodPort::Only, ports).unwrap(), "tcp://10.0.0.1:7777");
        }
        let why = found(&PodPort::Only, several).unwrap_err();
        assert_eq!(why, "the Service has several TCP ports; the ports are: http (80), zmq (7777)");
        let why = found(&PodPort::Only, json!(null)).unwrap_err();
        assert_eq!(why, "the Service has no TCP port");
        let many: Vec<_> =
            (1..=100).map(|port| json!({"name": "a".repeat(63), "port": port})).collect();
        let why = found(&PodPort::Only, json!(many)).unwrap_err();
        assert!(why.len() < 1000 && why.ends_with("(10), …"), "{why}");
    }

    #[test]
    fn a_missing_port_is_reported_only_while_there_is_no_endpoint() {
        let http = |name| {
            let endpoints = json!([{"addresses": ["10.0.0.2"]}]);
            slice(name, "IPv4", json!([{"name": "http", "port": 80}]), endpoints)
        };
        let with_port = of_zmq("a", json!([{"addresses": ["10.0.0.1"]}]));
        let mut slices = Slices::new(PodPort::Named("zmq".to_owned()));
        slices.put(&with_port);
        slices.put(&http("b"));
        assert_eq!(slices.no_port(), None);
        slices.put(&http("a"));
        assert!(slices.no_port().is_some());
        slices.put(&with_port);
        assert_eq!(slices.no_port(), None);
        // A slice without endpoints has no ports either.
        slices.put(&of_zmq("a", json!([])));
        slices.put(&slice("b", "IPv4", json!(null), json!([])));
        assert_eq!(slices.no_port(), None);
    }

    #[test]
    fn slices_are_merged_and_host_names_are_ignored() {
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
    fn kept_endpoints_are_limited_and_a_cut_is_noticed() {
        let endpoints: Vec<_> = (0..1000u32)
            .map(|at| json!({"addresses": [format!("10.0.{}.{}", at / 250, at % 250)]}))
            .collect();
        let mut slices = Slices::new(PodPort::Named("zmq".to_owned()));
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
    fn only_different_endpoints_count_as_a_change() {
        let endpoints = json!([{"addresses": ["10.0.0.1"]}]);
        let terminating = json!([{"addresses": ["10.0.0.1"], "conditions": {"terminating": true}}]);
        let slice = of_zmq("a", endpoints);
        let mut slices = Slices::new(PodPort::Named("zmq".to_owned()));
        assert!(!slices.put(&of_zmq("a", json!([]))));
        assert!(slices.put(&slice));
        assert!(!slices.put(&slice));
        assert!(slices.put(&of_zmq("a", terminating)));
        assert!(slices.remove(slice.metadata.name.as_ref()));
        assert!(!slices.remove(slice.metadata.name.as_ref()));
    }
}
