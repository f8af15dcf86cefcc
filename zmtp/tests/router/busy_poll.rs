//! When the socket spins for its next message, and when it sleeps.
//!
//! The tests poll the socket themselves, and count how often it asks to be polled again at once,
//! because that is spinning. They measure no time, so they do not depend on either side's speed.

use std::io::Write;
use std::net::TcpStream;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use tokio::task::yield_now;
use zmtp::Message;
use zmtp::router::{Limits, Router};

use crate::counts::Counts;
use crate::polled::{LIMITS, bound, dealer_of, on_runtime};
use crate::support::raw;

/// Longer than any test takes, so a spin ends only with a message.
const WITHOUT_END: Duration = Duration::from_secs(3600);

/// Over when the clock is next read, so a spin ends without a message.
const AT_ONCE: Duration = Duration::from_nanos(1);

/// How often a spinning socket is polled before its message is sent.
const TURNS: usize = 10;

#[derive(Default)]
struct Wakes(AtomicUsize);

impl Wake for Wakes {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// How the socket waited for a message.
#[derive(Debug, PartialEq)]
enum Waited {
    Spinning,
    Asleep,
    SpinningInVain,
}

/// Waits for the next message and answers it. The client sends it only after the socket has shown
/// how it waits.
async fn wait(socket: &mut Router<Counts>, client: &mut TcpStream, request: &[u8]) -> Waited {
    let (waited, mut message) = received(socket, client, request).await;
    socket.send(&mut message).unwrap();
    waited
}

async fn received(
    socket: &mut Router<Counts>,
    client: &mut TcpStream,
    request: &[u8],
) -> (Waited, Message) {
    let wakes = Arc::new(Wakes::default());
    let waker = Waker::from(Arc::clone(&wakes));
    let mut receive = pin!(socket.recv());
    let mut spun = 0;
    loop {
        let mut context = Context::from_waker(&waker);
        let Poll::Pending = receive.as_mut().poll(&mut context) else {
            panic!("a message came before one was sent");
        };
        // The runtime now checks for I/O and wakes the tasks that yielded.
        yield_now().await;
        if wakes.0.swap(0, Ordering::Relaxed) == 0 {
            break;
        }
        spun += 1;
        if spun == TURNS {
            break;
        }
    }
    client.write_all(request).unwrap();
    let waited = match spun {
        0 => Waited::Asleep,
        TURNS => Waited::Spinning,
        _ => Waited::SpinningInVain,
    };
    (waited, receive.await)
}

/// How the socket waits for each of `count` requests.
fn waits(busy_poll: Duration, count: usize) -> Vec<Waited> {
    on_runtime(async {
        // No deadline may wake the socket in between.
        let limits = Limits { busy_poll, handshake_timeout: WITHOUT_END, ..LIMITS };
        let (mut socket, address, _) = bound(limits);
        let mut client = dealer_of(&mut socket, address, b"").await;
        let request = raw::frame(b"again", false);
        let mut waits = Vec::new();
        for _ in 0..count {
            waits.push(wait(&mut socket, &mut client, &request).await);
        }
        waits
    })
}

#[test]
fn busy_poll_spins_only_for_back_to_back_requests() {
    // As long as each message arrives during a spin, it spins for the next one.
    assert!(waits(WITHOUT_END, 100).iter().all(|waited| *waited == Waited::Spinning));
    // After each unsuccessful spin it sleeps for more messages than before.
    let waits = waits(AT_ONCE, 600);
    let spins: Vec<_> =
        (0..waits.len()).filter(|at| waits[*at] == Waited::SpinningInVain).collect();
    assert!(spins.len() < 20, "{} of {} waits were spins in vain", spins.len(), waits.len());
    let pauses: Vec<_> = spins.windows(2).map(|pair| pair[1] - pair[0] - 1).collect();
    assert!(
        pauses.is_sorted() && pauses.last() >= Some(&255),
        "the pauses between spins did not grow: {pauses:?}"
    );
}

#[test]
fn without_busy_poll_the_socket_sleeps_for_every_request() {
    assert!(waits(Duration::ZERO, 100).iter().all(|waited| *waited == Waited::Asleep));
}
