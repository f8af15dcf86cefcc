//! The Prometheus of `k8s/components/prometheus`, queried through the API of Kubernetes.

use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::Value as Json;

use crate::api::{Cluster, NAME, Reader};
use crate::wait_for;

pub struct Prometheus {
    reader: Reader,
}

impl Prometheus {
    /// Waits until Prometheus answers.
    #[track_caller]
    pub fn of(cluster: &Cluster) -> Self {
        let prometheus = Self { reader: cluster.reader() };
        wait_for("Prometheus answers", || prometheus.get("status/buildinfo").ok());
        prometheus
    }

    /// Returns the data at a path of Prometheus's API.
    pub fn get(&self, path: &str) -> Result<Json, String> {
        let path = format!(
            "/api/v1/namespaces/{NAME}/services/http:zmq-echo-prometheus:9090/proxy/api/v1/{path}"
        );
        let text = self.reader.read(&path)?;
        let mut answer: Json = serde_json::from_str(&text).map_err(|error| error.to_string())?;
        match answer["status"] == "success" {
            true => Ok(answer["data"].take()),
            false => Err(text),
        }
    }

    /// Evaluates an expression, and returns the series of the result.
    pub fn query(&self, expression: &str) -> Result<Vec<Json>, String> {
        let mut data = self.get(&format!("query?query={}", encoded(expression)))?;
        match data["result"].take() {
            Json::Array(series) if data["resultType"] == "vector" => Ok(series),
            other => Err(format!("no series: {other}")),
        }
    }

    /// Returns the series that a selector has matched within the last ten minutes.
    pub fn series(&self, selector: &str) -> Result<Vec<Json>, String> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs();
        let path =
            format!("series?match[]={}&start={}&end={}", encoded(selector), now - 600, now + 60);
        match self.get(&path)? {
            Json::Array(series) => Ok(series),
            other => Err(format!("no series: {other}")),
        }
    }
}

/// Percent-encodes a text for a URL.
fn encoded(text: &str) -> String {
    let byte = |byte: u8| match byte.is_ascii_alphanumeric() {
        true => char::from(byte).to_string(),
        false => format!("%{byte:02X}"),
    };
    text.bytes().map(byte).collect()
}
