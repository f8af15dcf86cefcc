//! Planned replacements of all pods: rollouts and evictions.

use crate::api::{Cluster, NEXT_IMAGE, container, kubectl, name, names, restarts};
use crate::fleet::Fleet;
use crate::load::Load;
use crate::manifests::Deployed;
use crate::wait_for;

pub fn restart(cluster: &Cluster) {
    let deployed = Deployed::local(cluster);
    let fleet = Fleet::watch(cluster);
    let before = names(&cluster.servers());
    let load = Load::start(cluster, &deployed.job);
    kubectl(&["rollout", "restart", "deployment/zmq-echo"]);
    cluster.wait_for_rollout();
    let after = names(&cluster.wait_for_servers(3));
    assert!(after.iter().all(|pod| !before.contains(pod)), "{before:?}, {after:?}");
    let outcome = load.finish();
    fleet.accounts_for(&[outcome]);
}

pub fn new_image(cluster: &Cluster) {
    let deployed = Deployed::local(cluster);
    let fleet = Fleet::watch(cluster);
    let images = |pods: &[serde_json::Value]| -> Vec<String> {
        pods.iter().map(|pod| container(pod)["imageID"].to_string()).collect()
    };
    let before = images(&cluster.servers());
    let load = Load::start(cluster, &deployed.job);
    kubectl(&["set", "image", "deployment/zmq-echo", &format!("server={NEXT_IMAGE}")]);
    cluster.wait_for_rollout();
    let after = images(&cluster.wait_for_servers(3));
    assert!(after.iter().all(|image| !before.contains(image)), "{before:?}, {after:?}");
    kubectl(&["rollout", "undo", "deployment/zmq-echo"]);
    cluster.wait_for_rollout();
    assert_eq!(images(&cluster.wait_for_servers(3)), before);
    let outcome = load.finish();
    fleet.accounts_for(&[outcome]);
}

pub fn broken(cluster: &Cluster) {
    let deployed = Deployed::local(cluster);
    let fleet = Fleet::watch(cluster);
    let before = names(&cluster.servers());
    let load = Load::start(cluster, &deployed.job);
    let patch = r#"[{"op": "add", "path": "/spec/template/spec/containers/0/args", "value": ["--no-such-flag"]}]"#;
    kubectl(&["patch", "deployment", "zmq-echo", "--type", "json", "--patch", patch]);
    let message = wait_for("the new pod has failed twice", || {
        let pods = cluster.servers();
        let broken = pods.iter().find(|pod| !before.contains(&name(pod).to_owned()))?;
        let last = &container(broken)["lastState"]["terminated"];
        (restarts(broken) > 0 && last["exitCode"] == 2).then(|| last["message"].to_string())
    });
    assert!(message.contains("--no-such-flag"), "{message}");
    let ready = names(&cluster.ready_servers());
    assert_eq!(ready.len(), 3, "{ready:?}");
    assert!(ready.iter().all(|pod| before.contains(pod)), "{before:?}, {ready:?}");
    kubectl(&["rollout", "undo", "deployment/zmq-echo"]);
    cluster.wait_for_rollout();
    let after = names(&cluster.wait_for_servers(3));
    assert_eq!(ready, after, "healthy pods have been replaced");
    let outcome = load.finish();
    fleet.accounts_for(&[outcome]);
}

pub fn eviction(cluster: &Cluster) {
    let deployed = Deployed::local(cluster);
    let fleet = Fleet::watch(cluster);
    let before = names(&cluster.servers());
    let load = Load::start(cluster, &deployed.job);
    let (first, rest) = before.split_first().expect("there are three pods");
    assert!(cluster.evict(first), "with three ready pods, one may be evicted");
    assert!(!cluster.evict(&rest[0]), "a second pod was evicted together with the first");
    for pod in rest {
        wait_for("the next pod may be evicted", || {
            assert!(
                cluster.ready_servers().len() >= 2,
                "fewer pods are ready than the budget allows"
            );
            cluster.evict(pod).then_some(())
        });
    }
    let after = names(&cluster.wait_for_servers(3));
    assert!(after.iter().all(|pod| !before.contains(pod)), "{before:?}, {after:?}");
    let outcome = load.finish();
    fleet.accounts_for(&[outcome]);
}
