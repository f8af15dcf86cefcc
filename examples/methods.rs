//! Several methods, chosen by the first frame. Unknown ones are rejected.
//!
//!     cargo run --example methods
//!     python3 examples/client.py tcp://127.0.0.1:5555 add 1 2
//!     python3 examples/client.py tcp://127.0.0.1:5555 multiply 1 2

use std::process::ExitCode;

use zmq_echo::server;
use zmq_echo::service::{Answer, Rejection, Request};

fn main() -> ExitCode {
    server::main(|| Ok(call))
}

fn call(request: Request<'_>) -> Answer {
    let reply = match request.frame(0) {
        Some(b"add") => sum(&request).map(|sum| sum.to_string().into_bytes()),
        Some(b"upper") => Ok(request.frame(1).unwrap_or_default().to_ascii_uppercase()),
        Some(_) => Err(Rejection::new("unknown_method", "expected add or upper")),
        None => Err(Rejection::new("empty", "expected a method")),
    };
    match reply {
        Ok(reply) => request.reply([reply.into()]),
        Err(rejection) => request.reject(rejection),
    }
}

/// The sum of the numbers behind the method.
fn sum(request: &Request<'_>) -> Result<i64, Rejection> {
    let wrong = || Rejection::new("invalid_argument", "expected integers, such as: add 1 2");
    request.frames().skip(1).try_fold(0_i64, |sum, frame| {
        let number = str::from_utf8(frame).ok().and_then(|text| text.parse().ok());
        sum.checked_add(number.ok_or_else(wrong)?).ok_or_else(wrong)
    })
}
