//! Prometheus as a process, on the configuration of the manifests.

use std::fs::{self, File};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use crate::build::{parse, root};
use crate::support::{Process, get, wait_until};

/// A Prometheus that stops with its test.
pub struct Prometheus {
    _process: Process,
    address: SocketAddr,
}

/// A series of a response: its labels, and its values with their times.
#[derive(Debug, Clone)]
pub struct Series {
    pub labels: Value,
    pub values: Vec<(f64, f64)>,
}

/// A program from Debian's package `prometheus`.
pub fn program(name: &str) -> Command {
    let found = Command::new(name).arg("--version").output();
    assert!(
        found.is_ok(),
        "this test needs {name}, from Debian's package prometheus; .ci/run installs it"
    );
    Command::new(name)
}

/// The configuration in the manifests, in a directory of its own and without its discovery, which
/// Debian's package does not support. Instead, a file lists `targets` with the labels that the
/// discovery would find, before any relabelling.
pub fn configuration(name: &str, targets: &Value) -> PathBuf {
    let source = root().join("k8s/components/prometheus");
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join("prometheus").join(name);
    let _ = fs::remove_dir_all(&directory);
    fs::create_dir_all(&directory).unwrap();
    let config = fs::read_to_string(source.join("prometheus.yml")).unwrap();
    let mut config = parse(&config).remove(0);
    let job = config["scrape_configs"][0].as_object_mut().expect("the configuration has a job");
    job.remove("kubernetes_sd_configs").expect("the job has the discovery of the manifests");
    job.insert("file_sd_configs".to_owned(), json!([{ "files": ["targets.json"] }]));
    fs::write(directory.join("targets.json"), targets.to_string()).unwrap();
    fs::copy(source.join("rules.yml"), directory.join("rules.yml")).unwrap();
    // JSON is valid YAML.
    fs::write(directory.join("prometheus.yml"), config.to_string()).unwrap();
    directory
}

impl Prometheus {
    /// Starts Prometheus with a configuration.
    pub fn start(directory: &Path) -> Self {
        let log = directory.join("log");
        let mut command = program("prometheus");
        command
            .arg(format!("--config.file={}", directory.join("prometheus.yml").display()))
            .arg(format!("--storage.tsdb.path={}", directory.join("data").display()))
            .arg("--web.listen-address=127.0.0.1:0")
            .stdin(Stdio::null())
            .stderr(File::create(&log).unwrap());
        let process = Process::spawn(&mut command);
        let mut address = None;
        wait_until("Prometheus listens", || {
            let log = fs::read_to_string(&log).unwrap();
            address = log.lines().find_map(listening_on);
            address.is_some()
        });
        let prometheus = Self { _process: process, address: address.unwrap() };
        wait_until("Prometheus is ready", || get(prometheus.address, "/-/ready").0 == 200);
        prometheus
    }

    /// The values of an expression at `time`, in seconds since the epoch.
    pub fn query(&self, expression: &str, time: f64) -> Result<Vec<Series>, String> {
        self.ask(&format!("query?query={}&time={time}", encoded(expression)))
    }

    /// The values of an expression from `start` to `end`, one for each `step` seconds.
    pub fn range(&self, expression: &str, start: f64, end: f64, step: f64) -> Vec<Series> {
        let query = encoded(expression);
        self.ask(&format!("query_range?query={query}&start={start}&end={end}&step={step}"))
            .unwrap_or_else(|error| panic!("Prometheus rejects {expression}: {error}"))
    }

    fn ask(&self, path: &str) -> Result<Vec<Series>, String> {
        let data = self.get(path)?;
        if data["resultType"] == "scalar" {
            return Ok(vec![Series { labels: json!({}), values: vec![sample(&data["result"])] }]);
        }
        let result = data["result"].as_array().expect("the result is a list");
        let series = result.iter().map(|series| Series {
            labels: series["metric"].clone(),
            values: match &series["values"] {
                Value::Array(values) => values.iter().map(sample).collect(),
                _ => vec![sample(&series["value"])],
            },
        });
        Ok(series.collect())
    }

    /// The API's response to a path under `/api/v1/`, or its error.
    pub fn get(&self, path: &str) -> Result<Value, String> {
        let (_, text) = get(self.address, &format!("/api/v1/{path}"));
        let mut answer: Value = serde_json::from_str(&text).expect("JSON");
        match answer["status"].as_str() {
            Some("success") => Ok(answer["data"].take()),
            _ => Err(answer["error"].to_string()),
        }
    }
}

fn listening_on(line: &str) -> Option<SocketAddr> {
    let (_, rest) = line.split_once("\"Listening on\" address=")?;
    rest.split_whitespace().next()?.parse().ok()
}

fn sample(value: &Value) -> (f64, f64) {
    let time = value[0].as_f64().expect("the sample has a time");
    (time, value[1].as_str().and_then(|text| text.parse().ok()).expect("the sample has a value"))
}

fn encoded(text: &str) -> String {
    let encode = |byte: u8| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' => char::from(byte).to_string(),
        _ => format!("%{byte:02X}"),
    };
    text.bytes().map(encode).collect()
}
