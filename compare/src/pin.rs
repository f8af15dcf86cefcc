//! One CPU for the server, another for the generator: what they would take from
//! each other must not be counted.

use std::thread;

use anyhow::{Context, Result, ensure};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// The CPUs of the two sides.
#[derive(Debug, Clone, Copy)]
pub struct Cpus {
    /// Everything that a server runs, its I/O threads included.
    pub server: usize,
    /// The generator's only thread.
    pub generator: usize,
}

impl Cpus {
    /// Checks that both are there for this process, and not the same.
    ///
    /// # Errors
    ///
    /// What would be right.
    pub fn check(self) -> Result<()> {
        let allowed = sched_getaffinity(None).context("asking for the CPUs of this process")?;
        let [server, generator] = [self.server, self.generator];
        ensure!(server != generator, "server and generator need a CPU each, and both got {server}");
        for cpu in [server, generator] {
            ensure!(allowed.is_set(cpu), "CPU {cpu} is not there for this process");
        }
        Ok(())
    }
}

/// Keeps the calling thread, and the threads and processes that it starts from
/// now on, on one CPU.
///
/// # Errors
///
/// What the kernel says.
pub fn to(cpu: usize) -> Result<()> {
    let mut only = CpuSet::new();
    only.set(cpu);
    sched_setaffinity(None, &only).with_context(|| format!("moving to CPU {cpu}"))
}

/// What `work` returns, which has run pinned to `cpu`; the calling thread stays
/// where it was.
///
/// # Errors
///
/// What [`to`] and `work` say.
pub fn scoped<T: Send>(cpu: usize, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    thread::scope(|scope| {
        let work = scope.spawn(move || {
            to(cpu)?;
            work()
        });
        work.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Raises this process's limit of open files as far as it may, for thousands of
/// connections here and in the servers, which inherit it.
///
/// # Errors
///
/// What the kernel says.
pub fn raise_open_files() -> Result<()> {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum })
        .context("raising the limit of open files")
}
