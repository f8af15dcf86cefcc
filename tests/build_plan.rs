//! What `cargo run` compiles before the server starts: nothing that only the client needs.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

/// Crates that only the client needs, directly or indirectly. A star stands for any ending.
const OF_THE_CLIENT: [&str; 8] = [
    "kube*",
    "k8s-openapi",
    "hickory-*",
    "rustls*",
    "hdrhistogram",
    "indicatif",
    "tower-http",
    "zmq-echo-client",
];

/// Crates of the server that `cargo run` compiles with more features than the server needs:
/// which ones (a star for any), and the crate of the client that needs them. Cargo unifies the
/// features of all default members, so what the client asks for costs the server's first build
/// too.
const WIDENED: [(&str, &str, &str); 16] = [
    ("crossbeam-utils", "default", "moka, for hickory-resolver"),
    ("futures-channel", "default", "hyper-util"),
    ("hyper", "client", "kube-client"),
    ("hyper-util", "client client-legacy http1", "kube-client, and the client itself"),
    ("once_cell", "critical-section portable-atomic", "hickory-resolver"),
    ("regex", "*", "jsonpath-rust, for kube-client"),
    ("regex-automata", "*", "regex"),
    ("regex-syntax", "*", "regex"),
    ("serde", "derive serde_derive", "ipnet, for hickory-resolver, and the client itself"),
    ("serde_core", "alloc default", "jiff, for k8s-openapi"),
    ("serde_json", "alloc", "k8s-openapi"),
    ("syn", "*", "derive macros of the url crate, for hickory-resolver"),
    ("tokio", "signal signal-hook-registry", "kube-client"),
    ("tokio-util", "codec default io libc", "kube-client"),
    ("tracing", "log", "kube-client"),
    ("uuid", "default std", "moka, for hickory-resolver"),
];

/// The crates that the server's package is compiled from, each with its features; for
/// cargo's default members, or with `args` for others.
fn plan(args: &[&str]) -> BTreeMap<String, BTreeSet<String>> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| env!("CARGO").into());
    let output = Command::new(cargo)
        .args(["tree", "--locked", "--offline", "--edges", "normal,build", "--no-dedupe"])
        .args(["--prefix", "depth", "--format", " {p} |{f}"])
        .args(args)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "cargo tree: {stderr}");
    let text = String::from_utf8(output.stdout).unwrap();
    let mut lines = text.lines().skip_while(|line| !line.starts_with("0 zmq-echo v"));
    let root = lines.next().expect("the server's package is a default member");
    let below = lines.take_while(|line| !line.is_empty() && !line.starts_with("0 "));
    let mut plan: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for line in std::iter::once(root).chain(below) {
        let (package, features) = line.split_once('|').unwrap();
        let name = package.split(' ').nth(1).unwrap();
        let features = features.split(',').filter(|feature| !feature.is_empty());
        // Two versions of a crate count as one.
        plan.entry(name.to_owned()).or_default().extend(features.map(str::to_owned));
    }
    assert!(plan.contains_key("tokio"), "cargo tree does not list tokio: {text}");
    plan
}

#[test]
fn cargo_run_does_not_compile_crates_that_only_the_client_needs() {
    for (name, _) in plan(&[]) {
        for pattern in OF_THE_CLIENT {
            let is_one = match pattern.strip_suffix('*') {
                Some(start) => name.starts_with(start),
                None => name == pattern,
            };
            assert!(!is_one, "the server's build compiles {name}, which only the client needs");
        }
    }
}

#[test]
fn the_client_widens_the_features_of_the_servers_crates_only_where_its_crates_need_it() {
    let (alone, with_client) = (plan(&["--package", "zmq-echo"]), plan(&[]));
    let mut known: BTreeMap<_, _> = WIDENED.iter().map(|(name, more, _)| (*name, *more)).collect();
    for (name, features) in &alone {
        let more: Vec<_> = with_client[name].difference(features).map(String::as_str).collect();
        match known.remove(name.as_str()) {
            Some("*") => assert!(
                !more.is_empty(),
                "the list is outdated: {name} has no more features with the client"
            ),
            expected => assert_eq!(more.join(" "), expected.unwrap_or_default(), "{name}"),
        }
    }
    assert!(known.is_empty(), "the list is outdated: the server does not compile {known:?}");
}
