//! How long a server asks its clients to wait: `Retry-After` (RFC 9110, section 10.2.3).

use std::time::{Duration, SystemTime};

use httpdate::parse_http_date;
use hyper::HeaderMap;
use hyper::header::{DATE, HeaderName, RETRY_AFTER};

/// The longest wait that a server can impose. It is short, so that a wrong header does not keep a
/// client from new endpoints for long.
const LONGEST: Duration = Duration::from_secs(60);

/// The wait that an answer asks for, if any. A date is relative to the answer's own date, because
/// the server's clock may differ, or to `now` if the answer has none.
pub fn retry_after(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let text = text(headers, RETRY_AFTER)?;
    let wait = if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        // A number too large to parse is a very long time.
        text.parse().map_or(LONGEST, Duration::from_secs)
    } else {
        let until = parse_http_date(text).ok()?;
        let answered = self::text(headers, DATE).and_then(|date| parse_http_date(date).ok());
        until.duration_since(answered.unwrap_or(now)).unwrap_or_default()
    };
    Some(wait.min(LONGEST))
}

fn text(headers: &HeaderMap, name: HeaderName) -> Option<&str> {
    headers.get(name)?.to_str().ok().map(str::trim)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ANSWERED: &str = "Sun, 06 Nov 1994 08:49:37 GMT";

    fn wait(value: &str, date: Option<&str>) -> Option<u64> {
        let mut headers = HeaderMap::new();
        headers.insert(RETRY_AFTER, value.parse().unwrap());
        date.map(|date| headers.insert(DATE, date.parse().unwrap()));
        let now = parse_http_date(ANSWERED).unwrap();
        retry_after(&headers, now).map(|wait| wait.as_secs())
    }

    #[test]
    fn waits_in_seconds_and_dates_are_capped_at_a_minute() {
        for (value, seconds) in [
            ("0", Some(0)),
            ("7", Some(7)),
            (" 7 ", Some(7)),
            ("3600", Some(60)),
            ("99999999999999999999999", Some(60)),
            ("Sun, 06 Nov 1994 08:49:42 GMT", Some(5)),
            ("Sunday, 06-Nov-94 08:49:42 GMT", Some(5)),
            ("Sun Nov  6 08:49:42 1994", Some(5)),
            ("Sun, 06 Nov 1994 08:49:00 GMT", Some(0)),
            ("Fri, 31 Dec 2100 23:59:59 GMT", Some(60)),
            ("", None),
            ("-1", None),
            ("+1", None),
            ("1.5", None),
            ("soon", None),
        ] {
            assert_eq!(wait(value, None), seconds, "{value}");
            assert_eq!(wait(value, Some(ANSWERED)), seconds, "{value}");
        }
        assert_eq!(retry_after(&HeaderMap::new(), SystemTime::now()), None);
    }

    #[test]
    fn a_date_is_relative_to_the_date_of_the_answer() {
        let of_server = Some("Thu, 01 Jan 2026 00:00:00 GMT");
        assert_eq!(wait("Thu, 01 Jan 2026 00:00:09 GMT", of_server), Some(9));
        assert_eq!(wait("Sun, 06 Nov 1994 08:49:46 GMT", Some("when?")), Some(9));
    }
}
