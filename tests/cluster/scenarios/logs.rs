//! Logs and statuses, as collectors and people read them.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use serde_json::Value as Json;

use crate::api::{Cluster, NAME, container, kubectl, name, restarts};
use crate::fleet::Fleet;
use crate::load::Load;
use crate::manifests::Deployed;
use crate::wait_for;

/// The directory of the pods' logs on a node, where every collector looks for them.
const FILES: &str = "/var/log/pods";

pub fn on_the_node(cluster: &Cluster) {
    let deployed = Deployed::local(cluster);
    let fleet = Fleet::watch(cluster);
    let load = Load::start(cluster, &deployed.job);
    for pod in cluster.servers() {
        let records = records(cluster, &pod);
        assert!(records.iter().any(|record| record["message"] == "listening"), "{records:?}");
    }
    let outcome = load.finish();
    fleet.accounts_for(&[outcome]);
}

/// The records of a server in the node's files, from all runs of its container.
#[track_caller]
fn records(cluster: &Cluster, pod: &Json) -> Vec<Json> {
    let uid = pod["metadata"]["uid"].as_str().expect("the pod has a uid");
    let script = format!("cat {FILES}/{NAME}_{}_{uid}/server/*.log", name(pod));
    let text = cluster.on_node(&["sh", "-c", &script]);
    let record = |line: &str| {
        // The container runtime writes the time, the stream, F for a full line, and the text.
        let fields: Vec<_> = line.splitn(4, ' ').collect();
        let [_, stream, whole, record] = fields[..] else { panic!("{line}") };
        assert_eq!((stream, whole), ("stdout", "F"), "{line}");
        let record: Json = serde_json::from_str(record)
            .unwrap_or_else(|error| panic!("a line is not a record: {error}: {line}"));
        assert_eq!(record["pod"], pod["metadata"]["name"], "{line}");
        assert_eq!(record["namespace"], NAME, "{line}");
        assert_eq!(record["node"], pod["spec"]["nodeName"], "{line}");
        record
    };
    text.lines().map(record).collect()
}

/// The process ends at the panic, and the container starts again.
pub fn panic(cluster: &Cluster) {
    let deployed = Deployed::local(cluster);
    let mut fleet = Fleet::watch(cluster);
    kubectl(&["set", "env", "deployment/zmq-echo", "ZMQ_ECHO_ON_PANIC=exit"]);
    cluster.wait_for_rollout();
    let server = cluster.wait_for_servers(3).remove(0);
    fleet.is_killed(&server);
    let load = Load::start(cluster, &deployed.job);
    panics_once(&server);
    let after = wait_for("the container has restarted", || {
        let pods = cluster.ready_servers();
        pods.into_iter().find(|pod| name(pod) == name(&server) && restarts(pod) == 1)
    });
    let last = &container(&after)["lastState"]["terminated"];
    println!("  {}", last["message"]);
    assert_eq!(last["exitCode"], 101, "{last}");
    // The message is the end of the log, of which a status holds 2 KiB.
    let message = last["message"].as_str().unwrap_or_default();
    assert!(message.contains("\"panicked\"") && message.ends_with("}\n"), "{last}");

    let records = records(cluster, &server);
    let panics: Vec<_> = records.iter().filter(|record| record["message"] == "panicked").collect();
    let [panic] = panics[..] else { panic!("expected one record of the panic: {panics:?}") };
    assert_eq!(panic["level"], "ERROR", "{panic}");
    let backtrace = panic["backtrace"].as_str().unwrap_or_default();
    assert!(backtrace.contains('\n') && backtrace.contains(" zmq_echo::"), "no names: {panic}");
    kubectl(&["set", "env", "deployment/zmq-echo", "ZMQ_ECHO_ON_PANIC-"]);
    cluster.wait_for_rollout();
    cluster.wait_for_servers(3);
    let outcome = load.finish();
    fleet.accounts_for(&[outcome]);
}

/// Makes the server's next request panic. Only the server's own host may order that, so the request
/// goes through a forwarded port, which ends there.
#[track_caller]
fn panics_once(server: &Json) {
    let mut forwarding = Command::new("kubectl")
        .args(["--namespace", NAME, "port-forward", &format!("pod/{}", name(server)), ":8080"])
        .stdout(Stdio::piped())
        .spawn()
        .expect("kubectl starts");
    let mut line = String::new();
    // Kept open, so that kubectl can go on writing.
    let mut stdout = BufReader::new(forwarding.stdout.take().expect("stdout is piped"));
    stdout.read_line(&mut line).expect("kubectl says where it listens");
    // Forwarding from 127.0.0.1:PORT -> 8080
    let address = line.split_whitespace().nth(2).expect("the line has an address");
    let answer =
        ureq::post(format!("http://{address}/faults")).header("X-Faults", "1").send("panics=1");
    let _ = forwarding.kill();
    let _ = forwarding.wait();
    answer.unwrap_or_else(|error| panic!("{address}: {error}"));
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
