//! The one profile says for others' packages what it says for all, and each package of ours has its own line: settings for
//! `package."*"` would be stronger than those for build scripts and procedural macros, which nobody needs optimised.

use anyhow::{Context, Result};

use super::workspace::Workspace;
use crate::places;

/// Packages without a line of their own, and a line for all of the others.
pub(crate) fn check(workspace: &Workspace) -> Result<Vec<String>> {
    let text = std::fs::read_to_string(places::root().join("Cargo.toml"))?;
    let manifest: toml::Table = toml::from_str(&text).context("read Cargo.toml")?;
    let members = workspace.members().map(|package| package.name.as_str());
    Ok(violations(&manifest, members))
}

fn violations<'a>(manifest: &toml::Table, members: impl Iterator<Item = &'a str>) -> Vec<String> {
    let profile = manifest.get("profile").and_then(|all| all.get("dev"));
    let lines = profile.and_then(|dev| dev.get("package"));
    let level = |name: &str| lines?.get(name)?.get("opt-level");
    let mut found: Vec<String> = members
        .filter(|name| level(name).is_none())
        .map(|name| {
            format!("Cargo.toml: {name} has no opt-level in [profile.dev.package], so it is compiled as others' packages are")
        })
        .collect();
    if lines.and_then(|lines| lines.get("*")).is_some() {
        found.push(
            "Cargo.toml: profile.dev.package.\"*\" is stronger than build-override and optimises procedural macros"
                .to_owned(),
        );
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_package_has_a_line_and_the_others_have_none() {
        let check = |lines: &str, expected: usize| {
            let text = format!("[profile.dev]\nopt-level = 2\n{lines}");
            let manifest = toml::from_str(&text).expect("is TOML");
            let found = violations(&manifest, ["ours", "xtask"].into_iter());
            assert_eq!(found.len(), expected, "{lines}: {found:?}");
        };
        let ours = "[profile.dev.package]\nours = { opt-level = 1 }\n";
        check("", 2);
        check(ours, 1);
        check(&format!("{ours}xtask = {{ opt-level = 1 }}\n"), 0);
        check(&format!("{ours}xtask = {{ debug = false }}\n"), 1);
        check(
            &format!("{ours}xtask = {{ opt-level = 1 }}\n\"*\" = {{ opt-level = 2 }}\n"),
            1,
        );
    }
}
