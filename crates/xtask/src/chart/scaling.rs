//! The scaling rules that the chart renders, held against those that were tried: a simulated day and a day on processes go
//! by what `medfleet-trial day --rules` prints.

use std::collections::BTreeSet;
use std::process::Command;

use anyhow::{Context, Result};
use serde::Deserialize;
use serde_json::{Value, json};

use super::objects::{label, list, name, of_kind, pods, text};
use super::{Chart, RELEASE, built, cases, rules};
use crate::process;

/// Another release of the same namespace, whose objects' names begin as those of [`RELEASE`] do.
const NEIGHBOUR: &str = "y-medfleet-ingest";

/// The rules that were tried, for a worker of one slot.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Tried {
    metric: String,
    target_seconds: f64,
    turn_seconds: f64,
    window_seconds: f64,
    cooldown_seconds: f64,
    stabilisation_seconds: f64,
    step_seconds: f64,
    added_max: f64,
}

impl Tried {
    /// Asks for them.
    pub(crate) fn read() -> Result<Self> {
        let mut command = Command::new(built("medfleet-trial")?);
        let text = process::capture(command.args(["day", "--rules"]))?;
        serde_json::from_str(&text).context("the rules of medfleet-trial day")
    }

    /// Where a scaled pool goes by other rules. For pools with the default `targetSeconds`, as all presets and samples are.
    pub(crate) fn check(&self, objects: &[Value]) -> Vec<String> {
        let mut violations = Vec::new();
        let all = pods(objects);
        let ingest = all.iter().find(|pod| pod.component() == "ingest");
        let ingest = ingest.map_or("", |pod| name(pod.owner));
        for scaled in of_kind(objects, "ScaledObject") {
            let target = text(&scaled["spec"]["scaleTargetRef"]["name"]);
            let Some(pod) = all.iter().find(|pod| name(pod.owner) == target) else {
                continue;
            };
            let stage = pod.component();
            let slots = slots(stage, rules::config_of(*pod, objects).unwrap_or_default());
            let found = self.differences(&scaled["spec"], stage, slots, ingest);
            violations.extend(found.map(|text| {
                format!(
                    "{}: {text}, unlike what was tried (crates/plan/src/scaling.rs)",
                    label(scaled)
                )
            }));
        }
        violations
    }

    /// Of a pool whose backlog the pods of this ingest tell.
    fn differences(
        &self,
        spec: &Value,
        stage: &str,
        slots: f64,
        ingest: &str,
    ) -> impl Iterator<Item = String> {
        let behaviour = &spec["advanced"]["horizontalPodAutoscalerConfig"]["behavior"];
        let (up, down) = (&behaviour["scaleUp"], &behaviour["scaleDown"]);
        let first = &spec["triggers"][0];
        let query = text(&first["metadata"]["query"]);
        let asks = query.starts_with(&format!(
            "sum(max by (class) (max_over_time({}{{stage=\"{stage}\",",
            self.metric
        )) && query.ends_with(&format!("[{}m])))", self.window_seconds / 60.0))
            && query.contains(&format!(",pod=~\"{ingest}-[^-]+(-[^-]+)?\""));
        let number = |value: &Value| match value {
            Value::String(text) => text.parse().ok(),
            other => other.as_f64(),
        };
        let same = |value: &Value, expected: f64| number(value) == Some(expected);
        let policy = |side: &Value, kind: &str, value: f64, period: f64| {
            list(&side["policies"]).any(|policy| {
                policy["type"] == kind
                    && same(&policy["value"], value)
                    && same(&policy["periodSeconds"], period)
            })
        };
        let turn = self.turn_seconds;
        let held = [
            (asks, "it asks another query"),
            (
                same(&first["metadata"]["threshold"], self.target_seconds * slots),
                "the threshold is another",
            ),
            (
                same(&first["metadata"]["activationThreshold"], 0.0),
                "it activates at another backlog",
            ),
            (
                same(&spec["pollingInterval"], turn),
                "it polls at other times",
            ),
            (
                same(&spec["cooldownPeriod"], self.cooldown_seconds),
                "the cooldown is another",
            ),
            (
                same(
                    &down["stabilizationWindowSeconds"],
                    self.stabilisation_seconds,
                ) && same(&up["stabilizationWindowSeconds"], 0.0),
                "the stabilisation is another",
            ),
            (
                list(&down["policies"]).count() == 1
                    && policy(down, "Pods", 1.0, self.step_seconds),
                "workers go at another rate",
            ),
            (
                list(&up["policies"]).count() == 2
                    && policy(up, "Percent", 100.0, turn)
                    && policy(up, "Pods", self.added_max, turn),
                "workers come at another rate",
            ),
        ];
        let unmet = held.into_iter().filter(|(holds, _)| !holds);
        unmet.map(|(_, text)| text.to_owned())
    }
}

/// Where two releases of one namespace, with the same values, go by the same figure.
pub(super) fn merged(chart: &Chart) -> Result<Vec<String>> {
    let keda = json!({"workers": "keda", "keda": {"prometheusAddress": "http://prometheus:9090"}});
    let values = [
        chart.values("merged-base", &cases::base())?,
        chart.values("merged-keda", &json!({"autoscaling": keda}))?,
    ];
    let (mut scaled, mut asked) = (0, BTreeSet::new());
    for release in [RELEASE, NEIGHBOUR] {
        let objects = chart.objects(release, &format!("merged-{release}"), &values)?;
        for object in of_kind(&objects, "ScaledObject") {
            scaled += 1;
            let query = &object["spec"]["triggers"][0]["metadata"]["query"];
            asked.insert(text(query).to_owned());
        }
    }
    // Encode and decode of one pool, twice.
    let good = scaled == 4 && asked.len() == scaled;
    Ok(match good {
        true => Vec::new(),
        false => vec![format!(
            "{scaled} scaled pools of two releases go by {} figures: {asked:?}",
            asked.len()
        )],
    })
}

/// Where a pool goes by the figures of another cluster too, which one Prometheus has beside ours.
pub(super) fn chosen(chart: &Chart) -> Result<Vec<String>> {
    let of_ours =
        json!({"prometheusAddress": "http://prometheus:9090", "labels": {"cluster": "st-mary"}});
    let values = json!({"autoscaling": {"workers": "keda", "keda": of_ours}});
    let base = chart.values("chosen-base", &cases::base())?;
    let objects = chart.objects(RELEASE, "chosen", &[base, chart.values("chosen", &values)?])?;
    let scaled = of_kind(&objects, "ScaledObject");
    let asked = scaled.map(|object| text(&object["spec"]["triggers"][0]["metadata"]["query"]));
    let astray = asked.filter(|query| !query.contains(",cluster=\"st-mary\"}[1m]"));
    let astray = astray.map(|query| format!("autoscaling.keda.labels: not in {query}"));
    Ok(astray.collect())
}

/// Slots of a worker, from its configuration or as the service has them by default.
fn slots(stage: &str, config: &str) -> f64 {
    let config = config.parse::<toml::Table>().unwrap_or_default();
    let worker = config.get(stage).and_then(|own| own.get("worker"));
    let slots = worker.and_then(|worker| worker.get("slots")?.as_integer());
    slots.unwrap_or(if stage == "decode" { 4 } else { 1 }) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tried() -> Tried {
        Tried {
            metric: "medfleet_backlog_seconds".to_owned(),
            target_seconds: 30.0,
            turn_seconds: 15.0,
            window_seconds: 60.0,
            cooldown_seconds: 300.0,
            stabilisation_seconds: 300.0,
            step_seconds: 60.0,
            added_max: 4.0,
        }
    }

    fn good() -> Value {
        let series =
            "medfleet_backlog_seconds{stage=\"decode\",pool=\"p\",pod=~\"i-[^-]+(-[^-]+)?\"}";
        let query = format!("sum(max by (class) (max_over_time({series}[1m])))");
        let up = json!({"stabilizationWindowSeconds": 0, "policies": [
            {"type": "Percent", "value": 100, "periodSeconds": 15},
            {"type": "Pods", "value": 4, "periodSeconds": 15}]});
        let down = json!({"stabilizationWindowSeconds": 300, "policies": [
            {"type": "Pods", "value": 1, "periodSeconds": 60}]});
        let behaviour = json!({"scaleUp": up, "scaleDown": down});
        let metadata = json!({"query": query, "threshold": "480", "activationThreshold": "0"});
        let labels = |component: &str| json!({"app.kubernetes.io/component": component});
        json!([
            {"kind": "ScaledObject", "metadata": {"name": "s"}, "spec": {
                "scaleTargetRef": {"name": "d"}, "pollingInterval": 15, "cooldownPeriod": 300,
                "advanced": {"horizontalPodAutoscalerConfig": {"behavior": behaviour}},
                "triggers": [{"type": "prometheus", "metadata": metadata}]}},
            {"kind": "ConfigMap", "metadata": {"name": "m"},
             "data": {"config.toml": "[decode.worker]\nslots = 16\n"}},
            {"kind": "Deployment", "metadata": {"name": "d"}, "spec": {"template": {
                "metadata": {"labels": labels("decode")},
                "spec": {"volumes": [{"name": "config", "configMap": {"name": "m"}}]}}}},
            {"kind": "Deployment", "metadata": {"name": "i"}, "spec": {"template": {
                "metadata": {"labels": labels("ingest")}, "spec": {}}}},
        ])
    }

    #[test]
    fn rules_that_were_tried_pass_and_each_other_is_found() {
        let check = |objects: &Value| tried().check(objects.as_array().expect("a list"));
        assert_eq!(check(&good()), Vec::<String>::new());
        let behaviour = "/0/spec/advanced/horizontalPodAutoscalerConfig/behavior";
        let up = format!("{behaviour}/scaleUp/policies/1/value");
        let down = format!("{behaviour}/scaleDown/policies/0/periodSeconds");
        let slips = [
            (
                "/0/spec/triggers/0/metadata/threshold",
                json!("960"),
                "threshold",
            ),
            ("/0/spec/triggers/0/metadata/query", json!("up"), "query"),
            ("/3/metadata/name", json!("another"), "query"),
            ("/0/spec/cooldownPeriod", json!(60), "cooldown"),
            (up.as_str(), json!(1), "come at another rate"),
            (down.as_str(), json!(15), "go at another rate"),
        ];
        for (pointer, value, expected) in slips {
            let mut objects = good();
            *objects.pointer_mut(pointer).expect("is there") = value;
            let found = check(&objects);
            assert!(
                found.len() == 1 && found[0].contains(expected),
                "{pointer}: {found:?}"
            );
        }
    }

    #[test]
    fn slots_are_the_configurations_or_the_services() {
        let found = [
            slots("decode", ""),
            slots("encode", "[encode]\npool = 'p'\n"),
            slots("encode", "[encode.worker]\nslots = 2\n"),
        ];
        assert_eq!(found, [4.0, 1.0, 2.0]);
    }
}
