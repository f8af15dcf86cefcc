//! A drain over a slow network.

use std::io::Write;
use std::thread;

use rustix::process::Signal;

use crate::namespace::{CABLE, Network, SERVER};
use crate::support::{Server, raw};

/// The commands that make the cable slow: first those that also add delay, then those that every
/// kernel supports.
const SLOW: [&str; 2] =
    ["netem delay 40ms rate 8mbit limit 1000", "tbf rate 8mbit burst 16kb latency 300ms"];

const CLIENTS: usize = 4;
const REQUESTS: usize = 30;

#[test]
fn a_drain_through_a_slow_network_answers_every_request() {
    let network = Network::new();
    for host in [&network.server, &network.peer] {
        let failures: Vec<String> = SLOW
            .iter()
            .map_while(|qdisc| {
                host.try_tool("tc", &format!("qdisc add dev {CABLE} root {qdisc}")).err()
            })
            .collect();
        assert!(
            failures.len() < SLOW.len(),
            "this kernel cannot slow down an interface: {failures:?}"
        );
        eprintln!("the cable: {}", SLOW[failures.len()]);
    }
    network.server.run(|| {
        // The deadline allows for other work on the machine.
        let args = ["--drain-quiet", "1s", "--drain-timeout", "60s"];
        let mut server = Server::start_on(&format!("tcp://{SERVER}:0"), &args);
        let address = server.address();
        let request = raw::frame(&[9; 48 << 10], false);
        thread::scope(|scope| {
            for _ in 0..CLIENTS {
                let client = network.peer.run(|| raw::connect(address, b""));
                let (mut writer, mut reader, request) =
                    (client.try_clone().unwrap(), client, &request);
                scope.spawn(move || (0..REQUESTS).for_each(|_| writer.write_all(request).unwrap()));
                scope.spawn(move || {
                    for _ in 0..REQUESTS {
                        assert!(raw::read(&mut reader, request.len()) == *request);
                    }
                    assert_eq!(raw::read_until_closed(&mut reader), 0);
                });
            }
            server.wait_for_metric("zmq_echo_requests_total{source=\"client\"}", |n| n > 0.0);
            server.signal(Signal::TERM);
        });
        assert_eq!(server.wait(), 0);
        let drained = server.wait_for_record("drained");
        for field in ["owed", "owed_bytes", "discarded", "discarded_bytes", "lost"] {
            assert_eq!(drained[field], 0, "{field}: {drained}");
        }
        assert_eq!(drained["reason"], "quiet", "{drained}");
    });
}
