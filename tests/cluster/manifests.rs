//! The objects that kustomize builds from `k8s/`, and the few changes that the test makes to them.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;

use serde_json::{Value as Json, json};

use crate::api::{Cluster, SERVER, apply, kubectl, try_kubectl};

/// Builds the objects of a directory below `k8s/`.
#[track_caller]
pub fn build(directory: &str) -> Vec<Json> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("k8s").join(directory);
    parse(&kubectl(&["kustomize", path.to_str().expect("the path is UTF-8")]))
}

/// Builds the objects of a kustomization that is written for the test. Its paths begin with `k8s/`.
#[track_caller]
pub fn build_kustomization(name: &str, kustomization: &str) -> Vec<Json> {
    let directory = work(name);
    fs::create_dir_all(&directory).expect("the target directory can be written");
    let k8s = from_work(name, &Path::new(env!("CARGO_MANIFEST_DIR")).join("k8s"));
    let kustomization = kustomization.replace("k8s/", &format!("{k8s}/"));
    fs::write(directory.join("kustomization.yaml"), kustomization)
        .expect("the file can be written");
    parse(&kubectl(&["kustomize", directory.to_str().expect("the path is UTF-8")]))
}

/// The directory of a kustomization that is written for the test.
fn work(name: &str) -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join("cluster").join(name)
}

/// The relative path to a directory from the kustomization of this name. kustomize accepts no
/// absolute path and follows no link.
pub fn from_work(name: &str, directory: &Path) -> String {
    let up = "../".repeat(work(name).components().count() - 1);
    let directory = directory.to_str().expect("the path is UTF-8");
    format!("{up}{}", directory.trim_start_matches('/'))
}

pub fn parse(yaml: &str) -> Vec<Json> {
    serde_saphyr::from_multiple(yaml).unwrap_or_else(|error| panic!("{error}"))
}

/// Removes the object of this kind, and returns it.
#[track_caller]
pub fn take(objects: &mut Vec<Json>, kind: &str) -> Json {
    let at = objects.iter().position(|object| object["kind"] == kind);
    objects.remove(at.unwrap_or_else(|| panic!("no {kind}")))
}

/// Lowers the CPU requests of an object's pods, because three servers, the load and the cluster's
/// own pods have to fit on two cores.
pub fn ask_for_little(object: &mut Json) {
    let Some(containers) = object.pointer_mut("/spec/template/spec/containers") else { return };
    for container in containers.as_array_mut().into_iter().flatten() {
        container["resources"]["requests"]["cpu"] = json!("50m");
    }
}

/// Replaces the images that the cluster cannot pull, as `--image` says.
pub fn use_images(cluster: &Cluster, object: &mut Json) {
    let Some(containers) = object.pointer_mut("/spec/template/spec/containers") else { return };
    for container in containers.as_array_mut().into_iter().flatten() {
        let image = container["image"].as_str().unwrap_or_default().to_owned();
        if let Some(other) = cluster.image_for(&image) {
            container["image"] = json!(other);
            container["imagePullPolicy"] = json!("IfNotPresent");
        }
    }
}

/// The local overlay, applied without its Job, with three servers ready. Each scenario begins with
/// it as it is in the manifests. It is kept for the next scenario, unless this one fails.
pub struct Deployed<'a> {
    cluster: &'a Cluster,
    pub job: Json,
}

impl<'a> Deployed<'a> {
    #[track_caller]
    pub fn local(cluster: &'a Cluster) -> Self {
        let mut objects = build("overlays/local");
        let job = take(&mut objects, "Job");
        let deployed = Self { cluster, job };
        apply(&objects);
        cluster.wait_for_rollout();
        cluster.wait_for_servers(3);
        deployed
    }
}

impl Drop for Deployed<'_> {
    fn drop(&mut self) {
        self.cluster.is_local.store(true, Ordering::Relaxed);
        if std::thread::panicking() {
            self.cluster.clear();
        }
    }
}

/// A namespace, which is deleted when this is dropped.
pub struct Removed(pub String);

impl Drop for Removed {
    fn drop(&mut self) {
        let in_namespace = ["--namespace", &self.0];
        let kubectl = |args: &[&str]| try_kubectl(&[&in_namespace, args].concat());
        if std::thread::panicking() {
            show(kubectl);
        }
        // The pods are deleted first and almost at once, because nobody watches their drain any
        // more. Kubernetes would check a namespace with pods again only after half of their grace
        // period.
        let _ = kubectl(&["delete", "deployments,jobs", "--all"]);
        let _ = kubectl(&["delete", "pods", "--all", "--grace-period=1"]);
        let deleted =
            kubectl(&["delete", "namespace", &self.0, "--ignore-not-found", "--timeout=240s"]);
        if let Err(error) = deleted {
            eprintln!("cannot delete the namespace {}: {error}", self.0);
        }
    }
}

/// Prints what a person would look at first after a failure.
fn show(kubectl: impl Fn(&[&str]) -> Result<String, String>) {
    for args in [
        &["get", "pods,endpointslices,jobs", "--output", "wide"][..],
        &["get", "events", "--sort-by", ".lastTimestamp"],
        &["logs", "--selector", SERVER, "--tail", "5", "--prefix"],
    ] {
        match kubectl(args) {
            Ok(text) | Err(text) => eprintln!("kubectl {}:\n{text}", args.join(" ")),
        }
    }
}
