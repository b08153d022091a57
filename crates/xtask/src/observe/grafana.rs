//! Dashboards as Grafana imports them: JSON with the variables to choose by.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::dashboards::{Dashboard, FLEET, Panel, Variable};

/// What Grafana imports.
pub(super) fn json(dashboard: &Dashboard) -> String {
    let mut panels: Vec<Value> = Vec::new();
    let mut top = 0;
    if dashboard
        .variables
        .iter()
        .any(|v| matches!(v, Variable::Trace))
    {
        panels.push(trace_panel());
        top = 14;
    }
    for (place, panel) in dashboard.panels.iter().enumerate() {
        panels.push(panel_json(panel, place, top));
    }
    let variables = std::iter::once(data_source("datasource", "prometheus", "Metrics"))
        .chain(fleet_variables())
        .chain(dashboard.variables.iter().flat_map(|v| variable(*v)));
    let whole = json!({
        "uid": format!("medfleet-{}", dashboard.name),
        "title": dashboard.title,
        "tags": ["medfleet"],
        "schemaVersion": 39,
        "editable": true,
        "time": {"from": "now-1h", "to": "now"},
        "refresh": "30s",
        "templating": {"list": variables.collect::<Vec<_>>()},
        "links": [{"type": "dashboards", "tags": ["medfleet"], "title": "medfleet", "asDropdown": true, "keepTime": true}],
        "panels": panels,
    });
    format!("{:#}\n", sorted(whole))
}

/// Keys in order: serde_json keeps them as they came, or sorts them, by which other packages are built with it.
fn sorted(value: Value) -> Value {
    match value {
        Value::Object(fields) => {
            let fields: BTreeMap<String, Value> = fields.into_iter().collect();
            let fields = fields.into_iter().map(|(key, field)| (key, sorted(field)));
            Value::Object(fields.collect())
        }
        Value::Array(items) => Value::Array(items.into_iter().map(sorted).collect()),
        other => other,
    }
}

fn panel_json(panel: &Panel, place: usize, top: usize) -> Value {
    let targets = panel.targets.iter().zip('A'..='Z').map(|(target, letter)| {
        json!({
            "refId": letter.to_string(),
            "expr": target.expression,
            "legendFormat": target.legend,
            "exemplar": target.expression.contains("_bucket"),
            "datasource": {"type": "prometheus", "uid": "${datasource}"},
        })
    });
    json!({
        "id": place + 10,
        "type": "timeseries",
        "title": panel.title,
        "description": panel.what,
        "datasource": {"type": "prometheus", "uid": "${datasource}"},
        "gridPos": {"h": 8, "w": 12, "x": place % 2 * 12, "y": top + place / 2 * 8},
        "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0}, "overrides": []},
        "targets": targets.collect::<Vec<_>>(),
    })
}

fn trace_panel() -> Value {
    json!({
        "id": 1,
        "type": "traces",
        "title": "The job: queue waits, fetches, encode, prefill, decode",
        "datasource": {"type": "tempo", "uid": "${traces}"},
        "gridPos": {"h": 14, "w": 24, "x": 0, "y": 0},
        "targets": [{"refId": "A", "queryType": "traceql", "query": "$trace"}],
    })
}

fn data_source(name: &str, kind: &str, label: &str) -> Value {
    json!({"name": name, "label": label, "type": "datasource", "query": kind})
}

/// Which fleet: one value each, and the second and third among those of the one before.
fn fleet_variables() -> [Value; 3] {
    let of_label = |name: &str, label: &str, of: &str| {
        json!({
            "name": name,
            "label": label,
            "type": "query",
            "datasource": {"type": "prometheus", "uid": "${datasource}"},
            "query": format!("label_values(medfleet_build_info{of}, {name})"),
            "refresh": 2,
            "includeAll": false,
            "multi": false,
        })
    };
    [
        of_label("cluster", "Cluster", ""),
        of_label("namespace", "Namespace", "{cluster=~\"$cluster\"}"),
        of_label(
            "job",
            "Fleet",
            "{cluster=~\"$cluster\",namespace=~\"$namespace\"}",
        ),
    ]
}

fn variable(variable: Variable) -> Vec<Value> {
    let of_label = |name: &str, metric: &str| {
        json!({
            "name": name,
            "type": "query",
            "datasource": {"type": "prometheus", "uid": "${datasource}"},
            "query": format!("label_values({metric}{{{FLEET}}}, {name})"),
            "refresh": 2,
            "includeAll": true,
            "allValue": ".*",
            "multi": true,
        })
    };
    match variable {
        Variable::Stage => vec![json!({
            "name": "stage",
            "type": "custom",
            "query": "preprocess,encode,decode",
            "current": {"text": "encode", "value": "encode"},
        })],
        Variable::Pool => vec![of_label("pool", "medfleet_workers")],
        Variable::Tenant => vec![of_label("tenant", "medfleet_open_jobs")],
        Variable::Trace => vec![
            data_source("traces", "tempo", "Traces"),
            json!({"name": "trace", "label": "Trace id", "type": "textbox", "query": ""}),
        ],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::dashboards;

    #[test]
    fn every_dashboard_asks_which_fleet() {
        for dashboard in dashboards::all() {
            let text = json(&dashboard);
            for variable in ["cluster", "namespace", "job"] {
                let name = format!("\"name\": \"{variable}\"");
                assert!(text.contains(&name), "{text}");
            }
        }
    }
}
