//! How pods start and stop.

use std::time::Duration;

use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use crate::build::{Server, variant, variants};
use crate::server::config;

/// How long the kubelet and the container runtime may take, in addition to the pod's own times.
const SPARE: Duration = Duration::from_secs(3);

/// How long clients may take to notice a change: the interval of DNS queries.
const HEARD: Duration = Duration::from_secs(5);

/// The duration of the preStop sleep.
pub fn pre_stop(server: &Server) -> Duration {
    let lifecycle = server.container().lifecycle.clone().expect("the container has a lifecycle");
    let hook = lifecycle.pre_stop.expect("the container has a preStop hook");
    // A native sleep, because the image has no shell.
    assert!(
        hook.exec.is_none() && hook.http_get.is_none(),
        "the hook needs a shell or a server: {hook:?}"
    );
    Duration::from_secs(u64::try_from(hook.sleep.expect("the hook is a sleep").seconds).unwrap())
}

pub fn grace(server: &Server) -> Duration {
    let grace = server.pod().termination_grace_period_seconds.expect("the pod has a grace period");
    Duration::from_secs(u64::try_from(grace).unwrap())
}

#[test]
fn the_drain_ends_before_the_kubelet_kills_the_pod() {
    for server in Server::all() {
        // The drain timeout includes the delay.
        let needed = pre_stop(&server) + config(&server).drain_timeout;
        assert!(
            grace(&server) >= needed + SPARE,
            "{}: the grace period is too short for {needed:?}",
            server.variant
        );
    }
}

#[test]
fn a_terminating_pod_accepts_until_clients_know_about_it() {
    for server in Server::all() {
        let accepting = pre_stop(&server) + config(&server).drain_delay;
        assert!(
            accepting >= HEARD,
            "{}: the pod accepts for only {accepting:?} after the signal",
            server.variant
        );
    }
}

#[test]
fn clients_know_a_new_pod_before_the_next_old_one_terminates() {
    for server in Server::all() {
        let ready = server.deployment.spec.min_ready_seconds.unwrap_or(0);
        assert!(
            ready >= i32::try_from(HEARD.as_secs()).unwrap(),
            "{}: the rollout continues before clients know the new pod",
            server.variant
        );
    }
}

#[test]
fn a_rollout_is_not_given_up_while_a_node_is_being_added() {
    // Cloud providers' autoscalers wait up to a quarter of an hour for a node.
    for server in Server::all() {
        let deadline = server.deployment.spec.progress_deadline_seconds;
        assert!(
            deadline >= Some(900),
            "{}: the rollout is given up before a node can be added",
            server.variant
        );
    }
}

#[test]
fn a_server_that_hangs_is_killed_within_45_s() {
    for server in Server::all() {
        let liveness = server.container().liveness_probe.as_ref().unwrap();
        let grace = liveness
            .termination_grace_period_seconds
            .expect("the liveness probe has a grace period of its own");
        let noticed = liveness.period_seconds.unwrap() * liveness.failure_threshold.unwrap();
        // The last probe gives up by itself, long before its timeout.
        assert!(
            i64::from(noticed) + grace < 45,
            "{}: a hanging server is not replaced within 45 s",
            server.variant
        );
        let grace = Duration::from_secs(u64::try_from(grace).unwrap());
        // The preStop sleep counts towards the grace period. If it took all of it, SIGTERM would
        // never be sent.
        assert!(
            grace > pre_stop(&server) + SPARE,
            "{}: the preStop sleep leaves no time for SIGTERM",
            server.variant
        );
    }
}

#[test]
fn a_rollout_never_has_fewer_pods_than_asked_for() {
    for server in Server::all() {
        let strategy = server.deployment.spec.clone().strategy.unwrap();
        assert_eq!(strategy.type_.as_deref(), Some("RollingUpdate"));
        let rolling = strategy.rolling_update.unwrap();
        assert_eq!(rolling.max_unavailable, Some(IntOrString::Int(0)));
        assert_eq!(rolling.max_surge, Some(IntOrString::Int(1)));
    }
}

#[test]
fn there_are_three_replicas_and_they_are_restarted() {
    let server = variant("base").server();
    assert_eq!(server.deployment.spec.replicas, Some(3));
    assert_eq!(server.pod().restart_policy.as_deref(), Some("Always"));
}

#[test]
fn a_node_can_be_drained_and_takes_one_pod_at_a_time() {
    for variant in variants() {
        let [budget] = &variant.all::<PodDisruptionBudget>()[..] else {
            panic!("expected one PodDisruptionBudget")
        };
        let budget = budget.spec.as_ref().unwrap();
        assert_eq!(budget.max_unavailable, Some(IntOrString::Int(1)));
        assert_eq!(budget.min_available, None);
        assert_eq!(budget.unhealthy_pod_eviction_policy.as_deref(), Some("AlwaysAllow"));
    }
}

#[test]
fn pods_are_spread_over_nodes_and_over_zones_if_asked_each_revision_by_itself() {
    for server in Server::all() {
        let constraints = server.pod().topology_spread_constraints.clone().unwrap();
        let keys: Vec<_> = constraints.iter().map(|one| one.topology_key.as_str()).collect();
        // On nodes without a zone label, the constraint on zones would disable the other one.
        let with_zones = server.variant == "components-zones";
        let expected = ["kubernetes.io/hostname", "topology.kubernetes.io/zone"];
        assert_eq!(keys, expected[..1 + usize::from(with_zones)], "{}", server.variant);
        let selector = server.deployment.spec.selector.clone();
        for constraint in constraints {
            assert_eq!(constraint.max_skew, 1);
            assert_eq!(constraint.label_selector.as_ref(), Some(&selector));
            let by_revision = vec!["pod-template-hash".to_owned()];
            assert_eq!(constraint.match_label_keys, Some(by_revision));
        }
    }
}
