//! What people and collectors read.

use serde_json::Value as Json;

use crate::api::{Cluster, NAME, container, kubectl, name};
use crate::fleet::Fleet;
use crate::load::Load;
use crate::manifests::Deployed;
use crate::wait_for;

/// The files of the pods' logs on a node, where every collector looks for them.
const FILES: &str = "/var/log/pods";

pub fn on_the_node(cluster: &Cluster) {
    let deployed = Deployed::local(cluster);
    let fleet = Fleet::watch(cluster);
    let load = Load::start(cluster, &deployed.job);
    for pod in cluster.servers() {
        let uid = pod["metadata"]["uid"].as_str().expect("a uid");
        let script = format!("cat {FILES}/{NAME}_{}_{uid}/server/*.log", name(&pod));
        let text = cluster.on_node(&["sh", "-c", &script]);
        let messages: Vec<String> = text
            .lines()
            .map(|line| {
                // As the container runtime writes it: time, stream, whole or part, text.
                let fields: Vec<_> = line.splitn(4, ' ').collect();
                let [_, stream, whole, record] = fields[..] else { panic!("{line}") };
                assert_eq!((stream, whole), ("stdout", "F"), "{line}");
                let record: Json = serde_json::from_str(record)
                    .unwrap_or_else(|error| panic!("one record a line: {error}: {line}"));
                assert_eq!(record["pod"], pod["metadata"]["name"], "{line}");
                assert_eq!(record["namespace"], NAME, "{line}");
                assert_eq!(record["node"], pod["spec"]["nodeName"], "{line}");
                record["message"].as_str().expect("a message").to_owned()
            })
            .collect();
        assert!(messages.iter().any(|message| message == "listening"), "{messages:?}");
    }
    let outcome = load.finish();
    fleet.accounts_for(&[outcome]);
}

pub fn last_message(cluster: &Cluster) {
    let deployed = Deployed::local(cluster);
    let fleet = Fleet::watch(cluster);
    let load = Load::start(cluster, &deployed.job);
    // An address that no pod has.
    let patch = r#"[{"op": "replace", "path": "/spec/template/spec/containers/0/env/0/value", "value": "tcp://192.0.2.1:5555"}]"#;
    kubectl(&["patch", "deployment", "zmq-echo", "--type", "json", "--patch", patch]);
    let message = wait_for("a pod that cannot start has ended", || {
        let pods = cluster.servers();
        pods.iter().find_map(|pod| {
            let last = &container(pod)["lastState"]["terminated"];
            (last["exitCode"] == 1).then(|| last["message"].to_string())
        })
    });
    println!("  {message}");
    assert!(message.contains("192.0.2.1:5555"), "{message}");
    kubectl(&["rollout", "undo", "deployment/zmq-echo"]);
    cluster.wait_for_rollout();
    cluster.wait_for_servers(3);
    let outcome = load.finish();
    fleet.accounts_for(&[outcome]);
}
