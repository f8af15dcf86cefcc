//! Every overlay, and every combination of components that may be combined, on the cluster.

use serde_json::{Value as Json, json};

use crate::api::{Cluster, apply, container, kubectl, name, try_kubectl, with_stdin};
use crate::load::follow;
use crate::manifests::{Removed, ask_for_little, build, build_kustomization};
use crate::wait_for;

/// Components of which one excludes the others.
const METRICS: [Option<&str>; 3] = [None, Some("prometheus"), Some("monitoring")];
const AUTOSCALERS: [Option<&str>; 3] = [None, Some("hpa"), Some("keda")];
const LOAD: [Option<&str>; 2] = [None, Some("load")];

pub fn overlays(cluster: &Cluster) {
    cluster.needs_crds();
    for overlay in ["local", "autoscaled", "production"] {
        becomes_ready(cluster, overlay, build(&format!("overlays/{overlay}")));
    }
}

pub fn combinations(cluster: &Cluster) {
    cluster.needs_crds();
    for metrics in METRICS {
        for autoscaler in AUTOSCALERS {
            for load in LOAD {
                let chosen: Vec<_> = [metrics, autoscaler, load].into_iter().flatten().collect();
                let called = ["base"].iter().chain(&chosen).copied().collect::<Vec<_>>().join("+");
                let components = chosen.iter().map(|name| format!("k8s/components/{name}"));
                let components = components.collect::<Vec<_>>().join(", ");
                let kustomization = format!(
                    "apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\n\
                     namespace: zmq-echo\nresources: [k8s/base]\ncomponents: [{components}]\n"
                );
                becomes_ready(cluster, &called, build_kustomization(&called, &kustomization));
            }
        }
    }
}

/// Spreading over zones needs nodes that have one: those without get one for the time of this.
pub fn zones(cluster: &Cluster) {
    let zone = Zone::label();
    let kustomization = "apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\n\
                         resources: [k8s/overlays/production]\ncomponents: [k8s/components/zones]\n";
    becomes_ready(cluster, "production+zones", build_kustomization("zones", kustomization));
    drop(zone);
}

const ZONE: &str = "topology.kubernetes.io/zone";

/// The nodes that had no zone, which lose it again.
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

/// Applies objects, changed only in what they ask of the CPU and in the name of Prometheus's
/// image, if the cluster cannot pull it. Every Deployment becomes available, a load is answered,
/// and nothing differs afterwards from what was applied.
#[track_caller]
fn becomes_ready(cluster: &Cluster, called: &str, mut objects: Vec<Json>) {
    for object in &mut objects {
        ask_for_little(object);
        if let (Some(image), "Deployment/zmq-echo-prometheus") =
            (&cluster.prometheus_image, kind_and_name(object).as_str())
        {
            object["spec"]["template"]["spec"]["containers"][0]["image"] = json!(image);
        }
    }
    let removed = Removed;
    if !objects.iter().any(|object| object["kind"] == "Namespace") {
        kubectl(&["create", "namespace", "zmq-echo"]);
    }
    apply(&objects);
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
            let pods = cluster.list("pods", "job-name=zmq-echo-load");
            let state = &container(pods.first()?)["state"];
            assert!(state["terminated"].is_null(), "{called}: the load has ended: {state}");
            (!state["running"].is_null()).then(|| name(&pods[0]).to_owned())
        })
    });
    let list = json!({"apiVersion": "v1", "kind": "List", "items": objects}).to_string();
    let difference = with_stdin(&["diff", "--filename", "-"], &list);
    assert_eq!(difference.as_deref(), Ok(""), "{called}");
    if let Some(pod) = load {
        load_fails_no_request(cluster, called, &pod);
    }
    println!("  {called}: {} ready, {} objects", deployments.join(", "), objects.len());
    drop(removed);
}

/// Ends the Job, as it is in the manifests, and reads its table.
#[track_caller]
fn load_fails_no_request(cluster: &Cluster, called: &str, pod: &str) {
    let log = follow(cluster, pod);
    kubectl(&["delete", "job", "zmq-echo-load", "--wait=false"]);
    let log = log.join().expect("the log can be read");
    assert!(log.iter().any(|line| is_failed(line, "0")), "{called}: {}", log.join("\n"));
}

/// Whether a line of the table counts the failed requests as this.
fn is_failed(line: &str, count: &str) -> bool {
    let mut words = line.split_whitespace();
    words.next() == Some("failed") && words.next() == Some(count)
}

fn kind_and_name(object: &Json) -> String {
    format!("{}/{}", object["kind"].as_str().unwrap_or_default(), name(object))
}
