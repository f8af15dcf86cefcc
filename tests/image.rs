//! The container image, run by podman. Every promise is checked on a running container and not in
//! the Dockerfile. `.ci/image` builds the image first.

#[path = "image/api.rs"]
mod api;
#[expect(dead_code, reason = "the other tests use the rest")]
mod support;

use std::collections::{BTreeSet, VecDeque};
use std::fs;
use std::io::Read;
use std::net::{IpAddr, SocketAddr};
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::sync::atomic::{AtomicUsize, Ordering};

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Container as Spec;
use serde_json::{Value as Json, json};
use zmq_echo::config::ServerConfig;

use api::{ACCOUNT, API, Api};
use support::{PROBE, Process, Server, command, raw, wait_until};

/// The name that `.ci/image` gives it.
const IMAGE: &str = "localhost/zmq-echo";

/// The restricted Pod Security Standard and a read-only root, as in the Deployment, with limits
/// that podman can set without the right to raise its own.
const RESTRICTED: [&str; 7] = [
    "--runtime=runc",
    "--read-only",
    "--read-only-tmpfs=false",
    "--cap-drop=all",
    "--security-opt=no-new-privileges",
    "--ulimit=nofile=4096:4096",
    "--ulimit=nproc=1024:1024",
];

/// Upper bound on the size of all its files.
const LARGEST: u64 = 23_000_000;

/// Upper bound on the server's memory without clients.
const IDLE: u64 = 10 << 20;

const DEPLOYMENT: &str = include_str!("../k8s/base/deployment.yaml");

/// Runs podman. Returns its error output if it fails.
#[track_caller]
fn podman(args: &[&str]) -> String {
    let Output { status, stdout, stderr } = try_podman(args);
    let stderr = String::from_utf8_lossy(&stderr);
    assert!(status.success(), "podman {args:?} failed with {status}: {stderr}");
    String::from_utf8(stdout).expect("text").trim().to_owned()
}

fn try_podman(args: &[&str]) -> Output {
    command("podman")
        .args(args)
        .output()
        .unwrap_or_else(|error| panic!("this test needs podman: {error}"))
}

/// The arguments of `podman run` for the image, under a name.
fn run<'a>(name: &'a str, options: &[&'a str], args: &[&'a str]) -> Vec<&'a str> {
    let exists = try_podman(&["image", "exists", IMAGE]).status.success();
    assert!(exists, "this test needs the image {IMAGE}; .ci/image builds it");
    // Never pull, because that could test another image.
    let run = ["run", "--rm", "--pull=never", "--log-driver=none", "--name", name];
    [&run[..], &RESTRICTED, options, &[IMAGE], args].concat()
}

/// A name that no other container or network has.
fn unique(what: &str) -> String {
    static COUNT: AtomicUsize = AtomicUsize::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    format!("zmq-echo-{what}-{}-{count}", std::process::id())
}

/// A network with a name server for the containers in it.
struct Network(String);

impl Network {
    fn new() -> Self {
        let name = unique("network");
        podman(&["network", "create", &name]);
        Self(name)
    }

    fn option(&self) -> String {
        format!("--network={}", self.0)
    }

    /// This host's address on it.
    fn gateway(&self) -> String {
        podman(&["network", "inspect", "--format", "{{(index .Subnets 0).Gateway}}", &self.0])
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        try_podman(&["network", "rm", "--force", "--time=0", &self.0]);
    }
}

/// A container's name. Dropping this removes the container.
struct Name(String);

impl Drop for Name {
    fn drop(&mut self) {
        try_podman(&["rm", "--force", "--ignore", "--time=0", &self.0]);
    }
}

/// A server in a container. The process is podman's and ends when the server does; the endpoint,
/// the side port and the pid are the server's.
struct Container {
    // The container is removed before the process is waited for.
    name: Name,
    server: Server,
}

impl Container {
    /// Starts the image with these podman options.
    fn start(options: &[&str]) -> Self {
        let name = Name(unique("server"));
        let mut run_image = command("podman");
        run_image.args(run(&name.0, options, &[]));
        let mut container = Self { server: Server::spawn(run_image), name };
        let ip = container.inspect("{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}");
        let ip: IpAddr = ip.parse().expect("the container has an address");
        container.server.pid = container.inspect("{{.State.Pid}}").parse().expect("a number");
        container.server.endpoint = format!("tcp://{}", SocketAddr::new(ip, 5555));
        container.server.http = SocketAddr::new(ip, 8080);
        container
    }

    #[track_caller]
    fn inspect(&self, format: &str) -> String {
        podman(&["container", "inspect", "--format", format, &self.name.0])
    }

    /// Runs the probe in the container, as an exec probe does.
    #[track_caller]
    fn assert_probe_succeeds(&self) {
        podman(&["exec", &self.name.0, "/zmq-echo-probe", "--timeout", "20s"]);
    }

    /// Stops it as a container runtime does: with the image's signal and its timeout.
    #[track_caller]
    fn stop(&mut self) -> i32 {
        podman(&["stop", "--time=60", &self.name.0]);
        self.server.wait()
    }

    /// A line of `/proc/<pid>/status`.
    fn status(&self, line: &str) -> String {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid))
            .expect("the server is running");
        let line = status.lines().find_map(|found| found.strip_prefix(line)?.strip_prefix(":\t"));
        line.expect("/proc/PID/status has the line").to_owned()
    }
}

impl Deref for Container {
    type Target = Server;

    fn deref(&self) -> &Server {
        &self.server
    }
}

/// The load generator in a container.
struct Load {
    name: Name,
    process: Process,
}

impl Load {
    /// Starts it with these podman options and this discovery source.
    fn start(options: &[&str], source: &str, args: &[&str]) -> Self {
        let name = Name(unique("load"));
        let options = [&["--entrypoint=/zmq-echo-load"], options].concat();
        let args = [&["--discover", source, "--output", "json"], args].concat();
        let process = Process::spawn(command("podman").args(run(&name.0, &options, &args)));
        Self { name, process }
    }

    /// Ends it as Ctrl-C does.
    fn interrupt(&self) {
        podman(&["kill", "--signal=INT", &self.name.0]);
    }

    /// Returns its final output. It must exit with this code, and nothing may have failed.
    #[track_caller]
    fn result(mut self, code: i32) -> Json {
        let mut text = String::new();
        self.process.stdout().read_to_string(&mut text).expect("text");
        assert_eq!(self.process.wait(), code, "{text}");
        let result: Json = serde_json::from_str(&text).expect("JSON");
        assert_eq!(result["failed"], 0, "requests failed: {text}");
        assert_eq!(result["answered"], result["due"], "{text}");
        result
    }
}

fn image() -> Json {
    let text = podman(&["image", "inspect", IMAGE]);
    serde_json::from_str::<Json>(&text).expect("JSON")[0].take()
}

/// The binaries that the two packages have.
fn binaries() -> BTreeSet<String> {
    let manifests = [include_str!("../Cargo.toml"), include_str!("../client/Cargo.toml")];
    let names = manifests.iter().flat_map(|manifest| manifest.split("[[bin]]\nname = \"").skip(1));
    names.map(|rest| rest.split_once('"').expect("a name").0.to_owned()).collect()
}

/// Every file below `root`, relative to it, without directories.
fn files(root: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    let mut directories = vec![root.to_owned()];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(directory).expect("a directory") {
            let entry = entry.expect("an entry");
            match entry.file_type().expect("a type").is_dir() {
                true => directories.push(entry.path()),
                false => files.push(entry.path().strip_prefix(root).unwrap().to_owned()),
            }
        }
    }
    files
}

/// The server's container in the Deployment.
fn deployed() -> Spec {
    let deployment: Deployment = serde_saphyr::from_str(DEPLOYMENT).expect("a Deployment");
    let spec = deployment.spec.template.spec.expect("a pod");
    spec.containers.into_iter().next().expect("a container")
}

/// The server's environment in the Deployment, in the form that podman takes.
fn deployed_env() -> Vec<String> {
    let variables = deployed().env.unwrap_or_default().into_iter();
    variables.filter_map(|env| Some(format!("--env={}={}", env.name, env.value?))).collect()
}

/// The memory limit of the Deployment, in bytes.
fn deployed_memory() -> u64 {
    let limits = deployed().resources.and_then(|resources| resources.limits).expect("limits");
    let mebibytes = limits["memory"].0.strip_suffix("Mi").expect("a number of Mi");
    mebibytes.parse::<u64>().expect("a number") << 20
}

#[test]
fn the_image_holds_the_binaries_and_nothing_else() {
    let root = podman(&["image", "mount", IMAGE]);
    let found = files(Path::new(&root));
    podman(&["image", "unmount", IMAGE]);
    let found: BTreeSet<String> =
        found.into_iter().map(|file| file.to_str().expect("text").to_owned()).collect();
    assert_eq!(found, binaries());
    let size = image()["Size"].as_u64().expect("a number");
    eprintln!("the image takes {size} bytes");
    assert!(size < LARGEST, "the image has grown to {size} bytes; the limit is {LARGEST}");
}

#[test]
fn every_binary_in_the_image_starts_without_shared_libraries() {
    for binary in binaries() {
        let name = unique("version");
        let entry_point = format!("--entrypoint=/{binary}");
        let version = podman(&run(&name, &[&entry_point], &["--version"]));
        let revision = image()["Labels"]["org.opencontainers.image.revision"].clone();
        let revision = revision.as_str().expect("a label");
        assert_eq!(version, format!("{binary} {} ({revision})", env!("CARGO_PKG_VERSION")));
    }
}

#[test]
fn the_image_has_the_settings_that_a_cluster_relies_on() {
    let image = image();
    let config = &image["Config"];
    assert_eq!(config["User"], "65532:65532");
    assert_eq!(config["Entrypoint"], json!(["/zmq-echo-server"]));
    assert_eq!(config["Cmd"], Json::Null);
    assert_eq!(config["StopSignal"], "SIGTERM");
    assert_eq!(config["ExposedPorts"], json!({"5555/tcp": {}, "8080/tcp": {}}));
    for (label, value) in [
        ("title", env!("CARGO_PKG_NAME")),
        ("description", env!("CARGO_PKG_DESCRIPTION")),
        ("version", env!("CARGO_PKG_VERSION")),
        ("licenses", env!("CARGO_PKG_LICENSE")),
    ] {
        assert_eq!(image["Labels"][format!("org.opencontainers.image.{label}")], value, "{label}");
    }
    assert!(image["Labels"]["org.opencontainers.image.source"].is_string());
}

#[test]
fn the_build_arguments_match_the_documents() {
    let args = include_str!("../Dockerfile").lines().filter_map(|line| line.strip_prefix("ARG "));
    let args: BTreeSet<_> = args.filter_map(|arg| arg.split_once('=')).collect();
    let page = include_str!("../docs/kubernetes.md");
    let (_, table) = page.split_once("| `--build-arg` |").expect("a table");
    let rows = table.lines().skip(2).map_while(|row| row.strip_prefix("| `"));
    let documented: BTreeSet<_> = rows
        .filter_map(|row| {
            let (name, rest) = row.split_once("` | `")?;
            Some((name, rest.split_once('`')?.0))
        })
        .collect();
    assert_eq!(documented, args);
}

#[test]
fn the_servers_environment_in_the_image_listens_on_every_interface() {
    let image = image();
    let variables = image["Config"]["Env"].as_array().expect("a list").iter();
    let variables = variables.filter_map(|variable| variable.as_str()?.split_once('='));
    let mut args = vec!["zmq-echo-server".to_owned()];
    for (name, value) in variables.filter(|(name, _)| name.starts_with("ZMQ_ECHO_")) {
        let flag = name["ZMQ_ECHO_".len()..].to_lowercase().replace('_', "-");
        args.push(format!("--{flag}={value}"));
    }
    let config = ServerConfig::parse_args(&args).expect("the server's flags");
    assert_eq!(config.bind.to_string(), "tcp://*:5555");
    assert_eq!(config.http.to_string(), "*:8080");
    assert_eq!(args.len(), 3, "{args:?}");
}

#[test]
fn the_image_serves_unprivileged_on_a_read_only_root() {
    let container = Container::start(&[]);
    let ids = ["65532"; 4].join("\t");
    assert_eq!((container.status("Uid"), container.status("Gid")), (ids.clone(), ids));
    assert_eq!(container.status("CapEff").trim_start_matches('0'), "");
    assert_eq!(container.status("NoNewPrivs"), "1");
    assert_eq!(container.inspect("{{.HostConfig.ReadonlyRootfs}}"), "true");

    let probe = command(PROBE)
        .args(["--endpoint", &container.endpoint, "--timeout", "20s"])
        .output()
        .expect("the probe runs");
    assert!(probe.status.success(), "the probe failed: {probe:?}");
    container.assert_probe_succeeds();
    // Only the probe in the container is on the server's own host.
    assert_eq!(container.metric("zmq_echo_requests_total{source=\"probe\"}"), 1.0);
    assert_eq!(container.metric("zmq_echo_requests_total{source=\"client\"}"), 1.0);
    container.wait_until_alive();
    assert_eq!(container.get("/readyz").0, 200);
}

#[test]
fn the_metrics_show_the_revision_in_the_images_label() {
    let container = Container::start(&[]);
    let revision = image()["Labels"]["org.opencontainers.image.revision"].clone();
    assert_ne!(revision, "unknown");
    let scrape = container.scrape();
    let build = scrape.samples.iter().find(|sample| sample.metric == "zmq_echo_build_info");
    assert_eq!(build.expect("a series").labels.get("revision"), revision.as_str());
}

#[test]
fn the_probe_in_the_image_fails_if_nothing_answers() {
    let container = Container::start(&[]);
    let nobody = ["exec", &container.name.0, "/zmq-echo-probe", "--endpoint", "tcp://127.0.0.1:1"];
    assert_eq!(try_podman(&nobody).status.code(), Some(1));
}

#[test]
fn the_image_resolves_names_without_a_resolver_library() {
    let network = Network::new();
    let option = network.option();
    let server = Container::start(&[&option]);
    let ip = server.http.ip();
    for (name, host) in [
        // By the network's name server, and by /etc/hosts.
        (server.name.0.as_str(), format!("--add-host=unused:{ip}")),
        ("by-file", format!("--add-host=by-file:{ip}")),
    ] {
        let endpoint = format!("tcp://{name}:5555");
        let options = ["--entrypoint=/zmq-echo-probe", &option, &host];
        let prober = unique("probe");
        podman(&run(&prober, &options, &["--endpoint", &endpoint, "--timeout", "20s"]));
    }
}

#[test]
fn the_images_stop_signal_drains_the_server_and_it_exits_0() {
    let mut container = Container::start(&[]);
    let mut peer = raw::dealer(container.address(), 0, b"");
    let request = raw::frame(b"before the signal", false);
    raw::echoes(&mut peer, &request);
    assert_eq!(container.stop(), 0);
    assert_eq!(container.wait_for_record("drained")["owed"], 0);
    assert_eq!(raw::read_until_closed(&mut peer), 0);
}

#[test]
fn the_idle_image_uses_less_than_ten_mebibytes() {
    let container = Container::start(&[]);
    container.assert_probe_succeeds();
    let resident = container.memory("VmRSS");
    eprintln!("{} KiB are resident", resident >> 10);
    assert!(resident < IDLE, "an idle server uses {resident} bytes; the limit is {IDLE}");
}

#[test]
fn replicas_are_all_reached_and_replaced_one_by_one_without_a_failure() {
    let network = Network::new();
    let option = network.option();
    // Podman's name server lists a container until it has ended, so clients keep sending to it
    // until its drain timeout.
    let drain = "--env=ZMQ_ECHO_DRAIN_TIMEOUT=5s";
    let start = || Container::start(&[&option, "--network-alias=replicas", drain]);
    let reached = |replica: &Container| {
        let requests = "zmq_echo_requests_total{source=\"client\"}";
        replica.wait_for_metric(requests, |count| count > 0.0);
    };
    let mut replicas: VecDeque<Container> = (0..3).map(|_| start()).collect();
    let args = ["--rate", "500", "--duration", "10m"];
    let load = Load::start(&[&option], "dns://replicas:5555", &args);
    replicas.iter().for_each(reached);
    for _ in 0..replicas.len() {
        // Add one before removing one, as the Deployment does.
        replicas.push_back(start());
        replicas.back().map(reached);
        let mut old = replicas.pop_front().expect("a replica");
        assert_eq!(old.stop(), 0);
        assert_eq!(old.wait_for_record("drained")["owed"], 0);
    }
    load.interrupt();
    let result = load.result(3);
    eprintln!("{} answered, {} retried", result["answered"], result["retried"]);
}

#[test]
fn the_load_generator_in_the_image_queries_the_clusters_api_over_tls() {
    let network = Network::new();
    let option = network.option();
    let server = Container::start(&[&option]);
    let api = Api::start(server.http.ip());
    // The certificate is valid only for the API's own name, and the account is mounted where the
    // kubelet mounts it.
    let host = format!("--add-host={API}:{}", network.gateway());
    let address = format!("--env=KUBERNETES_SERVICE_HOST={API}");
    let port = format!("--env=KUBERNETES_SERVICE_PORT={}", api.port);
    let account = format!("--volume={}:{ACCOUNT}:ro", api.account.0.display());
    let options = [&option, &host, &address, &port, &account].map(String::as_str);
    let args = ["--rate", "200", "--duration", "2s"];
    let result = Load::start(&options, "k8s://default/zmq-echo:zeromq", &args).result(0);
    assert_eq!(result["answered"], 400);
}

/// What a control group reports about its memory, in version 1 or 2.
struct MemoryGroup {
    directory: PathBuf,
    /// Version 2 includes the sockets' memory; version 1 counts it separately.
    sockets_apart: bool,
}

impl MemoryGroup {
    fn of(pid: u32) -> Self {
        let groups =
            fs::read_to_string(format!("/proc/{pid}/cgroup")).expect("the server is running");
        let path = |controllers: &str| {
            let path = groups.lines().find_map(|line| line.split_once(controllers))?.1;
            Some(path.trim_start_matches('/').to_owned())
        };
        match path(":memory:") {
            Some(path) => Self {
                directory: Path::new("/sys/fs/cgroup/memory").join(path),
                sockets_apart: true,
            },
            None => Self {
                directory: Path::new("/sys/fs/cgroup").join(path("0::").expect("a group")),
                sockets_apart: false,
            },
        }
    }

    fn bytes(&self, file: &str) -> u64 {
        let path = self.directory.join(file);
        let text = fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        text.trim().parse().unwrap_or(u64::MAX)
    }

    fn limit(&self) -> u64 {
        self.bytes(if self.sockets_apart { "memory.limit_in_bytes" } else { "memory.max" })
    }

    /// Makes the kernel count the memory of sockets.
    fn count_sockets(&self, limit: u64) {
        if self.sockets_apart {
            let file = self.directory.join("memory.kmem.tcp.limit_in_bytes");
            fs::write(file, limit.to_string()).expect("the kernel can count the memory of sockets");
        }
    }

    /// The maximum that processes and sockets have used.
    fn most(&self) -> u64 {
        match self.sockets_apart {
            true => {
                let sockets = self.bytes("memory.kmem.tcp.max_usage_in_bytes");
                eprintln!("{} KiB in sockets", sockets >> 10);
                self.bytes("memory.max_usage_in_bytes") + sockets
            }
            false => self.bytes("memory.peak"),
        }
    }
}

#[test]
fn two_hundred_peers_that_send_and_do_not_read_do_not_exceed_the_deployments_memory() {
    let limit = deployed_memory();
    let memory = format!("--memory={limit}");
    let env = deployed_env();
    let options: Vec<&str> = env.iter().map(String::as_str).chain([memory.as_str()]).collect();
    let container = Container::start(&options);
    let group = MemoryGroup::of(container.pid);
    assert_eq!(group.limit(), limit, "podman did not set the Deployment's memory limit");
    group.count_sockets(limit);

    let mut peers = raw::crowd(container.address(), 200);
    let request = raw::frame(&[3; 64 << 10], false);
    container.flood_until_stuck(&mut peers, &request);
    container.assert_probe_succeeds();
    let most = group.most();
    eprintln!("{} KiB at most, of {} KiB", most >> 10, limit >> 10);
    assert!(most < limit, "the server used {most} bytes; the Deployment's limit is {limit}");
    drop(peers);
    wait_until("all peers are disconnected", || container.metric("zmq_echo_peers") == 0.0);
    assert_eq!(
        container.inspect("{{.State.Pid}}"),
        container.pid.to_string(),
        "the server did not survive: it was restarted"
    );
}
