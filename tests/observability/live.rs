//! Three servers, Prometheus with the configuration of the manifests, and the load generator, in
//! three phases: idle, twice the autoscaler's target, idle. The run is recorded once, and each test
//! checks another part of the recording.

use std::collections::BTreeSet;
use std::fs;
use std::panic::catch_unwind;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use k8s_openapi::api::autoscaling::v2::{HorizontalPodAutoscaler, HorizontalPodAutoscalerSpec};
use serde_json::{Value, json};

use crate::autoscaler::Autoscaler;
use crate::build::{NAME, variant};
use crate::expressions::{self, PODS, scaled_object};
use crate::names::named;
use crate::plot;
use crate::prometheus::{Prometheus, Series, configuration};
use crate::queries::Expression;
use crate::scaling::{Look, REQUESTS, Sample, csv, scale};
use crate::support::built::LOAD;
use crate::support::{PROBE, Server, command, get};

/// How long the servers get only probes before the load.
const IDLE: Duration = Duration::from_secs(30);

/// How long the load lasts: the range of the rates, and a few scrapes.
const LOADED: Duration = Duration::from_secs(140);

/// The shortest range of rates in the autoscaler's queries.
const WINDOW: f64 = 120.0;

/// How long Prometheus may take to notice that the load has ended.
const AFTER: Duration = Duration::from_secs(300);

/// Time between two samples of the curves, in seconds.
const STEP: f64 = 5.0;

/// The values of an expression, one for each phase.
type Answers = [Result<Vec<Series>, String>; 3];

/// The recording that the tests check.
struct Record {
    answers: Vec<(Expression, Answers)>,
    targets: Vec<Series>,
    kept: BTreeSet<String>,
    firing: Vec<Series>,
    samples: Vec<Sample>,
    /// When the load ended, in seconds from its start.
    load_ended: f64,
    load: Value,
    clients: f64,
    probes: f64,
}

/// The recording, made once. If that failed, the test that tried it reports the reason.
fn record() -> &'static Record {
    static RECORD: OnceLock<Option<Record>> = OnceLock::new();
    let recorded = RECORD.get_or_init(|| catch_unwind(Record::make).ok());
    recorded.as_ref().expect("the recording failed; another test reports the reason")
}

/// The autoscaler with the targets and limits that the overlay for a laptop gives to KEDA.
fn spec() -> HorizontalPodAutoscalerSpec {
    let mut spec = variant("components-hpa").named::<HorizontalPodAutoscaler>(NAME).spec;
    let object = &scaled_object(variant("overlays-autoscaled"))["spec"];
    let number = |name: &str| i32::try_from(object[name].as_i64().unwrap()).unwrap();
    spec.min_replicas = Some(number("minReplicaCount"));
    spec.max_replicas = number("maxReplicaCount");
    let requests = spec.metrics.as_mut().unwrap()[REQUESTS].pods.as_mut().unwrap();
    let trigger = &object["triggers"][REQUESTS];
    assert_eq!(trigger["name"], "requests");
    let threshold = trigger["metadata"]["threshold"].as_str().unwrap();
    requests.target.average_value.as_mut().unwrap().0 = threshold.to_owned();
    spec
}

/// Twice the target for this number of pods.
fn rate() -> f64 {
    2.0 * Autoscaler::new(spec()).target(REQUESTS) * PODS.len() as f64
}

fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("the clock is set").as_secs_f64()
}

/// Where the curves are written, next to cargo's output.
fn artefacts() -> PathBuf {
    let target = PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
    let directory =
        target.parent().expect("the folder is in the target directory").join("observability");
    fs::create_dir_all(&directory).unwrap();
    directory
}

impl Record {
    fn make() -> Self {
        let servers = PODS.map(|_| Server::start(&[]));
        let prometheus = Prometheus::start(&configuration("live", &discovered(&servers)));
        let probed = AtomicBool::new(true);
        thread::scope(|scope| {
            // Whatever happens here, the probes must stop.
            let _end = OnDrop(|| probed.store(false, Ordering::Relaxed));
            scope.spawn(|| probe(&servers, &probed));
            Self::of(&prometheus, &servers)
        })
    }

    fn of(prometheus: &Prometheus, servers: &[Server]) -> Self {
        let rates = expressions::adapter()[0].text.clone();
        wait_for(prometheus, &format!("count({rates}) == {}", PODS.len()));
        let started = now();
        thread::sleep(IDLE);
        let idle = now();
        let load = load(servers);
        let ended = now();
        // The rate covers only the load at this time.
        let loaded = ended - STEP;
        wait_for(prometheus, &format!("sum({rates}) == 0"));
        // Recorded series lag by up to one evaluation interval of their group.
        wait_for(prometheus, "sum(namespace:zmq_echo_requests:rate2m) == 0");
        let idle_again = now();
        let answers = expressions::all().into_iter().map(|expression| {
            let answer = |at| prometheus.query(&expression.text, at);
            let answers = [idle, loaded, idle_again].map(answer);
            (expression, answers)
        });
        let source = |source| {
            let total = format!("sum(zmq_echo_requests_total{{source=\"{source}\"}})");
            prometheus.query(&total, now()).unwrap()[0].values[0].1
        };
        let names = prometheus.get("label/__name__/values").unwrap();
        Self {
            answers: answers.collect(),
            targets: prometheus.query("up", idle).unwrap(),
            kept: names.as_array().unwrap().iter().map(|it| it.as_str().unwrap().into()).collect(),
            firing: prometheus.range("ALERTS{alertstate=\"firing\"}", started, idle_again, STEP),
            samples: samples(prometheus, started, idle, idle_again),
            load_ended: ended - idle,
            load,
            clients: source("client"),
            probes: source("probe"),
        }
    }

    /// The states of the autoscaler.
    fn looks(&self) -> Vec<Look> {
        scale(spec(), &self.samples)
    }
}

struct OnDrop<F: Fn()>(F);

impl<F: Fn()> Drop for OnDrop<F> {
    fn drop(&mut self) {
        (self.0)();
    }
}

/// The targets as the discovery finds them: each pod with each of its ports, and three that must
/// not be scraped.
fn discovered(servers: &[Server]) -> Value {
    let target = |address: String, pod: &str, port: &str, scrape: &str, phase: &str| {
        json!({
            "targets": [address],
            "labels": {
                "__meta_kubernetes_namespace": NAME,
                "__meta_kubernetes_pod_name": pod,
                "__meta_kubernetes_pod_phase": phase,
                "__meta_kubernetes_pod_label_app_kubernetes_io_name": NAME,
                "__meta_kubernetes_pod_label_pod_template_hash": "5d8f9c7b6",
                "__meta_kubernetes_pod_annotation_prometheus_io_scrape": scrape,
                "__meta_kubernetes_pod_annotation_prometheus_io_port": port,
                "__meta_kubernetes_pod_annotation_prometheus_io_path": "/metrics",
            },
        })
    };
    let pods = servers.iter().zip(PODS).flat_map(|(server, pod)| {
        let port = server.http.port().to_string();
        // The last server also has a PodMonitor, so `monitoring` removes its annotation.
        let scrape = if pod == PODS[2] { "" } else { "true" };
        let by = |address: String| target(address, pod, &port, scrape, "Running");
        [by(server.address().to_string()), by(server.http.to_string())]
    });
    let (port, address) = (servers[0].http.port().to_string(), servers[0].http.to_string());
    let others = [
        target(address.clone(), "not-asked-for", &port, "false", "Running"),
        target(address.clone(), "without-annotation", "", "", "Running"),
        target(address, "ended", &port, "true", "Succeeded"),
    ];
    Value::Array(pods.chain(others).collect())
}

/// Probes each server once per second in both ways, as a kubelet does, all the time.
fn probe(servers: &[Server], on: &AtomicBool) {
    while on.load(Ordering::Relaxed) {
        for server in servers {
            let _ = command(PROBE).args(["--endpoint", &server.endpoint]).output();
            get(server.http, "/livez");
        }
        thread::sleep(Duration::from_secs(1));
    }
}

fn load(servers: &[Server]) -> Value {
    let mut load = command(&LOAD);
    load.args(servers.iter().map(|server| &server.endpoint));
    load.args(["--rate", &rate().to_string(), "--output", "json"]);
    load.args(["--duration", &format!("{}s", LOADED.as_secs())]);
    // On a busy machine, a late probe is not a failure.
    load.args(["--timeout", "10s"]).stderr(Stdio::inherit());
    let output = load.output().expect("the load generator can be run");
    serde_json::from_slice(&output.stdout).expect("the load generator prints its result")
}

/// Waits until an expression has a value.
fn wait_for(prometheus: &Prometheus, expression: &str) {
    let deadline = Instant::now() + AFTER;
    while prometheus.query(expression, now()).unwrap().is_empty() {
        assert!(Instant::now() < deadline, "not true within {AFTER:?}: {expression}");
        thread::sleep(Duration::from_secs(1));
    }
}

/// The results of the adapter's queries from `start` to `end`; `zero` is the start of the load.
fn samples(prometheus: &Prometheus, start: f64, zero: f64, end: f64) -> Vec<Sample> {
    let [rates, slow, ..] = &expressions::adapter()[..] else { panic!("expected two queries") };
    // In this way, the last sample is at the end.
    let start = end - ((end - start) / STEP).floor() * STEP;
    let over_pods = |function: &str, query: &Expression| {
        prometheus.range(&format!("{function}({})", query.text), start, end, STEP).remove(0).values
    };
    let cpu = "sum(rate(process_cpu_seconds_total{job=\"zmq-echo\"}[2m]))";
    let cpu = prometheus.range(cpu, start, end, STEP).remove(0).values;
    let both = over_pods("sum", rates).into_iter().zip(over_pods("avg", slow));
    both.map(|((at, requests), (_, slow))| {
        let cpu = cpu.iter().find(|(time, _)| *time >= at).map_or(0.0, |(_, cpu)| *cpu);
        Sample { at: at - zero, cpu, requests, slow }
    })
    .collect()
}

fn values(answer: &Result<Vec<Series>, String>) -> Vec<f64> {
    answer.as_ref().unwrap().iter().map(|series| series.values[0].1).collect()
}

#[test]
fn annotated_pods_are_scraped_once_and_get_three_labels() {
    let mut pods = Vec::new();
    for target in &record().targets {
        assert_eq!(target.values[0].1, 1.0, "a target is down: {target:?}");
        let labels = target.labels.as_object().unwrap();
        let names: Vec<_> = labels.keys().map(String::as_str).collect();
        assert_eq!(names, ["__name__", "instance", "job", "namespace", "pod"]);
        assert_eq!((&labels["job"], &labels["namespace"]), (&json!(NAME), &json!(NAME)));
        pods.push(labels["pod"].as_str().unwrap());
    }
    pods.sort_unstable();
    assert_eq!(pods, PODS);
}

#[test]
fn only_series_that_no_expression_uses_are_dropped() {
    let kept = &record().kept;
    assert!(
        kept.contains("zmq_echo_requests_total") && kept.contains("process_start_time_seconds")
    );
    assert!(!kept.contains("process_virtual_memory_bytes"));
    for (expression, _) in record().answers.iter().filter(|(it, _)| !it.may_be_empty) {
        for selector in named(&expression.text).selectors {
            assert!(
                kept.contains(&selector.metric),
                "{} needs a metric that is not stored: {}",
                expression.origin,
                selector.metric
            );
        }
    }
}

#[test]
fn every_expression_works_in_every_phase_and_has_a_value_where_required() {
    let mut list = String::new();
    let mut faults = Vec::new();
    for (expression, answers) in &record().answers {
        for (phase, answer) in ["idle", "loaded", "idle again"].into_iter().zip(answers) {
            let count = match answer {
                Ok(series) if series.is_empty() && !expression.may_be_empty => {
                    faults.push(format!("{}, {phase}: no value", expression.origin));
                    0
                }
                Ok(series) => series.len(),
                Err(error) => {
                    faults.push(format!("{}, {phase}: {error}", expression.origin));
                    0
                }
            };
            list += &format!("{phase:10} {count:3} {}\n", expression.origin);
        }
    }
    fs::write(artefacts().join("expressions.txt"), list).unwrap();
    assert!(faults.is_empty(), "{faults:#?}");
}

#[test]
fn request_rates_match_the_load_and_are_zero_without_one() {
    let record = record();
    let during = record.load["answered"].as_f64().unwrap() / record.load_ended;
    let is_of = |text: &str| {
        let of = |one: &&(Expression, _)| one.0.origin.contains(text);
        record.answers.iter().filter(of).collect::<Vec<_>>()
    };
    for origin in [
        "prometheus-adapter-values.yaml: zmq_echo_requests_total",
        "scaled-object.yaml: requests",
        "rules.yml: pod:zmq_echo_requests:rate2m",
        "rules.yml: namespace:zmq_echo_requests:rate2m",
    ] {
        let [(_, [idle, loaded, idle_again])] = &is_of(origin)[..] else { panic!("{origin}") };
        assert_eq!(values(idle).iter().sum::<f64>(), 0.0, "{origin}");
        assert_eq!(values(idle_again).iter().sum::<f64>(), 0.0, "{origin}");
        let seen: f64 = values(loaded).iter().sum();
        assert!(
            (0.7..1.3).contains(&(seen / during)),
            "{origin} shows {seen} of {during} requests/s"
        );
    }
}

#[test]
fn the_share_of_slow_requests_is_zero_without_requests_and_a_fraction_otherwise() {
    let shares = ["seconds_count", "slow-requests", "zmq_echo_slow_requests:ratio_rate5m"];
    for (expression, [idle, loaded, _]) in &record().answers {
        let ours = shares.iter().any(|share| expression.origin.ends_with(share));
        if ours && expression.text.contains('/') {
            assert!(
                values(idle).iter().all(|share| *share == 0.0),
                "{} is not zero while idle",
                expression.origin
            );
            let shares = values(loaded);
            assert!(
                shares.iter().all(|share| (-1e-9..=1.0).contains(share)),
                "a share is not between 0 and 1: {shares:?}"
            );
        }
    }
    let last = record().samples.last().unwrap();
    assert_eq!((last.requests, last.slow), (0.0, 0.0), "the last sample is not idle");
}

#[test]
fn no_request_is_lost_between_the_client_and_prometheus_and_probes_are_apart() {
    let record = record();
    let [sent, retried] = ["sent", "retried"].map(|name| record.load[name].as_f64().unwrap());
    assert!(record.clients >= record.load["answered"].as_f64().unwrap());
    assert!(
        record.clients <= sent + retried,
        "Prometheus counted {} requests of {sent}",
        record.clients
    );
    // Two kinds of probes, three servers, and most seconds of all phases.
    assert!(record.probes > 100.0, "only {} probes were counted", record.probes);
}

#[test]
fn no_alert_fires_for_a_healthy_service() {
    // Other work on the machine can make requests slow, but no other alert may fire.
    let mut firing: BTreeSet<_> =
        record().firing.iter().map(|alert| alert.labels["alertname"].as_str().unwrap()).collect();
    firing.retain(|alert| !alert.starts_with("ZmqEchoLatency"));
    assert!(firing.is_empty(), "these alerts fired: {firing:?}");
}

#[test]
fn the_replicas_rise_within_two_minutes_of_the_load_and_return_after_the_window() {
    let record = record();
    let looks = record.looks();
    let curves =
        plot::Curves { looks: &looks, rate: rate(), load_ended: record.load_ended, spec: &spec() };
    fs::write(artefacts().join("autoscaling.csv"), csv(&looks)).unwrap();
    fs::write(artefacts().join("autoscaling.svg"), plot::svg(&curves)).unwrap();

    let minimum = spec().min_replicas.unwrap();
    let rises = |requests_alone: bool| {
        let samples = record.samples.iter();
        let samples =
            samples.map(|it| Sample { slow: if requests_alone { 0.0 } else { it.slow }, ..*it });
        let looks = scale(spec(), &samples.collect::<Vec<_>>());
        looks.into_iter().find(|look| look.replicas > minimum).map(|look| look.sample.at)
    };
    // Judge by requests, which do not depend on the machine's latency.
    let risen = rises(true).expect("the number of replicas rises");
    assert!(
        (0.0..=WINDOW).contains(&risen),
        "the replicas rose only {risen} s after the load began"
    );

    let down = spec().behavior.unwrap().scale_down.unwrap();
    let window = f64::from(down.stabilization_window_seconds.unwrap());
    let most = looks.iter().map(|look| look.replicas).max().unwrap();
    let held = looks.iter().rfind(|look| look.replicas == most).unwrap().sample.at;
    // Whichever metric wanted the replicas, it did so after the load began.
    assert!(held >= window, "the maximum was held for only {held} s");
    let last = looks.last().unwrap();
    assert_eq!(last.replicas, minimum, "the replicas did not return to the minimum: {last:?}");
    assert!(
        last.sample.at >= record.load_ended + window,
        "the replicas returned before the window was over: {last:?}"
    );
}
