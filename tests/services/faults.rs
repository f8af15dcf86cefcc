//! Services that panic, pass on errors or are slow, in the test's own process.

use std::io::Write;
use std::net::TcpStream;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::task::{Context, Poll};
use std::thread;
use std::time::{Duration, Instant};

use tower::ServiceBuilder;
use zmq_echo::config::ServerConfig;
use zmq_echo::metrics::PROBE_IDENTITY;
use zmq_echo::service::panics;
use zmq_echo::service::{
    Answer, Blocking, Call, Completion, Concurrent, Rejection, Replies, Request, Service, Ticket,
    handler_fn,
};

use super::{Gate, answer, ask, end, error, first};
use crate::poll_loop::{Loop, start, start_with};
use crate::support::{DEADLINE, raw, wait_until};

#[test]
fn a_rate_limit_delays_requests() {
    let echo = async |call: Call| Ok::<_, Rejection>(Replies::One(call.payload));
    let second = Duration::from_secs(1);
    let running = start(move || {
        let make = move || ServiceBuilder::new().rate_limit(2, second).service(handler_fn(echo));
        Concurrent::new(10, make).unwrap()
    });
    let mut client = raw::connect(running.address, b"");
    let started = Instant::now();
    for id in ["1", "2", "3"] {
        ask(&mut client, id, "hello");
    }
    for id in ["1", "2", "3"] {
        assert_eq!(answer(&mut client).0, id);
    }
    assert!(started.elapsed() >= second, "the rate limit was exceeded");
    end(running, [client]);
}

/// Echoes, but panics in `poll_ready` before every second request.
#[derive(Default)]
struct SometimesReady {
    called: bool,
}

impl tower_service::Service<Call> for SometimesReady {
    type Response = Replies;
    type Error = Rejection;
    type Future = std::future::Ready<Result<Replies, Rejection>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Rejection>> {
        assert!(!self.called, "not ready for a second request");
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, call: Call) -> Self::Future {
        self.called = true;
        std::future::ready(Ok(Replies::One(call.payload)))
    }
}

#[test]
fn a_panic_while_a_service_gets_ready_fails_one_request_and_recreates_it() {
    let running = start(|| Concurrent::new(10, SometimesReady::default).unwrap());
    let mut client = raw::connect(running.address, b"");
    for round in 0..3 {
        ask(&mut client, "one", "hello");
        assert_eq!(answer(&mut client).1, "hello", "round {round}");
        ask(&mut client, "other", "hello");
        assert_eq!(error(&mut client), ("other".to_owned(), "panicked".to_owned()));
    }
    assert_eq!(running.metrics.panics.get(), 3);
    end(running, [client]);
}

/// Passes requests on to a pool, and panics after it has passed on `panic`.
struct PanicsAfterAccepting(Blocking);

impl Service for PanicsAfterAccepting {
    fn call(&mut self, request: Request<'_>) -> Answer {
        let panics = request.frame(0) == Some(b"panic");
        let answer = self.0.call(request);
        assert!(!panics, "requested by the client");
        answer
    }

    async fn completed(&mut self) -> Completion {
        self.0.completed().await
    }

    fn try_completed(&mut self) -> Option<Completion> {
        self.0.try_completed()
    }

    fn cancel(&mut self, ticket: Ticket) {
        self.0.cancel(ticket);
    }
}

#[test]
fn a_panic_after_a_request_was_accepted_costs_one_error_reply_and_no_room_for_others() {
    let gate = Gate::new();
    let running = start(move || {
        let echo = move |(): &mut (), call: &Call| {
            if first(call) != "fast" {
                gate.wait();
            }
            Ok(call.payload.clone())
        };
        PanicsAfterAccepting(Blocking::new(1, || Ok(()), echo).unwrap())
    });
    let mut other = raw::connect(running.address, b"other");
    ask(&mut other, "lost", "slow");
    wait_until("the other request is in flight", || running.metrics.in_flight.get() == 1);
    let mut client = raw::connect(running.address, b"");
    ask(&mut client, "1", "panic");
    assert_eq!(error(&mut client), ("1".to_owned(), "panicked".to_owned()));
    // It was in flight when the service was lost.
    assert_eq!(error(&mut other), ("lost".to_owned(), "panicked".to_owned()));
    gate.open();
    let limit = ServerConfig::parse_args(["zmq-echo-server"]).unwrap().limits().in_flight;
    let batch = 64;
    for _ in 0..=limit / batch {
        for id in 0..batch {
            ask(&mut client, &id.to_string(), "fast");
        }
        for id in 0..batch {
            assert_eq!(answer(&mut client).0, id.to_string());
        }
    }
    wait_until("no request is in flight", || running.metrics.in_flight.get() == 0);
    end(running, [client, other]);
}

#[test]
fn an_error_that_a_service_passes_on_is_not_a_panic_of_its_own() {
    let upstream = |_: &mut (), _: &Call| Err(Rejection::panicked());
    let threads = start(move || Blocking::new(1, || Ok(()), upstream).unwrap());
    let futures = start(|| {
        let upstream = async |_: Call| Err::<Replies, _>(Rejection::panicked());
        Concurrent::new(10, move || handler_fn(upstream)).unwrap()
    });
    for running in [threads, futures] {
        let mut client = raw::connect(running.address, b"");
        for _ in 0..2 * panics::LIMIT {
            ask(&mut client, "1", "hello");
            assert_eq!(error(&mut client).1, "panicked");
        }
        assert_eq!(running.metrics.panics.get(), 0);
        end(running, [client]);
    }
}

/// A number of requests that were begun, and how many may end.
#[derive(Default)]
struct Permits {
    begun: AtomicUsize,
    may_end: AtomicUsize,
}

/// Starts a service whose slow requests end one at a time, sends it fast requests and then 400 slow
/// ones, and waits until it works on the first of these.
fn at_slow_work(permits: &'static Permits) -> (Loop, TcpStream) {
    let running = start(move || {
        move |request: Request<'_>| {
            if request.frame(0) == Some(b"slow") {
                let number = permits.begun.fetch_add(1, SeqCst) + 1;
                while permits.may_end.load(SeqCst) < number {
                    thread::sleep(Duration::from_millis(1));
                }
                thread::sleep(Duration::from_millis(5));
            }
            request.echo()
        }
    });
    let mut client = raw::connect(running.address, b"");
    for _ in 0..3 {
        raw::echoes(&mut client, &raw::frame(b"fast", false).repeat(1000));
    }
    client.write_all(&raw::frame(b"slow", false).repeat(400)).unwrap();
    wait_until("a slow request has begun", || permits.begun.load(SeqCst) == 1);
    (running, client)
}

impl Permits {
    /// Lets slow requests end, one at a time, until `holds`. Then lets all of them end. Returns how
    /// many ended before.
    fn end_until(&self, holds: impl Fn() -> bool) -> usize {
        let mut ended = 0;
        while !holds() {
            ended += 1;
            self.may_end.store(ended, SeqCst);
            wait_until("the event is noticed, or the next request has begun", || {
                holds() || self.begun.load(SeqCst) > ended
            });
        }
        self.may_end.store(usize::MAX, SeqCst);
        ended
    }
}

#[test]
fn after_fast_requests_a_signal_waits_for_few_slow_ones() {
    let permits: &'static Permits = Box::leak(Box::default());
    let (mut running, client) = at_slow_work(permits);
    running.termination.write_all(b"x").unwrap();
    let ended = permits.end_until(|| running.metrics.draining.get() == 1);
    assert!(ended <= 4, "{ended} slow requests were answered before the signal was noticed");
    raw::leave_when_closed(client);
    assert_eq!(running.thread.join().unwrap().unfinished, 0);
}

#[test]
fn after_fast_requests_a_probe_waits_for_few_slow_ones_of_another_client() {
    let permits: &'static Permits = Box::leak(Box::default());
    let (running, client) = at_slow_work(permits);
    let address = running.address;
    let probing = thread::spawn(move || {
        let mut probe = raw::connect(address, PROBE_IDENTITY.as_bytes());
        probe.write_all(&raw::frame(b"probe", false)).unwrap();
        assert_eq!(raw::read_frame(&mut probe).1, b"probe");
        probe
    });
    let ended = permits.end_until(|| probing.is_finished());
    // About four for each of the accept, the handshake and the request, and more if the machine is
    // too busy to run the probe. Without turns, all 400 would come first.
    assert!(ended <= 100, "{ended} slow requests were answered before the probe was");
    end(running, [client, probing.join().unwrap()]);
}

#[test]
fn a_slow_request_is_counted_as_a_slow_turn_whatever_came_before_it() {
    let running = start(|| {
        |request: Request<'_>| {
            if request.frame(0) == Some(b"slow") {
                thread::sleep(Duration::from_millis(150));
            }
            request.echo()
        }
    });
    let mut client = raw::connect(running.address, b"");
    let slow = raw::frame(b"slow", false);
    raw::echoes(&mut client, &slow);
    wait_until("the slow turn of the first request is counted", || {
        running.metrics.slow_turns.get() >= 1
    });
    for (turns, fast) in (2..).zip([0, 1, 2, 10, 100]) {
        // Fast ones in turns of their own, and then some in the turn of the slow one.
        for _ in 0..3 {
            raw::echoes(&mut client, &raw::frame(b"fast", false).repeat(100));
        }
        raw::echoes(&mut client, &[raw::frame(b"fast", false).repeat(fast), slow.clone()].concat());
        wait_until(&format!("the slow turn after {fast} fast requests is counted"), || {
            running.metrics.slow_turns.get() >= turns
        });
    }
    end(running, [client]);
}

#[test]
fn inline_requests_past_the_servers_deadline_are_not_worked_on() {
    let limit = Duration::from_secs(1);
    let worked: &'static AtomicUsize = Box::leak(Box::default());
    let make = move || {
        move |request: Request<'_>| {
            if request.frame(0) == Some(b"slow") {
                worked.fetch_add(1, SeqCst);
                thread::sleep(limit + Duration::from_millis(200));
            }
            request.echo()
        }
    };
    let running = start_with(make, DEADLINE, Some(limit));
    let mut client = raw::connect(running.address, b"");
    raw::echoes(&mut client, &raw::frame(b"fast", false).repeat(1000));
    // One write, so that all of them are read, and begin to wait, at the same time.
    let requests = ["1", "2", "3"].map(|id| raw::message(&[id.as_bytes(), b"", b"slow"]));
    client.write_all(&requests.concat()).unwrap();
    assert_eq!(answer(&mut client).0, "1");
    for id in ["2", "3"] {
        assert_eq!(error(&mut client), (id.to_owned(), "deadline".to_owned()));
    }
    assert_eq!(worked.load(SeqCst), 1);
    ask(&mut client, "4", "fast");
    assert_eq!(answer(&mut client).0, "4");
    end(running, [client]);
}
