//! The manifests under `k8s/` say what the code does, and keep what a cluster asks
//! of them. They are read as a cluster gets them: built by `kubectl kustomize`.

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
