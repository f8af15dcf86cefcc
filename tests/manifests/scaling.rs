//! One autoscaler at a time, both with the same numbers, on metrics that exist.

use k8s_openapi::api::autoscaling::v2::{HorizontalPodAutoscaler, MetricTarget};
use k8s_openapi::api::core::v1::Service;
use serde_json::{Value, json};

use crate::build::{NAME, Server, Variant, build_beside, builds_beside, parse, variant, variants};
use crate::memory::resource;
use crate::monitoring::{PROMETHEUS, component_file};

/// The CPU time of a request if requests come one at a time, in microseconds: the first row of
/// the table about CPU in docs/sizing.md.
pub const CPU_OF_A_REQUEST: f64 = 14.0;

/// The CPU that other pods request in a cluster with one node, in cores: kind's own pods,
/// metrics-server, and the three of KEDA.
const OF_THE_CLUSTER: f64 = 1.35;

/// The CPUs of a laptop's node: minikube's default.
const CPUS: f64 = 2.0;

pub fn with_hpa() -> HorizontalPodAutoscaler {
    variant("components-hpa").named(NAME)
}

fn object(variant: &Variant) -> &Value {
    let documents = &variant.documents;
    documents.iter().find(|document| document["kind"] == "ScaledObject").unwrap()
}

fn scaled_object() -> Value {
    object(variant("components-keda"))["spec"].clone()
}

fn triggers(object: &Value) -> &[Value] {
    object["triggers"].as_array().unwrap()
}

/// The triggers that query Prometheus.
fn queries(object: &Value) -> impl Iterator<Item = &Value> {
    triggers(object).iter().filter(|trigger| trigger["type"] == "prometheus")
}

fn threshold(trigger: &Value) -> f64 {
    let metadata = &trigger["metadata"];
    number(metadata["threshold"].as_str().or(metadata["value"].as_str()).unwrap())
}

fn adapter() -> Value {
    component_file("hpa/prometheus-adapter-values.yaml").1
}

fn adapter_rules() -> Vec<Value> {
    adapter()["rules"]["custom"].as_array().unwrap().clone()
}

/// A quantity such as `10k`, `50m` or `1000`.
fn number(quantity: &str) -> f64 {
    let unit = |(unit, factor, parts): (&str, f64, f64)| {
        let number: f64 = quantity.strip_suffix(unit)?.parse().ok()?;
        Some(number * factor / parts)
    };
    let units = [("k", 1e3, 1.0), ("m", 1.0, 1e3), ("", 1.0, 1.0)];
    units.into_iter().find_map(unit).unwrap()
}

/// The metrics of an autoscaler with their targets per pod.
pub fn targets(autoscaler: &HorizontalPodAutoscaler) -> Vec<(String, f64)> {
    let metrics = autoscaler.spec.metrics.clone().unwrap();
    let target = |target: &MetricTarget| {
        assert_eq!(target.type_, "AverageValue");
        number(&target.average_value.as_ref().unwrap().0)
    };
    let named = metrics.into_iter().map(|metric| match (metric.resource, metric.pods) {
        (Some(resource), None) => (resource.name, target(&resource.target)),
        (None, Some(pods)) => (pods.metric.name, target(&pods.target)),
        _ => panic!("expected a resource metric or a pod metric"),
    });
    named.collect()
}

/// The metrics that the adapter provides.
fn of_the_adapter(autoscaler: &HorizontalPodAutoscaler) -> Vec<(String, f64)> {
    let mut targets = targets(autoscaler);
    targets.retain(|(name, _)| name != "cpu");
    targets
}

#[test]
fn cpu_is_the_first_metric_of_both_autoscalers_and_a_share_of_one_core() {
    assert_eq!(targets(&with_hpa())[0], ("cpu".to_owned(), 0.7));
    let object = scaled_object();
    let first = &triggers(&object)[0];
    assert_eq!((&first["type"], &first["metricType"]), (&json!("cpu"), &json!("AverageValue")));
    // KEDA 2.18 removed the older form.
    assert!(first["metadata"]["type"].is_null());
}

#[test]
fn with_an_autoscaler_the_deployment_sets_no_replicas() {
    let base = variant("base").server().deployment.spec.replicas;
    for variant in variants() {
        let count = |kind: &str| {
            variant.documents.iter().filter(|document| document["kind"] == kind).count()
        };
        let autoscalers = count("HorizontalPodAutoscaler") + count("ScaledObject");
        assert!(autoscalers <= 1, "{} has more than one autoscaler", variant.name);
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
    let thresholds: Vec<f64> = triggers(&keda).iter().map(threshold).collect();
    let targets: Vec<f64> = targets(&with_hpa()).into_iter().map(|(_, target)| target).collect();
    assert_eq!(thresholds, targets);
}

#[test]
fn both_autoscalers_use_the_same_queries() {
    let asked = adapter_rules().into_iter().map(|rule| {
        let (series, _) = rule["seriesQuery"].as_str().unwrap().split_once('{').unwrap();
        let query = rule["metricsQuery"].as_str().unwrap();
        query
            .replace("<<.Series>>", series)
            .replace("<<.LabelMatchers>>", &format!("namespace=\"{NAME}\""))
            .replace(" by (<<.GroupBy>>)", "")
    });
    let object = scaled_object();
    let said: Vec<_> =
        queries(&object).map(|trigger| trigger["metadata"]["query"].as_str().unwrap()).collect();
    assert_eq!(said, asked.collect::<Vec<_>>());
    // A sum is divided among the pods; a ratio is not.
    let kinds: Vec<_> = queries(&object).map(|trigger| &trigger["metricType"]).collect();
    assert_eq!(kinds, ["AverageValue", "Value"]);
}

#[test]
fn an_outage_of_prometheus_does_not_scale_down() {
    let object = scaled_object();
    for trigger in queries(&object) {
        let metadata = &trigger["metadata"];
        assert_eq!(metadata["ignoreNullValues"], "false");
        assert!(
            !metadata["query"].as_str().unwrap().contains("vector("),
            "the query replaces missing data: {metadata}"
        );
    }
    let fallback = &object["fallback"];
    assert_eq!(fallback["behavior"], "currentReplicasIfHigher");
    assert!(fallback["replicas"].as_i64() >= object["minReplicaCount"].as_i64());
}

#[test]
fn both_autoscalers_query_the_bundled_prometheus() {
    let variant = variant("components-prometheus");
    let service: Service = variant.named(PROMETHEUS);
    let (metadata, spec) = (service.metadata, service.spec.unwrap());
    let host = format!(
        "http://{}.{}.svc",
        metadata.name.unwrap(),
        metadata.namespace.expect("the Service has a namespace")
    );
    let port = spec.ports.unwrap()[0].port;
    let adapter = adapter();
    assert_eq!(adapter["prometheus"]["url"], host);
    assert_eq!(adapter["prometheus"]["port"], port);
    for trigger in queries(&scaled_object()) {
        assert_eq!(trigger["metadata"]["serverAddress"], format!("{host}:{port}"));
    }
}

/// An overlay with these lines, in which every name and namespace differs from the base.
fn overlay(name: &str, lines: &str) -> Variant {
    let text = format!("apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\n{lines}");
    build_beside("overlays", name, &text)
}

/// All strings in a value, at any depth.
fn strings(value: &Value, found: &mut Vec<String>) {
    match value {
        Value::String(text) => found.push(text.clone()),
        Value::Array(items) => items.iter().for_each(|item| strings(item, found)),
        Value::Object(fields) => fields.values().for_each(|field| strings(field, found)),
        _ => {}
    }
}

#[test]
fn with_a_name_prefix_and_another_namespace_everything_still_finds_its_target() {
    let built = overlay(
        "prefixed",
        "namespace: team\nnamePrefix: blue-\nresources: [../autoscaled]\n\
         transformers: [../../components/keda/own-prometheus]\n",
    );
    let name = format!("blue-{NAME}");
    let whole = object(&built);
    assert_eq!(
        (&whole["metadata"]["name"], &whole["metadata"]["namespace"]),
        (&json!(name), &json!("team"))
    );
    let spec = &whole["spec"];
    assert_eq!(spec["scaleTargetRef"]["name"], json!(name));
    assert_eq!(spec["advanced"]["horizontalPodAutoscalerConfig"]["name"], json!(name));
    let service: Service = built.named(&format!("blue-{PROMETHEUS}"));
    let port = service.spec.unwrap().ports.unwrap()[0].port;
    let mut asked = 0;
    for trigger in queries(spec) {
        let metadata = &trigger["metadata"];
        assert_eq!(metadata["serverAddress"], format!("http://blue-{PROMETHEUS}.team.svc:{port}"));
        let query = metadata["query"].as_str().unwrap();
        assert_eq!(
            query.matches("namespace=").count(),
            query.matches("namespace=\"team\"").count()
        );
        asked += 1;
    }
    assert_eq!(asked, 2);
    // Nothing uses an old name or namespace: no binding, no volume, no environment variable.
    let old: Vec<_> = variant("overlays-autoscaled")
        .documents
        .iter()
        .map(|document| document["metadata"]["name"].as_str().unwrap().to_owned())
        .collect();
    let places = [
        "/spec/scaleTargetRef",
        "/roleRef",
        "/subjects",
        "/spec/template/spec/serviceAccountName",
        "/spec/template/spec/volumes/0/configMap",
        "/spec/template/spec/containers/0/env",
    ];
    let mut named = Vec::new();
    for document in &built.documents {
        places.iter().filter_map(|at| document.pointer(at)).for_each(|at| strings(at, &mut named));
    }
    assert!(
        named.iter().any(|name| name == "blue-zmq-echo-headless"),
        "no variable names the prefixed Service: {named:?}"
    );
    for name in named {
        assert!(!old.contains(&name), "the old name {name} is still used");
    }
}

#[test]
fn the_address_of_prometheus_is_set_in_one_place() {
    let (text, _) = component_file("keda/settings.yaml");
    // The lines that settings.yaml shows.
    let (_, shown) = text.split_once("#   patches:\n").unwrap();
    let shown = shown.lines().take_while(|line| line.starts_with("#   "));
    let shown: Vec<_> = shown.map(|line| &line[4..]).collect();
    let built = overlay(
        "other-prometheus",
        &format!(
            "namespace: my-namespace\nresources: [../../base]\n\
             components: [../../components/monitoring, ../../components/keda]\npatches:\n{}\n",
            shown.join("\n")
        ),
    );
    for trigger in queries(&object(&built)["spec"]) {
        let metadata = &trigger["metadata"];
        assert_eq!(metadata["serverAddress"], "http://prometheus-operated.monitoring.svc:9090");
        let query = metadata["query"].as_str().unwrap();
        let count = query.matches("namespace=\"my-namespace\"").count();
        assert!(
            count > 0 && count == query.matches("namespace=").count(),
            "a metric in the query is not limited to the namespace: {query}"
        );
    }
    assert!(!built.documents.iter().any(|one| one["metadata"]["name"] == "zmq-echo-keda"));
}

#[test]
fn the_adapter_makes_the_metrics_that_the_autoscaler_asks_for() {
    let made: Vec<_> = adapter_rules().iter().map(metric_of).collect();
    let asked: Vec<_> = of_the_adapter(&with_hpa()).into_iter().map(|(name, _)| name).collect();
    assert_eq!(made, asked);
}

/// The name of the metric that a rule makes. Here, `matches` is a whole name, or everything before
/// a suffix.
fn metric_of(rule: &Value) -> String {
    let (series, matchers) = rule["seriesQuery"].as_str().unwrap().split_once('{').unwrap();
    for label in ["namespace", "pod"] {
        // Without these labels, nothing says which pod the metric belongs to.
        assert!(
            matchers.contains(&format!("{label}!=\"\"")),
            "the matchers do not require {label}: {matchers}"
        );
        assert_eq!(rule["resources"]["overrides"][label]["resource"], label);
    }
    let matches = rule["name"]["matches"].as_str().unwrap();
    let matches = matches.strip_prefix('^').and_then(|rest| rest.strip_suffix('$')).unwrap();
    let captured = match matches.strip_prefix("(.*)") {
        Some(suffix) => series.strip_suffix(suffix).expect("the series has the suffix"),
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
        // The histogram covers only clients' requests.
        assert_eq!(query.contains("source=\"client\""), requests, "{query}");
    }
}

#[test]
fn the_target_is_a_little_more_than_half_of_what_the_cpu_request_carries() {
    let server: Server = variant("components-hpa").server();
    let cpu = number(&resource(server.container(), "requests", "cpu").unwrap());
    let carried = cpu * 1e6 / CPU_OF_A_REQUEST;
    let share = of_the_adapter(&with_hpa())[0].1 / carried;
    assert!(
        (0.5..=0.6).contains(&share),
        "the target is {share} of the {carried} requests/s that the CPU request allows"
    );
}

#[test]
fn the_laptop_load_needs_more_than_the_minimum_and_fewer_than_the_maximum_replicas() {
    let overlay = variant("overlays-autoscaled");
    let spec = &object(overlay)["spec"];
    let target = threshold(queries(spec).next().unwrap());
    let job: k8s_openapi::api::batch::v1::Job = overlay.named("zmq-echo-load");
    let args = job.spec.unwrap().template.spec.unwrap().containers.remove(0).args.unwrap();
    let rate = args.iter().skip_while(|arg| *arg != "--rate").nth(1).unwrap();
    let wanted = (rate.parse::<f64>().unwrap() / target).ceil();
    let text = include_str!("../../k8s/overlays/autoscaled/kustomization.yaml");
    assert!(text.contains(&format!("{rate} requests/s needs five replicas")));
    assert_eq!(wanted, 5.0);
    // More than the tolerance of a tenth, so that the autoscaler adds a replica.
    assert!(wanted > spec["minReplicaCount"].as_f64().unwrap() * 1.1);
    assert!(wanted < spec["maxReplicaCount"].as_f64().unwrap());
}

#[test]
fn a_laptop_can_run_the_maximum_replicas_and_everything_else() {
    let overlay = variant("overlays-autoscaled");
    let most = object(overlay)["spec"]["maxReplicaCount"].as_f64().unwrap();
    let mut requested = 0.0;
    for pod in overlay.pods() {
        let cpu: f64 = pod
            .containers()
            .map(|container| number(&resource(container, "requests", "cpu").unwrap()))
            .sum();
        let surge = 1.0;
        let server = pod.label("app.kubernetes.io/name") == Some(NAME);
        requested += if server { cpu * (most + surge) } else { cpu };
    }
    assert!(requested + OF_THE_CLUSTER <= CPUS, "all pods together request {requested} CPUs");
    let text = include_str!("../../k8s/overlays/autoscaled/kustomization.yaml");
    assert!(text.contains(&format!("request {:.0}m of the two CPUs", OF_THE_CLUSTER * 1000.0)));
}

#[test]
fn both_components_say_that_the_adapter_is_on_its_way_to_deprecation() {
    for file in
        ["hpa/kustomization.yaml", "hpa/prometheus-adapter-values.yaml", "keda/kustomization.yaml"]
    {
        let (text, _) = component_file(file);
        assert!(text.contains("being deprecated"), "{file} does not mention the deprecation");
    }
}

#[test]
fn replicas_scale_up_at_once_and_down_after_a_while() {
    let behavior = with_hpa().spec.behavior.unwrap();
    let (up, down) = (behavior.scale_up.unwrap(), behavior.scale_down.unwrap());
    assert_eq!(up.stabilization_window_seconds, Some(0));
    assert!(down.stabilization_window_seconds >= Some(300));
    let kinds: Vec<_> = up.policies.unwrap().into_iter().map(|policy| policy.type_).collect();
    assert_eq!(kinds, ["Percent", "Pods"]);
}

#[test]
fn the_adapters_helm_values_are_not_a_manifest() {
    for variant in variants() {
        assert!(variant.documents.iter().all(|document| document["kind"].is_string()));
    }
    let (text, _) = component_file("hpa/prometheus-adapter-values.yaml");
    assert!(parse(&text)[0]["kind"].is_null());
}
