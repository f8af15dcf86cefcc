//! Failures: of pods, by an attack, and of the kubelet.

use std::thread;
use std::time::{Duration, Instant, SystemTime};

use serde_json::Value as Json;

use crate::api::{Cluster, NAME, container, is_ready, kubectl, name, restarts};
use crate::attack::Attack;
use crate::fleet::Fleet;
use crate::load::Load;
use crate::manifests::Deployed;
use crate::wait_for;

/// Long enough for the cluster to mark the node, and the endpoints on it, as not ready.
const KUBELET_DOWN: Duration = Duration::from_secs(120);

/// Waits until the container of a pod has been replaced and is ready. Returns how the old one
/// ended.
fn replaced(cluster: &Cluster, before: &Json) -> Json {
    wait_for("the container is replaced", || {
        let pods = cluster.servers();
        let pod = pods.iter().find(|found| name(found) == name(before))?;
        (restarts(pod) > restarts(before) && is_ready(pod))
            .then(|| container(pod)["lastState"]["terminated"].clone())
    })
}

pub fn killed(cluster: &Cluster) {
    let deployed = Deployed::local(cluster);
    let mut fleet = Fleet::watch(cluster);
    let load = Load::start(cluster, &deployed.job);
    let pod = cluster.servers().remove(0);
    fleet.is_killed(&pod);
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
    let mut fleet = Fleet::watch(cluster);
    let load = Load::start(cluster, &deployed.job);
    let pod = cluster.servers().remove(0);
    fleet.is_killed(&pod);
    kubectl(&["delete", "pod", name(&pod), "--force", "--grace-period=0"]);
    let after = cluster.wait_for_servers(3);
    assert!(after.iter().all(|other| name(other) != name(&pod)));
    let outcome = load.finish();
    fleet.accounts_for(&[outcome]);
}

pub fn frozen(cluster: &Cluster) {
    let deployed = Deployed::local(cluster);
    let mut fleet = Fleet::watch(cluster);
    let load = Load::start(cluster, &deployed.job);
    let pod = cluster.servers().remove(0);
    fleet.is_killed(&pod);
    let start = Instant::now();
    cluster.signal(&pod, "STOP");
    let last = replaced(cluster, &pod);
    let took = start.elapsed();
    println!("  replaced after {:.1} s", took.as_secs_f64());
    // From the last success to the first failure, to the last failure, to the kill, and 15 s for
    // the new container on a busy machine.
    let probe = &pod["spec"]["containers"][0]["livenessProbe"];
    let number =
        |field: &str| probe[field].as_u64().unwrap_or_else(|| panic!("no {field}: {probe}"));
    let most = number("periodSeconds") * number("failureThreshold")
        + number("timeoutSeconds")
        + number("terminationGracePeriodSeconds");
    println!("  {most} s are allowed");
    assert!(took < Duration::from_secs(most + 15), "replaced only after {took:?}");
    assert_eq!(last["exitCode"], 137, "{last}");
    let mut events = cluster.list("events", "");
    events.retain(|event| event["involvedObject"]["name"] == pod["metadata"]["name"]);
    let says = |text: &str| {
        let event = events.iter().find(|event| event["message"].to_string().contains(text));
        event.unwrap_or_else(|| panic!("no event says {text:?}"))
    };
    println!("  {}", says("Liveness probe failed")["message"]);
    // The server cannot drain, so it gets the probe's grace period instead of the pod's.
    let signalled = time(&says("will be restarted")["lastTimestamp"]);
    let took = time(&last["finishedAt"]).duration_since(signalled).unwrap_or_default();
    println!("  killed {} s after SIGTERM", took.as_secs());
    let grace = pod["spec"]["terminationGracePeriodSeconds"].as_u64().expect("the pod has one");
    assert!(took < Duration::from_secs(grace), "a frozen server was given time to drain: {took:?}");
    cluster.wait_for_servers(3);
    let outcome = load.finish();
    fleet.accounts_for(&[outcome]);
}

#[track_caller]
fn time(timestamp: &Json) -> SystemTime {
    let text = timestamp.as_str().unwrap_or_default();
    humantime::parse_rfc3339(text).unwrap_or_else(|error| panic!("{timestamp}: {error}"))
}

/// Duration of the attack in seconds: longer than three failed probes, after which the kubelet
/// would restart the container.
const ATTACKED: u32 = 45;

/// Attacks one pod at all of its limits at the same time, with the limits that the manifest sets.
pub fn attacked(cluster: &Cluster) {
    let deployed = Deployed::local(cluster);
    let mut fleet = Fleet::watch(cluster);
    let load = Load::start_with(cluster, &deployed.job, "load", None, &UNDER_ATTACK);
    let server = cluster.servers().remove(0);
    fleet.is_attacked(&server);
    let attack = Attack::start(cluster, address(&server), ATTACKED);
    let ends = Instant::now() + Duration::from_secs(ATTACKED.into());
    let (mut peers, mut buffers, mut memory) = (0.0_f64, 0.0_f64, 0.0_f64);
    while Instant::now() < ends {
        let [held, allowed, bytes, pool] = figures(cluster, &server);
        peers = peers.max(held / allowed);
        buffers = buffers.max(bytes / pool);
        memory = memory.max(working_set(cluster, &server).unwrap_or(0.0));
        thread::sleep(Duration::from_secs(1));
    }
    attack.wait(cluster);
    println!(
        "  at most {:.0} % of the peers, {:.0} % of the buffers, {memory:.0} MiB of memory",
        peers * 100.0,
        buffers * 100.0
    );
    let after = cluster.ready_servers();
    let after = after.iter().find(|pod| name(pod) == name(&server)).expect("the pod is ready");
    assert_eq!(restarts(after), restarts(&server), "{}", container(after)["lastState"]);
    assert!(peers > 0.9, "the attack did not reach the limit of peers");
    assert!(buffers > 0.8, "the attack did not reach the limit of the buffers");
    drop(attack);
    let outcome = load.finish();
    fleet.accounts_for(&[outcome]);
}

/// If the container's memory limit is below what the server's own limits add up to, the kernel
/// kills the server, and Kubernetes says so.
pub fn out_of_memory(cluster: &Cluster) {
    let deployed = Deployed::local(cluster);
    let mut fleet = Fleet::watch(cluster);
    let load = Load::start_with(cluster, &deployed.job, "load", None, &UNDER_ATTACK);
    kubectl(&[
        "set",
        "resources",
        "deployment/zmq-echo",
        "--limits=memory=48Mi",
        "--requests=memory=32Mi",
    ]);
    cluster.wait_for_rollout();
    let server = cluster.wait_for_servers(3).remove(0);
    fleet.is_attacked(&server);
    let attack = Attack::start(cluster, address(&server), ATTACKED);
    let last = wait_for("the server is killed", || {
        let pods = cluster.servers();
        let pod = pods.iter().find(|pod| name(pod) == name(&server)).expect("the pod exists");
        let last = &container(pod)["lastState"]["terminated"];
        (!last.is_null()).then(|| last.clone())
    });
    println!("  reason {}, exit code {}", last["reason"], last["exitCode"]);
    assert_eq!(last["reason"], "OOMKilled", "{last}");
    assert_eq!(last["exitCode"], 137, "{last}");
    drop(attack);
    kubectl(&["rollout", "undo", "deployment/zmq-echo"]);
    cluster.wait_for_rollout();
    cluster.wait_for_servers(3);
    let outcome = load.finish();
    fleet.accounts_for(&[outcome]);
}

/// A low rate and a long timeout, because the attackers use the same two cores.
const UNDER_ATTACK: [(&str, &str); 2] = [("--rate", "500"), ("--timeout", "5s")];

fn address(pod: &Json) -> &str {
    pod["status"]["podIP"].as_str().expect("the pod has an address")
}

/// The number of peers and its limit, the bytes in buffers and their limit. All are 0 if the server
/// does not answer.
fn figures(cluster: &Cluster, pod: &Json) -> [f64; 4] {
    let path = format!("/api/v1/namespaces/{NAME}/pods/{}:8080/proxy/metrics", name(pod));
    let metrics = cluster.read(&path).unwrap_or_default();
    ["peers", "limit_peers", "buffered_bytes", "limit_buffered_bytes"].map(|metric| {
        let sample = format!("zmq_echo_{metric} ");
        let value = metrics.lines().find_map(|line| line.strip_prefix(&sample)?.parse().ok());
        value.unwrap_or(0.0)
    })
}

/// The memory of a pod that counts towards its limit, in MiB, according to the kubelet.
fn working_set(cluster: &Cluster, pod: &Json) -> Option<f64> {
    let node = pod["spec"]["nodeName"].as_str()?;
    let summary = cluster.read(&format!("/api/v1/nodes/{node}/proxy/stats/summary")).ok()?;
    let summary: Json = serde_json::from_str(&summary).ok()?;
    let mut pods = summary["pods"].as_array()?.iter();
    let found = pods.find(|found| found["podRef"]["name"] == pod["metadata"]["name"])?;
    Some(found["containers"][0]["memory"]["workingSetBytes"].as_f64()? / 1024.0 / 1024.0)
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
    // There is no condition to wait for: the kubelet has to be down for this long.
    thread::sleep(KUBELET_DOWN);
    println!("  {} of {} servers are called ready", cluster.ready_servers().len(), before.len());
    drop(running);
    let after = cluster.wait_for_servers(3);
    assert_eq!(before, runs(&after), "pods were replaced or restarted");
    let outcome = load.finish();
    fleet.accounts_for(&[outcome]);
}

/// A stopped kubelet, which continues when this is dropped.
struct Kubelet<'a>(&'a Cluster);

impl Drop for Kubelet<'_> {
    fn drop(&mut self) {
        self.0.on_node(&["pkill", "-CONT", "-x", "kubelet"]);
    }
}
