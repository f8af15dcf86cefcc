//! The answer to `/`: a live page for a browser, a few lines of text for other clients.
//!
//! The page is one file that loads no other, so it works even if only the side port can be reached.
//! It reads `/metrics` as a scraper does, so its numbers are the same as a scraper's.

use hyper::StatusCode;
use hyper::body::Bytes;
use hyper::header::{
    ACCEPT, CONTENT_SECURITY_POLICY, HeaderMap, HeaderValue, REFERRER_POLICY, VARY,
};

use super::answer::{Answer, PATHS, body};
use crate::version::{REVISION, VERSION};

/// The page, with placeholders in double braces.
const TEMPLATE: &str = include_str!("status.html");

/// Allows only the page's own script and styles, by their SHA-256, and requests only to the side
/// port. If the page changes, a test prints the new hashes.
const POLICY: &str = "default-src 'none'; \
     script-src 'sha256-8ggs0twEirZhZyV5rhX5GXEsV2uP69R6dL3+kycXDEc='; \
     style-src 'sha256-6J5EXO1QBzN0wosgvt8x7SNi/qORNzu2mQO4HO/4skw='; \
     connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// Both answers, built once.
pub struct Page {
    html: Bytes,
    text: Bytes,
}

impl Page {
    /// The page of the pod or host named `instance`.
    pub fn new(instance: &str) -> Self {
        Self { html: html(instance).into(), text: text(instance).into() }
    }

    /// Returns the page if the request asks for HTML by name, as browsers do, and the text
    /// otherwise.
    pub fn answer(&self, request: &HeaderMap) -> Answer {
        let mut answer = if accepts_html(request) {
            body(StatusCode::OK, "text/html; charset=utf-8", self.html.clone())
        } else {
            body(StatusCode::OK, "text/plain; charset=utf-8", self.text.clone())
        };
        let headers = answer.headers_mut();
        headers.insert(CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY));
        headers.insert(REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
        headers.insert(VARY, HeaderValue::from_static("accept"));
        answer
    }
}

/// Whether the request names `text/html`. curl sends `*/*`, which accepts any type (RFC 9110, 12.5.1).
fn accepts_html(request: &HeaderMap) -> bool {
    let ranges = request.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok());
    ranges.flat_map(|ranges| ranges.split(',')).any(|range| {
        let mut parts = range.split(';').map(str::trim);
        let named = parts.next().is_some_and(|name| name.eq_ignore_ascii_case("text/html"));
        let weight = parts.find_map(|part| part.strip_prefix("q=")).unwrap_or("1");
        named && weight.parse().is_ok_and(|weight: f32| weight > 0.0)
    })
}

fn html(instance: &str) -> String {
    let link = |(path, purpose): (&str, &str)| {
        // Relative, for clients behind a proxy that adds a prefix.
        let target = format!(".{path}");
        format!("<li><a href=\"{target}\">{path}</a> {}</li>\n", escaped(purpose))
    };
    TEMPLATE
        .replace("{{version}}", &escaped(VERSION))
        .replace("{{revision}}", &escaped(REVISION))
        .replace("{{links}}", &PATHS.map(link).concat())
        // Last, because a name with braces could look like another placeholder.
        .replace("{{instance}}", &escaped(instance))
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

fn text(instance: &str) -> String {
    let mut text = format!(
        "zmq-echo, a ZeroMQ echo service, version {VERSION}, revision {REVISION}, on {instance}\n\n"
    );
    for (path, purpose) in PATHS {
        text.push_str(&format!("{path:<10}{purpose}\n"));
    }
    text
}
