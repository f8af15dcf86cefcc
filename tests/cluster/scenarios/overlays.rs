//! Every overlay, and every permitted combination of components, on the cluster.

use std::thread;

use serde_json::{Value as Json, json};

use crate::api::{
    Cluster, NAME, OURS, apply_in, container, kubectl, name, try_kubectl, with_stdin,
};
use crate::load::follow;
use crate::manifests::{Removed, ask_for_little, build, build_kustomization, use_images};
use crate::wait_for;

/// Components of one list exclude each other.
const METRICS: [Option<&str>; 3] = [None, Some("prometheus"), Some("monitoring")];
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
        let rest = AUTOSCALERS.into_iter().flat_map(|one| LOAD.map(|load| [metrics, one, load]));
        thread::scope(|scope| {
            let running: Vec<_> = rest
                .map(|chosen| {
                    let chosen = chosen.into_iter().flatten().collect();
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
    let kustomization = format!(
        "apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\n\
         namespace: {namespace}\nresources: [k8s/base]\ncomponents: [{components}]\n"
    );
    becomes_ready(cluster, &namespace, &called, build_kustomization(&called, &kustomization));
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
    let removed = Removed(namespace.to_owned());
    if !objects.iter().any(|object| object["kind"] == "Namespace") {
        kubectl(&["create", "namespace", namespace]);
        kubectl(&["label", "namespace", namespace, OURS]);
    }
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
    assert!(log.iter().any(|line| is_failed(line, "0")), "{called}: {}", log.join("\n"));
}

/// Whether a line of the table says that this many requests failed.
fn is_failed(line: &str, count: &str) -> bool {
    let mut words = line.split_whitespace();
    words.next() == Some("failed") && words.next() == Some(count)
}
