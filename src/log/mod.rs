//! One record per line on stdout, panics included, written without ever blocking the service.
//!
//! Records are formatted by the thread that logs them and handed to one thread that writes them. If
//! nobody reads stdout, only the writing thread stops: the queue fills up to [`QUEUE_BYTES`],
//! further records are dropped and counted, and requests are unaffected.
//!
//! (tracing-appender does the same, but prints to stdout if it cannot shut down. That hangs the
//! process in exactly the case that this module is for.)

mod record;

use std::backtrace::Backtrace;
use std::cell::Cell;
use std::error::Error;
use std::io::{self, IsTerminal, Write};
use std::panic::{AssertUnwindSafe, PanicHookInfo, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use clap::ValueEnum;
use prometheus::IntCounter;
use tracing::error;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;
use zmtp::printable;

use crate::exit;
use crate::metrics;

pub use self::record::{CUT, PLACE, POD_NAME, RECORD_LIMIT};
use self::record::{JsonRecords, clip};

/// Memory for records that wait to be written. It holds about a second of a busy debug log: 4,000
/// records of the usual 200 bytes, or 60 of the longest.
pub const QUEUE_BYTES: usize = 1 << 20;

/// Memory that a record takes in the queue in addition to its text: its slot and the allocator's
/// overhead.
const RECORD_OVERHEAD: usize = 64;

/// How long a process that is about to end waits for its last records to be written.
pub const FLUSH_LIMIT: Duration = Duration::from_millis(500);

/// The most bytes that a panic's message and its backtrace take in a record. Without these limits
/// a long message would take room from the backtrace within [`RECORD_LIMIT`].
const PANIC_MESSAGE_LIMIT: usize = 2 << 10;
const PANIC_BACKTRACE_LIMIT: usize = 12 << 10;

/// A handle to the log: the records that wait to be written, and the count of those dropped.
#[derive(Debug, Clone)]
pub struct Logs {
    queue: Sender<Vec<u8>>,
    /// Bytes of the records that are not written yet.
    waiting: Arc<AtomicUsize>,
    dropped: IntCounter,
}

/// How log records are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// Text on a terminal, JSON otherwise
    Auto,
    /// One JSON object per line
    Json,
    /// Lines for people
    Text,
}

impl LogFormat {
    /// Whether to write JSON, given whether stdout is a terminal.
    pub fn is_json(self, terminal: bool) -> bool {
        match self {
            LogFormat::Auto => !terminal,
            LogFormat::Json => true,
            LogFormat::Text => false,
        }
    }
}

/// Writes the log of this process to stdout. A panic is recorded and then ends the process,
/// whatever thread it is in, unless [`caught`] returns it.
///
/// # Errors
///
/// If the writing thread cannot be started.
pub fn init(filter: EnvFilter, format: LogFormat) -> io::Result<Logs> {
    init_to(io::stdout(), io::stdout().is_terminal(), filter, format)
}

/// Like [`init`], but writes to `stream`, for a program that writes its result to stdout.
/// `terminal` says whether the stream is a terminal.
///
/// # Errors
///
/// If the writing thread cannot be started.
pub fn init_to(
    stream: impl Write + Send + 'static,
    terminal: bool,
    filter: EnvFilter,
    format: LogFormat,
) -> io::Result<Logs> {
    let logs = Logs::spawn(stream)?;
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(logs.clone());
    if format.is_json(terminal) {
        builder.event_format(JsonRecords::new(|variable| std::env::var_os(variable))).init();
    } else {
        builder.with_ansi(terminal && !colour_is_unwanted()).init();
    }
    let last = logs.clone();
    let to_stderr = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        // Makes room in the queue for the record of this panic.
        last.flush(FLUSH_LIMIT / 2);
        let dropped = last.dropped.get();
        record_panic(panic);
        last.flush(FLUSH_LIMIT / 2);
        if last.dropped.get() > dropped || !shows_errors() {
            to_stderr(panic);
        }
        // Without the thread the service cannot go on, so its supervisor has to start another
        // process.
        if !CATCHES.get() {
            std::process::exit(exit::PANIC.into());
        }
    }));
    Ok(logs)
}

thread_local! {
    /// Whether this thread survives a panic, so that the panic is only recorded.
    static CATCHES: Cell<bool> = const { Cell::new(false) };
}

/// Runs `work`. A panic in it is recorded like any other and returned, instead of ending the
/// process. After a panic, do not use anything that `work` changes: it may be half changed.
///
/// # Errors
///
/// The panic.
pub fn caught<T>(work: impl FnOnce() -> T) -> thread::Result<T> {
    let before = CATCHES.replace(true);
    let result = catch_unwind(AssertUnwindSafe(work));
    CATCHES.set(before);
    result
}

/// Records why the process cannot start. If a filter keeps that out of the log, it goes to stderr.
pub fn cannot_start(error: &dyn Error) {
    let error = chain(error);
    if shows_errors() {
        error!(error, "cannot start");
    } else {
        let _ = writeln!(io::stderr(), "cannot start: {error}");
    }
}

/// Records why the process cannot go on serving. If a filter keeps that out of the log, it goes to
/// stderr.
pub fn cannot_continue(error: &dyn Error) {
    let error = chain(error);
    if shows_errors() {
        error!(error, "cannot continue");
    } else {
        let _ = writeln!(io::stderr(), "cannot continue: {error}");
    }
}

/// Whether the filter lets an error of this module through.
fn shows_errors() -> bool {
    tracing::enabled!(tracing::Level::ERROR)
}

/// See <https://no-color.org>.
fn colour_is_unwanted() -> bool {
    std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty())
}

/// An error with everything that caused it, in one printable line. A cause that the text already
/// contains is not repeated.
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text.push_str(&format!(": {more}"));
        }
        cause = error.source();
    }
    printable(&text).into_owned()
}

impl Logs {
    fn spawn(stdout: impl Write + Send + 'static) -> io::Result<Self> {
        let (queue, records) = channel();
        let logs = Self { queue, waiting: Arc::default(), dropped: metrics::log_records_dropped() };
        let writer = logs.clone();
        thread::Builder::new()
            .name("log".to_owned())
            .spawn(move || write_records(stdout, &records, &writer.waiting, &writer.dropped))?;
        Ok(logs)
    }

    /// The counter of dropped records, for a registry.
    pub fn dropped(&self) -> IntCounter {
        self.dropped.clone()
    }

    /// Waits until everything logged so far is written, but no longer than `limit`.
    pub fn flush(&self, limit: Duration) {
        let deadline = Instant::now() + limit;
        while self.waiting.load(Ordering::Acquire) > 0 && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(1));
        }
    }
}

fn write_records(
    mut stdout: impl Write,
    records: &Receiver<Vec<u8>>,
    waiting: &AtomicUsize,
    dropped: &IntCounter,
) {
    for record in records {
        if stdout.write_all(&record).and_then(|()| stdout.flush()).is_err() {
            dropped.inc();
        }
        waiting.fetch_sub(size(&record), Ordering::Release);
    }
}

/// The memory that a record takes in the queue.
fn size(record: &[u8]) -> usize {
    record.len() + RECORD_OVERHEAD
}

/// Puts a record into the queue, or drops it if the queue is full. The formatter writes each record
/// with one call.
impl Write for &Logs {
    fn write(&mut self, record: &[u8]) -> io::Result<usize> {
        let size = size(record);
        let with_it = |waiting: usize| Some(waiting + size).filter(|sum| *sum <= QUEUE_BYTES);
        let reserved = self.waiting.fetch_update(Ordering::Acquire, Ordering::Relaxed, with_it);
        if reserved.is_err() {
            self.dropped.inc();
        } else if self.queue.send(record.to_vec()).is_err() {
            self.waiting.fetch_sub(size, Ordering::Release);
            self.dropped.inc();
        }
        Ok(record.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Logs {
    type Writer = &'a Logs;

    fn make_writer(&'a self) -> Self::Writer {
        self
    }
}

fn record_panic(panic: &PanicHookInfo<'_>) {
    let message = panic.payload_as_str().unwrap_or("the panic has no message");
    let location = panic.location().map(ToString::to_string).unwrap_or_default();
    let backtrace = Backtrace::force_capture().to_string();
    error!(
        panic = &*clip(message, PANIC_MESSAGE_LIMIT),
        location,
        backtrace = &*clip(&backtrace, PANIC_BACKTRACE_LIMIT),
        thread = thread::current().name().unwrap_or("unnamed"),
        "panicked"
    );
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::sync_channel;

    use super::*;

    #[test]
    fn the_documentation_states_the_limits() {
        let document = include_str!("../../docs/logs.md").replace('\n', " ");
        for limit in [
            format!("never longer than {} KiB", RECORD_LIMIT >> 10),
            format!("`node` ({} bytes)", record::NAME_LIMIT),
            format!("message ({} KiB)", PANIC_MESSAGE_LIMIT >> 10),
            format!("backtrace ({} KiB)", PANIC_BACKTRACE_LIMIT >> 10),
            format!("up to {} MiB of records wait", QUEUE_BYTES >> 20),
        ] {
            assert!(document.contains(&limit), "{limit}");
        }
    }

    /// A stream that nobody reads: each write waits for the gate.
    struct Gate(Receiver<()>);

    impl Write for Gate {
        fn write(&mut self, record: &[u8]) -> io::Result<usize> {
            let _ = self.0.recv();
            Ok(record.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// Writes more than twice as many records of `length` bytes as the queue holds, while nobody
    /// reads them. Returns how many were kept.
    fn kept(length: usize) -> usize {
        let (open, gate) = sync_channel(0);
        let logs = Logs::spawn(Gate(gate)).unwrap();
        let written = 2 * (QUEUE_BYTES / (length + RECORD_OVERHEAD) + 1);
        let record = vec![b'x'; length];
        for _ in 0..written {
            (&logs).write_all(&record).unwrap();
            assert!(logs.waiting.load(Ordering::Acquire) <= QUEUE_BYTES);
        }
        let kept = written - logs.dropped.get() as usize;
        logs.flush(Duration::from_millis(5));
        assert_eq!(logs.waiting.load(Ordering::Acquire), kept * (length + RECORD_OVERHEAD));
        drop(open);
        logs.flush(Duration::from_secs(60));
        assert_eq!(logs.waiting.load(Ordering::Acquire), 0);
        kept
    }

    #[test]
    fn if_nobody_reads_the_log_records_are_dropped_and_counted() {
        assert_eq!(kept(200), QUEUE_BYTES / (200 + RECORD_OVERHEAD));
    }

    #[test]
    fn the_queue_is_bounded_in_bytes_for_short_and_long_records() {
        for length in [1, RECORD_LIMIT] {
            assert_eq!(kept(length), QUEUE_BYTES / (length + RECORD_OVERHEAD));
        }
        assert_eq!(kept(QUEUE_BYTES), 0, "a record that is larger than the queue is dropped");
    }
}
