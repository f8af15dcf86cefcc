//! How much memory a large response of the API takes, measured in a separate process.

use std::path::Path;
use std::process::{Child, Command, Stdio};

use super::{Followed, until};
use crate::support::api_server::{ApiServer, Asked, Ending};

/// The size of each large response: half of the limit, and many times what a follower needs
/// otherwise.
const SIZE: usize = 8 << 20;

/// Tells the child process which kubeconfig to use.
const KUBECONFIG: &str = "ZMQ_ECHO_TEST_KUBECONFIG";

/// A process that follows the API's endpoints. Dropping this ends it.
struct Follower(Child);

impl Follower {
    fn start(api: &ApiServer) -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "discovery::memory::follows_until_it_is_killed", "--ignored"]);
        command.env(KUBECONFIG, api.kubeconfig()).stdout(Stdio::null());
        Self(command.spawn().unwrap())
    }

    /// The peak resident memory so far, in bytes.
    fn peak(&self) -> usize {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.0.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
        line.split_whitespace().next().unwrap().parse::<usize>().unwrap() << 10
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test]
#[ignore = "the other tests here start it as a process"]
async fn follows_until_it_is_killed() {
    let kubeconfig = std::env::var_os(KUBECONFIG).expect("started by another test");
    let _followed = Followed::start(ApiServer::source(Path::new(&kubeconfig)).await);
    std::future::pending().await
}

/// The peak memory of a follower that has read the response set up by `prepare`, minus the peak of
/// one that has read an empty list.
async fn peak(prepare: impl FnOnce(&ApiServer), has_read: impl Fn(&ApiServer) -> bool) -> usize {
    let small = ApiServer::start();
    let idle = Follower::start(&small);
    until("the follower watches the API", || small.watchers() == 1).await;
    let api = ApiServer::start();
    prepare(&api);
    let follower = Follower::start(&api);
    until("the follower has read the response", || has_read(&api)).await;
    follower.peak().saturating_sub(idle.peak())
}

#[track_caller]
fn assert_at_most_four_times(peak: usize) {
    assert!(peak <= 4 * SIZE, "a response of {SIZE} bytes took {peak} bytes of memory");
    assert!(peak >= SIZE / 2, "only {peak} bytes were used, so the response was not read");
}

/// `before`, then `item` repeated up to [`SIZE`] bytes, then `after`.
fn filled(before: &str, item: &str, after: &str) -> String {
    let items = vec![item; SIZE / (item.len() + 1)];
    format!("{before}{}{after}", items.join(","))
}

const LIST: &str = r#"{"metadata":{"resourceVersion":"100"},"items":["#;

#[tokio::test]
async fn a_list_of_many_items_takes_at_most_four_times_its_size() {
    for item in ["{}", r#"{"metadata":{"name":"a"},"endpoints":[{},{}],"ports":[{},{}]}"#] {
        let list = filled(LIST, item, "]}");
        let peak = peak(|api| api.answer_with(list), |api| api.watchers() == 1).await;
        assert_at_most_four_times(peak);
    }
}

#[tokio::test]
async fn an_item_of_many_entries_takes_at_most_four_times_its_size() {
    for entry in ["{}", r#"{"addresses":["::"]}"#, r#"{"addresses":["","","",""]}"#] {
        let before = format!(r#"{LIST}{{"addressType":"IPv6","endpoints":["#);
        let list = filled(&before, entry, r#"],"ports":[{"name":"zmq","port":1}]}]}"#);
        let peak = peak(|api| api.answer_with(list), |api| api.watchers() == 1).await;
        assert_at_most_four_times(peak);
    }
}

#[tokio::test]
async fn an_event_takes_at_most_four_times_its_size() {
    let after = r#"],"metadata":{"name":"a","resourceVersion":"4000"}},"type":"ADDED"}"#;
    let event = filled(r#"{"object":{"endpoints":["#, "{}", after) + "\n";
    let api = ApiServer::start();
    let follower = Follower::start(&api);
    until("the follower watches the API", || api.watchers() == 1).await;
    let before = follower.peak();
    api.send(event);
    api.end_watches(Ending::Complete);
    until("the follower has read the event", || api.asked().contains(&Asked::Watch(4000))).await;
    assert_at_most_four_times(follower.peak() - before);
}

#[tokio::test]
async fn a_refusal_takes_at_most_four_times_its_size() {
    let status = filled(r#"{"code":403,"message":"no","details":{"causes":["#, "{}", "]}}");
    let refuse = |api: &ApiServer| {
        api.answer_with(status);
        api.fail_with(Some(403));
    };
    assert_at_most_four_times(peak(refuse, |api| api.asked().len() > 1).await);
}
