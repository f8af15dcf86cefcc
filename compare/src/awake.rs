//! Keeps a CPU from sleeping. On a virtual machine it takes longer to wake one than
//! to echo a message, and a server that burns its CPU while it waits would look the
//! faster for it.

use std::io::Read;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result};

use crate::pin;

/// A process of idle priority (sched(7), SCHED_IDLE) that spins on one CPU: it runs
/// where nothing else wants to. It ends with this value.
#[derive(Debug)]
pub struct Awake(Child);

impl Awake {
    /// Starts it, by chrt(1) of util-linux.
    ///
    /// # Errors
    ///
    /// Where it cannot be started.
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

/// Spins until stdin ends, which it does with the process that has started this one.
pub fn spin() -> ! {
    std::thread::spawn(|| {
        let _ = std::io::stdin().read(&mut [0]);
        std::process::exit(0);
    });
    loop {
        std::hint::spin_loop();
    }
}
