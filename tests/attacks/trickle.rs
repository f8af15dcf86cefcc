//! Trickles keep a message alive with a byte now and then. They must be told apart from honest
//! uploads that are slow.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::Attacked;
use crate::support::{DEADLINE, raw, wait_until};

/// The pause between two bytes of a trickle.
const DROP: Duration = Duration::from_millis(40);

/// Sends one byte of each peer's message every [`DROP`] until `stop`, but never the last byte.
/// Peers that were closed are skipped.
fn trickle(peers: &mut [TcpStream], size: usize, sent: usize, stop: &AtomicBool) {
    let mut left: Vec<usize> = vec![size - sent - 1; peers.len()];
    while !stop.load(Ordering::SeqCst) {
        let next = Instant::now() + DROP;
        for (peer, left) in peers.iter_mut().zip(&mut left) {
            if *left > 0 {
                *left = if peer.write_all(&[0]).is_ok() { *left - 1 } else { 0 };
            }
        }
        thread::sleep(next.saturating_duration_since(Instant::now()));
    }
}

/// Connects `count` peers. Each has sent `sent` bytes of a message of `size` bytes, as fast as the
/// server takes them.
fn hold(address: SocketAddr, count: usize, size: usize, sent: usize) -> Vec<TcpStream> {
    let begun = [raw::announced(0, size as u64), vec![0; sent]].concat();
    let mut peers = raw::crowd(address, count);
    for peer in &mut peers {
        // The peer may be closed meanwhile.
        let _ = peer.write_all(&begun);
    }
    peers
}

/// The size of one piece of an honest upload. The pause between two pieces is longer than between
/// two bytes of a trickle, as on a network with a long round trip.
const PIECE: usize = 64 << 10;

/// Uploads a message of `size` bytes at `rate` bytes/s, which may change. Returns whether it came
/// back.
fn upload(address: SocketAddr, size: usize, rate: &AtomicUsize) -> bool {
    let message = raw::frame(&vec![7; size], false);
    let mut peer = raw::connect(address, b"");
    let mut next = Instant::now();
    for piece in message.chunks(PIECE) {
        if peer.write_all(piece).is_err() {
            return false;
        }
        next += Duration::from_secs_f64(piece.len() as f64 / rate.load(Ordering::SeqCst) as f64);
        thread::sleep(next.saturating_duration_since(Instant::now()));
    }
    let mut reply = vec![0; message.len()];
    peer.read_exact(&mut reply).is_ok() && reply == message
}

/// Runs `count` uploads at the same time and returns how many came back.
fn uploads(address: SocketAddr, count: usize, size: usize, rate: &AtomicUsize) -> usize {
    thread::scope(|scope| {
        let uploads: Vec<_> =
            (0..count).map(|_| scope.spawn(|| upload(address, size, rate))).collect();
        uploads.into_iter().filter_map(|upload| upload.join().ok()).filter(|echoed| *echoed).count()
    })
}

/// Keeps the trickles going until all of them are closed and counted as stalled.
#[track_caller]
fn wait_until_closed_and_counted(attacked: &Attacked, count: usize) {
    wait_until("all trickles are closed", || {
        attacked.disconnections("stalled") + attacked.disconnections("pool_full") >= count as f64
    });
    let closed = attacked.disconnections("stalled") + attacked.disconnections("pool_full");
    assert_eq!(closed, count as f64);
    assert_eq!(attacked.metric("zmq_echo_buffered_bytes"), 0.0);
}

/// Starts enough trickles to fill most of a pool of 16 MiB, then honest uploads.
fn trickles_cost_no_honest_upload(
    trickles: usize,
    message: usize,
    sent: usize,
    honest: impl Fn(SocketAddr) -> (usize, usize),
) {
    let args = ["--buffer-limit", "16MiB", "--message-limit", "8MiB", "--stall-timeout", "10s"];
    let mut attacked = Attacked::start(&args);
    let address = attacked.address();
    let mut peers = hold(address, trickles, message, sent);
    let all = (trickles * sent) as f64;
    attacked.wait_for_metric("zmq_echo_buffered_bytes", |held| held >= all);
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let _stops = Stops(&stop);
        scope.spawn(|| trickle(&mut peers, message, sent, &stop));
        // Messages are not judged during their first second.
        thread::sleep(Duration::from_millis(1200));
        let (echoed, count) = honest(address);
        assert_eq!(echoed, count, "not all honest uploads came back");
        assert!(attacked.disconnections("pool_full") > 0.0, "the trickles did not fill the pool");
        wait_until_closed_and_counted(&attacked, trickles);
    });
    attacked.assert_unharmed();
}

/// Tells a thread of the scope to end when dropped, even if the test fails.
struct Stops<'a>(&'a AtomicBool);

impl Drop for Stops<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

#[test]
fn sixty_five_trickles_that_fill_the_pool_close_no_honest_upload() {
    // The bytes held beyond 8 KiB per peer fill all but 0.1 MiB of the pool.
    let honest = |address| (uploads(address, 12, 600 << 10, &AtomicUsize::new(630 << 10)), 12);
    trickles_cost_no_honest_upload(65, 280 << 10, 252 << 10, honest);
}

#[test]
fn messages_that_trickle_after_a_fast_95_percent_close_no_long_upload() {
    let honest = |address| (uploads(address, 2, 4 << 20, &AtomicUsize::new(1 << 20)), 2);
    trickles_cost_no_honest_upload(16, 1_000_000, 950_000, honest);
}

#[test]
fn trickles_that_start_during_a_long_upload_do_not_close_it() {
    let args = ["--buffer-limit", "16MiB", "--message-limit", "8MiB", "--stall-timeout", "10s"];
    let mut attacked = Attacked::start(&args);
    let address = attacked.address();
    let (count, message, sent) = (10, 1_000_000, 950_000);
    let (stop, rate) = (AtomicBool::new(false), AtomicUsize::new(256 << 10));
    thread::scope(|scope| {
        let _stops = Stops(&stop);
        let honest = scope.spawn(|| uploads(address, 2, 6 << 20, &rate));
        attacked.wait_for_metric("zmq_echo_buffered_bytes", |held| held >= (1 << 20) as f64);
        let mut peers = hold(address, count, message, sent);
        let stop = &stop;
        scope.spawn(move || trickle(&mut peers, message, sent, stop));
        // The trickles leave room for the uploads while their initial burst still counts. After
        // that, the uploads need more room than there is.
        thread::sleep(Duration::from_secs(6));
        rate.store(3 << 20, Ordering::SeqCst);
        assert_eq!(honest.join().unwrap(), 2, "not all honest uploads came back");
        assert!(attacked.disconnections("pool_full") > 0.0, "the trickles did not fill the pool");
        wait_until_closed_and_counted(&attacked, count);
    });
    attacked.assert_unharmed();
}

#[test]
fn a_trickle_is_closed_as_stalled_while_a_slow_upload_goes_on() {
    let mut attacked = Attacked::start(&["--stall-timeout", "2s", "--stall-bytes", "16KiB"]);
    let address = attacked.address();
    let stop = AtomicBool::new(false);
    let mut peers = hold(address, 4, 1 << 20, 100_000);
    thread::scope(|scope| {
        let _stops = Stops(&stop);
        scope.spawn(|| trickle(&mut peers, 1 << 20, 100_000, &stop));
        // Eight times the minimum rate, for several windows.
        let honest = scope.spawn(move || upload(address, 640 << 10, &AtomicUsize::new(64 << 10)));
        attacked.wait_for_disconnections("stalled", 4);
        assert!(honest.join().unwrap(), "the slow upload was closed");
    });
    assert_eq!(attacked.disconnections("stalled"), 4.0);
    attacked.assert_unharmed();
}

/// A server with these limits, and a peer to test them with.
fn watched(stall_timeout: &str, stall_bytes: &str) -> (Attacked, TcpStream) {
    let attacked =
        Attacked::start(&["--stall-timeout", stall_timeout, "--stall-bytes", stall_bytes]);
    let peer = raw::dealer(attacked.address(), 0, b"");
    (attacked, peer)
}

fn assert_none_stalled(mut attacked: Attacked) {
    assert_eq!(attacked.disconnections("stalled"), 0.0);
    attacked.assert_unharmed();
}

#[test]
fn a_trickle_just_below_the_minimum_rate_is_closed_however_it_is_timed() {
    let (mut attacked, mut peer) = watched("1s", "64KiB");
    peer.write_all(&raw::announced(0, 8 << 20)).unwrap();
    // Bursts of 40 KiB, each more than a window after the previous one. The average stays below the
    // minimum rate even if a busy machine stretches the pauses.
    let started = Instant::now();
    while peer.write_all(&[0; 40 << 10]).is_ok() {
        assert!(started.elapsed() < DEADLINE, "the trickle below the minimum rate was not closed");
        thread::sleep(Duration::from_millis(1100));
    }
    attacked.wait_for_disconnections("stalled", 1);
    attacked.assert_unharmed();
}

#[test]
fn a_message_that_is_complete_within_its_first_window_may_arrive_at_any_rate() {
    let (attacked, mut peer) = watched("30s", "1MiB");
    let message = raw::frame(b"twenty bytes, slowly", false);
    for _ in 0..3 {
        for byte in &message {
            peer.write_all(&[*byte]).expect("the peer stays connected");
            thread::sleep(Duration::from_millis(50));
        }
        assert!(raw::read(&mut peer, message.len()) == message);
    }
    assert_none_stalled(attacked);
}

#[test]
fn a_series_of_small_messages_is_not_mistaken_for_one_slow_message() {
    // Each message is complete within its window, but all of them together have fewer bytes than
    // the minimum for one window.
    let (attacked, mut peer) = watched("2s", "1MiB");
    let message = raw::frame(b"small", false);
    let started = Instant::now();
    while started.elapsed() < Duration::from_secs(7) {
        // The next message has begun while the reply to the previous one is awaited.
        peer.write_all(&[&message[..], &message[..1]].concat()).expect("the peer stays connected");
        assert!(raw::read(&mut peer, message.len()) == message);
        peer.write_all(&message[1..]).expect("the peer stays connected");
        assert!(raw::read(&mut peer, message.len()) == message);
        thread::sleep(Duration::from_millis(100));
    }
    assert_none_stalled(attacked);
}

#[test]
fn a_slow_reader_is_not_closed_by_a_timeout() {
    let mut attacked = Attacked::start(&["--stall-timeout", "1s", "--heartbeat-interval", "1s"]);
    let mut peers =
        [raw::dealer(attacked.address(), 0, b""), raw::dealer(attacked.address(), 1, b"")];
    let request = raw::frame(&[3; 64 << 10], false);
    let taken = attacked.flood_until_stuck(&mut peers, &request);
    // The messages in progress are completed as soon as there is room for them. Otherwise they
    // would count as stalled.
    let finishing: Vec<_> = peers
        .iter()
        .zip(&taken)
        .map(|(peer, taken)| {
            let mut writer = peer.try_clone().unwrap();
            let rest = request[taken.bytes % request.len()..].to_vec();
            thread::spawn(move || writer.write_all(&rest))
        })
        .collect();
    // Several times the stall timeout and the heartbeat interval, without a byte in either
    // direction.
    thread::sleep(Duration::from_secs(6));
    for (peer, taken) in peers.iter_mut().zip(&taken) {
        assert!(!taken.closed);
        for _ in 0..taken.bytes / request.len() + 1 {
            let mut frames = std::iter::repeat_with(|| raw::read_frame(peer));
            // PINGs may arrive between replies.
            let reply = frames.find(|(flags, _)| flags & 0x04 == 0);
            assert!(
                reply.is_some_and(|(_, body)| body == request[9..]),
                "a reply differs from its request"
            );
        }
    }
    finishing.into_iter().for_each(|writing| writing.join().unwrap().unwrap());
    // A peer that has read everything also stays connected, because it now answers PINGs.
    let until = Instant::now() + Duration::from_secs(4);
    while Instant::now() < until {
        for peer in &mut peers {
            peer.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
            match peer.read(&mut [0; 64]) {
                Ok(0) => panic!("the server closed a peer that has read everything"),
                Ok(_) => peer.write_all(&raw::command(b"\x04PONG")).unwrap(),
                Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
            }
        }
    }
    for reason in ["stalled", "vanished", "error", "closed"] {
        assert_eq!(attacked.disconnections(reason), 0.0, "{reason}");
    }
    attacked.assert_unharmed();
}
