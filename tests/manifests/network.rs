//! The network policies admit exactly the traffic that the Deployment serves, only from the pods
//! that should send it.

use std::collections::BTreeSet;

use k8s_openapi::api::networking::v1::{NetworkPolicy, NetworkPolicyPeer, NetworkPolicyPort};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use crate::build::{NAME, Pod, Variant, variant, variants};
use crate::labels::selects;
use crate::monitoring::PROMETHEUS;

/// Where API servers listen: behind most Services, of kubeadm, of minikube, of MicroK8s.
const API: [i32; 4] = [443, 6443, 8443, 16443];

const CLIENT: &str = "zmq-echo/client";

fn policies_of(variant: &Variant, pod: &Pod) -> Vec<NetworkPolicy> {
    let mut policies = variant.all::<NetworkPolicy>();
    policies.retain(|policy| {
        selects(policy.spec.as_ref().unwrap().pod_selector.as_ref().unwrap(), pod)
    });
    policies
}

fn named_pod(variant: &Variant, name: &str) -> Pod {
    let mut pods = variant.pods();
    pods.retain(|pod| pod.label("app.kubernetes.io/name") == Some(name));
    pods.remove(0)
}

/// Which pods may reach which ports of the server.
fn ingress_of_the_server(variant: &Variant) -> Vec<(Vec<NetworkPolicyPeer>, BTreeSet<i32>)> {
    let policies = policies_of(variant, &named_pod(variant, NAME));
    let rules = policies.into_iter().flat_map(|policy| policy.spec.unwrap().ingress);
    let rules = rules.flatten();
    rules
        .map(|rule| (rule.from.unwrap_or_default(), tcp(&rule.ports.unwrap_or_default())))
        .collect()
}

/// The numbers of TCP ports. No other protocol is used here.
fn tcp(ports: &[NetworkPolicyPort]) -> BTreeSet<i32> {
    let ports = ports.iter().map(|port| {
        assert_eq!(port.protocol.as_deref(), Some("TCP"));
        assert_eq!(port.end_port, None);
        number(port)
    });
    ports.collect()
}

fn number(port: &NetworkPolicyPort) -> i32 {
    match port.port {
        Some(IntOrString::Int(number)) => number,
        ref other => {
            panic!("a port must be a number, because not every network resolves names: {other:?}")
        }
    }
}

fn labels(
    selector: Option<&k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector>,
) -> Vec<&str> {
    let labels = selector.and_then(|selector| selector.match_labels.as_ref());
    labels
        .into_iter()
        .flatten()
        .filter(|(_, value)| *value == "true")
        .map(|(name, _)| name.as_str())
        .collect()
}

#[test]
fn all_traffic_that_no_policy_names_is_denied() {
    for variant in variants() {
        let policy: NetworkPolicy = variant.named("zmq-echo-default-deny");
        let spec = policy.spec.unwrap();
        assert_eq!(spec.policy_types, Some(vec!["Ingress".to_owned(), "Egress".to_owned()]));
        assert_eq!((spec.ingress, spec.egress), (None, None));
        for pod in variant.pods() {
            assert!(
                selects(spec.pod_selector.as_ref().unwrap(), &pod),
                "{} is not covered by the policy",
                pod.origin
            );
        }
    }
}

#[test]
fn the_policies_admit_exactly_the_ports_of_the_deployment() {
    for variant in variants() {
        let server = variant.server();
        let opened: BTreeSet<_> =
            server.container().ports.iter().flatten().map(|port| port.container_port).collect();
        let let_in: BTreeSet<_> =
            ingress_of_the_server(variant).into_iter().flat_map(|(_, ports)| ports).collect();
        assert_eq!(let_in, opened, "{}", variant.name);
    }
}

#[test]
fn each_port_admits_only_pods_with_its_label() {
    let variant = variant("base");
    let server = variant.server();
    let rules = ingress_of_the_server(variant);
    let [(clients, zeromq), (monitoring, http)] = &rules[..] else { panic!("{rules:?}") };

    assert_eq!(*zeromq, BTreeSet::from([server.port("zeromq")]));
    let [here, elsewhere] = &clients[..] else { panic!("{clients:?}") };
    assert_eq!(labels(here.pod_selector.as_ref()), [CLIENT]);
    assert_eq!(here.namespace_selector, None);
    assert_eq!(labels(elsewhere.pod_selector.as_ref()), [CLIENT]);
    assert_eq!(labels(elsewhere.namespace_selector.as_ref()), ["zmq-echo/clients"]);

    assert_eq!(*http, BTreeSet::from([server.port("http")]));
    let [namespace] = &monitoring[..] else { panic!("{monitoring:?}") };
    assert_eq!(labels(namespace.namespace_selector.as_ref()), ["zmq-echo/monitoring"]);
    assert_eq!(namespace.pod_selector, None);
}

#[test]
fn no_pod_is_admitted_without_a_label() {
    for variant in variants() {
        for (peers, _) in ingress_of_the_server(variant) {
            assert!(!peers.is_empty(), "{}: an empty list of peers admits everyone", variant.name);
            for peer in peers {
                assert_eq!(peer.ip_block, None, "{}", variant.name);
                let selectors = [&peer.pod_selector, &peer.namespace_selector];
                let labels = selectors
                    .into_iter()
                    .flatten()
                    .flat_map(|one| one.match_labels.iter().flatten());
                assert!(
                    labels.count() > 0,
                    "{}: a selector without labels admits everyone: {peer:?}",
                    variant.name
                );
            }
        }
    }
}

#[test]
fn the_server_has_no_egress() {
    for variant in variants() {
        for policy in policies_of(variant, &named_pod(variant, NAME)) {
            assert_eq!(policy.spec.unwrap().egress, None, "{}", variant.name);
        }
    }
}

#[test]
fn the_load_reaches_the_server_and_the_ports_of_dns_and_api_servers_and_no_other() {
    let variant = variant("components-load");
    let load = named_pod(variant, "zmq-echo-load");
    assert_eq!(load.label(CLIENT), Some("true"));
    let policies = policies_of(variant, &load);
    let rules: Vec<_> =
        policies.into_iter().filter_map(|policy| policy.spec?.egress).flatten().collect();
    let [server, names, api] = &rules[..] else { panic!("{rules:?}") };

    let to = server.to.as_ref().unwrap();
    assert_eq!(to.len(), 1);
    assert!(selects(to[0].pod_selector.as_ref().unwrap(), &named_pod(variant, NAME)));
    let zeromq = variant.server().port("zeromq");
    assert_eq!(tcp(server.ports.as_ref().unwrap()), BTreeSet::from([zeromq]));

    let ports: Vec<_> = names
        .ports
        .iter()
        .flatten()
        .map(|port| (number(port), port.protocol.as_deref().unwrap()))
        .collect();
    assert_eq!(ports, [(53, "UDP"), (53, "TCP"), (5353, "UDP"), (5353, "TCP")]);
    // DNS may be served by a pod, by the node's cache or by the cloud.
    assert_eq!(names.to, None);

    assert_eq!(tcp(api.ports.as_ref().unwrap()), BTreeSet::from(API));
    assert_eq!(api.to, None);
}

#[test]
fn prometheus_reaches_the_metrics_and_the_api_and_is_reached_from_monitoring_alone() {
    let variant = variant("components-prometheus");
    let prometheus = named_pod(variant, PROMETHEUS);
    let specs: Vec<_> = policies_of(variant, &prometheus)
        .into_iter()
        .filter_map(|policy| policy.spec)
        .filter(|spec| spec.egress.is_some() || spec.ingress.is_some())
        .collect();
    let [policy] = &specs[..] else { panic!("expected one policy, got {}", specs.len()) };
    let [server, api] = &policy.egress.as_ref().unwrap()[..] else {
        panic!("expected egress to the server and the API only")
    };
    let to = server.to.as_ref().unwrap();
    assert_eq!(to.len(), 1);
    assert!(selects(to[0].pod_selector.as_ref().unwrap(), &named_pod(variant, NAME)));
    let http = variant.server().port("http");
    assert_eq!(tcp(server.ports.as_ref().unwrap()), BTreeSet::from([http]));
    assert_eq!(tcp(api.ports.as_ref().unwrap()), BTreeSet::from(API));
    assert_eq!(api.to, None);

    let [rule] = &policy.ingress.as_ref().unwrap()[..] else { panic!("expected one ingress rule") };
    let [from] = &rule.from.as_ref().unwrap()[..] else { panic!("expected one source of traffic") };
    assert_eq!(labels(from.namespace_selector.as_ref()), ["zmq-echo/monitoring"]);
    let opened = prometheus.spec.containers[0].ports.as_ref().unwrap()[0].container_port;
    assert_eq!(tcp(rule.ports.as_ref().unwrap()), BTreeSet::from([opened]));
}

#[test]
fn the_server_lets_prometheus_in_to_its_metrics() {
    let variant = variant("components-prometheus");
    let prometheus = named_pod(variant, PROMETHEUS);
    let http = BTreeSet::from([variant.server().port("http")]);
    let rules = ingress_of_the_server(variant);
    let lets_in = |peer: &NetworkPolicyPeer| {
        peer.namespace_selector.is_none()
            && peer.pod_selector.as_ref().is_some_and(|selector| selects(selector, &prometheus))
    };
    let ports: Vec<_> = rules
        .into_iter()
        .filter(|(peers, _)| peers.iter().any(lets_in))
        .map(|(_, ports)| ports)
        .collect();
    assert_eq!(ports, [http]);
}
