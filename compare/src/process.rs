//! A server or a client in its own process, with the CPU time and memory that the kernel reports.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};

/// How long a server may take to print its address.
const START: Duration = Duration::from_secs(10);

/// A running server. Dropping it kills the process if it is still running.
#[derive(Debug)]
pub struct Server {
    child: Child,
    /// The address that it listens on.
    pub address: SocketAddr,
    /// The line of its output that contains the address.
    pub announcement: String,
}

impl Server {
    /// Starts `command` and waits for a line on stdout with `tcp://IP:PORT` in it.
    ///
    /// # Errors
    ///
    /// If it cannot be started, ends, or prints no address in time.
    pub fn start(mut command: Command) -> Result<Self> {
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("starting {command:?}"))?;
        let stdout = child.stdout.take().expect("stdout is a pipe");
        let lines = read_lines(stdout);
        match announcement(&lines) {
            Ok((address, announcement)) => Ok(Self { child, address, announcement }),
            Err(error) => {
                let _ = child.kill();
                let _ = child.wait();
                Err(error.context(format!("{command:?}")))
            }
        }
    }

    /// `tcp://IP:PORT`.
    pub fn endpoint(&self) -> String {
        format!("tcp://{}", self.address)
    }

    /// The server's process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The CPU time of all its threads.
    ///
    /// # Errors
    ///
    /// If the process has ended.
    pub fn cpu_time(&self) -> Result<Duration> {
        cpu_time(self.pid())
    }

    /// Resident memory in bytes.
    ///
    /// # Errors
    ///
    /// If the process has ended.
    pub fn resident(&self) -> Result<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kib: u64 = line
            .and_then(|line| line.trim().strip_suffix(" kB"))
            .context("the status of the process has no VmRSS")?
            .parse()?;
        Ok(kib << 10)
    }

    /// Sends SIGTERM and waits until the server has ended.
    ///
    /// # Errors
    ///
    /// If it is still running after `limit`.
    pub fn terminate(mut self, limit: Duration) -> Result<ExitStatus> {
        let pid = Pid::from_child(&self.child);
        kill_process(pid, Signal::TERM).context("sending SIGTERM")?;
        ended_within(&mut self.child, limit)?
            .with_context(|| format!("the server was still running {limit:?} after SIGTERM"))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The CPU time of all threads of a process.
///
/// # Errors
///
/// If there is no such process.
pub fn cpu_time(pid: u32) -> Result<Duration> {
    let mut nanoseconds = 0;
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        let schedstat = fs::read_to_string(task?.path().join("schedstat"))?;
        let on_cpu = schedstat.split(' ').next().context("schedstat is empty")?;
        nanoseconds += on_cpu.parse::<u64>()?;
    }
    Ok(Duration::from_nanos(nanoseconds))
}

/// Runs a command and returns its stdout, which must fit into a pipe.
///
/// # Errors
///
/// If it cannot be started, does not end within `limit`, or fails. In the last case the error
/// includes its stderr.
pub fn output(mut command: Command, limit: Duration) -> Result<String> {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("starting {command:?}"))?;
    let status = ended_within(&mut child, limit)?;
    let output = child.wait_with_output()?;
    match status {
        None => bail!("no result within {limit:?}"),
        Some(status) if status.success() => Ok(String::from_utf8(output.stdout)?),
        Some(status) => bail!("{status}: {}", String::from_utf8_lossy(&output.stderr).trim()),
    }
}

/// The exit status of `child`, or `None` if it was killed after `limit`.
fn ended_within(child: &mut Child, limit: Duration) -> Result<Option<ExitStatus>> {
    let deadline = Instant::now() + limit;
    while Instant::now() < deadline {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        thread::sleep(Duration::from_millis(5));
    }
    child.kill()?;
    Ok(None)
}

/// The lines that a server prints. They are read to the end even if nothing receives them, because
/// a full pipe would block the server during a measurement.
fn read_lines(stdout: impl Read + Send + 'static) -> Receiver<String> {
    let (sender, lines) = channel();
    thread::spawn(move || {
        for line in BufReader::new(stdout).lines().map_while(Result::ok) {
            let _ = sender.send(line);
        }
    });
    lines
}

fn announcement(lines: &Receiver<String>) -> Result<(SocketAddr, String)> {
    let deadline = Instant::now() + START;
    loop {
        match lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(line) => {
                if let Some(address) = address_in(&line) {
                    return Ok((address, line));
                }
            }
            Err(RecvTimeoutError::Timeout) => bail!("the server did not print its address in time"),
            Err(RecvTimeoutError::Disconnected) => {
                bail!("the server exited without printing its address")
            }
        }
    }
}

/// The address in the first `tcp://IP:PORT` of a line, which may be JSON or text.
fn address_in(line: &str) -> Option<SocketAddr> {
    let (_, rest) = line.split_once("tcp://")?;
    let end = rest.find(|c: char| !c.is_ascii_digit() && !matches!(c, '.' | ':'));
    rest[..end.unwrap_or(rest.len())].parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_address_is_found_in_text_and_in_json() {
        let address = Some("127.0.0.1:5555".parse().unwrap());
        assert_eq!(address_in("listening endpoint=tcp://127.0.0.1:5555 pid=1"), address);
        assert_eq!(address_in(r#"{"endpoint":"tcp://127.0.0.1:5555","pid":1}"#), address);
        assert_eq!(address_in("nothing of the kind"), None);
    }
}
