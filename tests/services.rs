//! Services of every kind behind the real socket: what they may do, and how they affect other
//! clients.

mod faults;
mod processes;

use std::io::Write;
use std::net::TcpStream;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Mutex, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use zmq_echo::exit;
use zmq_echo::service::drain::Ending;
use zmq_echo::service::{
    Answer, Blocking, Call, Concurrent, Rejection, Replies, Request, handler_fn,
};
use zmtp::Message;

use crate::poll_loop::{Loop, start, start_with, start_with_timeout};
use crate::support::{DEADLINE, raw, wait_until};

fn text(text: &str) -> Message {
    [Bytes::copy_from_slice(text.as_bytes())].into()
}

fn first(call: &Call) -> String {
    String::from_utf8_lossy(&call.payload.frames()[0]).into_owned()
}

/// Sends a request of one frame after an envelope that holds an id.
fn ask(client: &mut TcpStream, id: &str, payload: &str) {
    let frames = [id.as_bytes(), b"", payload.as_bytes()];
    client.write_all(&raw::message(&frames)).unwrap();
}

/// Returns the id of a reply and its payload as text.
fn answer(client: &mut TcpStream) -> (String, String) {
    let frames = raw::read_message(client);
    assert!(frames[1].is_empty(), "the reply has no delimiter: {frames:?}");
    let text = |frame: &Vec<u8>| String::from_utf8_lossy(frame).into_owned();
    (text(&frames[0]), text(&frames[2]))
}

/// Returns the id of an error reply and its code.
fn error(client: &mut TcpStream) -> (String, String) {
    let frames = raw::read_message(client);
    let rejection = Rejection::of_payload(frames[2..].iter().map(|frame| &frame[..]));
    let code = rejection.unwrap_or_else(|| panic!("not an error reply: {frames:?}")).code;
    (String::from_utf8_lossy(&frames[0]).into_owned(), code.into_owned())
}

/// Asks the loop to end, and waits until it has.
fn end(mut running: Loop, clients: impl IntoIterator<Item = TcpStream>) {
    running.termination.write_all(b"x").unwrap();
    clients.into_iter().for_each(raw::leave_when_closed);
    let report = running.thread.join().unwrap();
    assert_eq!(report.unfinished, 0, "{report:?}");
    assert!(report.closed.is_clean(), "the drain lost or owed something: {report:?}");
}

/// A service on threads whose work ends when the test says so. It panics at the payload `panic`.
fn gated(threads: usize, gate: &'static Gate) -> Blocking {
    let work = |count: &mut usize, call: &Call| {
        *count += 1;
        let asked = first(call);
        gate.begun.fetch_add(1, SeqCst);
        if asked == "panic" {
            panic!("requested by the client");
        }
        if asked != "fast" {
            gate.wait();
        }
        Ok(text(&format!("{asked} {count}")))
    };
    Blocking::new(threads, || Ok(0), work).unwrap()
}

/// Holds work back until it is opened.
struct Gate {
    begun: AtomicUsize,
    is_open: Mutex<bool>,
    opened: std::sync::Condvar,
}

impl Gate {
    fn new() -> &'static Self {
        Box::leak(Box::new(Self {
            begun: AtomicUsize::new(0),
            is_open: Mutex::new(false),
            opened: std::sync::Condvar::new(),
        }))
    }

    fn wait(&self) {
        let open = self.opened.wait_while(self.is_open.lock().unwrap(), |open| !*open).unwrap();
        drop(open);
    }

    fn open(&self) {
        *self.is_open.lock().unwrap() = true;
        self.opened.notify_all();
    }
}

#[test]
fn slow_work_on_threads_does_not_delay_other_clients() {
    let gate = Gate::new();
    let running = start(move || gated(2, gate));
    let mut slow = raw::connect(running.address, b"slow");
    let mut fast = raw::connect(running.address, b"fast");
    ask(&mut slow, "1", "slow");
    wait_until("a thread works on the request", || gate.begun.load(SeqCst) == 1);
    for id in ["a", "b", "c"] {
        ask(&mut fast, id, "fast");
        assert_eq!(answer(&mut fast).0, id);
    }
    // The gauge is set at the end of a turn.
    wait_until("the slow request is in flight", || running.metrics.in_flight.get() == 1);
    gate.open();
    assert_eq!(answer(&mut slow), ("1".to_owned(), "slow 1".to_owned()));
    wait_until("no request is in flight", || running.metrics.in_flight.get() == 0);
    assert_eq!(running.metrics.work_duration.get_sample_count(), 4);
    assert_eq!(running.metrics.queue_duration.get_sample_count(), 4);
    end(running, [slow, fast]);
}

#[test]
fn time_queued_and_time_worked_add_up_to_no_more_than_the_request_duration() {
    const HELD: Duration = Duration::from_millis(100);
    let gate = Gate::new();
    let running = start(move || gated(1, gate));
    let mut client = raw::connect(running.address, b"");
    let sent = Instant::now();
    for id in ["1", "2", "3"] {
        ask(&mut client, id, "slow");
    }
    wait_until("all are in flight", || running.metrics.in_flight.get() == 3);
    wait_until("one works, and the others wait", || gate.begun.load(SeqCst) == 1);
    let held = Instant::now();
    wait_until("the gate has been shut for a while", || held.elapsed() >= HELD);
    gate.open();
    (0..3).for_each(|_| _ = answer(&mut client));
    let most = 3.0 * sent.elapsed().as_secs_f64();
    let durations = || -> (f64, f64) {
        let text = String::from_utf8(running.metrics.render()).unwrap();
        let of = |name: &str| {
            let lines = text.lines().filter(|line| line.starts_with(name));
            lines.map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()).sum::<f64>()
        };
        (of("zmq_echo_request_duration_seconds_sum"), of("zmq_echo_request_duration_seconds_count"))
    };
    wait_until("the replies are counted", || durations().1 == 3.0);
    let total = durations().0;
    let metrics = &running.metrics;
    let queued = metrics.queue_duration.get_sample_sum();
    let worked = metrics.work_duration.get_sample_sum();
    let held = HELD.as_secs_f64();
    assert!(worked >= held, "one request was worked on for {held} s, not {worked}");
    assert!(queued >= 2.0 * held, "two requests waited for {held} s each, not {queued} in total");
    // The rest is the time until the replies are written.
    assert!(queued + worked <= total && total <= most, "{queued} + {worked}, {total}, {most}");
    end(running, [client]);
}

#[test]
fn a_panic_fails_its_request_and_discards_the_state_it_was_using() {
    let gate = Gate::new();
    let running = start(move || gated(1, gate));
    let mut client = raw::connect(running.address, b"");
    for (id, payload) in [("1", "fast"), ("2", "fast"), ("3", "panic"), ("4", "fast")] {
        ask(&mut client, id, payload);
    }
    assert_eq!(answer(&mut client), ("1".to_owned(), "fast 1".to_owned()));
    assert_eq!(answer(&mut client), ("2".to_owned(), "fast 2".to_owned()));
    assert_eq!(error(&mut client), ("3".to_owned(), "panicked".to_owned()));
    // The state was created again.
    assert_eq!(answer(&mut client), ("4".to_owned(), "fast 1".to_owned()));
    assert_eq!(running.metrics.panics.get(), 1);
    end(running, [client]);
}

#[test]
fn an_inline_panic_fails_its_request_and_recreates_the_service() {
    let running = start(|| {
        let mut count = 0;
        move |request: Request<'_>| -> Answer {
            count += 1;
            match request.frame(0) {
                Some(b"panic") => panic!("requested by the client"),
                _ => request.reply(text(&count.to_string())),
            }
        }
    });
    let mut client = raw::connect(running.address, b"");
    // All requests come in one batch, to check that those after the panic are not lost with it.
    let requests = [("1", "count"), ("2", "count"), ("3", "panic"), ("4", "count")];
    let frames =
        requests.map(|(id, payload)| raw::message(&[id.as_bytes(), b"", payload.as_bytes()]));
    client.write_all(&frames.concat()).unwrap();
    assert_eq!(answer(&mut client).1, "1");
    assert_eq!(answer(&mut client).1, "2");
    assert_eq!(error(&mut client), ("3".to_owned(), "panicked".to_owned()));
    assert_eq!(answer(&mut client), ("4".to_owned(), "1".to_owned()));
    assert_eq!(running.metrics.panics.get(), 1);
    end(running, [client]);
}

#[test]
fn more_panics_than_ten_in_a_minute_end_the_loop() {
    let running = start(|| |_: Request<'_>| -> Answer { panic!("on every request") });
    let mut client = raw::connect(running.address, b"");
    for _ in 0..10 {
        ask(&mut client, "1", "hello");
        assert_eq!(error(&mut client).1, "panicked");
    }
    ask(&mut client, "1", "hello");
    assert!(
        running.thread.join().is_err(),
        "after ten panics, the next one must end the loop with exit code {}",
        exit::PANIC
    );
}

#[test]
fn panics_on_threads_count_towards_the_limit_as_well() {
    let gate = Gate::new();
    let running = start(move || gated(1, gate));
    let mut client = raw::connect(running.address, b"");
    for _ in 0..10 {
        ask(&mut client, "1", "panic");
        assert_eq!(error(&mut client).1, "panicked");
    }
    ask(&mut client, "1", "panic");
    assert!(running.thread.join().is_err());
}

#[test]
fn a_late_reply_never_reaches_another_connection_of_the_same_identity() {
    let gate = Gate::new();
    let running = start(move || gated(2, gate));
    let mut old = raw::connect(running.address, b"me");
    ask(&mut old, "old", "slow");
    wait_until("a thread works on the request", || gate.begun.load(SeqCst) == 1);
    drop(old);
    wait_until("the old connection is closed", || running.metrics.socket.peers.get() == 0);
    let mut new = raw::connect(running.address, b"me");
    ask(&mut new, "new", "fast");
    assert_eq!(answer(&mut new).0, "new");
    gate.open();
    // Replies from both threads arrive before this one.
    ask(&mut new, "1", "slow");
    ask(&mut new, "2", "slow");
    let ids = [answer(&mut new).0, answer(&mut new).0];
    assert!(
        ids.contains(&"1".to_owned()) && ids.contains(&"2".to_owned()),
        "a late reply was delivered to the new connection: {ids:?}"
    );
    assert_eq!(running.metrics.socket.undeliverable_peer_gone.get(), 1);
    end(running, [new]);
}

#[test]
fn a_drain_finishes_the_work_in_flight_and_delivers_its_replies() {
    let gate = Gate::new();
    let mut running = start(move || gated(1, gate));
    let mut client = raw::connect(running.address, b"");
    for id in ["1", "2", "3"] {
        ask(&mut client, id, "slow");
    }
    wait_until("a thread works on the first request", || gate.begun.load(SeqCst) == 1);
    running.termination.write_all(b"x").unwrap();
    wait_until("the loop drains", || running.metrics.draining.get() == 1);
    gate.open();
    assert_eq!([(); 3].map(|()| answer(&mut client).0), ["1", "2", "3"]);
    raw::leave_when_closed(client);
    let report = running.thread.join().unwrap();
    assert_eq!((report.unfinished, report.answered), (0, 3));
}

#[test]
fn clients_that_leave_during_a_drain_do_not_lower_the_count_of_answered_requests() {
    let gate = Gate::new();
    let mut running = start(move || gated(1, gate));
    let mut leaving = raw::connect(running.address, b"leaving");
    let mut staying = raw::connect(running.address, b"staying");
    for client in [&mut leaving, &mut staying] {
        ask(client, "1", "slow");
        ask(client, "2", "slow");
    }
    wait_until("all requests are in flight", || running.metrics.in_flight.get() == 4);
    running.termination.write_all(b"x").unwrap();
    wait_until("the loop drains", || running.metrics.draining.get() == 1);
    drop(leaving);
    let gone = &running.metrics.socket.undeliverable_peer_gone;
    wait_until("its requests are dropped", || gone.get() == 2);
    gate.open();
    assert_eq!([(); 2].map(|()| answer(&mut staying).0), ["1", "2"]);
    raw::leave_when_closed(staying);
    let report = running.thread.join().unwrap();
    assert_eq!((report.answered, report.lost, report.unfinished), (2, 2, 0), "{report:?}");
}

#[test]
fn work_unfinished_at_the_drain_deadline_gets_an_error_and_does_not_count_as_served() {
    let gate = Gate::new();
    let mut running = start_with_timeout(move || gated(1, gate), Duration::from_secs(1));
    let mut client = raw::connect(running.address, b"");
    for id in ["1", "2"] {
        ask(&mut client, id, "slow");
    }
    wait_until("a thread works on the first request", || gate.begun.load(SeqCst) == 1);
    running.termination.write_all(b"x").unwrap();
    for id in ["1", "2"] {
        assert_eq!(error(&mut client), (id.to_owned(), "draining".to_owned()));
    }
    raw::leave_when_closed(client);
    let report = running.thread.join().unwrap();
    assert_eq!((report.ending, report.unfinished), (Ending::Deadline, 2));
    gate.open();
}

#[test]
fn requests_past_their_deadline_are_not_worked_on() {
    let gate = Gate::new();
    let make = move || gated(1, gate);
    let running = start_with(make, DEADLINE, Some(Duration::from_millis(200)));
    let mut client = raw::connect(running.address, b"");
    let asked = Instant::now();
    ask(&mut client, "1", "slow");
    ask(&mut client, "2", "fast");
    wait_until("a thread works on the first request", || gate.begun.load(SeqCst) == 1);
    wait_until("the deadline of the second request has passed", || {
        asked.elapsed() > Duration::from_millis(300)
    });
    gate.open();
    assert_eq!(answer(&mut client).0, "1");
    assert_eq!(error(&mut client), ("2".to_owned(), "deadline".to_owned()));
    assert_eq!(gate.begun.load(SeqCst), 1, "a request was begun after its deadline");
    end(running, [client]);
}

/// Waits for a signal from the test, and reports when it is dropped.
async fn waits(
    call: Call,
    gate: &'static Gate,
    dropped: mpsc::Sender<()>,
) -> Result<Replies, Rejection> {
    struct OnDrop(mpsc::Sender<()>);
    impl Drop for OnDrop {
        fn drop(&mut self) {
            let _ = self.0.send(());
        }
    }
    gate.begun.fetch_add(1, SeqCst);
    let _guard = OnDrop(dropped);
    match &*first(&call) {
        "panic" => panic!("requested by the client"),
        "fast" => {}
        "for ever" => std::future::pending().await,
        _ => tokio::time::sleep(Duration::from_millis(50)).await,
    }
    Ok(Replies::One(call.payload))
}

#[test]
fn futures_run_concurrently_and_a_panic_fails_one_request() {
    let gate = Gate::new();
    let (dropped, _drops) = mpsc::channel();
    let running = start(move || {
        let dropped = dropped.clone();
        let make = move || {
            let dropped = dropped.clone();
            handler_fn(move |call| waits(call, gate, dropped.clone()))
        };
        Concurrent::new(200, make).unwrap()
    });
    let mut client = raw::connect(running.address, b"");
    let started = Instant::now();
    for n in 0..100 {
        ask(&mut client, &n.to_string(), if n == 50 { "panic" } else { "slow" });
    }
    let mut panicked = 0;
    for _ in 0..100 {
        let frames = raw::read_message(&mut client);
        let payload = frames[2..].iter().map(|frame| &frame[..]);
        panicked += usize::from(Rejection::of_payload(payload).is_some());
    }
    // One after the other, they would take five seconds.
    assert!(
        started.elapsed() < Duration::from_secs(4),
        "the futures did not run concurrently: {:?}",
        started.elapsed()
    );
    assert_eq!(panicked, 1);
    assert_eq!(running.metrics.panics.get(), 1);
    end(running, [client]);
}

#[test]
fn the_futures_of_a_client_that_leaves_are_dropped() {
    let gate = Gate::new();
    let (dropped, drops) = mpsc::channel();
    let running = start(move || {
        let dropped = dropped.clone();
        let make = move || {
            let dropped = dropped.clone();
            handler_fn(move |call| waits(call, gate, dropped.clone()))
        };
        Concurrent::new(2, make).unwrap()
    });
    let mut leaving = raw::connect(running.address, b"leaving");
    for id in ["1", "2", "3"] {
        ask(&mut leaving, id, "for ever");
    }
    wait_until("two requests, the maximum, are worked on", || gate.begun.load(SeqCst) == 2);
    wait_until("the third request waits", || running.metrics.in_flight.get() == 3);
    drop(leaving);
    drops.recv_timeout(DEADLINE).unwrap();
    drops.recv_timeout(DEADLINE).unwrap();
    wait_until("no request of the client is in flight any more", || {
        running.metrics.in_flight.get() == 0
    });
    let mut client = raw::connect(running.address, b"");
    ask(&mut client, "1", "fast");
    assert_eq!(answer(&mut client).1, "fast");
    assert_eq!(
        gate.begun.load(SeqCst),
        3,
        "the waiting request was begun after its client had left"
    );
    end(running, [client]);
}

#[test]
fn several_replies_to_one_request_arrive_in_order_and_none_is_lost() {
    let running = start(|| {
        let count = async |call: Call| {
            let to: usize =
                first(&call).parse().map_err(|_| Rejection::new("number", "no number"))?;
            let replies = stream::iter(0..to).map(|n| Ok(text(&n.to_string())));
            Ok::<_, Rejection>(Replies::Stream(replies.boxed()))
        };
        Concurrent::new(10, move || handler_fn(count)).unwrap()
    });
    let mut client = raw::connect(running.address, b"");
    for id in ["a", "b"] {
        ask(&mut client, id, "5000");
    }
    let mut next = [0, 0];
    for _ in 0..10_000 {
        let (id, number) = answer(&mut client);
        let next = &mut next[usize::from(id == "b")];
        assert_eq!(number, next.to_string());
        *next += 1;
    }
    ask(&mut client, "c", "nonsense");
    assert_eq!(error(&mut client), ("c".to_owned(), "number".to_owned()));
    end(running, [client]);
}

#[test]
fn a_slow_inline_service_delays_a_signal_by_one_request_at_most() {
    let running = start(|| {
        |request: Request<'_>| {
            thread::sleep(Duration::from_millis(50));
            request.echo()
        }
    });
    let mut client = raw::connect(running.address, b"");
    let mut running = running;
    // Warm up, so that the loop knows how slow the service is.
    ask(&mut client, "0", "hello");
    answer(&mut client);
    for n in 0..40 {
        ask(&mut client, &n.to_string(), "hello");
    }
    assert_eq!(answer(&mut client).0, "0");
    running.termination.write_all(b"x").unwrap();
    wait_until("the loop drains", || running.metrics.draining.get() == 1);
    let answered = running.metrics.client_requests.get();
    // Two seconds of work were pipelined. A loop with a fixed batch size would have done all of it.
    assert!(answered < 30, "{answered} requests were answered before the signal was noticed");
    for _ in 1..40 {
        answer(&mut client);
    }
    raw::leave_when_closed(client);
    assert_eq!(running.thread.join().unwrap().unfinished, 0);
}
