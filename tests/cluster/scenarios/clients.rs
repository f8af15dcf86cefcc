//! The ways in which clients find the service.

use crate::api::{Cluster, NAME, kubectl, try_kubectl};
use crate::fleet::Fleet;
use crate::load::Load;
use crate::manifests::Deployed;

fn restart_under(cluster: &Cluster, source: &str) {
    let deployed = Deployed::local(cluster);
    let fleet = Fleet::watch(cluster);
    let load = Load::start_on(cluster, &deployed.job, "load", source);
    kubectl(&["rollout", "restart", "deployment/zmq-echo"]);
    cluster.wait_for_rollout();
    cluster.wait_for_servers(3);
    let outcome = load.finish();
    fleet.accounts_for(&[outcome]);
}

pub fn cluster_ip(cluster: &Cluster) {
    restart_under(cluster, "tcp://zmq-echo:5555");
}

pub fn headless_name(cluster: &Cluster) {
    restart_under(cluster, "dns://zmq-echo-headless:5555");
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
