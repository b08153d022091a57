//! The notes that an installation prints: they list every Secret that a pod waits for, with its keys, and say of which
//! cert-manager makes it.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};
use serde_json::Value;

use super::objects::{list, of_kind, pods, text};
use super::{Chart, NAMESPACE, RELEASE};
use crate::process;

/// What stands behind the keys of a Secret that nobody has to make.
const MADE: &str = "(cert-manager makes it)";

/// What pods of these objects wait for and the notes of the same values do not name, or tell of the wrong maker.
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
    Ok(left_out.chain(wrong).collect())
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
