//! The kubectl commands of README and `docs/`, typed in the order in which they are read.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::api::{Cluster, NAME, kubectl};
use crate::manifests::Removed;
use crate::other_namespace::{NAME as OTHER, OtherNamespace};
use crate::shell;
use crate::wait_for;

/// Commands that are not typed here, by a part of them, and why.
const NOT_TYPED: [(&str, &str); 12] = [
    ("port-forward", "goes on until it is interrupted"),
    ("overlays/mine", "needs a registry; the scenario on overlays applies `production`"),
    ("top pods", "needs metrics-server"),
    ("top nodes", "needs metrics-server"),
    ("get hpa", "needs KEDA, which the scenarios on scaling install"),
    ("describe hpa", "needs an autoscaler, which the scenarios on scaling install"),
    ("external.metrics", "needs KEDA"),
    ("custom.metrics", "needs prometheus-adapter"),
    ("get prometheus", "needs the Prometheus operator"),
    ("logs --previous", "needs a container that has ended"),
    ("kubectl delete pod", "names the command, and no pod"),
    ("kubectl label --overwrite namespace keda", "its form with `monitoring` is typed"),
];

/// A cluster is at hand, so each command has to do what the document says, not only to be accepted.
pub fn typed(cluster: &Cluster) {
    cluster.needs_crds();
    cluster.clear();
    let other = OtherNamespace::create();
    let mut unused: Vec<_> = NOT_TYPED.iter().map(|(part, _)| *part).collect();
    let mut typed = 0;
    // README's first command creates the namespace.
    let mut removed = None;
    let (last, commands): (Vec<_>, Vec<_>) =
        in_reading_order().into_iter().partition(|command| command.contains(" delete -k "));
    for command in commands {
        let named = NOT_TYPED.iter().find(|(part, _)| command.contains(part));
        if let Some((part, reason)) = named {
            unused.retain(|unused| unused != part);
            println!("  not typed: {command}: it {reason}");
            continue;
        }
        // The documents' namespaces may belong to somebody on this cluster.
        let command = command.replace("namespace monitoring", &format!("namespace {OTHER}"));
        let command = command.replace("namespace keda", &format!("namespace {OTHER}"));
        type_in(&command);
        removed.get_or_insert_with(|| Removed(NAME.to_owned()));
        typed += 1;
        if command.contains("overlays/autoscaled") {
            let path = "jsonpath={.spec.replicas}";
            let replicas = kubectl(&["get", "deployment/zmq-echo", "--output", path]);
            assert_eq!(
                replicas, "3",
                "the apply of an overlay with an autoscaler removed replicas"
            );
        }
    }
    assert_eq!(last.len(), 1, "{last:?}");
    last.iter().for_each(|command| type_in(command));
    assert!(unused.is_empty(), "no document has these commands any more: {unused:?}");
    assert!(typed > 20, "only {typed} commands were typed");
    println!("  {typed} commands typed");
    drop((removed, other));
}

/// Every command that contains kubectl: the README's, those of `docs/kubernetes.md`, and the rest.
fn in_reading_order() -> Vec<String> {
    let mut commands = shell::commands();
    commands.retain(|(_, command)| command.contains("kubectl "));
    commands.sort_by_key(|(file, _)| {
        let name = file.file_name().and_then(OsStr::to_str).unwrap_or_default().to_owned();
        (name != "README.md", name != "kubernetes.md", name)
    });
    commands.into_iter().map(|(_, command)| command).collect()
}

/// Runs a command, which must succeed and find something. What it says at first may be an error
/// that passes, such as that a container is still being created.
#[track_caller]
fn type_in(command: &str) {
    println!("  $ {command}");
    let goes_on = ["--follow", "--watch"].iter().any(|flag| command.contains(flag));
    let mut said = String::new();
    let found = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        wait_for("the command succeeds", || {
            let mut shell = Command::new("bash")
                .args(["-e", "-o", "pipefail", "-c", &format!("exec 2>&1; {command}")])
                .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")))
                // The documents' only edit deletes the line `replicas`.
                .env("KUBE_EDITOR", "sed -i '/^  replicas: 3$/d'")
                .stdin(Stdio::null())
                .stdout(Stdio::piped())
                .process_group(0)
                .spawn()
                .expect("bash can be started");
            let mut output = BufReader::new(shell.stdout.take().expect("stdout is piped"));
            said.clear();
            if goes_on {
                let read = output.read_line(&mut said).expect("the output is text");
                end(&mut shell);
                (read > 0 && !said.contains("rror")).then_some(())
            } else {
                output.read_to_string(&mut said).expect("the output is text");
                let success = shell.wait().expect("bash ends").success();
                let is_empty = said.trim().is_empty() || said.contains("No resources found");
                (success && !is_empty).then_some(())
            }
        });
    }));
    assert!(found.is_ok(), "a documented command fails or finds nothing: {command}\n{said}");
}

/// Ends a command that goes on.
fn end(shell: &mut std::process::Child) {
    let group = i32::try_from(shell.id()).ok().and_then(rustix::process::Pid::from_raw);
    if let Some(group) = group {
        let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
    }
    let _ = shell.wait();
}
