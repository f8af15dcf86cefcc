//! The DEALERs whose performance as clients is measured.

use std::process::Command;
use std::thread;

use anyhow::Result;
use clap::ValueEnum;
use zmq_echo_compare::dealer::Dealer;
use zmq_echo_compare::process;

use crate::support::{PATIENCE, compared, server};

/// Runs a short measurement. It fails if a reply is lost or wrong.
fn measure(dealer: Dealer, endpoint: &str, in_flight: &str) -> Result<String> {
    let name = dealer.to_possible_value().expect("no variant is skipped");
    let mut command = Command::new(env!("CARGO_BIN_EXE_zmq-echo-compare"));
    command.args(["dealer", name.get_name(), "--endpoint", endpoint, "--in-flight", in_flight]);
    command.args(["--seconds", "0.1", "--warm-up", "0.1"]);
    process::output(command, PATIENCE)
}

#[test]
fn every_dealer_has_its_messages_echoed_by_every_router() {
    for server in [server(&[]), compared("libzmq"), compared("crate"), compared("rzmq")] {
        for dealer in Dealer::ALL {
            for in_flight in ["1", "100"] {
                let report = measure(dealer, &server.endpoint(), in_flight).unwrap();
                let report: serde_json::Value = serde_json::from_str(&report).unwrap();
                for figure in ["rate", "cpu"] {
                    assert!(report[figure].as_f64() > Some(0.0), "{dealer:?}: {report}");
                }
            }
        }
    }
}

#[test]
fn a_dealer_does_not_accept_another_message_as_its_reply() {
    for dealer in Dealer::ALL {
        let context = zmq::Context::new();
        let router = context.socket(zmq::ROUTER).unwrap();
        router.set_linger(0).unwrap();
        router.set_rcvtimeo(PATIENCE.as_millis() as i32).unwrap();
        router.bind("tcp://127.0.0.1:*").unwrap();
        let endpoint = router.get_last_endpoint().unwrap().unwrap();
        thread::scope(|scope| {
            let client = scope.spawn(move || measure(dealer, &endpoint, "2"));
            let first = router.recv_multipart(0).unwrap();
            let second = router.recv_multipart(0).unwrap();
            router.send_multipart(second, 0).unwrap();
            router.send_multipart(first, 0).unwrap();
            let error = client.join().unwrap().unwrap_err().to_string();
            assert!(error.contains("a reply differs from its request"), "{dealer:?}: {error}");
        });
    }
}
