//! Hosts with an unusual loopback: `/livez` still reaches the server.

use std::fs;

use crate::namespace::{CABLE, Namespace, Network};
use crate::support::Server;

/// Sets `net.ipv6.…` in the namespace of this thread.
fn set(setting: &str, value: &str) {
    let path = format!("/proc/sys/net/ipv6/{setting}");
    fs::write(&path, value).unwrap_or_else(|error| panic!("{path}: {error}"));
}

#[track_caller]
fn assert_alive(endpoint: &str) {
    let server = Server::start_on(endpoint, &[]);
    let (status, text) = server.get("/livez");
    assert_eq!(status, 200, "{endpoint} as {}: {text}", server.endpoint);
}

#[test]
fn a_host_without_ipv6_on_its_loopback_is_alive_on_every_bind() {
    let namespace = Namespace::new();
    namespace.run(|| {
        set("conf/lo/disable_ipv6", "1");
        for endpoint in ["tcp://*:0", "tcp://[::]:0", "tcp://0.0.0.0:0", "tcp://127.0.0.1:0"] {
            assert_alive(endpoint);
        }
    });
}

#[test]
fn a_host_with_an_ordinary_loopback_is_alive_on_every_bind() {
    let namespace = Namespace::new();
    namespace.run(|| {
        for endpoint in ["tcp://*:0", "tcp://[::]:0", "tcp://0.0.0.0:0", "tcp://[::1]:0"] {
            assert_alive(endpoint);
        }
        set("bindv6only", "1");
        assert_alive("tcp://[::]:0");
    });
}

#[test]
fn an_ipv6_only_server_is_alive_on_a_host_whose_loopback_lost_its_address() {
    let network = Network::new();
    network.server.ip(&format!("-6 address add fd00::1/64 dev {CABLE} nodad"));
    // With IPv6 turned off there, the kernel would deliver nothing to its own addresses.
    network.server.ip("-6 address del ::1/128 dev lo");
    network.server.run(|| {
        set("bindv6only", "1");
        assert_alive("tcp://[::]:0");
        assert_alive("tcp://[fd00::1]:0");
    });
}
