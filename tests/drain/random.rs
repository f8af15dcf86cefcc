//! Drains with random peers: every request is answered or reported.

use std::thread;
use std::time::Duration;

use fastrand::Rng;
use rustix::process::Signal;

use super::peers::{Account, Leaves, Plan};
use crate::support::Server;

/// To repeat a failed round, set this variable to the seed that the test printed.
const SEED: &str = "ZMQ_ECHO_TEST_SEED";

/// The peers of a round, besides those that send a limited number of requests and stop when they
/// read the server's FIN.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum With {
    /// No other peers: the counts match exactly.
    Nothing,
    /// Only peers that pause longer than the quiet period between requests, so some requests arrive
    /// too late.
    OnlyHesitant,
    /// A peer that never pauses, so the drain lasts until the deadline.
    Endless,
    /// Peers that disconnect by themselves and so lose their own replies.
    Leavers,
    /// Only peers that neither pause nor wait, and a server that waits long enough for them: every
    /// request is answered.
    OnlyPrompt,
}

#[test]
fn every_request_of_prompt_peers_is_answered() {
    run(With::OnlyPrompt, &[5]);
}

#[test]
fn each_request_of_random_peers_is_answered_or_reported() {
    run(With::Nothing, &[1, 2]);
}

#[test]
fn each_request_that_arrives_too_late_is_reported() {
    run(With::OnlyHesitant, &[7, 13_776_755_115_928_494_281, 16_957_107_922_618_758_782]);
}

#[test]
fn each_request_is_answered_or_reported_when_a_peer_never_pauses() {
    run(With::Endless, &[3]);
}

#[test]
fn peers_that_leave_do_not_affect_the_counts_of_the_others() {
    run(With::Leavers, &[4]);
}

/// Runs rounds with these seeds and a fresh one, all at the same time.
fn run(with: With, seeds: &[u64]) {
    let again = std::env::var(SEED).map(|seed| seed.parse().expect("the seed is a number"));
    let fresh = fastrand::u64(..);
    thread::scope(|scope| {
        for seed in seeds.iter().copied().chain([fresh]).chain(again) {
            thread::Builder::new()
                .name(format!("{SEED}={seed}"))
                .spawn_scoped(scope, move || round(with, seed))
                .expect("a thread can be started");
        }
    });
}

fn plans(with: With, random: &mut Rng) -> Vec<Plan> {
    match with {
        With::OnlyPrompt => return (0..6).map(|_| Plan::prompt(random)).collect(),
        With::OnlyHesitant => {
            let hesitant = (0..random.usize(1..4)).map(|_| Plan::hesitant(random));
            return hesitant.collect();
        }
        _ => {}
    }
    let mut plans: Vec<Plan> = (0..random.usize(3..6)).map(|_| Plan::any(random)).collect();
    plans.push(Plan::trickle(random));
    plans.push(Plan::ping(random));
    let late = Duration::from_millis(random.u64(..1500));
    plans.push(Plan::any(random).late(late));
    match with {
        With::Nothing | With::OnlyPrompt | With::OnlyHesitant => {}
        With::Endless => plans.push(Plan::endless(random)),
        With::Leavers => {
            for how in [Leaves::Orderly, Leaves::ByReset] {
                let after = Duration::from_millis(random.u64(..2000));
                plans.push(Plan::any(random).leaving(after, how));
            }
            plans.push(Plan::any(random).leaving(Duration::ZERO, Leaves::Orderly));
        }
    }
    plans
}

fn round(with: With, seed: u64) {
    let mut random = Rng::with_seed(seed);
    let plans = plans(with, &mut random);
    // A peer that never pauses is limited by the deadline. No other peer needs nearly as long.
    let timeout = Duration::from_secs(if with == With::Endless { 8 } else { 20 });
    let quiet = if with == With::OnlyPrompt { "10s" } else { "300ms" };
    let delay = *random.choice(&["0s", "300ms"]).unwrap();
    let mut server = Server::start(&[
        "--drain-delay",
        delay,
        "--drain-quiet",
        quiet,
        "--drain-timeout",
        &format!("{}s", timeout.as_secs()),
        // The server must send nothing besides replies, so that only the peers send PINGs.
        "--heartbeat-interval",
        "0s",
    ]);
    let address = server.address();
    // A peer without a delay is connected before the signal is sent.
    let early = plans.iter().map(|plan| plan.late.is_none().then(|| plan.connect(address)));
    let early: Vec<_> = early.collect();
    let signal_after = random.u64(..if with == With::OnlyPrompt { 50 } else { 1500 });
    let accounts: Vec<Account> = thread::scope(|scope| {
        let mut peers = Vec::new();
        for (plan, early) in plans.iter().zip(early) {
            peers.push(scope.spawn(move || {
                let peer = early.unwrap_or_else(|| {
                    thread::sleep(plan.late.expect("a peer that is not connected yet has a delay"));
                    plan.connect(address)
                });
                peer.map_or_else(Account::default, |peer| peer.run())
            }));
        }
        thread::sleep(Duration::from_millis(signal_after));
        server.signal(Signal::TERM);
        peers.into_iter().map(|peer| peer.join().expect("no peer panics")).collect()
    });
    let code = server.wait();
    let drained = server.wait_for_record("drained");
    let shown = || {
        let lines =
            plans.iter().zip(&accounts).map(|(plan, account)| format!("{account:?} {plan:?}"));
        let lines: Vec<String> = lines.collect();
        format!("{SEED}={seed} {with:?}, exit {code}: {drained}\n{}", lines.join("\n"))
    };
    let number = |field: &str| {
        drained[field]
            .as_u64()
            .unwrap_or_else(|| panic!("the record has no `{field}`: {}", shown()))
    };
    eprintln!("{SEED}={seed} {with:?}, exit {code}: {drained}");
    if with == With::OnlyPrompt {
        for peer in &accounts {
            assert_eq!((peer.written, peer.begun), (peer.received, 0), "{}", shown());
        }
        assert_eq!(code, 0, "{}", shown());
    }

    let (left, stayed): (Vec<Account>, Vec<Account>) =
        accounts.iter().copied().partition(|account| account.left);
    let unanswered: u64 = stayed.iter().map(|peer| peer.reached - peer.received).sum();
    let theirs: u64 = left.iter().map(|peer| peer.written - peer.received).sum();
    let begun: u64 = stayed.iter().map(|peer| peer.begun).sum();
    let received: u64 = accounts.iter().map(|peer| peer.received).sum();
    let reported = number("owed") + number("discarded");
    let bytes = number("owed_bytes") + number("discarded_bytes");
    let lost = number("lost");

    // The exit code matches the record.
    assert_eq!(code, if reported + bytes > 0 { 4 } else { 0 }, "{}", shown());
    // Every request is either answered or reported, and nothing else is reported.
    assert!(
        reported <= unanswered + theirs,
        "more requests are reported than the {unanswered} and {theirs} that are unanswered: {}",
        shown()
    );
    assert!(
        lost <= theirs,
        "more replies are reported as lost than the {theirs} of peers that left: {}",
        shown()
    );
    assert!(
        unanswered == 0 || code == 4,
        "{unanswered} requests are unanswered, but the exit code hides it: {}",
        shown()
    );
    if bytes == 0 {
        assert!(
            number("answered") <= received + theirs,
            "more replies are reported than the {received} that peers received: {}",
            shown()
        );
    }
    // If the server closed a connection because time ran out, nobody knows how many requests the
    // bytes in it contained.
    let close_by = timeout - timeout.div_f64(10.0).min(Duration::from_secs(1)) / 4;
    if drained["duration"].as_f64().expect("seconds") >= close_by.as_secs_f64() {
        return;
    }
    assert!(
        unanswered <= reported,
        "fewer requests are reported than the {unanswered} that are unanswered: {}",
        shown()
    );
    for peer in &stayed {
        assert_eq!(
            peer.reached,
            peer.written,
            "the relay did not deliver every request: {}",
            shown()
        );
    }
    if left.is_empty() {
        assert_eq!(reported, unanswered, "{}", shown());
        assert_eq!(
            number("discarded_bytes"),
            begun,
            "the discarded bytes are not those of incomplete messages: {}",
            shown()
        );
        assert_eq!(
            number("owed_bytes"),
            0,
            "replies are reported as owed although all were read: {}",
            shown()
        );
    }
}
