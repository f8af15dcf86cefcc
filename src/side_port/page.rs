//! What `/` answers: a live page for a browser, a few lines of text for others.
//!
//! The page is one file without a resource of its own: it works where nothing but
//! the side port can be reached. It reads `/metrics` as a scraper does, so that
//! there is one source of numbers.

use hyper::StatusCode;
use hyper::body::Bytes;
use hyper::header::{
    ACCEPT, CONTENT_SECURITY_POLICY, HeaderMap, HeaderValue, REFERRER_POLICY, VARY,
};

use super::answer::{Answer, PATHS, body};
use crate::metrics::{REVISION, VERSION};

/// The page, but for the names in double braces.
const TEMPLATE: &str = include_str!("status.html");

/// Nothing runs and nothing styles but what stands in the page, by its SHA-256, and
/// nothing is asked for but the side port. A test says what the hashes must be.
const POLICY: &str = "default-src 'none'; \
     script-src 'sha256-/vFd4TxXFoBUZvq41g0I2yhULcr8p6AQmgVp6bkZyIs='; \
     style-src 'sha256-6J5EXO1QBzN0wosgvt8x7SNi/qORNzu2mQO4HO/4skw='; \
     connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// Both answers, made once.
pub struct Page {
    html: Bytes,
    text: Bytes,
}

impl Page {
    /// The page of the `instance` of that name.
    pub fn new(instance: &str) -> Self {
        Self { html: html(instance).into(), text: text(instance).into() }
    }

    /// The page for those who ask for HTML by name, as every browser does.
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

/// `*/*` is what curl sends: it asks for nothing in particular (RFC 9110, 12.5.1).
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
        // Relative, for those who come through a proxy that adds a prefix.
        let target = format!(".{path}");
        format!("<li><a href=\"{target}\">{path}</a> {}</li>\n", escaped(purpose))
    };
    TEMPLATE
        .replace("{{version}}", &escaped(VERSION))
        .replace("{{revision}}", &escaped(REVISION))
        .replace("{{links}}", &PATHS.map(link).concat())
        // Last, as it is the one that could hold braces.
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
