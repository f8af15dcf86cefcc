//! Both ways of scraping reach the same targets under the same names, and no Prometheus finds a
//! target twice.

use std::path::Path;
use std::time::Duration;

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ConfigMap, Container, Service};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use serde_json::{Value, json};
use zmq_echo::side_port::PATHS;

use crate::build::{NAME, Pod, Variant, build_beside, parse, root, variant, variants};
use crate::labels::selects;

pub const PROMETHEUS: &str = "zmq-echo-prometheus";

/// The file with this path under `k8s/components/`, which has one document.
pub fn component_file(path: &str) -> (String, Value) {
    let path = root().join("k8s/components").join(path);
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{error}: {path:?}"));
    let [document] = &parse(&text)[..] else { panic!("expected one document in {path:?}") };
    (text, document.clone())
}

fn with_prometheus() -> &'static Variant {
    variant("components-prometheus")
}

fn scrape_config() -> Value {
    let (_, config) = component_file("prometheus/prometheus.yml");
    let [job] = &config["scrape_configs"].as_array().unwrap()[..] else {
        panic!("expected one scrape job")
    };
    job.clone()
}

fn only<'a>(variant: &'a Variant, kind: &str) -> &'a Value {
    let mut documents = variant.documents.iter().filter(|document| document["kind"] == kind);
    documents.next().unwrap_or_else(|| panic!("{} has no {kind}", variant.name))
}

fn pod_monitor() -> &'static Value {
    &only(variant("components-monitoring"), "PodMonitor")["spec"]
}

fn endpoint() -> &'static Value {
    let [endpoint] = &pod_monitor()["podMetricsEndpoints"].as_array().unwrap()[..] else {
        panic!("expected one endpoint")
    };
    endpoint
}

fn container() -> Container {
    let deployment: Deployment = with_prometheus().named(PROMETHEUS);
    deployment.spec.template.spec.unwrap().containers.remove(0)
}

fn argument(name: &str) -> String {
    let flag = format!("--{name}=");
    let arguments = container().args.unwrap_or_default();
    arguments.iter().find_map(|argument| argument.strip_prefix(&flag)).expect(name).to_owned()
}

fn annotation<'a>(pod: &'a Pod, name: &str) -> Option<&'a str> {
    pod.metadata.annotations.as_ref()?.get(&format!("prometheus.io/{name}")).map(String::as_str)
}

/// A typical Prometheus looks for the annotation. If it also read the operator's targets, it would
/// have each pod twice, and every sum would be doubled.
#[test]
fn a_pod_with_a_pod_monitor_does_not_ask_to_be_scraped_by_its_annotation() {
    let with_both = both_ways();
    for variant in variants().iter().chain([&with_both]) {
        let monitored = variant.documents.iter().any(|one| one["kind"] == "PodMonitor");
        let pods = variant.pods();
        let server = pods.iter().find(|pod| pod.label("app.kubernetes.io/name") == Some(NAME));
        let asks = annotation(server.unwrap(), "scrape");
        assert_eq!(asks, (!monitored).then_some("true"), "{}", variant.name);
    }
}

/// The components `prometheus` and `monitoring` combined.
fn both_ways() -> Variant {
    let kustomization = format!(
        "namespace: {NAME}\nresources: [../../base]\n\
         components: [../../components/monitoring, ../../components/prometheus]\n"
    );
    build_beside("overlays", "scraped-both-ways", &kustomization)
}

/// The bundled Prometheus finds the servers with and without the operator: by their port, unless
/// they opt out of scraping. `live` tests this rule.
#[test]
fn the_bundled_prometheus_finds_the_servers_even_next_to_the_operators() {
    let relabel = scrape_config()["relabel_configs"].clone();
    let keep: Vec<_> =
        relabel.as_array().unwrap().iter().filter(|rule| rule["action"] == "keep").collect();
    let [keep] = &keep[..] else { panic!("{keep:?}") };
    let meta = |name: &str| format!("__meta_kubernetes_pod_annotation_prometheus_io_{name}");
    assert_eq!(keep["source_labels"], json!([meta("scrape"), meta("port")]));
    assert_eq!(keep["regex"], r"(true)?;\d+");
    let with_both = both_ways();
    for variant in [variant("components-prometheus"), &with_both] {
        let mut found = 0;
        for pod in variant.pods() {
            let port = annotation(&pod, "port").unwrap_or_default();
            let asks = annotation(&pod, "scrape").unwrap_or_default();
            if ["", "true"].contains(&asks) && port.parse::<u16>().is_ok() {
                assert_eq!(pod.label("app.kubernetes.io/name"), Some(NAME));
                found += 1;
            }
        }
        assert_eq!(found, 1, "{}", variant.name);
    }
}

#[test]
fn the_release_label_is_documented_and_reaches_what_the_operator_selects() {
    let page = include_str!("../../docs/monitoring.md");
    let (_, section) = page.split_once("## The operator's `release` label\n").expect("a section");
    let shown = section.split("```yaml\n").nth(1).unwrap().split("```").next().unwrap();
    let built = build_beside("overlays", "release", shown);
    let of_the_operator: Vec<_> = built
        .documents
        .iter()
        .filter(|one| one["apiVersion"].as_str().unwrap().starts_with("monitoring.coreos.com/"))
        .collect();
    assert_eq!(of_the_operator.len(), 2);
    for document in of_the_operator {
        assert!(
            document["metadata"]["labels"]["release"].is_string(),
            "the object has no release label: {document}"
        );
    }
    let kubernetes = include_str!("../../docs/kubernetes.md");
    let (monitoring, _) = component_file("monitoring/kustomization.yaml");
    let (monitor, _) = component_file("monitoring/pod-monitor.yaml");
    let operations = include_str!("../../docs/operations.md");
    let alert = operations.split("### ZmqEchoNoReplicaSeen\n").nth(1).unwrap();
    for text in [kubernetes, &monitoring, &monitor, alert] {
        assert!(text.contains("`release`"), "the file does not explain the label: {text}");
    }
}

#[test]
fn the_operators_rules_are_those_of_the_file() {
    let (text, _) = component_file("monitoring/prometheus-rule.yaml");
    let (rules, _) = component_file("prometheus/rules.yml");
    let (_, spec) = text.split_once("\nspec:\n").expect("a spec");
    let indented = |line: &str| if line.is_empty() { String::new() } else { format!("  {line}") };
    let expected: Vec<_> = rules.lines().map(indented).collect();
    let held: Vec<_> = spec.lines().collect();
    assert_eq!(
        held, expected,
        "prometheus-rule.yaml is outdated; the command that generates it is at its top"
    );
}

#[test]
fn both_monitoring_setups_have_the_same_interval_and_keep_the_same_series() {
    let (_, config) = component_file("prometheus/prometheus.yml");
    assert_eq!(endpoint()["interval"], config["global"]["scrape_interval"]);
    assert_eq!(endpoint()["scrapeTimeout"], config["global"]["scrape_timeout"]);
    assert_eq!(pod_monitor()["sampleLimit"], scrape_config()["sample_limit"]);
    let mut kept = endpoint()["metricRelabelings"].clone();
    for rule in kept.as_array_mut().unwrap() {
        let rule = rule.as_object_mut().unwrap();
        let labels = rule.remove("sourceLabels").unwrap();
        rule.insert("source_labels".to_owned(), labels);
    }
    assert_eq!(kept, scrape_config()["metric_relabel_configs"]);
}

#[test]
fn scrapes_are_frequent_enough_to_see_a_drain_and_time_out_before_the_next() {
    let (_, config) = component_file("prometheus/prometheus.yml");
    let seconds = |name: &str| {
        let text = config["global"][name].as_str().unwrap();
        humantime::parse_duration(text).unwrap()
    };
    assert!(seconds("scrape_timeout") < seconds("scrape_interval"));
    for server in crate::build::Server::all() {
        let drain = crate::server::config(&server).drain_timeout;
        assert!(
            seconds("scrape_interval") * 4 <= drain,
            "{}: a drain may be over before it is scraped",
            server.variant
        );
    }
}

#[test]
fn the_operator_finds_the_servers_at_their_metrics() {
    let variant = variant("components-monitoring");
    let selector: LabelSelector = serde_json::from_value(pod_monitor()["selector"].clone())
        .expect("the PodMonitor has a selector");
    let pods = variant.pods();
    let found: Vec<_> = pods.iter().filter(|pod| selects(&selector, pod)).collect();
    let [server] = &found[..] else { panic!("expected one pod, got {}", found.len()) };
    let ports = server.spec.containers[0].ports.iter().flatten();
    let mut names = ports.filter_map(|port| port.name.as_deref());
    assert!(names.any(|name| endpoint()["port"] == name && name == "http"));
    assert!(PATHS.iter().any(|(path, _)| endpoint()["path"] == *path && path.contains("metrics")));
}

#[test]
fn both_monitoring_setups_use_the_job_name_in_the_rules() {
    let label = pod_monitor()["jobLabel"].as_str().unwrap();
    let meta = format!("__meta_kubernetes_pod_label_{}", label.replace(['.', '/'], "_"));
    let relabel = scrape_config()["relabel_configs"].clone();
    let mut rules = relabel.as_array().unwrap().iter();
    let job = rules.find(|rule| rule["target_label"] == "job").expect("a rule sets the job label");
    assert_eq!(job["source_labels"], json!([meta]));
    let pods = variant("base").pods();
    assert_eq!(pods[0].label(label), Some(NAME));
    let (rules, _) = component_file("prometheus/rules.yml");
    assert!(rules.contains("job=\""), "no rule selects a job");
    for (_, rest) in rules.match_indices("job=\"").map(|(at, it)| rules.split_at(at + it.len())) {
        assert!(rest.starts_with(&format!("{NAME}\"")), "{}", &rest[..20]);
    }
}

/// Compared literally, because the Prometheus package used by the other tests was built without
/// this discovery.
#[test]
fn prometheus_discovers_only_pods_in_its_namespace_that_it_may_reach() {
    let label = "app.kubernetes.io/part-of";
    let expected = json!([{
        "role": "pod",
        "namespaces": { "own_namespace": true },
        "selectors": [{ "role": "pod", "label": format!("{label}={NAME}") }],
    }]);
    assert_eq!(scrape_config()["kubernetes_sd_configs"], expected);
    for pod in variants().iter().flat_map(Variant::pods) {
        assert_eq!(pod.label(label), Some(NAME), "{}", pod.origin);
    }
}

#[test]
fn prometheus_files_are_mounted_where_its_arguments_read_them() {
    let deployment: Deployment = with_prometheus().named(PROMETHEUS);
    let pod = deployment.spec.template.spec.unwrap();
    let mounts = container().volume_mounts.unwrap();
    let mount = |name: &str| mounts.iter().find(|mount| mount.name == name).unwrap();
    let volumes = pod.volumes.unwrap();
    let volume = |name: &str| volumes.iter().find(|volume| volume.name == name).unwrap();

    let map = volume("config").config_map.clone().unwrap().name;
    let map: ConfigMap = with_prometheus().named(&map);
    let file = argument("config.file");
    let file = Path::new(&file);
    assert_eq!(file.parent(), Some(Path::new(&mount("config").mount_path)));
    let data = map.data.unwrap();
    let (config, parsed) = component_file("prometheus/prometheus.yml");
    assert_eq!(data[file.file_name().unwrap().to_str().unwrap()], config);
    for rules in parsed["rule_files"].as_array().unwrap() {
        // Next to the configuration, because such a path is relative to it.
        let name = rules.as_str().unwrap();
        assert_eq!(data[name], component_file(&format!("prometheus/{name}")).0);
    }
    assert_eq!(argument("storage.tsdb.path"), mount("data").mount_path);
    assert!(volume("data").empty_dir.is_some() && mount("data").read_only.is_none());
}

#[test]
fn prometheus_retention_fits_its_volume_and_covers_the_longest_window() {
    let deployment: Deployment = with_prometheus().named(PROMETHEUS);
    let volumes = deployment.spec.template.spec.unwrap().volumes.unwrap();
    let mut empty = volumes.into_iter().filter_map(|volume| volume.empty_dir);
    let room = crate::memory::bytes(&empty.next().unwrap().size_limit.unwrap().0);
    let kept = argument("storage.tsdb.retention.size");
    let gigabytes: usize = kept.strip_suffix("GB").expect("the size is in GB").parse().unwrap();
    assert!(gigabytes << 30 <= room / 2);
    let (rules, _) = component_file("prometheus/rules.yml");
    let windows = rules.split('[').skip(1).filter_map(|rest| rest.split(']').next());
    let longest = windows.filter_map(|text| humantime::parse_duration(text).ok()).max().unwrap();
    assert!(longest > Duration::from_secs(3600));
    let kept = humantime::parse_duration(&argument("storage.tsdb.retention.time")).unwrap();
    assert!(kept > longest);
}

#[test]
fn the_prometheus_service_leads_to_its_port() {
    let service: Service = with_prometheus().named(PROMETHEUS);
    let [port] = &service.spec.unwrap().ports.unwrap()[..] else { panic!("expected one port") };
    let [opened] = &container().ports.unwrap()[..] else { panic!("expected one port") };
    assert_eq!(port.target_port, opened.name.clone().map(IntOrString::String));
    assert_eq!(port.port, opened.container_port);
    assert_eq!(port.app_protocol.as_deref(), Some("http"));
}
