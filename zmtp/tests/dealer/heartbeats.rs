//! PING, PONG, TTL, and silent servers.

use std::io::{ErrorKind, Write};
use std::task::Poll;
use std::time::Instant;

use super::*;

/// A short timeout, for servers that do not answer.
const INTERVAL: Duration = Duration::from_millis(50);
const TIMEOUT: Duration = Duration::from_millis(150);

async fn with_heartbeats(address: SocketAddr) -> Dealer {
    let config =
        DealerConfig { heartbeat_interval: INTERVAL, heartbeat_timeout: TIMEOUT, ..config() };
    connect_to(&[address], &config).await.expect("the DEALER connects")
}

#[tokio::test]
async fn every_ping_is_answered_with_its_context_even_between_frames() {
    let (address, server) = router(0, |mut stream| {
        for context in [&b""[..], b"c", &[0xff; 16]] {
            stream.write_all(&ping(0, context)).unwrap();
            assert_eq!(read_command(&mut stream, "PONG"), context);
            stream.write_all(&raw::frame(b"one", true)).unwrap();
            stream.write_all(&ping(0, context)).unwrap();
            assert_eq!(read_command(&mut stream, "PONG"), context);
            stream.write_all(&raw::frame(b"two", false)).unwrap();
        }
        stream
    });
    let mut dealer = connected(address).await;
    for _ in 0..3 {
        let message = next(&mut dealer).await.unwrap();
        assert_eq!(*message.frames(), [&b"one"[..], b"two"]);
    }
    server.join().unwrap();
}

#[tokio::test]
async fn a_silent_server_of_3_1_stays_connected_while_it_answers_pings() {
    let (address, server) = router(1, |mut stream| {
        for _ in 0..5 {
            // No TTL and no context.
            assert_eq!(read_command(&mut stream, "PING"), [0, 0]);
            stream.write_all(&raw::command(b"\x04PONG")).unwrap();
        }
        stream.write_all(&raw::frame(b"still here", false)).unwrap();
        stream
    });
    let config = DealerConfig { heartbeat_interval: INTERVAL, ..config() };
    let started = Instant::now();
    let mut dealer = connect_to(&[address], &config).await.unwrap();
    assert_eq!(payload(&mut dealer).await, b"still here");
    assert!(started.elapsed() >= 5 * INTERVAL);
    server.join().unwrap();
}

#[tokio::test]
async fn a_silent_server_of_3_0_gets_no_pings_and_is_checked_once_per_interval() {
    let (address, server) = router(0, |mut stream| {
        stream.set_read_timeout(Some(20 * INTERVAL)).unwrap();
        let read = stream.read(&mut [0]);
        stream.write_all(&raw::frame(b"done", false)).unwrap();
        read.expect_err("nothing arrives").kind()
    });
    let started = Instant::now();
    let mut dealer = with_heartbeats(address).await;
    let mut looks = 0;
    let received = std::future::poll_fn(|cx| {
        looks += 1;
        dealer.poll_recv(cx)
    });
    timeout(DEADLINE, received).await.unwrap().unwrap();
    let intervals = started.elapsed().div_duration_f64(INTERVAL);
    assert!(
        f64::from(looks) < 3.0 * intervals + 10.0,
        "the DEALER woke up {looks} times in {intervals} intervals"
    );
    assert_eq!(server.join().unwrap(), ErrorKind::WouldBlock);
}

#[tokio::test]
async fn a_server_that_answers_no_ping_is_disconnected_after_the_timeout() {
    let (address, server) = router(1, |mut stream| raw::read_until_closed(&mut stream));
    let started = Instant::now();
    let mut dealer = with_heartbeats(address).await;
    assert_eq!(next(&mut dealer).await, Err(Reason::Vanished));
    assert!(
        started.elapsed() >= INTERVAL + TIMEOUT,
        "the DEALER disconnected after only {:?}",
        started.elapsed()
    );
    drop(dealer);
    server.join().unwrap();
}

#[tokio::test]
async fn a_server_may_be_silent_until_it_has_answered_all_messages() {
    let (address, server) = router(1, |mut stream| {
        let [first, second] = [(); 2].map(|()| raw::read_frame(&mut stream).1);
        // Each one takes long, and no PING is answered in the meantime.
        for request in [first, second] {
            thread::sleep(3 * (INTERVAL + TIMEOUT));
            stream.write_all(&raw::frame(&request, false)).unwrap();
        }
        raw::read_until_closed(&mut stream);
    });
    let mut dealer = with_heartbeats(address).await;
    dealer.send(message(b"first")).unwrap();
    dealer.send(message(b"second")).unwrap();
    assert_eq!(payload(&mut dealer).await, b"first");
    assert_eq!(payload(&mut dealer).await, b"second");
    assert_eq!(next(&mut dealer).await, Err(Reason::Vanished));
    drop(dealer);
    server.join().unwrap();
}

#[tokio::test]
async fn an_unanswered_message_does_not_delay_heartbeats_once_it_was_read() {
    let (address, server) = router(1, |mut stream| {
        raw::read_frame(&mut stream);
        read_command(&mut stream, "PING");
        stream.write_all(&raw::command(b"\x04PONG")).unwrap();
        raw::read_until_closed(&mut stream);
    });
    let mut dealer = with_heartbeats(address).await;
    dealer.send(message(b"never answered")).unwrap();
    assert_eq!(next(&mut dealer).await, Err(Reason::Vanished));
    drop(dealer);
    server.join().unwrap();
}

#[tokio::test]
async fn a_servers_ttl_is_enforced_whatever_our_own_interval() {
    for heartbeat_interval in [Duration::ZERO, Duration::from_secs(3600)] {
        let (go, may_go) = std::sync::mpsc::channel();
        let (address, server) = router(1, move |mut stream| {
            may_go.recv().unwrap();
            stream.write_all(&ping(3, b"")).unwrap();
            raw::read_until_closed(&mut stream);
        });
        let config = DealerConfig { heartbeat_interval, ..config() };
        let mut dealer = connect_to(&[address], &config).await.unwrap();
        // It is already waiting, and would continue for an hour.
        let polled = std::future::poll_fn(|cx| Poll::Ready(dealer.poll_recv(cx).is_pending()));
        assert!(polled.await);
        go.send(()).unwrap();
        let started = Instant::now();
        assert_eq!(next(&mut dealer).await, Err(Reason::Vanished));
        assert!(
            started.elapsed() >= Duration::from_millis(290),
            "the DEALER disconnected after only {:?}",
            started.elapsed()
        );
        drop(dealer);
        server.join().unwrap();
    }
}

#[tokio::test]
async fn anything_after_a_servers_ping_cancels_its_ttl() {
    for (behind, messages) in [(raw::frame(b"one", false), 2), (raw::command(b"\x04PONG"), 1)] {
        let (address, server) = router(1, move |mut stream| {
            stream.write_all(&[ping(1, b""), behind].concat()).unwrap();
            thread::sleep(Duration::from_millis(500));
            stream.write_all(&raw::frame(b"two", false)).unwrap();
            stream
        });
        let mut dealer = connected(address).await;
        for _ in 0..messages {
            payload(&mut dealer).await;
        }
        server.join().unwrap();
    }
}

#[tokio::test]
async fn a_very_long_interval_turns_heartbeats_off() {
    let (address, server) = router(1, |mut stream| {
        stream.write_all(&ping(0, b"")).unwrap();
        read_command(&mut stream, "PONG");
        stream.write_all(&raw::frame(b"here", false)).unwrap();
        stream
    });
    let config = DealerConfig {
        connect_timeout: Duration::MAX,
        heartbeat_interval: Duration::MAX,
        heartbeat_timeout: Duration::MAX,
        ..config()
    };
    let mut dealer = connect_to(&[address], &config).await.unwrap();
    assert_eq!(payload(&mut dealer).await, b"here");
    server.join().unwrap();
}
