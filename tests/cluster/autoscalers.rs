//! The programs that autoscalers get their metrics from: metrics-server, prometheus-adapter and
//! KEDA. Each is installed from its own manifests if the cluster lacks its API, and is removed when
//! the returned value is dropped.

use std::fs;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value as Json, json};

use crate::api::{Cluster, OURS, anywhere_with_stdin, kubectl, name, try_kubectl};
use crate::manifests::{self, build_kustomization, use_images};
use crate::wait_within;

/// Time limit for these programs to start. Their first start may take longer than a scenario's
/// usual deadline.
const READY: Duration = Duration::from_secs(300);

/// The namespace of prometheus-adapter, if it is installed.
const ADAPTER: &str = "zmq-echo-adapter";

/// The objects that were installed, if any. They are deleted when this is dropped.
pub struct Installed(Vec<Json>);

impl Drop for Installed {
    fn drop(&mut self) {
        // Namespaces are deleted last, so that everything in them, and whatever KEDA has to clean
        // up, is gone before.
        let (namespaces, others): (Vec<_>, Vec<_>) =
            self.0.drain(..).partition(|object| object["kind"] == "Namespace");
        for objects in [others, namespaces] {
            let args = ["delete", "--ignore-not-found", "--timeout=120s", "--filename", "-"];
            if !objects.is_empty()
                && let Err(error) = anywhere_with_stdin(&args, &list(&objects))
            {
                eprintln!("cannot delete what the test has installed: {error}");
            }
        }
    }
}

fn list(objects: &[Json]) -> String {
    json!({"apiVersion": "v1", "kind": "List", "items": objects}).to_string()
}

/// Creates objects, unless the cluster already has the API that they provide, and waits until the
/// API is available. Objects that exist already are left as they are.
#[track_caller]
fn install(cluster: &Cluster, api: &str, objects: impl FnOnce() -> Vec<Json>) -> Installed {
    if try_kubectl(&["get", "apiservice", api]).is_ok() {
        println!("  {api}: the cluster has it already");
        return Installed(Vec::new());
    }
    let mut objects = objects();
    let (label, value) = OURS.split_once('=').expect("the label has a value");
    for object in &mut objects {
        object["metadata"]["labels"][label] = json!(value);
        use_images(cluster, object);
    }
    // Namespaces and definitions come before the objects that need them.
    let comes_first = |object: &Json| {
        u8::from(object["kind"] != "Namespace" && object["kind"] != "CustomResourceDefinition")
    };
    objects.sort_by_key(comes_first);
    let existing = existing(&objects);
    objects.retain(|object| !existing.contains(&key(object)));
    for (kind, namespace, name) in &existing {
        println!("  the cluster has this already: {kind} {namespace} {name}");
    }
    let installed = Installed(objects);
    anywhere_with_stdin(&["create", "--filename", "-"], &list(&installed.0))
        .unwrap_or_else(|error| panic!("{api}: {error}"));
    wait_within(READY, &format!("{api} is available"), || {
        let args = ["wait", "--for=condition=Available", "--timeout=1s", "apiservice", api];
        try_kubectl(&args).ok()
    });
    installed
}

/// Kind, namespace and name.
type Key = (String, String, String);

fn key(object: &Json) -> Key {
    let text = |value: &Json| value.as_str().unwrap_or_default().to_owned();
    let metadata = &object["metadata"];
    (text(&object["kind"]), text(&metadata["namespace"]), text(&metadata["name"]))
}

/// Those of these objects that the cluster has. They may belong to somebody.
#[track_caller]
fn existing(objects: &[Json]) -> Vec<Key> {
    let args = ["get", "--ignore-not-found", "--filename", "-", "--output", "json"];
    let found = anywhere_with_stdin(&args, &list(objects))
        .unwrap_or_else(|error| panic!("which objects exist: {error}"));
    if found.trim().is_empty() {
        return Vec::new();
    }
    let found: Json = serde_json::from_str(&found).expect("kubectl prints JSON");
    match found["items"].as_array() {
        Some(items) => items.iter().map(key).collect(),
        None => vec![key(&found)],
    }
}

#[track_caller]
fn module<'a>(directory: Option<&'a Path>, flag: &str) -> &'a Path {
    directory.unwrap_or_else(|| {
        panic!("the cluster lacks this program: name the directory of its Go module with {flag}")
    })
}

/// Builds the objects of a kustomization in a directory of a Go module.
#[track_caller]
fn of_module(name: &str, directory: &Path) -> Vec<Json> {
    let directory = fs::canonicalize(directory)
        .unwrap_or_else(|error| panic!("{}: {error}", directory.display()));
    let kustomization = format!(
        "apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\nresources: [{}]\n",
        manifests::from_work(name, &directory)
    );
    build_kustomization(name, &kustomization)
}

pub fn metrics_server(cluster: &Cluster) -> Installed {
    install(cluster, "v1beta1.metrics.k8s.io", || {
        let directory = module(cluster.metrics_server.as_deref(), "--metrics-server");
        let mut objects = of_module("metrics-server", &directory.join("manifests/base"));
        for object in &mut objects {
            if object["kind"] == "Deployment" {
                let args =
                    object["spec"]["template"]["spec"]["containers"][0]["args"].as_array_mut();
                // metrics-server cannot verify the kubelet's certificate on kind and `.ci/cluster`.
                args.expect("the container has args").push(json!("--kubelet-insecure-tls"));
            }
        }
        objects
    })
}

/// Installs KEDA without its admission webhooks, as its minimal release does. The label on its
/// namespace lets it reach Prometheus.
pub fn keda(cluster: &Cluster) -> Installed {
    install(cluster, "v1beta1.external.metrics.k8s.io", || {
        let directory = module(cluster.keda.as_deref(), "--keda");
        let mut objects = of_module("keda", &directory.join("config/minimal"));
        for object in &mut objects {
            if object["kind"] == "Namespace" {
                object["metadata"]["labels"]["zmq-echo/monitoring"] = json!("true");
            }
        }
        objects
    })
}

/// Installs prometheus-adapter with the configuration that its Helm chart would make of the values
/// in `k8s/components/hpa`.
pub fn prometheus_adapter(cluster: &Cluster) -> Installed {
    install(cluster, "v1beta1.custom.metrics.k8s.io", || {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let read = |path: &str| {
            fs::read_to_string(root.join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
        };
        let values = read("k8s/components/hpa/prometheus-adapter-values.yaml");
        let values = manifests::parse(&values).remove(0);
        assert_eq!(values["rules"]["default"], false);
        let prometheus = &values["prometheus"];
        let text = |value: &Json| {
            value.as_str().unwrap_or_else(|| panic!("not a string: {value}")).to_owned()
        };
        let url = format!(
            "{}:{}{}",
            text(&prometheus["url"]),
            prometheus["port"],
            text(&prometheus["path"])
        );
        let interval = text(&values["metricsRelistInterval"]);
        let rules = json!({"rules": values["rules"]["custom"]}).to_string();
        let mut objects =
            manifests::parse(&read("tests/cluster/manifests/prometheus-adapter.yaml"));
        for object in &mut objects {
            if object["kind"] == "ConfigMap" {
                object["data"]["config.yaml"] = json!(rules);
            }
            if object["kind"] == "Deployment" {
                let args = &mut object["spec"]["template"]["spec"]["containers"][0]["args"];
                let args = args.as_array_mut().expect("the container has args");
                args.push(json!(format!("--prometheus-url={url}")));
                args.push(json!(format!("--metrics-relist-interval={interval}")));
            }
            assert!(
                object["metadata"]["namespace"].is_null()
                    || [ADAPTER, "kube-system"]
                        .iter()
                        .any(|one| object["metadata"]["namespace"] == *one),
                "{}",
                name(object)
            );
        }
        objects
    })
}

/// Whether the autoscaler of the service gets the metrics that it asks for.
pub fn knows_its_metrics() -> bool {
    let condition = "jsonpath={.status.conditions[?(@.type==\"ScalingActive\")].status}";
    kubectl(&["get", "hpa", "zmq-echo", "--output", condition]) == "True"
}
