//! The ways in which clients find the service.

use serde_json::{Value as Json, json};

use crate::api::{Cluster, NAME, apply, kubectl, try_kubectl};
use crate::fleet::Fleet;
use crate::load::{Load, Outcome, follow};
use crate::manifests::Deployed;
use crate::other_namespace::{pod, restricted};
use crate::wait_for;

/// Tests three ways to find the service at the same time, because one restart is enough for all.
pub fn restart(cluster: &Cluster) {
    let deployed = Deployed::local(cluster);
    let fleet = Fleet::watch(cluster);
    let start = |name, source| {
        Load::start_with(cluster, &deployed.job, name, source, &[("--rate", "1500")])
    };
    let loads = [
        start("by-cluster-ip", Some("tcp://zmq-echo:5555")),
        start("by-headless-name", Some("dns://zmq-echo-headless:5555")),
        // As the Job in the manifests does: by EndpointSlices, with the permissions of its Role.
        start("by-endpoint-slices", None),
    ];
    kubectl(&["rollout", "restart", "deployment/zmq-echo"]);
    cluster.wait_for_rollout();
    cluster.wait_for_servers(3);
    fleet.accounts_for(&loads.map(Load::finish));
}

/// Tests a client that knows nothing about this project or Kubernetes.
pub fn pyzmq(cluster: &Cluster) {
    let deployed = Deployed::local(cluster);
    let fleet = Fleet::watch(cluster);
    let image = cluster.pyzmq_image.as_deref();
    let image =
        image.expect("this needs an image with Python and pyzmq: name one with --pyzmq-image");
    let mut container = restricted("load");
    container["image"] = json!(image);
    container["command"] =
        json!(["python3", "-c", include_str!("../pyzmq.py"), "tcp://zmq-echo:5555"]);
    let mut client = pod("pyzmq", NAME, &[("zmq-echo/client", "true")], vec![container]);
    client["spec"]["terminationGracePeriodSeconds"] = json!(20);
    apply(&[client]);
    let path = format!("/api/v1/namespaces/{NAME}/pods/pyzmq/log?container=load");
    wait_for("the client is answered", || {
        cluster.read(&path).ok()?.contains("answered").then_some(())
    });
    let log = follow(cluster, NAME, "pyzmq");

    kubectl(&["rollout", "restart", "deployment/zmq-echo"]);
    cluster.wait_for_rollout();
    cluster.wait_for_servers(3);
    kubectl(&["delete", "pod", "pyzmq", "--wait=false"]);
    let lines = log.join().expect("the log can be read");
    let result = lines.last().expect("the client printed a result");
    println!("  pyzmq: {result}");
    let result: Json = serde_json::from_str(result).expect("the result is JSON");
    let outcome = Outcome { result, probes: 0 };
    assert_eq!(outcome.number("answered"), outcome.number("due"));
    // The client has one connection, which each of the three pods may end once.
    assert!(outcome.number("retried") <= 3, "more requests were lost than pods were replaced");
    fleet.accounts_for(&[outcome]);
    drop(deployed);
}

/// The loads of other scenarios show that these permissions are enough. This shows that there are
/// no others.
pub fn rights(cluster: &Cluster) {
    let deployed = Deployed::local(cluster);
    let account = format!("system:serviceaccount:{NAME}:zmq-echo-load");
    let may = |verb: &str, resource: &str, namespace: &str| {
        let args = [
            "auth",
            "can-i",
            verb,
            resource,
            "--as",
            &account,
            "--namespace",
            namespace,
            "--quiet",
        ];
        try_kubectl(&args).is_ok()
    };
    let slices = "endpointslices.discovery.k8s.io";
    for verb in ["get", "list", "watch"] {
        assert!(may(verb, slices, NAME), "{verb}");
        assert!(!may(verb, slices, "kube-system"), "{verb} of another namespace");
        for other in ["pods", "services", "endpoints", "secrets", "configmaps"] {
            assert!(!may(verb, other, NAME), "{verb} {other}");
        }
    }
    for verb in ["create", "update", "patch", "delete", "deletecollection"] {
        assert!(!may(verb, slices, NAME), "{verb}");
    }
    drop(deployed);
}
