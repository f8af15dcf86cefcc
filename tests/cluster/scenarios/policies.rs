//! The network policies, on a cluster that enforces them.

use serde_json::{Value as Json, json};

use crate::api::{Cluster, IMAGE, NAME, apply, apply_in, container, kubectl};
use crate::fleet::Fleet;
use crate::load::Load;
use crate::manifests::{Deployed, build};
use crate::wait_for;

/// A namespace beside the service's.
const OTHER: &str = "zmq-echo-other";

const CLIENT: (&str, &str) = ("zmq-echo/client", "true");

pub fn enforced(cluster: &Cluster) {
    let deployed = Deployed::local(cluster);
    let fleet = Fleet::watch(cluster);
    // The load has the label, and looks names up and asks the API under its own policy.
    let load = Load::start(cluster, &deployed.job);
    let server = cluster.servers().remove(0);
    let ip = server["status"]["podIP"].as_str().expect("an address");
    let (zeromq, http) = (format!("tcp://{ip}:5555"), format!("tcp://{ip}:8080"));
    let job = (JOB_LABEL.0, JOB_LABEL.1);

    let other = Other::create();
    wait_for("a client with the label is let in", || {
        connects(cluster, NAME, &[CLIENT], &zeromq).then_some(())
    });
    // Everything that is denied is tried after something was allowed: the rules are in force.
    assert!(!connects(cluster, NAME, &[], &zeromq), "a client without the label");
    assert!(!connects(cluster, NAME, &[CLIENT], &http), "a client at the side port");
    assert!(!connects(cluster, OTHER, &[CLIENT], &zeromq), "a namespace without the label");
    kubectl(&["label", "namespace", OTHER, "zmq-echo/clients=true"]);
    wait_for("a namespace with the label is let in", || {
        connects(cluster, OTHER, &[CLIENT], &zeromq).then_some(())
    });
    assert!(!connects(cluster, OTHER, &[], &zeromq), "no label of the pod there");
    assert!(!connects(cluster, OTHER, &[], &http), "a scrape from there");
    kubectl(&["label", "namespace", OTHER, "zmq-echo/monitoring=true"]);
    wait_for("a scrape from a namespace with its label is let in", || {
        connects(cluster, OTHER, &[], &http).then_some(())
    });
    // As the Job, which is let out to fewer ports than it is let in at.
    wait_for("the Job reaches the servers", || {
        connects(cluster, NAME, &[job, CLIENT], &zeromq).then_some(())
    });
    assert!(!connects(cluster, NAME, &[job, CLIENT], &http), "the Job at the side port");
    drop(other);

    // With the policy that lets clients in taken away, the one that denies everything is left.
    let policies = build("overlays/local");
    let is_servers = |object: &&Json| {
        object["kind"] == "NetworkPolicy" && object["metadata"]["name"] == "zmq-echo-server"
    };
    let policy = policies.iter().find(is_servers).expect("the servers' policy").clone();
    let outcome = load.finish();
    kubectl(&["delete", "networkpolicy", "zmq-echo-server"]);
    wait_for("everything is denied", || {
        (!connects(cluster, NAME, &[CLIENT], &zeromq)).then_some(())
    });
    assert_eq!(cluster.ready_servers().len(), 3, "probes pass where nobody else does");
    apply(&[policy]);
    wait_for("it is let in again", || connects(cluster, NAME, &[CLIENT], &zeromq).then_some(()));
    drop((outcome, fleet));
}

/// By which the Job's policy finds its pods.
const JOB_LABEL: (&str, &str) = ("app.kubernetes.io/name", "zmq-echo-load");

/// Whether a pod with these labels gets a connection: it runs the probe, whose line says at which
/// step it failed. At the side port nobody shakes hands, which is a connection all the same.
#[track_caller]
fn connects(cluster: &Cluster, namespace: &str, labels: &[(&str, &str)], endpoint: &str) -> bool {
    let mut all: serde_json::Map<String, Json> =
        labels.iter().map(|(name, value)| ((*name).to_owned(), json!(value))).collect();
    if labels.contains(&JOB_LABEL) {
        all.insert("app.kubernetes.io/instance".to_owned(), json!("zmq-echo"));
    }
    let pod = json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "probe", "namespace": namespace, "labels": all},
        "spec": {
            "restartPolicy": "Never",
            "automountServiceAccountToken": false,
            "terminationGracePeriodSeconds": 1,
            "securityContext": {
                "runAsNonRoot": true, "runAsUser": 65532, "seccompProfile": {"type": "RuntimeDefault"},
            },
            "containers": [{
                "name": "probe",
                "image": IMAGE,
                "imagePullPolicy": "IfNotPresent",
                "command": ["/zmq-echo-probe"],
                "args": ["--endpoint", endpoint, "--timeout", "4s"],
                "terminationMessagePolicy": "FallbackToLogsOnError",
                "securityContext": {
                    "allowPrivilegeEscalation": false,
                    "readOnlyRootFilesystem": true,
                    "capabilities": {"drop": ["ALL"]},
                },
            }],
        },
    });
    kubectl(&["delete", "pod", "probe", "--namespace", namespace, "--ignore-not-found"]);
    apply_in(namespace, &[pod]);
    let path = format!("/api/v1/namespaces/{namespace}/pods/probe");
    let ended = wait_for("the probe ends", || {
        let ended = container(&cluster.get(&path))["state"]["terminated"].clone();
        (!ended.is_null()).then_some(ended)
    });
    kubectl(&["delete", "pod", "probe", "--namespace", namespace]);
    let message = ended["message"].as_str().unwrap_or_default();
    let connected = ended["exitCode"] == 0 || message.contains("handshake failed");
    assert!(connected || message.contains("connect failed"), "{ended}");
    connected
}

/// The other namespace, deleted at the end.
struct Other;

impl Other {
    #[track_caller]
    fn create() -> Self {
        kubectl(&["create", "namespace", OTHER]);
        kubectl(&["label", "namespace", OTHER, "zmq-echo/cluster-test=true"]);
        Self
    }
}

impl Drop for Other {
    fn drop(&mut self) {
        let _ = crate::api::try_kubectl(&["delete", "namespace", OTHER, "--timeout=240s"]);
    }
}
