//! Discovery by DNS, against a name server on loopback.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use hickory_proto::rr::RecordType;
use zmq_echo_client::discovery::EndpointState::Ready;
use zmq_echo_client::discovery::dns::{Dns, DnsName};
use zmq_echo_client::discovery::{Discovery, FailureKind, MAX_ENDPOINTS, Source};

use super::{Followed, until};
use crate::log_schema::captured::Log;
use crate::support::dns_server::{DnsServer, Mode};

/// A short name, because a message of 64 KiB repeats it with each address and must hold as many
/// addresses as a test needs.
const NAME: &str = "headless.test.";

fn name(host: &str, server: &DnsServer) -> DnsName {
    DnsName { host: host.to_owned(), port: 5555, server: Some(server.address()) }
}

fn follow(server: &DnsServer) -> Followed {
    Followed::start(Dns::new(name(NAME, server)).unwrap())
}

/// After this many more queries of one type, a whole round has passed: an answer ends the current
/// round, and the second query starts the next one.
const ROUND: usize = 2;

/// The time limit of a round. A query that is never answered must not delay the others for that
/// long.
const ROUND_LIMIT: Duration = Duration::from_secs(4);

/// The same, if a query may be repeated within its round.
const ROUND_WITH_RETRIES: usize = 4;

async fn until_queried(server: &DnsServer, more: usize) {
    until_queried_for(server, RecordType::A, more).await;
}

async fn until_queried_for(server: &DnsServer, kind: RecordType, more: usize) {
    let asked = || server.questions().iter().filter(|asked| asked.kind == kind).count();
    let goal = asked() + more;
    until("the resolver sends further queries", || asked() >= goal).await;
}

#[tokio::test]
async fn the_endpoints_are_the_addresses_of_the_name() {
    for addresses in [["127.0.0.1", "127.0.0.2"], ["::1", "fe80::1"]] {
        let server = DnsServer::start();
        server.set(NAME, &addresses, 30);
        let mut followed = follow(&server);
        let expected = addresses.map(|ip| SocketAddr::new(ip.parse().unwrap(), 5555));
        followed
            .publishes_a_set_that(|set| {
                set.values().map(|known| &known.addresses[..]).collect::<Vec<_>>()
                    == [&expected[..1], &expected[1..]]
            })
            .await;
        followed.assert_ends().await;
    }
}

#[tokio::test]
async fn a_url_can_name_the_server_to_ask() {
    let server = DnsServer::start();
    let url = server.url(NAME, 5555);
    let expected = Source::Dns(name(NAME, &server));
    assert_eq!(url.parse::<Source>().unwrap(), expected);
}

#[tokio::test]
async fn a_name_is_looked_up_again_at_its_ttl_but_at_most_once_per_second() {
    let server = DnsServer::start();
    server.set(NAME, &["10.0.0.1", "10.0.0.2"], 0);
    let started = Instant::now();
    let mut followed = follow(&server);
    followed.publishes(&[("tcp://10.0.0.1:5555", Ready), ("tcp://10.0.0.2:5555", Ready)]).await;
    server.set(NAME, &["10.0.0.2", "10.0.0.3"], 0);
    followed.publishes(&[("tcp://10.0.0.2:5555", Ready), ("tcp://10.0.0.3:5555", Ready)]).await;
    until_queried(&server, ROUND_WITH_RETRIES).await;
    let asked: Vec<_> = server
        .questions()
        .iter()
        .filter(|asked| asked.kind == RecordType::A)
        .map(|asked| asked.at)
        .collect();
    // Measured from before the first query, because each query may have waited to be read.
    let took = *asked.last().unwrap() - started;
    let least = Duration::from_secs(asked.len() as u64 - 1);
    assert!(took >= least, "{} queries took only {took:?}", asked.len());
}

#[tokio::test]
async fn a_long_ttl_does_not_delay_the_next_lookup() {
    let server = DnsServer::start();
    server.set(NAME, &["10.0.0.1"], 3600);
    let mut followed = follow(&server);
    followed.publishes(&[("tcp://10.0.0.1:5555", Ready)]).await;
    server.set(NAME, &["10.0.0.2"], 3600);
    followed.publishes(&[("tcp://10.0.0.2:5555", Ready)]).await;
}

/// Checks that the last set stays in use while `break_it` holds, for this many `questions`, and
/// that a later set is noticed.
async fn assert_keeps_the_last_set(questions: usize, break_it: impl Fn(&DnsServer)) {
    let server = DnsServer::start();
    server.set(NAME, &["10.0.0.1"], 0);
    let mut followed = follow(&server);
    followed.publishes(&[("tcp://10.0.0.1:5555", Ready)]).await;
    break_it(&server);
    until_queried(&server, questions).await;
    followed.has_published_nothing_new();
    server.set(NAME, &["10.0.0.2"], 0);
    server.set_mode(Mode::Answer);
    followed.publishes(&[("tcp://10.0.0.2:5555", Ready)]).await;
}

#[tokio::test]
async fn a_failing_server_leaves_the_last_set() {
    assert_keeps_the_last_set(ROUND_WITH_RETRIES, |server| server.set_mode(Mode::ServerFailure))
        .await;
}

#[tokio::test]
async fn a_silent_server_leaves_the_last_set() {
    assert_keeps_the_last_set(ROUND_WITH_RETRIES, |server| server.set_mode(Mode::Silence)).await;
}

#[tokio::test]
async fn nxdomain_leaves_the_last_set_and_is_not_cached() {
    assert_keeps_the_last_set(ROUND, |server| server.remove(NAME)).await;
}

#[tokio::test]
async fn an_empty_answer_leaves_the_last_set_and_is_not_cached() {
    assert_keeps_the_last_set(ROUND, |server| server.set(NAME, &[], 0)).await;
}

#[tokio::test]
async fn of_two_families_only_ipv4_is_used_and_queried() {
    let server = DnsServer::start();
    server.set(NAME, &["127.0.0.1", "127.0.0.2", "::1"], 0);
    let mut followed = follow(&server);
    let of_v4 = [("tcp://127.0.0.1:5555", Ready), ("tcp://127.0.0.2:5555", Ready)];
    followed.publishes(&of_v4).await;
    let asked = |kind| server.questions().iter().filter(|asked| asked.kind == kind).count();
    // If a query is slow, the other family is queried as well.
    until("the resolver queries only IPv4", || {
        asked(RecordType::A) >= asked(RecordType::AAAA) + ROUND
    })
    .await;
    followed.has_published_nothing_new();
}

#[tokio::test]
async fn a_silent_family_does_not_delay_the_other() {
    for (silent, first, added) in
        [(RecordType::AAAA, "127.0.0.1", "127.0.0.2"), (RecordType::A, "::1", "fe80::1")]
    {
        let server = DnsServer::start();
        server.set_mode_of(silent, Mode::Silence);
        server.set(NAME, &[first], 0);
        let mut followed = follow(&server);
        for addresses in [&[first][..], &[first, added]] {
            server.set(NAME, addresses, 0);
            let started = Instant::now();
            followed.publishes_a_set_that(|set| set.len() == addresses.len()).await;
            let took = started.elapsed();
            assert!(
                took < ROUND_LIMIT,
                "while {silent} is silent, {addresses:?} came only after {took:?}"
            );
        }
    }
}

#[tokio::test]
async fn the_family_in_use_stays_until_it_has_no_address() {
    let server = DnsServer::start();
    server.set_mode_of(RecordType::A, Mode::Silence);
    server.set(NAME, &["127.0.0.1", "::1"], 0);
    let mut followed = follow(&server);
    followed.publishes(&[("tcp://[::1]:5555", Ready)]).await;
    server.set_mode_of(RecordType::A, Mode::Answer);
    until_queried_for(&server, RecordType::AAAA, ROUND_WITH_RETRIES).await;
    followed.has_published_nothing_new();
    server.set(NAME, &["127.0.0.1"], 0);
    followed.publishes(&[("tcp://127.0.0.1:5555", Ready)]).await;
}

#[tokio::test]
async fn if_the_family_in_use_fails_both_families_are_used() {
    let log = Log::capture();
    let server = DnsServer::start();
    server.set(NAME, &["127.0.0.1", "::1"], 0);
    let mut followed = follow(&server);
    followed.publishes(&[("tcp://127.0.0.1:5555", Ready)]).await;
    server.set_mode_of(RecordType::A, Mode::ServerFailure);
    server.set(NAME, &["127.0.0.2", "::1"], 0);
    followed.publishes(&[("tcp://127.0.0.1:5555", Ready), ("tcp://[::1]:5555", Ready)]).await;
    assert_eq!(log.count("endpoint discovery failed in part"), (1, 1));
    server.set_mode(Mode::Answer);
    followed.publishes(&[("tcp://127.0.0.2:5555", Ready)]).await;
    until("the end of the outage is logged", || {
        log.count("endpoint discovery works again") == (2, 1)
    })
    .await;
}

#[tokio::test]
async fn nothing_is_published_before_the_first_answer() {
    let server = DnsServer::start();
    let mut followed = follow(&server);
    until_queried(&server, ROUND).await;
    followed.has_published_nothing_new();
    server.set(NAME, &["10.0.0.1"], 0);
    followed.publishes(&[("tcp://10.0.0.1:5555", Ready)]).await;
}

#[tokio::test]
async fn outages_are_logged_once_and_shown_as_the_last_failure() {
    let log = Log::capture();
    let server = DnsServer::start();
    server.set_mode(Mode::ServerFailure);
    let source = Dns::new(name(NAME, &server)).unwrap();
    let failures = source.failures();
    let kind = || failures.borrow().as_ref().map(|failure| failure.kind());
    let mut followed = Followed::start(source);
    until("the first failure is logged", || {
        log.has("endpoint discovery failed; no endpoints are known yet")
    })
    .await;
    assert_eq!(kind(), Some(FailureKind::Failed));
    server.set(NAME, &["127.0.0.1", "127.0.0.2", "::1"], 0);
    server.set_mode(Mode::Answer);
    followed.publishes(&[("tcp://127.0.0.1:5555", Ready), ("tcp://127.0.0.2:5555", Ready)]).await;
    until("the end of the outage is logged", || log.has("endpoint discovery works again")).await;
    assert_eq!(kind(), None);
    server.set_mode_of(RecordType::A, Mode::ServerFailure);
    until("the partial failure is logged", || log.has("endpoint discovery failed in part")).await;
    server.set_mode(Mode::ServerFailure);
    let whole = "endpoint discovery failed; the last known endpoints stay in use";
    until("the complete failure is logged", || log.has(whole)).await;
    assert_ne!(log.count(r#""endpoints":2"#).1, 0);
    until_queried(&server, ROUND_WITH_RETRIES).await;
    // Each is logged once, however often the queries fail.
    assert_eq!(log.count("endpoint discovery failed"), (4, 3));
}

#[tokio::test]
async fn large_answers_are_fetched_over_tcp() {
    let server = DnsServer::start();
    let addresses: Vec<_> = (0..200).map(|at| format!("10.0.0.{at}")).collect();
    server.set(NAME, &addresses.iter().map(String::as_str).collect::<Vec<_>>(), 0);
    let mut followed = follow(&server);
    followed.publishes_a_set_that(|set| set.len() == 200).await;
    assert!(server.questions().iter().any(|asked| asked.tcp));
    // Later queries succeed as well, on any connection.
    server.set(NAME, &addresses[1..].iter().map(String::as_str).collect::<Vec<_>>(), 0);
    followed.publishes_a_set_that(|set| set.len() == 199).await;
}

#[tokio::test]
async fn surplus_addresses_are_ignored() {
    let log = Log::capture();
    let server = DnsServer::start();
    let addresses: Vec<_> = (0..1500).map(|at| format!("10.0.{}.{}", at / 250, at % 250)).collect();
    server.set(NAME, &addresses.iter().map(String::as_str).collect::<Vec<_>>(), 0);
    let mut followed = follow(&server);
    followed.publishes_a_set_that(|set| set.len() == MAX_ENDPOINTS).await;
    until_queried(&server, ROUND_WITH_RETRIES).await;
    followed.has_published_nothing_new();
    assert_eq!(log.count("too many endpoints; the rest are ignored"), (1, 1));
}

#[tokio::test]
async fn short_names_are_found_in_the_search_domains() {
    let server = DnsServer::start();
    server.set("zmq-echo-headless.svc.cluster.local.", &["10.0.0.1"], 0);
    let of_a_pod = "search default.svc.cluster.local svc.cluster.local cluster.local\n\
                    nameserver 10.96.0.10\noptions ndots:5\n";
    let source = Dns::with_resolv_conf(name("zmq-echo-headless", &server), of_a_pod).unwrap();
    let mut followed = Followed::start(source);
    followed.publishes(&[("tcp://10.0.0.1:5555", Ready)]).await;
    // If the domain that had the name fails, another domain's answer would be for another service.
    server.set("zmq-echo-headless.", &["10.6.6.6"], 0);
    server.set_mode(Mode::ServerFailure);
    // Each round tries two names.
    until_queried(&server, 3 * ROUND_WITH_RETRIES).await;
    followed.has_published_nothing_new();
    let mut names: Vec<_> = server.questions().into_iter().map(|asked| asked.name).collect();
    names.dedup();
    assert_eq!(
        names[..2],
        ["zmq-echo-headless.default.svc.cluster.local.", "zmq-echo-headless.svc.cluster.local."]
    );
    assert!(
        !names.contains(&"zmq-echo-headless.".to_owned()),
        "the bare name was queried: {names:?}"
    );
}

fn in_domains(domains: &str, server: &DnsServer) -> Followed {
    let conf = format!("search {domains}\nnameserver 10.96.0.10\noptions ndots:5\n");
    Followed::start(Dns::with_resolv_conf(name("echo", server), &conf).unwrap())
}

#[tokio::test]
async fn a_silent_search_domain_does_not_delay_the_next_one() {
    let server = DnsServer::start();
    server.set_mode_of_name("echo.dead.test.", Mode::Silence);
    let mut followed = in_domains("dead.test alive.test", &server);
    for address in ["127.0.0.1", "127.0.0.2"] {
        server.set("echo.alive.test.", &[address], 0);
        let started = Instant::now();
        followed.publishes(&[(&format!("tcp://{address}:5555"), Ready)]).await;
        let took = started.elapsed();
        assert!(took < ROUND_LIMIT, "{address} came only after {took:?}");
    }
}

#[tokio::test]
async fn an_earlier_search_domain_that_answers_late_takes_precedence_again() {
    let server = DnsServer::start();
    server.set("echo.slow.test.", &["127.0.0.1"], 30);
    server.set("echo.quick.test.", &["127.0.0.2"], 30);
    server.set_mode_of_name("echo.slow.test.", Mode::Late(Duration::from_millis(600)));
    let mut followed = in_domains("slow.test quick.test", &server);
    followed.publishes(&[("tcp://127.0.0.1:5555", Ready)]).await;
    // Until then, the addresses of the quick domain were in use. One query for it is enough to
    // know.
    let names: Vec<_> = server.questions().into_iter().map(|asked| asked.name).collect();
    assert!(
        names.contains(&"echo.quick.test.".to_owned()),
        "the quick domain was not queried: {names:?}"
    );
}

#[tokio::test]
async fn an_invalid_resolv_conf_does_not_stop_resolution() {
    for conf in [
        "options timeout:0 attempts:0 ndots:0\n",
        "options timeout:-1 attempts:-1 ndots:-1\n",
        "options timeout:4000000000 attempts:4000000000 ndots:4000000000\n",
        "options timeout:x attempts:x ndots:x rotate single-request edns0 of-another-resolver\n",
        "options use-vc no-aaaa\n",
        "nameserver\nnameserver dns\nsearch a..b \u{fffd}\nwhatever it is\n",
        "# comment\r\n; comment\r\noptions ndots:1\r\nsearch\r\n",
        "",
    ] {
        let server = DnsServer::start();
        server.set(NAME, &["127.0.0.1"], 30);
        let mut followed =
            Followed::start(Dns::with_resolv_conf(name(NAME, &server), conf).unwrap());
        followed.publishes(&[("tcp://127.0.0.1:5555", Ready)]).await;
        assert_eq!(server.questions()[0].tcp, conf.contains("use-vc"), "{conf}");
    }
}

#[tokio::test]
async fn addresses_that_cannot_belong_to_a_host_are_ignored_and_logged_once() {
    let log = Log::capture();
    let server = DnsServer::start();
    let refused = ["0.0.0.0", "0.1.2.3", "224.0.0.1", "255.255.255.255", "::", "ff02::1"];
    let allowed = ["127.0.0.1", "169.254.0.1"];
    server.set(NAME, &[&refused[..], &allowed[..]].concat(), 0);
    let mut followed = follow(&server);
    followed.publishes(&[("tcp://127.0.0.1:5555", Ready), ("tcp://169.254.0.1:5555", Ready)]).await;
    until_queried(&server, ROUND_WITH_RETRIES).await;
    followed.has_published_nothing_new();
    assert_eq!(log.count("ignoring an address that cannot belong to a host"), (1, 1));
}

#[tokio::test]
async fn an_answer_without_a_usable_address_leaves_the_last_set() {
    assert_keeps_the_last_set(ROUND, |server| server.set(NAME, &["0.0.0.0", "ff02::1"], 0)).await;
}

#[tokio::test]
async fn an_outage_is_logged_when_it_starts_and_when_it_ends() {
    let log = Log::capture();
    let server = DnsServer::start();
    server.set(NAME, &["10.0.0.1"], 0);
    server.set_mode(Mode::ServerFailure);
    let mut followed = follow(&server);
    until_queried(&server, ROUND_WITH_RETRIES).await;
    assert_eq!(log.count("WARN"), (1, 1));
    server.set_mode(Mode::Answer);
    followed.publishes(&[("tcp://10.0.0.1:5555", Ready)]).await;
    until("the end of the outage is logged", || log.count("INFO") == (2, 1)).await;
}
