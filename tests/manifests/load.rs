//! The Job's command line is valid for the load generator, and it works.

use std::time::Duration;

use clap::CommandFactory;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{Container, Service};
use zmq_echo_client::load::config::LoadConfig;

use crate::build::{NAME, Variant, variant};
use crate::probes::program;
use crate::server::as_flags;
use crate::support;

fn with_load() -> &'static Variant {
    variant("components-load")
}

fn job() -> Job {
    with_load().named("zmq-echo-load")
}

/// The container, with its variables replaced as the kubelet does it.
fn container() -> Container {
    let mut container = job().spec.unwrap().template.spec.unwrap().containers.remove(0);
    let namespace = job().metadata.namespace.expect("the Job has a namespace");
    let stated = container.env.iter().flatten();
    let variable = |name: &str| {
        stated.clone().find(|one| one.name == name).expect("the container has the variable")
    };
    let source = variable("POD_NAMESPACE").value_from.as_ref();
    let field = source
        .and_then(|source| source.field_ref.as_ref())
        .expect("the variable comes from a field");
    assert_eq!(field.field_path, "metadata.namespace");
    let service = variable("SERVICE").value.clone().expect("the variable has a value");
    for arg in container.args.iter_mut().flatten() {
        *arg = arg.replace("$(POD_NAMESPACE)", &namespace).replace("$(SERVICE)", &service);
        assert!(!arg.contains("$("), "a variable is not replaced in {arg}");
    }
    container
}

fn config() -> LoadConfig {
    let flags = as_flags(&LoadConfig::command(), &container());
    LoadConfig::parse_args(flags).unwrap_or_else(|error| panic!("{error}"))
}

#[test]
fn the_load_follows_the_headless_service_by_its_port_name() {
    let headless: Service = with_load().named("zmq-echo-headless");
    let [port] = &headless.spec.unwrap().ports.unwrap()[..] else { panic!("expected one port") };
    let port = port.name.clone().unwrap();
    let followed = config().discover.expect("the Job discovers its endpoints").to_string();
    assert_eq!(followed, format!("k8s://{NAME}/zmq-echo-headless:{port}"));
}

#[test]
fn the_load_job_ends_before_its_deadline() {
    let deadline = job().spec.unwrap().active_deadline_seconds.expect("the Job has a deadline");
    let config = config();
    // The rest is for pulling the image.
    let needed = config.wait.as_secs() + config.duration.as_secs();
    assert!(needed + 300 <= u64::try_from(deadline).unwrap());
}

#[test]
fn only_the_load_waits_for_a_service_applied_with_it() {
    let pod = job().spec.unwrap().template.spec.unwrap();
    assert_eq!((pod.containers.len(), pod.init_containers), (1, None));
    // Longer than it takes to pull and start a server.
    assert!(config().wait >= Duration::from_secs(300));
}

#[test]
fn the_load_job_runs_once_and_is_deleted_later() {
    let job = job().spec.unwrap();
    assert_eq!(job.backoff_limit, Some(0));
    assert!(job.ttl_seconds_after_finished > Some(0));
}

#[test]
fn the_load_job_as_written_puts_a_server_under_load() {
    let server = support::Server::start(&[]);
    let container = container();
    let mut args = container.args.unwrap();
    let discover =
        args.iter().position(|arg| arg == "--discover").expect("the Job discovers its endpoints");
    args.drain(discover..discover + 2);
    let duration = args.iter().position(|arg| arg == "--duration").expect("the Job has a duration");
    args[duration + 1] = "500ms".to_owned();
    // A machine that runs other tests at the same time cannot promise a second.
    let timeout = args.iter().position(|arg| arg == "--timeout").expect("the Job has a timeout");
    args[timeout + 1] = "1m".to_owned();
    args.push(server.endpoint.clone());
    let mut load = support::command(program(&container.command.unwrap()[0]));
    let output = load.args(args).output().expect("the load generator can be run");
    assert!(output.status.success(), "{output:?}");
    assert!(server.metric("zmq_echo_requests_total{source=\"client\"}") > 0.0);
}
