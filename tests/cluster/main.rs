//! The manifests on the real cluster that `KUBECONFIG` names: under load, with pods that are
//! replaced, killed and frozen. `tests/cluster/README.md` says how to run it on kind, on
//! minikube or on a cluster of your own; `.ci/cluster` starts a node where there is no Docker.
//!
//! The scenarios run one after the other, because each has the namespace `zmq-echo` to itself.
//! So this is a program of its own instead of functions that run side by side.

mod api;
mod attack;
mod autoscalers;
mod fleet;
mod load;
mod manifests;
#[allow(dead_code, reason = "shared with the test `observability`")]
#[path = "../observability/names.rs"]
mod names;
mod neighbour;
mod plot;
mod prometheus;
#[path = "../observability/queries.rs"]
mod queries;
mod scenarios;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Parser;

use api::{Cluster, NAME};

/// Everything but a rollout of many pods is done within this, on a machine that is busy.
pub const DEADLINE: Duration = Duration::from_secs(240);

/// Runs the scenarios on the cluster that KUBECONFIG names.
#[derive(Parser)]
#[command(name = "cargo test --test cluster --")]
pub struct Options {
    /// Hands an image to the cluster; the image's name is added to it. Such as `kind load
    /// docker-image` or `minikube image load`
    #[arg(long, env = "ZMQ_ECHO_CLUSTER_LOAD_IMAGE")]
    load_image: String,

    /// Runs a command on the node, which is added to it: `docker exec kind-control-plane`.
    /// Without it the scenarios that need the node fail
    #[arg(long, env = "ZMQ_ECHO_CLUSTER_NODE_EXEC")]
    node_exec: Option<String>,

    /// A directory with definitions of resources that the cluster may lack: those of the Prometheus
    /// operator and of KEDA. They are removed at the end. May be given more than once
    #[arg(long)]
    crds: Vec<PathBuf>,

    /// Another image for one in the manifests, if the cluster cannot pull that one:
    /// `quay.io/prometheus/prometheus=my/prometheus:1`. May be given more than once
    #[arg(long, value_parser = replacement)]
    image: Vec<(String, String)>,

    /// An image of tests/cluster/programs/attacker
    #[arg(long)]
    attacker_image: Option<String>,

    /// An image with Python and pyzmq
    #[arg(long)]
    pyzmq_image: Option<String>,

    /// The directory of metrics-server's Go module, which has its manifests. It is installed
    /// for the scenarios on scaling if the cluster has no API of this kind
    #[arg(long)]
    metrics_server: Option<PathBuf>,

    /// The same for KEDA
    #[arg(long)]
    keda: Option<PathBuf>,

    /// For how long an autoscaler waits before it takes pods away, in seconds, instead of the
    /// time in the manifests. For a quick look
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

/// `FROM=TO`.
fn replacement(text: &str) -> Result<(String, String), String> {
    let (from, to) = text.split_once('=').ok_or("expected FROM=TO")?;
    Ok((from.to_owned(), to.to_owned()))
}

/// Waits on a condition and returns what it found.
#[track_caller]
pub fn wait_for<T>(what: &str, find: impl FnMut() -> Option<T>) -> T {
    wait_within(DEADLINE, what, find)
}

/// The same with a deadline of its own.
#[track_caller]
pub fn wait_within<T>(limit: Duration, what: &str, mut find: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(found) = find() {
            return found;
        }
        assert!(Instant::now() < deadline, "waited {limit:?} until {what}");
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
        eprintln!("no scenario has such a name; --list names them all");
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
