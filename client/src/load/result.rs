//! The result of a run, as a table for people and as JSON for machines.

use std::fmt;
use std::time::{Duration, SystemTime};

use hdrhistogram::Histogram;
use serde::Serialize;

use super::config::LoadConfig;
use super::recorder::{Recorder, Slice, What};
use zmq_echo::exit::Exit;

/// How many nines the percentile curve goes to. 1,000,000 requests are needed for six.
const NINES: u32 = 6;

/// Points on the curve for each nine.
const POINTS: u32 = 10;

/// The result of a run. All times are in seconds.
#[derive(Debug, Clone, Serialize)]
pub struct LoadResult {
    /// The command line of the run.
    pub command: String,
    /// When the run started, in RFC 3339 format.
    pub started: String,
    /// Time from the first request to the last reply.
    pub elapsed: f64,
    /// Whether a signal ended it early.
    pub interrupted: bool,
    /// Target rate in requests per second. `None` if it was the maximum.
    pub rate: Option<u32>,
    /// Answered requests per second.
    pub achieved_rate: f64,
    /// Requests that were due, including those that were never sent.
    pub due: u64,
    /// Requests that were sent.
    pub sent: u64,
    /// Requests with a correct reply.
    pub answered: u64,
    /// Attempts beyond the first of each request.
    pub retried: u64,
    /// Requests that failed.
    pub failed: u64,
    /// Failed requests by reason.
    pub failures: Vec<Failure>,
    /// How many requests may fail in a successful run.
    pub max_failures: u64,
    /// The longest queue of requests that were due but not sent, because all slots were taken.
    pub most_waiting: u64,
    /// Time from when a request was due to its reply, for answered requests.
    pub latency: Latency,
    /// Time from when a request was sent to its reply: what a generator that waits for replies
    /// would report.
    pub from_sending: Latency,
    /// How late this process noticed that a request was due.
    pub lateness: Latency,
    /// Every endpoint that the source listed, with its share of the replies.
    pub endpoints: Vec<Share>,
    /// When endpoints appeared and left.
    pub changes: Vec<Change>,
    /// Latency by percentile.
    pub curve: Vec<Point>,
    /// The length of a timeline slice.
    pub slice: f64,
    /// The run, cut into slices.
    pub timeline: Vec<TimelineSlice>,
}

/// The number of requests that failed for one reason.
#[derive(Debug, Clone, Serialize)]
pub struct Failure {
    /// The reason, from a closed set.
    pub kind: &'static str,
    /// The number of requests.
    pub count: u64,
}

/// A distribution of times.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
#[allow(missing_docs, reason = "the names are self-explanatory")]
pub struct Latency {
    pub min: f64,
    pub mean: f64,
    pub p50: f64,
    pub p90: f64,
    pub p99: f64,
    pub p99_9: f64,
    pub p99_99: f64,
    pub max: f64,
}

/// One endpoint's share of the replies.
#[derive(Debug, Clone, Serialize)]
pub struct Share {
    /// The endpoint.
    pub endpoint: String,
    /// Requests that it answered.
    pub answered: u64,
    /// Its share of all answered requests, from 0 to 1.
    pub share: f64,
    /// Why it was not usable at the end of the run. `None` if it was, or if it had been removed.
    pub last_failure: Option<String>,
}

/// An endpoint that came or went.
#[derive(Debug, Clone, Serialize)]
pub struct Change {
    /// Seconds since the start.
    pub at: f64,
    /// The endpoint.
    pub endpoint: String,
    /// `came`, `draining` or `gone`.
    pub what: &'static str,
}

/// A point of the percentile curve.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Point {
    /// A fraction of all requests, from 0 to 1.
    pub quantile: f64,
    /// The latency within which this fraction was answered.
    pub latency: f64,
    /// The same, measured from when the requests were sent.
    pub from_sending: f64,
}

/// A slice of the timeline.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct TimelineSlice {
    /// Requests answered in it.
    pub answered: u64,
    /// Requests failed in it.
    pub failed: u64,
    /// The median latency of those answered.
    pub p50: Option<f64>,
    /// The 99th percentile.
    pub p99: Option<f64>,
    /// The maximum latency.
    pub max: Option<f64>,
}

fn seconds(nanoseconds: u64) -> f64 {
    Duration::from_nanos(nanoseconds).as_secs_f64()
}

impl LoadResult {
    /// The result of what `recorder` has counted in a run that lasted `elapsed`.
    pub fn new(
        config: &LoadConfig,
        command: String,
        started: SystemTime,
        elapsed: Duration,
        interrupted: bool,
        recorder: &mut Recorder,
    ) -> Self {
        let timeline = recorder.timeline();
        let slice = timeline.width.as_secs_f64();
        let timeline = timeline.slices.iter().map(TimelineSlice::from).collect();
        Self {
            command,
            started: humantime::format_rfc3339_seconds(started).to_string(),
            elapsed: elapsed.as_secs_f64(),
            interrupted,
            rate: config.rate.per_second(),
            achieved_rate: recorder.answered as f64 / elapsed.as_secs_f64().max(f64::MIN_POSITIVE),
            due: recorder.answered + recorder.failures(),
            sent: recorder.sent,
            answered: recorder.answered,
            retried: recorder.retried,
            failed: recorder.failures(),
            failures: failures(recorder),
            max_failures: config.max_failures.into(),
            most_waiting: recorder.most_waiting,
            latency: Latency::from(&recorder.latency),
            from_sending: Latency::from(&recorder.from_sending),
            lateness: Latency::from(&recorder.lateness),
            endpoints: shares(recorder),
            changes: changes(recorder),
            curve: curve(&recorder.latency, &recorder.from_sending),
            slice,
            timeline,
        }
    }

    /// Whether no more requests failed than may fail.
    pub fn is_success(&self) -> bool {
        self.failed <= self.max_failures
    }

    /// The exit code for this result.
    pub fn exit(&self) -> Exit {
        match (self.is_success(), self.interrupted) {
            (false, _) => Exit::Failed,
            (true, true) => Exit::Interrupted,
            (true, false) => Exit::Success,
        }
    }

    /// The result as one line of JSON.
    pub fn json(&self) -> String {
        serde_json::to_string(self).expect("it contains only numbers, strings and lists of them")
    }
}

fn failures(recorder: &Recorder) -> Vec<Failure> {
    recorder.failed.iter().map(|(&kind, &count)| Failure { kind, count }).collect()
}

fn shares(recorder: &Recorder) -> Vec<Share> {
    let share = |answered| answered as f64 / recorder.answered.max(1) as f64;
    let endpoints = recorder.endpoints.iter().map(|(endpoint, &answered)| Share {
        endpoint: endpoint.to_string(),
        answered,
        share: share(answered),
        last_failure: recorder.troubles.get(endpoint).cloned(),
    });
    endpoints.collect()
}

fn changes(recorder: &Recorder) -> Vec<Change> {
    let changes = recorder.changes.iter().map(|change| Change {
        at: change.at.as_secs_f64(),
        endpoint: change.endpoint.to_string(),
        what: match change.what {
            What::Came => "came",
            What::Draining => "draining",
            What::Gone => "gone",
        },
    });
    changes.collect()
}

/// Latency at quantiles evenly spaced on a logarithmic scale of nines, as far as there are enough
/// requests to tell the quantiles apart.
fn curve(latency: &Histogram<u64>, from_sending: &Histogram<u64>) -> Vec<Point> {
    let steps = (0..=NINES * POINTS).map(|step| f64::from(step) / f64::from(POINTS));
    let quantiles = steps.map(|nines| 1.0 - 10f64.powf(-nines));
    let told_apart = |quantile: &f64| (1.0 - quantile) * latency.len() as f64 >= 1.0;
    let point = |quantile| Point {
        quantile,
        latency: seconds(latency.value_at_quantile(quantile)),
        from_sending: seconds(from_sending.value_at_quantile(quantile)),
    };
    quantiles.take_while(told_apart).map(point).collect()
}

impl From<&Histogram<u64>> for Latency {
    fn from(histogram: &Histogram<u64>) -> Self {
        if histogram.is_empty() {
            return Self::default();
        }
        let at = |quantile| seconds(histogram.value_at_quantile(quantile));
        Self {
            min: seconds(histogram.min()),
            mean: histogram.mean() / 1e9,
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            p99_9: at(0.999),
            p99_99: at(0.9999),
            max: seconds(histogram.max()),
        }
    }
}

impl From<&Slice> for TimelineSlice {
    fn from(slice: &Slice) -> Self {
        let at = |index: usize| slice.latency.map(|latency| seconds(latency[index]));
        let (answered, failed) = (slice.answered, slice.failed);
        Self { answered, failed, p50: at(0), p99: at(1), max: at(2) }
    }
}

/// Writes the table.
impl fmt::Display for LoadResult {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let row = |f: &mut fmt::Formatter<'_>, name: &str, value: &str| {
            writeln!(f, "{name:<16}{value:>16}")
        };
        row(f, "sent", &self.sent.to_string())?;
        row(f, "answered", &self.answered.to_string())?;
        row(f, "retried", &self.retried.to_string())?;
        row(f, "failed", &self.failed.to_string())?;
        for failure in &self.failures {
            row(f, &format!("  {}", failure.kind), &failure.count.to_string())?;
        }
        if self.most_waiting > 0 {
            row(f, "longest queue", &self.most_waiting.to_string())?;
        }
        row(f, "elapsed", &format!("{:.2} s", self.elapsed))?;
        row(f, "rate", &format!("{:.0}/s", self.achieved_rate))?;
        match self.rate {
            Some(rate) => row(f, "  target", &format!("{rate}/s"))?,
            None => row(f, "  target", "max")?,
        }
        self.write_latencies(f)?;
        self.write_endpoints(f)?;
        if self.interrupted {
            writeln!(f, "\nended by a signal")?;
        }
        Ok(())
    }
}

impl LoadResult {
    fn write_latencies(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let open = self.rate.is_some();
        write!(f, "\n{:<16}{:>16}", "", "latency")?;
        writeln!(f, "{}", if open { "      since sent        lateness" } else { "" })?;
        let columns = [self.latency, self.from_sending, self.lateness].map(|c| c.rows());
        for (index, (name, latency)) in columns[0].iter().enumerate() {
            let answered =
                |seconds| if self.answered > 0 { time(seconds) } else { "–".to_owned() };
            write!(f, "{name:<16}{:>16}", answered(*latency))?;
            if open {
                write!(
                    f,
                    "{:>16}{:>16}",
                    answered(columns[1][index].1),
                    time(columns[2][index].1)
                )?;
            }
            writeln!(f)?;
        }
        Ok(())
    }

    fn write_endpoints(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = self.endpoints.iter().map(|share| share.endpoint.len()).max().unwrap_or(0);
        let width = width.max(15) + 1;
        if !self.endpoints.is_empty() {
            write!(f, "\n{:<width$}{:>16}{:>16}", "endpoint", "answered", "share")?;
            let any_failed = self.endpoints.iter().any(|share| share.last_failure.is_some());
            writeln!(f, "{}", if any_failed { "   last failure" } else { "" })?;
        }
        for share in &self.endpoints {
            let percent = format!("{:.1} %", share.share * 100.0);
            write!(f, "{:<width$}{:>16}{percent:>16}", share.endpoint, share.answered)?;
            match &share.last_failure {
                Some(failure) => writeln!(f, "   {failure}")?,
                None => writeln!(f)?,
            }
        }
        Ok(())
    }
}

impl Latency {
    /// Every figure with its name in the table.
    fn rows(&self) -> [(&'static str, f64); 8] {
        [
            ("min", self.min),
            ("mean", self.mean),
            ("p50", self.p50),
            ("p90", self.p90),
            ("p99", self.p99),
            ("p99.9", self.p99_9),
            ("p99.99", self.p99_99),
            ("max", self.max),
        ]
    }
}

/// Formats a time with three or four digits and a suitable unit.
pub fn time(seconds: f64) -> String {
    let (value, unit) = match seconds {
        _ if seconds >= 1.0 => (seconds, "s"),
        _ if seconds >= 1e-3 => (seconds * 1e3, "ms"),
        _ => (seconds * 1e6, "µs"),
    };
    let decimals = match value {
        _ if value >= 100.0 => 0,
        _ if value >= 10.0 => 1,
        _ => 2,
    };
    format!("{value:.decimals$} {unit}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_printed_in_a_suitable_unit() {
        for (seconds, text) in [
            (0.0, "0.00 µs"),
            (0.000_031_4, "31.4 µs"),
            (0.000_314_2, "314 µs"),
            (0.003_142, "3.14 ms"),
            (1.5, "1.50 s"),
        ] {
            assert_eq!(time(seconds), text);
        }
    }

    #[test]
    fn the_curve_ends_where_there_are_too_few_requests() {
        let mut latency = Histogram::<u64>::new(3).unwrap();
        assert!(curve(&latency, &latency).is_empty());
        (1..=1000).for_each(|value| latency.record(value * 1000).unwrap());
        let curve = curve(&latency, &latency);
        assert_eq!(curve.len(), 31, "three nines of 1000 requests");
        assert!(curve.windows(2).all(|pair| pair[0].latency <= pair[1].latency));
        assert!((curve[10].quantile - 0.9).abs() < 1e-12);
        assert!((curve[10].latency - 0.0009).abs() < 0.000_001, "{:?}", curve[10]);
    }
}
