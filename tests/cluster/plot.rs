//! Draws what autoscalers saw and did, as one SVG: a column for each, with load, metric and
//! replicas over time. It is readable on light and dark pages.

use std::fmt::Write;

use serde_json::{Value as Json, json};

/// The recorded samples of one autoscaler.
pub struct Record {
    pub title: String,
    /// The unit of its metric.
    pub unit: String,
    pub target: f64,
    /// When the high load ended, in seconds after it began.
    pub ended: f64,
    pub samples: Vec<Sample>,
}

#[derive(Debug, Clone)]
pub struct Sample {
    /// The time of the sample, in seconds after the high load began.
    pub at: f64,
    /// Requests/s that are sent.
    pub load: f64,
    /// The value that the autoscaler sees, which is the mean over the pods.
    pub metric: Option<f64>,
    /// The number of replicas that the Deployment asks for.
    pub wanted: usize,
    pub ready: usize,
}

impl Record {
    pub fn json(&self) -> Json {
        let samples = self.samples.iter().map(|sample| {
            let Sample { at, load, metric, wanted, ready } = sample;
            json!({"seconds": at, "load": load, "metric": metric, "wanted": wanted, "ready": ready})
        });
        json!({
            "title": self.title,
            "unit": self.unit,
            "target": self.target,
            "ended": self.ended,
            "samples": samples.collect::<Vec<_>>(),
        })
    }

    pub fn from_json(json: &Json) -> Self {
        let text = |value: &Json| value.as_str().unwrap_or_default().to_owned();
        let number = |value: &Json| value.as_f64().unwrap_or_default();
        let count = |value: &Json| value.as_u64().unwrap_or_default() as usize;
        let samples = json["samples"].as_array().into_iter().flatten().map(|sample| Sample {
            at: number(&sample["seconds"]),
            load: number(&sample["load"]),
            metric: sample["metric"].as_f64(),
            wanted: count(&sample["wanted"]),
            ready: count(&sample["ready"]),
        });
        Self {
            title: text(&json["title"]),
            unit: text(&json["unit"]),
            target: number(&json["target"]),
            ended: number(&json["ended"]),
            samples: samples.collect(),
        }
    }

    /// The samples as CSV, for a spreadsheet.
    pub fn csv(&self) -> String {
        let mut csv = format!("seconds,requests_per_second,metric ({}),wanted,ready\n", self.unit);
        for Sample { at, load, metric, wanted, ready } in &self.samples {
            let metric = metric.map(|metric| format!("{metric:.3}")).unwrap_or_default();
            writeln!(csv, "{at:.0},{load},{metric},{wanted},{ready}").expect("memory");
        }
        csv
    }
}

const COLUMN: f64 = 300.0;
const LEFT: f64 = 46.0;
const BETWEEN: f64 = 52.0;
const TOP: f64 = 70.0;
const PANEL: f64 = 110.0;
const GAP: f64 = 52.0;
const BOTTOM: f64 = 34.0;

const STYLE: &str = "\
svg { --page: #fff; --text: #1f2328; --note: #59636e; --grid: #d8dee4; --zero: #818b98; --load: #eaeef2; \
--curve: #0969da; --target: #bc4c00; --replicas: #1a7f37 } \
@media (prefers-color-scheme: dark) { svg { --page: #0d1117; --text: #f0f6fc; --note: #9198a1; \
--grid: #2a313a; --zero: #656c76; --load: #1c232c; --curve: #58a6ff; --target: #f0883e; --replicas: #3fb950 } } \
.page { fill: var(--page) } text { font: 12px system-ui, sans-serif; fill: var(--text) } \
.title { font-weight: 600; font-size: 13px } .note { fill: var(--note); font-size: 11px } \
.grid { stroke: var(--grid) } .zero { stroke: var(--zero) } .load { fill: var(--load) } \
.sent { fill: none; stroke: var(--note); stroke-width: 1.5 } \
.curve { fill: none; stroke: var(--curve); stroke-width: 2; stroke-linejoin: round } \
.target { fill: none; stroke: var(--target); stroke-dasharray: 5 4 } .target-text { fill: var(--target); font-size: 11px } \
.wanted { fill: none; stroke: var(--replicas); stroke-width: 2.5 } \
.ready { fill: none; stroke: var(--replicas); stroke-width: 1.5; stroke-dasharray: 2 3 }";

/// The three panels of one record, which begin at the `left` edge.
struct Column<'a> {
    record: &'a Record,
    left: f64,
    first: f64,
    last: f64,
    svg: &'a mut String,
}

/// One of the three panels, with its own vertical axis.
struct Panel {
    top: f64,
    most: f64,
}

/// Draws all records into one picture.
pub fn svg(records: &[Record]) -> String {
    let columns = records.len() as f64;
    let width = LEFT + columns * COLUMN + (columns - 1.0).max(0.0) * BETWEEN + 20.0;
    let height = TOP + 3.0 * PANEL + 2.0 * GAP + BOTTOM;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" role=\"img\" \
         aria-label=\"Load, metric and replicas of each autoscaler, over time\">\n\
         <style>{STYLE}</style>\n<rect class=\"page\" width=\"100%\" height=\"100%\"/>\n"
    );
    for (number, record) in records.iter().enumerate() {
        let (Some(first), Some(last)) = (record.samples.first(), record.samples.last()) else {
            continue;
        };
        let left = LEFT + number as f64 * (COLUMN + BETWEEN);
        Column { record, left, first: first.at, last: last.at, svg: &mut svg }.draw();
    }
    svg + "</svg>\n"
}

impl Column<'_> {
    fn draw(&mut self) {
        let record = self.record;
        let samples = &record.samples;
        self.text("title", self.left, 24.0, "start", &record.title);
        let most = |value: fn(&Sample) -> f64| samples.iter().map(value).fold(0.0, f64::max);

        let load = self.panel(0, "Load, requests/s", most(|sample| sample.load), 0.0);
        self.steps("sent", &load, |sample| sample.load);

        let highest = most(|sample| sample.metric.unwrap_or(0.0)).max(record.target);
        let each = self.panel(1, &format!("Each replica, {}", record.unit), highest, 0.0);
        let y = each.y(record.target);
        let (left, right) = (self.left, self.left + COLUMN);
        self.add(&format!("<path class=\"target\" d=\"M{left} {y:.1}H{right}\"/>"));
        self.text(
            "target-text",
            right,
            y - 5.0,
            "end",
            &format!("target {}", rounded(record.target)),
        );
        self.metric(&each);

        let highest = most(|sample| sample.wanted.max(sample.ready) as f64);
        let replicas = self.panel(2, "Replicas: wanted, and ready (dotted)", highest, 1.0);
        self.steps("wanted", &replicas, |sample| sample.wanted as f64);
        self.steps("ready", &replicas, |sample| sample.ready as f64);
    }

    /// Draws title, grid and axes of a panel, with the time of the high load shaded. Grid lines are
    /// at least `apart` apart.
    fn panel(&mut self, number: u8, title: &str, most: f64, apart: f64) -> Panel {
        let top = TOP + f64::from(number) * (PANEL + GAP);
        let tick = tick(most).max(apart);
        let panel = Panel { top, most: (most / tick).ceil() * tick };
        let (left, right) = (self.left, self.left + COLUMN);
        let (begun, ended) = (self.x(0.0), self.x(self.record.ended));
        self.add(&format!(
            "<rect class=\"load\" x=\"{begun:.1}\" y=\"{top}\" width=\"{:.1}\" height=\"{PANEL}\"/>",
            ended - begun
        ));
        self.text("note", left, top - 10.0, "start", title);
        for line in 0..=(panel.most / tick).round() as u32 {
            let value = f64::from(line) * tick;
            let y = panel.y(value);
            let class = if line == 0 { "zero" } else { "grid" };
            self.add(&format!("<path class=\"{class}\" d=\"M{left} {y:.1}H{right}\"/>"));
            self.text("note", left - 6.0, y + 4.0, "end", &rounded(value).to_string());
        }
        for minute in (self.first / 60.0).ceil() as i32..=(self.last / 60.0) as i32 {
            if minute % 2 == 0 {
                let name = if minute == 0 { "0 min".to_owned() } else { minute.to_string() };
                let x = self.x(f64::from(minute) * 60.0);
                self.text("note", x, top + PANEL + 16.0, "middle", &name);
            }
        }
        panel
    }

    fn steps(&mut self, class: &str, panel: &Panel, value: impl Fn(&Sample) -> f64) {
        let mut path = String::new();
        for sample in &self.record.samples {
            let (x, y) = (self.x(sample.at), panel.y(value(sample)));
            let _ = match path.is_empty() {
                true => write!(path, "M{x:.1} {y:.1}"),
                false => write!(path, "H{x:.1}V{y:.1}"),
            };
        }
        self.add(&format!("<path class=\"{class}\" d=\"{path}\"/>"));
    }

    /// Draws the metric, with a gap while the autoscaler had no value.
    fn metric(&mut self, panel: &Panel) {
        let mut path = String::new();
        let mut is_new = true;
        for sample in &self.record.samples {
            let Some(value) = sample.metric else {
                is_new = true;
                continue;
            };
            let letter = if std::mem::take(&mut is_new) { 'M' } else { 'L' };
            let _ = write!(path, "{letter}{:.1} {:.1}", self.x(sample.at), panel.y(value));
        }
        self.add(&format!("<path class=\"curve\" d=\"{path}\"/>"));
    }

    fn text(&mut self, class: &str, x: f64, y: f64, anchor: &str, text: &str) {
        self.add(&format!(
            "<text class=\"{class}\" x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{text}</text>"
        ));
    }

    fn add(&mut self, element: &str) {
        self.svg.push_str(element);
        self.svg.push('\n');
    }

    fn x(&self, at: f64) -> f64 {
        self.left + (at - self.first) / (self.last - self.first).max(1.0) * COLUMN
    }
}

impl Panel {
    fn y(&self, value: f64) -> f64 {
        self.top + PANEL * (1.0 - value / self.most)
    }
}

fn rounded(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
}

/// The distance between grid lines: 1, 2 or 5 with zeros, so that three to six of them reach `most`.
fn tick(most: f64) -> f64 {
    let most = most.max(1e-3);
    let power = 10f64.powf(most.log10().floor());
    let steps = [0.2, 0.5, 1.0, 2.0].map(|step| step * power);
    steps.into_iter().find(|step| most / step <= 6.0).unwrap_or(2.0 * power)
}
