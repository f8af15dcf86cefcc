//! Formats log records as JSON, one object per line. Each names its pod, namespace and node, and is
//! short enough that no container runtime splits it. `docs/logs.md` is the schema.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;

use serde_json::Value;
use tracing::{Event, Subscriber};
use tracing_subscriber::fmt::format::{Format, Json, Writer};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

/// The most bytes of a record, including the end of its line. Container runtimes split longer lines,
/// and a part of an object is not valid JSON
/// (<https://github.com/containerd/containerd/blob/main/internal/cri/io/logger.go>).
pub const RECORD_LIMIT: usize = 16 << 10;

/// The environment variable with the pod's name.
pub const POD_NAME: &str = "POD_NAME";

/// Environment variables that Kubernetes' downward API sets, each with its field in every record.
/// The fields have the names of Prometheus' labels, so that a dashboard can link a series to its
/// records.
pub const PLACE: [(&str, &str); 3] =
    [("POD_NAMESPACE", "namespace"), (POD_NAME, "pod"), ("NODE_NAME", "node")];

/// The most bytes that each of them takes in a record. Kubernetes' names have at most 253, but
/// outside Kubernetes these variables may hold anything.
pub(super) const NAME_LIMIT: usize = 253;

/// Marks where a text was cut.
pub const CUT: char = '…';

/// Formats events as records.
pub struct JsonRecords {
    format: Format<Json>,
    /// The fields of [`PLACE`] whose values are known, each with a comma before it.
    place: String,
}

impl JsonRecords {
    /// Reads the fields of [`PLACE`] with `variable`, which looks up an environment variable.
    pub fn new(variable: impl Fn(&str) -> Option<OsString>) -> Self {
        let mut place = String::new();
        for (name, field) in PLACE {
            let value = variable(name).unwrap_or_default();
            if !value.is_empty() {
                let value = value.to_string_lossy();
                place.push_str(&format!(",\"{field}\":{}", Value::from(clip(&value, NAME_LIMIT))));
            }
        }
        let format = Format::default().json().flatten_event(true);
        // Spans would be nested objects, but records are flat.
        Self { format: format.with_current_span(false).with_span_list(false), place }
    }
}

impl<S, N> FormatEvent<S, N> for JsonRecords
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let mut record = String::new();
        self.format.format_event(context, Writer::new(&mut record), event)?;
        let room = RECORD_LIMIT - self.place.len();
        if record.len() > room {
            // The end of the line takes a byte.
            record = shorten(&record, room - 1).map_err(|_| fmt::Error)?;
        }
        let fields = record.trim_end().strip_suffix('}').ok_or(fmt::Error)?;
        writeln!(writer, "{fields}{}}}", self.place)
    }
}

/// Cuts the longest texts of a record to the same length, so that the record fits into `room`.
fn shorten(record: &str, room: usize) -> serde_json::Result<String> {
    let mut fields: BTreeMap<String, Value> = serde_json::from_str(record)?;
    let mut limit = room;
    loop {
        for value in fields.values_mut() {
            if let Value::String(text) = value {
                *text = clip(text, limit).into_owned();
            }
        }
        let record = serde_json::to_string(&fields)?;
        // Everything else is short: the names of our own fields, and numbers.
        if record.len() <= room || limit <= 8 {
            return Ok(record);
        }
        limit -= limit / 8;
    }
}

/// The longest beginning of `text` that takes at most `limit` bytes in a record, in which control
/// characters and quotes are escaped. It ends with [`CUT`] if something was cut.
pub fn clip(text: &str, limit: usize) -> Cow<'_, str> {
    let mut room = limit;
    let mut fits_with_mark = 0;
    for (at, c) in text.char_indices() {
        if room >= CUT.len_utf8() {
            fits_with_mark = at;
        }
        // JSON needs at most six bytes for an escaped character; the text format escapes as
        // `Debug` does.
        let json = if c.is_control() { 6 } else { c.len_utf8() };
        let size = json.max(c.escape_debug().len());
        match room.checked_sub(size) {
            Some(rest) => room = rest,
            None => return Cow::Owned(format!("{}{CUT}", &text[..fits_with_mark])),
        }
    }
    Cow::Borrowed(text)
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::os::unix::ffi::OsStringExt;
    use std::sync::{Arc, Mutex};

    use tracing_subscriber::fmt::MakeWriter;

    use super::*;

    #[test]
    fn a_clipped_text_fits_its_limit_in_json_and_in_text() {
        for text in [
            "x".repeat(100),
            "\n\"\\".repeat(100),
            "\u{1}\u{7f}".repeat(100),
            "é❤\u{200b}".repeat(100),
        ] {
            let clipped = clip(&text, 64);
            assert!(format!("{clipped:?}").len() <= 64 + 2, "{clipped:?}");
            assert!(serde_json::to_string(&clipped).unwrap().len() <= 64 + 2, "{clipped:?}");
            assert!(clipped.len() >= 64 / 10, "{clipped:?}");
            assert!(text.starts_with(clipped.strip_suffix(CUT).unwrap()), "{clipped:?}");
        }
        assert_eq!(clip("short", 64), "short");
        assert_eq!(clip(&"x".repeat(64), 64), "x".repeat(64));
    }

    #[derive(Clone, Default)]
    struct Written(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Written {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl MakeWriter<'_> for Written {
        type Writer = Self;

        fn make_writer(&self) -> Self {
            self.clone()
        }
    }

    /// The record that `log` writes in this environment.
    fn record(environment: &[(&str, &[u8])], log: impl FnOnce()) -> String {
        let records = JsonRecords::new(|name| {
            let (_, value) = environment.iter().find(|(variable, _)| *variable == name)?;
            Some(OsString::from_vec(value.to_vec()))
        });
        let written = Written::default();
        let subscriber = tracing_subscriber::fmt().event_format(records);
        tracing::subscriber::with_default(subscriber.with_writer(written.clone()).finish(), log);
        let bytes = written.0.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn a_record_says_where_the_process_runs_as_far_as_that_is_known() {
        let environment: [(&str, &[u8]); 3] =
            [("POD_NAME", b"zmq-echo-7f9c-x2x4z"), ("NODE_NAME", b""), ("HOSTNAME", b"h")];
        let text = record(&environment, || {
            let _span = tracing::info_span!("flat", question = "?").entered();
            tracing::info!(answer = 42, "asked");
        });
        let record: BTreeMap<String, Value> = serde_json::from_str(&text).unwrap();
        let fields: Vec<_> = record.keys().map(String::as_str).collect();
        assert_eq!(fields, ["answer", "level", "message", "pod", "target", "timestamp"]);
        assert_eq!(record["pod"], "zmq-echo-7f9c-x2x4z");
        assert!(text.starts_with("{\"timestamp\":\"") && text.ends_with("}\n"), "{text}");
    }

    #[test]
    fn a_record_is_valid_and_not_too_long_whatever_the_environment_and_the_event() {
        let long = b"\x01\"\n\\".repeat(100_000);
        let environments: [&[(&str, &[u8])]; 3] = [
            &[],
            &[("POD_NAME", b"\"},{\n"), ("POD_NAMESPACE", b"\xff\x1b[31m"), ("NODE_NAME", b"{")],
            &[("POD_NAME", &long), ("POD_NAMESPACE", &long), ("NODE_NAME", &long)],
        ];
        let texts = [String::new(), "\u{1}".repeat(2_700), "\n\"❤".repeat(100_000)];
        for environment in environments {
            for text in &texts {
                let line = record(environment, || {
                    tracing::info!(first = &**text, count = 7, second = &**text, "long");
                });
                assert_eq!(line.matches('\n').count(), 1, "{line}");
                assert!(line.len() <= RECORD_LIMIT, "{} bytes", line.len());
                let record: Value = serde_json::from_str(&line).unwrap();
                assert_eq!(record["message"], "long");
                assert_eq!(record["count"], 7);
                for field in ["first", "second"] {
                    let kept = record[field].as_str().unwrap();
                    assert!(text.starts_with(kept.trim_end_matches(CUT)), "{line}");
                    assert_eq!(kept.ends_with(CUT), kept.trim_end_matches(CUT) != text);
                    // A text is cut only if the record would be too long otherwise.
                    assert!(kept == text || line.len() > RECORD_LIMIT / 2, "{}", line.len());
                }
                for (variable, field) in PLACE {
                    let set = environment.iter().any(|(name, _)| *name == variable);
                    assert_eq!(record[field].is_string(), set, "{line}");
                }
            }
        }
    }
}
