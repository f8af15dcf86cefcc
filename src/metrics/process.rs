//! The standard `process_` series, with the CPU time as the kernel counts it.

use prometheus::core::{Collector, Desc};
use prometheus::process_collector::ProcessCollector;
use prometheus::proto::{Counter, MetricFamily};
use rustix::time::{ClockId, clock_gettime};

const CPU_SECONDS: &str = "process_cpu_seconds_total";

/// The prometheus crate's `process_` series, with a more precise CPU time. The crate counts whole
/// seconds, so a rate over a minute would move in steps of a sixtieth of a core, and a rate over a
/// second in whole cores.
pub struct Process(ProcessCollector);

impl Process {
    /// The series of the calling process.
    pub fn for_self() -> Self {
        Self(ProcessCollector::for_self())
    }
}

impl Collector for Process {
    fn desc(&self) -> Vec<&Desc> {
        self.0.desc()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let mut families = self.0.collect();
        let cpu_time = families.iter_mut().filter(|family| family.name() == CPU_SECONDS);
        for metric in cpu_time.flat_map(MetricFamily::mut_metric) {
            let mut exact = Counter::default();
            exact.set_value(cpu_seconds());
            metric.set_counter(exact);
        }
        families
    }
}

/// The CPU time of all threads, in user space and in the kernel.
fn cpu_seconds() -> f64 {
    let taken = clock_gettime(ClockId::ProcessCPUTime);
    taken.tv_sec as f64 + taken.tv_nsec as f64 * 1e-9
}
