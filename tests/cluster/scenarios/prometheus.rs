//! The component's own Prometheus, with the pods that it discovers.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value as Json;

use crate::api::{Cluster, NAME, apply, kubectl, names};
use crate::fleet::Fleet;
use crate::load::Load;
use crate::manifests::{Removed, build_kustomization, parse, take, use_images};
use crate::names::{Selector, named};
use crate::prometheus::Prometheus;
use crate::queries::{self, Expression, OTHERS};
use crate::wait_for;

const OVERLAY: &str = "apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\n\
                       namespace: zmq-echo\nresources: [k8s/overlays/local]\n\
                       components: [k8s/components/prometheus]\n";

pub fn sees_everything(cluster: &Cluster) {
    cluster.clear();
    let mut objects = build_kustomization("prometheus", OVERLAY);
    let job = take(&mut objects, "Job");
    objects.iter_mut().for_each(|object| use_images(cluster, object));
    let removed = Removed(NAME.to_owned());
    apply(&objects);
    cluster.wait_for_rollout();
    let servers = cluster.wait_for_servers(3);
    kubectl(&["rollout", "status", "deployment/zmq-echo-prometheus", "--timeout=240s"]);
    let fleet = Fleet::watch(cluster);
    let load = Load::start(cluster, &job);
    let prometheus = Prometheus::of(cluster);

    finds_each_pod_once(&prometheus, &names(&servers));
    // Rates need two scrapes, and recording rules are evaluated once a minute.
    wait_for("every rule has been evaluated after the load began", || {
        let requests = prometheus.query("namespace:zmq_echo_requests:rate2m > 100").ok()?;
        (!requests.is_empty()).then_some(())
    });
    every_rule_is_evaluated(&prometheus);
    let expressions = expressions();
    // The rules of a group are evaluated one after the other, so the result of the last one appears
    // a moment later.
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let faults: Vec<_> =
            expressions.iter().flat_map(|expression| faults(&prometheus, expression)).collect();
        if faults.is_empty() {
            break;
        }
        assert!(Instant::now() < deadline, "{}", faults.join("\n"));
        thread::sleep(Duration::from_secs(5));
    }
    println!(
        "  {} expressions of rules.yml and dashboard.json find their series",
        expressions.len()
    );

    let outcome = load.finish();
    fleet.accounts_for(&[outcome]);
    drop(removed);
}

/// Checks that Prometheus finds each pod by its annotations, that each is up, and that it has the
/// labels that the rules and panels use.
#[track_caller]
fn finds_each_pod_once(prometheus: &Prometheus, pods: &[String]) {
    let targets = wait_for("every target was scraped", || {
        let targets = prometheus.get("targets?state=active").ok()?["activeTargets"].take();
        let targets = targets.as_array()?.clone();
        let known = targets.iter().all(|target| target["health"] != "unknown");
        (targets.len() >= pods.len() && known).then_some(targets)
    });
    let mut found = Vec::new();
    for target in &targets {
        assert_eq!(target["health"], "up", "{target}");
        let labels = &target["labels"];
        assert_eq!(labels["job"], NAME, "{target}");
        assert_eq!(labels["namespace"], NAME, "{target}");
        found.push(labels["pod"].as_str().expect("the target has a pod label").to_owned());
    }
    found.sort_unstable();
    let mut pods = pods.to_vec();
    pods.sort_unstable();
    assert_eq!(found, pods);
    println!("  {} targets are up", found.len());
}

#[track_caller]
fn every_rule_is_evaluated(prometheus: &Prometheus) {
    let groups = prometheus.get("rules").unwrap_or_else(|error| panic!("{error}"));
    let rules = queries::list(&groups["groups"]).flat_map(|group| queries::list(&group["rules"]));
    let unwell: Vec<_> = rules.filter(|rule| rule["health"] != "ok").map(Json::to_string).collect();
    assert!(unwell.is_empty(), "{}", unwell.join("\n"));
}

/// The expressions of the rules and of the dashboard, from the files that are deployed.
#[track_caller]
fn expressions() -> Vec<Expression> {
    let read = |path: &str| {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
        fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    };
    let mut all = queries::rules(&parse(&read("k8s/components/prometheus/rules.yml")).remove(0));
    let dashboard = read("k8s/components/monitoring/dashboard.json");
    all.extend(queries::dashboard("dashboard.json", &dashboard));
    all
}

/// What is missing for an expression: series for a selector in it, or a value. An alert needs no
/// value, because it has none as long as all is well. Series of other exporters, such as
/// kube-state-metrics, are not expected, because none runs here.
fn faults(prometheus: &Prometheus, expression: &Expression) -> BTreeSet<String> {
    let mut faults = BTreeSet::new();
    let mut fault = |text: String| {
        faults.insert(format!("{}: {text}", expression.origin));
    };
    for selector in named(&expression.text).selectors {
        let of_others = OTHERS.iter().any(|(name, _)| *name == selector.metric);
        if of_others && selector.metric != "up" {
            continue;
        }
        match prometheus.series(&text(&selector)) {
            Ok(series) if series.is_empty() => fault(format!("no series {}", text(&selector))),
            Ok(_) => {}
            Err(error) => fault(error),
        }
    }
    match prometheus.query(&expression.text) {
        Ok(series) if series.is_empty() && !expression.may_be_empty => {
            fault(format!("no value: {}", expression.text));
        }
        Ok(_) => {}
        Err(error) => fault(error),
    }
    faults
}

fn text(selector: &Selector) -> String {
    let matchers = selector.matchers.iter();
    let matchers = matchers.map(|(label, sign, value)| format!("{label}{sign}\"{value}\""));
    format!("{}{{{}}}", selector.metric, matchers.collect::<Vec<_>>().join(","))
}
