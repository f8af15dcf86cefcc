//! The restricted Pod Security Standard, which includes the baseline. Every rule that it publishes
//! is checked for every pod of every variant:
//! <https://kubernetes.io/docs/concepts/security/pod-security-standards/>.
//!
//! Each test also breaks its rule once, in a copy of the server's pod, to check that it would
//! notice.

use k8s_openapi::api::core::v1::{
    AppArmorProfile, Capabilities, Container, ContainerPort, HTTPGetAction, HostPathVolumeSource,
    LifecycleHandler, PodSecurityContext, PodSpec, Probe, SELinuxOptions, SeccompProfile,
    SecurityContext, Sysctl, Volume, WindowsSecurityContextOptions,
};
use serde_json::Value;

use crate::build::{NAME, pods, variant};

/// Capabilities that the baseline allows to add.
const BASELINE_CAPABILITIES: [&str; 13] = [
    "AUDIT_WRITE",
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "KILL",
    "MKNOD",
    "NET_BIND_SERVICE",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYS_CHROOT",
];

/// Sysctls that the baseline allows to set.
const SAFE_SYSCTLS: [&str; 10] = [
    "kernel.shm_rmid_forced",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.ping_group_range",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
];

/// Volume types that the restricted standard allows.
const VOLUMES: [&str; 8] = [
    "configMap",
    "csi",
    "downwardAPI",
    "emptyDir",
    "ephemeral",
    "persistentVolumeClaim",
    "projected",
    "secret",
];

/// SELinux types that the baseline allows.
const SELINUX_TYPES: [&str; 5] =
    ["", "container_t", "container_init_t", "container_kvm_t", "container_engine_t"];

/// Checks that every pod keeps a rule, and that a pod in which `violate` broke it does not.
#[track_caller]
fn every_pod(keeps: impl Fn(&PodSpec) -> bool, violate: impl Fn(&mut PodSpec)) {
    for pod in pods() {
        assert!(keeps(&pod.spec), "{} breaks the rule", pod.origin);
    }
    let mut broken = variant("base").server().pod().clone();
    violate(&mut broken);
    assert!(!keeps(&broken), "the test does not notice a pod that breaks the rule");
}

/// The same check for a rule about containers, of which a pod has two or three kinds.
#[track_caller]
fn every_container(keeps: impl Fn(&Container) -> bool, violate: impl Fn(&mut Container)) {
    let all = |pod: &PodSpec| {
        assert_eq!(pod.ephemeral_containers, None);
        pod.containers.iter().chain(pod.init_containers.iter().flatten()).all(&keeps)
    };
    every_pod(all, |pod| violate(&mut pod.containers[0]));
    every_pod(all, |pod| {
        let mut first = pod.containers[0].clone();
        violate(&mut first);
        pod.init_containers = Some(vec![first]);
    });
}

fn context(container: &Container) -> SecurityContext {
    container.security_context.clone().unwrap_or_default()
}

fn set(container: &mut Container, change: impl Fn(&mut SecurityContext)) {
    change(container.security_context.get_or_insert_default());
}

fn pod_context(pod: &PodSpec) -> PodSecurityContext {
    pod.security_context.clone().unwrap_or_default()
}

/// The value that applies to each container: its own, or else the pod's. The last item is the pod's
/// own.
fn stated<T: Clone>(
    pod: &PodSpec,
    of_pod: impl Fn(&PodSecurityContext) -> Option<T>,
    of_container: impl Fn(&SecurityContext) -> Option<T>,
) -> Vec<Option<T>> {
    let for_all = of_pod(&pod_context(pod));
    let containers = pod.containers.iter().chain(pod.init_containers.iter().flatten());
    containers
        .map(|container| of_container(&context(container)).or_else(|| for_all.clone()))
        .chain([for_all.clone()])
        .collect()
}

// Baseline.

#[test]
fn no_host_process() {
    let no = |options: Option<WindowsSecurityContextOptions>| {
        options.and_then(|options| options.host_process) != Some(true)
    };
    let yes = WindowsSecurityContextOptions { host_process: Some(true), ..Default::default() };
    every_pod(
        |pod| no(pod_context(pod).windows_options),
        |pod| pod.security_context.get_or_insert_default().windows_options = Some(yes.clone()),
    );
    every_container(
        |container| no(context(container).windows_options),
        |container| set(container, |context| context.windows_options = Some(yes.clone())),
    );
}

#[test]
fn no_host_namespaces() {
    let none = |pod: &PodSpec| {
        [pod.host_network, pod.host_pid, pod.host_ipc].iter().all(|one| *one != Some(true))
    };
    every_pod(none, |pod| pod.host_network = Some(true));
    every_pod(none, |pod| pod.host_pid = Some(true));
    every_pod(none, |pod| pod.host_ipc = Some(true));
}

#[test]
fn no_privileged_containers() {
    every_container(
        |container| context(container).privileged != Some(true),
        |container| set(container, |context| context.privileged = Some(true)),
    );
}

#[test]
fn no_capabilities_beyond_the_baseline() {
    every_container(
        |container| {
            let added = context(container).capabilities.and_then(|all| all.add).unwrap_or_default();
            added.iter().all(|one| BASELINE_CAPABILITIES.contains(&one.as_str()))
        },
        |container| add_capability(container, "NET_RAW"),
    );
}

fn add_capability(container: &mut Container, name: &str) {
    set(container, |context| {
        context.capabilities.get_or_insert_default().add = Some(vec![name.to_owned()]);
    });
}

#[test]
fn no_host_path_volumes() {
    every_pod(
        |pod| pod.volumes.iter().flatten().all(|volume| volume.host_path.is_none()),
        |pod| pod.volumes = Some(vec![host_path()]),
    );
}

fn host_path() -> Volume {
    let host_path = Some(HostPathVolumeSource { path: "/".to_owned(), type_: None });
    Volume { name: "host".to_owned(), host_path, ..Default::default() }
}

#[test]
fn no_host_ports() {
    every_container(
        |container| container.ports.iter().flatten().all(|port| port.host_port.unwrap_or(0) == 0),
        |container| {
            let port = ContainerPort { host_port: Some(5555), ..Default::default() };
            container.ports.get_or_insert_default().push(port);
        },
    );
}

#[test]
fn no_host_in_probes_and_lifecycle_hooks() {
    let elsewhere = || HTTPGetAction { host: Some("other".to_owned()), ..Default::default() };
    every_container(names_no_host, |container| {
        container.liveness_probe =
            Some(Probe { http_get: Some(elsewhere()), ..Default::default() });
    });
    every_container(names_no_host, |container| {
        container.lifecycle.get_or_insert_default().post_start =
            Some(LifecycleHandler { http_get: Some(elsewhere()), ..Default::default() });
    });
}

fn names_no_host(container: &Container) -> bool {
    let probes = [&container.liveness_probe, &container.readiness_probe, &container.startup_probe];
    let mut hosts = Vec::new();
    for probe in probes.into_iter().flatten() {
        hosts.extend(probe.http_get.iter().map(|action| action.host.clone()));
        hosts.extend(probe.tcp_socket.iter().map(|action| action.host.clone()));
    }
    let hooks = container.lifecycle.iter().flat_map(|all| [&all.pre_stop, &all.post_start]);
    for hook in hooks.flatten() {
        hosts.extend(hook.http_get.iter().map(|action| action.host.clone()));
        hosts.extend(hook.tcp_socket.iter().map(|action| action.host.clone()));
    }
    hosts.iter().flatten().all(String::is_empty)
}

#[test]
fn no_weaker_app_armor_profile() {
    every_pod(
        |pod| {
            let profiles = stated(
                pod,
                |context| context.app_armor_profile.clone(),
                |context| context.app_armor_profile.clone(),
            );
            let allowed = ["RuntimeDefault", "Localhost"];
            profiles.iter().flatten().all(|profile| allowed.contains(&profile.type_.as_str()))
        },
        |pod| {
            let unconfined =
                AppArmorProfile { type_: "Unconfined".to_owned(), ..Default::default() };
            set(&mut pod.containers[0], |context| {
                context.app_armor_profile = Some(unconfined.clone());
            });
        },
    );
    // The form used before there was a field for it.
    for pod in pods() {
        let annotations = pod.metadata.annotations.unwrap_or_default();
        let old = "container.apparmor.security.beta.kubernetes.io/";
        assert!(
            !annotations.keys().any(|name| name.starts_with(old)),
            "{} has an annotation for AppArmor",
            pod.origin
        );
    }
}

#[test]
fn no_se_linux_user_or_role_and_no_other_type() {
    let allowed = |options: &SELinuxOptions| {
        let type_ = options.type_.as_deref().unwrap_or("");
        let unset = |one: &Option<String>| one.as_deref().unwrap_or("").is_empty();
        SELINUX_TYPES.contains(&type_) && unset(&options.user) && unset(&options.role)
    };
    let keeps = |pod: &PodSpec| {
        let options = stated(
            pod,
            |context| context.se_linux_options.clone(),
            |context| context.se_linux_options.clone(),
        );
        options.iter().flatten().all(allowed)
    };
    let wrong = [
        SELinuxOptions { type_: Some("spc_t".to_owned()), ..Default::default() },
        SELinuxOptions { user: Some("root".to_owned()), ..Default::default() },
        SELinuxOptions { role: Some("sysadm_r".to_owned()), ..Default::default() },
    ];
    for options in wrong {
        every_pod(keeps, |pod| {
            pod.security_context.get_or_insert_default().se_linux_options = Some(options.clone());
        });
    }
}

#[test]
fn the_default_proc_mount() {
    every_container(
        |container| context(container).proc_mount.is_none_or(|mount| mount == "Default"),
        |container| set(container, |context| context.proc_mount = Some("Unmasked".to_owned())),
    );
}

#[test]
fn no_sysctls_but_the_safe_ones() {
    every_pod(
        |pod| {
            let sysctls = pod_context(pod).sysctls.unwrap_or_default();
            sysctls.iter().all(|sysctl| SAFE_SYSCTLS.contains(&sysctl.name.as_str()))
        },
        |pod| {
            let sysctl = Sysctl { name: "kernel.msgmax".to_owned(), value: "1".to_owned() };
            pod.security_context.get_or_insert_default().sysctls = Some(vec![sysctl]);
        },
    );
}

// Restricted.

#[test]
fn no_volumes_but_of_the_restricted_types() {
    every_pod(
        |pod| {
            pod.volumes.iter().flatten().all(|volume| {
                let Ok(Value::Object(mut volume)) = serde_json::to_value(volume) else {
                    return false;
                };
                volume.remove("name");
                volume.keys().all(|source| VOLUMES.contains(&source.as_str()))
            })
        },
        |pod| pod.volumes = Some(vec![host_path()]),
    );
}

#[test]
fn no_privilege_escalation() {
    every_container(
        |container| context(container).allow_privilege_escalation == Some(false),
        |container| set(container, |context| context.allow_privilege_escalation = None),
    );
}

#[test]
fn running_as_non_root_is_required() {
    let keeps = |pod: &PodSpec| {
        let mut stated =
            stated(pod, |context| context.run_as_non_root, |context| context.run_as_non_root);
        // The last item is the pod's own, which may be missing if every container has the setting.
        let of_pod = stated.pop().flatten();
        of_pod != Some(false) && stated.iter().all(|one| *one == Some(true))
    };
    every_pod(keeps, |pod| pod.security_context.get_or_insert_default().run_as_non_root = None);
    every_pod(keeps, |pod| {
        set(&mut pod.containers[0], |context| context.run_as_non_root = Some(false));
    });
}

#[test]
fn the_user_is_a_number_other_than_zero() {
    let keeps = |pod: &PodSpec| {
        let users = stated(pod, |context| context.run_as_user, |context| context.run_as_user);
        users.iter().all(|user| user.is_none_or(|user| user != 0))
    };
    every_pod(keeps, |pod| pod.security_context.get_or_insert_default().run_as_user = Some(0));
    every_pod(keeps, |pod| set(&mut pod.containers[0], |context| context.run_as_user = Some(0)));
}

#[test]
fn the_runtimes_seccomp_profile_or_a_local_one() {
    let keeps = |pod: &PodSpec| {
        let mut profiles = stated(
            pod,
            |context| context.seccomp_profile.clone(),
            |context| context.seccomp_profile.clone(),
        );
        let allowed = |profile: &SeccompProfile| {
            ["RuntimeDefault", "Localhost"].contains(&profile.type_.as_str())
        };
        let of_pod = profiles.pop().flatten();
        of_pod.is_none_or(|profile| allowed(&profile))
            && profiles.iter().all(|profile| profile.as_ref().is_some_and(allowed))
    };
    every_pod(keeps, |pod| pod.security_context.get_or_insert_default().seccomp_profile = None);
    every_pod(keeps, |pod| {
        let unconfined = SeccompProfile { type_: "Unconfined".to_owned(), ..Default::default() };
        set(&mut pod.containers[0], |context| context.seccomp_profile = Some(unconfined.clone()));
    });
}

#[test]
fn all_capabilities_are_dropped_and_at_most_low_ports_added() {
    let keeps = |container: &Container| {
        let Capabilities { add, drop } = context(container).capabilities.unwrap_or_default();
        drop.iter().flatten().any(|one| one == "ALL")
            && add.iter().flatten().all(|one| one == "NET_BIND_SERVICE")
    };
    every_container(keeps, |container| set(container, |context| context.capabilities = None));
    every_container(keeps, |container| add_capability(container, "CHOWN"));
}

// Beyond the standard.

#[test]
fn the_root_file_system_is_read_only() {
    every_container(
        |container| context(container).read_only_root_filesystem == Some(true),
        |container| set(container, |context| context.read_only_root_filesystem = None),
    );
}

/// Whether a pod sets a user or a group anywhere, which OpenShift rejects.
pub fn fixes_a_user(pod: &PodSpec) -> bool {
    let groups = pod_context(pod);
    let users = stated(pod, |context| context.run_as_user, |context| context.run_as_user);
    let of_users = stated(pod, |context| context.run_as_group, |context| context.run_as_group);
    users.iter().chain(&of_users).any(Option::is_some)
        || groups.fs_group.is_some()
        || groups.supplemental_groups.is_some()
}

/// Kubernetes knows that an image's user is not root only if the user is a number. Our image has a
/// number; Prometheus has `nobody`.
#[test]
fn a_user_is_fixed_only_for_an_image_that_names_its_user() {
    let dockerfile = include_str!("../../Dockerfile");
    let user = dockerfile.lines().rev().find_map(|line| line.strip_prefix("USER ")).unwrap();
    for number in user.split(':') {
        assert!(number.parse::<u32>().unwrap() > 0, "the image runs as root: {user}");
    }
    every_pod(
        |pod| {
            let image = pod.containers[0].image.as_deref().unwrap_or_default();
            let ours = image.starts_with(&format!("{NAME}:"));
            let user = pod_context(pod).run_as_user;
            if ours { !fixes_a_user(pod) } else { user == Some(65534) }
        },
        |pod| pod.security_context.get_or_insert_default().run_as_group = Some(65532),
    );
}
