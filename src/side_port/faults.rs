//! `/faults`: shows the simulated faults, and lets this host set them.
//!
//! Anyone who can set faults can stop the service, so a request has to prove that it comes from a
//! person or a script on this host (or through `kubectl port-forward`, which ends there). Its
//! address alone does not prove that: a web page that is open in a browser here sends from this
//! host as well, and so does the sidecar of a service mesh on behalf of anyone.
//!
//! - A page of another origin cannot send [`HEADER`], because its browser first sends a preflight
//!   request, which the side port refuses.
//! - A page whose name was made to resolve to this host (DNS rebinding) has its own name in `Host`.
//! - A browser sends `Origin` with every POST, so a request that has it comes from a page.

use std::net::IpAddr;

use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use hyper::header::{ALLOW, HOST, HeaderMap, HeaderValue, ORIGIN};
use hyper::http::uri::Authority;
use hyper::{Method, Request, StatusCode};
use tracing::warn;

use super::answer::{Answer, line};
use crate::simulation::{Faults, Switches};

/// The path, which exists only with `--faults`.
pub const PATH: &str = "/faults";

/// The header that a request needs to set faults, with the value `1`.
pub const HEADER: &str = "x-faults";

/// The largest body that is read. It is many times the length of all faults together.
const BODY_BYTES: usize = 1 << 10;

/// Answers a request from the address `from`.
pub async fn answer(switches: &Switches, request: Request<Incoming>, from: IpAddr) -> Answer {
    match *request.method() {
        Method::GET | Method::HEAD => return line(StatusCode::OK, switches.get().to_string()),
        Method::POST => {}
        _ => {
            let text = "only GET, HEAD and POST are allowed".to_owned();
            let mut answer = line(StatusCode::METHOD_NOT_ALLOWED, text);
            answer.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD, POST"));
            return answer;
        }
    }
    if let Err(reason) = may_switch(request.headers(), from) {
        return line(StatusCode::FORBIDDEN, reason.to_owned());
    }
    let Ok(body) = Limited::new(request.into_body(), BODY_BYTES).collect().await else {
        return line(StatusCode::BAD_REQUEST, format!("expected {BODY_BYTES} bytes at most"));
    };
    let body = body.to_bytes();
    let faults = str::from_utf8(&body).map_err(|_| "expected text".to_owned());
    match faults.and_then(str::parse::<Faults>) {
        Ok(faults) => {
            switches.set(faults);
            warn!(faults = faults.to_string(), "simulated faults changed");
            line(StatusCode::OK, faults.to_string())
        }
        Err(right) => {
            let text = format!("{right}; for example: delay=200ms errors=10% silence=1% panics=1");
            line(StatusCode::BAD_REQUEST, text)
        }
    }
}

/// Whether a request may set faults.
fn may_switch(headers: &HeaderMap, from: IpAddr) -> Result<(), &'static str> {
    if !from.to_canonical().is_loopback() {
        return Err("faults can be set from this host only");
    }
    if headers.get(HEADER).is_none_or(|value| value != "1") {
        return Err("faults can be set only with the header X-Faults: 1");
    }
    if headers.contains_key(ORIGIN) {
        return Err("web pages cannot set faults");
    }
    if !headers.get(HOST).is_some_and(is_loopback) {
        return Err("faults can be set only at localhost or a loopback address");
    }
    Ok(())
}

/// Whether a `Host` means this host, by a name or address that no other host can have.
fn is_loopback(host: &HeaderValue) -> bool {
    let Ok(authority) = Authority::try_from(host.as_bytes()) else { return false };
    let name = authority.host();
    let address = name.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
    name.eq_ignore_ascii_case("localhost")
        || address.is_ok_and(|address| address.to_canonical().is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_loopback_names_and_addresses_are_this_host() {
        let is_loopback = |host| is_loopback(&HeaderValue::from_static(host));
        for host in ["localhost", "LOCALHOST:8080", "127.0.0.1:8080", "127.0.0.2", "[::1]:8080"] {
            assert!(is_loopback(host), "{host}");
        }
        for host in [
            "localhost.example:8080",
            "127.0.0.1.example",
            "example@example",
            "10.0.0.1:8080",
            "[2001:db8::1]",
            "",
            "localhost, example",
        ] {
            assert!(!is_loopback(host), "{host}");
        }
    }

    #[test]
    fn another_host_cannot_switch_faults_whatever_it_sends() {
        let headers: HeaderMap = [
            (HOST, HeaderValue::from_static("localhost")),
            (HEADER.parse().unwrap(), HeaderValue::from_static("1")),
        ]
        .into_iter()
        .collect();
        assert_eq!(may_switch(&headers, "::ffff:127.0.0.1".parse().unwrap()), Ok(()));
        for from in ["192.0.2.1", "2001:db8::1", "::ffff:192.0.2.1", "0.0.0.0"] {
            assert!(may_switch(&headers, from.parse().unwrap()).is_err(), "{from}");
        }
    }
}
