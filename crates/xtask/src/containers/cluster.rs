//! What surrounds the pods: the ConfigMaps that the chart renders, the Secrets that it only names, and the volumes that are made
//! of both, as a kubelet makes them.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use super::pod::{Secret, Spec, Volume};
use crate::chart::objects::{self, of_kind};
use crate::{fetch, process};

/// Everything rendered, and the secrets.
pub(super) struct Cluster {
    pub(super) objects: Vec<Value>,
    secrets: BTreeMap<&'static str, (&'static str, String)>,
}

impl Cluster {
    /// With the secrets that `docs/how-to/install-on-kubernetes.md` has made, each of one key.
    pub(super) fn new(objects: Vec<Value>) -> Self {
        let client = "mf_5e2d7c1a9b3f4860";
        let tenant = format!(
            "[[token]]\nname = \"check\"\ntenant = \"check\"\nsha256 = \"{}\"\n",
            fetch::sha256(client.as_bytes())
        );
        let secrets = BTreeMap::from([
            ("medfleet-store", ("key", "a1".repeat(32))),
            (
                "medfleet-nats",
                ("token", format!("nt_{}", "c2".repeat(32))),
            ),
            ("medfleet-tokens", ("tokens.toml", tenant)),
            ("medfleet-test-token", ("token", client.to_owned())),
        ]);
        Self { objects, secrets }
    }

    /// One key of a secret.
    pub(super) fn secret(&self, name: &str, key: &str) -> Result<&str> {
        match self.secrets.get(name) {
            Some((found, value)) if *found == key => Ok(value),
            _ => bail!("no secret {name} with a key {key} is made as the how-to says"),
        }
    }

    /// Makes the volumes of a pod anew, below a folder; `claims` are those that its set claims for it.
    pub(super) fn volumes(&self, spec: &Spec, claims: &[String], folder: &Path) -> Result<()> {
        if folder.exists() {
            fs::remove_dir_all(folder).with_context(|| format!("remove {}", folder.display()))?;
        }
        let group = spec.security_context.fs_group;
        for volume in &spec.volumes {
            let room = Room::new(folder.join(&volume.name), group)?;
            self.fill(volume, &room)
                .with_context(|| format!("volume {}", volume.name))?;
        }
        for claim in claims {
            Room::new(folder.join(claim), group)?.is_writable()?;
        }
        Ok(())
    }

    fn fill(&self, volume: &Volume, room: &Room) -> Result<()> {
        match (&volume.config_map, &volume.secret, &volume.empty_dir) {
            (Some(map), None, None) => self.config_map(&map.name, room),
            (None, Some(secret), None) => self.files(secret, room),
            // The runtime mounts it.
            (None, None, Some(_)) => Ok(()),
            _ => bail!("expected one of configMap, secret and emptyDir"),
        }
    }

    fn config_map(&self, name: &str, room: &Room) -> Result<()> {
        let mut maps = of_kind(&self.objects, "ConfigMap");
        let map = maps.find(|map| objects::name(map) == name);
        let map = map.with_context(|| format!("no ConfigMap {name} is rendered"))?;
        for (key, value) in map["data"].as_object().into_iter().flatten() {
            room.put(key, objects::text(value).as_bytes(), 0o644)?;
        }
        for (key, value) in map["binaryData"].as_object().into_iter().flatten() {
            let coded = room.folder.join(format!(".{key}"));
            fs::write(&coded, objects::text(value))?;
            let target = room.put(key, b"", 0o644)?;
            let into = fs::File::create(&target)?;
            let mut decode = Command::new("base64");
            process::run(decode.arg("--decode").arg(&coded).stdout(into))?;
            fs::remove_file(&coded)?;
        }
        Ok(())
    }

    fn files(&self, secret: &Secret, room: &Room) -> Result<()> {
        for item in &secret.items {
            let value = self.secret(&secret.secret_name, &item.key)?;
            room.put(&item.path, value.as_bytes(), secret.default_mode)?;
        }
        Ok(())
    }
}

/// A volume's folder: root's, and of the pod's group.
struct Room {
    folder: PathBuf,
    group: u32,
}

impl Room {
    fn new(folder: PathBuf, group: u32) -> Result<Self> {
        fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
        let room = Self { folder, group };
        room.give(&room.folder, 0o755)?;
        Ok(room)
    }

    /// What a kubelet does to a volume that is written, for `fsGroup`.
    fn is_writable(&self) -> Result<()> {
        self.give(&self.folder, 0o2775)
    }

    fn put(&self, name: &str, content: &[u8], mode: u32) -> Result<PathBuf> {
        ensure!(!name.contains('/'), "{name}: expected a file's name");
        let path = self.folder.join(name);
        fs::write(&path, content).with_context(|| format!("write {}", path.display()))?;
        self.give(&path, mode)?;
        Ok(path)
    }

    fn give(&self, path: &Path, mode: u32) -> Result<()> {
        let given = chown(path, Some(0), Some(self.group));
        given.with_context(|| format!("give {} to group {}", path.display(), self.group))?;
        fs::set_permissions(path, fs::Permissions::from_mode(mode))
            .with_context(|| format!("set the rights of {}", path.display()))
    }
}

/// A machine's file of names.
pub(super) fn hosts(names: &[(String, String)]) -> String {
    let mut text = String::from("127.0.0.1 localhost\n");
    for (name, address) in names {
        text.push_str(&format!("{address} {name}\n"));
    }
    text
}
