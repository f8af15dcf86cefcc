//! Keeps a CPU from sleeping. On a virtual machine, waking a CPU takes longer than echoing a
//! message, so a server that spins while it waits would look faster than it is.

use std::io::Read;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result};

use crate::pin;

/// A process with idle priority (sched(7), SCHED_IDLE) that spins on one CPU: it runs only when
/// nothing else needs that CPU. Dropping this value ends it.
#[derive(Debug)]
pub struct Awake(Child);

impl Awake {
    /// Starts the process through chrt(1) of util-linux.
    ///
    /// # Errors
    ///
    /// If it cannot be started.
    pub fn keep(cpu: usize) -> Result<Self> {
        let this = std::env::current_exe().context("asking for the path of this program")?;
        let mut command = Command::new("chrt");
        command.args(["--idle", "0"]).arg(this).arg("spin").stdin(Stdio::piped());
        let child = pin::scoped(cpu, || command.spawn().context("starting chrt, of util-linux"))?;
        Ok(Self(child))
    }
}

impl Drop for Awake {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Spins until stdin ends, which happens when the parent process ends.
pub fn spin() -> ! {
    std::thread::spawn(|| {
        let _ = std::io::stdin().read(&mut [0]);
        std::process::exit(0);
    });
    loop {
        std::hint::spin_loop();
    }
}
