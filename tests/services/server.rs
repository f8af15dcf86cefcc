//! A server whose service does what each request says. The environment variable `SERVICE` chooses
//! its kind. The tests in `processes.rs` run it.

use std::io;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::thread;
use std::time::Duration;

use bytes::Bytes;
use tower::ServiceBuilder;
use zmq_echo::server;
use zmq_echo::service::{
    Answer, Blocking, Call, Concurrent, Rejection, Replies, Request, handler_fn,
};

fn main() -> ExitCode {
    let kind = std::env::var("SERVICE").expect("SERVICE names a kind of service");
    let made = AtomicBool::new(false);
    match &*kind {
        "inline" => server::main(|| Ok(inline)),
        "inline, created once" => server::main(|| match made.swap(true, SeqCst) {
            false => Ok(inline),
            true => Err("there is no second service".into()),
        }),
        "blocking, created once" => server::main(|| Ok(blocking_once()?)),
        "tower" => server::main(|| Ok(tower()?)),
        _ => panic!("unknown SERVICE: {kind}"),
    }
}

fn inline(request: Request<'_>) -> Answer {
    perform(request.frame(0).unwrap_or_default());
    request.echo()
}

/// A pool of one thread whose state cannot be created again. It is created twice at the start,
/// because the first time is only a test.
fn blocking_once() -> io::Result<Blocking> {
    let made = AtomicUsize::new(0);
    let state = move || match made.fetch_add(1, SeqCst) {
        0 | 1 => Ok(()),
        _ => Err(io::Error::other("there is no second state")),
    };
    Blocking::new(1, state, |(), call| {
        perform(&call.payload.frames()[0]);
        Ok(call.payload.clone())
    })
}

/// A service behind layers that need a runtime when they are created. It replies with the number of
/// requests since it was created, and panics before it returns its future.
fn tower() -> io::Result<Concurrent> {
    Concurrent::new(10, || {
        let mut count = 0;
        let work = handler_fn(move |call: Call| {
            count += 1;
            perform(&call.payload.frames()[0]);
            let reply = Bytes::from(count.to_string());
            async move { Ok::<_, Rejection>(Replies::One([reply].into())) }
        });
        ServiceBuilder::new()
            .map_err(Rejection::from)
            .load_shed()
            .rate_limit(3, Duration::from_secs(3600))
            .service(work)
    })
}

/// Panics at `panic`, and sleeps for 50 ms at `sleep` and 150 ms at `long sleep`.
fn perform(order: &[u8]) {
    match order {
        b"panic" => panic!("requested by the client"),
        b"sleep" => thread::sleep(Duration::from_millis(50)),
        b"long sleep" => thread::sleep(Duration::from_millis(150)),
        _ => {}
    }
}
