//! The cluster: kubectl, the API through `kubectl proxy`, and the node.

use std::io::{BufRead, BufReader, Read, Write};
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::{Value as Json, json};

use crate::manifests::Removed;
use crate::{Options, wait_for};

/// The namespace of the overlays, and the name of the service in it.
pub const NAME: &str = "zmq-echo";

/// The image of the manifests, and another one to roll out.
pub const IMAGE: &str = "zmq-echo:0.1.0";
pub const NEXT_IMAGE: &str = "zmq-echo:next";

/// A cluster that has the images, and had no namespace `zmq-echo` when the test began.
pub struct Cluster {
    proxy: Proxy,
    node_exec: Option<Vec<String>>,
    crds: Vec<PathBuf>,
    /// Images to use instead of those in the manifests, which are named without a tag.
    pub images: Vec<(String, String)>,
    /// Images of programs that some scenarios need.
    pub attacker_image: Option<String>,
    pub pyzmq_image: Option<String>,
    /// The directories of the Go modules of metrics-server and KEDA, which contain their manifests.
    pub metrics_server: Option<PathBuf>,
    pub keda: Option<PathBuf>,
    /// How long autoscalers wait before they remove pods, in seconds, instead of the time in the
    /// manifests.
    pub window: Option<u32>,
    /// Whether a scenario has left the local overlay for the next one, as it is in the manifests.
    pub is_local: AtomicBool,
}

impl Cluster {
    /// Finds the cluster and loads the images into it. The error says what to do.
    pub fn connect(options: &Options) -> Result<Self, String> {
        let version = try_kubectl(&["version", "--output", "json"])?;
        let version: Json = serde_json::from_str(&version).map_err(|error| error.to_string())?;
        let context = std::env::var("KUBECONFIG").unwrap_or_else(|_| "its default".to_owned());
        println!("Kubernetes {} by {context}", version["serverVersion"]["gitVersion"]);
        if try_kubectl(&["get", "namespace", NAME]).is_ok() {
            return Err(format!(
                "the cluster already has a namespace {NAME}, which this test would delete; \
                 if a killed run left it, delete it first: kubectl delete namespace {NAME}"
            ));
        }
        remove_ours();
        let others = options.image.iter().map(|(_, image)| image.as_str());
        let others = others.chain(options.attacker_image.as_deref());
        let others = others.chain(options.pyzmq_image.as_deref());
        for image in [IMAGE, NEXT_IMAGE].into_iter().chain(others) {
            let words = words(&options.load_image);
            let (program, args) = words.split_first().ok_or("--load-image is empty")?;
            let loaded = Command::new(program).args(args).arg(image).output();
            let loaded = loaded.map_err(|error| format!("{}: {error}", options.load_image))?;
            text(loaded).map_err(|error| format!("{} {image}: {error}", options.load_image))?;
        }
        let node_exec = options.node_exec.as_deref().map(words);
        Ok(Self {
            proxy: Proxy::start(),
            node_exec,
            crds: options.crds.clone(),
            images: options.image.clone(),
            attacker_image: options.attacker_image.clone(),
            pyzmq_image: options.pyzmq_image.clone(),
            metrics_server: options.metrics_server.clone(),
            keda: options.keda.clone(),
            window: options.window,
            is_local: AtomicBool::new(false),
        })
    }

    /// Deletes the local overlay if a scenario has left it for the next one.
    pub fn clear(&self) {
        if self.is_local.swap(false, Ordering::Relaxed) {
            drop(Removed(NAME.to_owned()));
        }
    }

    /// The image to use instead of one in a manifest, if `--image` names one.
    pub fn image_for(&self, manifests: &str) -> Option<&str> {
        let end = manifests.rfind('/').map_or(0, |slash| slash + 1);
        let name = manifests[end..].split([':', '@']).next().unwrap_or_default();
        let name = &manifests[..end + name.len()];
        let found = self.images.iter().find(|(from, _)| from == name);
        found.map(|(_, to)| to.as_str())
    }

    /// Creates the definitions of custom resources that components need, unless the cluster has
    /// them. They are deleted when this is dropped.
    #[track_caller]
    pub fn needs_crds(&self) {
        for (name, file) in CRDS {
            if try_kubectl(&["get", "crd", name]).is_ok() {
                continue;
            }
            let paths = self.crds.iter().map(|directory| directory.join(file));
            let path = paths.into_iter().find(|path| path.exists()).unwrap_or_else(|| {
                panic!("the cluster has no {name}, and no --crds directory contains {file}")
            });
            kubectl(&["create", "--filename", path.to_str().expect("the path is UTF-8")]);
            kubectl(&["label", "crd", name, OURS]);
            kubectl(&["wait", "--for=condition=Established", "--timeout=60s", "crd", name]);
        }
    }

    /// Returns the object at a path of the API, such as `/api/v1/namespaces/default/pods`.
    #[track_caller]
    pub fn get(&self, path: &str) -> Json {
        let text = self.read(path).unwrap_or_else(|error| panic!("{path}: {error}"));
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{path}: {error}: {text}"))
    }

    /// Returns the API's answer to a GET request.
    pub fn read(&self, path: &str) -> Result<String, String> {
        self.proxy.read(path)
    }

    /// Returns a reader of the same API, for another thread.
    pub fn reader(&self) -> Reader {
        Reader { base: self.proxy.base.clone() }
    }

    /// The objects of one kind in the namespace of the service, such as `pods`.
    #[track_caller]
    pub fn list(&self, kind: &str, selector: &str) -> Vec<Json> {
        self.list_in(NAME, kind, selector)
    }

    #[track_caller]
    pub fn list_in(&self, namespace: &str, kind: &str, selector: &str) -> Vec<Json> {
        let prefix = match kind {
            "pods" | "events" => "/api/v1",
            "jobs" => "/apis/batch/v1",
            "endpointslices" => "/apis/discovery.k8s.io/v1",
            _ => panic!("{kind}"),
        };
        let path = format!("{prefix}/namespaces/{namespace}/{kind}?labelSelector={selector}");
        let Json::Array(items) = self.get(&path)["items"].take() else { panic!("no list: {path}") };
        items
    }

    /// The pods of the server that are not terminating.
    #[track_caller]
    pub fn servers(&self) -> Vec<Json> {
        let mut pods = self.list("pods", SERVER);
        pods.retain(|pod| pod["metadata"]["deletionTimestamp"].is_null());
        pods
    }

    /// The pods of the server that are ready and not terminating.
    #[track_caller]
    pub fn ready_servers(&self) -> Vec<Json> {
        let mut pods = self.servers();
        pods.retain(is_ready);
        pods
    }

    /// Waits until there are exactly `count` pods of the server, all of them ready.
    #[track_caller]
    pub fn wait_for_servers(&self, count: usize) -> Vec<Json> {
        wait_for(&format!("{count} servers are ready"), || {
            let pods = self.list("pods", SERVER);
            (pods.len() == count && self.ready_servers().len() == count).then_some(pods)
        })
    }

    /// Waits for the end of a rollout.
    #[track_caller]
    pub fn wait_for_rollout(&self) {
        kubectl(&["rollout", "status", "deployment/zmq-echo", "--timeout=240s"]);
    }

    /// Requests an eviction, and returns whether it was granted. It is refused if it would violate
    /// the disruption budget.
    #[track_caller]
    pub fn evict(&self, pod: &str) -> bool {
        let eviction = json!({
            "apiVersion": "policy/v1",
            "kind": "Eviction",
            "metadata": {"name": pod, "namespace": NAME},
        });
        let path = format!("/api/v1/namespaces/{NAME}/pods/{pod}/eviction");
        match with_stdin(&["create", "--raw", &path, "--filename", "-"], &eviction.to_string()) {
            Ok(_) => true,
            Err(error) if error.contains("disruption budget") => false,
            Err(error) => panic!("{path}: {error}"),
        }
    }

    /// Runs a command on the node, as root.
    #[track_caller]
    pub fn on_node(&self, command: &[&str]) -> String {
        let Some(words) = &self.node_exec else {
            panic!("this scenario runs commands on the node: say how with --node-exec")
        };
        let output = Command::new(&words[0]).args(&words[1..]).args(command).output();
        let output = output.unwrap_or_else(|error| panic!("{words:?}: {error}"));
        text(output).unwrap_or_else(|error| panic!("on the node, {command:?}: {error}"))
    }

    /// Sends a signal to the server's process in a pod, from the node.
    #[track_caller]
    pub fn signal(&self, pod: &Json, signal: &str) {
        let uid = pod["metadata"]["uid"].as_str().expect("the pod has a uid");
        // The name of the control group contains the uid, with dashes or underscores.
        let pattern = uid.replace('-', "[-_]");
        let script = format!(
            "for process in /proc/[0-9]*; do \
               if [ \"$(cat $process/comm 2>/dev/null)\" = zmq-echo-server ] \
                 && grep -q '{pattern}' $process/cgroup; then \
                 kill -{signal} ${{process#/proc/}} && echo ${{process#/proc/}}; \
               fi; \
             done"
        );
        let found = self.on_node(&["sh", "-c", &script]);
        assert_eq!(
            found.lines().count(),
            1,
            "expected one server process in {}: {found:?}",
            name(pod)
        );
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        remove_ours();
    }
}

/// Deletes everything with the test's label, from this run or from one that was killed.
fn remove_ours() {
    for (namespace, kinds) in [
        ("kube-system", "deployments,services,serviceaccounts,rolebindings"),
        (NAME, "apiservices,namespaces,clusterroles,clusterrolebindings,customresourcedefinitions"),
    ] {
        let args =
            ["delete", kinds, "--namespace", namespace, "--selector", OURS, "--timeout=240s"];
        if let Err(error) = try_kubectl(&args) {
            eprintln!("cannot delete what the test has created: {error}");
        }
    }
}

/// The label of everything that the test creates outside its namespace.
pub const OURS: &str = "zmq-echo/cluster-test=true";

/// The custom resources that components need, each with the file that defines it.
const CRDS: [(&str, &str); 3] = [
    ("podmonitors.monitoring.coreos.com", "monitoring.coreos.com_podmonitors.yaml"),
    ("prometheusrules.monitoring.coreos.com", "monitoring.coreos.com_prometheusrules.yaml"),
    ("scaledobjects.keda.sh", "keda.sh_scaledobjects.yaml"),
];

/// The label selector of the server's pods.
pub const SERVER: &str = "app.kubernetes.io/name=zmq-echo";

/// `kubectl proxy`, which is stopped when this is dropped.
struct Proxy {
    process: Child,
    base: String,
}

impl Proxy {
    fn start() -> Self {
        let mut process = Command::new("kubectl")
            .args(["proxy", "--port=0"])
            .stdout(Stdio::piped())
            .spawn()
            .expect("kubectl starts");
        let mut line = String::new();
        let stdout = process.stdout.take().expect("stdout is piped");
        BufReader::new(stdout).read_line(&mut line).expect("kubectl proxy prints its address");
        let address = line.trim().rsplit(' ').next().unwrap_or_default();
        assert!(address.contains(':'), "kubectl proxy: {line}");
        Self { process, base: format!("http://{address}") }
    }

    fn read(&self, path: &str) -> Result<String, String> {
        Reader { base: self.base.clone() }.read(path)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Reads from the API.
#[derive(Clone)]
pub struct Reader {
    base: String,
}

impl Reader {
    /// Returns the API's answer to a GET request, which must arrive within a few seconds.
    pub fn read(&self, path: &str) -> Result<String, String> {
        let mut text = String::new();
        let mut stream = self.open(path, Some(Duration::from_secs(5)))?;
        stream.read_to_string(&mut text).map_err(|error| error.to_string())?;
        Ok(text)
    }

    /// Returns the answer as a stream, which may never end.
    pub fn follow(&self, path: &str) -> Result<impl BufRead + use<>, String> {
        Ok(BufReader::new(self.open(path, None)?))
    }

    fn open(&self, path: &str, limit: Option<Duration>) -> Result<impl Read + use<>, String> {
        let agent: ureq::Agent = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .timeout_global(limit)
            .build()
            .into();
        let answer = agent.get(format!("{}{path}", self.base)).call();
        let answer = answer.map_err(|error| error.to_string())?;
        match answer.status().as_u16() {
            200 => Ok(answer.into_body().into_reader()),
            status => {
                let text = answer.into_body().read_to_string().unwrap_or_default();
                Err(format!("{status}: {text}"))
            }
        }
    }
}

/// Runs `kubectl` in the namespace of the service.
#[track_caller]
pub fn kubectl(args: &[&str]) -> String {
    try_kubectl(args).unwrap_or_else(|error| panic!("kubectl {}: {error}", args.join(" ")))
}

pub fn try_kubectl(args: &[&str]) -> Result<String, String> {
    let output = Command::new("kubectl").args(["--namespace", NAME]).args(args).output();
    text(output.map_err(|error| format!("kubectl: {error}"))?)
}

/// Applies objects.
#[track_caller]
pub fn apply(objects: &[Json]) {
    apply_in(NAME, objects);
}

#[track_caller]
pub fn apply_in(namespace: &str, objects: &[Json]) {
    let list = json!({"apiVersion": "v1", "kind": "List", "items": objects});
    with_stdin(&["apply", "--namespace", namespace, "--filename", "-"], &list.to_string())
        .unwrap_or_else(|error| panic!("kubectl apply: {error}"));
}

/// Runs `kubectl` with `input` on stdin, in the namespace of the service.
pub fn with_stdin(args: &[&str], input: &str) -> Result<String, String> {
    anywhere_with_stdin(&[&["--namespace", NAME], args].concat(), input)
}

/// Like [`with_stdin`], but in the namespaces that the objects name.
pub fn anywhere_with_stdin(args: &[&str], input: &str) -> Result<String, String> {
    let mut process = Command::new("kubectl")
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| format!("kubectl: {error}"))?;
    let mut stdin = process.stdin.take().expect("stdin is piped");
    stdin.write_all(input.as_bytes()).map_err(|error| error.to_string())?;
    drop(stdin);
    text(process.wait_with_output().map_err(|error| error.to_string())?)
}

/// The output of a command, or why it failed.
fn text(output: Output) -> Result<String, String> {
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    match output.status.success() {
        true => Ok(stdout),
        // stdout as well, because that is where `kubectl diff` says what differs.
        false => {
            let stderr = String::from_utf8_lossy(&output.stderr);
            Err(format!("{}: {stderr}{stdout}", output.status))
        }
    }
}

fn words(command: &str) -> Vec<String> {
    command.split_whitespace().map(str::to_owned).collect()
}

pub fn name(object: &Json) -> &str {
    object["metadata"]["name"].as_str().expect("the object has a name")
}

/// The names of pods.
pub fn names(pods: &[Json]) -> Vec<String> {
    pods.iter().map(|pod| name(pod).to_owned()).collect()
}

pub fn is_ready(pod: &Json) -> bool {
    let conditions = pod["status"]["conditions"].as_array().into_iter().flatten();
    conditions
        .into_iter()
        .any(|condition| condition["type"] == "Ready" && condition["status"] == "True")
}

/// The status of a pod's only container.
pub fn container(pod: &Json) -> &Json {
    &pod["status"]["containerStatuses"][0]
}

pub fn restarts(pod: &Json) -> u64 {
    container(pod)["restartCount"].as_u64().unwrap_or(0)
}
