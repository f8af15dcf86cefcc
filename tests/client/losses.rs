//! Lost requests affect no other request and are counted once.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::future::join_all;
use zmq_echo_client::{Backoff, ClientConfig, RequestError};

use super::peers::{Action, Peer, scripted};
use super::{Counted, fixed, hasty, patient, until};
use crate::support::{DEADLINE, Server};

const ESTABLISHED: &str = "zmq_echo_client_connections_total{outcome=\"established\"}";
const TIMED_OUT: &str = "zmq_echo_client_attempt_failures_total{reason=\"timed_out\"}";

#[tokio::test]
async fn if_one_in_forty_of_280_requests_is_lost_seven_fail() {
    const CALLERS: u32 = 14;
    let (count, lost) = (AtomicU64::new(0), Arc::new(Mutex::new(BTreeSet::new())));
    let losing = Arc::clone(&lost);
    let endpoint = scripted(move |payload| {
        if count.fetch_add(1, SeqCst) % 40 == 19 {
            losing.lock().unwrap().insert(payload.to_vec());
            return Action::Ignore;
        }
        // Slow enough that other requests are in flight whenever one times out.
        Action::Echo(Duration::from_millis(300))
    });
    let timeout = Duration::from_secs(5);
    let deadline = Some(2 * timeout);
    let config = ClientConfig { timeout, deadline, retries: 0, ..patient() };
    let client = Counted::new(config, fixed(&[&endpoint]));
    client.client.ready().await;
    let callers = (0..CALLERS).map(|caller| {
        let client = client.client.clone();
        async move {
            let mut failed = Vec::new();
            for number in 0..280 / CALLERS {
                let payload = format!("{caller} {number}");
                if let Err(error) = client.request(payload.clone().into()).await {
                    assert!(matches!(error, RequestError::TimedOut { attempts: 1, .. }), "{error}");
                    failed.push(payload.into_bytes());
                }
            }
            failed
        }
    });
    let failed: BTreeSet<_> = join_all(callers).await.into_iter().flatten().collect();
    assert_eq!(failed.len(), 7);
    assert_eq!(failed, *lost.lock().unwrap());
    assert_eq!(client.metric(ESTABLISHED), 1.0);
    assert_eq!(client.metric(TIMED_OUT), 7.0);
}

#[tokio::test]
async fn repeated_losses_do_not_lead_to_a_reconnect_while_checks_are_answered() {
    let endpoint = scripted(|payload| match payload {
        b"lose" => Action::Ignore,
        _ => Action::Echo(Duration::ZERO),
    });
    let config = ClientConfig { timeout: Duration::from_millis(500), retries: 0, ..patient() };
    let client = Counted::new(config, fixed(&[&endpoint]));
    let losing = async {
        for _ in 0..8 {
            assert!(client.request("lose").await.is_err());
        }
    };
    let got = client.load(4, losing).await;
    assert!(got.iter().filter(|got| got.reply.is_ok()).count() > 8);
    assert_eq!(client.metric(ESTABLISHED), 1.0);
    let checks = client.metric("zmq_echo_client_checks_total{outcome=\"answered\"}");
    assert!(checks >= 8.0, "only {checks} checks were answered");
}

#[tokio::test]
async fn endless_durations_do_not_panic() {
    let server = Server::start(&[]);
    let silent = Peer::silent().await;
    let never = Duration::MAX;
    let config = ClientConfig {
        timeout: never,
        connect_timeout: never,
        heartbeat_interval: never,
        heartbeat_timeout: never,
        retry_backoff: Backoff::new(never, never),
        ..ClientConfig::default()
    };
    for deadline in [None, Some(never)] {
        let config = ClientConfig { deadline, ..config.clone() };
        let client = Counted::new(config.clone(), fixed(&[&server.endpoint]));
        assert_eq!(client.request("here").await.unwrap().payload, "here");
        let client = Counted::new(config, fixed(&[&silent.endpoint]));
        let asked = client.spawn("waits");
        until("the request is open at the endpoint", || client.outstanding(&silent.endpoint) == 1)
            .await;
        assert!(!asked.is_finished());
    }
    // If the timeout does not end it, the deadline does.
    let config = ClientConfig { deadline: Some(Duration::from_millis(50)), ..config };
    let client = Counted::new(config, fixed(&[&silent.endpoint]));
    client.client.ready().await;
    assert!(client.request("unheard").await.is_err());
}

#[tokio::test]
async fn each_failed_attempt_is_counted_once() {
    const REQUESTS: usize = 400;
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let random = Arc::new(Mutex::new(fastrand::Rng::with_seed(seed)));
    let endpoints = [(); 3].map(|()| {
        let random = Arc::clone(&random);
        scripted(move |_| {
            let mut random = random.lock().unwrap();
            match random.u32(..100) {
                0..5 => Action::Ignore,
                5..8 => Action::HangUp,
                _ => Action::Echo(Duration::from_millis(random.u64(..5))),
            }
        })
    });
    let config = ClientConfig {
        timeout: Duration::from_millis(300),
        deadline: Some(DEADLINE),
        max_connection_replies: 20 << 10,
        ..hasty()
    };
    let endpoints = endpoints.each_ref().map(String::as_str);
    let client = Counted::new(config, fixed(&endpoints));
    // Large replies count towards the memory limit, which is too small for all of them at once.
    let sizes: Vec<_> = (0..REQUESTS).map(|_| random.lock().unwrap().usize(..10 << 10)).collect();
    let client = &client;
    let asked = sizes.chunks(REQUESTS / 20).map(|sizes| async move {
        for size in sizes {
            let _ = client.client.request(vec![1; *size].into()).await;
        }
    });
    join_all(asked).await;
    assert_eq!(client.metric("zmq_echo_client_outstanding"), 0.0);
    let failures = |reason| {
        client.metric(&format!("zmq_echo_client_attempt_failures_total{{reason=\"{reason}\"}}"))
    };
    let requests = |outcome| {
        client.metric(&format!("zmq_echo_client_requests_total{{outcome=\"{outcome}\"}}"))
    };
    let failed = ["timed_out", "disconnected", "reply_memory"].map(failures);
    // Which kind comes first depends on the machine: a connection that ends takes the requests with
    // it that would have timed out.
    assert!(failed[0] + failed[1] > 0.0, "the test needs failed attempts: {failed:?}");
    let (attempts, answered) =
        (client.metric("zmq_echo_client_attempts_total"), requests("answered"));
    assert_eq!(
        failed.iter().sum::<f64>(),
        attempts - answered,
        "an attempt was counted twice or not at all: {failed:?}"
    );
    let ended: f64 = RequestError::KINDS.map(requests).iter().sum();
    assert_eq!(ended + answered, REQUESTS as f64);
    // Every attempt except a request's first is a retry.
    assert_eq!(client.metric("zmq_echo_client_retries_total"), attempts - REQUESTS as f64);
}
