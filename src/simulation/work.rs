//! Work that takes time and has no result.

use std::fmt;
use std::hint::black_box;
use std::thread;
use std::time::Duration;

use clap::ValueEnum;
use fastrand::Rng;
use rustix::time::{ClockId, clock_gettime};

use super::share::Share;

/// How long the work on a request takes, and whether it waits or computes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Work {
    /// The mean duration.
    pub duration: Duration,
    /// How far one request may deviate from the mean, as a share of it.
    pub jitter: Share,
    /// Whether the work waits or computes.
    pub mode: WorkMode,
}

/// What simulated work does with its time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum WorkMode {
    /// Waits, as for a database
    Sleep,
    /// Computes: it takes this much CPU time, however long that takes
    Burn,
}

impl Work {
    /// Does the work of one request.
    pub fn perform(&self, rng: &mut Rng) {
        let duration = self.draw(rng);
        match self.mode {
            _ if duration.is_zero() => {}
            WorkMode::Sleep => thread::sleep(duration),
            WorkMode::Burn => burn(duration),
        }
    }

    /// Draws a duration uniformly from the mean minus the jitter to the mean plus the jitter.
    fn draw(&self, rng: &mut Rng) -> Duration {
        let jitter = self.jitter.fraction() * (2.0 * rng.f64() - 1.0);
        self.duration.mul_f64(1.0 + jitter)
    }
}

/// Uses this much CPU time of this thread. Wall-clock time would be the wrong measure: if threads
/// share a CPU, each would do less work than it claims, and more load would cost nothing.
fn burn(duration: Duration) {
    let end = cpu_time() + duration;
    let mut state = 1_u64;
    while cpu_time() < end {
        // Takes a few microseconds, so that reading the clock does not take most of the time.
        for _ in 0..4096 {
            state = black_box(state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1));
        }
    }
}

/// The CPU time of this thread so far.
fn cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

impl fmt::Display for Work {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mode = match self.mode {
            WorkMode::Sleep => "sleep",
            WorkMode::Burn => "burn",
        };
        let duration = humantime::format_duration(self.duration);
        write!(f, "{mode} {duration}, jitter {}", self.jitter)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jitter_is_drawn_evenly_to_both_sides_of_the_mean() {
        let work = Work {
            duration: Duration::from_millis(100),
            jitter: "20%".parse().unwrap(),
            mode: WorkMode::Sleep,
        };
        let mut rng = Rng::with_seed(1);
        let drawn: Vec<_> = (0..10_000).map(|_| work.draw(&mut rng)).collect();
        let (least, most) = (drawn.iter().min().unwrap(), drawn.iter().max().unwrap());
        let ms = Duration::from_millis;
        assert!((ms(80)..ms(81)).contains(least) && (ms(119)..=ms(120)).contains(most));
        let mean = drawn.iter().sum::<Duration>() / 10_000;
        assert!((ms(99)..ms(101)).contains(&mean), "{mean:?}");
        let exact = Work { jitter: Share::default(), ..work };
        assert_eq!(exact.draw(&mut rng), ms(100));
    }

    #[test]
    fn burnt_time_is_cpu_time_of_the_thread() {
        let before = cpu_time();
        burn(Duration::from_millis(20));
        assert!(cpu_time() - before >= Duration::from_millis(20));
    }
}
