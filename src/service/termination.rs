//! SIGTERM and SIGINT as a byte in a socket that the poll loop reads like any other, and the
//! watchdog that ends the process if the loop cannot.

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

/// The signals that start a drain, with their names.
const SIGNALS: [(i32, &str); 2] = [(SIGTERM, "SIGTERM"), (SIGINT, "SIGINT")];

/// The receivers of this process's signals, once [`Termination::register`] has set the handlers.
#[derive(Debug)]
pub struct Termination {
    /// For the poll loop.
    pub socket: TerminationSocket,
    /// Start it with [`Watchdog::spawn`].
    pub watchdog: Watchdog,
}

/// The socket in which a byte arrives when the process should end. It is the read end of a
/// self-pipe (<https://cr.yp.to/docs/selfpipe.html>).
#[derive(Debug)]
pub struct TerminationSocket {
    stream: UnixStream,
    signal: Arc<AtomicUsize>,
    signalled_at: Arc<OnceLock<Instant>>,
}

/// The signal that sent the byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Signal {
    /// `SIGTERM` or `SIGINT`, or `other` if no signal sent the byte.
    pub name: &'static str,
    /// When the watchdog or the loop first saw it. The drain timeout starts here, even if the
    /// loop sees it late.
    pub at: Instant,
}

impl Termination {
    /// Registers the signal handlers. Call it before anything is bound or spawned: a signal that
    /// comes earlier kills the process without a drain.
    ///
    /// The first signal writes a byte. A second signal of either kind ends the process from
    /// within the signal handler, with 128 plus its number, so it works even if every thread is
    /// stuck.
    ///
    /// # Errors
    ///
    /// The kernel's error, most likely that no file descriptors are left.
    pub fn register() -> io::Result<Self> {
        let (socket, socket_writer) = UnixStream::pair()?;
        let (watchdog, watchdog_writer) = UnixStream::pair()?;
        let signalled = Arc::new(AtomicBool::new(false));
        let which = Arc::new(AtomicUsize::new(0));
        let signalled_at = Arc::new(OnceLock::new());
        for (signal, _) in SIGNALS {
            // Actions run in the order in which they are registered. This one comes first,
            // because it must see the flag as the previous signal left it.
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
    /// A socket that receives its byte from the other end of `stream` instead of a signal. Use it
    /// to run a poll loop inside another program.
    pub fn new(stream: UnixStream) -> Self {
        Self { stream, signal: Arc::default(), signalled_at: Arc::default() }
    }

    /// Registers the socket with the current runtime.
    ///
    /// # Errors
    ///
    /// The kernel's error for the descriptor.
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
    /// Waits for the byte. The end of the stream counts as a byte, because without a writer
    /// nothing could end the loop any more.
    ///
    /// Cancel-safe, because a read from a socket is.
    ///
    /// # Errors
    ///
    /// The kernel's error for the descriptor.
    pub async fn recv(&mut self) -> io::Result<Signal> {
        let _byte_or_end = self.stream.read(&mut [0]).await?;
        let which = self.signal.load(Ordering::SeqCst);
        let name = SIGNALS.iter().find(|(signal, _)| *signal as usize == which);
        let at = *self.signalled_at.get_or_init(Instant::now);
        Ok(Signal { name: name.map_or("other", |(_, name)| name), at })
    }
}

/// Ends the process if it is still running at the drain timeout, because a handler does not
/// return, a socket waits forever, or nobody reads the log. The orchestrator would do the same
/// with SIGKILL, but later and without a log record.
#[derive(Debug)]
pub struct Watchdog {
    stream: UnixStream,
    signalled_at: Arc<OnceLock<Instant>>,
    exit: WatchdogExit,
}

/// The exit code that the watchdog uses: [`Exit::Deadline`], until the loop has ended and sets its
/// own.
#[derive(Debug, Clone)]
pub struct WatchdogExit(Arc<AtomicU8>);

impl Default for WatchdogExit {
    fn default() -> Self {
        Self(Arc::new(AtomicU8::new(Exit::Deadline.code())))
    }
}

impl WatchdogExit {
    /// Sets the code. Call it when the loop has ended and only the exit is left.
    pub fn set(&self, exit: Exit) {
        self.0.store(exit.code(), Ordering::SeqCst);
    }
}

impl Watchdog {
    /// Starts the thread that waits for the signal and then for the timeout. Call it before
    /// anything that may take long, such as resolving a name.
    ///
    /// # Errors
    ///
    /// If the thread cannot be started.
    pub fn spawn(mut self, policy: DrainPolicy, logs: Logs) -> io::Result<WatchdogExit> {
        let exit = self.exit.clone();
        thread::Builder::new().name("watchdog".to_owned()).spawn(move || {
            if self.stream.read_exact(&mut [0]).is_err() {
                return;
            }
            let signalled_at = *self.signalled_at.get_or_init(Instant::now);
            let patience = policy.timeout - policy.watchdog_margin();
            thread::sleep(patience.saturating_sub(signalled_at.elapsed()));
            let code = self.exit.0.load(Ordering::SeqCst);
            let timeout = policy.timeout.as_secs_f64();
            error!(timeout, code, "stuck at the drain deadline: exiting");
            logs.flush(policy.watchdog_margin());
            std::process::exit(code.into());
        })?;
        Ok(exit)
    }
}
