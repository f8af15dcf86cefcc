//! Grafana accepts the dashboard unchanged, through its sidecar or by hand. The dashboard looks the
//! same for any number of pods, and explains its panels.

use std::collections::BTreeSet;

use k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscaler;
use k8s_openapi::api::core::v1::{ConfigMap, Service};
use serde_json::{Value, json};
use zmtp::Reason;

use crate::build::{NAME, Variant, root, variant};
use crate::monitoring::{PROMETHEUS, component_file};

/// The file that the sidecar writes, in a directory shared by all dashboards.
const FILE: &str = "zmq-echo.json";

const MONITORING: &str = include_str!("../../docs/monitoring.md");

/// The width of Grafana's grid.
const COLUMNS: u64 = 24;

/// Maximum size of an object that `kubectl apply` can keep in its annotation.
const APPLIED: usize = 256 << 10;

fn with_dashboard() -> &'static Variant {
    variant("components-monitoring")
}

fn config_map() -> ConfigMap {
    with_dashboard().named("zmq-echo-dashboard")
}

fn dashboard() -> Value {
    serde_json::from_str(&config_map().data.unwrap()[FILE]).expect("JSON")
}

/// All panels, and the rows that are their headings.
fn panels_and_rows() -> Vec<Value> {
    dashboard()["panels"].as_array().unwrap().clone()
}

fn panels() -> Vec<Value> {
    let mut panels = panels_and_rows();
    panels.retain(|panel| panel["type"] != "row");
    assert!(panels.len() > 20, "only {} panels were found", panels.len());
    panels
}

fn panel(title: &str) -> Value {
    panels().into_iter().find(|panel| panel["title"] == title).expect(title)
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map(Vec::as_slice).unwrap_or_default()
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_else(|| panic!("not a string: {value}"))
}

/// Each value of a field with this name, at any depth.
fn fields<'a>(value: &'a Value, name: &str, found: &mut Vec<&'a Value>) {
    match value {
        Value::Object(inner) => {
            found.extend(inner.get(name));
            inner.values().for_each(|value| fields(value, name, found));
        }
        Value::Array(inner) => inner.iter().for_each(|value| fields(value, name, found)),
        _ => {}
    }
}

/// Every expression: of panels and of annotations.
fn expressions() -> Vec<String> {
    let dashboard = dashboard();
    let mut found = Vec::new();
    fields(&dashboard, "expr", &mut found);
    assert!(found.len() > 50, "only {} expressions were found", found.len());
    found.into_iter().map(|expression| text(expression).to_owned()).collect()
}

/// The matchers after each use of a metric in an expression.
fn matchers<'a>(expression: &'a str, metric: &str) -> Vec<&'a str> {
    let opened = format!("{metric}{{");
    let uses = expression.split(&opened).skip(1);
    uses.map(|rest| rest.split('}').next().unwrap()).collect()
}

fn assert_unique<T: Ord + std::fmt::Debug>(values: Vec<T>) {
    let (count, unique) = (values.len(), values.into_iter().collect::<BTreeSet<_>>());
    assert_eq!(unique.len(), count, "a value is used twice: {unique:?}");
}

#[test]
fn the_dashboard_sidecar_finds_the_file() {
    let map = config_map();
    let labels = map.metadata.labels.unwrap();
    assert_eq!(labels.get("grafana_dashboard").map(String::as_str), Some("1"));
    let file = root().join("k8s/components/monitoring/dashboard.json");
    assert_eq!(map.data.unwrap()[FILE], std::fs::read_to_string(file).unwrap());
}

#[test]
fn the_dashboard_can_be_applied() {
    let is_it = |document: &&Value| document["metadata"]["name"] == "zmq-echo-dashboard";
    let document = with_dashboard().documents.iter().find(is_it).unwrap();
    assert!(document.to_string().len() < APPLIED);
}

#[test]
fn the_dashboard_can_be_imported_without_input() {
    let dashboard = dashboard();
    for name in ["__inputs", "__requires", "id"] {
        assert_eq!(dashboard.get(name), None, "{name}");
    }
    assert_eq!(dashboard["uid"], NAME, "links to the dashboard break");
    // Grafana 11's version: newer releases read it too, and do not warn that it is too old.
    assert_eq!(dashboard["schemaVersion"], 39);
}

#[test]
fn panels_and_queries_have_unique_ids_and_titles() {
    let all = panels_and_rows();
    assert_unique(
        all.iter().map(|panel| panel["id"].as_u64().expect("the panel has an id")).collect(),
    );
    assert_unique(panels().iter().map(|panel| text(&panel["title"]).to_owned()).collect());
    for panel in panels() {
        assert_unique(list(&panel["targets"]).iter().map(|one| text(&one["refId"])).collect());
    }
}

#[test]
fn no_panel_overlaps_another() {
    let mut taken = BTreeSet::new();
    for panel in panels_and_rows() {
        let [x, y, w, h] =
            ["x", "y", "w", "h"].map(|name| panel["gridPos"][name].as_u64().expect(name));
        assert!(w > 0 && h > 0 && x + w <= COLUMNS, "{} exceeds the grid", panel["title"]);
        for cell in (x..x + w).flat_map(|x| (y..y + h).map(move |y| (x, y))) {
            assert!(taken.insert(cell), "{} overlaps another panel", panel["title"]);
        }
    }
    // The rows have no gaps either.
    let rows = taken.iter().map(|(_, y)| y + 1).max().unwrap();
    assert_eq!(taken.len() as u64, COLUMNS * rows);
}

#[test]
fn every_panel_uses_the_selected_data_source() {
    let dashboard = dashboard();
    let chosen = json!({ "type": "prometheus", "uid": "${datasource}" });
    let mut found = Vec::new();
    fields(&dashboard, "datasource", &mut found);
    assert!(
        found.iter().all(|source| **source == chosen),
        "not every query uses the chosen data source: {found:?}"
    );
    assert!(panels().iter().all(|panel| panel["datasource"] == chosen));
    let variables = list(&dashboard["templating"]["list"]);
    let names: Vec<_> = variables.iter().map(|variable| text(&variable["name"])).collect();
    assert_eq!(names, ["datasource", "namespace", "pod"]);
    assert_eq!(variables[0]["type"], "datasource");
    assert_eq!(variables[0]["query"], "prometheus");
}

/// "All" is a pattern and not a list, because pods come and go while somebody watches the
/// dashboard.
#[test]
fn selecting_all_pods_includes_pods_that_start_later() {
    let dashboard = dashboard();
    let pod = &dashboard["templating"]["list"][2];
    assert_eq!((&pod["multi"], &pod["includeAll"]), (&json!(true), &json!(true)));
    assert_eq!(pod["allValue"], ".*");
    assert_eq!(pod["current"]["value"], json!(["$__all"]));
}

#[test]
fn no_panel_shows_another_namespace() {
    for expression in expressions() {
        for selector in expression.split('{').skip(1) {
            let ours = ["namespace=\"$namespace\"", "namespace=~\"$namespace|\""];
            let selector = selector.split('}').next().unwrap();
            assert!(
                ours.iter().any(|matcher| selector.contains(matcher)),
                "the expression is not limited to the namespace: {expression}"
            );
        }
    }
}

#[test]
fn probes_do_not_change_any_panel() {
    for expression in expressions() {
        for matchers in matchers(&expression, "zmq_echo_requests_total") {
            assert!(
                matchers.contains("source=\"client\""),
                "the expression counts requests of probes: {expression}"
            );
        }
        // These peers connect, and disconnect by themselves.
        for matchers in matchers(&expression, "zmq_echo_disconnections_total") {
            assert!(
                matchers.contains("reason!=\"closed\""),
                "the expression counts ordinary disconnections: {expression}"
            );
        }
        assert!(
            !expression.contains("zmq_echo_connections_total"),
            "the expression counts ordinary connections: {expression}"
        );
    }
}

#[test]
fn every_panel_has_a_unit_and_says_what_to_do() {
    for panel in panels() {
        let unit = &panel["fieldConfig"]["defaults"]["unit"];
        assert!(
            unit.as_str().is_some_and(|unit| !unit.is_empty()),
            "{} has no unit",
            panel["title"]
        );
        assert!(
            text(&panel["description"]).len() > 80,
            "{} has no real description",
            panel["title"]
        );
    }
}

/// The anchor of a heading in a Markdown page.
fn anchor(heading: &str) -> String {
    let kept = heading.chars().filter(|c| c.is_alphanumeric() || " -".contains(*c));
    kept.collect::<String>().trim().to_lowercase().replace(' ', "-")
}

/// The sections that the panels name, such as `docs/operations.md#alerts`.
fn sections() -> BTreeSet<String> {
    let panels = panels();
    let named = panels.iter().flat_map(|panel| {
        let words = text(&panel["description"]).split(' ');
        words.map(|word| word.trim_end_matches(['.', ',', ':', ';']))
    });
    let named = named.filter(|word| word.starts_with("docs/") && word.contains('#'));
    named.map(str::to_owned).collect()
}

#[test]
fn every_section_named_on_the_dashboard_exists() {
    let sections = sections();
    for section in &sections {
        let (file, named) = section.split_once('#').unwrap();
        let page = std::fs::read_to_string(root().join(file)).expect(file);
        let mut headings = page.lines().filter(|line| line.starts_with("##"));
        assert!(
            headings.any(|line| anchor(line.trim_start_matches('#')) == named),
            "a panel names {section}, which does not exist"
        );
    }
    assert!(sections.len() > 20, "too few sections were found: {sections:?}");
}

fn alerts() -> Vec<(String, String)> {
    let (_, rules) = component_file("prometheus/rules.yml");
    let rules = list(&rules["groups"]).iter().flat_map(|group| list(&group["rules"]));
    let alerts = rules.filter(|rule| rule["alert"].is_string());
    alerts.map(|rule| (text(&rule["alert"]).to_owned(), text(&rule["expr"]).to_owned())).collect()
}

#[test]
fn every_alert_has_a_panel_for_its_subject() {
    let sections = sections();
    for (alert, _) in alerts() {
        let runbook = format!("docs/operations.md#{}", alert.to_lowercase());
        assert!(sections.contains(&runbook), "no panel names the runbook of {alert}");
    }
}

/// The highest threshold of a panel, or of one of its fields.
fn red(panel: &Value, field: Option<&str>) -> f64 {
    let config = &panel["fieldConfig"];
    let thresholds = match field {
        None => &config["defaults"]["thresholds"],
        Some(field) => {
            let is_it = |one: &&Value| one["matcher"]["options"] == field;
            let field = list(&config["overrides"]).iter().find(is_it).expect(field);
            let is_it = |one: &&Value| one["id"] == "thresholds";
            &list(&field["properties"]).iter().find(is_it).expect("it has thresholds")["value"]
        }
    };
    let last = list(&thresholds["steps"]).last().expect("there is a threshold");
    assert_eq!(last["color"], "red");
    last["value"].as_f64().expect("the threshold has a value")
}

#[test]
fn a_panel_turns_red_where_its_alert_fires() {
    let alerts = alerts();
    for (title, field, alert, condition, value) in [
        ("Slower than 10 ms", None, "LatencyBurnsFast", "> 14.4 * 0.001", 14.4 * 0.001),
        ("Latency error budget: burn rate", None, "LatencyBurnsFast", "> 14.4 * 0.001", 14.4),
        ("Failed requests", None, "Errors", "> 0.01", 0.01),
        ("Load of a pod relative to the others", None, "PodAboveShare", "ratio_to_others > 3", 3.0),
        ("Closest to a limit", None, "PeersNearLimit", "> 0.8", 0.8),
        ("Limits", None, "BuffersNearLimit", "> 0.8", 0.8),
        ("CPU", None, "CpuNearLimit", "> 0.8", 0.8),
        ("Pods now", Some("CPU"), "CpuNearLimit", "> 0.8", 0.8),
        ("Pods now", Some("share"), "PodAboveShare", "ratio_to_others > 3", 3.0),
        ("Pods now", Some("slower than 10 ms"), "LatencyBurnsFast", "> 14.4 * 0.001", 0.0144),
    ] {
        let name = format!("ZmqEcho{alert}");
        let (_, expression) = alerts.iter().find(|(alert, _)| *alert == name).expect(alert);
        assert!(
            expression.contains(condition),
            "the alert's expression lacks `{condition}`: {expression}"
        );
        assert!(
            (red(&panel(title), field) - value).abs() < 1e-9,
            "{title} is red at another value than its alert"
        );
    }
    let burns_slowly = &alerts.iter().find(|(alert, _)| alert == "ZmqEchoLatencyBurnsSlowly");
    assert!(burns_slowly.unwrap().1.contains("> 6 * 0.001"));
    let panel = panel("Latency error budget: burn rate");
    assert_eq!(panel["fieldConfig"]["defaults"]["thresholds"]["steps"][1]["value"], 6);
    assert!(list(&panel["targets"]).iter().all(|one| text(&one["expr"]).ends_with(" / 0.001")));
}

/// Thirty lines in a panel are unreadable, so only outliers are named and the others are one line.
#[test]
fn the_dashboard_is_as_readable_with_thirty_pods_as_with_three() {
    for panel in panels().iter().filter(|panel| panel["type"] == "timeseries") {
        let legend = &panel["options"]["legend"];
        assert_eq!(legend["displayMode"], "table", "{}", panel["title"]);
        assert!(legend["sortBy"].is_string(), "{} is not sorted", panel["title"]);
        for target in list(&panel["targets"]) {
            if text(&target["legendFormat"]).contains("pod}}") {
                assert!(
                    text(&target["expr"]).contains(" topk("),
                    "{} is not limited to outliers",
                    panel["title"]
                );
            }
        }
    }
}

#[test]
fn every_reason_has_a_colour() {
    let coloured = |title: &str| -> BTreeSet<String> {
        let panel = panel(title);
        let overrides = list(&panel["fieldConfig"]["overrides"]).iter();
        overrides.map(|one| text(&one["matcher"]["options"]).to_owned()).collect()
    };
    let reasons = |has: fn(Reason) -> bool| -> BTreeSet<String> {
        let names = Reason::ALL.into_iter().filter(|reason| has(*reason)).map(Reason::as_str);
        names.chain(["all"]).map(str::to_owned).collect()
    };
    assert_eq!(coloured("Handshake failures by reason"), reasons(Reason::before_ready));
    let mut later = reasons(Reason::after_ready);
    // Peers that disconnect by themselves are not shown there.
    later.remove("closed");
    assert_eq!(coloured("Disconnections by reason"), later);
}

#[test]
fn the_wanted_replicas_on_the_dashboard_match_the_manifests() {
    let autoscaler: HorizontalPodAutoscaler = variant("components-hpa").named(NAME);
    assert_eq!(autoscaler.spec.scale_target_ref.name, NAME);
    let expressions = expressions();
    for (metric, label) in [
        ("kube_deployment_spec_replicas", "deployment"),
        ("kube_horizontalpodautoscaler_spec_max_replicas", "horizontalpodautoscaler"),
    ] {
        let uses: Vec<_> = expressions.iter().flat_map(|text| matchers(text, metric)).collect();
        assert!(!uses.is_empty(), "no panel uses {metric}");
        // This also works with a namePrefix.
        let named = format!("{label}=~\"(.*-)?{NAME}\"");
        assert!(
            uses.iter().all(|it| it.contains(&named)),
            "not every use selects the object by its name: {uses:?}"
        );
    }
}

#[test]
fn the_document_about_the_dashboard_is_correct() {
    let (_, section) =
        MONITORING.split_once("\n## The dashboard\n").expect("the page has the section");
    let section = section.split("\n## ").next().unwrap();
    let named = section.lines().filter_map(|line| line.strip_prefix("| ")?.split(" | ").next());
    let rows: Vec<_> = named.skip(2).collect();
    let mut panels = panels_and_rows();
    panels.retain(|panel| panel["type"] == "row");
    let titles: Vec<_> = panels.iter().map(|row| text(&row["title"])).collect();
    assert_eq!(rows, titles);
    let name = config_map().metadata.name.unwrap();
    assert!(
        section.contains(&format!("`{name}`")),
        "docs/monitoring.md does not name the ConfigMap {name}"
    );
    let service: Service = variant("components-prometheus").named(PROMETHEUS);
    let namespace = service.metadata.namespace.unwrap();
    let port = service.spec.unwrap().ports.unwrap()[0].port;
    let address = format!("`http://{PROMETHEUS}.{namespace}.svc:{port}`");
    assert!(section.contains(&address), "docs/monitoring.md does not name {address}");
}
