//! The states of a graceful shutdown, free of any socket and clock.
//!
//! ```text
//! signal          delay over        quiet, nobody left,     deadline
//!   |                 |             or the deadline near        |
//!   | Delay: accepts, | Quiet: accepts    | flush and close     |
//!   | serves          | nobody, serves    |                     |
//!   +-----------------+-------------------+---------------------+
//! ```
//!
//! The caller owns the clock and the socket: it reports what happens and does
//! what [`Drain::next`] says.

use std::time::{Duration, Instant};

/// The settings of a drain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DrainPolicy {
    /// How long to go on accepting from the signal on, for clients that are still
    /// being routed here.
    pub delay: Duration,
    /// How long no message may have arrived before serving ends.
    pub quiet: Duration,
    /// From the signal to the exit, everything included.
    pub timeout: Duration,
}

impl DrainPolicy {
    /// The part of the timeout that is kept for flushing and closing: a tenth,
    /// one second at most, so that the last replies get out before the deadline.
    pub fn reserve(&self) -> Duration {
        (self.timeout / 10).min(Duration::from_secs(1))
    }

    /// How long before the end of the timeout the watchdog speaks up: enough to
    /// write a record, and less than what is left of a drain that keeps its times.
    pub fn last_words(&self) -> Duration {
        (self.reserve() / 5).min(Duration::from_millis(20))
    }
}

/// Why serving ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// No message had arrived for the quiet period.
    Quiet,
    /// Nobody was connected any more.
    NoPeers,
    /// Messages kept coming until the deadline was near.
    Deadline,
}

impl Ending {
    /// The word for logs.
    pub const fn as_str(self) -> &'static str {
        match self {
            Ending::Quiet => "quiet",
            Ending::NoPeers => "no_peers",
            Ending::Deadline => "deadline",
        }
    }
}

/// What the caller has to do now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Go on serving.
    Serve,
    /// Stop listening, leave the connected peers alone, go on serving.
    StopListening,
    /// Flush, close and leave.
    Finish(Ending),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Serving,
    Delay { signalled: Instant },
    Quiet { signalled: Instant, quiet_since: Instant },
}

/// A drain, from before the signal to the moment to close.
#[derive(Debug)]
pub struct Drain {
    policy: DrainPolicy,
    state: State,
}

impl Drain {
    /// Not begun yet.
    pub fn new(policy: DrainPolicy) -> Self {
        Self { policy, state: State::Serving }
    }

    /// The signal has come. A second call changes nothing.
    pub fn begin(&mut self, now: Instant) {
        if self.state == State::Serving {
            self.state = State::Delay { signalled: now };
        }
    }

    /// Whether the signal has come.
    pub fn begun(&self) -> bool {
        self.state != State::Serving
    }

    /// A message has arrived: the quiet period starts again.
    pub fn message(&mut self, now: Instant) {
        if let State::Quiet { quiet_since, .. } = &mut self.state {
            *quiet_since = now;
        }
    }

    /// What to do now, with `connections` open. Call it after each event, and at
    /// [`Drain::wake_at`] when there is none.
    pub fn next(&mut self, now: Instant, connections: usize) -> Action {
        match self.state {
            State::Serving => Action::Serve,
            State::Delay { signalled } if now >= self.delay_ends(signalled) => {
                self.state = State::Quiet { signalled, quiet_since: now };
                Action::StopListening
            }
            State::Delay { .. } => Action::Serve,
            State::Quiet { .. } if connections == 0 => Action::Finish(Ending::NoPeers),
            State::Quiet { quiet_since, .. } if now >= quiet_since + self.policy.quiet => {
                Action::Finish(Ending::Quiet)
            }
            State::Quiet { signalled, .. } if now >= self.serving_ends(signalled) => {
                Action::Finish(Ending::Deadline)
            }
            State::Quiet { .. } => Action::Serve,
        }
    }

    /// When [`Drain::next`] will have something new to say if nothing happens
    /// before, or `None` while nobody has asked for a drain.
    pub fn wake_at(&self) -> Option<Instant> {
        match self.state {
            State::Serving => None,
            State::Delay { signalled } => Some(self.delay_ends(signalled)),
            State::Quiet { signalled, quiet_since } => {
                Some((quiet_since + self.policy.quiet).min(self.serving_ends(signalled)))
            }
        }
    }

    /// When flushing and closing must be over: the end of the timeout less a
    /// little of the reserve, which the last log record and the exit need.
    pub fn close_by(&self, now: Instant) -> Instant {
        let signalled = self.signalled().unwrap_or(now);
        signalled + self.policy.timeout - self.policy.reserve() / 4
    }

    /// When the process must have ended, or `None` while nobody has asked for a drain.
    pub fn deadline(&self) -> Option<Instant> {
        self.signalled().map(|signalled| signalled + self.policy.timeout)
    }

    /// How long ago the signal came.
    pub fn elapsed(&self, now: Instant) -> Duration {
        self.signalled().map_or(Duration::ZERO, |signalled| now - signalled)
    }

    fn signalled(&self) -> Option<Instant> {
        match self.state {
            State::Serving => None,
            State::Delay { signalled } | State::Quiet { signalled, .. } => Some(signalled),
        }
    }

    fn delay_ends(&self, signalled: Instant) -> Instant {
        (signalled + self.policy.delay).min(self.serving_ends(signalled))
    }

    fn serving_ends(&self, signalled: Instant) -> Instant {
        signalled + self.policy.timeout - self.policy.reserve()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const POLICY: DrainPolicy = DrainPolicy {
        delay: Duration::from_secs(5),
        quiet: Duration::from_secs(1),
        timeout: Duration::from_secs(20),
    };

    fn at(start: Instant, seconds: f64) -> Instant {
        start + Duration::from_secs_f64(seconds)
    }

    fn begun(start: Instant) -> Drain {
        let mut drain = Drain::new(POLICY);
        drain.begin(start);
        drain
    }

    #[test]
    fn nothing_ends_before_the_signal() {
        let start = Instant::now();
        let mut drain = Drain::new(POLICY);
        assert!(!drain.begun());
        assert_eq!(drain.next(at(start, 3600.0), 0), Action::Serve);
        assert_eq!(drain.wake_at(), None);
    }

    #[test]
    fn it_accepts_during_the_delay_even_with_nobody_connected() {
        let start = Instant::now();
        let mut drain = begun(start);
        assert_eq!(drain.wake_at(), Some(at(start, 5.0)));
        assert_eq!(drain.next(at(start, 4.9), 0), Action::Serve);
        assert_eq!(drain.next(at(start, 5.0), 0), Action::StopListening);
        assert_eq!(drain.next(at(start, 5.0), 0), Action::Finish(Ending::NoPeers));
    }

    #[test]
    fn each_message_starts_the_quiet_period_again() {
        let start = Instant::now();
        let mut drain = begun(start);
        assert_eq!(drain.next(at(start, 5.0), 3), Action::StopListening);
        drain.message(at(start, 5.9));
        assert_eq!(drain.next(at(start, 6.1), 3), Action::Serve);
        assert_eq!(drain.wake_at(), Some(at(start, 6.9)));
        assert_eq!(drain.next(at(start, 6.9), 3), Action::Finish(Ending::Quiet));
    }

    #[test]
    fn messages_without_end_run_into_the_deadline_with_time_left_to_flush() {
        let start = Instant::now();
        let mut drain = begun(start);
        assert_eq!(drain.next(at(start, 5.0), 1), Action::StopListening);
        drain.message(at(start, 18.99));
        assert_eq!(drain.wake_at(), Some(at(start, 19.0)));
        assert_eq!(drain.next(at(start, 19.0), 1), Action::Finish(Ending::Deadline));
        assert!(drain.close_by(start) > at(start, 19.0));
        assert!(drain.close_by(start) < at(start, 20.0));
    }

    #[test]
    fn a_second_signal_does_not_start_the_drain_again() {
        let start = Instant::now();
        let mut drain = begun(start);
        drain.begin(at(start, 4.0));
        assert_eq!(drain.wake_at(), Some(at(start, 5.0)));
        assert_eq!(drain.elapsed(at(start, 4.0)), Duration::from_secs(4));
    }
}
