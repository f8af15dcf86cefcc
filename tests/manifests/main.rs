//! The manifests under `k8s/` match the code and meet the requirements of a cluster. The tests read
//! them as a cluster gets them: built by `kubectl kustomize`.

mod build;
mod dashboard;
mod docs;
mod images;
mod labels;
mod lifecycle;
mod load;
mod memory;
mod monitoring;
mod network;
mod new_project;
mod overlays;
mod pod_security;
mod probes;
mod rbac;
mod scaling;
mod server;
#[allow(dead_code, reason = "shared with the integration tests")]
#[path = "../support.rs"]
mod support;
