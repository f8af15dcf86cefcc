//! The scenarios. The name of each one states the promise that it tests.

mod clients;
mod documents;
mod failures;
mod logs;
mod overlays;
mod policies;
mod prometheus;
mod rollout;
mod scaling;

use crate::api::Cluster;

type Scenario = fn(&Cluster);

/// All scenarios, in the order in which they run.
pub const ALL: [(&str, Scenario); 26] = [
    ("overlays::each_becomes_ready_as_applied", overlays::overlays),
    ("overlays::every_combination_of_components_becomes_ready_as_applied", overlays::combinations),
    ("overlays::zones_are_spread_over_if_nodes_have_one", overlays::zones),
    ("documents::every_kubectl_command_succeeds", documents::typed),
    ("policies::only_permitted_connections_succeed", policies::enforced),
    ("rollout::a_restart_fails_no_request", rollout::restart),
    ("rollout::a_new_image_and_its_rollback_fail_no_request", rollout::new_image),
    ("rollout::a_broken_rollout_fails_no_request_and_is_rolled_back", rollout::broken),
    ("rollout::evictions_keep_the_disruption_budget", rollout::eviction),
    ("clients::cluster_ip_headless_name_and_slices_survive_a_restart", clients::restart),
    ("clients::pyzmq_behind_the_cluster_ip_survives_a_restart", clients::pyzmq),
    ("clients::the_role_has_exactly_the_rights_of_discovery", clients::rights),
    ("failures::a_killed_container_is_replaced", failures::killed),
    ("failures::a_force_deleted_pod_is_replaced", failures::force_deleted),
    ("failures::a_frozen_process_is_replaced", failures::frozen),
    ("failures::an_attack_at_every_limit_kills_no_pod", failures::attacked),
    (
        "failures::a_memory_limit_below_the_formula_is_reported_as_oom_killed",
        failures::out_of_memory,
    ),
    ("failures::a_kubelet_that_is_down_for_two_minutes_fails_no_request", failures::kubelet_down),
    ("logs::a_collector_finds_every_record_on_the_node", logs::on_the_node),
    ("logs::a_panic_is_one_record_and_the_pod_says_how_it_ended", logs::panic),
    ("logs::a_pod_that_cannot_start_says_why_in_its_status", logs::last_message),
    ("scaling::by_hand_fails_no_request", scaling::by_hand),
    ("scaling::an_hpa_follows_the_cpu", scaling::hpa_on_cpu),
    ("scaling::an_hpa_follows_the_requests", scaling::hpa_on_requests),
    ("scaling::keda_follows_the_requests", scaling::keda),
    ("prometheus::every_pod_is_found_and_every_expression_has_series", prometheus::sees_everything),
];

/// Whether a scenario runs only with `--all` or if the command line names it.
pub fn takes_long(name: &str) -> bool {
    name.starts_with("scaling::") || name.starts_with("prometheus::")
}
