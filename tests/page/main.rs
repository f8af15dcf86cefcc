//! The status page in a real browser: its numbers, its states and its accessibility.

mod browser;
mod stand_in;
#[allow(dead_code, reason = "shared with the integration tests, which use all of it")]
#[path = "../support.rs"]
mod support;

use rustix::process::Signal;
use serde_json::Value as Json;

use browser::Browser;
use stand_in::StandIn;
use support::{Server, TEST_SERVER, command, echo, message, raw};

/// The columns of the table behind the charts; p99 and p99.9 follow p50.
const SECONDS: usize = 0;
const REQUESTS: usize = 1;
const RATE: usize = 2;
const P50: usize = 3;

fn open(server: &Server) -> Browser {
    let browser = Browser::open(&format!("http://{}/", server.http));
    browser.wait_until("document.body.dataset.state === 'serving'");
    browser
}

/// The rows of the table behind the charts, oldest first, without the very first reading, which has
/// no predecessor.
fn rows(browser: &Browser) -> Vec<Vec<Option<f64>>> {
    browser.run("byId('numbers').open = true; drawTable()");
    let rows = browser.run(
        "return [...document.querySelectorAll('tbody tr')].reverse()
            .map((row) => [...row.querySelectorAll('data')].map((data) => data.value))",
    );
    let rows = rows.as_array().expect("the table has rows").iter();
    rows.map(|row| row.as_array().expect("a row has cells").iter().map(number).collect())
        .filter(|row: &Vec<_>| row[SECONDS].is_some())
        .collect()
}

fn number(cell: &Json) -> Option<f64> {
    cell.as_str().expect("a cell has a value").parse().ok()
}

/// Waits until the page has read the metrics this many more times.
fn wait_for_readings(browser: &Browser, more: u32) {
    let mut last = browser.run("return points.at(-1).at");
    for _ in 0..more {
        browser.wait_until(&format!("points.at(-1).at > {last}"));
        last = browser.run("return points.at(-1).at");
    }
}

/// A registry after `count` thousand requests: 40 % of them take at most 1 ms, 50 % more at most 2
/// ms, and 0.5 % more than 4 ms, which is the last bound. A thousand requests use a quarter of a
/// second of CPU.
fn registry(count: u64) -> String {
    let mut text = format!("zmq_echo_requests_total{{source=\"client\"}} {}\n", 1000 * count);
    text.push_str(&format!("process_cpu_seconds_total {}\n", 0.25 * count as f64));
    text.push_str(
        "process_open_fds 12\nprocess_max_fds 20000\nprocess_resident_memory_bytes 12000000\n",
    );
    for (bound, of_a_thousand) in [("0.001", 400), ("0.002", 900), ("0.004", 995), ("+Inf", 1000)] {
        let name = "zmq_echo_request_duration_seconds_bucket";
        text.push_str(&format!("{name}{{le=\"{bound}\"}} {}\n", of_a_thousand * count));
    }
    text
}

/// A registry that grows from one scrape to the next.
fn growing() -> impl FnMut() -> String + Send {
    let mut count = 0;
    move || {
        count += 1;
        registry(count)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_page_shows_the_numbers_of_the_registry() {
    const REQUESTS_SENT: u32 = 500;
    let server = Server::start(&["--peer-limit", "1234", "--latency-buckets", "0.000001,0.5,60"]);
    let mut browser = open(&server);
    let mut dealer = server.dealer().await;
    for _ in 0..REQUESTS_SENT {
        echo(&mut dealer, message(&[b"twelve bytes"])).await;
    }
    browser.wait_until(&format!("byId('requests').textContent === '{REQUESTS_SENT}'"));
    wait_for_readings(&browser, 1);

    let sent = f64::from(REQUESTS_SENT);
    assert_eq!(server.metric("zmq_echo_requests_total{source=\"client\"}"), sent);
    for (id, series) in [
        ("requests", "zmq_echo_requests_total{source=\"client\"}"),
        ("probes", "zmq_echo_requests_total{source=\"probe\"}"),
        ("peers", "zmq_echo_peers"),
        ("peers-limit", "zmq_echo_limit_peers"),
        ("pending", "zmq_echo_pending_replies"),
        ("buffered", "zmq_echo_buffered_bytes"),
        ("buffered-limit", "zmq_echo_limit_buffered_bytes"),
    ] {
        assert_eq!(browser.number(id), Some(server.metric(series)), "{id}");
    }
    assert_eq!(browser.text("peers-limit"), "1,234");

    let rows = rows(&browser);
    let counted: f64 = rows.iter().filter_map(|row| row[REQUESTS]).sum();
    assert_eq!(counted, sent, "the rows do not contain each request once: {rows:?}");
    for row in &rows {
        let (seconds, requests) = (row[SECONDS].unwrap(), row[REQUESTS].unwrap());
        assert_eq!(row[RATE], Some(requests / seconds));
        // An echo takes longer than a microsecond and, here, less than a minute.
        let quantiles: Vec<f64> = row[P50..P50 + 3].iter().filter_map(|cell| *cell).collect();
        assert!(quantiles.is_sorted(), "the quantiles are not in rising order: {row:?}");
        assert!(
            quantiles.iter().all(|q| (1e-6..=60.0).contains(q)),
            "a latency is out of range: {row:?}"
        );
    }
    assert!(rows.iter().any(|row| row[P50].is_some()), "no row has a latency: {rows:?}");
    assert_eq!(browser.console(), [""; 0]);
}

#[test]
fn rates_and_percentiles_cover_the_time_between_two_scrapes() {
    let stand_in = StandIn::new(growing());
    let mut browser = Browser::open(&format!("http://{}/", stand_in.address));
    wait_for_readings(&browser, 4);
    let rows = rows(&browser);
    let near = |is: Option<f64>, due: f64| is.is_some_and(|is| (is / due - 1.0).abs() < 1e-9);
    for row in &rows {
        assert_eq!(row[REQUESTS], Some(1000.0));
        assert!(near(row[RATE], 1000.0 / row[SECONDS].unwrap()), "the rate is wrong: {row:?}");
        assert!(near(row[P50], 0.001 + 0.001 * 100.0 / 500.0), "p50 is wrong: {row:?}");
        assert!(near(row[P50 + 1], 0.002 + 0.002 * 90.0 / 95.0), "p99 is wrong: {row:?}");
        assert_eq!(row[P50 + 2], Some(f64::INFINITY), "{row:?}");
    }
    // The large figures cover a longer time, but here all values are the same.
    for (id, text) in [("p50", "1.2 ms"), ("p99", "3.89 ms"), ("p999", "> 4 ms")] {
        assert_eq!(browser.text(id), text, "{id}");
    }
    // The mean over some seconds lies between their minimum and maximum.
    assert_eq!(
        browser.run(
            "drawTable();
            const rates = [...document.querySelectorAll('tbody td:nth-child(4) data')]
                .map((data) => data.value).filter(Boolean).map(Number);
            const rate = Number(byId('rate').value);
            return rate >= Math.min(...rates) - 1e-6 && rate <= Math.max(...rates) + 1e-6"
        ),
        true
    );
    assert_eq!(
        browser.run("return Math.abs(byId('cpu').value / byId('rate').value / 0.00025 - 1) < 1e-9"),
        true
    );
    assert_eq!(browser.console(), [""; 0]);
}

#[test]
fn without_requests_the_page_says_idle() {
    let stand_in = StandIn::new(|| registry(7));
    let browser = Browser::open(&format!("http://{}/", stand_in.address));
    wait_for_readings(&browser, 2);
    assert_eq!(browser.number("rate"), Some(0.0));
    for id in ["p50", "p99", "p999"] {
        assert_eq!(browser.text(id), "idle", "{id}");
    }
    stand_in.respond_with(|| registry(8));
    browser.wait_until("byId('p50').textContent === '1.2 ms'");
    // It covers ten seconds, and then shows no value any more.
    browser.wait_until("byId('p50').textContent === 'idle'");
}

#[test]
fn a_server_at_work_shows_more_cpu_than_an_idle_one() {
    let server = Server::start(&[]);
    let browser = open(&server);
    wait_for_readings(&browser, 2);
    let idle = browser.number("cpu").expect("the page shows the CPU after two readings");
    assert_eq!(browser.run("return byId('cpu').checkVisibility()"), true);
    raw::keep_busy(server.address(), 1);
    browser.wait_until(&format!("byId('cpu').value > {}", 2.0 * idle));
    // As a percentage of one core, with three digits.
    browser
        .wait_until("Math.abs(parseFloat(byId('cpu').textContent) / byId('cpu').value - 100) < 1");
    assert!(browser.text("process").contains("\u{a0}% of a core, "), "{}", browser.text("process"));
}

#[test]
fn without_kernel_figures_the_page_shows_nothing_about_the_process() {
    let stand_in = StandIn::new(|| "zmq_echo_requests_total{source=\"client\"} 1\n".to_owned());
    let browser = Browser::open(&format!("http://{}/", stand_in.address));
    wait_for_readings(&browser, 2);
    assert_eq!(browser.run("return byId('process').checkVisibility()"), false);
}

#[test]
fn a_counter_that_decreases_is_shown_as_a_restart() {
    let stand_in = StandIn::new(growing());
    let browser = Browser::open(&format!("http://{}/", stand_in.address));
    wait_for_readings(&browser, 2);
    assert_eq!(browser.text("state"), "Serving");
    stand_in.respond_with(growing());
    browser.wait_until("byId('state').textContent.startsWith('Serving, restarted at ')");
    browser.wait_until("document.querySelectorAll('svg .restart').length === 5");
    wait_for_readings(&browser, 2);
    let rows = rows(&browser);
    assert!(
        rows.iter().all(|row| row[REQUESTS] == Some(1000.0)),
        "a restart distorts the requests of a row: {rows:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_page_shows_a_drain_then_the_end_then_the_next_server() {
    let mut server = Server::start(&["--drain-delay", "50s", "--drain-timeout", "100s"]);
    let mut browser = open(&server);
    echo(&mut server.dealer().await, message(&[b"counted"])).await;
    browser.wait_until("byId('requests').textContent === '1'");

    server.signal(Signal::TERM);
    browser.wait_until("byId('state').textContent === 'Draining'");
    assert!(browser.text("notice").starts_with("The server is draining: "));
    assert_eq!(browser.run("return document.title.startsWith('Draining: ')"), true);

    server.signal(Signal::TERM);
    server.wait();
    browser.wait_until("byId('state').textContent === 'Stopped after draining'");
    assert!(browser.text("notice").starts_with("No answer since "));
    assert_eq!(browser.run("return document.body.dataset.state"), "gone");

    let mut next = command(&TEST_SERVER);
    next.args(["--bind", "tcp://127.0.0.1:0", "--http", &server.http.to_string()]);
    let _next = Server::spawn(next);
    browser.wait_until("byId('state').textContent.startsWith('Serving, restarted at ')");
    browser.wait_until("byId('requests').textContent === '0'");
    assert_eq!(browser.text("notice"), "");
    assert_eq!(browser.run("return document.querySelectorAll('svg .gone').length"), 5);
    // The browser's own message about a refused connection is the only output.
    let said = browser.console();
    assert!(
        said.iter().all(|line| line.contains("net::ERR_CONNECTION_REFUSED")),
        "unexpected console output: {said:?}"
    );
}

#[test]
fn a_server_that_dies_is_shown_as_gone() {
    let server = Server::start(&[]);
    let browser = open(&server);
    server.signal(Signal::KILL);
    browser.wait_until("byId('state').textContent === 'No answer'");
    assert!(browser.text("notice").contains("The server has stopped or cannot be reached."));
}

#[test]
fn a_server_that_answers_without_metrics_is_shown_as_gone() {
    let stand_in = StandIn::new(growing());
    let browser = Browser::open(&format!("http://{}/", stand_in.address));
    wait_for_readings(&browser, 1);
    stand_in.respond_with(|| "<html>Please log in.</html>".to_owned());
    browser.wait_until("document.body.dataset.state === 'gone'");
}

#[test]
fn an_instance_name_is_shown_as_text_and_never_as_markup() {
    const NAME: &str = "<img src=x onerror='window.ran = true'>";
    let hostile = || {
        format!(
            "{}zmq_echo_handshake_failures_total{{reason=\"{NAME}\"}} 3\n\
             zmq_echo_disconnections_total{{reason=\"\\\"{NAME}\"}} 3\n\
             zmq_echo_build_info{{version=\"{NAME}\",revision=\"</script>{NAME}\"}} 1\n",
            registry(1),
        )
    };
    let stand_in = StandIn::new(hostile);
    let mut browser = Browser::open(&format!("http://{}/", stand_in.address));
    wait_for_readings(&browser, 2);
    assert_eq!(browser.text("failures"), format!("{NAME}3"));
    assert_eq!(browser.text("left"), format!("\"{NAME}3"));
    assert_eq!(browser.text("version"), NAME);
    assert_eq!(browser.text("revision"), format!("</script>{NAME}"));
    assert_eq!(browser.run("return document.images.length"), 0);
    assert_eq!(browser.run("return window.ran ?? 'no'"), "no");
    assert_eq!(browser.console(), [""; 0]);
}

#[test]
fn the_page_sends_requests_only_to_the_server() {
    let server = Server::start(&[]);
    let mut browser = open(&server);
    wait_for_readings(&browser, 2);
    let asked = browser.requests();
    let origin = format!("http://{}/", server.http);
    assert!(
        asked.contains(&origin) && asked.contains(&format!("{origin}metrics")),
        "the page did not request its own server: {asked:?}"
    );
    let others: Vec<_> = asked.iter().filter(|url| !url.starts_with(&origin)).collect();
    assert!(others.is_empty(), "the page requested other addresses: {others:?}");
    assert_eq!(browser.console(), [""; 0]);
}

#[test]
fn the_content_security_policy_blocks_other_scripts_and_requests() {
    let (server, other) = (Server::start(&[]), Server::start(&[]));
    let mut browser = open(&server);
    let elsewhere = format!(
        "return fetch('http://{}/metrics', {{ mode: 'no-cors' }}).then(() => 'asked', () => 'refused')",
        other.http
    );
    assert_eq!(browser.run(&elsewhere), "refused");
    let injected = "const script = document.createElement('script');
        script.textContent = 'window.ran = true';
        document.body.append(script);
        document.body.insertAdjacentHTML('beforeend', '<p style=\"position: fixed\" onclick=\"window.ran = true\">');
        document.body.lastChild.click();
        return window.ran ?? getComputedStyle(document.body.lastChild).position";
    assert_eq!(browser.run(injected), "static");
    let said = browser.console();
    assert!(said.len() >= 4, "the browser did not report each refusal: {said:?}");
    assert!(
        said.iter().all(|line| line.contains("Content Security Policy")),
        "unexpected console output: {said:?}"
    );
}

/// The controls, each identified by a word.
const OPERABLE: &str = "
    const word = (of) => of.getAttribute('href') ?? of.closest('[data-chart]')?.dataset.chart ?? of.tagName;
    const operable = [...document.querySelectorAll('a[href], button, input, select, summary, [tabindex]')]
        .filter((of) => of.checkVisibility());";

#[test]
fn every_control_works_by_keyboard() {
    let server = Server::start(&[]);
    let browser = open(&server);
    wait_for_readings(&browser, 2);
    browser.run("byId('numbers').open = true");
    let operable = browser.run(&format!("{OPERABLE} return operable.map(word)"));
    let count = operable.as_array().expect("the page lists its controls").len();
    assert!(count >= 12, "controls are missing: {operable}");
    let mut reached = Vec::new();
    for _ in 0..count {
        browser.press("Tab");
        let focused = format!(
            "{OPERABLE} const of = document.activeElement, style = getComputedStyle(of);
            return [word(of), style.outlineStyle !== 'none' && parseFloat(style.outlineWidth) >= 2]"
        );
        let focused = browser.run(&focused);
        assert_eq!(focused[1], true, "the focus on {focused} is not visible");
        reached.push(focused[0].clone());
    }
    assert_eq!(Json::from(reached), operable);

    browser.run("byId('numbers').open = false; document.querySelector('summary').focus()");
    browser.press("Enter");
    assert_eq!(browser.run("return byId('numbers').open"), true);

    let value = "document.activeElement.getAttribute('aria-valuetext')";
    browser.run("document.querySelector('[data-chart=rate] .plot').focus()");
    assert_eq!(browser.run(&format!("return {value}.startsWith('now: ')")), true);
    browser.press("Home");
    assert_eq!(browser.run(&format!("return {value}.startsWith('now: ')")), false);
    assert_eq!(browser.run("return cursor === points[0].at"), true);
    browser.press("ArrowRight");
    assert_eq!(browser.run("return cursor === points[1].at"), true);
    assert_eq!(browser.run("return document.querySelectorAll('svg .cursor').length"), 5);
    browser.press("Escape");
    assert_eq!(browser.run(&format!("return {value}.startsWith('now: ')")), true);
}

/// The lowest contrast between a text and its background, computed as WCAG 2.2 defines it, and the
/// text.
const LEAST_CONTRAST: &str = "
    const parts = (colour) => colour.match(/[\\d.]+/g).map(Number);
    const linear = (c) => (c /= 255) <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
    const light = ([r, g, b]) => 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b);
    const ground = (of) => {
        for (; of; of = of.parentElement) {
            const colour = parts(getComputedStyle(of).backgroundColor);
            if (colour.length === 3) return colour;
        }
        throw new Error('no ground');
    };
    let least = [21, 'nothing'], count = 0;
    const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    while (texts.nextNode()) {
        const of = texts.currentNode.parentElement, words = texts.currentNode.textContent.trim();
        if (!words || !of.checkVisibility() || of.closest('script, noscript')) continue;
        const style = getComputedStyle(of);
        const inks = light(parts(of.closest('svg') ? style.fill : style.color)), grounds = light(ground(of));
        const ratio = (Math.max(inks, grounds) + 0.05) / (Math.min(inks, grounds) + 0.05);
        count += 1;
        if (ratio < least[0]) least = [ratio, words];
    }
    return [...least, count];";

#[test]
fn every_text_is_readable_in_light_and_dark_in_every_state() {
    let stand_in = StandIn::new(growing());
    let browser = Browser::open(&format!("http://{}/", stand_in.address));
    wait_for_readings(&browser, 2);
    browser.run("byId('numbers').open = true; drawTable()");
    let mut pages = Vec::new();
    for scheme in ["light", "dark"] {
        browser.prefer("prefers-color-scheme", scheme);
        for state in ["connecting", "serving", "draining", "gone"] {
            let measured = browser.run(&format!(
                "document.body.dataset.state = '{state}'; byId('notice').textContent = 'Notice';
                {LEAST_CONTRAST}"
            ));
            let least = measured[0].as_f64().expect("the contrast is a number");
            assert!(least >= 4.5, "the contrast is too low in {scheme}, {state}: {measured}");
            assert!(
                measured[2].as_u64().expect("the number of texts") > 50,
                "too few texts were measured: {measured}"
            );
        }
        pages.push(browser.run("return getComputedStyle(document.body).backgroundColor"));
    }
    assert_ne!(pages[0], pages[1], "the dark and the light scheme have the same background");
}

#[test]
fn nothing_is_cut_off_on_any_screen() {
    let stand_in = StandIn::new(growing());
    let browser = Browser::open(&format!("http://{}/", stand_in.address));
    wait_for_readings(&browser, 2);
    for width in [320, 390, 600, 768, 1024, 1280, 1920] {
        browser.resize(width, 800);
        let wide = browser.run(
            "return [document.documentElement, ...document.querySelectorAll('header, .card')]
                .filter((of) => of.scrollWidth > of.clientWidth + 1).map((of) => of.textContent.trim().slice(0, 40))",
        );
        assert_eq!(
            wide,
            serde_json::json!([]),
            "these elements are wider than the viewport of {width} pixels"
        );
    }
}

#[test]
fn reduced_motion_is_respected() {
    let server = Server::start(&[]);
    let browser = open(&server);
    browser.prefer("prefers-reduced-motion", "no-preference");
    browser.wait_until("document.getAnimations().length > 0");
    browser.prefer("prefers-reduced-motion", "reduce");
    browser.wait_until("document.getAnimations().length === 0");
}

#[test]
fn screen_readers_announce_only_changes_of_state() {
    let server = Server::start(&["--drain-delay", "50s", "--drain-timeout", "100s"]);
    let browser = open(&server);
    let live = browser.run("return [...document.querySelectorAll('[aria-live], [role=status], [role=alert]')].map((of) => of.id)");
    assert_eq!(live, serde_json::json!(["state"]));
    browser.run(
        "window.changes = [];
        new MutationObserver(() => changes.push(byId('state').textContent))
            .observe(byId('state'), { childList: true, characterData: true, subtree: true })",
    );
    wait_for_readings(&browser, 3);
    assert_eq!(browser.run("return changes"), serde_json::json!([]));
    server.signal(Signal::TERM);
    browser.wait_until("changes.length > 0");
    wait_for_readings(&browser, 2);
    assert_eq!(browser.run("return changes"), serde_json::json!(["Draining"]));
}
