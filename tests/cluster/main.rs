//! Tests the manifests under load on the real cluster that `KUBECONFIG` names, while pods are
//! replaced, killed and frozen. `tests/cluster/README.md` says how to run it on kind, on minikube
//! or on a cluster of your own. If there is no Docker, `.ci/cluster` starts a node.
//!
//! The scenarios run one after the other, because each needs the namespace `zmq-echo` to itself. So
//! this test has a `main` of its own instead of `#[test]` functions, which would run in parallel.

mod api;
mod attack;
mod autoscalers;
mod fleet;
mod load;
mod manifests;
#[allow(dead_code, reason = "shared with the test `observability`")]
#[path = "../observability/names.rs"]
mod names;
mod other_namespace;
mod plot;
mod prometheus;
#[path = "../observability/queries.rs"]
mod queries;
mod scenarios;
#[allow(dead_code, reason = "shared with the tests `integration` and `manifests`")]
#[path = "../support/shell.rs"]
mod shell;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Parser;

use api::{Cluster, NAME};

/// Time limit for one step of a scenario. Even on a busy machine, everything except a rollout of
/// many pods takes less.
pub const DEADLINE: Duration = Duration::from_secs(240);

/// Runs the scenarios on the cluster that KUBECONFIG names.
#[derive(Parser)]
#[command(name = "cargo test --test cluster --")]
pub struct Options {
    /// The command that loads an image into the cluster, such as `kind load docker-image` or
    /// `minikube image load`; the image's name is appended to it
    #[arg(long, env = "ZMQ_ECHO_CLUSTER_LOAD_IMAGE")]
    load_image: String,

    /// The command that runs another one on the node, as root, such as `docker exec
    /// kind-control-plane`. Without it, the scenarios that need the node fail
    #[arg(long, env = "ZMQ_ECHO_CLUSTER_NODE_EXEC")]
    node_exec: Option<String>,

    /// A directory with the definitions of the Prometheus operator's or KEDA's resources, if the
    /// cluster lacks them. They are deleted at the end. May be given more than once
    #[arg(long)]
    crds: Vec<PathBuf>,

    /// An image to use instead of one in the manifests, if the cluster cannot pull that one, such
    /// as `quay.io/prometheus/prometheus=my/prometheus:1`. May be given more than once
    #[arg(long, value_parser = replacement)]
    image: Vec<(String, String)>,

    /// An image of tests/cluster/programs/attacker
    #[arg(long)]
    attacker_image: Option<String>,

    /// An image with Python and pyzmq
    #[arg(long)]
    pyzmq_image: Option<String>,

    /// The directory of metrics-server's Go module, which contains its manifests. The scenarios on
    /// scaling install it if the cluster lacks its API
    #[arg(long)]
    metrics_server: Option<PathBuf>,

    /// The same for KEDA
    #[arg(long)]
    keda: Option<PathBuf>,

    /// How many seconds an autoscaler waits before it removes pods, instead of the time in the
    /// manifests, for a quick look
    #[arg(long)]
    window: Option<u32>,

    /// Also runs the scenarios on scaling and on Prometheus, which take longer
    #[arg(long)]
    all: bool,

    /// Lists the scenarios and runs none
    #[arg(long)]
    list: bool,

    /// Runs only the scenarios whose name contains one of these
    names: Vec<String>,
}

/// Parses `FROM=TO`.
fn replacement(text: &str) -> Result<(String, String), String> {
    let (from, to) = text.split_once('=').ok_or("expected FROM=TO")?;
    Ok((from.to_owned(), to.to_owned()))
}

/// Waits until `find` finds something, and returns that.
#[track_caller]
pub fn wait_for<T>(what: &str, find: impl FnMut() -> Option<T>) -> T {
    wait_within(DEADLINE, what, find)
}

/// Like [`wait_for`], but with another time limit.
#[track_caller]
pub fn wait_within<T>(limit: Duration, what: &str, mut find: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(found) = find() {
            return found;
        }
        assert!(Instant::now() < deadline, "not within {limit:?}: {what}");
        std::thread::sleep(Duration::from_millis(200));
    }
}

fn main() -> ExitCode {
    let options = Options::parse();
    let is_chosen = |name: &str| match options.names.is_empty() {
        true => options.all || !scenarios::takes_long(name),
        false => options.names.iter().any(|chosen| name.contains(chosen)),
    };
    let chosen: Vec<_> = scenarios::ALL.iter().filter(|(name, _)| is_chosen(name)).collect();
    if options.list {
        chosen.iter().for_each(|(name, _)| println!("{name}: test"));
        return ExitCode::SUCCESS;
    }
    if chosen.is_empty() {
        eprintln!("no scenario has such a name; --list prints all names");
        return ExitCode::FAILURE;
    }
    let cluster = match Cluster::connect(&options) {
        Ok(cluster) => cluster,
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::FAILURE;
        }
    };
    println!("\nrunning {} tests", chosen.len());
    let start = Instant::now();
    let mut failed = Vec::new();
    for (name, scenario) in &chosen {
        println!("\n{name}");
        let began = Instant::now();
        let outcome = catch_unwind(AssertUnwindSafe(|| scenario(&cluster)));
        let seconds = began.elapsed().as_secs();
        println!("test {name} ... {} ({seconds} s)", if outcome.is_ok() { "ok" } else { "FAILED" });
        if outcome.is_err() {
            failed.push(*name);
        }
    }
    cluster.clear();
    let result = if failed.is_empty() { "ok" } else { "FAILED" };
    if !failed.is_empty() {
        println!("\nfailures:\n    {}", failed.join("\n    "));
    }
    println!(
        "\ntest result: {result}. {} passed; {} failed; 0 ignored; 0 measured; {} filtered out; \
         finished in {:.2}s\n",
        chosen.len() - failed.len(),
        failed.len(),
        scenarios::ALL.len() - chosen.len(),
        start.elapsed().as_secs_f64()
    );
    if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
