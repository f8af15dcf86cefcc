//! SIGTERM and SIGINT as a byte in a socket that the poll loop reads like any
//! other, and the watchdog that ends the process where the loop cannot.

use std::io::{self, Read};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::Instant;

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::{flag, low_level};
use tokio::io::AsyncReadExt;
use tracing::error;

use crate::exit::Exit;
use crate::log::Logs;
use crate::service::drain::DrainPolicy;

/// The signals that ask for a drain, with their names.
const SIGNALS: [(i32, &str); 2] = [(SIGTERM, "SIGTERM"), (SIGINT, "SIGINT")];

/// The signals of this process, from [`Termination::register`] on.
#[derive(Debug)]
pub struct Termination {
    /// The poll loop's end.
    pub socket: TerminationSocket,
    /// The watchdog's end.
    pub watchdog: Watchdog,
}

/// The socket in which a byte arrives when the process is to end: the read end of
/// a self-pipe (<https://cr.yp.to/docs/selfpipe.html>).
#[derive(Debug)]
pub struct TerminationSocket {
    stream: UnixStream,
    signal: Arc<AtomicUsize>,
    signalled_at: Arc<OnceLock<Instant>>,
}

/// What the byte stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Signal {
    /// Its name, or `other` where no signal sent the byte.
    pub name: &'static str,
    /// When it came. The loop may hear of it late, and the timeout runs from here.
    pub at: Instant,
}

impl Termination {
    /// Registers the handlers. Call it before anything is bound or spawned: a
    /// signal that comes before it kills the process the hard way.
    ///
    /// The first signal writes a byte. A second one, of either kind, ends the
    /// process from within the signal handler with 128 + its number, so that it
    /// works even where every thread is stuck.
    ///
    /// # Errors
    ///
    /// What the kernel says: no descriptors left, mostly.
    pub fn register() -> io::Result<Self> {
        let (socket, socket_writer) = UnixStream::pair()?;
        let (watchdog, watchdog_writer) = UnixStream::pair()?;
        let signalled = Arc::new(AtomicBool::new(false));
        let which = Arc::new(AtomicUsize::new(0));
        let signalled_at = Arc::new(OnceLock::new());
        for (signal, _) in SIGNALS {
            // Actions run in the order of their registration: this one must see
            // the flag as the signal before left it.
            flag::register_conditional_shutdown(signal, 128 + signal, Arc::clone(&signalled))?;
            flag::register(signal, Arc::clone(&signalled))?;
            flag::register_usize(signal, Arc::clone(&which), signal as usize)?;
            low_level::pipe::register(signal, socket_writer.try_clone()?)?;
            low_level::pipe::register(signal, watchdog_writer.try_clone()?)?;
        }
        Ok(Self {
            socket: TerminationSocket {
                stream: socket,
                signal: which,
                signalled_at: Arc::clone(&signalled_at),
            },
            watchdog: Watchdog { stream: watchdog, signalled_at, exit: WatchdogExit::default() },
        })
    }
}

impl TerminationSocket {
    /// A socket that gets its byte from whoever holds the other end of `stream`,
    /// for those who run a poll loop inside a process of their own.
    pub fn new(stream: UnixStream) -> Self {
        Self { stream, signal: Arc::default(), signalled_at: Arc::default() }
    }

    /// Hands the socket to the current runtime.
    ///
    /// # Errors
    ///
    /// What the kernel says of the descriptor.
    pub fn into_async(self) -> io::Result<AsyncTermination> {
        self.stream.set_nonblocking(true)?;
        Ok(AsyncTermination {
            stream: tokio::net::UnixStream::from_std(self.stream)?,
            signal: self.signal,
            signalled_at: self.signalled_at,
        })
    }
}

/// A [`TerminationSocket`] on a runtime.
#[derive(Debug)]
pub struct AsyncTermination {
    stream: tokio::net::UnixStream,
    signal: Arc<AtomicUsize>,
    signalled_at: Arc<OnceLock<Instant>>,
}

impl AsyncTermination {
    /// Waits for the byte. A closed socket counts as one: nobody is left to ask for
    /// the end.
    ///
    /// Cancel-safe, because reading from a socket is.
    ///
    /// # Errors
    ///
    /// What the kernel says of the descriptor.
    pub async fn recv(&mut self) -> io::Result<Signal> {
        let _byte_or_end = self.stream.read(&mut [0]).await?;
        let which = self.signal.load(Ordering::SeqCst);
        let name = SIGNALS.iter().find(|(signal, _)| *signal as usize == which);
        let at = *self.signalled_at.get_or_init(Instant::now);
        Ok(Signal { name: name.map_or("other", |(_, name)| name), at })
    }
}

/// Ends the process when the drain timeout has passed and it still runs: a
/// handler that does not return, a socket that waits for ever, a log whose reader
/// has stopped. The orchestrator would do the same with SIGKILL, later and without
/// a word.
#[derive(Debug)]
pub struct Watchdog {
    stream: UnixStream,
    signalled_at: Arc<OnceLock<Instant>>,
    exit: WatchdogExit,
}

/// The exit code that the watchdog uses: that of a missed deadline until the loop
/// has said better.
#[derive(Debug, Clone)]
pub struct WatchdogExit(Arc<AtomicU8>);

impl Default for WatchdogExit {
    fn default() -> Self {
        Self(Arc::new(AtomicU8::new(Exit::Deadline.code())))
    }
}

impl WatchdogExit {
    /// The loop has ended like this; only the way out is left.
    pub fn set(&self, exit: Exit) {
        self.0.store(exit.code(), Ordering::SeqCst);
    }
}

impl Watchdog {
    /// Starts the thread that waits for the signal and then for the timeout. Call it
    /// before anything that may take long, as resolving a name does.
    ///
    /// # Errors
    ///
    /// Where no thread can be started.
    pub fn spawn(mut self, policy: DrainPolicy, logs: Logs) -> io::Result<WatchdogExit> {
        let exit = self.exit.clone();
        thread::Builder::new().name("watchdog".to_owned()).spawn(move || {
            if self.stream.read_exact(&mut [0]).is_err() {
                return;
            }
            let signalled_at = *self.signalled_at.get_or_init(Instant::now);
            let patience = policy.timeout - policy.last_words();
            thread::sleep(patience.saturating_sub(signalled_at.elapsed()));
            let code = self.exit.0.load(Ordering::SeqCst);
            let timeout = policy.timeout.as_secs_f64();
            error!(timeout, code, "stuck at the drain deadline: leaving");
            logs.flush(policy.last_words());
            std::process::exit(code.into());
        })?;
        Ok(exit)
    }
}
