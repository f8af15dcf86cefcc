//! One autoscaler at a time, both with the same numbers, on metrics that are there.

use k8s_openapi::api::autoscaling::v2::{HorizontalPodAutoscaler, MetricTarget};
use k8s_openapi::api::core::v1::Service;
use serde_json::{Value, json};

use crate::build::{NAME, Server, Variant, builds_beside, parse, variant, variants};
use crate::memory::resource;
use crate::monitoring::{PROMETHEUS, component_file};

/// The CPU time of a request where clients wait for each reply, in seconds, as
/// docs/operations.md has it.
const CPU_OF_A_REQUEST: f64 = 11e-6;

fn hpa(variant: &'static Variant) -> HorizontalPodAutoscaler {
    variant.named(NAME)
}

pub fn with_hpa() -> HorizontalPodAutoscaler {
    hpa(variant("components-hpa"))
}

fn scaled_object() -> Value {
    let documents = &variant("components-keda").documents;
    documents.iter().find(|document| document["kind"] == "ScaledObject").unwrap()["spec"].clone()
}

fn adapter() -> Value {
    component_file("hpa/prometheus-adapter-values.yaml").1
}

fn adapter_rules() -> Vec<Value> {
    adapter()["rules"]["custom"].as_array().unwrap().clone()
}

/// A quantity such as `10k`, `50m` or `1000`.
fn number(quantity: &str) -> f64 {
    let unit = |(unit, factor): (&str, f64)| Some((quantity.strip_suffix(unit)?, factor));
    let (number, factor) = [("k", 1e3), ("m", 1e-3), ("", 1.0)].into_iter().find_map(unit).unwrap();
    number.parse::<f64>().unwrap() * factor
}

/// The metrics of an autoscaler with their targets per pod.
pub fn targets(autoscaler: &HorizontalPodAutoscaler) -> Vec<(String, f64)> {
    let metrics = autoscaler.spec.metrics.clone().unwrap();
    let target = |target: &MetricTarget| {
        assert_eq!(target.type_, "AverageValue");
        number(&target.average_value.as_ref().unwrap().0)
    };
    let pods = metrics.into_iter().map(|metric| metric.pods.expect("a metric of the pods"));
    pods.map(|pods| (pods.metric.name, target(&pods.target))).collect()
}

#[test]
fn where_there_is_an_autoscaler_the_replicas_are_its_own() {
    let base = variant("base").server().deployment.spec.replicas;
    for variant in variants() {
        let count = |kind: &str| {
            variant.documents.iter().filter(|document| document["kind"] == kind).count()
        };
        let autoscalers = count("HorizontalPodAutoscaler") + count("ScaledObject");
        assert!(autoscalers <= 1, "{}", variant.name);
        let replicas = variant.server().deployment.spec.replicas;
        let expected = if autoscalers == 0 { base } else { None };
        assert_eq!(replicas, expected, "{}", variant.name);
    }
    assert_eq!(with_hpa().spec.min_replicas, base);
}

#[test]
fn both_autoscalers_at_once_do_not_build() {
    let kustomization = |components: &str| {
        format!(
            "apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\n\
             resources: [../../base]\ncomponents: [{components}]\n"
        )
    };
    for (name, components, expected) in [
        ("one-autoscaler", "../../components/hpa", true),
        ("two-autoscalers", "../../components/hpa, ../../components/keda", false),
    ] {
        let built = builds_beside("overlays", name, &kustomization(components));
        assert_eq!(built, expected, "{name}");
    }
}

#[test]
fn both_autoscalers_scale_the_server() {
    let target = with_hpa().spec.scale_target_ref;
    let target = serde_json::to_value(target).unwrap();
    assert_eq!(target, json!({ "apiVersion": "apps/v1", "kind": "Deployment", "name": NAME }));
    assert_eq!(scaled_object()["scaleTargetRef"], target);
}

#[test]
fn both_autoscalers_have_the_same_numbers() {
    let (hpa, keda) = (serde_json::to_value(with_hpa().spec).unwrap(), scaled_object());
    assert_eq!(keda["minReplicaCount"], hpa["minReplicas"]);
    assert_eq!(keda["maxReplicaCount"], hpa["maxReplicas"]);
    let advanced = &keda["advanced"]["horizontalPodAutoscalerConfig"];
    assert_eq!(advanced["behavior"], hpa["behavior"]);
    assert_eq!(advanced["name"], NAME);
    let thresholds: Vec<f64> = keda["triggers"]
        .as_array()
        .unwrap()
        .iter()
        .map(|trigger| trigger["metadata"]["threshold"].as_str().unwrap().parse().unwrap())
        .collect();
    let targets: Vec<f64> = targets(&with_hpa()).into_iter().map(|(_, target)| target).collect();
    assert_eq!(thresholds, targets);
}

#[test]
fn both_autoscalers_ask_the_same() {
    let asked = adapter_rules().into_iter().map(|rule| {
        let (series, _) = rule["seriesQuery"].as_str().unwrap().split_once('{').unwrap();
        let query = rule["metricsQuery"].as_str().unwrap();
        query
            .replace("<<.Series>>", series)
            .replace("<<.LabelMatchers>>", &format!("namespace=\"{NAME}\""))
            .replace(" by (<<.GroupBy>>)", "")
    });
    let object = scaled_object();
    let triggers = object["triggers"].as_array().unwrap();
    let queries: Vec<_> =
        triggers.iter().map(|trigger| trigger["metadata"]["query"].as_str().unwrap()).collect();
    assert_eq!(queries, asked.collect::<Vec<_>>());
    // A sum is shared among the pods, a share is not.
    let kinds: Vec<_> = triggers.iter().map(|trigger| &trigger["metricType"]).collect();
    assert_eq!(kinds, ["AverageValue", "Value"]);
}

#[test]
fn an_outage_of_prometheus_does_not_look_idle() {
    let object = scaled_object();
    for trigger in object["triggers"].as_array().unwrap() {
        let metadata = &trigger["metadata"];
        assert_eq!(metadata["ignoreNullValues"], "false");
        assert!(!metadata["query"].as_str().unwrap().contains("vector("), "{metadata}");
    }
    let fallback = &object["fallback"];
    assert_eq!(fallback["behavior"], "currentReplicasIfHigher");
    assert!(fallback["replicas"].as_i64() >= object["minReplicaCount"].as_i64());
}

#[test]
fn both_autoscalers_ask_our_prometheus() {
    let variant = variant("components-prometheus");
    let service: Service = variant.named(PROMETHEUS);
    let (metadata, spec) = (service.metadata, service.spec.unwrap());
    let host =
        format!("http://{}.{}.svc", metadata.name.unwrap(), metadata.namespace.expect("one"));
    let port = spec.ports.unwrap()[0].port;
    let adapter = adapter();
    assert_eq!(adapter["prometheus"]["url"], host);
    assert_eq!(adapter["prometheus"]["port"], port);
    for trigger in scaled_object()["triggers"].as_array().unwrap() {
        assert_eq!(trigger["metadata"]["serverAddress"], format!("{host}:{port}"));
    }
}

#[test]
fn the_adapter_makes_the_metrics_that_the_autoscaler_asks_for() {
    let made: Vec<_> = adapter_rules().iter().map(metric_of).collect();
    let asked: Vec<_> = targets(&with_hpa()).into_iter().map(|(name, _)| name).collect();
    assert_eq!(made, asked);
}

/// The name that a rule gives: `matches` is a whole name here, or all before a suffix.
fn metric_of(rule: &Value) -> String {
    let (series, matchers) = rule["seriesQuery"].as_str().unwrap().split_once('{').unwrap();
    for label in ["namespace", "pod"] {
        // Without them nothing says whose it is.
        assert!(matchers.contains(&format!("{label}!=\"\"")), "{matchers}");
        assert_eq!(rule["resources"]["overrides"][label]["resource"], label);
    }
    let matches = rule["name"]["matches"].as_str().unwrap();
    let matches = matches.strip_prefix('^').and_then(|rest| rest.strip_suffix('$')).unwrap();
    let captured = match matches.strip_prefix("(.*)") {
        Some(suffix) => series.strip_suffix(suffix).expect("the suffix"),
        None => {
            assert_eq!(matches, series);
            ""
        }
    };
    rule["name"]["as"].as_str().unwrap().replace("${1}", captured)
}

#[test]
fn only_clients_requests_count() {
    for rule in adapter_rules() {
        let query = rule["metricsQuery"].as_str().unwrap();
        let requests = rule["seriesQuery"].as_str().unwrap().starts_with("zmq_echo_requests_total");
        // The histogram is of clients' requests alone.
        assert_eq!(query.contains("source=\"client\""), requests, "{query}");
    }
}

#[test]
fn the_target_is_half_of_what_the_cpu_request_carries() {
    let server: Server = variant("components-hpa").server();
    let cpu = number(&resource(server.container(), "requests", "cpu").unwrap());
    let carried = cpu / CPU_OF_A_REQUEST;
    let share = targets(&with_hpa())[0].1 / carried;
    assert!((0.4..=0.5).contains(&share), "{share} of {carried}");
}

#[test]
fn the_load_of_a_laptop_wants_more_than_the_minimum_and_less_than_the_maximum() {
    let overlay = variant("overlays-autoscaled");
    let (name, target) = targets(&hpa(overlay)).remove(0);
    assert_eq!(name, "zmq_echo_requests_per_second");
    let job: k8s_openapi::api::batch::v1::Job = overlay.named("zmq-echo-load");
    let args = job.spec.unwrap().template.spec.unwrap().containers.remove(0).args.unwrap();
    let rate = args.iter().skip_while(|arg| *arg != "--rate").nth(1).unwrap();
    let wanted = (rate.parse::<f64>().unwrap() / target).ceil();
    let text = include_str!("../../k8s/overlays/autoscaled/kustomization.yaml");
    assert!(text.contains(&format!("load of {rate} requests a second wants five")));
    assert_eq!(wanted, 5.0);
    let spec = hpa(overlay).spec;
    // Beyond the tolerance of a tenth, for the minimum to be left.
    assert!(wanted > f64::from(spec.min_replicas.unwrap()) * 1.1);
    assert!(wanted < f64::from(spec.max_replicas));
}

#[test]
fn what_goes_up_at_once_comes_down_after_a_while() {
    let behavior = with_hpa().spec.behavior.unwrap();
    let (up, down) = (behavior.scale_up.unwrap(), behavior.scale_down.unwrap());
    assert_eq!(up.stabilization_window_seconds, Some(0));
    assert!(down.stabilization_window_seconds >= Some(300));
    let kinds: Vec<_> = up.policies.unwrap().into_iter().map(|policy| policy.type_).collect();
    assert_eq!(kinds, ["Percent", "Pods"]);
}

#[test]
fn the_values_for_the_adapter_are_no_manifest() {
    for variant in variants() {
        assert!(variant.documents.iter().all(|document| document["kind"].is_string()));
    }
    let (text, _) = component_file("hpa/prometheus-adapter-values.yaml");
    assert!(parse(&text)[0]["kind"].is_null());
}
