//! Every overlay, and every permitted combination of components, on the cluster.

use std::thread;

use serde_json::{Value as Json, json};

use crate::api::{
    Cluster, NAME, OURS, apply_in, container, kubectl, name, try_kubectl, with_stdin,
};
use crate::load::follow;
use crate::manifests::{Removed, ask_for_little, build, build_kustomization, use_images};
use crate::wait_for;

/// Components of one list exclude each other, except that both kinds of metrics can be used.
/// `zones` has a scenario of its own. `openshift` removes user ids that only OpenShift sets again.
const METRICS: [&[&str]; 4] =
    [&[], &["prometheus"], &["monitoring"], &["prometheus", "monitoring"]];
const AUTOSCALERS: [Option<&str>; 3] = [None, Some("hpa"), Some("keda")];
const LOAD: [Option<&str>; 2] = [None, Some("load")];

/// One after the other, because all overlays name the same namespace.
pub fn overlays(cluster: &Cluster) {
    cluster.needs_crds();
    cluster.clear();
    for overlay in ["local", "autoscaled", "production"] {
        becomes_ready(cluster, NAME, overlay, build(&format!("overlays/{overlay}")));
    }
}

/// Each combination has a namespace of its own. Those with the same metrics run at the same time.
pub fn combinations(cluster: &Cluster) {
    cluster.needs_crds();
    cluster.clear();
    for metrics in METRICS {
        let rest = AUTOSCALERS.into_iter().flat_map(|one| LOAD.map(|load| [one, load]));
        thread::scope(|scope| {
            let running: Vec<_> = rest
                .map(|chosen| {
                    let chosen =
                        metrics.iter().copied().chain(chosen.into_iter().flatten()).collect();
                    scope.spawn(move || combination(cluster, chosen))
                })
                .collect();
            let failed = running.into_iter().filter_map(|one| one.join().err()).count();
            assert_eq!(failed, 0, "some combinations failed");
        });
    }
}

fn combination(cluster: &Cluster, chosen: Vec<&str>) {
    let called = ["base"].into_iter().chain(chosen.iter().copied()).collect::<Vec<_>>().join("-");
    let namespace = format!("{NAME}-{called}");
    let components = chosen.iter().map(|name| format!("k8s/components/{name}"));
    let components = components.collect::<Vec<_>>().join(", ");
    let mut kustomization = format!(
        "apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\n\
         namespace: {namespace}\nresources: [k8s/base]\ncomponents: [{components}]\n"
    );
    let asks_own = ["keda", "prometheus"].iter().all(|one| chosen.contains(one));
    if asks_own {
        // As the component says, because this overlay has its own namespace.
        kustomization.push_str("transformers: [k8s/components/keda/own-prometheus]\n");
    }
    let objects = build_kustomization(&called, &kustomization);
    if asks_own {
        let scaled = objects.iter().find(|object| object["kind"] == "ScaledObject");
        let triggers = scaled.expect("there is a ScaledObject")["spec"]["triggers"].clone();
        let triggers = triggers.as_array().expect("it has triggers").iter();
        let addresses = triggers.filter_map(|one| one["metadata"]["serverAddress"].as_str());
        let address = format!("http://zmq-echo-prometheus.{namespace}.svc:9090");
        assert_eq!(addresses.collect::<Vec<_>>(), [&address; 2], "{called}");
    }
    becomes_ready(cluster, &namespace, &called, objects);
}

/// Spreading over zones needs nodes that have a zone. Nodes without one get one during this
/// scenario.
pub fn zones(cluster: &Cluster) {
    cluster.clear();
    let zone = Zone::label();
    let kustomization = "apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\n\
                         resources: [k8s/overlays/production]\ncomponents: [k8s/components/zones]\n";
    becomes_ready(cluster, NAME, "production-zones", build_kustomization("zones", kustomization));
    drop(zone);
}

const ZONE: &str = "topology.kubernetes.io/zone";

/// The nodes that had no zone. They lose it again when this is dropped.
struct Zone(Vec<String>);

impl Zone {
    #[track_caller]
    fn label() -> Self {
        let without = format!("!{ZONE}");
        let nodes = kubectl(&["get", "nodes", "--selector", &without, "--output", "name"]);
        let labelled = Self(nodes.lines().map(str::to_owned).collect());
        for node in &labelled.0 {
            kubectl(&["label", node, &format!("{ZONE}=cluster-test")]);
        }
        labelled
    }
}

impl Drop for Zone {
    fn drop(&mut self) {
        for node in &self.0 {
            let _ = try_kubectl(&["label", node, &format!("{ZONE}-")]);
        }
    }
}

/// Applies objects, changed only in their CPU requests and in images that the cluster cannot pull.
/// Checks that every Deployment becomes available, that the Job's requests are answered if there is
/// a Job, and that nothing in the cluster differs from what was applied.
#[track_caller]
fn becomes_ready(cluster: &Cluster, namespace: &str, called: &str, mut objects: Vec<Json>) {
    for object in &mut objects {
        ask_for_little(object);
        use_images(cluster, object);
    }
    // Fails if the namespace exists. Only then is it ours to delete.
    kubectl(&["create", "namespace", namespace]);
    let removed = Removed(namespace.to_owned());
    kubectl(&["label", "namespace", namespace, OURS]);
    apply_in(namespace, &objects);
    let kubectl = |args: &[&str]| kubectl(&[&["--namespace", namespace], args].concat());
    let deployments: Vec<_> = objects
        .iter()
        .filter(|object| object["kind"] == "Deployment")
        .map(|object| format!("deployment/{}", name(object)))
        .collect();
    for deployment in &deployments {
        kubectl(&["rollout", "status", deployment, "--timeout=240s"]);
    }
    let has_load = objects.iter().any(|object| object["kind"] == "Job");
    let load = has_load.then(|| {
        wait_for("the load runs", || {
            let pods = cluster.list_in(namespace, "pods", "job-name=zmq-echo-load");
            let state = &container(pods.first()?)["state"];
            assert!(state["terminated"].is_null(), "{called}: the load has ended: {state}");
            (!state["running"].is_null()).then(|| name(&pods[0]).to_owned())
        })
    });
    let list = json!({"apiVersion": "v1", "kind": "List", "items": objects}).to_string();
    let difference = with_stdin(&["diff", "--namespace", namespace, "--filename", "-"], &list);
    assert_eq!(difference.as_deref(), Ok(""), "{called}");
    if let Some(pod) = load {
        load_fails_no_request(cluster, namespace, called, &pod);
    }
    println!("  {called}: {} ready, {} objects", deployments.join(", "), objects.len());
    drop(removed);
}

/// Ends the Job, which runs as the manifests say, and checks its table.
#[track_caller]
fn load_fails_no_request(cluster: &Cluster, namespace: &str, called: &str, pod: &str) {
    let log = follow(cluster, namespace, pod);
    kubectl(&["delete", "job", "zmq-echo-load", "--namespace", namespace, "--wait=false"]);
    let log = log.join().expect("the log can be read");
    let number = |row: &str| -> Option<u64> {
        let mut rows = log.iter().map(|line| line.split_whitespace());
        rows.find_map(|mut words| (words.next() == Some(row)).then(|| words.next())?)?.parse().ok()
    };
    let (answered, failed) = (number("answered"), number("failed"));
    let is_right = answered.is_some_and(|answered| answered > 0) && failed == Some(0);
    assert!(is_right, "{called}: {}", log.join("\n"));
}
