//! The source of the dashboards: panels and their queries. `json` makes of them what Grafana imports.

use std::collections::BTreeMap;

use serde_json::{Value, json};

/// One dashboard.
#[derive(Debug)]
pub(super) struct Dashboard {
    /// Its file.
    pub(super) name: &'static str,
    title: &'static str,
    variables: Vec<Variable>,
    pub(super) panels: Vec<Panel>,
}

#[derive(Debug, Clone, Copy)]
enum Variable {
    Stage,
    Pool,
    Tenant,
    /// The traces of a job, which are not in Prometheus.
    Trace,
}

/// One panel.
#[derive(Debug)]
pub(super) struct Panel {
    pub(super) title: &'static str,
    unit: &'static str,
    what: &'static str,
    pub(super) targets: Vec<Target>,
}

/// One query.
#[derive(Debug)]
pub(super) struct Target {
    legend: &'static str,
    pub(super) expression: String,
}

fn panel(
    title: &'static str,
    unit: &'static str,
    what: &'static str,
    targets: &[(&'static str, &str)],
) -> Panel {
    let targets = targets.iter().map(|(legend, expression)| Target {
        legend,
        expression: (*expression).to_owned(),
    });
    Panel {
        title,
        unit,
        what,
        targets: targets.collect(),
    }
}

/// All of them.
pub(super) fn all() -> Vec<Dashboard> {
    vec![fleet(), stage(), tenant(), job()]
}

fn fleet() -> Dashboard {
    Dashboard {
        name: "fleet",
        title: "medfleet: fleet",
        variables: vec![Variable::Pool],
        panels: [waiting(), speed(), health()]
            .into_iter()
            .flatten()
            .collect(),
    }
}

/// How much waits, for how long, and who works on it.
fn waiting() -> Vec<Panel> {
    vec![
        panel(
            "Backlog",
            "short",
            "Units held in the intake, released or in hand. What the autoscaler reads.",
            &[(
                "{{stage}} {{class}}",
                "sum by (stage, class) (medfleet:backlog_units{pool=~\"$pool\"})",
            )],
        ),
        panel(
            "Oldest unit",
            "s",
            "Since when the oldest unfinished unit is at its stage.",
            &[(
                "{{stage}} {{class}}",
                "max by (stage, class) (medfleet:oldest_unit_age_seconds{pool=~\"$pool\"})",
            )],
        ),
        panel(
            "Workers",
            "short",
            "Workers that said within the last seconds that they are there.",
            &[("{{stage}} {{pool}}", "medfleet:workers{pool=~\"$pool\"}")],
        ),
        panel(
            "Slots at work",
            "percentunit",
            "Near 1 for long: more workers would help.",
            &[(
                "{{stage}} {{pool}}",
                "medfleet:slots_busy:ratio{pool=~\"$pool\"}",
            )],
        ),
    ]
}

/// What gets done, and how fast.
fn speed() -> Vec<Panel> {
    vec![
        panel(
            "Units done",
            "ops",
            "",
            &[(
                "{{stage}}",
                "sum by (stage) (medfleet:units:rate5m{verdict=\"done\"})",
            )],
        ),
        panel(
            "Wait, 95th percentile",
            "s",
            "From a unit's release to its start.",
            &[("{{stage}} {{class}}", "medfleet:wait_seconds:p95_5m")],
        ),
        panel(
            "Service time, 95th percentile",
            "s",
            "From taking a unit to its verdict.",
            &[("{{stage}} {{class}}", "medfleet:unit_seconds:p95_5m")],
        ),
        panel(
            "Tokens written",
            "short",
            "Tokens each second, of all decoders.",
            &[("tokens/s", "medfleet:output_tokens:rate5m")],
        ),
        panel(
            "Time to the first token and between tokens",
            "s",
            "",
            &[
                (
                    "first, 95th percentile",
                    "medfleet:first_token_seconds:p95_5m",
                ),
                ("each, median", "medfleet:token_seconds:p50_5m"),
            ],
        ),
        panel(
            "KV memory in use",
            "percentunit",
            "Texts begin when their prompts find room; at 1 the youngest give way to the oldest.",
            &[("used", "medfleet:kv_used:ratio")],
        ),
    ]
}

/// What goes wrong, and what runs full.
fn health() -> Vec<Panel> {
    vec![
        panel(
            "Retries, rejections and redeliveries",
            "ops",
            "",
            &[
                (
                    "{{stage}} {{verdict}}",
                    "sum by (stage, verdict) (medfleet:units:rate5m{verdict!=\"done\"})",
                ),
                ("{{stage}} again", "medfleet:redeliveries:rate5m"),
            ],
        ),
        panel(
            "Dead letters",
            "short",
            "Units that wait for a person.",
            &[("letters", "max(medfleet_dead_letters)")],
        ),
        panel(
            "Dispatcher and queue",
            "short",
            "Each of them must be 1.",
            &[
                ("dispatchers", "sum(medfleet_ingest_dispatcher)"),
                ("queue takes writes", "min(medfleet_queue_writable)"),
                ("every process connected", "min(medfleet_queue_connected)"),
            ],
        ),
        panel(
            "Streams",
            "percentunit",
            "A full one takes nothing more.",
            &[("{{stream}}", "medfleet:stream_full:ratio")],
        ),
        panel(
            "Resident memory",
            "bytes",
            "",
            &[("{{instance}}", "medfleet_process_resident_memory_bytes")],
        ),
        panel(
            "CPU",
            "short",
            "Cores in use.",
            &[(
                "{{instance}}",
                "rate(medfleet_process_cpu_seconds_total[$__rate_interval])",
            )],
        ),
    ]
}

fn stage() -> Dashboard {
    let mut panels = every_stage();
    panels.extend(single_stages());
    Dashboard {
        name: "stage",
        title: "medfleet: one stage",
        variables: vec![Variable::Stage],
        panels,
    }
}

/// What every stage tells.
fn every_stage() -> Vec<Panel> {
    vec![
        panel(
            "Units by verdict",
            "ops",
            "",
            &[(
                "{{verdict}} {{class}}",
                "sum by (verdict, class) (rate(medfleet_${stage}_units_total[$__rate_interval]))",
            )],
        ),
        panel(
            "Service time",
            "s",
            "The dots are traces of single jobs.",
            &[
                (
                    "median",
                    "histogram_quantile(0.5, sum by (le) (rate(medfleet_${stage}_unit_seconds_bucket[$__rate_interval])))",
                ),
                (
                    "95th percentile",
                    "histogram_quantile(0.95, sum by (le) (rate(medfleet_${stage}_unit_seconds_bucket[$__rate_interval])))",
                ),
            ],
        ),
        panel(
            "Wait by class, 95th percentile",
            "s",
            "",
            &[(
                "{{class}}",
                "histogram_quantile(0.95, sum by (class, le) (rate(medfleet_${stage}_wait_seconds_bucket[$__rate_interval])))",
            )],
        ),
        panel(
            "Slots",
            "short",
            "",
            &[
                ("busy", "sum(medfleet_${stage}_slots_busy)"),
                ("all", "sum(medfleet_${stage}_slots)"),
            ],
        ),
        panel(
            "Backlog and oldest unit",
            "short",
            "",
            &[
                (
                    "units {{class}}",
                    "sum by (class) (medfleet:backlog_units{stage=\"$stage\"})",
                ),
                (
                    "oldest, seconds",
                    "max(medfleet:oldest_unit_age_seconds{stage=\"$stage\"})",
                ),
            ],
        ),
    ]
}

/// What only encode or only decode tells.
fn single_stages() -> Vec<Panel> {
    vec![
        panel(
            "encode: frames, and frames that go through the model together",
            "short",
            "",
            &[
                (
                    "frames/s",
                    "sum(rate(medfleet_encode_frames_total[$__rate_interval]))",
                ),
                (
                    "frames a pass",
                    "sum(rate(medfleet_encode_chunk_frames_sum[$__rate_interval])) / sum(rate(medfleet_encode_chunk_frames_count[$__rate_interval]))",
                ),
                (
                    "chunks found/s",
                    "sum(rate(medfleet_encode_chunks_found_total[$__rate_interval]))",
                ),
            ],
        ),
        panel(
            "encode: tokens fetched from memory",
            "percentunit",
            "",
            &[(
                "hits",
                "sum(rate(medfleet_encode_cache_hits_total[$__rate_interval])) / (sum(rate(medfleet_encode_cache_hits_total[$__rate_interval])) + sum(rate(medfleet_encode_cache_misses_total[$__rate_interval])))",
            )],
        ),
        panel(
            "decode: texts in a pass, and texts that wait for memory",
            "short",
            "",
            &[
                (
                    "texts a pass",
                    "sum(rate(medfleet_decode_pass_sequences_total[$__rate_interval])) / sum(rate(medfleet_decode_passes_total[$__rate_interval]))",
                ),
                ("waiting", "sum(medfleet_decode_sequences_waiting)"),
                (
                    "gave way/s",
                    "sum(rate(medfleet_decode_preemptions_total[$__rate_interval]))",
                ),
            ],
        ),
        panel(
            "decode: tokens of prompts that were in memory already",
            "percentunit",
            "",
            &[(
                "known",
                "sum(rate(medfleet_decode_prefix_tokens_total[$__rate_interval])) / sum(rate(medfleet_decode_prompt_tokens_total[$__rate_interval]))",
            )],
        ),
    ]
}

fn tenant() -> Dashboard {
    let panels = vec![
        panel(
            "Open jobs",
            "short",
            "Jobs that have not ended. Tenants beyond the twenty largest are one, `_other`.",
            &[(
                "{{tenant}}",
                "max by (tenant) (medfleet_open_jobs{tenant=~\"$tenant\"})",
            )],
        ),
        panel(
            "Share of all open jobs",
            "percentunit",
            "",
            &[(
                "{{tenant}}",
                "max by (tenant) (medfleet_open_jobs{tenant=~\"$tenant\"}) / on () group_left sum(max by (tenant) (medfleet_open_jobs))",
            )],
        ),
        panel(
            "What every tenant meets: wait by class, 95th percentile",
            "s",
            "Waits are not counted by tenant: a trace has the tenant, a metric has not.",
            &[("{{stage}} {{class}}", "medfleet:wait_seconds:p95_5m")],
        ),
    ];
    Dashboard {
        name: "tenant",
        title: "medfleet: one tenant",
        variables: vec![Variable::Tenant],
        panels,
    }
}

fn job() -> Dashboard {
    let panels = vec![
        panel(
            "Where jobs like it spend their time, 95th percentile",
            "s",
            "The dots are traces: a click shows that job above.",
            &[
                (
                    "{{stage}} {{class}}, at work",
                    "medfleet:unit_seconds:p95_5m",
                ),
                (
                    "{{stage}} {{class}}, waiting",
                    "medfleet:wait_seconds:p95_5m",
                ),
            ],
        ),
        panel(
            "Units of decode by time",
            "s",
            "",
            &[(
                "≤ {{le}} s",
                "sum by (le) (rate(medfleet_decode_unit_seconds_bucket[$__rate_interval]))",
            )],
        ),
    ];
    Dashboard {
        name: "job",
        title: "medfleet: one job",
        variables: vec![Variable::Trace],
        panels,
    }
}

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

fn variable(variable: Variable) -> Vec<Value> {
    let of_label = |name: &str, query: &str| {
        json!({
            "name": name,
            "type": "query",
            "datasource": {"type": "prometheus", "uid": "${datasource}"},
            "query": query,
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
        Variable::Pool => vec![of_label("pool", "label_values(medfleet_workers, pool)")],
        Variable::Tenant => vec![of_label(
            "tenant",
            "label_values(medfleet_open_jobs, tenant)",
        )],
        Variable::Trace => vec![
            data_source("traces", "tempo", "Traces"),
            json!({"name": "trace", "label": "Trace id", "type": "textbox", "query": ""}),
        ],
    }
}
