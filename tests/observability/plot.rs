//! Draws the curves of load, metric and replicas as one SVG, for people to look at.

use std::fmt::Write;

use k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscalerSpec;

use crate::autoscaler::Autoscaler;
use crate::scaling::{Look, REQUESTS};

/// What the picture shows.
pub struct Curves<'a> {
    pub looks: &'a [Look],
    /// Requests/s during the load.
    pub rate: f64,
    /// When the load ended, in seconds from its start.
    pub load_ended: f64,
    pub spec: &'a HorizontalPodAutoscalerSpec,
}

const WIDTH: f64 = 860.0;
const LEFT: f64 = 64.0;
const RIGHT: f64 = 24.0;
const TOP: f64 = 62.0;
const PANEL: f64 = 128.0;
const GAP: f64 = 52.0;

const STYLE: &str = "\
text { font: 13px system-ui, sans-serif; fill: #1f2328 } \
.note { fill: #59636e; font-size: 12px } .title { font-weight: 600 } \
.grid { stroke: #d8dee4 } .zero { stroke: #818b98 } \
.load { fill: #eaeef2 } .sent { fill: none; stroke: #59636e; stroke-width: 1.5; stroke-dasharray: 2 3 } \
.target { stroke: #bc4c00; stroke-dasharray: 5 4 } .target-text { fill: #bc4c00 } \
.curve { fill: none; stroke: #0969da; stroke-width: 2; stroke-linejoin: round } \
.replicas { fill: none; stroke: #1a7f37; stroke-width: 2.5 } \
.continued { fill: #8250df; opacity: 0.06 }";

/// One of the three panels, with its own vertical axis.
struct Panel {
    top: f64,
    most: f64,
    ticks: f64,
}

struct Plot<'a> {
    curves: &'a Curves<'a>,
    first: f64,
    last: f64,
    svg: String,
}

/// The picture, on a white background, so that it is readable on any page.
pub fn svg(curves: &Curves) -> String {
    let first = curves.looks[0].sample.at;
    let last = curves.looks.last().expect("there is a state to draw").sample.at + 30.0;
    let mut plot = Plot { curves, first, last, svg: String::new() };
    plot.draw();
    plot.svg
}

impl Plot<'_> {
    fn draw(&mut self) {
        let height = TOP + 3.0 * PANEL + 2.0 * GAP + 46.0;
        self.add(&format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" role=\"img\" \
             aria-label=\"Load, requests per replica, and replicas wanted, over time\">\
             <style>{STYLE}</style><rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>"
        ));
        let most = self.most(|look| look.sample.requests).max(self.curves.rate);
        let requests = self.panel(0, "Requests/s, all pods together", most);
        self.sent(&requests);
        self.curve("curve", &requests, false, |look| look.sample.requests);
        let legend = "dotted: sent by the clients; line: rate in Prometheus over two minutes";
        self.text("note", WIDTH - RIGHT, TOP - 10.0, "end", legend);

        let target = Autoscaler::new(self.curves.spec.clone()).target(REQUESTS);
        let most = self.most(|look| look.per_pod).max(target);
        let each = self.panel(1, "Requests/s per replica, as the autoscaler sees them", most);
        let y = each.y(target);
        self.add(&format!("<path class=\"target\" d=\"M{LEFT} {y:.1}H{:.1}\"/>", WIDTH - RIGHT));
        self.text("note target-text", WIDTH - RIGHT, y - 5.0, "end", &format!("target {target}"));
        self.curve("curve", &each, false, |look| look.per_pod);

        let most = self.most(|look| f64::from(look.replicas));
        let replicas = self.panel(2, "Replicas wanted", most);
        self.curve("replicas", &replicas, true, |look| f64::from(look.replicas));
        self.notes(height);
        self.add("</svg>\n");
    }

    fn notes(&mut self, height: f64) {
        let Some(continued) = self.curves.looks.iter().find(|look| look.continued) else { return };
        let (start, end) = (self.x(continued.sample.at), WIDTH - RIGHT);
        let shaded = height - TOP - 46.0;
        self.add(&format!(
            "<rect class=\"continued\" x=\"{start:.1}\" y=\"{TOP}\" width=\"{:.1}\" height=\"{shaded}\"/>",
            end - start
        ));
        self.text("note", end, TOP - 30.0, "end", "shaded: the last value is repeated");
    }

    /// Title, grid and axes of a panel, with the time of the load in the background.
    fn panel(&mut self, number: u8, title: &str, most: f64) -> Panel {
        let top = TOP + f64::from(number) * (PANEL + GAP);
        let ticks = tick(most);
        let panel = Panel { top, most: (most / ticks).ceil() * ticks, ticks };
        let (begun, ended) = (self.x(0.0), self.x(self.curves.load_ended));
        self.add(&format!(
            "<rect class=\"load\" x=\"{begun:.1}\" y=\"{top}\" width=\"{:.1}\" height=\"{PANEL}\"/>",
            ended - begun
        ));
        self.text("title", LEFT, top - 10.0, "start", title);
        for line in 0..=(panel.most / ticks).round() as u32 {
            let value = f64::from(line) * panel.ticks;
            let y = panel.y(value);
            let class = if line == 0 { "zero" } else { "grid" };
            self.add(&format!(
                "<path class=\"{class}\" d=\"M{LEFT} {y:.1}H{:.1}\"/>",
                WIDTH - RIGHT
            ));
            self.text("note", LEFT - 8.0, y + 4.0, "end", &value.to_string());
        }
        let first_minute = (self.first / 60.0).ceil() as i32;
        for minute in first_minute..=(self.last / 60.0) as i32 {
            let name = if minute == 0 { "0 min".to_owned() } else { minute.to_string() };
            let x = self.x(f64::from(minute) * 60.0);
            self.text("note", x, top + PANEL + 17.0, "middle", &name);
        }
        panel
    }

    fn curve(&mut self, class: &str, panel: &Panel, steps: bool, value: impl Fn(&Look) -> f64) {
        let mut path = String::new();
        for look in self.curves.looks {
            let (x, y) = (self.x(look.sample.at), panel.y(value(look)));
            let _ = match (path.is_empty(), steps) {
                (true, _) => write!(path, "M{x:.1} {y:.1}"),
                (false, true) => write!(path, "H{x:.1}V{y:.1}"),
                (false, false) => write!(path, "L{x:.1} {y:.1}"),
            };
        }
        let _ = write!(path, "H{:.1}", WIDTH - RIGHT);
        self.add(&format!("<path class=\"{class}\" d=\"{path}\"/>"));
    }

    /// The clients' requests.
    fn sent(&mut self, panel: &Panel) {
        let (zero, rate) = (panel.y(0.0), panel.y(self.curves.rate));
        let (begun, ended) = (self.x(0.0), self.x(self.curves.load_ended));
        self.add(&format!(
            "<path class=\"sent\" d=\"M{LEFT} {zero:.1}H{begun:.1}V{rate:.1}H{ended:.1}V{zero:.1}\"/>"
        ));
    }

    fn text(&mut self, class: &str, x: f64, y: f64, anchor: &str, text: &str) {
        self.add(&format!(
            "<text class=\"{class}\" x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{text}</text>"
        ));
    }

    fn add(&mut self, element: &str) {
        self.svg += element;
        self.svg.push('\n');
    }

    fn x(&self, at: f64) -> f64 {
        LEFT + (at - self.first) / (self.last - self.first) * (WIDTH - LEFT - RIGHT)
    }

    fn most(&self, value: impl Fn(&Look) -> f64) -> f64 {
        self.curves.looks.iter().map(value).fold(0.0, f64::max)
    }
}

impl Panel {
    fn y(&self, value: f64) -> f64 {
        self.top + PANEL * (1.0 - value / self.most)
    }
}

/// The step that needs three to six ticks to reach `most`: 1, 2 or 5, followed by zeros.
fn tick(most: f64) -> f64 {
    let power = 10f64.powf(most.log10().floor());
    let steps = [0.2, 0.5, 1.0, 2.0].map(|step| step * power);
    let step = steps.into_iter().find(|step| most / step <= 6.0);
    step.expect("five ticks of the largest step reach ten").max(f64::MIN_POSITIVE)
}
