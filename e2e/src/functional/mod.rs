//! Tests over one shared cluster, each in a namespace of its own. A flat list: adding one is adding a line.

use crate::framework::Cluster;
use anyhow::Result;

mod api;
mod batch;
mod confinement;
mod hostile_files;
mod network;
mod node_limits;
mod perimeter;
mod pods;
mod streams;
mod volumes;
mod workloads;

/// The test image: busybox and its links.
pub const IMAGE: &str = "test.skiff/busybox:1";

/// A test.
pub type Test = fn(&Cluster) -> Result<()>;

/// Every test, by a name that says what must be.
pub const TESTS: &[(&str, Test)] = &[
    (
        "a_deployment_behind_a_service_answers",
        workloads::deployment_and_service,
    ),
    (
        "a_rollout_replaces_pods_and_can_be_undone",
        workloads::rollout_and_undo,
    ),
    ("scaling_makes_and_removes_pods", workloads::scale),
    (
        "deleting_a_deployment_takes_its_pods_along",
        workloads::cascade,
    ),
    (
        "a_deleted_namespace_goes_with_everything_in_it",
        workloads::namespace_deletion,
    ),
    ("jobs_run_to_their_end_and_are_counted", batch::jobs),
    ("a_stateful_set_keeps_names_and_order", batch::stateful_set),
    ("a_daemon_set_runs_on_the_node", batch::daemon_set),
    ("a_quota_tells_what_is_used", batch::quota),
    ("a_disruption_budget_follows_its_pods", batch::budget),
    ("a_pod_that_fits_nowhere_says_why", workloads::unschedulable),
    (
        "a_failing_container_is_restarted_with_back_off",
        pods::crash_loop,
    ),
    (
        "init_containers_run_in_order_before_the_others",
        pods::init_containers,
    ),
    ("a_container_that_is_not_alive_is_restarted", pods::liveness),
    (
        "a_pod_is_ready_only_when_its_probe_says_so",
        pods::readiness,
    ),
    ("pods_that_end_are_succeeded_or_failed", pods::exit_codes),
    (
        "what_the_node_cannot_give_is_refused_by_name_and_nothing_of_the_pod_runs",
        node_limits::refused,
    ),
    (
        "pods_their_classes_and_all_of_them_are_held_to_their_limits",
        node_limits::cgroups,
    ),
    (
        "a_pod_that_fills_an_empty_dir_beyond_its_limit_is_evicted_alone",
        node_limits::empty_dir_limit,
    ),
    (
        "a_container_behind_a_failed_init_container_waits_for_ever",
        node_limits::never_ran,
    ),
    (
        "the_pods_stop_signal_ends_its_container",
        node_limits::stop_signal,
    ),
    (
        "termination_runs_the_hook_and_keeps_the_grace",
        pods::termination,
    ),
    ("memory_beyond_the_limit_is_an_oom_kill", pods::oom),
    (
        "capabilities_users_and_seccomp_are_as_asked",
        pods::security,
    ),
    (
        "a_pod_that_would_become_the_node_is_refused_and_a_profile_of_the_node_holds",
        confinement::refusals,
    ),
    (
        "containers_that_share_processes_see_pid_1_without_any_right",
        confinement::shared_processes,
    ),
    (
        "an_image_that_is_not_there_is_an_event",
        pods::missing_image,
    ),
    (
        "environment_comes_from_fields_maps_and_secrets",
        volumes::environment,
    ),
    (
        "config_maps_secrets_and_downward_files_are_mounted_and_follow_changes",
        volumes::files,
    ),
    (
        "empty_dirs_are_shared_by_containers_and_may_be_memory",
        volumes::empty_dir,
    ),
    ("host_paths_are_mounted", volumes::host_path),
    (
        "what_the_kubelet_writes_no_pod_may_change_and_its_group_may_read",
        hostile_files::read_only,
    ),
    (
        "last_words_are_read_from_regular_files_only_and_as_they_were_written",
        hostile_files::messages,
    ),
    (
        "what_a_container_makes_large_costs_the_server_no_memory",
        hostile_files::large,
    ),
    (
        "whatever_tree_a_container_leaves_its_pod_can_be_deleted",
        hostile_files::trees,
    ),
    (
        "a_mount_that_never_answers_holds_up_its_own_pods_alone",
        hostile_files::hung_mount,
    ),
    (
        "a_pod_reaches_the_api_with_its_token",
        network::api_from_pod,
    ),
    ("names_resolve_in_pods", network::dns),
    (
        "services_reach_pods_by_address_node_port_and_themselves",
        network::services,
    ),
    ("a_service_without_endpoints_refuses", network::no_endpoints),
    (
        "the_nodes_server_asks_who_and_whether_they_may",
        perimeter::node_server,
    ),
    (
        "a_followed_log_ends_with_its_credential",
        perimeter::streams_end_with_their_credential,
    ),
    ("logs_follow_tail_and_previous", streams::logs),
    (
        "exec_runs_commands_and_gives_their_exit_codes",
        streams::exec,
    ),
    ("files_are_copied_into_and_out_of_pods", streams::cp),
    ("ports_are_forwarded", streams::port_forward),
    (
        "bad_objects_are_refused_with_upstreams_status",
        api::bad_objects,
    ),
    ("watches_see_every_change_in_order", api::watch),
    ("lists_come_in_pages_of_one_revision", api::pages),
    ("conflicts_and_preconditions_are_kept", api::conflicts),
    ("tables_explain_and_diff_work", api::kubectl_verbs),
    ("anonymous_sees_health_and_version_only", api::anonymous),
    ("too_large_a_manifest_is_refused_with_413", api::too_large),
    ("what_has_no_effect_warns_through_kubectl", api::warnings),
    (
        "a_binding_of_a_wrong_type_is_refused_and_scheduling_goes_on",
        api::bad_binding,
    ),
    // The last one: it looks at what all the others had the parts do.
    (
        "no_part_of_the_server_lacked_a_right_or_had_too_many",
        api::rights_of_parts,
    ),
];
