//! Every expression is valid PromQL. `live` would also notice an invalid one, but takes six
//! minutes.

use std::fs;
use std::path::Path;
use std::process::Output;

use serde_json::{Value, json};

use crate::expressions::all;
use crate::prometheus::program;
use crate::queries::Expression;

/// promtool's verdict on expressions. promtool reads expressions only in rules, so each becomes a
/// recording rule.
fn check(name: &str, expressions: &[Expression]) -> Output {
    let record = |(at, one): (usize, &Expression)| -> Value {
        json!({ "record": format!("expression:{at}"), "expr": one.text })
    };
    let rules: Vec<_> = expressions.iter().enumerate().map(record).collect();
    let groups = json!({ "groups": [{ "name": "all", "rules": rules }] });
    let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}.yml"));
    // JSON is valid YAML.
    fs::write(&file, groups.to_string()).unwrap();
    program("promtool").args(["check", "rules"]).arg(&file).output().unwrap()
}

fn complaints(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn every_expression_is_valid_promql() {
    let all = all();
    let of_the_dashboard = all.iter().filter(|one| one.origin.starts_with("dashboard.json"));
    assert!(of_the_dashboard.count() > 50, "too few expressions of the dashboard were found");
    let output = check("expressions", &all);
    assert!(output.status.success(), "{}", complaints(&output));
}

#[test]
fn invalid_promql_is_detected() {
    let text = "sum by (pod) (zmq_echo_peers".to_owned();
    let wrong = Expression { origin: "here".to_owned(), text, may_be_empty: false };
    let output = check("no-expression", &[wrong]);
    assert!(!output.status.success());
    assert!(complaints(&output).contains("expression:0"), "{}", complaints(&output));
}
