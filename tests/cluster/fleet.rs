//! Watches every server while a scenario runs: its counters until its last scrape, and its log to
//! the end.

use std::collections::BTreeMap;
use std::io::BufRead;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use prometheus_parse::{Scrape, Value};
use serde_json::Value as Json;

use crate::api::{Cluster, NAME, Reader, SERVER, container, name};
use crate::load::Outcome;
use crate::wait_for;

/// The pause between two scrapes of one server.
const PERIOD: Duration = Duration::from_millis(250);

/// Follows every server from its start to its end.
pub struct Fleet {
    reader: Reader,
    servers: Arc<Mutex<BTreeMap<String, Arc<Watched>>>>,
    is_over: Arc<AtomicBool>,
    attacked: Option<String>,
    killed: Option<String>,
    watcher: Option<JoinHandle<()>>,
}

/// One run of one server. Another one begins when its container restarts.
struct Watched {
    pod: String,
    ip: String,
    /// Whether the API says that the pod is terminating.
    is_ending: AtomicBool,
    is_gone: AtomicBool,
    is_scraped: AtomicBool,
    is_read: AtomicBool,
    counts: Mutex<Counts>,
    log: Mutex<Vec<String>>,
}

/// The requests of clients that a server has counted.
#[derive(Default, Clone, Copy)]
struct Counts {
    /// Before the scenario. They are subtracted from the others.
    before: u64,
    /// At the last scrape.
    last: u64,
    /// At the last scrape before the server began to drain.
    serving: u64,
    /// At the first scrape after that.
    draining: Option<u64>,
}

/// How a server ended, according to its log.
enum End {
    StillServes,
    Drained(Json),
    Killed,
}

impl Fleet {
    pub fn watch(cluster: &Cluster) -> Self {
        let reader = cluster.reader();
        let servers = Arc::new(Mutex::new(BTreeMap::new()));
        let is_over = Arc::new(AtomicBool::new(false));
        // What the servers have counted in earlier scenarios does not belong to this one.
        notice(&reader, &mut servers.lock().unwrap());
        for server in servers.lock().unwrap().values() {
            server.start_from_here(&reader);
        }
        let watcher = {
            let (reader, servers, is_over) =
                (reader.clone(), Arc::clone(&servers), Arc::clone(&is_over));
            thread::spawn(move || {
                while !is_over.load(Ordering::Relaxed) {
                    notice(&reader, &mut servers.lock().unwrap());
                    thread::sleep(PERIOD);
                }
            })
        };
        Self { reader, servers, is_over, attacked: None, killed: None, watcher: Some(watcher) }
    }

    /// Names a pod whose process may end without a drain. Every other server that has served must
    /// drain.
    pub fn is_killed(&mut self, pod: &Json) {
        self.killed = Some(name(pod).to_owned());
    }

    /// Names a pod that gets an unknown number of requests from others as well, so that its
    /// counters say nothing about the loads.
    pub fn is_attacked(&mut self, pod: &Json) {
        self.attacked = Some(name(pod).to_owned());
    }

    /// Call this after the loads have ended. It checks that the requests that were answered agree
    /// with those that the servers counted, and prints how each server ended.
    ///
    /// The numbers must agree exactly, with four exceptions. If an attempt got no reply, it was
    /// made again, and the servers may have counted both. A server's count at the signal that began
    /// its drain is only known to lie between those of two scrapes. What a killed server has
    /// answered since its last scrape is unknown. The count of an attacked server includes the
    /// attacker's requests, so it is not checked.
    #[track_caller]
    pub fn accounts_for(mut self, loads: &[Outcome]) {
        // Marks the servers that are gone, so that `end` scrapes only those that still serve.
        notice(&self.reader, &mut self.servers.lock().unwrap());
        self.end();
        // Copied, so that no lock is held when an assertion fails.
        let servers: Vec<_> = self.servers.lock().unwrap().values().cloned().collect();
        wait_for("the logs of ended servers have been read to the end", || {
            let is_read = |server: &Arc<Watched>| {
                !server.is_gone.load(Ordering::Relaxed) || server.is_read.load(Ordering::Relaxed)
            };
            servers.iter().all(is_read).then_some(())
        });
        let sum = |of: fn(&Outcome) -> u64| loads.iter().map(of).sum::<u64>();
        let answered = sum(|load| load.number("answered"));
        let retried = sum(|load| load.number("retried"));
        let probes = sum(|load| load.probes);
        let (mut least, mut most, mut discarded) = (0, 0_u64, 0);
        for server in &servers {
            let pod = Some(server.pod.clone());
            let may_be_killed = [&self.killed, &self.attacked].contains(&&pod);
            let end = match server.end() {
                End::StillServes => "serves".to_owned(),
                End::Drained(record) => {
                    let number = |field: &str| record[field].as_u64().unwrap_or(u64::MAX);
                    assert_eq!(number("owed"), 0, "{}: {record}", server.pod);
                    discarded += number("discarded");
                    let [answered, discarded, lost] = ["answered", "discarded", "lost"].map(number);
                    let reason = &record["reason"];
                    format!(
                        "drained: {reason}, answered {answered}, discarded {discarded}, lost {lost}"
                    )
                }
                End::Killed => {
                    let may_be = !server.is_scraped.load(Ordering::Relaxed) || may_be_killed;
                    assert!(may_be, "{} has ended without a drain", server.pod);
                    "killed".to_owned()
                }
            };
            let is_attacked = self.attacked.as_ref() == Some(&server.pod);
            let (from, to) = if is_attacked { (0, u64::MAX) } else { server.count(may_be_killed) };
            least += from;
            most = most.saturating_add(to);
            let range = match to {
                _ if to == from => from.to_string(),
                u64::MAX => format!("at least {from}"),
                _ => format!("{from} to {to}"),
            };
            println!("  {} ({}): {range} requests, {end}", server.pod, server.ip);
        }
        let most_text = if most == u64::MAX { "any".to_owned() } else { most.to_string() };
        println!(
            "  loads: {answered} answered, {probes} probes before, {retried} retried; \
             servers: {least} to {most_text} requests"
        );
        // Each retry may have added two requests: the first attempt, and a check of the endpoint.
        assert!(
            least <= answered + probes + 2 * retried,
            "the servers counted more requests than were made"
        );
        assert!(most >= answered + probes, "the servers counted fewer requests than were answered");
        assert!(
            discarded <= retried,
            "the servers discarded {discarded} requests, but only {retried} were made again"
        );
    }

    /// Ends the watch, with a last scrape of the servers that still serve.
    fn end(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        if let Some(watcher) = self.watcher.take() {
            watcher.join().expect("the watcher does not panic");
        }
        for server in self.servers.lock().unwrap().values() {
            if !server.is_gone.load(Ordering::Relaxed) {
                server.scrape(&self.reader);
            }
        }
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        for server in self.servers.lock().unwrap().values() {
            server.is_gone.store(true, Ordering::Relaxed);
        }
    }
}

/// Starts to watch new servers, and marks those that are gone.
fn notice(reader: &Reader, servers: &mut BTreeMap<String, Arc<Watched>>) {
    let path = format!("/api/v1/namespaces/{NAME}/pods?labelSelector={SERVER}");
    let Ok(text) = reader.read(&path) else { return };
    let Ok(list) = serde_json::from_str::<Json>(&text) else { return };
    let mut running = Vec::new();
    for pod in list["items"].as_array().into_iter().flatten() {
        let status = container(pod);
        let (Some(id), false) =
            (status["containerID"].as_str(), status["state"]["running"].is_null())
        else {
            continue;
        };
        running.push(id.to_owned());
        let Some(ip) = pod["status"]["podIP"].as_str() else { continue };
        if let Some(known) = servers.get(id) {
            let is_ending = !pod["metadata"]["deletionTimestamp"].is_null();
            known.is_ending.store(is_ending, Ordering::Relaxed);
            continue;
        }
        let server = Arc::new(Watched {
            pod: name(pod).to_owned(),
            ip: ip.to_owned(),
            is_ending: AtomicBool::new(false),
            is_gone: AtomicBool::new(false),
            is_scraped: AtomicBool::new(false),
            is_read: AtomicBool::new(false),
            counts: Mutex::default(),
            log: Mutex::default(),
        });
        servers.insert(id.to_owned(), Arc::clone(&server));
        let (watched, scraper) = (Arc::clone(&server), reader.clone());
        thread::spawn(move || {
            while !watched.is_gone.load(Ordering::Relaxed) {
                watched.scrape(&scraper);
                thread::sleep(PERIOD);
            }
        });
        let follower = reader.clone();
        thread::spawn(move || server.follow(&follower));
    }
    for (id, server) in servers {
        if !running.contains(id) {
            server.is_gone.store(true, Ordering::Relaxed);
        }
    }
}

impl Watched {
    /// Sets the count at which a scenario begins, while nobody sends requests yet.
    #[track_caller]
    fn start_from_here(&self, reader: &Reader) {
        wait_for("a server is scraped", || {
            self.scrape(reader);
            self.is_scraped.load(Ordering::Relaxed).then_some(())
        });
        let mut counts = self.counts.lock().unwrap();
        counts.before = counts.last;
    }

    fn scrape(&self, reader: &Reader) {
        let path = format!("/api/v1/namespaces/{NAME}/pods/{}:8080/proxy/metrics", self.pod);
        let Ok(text) = reader.read(&path) else { return };
        let Ok(scrape) = Scrape::parse(text.lines().map(|line| Ok(line.to_owned()))) else {
            return;
        };
        let value = |metric: &str, source: Option<&str>| {
            let mut samples = scrape.samples.iter();
            let found = samples.find(|sample| {
                sample.metric == metric
                    && source.is_none_or(|source| sample.labels.get("source") == Some(source))
            });
            match found?.value {
                Value::Counter(value) | Value::Gauge(value) => Some(value as u64),
                _ => None,
            }
        };
        let Some(requests) = value("zmq_echo_requests_total", Some("client")) else { return };
        let mut counts = self.counts.lock().unwrap();
        // A lower count is that of the next run, if the container has just restarted.
        if requests < counts.last {
            return;
        }
        self.is_scraped.store(true, Ordering::Relaxed);
        counts.last = requests;
        if value("zmq_echo_draining", None) == Some(0) {
            counts.serving = requests;
        } else {
            counts.draining.get_or_insert(requests);
        }
    }

    fn follow(&self, reader: &Reader) {
        let path =
            format!("/api/v1/namespaces/{NAME}/pods/{}/log?container=server&follow=true", self.pod);
        if let Ok(lines) = reader.follow(&path) {
            for line in lines.lines().map_while(Result::ok) {
                self.log.lock().unwrap().push(line);
            }
        }
        self.is_read.store(true, Ordering::Relaxed);
    }

    fn end(&self) -> End {
        let log = self.log.lock().unwrap();
        let mut records = log.iter().filter_map(|line| serde_json::from_str::<Json>(line).ok());
        match records.find(|record| record["message"] == "drained") {
            Some(record) => End::Drained(record),
            None if self.is_gone.load(Ordering::Relaxed) => End::Killed,
            None => End::StillServes,
        }
    }

    /// How many requests of clients the server has received, at least and at most. There is no upper
    /// limit for a server that was killed after it had served.
    fn count(&self, may_be_killed: bool) -> (u64, u64) {
        let Counts { before, last, serving, draining } = *self.counts.lock().unwrap();
        let (least, most) = match self.end() {
            End::StillServes => (last, last),
            // It never served.
            End::Killed if !self.is_scraped.load(Ordering::Relaxed) && !may_be_killed => (0, 0),
            End::Killed => (last, u64::MAX),
            // After a forced deletion the API forgets the pod before its process ends, so the last
            // requests were not scraped.
            End::Drained(_) if !self.is_ending.load(Ordering::Relaxed) => (last, u64::MAX),
            End::Drained(record) => {
                let drained = record["answered"].as_u64().unwrap_or(0);
                let least = last.max(serving + drained);
                (least, least.max(draining.map_or(0, |first| first + drained)))
            }
        };
        (least - before, if most == u64::MAX { most } else { most - before })
    }
}
