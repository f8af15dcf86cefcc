//! The autoscaler's reaction to the values in Prometheus.

use std::fmt::Write;

use k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscalerSpec;

use crate::autoscaler::{Autoscaler, PERIOD};

/// The results of the adapter's queries at one time.
#[derive(Debug, Clone, Copy)]
pub struct Sample {
    /// Seconds from the start of the load.
    pub at: f64,
    /// Cores that all pods use together.
    pub cpu: f64,
    /// Clients' requests/s, for all pods together.
    pub requests: f64,
    /// The mean over the pods of the share of slow requests.
    pub slow: f64,
}

/// The index of requests/s among the autoscaler's metrics, after CPU.
pub const REQUESTS: usize = 1;

/// The state of the autoscaler after one period.
#[derive(Debug, Clone, Copy)]
pub struct Look {
    pub sample: Sample,
    /// Requests/s per replica.
    pub per_pod: f64,
    pub replicas: i32,
    /// Whether this is the last sample repeated; see [`scale`].
    pub continued: bool,
}

/// Maximum time to continue after the last sample, in seconds.
const PATIENCE: f64 = 1800.0;

/// Gives samples to an autoscaler, one per period. It repeats the last one until the number of
/// replicas is at the minimum. Prometheus would keep seeing the same values, because there are no
/// more requests, so the test need not wait for them.
///
/// The number of replicas is what the autoscaler wanted in the previous period, and the load is
/// spread over them. So each replica has an equal part of the total requests and CPU, however many
/// servers were measured. The share of slow requests is used as measured.
pub fn scale(spec: HorizontalPodAutoscalerSpec, samples: &[Sample]) -> Vec<Look> {
    let minimum = spec.min_replicas.expect("the autoscaler has a minimum");
    let mut autoscaler = Autoscaler::new(spec);
    let mut looks = Vec::new();
    let last = *samples.last().expect("there is a sample");
    let first = samples[0].at;
    let times = (0..).map(|look| first + f64::from(look) * PERIOD);
    for at in times.take_while(|at| *at < last.at + PATIENCE) {
        let continued = at > last.at;
        if continued && autoscaler.replicas == minimum {
            break;
        }
        let seen =
            samples.iter().rfind(|sample| sample.at <= at).expect("the first sample is old enough");
        let sample = Sample { at, ..*seen };
        let [cpu, per_pod] =
            [sample.cpu, sample.requests].map(|sum| sum / f64::from(autoscaler.replicas));
        let replicas = autoscaler.look(at, &[cpu, per_pod, sample.slow]);
        looks.push(Look { sample, per_pod, replicas, continued });
    }
    looks
}

/// The states as CSV, for a spreadsheet.
pub fn csv(looks: &[Look]) -> String {
    let mut csv = "seconds,cpu,requests_per_second,requests_per_second_per_replica,\
                   slow_requests_ratio,replicas_wanted,continued\n"
        .to_owned();
    for Look { sample, per_pod, replicas, continued } in looks {
        let Sample { at, cpu, requests, slow } = sample;
        writeln!(
            csv,
            "{at:.0},{cpu:.3},{requests:.1},{per_pod:.1},{slow:.4},{replicas},{continued}"
        )
        .expect("a string can grow");
    }
    csv
}
