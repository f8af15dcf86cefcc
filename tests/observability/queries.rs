//! The expressions in the rules and in the dashboards.

use serde_json::Value;

use crate::NAME;
use crate::names::named;

/// Metrics of other software: Prometheus itself, and kube-state-metrics if it is installed.
pub const OTHERS: [(&str, &[&str]); 6] = [
    ("up", &[]),
    ("ALERTS", &["alertname", "alertstate", "severity"]),
    ("kube_deployment_spec_replicas", &["deployment"]),
    ("kube_deployment_status_replicas_available", &["deployment"]),
    ("kube_horizontalpodautoscaler_status_desired_replicas", &["horizontalpodautoscaler"]),
    ("kube_horizontalpodautoscaler_spec_max_replicas", &["horizontalpodautoscaler"]),
];

/// One expression.
#[derive(Debug, Clone)]
pub struct Expression {
    /// Where it comes from.
    pub origin: String,
    pub text: String,
    /// Whether an empty result is valid: for an alert, or for metrics of other software.
    pub may_be_empty: bool,
}

/// Whether it uses metrics of other software.
pub fn is_of_others(text: &str) -> bool {
    named(text).selectors.iter().any(|selector| {
        selector.metric != "up" && OTHERS.iter().any(|(name, _)| *name == selector.metric)
    })
}

pub fn expression(origin: String, text: &str) -> Expression {
    let may_be_empty = named(text).compares || is_of_others(text);
    Expression { origin, text: text.to_owned(), may_be_empty }
}

pub fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().expect("the value is a list").iter()
}

pub fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_else(|| panic!("not a string: {value}"))
}

/// The recording and alerting rules in `rules.yml`.
pub fn rules(document: &Value) -> Vec<Expression> {
    let rules = list(&document["groups"]).flat_map(|group| list(&group["rules"]));
    let read = |rule: &Value| {
        let name = rule["record"].as_str().or(rule["alert"].as_str()).expect("the rule has a name");
        let mut read = expression(format!("rules.yml: {name}"), text(&rule["expr"]));
        read.may_be_empty |= rule["alert"].is_string();
        read
    };
    rules.map(read).collect()
}

/// The panels, variables and annotations of a dashboard.
pub fn dashboard(name: &str, json: &str) -> Vec<Expression> {
    let dashboard: Value = serde_json::from_str(json).expect("JSON");
    let mut found = Vec::new();
    search(&dashboard, name, false, &mut found);
    found
}

/// Looks for `expr`, and for the queries of variables. `origin` is the nearest title.
fn search(value: &Value, origin: &str, within_annotations: bool, found: &mut Vec<Expression>) {
    match value {
        Value::Object(fields) => {
            let title = fields.get("title").or(fields.get("name")).and_then(Value::as_str);
            let origin =
                title.map_or_else(|| origin.to_owned(), |title| format!("{origin}: {title}"));
            for (name, value) in fields {
                if let (true, Some(text)) = (name == "expr", value.as_str()) {
                    let mut read = expression(origin.clone(), &without_variables(text));
                    read.may_be_empty |= within_annotations;
                    found.push(read);
                } else if let Some(query) = value.as_str().and_then(of_variable) {
                    found.push(expression(origin.clone(), &query));
                } else {
                    search(value, &origin, within_annotations || name == "annotations", found);
                }
            }
        }
        Value::Array(items) => {
            items.iter().for_each(|item| search(item, origin, within_annotations, found));
        }
        _ => {}
    }
}

/// `label_values(series, label)` as an expression.
fn of_variable(query: &str) -> Option<String> {
    let inside = query.strip_prefix("label_values(")?.strip_suffix(')')?;
    let (series, label) = inside.rsplit_once(',').expect("label_values has a series and a label");
    Some(format!("count by ({}) ({})", label.trim(), without_variables(series)))
}

/// Replaces the variables as Grafana does.
fn without_variables(text: &str) -> String {
    let mut parts = text.split('$');
    let mut plain = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
        let (variable, rest) = match part.strip_prefix('{') {
            Some(part) => part.split_once('}').expect("the variable has a closing brace"),
            None => part.split_at(part.find(|c| !is_name(c)).unwrap_or(part.len())),
        };
        plain += match variable.split(':').next().unwrap_or_default() {
            "__rate_interval" => "2m",
            "__interval" => "15s",
            "__range" => "10m",
            "namespace" => NAME,
            _ => ".*",
        };
        plain += rest;
    }
    plain
}

#[test]
fn the_variables_of_a_dashboard_are_filled_in() {
    let text = "sum(rate(x{namespace=\"$namespace\",pod=~\"${pod:regex}\"}[$__rate_interval]))";
    let filled = "sum(rate(x{namespace=\"zmq-echo\",pod=~\".*\"}[2m]))";
    assert_eq!(without_variables(text), filled);
    assert_eq!(
        of_variable("label_values(up{job=\"zmq-echo\"}, pod)").unwrap(),
        "count by (pod) (up{job=\"zmq-echo\"})"
    );
}
