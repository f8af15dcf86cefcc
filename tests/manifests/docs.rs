//! The README and the documents about running the service in a cluster match the manifests.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use clap::CommandFactory;
use k8s_openapi::api::core::v1::Probe;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use zmq_echo::config::ProbeConfig;
use zmq_echo::side_port::PATHS;
use zmq_echo::simulation::EchoConfig;
use zmq_echo_client::load::config::LoadConfig;
use zmtp::Reason;
use zmtp::router::Limits;

use crate::build::{
    NAME, Server, VERSION, YOURS, build_beside, copy_manifests, kubectl, name_of, root, sources,
    variant,
};
use crate::lifecycle::{grace, pre_stop};
use crate::memory::{self, resource};
use crate::monitoring::component_file;
use crate::probes::seconds;
use crate::server::{config, probe_config};
use crate::support::shell::{blocks_of, commands, commands_of};

const KUBERNETES: &str = include_str!("../../docs/kubernetes.md");
const MONITORING: &str = include_str!("../../docs/monitoring.md");
const OPERATIONS: &str = include_str!("../../docs/operations.md");
const PROBES: &str = include_str!("../../docs/probes.md");
const SCALING: &str = include_str!("../../docs/scaling.md");
const SIZING: &str = include_str!("../../docs/sizing.md");
const README: &str = include_str!("../../README.md");
const DEPLOYMENT: &str = include_str!("../../k8s/base/deployment.yaml");

/// Documents for whoever runs the service in a cluster.
const PAGES: [&str; 6] = [KUBERNETES, MONITORING, OPERATIONS, PROBES, SCALING, SIZING];

/// The rows of the table whose header starts with these columns, with trimmed cells.
fn table(text: &'static str, header: &str) -> Vec<Vec<&'static str>> {
    let (_, rest) = text.split_once(header).unwrap_or_else(|| panic!("no table `{header}`"));
    let rows = rest.lines().skip(2).take_while(|line| line.starts_with('|'));
    rows.map(|row| row.trim_matches('|').split(" | ").map(str::trim).collect()).collect()
}

/// The text between backticks, outside code blocks.
fn code(text: &'static str) -> impl Iterator<Item = &'static str> {
    let prose = text.split("```").step_by(2);
    prose.flat_map(|prose| prose.split('`').skip(1).step_by(2))
}

/// Checks that a text contains a sentence, ignoring line breaks and the marks of YAML comments.
#[track_caller]
fn assert_says(text: &str, sentence: &str) {
    let words: Vec<_> = text.split_whitespace().filter(|word| *word != "#").collect();
    assert!(words.join(" ").contains(sentence), "the document does not say `{sentence}`");
}

fn base() -> Server {
    variant("base").server()
}

fn base_and_production() -> [Server; 2] {
    [base(), variant("overlays-production").server()]
}

fn plain(duration: Duration) -> String {
    humantime::format_duration(duration).to_string()
}

#[test]
fn the_documented_timeline_matches_the_manifests() {
    for server in base_and_production() {
        let (drain, pre_stop) = (config(&server).drain(), pre_stop(&server));
        let listening = pre_stop + drain.delay;
        let times = [
            Duration::ZERO,
            listening,
            listening + drain.quiet,
            pre_stop + drain.timeout - drain.reserve(),
            pre_stop + drain.timeout,
            grace(&server),
        ];
        let times = times.map(|time| format!("{} s", time.as_secs_f64()));
        let rows = table(OPERATIONS, "| at | kubelet |");
        let stated: Vec<_> = rows.iter().map(|row| row[0]).collect();
        assert_eq!(stated, times, "{}", server.variant);
    }
}

#[test]
fn the_documented_times_match_the_manifests() {
    let server = base();
    let (drain, pre_stop, grace) = (config(&server).drain(), pre_stop(&server), grace(&server));
    assert_says(
        OPERATIONS,
        &format!(
            "`preStop` ({} s), `--drain-quiet` ({}), `--drain-timeout` ({},",
            pre_stop.as_secs(),
            plain(drain.quiet),
            plain(drain.timeout),
        ),
    );
    assert_says(OPERATIONS, &format!("`terminationGracePeriodSeconds` ({})", grace.as_secs()));
    assert_says(OPERATIONS, &format!("`--drain-delay`, which is {}", plain(drain.delay)));
    assert_says(
        DEPLOYMENT,
        &format!(
            "Longer than preStop ({} s) plus the drain timeout ({} s), with {} s to spare",
            pre_stop.as_secs(),
            drain.timeout.as_secs(),
            (grace - pre_stop - drain.timeout).as_secs(),
        ),
    );
}

#[test]
fn the_documented_probes_match_the_manifests() {
    let server = base();
    let container = server.container();
    let liveness = container.liveness_probe.as_ref().unwrap();
    let readiness = container.readiness_probe.as_ref().unwrap();
    let command = liveness.exec.as_ref().unwrap().command.clone().unwrap();
    let limit = plain(probe_config(container, &command).timeout).replace("ms", " ms");
    let period = seconds(liveness.period_seconds).as_secs();
    let timeout = seconds(liveness.timeout_seconds).as_secs();
    assert_says(PROBES, &format!("Liveness is an exec of `{}`", command.join(" ")));
    assert_eq!(liveness.failure_threshold, Some(3));
    assert_says(PROBES, &format!("Three probes in a row must fail, {period} s apart"));
    assert_says(PROBES, &format!("gives up after {limit}"));
    assert_says(PROBES, &format!("the kubelet's {timeout} s are for"));
    assert_says(OPERATIONS, &format!("needed more than {timeout} s to start the probe"));
    assert_says(
        PROBES,
        &format!("every {} s, and two", seconds(readiness.period_seconds).as_secs()),
    );
    assert_eq!(readiness.failure_threshold, Some(2));
    let shorter = liveness.termination_grace_period_seconds.unwrap();
    let usual = grace(&server).as_secs();
    assert_says(PROBES, &format!("such a container has {shorter} s instead of {usual} to leave"));
    assert_says(DEPLOYMENT, "so it takes three failures in a row");
    assert_says(DEPLOYMENT, &format!("starts a process, so there is only one every {period} s"));
    assert_says(DEPLOYMENT, &format!("The probe gives up after {limit}"));
    // Each probe takes 5 ms.
    assert_says(PROBES, &format!("every {period} s takes {} millicores", 5.0 / period as f64));
    let cpu = resource(container, "requests", "cpu").unwrap();
    assert_says(PROBES, &format!("in the container, which requests {cpu}"));
}

#[test]
fn the_documented_sizes_match_the_manifests() {
    let of_both = |value: &dyn Fn(&Server) -> String| base_and_production().map(|one| value(&one));
    let requested = |list: &'static str, name: &'static str| {
        of_both(&move |server| resource(server.container(), list, name).unwrap())
    };
    let expected = [
        ("replicas", of_both(&|server| server.deployment.spec.replicas.unwrap().to_string())),
        ("CPU requested", requested("requests", "cpu")),
        ("memory requested", requested("requests", "memory")),
        ("memory limit", requested("limits", "memory")),
        ("`--peer-limit`", of_both(&|server| config(server).peer_limit.to_string())),
        ("`--socket-buffer`", of_both(&|server| config(server).socket_buffer.to_string())),
    ];
    let rows = table(SIZING, "| what | base | production |");
    let expected: Vec<_> = expected.iter().map(|(what, [a, b])| vec![*what, a, b]).collect();
    assert_eq!(rows, expected);
}

#[test]
fn the_documented_memory_matches_the_formula_in_the_code() {
    let both = base_and_production();
    let rows = table(SIZING, "| MiB | base | production |");
    for (column, server) in both.iter().enumerate() {
        let limits = config(server).limits();
        let limit = memory::bytes(&resource(server.container(), "limits", "memory").unwrap());
        let parts = parts(&limits);
        assert_eq!(parts.iter().sum::<usize>(), memory::most(&limits));
        let rounded = |bytes: usize| bytes.div_ceil(1 << 20);
        let mut expected: Vec<_> = parts.map(rounded).to_vec();
        expected.push(expected.iter().sum());
        expected.push(rounded(limit));
        let stated: Vec<usize> = rows.iter().map(|row| row[column + 1].parse().unwrap()).collect();
        assert_eq!(stated, expected, "{}", server.variant);
    }
}

/// The parts of the memory table, in bytes.
fn parts(limits: &Limits) -> [usize; 7] {
    let without = |change: &dyn Fn(&mut Limits)| {
        let mut rest = *limits;
        change(&mut rest);
        limits.most_memory() - rest.most_memory()
    };
    let peers = without(&|rest| rest.peers = 0);
    let pool = without(&|rest| rest.buffer_bytes = 0);
    let side_port = zmq_echo::side_port::CONNECTIONS * memory::SIDE_CONNECTION;
    let under_way = limits.most_memory() - peers - pool;
    let log = zmq_echo::log::QUEUE_BYTES;
    [peers, pool, under_way, memory::sockets(limits), side_port, log, memory::PROCESSES]
}

#[test]
fn the_documented_rates_match_the_cpu_request() {
    let cpu = resource(base().container(), "requests", "cpu").unwrap();
    let millicores: f64 = cpu.strip_suffix('m').unwrap().parse().unwrap();
    let rows = table(SIZING, "| load | CPU time per message |");
    let number = |cell: &str| cell.split(' ').next().unwrap().parse::<f64>().unwrap();
    assert_eq!(number(rows[0][1]), crate::scaling::CPU_OF_A_REQUEST);
    for row in rows {
        let carried = millicores / number(row[1]);
        let share = number(row[2]) / carried;
        assert!((0.93..=1.0).contains(&share), "the row {row:?} does not match {carried} k/s");
    }
}

#[test]
fn the_documented_scaling_metrics_match_the_autoscaler() {
    let rows = table(SCALING, "| metric | each pod's target |");
    let stated: Vec<_> = rows
        .iter()
        .map(|row| (row[0].trim_matches('`').to_owned(), row[1].parse::<f64>().unwrap()))
        .collect();
    let autoscaler = crate::scaling::with_hpa();
    assert_eq!(stated, crate::scaling::targets(&autoscaler));
    assert_says(
        SCALING,
        &format!(
            "at least {} and at most {} replicas",
            autoscaler.spec.min_replicas.unwrap(),
            autoscaler.spec.max_replicas,
        ),
    );
}

#[test]
fn every_documented_series_exists() {
    let (_, scraped) = base_metrics();
    let texts = sources().into_iter().map(|(_, text)| text).chain(PAGES.map(str::to_owned));
    let (rules, _) = component_file("prometheus/rules.yml");
    let (adapter, _) = component_file("hpa/prometheus-adapter-values.yaml");
    for text in texts {
        let words = text.split(|c: char| !c.is_ascii_alphanumeric() && !"_:".contains(c));
        for word in words.filter(|word| word.contains("zmq_echo_") || word.contains("process_")) {
            if word.split(':').count() == 3 {
                assert!(rules.contains(&format!("record: {word}\n")), "no rule records {word}");
            } else {
                let word = word.trim_matches(':');
                let made = made_by_the_adapter(&adapter, word);
                assert!(made || is_scraped(&scraped, word), "no series is named {word}");
            }
        }
    }
}

/// Whether a word is a series, a part of a histogram, or the beginning of a series' name.
fn is_scraped(scraped: &str, word: &str) -> bool {
    let family = ["_bucket", "_count", "_sum"].iter().find_map(|part| word.strip_suffix(part));
    let is_histogram = |name| scraped.contains(&format!("# TYPE {name} histogram\n"));
    scraped.contains(&format!("# TYPE {word} "))
        || family.is_some_and(is_histogram)
        || word.ends_with('_') && scraped.contains(&format!("# TYPE {word}"))
}

/// Whether the adapter's values name it, or derive it from a counter.
fn made_by_the_adapter(values: &str, word: &str) -> bool {
    let counter = word.strip_suffix("_per_second").map(|name| format!("{name}_total{{"));
    values.contains(&format!("as: {word}\n"))
        || counter.is_some_and(|counter| values.contains(&format!("seriesQuery: {counter}")))
}

fn base_metrics() -> (u16, String) {
    crate::server::run(&base()).get("/metrics")
}

#[test]
fn every_documented_flag_exists() {
    let flags: BTreeSet<_> = [EchoConfig::command(), ProbeConfig::command(), LoadConfig::command()]
        .iter()
        .flat_map(|command| command.get_arguments())
        .filter_map(|arg| Some(format!("--{}", arg.get_long()?)))
        .collect();
    // The page about installation also names flags of docker.
    let pages = PAGES.into_iter().filter(|page| *page != KUBERNETES);
    let named: Vec<_> = pages.flat_map(code).filter(|code| code.starts_with("--")).collect();
    assert!(named.len() > 10, "too few flags were found: {named:?}");
    for flag in named {
        assert!(flags.contains(flag), "the server has no flag {flag}");
    }
}

#[test]
fn every_documented_reason_exists() {
    let section = |heading| {
        let (_, rest) = OPERATIONS.split_once(heading).unwrap_or_else(|| panic!("no {heading}"));
        rest.split("\n#").next().unwrap()
    };
    let sections = ["\n### Clients cannot connect\n", "\n### Clients lose their connection\n"];
    let mut seen = 0;
    for word in sections.into_iter().flat_map(|heading| code(section(heading))) {
        let is_word = word.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_');
        if is_word && !word.starts_with("zmq_echo_") && !["failed", "debug"].contains(&word) {
            assert!(
                Reason::ALL.iter().any(|reason| reason.as_str() == word),
                "the socket has no reason {word}"
            );
            seen += 1;
        }
    }
    assert_eq!(seen, 9);
}

#[test]
fn every_documented_object_exists() {
    let there: BTreeSet<_> =
        variant("overlays-local").documents.iter().map(|one| name_of(one).to_lowercase()).collect();
    let words = PAGES
        .into_iter()
        .chain([README])
        .flat_map(|text| text.split(|c: char| !c.is_ascii_alphanumeric() && !"/-".contains(c)));
    let named: Vec<_> = words
        .filter(|word| ["deployment/", "job/"].iter().any(|kind| word.starts_with(kind)))
        .collect();
    assert!(named.len() > 4, "too few objects were found: {named:?}");
    for name in named {
        assert!(there.contains(name), "no object is named {name}");
    }
}

#[test]
fn every_documented_service_and_path_exists() {
    let there: BTreeSet<_> = variant("overlays-autoscaled")
        .documents
        .iter()
        .map(|document| name_of(document).to_lowercase())
        .collect();
    let belongs = |c: char| c.is_ascii_alphanumeric() || "/-._".contains(c);
    let pages = PAGES.into_iter().chain([README]);
    let words = pages.flat_map(|text| text.split(|c| !belongs(c)));
    let (mut services, mut paths) = (0, 0);
    for word in words.map(|word| word.trim_end_matches('.')) {
        if word.starts_with("service/") {
            assert!(there.contains(word), "{word} does not exist");
            services += 1;
        } else if word.starts_with("k8s/") && !word.starts_with(YOURS) {
            assert!(root().join(word).exists(), "{word} does not exist");
            paths += 1;
        }
    }
    assert!(services >= 2 && paths > 15, "only {services} Services and {paths} paths were found");
}

#[test]
fn the_other_probes_are_an_overlay_that_builds_and_asks_the_side_port() {
    let (_, rest) = PROBES.split_once("```yaml\n").unwrap();
    let (kustomization, _) = rest.split_once("```").unwrap();
    let other = build_beside("overlays", "http-probes", kustomization);
    let other: k8s_openapi::api::apps::v1::Deployment = other.named(NAME);
    let container = &other.spec.template.spec.unwrap().containers[0];
    let asks = |probe: &Option<Probe>, path: &str| {
        let action =
            probe.as_ref().unwrap().http_get.clone().expect("the probe is an HTTP request");
        assert_eq!(action.path.as_deref(), Some(path));
        assert!(PATHS.iter().any(|(known, _)| *known == path));
        assert_eq!(action.port, IntOrString::String("http".to_owned()));
    };
    asks(&container.liveness_probe, "/livez");
    asks(&container.readiness_probe, "/readyz");
    let grace = |probe: &Option<Probe>| probe.as_ref().unwrap().termination_grace_period_seconds;
    assert_eq!(grace(&container.liveness_probe), grace(&base().container().liveness_probe));
    // The side port reports a failure by itself after this limit.
    let timeout = seconds(container.liveness_probe.as_ref().unwrap().timeout_seconds);
    assert!(timeout > zmq_echo::side_port::LIVE_LIMIT);
}

#[test]
fn the_commands_for_production_make_an_overlay_that_takes_the_image_by_its_digest() {
    let (place, apply) = with_your_overlay("production");
    assert_eq!(apply, format!("kubectl apply -k {YOURS}"));
    // kustomize takes the place of a cluster.
    let output = kubectl(&["kustomize", place.join(YOURS).to_str().unwrap()]);
    let yaml = String::from_utf8(output.stdout).unwrap();
    let image = format!("image: registry.example/{NAME}@{DIGEST}\n");
    assert!(yaml.contains(&image), "{}", String::from_utf8_lossy(&output.stderr));
}

const DIGEST: &str = "sha256:0000000000000000000000000000000000000000000000000000000000000000";

/// A copy of the manifests in which the documented commands have made your own overlay, and the
/// last of these commands, which would apply it.
fn with_your_overlay(name: &str) -> (PathBuf, String) {
    let blocks = blocks_of(KUBERNETES);
    let block = blocks.iter().find(|block| block.contains("sha256:DIGEST")).unwrap();
    let mut commands = commands_of(block);
    let apply = commands.pop().expect("the block applies the overlay");
    let place = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("with-your-overlay-{name}"));
    copy_manifests(&place);
    let make = commands.join("\n").replace("sha256:DIGEST", DIGEST);
    let make = make.replace("REGISTRY", "registry.example");
    let status = Command::new("sh").args(["-e", "-c", &make]).current_dir(&place).status().unwrap();
    assert!(status.success(), "the commands failed: {make}");
    (place, apply)
}

/// Each command is run against a cluster that cannot be reached. If it gets as far as connecting,
/// its flags and files are valid.
#[test]
fn every_kubectl_command_fails_only_because_there_is_no_cluster() {
    let mut count = 0;
    let (place, _) = with_your_overlay("no-cluster");
    for (file, command) in commands() {
        // A command that reads the output of another one must run together with it.
        for part in command.split(" && ").filter(|part| part.starts_with("kubectl ")) {
            let part = part.split("    #").next().unwrap();
            let away = Command::new("sh")
                .args(["-c", part])
                .env("KUBECONFIG", away())
                .current_dir(&place)
                .output()
                .unwrap();
            let said = String::from_utf8_lossy(&away.stderr);
            assert!(
                said.contains("refused"),
                "{}: the command failed before connecting: {part}\n{said}",
                file.display()
            );
            for wrong in ["unknown", "only one", "not found", "no such file", "unable to find"] {
                assert!(
                    !said.contains(wrong),
                    "{}: the command is invalid: {part}\n{said}",
                    file.display()
                );
            }
            count += 1;
        }
    }
    assert!(count > 20, "only {count} commands were found");
}

/// The configuration of a cluster at a port without a listener.
fn away() -> PathBuf {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let server = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let config = serde_json::json!({
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "away",
        "contexts": [{ "name": "away", "context": { "cluster": "away", "user": "" } }],
        "clusters": [{ "name": "away", "cluster": { "server": server } }],
    });
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join("kubeconfig-of-no-cluster");
    // JSON is valid YAML.
    std::fs::write(&path, config.to_string()).unwrap();
    path
}

#[test]
fn the_documents_list_every_directory_of_the_manifests() {
    let rows = table(KUBERNETES, "| directory | what it is |");
    let listed: BTreeSet<_> =
        rows.iter().map(|row| root().join(row[0].trim_matches('`'))).collect();
    let held: BTreeSet<_> = sources()
        .into_iter()
        .filter(|(path, _)| path.file_name().is_some_and(|name| name == "kustomization.yaml"))
        .map(|(path, _)| path.parent().unwrap().to_owned())
        .collect();
    assert_eq!(listed, held);
}

#[test]
fn the_commands_build_load_and_run_the_image_of_the_manifests() {
    let image = format!("{NAME}:{VERSION}");
    let (mut images, mut overlays) = (0, 0);
    for (file, command) in commands() {
        let place = format!("{}: {command}", file.display());
        for part in command.split(" && ") {
            let words: Vec<_> = part.split_whitespace().collect();
            match words[..] {
                ["docker", "build" | "run", ..] | ["kind", "load", ..] => {
                    assert!(
                        words.contains(&image.as_str()),
                        "the command names another image: {place}"
                    );
                    images += 1;
                }
                ["kubectl", "apply", "-k", overlay, ..] => {
                    assert!(
                        overlay == YOURS
                            || root().join(overlay).join("kustomization.yaml").exists(),
                        "the directory has no kustomization: {place}"
                    );
                    overlays += 1;
                }
                ["kubectl", ..] if file.ends_with("README.md") => {
                    assert!(
                        part.contains(&format!("--namespace {NAME} ")),
                        "the command does not name the namespace: {place}"
                    );
                }
                _ => {}
            }
        }
    }
    assert!(
        images >= 3 && overlays >= 3,
        "only {images} images and {overlays} overlays were found"
    );
    let local = variant("overlays-local");
    for container in local.pods().iter().flat_map(|pod| pod.containers()) {
        assert_eq!(container.image, Some(image.clone()));
    }
}
