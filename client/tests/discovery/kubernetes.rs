//! Discovery by EndpointSlices, against an API server on loopback.

use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

use kube::Config;
use serde_json::json;
use zmq_echo_client::discovery::EndpointState::{Draining, Ready};
use zmq_echo_client::discovery::kubernetes::{Kubernetes, Patience, client_of};
use zmq_echo_client::discovery::{PodPort, ServicePort};

use super::{Followed, until};
use crate::log_schema::captured::Log;
use crate::support::DEADLINE;
use crate::support::api_server::{ApiServer, Asked, Condition, Ending, Gone};

async fn source(api: &ApiServer) -> Kubernetes {
    ApiServer::source(&api.kubeconfig()).await
}

async fn follow(api: &ApiServer) -> Followed {
    Followed::start(source(api).await)
}

fn address(last: u8) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, last], 5555))
}

/// Starts a follower that knows one endpoint and watches for more.
async fn watched(api: &ApiServer) -> Followed {
    api.set(address(1), Condition::Ready);
    let mut followed = follow(api).await;
    followed.publishes(&[("tcp://10.0.0.1:5555", Ready)]).await;
    until("the follower watches the API", || api.watchers() == 1).await;
    followed
}

fn lists(api: &ApiServer) -> usize {
    api.asked().iter().filter(|asked| **asked == Asked::List).count()
}

#[tokio::test]
async fn endpoints_are_followed_from_ready_to_gone() {
    let api = ApiServer::start();
    let mut followed = watched(&api).await;
    api.set(address(2), Condition::NotReady);
    followed.publishes(&[("tcp://10.0.0.1:5555", Ready), ("tcp://10.0.0.2:5555", Draining)]).await;
    api.set(address(2), Condition::Ready);
    followed.publishes(&[("tcp://10.0.0.1:5555", Ready), ("tcp://10.0.0.2:5555", Ready)]).await;
    api.set(address(1), Condition::Terminating);
    followed.publishes(&[("tcp://10.0.0.1:5555", Draining), ("tcp://10.0.0.2:5555", Ready)]).await;
    api.remove(address(1));
    followed.publishes(&[("tcp://10.0.0.2:5555", Ready)]).await;
    api.remove(address(2));
    followed.publishes(&[]).await;
    assert_eq!(lists(&api), 1);
    followed.assert_ends().await;
}

#[tokio::test]
async fn an_empty_set_is_published() {
    let api = ApiServer::start();
    follow(&api).await.publishes(&[]).await;
}

#[tokio::test]
async fn the_log_does_not_claim_to_keep_endpoints_if_there_are_none() {
    let log = Log::capture();
    let api = ApiServer::start();
    let mut followed = follow(&api).await;
    followed.publishes(&[]).await;
    api.fail_with(Some(500));
    let failed = || log.has("endpoint discovery failed; the last answer listed no endpoints");
    until("discovery fails", || {
        api.end_watches(Ending::Complete);
        failed()
    })
    .await;
}

#[tokio::test]
async fn a_missing_port_is_logged_with_the_ports_that_exist() {
    let log = Log::capture();
    let api = ApiServer::start();
    for name in ["a", "b"] {
        let ports = json!([{"name": "http", "port": 8080}]);
        let endpoints = json!([{"addresses": ["10.0.0.1"]}]);
        api.put(name, json!({"addressType": "IPv4", "ports": ports, "endpoints": endpoints}));
    }
    follow(&api).await.publishes(&[]).await;
    assert_eq!(log.count("the endpoints do not have the requested port"), (2, 1));
    let why = "no TCP port is named zmq; the ports are: http (8080)";
    assert_eq!(log.count(why), (2, 1));
    assert_eq!(log.count("the endpoint source lists no endpoints"), (2, 1));
    assert_eq!(log.count("http").1, 1);
}

#[tokio::test]
async fn a_port_without_a_name_is_followed() {
    let api = ApiServer::start();
    let ports = json!([{"name": "", "port": 5555}, {"name": "dns", "port": 53, "protocol": "UDP"}]);
    let endpoints = json!([{"addresses": ["10.0.0.1"]}]);
    api.put("a", json!({"addressType": "IPv4", "ports": ports, "endpoints": endpoints}));
    for url in ["k8s://default/zmq-echo", "k8s://default/zmq-echo:5555"] {
        let source = ApiServer::source_of(&api.kubeconfig(), url).await;
        Followed::start(source).publishes(&[("tcp://10.0.0.1:5555", Ready)]).await;
    }
}

#[tokio::test]
async fn only_the_slices_of_the_service_are_used() {
    let api = ApiServer::start();
    for at in 0..50 {
        api.set(address(at), Condition::Ready);
    }
    let slice = json!({
        "addressType": "IPv4", "ports": [{"name": "zmq", "port": 5555}],
        "endpoints": [{"addresses": ["10.6.6.6"]}],
    });
    api.put_of("another", "another-1", slice.clone());
    let mut followed = follow(&api).await;
    followed.publishes_a_set_that(|set| set.len() == 50).await;
    assert!(lists(&api) > 1, "the list was not split into pages");
    until("the follower watches the API", || api.watchers() == 1).await;
    api.put_of("another", "another-2", slice);
    api.remove(address(0));
    followed.publishes_a_set_that(|set| set.len() == 49).await;
}

#[tokio::test]
async fn a_watch_that_ends_or_breaks_is_resumed_where_it_stopped() {
    for ending in [Ending::Complete, Ending::Broken] {
        let api = ApiServer::start();
        let mut followed = watched(&api).await;
        api.set(address(2), Condition::Ready);
        followed.publishes(&[("tcp://10.0.0.1:5555", Ready), ("tcp://10.0.0.2:5555", Ready)]).await;
        let stopped = api.version();
        api.end_watches(ending);
        // No watch is open when this changes, but the change is noticed nevertheless.
        api.remove(address(1));
        followed.publishes(&[("tcp://10.0.0.2:5555", Ready)]).await;
        assert_eq!(api.asked()[2..], [Asked::Watch(stopped)], "{ending:?}");
        assert_eq!(lists(&api), 1);
    }
}

#[tokio::test]
async fn a_watch_resumes_from_the_version_of_a_bookmark() {
    let api = ApiServer::start();
    let followed = watched(&api).await;
    let version = api.bookmark();
    until("the follower has read the bookmark", || {
        api.end_watches(Ending::Complete);
        api.asked().last() == Some(&Asked::Watch(version))
    })
    .await;
    followed.has_published_nothing_new();
}

#[tokio::test]
async fn after_an_expired_version_the_last_set_stays_until_the_new_list() {
    for gone in [Gone::Status, Gone::Event] {
        let log = Log::capture();
        let api = ApiServer::start();
        let mut followed = watched(&api).await;
        api.compact(gone);
        api.delay_by(Duration::from_millis(500));
        api.end_watches(Ending::Complete);
        until("the follower requests a new list", || lists(&api) == 2).await;
        followed.has_published_nothing_new();
        api.set(address(2), Condition::Ready);
        followed.publishes(&[("tcp://10.0.0.1:5555", Ready), ("tcp://10.0.0.2:5555", Ready)]).await;
        // On a busy machine a connection may break in the meantime, and that failure may be logged.
        assert_eq!(
            log.count("no longer has this resource version").1,
            0,
            "an expired version is not a failure"
        );
    }
}

#[tokio::test]
async fn a_failing_api_leaves_the_last_set() {
    let api = ApiServer::start();
    let mut followed = watched(&api).await;
    api.fail_with(Some(500));
    api.compact(Gone::Status);
    api.end_watches(Ending::Broken);
    let before = api.asked().len();
    until("the follower retries", || api.asked().len() > before + 3).await;
    followed.has_published_nothing_new();
    api.set(address(2), Condition::Ready);
    api.fail_with(None);
    followed.publishes(&[("tcp://10.0.0.1:5555", Ready), ("tcp://10.0.0.2:5555", Ready)]).await;
}

#[tokio::test]
async fn an_html_answer_leaves_the_last_set() {
    let log = Log::capture();
    let api = ApiServer::start();
    let followed = watched(&api).await;
    api.answer_with("<html>");
    api.compact(Gone::Event);
    api.end_watches(Ending::Complete);
    until("the follower requests another list", || lists(&api) > 2).await;
    followed.has_published_nothing_new();
    assert_eq!(log.count("cannot parse the answer"), (1, 1));
}

#[tokio::test]
async fn an_answer_above_the_size_limit_is_dropped() {
    let endless = || " ".repeat(17 << 20);
    let log = Log::capture();
    let api = ApiServer::start();
    api.set(address(1), Condition::Ready);
    // A long time limit, because a slow machine could exceed the default first.
    let patience = Patience { answer: DEADLINE, ..Patience::default() };
    let mut followed = Followed::start(source(&api).await.with_patience(patience));
    followed.publishes(&[("tcp://10.0.0.1:5555", Ready)]).await;
    until("the follower watches the API", || api.watchers() == 1).await;
    api.send(endless());
    until("the follower requests a new list", || lists(&api) == 2).await;
    until("the follower watches the API", || api.watchers() == 1).await;
    assert_eq!(log.count("more than 16777216 bytes").1, 1);
    api.set(address(2), Condition::Ready);
    followed.publishes(&[("tcp://10.0.0.1:5555", Ready), ("tcp://10.0.0.2:5555", Ready)]).await;
    let log = Log::capture();
    api.answer_with(endless());
    api.compact(Gone::Status);
    api.end_watches(Ending::Complete);
    until("the follower requests further lists", || lists(&api) > 3).await;
    followed.has_published_nothing_new();
    assert_eq!(log.count("more than 16777216 bytes"), (1, 1));
}

#[tokio::test]
async fn nothing_is_published_before_the_first_list() {
    let api = ApiServer::start();
    api.fail_with(Some(503));
    let mut followed = follow(&api).await;
    until("the follower retries", || api.asked().len() > 2).await;
    followed.has_published_nothing_new();
    api.set(address(1), Condition::Ready);
    api.fail_with(None);
    followed.publishes(&[("tcp://10.0.0.1:5555", Ready)]).await;
}

#[tokio::test]
async fn retries_back_off() {
    let api = ApiServer::start();
    api.fail_with(Some(500));
    let _followed = follow(&api).await;
    let started = std::time::Instant::now();
    until("the follower has retried four times", || api.asked().len() == 5).await;
    // The minimum of four waits with jitter: 50, 100, 200 and 400 ms.
    assert!(
        started.elapsed() > Duration::from_millis(700),
        "the retries took only {:?}",
        started.elapsed()
    );
}

#[tokio::test]
async fn retry_after_is_honoured_in_seconds_and_as_a_date() {
    let seconds = || "2".to_owned();
    // HTTP dates have whole seconds.
    let date = || httpdate::fmt_http_date(SystemTime::now() + Duration::from_secs(3));
    let values: [(u16, &dyn Fn() -> String); 4] =
        [(429, &seconds), (503, &date), (403, &seconds), (410, &seconds)];
    for (code, value) in values {
        let api = ApiServer::start();
        api.fail_with(Some(code));
        api.retry_after(&value());
        let started = std::time::Instant::now();
        let _followed = follow(&api).await;
        until("the follower retries", || api.asked().len() == 2).await;
        assert!(
            started.elapsed() > Duration::from_millis(1900),
            "Retry-After of {code} was not honoured: the retry came after {:?}",
            started.elapsed()
        );
    }
}

#[tokio::test]
async fn retry_after_does_not_shorten_the_backoff() {
    let api = ApiServer::start();
    api.fail_with(Some(429));
    api.retry_after("0");
    let _followed = follow(&api).await;
    let started = std::time::Instant::now();
    until("the follower has retried four times", || api.asked().len() == 5).await;
    // The minimum of four waits with jitter: 50, 100, 200 and 400 ms.
    assert!(
        started.elapsed() > Duration::from_millis(700),
        "the retries took only {:?}",
        started.elapsed()
    );
}

#[tokio::test]
async fn watches_that_end_at_once_back_off() {
    let api = ApiServer::start();
    api.set(address(1), Condition::Ready);
    // The API ends each watch after this time.
    let patience = Patience { watch: Duration::ZERO, ..Patience::default() };
    let started = std::time::Instant::now();
    let _followed = Followed::start(source(&api).await.with_patience(patience));
    until("the follower has watched again several times", || api.asked().len() >= 6).await;
    // The minimum of four waits with jitter: 50, 100, 200 and 400 ms.
    assert!(
        started.elapsed() > Duration::from_millis(700),
        "the watches took only {:?}",
        started.elapsed()
    );
    assert_eq!(lists(&api), 1);
}

#[tokio::test]
async fn a_silent_watch_is_replaced() {
    let api = ApiServer::start();
    api.set(address(1), Condition::Ready);
    let patience = Patience {
        watch: Duration::from_secs(2),
        grace: Duration::from_millis(500),
        ..Patience::default()
    };
    let mut followed = Followed::start(source(&api).await.with_patience(patience));
    followed.publishes(&[("tcp://10.0.0.1:5555", Ready)]).await;
    until("the follower watches the API", || api.watchers() == 1).await;
    api.silence_watches();
    api.remove(address(1));
    followed.publishes(&[]).await;
    assert_eq!(lists(&api), 1);
}

#[tokio::test]
async fn an_answer_that_takes_too_long_is_dropped() {
    let api = ApiServer::start();
    api.set(address(1), Condition::Ready);
    api.delay_by(Duration::from_secs(3600));
    let patience = Patience { answer: Duration::from_millis(100), ..Patience::default() };
    let mut late = Followed::start(source(&api).await.with_patience(patience));
    until("the follower drops the slow answer", || lists(&api) > 1).await;
    late.has_published_nothing_new();
    // This answer is slow, but not too late.
    api.delay_by(Duration::from_millis(200));
    follow(&api).await.publishes(&[("tcp://10.0.0.1:5555", Ready)]).await;
    api.delay_by(Duration::ZERO);
    late.publishes(&[("tcp://10.0.0.1:5555", Ready)]).await;
}

#[tokio::test]
async fn an_outage_is_logged_when_it_starts_and_when_it_ends() {
    let log = Log::capture();
    let api = ApiServer::start();
    let followed = watched(&api).await;
    api.fail_with(Some(403));
    api.end_watches(Ending::Complete);
    until("the follower retries", || api.asked().len() > 5).await;
    assert_eq!(log.count("the API answered 403: the test wants 403"), (1, 1));
    api.fail_with(None);
    until("the end of the outage is logged", || log.count("INFO") == (2, 1)).await;
    followed.assert_ends().await;
}

#[tokio::test]
async fn a_refused_connection_to_the_api_is_logged() {
    let log = Log::capture();
    let api = ApiServer::start();
    let source = source(&api).await;
    drop(api);
    let _followed = Followed::start(source);
    until("the refused connection is logged", || log.count("WARN").0 > 0).await;
    assert_eq!(log.count("refused"), (1, 1));
}

#[tokio::test]
async fn tls_works_without_choosing_a_crypto_provider() {
    let mut config = Config::new("https://127.0.0.1:1".parse().unwrap());
    config.accept_invalid_certs = true;
    let (namespace, service) = ("a".to_owned(), "b".to_owned());
    let port = ServicePort { namespace, service, port: PodPort::Only };
    let _followed = Followed::start(Kubernetes::new(port, client_of(config).unwrap()));
    let log = Log::capture();
    until("the refused connection is logged", || log.count("refused") == (1, 1)).await;
}
