//! Requests by method. The service declares the names of its methods, so they are a closed set.

use std::num::NonZeroU32;
use std::time::Duration;

use prometheus::{IntCounter, IntCounterVec, Opts, Registry, Result};

use super::latency::{self, Latency};
use super::series::register;

/// The label for messages that belong to none of the service's methods: health checks, reserved
/// frames, and requests for an unknown method.
pub const OTHER: &str = "other";

/// The series of each method.
#[derive(Debug, Clone)]
pub struct Methods {
    /// One for each method that the service declares, then one for [`OTHER`].
    series: Vec<Method>,
}

/// The series of one method.
#[derive(Debug, Clone)]
pub struct Method {
    name: &'static str,
    /// Replies with a payload.
    pub ok: IntCounter,
    /// Error replies.
    pub error: IntCounter,
    /// Time from reading a client's request to handing its reply to the kernel.
    pub duration: Latency,
}

impl Methods {
    /// Registers the series of each method in `names`, at zero. `bounds` are the upper bounds of
    /// the latency buckets, in seconds.
    pub(super) fn new(registry: &Registry, names: &[&'static str], bounds: &[f64]) -> Result<Self> {
        let replies = Opts::new(
            "zmq_echo_replies_total",
            "Replies handed to the kernel, by method and outcome.",
        );
        let replies = IntCounterVec::new(replies, &["method", "outcome"])?;
        let replies = register(registry, replies)?;
        let names: Vec<_> = names.iter().copied().chain([OTHER]).collect();
        let durations = latency::register(
            registry,
            "zmq_echo_request_duration_seconds",
            "Time from reading a client's request to handing its reply to the kernel.",
            &names,
            bounds,
        )?;
        let series = names.into_iter().zip(durations).map(|(name, duration)| Method {
            name,
            ok: replies.with_label_values(&[name, "ok"]),
            error: replies.with_label_values(&[name, "error"]),
            duration,
        });
        Ok(Self { series: series.collect() })
    }

    /// The series of the method with this name.
    pub fn get(&self, name: &str) -> Option<&Method> {
        self.series.iter().find(|method| method.name == name)
    }

    /// Counts replies that the kernel has accepted.
    pub(super) fn replied(&self, replies: u64, label: Label, latency: Duration) {
        let method = &self.series[label.method().min(self.series.len() - 1)];
        let outcome = if label.is_error() { &method.error } else { &method.ok };
        outcome.inc_by(replies);
        method.duration.observe(replies, latency);
    }
}

/// The method and outcome that a reply is counted under, as the number that the socket keeps with
/// it. Even numbers are for payloads, odd ones for errors. Zero is reserved for messages that have
/// not been looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Label(NonZeroU32);

impl Label {
    /// A message that belongs to none of the service's methods.
    pub const NO_METHOD: Self = Self(NonZeroU32::new(u32::MAX - 1).expect("not zero"));

    /// A reply of the service's method with this index.
    #[inline(always)]
    pub fn of_method(index: usize) -> Self {
        match u16::try_from(index) {
            Ok(index) => Self::of_number(2 * u32::from(index) + 2),
            // No service has that many methods.
            Err(_) => Self::NO_METHOD,
        }
    }

    /// The label with this number.
    #[inline(always)]
    pub fn of_number(number: u32) -> Self {
        NonZeroU32::new(number).map_or(Self::NO_METHOD, Self)
    }

    /// The label's number.
    #[inline(always)]
    pub fn number(self) -> u32 {
        self.0.get()
    }

    /// The label of an error reply of the same method.
    pub fn error(self) -> Self {
        Self(self.0 | 1)
    }

    /// The index of the method.
    pub fn method(self) -> usize {
        (self.number() / 2 - 1) as usize
    }

    /// Whether it is an error reply.
    pub fn is_error(self) -> bool {
        self.number() % 2 == 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_label_is_a_method_and_an_outcome() {
        for index in [0, 1, 1000] {
            let label = Label::of_method(index);
            assert_eq!((label.method(), label.is_error()), (index, false));
            let error = Label::of_number(label.error().number());
            assert_eq!((error.method(), error.is_error()), (index, true));
        }
        assert_eq!(Label::of_method(usize::MAX), Label::NO_METHOD);
        assert_eq!(Label::of_number(0), Label::NO_METHOD);
        assert!(!Label::NO_METHOD.is_error() && Label::NO_METHOD.error().is_error());
        assert!(Label::NO_METHOD.method() > usize::from(u16::MAX));
    }
}
