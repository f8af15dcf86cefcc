//! The ways in which clients find the service.

use crate::api::{Cluster, NAME, kubectl, try_kubectl};
use crate::fleet::Fleet;
use crate::load::Load;
use crate::manifests::Deployed;

/// The three ways to find it at the same time: one restart is enough for all.
pub fn restart(cluster: &Cluster) {
    let deployed = Deployed::local(cluster);
    let fleet = Fleet::watch(cluster);
    let start = |name, source| {
        Load::start_with(cluster, &deployed.job, name, source, &[("--rate", "1500")])
    };
    let loads = [
        start("by-cluster-ip", Some("tcp://zmq-echo:5555")),
        start("by-headless-name", Some("dns://zmq-echo-headless:5555")),
        // As the Job in the manifests: by EndpointSlices, with the rights of its Role.
        start("by-endpoint-slices", None),
    ];
    kubectl(&["rollout", "restart", "deployment/zmq-echo"]);
    cluster.wait_for_rollout();
    cluster.wait_for_servers(3);
    fleet.accounts_for(&loads.map(Load::finish));
}

/// The rollouts of other scenarios are followed with these rights; no other is there.
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
