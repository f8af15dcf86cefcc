//! Several methods, chosen by the first frame. Quick methods are answered at once, and a slow one
//! runs on a pool of threads. Unknown methods are rejected.
//!
//!     cargo run --example methods
//!     python3 examples/client.py tcp://127.0.0.1:5555 add 1 2
//!     python3 examples/client.py tcp://127.0.0.1:5555 wait 50
//!     python3 examples/client.py tcp://127.0.0.1:5555 multiply 1 2

use std::io;
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use zmq_echo::server;
use zmq_echo::service::{
    Answer, Blocking, Call, Completion, Methods, Rejection, Request, Service, Ticket,
};
use zmtp::Message;

/// The names of the methods. They are also values of a label in the metrics.
const METHODS: [&str; 3] = ["add", "upper", "wait"];
const ADD: usize = 0;
const UPPER: usize = 1;

/// How many requests may wait at a time, and for how many milliseconds at most.
const THREADS: usize = 10;
const LONGEST: u64 = 1_000;

fn main() -> ExitCode {
    server::main(|| Ok(Methods::new(&METHODS, Calculator::new()?)))
}

struct Calculator {
    pool: Blocking,
}

impl Calculator {
    fn new() -> io::Result<Self> {
        Ok(Self { pool: Blocking::new(THREADS, || Ok(()), |(), call| wait(call))? })
    }
}

impl Service for Calculator {
    fn call(&mut self, request: Request<'_>) -> Answer {
        let reply = match request.method() {
            ADD => sum(&request).map(|sum| sum.to_string().into_bytes()),
            UPPER => Ok(request.frame(1).unwrap_or_default().to_ascii_uppercase()),
            _ => return self.pool.call(request),
        };
        match reply {
            Ok(reply) => request.reply([reply.into()]),
            Err(rejection) => request.reject(rejection),
        }
    }

    /// Cancel-safe, because the pool's `completed` is.
    async fn completed(&mut self) -> Completion {
        self.pool.completed().await
    }

    fn try_completed(&mut self) -> Option<Completion> {
        self.pool.try_completed()
    }

    fn cancel(&mut self, ticket: Ticket) {
        self.pool.cancel(ticket);
    }
}

/// Adds the numbers that follow the name of the method.
fn sum(request: &Request<'_>) -> Result<i64, Rejection> {
    let wrong = || Rejection::new("invalid_argument", "expected integers, such as: add 1 2");
    request.frames().skip(1).try_fold(0_i64, |sum, frame| {
        let number = str::from_utf8(frame).ok().and_then(|text| text.parse().ok());
        sum.checked_add(number.ok_or_else(wrong)?).ok_or_else(wrong)
    })
}

/// Stands in for work that blocks: sleeps for the number of milliseconds in the request.
fn wait(call: &Call) -> Result<Message, Rejection> {
    let text = call.payload.frames().get(1).and_then(|frame| str::from_utf8(frame).ok());
    let milliseconds = text.and_then(|text| text.parse().ok()).filter(|time| *time <= LONGEST);
    let milliseconds: u64 = milliseconds.ok_or_else(|| {
        Rejection::new("invalid_argument", format!("expected 0 to {LONGEST} milliseconds"))
    })?;
    thread::sleep(Duration::from_millis(milliseconds));
    Ok([milliseconds.to_string().into()].into())
}
