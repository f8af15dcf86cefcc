//! Every expression in the tree, read from its own file, and whether everything that it names
//! exists.

use std::collections::BTreeSet;
use std::fs;

use serde_json::Value;

use crate::build::{NAME, Variant, parse, root, sources, variant};
use crate::names::{Metrics, Selector, named, scraped};
use crate::queries::{Expression, OTHERS, dashboard, expression, list, rules, text};
use crate::support::Server;

/// The pods that the adapter asks about: those of the live test.
pub const PODS: [&str; 3] = ["zmq-echo-0", "zmq-echo-1", "zmq-echo-2"];

/// The labels that Prometheus and the discovery add to every series.
const TARGET: [&str; 4] = ["instance", "job", "namespace", "pod"];

/// Every expression in the tree.
pub fn all() -> Vec<Expression> {
    let mut all = rules(&document("k8s/components/prometheus/rules.yml"));
    all.extend(adapter());
    all.extend(keda());
    all.extend(dashboards());
    all.extend(docs());
    all
}

fn document(path: &str) -> Value {
    let text = fs::read_to_string(root().join(path)).unwrap_or_else(|_| panic!("no {path}"));
    parse(&text).remove(0)
}

/// The names of the recorded series.
pub fn recorded() -> BTreeSet<String> {
    let document = document("k8s/components/prometheus/rules.yml");
    let rules = list(&document["groups"]).flat_map(|group| list(&group["rules"]));
    rules.filter_map(|rule| Some(rule["record"].as_str()?.to_owned())).collect()
}

/// The adapter's queries, with templates filled in as the adapter does for the pods of an
/// autoscaler.
pub fn adapter() -> Vec<Expression> {
    let values = document("k8s/components/hpa/prometheus-adapter-values.yaml");
    let matchers = format!("namespace=\"{NAME}\",pod=~\"{}\"", PODS.join("|"));
    let read = |rule: &Value| {
        let (series, _) =
            text(&rule["seriesQuery"]).split_once('{').expect("the series has matchers");
        let query = text(&rule["metricsQuery"])
            .replace("<<.Series>>", series)
            .replace("<<.LabelMatchers>>", &matchers)
            .replace("<<.GroupBy>>", "pod");
        expression(format!("prometheus-adapter-values.yaml: {series}"), &query)
    };
    let found = |rule: &Value| {
        expression(format!("seriesQuery of {}", rule["name"]["as"]), text(&rule["seriesQuery"]))
    };
    let rules = &values["rules"]["custom"];
    list(rules).map(read).chain(list(rules).map(found)).collect()
}

/// The ScaledObject of a variant, which gets its settings only when it is built.
pub fn scaled_object(variant: &'static Variant) -> &'static Value {
    let mut objects = variant.documents.iter().filter(|one| one["kind"] == "ScaledObject");
    objects.next().expect("the variant has a ScaledObject")
}

fn keda() -> Vec<Expression> {
    let object = scaled_object(variant("components-keda"));
    let read = |trigger: &Value| {
        let origin = format!("scaled-object.yaml: {}", text(&trigger["name"]));
        expression(origin, text(&trigger["metadata"]["query"]))
    };
    // The CPU does not come from Prometheus, but from metrics-server.
    let of_prometheus = |trigger: &&Value| trigger["type"] == "prometheus";
    list(&object["spec"]["triggers"]).filter(of_prometheus).map(read).collect()
}

/// The panels, variables and annotations of every dashboard under `k8s/`.
fn dashboards() -> Vec<Expression> {
    let mut found = Vec::new();
    for (path, text) in sources() {
        if path.extension().is_some_and(|extension| extension == "json") {
            found.extend(dashboard(&path.file_name().unwrap().to_string_lossy(), &text));
        }
    }
    found
}

/// Code in the documents that is an expression.
fn docs() -> Vec<Expression> {
    let computes = |code: &&str| {
        let names = code.contains("zmq_echo") || code.contains("process_");
        names && (code.contains('(') || code.contains(" / "))
    };
    let mut found = Vec::new();
    for page in ["docs/operations.md", "docs/sizing.md"] {
        let text = fs::read_to_string(root().join(page)).expect(page);
        let prose = text.split("```").step_by(2).collect::<String>();
        let code = prose.split('`').skip(1).step_by(2).filter(computes);
        let before = found.len();
        found.extend(code.map(|code| expression(page.to_owned(), code)));
        assert!(found.len() > before, "{page} has no expressions");
    }
    found
}

/// What is wrong with the names in an expression.
fn faults(expression: &Expression, metrics: &Metrics, recorded: &BTreeSet<String>) -> Vec<String> {
    let named = named(&expression.text);
    let mut faults: Vec<_> = named
        .selectors
        .iter()
        .filter_map(|selector| fault(selector, metrics, recorded))
        .map(|fault| format!("{}: {fault}", expression.origin))
        .collect();
    let ours = metrics.values().flat_map(|labels| labels.keys().map(String::as_str));
    let of_others = OTHERS.iter().flat_map(|(_, labels)| labels.iter().copied());
    let labels: BTreeSet<_> = ours.chain(of_others).chain(TARGET).collect();
    for label in &named.labels {
        if !labels.contains(label.as_str()) {
            faults.push(format!("{}: no metric in it has the label {label}", expression.origin));
        }
    }
    faults
}

fn fault(selector: &Selector, metrics: &Metrics, recorded: &BTreeSet<String>) -> Option<String> {
    let metric = selector.metric.as_str();
    let of_others = OTHERS.iter().find(|(name, _)| *name == metric).map(|(_, labels)| *labels);
    let ours = metrics.get(metric);
    if ours.is_none() && of_others.is_none() && !recorded.contains(metric) {
        return Some(format!("there is no metric {metric}"));
    }
    for (label, sign, value) in &selector.matchers {
        let label = label.as_str();
        let values = ours.and_then(|labels| labels.get(label));
        let others = of_others.is_some_and(|labels| labels.contains(&label));
        if values.is_none() && !others && !TARGET.contains(&label) {
            return Some(format!("{metric} has no label {label}"));
        }
        // A pattern may also match values that do not exist yet.
        if !sign.contains('~') && values.is_some_and(|values| !values.contains(value)) {
            return Some(format!("{metric} has no {label}=\"{value}\""));
        }
    }
    None
}

#[test]
fn every_expression_uses_existing_metrics_labels_and_values() {
    let metrics = scraped(&Server::start(&[]).get("/metrics").1);
    let recorded = recorded();
    let all = all();
    let faults: Vec<_> =
        all.iter().flat_map(|expression| faults(expression, &metrics, &recorded)).collect();
    assert!(faults.is_empty(), "{faults:#?}");
    // At least those of the rules, the adapter, the ScaledObject and the documents.
    assert!(all.len() > 30, "only {} expressions were found", all.len());
}

#[test]
fn unknown_metrics_labels_and_values_are_detected() {
    let metrics = scraped(&Server::start(&[]).get("/metrics").1);
    let recorded = recorded();
    for wrong in [
        "sum(rate(zmq_echo_request_total{source=\"client\"}[2m]))",
        "zmq_echo_requests_total{origin=\"client\"}",
        "zmq_echo_requests_total{source=\"clients\"}",
        "zmq_echo_request_duration_seconds_bucket{le=\"0.02\"}",
        "sum by (container) (zmq_echo_peers)",
        "namespace:zmq_echo_requests:rate5m",
    ] {
        let expression = expression("here".to_owned(), wrong);
        assert_eq!(
            faults(&expression, &metrics, &recorded).len(),
            1,
            "the mistake in {wrong} is not detected"
        );
    }
}

/// Probes have their own counter among the requests, and no other series counts them.
#[test]
fn probes_are_in_no_rate_of_requests() {
    for expression in all().iter().filter(|expression| !expression.origin.contains("probe")) {
        for selector in named(&expression.text).selectors {
            if selector.metric == "zmq_echo_requests_total" {
                let mut matchers = selector.matchers.iter();
                let clients = matchers.any(|(label, sign, value)| {
                    (label.as_str(), sign.as_str(), value.as_str()) == ("source", "=", "client")
                });
                assert!(
                    clients,
                    "{} counts requests of probes: {}",
                    expression.origin, expression.text
                );
            }
        }
    }
}

#[test]
fn every_alert_has_a_test_that_fires_and_one_that_does_not() {
    let cases: Vec<Value> = ["alerts.yml", "drains.yml"]
        .into_iter()
        .map(|file| document(&format!("tests/observability/{file}")))
        .flat_map(|file| list(&file["tests"]).cloned().collect::<Vec<_>>())
        .flat_map(|test| list(&test["alert_rule_test"]).cloned().collect::<Vec<_>>())
        .collect();
    let rules = document("k8s/components/prometheus/rules.yml");
    let rules = list(&rules["groups"]).flat_map(|group| list(&group["rules"]));
    for alert in rules.filter_map(|rule| rule["alert"].as_str()) {
        let of_alert: Vec<_> = cases.iter().filter(|case| case["alertname"] == alert).collect();
        assert!(
            of_alert.iter().any(|case| case["exp_alerts"].is_array()),
            "in no test, {alert} fires"
        );
        assert!(
            of_alert.iter().any(|case| case["exp_alerts"].is_null()),
            "in no test, {alert} stays silent"
        );
    }
}

/// The page with the runbooks, as the URL in Cargo.toml gives it.
const PAGE: &str = concat!(env!("CARGO_PKG_REPOSITORY"), "/blob/main/docs/operations.md");

#[test]
fn every_alert_links_to_an_existing_runbook_and_says_what_it_means() {
    let page = fs::read_to_string(root().join("docs/operations.md")).expect("the page can be read");
    let document = document("k8s/components/prometheus/rules.yml");
    let rules = list(&document["groups"]).flat_map(|group| list(&group["rules"]));
    for rule in rules.filter(|rule| rule["alert"].is_string()) {
        let alert = text(&rule["alert"]);
        assert!(
            page.contains(&format!("\n### {alert}\n")),
            "docs/operations.md has no section {alert}"
        );
        let url = format!("{PAGE}#{}", alert.to_lowercase());
        let annotations = &rule["annotations"];
        assert_eq!(text(&annotations["runbook_url"]), url);
        assert!(annotations["runbook"].is_null(), "{alert}");
        let [summary, description] = ["summary", "description"].map(|it| text(&annotations[it]));
        // The summary is a line in a list, and the description explains it.
        assert!(
            !summary.ends_with('.') && description.ends_with('.'),
            "the summary of {alert} must not end with a full stop, and its description must"
        );
        assert!(
            description.len() > summary.len(),
            "the description of {alert} must be longer than its summary"
        );
        assert!(["critical", "warning"].contains(&text(&rule["labels"]["severity"])), "{alert}");
    }
}

/// The threshold is the bound of a histogram bucket, so requests are counted and not estimated.
#[test]
fn the_threshold_for_slow_is_the_same_in_rules_and_texts() {
    let bounds: BTreeSet<_> = all()
        .iter()
        .filter(|expression| !expression.origin.contains(".json"))
        .flat_map(|expression| named(&expression.text).selectors)
        .flat_map(|selector| selector.matchers)
        .filter(|(label, ..)| label == "le")
        .map(|(_, sign, value)| (sign, value))
        .collect();
    let [(sign, bound)] = &bounds.into_iter().collect::<Vec<_>>()[..] else {
        panic!("expected one bound")
    };
    assert_eq!(sign, "=");
    let seconds: f64 = bound.parse().expect("the bound is a number");
    assert!(zmq_echo::metrics::LATENCY_BUCKETS.contains(&seconds));
    let said = format!(" {} ms", seconds * 1000.0);
    for file in ["k8s/components/prometheus/rules.yml", "docs/operations.md", "docs/scaling.md"] {
        let text = fs::read_to_string(root().join(file)).expect(file);
        assert!(text.contains(&said), "{file} does not say `{said}`");
    }
}
