//! The notes that an installation prints: they list every Secret that a pod waits for, with its keys, and say of which
//! cert-manager makes it, and what is spoken in plain text.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};
use serde_json::Value;

use super::objects::{list, of_kind, pods, text};
use super::{Chart, NAMESPACE, RELEASE, rules};
use crate::process;

/// What stands behind the keys of a Secret that nobody has to make.
const MADE: &str = "(cert-manager makes it)";

/// Secrets that the pods of these objects wait for and that the notes do not name, or name with the wrong maker.
pub(super) fn check(chart: &Chart, values: &[PathBuf], objects: &[Value]) -> Result<Vec<String>> {
    let notes = notes(chart, values)?;
    let wanted = wanted(objects).into_iter();
    let left_out = wanted.filter(|(secret, key)| !is_named(&notes, secret, key));
    let left_out = left_out.map(|(secret, key)| {
        format!("NOTES.txt does not name the Secret {secret} with the key {key:?}")
    });
    let made = of_kind(objects, "Certificate");
    let made: BTreeSet<&str> = made.map(|one| text(&one["spec"]["secretName"])).collect();
    let said = said_made(&notes);
    let wrong = made.symmetric_difference(&said);
    let wrong = wrong.map(|secret| format!("NOTES.txt: whether cert-manager makes {secret}"));
    let mut violations: Vec<String> = left_out.chain(wrong).collect();
    for (setting, is_plain) in plain(objects) {
        if notes.contains(&format!(" Set {setting}")) != is_plain {
            violations.push(format!(
                "NOTES.txt: whether {setting} is off, which it {}",
                if is_plain { "is" } else { "is not" }
            ));
        }
    }
    Ok(violations)
}

/// By which setting each connection would have TLS, and whether it has none, as the services are configured.
fn plain(objects: &[Value]) -> [(&'static str, bool); 3] {
    let configs = pods(objects).into_iter().filter_map(|pod| {
        let config: toml::Table = rules::config_of(pod, objects)?.parse().ok()?;
        Some((pod.component(), config))
    });
    let (mut api, mut nats, mut tokens) = (false, false, false);
    for (component, config) in configs {
        let at = |table: &str, key: &str| config.get(table).and_then(|table| table.get(key));
        let urls = at("queue", "urls").and_then(toml::Value::as_array);
        let mut urls = urls.into_iter().flatten().filter_map(toml::Value::as_str);
        let is_named = urls.any(|url| url.starts_with("nats://"));
        nats |= is_named && at("queue", "tls").is_none();
        match component {
            "ingest" => api |= at("ingest", "tls").is_none(),
            "decode" => {
                let never = toml::Value::from("0ms");
                let is_asked = at("decode", "fetch_timeout") != Some(&never);
                tokens |= is_asked && at("decode", "fetch_tls").is_none();
            }
            _ => {}
        }
    }
    [
        ("ingest.tls", api),
        ("nats.", nats),
        ("tokenPath.tls", tokens),
    ]
}

/// The Secrets that cert-manager makes, as the notes say.
fn said_made(notes: &str) -> BTreeSet<&str> {
    let lines = notes.lines().filter(|line| line.ends_with(MADE));
    lines
        .filter_map(|line| Some(line.trim().split_once(": ")?.0))
        .collect()
}

/// Secrets and keys; no key where images are pulled with one.
fn wanted(objects: &[Value]) -> BTreeSet<(&str, &str)> {
    let mut wanted = BTreeSet::new();
    for pod in pods(objects) {
        for volume in list(&pod.spec["volumes"]) {
            let secret = &volume["secret"];
            let name = text(&secret["secretName"]);
            wanted.extend(list(&secret["items"]).map(|item| (name, text(&item["key"]))));
        }
        let variables = pod
            .containers()
            .flat_map(|container| list(&container["env"]));
        let taken = variables.map(|variable| &variable["valueFrom"]["secretKeyRef"]);
        let taken = taken.filter(|secret| secret.is_object());
        wanted.extend(taken.map(|secret| (text(&secret["name"]), text(&secret["key"]))));
        let pulled = list(&pod.spec["imagePullSecrets"]);
        wanted.extend(pulled.map(|secret| (text(&secret["name"]), "")));
    }
    wanted
}

/// Whether a line of the notes is of this Secret and has this key.
fn is_named(notes: &str, secret: &str, key: &str) -> bool {
    notes.lines().any(|line| {
        let named = line.trim().split_once(": ");
        named.is_some_and(|(name, keys)| {
            let mut keys = keys.split([',', ' ']);
            name == secret && (key.is_empty() || keys.any(|found| found == key))
        })
    })
}

fn notes(chart: &Chart, values: &[PathBuf]) -> Result<String> {
    let mut helm = Command::new(&chart.helm);
    helm.args(["install", RELEASE, "--namespace", NAMESPACE])
        .arg("--dry-run=client")
        .arg(&chart.folder);
    for file in values {
        helm.arg("--values").arg(file);
    }
    // Nothing of the person who runs this, whose cluster is not asked.
    helm.env("KUBECONFIG", "/dev/null");
    let said = process::capture(&mut helm)?;
    let (_, notes) = said
        .split_once("\nNOTES:\n")
        .context("helm prints no notes")?;
    Ok(notes.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_spoken_in_plain_text_is_read_from_the_configurations() {
        let check = |component: &str, config: &str, expected: [bool; 3]| {
            let labels = serde_json::json!({"app.kubernetes.io/component": component});
            let volume = serde_json::json!({"name": "config", "configMap": {"name": "m"}});
            let template =
                serde_json::json!({"metadata": {"labels": labels}, "spec": {"volumes": [volume]}});
            let objects = [
                serde_json::json!({"kind": "ConfigMap", "metadata": {"name": "m"}, "data": {"config.toml": config}}),
                serde_json::json!({"kind": "Deployment", "spec": {"template": template}}),
            ];
            assert_eq!(plain(&objects).map(|(_, is)| is), expected, "{config}");
        };
        let nats = "[queue]\nurls = [\"nats://n:4222\"]\n";
        check("ingest", nats, [true, true, false]);
        check("ingest", "[ingest.tls]\ncert = \"c\"\n", [false; 3]);
        check(
            "preprocess",
            &format!("{nats}[queue.tls]\nca = \"c\"\n"),
            [false; 3],
        );
        check("decode", "[decode]\npool = \"m\"\n", [false, false, true]);
        check("decode", "[decode]\nfetch_timeout = \"0ms\"\n", [false; 3]);
        check("decode", "[decode.fetch_tls]\nca = \"c\"\n", [false; 3]);
    }

    #[test]
    fn a_secret_is_named_with_each_of_its_keys() {
        let notes =
            "Secrets:\n  tls: tls.crt, tls.key\n  test: token (for helm test)\n  pull: of type x\n";
        let check = |secret, key, expected| {
            assert_eq!(is_named(notes, secret, key), expected, "{secret} {key}");
        };
        check("tls", "tls.key", true);
        check("tls", "ca.crt", false);
        check("test", "token", true);
        check("pull", "", true);
        check("none", "", false);
        assert_eq!(said_made(notes), BTreeSet::new());
        let made = said_made("  tls: tls.crt (cert-manager makes it)\n  test: token\n");
        assert_eq!(made, BTreeSet::from(["tls"]));
    }
}
