//! From a pod to what the runtime reads: an OCI configuration with the pod's user, rights, limits, mounts, arguments and
//! environment. The rest, what every container has, is as CRI-O and containerd have it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use super::cluster::Cluster;
use super::images::Image;
use super::pod::{Mount, Origin, Spec, Variable, bytes};

/// A pod that has its place.
pub(super) struct Placed {
    /// Its own name, which a workload or a set would give it.
    pub(super) name: String,
    /// Its address on the pods' network.
    pub(super) address: String,
    /// The folder with its volumes, its hosts file and the log of its container.
    pub(super) folder: PathBuf,
    /// Its network, as a file.
    pub(super) network: PathBuf,
    /// Its place in the tree of control groups.
    pub(super) cgroup: String,
    /// What is rendered of it.
    pub(super) spec: Spec,
    /// The volumes that its set claims for it.
    pub(super) claims: Vec<String>,
}

impl Placed {
    /// Where its volumes are.
    pub(super) fn volumes(&self) -> PathBuf {
        self.folder.join("volumes")
    }
}

/// The configuration of the pod's container.
pub(super) fn config(
    pod: &Placed,
    image: &Image,
    cluster: &Cluster,
    seccomp: &Value,
) -> Result<Value> {
    let container = pod.spec.container();
    let (who, may) = (&pod.spec.security_context, &container.security_context);
    let env = environment(pod, image, cluster)?;
    let arguments = container.args.iter().map(|text| expanded(text, &env));
    let arguments: Vec<String> = image.entrypoint.iter().cloned().chain(arguments).collect();
    ensure!(!arguments.is_empty(), "the image has no entrypoint");
    let mut mounts = usual_mounts();
    mounts.extend(volume_mounts(pod)?);
    mounts.push(bind(&pod.folder.join("hosts"), "/etc/hosts", "ro"));
    Ok(json!({
        "ociVersion": "1.0.2",
        "hostname": pod.name,
        "root": {"path": image.root, "readonly": may.read_only_root_filesystem},
        "mounts": mounts,
        "process": {
            "args": arguments,
            "env": env.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>(),
            "cwd": container.working_dir.as_deref().unwrap_or("/"),
            "user": {"uid": who.run_as_user, "gid": who.run_as_group, "additionalGids": [who.fs_group]},
            // `drop: [ALL]`, which is all that a pod may say here.
            "capabilities": {},
            "noNewPrivileges": !may.allow_privilege_escalation,
        },
        "linux": {
            "cgroupsPath": pod.cgroup,
            "resources": {
                "memory": {"limit": bytes(&container.resources.limits.memory)?},
                "devices": [{"allow": false, "access": "rwm"}],
            },
            "namespaces": [
                {"type": "pid"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"}, {"type": "cgroup"},
                {"type": "network", "path": pod.network},
            ],
            "seccomp": seccomp,
            "maskedPaths": [
                "/proc/acpi", "/proc/asound", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list",
                "/proc/timer_stats", "/proc/sched_debug", "/proc/scsi", "/sys/firmware",
            ],
            "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"],
        },
    }))
}

/// Names and values: the image's, the host name, and the container's own in their order, each of which may name earlier ones.
fn environment(pod: &Placed, image: &Image, cluster: &Cluster) -> Result<BTreeMap<String, String>> {
    let mut env = BTreeMap::new();
    for pair in &image.env {
        let (name, value) = pair.split_once('=').context("NAME=value in the image")?;
        env.insert(name.to_owned(), value.to_owned());
    }
    env.insert("HOSTNAME".to_owned(), pod.name.clone());
    for variable in &pod.spec.container().env {
        let value = value(variable, pod, cluster)
            .with_context(|| format!("the variable {}", variable.name))?;
        let value = expanded(&value, &env);
        env.insert(variable.name.clone(), value);
    }
    Ok(env)
}

fn value(variable: &Variable, pod: &Placed, cluster: &Cluster) -> Result<String> {
    Ok(match (&variable.value, &variable.value_from) {
        (Some(value), None) => value.clone(),
        (None, Some(Origin::Field(field))) => match field.field_path.as_str() {
            "status.podIP" => pod.address.clone(),
            "metadata.name" => pod.name.clone(),
            other => bail!("{other} is not translated"),
        },
        (None, Some(Origin::Resource(field))) => match field.resource.as_str() {
            "limits.memory" => bytes(&pod.spec.container().resources.limits.memory)?.to_string(),
            other => bail!("{other} is not translated"),
        },
        (None, Some(Origin::Secret(key))) => cluster.secret(&key.name, &key.key)?.to_owned(),
        _ => bail!("expected a value or valueFrom"),
    })
}

/// With `$(NAME)` replaced where there is such a variable, as Kubernetes does it.
fn expanded(text: &str, env: &BTreeMap<String, String>) -> String {
    env.iter().fold(text.to_owned(), |text, (name, value)| {
        text.replace(&format!("$({name})"), value)
    })
}

fn volume_mounts(pod: &Placed) -> Result<Vec<Value>> {
    let mounts = pod.spec.container().volume_mounts.iter();
    mounts.map(|mount| volume_mount(pod, mount)).collect()
}

fn volume_mount(pod: &Placed, mount: &Mount) -> Result<Value> {
    let mut volumes = pod.spec.volumes.iter();
    let volume = volumes.find(|volume| volume.name == mount.name);
    if let Some(empty) = volume.and_then(|volume| volume.empty_dir.as_ref()) {
        // On a node it would outlive a container that is started again; no pod here has one and is.
        let size = format!("size={}", bytes(&empty.size_limit)?);
        let group = format!("gid={}", pod.spec.security_context.fs_group);
        let options = json!(["nosuid", "nodev", "mode=2777", size, group, access(mount)]);
        let place = &mount.mount_path;
        return Ok(
            json!({"destination": place, "type": "tmpfs", "source": "tmpfs", "options": options}),
        );
    }
    ensure!(
        volume.is_some() || pod.claims.contains(&mount.name),
        "no volume {} for {}",
        mount.name,
        mount.mount_path
    );
    let folder = pod.volumes().join(&mount.name);
    Ok(bind(&folder, &mount.mount_path, access(mount)))
}

fn access(mount: &Mount) -> &'static str {
    if mount.read_only { "ro" } else { "rw" }
}

fn bind(source: &Path, destination: &str, access: &str) -> Value {
    json!({"destination": destination, "type": "bind", "source": source, "options": ["rbind", "rprivate", access]})
}

/// What every container has, whatever its pod says.
fn usual_mounts() -> Vec<Value> {
    let usual: [(&str, &str, &[&str]); 6] = [
        ("/proc", "proc", &["nosuid", "noexec", "nodev"]),
        (
            "/dev",
            "tmpfs",
            &["nosuid", "strictatime", "mode=755", "size=65536k"],
        ),
        (
            "/dev/pts",
            "devpts",
            &[
                "nosuid",
                "noexec",
                "newinstance",
                "ptmxmode=0666",
                "mode=0620",
                "gid=5",
            ],
        ),
        (
            "/dev/shm",
            "tmpfs",
            &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"],
        ),
        ("/dev/mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
        ("/sys", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
    ];
    let mount = |(destination, kind, options): (&str, &str, &[&str])| json!({"destination": destination, "type": kind, "source": kind, "options": options});
    usual.into_iter().map(mount).collect()
}

#[cfg(test)]
mod tests;
