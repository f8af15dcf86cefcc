//! When each request of an open loop is due: at even intervals from the start, whether or not
//! earlier requests have been answered.

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

/// The due times of the requests in a run. Each is computed from the start, so rounding errors do
/// not add up.
#[derive(Debug, Clone, Copy)]
pub struct Schedule {
    start: Instant,
    rate: NonZeroU32,
    total: u64,
}

impl Schedule {
    /// Schedules requests at `rate` per second, from `start` for `duration`.
    pub fn new(start: Instant, rate: NonZeroU32, duration: Duration) -> Self {
        let total = (duration.as_nanos() * u128::from(rate.get())).div_ceil(SECOND);
        Self { start, rate, total: total as u64 }
    }

    /// The total number of requests.
    pub fn total(&self) -> u64 {
        self.total
    }

    /// When the request with this number is due. Numbers start at 0.
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

/// A kernel timer with microsecond precision. Tokio's timers have a precision of 1 ms, which is
/// many times what an echo takes.
pub struct Timer(AsyncFd<OwnedFd>);

impl Timer {
    /// Creates a timer on the current runtime.
    ///
    /// # Errors
    ///
    /// If the kernel has no timer to give, usually because all file descriptors are in use.
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
    /// If the timer cannot be set.
    pub async fn sleep_until(&mut self, deadline: Instant) -> io::Result<()> {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(());
        }
        let value = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() };
        let once = Itimerspec { it_interval: Timespec::default(), it_value: value };
        // Setting the timer again also clears an earlier expiry.
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
    fn due_times_are_exact_to_the_nanosecond() {
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
    fn nothing_is_due_before_the_start_or_after_the_end() {
        let start = Instant::now() + Duration::from_secs(10);
        let schedule = schedule(start, 100, 2);
        assert_eq!(schedule.due_by(start - Duration::from_secs(1)), 0);
        assert_eq!(schedule.due_by(start + Duration::from_secs(100)), 200);
    }

    #[tokio::test]
    async fn the_timer_waits_for_each_deadline_unless_it_has_passed() {
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
