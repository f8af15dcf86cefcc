//! Discovery by SRV records, against a name server on loopback.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use hickory_proto::rr::RecordType;
use zmq_echo_client::discovery::dns::srv::{Srv, SrvName};
use zmq_echo_client::discovery::{MAX_ENDPOINTS, Source};

use super::{Followed, until};
use crate::log_schema::captured::Log;
use crate::support::dns_server::{DnsServer, Mode, Service};

const NAME: &str = "_zeromq._tcp.zmq-echo-headless.test.";

/// The time limit of a round of queries.
const ROUND_LIMIT: Duration = Duration::from_secs(4);

fn name(name: &str, server: &DnsServer) -> SrvName {
    SrvName { name: name.to_owned(), server: Some(server.address()) }
}

fn follow(server: &DnsServer) -> Followed {
    Followed::start(Srv::new(name(NAME, server)).unwrap())
}

fn service(priority: u16, port: u16, target: &str) -> Service<'_> {
    Service { priority, port, target }
}

/// An endpoint and its addresses.
type Expected<'a> = (&'a str, &'a [&'a str]);

impl Followed {
    /// Waits until the source has published exactly these endpoints and addresses.
    async fn publishes_addresses(&mut self, expected: &[Expected<'_>]) {
        let address = |text: &&str| text.parse::<SocketAddr>().unwrap();
        self.publishes_a_set_that(|set| {
            let mut expected = expected.iter();
            set.len() == expected.len()
                && expected.all(|(endpoint, addresses)| {
                    let addresses: Vec<_> = addresses.iter().map(address).collect();
                    let known = set.get(&endpoint.parse().unwrap());
                    known.is_some_and(|known| known.addresses == addresses)
                })
        })
        .await;
    }
}

async fn until_queried(server: &DnsServer, more: usize) {
    let asked = || server.questions().iter().filter(|asked| asked.kind == RecordType::SRV).count();
    let goal = asked() + more;
    until("the resolver sends further queries", || asked() >= goal).await;
}

#[tokio::test]
async fn a_target_is_one_endpoint_with_its_port_and_all_its_addresses() {
    for additional in [true, false] {
        let server = DnsServer::start();
        server.set_additional(additional);
        server.set("pod-0.test.", &["127.0.0.1", "::1"], 0);
        server.set("pod-1.test.", &["127.0.0.2"], 0);
        server.set_services(
            NAME,
            &[service(0, 5555, "pod-0.test."), service(0, 7777, "Pod-1.test.")],
            0,
        );
        let mut followed = follow(&server);
        let pod_0: Expected<'_> = ("tcp://pod-0.test:5555", &["127.0.0.1:5555", "[::1]:5555"]);
        followed
            .publishes_addresses(&[pod_0, ("tcp://pod-1.test:7777", &["127.0.0.2:7777"])])
            .await;
        let addresses_asked = server.questions().iter().any(|asked| asked.kind == RecordType::A);
        assert_eq!(addresses_asked, !additional);
        server.set("pod-2.test.", &["127.0.0.3"], 0);
        server.set_services(
            NAME,
            &[service(0, 5555, "pod-0.test."), service(0, 5555, "pod-2.test.")],
            0,
        );
        followed
            .publishes_addresses(&[pod_0, ("tcp://pod-2.test:5555", &["127.0.0.3:5555"])])
            .await;
        followed.assert_ends().await;
    }
}

#[tokio::test]
async fn a_url_without_a_port_selects_srv_records() {
    let server = DnsServer::start();
    let url = format!("dns://{NAME}?server={}", server.address());
    assert_eq!(url.parse::<Source>().unwrap(), Source::Srv(name(NAME, &server)));
    server.set("pod-0.test.", &["127.0.0.1"], 0);
    server.set_services(NAME, &[service(0, 5555, "pod-0.test.")], 0);
    let (sender, mut endpoints) = tokio::sync::watch::channel(Default::default());
    let source = url.parse::<Source>().unwrap().discovery().await.unwrap();
    let task = tokio::spawn(source.follow(sender));
    tokio::time::timeout(crate::support::DEADLINE, endpoints.changed()).await.unwrap().unwrap();
    assert_eq!(endpoints.borrow().len(), 1);
    task.abort();
}

#[tokio::test]
async fn only_the_lowest_priority_that_has_an_address_counts() {
    let server = DnsServer::start();
    server.set("first.test.", &["127.0.0.1"], 0);
    server.set("second.test.", &["127.0.0.2"], 0);
    server.set("third.test.", &["127.0.0.3"], 0);
    server.set_services(
        NAME,
        &[
            service(30, 5555, "third.test."),
            service(20, 5555, "second.test."),
            service(10, 5555, "first.test."),
        ],
        0,
    );
    let mut followed = follow(&server);
    followed.publishes_addresses(&[("tcp://first.test:5555", &["127.0.0.1:5555"])]).await;
    server.set("first.test.", &[], 0);
    followed.publishes_addresses(&[("tcp://second.test:5555", &["127.0.0.2:5555"])]).await;
}

#[tokio::test]
async fn a_root_target_means_no_endpoints() {
    let server = DnsServer::start();
    server.set("pod-0.test.", &["127.0.0.1"], 0);
    server.set_services(NAME, &[service(0, 5555, "pod-0.test.")], 0);
    let mut followed = follow(&server);
    followed.publishes_addresses(&[("tcp://pod-0.test:5555", &["127.0.0.1:5555"])]).await;
    server.set_services(NAME, &[service(0, 0, ".")], 0);
    followed.publishes_addresses(&[]).await;
}

/// Checks that the last set stays in use while `break_it` holds, and that a later set is noticed.
async fn assert_keeps_the_last_set(break_it: impl Fn(&DnsServer)) {
    let server = DnsServer::start();
    server.set("pod-0.test.", &["127.0.0.1"], 0);
    server.set_services(NAME, &[service(0, 5555, "pod-0.test.")], 0);
    let mut followed = follow(&server);
    followed.publishes_addresses(&[("tcp://pod-0.test:5555", &["127.0.0.1:5555"])]).await;
    break_it(&server);
    until_queried(&server, 3).await;
    followed.has_published_nothing_new();
    server.set_mode(Mode::Answer);
    server.set_additional(true);
    server.set("pod-1.test.", &["127.0.0.2"], 0);
    server.set_services(NAME, &[service(0, 5555, "pod-1.test.")], 0);
    followed.publishes_addresses(&[("tcp://pod-1.test:5555", &["127.0.0.2:5555"])]).await;
}

#[tokio::test]
async fn a_failing_server_leaves_the_last_set() {
    assert_keeps_the_last_set(|server| server.set_mode(Mode::ServerFailure)).await;
}

#[tokio::test]
async fn a_missing_record_leaves_the_last_set() {
    assert_keeps_the_last_set(|server| server.remove(NAME)).await;
}

#[tokio::test]
async fn targets_without_an_address_leave_the_last_set() {
    assert_keeps_the_last_set(|server| server.set("pod-0.test.", &["0.0.0.0", "ff02::1"], 0)).await;
}

#[tokio::test]
async fn targets_whose_lookups_fail_leave_the_last_set() {
    assert_keeps_the_last_set(|server| {
        server.set_additional(false);
        server.set_mode_of(RecordType::A, Mode::ServerFailure);
        server.set_mode_of(RecordType::AAAA, Mode::ServerFailure);
    })
    .await;
}

#[tokio::test]
async fn a_target_whose_lookup_fails_keeps_its_addresses_while_another_changes() {
    let server = DnsServer::start();
    server.set_additional(false);
    server.set("pod-0.test.", &["127.0.0.1"], 0);
    server.set("pod-1.test.", &["127.0.0.2"], 0);
    let services = [service(0, 5555, "pod-0.test."), service(0, 5555, "pod-1.test.")];
    server.set_services(NAME, &services, 0);
    let mut followed = follow(&server);
    let failing: Expected<'_> = ("tcp://pod-0.test:5555", &["127.0.0.1:5555"]);
    followed.publishes_addresses(&[failing, ("tcp://pod-1.test:5555", &["127.0.0.2:5555"])]).await;
    server.set_mode_of_name("pod-0.test.", Mode::ServerFailure);
    server.set("pod-1.test.", &["127.0.0.3"], 0);
    followed
        .publishes_a_set_that(|set| {
            set[&"tcp://pod-1.test:5555".parse().unwrap()].addresses[0].ip()
                != IpAddr::from([127, 0, 0, 2])
        })
        .await;
    followed.publishes_addresses(&[failing, ("tcp://pod-1.test:5555", &["127.0.0.3:5555"])]).await;
}

#[tokio::test]
async fn a_target_whose_lookup_is_silent_does_not_delay_the_others() {
    let log = Log::capture();
    let server = DnsServer::start();
    server.set_additional(false);
    server.set_mode_of(RecordType::AAAA, Mode::Silence);
    server.set_mode_of_name("silent.test.", Mode::Silence);
    server.set("pod-0.test.", &["127.0.0.1"], 0);
    server.set("late.test.", &["127.0.0.2"], 0);
    server.set_mode_of_name("late.test.", Mode::Late(Duration::from_millis(300)));
    server.set_services(
        NAME,
        &[
            service(0, 5555, "silent.test."),
            service(0, 5555, "pod-0.test."),
            service(0, 5555, "late.test."),
        ],
        0,
    );
    let started = Instant::now();
    let mut followed = follow(&server);
    let late: Expected<'_> = ("tcp://late.test:5555", &["127.0.0.2:5555"]);
    followed.publishes_addresses(&[late, ("tcp://pod-0.test:5555", &["127.0.0.1:5555"])]).await;
    let took = started.elapsed();
    assert!(took < ROUND_LIMIT, "the other targets came only after {took:?}");
    until("the partial failure is logged", || log.has("endpoint discovery failed in part")).await;
}

#[tokio::test]
async fn targets_with_one_address_each_are_limited_to_one_family() {
    let server = DnsServer::start();
    // Cluster DNS names the pods of a Deployment in this way.
    server.set("127-0-0-1.test.", &["127.0.0.1"], 0);
    server.set("127-0-0-2.test.", &["127.0.0.2"], 0);
    server.set("fd00--1.test.", &["::1"], 0);
    let targets = ["127-0-0-1.test.", "127-0-0-2.test.", "fd00--1.test."];
    server.set_services(NAME, &targets.map(|target| service(0, 5555, target)), 0);
    let mut followed = follow(&server);
    let first: Expected<'_> = ("tcp://127-0-0-1.test:5555", &["127.0.0.1:5555"]);
    followed
        .publishes_addresses(&[first, ("tcp://127-0-0-2.test:5555", &["127.0.0.2:5555"])])
        .await;
    server.set_services(NAME, &[service(0, 5555, "fd00--1.test.")], 0);
    followed.publishes_addresses(&[("tcp://fd00--1.test:5555", &["[::1]:5555"])]).await;
}

#[tokio::test]
async fn search_domains_apply_to_srv_names() {
    let server = DnsServer::start();
    server.set("pod-0.test.", &["127.0.0.1"], 0);
    let complete = "_zeromq._tcp.zmq-echo-headless.svc.cluster.local.";
    server.set_services(complete, &[service(0, 5555, "pod-0.test.")], 0);
    let of_a_pod = "search default.svc.cluster.local svc.cluster.local cluster.local\n\
                    nameserver 10.96.0.10\noptions ndots:5\n";
    let short = name("_zeromq._tcp.zmq-echo-headless", &server);
    let mut followed = Followed::start(Srv::with_resolv_conf(short, of_a_pod).unwrap());
    followed.publishes_addresses(&[("tcp://pod-0.test:5555", &["127.0.0.1:5555"])]).await;
}

#[tokio::test]
async fn surplus_targets_are_ignored() {
    let log = Log::capture();
    let server = DnsServer::start();
    server.set("a.b.", &["127.0.0.1"], 0);
    // The names are short and come without addresses, because an answer has at most 64 KiB.
    server.set_additional(false);
    let services: Vec<_> = (1..=1200).map(|port| service(0, port, "a.b.")).collect();
    server.set_services("_a._b.c.", &services, 0);
    let mut followed = Followed::start(Srv::new(name("_a._b.c.", &server)).unwrap());
    followed.publishes_a_set_that(|set| set.len() == MAX_ENDPOINTS).await;
    assert_eq!(log.count("too many endpoints; the rest are ignored"), (1, 1));
}
