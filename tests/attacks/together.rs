//! Every attack at once, for a few seconds, at the default flags.

use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use socket2::SockRef;

use super::Attacked;
use crate::support::raw;

const SPAN: Duration = Duration::from_secs(5);

/// What one peer sends on each new connection, without waiting for a reply.
fn hit_and_run(address: SocketAddr, bytes: &[u8], reset: bool) {
    let Ok(mut peer) = TcpStream::connect(address) else { return };
    if reset {
        let _ = SockRef::from(&peer).set_linger(Some(Duration::ZERO));
    }
    // The connection may be closed before everything is written.
    let _ = peer.set_write_timeout(Some(Duration::from_millis(100)));
    let _ = peer.write_all(bytes);
}

#[test]
fn under_every_attack_at_once_memory_stays_bounded_and_other_peers_and_the_probe_are_served() {
    let mut attacked = Attacked::start(&[]);
    let address = attacked.address();
    // Peers that stay: silent, halfway through a message, or not reading.
    let silent: Vec<TcpStream> = (0..200).map(|_| raw::stream(address)).collect();
    let mut halves = raw::crowd(address, 100);
    let half = [raw::announced(0, 400 << 10), vec![5; 200 << 10]].concat();
    for peer in &mut halves {
        let _ = peer.write_all(&half);
    }
    let mut slow = raw::crowd(address, 200);
    slow.iter().for_each(|peer| peer.set_nonblocking(true).unwrap());

    // Peers that connect, attack and disconnect.
    let hello = |bytes: &[u8]| [&raw::hello(1, "DEALER", b"same"), bytes].concat();
    let visits: Vec<(Vec<u8>, bool)> = vec![
        (hello(&raw::frame(b"", true).repeat(5000)), true),
        (hello(&raw::announced(0, u64::MAX)), false),
        (hello(&raw::announced(0, 8 << 20)), true),
        ([raw::greeting(0), raw::announced(0, 1 << 47)].concat(), false),
        ([raw::greeting(0), raw::announced(4, 1 << 47)].concat(), true),
        (hello(&raw::frame(&[1; 100 << 10], false).repeat(20)), true),
        (hello(&raw::command(b"\x04PING\0\x01sixteen bytes xx").repeat(1000)), true),
        (b"GET / HTTP/1.1\r\n\r\n".to_vec(), true),
        (hello(b"\xff"), true),
        (Vec::new(), true),
    ];
    let over = Arc::new(AtomicBool::new(false));
    let visiting = thread::spawn({
        let over = Arc::clone(&over);
        move || {
            for (bytes, reset) in visits.iter().cycle() {
                if over.load(Ordering::Relaxed) {
                    return;
                }
                hit_and_run(address, bytes, *reset);
            }
        }
    });
    let flooding = thread::spawn({
        let over = Arc::clone(&over);
        let request = raw::frame(&[3; 64 << 10], false);
        move || {
            let mut at = vec![0; slow.len()];
            while !over.load(Ordering::Relaxed) {
                for (peer, at) in slow.iter_mut().zip(&mut at) {
                    if let Ok(count) = peer.write(&request[*at..]) {
                        *at = (*at + count) % request.len();
                    }
                }
                thread::sleep(Duration::from_millis(1));
            }
        }
    });
    let started = Instant::now();
    while started.elapsed() < SPAN {
        attacked.assert_serves_others();
        attacked.assert_probe_succeeds();
        attacked.wait_until_alive();
    }
    attacked.assert_unharmed();
    over.store(true, Ordering::Relaxed);
    visiting.join().unwrap();
    flooding.join().unwrap();
    drop((silent, halves));
    attacked.wait_for_metric("zmq_echo_peers", |peers| peers == 1.0);
    attacked.wait_for_metric("zmq_echo_buffered_bytes", |held| held == 0.0);
    attacked.wait_until_idle();
    attacked.assert_unharmed();
}
