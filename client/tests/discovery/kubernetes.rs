//! EndpointSlices, against an API server on loopback.

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

/// One endpoint is known and watched.
async fn watched(api: &ApiServer) -> Followed {
    api.say(address(1), Condition::Ready);
    let mut followed = follow(api).await;
    followed.says(&[("tcp://10.0.0.1:5555", Ready)]).await;
    until("it watches", || api.watchers() == 1).await;
    followed
}

fn lists(api: &ApiServer) -> usize {
    api.asked().iter().filter(|asked| **asked == Asked::List).count()
}

#[tokio::test]
async fn endpoints_are_followed_from_ready_to_gone() {
    let api = ApiServer::start();
    let mut followed = watched(&api).await;
    api.say(address(2), Condition::NotReady);
    followed.says(&[("tcp://10.0.0.1:5555", Ready), ("tcp://10.0.0.2:5555", Draining)]).await;
    api.say(address(2), Condition::Ready);
    followed.says(&[("tcp://10.0.0.1:5555", Ready), ("tcp://10.0.0.2:5555", Ready)]).await;
    api.say(address(1), Condition::Terminating);
    followed.says(&[("tcp://10.0.0.1:5555", Draining), ("tcp://10.0.0.2:5555", Ready)]).await;
    api.forget(address(1));
    followed.says(&[("tcp://10.0.0.2:5555", Ready)]).await;
    api.forget(address(2));
    followed.says(&[]).await;
    assert_eq!(lists(&api), 1);
    followed.ends().await;
}

#[tokio::test]
async fn that_there_are_none_is_said() {
    let api = ApiServer::start();
    follow(&api).await.says(&[]).await;
}

#[tokio::test]
async fn an_api_that_fails_after_it_has_named_none_is_not_said_to_keep_endpoints() {
    let log = Log::capture();
    let api = ApiServer::start();
    let mut followed = follow(&api).await;
    followed.says(&[]).await;
    api.fail_with(Some(500));
    let failed = || log.has("the source cannot be asked, and has named no endpoint");
    until("it fails", || {
        api.end_watches(Ending::Complete);
        failed()
    })
    .await;
}

#[tokio::test]
async fn a_port_that_no_slice_has_is_named() {
    let log = Log::capture();
    let api = ApiServer::start();
    for name in ["a", "b"] {
        let ports = json!([{"name": "http", "port": 8080}]);
        let endpoints = json!([{"addresses": ["10.0.0.1"]}]);
        api.put(name, json!({"addressType": "IPv4", "ports": ports, "endpoints": endpoints}));
    }
    follow(&api).await.says(&[]).await;
    assert_eq!(log.count("endpoints without the port"), (2, 1));
    let why = "no TCP port is named zmq; the ports are: http (8080)";
    assert_eq!(log.count(why), (2, 1));
    assert_eq!(log.count("the source names no endpoints"), (2, 1));
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
        Followed::start(source).says(&[("tcp://10.0.0.1:5555", Ready)]).await;
    }
}

#[tokio::test]
async fn all_slices_of_the_service_and_of_no_other_are_taken() {
    let api = ApiServer::start();
    for at in 0..50 {
        api.say(address(at), Condition::Ready);
    }
    let stranger = json!({
        "addressType": "IPv4", "ports": [{"name": "zmq", "port": 5555}],
        "endpoints": [{"addresses": ["10.6.6.6"]}],
    });
    api.put_of("another", "another-1", stranger.clone());
    let mut followed = follow(&api).await;
    followed.says_what(|set| set.len() == 50).await;
    assert!(lists(&api) > 1, "in pages");
    until("it watches", || api.watchers() == 1).await;
    api.put_of("another", "another-2", stranger);
    api.forget(address(0));
    followed.says_what(|set| set.len() == 49).await;
}

#[tokio::test]
async fn a_watch_that_ends_or_breaks_is_made_again_from_where_it_stopped() {
    for ending in [Ending::Complete, Ending::Broken] {
        let api = ApiServer::start();
        let mut followed = watched(&api).await;
        api.say(address(2), Condition::Ready);
        followed.says(&[("tcp://10.0.0.1:5555", Ready), ("tcp://10.0.0.2:5555", Ready)]).await;
        let stopped = api.version();
        api.end_watches(ending);
        // Missed by every watch, and found all the same.
        api.forget(address(1));
        followed.says(&[("tcp://10.0.0.2:5555", Ready)]).await;
        assert_eq!(api.asked()[2..], [Asked::Watch(stopped)], "{ending:?}");
        assert_eq!(lists(&api), 1);
    }
}

#[tokio::test]
async fn a_bookmark_moves_the_version_from_which_a_watch_goes_on() {
    let api = ApiServer::start();
    let followed = watched(&api).await;
    let version = api.bookmark();
    until("it has read it", || {
        api.end_watches(Ending::Complete);
        api.asked().last() == Some(&Asked::Watch(version))
    })
    .await;
    followed.has_said_nothing_new();
}

#[tokio::test]
async fn a_forgotten_version_is_listed_anew_and_the_last_set_stands_until_then() {
    for gone in [Gone::Status, Gone::Event] {
        let log = Log::capture();
        let api = ApiServer::start();
        let mut followed = watched(&api).await;
        api.compact(gone);
        api.delay_by(Duration::from_millis(500));
        api.end_watches(Ending::Complete);
        until("it lists anew", || lists(&api) == 2).await;
        followed.has_said_nothing_new();
        api.say(address(2), Condition::Ready);
        followed.says(&[("tcp://10.0.0.1:5555", Ready), ("tcp://10.0.0.2:5555", Ready)]).await;
        // A connection that breaks meanwhile, as on a busy machine, is one and may be there.
        assert_eq!(log.count("forgotten").1, 0, "a rule of the API is no failure");
    }
}

#[tokio::test]
async fn an_api_that_fails_leaves_the_last_set() {
    let api = ApiServer::start();
    let mut followed = watched(&api).await;
    api.fail_with(Some(500));
    api.compact(Gone::Status);
    api.end_watches(Ending::Broken);
    let before = api.asked().len();
    until("it tries again", || api.asked().len() > before + 3).await;
    followed.has_said_nothing_new();
    api.say(address(2), Condition::Ready);
    api.fail_with(None);
    followed.says(&[("tcp://10.0.0.1:5555", Ready), ("tcp://10.0.0.2:5555", Ready)]).await;
}

#[tokio::test]
async fn an_answer_of_html_leaves_the_last_set() {
    let log = Log::capture();
    let api = ApiServer::start();
    let followed = watched(&api).await;
    api.answer_with("<html>");
    api.compact(Gone::Event);
    api.end_watches(Ending::Complete);
    until("it lists again", || lists(&api) > 2).await;
    followed.has_said_nothing_new();
    assert_eq!(log.count("an answer that is not understood"), (1, 1));
}

#[tokio::test]
async fn an_answer_above_the_limit_is_given_up() {
    let endless = || " ".repeat(17 << 20);
    let log = Log::capture();
    let api = ApiServer::start();
    api.say(address(1), Condition::Ready);
    // No limit on time, which a slow machine would exceed first.
    let patience = Patience { answer: DEADLINE, ..Patience::default() };
    let mut followed = Followed::start(source(&api).await.with_patience(patience));
    followed.says(&[("tcp://10.0.0.1:5555", Ready)]).await;
    until("it watches", || api.watchers() == 1).await;
    api.send(endless());
    until("it lists anew", || lists(&api) == 2).await;
    until("it watches", || api.watchers() == 1).await;
    assert_eq!(log.count("more than 16777216 bytes").1, 1);
    api.say(address(2), Condition::Ready);
    followed.says(&[("tcp://10.0.0.1:5555", Ready), ("tcp://10.0.0.2:5555", Ready)]).await;
    let log = Log::capture();
    api.answer_with(endless());
    api.compact(Gone::Status);
    api.end_watches(Ending::Complete);
    until("it lists again", || lists(&api) > 3).await;
    followed.has_said_nothing_new();
    assert_eq!(log.count("more than 16777216 bytes"), (1, 1));
}

#[tokio::test]
async fn nothing_is_said_before_the_first_list() {
    let api = ApiServer::start();
    api.fail_with(Some(503));
    let mut followed = follow(&api).await;
    until("it tries again", || api.asked().len() > 2).await;
    followed.has_said_nothing_new();
    api.say(address(1), Condition::Ready);
    api.fail_with(None);
    followed.says(&[("tcp://10.0.0.1:5555", Ready)]).await;
}

#[tokio::test]
async fn tries_come_ever_more_seldom() {
    let api = ApiServer::start();
    api.fail_with(Some(500));
    let _followed = follow(&api).await;
    let started = std::time::Instant::now();
    until("it tries again", || api.asked().len() == 5).await;
    // The least that four waits with jitter take: 50, 100, 200 and 400 ms.
    assert!(started.elapsed() > Duration::from_millis(700), "{:?}", started.elapsed());
}

#[tokio::test]
async fn retry_after_is_respected_as_seconds_and_as_a_date() {
    let seconds = || "2".to_owned();
    // It has whole seconds.
    let date = || httpdate::fmt_http_date(SystemTime::now() + Duration::from_secs(3));
    let values: [(u16, &dyn Fn() -> String); 4] =
        [(429, &seconds), (503, &date), (403, &seconds), (410, &seconds)];
    for (code, value) in values {
        let api = ApiServer::start();
        api.fail_with(Some(code));
        api.retry_after(&value());
        let started = std::time::Instant::now();
        let _followed = follow(&api).await;
        until("it tries again", || api.asked().len() == 2).await;
        assert!(started.elapsed() > Duration::from_millis(1900), "{code} {:?}", started.elapsed());
    }
}

#[tokio::test]
async fn retry_after_makes_no_wait_shorter() {
    let api = ApiServer::start();
    api.fail_with(Some(429));
    api.retry_after("0");
    let _followed = follow(&api).await;
    let started = std::time::Instant::now();
    until("it tries again", || api.asked().len() == 5).await;
    // The least that four waits with jitter take: 50, 100, 200 and 400 ms.
    assert!(started.elapsed() > Duration::from_millis(700), "{:?}", started.elapsed());
}

#[tokio::test]
async fn watches_that_end_at_once_are_made_ever_more_seldom() {
    let api = ApiServer::start();
    api.say(address(1), Condition::Ready);
    // The API ends each watch after this time.
    let patience = Patience { watch: Duration::ZERO, ..Patience::default() };
    let started = std::time::Instant::now();
    let _followed = Followed::start(source(&api).await.with_patience(patience));
    until("it watches again", || api.asked().len() >= 6).await;
    // The least that four waits with jitter take: 50, 100, 200 and 400 ms.
    assert!(started.elapsed() > Duration::from_millis(700), "{:?}", started.elapsed());
    assert_eq!(lists(&api), 1);
}

#[tokio::test]
async fn a_watch_on_which_no_byte_comes_is_noticed() {
    let api = ApiServer::start();
    api.say(address(1), Condition::Ready);
    let patience = Patience {
        watch: Duration::from_secs(2),
        grace: Duration::from_millis(500),
        ..Patience::default()
    };
    let mut followed = Followed::start(source(&api).await.with_patience(patience));
    followed.says(&[("tcp://10.0.0.1:5555", Ready)]).await;
    until("it watches", || api.watchers() == 1).await;
    api.silence_watches();
    api.forget(address(1));
    followed.says(&[]).await;
    assert_eq!(lists(&api), 1);
}

#[tokio::test]
async fn an_answer_that_comes_too_late_is_given_up() {
    let api = ApiServer::start();
    api.say(address(1), Condition::Ready);
    api.delay_by(Duration::from_secs(3600));
    let patience = Patience { answer: Duration::from_millis(100), ..Patience::default() };
    let mut late = Followed::start(source(&api).await.with_patience(patience));
    until("it gives up", || lists(&api) > 1).await;
    late.has_said_nothing_new();
    // Slow, and not too late.
    api.delay_by(Duration::from_millis(200));
    follow(&api).await.says(&[("tcp://10.0.0.1:5555", Ready)]).await;
    api.delay_by(Duration::ZERO);
    late.says(&[("tcp://10.0.0.1:5555", Ready)]).await;
}

#[tokio::test]
async fn a_failure_is_logged_where_it_begins_and_where_it_ends() {
    let log = Log::capture();
    let api = ApiServer::start();
    let followed = watched(&api).await;
    api.fail_with(Some(403));
    api.end_watches(Ending::Complete);
    until("it tries again", || api.asked().len() > 5).await;
    assert_eq!(log.count("the API answered 403: the test wants 403"), (1, 1));
    api.fail_with(None);
    until("the end is logged", || log.count("INFO") == (2, 1)).await;
    followed.ends().await;
}

#[tokio::test]
async fn an_api_that_nobody_serves_is_named() {
    let log = Log::capture();
    let api = ApiServer::start();
    let source = source(&api).await;
    drop(api);
    let _followed = Followed::start(source);
    until("it is logged", || log.count("WARN").0 > 0).await;
    assert_eq!(log.count("refused"), (1, 1));
}

#[tokio::test]
async fn a_client_over_tls_needs_no_choice_of_a_provider() {
    let mut config = Config::new("https://127.0.0.1:1".parse().unwrap());
    config.accept_invalid_certs = true;
    let (namespace, service) = ("a".to_owned(), "b".to_owned());
    let port = ServicePort { namespace, service, port: PodPort::Only };
    let _followed = Followed::start(Kubernetes::new(port, client_of(config).unwrap()));
    let log = Log::capture();
    until("it is refused", || log.count("refused") == (1, 1)).await;
}
