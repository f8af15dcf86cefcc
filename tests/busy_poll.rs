//! How long the server spins for its next message. The socket's own tests check how it spins.

use std::time::Duration;

use zmq_echo::config::ServerConfig;

use crate::support::{Server, raw};

#[test]
fn the_busy_poll_flag_sets_how_long_the_socket_spins() {
    for (value, expected) in [("0s", Duration::ZERO), ("1ms", Duration::from_millis(1))] {
        let config = ServerConfig::parse_args(["zmq-echo-server", "--busy-poll", value]).unwrap();
        assert_eq!(config.limits().busy_poll, expected);
    }
}

#[test]
fn a_server_without_requests_sleeps_even_if_it_may_spin_for_long() {
    let server = Server::start(&["--busy-poll", "1ms"]);
    let mut peer = raw::dealer(server.address(), 0, b"");
    for _ in 0..1000 {
        raw::echoes(&mut peer, &raw::frame(b"again", false));
    }
    server.wait_until_idle();
}
