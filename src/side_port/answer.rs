//! The paths that answer, and the form that every answer has.

use http_body_util::Full;
use hyper::body::Bytes;
use hyper::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue, X_CONTENT_TYPE_OPTIONS};
use hyper::{Response, StatusCode};

/// The paths that answer, with what they answer, for the status page and the README.
pub const PATHS: [(&str, &str); 5] = [
    (
        "/",
        "a live page of what /metrics says, for a browser; the service's name, version and these links as text for others",
    ),
    ("/metrics", "all series, in the Prometheus text format 0.0.4"),
    (
        "/livez",
        "200 where an echo through the public endpoint came back within 500 ms, else 503; while draining, where the loop turned within the last second",
    ),
    ("/healthz", "the same as /livez"),
    ("/readyz", "200 while new clients are welcome, else 503"),
];

/// What the side port sends: its whole body is at hand.
pub type Answer = Response<Full<Bytes>>;

/// An answer of one line of text.
pub fn line(status: StatusCode, text: String) -> Answer {
    body(status, "text/plain; charset=utf-8", text + "\n")
}

/// An answer that nobody keeps or guesses the type of.
pub fn body(status: StatusCode, content_type: &'static str, content: impl Into<Bytes>) -> Answer {
    let mut answer = Response::new(Full::new(content.into()));
    *answer.status_mut() = status;
    let headers = answer.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    answer
}

/// [`PATHS`] in one line.
pub fn paths() -> String {
    PATHS.map(|(path, _)| path).join(" ")
}
