//! How the run is going, on stderr: a bar on a terminal, otherwise a line every few seconds.

use std::io::{self, IsTerminal, Write};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::recorder::Slice;
use super::result::time;

/// How often the bar is redrawn: as often as people can read the figures.
const REDRAW: Duration = Duration::from_millis(500);

/// How often a line is written if stderr is not a terminal.
const LINE: Duration = Duration::from_secs(5);

/// Shows the progress of a run.
#[derive(Debug, Clone)]
pub struct Progress {
    bar: Option<ProgressBar>,
}

/// The figures that the progress shows.
#[derive(Debug, Clone, Copy)]
pub struct Look {
    /// Time since the start.
    pub elapsed: Duration,
    /// What happened since the figures were last shown.
    pub recent: Slice,
    /// The time since then.
    pub period: Duration,
    /// Requests that have failed since the start.
    pub failed: u64,
    /// Endpoints that get requests.
    pub endpoints: usize,
}

impl Progress {
    /// Shows a bar if stderr is a terminal, otherwise lines.
    pub fn new(duration: Duration) -> Self {
        let bar = io::stderr().is_terminal().then(|| {
            let milliseconds = duration.as_millis() as u64;
            let target = ProgressDrawTarget::stderr_with_hz(20);
            let style = ProgressStyle::with_template("{bar:12.cyan/dim} {wide_msg}")
                .expect("a constant template");
            ProgressBar::with_draw_target(Some(milliseconds), target).with_style(style)
        });
        Self { bar }
    }

    /// How often to call [`Progress::show`].
    pub fn period(&self) -> Duration {
        if self.bar.is_some() { REDRAW } else { LINE }
    }

    /// Shows how the run is going.
    pub fn show(&self, look: &Look) {
        match &self.bar {
            Some(bar) => {
                bar.set_position(look.elapsed.as_millis() as u64);
                bar.set_message(look.line());
            }
            // A closed stderr must not end the run.
            None => drop(writeln!(io::stderr(), "{}", look.line())),
        }
    }

    /// Shows why the run has not started yet.
    pub fn show_waiting(&self, elapsed: Duration, reason: &str) {
        let line = format!("{:.1} s, waiting for an endpoint: {reason}", elapsed.as_secs_f64());
        match &self.bar {
            Some(bar) => bar.set_message(line),
            None => drop(writeln!(io::stderr(), "{line}")),
        }
    }

    /// Clears the bar.
    pub fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// Writes lines to stderr above the bar, such as log records.
impl Write for Progress {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &self.bar {
            Some(bar) => bar.suspend(|| io::stderr().write_all(bytes))?,
            None => io::stderr().write_all(bytes)?,
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

impl Look {
    fn line(&self) -> String {
        let rate = self.recent.answered as f64 / self.period.as_secs_f64().max(1e-3);
        let latency = match self.recent.latency {
            Some([p50, p99, _]) => {
                [p50, p99].map(|ns| time(Duration::from_nanos(ns).as_secs_f64()))
            }
            None => ["-", "-"].map(str::to_owned),
        };
        format!(
            "{:.1} s, {rate:.0}/s, p50 {}, p99 {}, failed {}, endpoints {}",
            self.elapsed.as_secs_f64(),
            latency[0],
            latency[1],
            self.failed,
            self.endpoints,
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_shows_rate_latency_failures_and_endpoints() {
        let mut look = Look {
            elapsed: Duration::from_secs(10),
            recent: Slice {
                answered: 25_000,
                failed: 1,
                latency: Some([80_000, 1_200_000, 9_000_000]),
            },
            period: Duration::from_secs(5),
            failed: 3,
            endpoints: 2,
        };
        let line = "10.0 s, 5000/s, p50 80.0 µs, p99 1.20 ms, failed 3, endpoints 2";
        assert_eq!(look.line(), line);
        look.recent = Slice { answered: 0, failed: 0, latency: None };
        assert_eq!(look.line(), "10.0 s, 0/s, p50 -, p99 -, failed 3, endpoints 2");
    }
}
