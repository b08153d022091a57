//! The source of the dashboards: panels and their queries. `grafana` makes of them what is imported there.

/// `$fleet` in an expression: one Prometheus may scrape several fleets, and a dashboard shows one. Where a label is missing,
/// as `namespace` is outside Kubernetes, its variable is empty, and what has no such label matches.
pub(super) const FLEET: &str = "cluster=~\"$cluster\",namespace=~\"$namespace\",job=~\"$job\"";

#[derive(Debug)]
pub(super) struct Dashboard {
    /// Its file.
    pub(super) name: &'static str,
    pub(super) title: &'static str,
    pub(super) variables: Vec<Variable>,
    pub(super) panels: Vec<Panel>,
}

#[derive(Debug, Clone, Copy)]
pub(super) enum Variable {
    Stage,
    Pool,
    Tenant,
    /// The traces of a job, which are not in Prometheus.
    Trace,
}

#[derive(Debug)]
pub(super) struct Panel {
    pub(super) title: &'static str,
    pub(super) unit: &'static str,
    pub(super) what: &'static str,
    pub(super) targets: Vec<Target>,
}

/// One query.
#[derive(Debug)]
pub(super) struct Target {
    pub(super) legend: &'static str,
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
        expression: expression.replace("$fleet", FLEET),
    });
    Panel {
        title,
        unit,
        what,
        targets: targets.collect(),
    }
}

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
                "sum by (stage, class) (medfleet:backlog_units{$fleet,pool=~\"$pool\"})",
            )],
        ),
        panel(
            "Oldest unit",
            "s",
            "Since when the oldest unfinished unit is at its stage.",
            &[(
                "{{stage}} {{class}}",
                "max by (stage, class) (medfleet:oldest_unit_age_seconds{$fleet,pool=~\"$pool\"})",
            )],
        ),
        panel(
            "Workers",
            "short",
            "Workers that said within the last seconds that they are there.",
            &[(
                "{{stage}} {{pool}}",
                "medfleet:workers{$fleet,pool=~\"$pool\"}",
            )],
        ),
        panel(
            "Slots at work",
            "percentunit",
            "Near 1 for long: more workers would help.",
            &[(
                "{{stage}} {{pool}}",
                "medfleet:slots_busy:ratio{$fleet,pool=~\"$pool\"}",
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
                "sum by (stage) (medfleet:units:rate5m{$fleet,verdict=\"done\"})",
            )],
        ),
        panel(
            "Wait, 95th percentile",
            "s",
            "From a unit's release to its start.",
            &[(
                "{{stage}} {{class}}",
                "medfleet:wait_seconds:p95_5m{$fleet}",
            )],
        ),
        panel(
            "Service time, 95th percentile",
            "s",
            "From taking a unit to its verdict.",
            &[(
                "{{stage}} {{class}}",
                "medfleet:unit_seconds:p95_5m{$fleet}",
            )],
        ),
        panel(
            "Tokens written",
            "short",
            "Tokens each second, of all decoders.",
            &[("tokens/s", "medfleet:output_tokens:rate5m{$fleet}")],
        ),
        panel(
            "Time to the first token and between tokens",
            "s",
            "",
            &[
                (
                    "first, 95th percentile",
                    "medfleet:first_token_seconds:p95_5m{$fleet}",
                ),
                ("each, median", "medfleet:token_seconds:p50_5m{$fleet}"),
            ],
        ),
        panel(
            "KV memory in use",
            "percentunit",
            "Texts begin when their prompts find room; at 1 the youngest give way to the oldest.",
            &[("used", "medfleet:kv_used:ratio{$fleet}")],
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
                    "sum by (stage, verdict) (medfleet:units:rate5m{$fleet,verdict!=\"done\"})",
                ),
                ("{{stage}} again", "medfleet:redeliveries:rate5m{$fleet}"),
            ],
        ),
        panel(
            "Dead letters",
            "short",
            "Units that wait for a person.",
            &[("letters", "max(medfleet_dead_letters{$fleet})")],
        ),
        panel(
            "Dispatcher and queue",
            "short",
            "Each of them must be 1.",
            &[
                ("dispatchers", "sum(medfleet_ingest_dispatcher{$fleet})"),
                ("queue takes writes", "min(medfleet_queue_writable{$fleet})"),
                (
                    "every process connected",
                    "min(medfleet_queue_connected{$fleet})",
                ),
            ],
        ),
        panel(
            "Streams",
            "percentunit",
            "A full one takes nothing more.",
            &[("{{stream}}", "medfleet:stream_full:ratio{$fleet}")],
        ),
        panel(
            "Resident memory",
            "bytes",
            "",
            &[(
                "{{instance}}",
                "medfleet_process_resident_memory_bytes{$fleet}",
            )],
        ),
        panel(
            "CPU",
            "short",
            "Cores in use.",
            &[(
                "{{instance}}",
                "rate(medfleet_process_cpu_seconds_total{$fleet}[$__rate_interval])",
            )],
        ),
    ]
}

fn stage() -> Dashboard {
    let panels = [every_stage(), of_encode(), of_decode()];
    Dashboard {
        name: "stage",
        title: "medfleet: one stage",
        variables: vec![Variable::Stage],
        panels: panels.into_iter().flatten().collect(),
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
                "sum by (verdict, class) (rate(medfleet_${stage}_units_total{$fleet}[$__rate_interval]))",
            )],
        ),
        panel(
            "Service time",
            "s",
            "The dots are traces of single jobs.",
            &[
                (
                    "median",
                    "histogram_quantile(0.5, sum by (le) (rate(medfleet_${stage}_unit_seconds_bucket{$fleet}[$__rate_interval])))",
                ),
                (
                    "95th percentile",
                    "histogram_quantile(0.95, sum by (le) (rate(medfleet_${stage}_unit_seconds_bucket{$fleet}[$__rate_interval])))",
                ),
            ],
        ),
        panel(
            "Wait by class, 95th percentile",
            "s",
            "",
            &[(
                "{{class}}",
                "histogram_quantile(0.95, sum by (class, le) (rate(medfleet_${stage}_wait_seconds_bucket{$fleet}[$__rate_interval])))",
            )],
        ),
        panel(
            "Slots",
            "short",
            "Busy may be more than all: units in the places of STAT come on top, and so do those that wait for another worker.",
            &[
                ("busy", "sum(medfleet_${stage}_slots_busy{$fleet})"),
                ("all", "sum(medfleet_${stage}_slots{$fleet})"),
            ],
        ),
        panel(
            "Backlog and oldest unit",
            "short",
            "",
            &[
                (
                    "units {{class}}",
                    "sum by (class) (medfleet:backlog_units{$fleet,stage=\"$stage\"})",
                ),
                (
                    "oldest, seconds",
                    "max(medfleet:oldest_unit_age_seconds{$fleet,stage=\"$stage\"})",
                ),
            ],
        ),
    ]
}

/// What only encode tells.
fn of_encode() -> Vec<Panel> {
    vec![
        panel(
            "encode: frames, and frames that go through the model together",
            "short",
            "",
            &[
                (
                    "frames/s",
                    "sum(rate(medfleet_encode_frames_total{$fleet}[$__rate_interval]))",
                ),
                (
                    "frames a pass",
                    "sum(rate(medfleet_encode_chunk_frames_sum{$fleet}[$__rate_interval])) / sum(rate(medfleet_encode_chunk_frames_count{$fleet}[$__rate_interval]))",
                ),
                (
                    "frames found in memory/s",
                    "sum(rate(medfleet_encode_frame_looks_total{$fleet,tier=\"memory\",outcome=\"hit\"}[$__rate_interval]))",
                ),
                (
                    "frames found in the store/s",
                    "sum(rate(medfleet_encode_frame_looks_total{$fleet,tier=\"store\",outcome=\"hit\"}[$__rate_interval]))",
                ),
            ],
        ),
        panel(
            "encode: tokens fetched from memory",
            "percentunit",
            "",
            &[(
                "hits",
                "sum(rate(medfleet_encode_cache_hits_total{$fleet}[$__rate_interval])) / (sum(rate(medfleet_encode_cache_hits_total{$fleet}[$__rate_interval])) + sum(rate(medfleet_encode_cache_misses_total{$fleet}[$__rate_interval])))",
            )],
        ),
        panel(
            "encode: claims of new images",
            "short",
            "Held is what another encoder has claimed; failed is encoded without a claim. What was held is found when the other has made it, left when the other failed or died, overdue when it is encoded twice.",
            &[
                (
                    "{{outcome}}/s",
                    "sum by (outcome) (rate(medfleet_encode_claims_total{$fleet}[$__rate_interval]))",
                ),
                (
                    "held, then {{outcome}}/s",
                    "sum by (outcome) (rate(medfleet_encode_claims_held_total{$fleet}[$__rate_interval]))",
                ),
                (
                    "units that wait",
                    "sum(rate(medfleet_encode_claims_held_wait_seconds_sum{$fleet}[$__rate_interval]))",
                ),
            ],
        ),
    ]
}

/// What only decode tells.
fn of_decode() -> Vec<Panel> {
    vec![
        panel(
            "decode: texts in a pass, and texts that wait for memory",
            "short",
            "",
            &[
                (
                    "texts a pass",
                    "sum(rate(medfleet_decode_pass_sequences_total{$fleet}[$__rate_interval])) / sum(rate(medfleet_decode_passes_total{$fleet}[$__rate_interval]))",
                ),
                ("waiting", "sum(medfleet_decode_sequences_waiting{$fleet})"),
                (
                    "gave way/s",
                    "sum(rate(medfleet_decode_preemptions_total{$fleet}[$__rate_interval]))",
                ),
            ],
        ),
        panel(
            "decode: tokens of prompts that were in memory already",
            "percentunit",
            "",
            &[(
                "known",
                "sum(rate(medfleet_decode_prefix_tokens_total{$fleet}[$__rate_interval])) / sum(rate(medfleet_decode_prompt_tokens_total{$fleet}[$__rate_interval]))",
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
                "max by (tenant) (medfleet_open_jobs{$fleet,tenant=~\"$tenant\"})",
            )],
        ),
        panel(
            "Share of all open jobs",
            "percentunit",
            "",
            &[(
                "{{tenant}}",
                "max by (tenant) (medfleet_open_jobs{$fleet,tenant=~\"$tenant\"}) / on () group_left sum(max by (tenant) (medfleet_open_jobs{$fleet}))",
            )],
        ),
        panel(
            "Stored",
            "bytes",
            "What the store holds. Where no tenant has a quota, as of the last sweep, up to an hour ago.",
            &[(
                "{{tenant}}",
                "max by (tenant) (medfleet_stored_bytes{$fleet,tenant=~\"$tenant\"})",
            )],
        ),
        panel(
            "Stored, of the quota",
            "percentunit",
            "At 1 new files are refused. Only tenants with a quota.",
            &[(
                "{{tenant}}",
                "max by (tenant) (medfleet:tenant_full:ratio{$fleet,tenant=~\"$tenant\"})",
            )],
        ),
        panel(
            "What every tenant meets: wait by class, 95th percentile",
            "s",
            "Waits are not counted by tenant: a trace has the tenant, a metric has not.",
            &[(
                "{{stage}} {{class}}",
                "medfleet:wait_seconds:p95_5m{$fleet}",
            )],
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
                    "medfleet:unit_seconds:p95_5m{$fleet}",
                ),
                (
                    "{{stage}} {{class}}, waiting",
                    "medfleet:wait_seconds:p95_5m{$fleet}",
                ),
            ],
        ),
        panel(
            "Units of decode by time",
            "s",
            "",
            &[(
                "≤ {{le}} s",
                "sum by (le) (rate(medfleet_decode_unit_seconds_bucket{$fleet}[$__rate_interval]))",
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dashboard_shows_one_fleet() {
        for dashboard in all() {
            for target in dashboard.panels.iter().flat_map(|panel| &panel.targets) {
                let asked = &target.expression;
                let names = asked.matches("medfleet_").count() + asked.matches("medfleet:").count();
                assert_eq!(asked.matches(FLEET).count(), names, "{asked}");
            }
        }
    }
}
