//! The fields of a rendered pod that can be translated to a container of this machine. Any other field is refused, because a
//! field that is silently ignored would look as if it had been tested.

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::Value;

use crate::chart::objects::{self, Pod, label, list};

/// What a pod says of itself.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Spec {
    pub(super) containers: [Container; 1],
    #[serde(default)]
    pub(super) volumes: Vec<Volume>,
    pub(super) security_context: PodSecurity,
    pub(super) termination_grace_period_seconds: u64,
    // Each of these two would bring files or variables into the container.
    #[serde(rename = "automountServiceAccountToken")]
    _token: No,
    #[serde(rename = "enableServiceLinks")]
    _links: No,
    // What the API server, the scheduler and the kubelet's supervision do with the rest is not tried here.
    #[serde(rename = "serviceAccountName")]
    _account: IgnoredAny,
    #[serde(default, rename = "affinity")]
    _affinity: Option<IgnoredAny>,
    #[serde(default, rename = "restartPolicy")]
    _restart: Option<IgnoredAny>,
    #[serde(default, rename = "activeDeadlineSeconds")]
    _deadline: Option<IgnoredAny>,
}

/// Who the pod's processes are.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct PodSecurity {
    pub(super) run_as_user: u32,
    pub(super) run_as_group: u32,
    pub(super) fs_group: u32,
    #[serde(rename = "runAsNonRoot")]
    _non_root: Yes,
    #[serde(rename = "seccompProfile")]
    _seccomp: Seccomp,
    // A volume here is always new, so that both policies do the same.
    #[serde(rename = "fsGroupChangePolicy")]
    _change: IgnoredAny,
}

/// The filter of system calls; `seccomp` makes the one that it names.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Seccomp {
    #[serde(rename = "type")]
    _kind: SeccompKind,
}

#[derive(Debug, Deserialize)]
enum SeccompKind {
    RuntimeDefault,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Container {
    pub(super) image: String,
    #[serde(default)]
    pub(super) args: Vec<String>,
    pub(super) working_dir: Option<String>,
    #[serde(default)]
    pub(super) env: Vec<Variable>,
    #[serde(default)]
    pub(super) ports: Vec<Port>,
    pub(super) startup_probe: Option<Probe>,
    pub(super) readiness_probe: Option<Probe>,
    pub(super) liveness_probe: Option<Probe>,
    pub(super) lifecycle: Option<Lifecycle>,
    pub(super) resources: Resources,
    pub(super) security_context: ContainerSecurity,
    #[serde(default)]
    pub(super) volume_mounts: Vec<Mount>,
    #[serde(rename = "name")]
    _name: IgnoredAny,
    // The images are built here and pulled from nowhere.
    #[serde(default, rename = "imagePullPolicy")]
    _pull: Option<IgnoredAny>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Variable {
    pub(super) name: String,
    pub(super) value: Option<String>,
    pub(super) value_from: Option<Origin>,
}

/// Where a variable's value is.
#[derive(Debug, Deserialize)]
pub(super) enum Origin {
    #[serde(rename = "fieldRef")]
    Field(Field),
    #[serde(rename = "resourceFieldRef")]
    Resource(Resource),
    #[serde(rename = "secretKeyRef")]
    Secret(Key),
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Field {
    pub(super) field_path: String,
}

/// What the container may take, in whole bytes or cores.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Resource {
    pub(super) resource: String,
}

/// A key of a secret.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Key {
    pub(super) name: String,
    pub(super) key: String,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Port {
    pub(super) name: String,
    pub(super) container_port: u16,
}

/// What the kubelet asks to know whether a container is well.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Probe {
    pub(super) http_get: HttpGet,
    pub(super) period_seconds: u64,
    pub(super) timeout_seconds: u64,
    pub(super) failure_threshold: u64,
}

/// A page of the container.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct HttpGet {
    pub(super) path: String,
    pub(super) port: String,
}

/// What happens around a container's life.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Lifecycle {
    pub(super) pre_stop: PreStop,
}

/// What happens before SIGTERM.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct PreStop {
    pub(super) sleep: Sleep,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Sleep {
    pub(super) seconds: u64,
}

/// What the container may take.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Resources {
    pub(super) limits: Limits,
    // What is asked for is the scheduler's.
    #[serde(rename = "requests")]
    _requests: IgnoredAny,
}

/// The most that it may take.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Limits {
    pub(super) memory: String,
}

/// What the container may do.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct ContainerSecurity {
    pub(super) read_only_root_filesystem: bool,
    pub(super) allow_privilege_escalation: bool,
    #[serde(rename = "capabilities")]
    _capabilities: Capabilities,
    #[serde(rename = "privileged")]
    _privileged: No,
    #[serde(rename = "runAsNonRoot")]
    _non_root: Yes,
}

/// None at all; another list is not translated.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Capabilities {
    #[serde(rename = "drop")]
    _drop: [Capability; 1],
}

#[derive(Debug, Deserialize)]
enum Capability {
    #[serde(rename = "ALL")]
    All,
}

/// Where a container has a volume.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Mount {
    pub(super) name: String,
    pub(super) mount_path: String,
    #[serde(default)]
    pub(super) read_only: bool,
}

/// A volume, and what is in it by one of three.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Volume {
    pub(super) name: String,
    pub(super) config_map: Option<Map>,
    pub(super) secret: Option<Secret>,
    pub(super) empty_dir: Option<Empty>,
}

/// Every key of a ConfigMap.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Map {
    pub(super) name: String,
}

/// Some keys of a secret.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Secret {
    pub(super) secret_name: String,
    pub(super) default_mode: u32,
    pub(super) items: Vec<Item>,
}

/// A key and its file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Item {
    pub(super) key: String,
    pub(super) path: String,
}

/// Room on the node.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Empty {
    pub(super) size_limit: String,
}

/// `false`, written out: another value, or none, would be more than is translated.
#[derive(Debug, Deserialize)]
#[serde(try_from = "bool")]
struct No;

impl TryFrom<bool> for No {
    type Error = &'static str;

    fn try_from(value: bool) -> Result<Self, Self::Error> {
        match value {
            false => Ok(Self),
            true => Err("true, of which no container here is made; expected false"),
        }
    }
}

/// `true`, written out.
#[derive(Debug, Deserialize)]
#[serde(try_from = "bool")]
struct Yes;

impl TryFrom<bool> for Yes {
    type Error = &'static str;

    fn try_from(value: bool) -> Result<Self, Self::Error> {
        match value {
            true => Ok(Self),
            false => Err("false, of which no container here is made; expected true"),
        }
    }
}

impl Spec {
    /// What a workload says of its one pod.
    pub(super) fn read(pod: Pod<'_>) -> Result<Self> {
        let owner = pod.owner;
        if pod.is_lasting() {
            ensure!(
                owner["spec"]["replicas"] == 1,
                "{}: {} replicas, where one is run",
                label(owner),
                owner["spec"]["replicas"]
            );
        }
        let spec = Self::deserialize(pod.spec);
        let spec = spec.with_context(|| format!("{}: its pod", label(owner)))?;
        ensure!(
            spec.security_context.run_as_user != 0,
            "{}: user 0, where runAsNonRoot is true: the kubelet would not start it",
            label(owner)
        );
        Ok(spec)
    }

    pub(super) fn container(&self) -> &Container {
        let [container] = &self.containers;
        container
    }
}

impl Container {
    /// The number of a port that a probe or a Service names.
    pub(super) fn port(&self, name: &str) -> Result<u16> {
        let port = self.ports.iter().find(|port| port.name == name);
        Ok(port
            .with_context(|| format!("no port is called {name}"))?
            .container_port)
    }
}

/// The volumes that a set claims for each of its pods.
pub(super) fn claims(pod: Pod<'_>) -> Vec<String> {
    let templates = list(&pod.owner["spec"]["volumeClaimTemplates"]);
    templates
        .map(|claim| objects::name(claim).to_owned())
        .collect()
}

/// `512Mi` in bytes.
pub(super) fn bytes(quantity: &str) -> Result<u64> {
    let units: [(&str, u64); 3] = [("Ki", 1 << 10), ("Mi", 1 << 20), ("Gi", 1 << 30)];
    for (unit, size) in units {
        if let Some(number) = quantity.strip_suffix(unit) {
            let number: u64 = number
                .parse()
                .with_context(|| format!("{quantity}: a whole number of {unit}"))?;
            return Ok(number * size);
        }
    }
    bail!("{quantity}: expected Ki, Mi or Gi")
}

/// Names of Services, each with the component whose pods it leads to. A Service of another port than its pod's is refused:
/// a name in a hosts file cannot turn one into the other.
pub(super) fn names(all: &[Value]) -> Result<Vec<(String, String)>> {
    let pods = objects::pods(all);
    let mut names = Vec::new();
    for service in objects::of_kind(all, "Service") {
        let selector = serde_json::json!({"matchLabels": service["spec"]["selector"]});
        let Some(pod) = pods.iter().find(|pod| pod.is_selected(&selector)) else {
            bail!("{}: no pod is behind it", label(service));
        };
        let spec = Spec::read(*pod)?;
        for port in list(&service["spec"]["ports"]) {
            let target = spec
                .container()
                .port(objects::text(&port["targetPort"]))
                .with_context(|| label(service))?;
            ensure!(
                port["port"] == target,
                "{}: port {} leads to {target}",
                label(service),
                port["port"]
            );
        }
        names.push((
            objects::name(service).to_owned(),
            pod.component().to_owned(),
        ));
    }
    Ok(names)
}

#[cfg(test)]
pub(super) mod tests;
