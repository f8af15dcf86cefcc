//! Scales the servers up under more load and down after it: by hand, and with each autoscaler that
//! has a component. What an autoscaler sees and does is recorded and drawn.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value as Json, json};

use crate::api::{Cluster, NAME, Reader, apply, kubectl, name};
use crate::autoscalers::{self, knows_its_metrics};
use crate::fleet::Fleet;
use crate::load::Load;
use crate::manifests::{Deployed, Removed, build, build_kustomization, take, use_images};
use crate::plot::{self, Record, Sample};
use crate::wait_within;

pub fn by_hand(cluster: &Cluster) {
    let deployed = Deployed::local(cluster);
    let fleet = Fleet::watch(cluster);
    let load = Load::start(cluster, &deployed.job);
    kubectl(&["scale", "deployment/zmq-echo", "--replicas=6"]);
    cluster.wait_for_servers(6);
    kubectl(&["scale", "deployment/zmq-echo", "--replicas=3"]);
    cluster.wait_for_servers(3);
    let outcome = load.finish();
    fleet.accounts_for(&[outcome]);
}

/// The cluster has only metrics-server, so the autoscaler keeps only its first metric. Two cores
/// cannot run three loops that use 0.7 of a core each, so this starts with one server. Each request
/// takes 2 ms of CPU.
pub fn hpa_on_cpu(cluster: &Cluster) {
    let patches = "
  - target: {kind: HorizontalPodAutoscaler}
    patch: |-
      - {op: remove, path: /spec/metrics/2}
      - {op: remove, path: /spec/metrics/1}
      - {op: replace, path: /spec/minReplicas, value: 1}
      - {op: replace, path: /spec/maxReplicas, value: 3}
  - target: {kind: Deployment, name: zmq-echo}
    patch: |-
      - {op: add, path: /spec/template/spec/containers/0/env/-, value: {name: ZMQ_ECHO_WORK, value: 2ms}}
      - {op: add, path: /spec/template/spec/containers/0/env/-, value: {name: ZMQ_ECHO_WORK_MODE, value: burn}}
";
    let run = Run {
        name: "hpa-cpu",
        title: "HPA, CPU of metrics-server",
        metric: "cpu",
        unit: "cores",
        base: 50,
        burst: 400,
        replicas: (1, 2, 3),
    };
    cluster.clear();
    let metrics_server = autoscalers::metrics_server(cluster);
    run.follow(cluster, run.with_components("k8s/components/hpa", patches));
    drop(metrics_server);
}

/// The autoscaler gets the target and the limit that the overlay `autoscaled` gives to KEDA.
pub fn hpa_on_requests(cluster: &Cluster) {
    let patches = "
  - target: {kind: HorizontalPodAutoscaler}
    patch: |-
      - {op: replace, path: /spec/maxReplicas, value: 6}
      - {op: test, path: /spec/metrics/1/pods/metric/name, value: zmq_echo_requests_per_second}
      - {op: replace, path: /spec/metrics/1/pods/target/averageValue, value: 1k}
";
    let run = Run {
        name: "hpa-requests",
        title: "HPA, requests of prometheus-adapter",
        metric: "zmq_echo_requests_per_second",
        unit: "requests/s",
        base: 500,
        burst: 4500,
        replicas: (3, 5, 6),
    };
    cluster.clear();
    let metrics_server = autoscalers::metrics_server(cluster);
    let adapter = autoscalers::prometheus_adapter(cluster);
    let components = "k8s/components/prometheus, k8s/components/hpa";
    run.follow(cluster, run.with_components(components, patches));
    drop((adapter, metrics_server));
}

/// Uses the overlay `autoscaled` unchanged.
pub fn keda(cluster: &Cluster) {
    let run = Run {
        name: "keda",
        title: "KEDA, requests of Prometheus",
        metric: "s1-prometheus",
        unit: "requests/s",
        base: 500,
        burst: 4500,
        replicas: (3, 5, 6),
    };
    cluster.clear();
    let metrics_server = autoscalers::metrics_server(cluster);
    let keda = autoscalers::keda(cluster);
    run.follow(cluster, build("overlays/autoscaled"));
    drop((keda, metrics_server));
}

/// A load in three phases: low, high, low.
struct Run {
    name: &'static str,
    title: &'static str,
    /// The metric by which the autoscaler must ask for more replicas.
    metric: &'static str,
    unit: &'static str,
    /// Requests/s from beginning to end, and those that the high load adds.
    base: u32,
    burst: u32,
    /// The number of replicas at low load, the least number at high load, and the maximum.
    replicas: (usize, usize, usize),
}

/// The least duration of the high load. It is longer than rates look back, so they reach its full
/// value.
const BURST: Duration = Duration::from_secs(180);

/// How long autoscalers may take in addition to the times in the manifests.
const PATIENCE: Duration = Duration::from_secs(420);

/// The pause between two samples.
const PERIOD: Duration = Duration::from_secs(5);

impl Run {
    /// Builds the local overlay with more components and patches.
    fn with_components(&self, components: &str, patches: &str) -> Vec<Json> {
        let kustomization = format!(
            "apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\n\
             namespace: zmq-echo\nresources: [k8s/overlays/local]\n\
             components: [{components}]\npatches:{patches}"
        );
        build_kustomization(self.name, &kustomization)
    }

    fn follow(&self, cluster: &Cluster, mut objects: Vec<Json>) {
        let (least, enough, most) = self.replicas;
        let job = take(&mut objects, "Job");
        for object in &mut objects {
            use_images(cluster, object);
            shorten(object, cluster.window);
        }
        let removed = Removed(NAME.to_owned());
        apply(&objects);
        for object in objects.iter().filter(|object| object["kind"] == "Deployment") {
            let deployment = format!("deployment/{}", name(object));
            kubectl(&["rollout", "status", &deployment, "--timeout=240s"]);
        }
        cluster.wait_for_servers(least);
        wait_within(PATIENCE, "the autoscaler knows its metrics", || {
            let autoscaler = autoscaler(&cluster.reader())?;
            (knows_its_metrics() && metric(&autoscaler, self.metric).is_some()).then_some(())
        });
        let down = cluster.window.map_or_else(
            || window(&autoscaler(&cluster.reader()).expect("the autoscaler exists")),
            |seconds| Duration::from_secs(seconds.into()),
        );

        let fleet = Fleet::watch(cluster);
        let start = |name, rate: u32| {
            let rate = rate.to_string();
            Load::start_with(cluster, &job, name, None, &[("--rate", &rate), ("--timeout", "5s")])
        };
        let base = start("base", self.base);
        let recorder = Recorder::new(cluster.reader(), self.metric);
        let (record, outcomes) = thread::scope(|scope| {
            let _end = OnDrop(|| recorder.is_over.store(true, Ordering::Relaxed));
            scope.spawn(|| recorder.run());
            recorder.set_load(self.base);
            // The picture needs some samples from before and after the high load.
            thread::sleep(6 * PERIOD);
            let burst = start("burst", self.burst);
            recorder.set_load(self.base + self.burst);
            let began = Instant::now();
            let begin = recorder.now();
            wait_within(PATIENCE, &format!("{enough} servers are ready"), || {
                (cluster.ready_servers().len() >= enough).then_some(())
            });
            println!("  {enough} servers after {:.0} s", began.elapsed().as_secs_f64());
            // There is no condition to wait for: the high load has to last this long.
            thread::sleep(BURST.saturating_sub(began.elapsed()));
            recorder.set_load(self.base);
            let end = recorder.now();
            let burst = burst.finish();
            wait_within(down + PATIENCE, &format!("{least} servers are left"), || {
                let wanted = recorder.last_wanted();
                (wanted == least && cluster.list("pods", crate::api::SERVER).len() == least)
                    .then_some(())
            });
            println!("  {least} servers {:.0} s after the load", recorder.now() - end);
            thread::sleep(6 * PERIOD);
            (recorder.record(self, begin, end), [base.finish(), burst])
        });
        record.keep(self.name);
        for sample in &record.samples {
            assert!(sample.wanted <= most, "{sample:?}");
            assert!(sample.wanted >= least, "{sample:?}");
        }
        record.takes_nothing_away_within(down.as_secs_f64());
        record.asks_for_more_by_its_metric();
        fleet.accounts_for(&outcomes);
        drop(removed);
    }
}

/// Changes the time before pods are removed, if `--window` says so.
fn shorten(object: &mut Json, window: Option<u32>) {
    let Some(window) = window else { return };
    for path in [
        "/spec/behavior/scaleDown/stabilizationWindowSeconds",
        "/spec/advanced/horizontalPodAutoscalerConfig/behavior/scaleDown/stabilizationWindowSeconds",
    ] {
        if let Some(value) = object.pointer_mut(path) {
            *value = json!(window);
        }
    }
}

fn autoscaler(reader: &Reader) -> Option<Json> {
    let path = format!("/apis/autoscaling/v2/namespaces/{NAME}/horizontalpodautoscalers/{NAME}");
    serde_json::from_str(&reader.read(&path).ok()?).ok()
}

fn window(autoscaler: &Json) -> Duration {
    let seconds = &autoscaler["spec"]["behavior"]["scaleDown"]["stabilizationWindowSeconds"];
    Duration::from_secs(seconds.as_u64().expect("the manifests set a time"))
}

/// Whether a metric of an autoscaler has this name. A metric of a resource, such as the CPU, has
/// the resource's name.
fn is_called(metric: &Json, name: &str) -> bool {
    metric["resource"]["name"] == name
        || ["pods", "external"].iter().any(|kind| metric[kind]["metric"]["name"] == name)
}

/// The current value of a metric per pod, and its target.
fn metric(autoscaler: &Json, name: &str) -> Option<(f64, f64)> {
    let find =
        |list: &Json| list.as_array()?.iter().find(|metric| is_called(metric, name)).cloned();
    let value = |metric: &Json, of: &str| {
        let kinds = ["resource", "pods", "external"].into_iter();
        kinds.filter_map(|kind| quantity(metric[kind][of]["averageValue"].as_str()?)).next()
    };
    let current = value(&find(&autoscaler["status"]["currentMetrics"])?, "current")?;
    Some((current, value(&find(&autoscaler["spec"]["metrics"])?, "target")?))
}

/// Parses a quantity such as `10k`, `853m` or `1000`.
fn quantity(text: &str) -> Option<f64> {
    let units = [("n", 1e-9), ("u", 1e-6), ("m", 1e-3), ("k", 1e3), ("M", 1e6), ("", 1.0)];
    let (number, factor) =
        units.into_iter().find_map(|(unit, factor)| Some((text.strip_suffix(unit)?, factor)))?;
    Some(number.parse::<f64>().ok()? * factor)
}

/// Takes a sample every [`PERIOD`].
struct Recorder {
    reader: Reader,
    metric: &'static str,
    start: Instant,
    load: Mutex<u32>,
    samples: Mutex<Vec<Sample>>,
    target: Mutex<f64>,
    is_over: AtomicBool,
}

impl Recorder {
    fn new(reader: Reader, metric: &'static str) -> Self {
        Self {
            reader,
            metric,
            start: Instant::now(),
            load: Mutex::default(),
            samples: Mutex::default(),
            target: Mutex::default(),
            is_over: AtomicBool::new(false),
        }
    }

    fn now(&self) -> f64 {
        self.start.elapsed().as_secs_f64()
    }

    fn set_load(&self, rate: u32) {
        *self.load.lock().unwrap() = rate;
    }

    fn run(&self) {
        while !self.is_over.load(Ordering::Relaxed) {
            if let Some(sample) = self.sample() {
                self.samples.lock().unwrap().push(sample);
            }
            thread::sleep(PERIOD);
        }
    }

    fn sample(&self) -> Option<Sample> {
        let autoscaler = autoscaler(&self.reader)?;
        let path = format!("/apis/apps/v1/namespaces/{NAME}/deployments/{NAME}");
        let deployment: Json = serde_json::from_str(&self.reader.read(&path).ok()?).ok()?;
        let number = |value: &Json| value.as_u64().unwrap_or(0) as usize;
        let metric = metric(&autoscaler, self.metric);
        if let Some((_, target)) = metric {
            *self.target.lock().unwrap() = target;
        }
        Some(Sample {
            at: self.now(),
            load: (*self.load.lock().unwrap()).into(),
            metric: metric.map(|(value, _)| value),
            wanted: number(&deployment["spec"]["replicas"]),
            ready: number(&deployment["status"]["readyReplicas"]),
        })
    }

    fn last_wanted(&self) -> usize {
        self.samples.lock().unwrap().last().map_or(0, |sample| sample.wanted)
    }

    /// The record, with times counted from the beginning of the high load.
    fn record(&self, run: &Run, begin: f64, end: f64) -> Record {
        let mut samples = self.samples.lock().unwrap().clone();
        for sample in &mut samples {
            sample.at -= begin;
        }
        Record {
            title: run.title.to_owned(),
            unit: run.unit.to_owned(),
            target: *self.target.lock().unwrap(),
            ended: end - begin,
            samples,
        }
    }
}

impl Record {
    /// Writes the record to cargo's target directory, as JSON and CSV, and draws all records that
    /// are there.
    #[track_caller]
    fn keep(&self, name: &str) {
        let directory = artefacts();
        fs::write(directory.join(format!("{name}.json")), self.json().to_string())
            .expect("it can be written");
        fs::write(directory.join(format!("{name}.csv")), self.csv()).expect("it can be written");
        let records: Vec<_> = ["hpa-cpu", "hpa-requests", "keda"]
            .iter()
            .filter_map(|name| fs::read_to_string(directory.join(format!("{name}.json"))).ok())
            .map(|text| Self::from_json(&serde_json::from_str(&text).expect("a record is JSON")))
            .collect();
        let picture = directory.join("scaling.svg");
        fs::write(&picture, plot::svg(&records)).expect("it can be written");
        println!("  {}", picture.display());
    }

    /// Checks that no replica is removed before the autoscaler's window has passed.
    #[track_caller]
    fn takes_nothing_away_within(&self, window: f64) {
        let pairs = self.samples.windows(2);
        let fewer = pairs.filter(|pair| pair[1].wanted < pair[0].wanted).map(|pair| pair[1].at);
        let first =
            fewer.into_iter().next().expect("the autoscaler removed servers after the load");
        // The autoscaler looks every 15 s, at values that may be just as old, and samples have
        // gaps.
        assert!(
            first >= self.ended + window - 45.0,
            "servers were removed {first:.0} s after the high load began"
        );
    }

    /// Checks that the metric was above its target when the autoscaler asked for more replicas.
    #[track_caller]
    fn asks_for_more_by_its_metric(&self) {
        let mut pairs = self.samples.windows(2);
        let more = pairs
            .rfind(|pair| pair[1].wanted > pair[0].wanted)
            .expect("the autoscaler added servers");
        let until = more[1].at + 15.0;
        let seen = self.samples.iter().filter(|sample| sample.at <= until);
        let highest = seen.filter_map(|sample| sample.metric).fold(0.0, f64::max);
        assert!(
            highest > self.target,
            "the metric reached {highest} of {}, so another one asked for more replicas",
            self.target
        );
    }
}

fn artefacts() -> PathBuf {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().expect("the target directory");
    let directory = target.join("scaling");
    fs::create_dir_all(&directory).expect("the target directory can be written");
    directory
}

struct OnDrop<F: Fn()>(F);

impl<F: Fn()> Drop for OnDrop<F> {
    fn drop(&mut self) {
        (self.0)();
    }
}
