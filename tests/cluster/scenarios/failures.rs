//! Pods that end without being asked.

use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value as Json;

use crate::api::{Cluster, container, is_ready, kubectl, name, restarts};
use crate::fleet::Fleet;
use crate::load::Load;
use crate::manifests::Deployed;
use crate::wait_for;

/// Long enough for the cluster to call the node not ready, and with it the endpoints on it.
const KUBELET_DOWN: Duration = Duration::from_secs(120);

/// Waits until the container of a pod has been replaced and serves again; how it ended.
fn replaced(cluster: &Cluster, before: &Json) -> Json {
    wait_for("its container is replaced", || {
        let pods = cluster.servers();
        let pod = pods.iter().find(|found| name(found) == name(before))?;
        (restarts(pod) > restarts(before) && is_ready(pod))
            .then(|| container(pod)["lastState"]["terminated"].clone())
    })
}

pub fn killed(cluster: &Cluster) {
    let deployed = Deployed::local(cluster);
    let fleet = Fleet::watch(cluster);
    let load = Load::start(cluster, &deployed.job);
    let pod = cluster.servers().remove(0);
    let start = Instant::now();
    cluster.signal(&pod, "KILL");
    let last = replaced(cluster, &pod);
    println!("  ready again after {:.1} s", start.elapsed().as_secs_f64());
    assert_eq!(last["exitCode"], 137, "{last}");
    cluster.wait_for_servers(3);
    let outcome = load.finish();
    fleet.accounts_for(&[outcome]);
}

pub fn force_deleted(cluster: &Cluster) {
    let deployed = Deployed::local(cluster);
    let fleet = Fleet::watch(cluster);
    let load = Load::start(cluster, &deployed.job);
    let pod = cluster.servers().remove(0);
    kubectl(&["delete", "pod", name(&pod), "--force", "--grace-period=0"]);
    let after = cluster.wait_for_servers(3);
    assert!(after.iter().all(|other| name(other) != name(&pod)));
    let outcome = load.finish();
    fleet.accounts_for(&[outcome]);
}

pub fn frozen(cluster: &Cluster) {
    let deployed = Deployed::local(cluster);
    let fleet = Fleet::watch(cluster);
    let load = Load::start(cluster, &deployed.job);
    let pod = cluster.servers().remove(0);
    let start = Instant::now();
    cluster.signal(&pod, "STOP");
    let last = replaced(cluster, &pod);
    println!("  replaced after {:.1} s", start.elapsed().as_secs_f64());
    assert_eq!(last["exitCode"], 137, "{last}");
    let events = cluster.list("events", "");
    let is_of_probe = |event: &&Json| {
        event["involvedObject"]["name"] == pod["metadata"]["name"]
            && event["message"].to_string().contains("Liveness probe failed")
    };
    let event = events.iter().find(is_of_probe).expect("an event says why");
    println!("  {}", event["message"]);
    cluster.wait_for_servers(3);
    let outcome = load.finish();
    fleet.accounts_for(&[outcome]);
}

pub fn kubelet_down(cluster: &Cluster) {
    let deployed = Deployed::local(cluster);
    let fleet = Fleet::watch(cluster);
    let runs = |pods: &[Json]| -> Vec<_> {
        pods.iter().map(|pod| (name(pod).to_owned(), restarts(pod))).collect()
    };
    let before = runs(&cluster.servers());
    let load = Load::start(cluster, &deployed.job);
    cluster.on_node(&["pkill", "-STOP", "-x", "kubelet"]);
    let running = Kubelet(cluster);
    // What the time is for is the passing of time.
    thread::sleep(KUBELET_DOWN);
    println!("  {} of {} servers are called ready", cluster.ready_servers().len(), before.len());
    drop(running);
    let after = cluster.wait_for_servers(3);
    assert_eq!(before, runs(&after), "pods were replaced or restarted");
    let outcome = load.finish();
    fleet.accounts_for(&[outcome]);
}

/// Lets the kubelet go on when it goes.
struct Kubelet<'a>(&'a Cluster);

impl Drop for Kubelet<'_> {
    fn drop(&mut self) {
        self.0.on_node(&["pkill", "-CONT", "-x", "kubelet"]);
    }
}
