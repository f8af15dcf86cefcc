//! API access: the load generator may read endpoints, Prometheus may read pods, and nothing else
//! has access.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::ServiceAccount;
use k8s_openapi::api::rbac::v1::{Role, RoleBinding};

use crate::build::{NAME, sources, variant, variants};
use crate::monitoring::PROMETHEUS;

#[test]
fn the_load_may_only_read_endpoint_slices_of_its_namespace() {
    assert_may_only_read("components-load", "zmq-echo-load", "discovery.k8s.io", "endpointslices");
}

#[test]
fn prometheus_may_only_read_pods_of_its_namespace() {
    assert_may_only_read("components-prometheus", PROMETHEUS, "", "pods");
}

/// Checks that the account `name` of a variant may read one resource of its namespace, and nothing
/// else.
#[track_caller]
fn assert_may_only_read(variant_name: &str, name: &str, group: &str, resources: &str) {
    let variant = variant(variant_name);
    let [role] = &variant.all::<Role>()[..] else { panic!("expected one Role") };
    assert_eq!(role.metadata.name.as_deref(), Some(name));
    let [rule] = &role.rules.as_ref().unwrap()[..] else { panic!("expected one rule") };
    assert_eq!(rule.api_groups, Some(vec![group.to_owned()]));
    assert_eq!(rule.resources, Some(vec![resources.to_owned()]));
    assert_eq!(rule.verbs, ["get", "list", "watch"]);
    let [binding] = &variant.all::<RoleBinding>()[..] else { panic!("expected one RoleBinding") };
    assert_eq!((binding.role_ref.kind.as_str(), binding.role_ref.name.as_str()), ("Role", name));
    let [subject] = &binding.subjects.as_ref().unwrap()[..] else { panic!("expected one subject") };
    assert_eq!((subject.kind.as_str(), subject.name.as_str()), ("ServiceAccount", name));
    let account: ServiceAccount = variant.named(name);
    assert_eq!(subject.namespace, account.metadata.namespace);
    assert!(subject.namespace.is_some(), "the API refuses an account without its namespace");
}

#[test]
fn a_pod_has_a_token_only_if_its_account_has_rights() {
    for variant in variants() {
        let bindings = variant.documents.iter().filter(|document| {
            document["kind"].as_str().is_some_and(|kind| kind.ends_with("RoleBinding"))
        });
        let bound: BTreeSet<_> = bindings
            .flat_map(|binding| binding["subjects"].as_array().expect("the binding has subjects"))
            .map(|subject| subject["name"].as_str().expect("the subject has a name"))
            .collect();
        for pod in variant.pods() {
            let account = pod
                .spec
                .service_account_name
                .as_deref()
                .expect("the pod has a service account of its own");
            let token = pod
                .spec
                .automount_service_account_token
                .expect("the pod says whether it gets a token");
            assert_eq!(token, bound.contains(account), "{}", pod.origin);
            let account: ServiceAccount = variant.named(account);
            assert_eq!(account.automount_service_account_token, Some(false), "{}", pod.origin);
        }
    }
}

#[test]
fn the_server_has_no_token_and_no_variable_for_each_service() {
    for variant in variants() {
        let pod = variant.server();
        assert_eq!(pod.pod().service_account_name.as_deref(), Some(NAME));
        assert_eq!(pod.pod().automount_service_account_token, Some(false));
        assert_eq!(pod.pod().enable_service_links, Some(false));
    }
}

#[test]
fn no_role_uses_a_wildcard() {
    for (path, text) in sources() {
        let rights = text.lines().filter(|line| {
            let line = line.trim_start();
            ["verbs:", "resources: [", "apiGroups:"].iter().any(|field| line.starts_with(field))
        });
        for line in rights {
            assert!(!line.contains('*'), "{} uses a wildcard: {line}", path.display());
        }
    }
}
