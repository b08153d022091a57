//! What the binaries are made of, as CycloneDX: every package of Cargo.lock with its checksum, its licence and what it needs.
//! The same lock file gives the same bytes: there is no time in it, and its serial number is made from its content.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::{fetch, places, process};

#[derive(Debug, Deserialize)]
struct Lock {
    package: Vec<Locked>,
}

#[derive(Debug, Deserialize)]
struct Locked {
    name: String,
    version: String,
    source: Option<String>,
    checksum: Option<String>,
    #[serde(default)]
    dependencies: Vec<String>,
}

#[derive(Debug, Deserialize)]
struct Metadata {
    packages: Vec<Described>,
}

#[derive(Debug, Deserialize)]
struct Described {
    name: String,
    version: String,
    license: Option<String>,
}

type Licences = BTreeMap<(String, String), String>;

/// Writes it, to `target/xtask/sbom/medfleet.cdx.json` unless another file is named.
pub(crate) fn run(file: Option<&str>) -> Result<()> {
    let path = match file {
        Some(file) => PathBuf::from(file),
        None => places::scratch("sbom")?.join("medfleet.cdx.json"),
    };
    let text = fs::read_to_string(places::root().join("Cargo.lock")).context("read Cargo.lock")?;
    let lock: Lock = toml::from_str(&text).context("read Cargo.lock")?;
    let document = document(&lock, &licences()?)?;
    fs::write(&path, &document).with_context(|| format!("write {}", path.display()))?;
    println!(
        "sbom: {} packages in {}",
        lock.package.len(),
        path.display()
    );
    Ok(())
}

fn licences() -> Result<Licences> {
    let mut cargo = process::in_root("cargo");
    // Of all platforms: those that are not built here were not fetched for a build, so not offline.
    cargo.args(["metadata", "--format-version", "1", "--locked"]);
    let metadata: Metadata = serde_json::from_str(&process::capture(&mut cargo)?)?;
    let found = metadata.packages.into_iter();
    Ok(found
        .filter_map(|package| Some(((package.name, package.version), package.license?)))
        .collect())
}

fn document(lock: &Lock, licences: &Licences) -> Result<String> {
    let components: Vec<Value> = lock
        .package
        .iter()
        .map(|package| component(package, licences))
        .collect();
    let needs: Result<Vec<Value>> = lock.package.iter().map(|one| needs(one, lock)).collect();
    let version = env!("CARGO_PKG_VERSION");
    let mut document = json!({
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": {"component": {
            "type": "application",
            "bom-ref": "medfleet",
            "name": "medfleet",
            "version": version,
            "licenses": [{"expression": "Apache-2.0"}],
        }},
        "components": components,
        "dependencies": needs?,
    });
    let digest = fetch::sha256(document.to_string().as_bytes());
    document["serialNumber"] = serial(&digest).into();
    Ok(format!("{document:#}\n"))
}

/// A UUID of version 8, whose bits are the maker's to choose.
fn serial(digest: &str) -> String {
    format!(
        "urn:uuid:{}-{}-8{}-8{}-{}",
        &digest[..8],
        &digest[8..12],
        &digest[12..15],
        &digest[15..18],
        &digest[18..30]
    )
}

fn component(package: &Locked, licences: &Licences) -> Value {
    let ours = package.source.is_none();
    let mut value = json!({
        "type": "library",
        "bom-ref": reference(package),
        "name": package.name,
        "version": package.version,
    });
    if !ours {
        value["purl"] = reference(package).into();
    }
    if let Some(checksum) = &package.checksum {
        value["hashes"] = json!([{"alg": "SHA-256", "content": checksum}]);
    }
    // What is for other systems only is in the lock file, but cargo may not have it here to ask for its licence.
    let key = (package.name.clone(), package.version.clone());
    if let Some(licence) = licences.get(&key) {
        // Cargo's old way of writing OR.
        let expression = licence.replace('/', " OR ");
        value["licenses"] = json!([{"expression": expression}]);
    }
    value
}

fn reference(package: &Locked) -> String {
    format!("pkg:cargo/{}@{}", package.name, package.version)
}

/// What a package needs: in the lock file a name, with a version where there are several.
fn needs(package: &Locked, lock: &Lock) -> Result<Value> {
    let mut on = BTreeSet::new();
    for dependency in &package.dependencies {
        let mut words = dependency.split(' ');
        let (name, version) = (words.next().unwrap_or_default(), words.next());
        let found = lock.package.iter().find(|other| {
            other.name == name && version.is_none_or(|version| other.version == version)
        });
        let Some(found) = found else {
            bail!(
                "{} needs {dependency}, which Cargo.lock has not",
                package.name
            );
        };
        on.insert(reference(found));
    }
    Ok(json!({"ref": reference(package), "dependsOn": on}))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOCK: &str = r#"
        [[package]]
        name = "ours"
        version = "0.1.0"
        dependencies = ["a 2.0.0"]
        [[package]]
        name = "a"
        version = "1.0.0"
        source = "registry+x"
        checksum = "00"
        [[package]]
        name = "a"
        version = "2.0.0"
        source = "registry+x"
        checksum = "01"
    "#;

    #[test]
    fn the_same_lock_gives_the_same_bytes_and_another_another_serial() {
        let lock: Lock = toml::from_str(LOCK).expect("a lock file");
        let key = ("a".to_owned(), "2.0.0".to_owned());
        let licences = Licences::from([(key, "MIT/Apache-2.0".to_owned())]);
        let first = document(&lock, &licences).expect("complete");
        assert_eq!(first, document(&lock, &licences).expect("complete"));
        let parsed: Value = serde_json::from_str(&first).expect("JSON");
        assert_eq!(
            parsed["dependencies"][0]["dependsOn"],
            json!(["pkg:cargo/a@2.0.0"])
        );
        let components = &parsed["components"];
        assert_eq!(
            components[2]["licenses"][0]["expression"],
            "MIT OR Apache-2.0"
        );
        assert_eq!(components[1]["hashes"][0]["content"], "00");
        assert!(
            components[0]["purl"].is_null(),
            "ours are not in a registry"
        );

        let other = LOCK.replace("checksum = \"00\"", "checksum = \"02\"");
        let other: Lock = toml::from_str(&other).expect("a lock file");
        let other: Value =
            serde_json::from_str(&document(&other, &licences).expect("complete")).expect("JSON");
        assert_ne!(other["serialNumber"], parsed["serialNumber"]);
    }

    #[test]
    fn a_lock_with_a_hole_is_refused() {
        let lock = LOCK.replace("a 2.0.0", "b");
        let lock: Lock = toml::from_str(&lock).expect("a lock file");
        let error = document(&lock, &Licences::new()).expect_err("b is missing");
        assert!(error.to_string().contains("needs b"), "{error}");
    }
}
