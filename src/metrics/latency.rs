//! Histograms of latency that take many equal observations at once.
//!
//! The replies of a batch are sent with one write, and their requests arrived with one read, so
//! they all have the same latency. The crate's own histogram would look for its bucket for each
//! reply. Doing that once for all of them saves a tenth of the cost of an echo.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use prometheus::core::{Collector, Desc};
use prometheus::proto::{Bucket, Histogram, LabelPair, Metric, MetricFamily, MetricType};
use prometheus::{Registry, Result};

/// The latency of one method's replies. Cloning shares it.
#[derive(Clone)]
pub struct Latency(Arc<Observed>);

struct Observed {
    method: &'static str,
    /// Upper bounds in seconds, in rising order.
    bounds: Vec<f64>,
    /// The number of observations in each bucket, and then of those above the last bound.
    counts: Vec<AtomicU64>,
    /// The sum of all observations in seconds, as the bits of an `f64`.
    sum: AtomicU64,
}

impl Latency {
    fn new(method: &'static str, bounds: &[f64]) -> Self {
        let counts = std::iter::repeat_with(AtomicU64::default).take(bounds.len() + 1);
        let counts = counts.collect();
        Self(Arc::new(Observed {
            method,
            bounds: bounds.to_vec(),
            counts,
            sum: AtomicU64::default(),
        }))
    }

    /// Counts a number of `replies` that each took this long.
    pub fn observe(&self, replies: u64, latency: Duration) {
        let Observed { bounds, counts, sum, .. } = &*self.0;
        let seconds = latency.as_secs_f64();
        let bucket = bounds.partition_point(|bound| *bound < seconds);
        counts[bucket].fetch_add(replies, Relaxed);
        let added = |bits| (f64::from_bits(bits) + seconds * replies as f64).to_bits();
        let _ = sum.fetch_update(Relaxed, Relaxed, |bits| Some(added(bits)));
    }

    /// How many replies were counted.
    pub fn count(&self) -> u64 {
        self.0.counts.iter().map(|count| count.load(Relaxed)).sum()
    }

    /// The histogram for a scrape. The buckets and the count come from the same readings, so they
    /// agree.
    fn metric(&self) -> Metric {
        let observed = &*self.0;
        let counts: Vec<_> = observed.counts.iter().map(|count| count.load(Relaxed)).collect();
        let mut cumulative = 0;
        let buckets = observed.bounds.iter().zip(&counts).map(|(bound, count)| {
            cumulative += count;
            let mut bucket = Bucket::default();
            bucket.set_upper_bound(*bound);
            bucket.set_cumulative_count(cumulative);
            bucket
        });
        let mut histogram = Histogram::default();
        histogram.set_bucket(buckets.collect());
        histogram.set_sample_count(counts.iter().sum());
        histogram.set_sample_sum(f64::from_bits(observed.sum.load(Relaxed)));
        let mut label = LabelPair::default();
        label.set_name("method".to_owned());
        label.set_value(observed.method.to_owned());
        let mut metric = Metric::default();
        metric.set_label(vec![label]);
        metric.set_histogram(histogram);
        metric
    }
}

impl fmt::Debug for Latency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Latency").field(&self.0.method).finish()
    }
}

/// Registers a latency histogram for each of these methods, all at zero.
pub(super) fn register(
    registry: &Registry,
    name: &str,
    help: &str,
    methods: &[&'static str],
    bounds: &[f64],
) -> Result<Vec<Latency>> {
    let label = vec!["method".to_owned()];
    let desc = Desc::new(name.to_owned(), help.to_owned(), label, HashMap::new())?;
    let latencies: Vec<_> = methods.iter().map(|method| Latency::new(method, bounds)).collect();
    registry.register(Box::new(Family { desc, latencies: latencies.clone() }))?;
    Ok(latencies)
}

/// The histograms of all methods, as one family of a scrape.
struct Family {
    desc: Desc,
    latencies: Vec<Latency>,
}

impl Collector for Family {
    fn desc(&self) -> Vec<&Desc> {
        vec![&self.desc]
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let mut family = MetricFamily::default();
        family.set_name(self.desc.fq_name.clone());
        family.set_help(self.desc.help.clone());
        family.set_field_type(MetricType::HISTOGRAM);
        family.set_metric(self.latencies.iter().map(Latency::metric).collect());
        vec![family]
    }
}

#[cfg(test)]
mod tests {
    use prometheus::{Histogram, HistogramOpts, TextEncoder};

    use super::*;

    /// The crate's own histogram is the reference: the same observations must give the same text.
    #[test]
    fn it_shows_the_same_as_the_crates_histogram_after_single_observations() {
        let bounds = [0.125, 0.25, 0.5];
        let shown =
            |registry: &Registry| TextEncoder::new().encode_to_string(&registry.gather()).unwrap();
        let (ours, theirs) = (Registry::new(), Registry::new());
        let latency = &register(&ours, "a_seconds", "Help.", &["echo"], &bounds).unwrap()[0];
        let options = HistogramOpts::new("a_seconds", "Help.").const_label("method", "echo");
        let histogram = Histogram::with_opts(options.buckets(bounds.to_vec())).unwrap();
        theirs.register(Box::new(histogram.clone())).unwrap();
        assert_eq!(shown(&ours), shown(&theirs));
        // On a bound, between two bounds, below the first and above the last. The sums are exact.
        for (replies, milliseconds) in [(3, 125), (5, 375), (2, 0), (7, 4000), (1, 500)] {
            let time = Duration::from_millis(milliseconds);
            latency.observe(replies, time);
            (0..replies).for_each(|_| histogram.observe(time.as_secs_f64()));
        }
        assert_eq!(shown(&ours), shown(&theirs));
        assert_eq!(latency.count(), 18);
    }
}
