//! The load generator, run as the Job of the manifests.

use std::io::BufRead;
use std::thread::{self, JoinHandle};

use serde_json::{Value as Json, json};

use crate::api::{Cluster, NAME, apply, container, kubectl, name};
use crate::wait_for;

/// The flag that sets the load generator's source of endpoints.
const DISCOVER: &str = "--discover";

/// A load, which goes on until it is told to end.
pub struct Load {
    name: String,
    probes: u64,
    log: JoinHandle<Vec<String>>,
}

/// The result of a load.
pub struct Outcome {
    pub result: Json,
    /// Requests of probes beside the load. A server counts a probe from another host as a client.
    pub probes: u64,
}

impl Load {
    /// Starts the Job, and waits until its requests are answered. It prints its result as JSON, and
    /// would run for longer than any scenario takes. Its CPU requests are those of the manifest.
    #[track_caller]
    pub fn start(cluster: &Cluster, job: &Json) -> Self {
        Self::start_with(cluster, job, "zmq-echo-load", None, &[])
    }

    /// Starts the Job under another name and with other values of some flags. `source` replaces its
    /// endpoints: either a URL with `k8s` or `dns`, by which it discovers them, or one endpoint.
    #[track_caller]
    pub fn start_with(
        cluster: &Cluster,
        job: &Json,
        called: &str,
        source: Option<&str>,
        flags: &[(&str, &str)],
    ) -> Self {
        let mut job = job.clone();
        job["metadata"]["name"] = json!(called);
        let args = &mut job["spec"]["template"]["spec"]["containers"][0]["args"];
        let args = args.as_array_mut().expect("the Job has args");
        set(args, "--duration", "50m");
        set(args, "--output", "json");
        flags.iter().for_each(|(flag, value)| set(args, flag, value));
        if let Some(source) = source {
            remove(args, DISCOVER);
            match source.starts_with("tcp://") {
                true => args.push(json!(source)),
                false => set(args, DISCOVER, source),
            }
        }
        let rate = args.iter().position(|arg| arg == "--rate").and_then(|at| args.get(at + 1));
        let rate: u64 =
            rate.and_then(|rate| rate.as_str()?.parse().ok()).expect("the Job has a rate");
        job["spec"]["activeDeadlineSeconds"] = json!(3600);
        let waiting = job["spec"]["template"]["spec"]["initContainers"].as_array();
        let probes = waiting.map_or(0, Vec::len) as u64;
        let before = answered(cluster);
        apply(&[job]);
        let selector = format!("job-name={called}");
        let pod = wait_for("the load runs", || {
            let pods = cluster.list("pods", &selector);
            let pod = pods.first()?;
            let state = &container(pod)["state"];
            assert!(state["terminated"].is_null(), "the load has ended: {state}");
            (!state["running"].is_null()).then(|| name(pod).to_owned())
        });
        let log = follow(cluster, NAME, &pod);
        let load = Self { name: called.to_owned(), probes, log };
        wait_for("the load is answered", || (answered(cluster) > before + rate / 5).then_some(()));
        load
    }

    /// Ends the load as Kubernetes ends every pod, checks that no request has failed, and returns
    /// its result.
    #[track_caller]
    pub fn finish(self) -> Outcome {
        kubectl(&["delete", "job", &self.name, "--wait=false"]);
        let lines = self.log.join().expect("the log can be read");
        let result = lines.iter().rev().find(|line| line.starts_with('{'));
        let result = result.unwrap_or_else(|| panic!("no result: {}", lines.join("\n")));
        let result: Json = serde_json::from_str(result).expect("the result is JSON");
        let outcome = Outcome { result, probes: self.probes };
        println!(
            "  {}: answered {}, retried {}, failed {}, {:.0}/s, p50 {:.2} ms, p99 {:.2} ms, max {:.0} ms",
            self.name,
            outcome.number("answered"),
            outcome.number("retried"),
            outcome.number("failed"),
            outcome.result["achieved_rate"].as_f64().expect("the rate is a number"),
            outcome.latency("p50"),
            outcome.latency("p99"),
            outcome.latency("max"),
        );
        assert_eq!(outcome.number("failed"), 0, "{}", outcome.result["failures"]);
        assert_eq!(outcome.number("answered"), outcome.number("due"));
        outcome
    }
}

impl Outcome {
    #[track_caller]
    pub fn number(&self, field: &str) -> u64 {
        self.result[field].as_u64().unwrap_or_else(|| panic!("the result has no {field}"))
    }

    /// A latency, in milliseconds.
    fn latency(&self, field: &str) -> f64 {
        self.result["latency"][field].as_f64().unwrap_or(f64::NAN) * 1000.0
    }
}

/// How many requests of clients the servers have counted.
fn answered(cluster: &Cluster) -> u64 {
    let counts = cluster.ready_servers();
    let counts = counts.iter().filter_map(|pod| {
        let path = format!("/api/v1/namespaces/{NAME}/pods/{}:8080/proxy/metrics", name(pod));
        let metrics = cluster.read(&path).ok()?;
        let sample = "zmq_echo_requests_total{source=\"client\"} ";
        metrics.lines().find_map(|line| line.strip_prefix(sample)?.parse::<f64>().ok())
    });
    counts.sum::<f64>() as u64
}

/// Reads the log of a load in another thread, until its container has ended. This returns when the
/// API begins to answer, which is soon, because the load writes a line every few seconds.
#[track_caller]
pub fn follow(cluster: &Cluster, namespace: &str, pod: &str) -> JoinHandle<Vec<String>> {
    let path = format!("/api/v1/namespaces/{namespace}/pods/{pod}/log?container=load&follow=true");
    let lines = cluster.reader().follow(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
    thread::spawn(move || lines.lines().map_while(Result::ok).collect())
}

fn remove(args: &mut Vec<Json>, flag: &str) {
    if let Some(at) = args.iter().position(|arg| arg == flag) {
        args.drain(at..=at + 1);
    }
}

fn set(args: &mut Vec<Json>, flag: &str, value: &str) {
    remove(args, flag);
    args.extend([json!(flag), json!(value)]);
}
