//! Replies go to the connection that their request came from, or nowhere.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::thread;
use std::time::Duration;

use socket2::SockRef;

use super::Attacked;
use crate::support::raw;

#[test]
fn a_peer_that_claims_an_identity_in_use_takes_nothing_from_its_owner() {
    let mut attacked = Attacked::start(&[]);
    let mut first = raw::dealer(attacked.address(), 0, b"victim");
    // The first peer's requests, whose replies it does not read yet.
    let requests = raw::frame(b"the first one's", false).repeat(1000);
    first.write_all(&requests).unwrap();
    let mut others: Vec<_> =
        (0..50).map(|_| raw::dealer(attacked.address(), 0, b"victim")).collect();
    for other in &mut others {
        raw::echoes(other, &raw::frame(b"another one's", false));
    }
    assert!(raw::read(&mut first, requests.len()) == requests);
    drop(others);
    attacked.wait_for_metric("zmq_echo_peers", |peers| peers == 2.0);
    raw::echoes(&mut first, &raw::frame(b"still its own", false));
    attacked.assert_unharmed();
}

#[test]
fn a_client_that_half_closed_after_its_last_request_gets_all_its_replies() {
    let mut attacked = Attacked::start(&[]);
    let mut peer = raw::dealer(attacked.address(), 0, b"");
    let requests = raw::frame(&[7; 1000], false).repeat(5000);
    let mut writer = peer.try_clone().unwrap();
    let bytes = requests.clone();
    let writing = thread::spawn(move || {
        writer.write_all(&bytes).unwrap();
        writer.shutdown(Shutdown::Write).unwrap();
    });
    let mut replies = Vec::new();
    peer.read_to_end(&mut replies).unwrap();
    writing.join().unwrap();
    assert!(replies == requests);
    attacked.wait_for_disconnections("closed", 1);
    attacked.assert_unharmed();
}

#[test]
fn connections_reset_with_replies_pending_free_their_memory_and_are_counted() {
    // No peer is closed for the time that this test takes.
    let mut attacked = Attacked::start(&["--stall-timeout", "10m"]);
    for (number, size) in [64 << 10, 1 << 20, 100].into_iter().enumerate() {
        let mut peers = raw::crowd(attacked.address(), 40);
        attacked.flood_until_stuck(&mut peers, &raw::frame(&vec![1; size], false));
        let lost = attacked.metric("zmq_echo_undeliverable_total{reason=\"peer_gone\"}");
        for peer in peers {
            SockRef::from(&peer).set_linger(Some(Duration::ZERO)).unwrap();
        }
        attacked.wait_for_disconnections("error", 40 * (number + 1));
        let now = attacked.metric("zmq_echo_undeliverable_total{reason=\"peer_gone\"}");
        assert!(
            now >= lost + 40.0,
            "40 replies to reset connections are not counted: {now} in total, {lost} before"
        );
        attacked.wait_for_metric("zmq_echo_pending_replies", |pending| pending == 0.0);
        attacked.wait_for_metric("zmq_echo_buffered_bytes", |held| held == 0.0);
        attacked.assert_serves_others();
    }
    attacked.wait_until_idle();
    attacked.assert_unharmed();
}
