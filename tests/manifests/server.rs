//! The Deployment sets what the server accepts, and opens what it serves.

use clap::{Arg, Command as Parser, CommandFactory};
use k8s_openapi::api::core::v1::Container;
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use zmq_echo::config::{ProbeConfig, ServerConfig};
use zmq_echo::side_port::PATHS;
use zmq_echo::simulation::EchoConfig;

use crate::build::{Server, Variant, variants};
use crate::support;

/// The flags that mean the same as a container's environment.
pub fn as_flags(parser: &Parser, container: &Container) -> Vec<String> {
    let mut flags = vec![parser.get_name().to_owned()];
    for variable in container.env.iter().flatten() {
        if !variable.name.starts_with("ZMQ_ECHO_") {
            continue;
        }
        let is_it = |arg: &&Arg| arg.get_env() == Some(variable.name.as_ref());
        let arg = parser.get_arguments().find(is_it);
        let arg = arg
            .unwrap_or_else(|| panic!("{} has no flag for {}", parser.get_name(), variable.name));
        let value = variable.value.as_ref().expect("the variable has a literal value");
        flags.push(format!("--{}={value}", arg.get_long().expect("the argument has a long name")));
    }
    flags.extend(container.args.iter().flatten().cloned());
    flags
}

/// The echo server's configuration as the manifest has it.
pub fn echo_config(server: &Server) -> EchoConfig {
    let flags = as_flags(&EchoConfig::command(), server.container());
    EchoConfig::parse_args(flags).unwrap_or_else(|error| panic!("{}: {error}", server.variant))
}

/// The configuration of any server in the manifest.
pub fn config(server: &Server) -> ServerConfig {
    echo_config(server).server
}

/// A server that runs with the manifest's environment, on its own ports.
pub fn run(server: &Server) -> support::Server {
    let mut command = support::command(support::SERVER);
    command.envs(environment(server.container()));
    command.args(server.container().args.iter().flatten());
    command.args(["--bind", "tcp://127.0.0.1:0", "--http", "127.0.0.1:0"]);
    support::Server::spawn(command)
}

pub fn environment(container: &Container) -> impl Iterator<Item = (&str, &str)> {
    let variables = container.env.iter().flatten();
    variables.filter_map(|variable| Some((variable.name.as_str(), variable.value.as_deref()?)))
}

#[test]
fn arguments_and_environment_are_what_the_server_parses() {
    for server in Server::all() {
        config(&server);
        assert_eq!(server.container().command, None, "the image's entry point is the server");
    }
}

#[test]
fn the_deployment_does_not_rely_on_image_defaults() {
    for server in Server::all() {
        let stated: Vec<_> = environment(server.container()).map(|(name, _)| name).collect();
        for name in ["ZMQ_ECHO_BIND", "ZMQ_ECHO_HTTP", "ZMQ_ECHO_DRAIN_TIMEOUT"] {
            assert!(stated.contains(&name), "{}: {name} is not set", server.variant);
        }
    }
}

#[test]
fn the_limits_stated_by_the_deployment_are_in_force() {
    for server in Server::all() {
        let (limits, running) = (config(&server).limits(), run(&server));
        for (gauge, stated) in [
            ("peers", limits.peers),
            ("socket_buffer_bytes", limits.socket_buffer),
            ("buffered_bytes", limits.buffer_bytes),
        ] {
            let in_force = running.metric(&format!("zmq_echo_limit_{gauge}"));
            assert_eq!(in_force, stated as f64, "{}: {gauge}", server.variant);
        }
    }
}

#[test]
fn the_deployments_ports_are_those_that_the_server_opens() {
    for server in Server::all() {
        let config = config(&server);
        assert_eq!(config.bind.to_string(), format!("tcp://*:{}", server.port("zeromq")));
        assert_eq!(config.http.to_string(), format!("*:{}", server.port("http")));
        assert_eq!(server.container().ports.as_ref().unwrap().len(), 2, "{}", server.variant);
    }
}

#[test]
fn the_annotations_lead_a_scraper_to_the_metrics() {
    for server in Server::all() {
        let metadata = server.template().metadata.as_ref().unwrap();
        let annotation = |name: &str| {
            let name = format!("prometheus.io/{name}");
            metadata.annotations.as_ref().unwrap().get(&name).cloned()
        };
        // With the operator, Prometheus finds them only by their PodMonitor.
        let by_annotation = server.variant != "components-monitoring";
        let asks = by_annotation.then(|| "true".to_owned());
        assert_eq!(annotation("scrape"), asks, "{}", server.variant);
        assert_eq!(annotation("port"), Some(server.port("http").to_string()));
        let path = annotation("path").expect("the annotation names a path");
        assert!(PATHS.iter().any(|(known, _)| *known == path), "the server has no path {path}");
        let (status, text) = run(&server).get(&path);
        assert!(
            status == 200 && text.contains("zmq_echo_requests_total"),
            "the annotated path serves no metrics: {text}"
        );
        // The Deployment's own annotations do not reach its pods.
        assert_eq!(server.deployment.metadata.annotations, None, "{}", server.variant);
    }
}

#[test]
fn the_services_lead_to_the_zeromq_port_by_its_name() {
    for variant in variants() {
        let server = variant.server();
        for service in services_of_the_server(variant) {
            let spec = service.spec.unwrap();
            let [port] = &spec.ports.as_ref().unwrap()[..] else { panic!("expected one port") };
            assert_eq!(port.name.as_deref(), Some("zeromq"));
            assert_eq!(port.target_port, Some(IntOrString::String("zeromq".to_owned())));
            assert_eq!(port.port, server.port("zeromq"));
            // Otherwise a mesh waits to detect the protocol.
            assert_eq!(port.app_protocol.as_deref(), Some("tcp"));
        }
    }
}

#[test]
fn one_service_has_a_cluster_ip_and_the_other_is_headless() {
    for variant in variants() {
        let [balanced, headless] = &services_of_the_server(variant)[..] else {
            panic!("expected two Services")
        };
        let spec = |service: &Service| service.spec.clone().unwrap();
        assert_eq!(balanced.metadata.name.as_deref(), Some("zmq-echo"));
        assert_eq!(spec(balanced).type_.as_deref(), Some("ClusterIP"));
        assert_eq!(spec(balanced).cluster_ip, None);
        assert_eq!(headless.metadata.name.as_deref(), Some("zmq-echo-headless"));
        assert_eq!(spec(headless).cluster_ip.as_deref(), Some("None"));
        assert_eq!(spec(headless).publish_not_ready_addresses, Some(false));
    }
}

fn services_of_the_server(variant: &'static Variant) -> Vec<Service> {
    let labels = variant.server().template().metadata.clone().unwrap().labels.unwrap();
    let mut services = variant.all::<Service>();
    services.retain(|service| {
        let mut selector = service.spec.iter().filter_map(|spec| spec.selector.as_ref()).flatten();
        selector.all(|(name, value)| labels.get(name) == Some(value))
    });
    services.sort_by_key(|service| service.metadata.name.clone());
    services
}

#[test]
fn pods_and_nodes_are_named_in_the_environment() {
    for server in Server::all() {
        for (name, path) in [
            ("POD_NAME", "metadata.name"),
            ("POD_NAMESPACE", "metadata.namespace"),
            ("NODE_NAME", "spec.nodeName"),
        ] {
            let mut variables = server.container().env.iter().flatten();
            let variable = variables.find(|variable| variable.name == name).expect(name);
            let source = variable.value_from.clone().and_then(|source| source.field_ref);
            assert_eq!(source.expect(name).field_path, path);
        }
    }
}

/// The probe's flags in a container's command.
pub fn probe_config(container: &Container, command: &[String]) -> ProbeConfig {
    let only_the_probes = |name: &str| name.starts_with("ZMQ_ECHO_PROBE_");
    let mut container = container.clone();
    container.args = Some(command[1..].to_vec());
    if let Some(variables) = &mut container.env {
        variables.retain(|variable| only_the_probes(&variable.name));
    }
    ProbeConfig::parse_args(as_flags(&ProbeConfig::command(), &container))
        .unwrap_or_else(|error| panic!("{error}"))
}
