//! The files inside the chart, given to who will read them: each service's configuration to the service's own
//! `--check-config`, NATS's to `nats-server -t`, and the arguments of the command line to the command line.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
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
