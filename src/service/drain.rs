//! The states of a graceful shutdown, free of any socket and clock.
//!
//! ```text
//! signal          delay over     all peers quiet or gone,     deadline
//!   |                 |             or the deadline near            |
//!   | Delay: accepts, | Quiet: accepts | flush, half-close, and read |
//!   | serves          | nobody, serves | until the peers close       |
//!   +-----------------+----------------+-----------------------------+
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
    /// Serving ends after this long without a byte of a request or a reply.
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
    /// Every peer had been quiet for the quiet period.
    Quiet,
    /// Nobody was connected any more.
    NoPeers,
    /// Some peer was not quiet until the deadline was near.
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
    Delay {
        signalled: Instant,
    },
    /// `look_at` is when the peers can have been quiet for long enough at the earliest.
    Quiet {
        signalled: Instant,
        stopped_at: Instant,
        look_at: Instant,
    },
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

    /// What to do now, with `connections` open. Call it after each event, and at
    /// [`Drain::wake_at`] when there is none.
    ///
    /// `active_at` says when a byte of a request or a reply moved last, or `None` while a peer
    /// is busy. It may take a look at every peer, so it is called about once in a quiet period.
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
                    // With a quiet period of zero, too, the loop has its turns in between.
                    *look_at = next_look.max(now + Duration::from_millis(1));
                }
                let is_quiet = self.is_quiet(now, active_at);
                if is_quiet { Action::Finish(Ending::Quiet) } else { Action::Serve }
            }
            State::Quiet { .. } => Action::Serve,
        }
    }

    /// Whether the quiet period has passed since `active_at`, which is `None` while a peer is
    /// busy, and since listening stopped.
    pub fn is_quiet(&self, now: Instant, active_at: Option<Instant>) -> bool {
        match (self.state, active_at) {
            (State::Quiet { stopped_at, .. }, Some(active_at)) => {
                now >= active_at.max(stopped_at) + self.policy.quiet
            }
            _ => false,
        }
    }

    /// When [`Drain::next`] will have something new to say if nothing happens
    /// before, or `None` while nobody has asked for a drain.
    pub fn wake_at(&self) -> Option<Instant> {
        match self.state {
            State::Serving => None,
            State::Delay { signalled } => Some(self.delay_ends(signalled)),
            State::Quiet { signalled, look_at, .. } => {
                Some(look_at.min(self.serving_ends(signalled)))
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

    /// What to do at a time, in seconds, with the last byte at another.
    fn next(drain: &mut Drain, start: Instant, now: f64, peers: usize, active: f64) -> Action {
        drain.next(at(start, now), peers, || Some(at(start, active)))
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
        assert_eq!(next(&mut drain, start, 3600.0, 0, 0.0), Action::Serve);
        assert_eq!(drain.wake_at(), None);
    }

    #[test]
    fn it_accepts_during_the_delay_even_with_nobody_connected() {
        let start = Instant::now();
        let mut drain = begun(start);
        assert_eq!(drain.wake_at(), Some(at(start, 5.0)));
        assert_eq!(next(&mut drain, start, 4.9, 0, 0.0), Action::Serve);
        assert_eq!(next(&mut drain, start, 5.0, 0, 0.0), Action::StopListening);
        assert_eq!(next(&mut drain, start, 5.0, 0, 0.0), Action::Finish(Ending::NoPeers));
    }

    #[test]
    fn the_quiet_period_begins_with_the_last_byte_or_when_listening_stops() {
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
    fn the_peers_are_looked_at_once_in_a_quiet_period_however_busy_they_are() {
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
    fn messages_without_end_run_into_the_deadline_with_time_left_to_flush() {
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
    fn a_second_signal_does_not_start_the_drain_again() {
        let start = Instant::now();
        let mut drain = begun(start);
        drain.begin(at(start, 4.0));
        assert_eq!(drain.wake_at(), Some(at(start, 5.0)));
        assert_eq!(drain.elapsed(at(start, 4.0)), Duration::from_secs(4));
    }
}
