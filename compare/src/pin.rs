//! Pins the server to one CPU and the generator to another, so that neither slows the other down.

use std::thread;

use anyhow::{Context, Result, ensure};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// The CPUs of the two sides.
#[derive(Debug, Clone, Copy)]
pub struct Cpus {
    /// The CPU of all threads of a server, including its I/O threads.
    pub server: usize,
    /// The CPU of the generator's only thread.
    pub generator: usize,
}

impl Cpus {
    /// Checks that this process may use both CPUs, and that they differ.
    ///
    /// # Errors
    ///
    /// If it may not use one of them, or they are the same.
    pub fn check(self) -> Result<()> {
        let allowed = sched_getaffinity(None).context("asking for the CPUs of this process")?;
        let [server, generator] = [self.server, self.generator];
        ensure!(
            server != generator,
            "server and generator need different CPUs, and both got {server}"
        );
        for cpu in [server, generator] {
            ensure!(allowed.is_set(cpu), "CPU {cpu} is not available to this process");
        }
        Ok(())
    }
}

/// Pins the calling thread to one CPU, and with it the threads and processes that it starts later.
///
/// # Errors
///
/// If the kernel refuses.
pub fn to(cpu: usize) -> Result<()> {
    let mut only = CpuSet::new();
    only.set(cpu);
    sched_setaffinity(None, &only).with_context(|| format!("moving to CPU {cpu}"))
}

/// Runs `work` on a new thread that is pinned to `cpu`, and returns its result. The calling thread
/// is not pinned.
///
/// # Errors
///
/// If [`to`] or `work` fails.
pub fn scoped<T: Send>(cpu: usize, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    thread::scope(|scope| {
        let work = scope.spawn(move || {
            to(cpu)?;
            work()
        });
        work.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Raises this process's limit of open files to the maximum, for thousands of connections here and
/// in the servers, which inherit the limit.
///
/// # Errors
///
/// If the kernel refuses.
pub fn raise_open_files() -> Result<()> {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum })
        .context("raising the limit of open files")
}
