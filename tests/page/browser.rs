//! Chromium, through its driver. The WebDriver protocol is JSON over HTTP, so the tests' HTTP
//! client is enough.

use std::io::BufRead;
use std::process::Command;

use serde_json::{Value as Json, json};

use crate::support::{DEADLINE, Process, wait_until};

/// Without network traffic of its own, and without a sandbox, because it may run as root.
const ARGUMENTS: [&str; 8] = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-quic",
];

/// A browser with its own profile, and its console output so far.
pub struct Browser {
    _driver: Process,
    agent: ureq::Agent,
    session: String,
    console: Vec<String>,
}

impl Browser {
    /// Starts it and opens `url`.
    pub fn open(url: &str) -> Self {
        let (driver, address) = start_driver();
        let config = ureq::Agent::config_builder().http_status_as_error(false);
        let agent = config.timeout_global(Some(DEADLINE)).build().into();
        let mut browser = Self { _driver: driver, agent, session: address, console: Vec::new() };
        let wanted = json!({
            "goog:chromeOptions": { "args": ARGUMENTS },
            "goog:loggingPrefs": { "browser": "ALL", "performance": "ALL" },
        });
        let session =
            browser.send("/session", &json!({ "capabilities": { "alwaysMatch": wanted } }));
        let id = session["sessionId"]
            .as_str()
            .unwrap_or_else(|| panic!("Chromium does not start: {session}"));
        browser.session = format!("{}/session/{id}", browser.session);
        browser.send("/url", &json!({ "url": url }));
        browser
    }

    /// Runs the body of a function in the page and returns its result.
    pub fn run(&self, script: &str) -> Json {
        self.send("/execute/sync", &json!({ "script": script, "args": [] }))
    }

    /// The text of the element with this id.
    pub fn text(&self, id: &str) -> String {
        let text = self.run(&format!("return document.getElementById('{id}').textContent"));
        text.as_str().expect("an element has a text").to_owned()
    }

    /// The number in a `data` element.
    pub fn number(&self, id: &str) -> Option<f64> {
        let value = self.run(&format!("return document.getElementById('{id}').value"));
        value.as_str().expect("a data element has a value").parse().ok()
    }

    /// Waits until the expression is true in the page.
    pub fn wait_until(&self, expression: &str) {
        wait_until(expression, || self.run(&format!("return {expression}")) == true);
    }

    /// Shows the page with `value` for a media `feature`.
    pub fn prefer(&self, feature: &str, value: &str) {
        let feature = json!({ "name": feature, "value": value });
        self.command("Emulation.setEmulatedMedia", &json!({ "features": [feature] }));
    }

    /// Sets the size of the viewport.
    pub fn resize(&self, width: u32, height: u32) {
        let size =
            json!({ "width": width, "height": height, "deviceScaleFactor": 1, "mobile": false });
        self.command("Emulation.setDeviceMetricsOverride", &size);
    }

    /// Presses a key, by its DOM name, at the focus.
    pub fn press(&self, key: &str) {
        let code = match key {
            "Tab" => 9,
            "Enter" => 13,
            _ => 0,
        };
        let text = if key == "Enter" { "\r" } else { "" };
        for kind in ["keyDown", "keyUp"] {
            let event = json!({
                "type": kind, "key": key, "code": key, "windowsVirtualKeyCode": code, "text": text,
            });
            self.command("Input.dispatchKeyEvent", &event);
        }
    }

    /// All console output: script errors, policy violations, resources that failed to load.
    pub fn console(&mut self) -> &[String] {
        let entries = self.log("browser");
        self.console.extend(entries.iter().map(|entry| entry["message"].to_string()));
        &self.console
    }

    /// Every address requested since the last call.
    pub fn requests(&self) -> Vec<String> {
        let events = self
            .log("performance")
            .into_iter()
            .filter_map(|entry| serde_json::from_str::<Json>(entry["message"].as_str()?).ok());
        let sent = events.filter_map(|event| {
            let message = &event["message"];
            let url = &message["params"]["request"]["url"];
            (message["method"] == "Network.requestWillBeSent")
                .then(|| url.as_str().map(str::to_owned))?
        });
        sent.collect()
    }

    fn log(&self, kind: &str) -> Vec<Json> {
        let entries = self.send("/se/log", &json!({ "type": kind }));
        entries.as_array().unwrap_or_else(|| panic!("the driver returns no log: {entries}")).clone()
    }

    /// A command of the DevTools protocol.
    fn command(&self, name: &str, parameters: &Json) {
        self.send("/goog/cdp/execute", &json!({ "cmd": name, "params": parameters }));
    }

    fn send(&self, path: &str, body: &Json) -> Json {
        let url = format!("{}{path}", self.session);
        let mut response =
            self.agent.post(&url).send(body.to_string()).expect("chromedriver answers");
        let text = response.body_mut().read_to_string().expect("text");
        assert_eq!(response.status(), 200, "chromedriver refuses {path} {body}: {text}");
        let mut answer: Json = serde_json::from_str(&text).expect("JSON");
        answer["value"].take()
    }
}

impl Drop for Browser {
    /// If the session were not ended, the driver would leave Chromium running.
    fn drop(&mut self) {
        let _ = self.agent.delete(&self.session).call();
    }
}

/// How often to start a driver again if its port is taken.
const STARTS: usize = 20;

/// Starts a driver and returns its address. It takes a free IPv4 port and then needs the same IPv6
/// port, which may be in use. In that case it exits, and another one is started.
fn start_driver() -> (Process, String) {
    for _ in 0..STARTS {
        let mut command = Command::new("chromedriver");
        command.arg("--port=0").stdout(std::process::Stdio::piped());
        let child = command.spawn().unwrap_or_else(|error| {
            panic!("needs chromedriver (Debian: chromium, chromium-driver): {error}")
        });
        let mut driver = Process(child);
        let mut lines =
            driver.stdout().lines().map(|line| line.expect("the driver's output can be read"));
        let port = lines.find_map(|line| {
            let (_, port) = line.split_once("successfully on port ")?;
            Some(port.trim_end_matches('.').to_owned())
        });
        if let Some(port) = port {
            // Later output must not fill the pipe.
            std::thread::spawn(move || lines.for_each(drop));
            return (driver, format!("http://127.0.0.1:{port}"));
        }
    }
    panic!("chromedriver exited {STARTS} times without printing its port");
}
