//! Tests of the relay itself: what the tests that use it rely on.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use socket2::SockRef;

use crate::support::relay::{self, Path};
use crate::support::{DEADLINE, wait_until};

const SLOW: Path = Path { delay: Duration::from_millis(3), rate: 2 << 20, piece: 1000 };

/// Connects a peer through a relay. Returns the peer, and the connection that the server accepted.
fn connect(path: Path) -> (relay::Relayed, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let relayed = relay::connect(listener.local_addr().unwrap(), path, path).unwrap();
    let (server, _) = listener.accept().unwrap();
    for stream in [&relayed.stream, &server] {
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
    }
    (relayed, server)
}

fn bytes(count: usize) -> Vec<u8> {
    (0..count).map(|at| (at % 251) as u8).collect()
}

#[test]
fn the_relay_delivers_every_byte_before_a_half_close_in_both_directions() {
    let (relay::Relayed { mut stream, passed }, mut server) = connect(SLOW);
    let sent = bytes(1_000_000);
    let mut writer = stream.try_clone().unwrap();
    let copy = sent.clone();
    let writing = thread::spawn(move || {
        writer.write_all(&copy).unwrap();
        writer.shutdown(Shutdown::Write).unwrap();
    });
    let mut arrived = Vec::new();
    server.read_to_end(&mut arrived).unwrap();
    assert!(arrived == sent);
    assert_eq!(passed.load(Ordering::SeqCst), sent.len() as u64);
    writing.join().unwrap();
    // The other direction is still open, and also closes after its last byte.
    let answering = thread::spawn(move || server.write_all(&arrived).unwrap());
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    assert!(answer == sent);
    answering.join().unwrap();
}

#[test]
fn the_relay_passes_a_reset_on_to_the_server() {
    let (relay::Relayed { stream, .. }, mut server) = connect(Path::FAST);
    SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
    drop(stream);
    let error = server.read(&mut [0]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
}

#[test]
fn the_relay_passes_on_a_close_with_bytes_still_in_flight() {
    let (relay::Relayed { stream, .. }, mut server) = connect(Path::FAST);
    let writing = thread::spawn(move || while server.write_all(&[0; 4096]).is_ok() {});
    (&stream).read_exact(&mut [0; 100_000]).unwrap();
    drop(stream);
    let started = Instant::now();
    wait_until("the server's writes fail once the peer has closed", || writing.is_finished());
    assert!(started.elapsed() < DEADLINE);
}

#[test]
fn the_relay_buffers_little_when_the_server_does_not_read() {
    let (relay::Relayed { mut stream, .. }, server) = connect(Path::FAST);
    SockRef::from(&server).set_recv_buffer_size(64 << 10).unwrap();
    stream.set_write_timeout(Some(Duration::from_secs(1))).unwrap();
    let mut taken = 0;
    let error = loop {
        match stream.write(&[0; 16 << 10]) {
            Ok(count) => taken += count,
            Err(error) => break error,
        }
        assert!(taken < 16 << 20, "the relay took {taken} bytes that the server did not read");
    };
    assert_eq!(error.kind(), ErrorKind::WouldBlock);
    drop(server);
}

#[test]
fn the_relay_lets_a_peer_keep_writing_after_the_server_has_closed() {
    let (relay::Relayed { mut stream, .. }, server) = connect(Path::FAST);
    drop(server);
    assert_eq!(stream.read(&mut [0]).unwrap(), 0);
    // More than all buffers on the way hold, so a relay that stopped reading would block the peer.
    stream.set_write_timeout(Some(DEADLINE)).unwrap();
    stream.write_all(&vec![0; 4 << 20]).unwrap();
}
