//! Which package may name which: the arrows of the tree, and the one owner of each outside library.

use super::workspace::{Dependency, Workspace};

/// Libraries that anything above `core` may use in its tests.
const IN_TESTS: &[&str] = &["medfleet-testkit", "medfleet-score"];

const CRATES: &[&str] = &[
    "medfleet-core",
    "medfleet-engine",
    "medfleet-imaging",
    "medfleet-kernels",
    "medfleet-model",
    "medfleet-proto",
    "medfleet-queue",
    "medfleet-resample",
    "medfleet-runtime",
    "medfleet-store",
    "medfleet-worker",
];

/// The packages of ours that a package's code may name. Who is not here may name any (the composer and the tests).
const ARROWS: &[(&str, &[&str])] = &[
    ("medfleet-core", &[]),
    ("medfleet-proto", &[]),
    ("medfleet-resample", &[]),
    ("medfleet-kernels", &[]),
    // Writes DICOM files, which imaging only reads.
    ("medfleet-phantom", &["medfleet-core", "medfleet-resample"]),
    ("medfleet-score", &[]),
    ("medfleet-plan", &["medfleet-core"]),
    ("medfleet-imaging", &["medfleet-core", "medfleet-resample"]),
    ("medfleet-fuzz", &["medfleet-imaging", "medfleet-testkit"]),
    ("medfleet-runtime", &["medfleet-core"]),
    ("medfleet-store", &["medfleet-core"]),
    (
        "medfleet-queue",
        &["medfleet-core", "medfleet-proto", "medfleet-store"],
    ),
    (
        "medfleet-model",
        &["medfleet-core", "medfleet-kernels", "medfleet-resample"],
    ),
    ("medfleet-engine", &["medfleet-core", "medfleet-model"]),
    (
        "medfleet-worker",
        &[
            "medfleet-core",
            "medfleet-proto",
            "medfleet-queue",
            "medfleet-runtime",
            "medfleet-store",
        ],
    ),
    ("medfleet-testkit", CRATES),
    ("medfleet-ingest", CRATES),
    ("medfleet-preprocess", CRATES),
    ("medfleet-encode", CRATES),
    ("medfleet-decode", CRATES),
    ("xtask", &[]),
];

/// Packages that may name any of ours.
const FREE: &[&str] = &["medfleet", "medfleet-tests"];

/// Outside libraries by the start of their name, and who alone may name them.
const OWNERS: &[(&str, &[&str])] = &[
    ("async-nats", &["medfleet-queue"]),
    ("candle-", &["medfleet-model"]),
    ("tokenizers", &["medfleet-model"]),
    ("llguidance", &["medfleet-model"]),
    ("dicom", &["medfleet-imaging", "medfleet-phantom"]),
    ("object_store", &["medfleet-store"]),
    // The tests run a collector of their own, to look at the spans that arrive.
    (
        "opentelemetry-proto",
        &["medfleet-runtime", "medfleet-tests"],
    ),
    ("opentelemetry", &["medfleet-runtime"]),
    ("tracing-opentelemetry", &["medfleet-runtime"]),
];

/// What must not even be linked: the package, and the start of the name.
const UNLINKED: &[(&str, &str)] = &[
    ("medfleet-ingest", "candle-"),
    ("medfleet-preprocess", "candle-"),
];

/// Arrows between our packages that the table does not allow.
pub(crate) fn arrows(workspace: &Workspace) -> Vec<String> {
    let ours: Vec<&str> = workspace
        .members()
        .map(|package| package.name.as_str())
        .collect();
    let mut violations = Vec::new();
    for package in workspace.members() {
        for dependency in &package.dependencies {
            if ours.contains(&dependency.name.as_str()) && !arrow_allowed(&package.name, dependency)
            {
                violations.push(format!(
                    "{}: may not depend on {}",
                    package.name, dependency.name
                ));
            }
        }
        if !FREE.contains(&package.name.as_str())
            && !ARROWS.iter().any(|(name, _)| *name == package.name)
        {
            violations.push(format!(
                "{}: not in the table of arrows (crates/xtask/src/tidy/edges.rs)",
                package.name
            ));
        }
    }
    violations
}

/// Outside libraries named by a package that is not their owner.
pub(crate) fn owners(workspace: &Workspace) -> Vec<String> {
    let mut violations = Vec::new();
    for package in workspace.members() {
        for dependency in &package.dependencies {
            if let Some(owners) = owners_of(&dependency.name)
                && !owners.contains(&package.name.as_str())
            {
                let owners = owners.join(", ");
                violations.push(format!(
                    "{}: may not name {}; its owner is {owners}",
                    package.name, dependency.name
                ));
            }
        }
    }
    violations
}

/// Libraries that reach a package which must stay free of them.
pub(crate) fn unlinked(workspace: &Workspace) -> Vec<String> {
    let mut violations = Vec::new();
    for package in workspace.members() {
        let linked = workspace.linked(package);
        for (_, prefix) in UNLINKED.iter().filter(|(name, _)| *name == package.name) {
            for name in linked.iter().filter(|name| name.starts_with(prefix)) {
                violations.push(format!(
                    "{}: links {name}, see `cargo tree -p {} -i {name}`",
                    package.name, package.name
                ));
            }
        }
    }
    violations
}

fn arrow_allowed(from: &str, dependency: &Dependency) -> bool {
    let to = dependency.name.as_str();
    let Some((_, allowed)) = ARROWS.iter().find(|(name, _)| *name == from) else {
        return true;
    };
    let test_help = dependency.kind.as_deref() == Some("dev") && IN_TESTS.contains(&to);
    let leaf = from == "medfleet-core";
    allowed.contains(&to) || (test_help && !leaf)
}

fn owners_of(library: &str) -> Option<&'static [&'static str]> {
    OWNERS
        .iter()
        .find(|(prefix, _)| library.starts_with(prefix))
        .map(|(_, owners)| *owners)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check_arrow(from: &str, to: &str, kind: Option<&str>, allowed: bool) {
        let dependency = Dependency {
            name: to.to_owned(),
            kind: kind.map(str::to_owned),
        };
        assert_eq!(
            arrow_allowed(from, &dependency),
            allowed,
            "{from} → {to} ({kind:?})"
        );
    }

    #[test]
    fn arrows_point_down() {
        check_arrow("medfleet-queue", "medfleet-store", None, true);
        check_arrow("medfleet-store", "medfleet-queue", None, false);
        check_arrow("medfleet-core", "medfleet-proto", None, false);
        check_arrow("medfleet-ingest", "medfleet-queue", None, true);
        check_arrow("medfleet-ingest", "medfleet-decode", None, false);
        check_arrow("medfleet-ingest", "medfleet-decode", Some("dev"), false);
        check_arrow("medfleet", "medfleet-decode", None, true);
    }

    #[test]
    fn test_help_is_for_tests_above_the_leaves() {
        check_arrow("medfleet-queue", "medfleet-testkit", Some("dev"), true);
        check_arrow("medfleet-queue", "medfleet-testkit", None, false);
        check_arrow("medfleet-core", "medfleet-testkit", Some("dev"), false);
    }

    #[test]
    fn owners_are_found_by_the_longest_name_first() {
        assert_eq!(owners_of("candle-nn"), Some(&["medfleet-model"][..]));
        assert_eq!(
            owners_of("opentelemetry-proto"),
            Some(&["medfleet-runtime", "medfleet-tests"][..])
        );
        assert_eq!(
            owners_of("opentelemetry_sdk"),
            Some(&["medfleet-runtime"][..])
        );
        assert_eq!(owners_of("tokio"), None);
    }
}
