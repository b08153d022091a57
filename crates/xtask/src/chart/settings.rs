//! The files inside the chart, given to who will read them: each service's configuration to the service's own
//! `--check-config`, NATS's to `nats-server -t`, and the arguments of the command line to the command line. And the chart's tables of settings against the services' own.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::objects::{Pod, list, of_kind, pods, text};
use super::{Chart, built, rules};
use crate::{fetch, places};

/// The services with their binaries and the section that is their own.
pub(super) const SERVICES: [&str; 4] = ["ingest", "preprocess", "encode", "decode"];

/// Configuration files that were checked; the same text is checked once.
pub(crate) struct Files {
    scratch: PathBuf,
    nats_server: PathBuf,
    seen: BTreeMap<String, Option<String>>,
}

impl Files {
    pub(crate) fn open(chart: &Chart) -> Result<Self> {
        let scratch = chart.scratch.join("files");
        fs::create_dir_all(&scratch)?;
        certificates(&scratch)?;
        Ok(Self {
            scratch,
            nats_server: fetch::file("nats-server")?,
            seen: BTreeMap::new(),
        })
    }

    pub(crate) fn checked(&self) -> usize {
        self.seen.len()
    }

    /// What the programs say against the files of one rendering.
    pub(crate) fn check(&mut self, objects: &[Value]) -> Result<Vec<String>> {
        let mut violations = Vec::new();
        for pod in pods(objects) {
            let component = pod.component();
            if let Some(config) = rules::config_of(pod, objects) {
                let secrets = self.secrets(pod)?;
                let config = localised(config, &secrets);
                violations.extend(self.once(component, &config, |path| service(component, path))?);
            }
        }
        for container in pods(objects).into_iter().flat_map(Pod::containers) {
            if ["weights", "submit"].contains(&text(&container["name"])) {
                let arguments: Vec<&str> = list(&container["args"]).map(text).collect();
                let typed = |_: &Path| command_line(&arguments);
                violations.extend(self.once("medfleet", &arguments.join("\n"), typed)?);
            }
        }
        let nats_server = self.nats_server.clone();
        for map in of_kind(objects, "ConfigMap") {
            if let Some(config) = map["data"]["nats.conf"].as_str() {
                let config = config.replace("/etc/nats-tls", &self.scratch.to_string_lossy());
                violations.extend(self.once("nats", &config, |path| nats(&nats_server, path))?);
            }
        }
        Ok(violations)
    }

    fn once(
        &mut self,
        component: &str,
        config: &str,
        run: impl FnOnce(&Path) -> Result<Option<String>>,
    ) -> Result<Option<String>> {
        let key = format!("{component}-{}", fetch::sha256(config.as_bytes()));
        if let Some(known) = self.seen.get(&key) {
            return Ok(known.clone());
        }
        let path = self.scratch.join(&key);
        fs::write(&path, config)?;
        let said = run(&path)?.map(|text| format!("{component}: {text}"));
        self.seen.insert(key, said.clone());
        Ok(said)
    }

    /// A folder with a file for every secret that the pod mounts: what a configuration names must be mounted.
    fn secrets(&self, pod: Pod<'_>) -> Result<PathBuf> {
        let root = self.scratch.join(format!("{}-secrets", pod.component()));
        if root.exists() {
            fs::remove_dir_all(&root)?;
        }
        fs::create_dir_all(&root)?;
        let mounts = pod
            .containers()
            .flat_map(|container| list(&container["volumeMounts"]));
        for mount in mounts.collect::<Vec<_>>() {
            let Some(place) = text(&mount["mountPath"]).strip_prefix("/etc/medfleet/") else {
                continue;
            };
            let volume = list(&pod.spec["volumes"]).find(|volume| volume["name"] == mount["name"]);
            for item in volume
                .into_iter()
                .flat_map(|volume| list(&volume["secret"]["items"]))
            {
                let folder = root.join(place);
                fs::create_dir_all(&folder)?;
                // 64 hexadecimal digits: good for the one secret whose form is looked at.
                fs::write(folder.join(text(&item["path"])), "a1".repeat(32))?;
            }
        }
        Ok(root)
    }
}

/// With secrets where they are here, and without a device that the build for the CPU does not know.
fn localised(config: &str, secrets: &Path) -> String {
    let root = format!("{}/", secrets.display());
    let lines = config
        .lines()
        .filter(|line| !line.starts_with("device = \"cuda"));
    let text: Vec<String> = lines
        .map(|line| line.replace("/etc/medfleet/", &root))
        .collect();
    text.join("\n") + "\n"
}

fn service(component: &str, config: &Path) -> Result<Option<String>> {
    let mut command = Command::new(built(&format!("medfleet-{component}"))?);
    said(command.arg("--check-config").arg("--config").arg(config))
}

/// Whether the command line takes these arguments. Asked for help in the end, it does no more than read them.
fn command_line(arguments: &[&str]) -> Result<Option<String>> {
    let mut command = Command::new(built("medfleet")?);
    said(command.args(arguments).arg("--help"))
}

fn nats(program: &Path, config: &Path) -> Result<Option<String>> {
    let mut command = Command::new(program);
    command
        .env("POD_NAME", "nats-0")
        .env("CLIENT_TOKEN", "nt_1234");
    for server in 0..3 {
        let route = format!("nats://servers:nt_1234@nats-{server}.nats-peers:6222");
        command.env(format!("ROUTE_{server}"), route);
    }
    said(command.arg("-t").arg("-c").arg(config))
}

/// What it complains about; nothing when it is content.
pub(super) fn said(command: &mut Command) -> Result<Option<String>> {
    let output = command
        .current_dir(places::root())
        .output()
        .context("start a check")?;
    let text = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Ok((!output.status.success()).then_some(text))
}

/// One certificate that signs itself, as what a secret with TLS files holds: nats-server opens them.
fn certificates(folder: &Path) -> Result<()> {
    let made = rcgen::generate_simple_self_signed(vec!["nats".to_owned()])?;
    for name in ["tls.crt", "ca.crt"] {
        fs::write(folder.join(name), made.cert.pem())?;
    }
    fs::write(folder.join("tls.key"), made.signing_key.serialize_pem())?;
    Ok(())
}

/// Settings that the chart decides itself, below each section.
const CHARTS: &[&str] = &[
    "process",
    "model",
    "queue.urls",
    "queue.replicas",
    "queue.stream_bytes_max",
    "queue.tls",
    "store.backend",
    "store.key",
    "ingest.listen",
    "ingest.tokens",
    "ingest.models",
    "ingest.embedders",
    "ingest.default_model",
    "ingest.edge",
    "preprocess.pool",
    "preprocess.frame_side",
    "encode.pool",
    "encode.listen",
    "encode.for_edge",
    "decode.pool",
];
/// Settings without a default: a service does not print them, so they are named here.
const OPTIONAL: &[&str] = &[
    "decode.prefill_tokens_max",
    "decode.speculation.draft",
    "preprocess.text_reader.program",
    "preprocess.text_reader.data_folder",
    "queue.heartbeat",
    "store.capacity_bytes",
    "ingest.dispatcher.decode_reserved",
    "ingest.dispatcher.tenant_weights",
    "ingest.quotas.default.bytes_per_minute",
    "ingest.cost.pools",
    "ingest.quotas.default.in_flight_max",
    "ingest.quotas.default.jobs_per_minute",
    "ingest.retention.classes",
    "ingest.retention.tenants",
    "ingest.quotas.default.open_jobs_max",
    "ingest.quotas.default.stat_per_minute",
];

/// The least that each service needs to say what its settings are.
const LEAST: &str = "\
[store]
key = 'a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1'
backend = { kind = 'jetstream', bucket = 'x', replicas = 1 }
";

/// Where the chart's schema and defaults no longer say what the services say.
pub(crate) fn drift(chart: &Chart) -> Result<Vec<String>> {
    let schema: Value =
        serde_json::from_slice(&fs::read(chart.folder.join("values.schema.json"))?)?;
    let mut violations = Vec::new();
    for component in SERVICES {
        let printed = printed(chart, component)?;
        let mut theirs = BTreeMap::new();
        leaves("", &toml::Value::Table(printed.clone()), &mut theirs);
        let mut ours = BTreeMap::new();
        for section in ["queue", "store", component] {
            let pointer = match section {
                "queue" | "store" | "ingest" => format!("/properties/{section}/properties/config"),
                stage => format!("/definitions/{stage}/properties/config"),
            };
            properties(
                section,
                &schema,
                schema.pointer(&pointer).context("a config table")?,
                &mut ours,
            );
        }
        let charts = |key: &str| {
            CHARTS
                .iter()
                .any(|owned| key == *owned || key.starts_with(&format!("{owned}.")))
        };
        // A table of optional settings alone is printed empty.
        let emptied = |key: &str| {
            let within = format!("{key}.");
            OPTIONAL
                .iter()
                .any(|optional| optional.starts_with(&within))
        };
        let unknown = theirs.keys().filter(|key| !ours.contains_key(*key));
        for key in unknown.filter(|key| !charts(key) && !emptied(key)) {
            violations.push(format!(
                "{component} has the setting {key}, values.schema.json does not"
            ));
        }
        let unprinted = ours.keys().filter(|key| !theirs.contains_key(*key));
        for key in unprinted.filter(|key| !OPTIONAL.contains(&key.as_str())) {
            violations.push(format!(
                "values.schema.json has {key}, which {component} does not print"
            ));
        }
        for (key, value) in &theirs {
            let refusal = ours.get(key).and_then(|node| refusal(node, value));
            violations.extend(refusal.map(|why| {
                format!("values.schema.json refuses {key} = {value}, {component}'s default: {why}")
            }));
        }
        violations.extend(defaults(component, &printed));
    }
    Ok(violations)
}

/// Why a part of the schema takes no such value; patterns are not looked at.
fn refusal(node: &Value, value: &toml::Value) -> Option<String> {
    let kind = match value {
        toml::Value::String(_) | toml::Value::Datetime(_) => "string",
        toml::Value::Integer(_) => "integer",
        toml::Value::Float(_) => "number",
        toml::Value::Boolean(_) => "boolean",
        toml::Value::Array(_) => "array",
        toml::Value::Table(_) => "object",
    };
    let wanted = node["type"].as_str().unwrap_or(kind);
    if wanted != kind && (wanted, kind) != ("number", "integer") {
        return Some(format!("it wants a value of type {wanted}"));
    }
    let number = value.as_integer();
    let limit = |key: &str| node[key].as_i64().zip(number);
    let too_small = limit("minimum").filter(|(least, number)| number < least);
    let too_large = limit("maximum").filter(|(most, number)| number > most);
    if let Some((limit, _)) = too_small.or(too_large) {
        return Some(format!("the limit is {limit}"));
    }
    let words = node["enum"].as_array()?;
    let listed = words.iter().any(|word| word.as_str() == value.as_str());
    (!listed).then(|| "it is none of the words".to_owned())
}

/// Defaults of services that the chart repeats because it computes with them.
fn defaults(component: &str, printed: &toml::Table) -> Vec<String> {
    let values =
        fs::read_to_string(places::root().join("helm/medfleet/values.yaml")).unwrap_or_default();
    let mut violations = Vec::new();
    let drain = printed["process"]["drain"].as_str().unwrap_or_default();
    if !values.contains(&format!("drainSeconds: {}\n", drain.trim_end_matches('s'))) {
        violations.push(format!("{component} drains {drain} by default, process.drainSeconds in values.yaml says otherwise"));
    }
    for (stream, size) in printed["queue"]["stream_bytes_max"]
        .as_table()
        .into_iter()
        .flatten()
    {
        let size = size.as_str().unwrap_or_default();
        let mib = match size.strip_suffix("GiB") {
            Some(gib) => gib.parse::<u64>().unwrap_or(0) * 1024,
            None => size.trim_end_matches("MiB").parse().unwrap_or(0),
        };
        if !values.contains(&format!("    {stream}: {mib}\n")) {
            violations.push(format!(
                "queue.streamsMiB.{stream} in values.yaml is not {mib}, the services' default"
            ));
        }
    }
    // `_stage.tpl` repeats the slots to compute thresholds.
    let slots = [("encode", 1), ("decode", 4)]
        .into_iter()
        .find(|(stage, _)| *stage == component);
    if let Some((_, slots)) = slots
        && printed[component]["worker"]["slots"].as_integer() != Some(slots)
    {
        violations.push(format!(
            "{component} no longer has {slots} slots by default: change medfleet.stage.slots"
        ));
    }
    violations
}

fn printed(chart: &Chart, component: &str) -> Result<toml::Table> {
    let own = match component {
        "ingest" => "[ingest]\ntokens = 'x'\ndefault_model = 'm'\nmodels = { m = 'm' }\n",
        "preprocess" => "[preprocess]\npool = 'm'\nframe_side = 896\n",
        "encode" => "[encode]\npool = 'm'\n[model]\nkind = 'simulated'\n",
        _ => "[decode]\npool = 'm'\n[model]\nkind = 'simulated'\n",
    };
    let path = chart.scratch.join(format!("least-{component}.toml"));
    fs::write(&path, format!("{LEAST}{own}"))?;
    let mut command = Command::new(built(&format!("medfleet-{component}"))?);
    let output = command
        .arg("--print-config")
        .arg("--config")
        .arg(path)
        .output()?;
    if !output.status.success() {
        bail!(
            "medfleet-{component}: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    String::from_utf8(output.stdout)?
        .parse()
        .context("a printed configuration")
}

fn leaves(path: &str, value: &toml::Value, into: &mut BTreeMap<String, toml::Value>) {
    match value {
        toml::Value::Table(table) if !table.is_empty() => {
            for (key, value) in table {
                let path = if path.is_empty() {
                    key.clone()
                } else {
                    format!("{path}.{key}")
                };
                leaves(&path, value, into);
            }
        }
        _ => {
            into.insert(path.to_owned(), value.clone());
        }
    }
}

/// The keys of a table in the schema with what it says of each; a definition is looked up.
fn properties(path: &str, schema: &Value, table: &Value, into: &mut BTreeMap<String, Value>) {
    let table = match table["$ref"]
        .as_str()
        .and_then(|name| schema.pointer(name.trim_start_matches('#')))
    {
        Some(definition) => definition,
        None => table,
    };
    match table["properties"].as_object() {
        Some(inner) => inner
            .iter()
            .for_each(|(key, value)| properties(&format!("{path}.{key}"), schema, value, into)),
        None => {
            into.insert(path.to_owned(), table.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_default_of_another_type_or_beyond_a_limit_is_found() {
        let check = |node: Value, value: toml::Value, is_refused: bool| {
            assert_eq!(
                refusal(&node, &value).is_some(),
                is_refused,
                "{node} {value}"
            );
        };
        let count = || json!({"type": "integer", "minimum": 1, "maximum": 9});
        check(count(), 1_i64.into(), false);
        check(count(), 0_i64.into(), true);
        check(count(), 10_i64.into(), true);
        check(count(), "1s".into(), true);
        check(json!({"type": "number"}), 1_i64.into(), false);
        check(
            json!({"type": "string", "pattern": "^x$"}),
            "y".into(),
            false,
        );
        check(json!({"enum": ["auto", "off"]}), "auto".into(), false);
        check(json!({"enum": ["auto", "off"]}), "on".into(), true);
    }
}
