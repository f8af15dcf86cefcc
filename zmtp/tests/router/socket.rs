//! The socket over real TCP.
//!
//! Each test runs an echo on the socket in a thread of its own, and talks to it with blocking
//! streams, byte by byte where necessary, or with the zeromq crate's sockets.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use bytes::Bytes;
use zeromq::{DealerSocket, ReqSocket, Socket, SocketOptions, SocketRecv, SocketSend, ZmqMessage};
use zmtp::Message;
use zmtp::listeners::open_each;
use zmtp::router::{Closed, Limits, Router};

use crate::counts::Counts;
use crate::polled::{LIMITS, bound, dealer_of, on_runtime};
use crate::support::{DEADLINE, raise_open_files, raw, runtime, wait_until};

/// Commands to the thread that owns the socket.
enum Order {
    StopListening,
    Close(Duration),
}

/// An echo on a socket of its own, in its own thread.
pub struct Echo {
    pub address: SocketAddr,
    pub counts: Counts,
    orders: tokio::sync::mpsc::UnboundedSender<Order>,
    done: mpsc::Receiver<()>,
    thread: JoinHandle<Closed>,
}

impl Echo {
    pub fn start(limits: Limits) -> Self {
        Self::start_on(vec![TcpListener::bind("127.0.0.1:0").unwrap()], limits)
    }

    fn start_on(listeners: Vec<TcpListener>, limits: Limits) -> Self {
        let address = listeners[0].local_addr().unwrap();
        let counts = Counts::default();
        let (orders, mut received) = tokio::sync::mpsc::unbounded_channel();
        let (done_sender, done) = mpsc::channel();
        let observer = counts.clone();
        let thread = thread::spawn(move || {
            runtime().block_on(async {
                let mut socket = Router::bind(listeners, limits, observer).unwrap();
                loop {
                    tokio::select! {
                        order = received.recv() => match order {
                            Some(Order::StopListening) => {
                                socket.stop_listening();
                                done_sender.send(()).unwrap();
                            }
                            Some(Order::Close(limit)) => {
                                return socket.close(Instant::now() + limit).await;
                            }
                            None => return Closed::default(),
                        },
                        request = socket.recv() => {
                            let mut next = Some(request);
                            while let Some(mut request) = next {
                                socket.send(&mut request).unwrap();
                                next = socket.try_recv();
                            }
                        }
                    }
                }
            })
        });
        Self { address, counts, orders, done, thread }
    }

    fn stop_listening(&self) {
        self.orders.send(Order::StopListening).unwrap();
        self.done.recv_timeout(DEADLINE).unwrap();
    }

    /// Closes the socket, and returns the report.
    fn close(self, limit: Duration) -> Closed {
        self.orders.send(Order::Close(limit)).unwrap();
        self.thread.join().unwrap()
    }

    /// A connection that has sent nothing.
    pub fn stream(&self) -> TcpStream {
        let stream = raw::stream(self.address);
        // As large as the server's buffers.
        let socket = socket2::SockRef::from(&stream);
        socket.set_recv_buffer_size(LIMITS.socket_buffer).unwrap();
        socket.set_send_buffer_size(LIMITS.socket_buffer).unwrap();
        stream
    }

    /// A DEALER of ZMTP 3.`minor` with a completed handshake.
    pub fn dealer(&self, minor: u8, identity: &[u8]) -> TcpStream {
        let mut stream = self.stream();
        raw::shake_hands(&mut stream, &hello(minor, "DEALER", identity));
        stream
    }

    fn failures(&self, reason: &str) -> u64 {
        self.counts.get().failures(reason)
    }

    fn disconnections(&self, reason: &str) -> u64 {
        self.counts.get().disconnections(reason)
    }
}

/// With READY as a short command. `raw::hello` uses the long form.
fn hello(minor: u8, socket_type: &str, identity: &[u8]) -> Vec<u8> {
    [raw::greeting(minor), raw::command(&raw::ready_body(socket_type, identity))].concat()
}

/// Writes until the other side has accepted nothing for a while. Returns how much it accepted.
///
/// The rest stays in the kernel's buffers on both sides, and so may replies. Whether replies also
/// wait in the socket depends on where TCP got stuck.
fn write_until_stuck(stream: &mut TcpStream, bytes: &[u8]) -> u64 {
    stream.set_write_timeout(Some(Duration::from_millis(300))).unwrap();
    let (mut written, mut at, mut refused) = (0, 0, 0);
    while refused < 3 {
        match stream.write(&bytes[at..]) {
            Ok(count) => {
                written += count as u64;
                at = (at + count) % bytes.len();
                refused = 0;
            }
            Err(_) => refused += 1,
        }
    }
    stream.set_write_timeout(Some(DEADLINE)).unwrap();
    written
}

#[test]
fn the_zeromq_crates_req_and_dealer_sockets_get_their_echoes() {
    let echo = Echo::start(LIMITS);
    let endpoint = format!("tcp://{}", echo.address);
    on_runtime(async {
        let mut req = ReqSocket::new();
        req.connect(&endpoint).await.unwrap();
        let mut dealer = DealerSocket::new();
        dealer.connect(&endpoint).await.unwrap();
        for size in [0, 1, 255, 256, 70_000, 200_000, 8 << 20] {
            let payload = vec![b'x'; size];
            req.send(payload.clone().into()).await.unwrap();
            let reply = req.recv().await.unwrap();
            assert_eq!(reply.into_vec(), std::slice::from_ref(&payload));
            let mut message = ZmqMessage::from("first");
            message.push_back(Default::default());
            message.push_back(payload[..size.saturating_sub(5)].to_vec().into());
            dealer.send(message.clone()).await.unwrap();
            assert_eq!(dealer.recv().await.unwrap().into_vec(), message.into_vec());
        }
    });
    wait_until("all 14 messages are answered", || echo.counts.get().replied == 14);
    assert_eq!(echo.counts.get().established, 2);
}

#[test]
fn messages_of_all_sizes_come_back_in_order_however_writes_are_split() {
    let echo = Echo::start(LIMITS);
    let mut stream = Vec::new();
    for size in [0, 1, 300, 130_000, 5, 131_072, 64_000, 0, 2 << 20, 7, 140_000, 8_192, 1] {
        stream.extend_from_slice(&raw::frame(&vec![size as u8; size / 2], true));
        stream.extend_from_slice(&raw::command(b"\x04PONG"));
        stream.extend_from_slice(&raw::frame(&vec![!size as u8; size], false));
    }
    let expected: Vec<u8> = {
        // The same bytes without the commands.
        let pong = raw::command(b"\x04PONG");
        let mut bytes = Vec::new();
        let mut rest = &stream[..];
        while let Some(at) = rest.windows(pong.len()).position(|window| window == pong) {
            bytes.extend_from_slice(&rest[..at]);
            rest = &rest[at + pong.len()..];
        }
        [&bytes, rest].concat()
    };
    for cut in [1 << 10, 4_099, 65_536, 1 << 30] {
        let mut reader = echo.dealer(0, b"");
        let mut writer = reader.try_clone().unwrap();
        let bytes = stream.clone();
        let writing = thread::spawn(move || {
            bytes.chunks(cut).for_each(|chunk| writer.write_all(chunk).unwrap());
        });
        assert!(
            raw::read(&mut reader, expected.len()) == expected,
            "the replies differ if the input is cut at {cut}"
        );
        writing.join().unwrap();
    }
}

#[test]
fn a_client_that_half_closed_after_its_last_request_gets_all_its_replies() {
    let echo = Echo::start(LIMITS);
    let mut stream = echo.dealer(0, b"");
    let requests = raw::frame(&[7; 1000], false).repeat(5_000);
    let mut writer = stream.try_clone().unwrap();
    let bytes = requests.clone();
    let writing = thread::spawn(move || {
        writer.write_all(&bytes).unwrap();
        writer.shutdown(std::net::Shutdown::Write).unwrap();
    });
    let mut replies = Vec::new();
    stream.read_to_end(&mut replies).unwrap();
    assert!(replies == requests);
    writing.join().unwrap();
    wait_until("the disconnection is counted", || echo.disconnections("closed") == 1);
}

#[test]
fn a_peer_that_does_not_read_is_paused_and_loses_nothing_and_delays_nobody() {
    let echo = Echo::start(LIMITS);
    let mut slow = echo.dealer(0, b"");
    let request = raw::frame(&[9; 100], false);
    let written = write_until_stuck(&mut slow, &request);
    assert!(written < 2 << 20, "the socket read {written} bytes from a peer that does not read");
    let held = echo.counts.get().buffered_bytes;
    assert!(held < 1 << 20, "the socket holds {held} bytes for a peer that does not read");
    let mut other = echo.dealer(0, b"");
    for _ in 0..100 {
        raw::echoes(&mut other, &request);
    }
    let replies = raw::read(&mut slow, written as usize / request.len() * request.len());
    assert!(replies.chunks(request.len()).all(|reply| reply == request));
    wait_until("no reply is pending any more", || echo.counts.get().pending_replies == 0);
    wait_until("the memory of the replies is freed", || echo.counts.get().buffered_bytes < 200);
}

#[test]
fn an_identity_in_use_stays_with_its_connection() {
    let echo = Echo::start(LIMITS);
    let mut first = echo.dealer(0, b"me");
    let mut second = echo.dealer(0, b"me");
    raw::echoes(&mut second, &raw::frame(b"second", false));
    raw::echoes(&mut first, &raw::frame(b"first", false));
    first.shutdown(std::net::Shutdown::Both).unwrap();
    wait_until("only one peer is connected", || echo.counts.get().peers == 1);
    let mut third = echo.dealer(0, b"me");
    raw::echoes(&mut third, &raw::frame(b"third", false));
    raw::echoes(&mut second, &raw::frame(b"second", false));
    assert_eq!(echo.disconnections("closed"), 1);
}

#[test]
fn a_ping_is_answered_with_its_context_and_silence_beyond_its_ttl_closes_the_peer() {
    let echo = Echo::start(LIMITS);
    let mut stream = echo.dealer(1, b"");
    stream.write_all(&raw::command(b"\x04PING\x00\x02context")).unwrap();
    assert_eq!(raw::read(&mut stream, 14), raw::command(b"\x04PONGcontext"));
    raw::read_until_closed(&mut stream);
    assert_eq!(echo.disconnections("vanished"), 1);
}

#[test]
fn any_traffic_after_a_ping_cancels_its_ttl() {
    let echo = Echo::start(LIMITS);
    let ping = raw::command(b"\x04PING\x00\x0a");
    let message = raw::frame(b"a", false);
    // In a later read, and in the same one. Part of a message is traffic as well.
    for (rest, together) in [(&message, false), (&message, true), (&message[..1].to_vec(), true)] {
        let mut stream = echo.dealer(1, b"");
        if together {
            stream.write_all(&[&ping[..], rest].concat()).unwrap();
        } else {
            stream.write_all(&ping).unwrap();
            assert_eq!(raw::read(&mut stream, 7), raw::command(b"\x04PONG"));
            stream.write_all(rest).unwrap();
        }
        // Meanwhile a peer with the same TTL is closed.
        let mut silent = echo.dealer(1, b"");
        silent.write_all(&ping).unwrap();
        raw::read_until_closed(&mut silent);
        stream.write_all(&message[rest.len() % message.len()..]).unwrap();
        let replies = [raw::command(b"\x04PONG"), message.repeat(2)].concat();
        let due = usize::from(!together) * 7;
        let count = if rest.len() == message.len() { replies.len() } else { replies.len() - 3 };
        assert_eq!(raw::read(&mut stream, count - due), replies[due..count]);
    }
    assert_eq!(echo.disconnections("vanished"), 3);
}

#[test]
fn only_a_peer_that_has_used_ping_is_pinged_and_closed_if_it_does_not_answer() {
    let limits = Limits { heartbeat_interval: Duration::from_secs(1), ..LIMITS };
    let echo = Echo::start(limits);
    let ping = raw::command(b"\x04PING\0\0");
    let mut old = echo.dealer(0, b"");
    // It announces 3.1, but would fail on a PING.
    let mut unaware = echo.dealer(1, b"");
    let mut aware = echo.dealer(1, b"");
    aware.write_all(&ping).unwrap();
    assert_eq!(raw::read(&mut aware, 7), raw::command(b"\x04PONG"));
    for _ in 0..3 {
        assert_eq!(raw::read(&mut aware, ping.len()), ping);
        aware.write_all(&raw::command(b"\x04PONG")).unwrap();
    }
    raw::read_until_closed(&mut aware);
    assert_eq!(echo.disconnections("vanished"), 1);
    // They have received nothing but the reply.
    raw::echoes(&mut old, &raw::frame(b"still here", false));
    raw::echoes(&mut unaware, &raw::frame(b"still here", false));
}

#[test]
fn a_peer_that_works_on_its_replies_need_not_answer_a_ping() {
    let limits = Limits { heartbeat_interval: Duration::from_millis(100), ..LIMITS };
    let echo = Echo::start(limits);
    let ping = raw::command(b"\x04PING\0\0");
    let mut busy = echo.dealer(1, b"");
    // Its reply is in the kernel, unread, and it answers no PING.
    busy.write_all(&[ping.clone(), raw::frame(b"work", false)].concat()).unwrap();
    // Meanwhile, peers without a reply are closed because they do not answer.
    for _ in 0..5 {
        let mut idle = echo.dealer(1, b"");
        idle.write_all(&ping).unwrap();
        raw::read_until_closed(&mut idle);
    }
    let expected = [raw::command(b"\x04PONG"), raw::frame(b"work", false), ping].concat();
    assert_eq!(raw::read(&mut busy, expected.len()), expected);
    busy.write_all(&raw::command(b"\x04PONG")).unwrap();
    raw::read_until_closed(&mut busy);
    assert_eq!(echo.disconnections("vanished"), 6);
}

#[test]
fn pings_from_a_peer_that_does_not_read_are_bounded() {
    let echo = Echo::start(LIMITS);
    let mut stream = echo.dealer(1, b"");
    let written = write_until_stuck(&mut stream, &raw::command(b"\x04PING\0\0").repeat(1000));
    assert!(
        written < 2 << 20,
        "the socket read {written} bytes of PINGs from a peer that does not read"
    );
    assert!(echo.counts.get().buffered_bytes < 1 << 20);
}

#[test]
fn a_silent_or_trickled_handshake_times_out() {
    let limits = Limits { handshake_timeout: Duration::from_millis(300), ..LIMITS };
    let echo = Echo::start(limits);
    let mut silent = echo.stream();
    let mut trickle = echo.stream();
    let started = Instant::now();
    for byte in raw::greeting(1) {
        if trickle.write_all(&[byte]).is_err() || started.elapsed() > DEADLINE {
            break;
        }
        thread::sleep(Duration::from_millis(10));
    }
    raw::read_until_closed(&mut trickle);
    raw::read_until_closed(&mut silent);
    assert_eq!(echo.failures("handshake_timeout"), 2);
}

#[test]
fn every_wrong_peer_is_counted_for_its_own_reason() {
    let echo = Echo::start(LIMITS);
    let established = |bytes: &[u8]| [&hello(1, "DEALER", b""), bytes].concat();
    for (bytes, reason) in [
        (b"GET / HTTP/1.1\r\n".to_vec(), "not_zmtp"),
        (b"\x16\x03\x01\x02\x00\x01".to_vec(), "not_zmtp"),
        (b"\xff\0\0\0\0\0\0\0\x01\x7f\x01".to_vec(), "version"),
        (raw::mechanism(b"CURVE"), "mechanism"),
        (hello(1, "PUB", b""), "socket_type"),
        (hello(1, "REQ", &[1; 256]), "identity"),
        ([raw::greeting(0), raw::frame(b"data", false)].concat(), "data_before_ready"),
        ([raw::greeting(0), raw::announced(0, 1 << 47)].concat(), "data_before_ready"),
        ([raw::greeting(0), raw::announced(4, 0x7f << 40)].concat(), "metadata"),
        ([raw::greeting(0), raw::command(b"\x05ERROR\x00")].concat(), "peer_error"),
        ([raw::greeting(0), raw::command(b"\x05HELLO")].concat(), "command"),
        ([raw::greeting(0), vec![0x80]].concat(), "reserved_flags"),
    ] {
        let mut stream = echo.stream();
        let before = echo.failures(reason);
        stream.write_all(&bytes).unwrap();
        raw::read_until_closed(&mut stream);
        assert_eq!(echo.failures(reason), before + 1, "{reason}");
    }
    for (bytes, reason) in [
        (vec![0x10], "reserved_flags"),
        (raw::command(b"\x09SUBSCRIBE"), "command"),
        (raw::command(b"\x05READY"), "command"),
        (raw::announced(0, (8 << 20) + 1), "message_limit"),
        (raw::announced(0, 1 << 47), "message_limit"),
        (raw::announced(0, u64::MAX), "message_limit"),
        (raw::frame(b"", true).repeat(65), "frame_limit"),
    ] {
        let mut stream = echo.stream();
        let before = echo.disconnections(reason);
        stream.write_all(&established(&bytes)).unwrap();
        raw::read_until_closed(&mut stream);
        assert_eq!(echo.disconnections(reason), before + 1, "{reason}");
    }
    assert_eq!(echo.counts.get().buffered_bytes, 0);
    assert_eq!(echo.counts.get().peers, 0);
}

#[test]
fn a_tcp_probe_that_sends_nothing_is_not_a_failed_handshake() {
    let echo = Echo::start(LIMITS);
    for _ in 0..20 {
        let stream = echo.stream();
        // The greeting is unread, so closing the connection resets it.
        drop(stream);
    }
    let mut stream = echo.dealer(0, b"");
    raw::echoes(&mut stream, &raw::frame(b"a", false));
    assert_eq!(echo.counts.get().failed(), 0);
}

/// How many clients of each kind connect. Each must be counted once, for the right reason.
const REFUSED: usize = 30;

/// Greets like a libzmq client: the signature first, and the rest once the server has answered
/// it.
fn greet_in_pieces(stream: &mut TcpStream, signature: &[u8], rest: &[u8]) {
    stream.write_all(signature).unwrap();
    raw::read(stream, raw::GREETING_START);
    stream.write_all(rest).unwrap();
}

#[test]
fn a_greeting_in_pieces_is_refused_for_its_reason_and_counted_once() {
    let echo = Echo::start(LIMITS);
    // ZMTP 2.0: signature, then the revision, then socket type and identity.
    let old = b"\xff\0\0\0\0\0\0\0\x01\x7f\x01\x05\0\0";
    for _ in 0..REFUSED {
        let mut stream = echo.stream();
        greet_in_pieces(&mut stream, &old[..10], &old[10..11]);
        let _ = stream.write_all(&old[11..]);
        raw::read_until_closed(&mut stream);
    }
    assert_eq!(echo.failures("version"), REFUSED as u64);
    for name in ["PLAIN", "CURVE"] {
        let before = echo.failures("mechanism");
        for _ in 0..REFUSED {
            let greeting = raw::mechanism(name.as_bytes());
            let mut stream = echo.stream();
            greet_in_pieces(&mut stream, &greeting[..10], &greeting[10..]);
            let mut rest = Vec::new();
            stream.read_to_end(&mut rest).expect("the connection is closed without a reset");
            assert_eq!(rest, raw::greeting(1)[raw::GREETING_START..]);
        }
        assert_eq!(echo.failures("mechanism"), before + REFUSED as u64, "{name}");
    }
    assert_eq!(echo.counts.get().failed(), 3 * REFUSED as u64);
}

#[test]
fn a_peer_that_sent_part_of_a_greeting_is_counted_even_if_it_resets() {
    let echo = Echo::start(LIMITS);
    let plain = raw::mechanism(b"PLAIN");
    let mut failed = 0;
    for (bytes, reason) in [(&plain[..1], "error"), (&plain[..10], "error"), (&plain, "mechanism")]
    {
        for abort in [false, true] {
            for number in 0..REFUSED {
                let mut stream = echo.stream();
                if number % 2 == 0 {
                    // Otherwise, our greeting may find the connection already reset.
                    raw::read(&mut stream, raw::GREETING_START);
                }
                stream.write_all(bytes).unwrap();
                if abort {
                    socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
                }
            }
            failed += REFUSED as u64;
            wait_until("each failed handshake is counted", || echo.counts.get().failed() == failed);
        }
        assert_eq!(echo.failures(reason), if reason == "error" { failed } else { 60 });
    }
}

#[test]
fn a_refused_peer_gets_the_reason_and_no_reset_however_much_it_has_sent() {
    let echo = Echo::start(LIMITS);
    let greeting = raw::greeting(1);
    let greeted = |bytes: &[u8]| [&greeting, bytes].concat();
    let twice = [raw::ready_body("REQ", b""), b"\x08Identity\0\0\0\0".to_vec()].concat();
    for (hello, reason) in [
        (raw::mechanism(b"CURVE"), "mechanism"),
        (hello(1, "PUB", b""), "socket_type"),
        (hello(1, "REQ", &[1; 256]), "identity"),
        (greeted(&raw::command(&twice)), "metadata"),
        (greeted(&raw::announced(4, 1 << 40)), "metadata"),
        (greeted(&raw::command(b"\x05HELLO")), "command"),
        (greeted(&raw::frame(b"data", false)), "data_before_ready"),
        (greeted(&[0x80]), "reserved_flags"),
        (greeted(&raw::command(b"\x05ERROR\0")), "peer_error"),
    ] {
        let error = match reason {
            "mechanism" | "peer_error" => Vec::new(),
            _ => raw::error(reason),
        };
        for more in [0, 100_000] {
            let before = echo.failures(reason);
            let mut stream = echo.stream();
            stream.write_all(&hello).unwrap();
            wait_until("the rejected peer is counted", || echo.failures(reason) == before + 1);
            // It has not yet read why it is rejected.
            stream
                .write_all(&vec![7; more])
                .expect("the socket still reads from the rejected peer");
            let mut told = Vec::new();
            stream.read_to_end(&mut told).expect("the connection is closed without a reset");
            assert_eq!(told, [&greeting, &error[..]].concat(), "{reason}");
            drop(stream);
            assert_eq!(echo.failures(reason), before + 1, "{reason}");
        }
    }
    assert_eq!(echo.counts.get().failed(), 18);
    // Nor does it count as a disconnection.
    let mut next = echo.dealer(0, b"");
    raw::echoes(&mut next, &raw::frame(b"a", false));
    assert_eq!(echo.disconnections("closed") + echo.disconnections("error"), 0);
}

#[test]
fn a_refused_peer_that_stays_or_keeps_sending_is_closed_soon() {
    let echo = Echo::start(LIMITS);
    let refused = || {
        let mut stream = echo.stream();
        stream.write_all(&hello(1, "PUB", b"")).unwrap();
        let mut told = Vec::new();
        stream.read_to_end(&mut told).unwrap();
        stream
    };
    let mut silent = refused();
    // The other side has closed, which shows when we write.
    wait_until("the rejected peer is disconnected", || silent.write(b"x").is_err());
    let mut flood = refused();
    let mut written = 0;
    while let Ok(count) = flood.write(&[0; 16 << 10]) {
        written += count;
        assert!(written < 8 << 20, "the socket reads from a rejected peer without end");
    }
    assert_eq!(echo.failures("socket_type"), 2);
    assert_eq!(echo.counts.get().failed(), 2);
}

#[test]
fn a_peer_that_waits_for_our_ready_gets_it_and_then_no_error() {
    let echo = Echo::start(LIMITS);
    for (socket_type, told) in [("DEALER", &b"\x00\x02in"[..]), ("PUB", b"")] {
        let mut stream = echo.stream();
        stream.write_all(&raw::greeting(1)).unwrap();
        let hello = raw::read(&mut stream, raw::SERVER_HELLO);
        assert_eq!(hello, [&raw::greeting(1), raw::SERVER_READY].concat());
        stream.write_all(&raw::ready(socket_type, b"")).unwrap();
        stream.write_all(&raw::frame(b"in", false)).unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        let mut rest = Vec::new();
        stream.read_to_end(&mut rest).unwrap();
        assert_eq!(rest, told, "{socket_type}");
    }
    assert_eq!(echo.failures("socket_type"), 1);
}

#[test]
fn no_error_is_sent_after_the_handshake_or_if_a_later_attempt_may_succeed() {
    let limits = Limits { handshake_timeout: Duration::from_millis(500), peers: 20, ..LIMITS };
    let echo = Echo::start(limits);
    let greeting = raw::greeting(1);
    let mut late = echo.stream();
    late.write_all(&[&greeting[..], &raw::ready("DEALER", b"")[..20]].concat()).unwrap();
    let mut told = Vec::new();
    late.read_to_end(&mut told).unwrap();
    assert_eq!(told, [&greeting, raw::SERVER_READY].concat());
    assert_eq!(echo.failures("handshake_timeout"), 1);

    let mut wrong = echo.dealer(1, b"");
    wrong.write_all(&raw::command(b"\x05HELLO")).unwrap();
    assert_eq!(raw::read_until_closed(&mut wrong), 0);
    assert_eq!(echo.disconnections("command"), 1);

    let inside: Vec<TcpStream> = (0..20).map(|_| echo.dealer(0, b"")).collect();
    let mut outside = echo.stream();
    assert_eq!(raw::read_until_closed(&mut outside), 0);
    assert_eq!(echo.failures("peer_limit"), 1);
    drop(inside);
}

#[test]
fn identities_that_begin_with_a_zero_byte_are_served_even_if_they_collide() {
    let echo = Echo::start(LIMITS);
    // The server generates an identity for each peer without one, and for each whose identity is
    // taken: a zero byte and a number. Some peers claim one before it is generated, others after.
    let made_up = |number: u8| [0, 0, 0, 0, number];
    let claimed = [1, 1, 3, 4, 9, 9].map(made_up);
    let mut identities: Vec<&[u8]> = vec![b"", b"", b"\0", b"\0", b"\0me", b"\0me", &[0; 255]];
    identities.extend(claimed.iter().map(|identity| &identity[..]));
    identities.extend([&b""[..]; 8]);
    let mut peers: Vec<TcpStream> =
        identities.iter().map(|identity| echo.dealer(0, identity)).collect();
    for round in 0..3u8 {
        for (number, peer) in peers.iter_mut().enumerate() {
            peer.write_all(&raw::frame(&[number as u8, round], false)).unwrap();
        }
        for (number, peer) in peers.iter_mut().enumerate() {
            assert_eq!(raw::read(peer, 4), raw::frame(&[number as u8, round], false));
        }
    }
    assert_eq!(echo.counts.get().peers, peers.len());
    assert_eq!(echo.counts.get().failed(), 0);
}

#[test]
fn a_req_message_that_is_not_a_request_is_dropped_and_counted() {
    let echo = Echo::start(LIMITS);
    let dropped: [&[&[u8]]; 6] =
        [&[b""], &[b"data"], &[b"id", b""], &[b"a", b"b"], &[b"a", b"b", b"", b"c"], &[b"a", b""]];
    let answered: [&[&[u8]]; 5] = [
        &[b"", b"a"],
        &[b"", b""],
        &[b"", b"a", b"", b"b"],
        &[b"\0\0\0\x01", b"", b"a"],
        &[b"id", b"", b"a", b"b"],
    ];
    let mut req = echo.stream();
    raw::shake_hands(&mut req, &hello(1, "REQ", b""));
    let mut count = 0;
    // Before, between and after requests, in one read and in many.
    for request in answered {
        for message in dropped {
            req.write_all(&raw::message(message)).unwrap();
            count += 1;
        }
        raw::echoes(&mut req, &raw::message(request));
        assert_eq!(echo.counts.get().malformed, count);
    }
    let all: Vec<u8> = dropped.iter().chain(&answered).flat_map(|it| raw::message(it)).collect();
    req.write_all(&all.repeat(100)).unwrap();
    let replies: Vec<u8> = answered.iter().flat_map(|request| raw::message(request)).collect();
    assert!(raw::read(&mut req, 100 * replies.len()) == replies.repeat(100));
    count += 600;
    assert_eq!(echo.counts.get().malformed, count);
    // From other socket types, any message is a request.
    for socket_type in ["DEALER", "ROUTER"] {
        let mut stream = echo.stream();
        raw::shake_hands(&mut stream, &hello(1, socket_type, b""));
        dropped.iter().for_each(|message| raw::echoes(&mut stream, &raw::message(message)));
    }
    assert_eq!(echo.counts.get().malformed, count);
}

#[test]
fn a_partial_message_ends_at_the_stall_timeout_but_an_unread_reply_does_not() {
    let limits = Limits { stall_timeout: Duration::from_millis(200), ..LIMITS };
    let echo = Echo::start(limits);
    let mut unread = echo.dealer(0, b"");
    let request = raw::frame(&[1; 60_000], false);
    let written = write_until_stuck(&mut unread, &request) as usize;
    // Their windows pass one after the other.
    for stalled in 1..=5 {
        let mut half = echo.dealer(0, b"");
        half.write_all(&raw::frame(b"abcde", false)[..5]).unwrap();
        raw::read_until_closed(&mut half);
        assert_eq!(echo.disconnections("stalled"), stalled);
    }
    let whole = written / request.len();
    for _ in 0..whole {
        assert!(raw::read(&mut unread, request.len()) == request);
    }
    // The window of a message begins when the peer is read from again.
    unread.write_all(&request[written % request.len()..]).unwrap();
    raw::read(&mut unread, request.len());
    assert_eq!(echo.disconnections("stalled"), 5);
}

#[test]
fn a_message_below_the_minimum_rate_is_closed_and_one_above_it_is_not() {
    let limits = Limits { stall_timeout: Duration::from_millis(500), stall_bytes: 2000, ..LIMITS };
    let echo = Echo::start(limits);
    let message = raw::frame(&[5; 200_000], false);
    let mut trickler = echo.dealer(0, b"");
    trickler.write_all(&message[..100_000]).unwrap();
    let mut honest = echo.dealer(0, b"");
    let mut trickled = message[100_000..].iter();
    let mut rest = &message[..];
    while !rest.is_empty() {
        // Ten times as fast as necessary, however slow this machine is: each step brings more
        // bytes than a window requires.
        let (next, left) = rest.split_at(rest.len().min(4000));
        honest.write_all(next).unwrap();
        rest = left;
        let _ = trickler.write_all(&[*trickled.next().unwrap()]);
        thread::sleep(Duration::from_millis(40));
    }
    assert!(raw::read(&mut honest, message.len()) == message);
    raw::read_until_closed(&mut trickler);
    assert_eq!(echo.disconnections("stalled"), 1);
}

#[test]
fn a_full_pool_closes_the_peer_that_would_take_longest_to_clear() {
    let limits = Limits { message_bytes: 1 << 20, buffer_bytes: 3 << 20, ..LIMITS };
    let echo = Echo::start(limits);
    let half = [raw::announced(0, 1 << 20), vec![1; 900 << 10]].concat();
    let mut holders: Vec<TcpStream> = (0..3).map(|_| echo.dealer(0, b"")).collect();
    for (number, holder) in holders.iter_mut().enumerate() {
        holder.write_all(&half).unwrap();
        let held = (number + 1) * half.len();
        wait_until("the incomplete messages are held", || echo.counts.get().buffered_bytes >= held);
    }
    let mut next = echo.dealer(0, b"");
    next.write_all(&half).unwrap();
    raw::read_until_closed(&mut holders[0]);
    assert_eq!(echo.disconnections("pool_full"), 1);
    for stream in holders[1..].iter_mut().chain([&mut next]) {
        let rest = vec![1; (1 << 20) - (900 << 10)];
        stream.write_all(&rest).unwrap();
        raw::read(stream, 9 + (1 << 20));
    }
    wait_until("the memory of the messages is freed", || echo.counts.get().buffered_bytes < 1000);
}

#[test]
fn an_answered_peer_holds_no_memory_however_large_its_reply_was() {
    let echo = Echo::start(Limits { socket_buffer: 4 << 20, ..LIMITS });
    let mut stream = echo.dealer(0, b"");
    let socket = socket2::SockRef::from(&stream);
    socket.set_recv_buffer_size(4 << 20).unwrap();
    let next = raw::frame(b"parts", false);
    for _ in 0..20 {
        // The start of the next message must not keep this one's memory alive.
        stream.write_all(&[&raw::frame(&[1; 1 << 20], false), &next[..5]].concat()).unwrap();
        raw::read(&mut stream, 9 + (1 << 20));
        wait_until("the memory of the messages is freed", || {
            echo.counts.get().buffered_bytes < 1000
        });
        stream.write_all(&next[5..]).unwrap();
        assert_eq!(raw::read(&mut stream, next.len()), next);
    }
    wait_until("the memory of the messages is freed", || echo.counts.get().buffered_bytes < 1000);
}

#[test]
fn peers_over_the_limit_are_closed_at_once_until_there_is_room_again() {
    let echo = Echo::start(Limits { peers: 20, ..LIMITS });
    let mut inside: Vec<TcpStream> = (0..20).map(|_| echo.dealer(0, b"")).collect();
    let mut outside = echo.stream();
    raw::read_until_closed(&mut outside);
    assert_eq!(echo.failures("peer_limit"), 1);
    raw::echoes(&mut inside[0], &raw::frame(b"a", false));
    inside.pop();
    wait_until("19 peers are connected", || echo.counts.get().peers == 19);
    let mut late = echo.dealer(0, b"");
    raw::echoes(&mut late, &raw::frame(b"a", false));
}

#[test]
fn stop_listening_accepts_waiting_connections_and_keeps_connected_peers() {
    let echo = Echo::start(LIMITS);
    let mut inside = echo.dealer(0, b"");
    let mut waiting: Vec<TcpStream> = (0..50).map(|_| echo.stream()).collect();
    echo.stop_listening();
    assert_eq!(TcpStream::connect(echo.address).unwrap_err().kind(), ErrorKind::ConnectionRefused);
    raw::echoes(&mut inside, &raw::frame(b"still served", false));
    for stream in &mut waiting {
        raw::shake_hands(stream, &hello(0, "REQ", b""));
        raw::echoes(stream, &raw::message(&[b"", b"a"]));
    }
}

#[test]
fn peers_of_every_listener_are_served_after_the_listeners_are_closed() {
    let addresses = [[127, 0, 0, 1], [127, 0, 0, 2], [127, 0, 0, 3]];
    let addresses = addresses.map(|ip| SocketAddr::from((ip, 0)));
    let listeners = open_each(&addresses).unwrap();
    let bound: Vec<_> = listeners.iter().map(|one| one.local_addr().unwrap()).collect();
    let echo = Echo::start_on(listeners, LIMITS);
    let mut peers: Vec<_> = bound.iter().map(|at| raw::dealer(*at, 0, b"")).collect();
    // These are waiting in the queues, and are accepted nevertheless.
    let waiting: Vec<_> = bound.iter().map(|at| raw::stream(*at)).collect();
    echo.stop_listening();
    for mut stream in waiting {
        raw::shake_hands(&mut stream, &hello(0, "DEALER", b""));
        peers.push(stream);
    }
    peers.iter_mut().for_each(|peer| raw::echoes(peer, &raw::frame(b"hello", false)));
    bound
        .iter()
        .for_each(|at| assert!(TcpStream::connect(at).is_err(), "{at} still accepts connections"));
}

#[test]
fn close_sends_every_reply_and_reports_what_is_owed_and_discarded() {
    let echo = Echo::start(LIMITS);
    let mut reader = echo.dealer(0, b"");
    let mut stuck = echo.dealer(0, b"");
    let request = raw::frame(&[3; 1000], false);
    // A reply larger than the kernel accepts, so it waits in the socket.
    let large = raw::frame(&[3; 1 << 20], false);
    let written = write_until_stuck(&mut stuck, &large);
    let requests = request.repeat(100);
    reader.write_all(&requests).unwrap();
    wait_until("a request is answered", || echo.counts.get().replied > 0);
    let mut replies = vec![0; requests.len()];
    reader.read_exact(&mut replies).unwrap();
    // Requests that will not be answered must not turn the close into a reset.
    reader.write_all(&request).unwrap();
    let counts = echo.counts.clone();
    wait_until("a reply is pending", || counts.get().pending_replies > 0);
    let closed = echo.close(Duration::from_millis(700));
    // The reader's last request was answered, or arrived too late and was counted.
    let mut rest = Vec::new();
    reader.read_to_end(&mut rest).unwrap();
    assert!(rest.len() as u64 + closed.discarded * request.len() as u64 >= request.len() as u64);
    assert!(
        closed.owed > 0 && closed.owed <= written / large.len() as u64,
        "the report must show what the slow reader is owed: {closed:?}"
    );
    assert_eq!(closed.owed, counts.get().pending_replies as u64);
    assert!(
        closed.owed_bytes > 0 && closed.discarded_bytes > 0,
        "the report must show the bytes in both directions: {closed:?}"
    );
}

#[test]
fn commands_within_a_message_do_not_restart_its_stall_timeout() {
    let stall_timeout = Duration::from_secs(2);
    let echo = Echo::start(Limits { stall_timeout, stall_bytes: 4 << 20, ..LIMITS });
    let mut peer = echo.dealer(1, b"");
    peer.write_all(&raw::frame(&[1; 100_000], true)).unwrap();
    // Enough messages to end a turn, but fewer bytes in total than a window requires.
    let pongs = raw::command(b"\x04PONG").repeat(512);
    let started = Instant::now();
    while echo.disconnections("stalled") == 0 {
        assert!(started.elapsed() < DEADLINE, "the trickle was not closed");
        let _ = peer.write_all(&pongs);
        thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_peer_that_ended_within_a_message_and_takes_no_reply_is_reported_when_the_socket_closes() {
    on_runtime(async {
        let (mut socket, address, counts) = bound(LIMITS);
        let mut told = dealer_of(&mut socket, address, b"told").await;
        // Replies of half the allowance, until the kernel accepts no more. The peer is still read
        // from.
        loop {
            let frames = [b"told".as_slice(), &[7; 4 << 10]].map(Bytes::from_static);
            socket.send(&mut frames.into()).unwrap();
            let _ = tokio::time::timeout(Duration::from_millis(2), socket.recv()).await;
            if counts.get().pending_replies > 0 {
                // The kernel may have made more room in the meantime.
                let _ = tokio::time::timeout(Duration::from_millis(300), socket.recv()).await;
                if counts.get().pending_replies > 0 {
                    break;
                }
            }
        }
        // One frame of a message, part of the next frame, and the end.
        told.write_all(&[raw::frame(b"", true), vec![0, 9, 1]].concat()).unwrap();
        told.shutdown(std::net::Shutdown::Write).unwrap();
        let _ = tokio::time::timeout(Duration::from_millis(100), socket.recv()).await;
        let closed = socket.close(Instant::now() + Duration::from_millis(100)).await;
        assert!(
            closed.owed > 0 && closed.owed_bytes > 0,
            "the report must show the unread reply: {closed:?}"
        );
        assert_eq!(
            (closed.discarded, closed.discarded_bytes),
            (0, 0),
            "this incomplete message must not be counted as discarded: {closed:?}"
        );
    });
}

#[test]
fn replies_to_a_peer_that_resets_are_counted_as_undeliverable() {
    let echo = Echo::start(LIMITS);
    let mut stuck = echo.dealer(0, b"");
    // A reply larger than the kernel accepts, so it waits in the socket.
    write_until_stuck(&mut stuck, &raw::frame(&[3; 1 << 20], false));
    wait_until("a reply is pending", || echo.counts.get().pending_replies > 0);
    let pending = echo.counts.get().pending_replies;
    drop(stuck);
    wait_until("the pending replies count as undeliverable", || {
        echo.counts.get().undeliverable == pending as u64
    });
    wait_until("no reply is pending any more", || echo.counts.get().pending_replies == 0);
}

#[test]
fn dropping_the_socket_closes_everything() {
    let echo = Echo::start(LIMITS);
    let mut stream = echo.dealer(0, b"");
    let address = echo.address;
    drop(echo.orders);
    echo.thread.join().unwrap();
    raw::read_until_closed(&mut stream);
    assert!(TcpStream::connect(address).is_err());
}

#[test]
fn recv_can_be_dropped_at_any_time_without_losing_a_message() {
    // Sleeping, and spinning.
    for busy_poll in [Duration::ZERO, Duration::from_millis(1)] {
        recv_can_be_dropped(Limits { busy_poll, ..LIMITS });
    }
}

fn recv_can_be_dropped(limits: Limits) {
    on_runtime(async {
        let (mut socket, address, _) = bound(limits);
        let mut options = SocketOptions::default();
        options.peer_identity("me".parse().unwrap());
        let client = async move {
            let mut dealer = DealerSocket::with_options(options);
            dealer.connect(&format!("tcp://{address}")).await.unwrap();
            for number in 0..500u32 {
                dealer.send(number.to_string().into()).await.unwrap();
                tokio::task::yield_now().await;
            }
            dealer
        };
        let client = tokio::spawn(client);
        let mut number = 0;
        while number < 500 {
            tokio::select! {
                biased;
                () = tokio::task::yield_now() => {}
                message = socket.recv() => {
                    let expected = ["me".to_owned(), number.to_string()];
                    assert_eq!(message.frames().iter().collect::<Vec<_>>(), expected.each_ref());
                    number += 1;
                }
            }
        }
        client.await.unwrap();
    });
}

#[test]
fn replies_caused_by_other_peers_give_a_peer_no_extra_turns() {
    on_runtime(async {
        let limits = Limits { socket_buffer: 8 << 20, ..LIMITS };
        let (mut socket, address, _) = bound(limits);
        let mut streams = Vec::new();
        for identity in [b"told".as_slice(), b"tells"] {
            streams.push(dealer_of(&mut socket, address, identity).await);
        }
        // Both have sent as much as the kernel accepts before the first read.
        let request = raw::frame(&[7; 64], false);
        let there = streams.iter_mut().map(|stream| fill(stream, &request) / request.len());
        let there = there.min().unwrap();
        // How many requests of each have arrived.
        let mut counts = [0; 2];
        let mut next = None;
        while counts.iter().sum::<usize>() < there {
            let message = match next {
                Some(message) => message,
                None => socket.recv().await,
            };
            let tells = message.frames()[0] == b"tells"[..];
            counts[usize::from(tells)] += 1;
            if tells && counts[1] % 100 == 0 {
                socket.send(&mut readdressed(message, b"told")).unwrap();
            }
            next = socket.try_recv();
        }
        assert!(
            there > 2000 && counts[0] < 2 * counts[1],
            "one peer was preferred: {counts:?} of {there} requests"
        );
    });
}

/// Writes `request` repeatedly as long as the kernel accepts it. Returns the number of bytes.
fn fill(stream: &mut TcpStream, request: &[u8]) -> usize {
    stream.set_nonblocking(true).unwrap();
    let mut written = 0;
    loop {
        match stream.write(&request[written % request.len()..]) {
            Ok(count) => written += count,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return written,
            Err(error) => panic!("{error}"),
        }
    }
}

/// The same message for another peer.
fn readdressed(mut message: Message, identity: &'static [u8]) -> Message {
    message.frames_mut()[0] = identity.into();
    message
}

#[test]
fn a_reply_to_another_peer_is_timed_from_the_request_that_caused_it() {
    on_runtime(async {
        let (mut socket, address, counts) = bound(LIMITS);
        let mut told = dealer_of(&mut socket, address, b"told").await;
        let mut tells = dealer_of(&mut socket, address, b"tells").await;
        // The silence of the peer that gets the reply must not count.
        thread::sleep(Duration::from_millis(300));
        let started = Instant::now();
        tells.write_all(&raw::frame(b"news", false)).unwrap();
        let request = socket.recv().await;
        socket.send(&mut readdressed(request, b"told")).unwrap();
        let reading = tokio::task::spawn_blocking(move || raw::read(&mut told, 6));
        tokio::select! {
            news = reading => assert_eq!(news.unwrap(), b"\x00\x04news"),
            message = socket.recv() => panic!("unexpected message: {message:?}"),
        }
        // Measurements are reported when there is nothing else to do.
        while counts.get().replied == 0 {
            let _ = tokio::time::timeout(Duration::from_millis(1), socket.recv()).await;
        }
        assert!(counts.get().latencies <= started.elapsed());
        assert_eq!(counts.get().replied, 1);
    });
}

#[test]
fn replies_caused_by_other_peers_are_bounded_by_the_pool() {
    // So large that the kernel holds one message of each peer before any is read.
    const MESSAGE: usize = 100 << 10;
    const PEERS: usize = 160;
    let limits =
        Limits { buffer_bytes: 4 << 20, socket_buffer: 512 << 10, peers: 2 * PEERS, ..LIMITS };
    on_runtime(async {
        let (mut socket, address, _) = bound(limits);
        let _told = dealer_of(&mut socket, address, b"told").await;
        let mut tell = Vec::new();
        for _ in 0..PEERS {
            tell.push(dealer_of(&mut socket, address, b"").await);
        }
        // Everything is in the kernel before the first read.
        tell.iter_mut().for_each(|peer| peer.write_all(&raw::frame(&[1; MESSAGE], false)).unwrap());
        let mut taken = 0;
        while let Ok(request) = tokio::time::timeout(Duration::from_secs(1), socket.recv()).await {
            let mut reply = readdressed(request, b"told");
            taken += usize::from(socket.send(&mut reply).is_ok());
        }
        // The pool, plus what the kernel's buffers hold on both sides.
        assert!(
            taken * MESSAGE < (4 << 20) + (8 << 20),
            "the socket took {taken} messages, more than the pool and the kernel can hold"
        );
    });
}

#[test]
fn a_peer_that_sent_data_while_the_process_was_stopped_is_not_closed() {
    // More connections than the runtime reports at a time.
    const PEERS: usize = 1500;
    raise_open_files();
    on_runtime(async {
        let limits = Limits { peers: 2 * PEERS, ..LIMITS };
        let (mut socket, address, counts) = bound(limits);
        let mut streams = Vec::new();
        for _ in 0..PEERS {
            streams.push(dealer_of(&mut socket, address, b"").await);
        }
        // A peer that is silent for three seconds counts as lost.
        let ping = raw::command(b"\x04PING\x00\x1e");
        streams.iter_mut().for_each(|stream| stream.write_all(&ping).unwrap());
        let _ = tokio::time::timeout(Duration::from_millis(500), socket.recv()).await;
        streams.iter_mut().for_each(|stream| stream.write_all(&raw::frame(b"a", false)).unwrap());
        thread::sleep(Duration::from_secs(4));
        for _ in 0..PEERS {
            let request = tokio::time::timeout(DEADLINE, socket.recv()).await;
            socket.send(&mut request.expect("the peer is still served")).unwrap();
        }
        // A peer that is silent after a PING is still closed.
        streams.iter_mut().for_each(|stream| stream.write_all(&ping).unwrap());
        let since = Instant::now();
        let vanished = || counts.get().disconnections("vanished");
        while vanished() < PEERS as u64 {
            let none = tokio::time::timeout(Duration::from_millis(50), socket.recv()).await;
            assert!(none.is_err(), "unexpected message: {none:?}");
            assert!(
                since.elapsed() < DEADLINE,
                "not every silent peer was closed, only {}",
                vanished()
            );
        }
    });
}
