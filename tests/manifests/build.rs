//! What a cluster gets: the base, each component on top of it, and every overlay. kustomize builds
//! them, and they are read with the API's types.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Container, PodSpec, PodTemplateSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::{Metadata, Resource};
use serde_json::Value;

/// The name of the service, of its Deployment and of its image.
pub const NAME: &str = "zmq-echo";

/// The release that the manifests are for.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Where the documents tell readers to put an overlay of their own. It is theirs, so no test reads it.
pub const YOURS: &str = "k8s/overlays/mine";

/// The first minor version of kubectl whose kustomize supports components.
const KUBECTL_MINOR: u32 = 21;

/// One way to apply the manifests, with all the objects that result.
pub struct Variant {
    /// Such as `base`, `components-load` or `overlays-local`.
    pub name: String,
    pub documents: Vec<Value>,
}

/// A pod as created by a workload of a variant.
pub struct Pod {
    /// Such as `base: Deployment/zmq-echo`.
    pub origin: String,
    pub metadata: ObjectMeta,
    pub spec: PodSpec,
}

/// Every variant. The YAML stays in the target directory, for `schemas.py`.
pub fn variants() -> &'static [Variant] {
    static VARIANTS: OnceLock<Vec<Variant>> = OnceLock::new();
    VARIANTS.get_or_init(build_all)
}

pub fn variant(name: &str) -> &'static Variant {
    variants()
        .iter()
        .find(|variant| variant.name == name)
        .unwrap_or_else(|| panic!("no variant {name}"))
}

pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The pods of all variants.
pub fn pods() -> Vec<Pod> {
    variants().iter().flat_map(Variant::pods).collect()
}

impl Variant {
    /// Its documents of one kind.
    pub fn all<K: Resource + serde::de::DeserializeOwned>(&self) -> Vec<K> {
        let of_kind = |document: &&Value| {
            document["apiVersion"] == K::API_VERSION && document["kind"] == K::KIND
        };
        let typed = |document: &Value| serde_json::from_value(document.clone()).expect(K::KIND);
        self.documents.iter().filter(of_kind).map(typed).collect()
    }

    pub fn named<K>(&self, name: &str) -> K
    where
        K: Resource + serde::de::DeserializeOwned + Metadata<Ty = ObjectMeta>,
    {
        let mut all = self.all::<K>();
        all.retain(|object| object.metadata().name.as_deref() == Some(name));
        assert_eq!(all.len(), 1, "{}: expected one {} {name}", self.name, K::KIND);
        all.remove(0)
    }

    pub fn pods(&self) -> Vec<Pod> {
        self.documents.iter().filter_map(|document| self.pod(document)).collect()
    }

    fn pod(&self, document: &Value) -> Option<Pod> {
        let templates = ["/spec/template", "/spec/jobTemplate/spec/template"];
        let template = templates
            .into_iter()
            .filter_map(|at| document.pointer(at))
            .find(|template| template.pointer("/spec/containers").is_some())?;
        let template: PodTemplateSpec =
            serde_json::from_value(template.clone()).expect("the template describes a pod");
        Some(Pod {
            origin: format!("{}: {}", self.name, name_of(document)),
            metadata: template.metadata.unwrap_or_default(),
            spec: template.spec.expect("the pod has containers"),
        })
    }

    pub fn server(&'static self) -> Server {
        Server { variant: &self.name, deployment: self.named(NAME) }
    }
}

impl Pod {
    /// All its containers, including init containers.
    pub fn containers(&self) -> impl Iterator<Item = &Container> {
        self.spec.containers.iter().chain(self.spec.init_containers.iter().flatten())
    }

    pub fn label(&self, name: &str) -> Option<&str> {
        self.metadata.labels.as_ref()?.get(name).map(String::as_str)
    }
}

/// The object's `Kind/name`.
pub fn name_of(document: &Value) -> String {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    format!("{}/{}", text(&document["kind"]), text(&document["metadata"]["name"]))
}

/// The Deployment, with accessors for what the tests check.
pub struct Server {
    pub variant: &'static str,
    pub deployment: Deployment,
}

impl Server {
    /// The server of every variant.
    pub fn all() -> Vec<Self> {
        variants().iter().map(Variant::server).collect()
    }

    pub fn template(&self) -> &PodTemplateSpec {
        &self.deployment.spec.template
    }

    pub fn pod(&self) -> &PodSpec {
        self.template().spec.as_ref().expect("the template has a pod")
    }

    pub fn container(&self) -> &Container {
        let [container] = &self.pod().containers[..] else { panic!("expected one container") };
        container
    }

    /// The number of a named port.
    pub fn port(&self, name: &str) -> i32 {
        let ports = self.container().ports.iter().flatten();
        let mut named = ports.filter(|port| port.name.as_deref() == Some(name));
        named.next().unwrap_or_else(|| panic!("{} has no port {name}", self.variant)).container_port
    }
}

/// `kubectl` with these arguments.
pub fn kubectl(args: &[&str]) -> Output {
    let output = Command::new("kubectl").args(args).output();
    output.unwrap_or_else(|error| match error.kind() {
        ErrorKind::NotFound => panic!("{}", missing("there is none")),
        _ => panic!("kubectl does not run: {error}"),
    })
}

fn missing(found: &str) -> String {
    format!("this test needs kubectl 1.{KUBECTL_MINOR} or newer, and {found}; .ci/run installs it")
}

fn check_kubectl() {
    let output = kubectl(&["version", "--client", "--output", "json"]);
    let version: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
    let version = version["clientVersion"]["gitVersion"].as_str().unwrap_or("v1.0").to_owned();
    let minor = version.split('.').nth(1).and_then(|minor| minor.parse::<u32>().ok());
    assert!(minor >= Some(KUBECTL_MINOR), "{}", missing(&format!("this one is {version}")));
}

/// The directory in which the manifests are built and kept.
fn work() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join("manifests")
}

fn build_all() -> Vec<Variant> {
    check_kubectl();
    // A copy, because a kustomization may name only files next to it, and because the
    // kustomizations that add a component to the base are created here.
    let tree = work().join("k8s");
    copy_manifests(&work());
    let mut variants = vec![build("base", &tree.join("base"))];
    for component in directories(&tree.join("components")) {
        let name = format!("components-{}", file_name(&component));
        let over_base = over_base(&tree.join(&name), &component);
        variants.push(build(&name, &over_base));
    }
    for overlay in directories(&tree.join("overlays")) {
        variants.push(build(&format!("overlays-{}", file_name(&overlay)), &overlay));
    }
    variants
}

/// The objects built from this kustomization, in its own directory next to the others under
/// `parent`.
pub fn build_beside(parent: &str, name: &str, kustomization: &str) -> Variant {
    build(name, &directory_beside(parent, name, kustomization))
}

/// Whether this kustomization can be built.
pub fn builds_beside(parent: &str, name: &str, kustomization: &str) -> bool {
    let directory = directory_beside(parent, name, kustomization);
    kubectl(&["kustomize", directory.to_str().unwrap()]).status.success()
}

/// A directory with a kustomization, next to the others under `parent`.
pub fn directory_beside(parent: &str, name: &str, kustomization: &str) -> PathBuf {
    variants();
    let directory = work().join("k8s").join(parent).join(name);
    fs::create_dir_all(&directory).unwrap();
    fs::write(directory.join("kustomization.yaml"), kustomization).unwrap();
    directory
}

fn over_base(directory: &Path, component: &Path) -> PathBuf {
    fs::create_dir(directory).unwrap();
    let component = format!("../components/{}", file_name(component));
    let kustomization = format!(
        "apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\n\
         namespace: {NAME}\nresources: [../base]\ncomponents: [{component}]\n"
    );
    fs::write(directory.join("kustomization.yaml"), kustomization).unwrap();
    directory.to_owned()
}

fn build(name: &str, directory: &Path) -> Variant {
    let output = kubectl(&["kustomize", directory.to_str().unwrap()]);
    assert!(
        output.status.success(),
        "{name} cannot be built: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    // kustomize reports deprecated fields here.
    assert!(
        output.stderr.is_empty(),
        "kustomize warns about {name}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    let yaml = String::from_utf8(output.stdout).unwrap();
    fs::write(work().join(format!("{name}.yaml")), &yaml).unwrap();
    Variant { name: name.to_owned(), documents: parse(&yaml) }
}

/// The documents of a YAML file.
pub fn parse(yaml: &str) -> Vec<Value> {
    serde_saphyr::from_multiple(yaml).unwrap_or_else(|error| panic!("{error}"))
}

/// Every file under `k8s/`, with its text.
pub fn sources() -> Vec<(PathBuf, String)> {
    let mut directories = vec![root().join("k8s")];
    let mut files = Vec::new();
    while let Some(directory) = directories.pop() {
        for entry in entries(&directory) {
            if entry.is_dir() {
                directories.push(entry);
            } else {
                let text = fs::read_to_string(&entry).unwrap();
                files.push((entry, text));
            }
        }
    }
    files
}

/// Copies `k8s/` into a directory.
pub fn copy_manifests(to: &Path) {
    let _ = fs::remove_dir_all(to);
    copy(&root().join("k8s"), &to.join("k8s"));
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in entries(from) {
        let target = to.join(entry.file_name().unwrap());
        if entry.is_dir() {
            copy(&entry, &target);
        } else {
            fs::copy(&entry, &target).unwrap();
        }
    }
}

pub fn directories(path: &Path) -> Vec<PathBuf> {
    entries(path).into_iter().filter(|entry| entry.is_dir()).collect()
}

fn entries(path: &Path) -> Vec<PathBuf> {
    let mut entries: Vec<_> = fs::read_dir(path)
        .unwrap_or_else(|error| panic!("{}: {error}", path.display()))
        .map(|entry| entry.unwrap().path())
        .filter(|path| *path != root().join(YOURS))
        .collect();
    entries.sort();
    entries
}

fn file_name(path: &Path) -> &str {
    path.file_name().and_then(|name| name.to_str()).expect("the path has a name")
}
