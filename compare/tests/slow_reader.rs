//! A client that works on each reply for a while. libzmq reads half of its receive high-water mark
//! from TCP at once. Then it leaves the connection unread, and answers no PING, until the
//! application has worked through those messages.

use std::thread;
use std::time::{Duration, Instant};

use crate::support::{client, metric, server};

/// The application's work per reply.
const WORK: Duration = Duration::from_millis(70);

/// A tenth of libzmq's default, so that a burst takes seconds instead of half a minute. libzmq
/// reads half of it at a time.
const HIGH_WATER_MARK: i32 = 100;

const REQUESTS: usize = 260;
const SIZE: usize = 16 << 10;

#[test]
fn a_client_that_leaves_its_socket_unread_while_it_works_gets_every_reply() {
    // A burst takes several times as long as each of these.
    let server = server(&["--stall-timeout", "1s", "--heartbeat-interval", "1s"]);
    let context = zmq::Context::new();
    let dealer = client(&context, zmq::DEALER, &server.endpoint(), |dealer| {
        // All requests are sent at once. The default of 1,000 would allow that too.
        dealer.set_sndhwm(0)?;
        dealer.set_rcvhwm(HIGH_WATER_MARK)?;
        // The kernel's buffer is limited too, so that replies wait in the server.
        dealer.set_rcvbuf(128 << 10)?;
        dealer.monitor("inproc://slow-reader", zmq::SocketEvent::DISCONNECTED as i32)
    });
    let monitor = context.socket(zmq::PAIR).unwrap();
    monitor.connect("inproc://slow-reader").unwrap();
    let request = |number: usize| [&number.to_be_bytes()[..], &[7; SIZE - 8]].concat();
    for number in 0..REQUESTS {
        dealer.send(request(number), 0).unwrap();
    }
    let mut waited = Duration::ZERO;
    let mut emptied = None;
    for number in 0..REQUESTS {
        let reply = dealer.recv_bytes(0).unwrap_or_else(|error| panic!("reply {number}: {error}"));
        assert!(reply == request(number), "reply {number} differs from its request");
        thread::sleep(WORK);
        if metric(&server, "zmq_echo_pending_replies") > 0.0 {
            waited += WORK;
        } else {
            emptied.get_or_insert_with(Instant::now);
        }
    }
    // Replies waited in the server, and the client continued to work after the server's last write.
    let emptied = emptied.expect("the server has written all replies").elapsed();
    assert!(
        waited > Duration::from_secs(5),
        "the test is too short: replies waited for only {waited:?}"
    );
    assert!(
        emptied > Duration::from_secs(3),
        "the test is too short: the last write was only {emptied:?} before the end"
    );
    dealer.send("still there", 0).unwrap();
    assert_eq!(dealer.recv_bytes(0).unwrap(), b"still there");
    let lost = std::iter::from_fn(|| monitor.recv_multipart(zmq::DONTWAIT).ok()).count();
    assert_eq!(lost, 0, "the slow reader was disconnected");
    for reason in ["stalled", "vanished", "error"] {
        let series = format!("zmq_echo_disconnections_total{{reason=\"{reason}\"}}");
        assert_eq!(metric(&server, &series), 0.0, "{reason}");
    }
}
