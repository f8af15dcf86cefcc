//! The arithmetic of a HorizontalPodAutoscaler on CPU and pod metrics, as the controller performs
//! it in each period. It is simplified: every pod is ready and has a value, so the controller's
//! assumptions about other pods are left out.
//! <https://kubernetes.io/docs/tasks/run-application/horizontal-pod-autoscale/>

use k8s_openapi::api::autoscaling::v2::{
    HPAScalingPolicy, HPAScalingRules, HorizontalPodAutoscalerSpec,
};

/// The controller's period, in seconds.
pub const PERIOD: f64 = 15.0;

/// How far a metric may be from its target: `--horizontal-pod-autoscaler-tolerance`.
const TOLERANCE: f64 = 0.1;

/// An autoscaler with its history. Times are in seconds.
pub struct Autoscaler {
    spec: HorizontalPodAutoscalerSpec,
    targets: Vec<f64>,
    /// How many replicas the metrics wanted, and when.
    recommended: Vec<(f64, i32)>,
    /// By how many replicas it scaled, and when.
    changes: Vec<(f64, i32)>,
    pub replicas: i32,
}

impl Autoscaler {
    /// An autoscaler that starts at its minimum.
    pub fn new(spec: HorizontalPodAutoscalerSpec) -> Self {
        let metrics = spec.metrics.clone().expect("the autoscaler has metrics");
        let targets = metrics.into_iter().map(|metric| {
            let of_pods = metric.pods.map(|pods| pods.target);
            let target = metric.resource.map(|resource| resource.target).or(of_pods);
            let target = target.expect("a resource metric or a pod metric");
            quantity(&target.average_value.expect("the target is a mean per pod").0)
        });
        Self {
            targets: targets.collect(),
            recommended: Vec::new(),
            changes: Vec::new(),
            replicas: spec.min_replicas.expect("the autoscaler has a minimum"),
            spec,
        }
    }

    /// The target of a metric per pod.
    pub fn target(&self, metric: usize) -> f64 {
        self.targets[metric]
    }

    /// Runs one period: `means` are the means of the metrics over the pods. Returns the new number
    /// of replicas.
    pub fn look(&mut self, now: f64, means: &[f64]) -> i32 {
        let asked = means.iter().zip(&self.targets).map(|(mean, target)| self.ask(mean / target));
        let asked = asked
            .max()
            .expect("the autoscaler has a metric")
            .clamp(self.least(), self.spec.max_replicas);
        let stable = self.stabilized(now, asked);
        self.recommended.push((now, asked));
        let replicas = self.limited(now, stable);
        if replicas != self.replicas {
            self.changes.push((now, replicas - self.replicas));
            self.replicas = replicas;
        }
        replicas
    }

    fn least(&self) -> i32 {
        self.spec.min_replicas.expect("the autoscaler has a minimum")
    }

    fn rules(&self) -> (&HPAScalingRules, &HPAScalingRules) {
        let behavior = self.spec.behavior.as_ref().expect("the autoscaler has a behavior");
        (
            behavior.scale_up.as_ref().expect("the behavior has rules for scaling up"),
            behavior.scale_down.as_ref().expect("the behavior has rules for scaling down"),
        )
    }

    fn ask(&self, ratio: f64) -> i32 {
        if (ratio - 1.0).abs() <= TOLERANCE {
            return self.replicas;
        }
        (ratio * f64::from(self.replicas)).ceil() as i32
    }

    /// Scales up at most to the smallest number wanted in the window for scaling up, and down at
    /// least to the largest number wanted in the window for scaling down.
    fn stabilized(&self, now: f64, asked: i32) -> i32 {
        let (up, down) = self.rules();
        let within = |rules: &HPAScalingRules| {
            let window =
                f64::from(rules.stabilization_window_seconds.expect("the rules have a window"));
            let recent = self.recommended.iter().filter(move |(at, _)| *at > now - window);
            recent.map(|(_, asked)| *asked).chain([asked])
        };
        let (up, down) = (within(up).min().unwrap(), within(down).max().unwrap());
        self.replicas.max(up).min(down)
    }

    /// Limits a change to what the policies allow in their periods.
    fn limited(&self, now: f64, wanted: i32) -> i32 {
        let (up, down) = self.rules();
        if wanted > self.replicas {
            let most = allowed(up, |policy| self.at_start(now, policy), 1.0).max();
            wanted.min(most.expect("the rules have a policy").max(self.replicas))
        } else {
            let least = allowed(down, |policy| self.at_start(now, policy), -1.0).min();
            wanted.max(least.expect("the rules have a policy").min(self.replicas))
        }
    }

    /// The number of replicas at the start of a policy's period.
    fn at_start(&self, now: f64, policy: &HPAScalingPolicy) -> i32 {
        let start = now - f64::from(policy.period_seconds);
        let since = self.changes.iter().filter(|(at, _)| *at > start);
        self.replicas - since.map(|(_, change)| change).sum::<i32>()
    }
}

/// The change that each policy allows. The largest one applies.
fn allowed(
    rules: &HPAScalingRules,
    at_start: impl Fn(&HPAScalingPolicy) -> i32,
    direction: f64,
) -> impl Iterator<Item = i32> {
    assert_eq!(rules.select_policy.as_deref(), Some("Max"));
    let policies = rules.policies.iter().flatten();
    policies.map(move |policy| {
        let (start, value) = (f64::from(at_start(policy)), f64::from(policy.value));
        match policy.type_.as_str() {
            "Percent" if direction > 0.0 => (start * (1.0 + value / 100.0)).ceil() as i32,
            "Percent" => (start * (1.0 - value / 100.0)) as i32,
            _ => (start + direction * value) as i32,
        }
    })
}

/// A quantity such as `10k`, `50m` or `1000`.
fn quantity(text: &str) -> f64 {
    let unit = |(unit, factor): (&str, f64)| Some((text.strip_suffix(unit)?, factor));
    let (number, factor) = [("k", 1e3), ("m", 1e-3), ("", 1.0)].into_iter().find_map(unit).unwrap();
    number.parse::<f64>().unwrap_or_else(|error| panic!("{text}: {error}")) * factor
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// Target 1000, 3 to 20 replicas; up by double or by 4, down by half per minute.
    fn autoscaler() -> Autoscaler {
        let metric = json!({
            "metric": { "name": "x" },
            "target": { "type": "AverageValue", "averageValue": "1k" },
        });
        let policy = |kind: &str, value: i32, seconds: i32| json!({ "type": kind, "value": value, "periodSeconds": seconds });
        let rules = |window: i32, policies: &[serde_json::Value]| {
            json!({
                "stabilizationWindowSeconds": window, "selectPolicy": "Max", "policies": policies,
            })
        };
        let spec = json!({
            "scaleTargetRef": { "kind": "Deployment", "name": "x" },
            "minReplicas": 3,
            "maxReplicas": 20,
            "metrics": [{ "type": "Pods", "pods": metric }],
            "behavior": {
                "scaleUp": rules(0, &[policy("Percent", 100, 30), policy("Pods", 4, 30)]),
                "scaleDown": rules(300, &[policy("Percent", 50, 60)]),
            },
        });
        Autoscaler::new(serde_json::from_value(spec).unwrap())
    }

    #[test]
    fn the_autoscaler_wants_the_replicas_that_bring_the_mean_to_the_target() {
        assert_eq!(autoscaler().look(0.0, &[1500.0]), 5);
        assert_eq!(autoscaler().look(0.0, &[2000.0]), 6);
    }

    #[test]
    fn within_ten_percent_of_the_target_the_replicas_stay() {
        assert_eq!(autoscaler().look(0.0, &[1099.0]), 3);
        assert_eq!(autoscaler().look(0.0, &[1101.0]), 4);
    }

    #[test]
    fn the_autoscaler_stays_between_its_limits() {
        assert_eq!(autoscaler().look(0.0, &[0.0]), 3);
        let mut autoscaler = autoscaler();
        let looks = (0..20).map(|at| autoscaler.look(f64::from(at) * PERIOD, &[1e9]));
        assert_eq!(looks.last(), Some(20));
    }

    #[test]
    fn the_policy_that_allows_most_limits_each_period() {
        let mut autoscaler = autoscaler();
        let looks: Vec<_> =
            (0..5).map(|at| autoscaler.look(f64::from(at) * PERIOD, &[1e9])).collect();
        // Four more, and then double the number.
        assert_eq!(looks, [7, 7, 14, 14, 20]);
    }

    #[test]
    fn scaling_down_waits_for_the_window_and_removes_half_at_a_time() {
        let mut autoscaler = autoscaler();
        assert_eq!(autoscaler.look(0.0, &[1e9]), 7);
        assert_eq!(autoscaler.look(30.0, &[1e9]), 14);
        assert_eq!(autoscaler.look(45.0, &[0.0]), 14);
        assert_eq!(autoscaler.look(329.0, &[0.0]), 14);
        assert_eq!(autoscaler.look(330.0, &[0.0]), 7);
        assert_eq!(autoscaler.look(345.0, &[0.0]), 7);
        assert_eq!(autoscaler.look(390.0, &[0.0]), 3);
    }

    #[test]
    fn a_short_dip_removes_no_replica() {
        let mut autoscaler = autoscaler();
        autoscaler.look(0.0, &[2000.0]);
        autoscaler.look(15.0, &[10.0]);
        assert_eq!(autoscaler.look(30.0, &[1000.0]), 6);
    }
}
