//! The probes give the right answer for a live server and for a dead one.

use std::net::TcpStream;
use std::process::Output;
use std::time::Duration;

use k8s_openapi::api::core::v1::Probe;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use rustix::process::Signal;

use crate::build::Server;
use crate::server::{config, environment, probe_config, run};
use crate::support;

/// The program of this build that is `/NAME` in the image.
pub fn program(path: &str) -> &'static str {
    match path {
        "/zmq-echo-server" => support::SERVER,
        "/zmq-echo-probe" => support::PROBE,
        "/zmq-echo-load" => &support::built::LOAD,
        path => panic!("the image has no program {path}"),
    }
}

fn liveness(server: &Server) -> &Probe {
    server.container().liveness_probe.as_ref().expect("a liveness probe")
}

fn command_of(probe: &Probe) -> Vec<String> {
    probe.exec.clone().and_then(|exec| exec.command).expect("a command")
}

/// Runs the liveness probe's command with the container's environment, as the kubelet does, but at
/// the endpoint of the test's server.
fn exec(server: &Server, endpoint: &str) -> Output {
    let command = command_of(liveness(server));
    let mut probe = support::command(program(&command[0]));
    probe.args(&command[1..]).envs(environment(server.container()));
    probe.env("ZMQ_ECHO_PROBE_ENDPOINT", endpoint).output().expect("the probe can be run")
}

#[test]
fn the_liveness_probe_succeeds_if_the_server_echoes() {
    for server in Server::all() {
        let running = run(&server);
        // A busy machine may delay the first attempts beyond their time limit.
        support::wait_until("the liveness probe succeeds on a live server", || {
            exec(&server, &running.endpoint).status.success()
        });
    }
}

#[test]
fn the_liveness_probe_fails_if_the_loop_hangs_with_its_port_open() {
    for server in Server::all() {
        let running = run(&server);
        running.stop();
        TcpStream::connect(running.address())
            .expect("a stopped server still accepts TCP connections");
        let output = exec(&server, &running.endpoint);
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        assert_eq!(String::from_utf8_lossy(&output.stderr).lines().count(), 1, "{output:?}");
        running.signal(Signal::CONT);
    }
}

#[test]
fn the_liveness_probe_fails_if_the_server_is_gone() {
    for server in Server::all() {
        let mut running = run(&server);
        running.signal(Signal::KILL);
        support::wait_until("the killed server has exited", || !running.is_running());
        assert_eq!(exec(&server, &running.endpoint).status.code(), Some(1));
    }
}

#[test]
fn the_liveness_probe_uses_the_clients_port() {
    for server in Server::all() {
        let probe = probe_config(server.container(), &command_of(liveness(&server)));
        let (host, port) = probe.endpoint.host_and_port();
        assert_eq!((host, i32::from(port)), ("127.0.0.1", server.port("zeromq")));
        // This is one of the addresses that the server listens on.
        assert!(config(&server).bind.to_string().starts_with("tcp://*:"));
    }
}

#[test]
fn the_probe_reports_before_the_kubelet_gives_up_on_it() {
    for server in Server::all() {
        let liveness = liveness(&server);
        let limit = probe_config(server.container(), &command_of(liveness)).timeout;
        let timeout = seconds(liveness.timeout_seconds);
        // Four times the limit, because a busy node needs time to start the probe.
        assert!(
            timeout >= 4 * limit,
            "the probe gives up after {limit:?}, but the kubelet already after {timeout:?}"
        );
        assert!(
            timeout <= seconds(liveness.period_seconds),
            "two liveness probes may run at the same time"
        );
    }
}

#[test]
fn one_slow_moment_does_not_restart_a_pod() {
    for server in Server::all() {
        assert!(
            liveness(&server).failure_threshold >= Some(3),
            "{}: a single failed probe restarts a pod",
            server.variant
        );
    }
}

#[test]
fn readiness_and_startup_connect_to_the_zeromq_port_by_its_name() {
    for server in Server::all() {
        let container = server.container();
        for probe in [&container.readiness_probe, &container.startup_probe] {
            let port = &probe
                .as_ref()
                .unwrap()
                .tcp_socket
                .as_ref()
                .expect("the probe connects by TCP")
                .port;
            assert_eq!(*port, IntOrString::String("zeromq".to_owned()));
        }
        server.port("zeromq");
    }
}

#[test]
fn a_server_that_fails_to_start_is_noticed_before_the_rollouts_deadline() {
    for server in Server::all() {
        let startup = server.container().startup_probe.as_ref().unwrap();
        let (period, threshold) =
            (startup.period_seconds.unwrap(), startup.failure_threshold.unwrap());
        let progress = server.deployment.spec.progress_deadline_seconds;
        assert!(
            period * threshold < progress.unwrap(),
            "{}: the startup probe outlasts the rollout's deadline",
            server.variant
        );
    }
}

pub fn seconds(number: Option<i32>) -> Duration {
    Duration::from_secs(u64::try_from(number.expect("a number of seconds")).unwrap())
}
