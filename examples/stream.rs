//! Several replies to one request: counts from one to the number in the request, with a reply for
//! each. It stops counting while its client does not read.
//!
//!     cargo run --example stream
//!     python3 examples/client.py --replies 3 tcp://127.0.0.1:5555 3

use std::process::ExitCode;

use futures_util::{StreamExt, stream};
use zmq_echo::server;
use zmq_echo::service::{Call, Concurrent, Rejection, Replies, handler_fn};

/// The maximum number of replies to one request.
const MOST: u64 = 1_000_000;

fn main() -> ExitCode {
    server::main(|| Ok(Concurrent::new(100, || handler_fn(count))?))
}

async fn count(call: Call) -> Result<Replies, Rejection> {
    let text = call.payload.frames().front().and_then(|frame| str::from_utf8(frame).ok());
    let count = text.and_then(|text| text.parse().ok()).filter(|count| (1..=MOST).contains(count));
    let count: u64 = count.ok_or_else(|| {
        Rejection::new("invalid_argument", format!("expected a number from 1 to {MOST}"))
    })?;
    let replies = stream::iter(1..=count).map(|number| Ok([number.to_string().into()].into()));
    Ok(Replies::Stream(replies.boxed()))
}
