//! What kustomize makes of `k8s/`, and the few things that a test changes in it.

use std::fs;
use std::path::Path;

use serde_json::{Value as Json, json};

use crate::api::{Cluster, NAME, SERVER, apply, kubectl, try_kubectl};

/// The objects of a directory below `k8s/`.
#[track_caller]
pub fn build(directory: &str) -> Vec<Json> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("k8s").join(directory);
    parse(&kubectl(&["kustomize", path.to_str().expect("text")]))
}

/// The objects of a kustomization that is written for the test; its paths start at `k8s/`.
#[track_caller]
pub fn build_kustomization(name: &str, kustomization: &str) -> Vec<Json> {
    let work = Path::new(env!("CARGO_TARGET_TMPDIR")).join("cluster");
    let directory = work.join(name);
    fs::create_dir_all(&directory).expect("the target directory can be written");
    // kustomize reads directories that are beside its own, through no link.
    let up = "../".repeat(directory.components().count() - 1);
    let k8s = format!("{up}{}/k8s", env!("CARGO_MANIFEST_DIR").trim_start_matches('/'));
    let kustomization = kustomization.replace("k8s/", &format!("{k8s}/"));
    fs::write(directory.join("kustomization.yaml"), kustomization).expect("it can be written");
    parse(&kubectl(&["kustomize", directory.to_str().expect("text")]))
}

fn parse(yaml: &str) -> Vec<Json> {
    serde_saphyr::from_multiple(yaml).unwrap_or_else(|error| panic!("{error}"))
}

/// Takes one object out of others.
#[track_caller]
pub fn take(objects: &mut Vec<Json>, kind: &str) -> Json {
    let at = objects.iter().position(|object| object["kind"] == kind);
    objects.remove(at.unwrap_or_else(|| panic!("no {kind}")))
}

/// Lets the pods of an object ask for no more than a share of a core: three servers, the load
/// and what a cluster runs beside them have two cores here.
pub fn ask_for_little(object: &mut Json) {
    let Some(containers) = object.pointer_mut("/spec/template/spec/containers") else { return };
    for container in containers.as_array_mut().into_iter().flatten() {
        container["resources"]["requests"]["cpu"] = json!("50m");
    }
}

/// What the local overlay makes, applied without its Job, with three servers ready. It is
/// removed at the end.
pub struct Deployed {
    pub job: Json,
}

impl Deployed {
    #[track_caller]
    pub fn local(cluster: &Cluster) -> Self {
        let mut objects = build("overlays/local");
        let job = take(&mut objects, "Job");
        Self::apply(cluster, &objects, 3);
        Self { job }
    }

    #[track_caller]
    fn apply(cluster: &Cluster, objects: &[Json], servers: usize) {
        let deployed = Removed;
        apply(objects);
        cluster.wait_for_rollout();
        cluster.wait_for_servers(servers);
        std::mem::forget(deployed);
    }
}

impl Drop for Deployed {
    fn drop(&mut self) {
        drop(Removed);
    }
}

/// Deletes the namespace when it goes.
pub struct Removed;

impl Drop for Removed {
    fn drop(&mut self) {
        if std::thread::panicking() {
            show();
        }
        // The pods first, and at once: their drain has been watched. A namespace that finds pods in
        // it looks again after half of their grace period.
        let _ = try_kubectl(&["delete", "deployments,jobs", "--all"]);
        let _ = try_kubectl(&["delete", "pods", "--all", "--grace-period=1"]);
        let deleted = try_kubectl(&["delete", "namespace", NAME, "--timeout=240s"]);
        if let Err(error) = deleted {
            eprintln!("cannot delete the namespace {NAME}: {error}");
        }
    }
}

/// What a person would look at first after a failure.
fn show() {
    for args in [
        &["get", "pods,endpointslices,jobs", "--output", "wide"][..],
        &["get", "events", "--sort-by", ".lastTimestamp"],
        &["logs", "--selector", SERVER, "--tail", "5", "--prefix"],
    ] {
        match try_kubectl(args) {
            Ok(text) | Err(text) => eprintln!("kubectl {}:\n{text}", args.join(" ")),
        }
    }
}
