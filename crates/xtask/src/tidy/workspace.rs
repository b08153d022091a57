//! What cargo knows of the workspace: its packages, what each names as a dependency, and what is linked in the end.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use anyhow::{Context, Result};
use serde::Deserialize;

use crate::{places, process};

/// What we ship for; packages that only other platforms link are neither fetched nor looked at.
const PLATFORM: &str = "x86_64-unknown-linux-gnu";

/// The part of `cargo metadata` that the checks use.
#[derive(Debug, Deserialize)]
pub(crate) struct Workspace {
    /// Our packages and everything they can link.
    pub(crate) packages: Vec<Package>,
    workspace_members: BTreeSet<String>,
    resolve: Resolve,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Package {
    id: String,
    pub(crate) name: String,
    pub(crate) version: String,
    /// SPDX expression, where the package states one.
    pub(crate) license: Option<String>,
    pub(crate) dependencies: Vec<Dependency>,
    pub(crate) manifest_path: String,
    pub(crate) targets: Vec<Target>,
}

/// A library or program of a package.
#[derive(Debug, Deserialize)]
pub(crate) struct Target {
    pub(crate) kind: Vec<String>,
    /// Its main file, from the root of the file system.
    pub(crate) src_path: String,
    /// Whether `cargo test` runs its tests.
    pub(crate) test: bool,
}

/// A dependency as a manifest names it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(crate) struct Dependency {
    pub(crate) name: String,
    /// None for a normal one, else `dev` or `build`.
    pub(crate) kind: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Resolve {
    nodes: Vec<Node>,
}

#[derive(Debug, Deserialize)]
struct Node {
    id: String,
    deps: Vec<Link>,
}

#[derive(Debug, Deserialize)]
struct Link {
    pkg: String,
    dep_kinds: Vec<LinkKind>,
}

#[derive(Debug, Deserialize)]
struct LinkKind {
    kind: Option<String>,
}

impl Workspace {
    pub(crate) fn load() -> Result<Self> {
        let mut cargo = process::in_root("cargo");
        cargo.args([
            "metadata",
            "--format-version",
            "1",
            "--locked",
            "--filter-platform",
            PLATFORM,
        ]);
        let metadata = process::capture(&mut cargo)?;
        serde_json::from_str(&metadata).context("read cargo metadata")
    }

    /// Our own packages.
    pub(crate) fn members(&self) -> impl Iterator<Item = &Package> {
        self.packages
            .iter()
            .filter(|package| self.workspace_members.contains(&package.id))
    }

    /// Names of everything that a package's own code links, tests and build scripts left out.
    pub(crate) fn linked(&self, package: &Package) -> BTreeSet<&str> {
        let names: BTreeMap<&str, &str> = self
            .packages
            .iter()
            .map(|package| (package.id.as_str(), package.name.as_str()))
            .collect();
        let nodes: BTreeMap<&str, &Node> = self
            .resolve
            .nodes
            .iter()
            .map(|node| (node.id.as_str(), node))
            .collect();
        let mut seen = BTreeSet::new();
        let mut open = vec![package.id.as_str()];
        while let Some(id) = open.pop() {
            if !seen.insert(id) {
                continue;
            }
            for link in nodes
                .get(id)
                .map(|node| node.deps.as_slice())
                .unwrap_or_default()
            {
                if link.dep_kinds.iter().any(|kind| kind.kind.is_none()) {
                    open.push(&link.pkg);
                }
            }
        }
        seen.into_iter()
            .filter_map(|id| names.get(id).copied())
            .collect()
    }

    /// Members whose manifest does not inherit the workspace's lints.
    pub(crate) fn without_shared_lints(&self) -> Result<Vec<String>> {
        let mut violations = Vec::new();
        for package in self.members() {
            let text = std::fs::read_to_string(&package.manifest_path)?;
            let manifest: toml::Table =
                toml::from_str(&text).with_context(|| package.manifest_path.clone())?;
            let inherited = manifest
                .get("lints")
                .and_then(|lints| lints.get("workspace"))
                .and_then(toml::Value::as_bool);
            if inherited != Some(true) {
                violations.push(format!(
                    "{}: does not inherit the workspace's lints",
                    package.folder()
                ));
            }
        }
        Ok(violations)
    }
}

impl Target {
    /// Whether it is a library or program, not an example or a build script.
    pub(crate) fn may_have_tests(&self) -> bool {
        let kinds = ["lib", "bin", "test"];
        self.kind.iter().any(|kind| kinds.contains(&kind.as_str()))
    }

    /// The folder of its main file, with a slash behind it.
    pub(crate) fn folder(&self) -> &str {
        let end = self.src_path.rfind('/').map_or(0, |slash| slash + 1);
        &self.src_path[..end]
    }
}

impl Package {
    /// The package's folder relative to the root of the repository.
    pub(crate) fn folder(&self) -> String {
        let manifest = Path::new(&self.manifest_path);
        let folder = manifest.parent().unwrap_or(manifest);
        folder
            .strip_prefix(places::root())
            .unwrap_or(folder)
            .to_string_lossy()
            .into_owned()
    }
}
