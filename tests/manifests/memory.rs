//! The memory limit is higher than what the server's limits let its peers use.

use k8s_openapi::api::core::v1::Container;
use zmq_echo::{log, side_port};
use zmtp::router::Limits;

use crate::build::{Server, pods};
use crate::server::config;

/// The process without clients, and a probe next to it. They were measured at 5 MiB and 4 MiB.
pub const PROCESSES: usize = 16 << 20;

/// What a connection to the side port can leave in the kernel: the default of net.ipv4.tcp_rmem,
/// because the server reads only the head of a request.
pub const SIDE_CONNECTION: usize = 128 << 10;

/// Upper bound on the container's memory, in bytes.
pub fn most(limits: &Limits) -> usize {
    let side_port = side_port::CONNECTIONS * SIDE_CONNECTION;
    limits.most_memory() + sockets(limits) + side_port + log::QUEUE_BYTES + PROCESSES
}

/// The kernel's part, which counts towards the container: a buffer for requests and a quarter of
/// that for replies. Linux doubles both.
pub fn sockets(limits: &Limits) -> usize {
    limits.peers * limits.socket_buffer * 5 / 2
}

/// A quantity such as `384Mi` or `1Gi`, in bytes.
pub fn bytes(quantity: &str) -> usize {
    let units = [("Gi", 30), ("Mi", 20), ("Ki", 10)];
    let unit = units.iter().find_map(|(unit, shift)| Some((quantity.strip_suffix(unit)?, *shift)));
    let (number, shift) =
        unit.unwrap_or_else(|| panic!("expected a unit of two letters in {quantity}"));
    number.parse::<usize>().unwrap() << shift
}

/// Such as `("limits", "memory")`.
pub fn resource(container: &Container, list: &str, name: &str) -> Option<String> {
    let resources = container.resources.clone()?;
    let list = if list == "limits" { resources.limits } else { resources.requests };
    Some(list?.get(name)?.0.clone())
}

#[test]
fn the_memory_limit_exceeds_all_that_peers_can_use() {
    for server in Server::all() {
        let limit = bytes(
            &resource(server.container(), "limits", "memory")
                .expect("the container has a memory limit"),
        );
        let most = most(&config(&server).limits());
        // Leave an eighth for anything unforeseen.
        assert!(
            most <= limit / 8 * 7,
            "{}: the server may use {most} bytes of its limit of {limit}, which leaves too little",
            server.variant
        );
    }
}

#[test]
fn the_memory_formula_matches_the_sockets_documentation() {
    // 6000 * 2.5 * 512 KiB.
    let limits = zmq_echo::config::ServerConfig::parse_args(["zmq-echo-server"]).unwrap().limits();
    assert_eq!(sockets(&limits), 6000 * 5 * (256 << 10));
}

#[test]
fn every_container_has_requests_and_only_a_memory_limit() {
    for pod in pods() {
        for container in pod.containers() {
            let stated = |list, name| resource(container, list, name);
            let who = format!("{}: {}", pod.origin, container.name);
            assert!(stated("requests", "cpu").is_some(), "{who} requests no CPU");
            let (request, limit) = (stated("requests", "memory"), stated("limits", "memory"));
            assert!(bytes(&request.expect(&who)) <= bytes(&limit.expect(&who)), "{who}");
        }
    }
    for server in Server::all() {
        assert_eq!(resource(server.container(), "limits", "cpu"), None, "{}", server.variant);
    }
}
