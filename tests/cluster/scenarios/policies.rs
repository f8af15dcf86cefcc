//! The network policies, on a cluster that enforces them.

use std::cell::Cell;

use serde_json::{Value as Json, json};

use crate::api::{Cluster, NAME, apply, apply_in, is_ready, kubectl, name};
use crate::fleet::Fleet;
use crate::load::Load;
use crate::manifests::{Deployed, build, build_kustomization};
use crate::other_namespace::{NAME as OTHER, OtherNamespace, pod, restricted};
use crate::wait_for;

const CLIENT: (&str, &str) = ("zmq-echo/client", "true");

pub fn enforced(cluster: &Cluster) {
    let deployed = Deployed::local(cluster);
    let server = cluster.servers().remove(0);
    let ip = server["status"]["podIP"].as_str().expect("the pod has an address");
    let (zeromq, http) = (&format!("tcp://{ip}:5555"), &format!("tcp://{ip}:8080"));

    let probes = Probes { cluster, server: zeromq, echoes: Cell::new(0) };
    everything_is_denied_without_the_policy(&probes, http);
    probes.echoes.set(0);
    let fleet = Fleet::watch(cluster);
    // The load has the clients' label. It resolves names and asks the API under a policy of its
    // own.
    let load = Load::start(cluster, &deployed.job);
    // Denied connections are tried next to allowed ones, so that a network that is down is not
    // taken for a policy.
    let other = OtherNamespace::create();
    probes.expect("a client with the label", NAME, &[CLIENT], &[(zeromq, true), (http, false)]);
    probes.expect("a client without the label", NAME, &[], &[(zeromq, false), (http, false)]);
    let from_other = |what: &str, labels: &[_], endpoints: &[_]| {
        probes.expect(what, OTHER, labels, endpoints);
    };
    from_other("a namespace without a label", &[CLIENT], &[(zeromq, false), (http, false)]);
    other.label("zmq-echo/clients=true");
    from_other("a namespace with clients", &[CLIENT], &[(zeromq, true), (http, false)]);
    from_other("a pod without the label in that namespace", &[], &[(zeromq, false), (http, false)]);
    other.label("zmq-echo/monitoring=true");
    from_other("a namespace that monitors", &[], &[(zeromq, false), (http, true)]);

    job_is_let_out_as_far_as_it_must(&probes, http);
    prometheus_of_the_component_is_let_in(&probes, http);
    drop(other);

    let mut outcome = load.finish();
    outcome.probes += probes.echoes.get();
    fleet.accounts_for(&[outcome]);
}

/// Without the policy that lets clients in, the one that denies everything is left. This comes
/// first, because on a cluster that enforces no policy the rest would prove nothing.
#[track_caller]
fn everything_is_denied_without_the_policy(probes: &Probes, http: &str) {
    let Probes { cluster, server: zeromq, .. } = *probes;
    let policies = build("overlays/local");
    let is_servers = |object: &&Json| {
        object["kind"] == "NetworkPolicy" && object["metadata"]["name"] == "zmq-echo-server"
    };
    let policy = policies.iter().find(is_servers).expect("the servers' policy").clone();
    kubectl(&["delete", "networkpolicy", "zmq-echo-server"]);
    probes.expect(
        "a client without that policy",
        NAME,
        &[CLIENT],
        &[(zeromq, false), (http, false)],
    );
    assert_eq!(
        cluster.ready_servers().len(),
        3,
        "the kubelet's probes pass even if all clients are denied"
    );
    apply(&[policy]);
    probes.expect(
        "a client with the policy again",
        NAME,
        &[CLIENT],
        &[(zeromq, true), (http, false)],
    );
}

/// The Job may connect to the servers, to the ports of name servers and API servers on any host,
/// and to nothing else. Two servers in the other namespace, which has no policy, listen at ports of
/// each kind.
#[track_caller]
fn job_is_let_out_as_far_as_it_must(probes: &Probes, http: &str) {
    let Probes { cluster, server: zeromq, .. } = *probes;
    let address = |path: &str| {
        let address = &cluster.get(path)["spec"]["clusterIP"];
        address.as_str().unwrap_or_else(|| panic!("{path}: {address}")).to_owned()
    };
    let api = format!("tcp://{}:443", address("/api/v1/namespaces/default/services/kubernetes"));
    let dns = format!("tcp://{}:53", address("/api/v1/namespaces/kube-system/services/kube-dns"));
    let first = listens(cluster, "first", 5353, 9999);
    let second = listens(cluster, "second", 8443, 5555);
    let at = |ip: &str, port: u16| format!("tcp://{ip}:{port}");
    let (name_server, none) = (&at(&first, 5353), &at(&first, 9999));
    let (api_server, server) = (&at(&second, 8443), &at(&second, 5555));
    probes.expect(
        "a pod without a policy",
        OTHER,
        &[],
        &[(name_server, true), (none, true), (api_server, true), (server, true)],
    );
    probes.expect(
        "the Job",
        NAME,
        &[JOB.0, JOB.1, CLIENT],
        &[
            (zeromq, true),
            (http, false),
            (&api, true),
            (&dns, true),
            (name_server, true),
            (api_server, true),
            (none, false),
            (server, false),
        ],
    );
}

/// The component's policies let its Prometheus in. Without them it is a pod like any other.
#[track_caller]
fn prometheus_of_the_component_is_let_in(probes: &Probes, http: &str) {
    let zeromq = probes.server;
    let labels = [("app.kubernetes.io/name", "zmq-echo-prometheus"), JOB.1];
    probes.expect("Prometheus without its policy", NAME, &labels, &[(http, false)]);
    let kustomization = "apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\n\
                         namespace: zmq-echo\ncomponents: [k8s/components/prometheus]\n";
    let mut policies = build_kustomization("prometheus-policies", kustomization);
    policies.retain(|object| object["kind"] == "NetworkPolicy");
    apply(&policies);
    probes.expect("Prometheus", NAME, &labels, &[(http, true), (zeromq, false)]);
    probes.expect("a client beside Prometheus", NAME, &[CLIENT], &[(zeromq, true), (http, false)]);
    for policy in &policies {
        kubectl(&["delete", "networkpolicy", name(policy)]);
    }
}

/// The labels by which the Job's policy selects its pods.
const JOB: ((&str, &str), (&str, &str)) =
    (("app.kubernetes.io/name", "zmq-echo-load"), ("app.kubernetes.io/instance", "zmq-echo"));

/// Probes of one server, and of other endpoints.
struct Probes<'a> {
    cluster: &'a Cluster,
    server: &'a str,
    /// How many probes the server has answered. It counts those from another host as clients.
    echoes: Cell<u64>,
}

impl Probes<'_> {
    /// Waits until a pod with these labels can connect to exactly those endpoints that are marked
    /// with `true`. The rules for a pod may take effect only some time after it has started.
    #[track_caller]
    fn expect(
        &self,
        what: &str,
        namespace: &str,
        labels: &[(&str, &str)],
        endpoints: &[(&str, bool)],
    ) {
        let names: Vec<_> = endpoints.iter().map(|(endpoint, _)| *endpoint).collect();
        let expected: Vec<_> = endpoints.iter().map(|(_, connects)| *connects).collect();
        let mut last = Vec::new();
        wait_for(&format!("{what} connects only where it may: {endpoints:?}"), || {
            last = self.connects(namespace, labels, &names);
            if last != expected {
                println!("  {what}, not yet: {last:?}");
            }
            (last == expected).then_some(())
        });
        println!(
            "  {what}: {} allowed, {} denied",
            count(&expected, true),
            count(&expected, false)
        );
    }

    /// Returns to which endpoints a pod with these labels can connect. Each of its containers runs
    /// the probe on one endpoint, and the probe's output says at which step it failed. A connection
    /// counts even if the handshake fails.
    #[track_caller]
    fn connects(&self, namespace: &str, labels: &[(&str, &str)], endpoints: &[&str]) -> Vec<bool> {
        let containers = endpoints.iter().enumerate().map(|(number, endpoint)| {
            let mut container = restricted(&format!("probe-{number}"));
            container["command"] = json!(["/zmq-echo-probe"]);
            container["args"] = json!(["--endpoint", endpoint, "--timeout", "3s"]);
            container
        });
        let mut pod = pod("probe", namespace, labels, containers.collect());
        pod["spec"]["initContainers"] = json!([first_of_all()]);
        kubectl(&["delete", "pod", "probe", "--namespace", namespace, "--ignore-not-found"]);
        apply_in(namespace, &[pod]);
        let path = format!("/api/v1/namespaces/{namespace}/pods/probe");
        let mut ended = wait_for("the probes end", || {
            let mut pod = self.cluster.get(&path);
            let statuses = pod["status"]["containerStatuses"].take();
            let ended = |status: &Json| !status["state"]["terminated"].is_null();
            let statuses = statuses.as_array()?.clone();
            (statuses.len() == endpoints.len() && statuses.iter().all(ended)).then_some(statuses)
        });
        kubectl(&["delete", "pod", "probe", "--namespace", namespace]);
        let number = |status: &Json| -> usize {
            let name = status["name"].as_str().expect("the status has a name");
            name.trim_start_matches("probe-").parse().expect("the name ends with a number")
        };
        ended.sort_by_key(number);
        let is_connected = |(status, endpoint): (&Json, &&str)| {
            let ended = &status["state"]["terminated"];
            let message = ended["message"].as_str().unwrap_or_default();
            assert!(ended["exitCode"] == 0 || message.contains(" failed after "), "{ended}");
            let is_echoed = ended["exitCode"] == 0;
            self.echoes.update(|echoes| echoes + u64::from(is_echoed && *endpoint == self.server));
            is_echoed || !message.contains(": connect failed after ")
        };
        ended.iter().zip(endpoints).map(is_connected).collect()
    }
}

fn count(list: &[bool], value: bool) -> usize {
    list.iter().filter(|one| **one == value).count()
}

/// Delays the probes after the start of their pod, until the policies' rules know its address. Before
/// that, it may connect to everything if a policy limits what it may send, and servers deny it even
/// if a policy lets it in. Such a denial would hide that a policy lets in too much.
fn first_of_all() -> Json {
    let mut container = restricted("first");
    container["restartPolicy"] = json!("Always");
    container["startupProbe"] =
        json!({"tcpSocket": {"port": 5555}, "initialDelaySeconds": 6, "periodSeconds": 1});
    container
}

/// Starts a server in the other namespace that listens at two ports, and returns its address.
#[track_caller]
fn listens(cluster: &Cluster, called: &str, zeromq: u16, http: u16) -> String {
    let mut container = restricted("server");
    container["args"] =
        json!(["--bind", format!("tcp://*:{zeromq}"), "--http", format!("*:{http}")]);
    container["readinessProbe"] = json!({"tcpSocket": {"port": zeromq}, "periodSeconds": 1});
    apply_in(OTHER, &[pod(called, OTHER, &[], vec![container])]);
    let path = format!("/api/v1/namespaces/{OTHER}/pods/{called}");
    wait_for("the other server is ready", || {
        let pod = cluster.get(&path);
        is_ready(&pod)
            .then(|| pod["status"]["podIP"].as_str().expect("the pod has an address").to_owned())
    })
}
