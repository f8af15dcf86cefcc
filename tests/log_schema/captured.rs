//! Checks each record that this process's own code logs against docs/logs.md.

use std::cell::RefCell;
use std::io::{self, Write};
use std::sync::{Arc, Mutex, Once};

use serde_json::Value as Json;

use super::documented::assert_documented;

/// The records of this thread.
///
/// The subscriber is set for the whole process, because interest in a callsite is cached for all
/// threads at once. A subscriber for one thread would miss callsites that another thread reached
/// first.
pub struct Log(Arc<Mutex<Vec<u8>>>);

thread_local! {
    static LOG: RefCell<Arc<Mutex<Vec<u8>>>> = RefCell::default();
}

impl Log {
    pub fn capture() -> Self {
        static SUBSCRIBER: Once = Once::new();
        SUBSCRIBER.call_once(|| {
            let format = tracing_subscriber::fmt().json().flatten_event(true);
            let subscriber = format
                .with_current_span(false)
                .with_span_list(false)
                .with_env_filter("info,zmq_echo=debug")
                .with_writer(|| Writer(LOG.with_borrow(Arc::clone)))
                .finish();
            tracing::subscriber::set_global_default(subscriber)
                .expect("only this code sets a subscriber");
        });
        let text = Arc::default();
        LOG.set(Arc::clone(&text));
        Self(text)
    }

    /// The number of records at info or above, and how many of them contain this text.
    #[track_caller]
    pub fn count(&self, part: &str) -> (usize, usize) {
        let mut records = self.records();
        records.retain(|record| record["level"] != "DEBUG");
        let with_part = records.iter().filter(|record| record.to_string().contains(part));
        (records.len(), with_part.count())
    }

    /// Whether there is a record with this message.
    #[track_caller]
    pub fn has(&self, message: &str) -> bool {
        self.records().iter().any(|record| record["message"] == message)
    }

    #[track_caller]
    fn records(&self) -> Vec<Json> {
        let text = String::from_utf8(self.0.lock().unwrap().clone()).unwrap();
        let records: Vec<Json> =
            text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        records.iter().for_each(|record| assert_documented(record, false));
        records
    }
}

struct Writer(Arc<Mutex<Vec<u8>>>);

impl Write for Writer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
