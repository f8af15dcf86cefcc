//! When each request of an open loop is due: evenly spaced from the start,
//! whatever becomes of the requests before it.

use std::io;
use std::num::NonZeroU32;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};
use tokio::io::unix::AsyncFd;

const SECOND: u128 = 1_000_000_000;

/// The due times of a run's requests. Each is computed from the start: an error in
/// one does not add to the next.
#[derive(Debug, Clone, Copy)]
pub struct Schedule {
    start: Instant,
    rate: NonZeroU32,
    total: u64,
}

impl Schedule {
    /// Requests at `rate` from `start` on, for as long as `duration`.
    pub fn new(start: Instant, rate: NonZeroU32, duration: Duration) -> Self {
        let total = (duration.as_nanos() * u128::from(rate.get())).div_ceil(SECOND);
        Self { start, rate, total: total as u64 }
    }

    /// How many requests there are.
    pub fn total(&self) -> u64 {
        self.total
    }

    /// When the request of this number, counted from 0, is due.
    pub fn due(&self, number: u64) -> Instant {
        let nanoseconds = (u128::from(number) * SECOND).div_ceil(u128::from(self.rate.get()));
        self.start + Duration::from_nanos(nanoseconds as u64)
    }

    /// How many requests are due by `now`.
    pub fn due_by(&self, now: Instant) -> u64 {
        let Some(elapsed) = now.checked_duration_since(self.start) else { return 0 };
        let due = elapsed.as_nanos() * u128::from(self.rate.get()) / SECOND + 1;
        (due as u64).min(self.total)
    }
}

/// A timer of the kernel's, exact to some microseconds: tokio's are exact to a
/// millisecond, which is many times what an echo takes.
pub struct Timer(AsyncFd<OwnedFd>);

impl Timer {
    /// A timer on the current runtime.
    ///
    /// # Errors
    ///
    /// What the kernel says: no descriptors left, mostly.
    pub fn new() -> io::Result<Self> {
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        let timer = timerfd_create(TimerfdClockId::Monotonic, flags)?;
        #[allow(deprecated, reason = "an OwnedFd keeps its descriptor, which is the objection")]
        AsyncFd::new(timer).map(Self)
    }

    /// Waits until `deadline`.
    ///
    /// # Errors
    ///
    /// What the kernel says.
    pub async fn sleep_until(&mut self, deadline: Instant) -> io::Result<()> {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(());
        }
        let value = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() };
        let once = Itimerspec { it_interval: Timespec::default(), it_value: value };
        // Setting it anew also forgets that it has expired before.
        timerfd_settime(self.0.get_ref(), TimerfdTimerFlags::empty(), &once)?;
        self.0.readable().await?.clear_ready();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schedule(start: Instant, rate: u32, seconds: u64) -> Schedule {
        Schedule::new(start, NonZeroU32::new(rate).unwrap(), Duration::from_secs(seconds))
    }

    #[test]
    fn requests_are_due_at_the_rate_to_the_nanosecond() {
        let start = Instant::now();
        for (rate, seconds) in [(1, 3), (3, 1000), (20_000, 60), (9_999_991, 24 * 60 * 60)] {
            let schedule = schedule(start, rate, seconds);
            assert_eq!(schedule.total(), u64::from(rate) * seconds);
            assert_eq!(schedule.due(0), start);
            assert_eq!(schedule.due(u64::from(rate)), start + Duration::from_secs(1));
            let last = schedule.due(schedule.total() - 1);
            assert!(last < start + Duration::from_secs(seconds));
            for number in [0, 1, 2, schedule.total() / 2, schedule.total() - 1] {
                let due = schedule.due(number);
                assert_eq!(schedule.due_by(due), number + 1, "{rate} {number}");
                if let Some(before) = due.checked_sub(Duration::from_nanos(1)) {
                    assert_eq!(schedule.due_by(before), number, "{rate} {number}");
                }
            }
        }
    }

    #[test]
    fn nothing_is_due_beyond_the_end_or_before_the_start() {
        let start = Instant::now() + Duration::from_secs(10);
        let schedule = schedule(start, 100, 2);
        assert_eq!(schedule.due_by(start - Duration::from_secs(1)), 0);
        assert_eq!(schedule.due_by(start + Duration::from_secs(100)), 200);
    }

    #[tokio::test]
    async fn the_timer_waits_for_each_of_its_deadlines_and_not_for_what_has_passed() {
        let mut timer = Timer::new().unwrap();
        let start = Instant::now();
        for step in 0..20 {
            let deadline = start + Duration::from_micros(300) * step;
            timer.sleep_until(deadline).await.unwrap();
            assert!(Instant::now() >= deadline);
        }
        timer.sleep_until(start).await.unwrap();
    }
}
