//! The states of a graceful shutdown, without a socket or a clock.
//!
//! ```text
//! signal          delay over     all peers quiet or gone,     deadline
//!   |                 |             or the deadline near            |
//!   | Delay: accepts, | Quiet: accepts | flush, half-close, and read |
//!   | serves          | nobody, serves | until the peers close       |
//!   +-----------------+----------------+-----------------------------+
//! ```
//!
//! The caller owns the clock and the socket. It reports what happens and does what
//! [`Drain::next`] returns.

use std::time::{Duration, Instant};

/// The settings of a drain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DrainPolicy {
    /// How long to keep accepting connections after the signal, for clients that are still
    /// being routed here.
    pub delay: Duration,
    /// Serving ends after this long with no request or reply data in either direction.
    pub quiet: Duration,
    /// The longest time from the signal to the exit, including the delay and the quiet period.
    pub timeout: Duration,
}

impl DrainPolicy {
    /// The part of the timeout that is reserved for flushing and closing, so that the last
    /// replies are sent before the deadline: a tenth, but at most one second.
    pub fn reserve(&self) -> Duration {
        (self.timeout / 10).min(Duration::from_secs(1))
    }

    /// How long before the end of the timeout the watchdog ends the process. It is long enough
    /// to write a log record. It is shorter than the time that [`Drain::close_by`] leaves, so a
    /// drain that is on time ends before the watchdog acts.
    pub fn watchdog_margin(&self) -> Duration {
        (self.reserve() / 5).min(Duration::from_millis(20))
    }
}

/// Why serving ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// Every peer had been quiet for the quiet period.
    Quiet,
    /// No peer was connected.
    NoPeers,
    /// The deadline was near, and some peer had not been quiet for long enough.
    Deadline,
}

impl Ending {
    /// The value that the log shows.
    pub const fn as_str(self) -> &'static str {
        match self {
            Ending::Quiet => "quiet",
            Ending::NoPeers => "no_peers",
            Ending::Deadline => "deadline",
        }
    }
}

/// What the caller must do now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Continue serving.
    Serve,
    /// Stop listening, and continue to serve the connected peers.
    StopListening,
    /// Flush, close and exit.
    Finish(Ending),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Serving,
    Delay {
        signalled: Instant,
    },
    /// `look_at` is the earliest time at which all peers can have been quiet for long enough.
    Quiet {
        signalled: Instant,
        stopped_at: Instant,
        look_at: Instant,
    },
}

/// A drain, from before the signal until it is time to close.
#[derive(Debug)]
pub struct Drain {
    policy: DrainPolicy,
    state: State,
}

impl Drain {
    /// A drain that has not begun.
    pub fn new(policy: DrainPolicy) -> Self {
        Self { policy, state: State::Serving }
    }

    /// Begins the drain. `now` is the time of the signal. A second call has no effect.
    pub fn begin(&mut self, now: Instant) {
        if self.state == State::Serving {
            self.state = State::Delay { signalled: now };
        }
    }

    /// Whether the signal has come.
    pub fn begun(&self) -> bool {
        self.state != State::Serving
    }

    /// Returns what to do now, with `connections` open. Call it after each event, and at
    /// [`Drain::wake_at`] if there is none.
    ///
    /// `active_at` returns when a byte of a request or a reply last moved, or `None` while a
    /// peer is busy. It may have to check every peer, so it is called only about once per quiet
    /// period.
    pub fn next(
        &mut self,
        now: Instant,
        connections: usize,
        active_at: impl FnOnce() -> Option<Instant>,
    ) -> Action {
        match self.state {
            State::Serving => Action::Serve,
            State::Delay { signalled } if now >= self.delay_ends(signalled) => {
                let look_at = now + self.policy.quiet;
                self.state = State::Quiet { signalled, stopped_at: now, look_at };
                Action::StopListening
            }
            State::Delay { .. } => Action::Serve,
            State::Quiet { .. } if connections == 0 => Action::Finish(Ending::NoPeers),
            State::Quiet { signalled, .. } if now >= self.serving_ends(signalled) => {
                Action::Finish(Ending::Deadline)
            }
            State::Quiet { look_at, .. } if now >= look_at => {
                let active_at = active_at();
                let next_look = active_at.unwrap_or(now) + self.policy.quiet;
                if let State::Quiet { look_at, .. } = &mut self.state {
                    // Even if the quiet period is zero, the loop needs turns in between.
                    *look_at = next_look.max(now + Duration::from_millis(1));
                }
                let is_quiet = self.is_quiet(now, active_at);
                if is_quiet { Action::Finish(Ending::Quiet) } else { Action::Serve }
            }
            State::Quiet { .. } => Action::Serve,
        }
    }

    /// Whether the quiet period has passed both since `active_at` and since listening stopped.
    /// `active_at` is `None` while a peer is busy; the answer is then `false`.
    pub fn is_quiet(&self, now: Instant, active_at: Option<Instant>) -> bool {
        match (self.state, active_at) {
            (State::Quiet { stopped_at, .. }, Some(active_at)) => {
                now >= active_at.max(stopped_at) + self.policy.quiet
            }
            _ => false,
        }
    }

    /// When to call [`Drain::next`] again if nothing happens before. `None` before the signal.
    pub fn wake_at(&self) -> Option<Instant> {
        match self.state {
            State::Serving => None,
            State::Delay { signalled } => Some(self.delay_ends(signalled)),
            State::Quiet { signalled, look_at, .. } => {
                Some(look_at.min(self.serving_ends(signalled)))
            }
        }
    }

    /// When flushing and closing must be done: the end of the timeout, minus a quarter of the
    /// reserve for the final log record and the exit. Before the signal, this assumes that it
    /// comes `now`.
    pub fn close_by(&self, now: Instant) -> Instant {
        let signalled = self.signalled().unwrap_or(now);
        signalled + self.policy.timeout - self.policy.reserve() / 4
    }

    /// When the process must have exited. `None` before the signal.
    pub fn deadline(&self) -> Option<Instant> {
        self.signalled().map(|signalled| signalled + self.policy.timeout)
    }

    /// Time since the signal, or zero before it.
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

    /// What to do at `now`, if the last byte moved at `active`. Both are seconds after `start`.
    fn next(drain: &mut Drain, start: Instant, now: f64, peers: usize, active: f64) -> Action {
        drain.next(at(start, now), peers, || Some(at(start, active)))
    }

    fn begun(start: Instant) -> Drain {
        let mut drain = Drain::new(POLICY);
        drain.begin(start);
        drain
    }

    #[test]
    fn serving_continues_until_the_signal() {
        let start = Instant::now();
        let mut drain = Drain::new(POLICY);
        assert!(!drain.begun());
        assert_eq!(next(&mut drain, start, 3600.0, 0, 0.0), Action::Serve);
        assert_eq!(drain.wake_at(), None);
    }

    #[test]
    fn the_delay_keeps_accepting_even_without_connections() {
        let start = Instant::now();
        let mut drain = begun(start);
        assert_eq!(drain.wake_at(), Some(at(start, 5.0)));
        assert_eq!(next(&mut drain, start, 4.9, 0, 0.0), Action::Serve);
        assert_eq!(next(&mut drain, start, 5.0, 0, 0.0), Action::StopListening);
        assert_eq!(next(&mut drain, start, 5.0, 0, 0.0), Action::Finish(Ending::NoPeers));
    }

    #[test]
    fn the_quiet_period_starts_at_the_last_byte_but_not_before_listening_stops() {
        let start = Instant::now();
        let mut drain = begun(start);
        assert_eq!(next(&mut drain, start, 5.0, 3, 1.0), Action::StopListening);
        assert_eq!(drain.wake_at(), Some(at(start, 6.0)));
        assert_eq!(next(&mut drain, start, 6.0, 3, 5.9), Action::Serve);
        assert_eq!(drain.wake_at(), Some(at(start, 6.9)));
        assert_eq!(next(&mut drain, start, 6.9, 3, 5.9), Action::Finish(Ending::Quiet));
        let mut drain = begun(start);
        assert_eq!(next(&mut drain, start, 5.0, 3, 1.0), Action::StopListening);
        assert_eq!(next(&mut drain, start, 6.0, 3, 1.0), Action::Finish(Ending::Quiet));
    }

    #[test]
    fn busy_peers_are_checked_only_once_per_quiet_period() {
        let start = Instant::now();
        let mut drain = begun(start);
        assert_eq!(next(&mut drain, start, 5.0, 1, 5.0), Action::StopListening);
        let mut looks = 0;
        for turn in 0..10_000 {
            let now = at(start, 5.0 + f64::from(turn) / 1000.0);
            let action = drain.next(now, 1, || {
                looks += 1;
                None
            });
            assert_eq!(action, Action::Serve);
        }
        assert_eq!(looks, 9);
    }

    #[test]
    fn a_busy_peer_is_not_quiet_even_with_a_quiet_period_of_zero() {
        let start = Instant::now();
        let mut drain = Drain::new(DrainPolicy { quiet: Duration::ZERO, ..POLICY });
        drain.begin(start);
        assert_eq!(next(&mut drain, start, 5.0, 1, 5.0), Action::StopListening);
        assert_eq!(drain.next(at(start, 5.1), 1, || None), Action::Serve);
        assert!(drain.wake_at() > Some(at(start, 5.1)));
        assert_eq!(next(&mut drain, start, 5.2, 1, 5.2), Action::Finish(Ending::Quiet));
    }

    #[test]
    fn a_peer_that_never_goes_quiet_leaves_time_to_flush_before_the_deadline() {
        let start = Instant::now();
        let mut drain = begun(start);
        assert_eq!(next(&mut drain, start, 5.0, 1, 5.0), Action::StopListening);
        assert_eq!(next(&mut drain, start, 18.99, 1, 18.99), Action::Serve);
        assert_eq!(drain.wake_at(), Some(at(start, 19.0)));
        assert_eq!(next(&mut drain, start, 19.0, 1, 19.0), Action::Finish(Ending::Deadline));
        assert!(drain.close_by(start) > at(start, 19.0));
        assert!(drain.close_by(start) < at(start, 20.0));
    }

    #[test]
    fn a_second_signal_does_not_restart_the_drain() {
        let start = Instant::now();
        let mut drain = begun(start);
        drain.begin(at(start, 4.0));
        assert_eq!(drain.wake_at(), Some(at(start, 5.0)));
        assert_eq!(drain.elapsed(at(start, 4.0)), Duration::from_secs(4));
    }
}
