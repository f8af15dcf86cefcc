//! Work that waits: calls another service over HTTP, with at most 200 requests at a time.
//!
//!     UPSTREAM=127.0.0.1:8000 cargo run --example proxy
//!     python3 examples/client.py tcp://127.0.0.1:5555 /path
//!
//! tower's layers wrap the work, here with a concurrency limit and a timeout.
//!
//! To copy it into `bin/`, move `tower` in `Cargo.toml` from the development dependencies to the
//! dependencies, and add the features `client-legacy` and `http1` to `hyper-util` there.

use std::process::ExitCode;
use std::time::Duration;

use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Bytes;
use hyper::{Request, StatusCode};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use tower::{BoxError, ServiceBuilder};
use zmq_echo::server;
use zmq_echo::service::{Call, Concurrent, Rejection, Replies, handler_fn};

/// How many requests may run at a time.
const CONCURRENCY: usize = 200;

/// The largest body that is passed on, in bytes.
const BODY: usize = 1 << 20;

fn main() -> ExitCode {
    server::main(|| {
        let upstream = std::env::var("UPSTREAM").unwrap_or("127.0.0.1:8000".to_owned());
        Ok(Concurrent::new(CONCURRENCY, move || {
            let client = Client::builder(TokioExecutor::new()).build_http();
            let upstream = upstream.clone();
            let fetch = handler_fn(move |call: Call| {
                let (client, upstream) = (client.clone(), upstream.clone());
                async move { fetch(&client, &upstream, &call).await }
            });
            ServiceBuilder::new()
                .map_err(Rejection::from)
                .concurrency_limit(CONCURRENCY)
                .timeout(Duration::from_secs(2))
                .service(fetch)
        })?)
    })
}

type HttpClient = Client<hyper_util::client::legacy::connect::HttpConnector, Empty<Bytes>>;

/// Fetches the path in the request from the upstream, and replies with the body.
async fn fetch(client: &HttpClient, upstream: &str, call: &Call) -> Result<Replies, BoxError> {
    let path = call.payload.frames().front().and_then(|frame| str::from_utf8(frame).ok());
    let path = path.filter(|path| path.starts_with('/'));
    let path = path.ok_or_else(|| Rejection::new("invalid_argument", "expected a path"))?;
    let request = Request::get(format!("http://{upstream}{path}")).body(Empty::new())?;
    let response = client.request(request).await?;
    let status = response.status();
    if status != StatusCode::OK {
        let text = format!("the upstream answered {status}");
        let retry = status.is_server_error();
        return Err(Rejection { retry, ..Rejection::failed(text) }.into());
    }
    let body = Limited::new(response.into_body(), BODY).collect().await?.to_bytes();
    Ok(Replies::One([body].into()))
}
