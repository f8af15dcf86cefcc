//! Functions that create a series at zero and register it.
//!
//! Each one fails if a name or label is invalid, or if the name is already registered.

use prometheus::core::Collector;
use prometheus::{
    Gauge, Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, Opts, Registry, Result,
};

/// A counter.
pub fn counter(registry: &Registry, name: &str, help: &str) -> Result<IntCounter> {
    register(registry, IntCounter::new(name, help)?)
}

/// Counters that differ in the value of one label.
pub fn counters(registry: &Registry, name: &str, help: &str, label: &str) -> Result<IntCounterVec> {
    register(registry, IntCounterVec::new(Opts::new(name, help), &[label])?)
}

/// A gauge of whole numbers.
pub fn gauge(registry: &Registry, name: &str, help: &str) -> Result<IntGauge> {
    register(registry, IntGauge::new(name, help)?)
}

/// A gauge of seconds.
pub fn seconds(registry: &Registry, name: &str, help: &str) -> Result<Gauge> {
    register(registry, Gauge::new(name, help)?)
}

/// A histogram whose buckets have these upper bounds.
pub fn histogram(registry: &Registry, name: &str, help: &str, bounds: &[f64]) -> Result<Histogram> {
    let options = HistogramOpts::new(name, help).buckets(bounds.to_vec());
    register(registry, Histogram::with_opts(options)?)
}

/// Registers an existing collector.
pub fn register<C: Collector + Clone + 'static>(registry: &Registry, collector: C) -> Result<C> {
    registry.register(Box::new(collector.clone()))?;
    Ok(collector)
}
