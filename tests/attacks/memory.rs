//! Memory stays within the limits set by the flags, whatever a peer sends, announces or leaves
//! unread.

use std::io::Write;
use std::net::TcpStream;

use super::Attacked;
use crate::support::{raw, wait_until};

#[test]
fn an_endless_message_of_frames_is_closed_at_the_frame_limit() {
    let mut attacked = Attacked::start(&[]);
    for (closed, body) in [b"".as_slice(), b"x", &[0; 100]].into_iter().enumerate() {
        let mut peer = raw::dealer(attacked.address(), 0, b"");
        let writing = raw::flood(&peer, raw::frame(body, true).repeat(10_000));
        assert_eq!(raw::read_until_closed(&mut peer), 0);
        writing.join().unwrap();
        attacked.wait_for_disconnections("frame_limit", closed + 1);
    }
    attacked.assert_unharmed();
}

#[test]
fn many_frames_stay_within_the_pool_even_if_the_frame_limit_allows_more() {
    let mut attacked = Attacked::start(&["--frame-limit", "1000000"]);
    for closed in 0..3 {
        let mut peer = raw::dealer(attacked.address(), 0, b"");
        let writing = raw::flood(&peer, raw::frame(b"", true).repeat(10_000));
        assert_eq!(raw::read_until_closed(&mut peer), 0);
        writing.join().unwrap();
        attacked.wait_for_disconnections("frame_limit", closed + 1);
    }
    attacked.assert_unharmed();
}

#[test]
fn endless_commands_inside_a_message_are_closed_at_the_message_limit() {
    let mut attacked = Attacked::start(&["--message-limit", "1MiB"]);
    let mut peer = raw::dealer(attacked.address(), 1, b"");
    peer.write_all(&raw::frame(b"begun", true)).unwrap();
    let writing = raw::flood(&peer, raw::command(b"\x04PONG").repeat(1000));
    raw::read_until_closed(&mut peer);
    writing.join().unwrap();
    attacked.wait_for_disconnections("message_limit", 1);
    attacked.assert_unharmed();
}

#[test]
fn an_announced_size_over_the_limit_is_rejected_at_its_header() {
    let mut attacked = Attacked::start(&[]);
    let before = attacked.memory("VmHWM");
    let sizes =
        [u64::MAX, u64::MAX - 8, 1 << 63, (1 << 63) - 1, 1 << 47, 1 << 40, 1 << 31, (8 << 20) + 1];
    for (number, size) in sizes.into_iter().enumerate() {
        for (early, flags, reason) in [
            (true, 0, "data_before_ready"),
            (true, 4, "metadata"),
            (false, 0, "message_limit"),
            (false, 1, "message_limit"),
            (false, 4, "command"),
        ] {
            let header = raw::announced(flags, size);
            let mut peer = if early {
                let mut peer = raw::stream(attacked.address());
                peer.write_all(&raw::greeting(0)).unwrap();
                peer
            } else {
                raw::dealer(attacked.address(), 0, b"")
            };
            peer.write_all(&header).unwrap();
            raw::read_until_closed(&mut peer);
            match (early, reason) {
                (true, _) => attacked.wait_for_failures(reason, number + 1),
                (_, "command") => attacked.wait_for_disconnections(reason, number + 1),
                _ => wait_until("the closed connection is counted with its reason", || {
                    attacked.disconnections(reason) > 0.0
                }),
            }
        }
    }
    assert_eq!(attacked.disconnections("message_limit"), 2.0 * sizes.len() as f64);
    let grown = attacked.memory("VmHWM") - before;
    assert!(grown < 4 << 20, "announced sizes took {grown} bytes of memory");
    attacked.assert_unharmed();
}

#[test]
fn announcing_128_tib_before_ready_does_not_end_the_process() {
    let mut attacked = Attacked::start(&[]);
    let attack = [raw::greeting(0), raw::announced(0, 1 << 47)].concat();
    assert_eq!(attack.len(), 73);
    for _ in 0..50 {
        let mut peer = raw::stream(attacked.address());
        peer.write_all(&attack).unwrap();
        raw::read_until_closed(&mut peer);
    }
    attacked.wait_for_failures("data_before_ready", 50);
    attacked.assert_unharmed();
}

#[test]
fn the_start_of_a_huge_message_reserves_no_memory_and_is_closed_at_the_stall_timeout() {
    let mut attacked = Attacked::start(&["--stall-timeout", "2s"]);
    let mut peers = raw::crowd(attacked.address(), 100);
    let before = attacked.memory("VmRSS");
    let start = [&raw::announced(0, 8 << 20)[..], b"abc"].concat();
    peers.iter_mut().for_each(|peer| peer.write_all(&start).unwrap());
    wait_until("the starts of all messages are read, or their peers closed", || {
        attacked.metric("zmq_echo_buffered_bytes") >= 1200.0
            || attacked.disconnections("stalled") > 0.0
    });
    let held = attacked.metric("zmq_echo_buffered_bytes");
    assert!(held < 100.0 * 4096.0, "{held} bytes are held for 100 starts of messages");
    let grown = attacked.memory("VmRSS").saturating_sub(before);
    assert!(grown < 4 << 20, "announced sizes took {grown} bytes of memory");
    attacked.assert_serves_others();
    peers.iter_mut().for_each(|peer| assert_eq!(raw::read_until_closed(peer), 0));
    attacked.wait_for_disconnections("stalled", 100);
    assert_eq!(attacked.metric("zmq_echo_buffered_bytes"), 0.0);
    attacked.assert_unharmed();
}

#[test]
fn half_messages_on_hundreds_of_connections_stay_within_the_pool() {
    // No peer is closed for the time that this test takes.
    let mut attacked = Attacked::start(&["--stall-timeout", "10m"]);
    let half = |size: u64| [raw::announced(0, size), vec![5; size as usize / 2]].concat();
    let small = half(200 << 10);
    let mut peers = raw::crowd(attacked.address(), 300);
    peers.iter_mut().for_each(|peer| peer.write_all(&small).unwrap());
    let all = (peers.len() * small.len()) as f64;
    attacked.wait_for_metric("zmq_echo_buffered_bytes", |held| held >= all);
    assert_eq!(attacked.disconnections("pool_full"), 0.0);
    attacked.assert_serves_others();
    attacked.wait_until_idle();
    // Half the size of the pool, in addition to what it already holds.
    let large = half(2 << 20);
    let mut more = raw::crowd(attacked.address(), 100);
    for peer in &mut more {
        // The peer may be the next one to be closed, even while it writes.
        let _ = peer.write_all(&large);
    }
    wait_until("a peer is closed because the pool is full", || {
        attacked.disconnections("pool_full") > 0.0
    });
    attacked.assert_serves_others();
    let held = attacked.metric("zmq_echo_buffered_bytes");
    assert!(held < (70 << 20) as f64, "the pool of 64 MiB holds {held} bytes");
    attacked.assert_unharmed();
}

#[test]
fn two_hundred_peers_that_pipeline_without_reading_lose_nothing_and_block_no_other_peer() {
    // No peer is closed for the time that this test takes.
    let mut attacked = Attacked::start(&["--stall-timeout", "10m"]);
    let mut peers = raw::crowd(attacked.address(), 200);
    let request = raw::frame(&[3; 64 << 10], false);
    let taken = attacked.flood_until_stuck(&mut peers, &request);
    attacked.assert_serves_others();
    attacked.wait_until_idle();
    assert!(
        taken.iter().all(|taken| !taken.closed),
        "a peer was closed because its own replies were unread"
    );
    // A peer that starts to read gets a reply to every request that was taken from it.
    for (peer, taken) in peers.iter_mut().zip(&taken) {
        for _ in 0..taken.bytes / request.len() {
            assert!(raw::read(peer, request.len()) == request, "a reply differs from its request");
        }
    }
    attacked.wait_for_metric("zmq_echo_pending_replies", |pending| pending == 0.0);
    attacked.assert_unharmed();
}

#[test]
fn a_peer_that_floods_large_messages_without_reading_is_soon_no_longer_read() {
    let mut attacked = Attacked::start(&[]);
    let mut peers = raw::crowd(attacked.address(), 20);
    let request = raw::frame(&[3; 1 << 20], false);
    // Each peer would send without end, but the server stops reading from it.
    let taken = attacked.flood_until_stuck(&mut peers, &request);
    let most = taken.iter().map(|taken| taken.bytes).max().unwrap();
    assert!(most < 6 << 20, "the server took {most} bytes from a peer that reads no replies");
    eprintln!("taken from one peer at most: {most} bytes");
    attacked.assert_serves_others();
    attacked.wait_until_idle();
    attacked.assert_unharmed();
}

#[test]
fn small_messages_from_peers_that_read_late_are_all_answered() {
    let args = ["--socket-buffer", "32KiB", "--stall-timeout", "10m"];
    let mut attacked = Attacked::start(&args);
    let mut peers = raw::crowd(attacked.address(), 4);
    let request = raw::frame(b"tiny", false).repeat(2000);
    let taken = attacked.flood_until_stuck(&mut peers, &request);
    let held = attacked.metric("zmq_echo_buffered_bytes");
    assert!(held < (10 << 20) as f64, "{held} bytes are held for peers that read no replies");
    attacked.assert_serves_others();
    attacked.wait_until_idle();
    let one = request.len() / 2000;
    for (peer, taken) in peers.iter_mut().zip(&taken) {
        assert!(!taken.closed);
        let replies = raw::read(peer, taken.bytes / one * one);
        assert!(replies.chunks(one).all(|reply| reply == &request[..one]));
    }
    attacked.assert_unharmed();
}

#[test]
fn a_full_pool_closes_the_peer_that_has_made_no_progress_for_longest() {
    let mut attacked = Attacked::start(&["--message-limit", "1MiB", "--buffer-limit", "3MiB"]);
    let half = [raw::announced(0, 1 << 20), vec![1; 900 << 10]].concat();
    let mut holders: Vec<TcpStream> = raw::crowd(attacked.address(), 3);
    for (number, holder) in holders.iter_mut().enumerate() {
        holder.write_all(&half).unwrap();
        let held = ((number + 1) * half.len()) as f64;
        attacked.wait_for_metric("zmq_echo_buffered_bytes", |buffered| buffered >= held);
    }
    let mut next = raw::dealer(attacked.address(), 0, b"");
    next.write_all(&half).unwrap();
    assert_eq!(raw::read_until_closed(&mut holders[0]), 0);
    attacked.wait_for_disconnections("pool_full", 1);
    attacked.assert_serves_others();
    for peer in holders[1..].iter_mut().chain([&mut next]) {
        peer.write_all(&vec![1; (1 << 20) - (900 << 10)]).unwrap();
        raw::read(peer, 9 + (1 << 20));
    }
    attacked.wait_for_metric("zmq_echo_buffered_bytes", |buffered| buffered == 0.0);
    attacked.assert_unharmed();
}
