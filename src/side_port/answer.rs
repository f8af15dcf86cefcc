//! The paths of the side port, and the form of every answer.

use http_body_util::Full;
use hyper::body::Bytes;
use hyper::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue, X_CONTENT_TYPE_OPTIONS};
use hyper::{Response, StatusCode};

/// The paths and their answers, for the status page and the documentation.
pub const PATHS: [(&str, &str); 5] = [
    (
        "/",
        "a live page of the metrics for browsers; for other clients the name, version and these links as text",
    ),
    ("/metrics", "all series, in the Prometheus text format 0.0.4"),
    (
        "/livez",
        "200 if an echo through the public endpoint came back within 500 ms, else 503; while draining, 200 if the loop ran in the last second",
    ),
    ("/healthz", "the same as /livez"),
    ("/readyz", "200 while new clients are accepted, else 503"),
];

/// An answer, with its whole body in memory.
pub type Answer = Response<Full<Bytes>>;

/// An answer with one line of text.
pub fn line(status: StatusCode, text: String) -> Answer {
    body(status, "text/plain; charset=utf-8", text + "\n")
}

/// An answer that clients must not cache, and whose type they must not guess.
pub fn body(status: StatusCode, content_type: &'static str, content: impl Into<Bytes>) -> Answer {
    let mut answer = Response::new(Full::new(content.into()));
    *answer.status_mut() = status;
    let headers = answer.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    answer
}

/// The paths of [`PATHS`] in one line.
pub fn paths() -> String {
    PATHS.map(|(path, _)| path).join(" ")
}
