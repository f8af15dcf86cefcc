//! Another namespace, and pods that are not part of the service.

use serde_json::{Map, Value as Json, json};

use crate::api::{IMAGE, OURS, kubectl, try_kubectl};

/// The name of the other namespace.
pub const NAME: &str = "zmq-echo-other";

/// The other namespace, which is deleted when this is dropped.
pub struct OtherNamespace;

impl OtherNamespace {
    #[track_caller]
    pub fn create() -> Self {
        kubectl(&["create", "namespace", NAME]);
        let other = Self;
        other.label(OURS);
        other
    }

    #[track_caller]
    pub fn label(&self, label: &str) {
        kubectl(&["label", "namespace", NAME, label]);
    }
}

impl Drop for OtherNamespace {
    fn drop(&mut self) {
        let _ = try_kubectl(&["delete", "pods", "--all", "--namespace", NAME, "--grace-period=1"]);
        if let Err(error) = try_kubectl(&["delete", "namespace", NAME, "--timeout=240s"]) {
            eprintln!("cannot delete the namespace {NAME}: {error}");
        }
    }
}

/// A container with the service's image and no privileges.
pub fn restricted(name: &str) -> Json {
    json!({
        "name": name,
        "image": IMAGE,
        "imagePullPolicy": "IfNotPresent",
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "securityContext": {
            "allowPrivilegeEscalation": false,
            "readOnlyRootFilesystem": true,
            "capabilities": {"drop": ["ALL"]},
        },
    })
}

/// A pod that is not started again when its containers have ended.
pub fn pod(name: &str, namespace: &str, labels: &[(&str, &str)], containers: Vec<Json>) -> Json {
    let labels: Map<String, Json> =
        labels.iter().map(|(name, value)| ((*name).to_owned(), json!(value))).collect();
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace, "labels": labels},
        "spec": {
            "restartPolicy": "Never",
            "automountServiceAccountToken": false,
            "terminationGracePeriodSeconds": 1,
            "securityContext": {
                "runAsNonRoot": true, "runAsUser": 65532, "seccompProfile": {"type": "RuntimeDefault"},
            },
            "containers": containers,
        },
    })
}
