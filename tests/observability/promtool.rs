//! promtool's verdict on metrics, configuration, rules and alerts.

use std::io::Write;
use std::process::{Output, Stdio};

use serde_json::json;

use crate::build::root;
use crate::prometheus::{configuration, program};
use crate::support::Server;

#[track_caller]
fn passes(output: &Output) -> String {
    let text = [&output.stdout[..], &output.stderr[..]].concat();
    let text = String::from_utf8(text).expect("promtool prints text");
    assert!(output.status.success(), "promtool reports: {text}");
    text
}

fn check(what: &str, path: &std::path::Path) -> String {
    passes(&program("promtool").args(["check", what]).arg(path).output().unwrap())
}

#[test]
fn the_metrics_follow_prometheus_conventions() {
    let server = Server::start(&[]);
    let (_, text) = server.get("/metrics");
    let mut promtool = program("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    promtool.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    // Warnings make the test fail, too.
    assert_eq!(passes(&promtool.wait_with_output().unwrap()), "");
}

#[test]
fn promtool_accepts_the_configuration() {
    let directory = configuration("check", &json!([]));
    check("config", &directory.join("prometheus.yml"));
}

#[test]
fn promtool_accepts_the_rules() {
    check("rules", &root().join("k8s/components/prometheus/rules.yml"));
}

#[test]
fn each_alert_fires_only_when_it_should() {
    let tests = root().join("tests/observability");
    let files = ["alerts.yml", "drains.yml"].map(|file| tests.join(file));
    passes(&program("promtool").args(["test", "rules"]).args(files).output().unwrap());
}
