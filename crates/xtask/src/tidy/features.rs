//! `cargo build` and `cargo test` of the workspace choose the same features, so that each dependency is compiled once.

use std::collections::BTreeSet;

use anyhow::Result;

use crate::process;

/// A package that `cargo build --workspace` compiles with other features than `cargo test --workspace` does.
pub(crate) fn check() -> Result<Vec<String>> {
    let built = tree(&["-e", "no-dev"])?;
    let tested = tree(&[])?;
    Ok(differences(&built, &tested))
}

fn tree(edges: &[&str]) -> Result<BTreeSet<String>> {
    let mut command = process::in_root("cargo");
    command
        .args(["tree", "--locked", "--workspace", "--prefix", "none"])
        .args(["--format", "{p} {f}"])
        .args(edges);
    let lines = process::capture(&mut command)?;
    Ok(lines
        .lines()
        .map(|line| line.trim_end_matches(" (*)").to_owned())
        .collect())
}

fn differences(built: &BTreeSet<String>, tested: &BTreeSet<String>) -> Vec<String> {
    built
        .difference(tested)
        .map(|line| {
            format!(
                "a dev-dependency changes the features of `{line}`: it would be compiled twice; name the features in \
                 crates/testkit/Cargo.toml too"
            )
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_package_with_other_features_is_named() {
        let set = |lines: &[&str]| lines.iter().map(|line| (*line).to_owned()).collect();
        let built = set(&["tokio v1 net", "serde v1 derive"]);
        let tested = set(&["tokio v1 net,test-util", "serde v1 derive", "dicom v1 "]);
        let found = differences(&built, &tested);
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].contains("`tokio v1 net`"), "{found:?}");
    }
}
