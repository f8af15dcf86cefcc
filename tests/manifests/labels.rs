//! The recommended labels are on every object, and selectors match what they should.

use std::collections::BTreeMap;

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use serde_json::Value;

use crate::build::{NAME, Pod, VERSION, Variant, name_of, variants};

const NAME_LABEL: &str = "app.kubernetes.io/name";
const VERSION_LABEL: &str = "app.kubernetes.io/version";

/// See <https://kubernetes.io/docs/concepts/overview/working-with-objects/common-labels/>.
const RECOMMENDED: [&str; 6] = [
    NAME_LABEL,
    "app.kubernetes.io/instance",
    VERSION_LABEL,
    "app.kubernetes.io/component",
    "app.kubernetes.io/part-of",
    "app.kubernetes.io/managed-by",
];

/// Whether a selector matches a pod. An empty selector matches every pod.
pub fn selects(selector: &LabelSelector, pod: &Pod) -> bool {
    assert_eq!(selector.match_expressions, None, "this test reads only labels");
    takes(selector.match_labels.as_ref(), pod)
}

fn takes(labels: Option<&BTreeMap<String, String>>, pod: &Pod) -> bool {
    let mut labels = labels.into_iter().flatten();
    labels.all(|(name, value)| pod.label(name) == Some(value))
}

/// The pods of a variant that a selector matches, by their `name` label.
fn selected(variant: &Variant, takes: impl Fn(&Pod) -> bool) -> Vec<String> {
    let pods = variant.pods();
    let names =
        pods.iter().filter(|pod| takes(pod)).map(|pod| pod.label(NAME_LABEL).unwrap().to_owned());
    names.collect()
}

#[test]
fn every_object_and_every_pod_has_the_recommended_labels() {
    for variant in variants() {
        for document in &variant.documents {
            let labels = &document["metadata"]["labels"];
            check_labels(&format!("{}: {}", variant.name, name_of(document)), |name| {
                labels[name].as_str()
            });
        }
        for pod in variant.pods() {
            check_labels(&pod.origin, |name| pod.label(name));
        }
    }
}

fn check_labels<'a>(who: &str, label: impl Fn(&str) -> Option<&'a str>) {
    for name in RECOMMENDED {
        assert!(label(name).is_some(), "{who} has no {name}");
    }
    assert_eq!(label("app.kubernetes.io/part-of"), Some(NAME), "{who}");
    // Other software, such as a collector, has its own version.
    if label(NAME_LABEL).unwrap().starts_with(NAME) {
        assert_eq!(label(VERSION_LABEL), Some(VERSION), "{who}");
    }
}

#[test]
fn the_servers_objects_select_only_the_server() {
    for variant in variants() {
        let only_the_server = |what: &str, labels: Option<BTreeMap<String, String>>| {
            assert!(labels.is_some(), "{what} has no selector");
            assert_eq!(selected(variant, |pod| takes(labels.as_ref(), pod)), [NAME], "{what}");
        };
        let deployment: Deployment = variant.named(NAME);
        only_the_server("Deployment", deployment.spec.selector.match_labels);
        for name in [NAME, "zmq-echo-headless"] {
            let service: Service = variant.named(name);
            only_the_server(name, service.spec.unwrap().selector);
        }
        let budget: PodDisruptionBudget = variant.named(NAME);
        only_the_server("budget", budget.spec.unwrap().selector.unwrap().match_labels);
        let policy: NetworkPolicy = variant.named("zmq-echo-server");
        only_the_server("policy", policy.spec.unwrap().pod_selector.unwrap().match_labels);
    }
}

#[test]
fn every_selector_matches_a_pod() {
    for variant in variants() {
        for service in variant.all::<Service>() {
            let selector = service.spec.unwrap().selector;
            assert!(!selected(variant, |pod| takes(selector.as_ref(), pod)).is_empty());
        }
        for policy in variant.all::<NetworkPolicy>() {
            let selector = policy.spec.unwrap().pod_selector.unwrap();
            assert!(!selected(variant, |pod| selects(&selector, pod)).is_empty());
        }
    }
}

#[test]
fn the_version_is_in_no_selector() {
    fn search(value: &Value, within_selector: bool, who: &str) {
        match value {
            Value::Object(fields) => {
                for (name, value) in fields {
                    assert!(
                        !(within_selector && name == VERSION_LABEL),
                        "{who} has the version in a selector"
                    );
                    let selector = name.to_lowercase().ends_with("selector");
                    search(value, within_selector || selector, who);
                }
            }
            Value::Array(items) => items.iter().for_each(|item| search(item, within_selector, who)),
            _ => {}
        }
    }
    for variant in variants() {
        for document in &variant.documents {
            search(document, false, &format!("{}: {}", variant.name, name_of(document)));
        }
    }
}
