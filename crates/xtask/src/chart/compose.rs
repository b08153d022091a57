//! The compose file for one machine: what its folder needs is made by its own script, each service's settings are given to the
//! service, NATS's file to NATS, and every container has least rights. No compose program is here to start it.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::objects::{list, text};
use super::settings::{SERVICES, said};
use super::{Chart, built, memory, python};
use crate::{fetch, places, process};

const FILE: &str = "compose.yaml";
const SCRIPT: &str = "compose-prepare.sh";
const NATS: &str = "nats-single.conf";
/// Keys of a service that the file uses, by the names that the Compose Specification has for them.
const KEYS: [&str; 13] = [
    "cap_drop",
    "command",
    "depends_on",
    "environment",
    "image",
    "mem_limit",
    "ports",
    "read_only",
    "restart",
    "security_opt",
    "stop_grace_period",
    "user",
    "volumes",
];

pub(crate) fn check(chart: &Chart) -> Result<Vec<String>> {
    let deploy = places::root().join("deploy");
    let folder = chart.scratch.join("compose");
    fs::create_dir_all(&folder)?;
    fs::copy(deploy.join(SCRIPT), folder.join(SCRIPT))?;
    let key = folder.join("secrets/store-key");
    let mut keys = Vec::new();
    // The script runs a second time without the data folder, which docker would create for root alone; the secrets must stay as
    // they are.
    for _ in 0..2 {
        process::run(Command::new("sh").arg(folder.join(SCRIPT)))?;
        // The folder may belong to another user now, and then only that user could empty it later.
        fs::remove_dir(folder.join("data")).context("the script makes data")?;
        keys.push(fs::read(&key).context("the script makes a key")?);
    }
    let read = process::capture(python("compose.py")?.arg(deploy.join(FILE)))?;
    let file: Value = serde_json::from_str(&read).context("the compose file")?;
    let told = fs::read_to_string(deploy.join(FILE)).context("the compose file's head")?;
    let services = file["services"].as_object().context("its services")?;
    let mut violations = Vec::new();
    if keys[0] != keys[1] {
        violations.push(format!("{SCRIPT}: makes another key in place of the first"));
    }
    violations.extend(unbuilt(&told));
    for (name, service) in services {
        let mut found = rights(service);
        found.extend(unmounted(service, &deploy));
        found.extend(unlimited(service));
        violations.extend(found.iter().map(|what| format!("{FILE}: {name} {what}")));
    }
    let decodes = services.get("decode").and_then(limit);
    if decodes <= Some(memory::by_default()?) {
        violations.push(format!(
            "{FILE}: decode's memory is used up by keys and values"
        ));
    }
    for name in SERVICES {
        let mut command = Command::new(built(&format!("medfleet-{name}"))?);
        let given = services.get(name).map(|service| &service["environment"]);
        let given = given.and_then(Value::as_object);
        for (key, value) in given.context("a service without settings")? {
            if key == "MEDFLEET_DECODE__KV_BYTES_MAX" {
                let less = memory::too_little(text(value), memory::by_default()?);
                violations.extend(less.map(|what| format!("{FILE}: {name}: {what}")));
            }
            let secrets = format!("{}/secrets", folder.display());
            command.env(key, text(value).replace("/secrets", &secrets));
        }
        let said = said(command.arg("--check-config"))?;
        violations.extend(said.map(|what| format!("{FILE}: {name}: {what}")));
    }
    violations.extend(nats(&deploy, &folder)?);
    Ok(violations)
}

/// Images that the file names, in its head too, and whose building the head does not tell.
fn unbuilt(told: &str) -> Vec<String> {
    let mut lines = told.lines();
    let built = lines.find_map(|line| {
        line.trim_start_matches(['#', ' '])
            .strip_prefix("for service in ")
    });
    let built = built.and_then(|rest| rest.split_once(';'));
    let built: Vec<&str> = built.map_or("", |(names, _)| names).split(' ').collect();
    let named = told.split("medfleet/").skip(1);
    let named = named.filter_map(|rest| Some(rest.split_once(":0.1.0")?.0));
    let unbuilt = named.filter(|name| *name != "$service" && !built.contains(name));
    unbuilt
        .map(|name| format!("{FILE}: who builds medfleet/{name}?"))
        .collect()
}

/// A model's folder that the settings name and no volume brings, or that is not there.
fn unmounted(service: &Value, deploy: &Path) -> Option<String> {
    let model = text(&service["environment"]["MEDFLEET_MODEL"]);
    let (_, rest) = model.split_once("path=\"")?;
    let (path, _) = rest.split_once('"')?;
    let ending = format!(":{path}:ro");
    let mut volumes = list(&service["volumes"]).map(text);
    let from = volumes.find_map(|volume| volume.strip_suffix(&ending));
    let is_there = from.is_some_and(|from| deploy.join(from).join("config.json").is_file());
    (!is_there).then(|| format!("has no model at {path}"))
}

/// A container that may take the machine's memory from the others, or a runtime that knows nothing of its limit.
fn unlimited(service: &Value) -> Option<String> {
    let Some(bytes) = limit(service) else {
        return Some("has no limit of memory".to_owned());
    };
    let told = memory::bytes(text(service["environment"].get("GOMEMLIMIT")?));
    (told != Some(bytes)).then(|| "is told of another limit of memory than it has".to_owned())
}

/// Bytes of memory that a container may have, as the Compose Specification writes them: `512m`, `4g`.
fn limit(service: &Value) -> Option<u64> {
    let told = text(&service["mem_limit"]);
    let (digits, unit) = told.split_at_checked(told.len().checked_sub(1)?)?;
    let unit: u32 = match unit {
        "m" => 20,
        "g" => 30,
        _ => return None,
    };
    digits.parse::<u64>().ok()?.checked_mul(1 << unit)
}

/// What a container may that it need not.
fn rights(service: &Value) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut must = |holds: bool, what: &str| {
        if !holds {
            wrong.push(what.to_owned());
        }
    };
    must(
        service["read_only"] == true,
        "may write its root file system",
    );
    must(
        service["user"] == "65532:65532",
        "has another user than the images",
    );
    must(service["cap_drop"] == json!(["ALL"]), "keeps capabilities");
    must(
        service["security_opt"] == json!(["no-new-privileges:true"]),
        "may gain privileges",
    );
    // There is no TLS here.
    let loopback = list(&service["ports"]).all(|port| text(port).starts_with("127.0.0.1:"));
    must(loopback, "is reached from other machines");
    let kept = |volume: &Value| text(volume).ends_with(":ro") || text(volume) == "./data:/data";
    must(
        list(&service["volumes"]).all(kept),
        "may write what it only reads",
    );
    let keys = service.as_object().into_iter().flatten();
    let unknown = keys.filter(|(key, _)| !KEYS.contains(&key.as_str()));
    wrong.extend(unknown.map(|(key, _)| format!("has {key}, which nobody has looked at")));
    wrong
}

/// Its file with the token beside it, as they are mounted.
fn nats(deploy: &Path, folder: &Path) -> Result<Option<String>> {
    fs::copy(deploy.join(NATS), folder.join(NATS))?;
    fs::copy(
        folder.join("secrets/nats-auth.conf"),
        folder.join("auth.conf"),
    )?;
    let mut command = Command::new(fetch::file("nats-server")?);
    let said = said(command.arg("-t").arg("-c").arg(folder.join(NATS)))?;
    Ok(said.map(|what| format!("{NATS}: {what}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_that_nobody_builds_is_found() {
        let check = |command: &str, expected: usize| {
            let head = "#   for service in ingest medfleet; do\n#     podman build --tag medfleet/$service:0.1.0 .\n";
            let found = unbuilt(&format!("{head}#   podman run {command}\n"));
            assert_eq!(found.len(), expected, "{command}: {found:?}");
        };
        check("medfleet/medfleet:0.1.0 list", 0);
        check("medfleet/ingest:0.1.0", 0);
        check("medfleet/decode:0.1.0", 1);
    }

    #[test]
    fn a_model_that_no_volume_brings_is_found() {
        let deploy = places::root().join("deploy");
        let check = |volume: &str, expected: bool| {
            let service = json!({
                "environment": {"MEDFLEET_MODEL": "{kind=\"folder\", path=\"/models/m\"}"}, "volumes": [volume],
            });
            assert_eq!(unmounted(&service, &deploy).is_none(), expected, "{volume}");
        };
        check("./demo/phantom-demo:/models/m:ro", true);
        check("./demo/phantom-demo:/models/other:ro", false);
        check("./demo:/models/m:ro", false);
    }

    #[test]
    fn a_container_without_a_limit_of_memory_is_found() {
        let check = |service: Value, is_well: bool| {
            assert_eq!(unlimited(&service).is_none(), is_well, "{service}");
        };
        let nats = |limit: &str| json!({"mem_limit": limit, "environment": {"GOMEMLIMIT": "2GiB"}});
        check(json!({"mem_limit": "512m", "environment": {}}), true);
        check(json!({"mem_limit": "4g"}), true);
        check(nats("2g"), true);
        check(json!({"environment": {}}), false);
        check(json!({"mem_limit": "4"}), false);
        check(json!({"mem_limit": "g"}), false);
        check(nats("1g"), false);
    }

    #[test]
    fn a_container_with_more_rights_is_found() {
        let least = json!({
            "read_only": true, "user": "65532:65532", "cap_drop": ["ALL"],
            "security_opt": ["no-new-privileges:true"],
            "ports": ["127.0.0.1:8443:8443"], "volumes": ["./secrets:/secrets:ro", "./data:/data"],
        });
        assert_eq!(rights(&least), Vec::<String>::new());
        let check = |key: &str, value: Value| {
            let mut more = least.clone();
            more[key] = value;
            assert_eq!(rights(&more).len(), 1, "{key}: {:?}", rights(&more));
        };
        check("read_only", json!(false));
        check("user", json!("0:0"));
        check("cap_drop", json!([]));
        check("security_opt", json!([]));
        check("ports", json!(["8443:8443"]));
        check("volumes", json!(["./secrets:/secrets"]));
        check("privileged", json!(true));
    }
}
