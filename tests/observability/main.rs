//! Monitoring and scaling of the service: rules, alerts and autoscalers, with the real Prometheus
//! and promtool, on real servers under real load.
//!
//! `live` takes six minutes. It leaves its results in the target directory, under `observability/`.

mod autoscaler;
#[allow(dead_code, reason = "shared with the tests of the manifests")]
#[path = "../manifests/build.rs"]
mod build;
mod expressions;
mod live;
mod names;
mod plot;
mod prometheus;
mod promtool;
mod queries;
mod scaling;
#[allow(dead_code, reason = "shared with the integration tests")]
#[path = "../support.rs"]
mod support;
mod syntax;

use build::NAME;
