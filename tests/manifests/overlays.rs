//! Each overlay serves its purpose.

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Namespace;

use crate::build::{NAME, Server, build_beside, variant};
use crate::memory::resource;
use crate::pod_security::fixes_a_user;
use crate::server::echo_config;

#[test]
fn a_local_cluster_never_pulls() {
    for pod in variant("overlays-local").pods() {
        for container in pod.containers() {
            assert_eq!(container.image_pull_policy.as_deref(), Some("Never"), "{}", pod.origin);
        }
    }
}

#[test]
fn a_local_cluster_refuses_pods_below_the_restricted_standard() {
    let namespace: Namespace = variant("overlays-local").named(NAME);
    let labels = namespace.metadata.labels.unwrap();
    assert_eq!(labels["pod-security.kubernetes.io/enforce"], "restricted");
}

/// What production can also be built from: the base, and every component.
#[test]
fn faults_can_be_switched_on_a_local_cluster_and_nothing_is_simulated_in_production() {
    for server in Server::all() {
        let simulation = echo_config(&server).simulation;
        let is_local = ["overlays-local", "overlays-autoscaled"].contains(&server.variant);
        assert_eq!(simulation.faults, is_local, "{}", server.variant);
        assert!(simulation.work.is_zero(), "{} simulates work", server.variant);
    }
}

#[test]
fn the_base_names_no_namespace_and_an_overlay_names_one_everywhere() {
    for document in &variant("base").documents {
        assert!(document["metadata"]["namespace"].is_null());
    }
    for overlay in ["overlays-local", "overlays-production"] {
        for document in &variant(overlay).documents {
            let is_namespace = document["kind"] == "Namespace";
            assert!(is_namespace || document["metadata"]["namespace"] == NAME, "{overlay}");
        }
    }
}

#[test]
fn production_memory_requests_equal_their_limits() {
    let server = variant("overlays-production").server();
    let memory = |list| resource(server.container(), list, "memory");
    assert_eq!(memory("requests"), memory("limits"));
}

#[test]
fn with_the_component_for_openshift_no_pod_fixes_a_user_and_none_may_be_root() {
    let components =
        ["prometheus", "load", "openshift"].map(|name| format!("../../components/{name}"));
    let kustomization = format!(
        "namespace: {NAME}\nresources: [../production]\ncomponents: [{}]\n",
        components.join(", ")
    );
    let pods = build_beside("overlays", "openshift", &kustomization).pods();
    assert_eq!(pods.len(), 3);
    for pod in pods {
        assert!(!fixes_a_user(&pod.spec), "{} fixes a user, which OpenShift rejects", pod.origin);
        assert_eq!(
            pod.spec.security_context.unwrap().run_as_non_root,
            Some(true),
            "{}",
            pod.origin
        );
    }
}

#[test]
fn production_with_zones_spreads_over_both_and_waits_for_either() {
    let with_zones = format!(
        "namespace: {NAME}\nresources: [../production]\ncomponents: [../../components/zones]\n"
    );
    let with_zones = build_beside("overlays", "production-zones", &with_zones);
    let deployment: Deployment = with_zones.named(NAME);
    let pod = deployment.spec.template.spec.unwrap();
    let constraints = pod.topology_spread_constraints.unwrap();
    assert_eq!(constraints.len(), 2);
    assert!(constraints.iter().all(|one| one.when_unsatisfiable == "DoNotSchedule"));
}

#[test]
fn production_pods_wait_if_they_cannot_be_spread_and_local_pods_do_not() {
    for (name, rule) in
        [("overlays-production", "DoNotSchedule"), ("overlays-local", "ScheduleAnyway")]
    {
        for constraint in variant(name).server().pod().topology_spread_constraints.iter().flatten()
        {
            assert_eq!(constraint.when_unsatisfiable, rule, "{name}");
        }
    }
}
