//! Licences of everything that can be linked, against the list in `deny.toml`; and the crates that are banned there.

use std::collections::BTreeSet;

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use super::workspace::Workspace;
use crate::places;

#[derive(Debug, Deserialize)]
struct Deny {
    licenses: Licenses,
    bans: Bans,
}

#[derive(Debug, Deserialize)]
struct Licenses {
    allow: BTreeSet<String>,
}

#[derive(Debug, Deserialize)]
struct Bans {
    deny: Vec<Ban>,
}

#[derive(Debug, Deserialize)]
struct Ban {
    #[serde(rename = "crate")]
    name: String,
    reason: String,
}

/// Packages without an allowed licence, and banned packages.
pub(crate) fn check(workspace: &Workspace) -> Result<Vec<String>> {
    let text =
        std::fs::read_to_string(places::root().join("deny.toml")).context("read deny.toml")?;
    let deny: Deny = toml::from_str(&text).context("read deny.toml")?;
    let mut violations = Vec::new();
    for package in &workspace.packages {
        let place = format!("{} {}", package.name, package.version);
        match package.license.as_deref() {
            None => violations.push(format!("{place}: states no licence")),
            Some(expression) => match allowed(expression, &deny.licenses.allow) {
                Ok(true) => {}
                Ok(false) => violations.push(format!("{place}: {expression} is not in deny.toml")),
                Err(error) => violations.push(format!("{place}: {error:#}")),
            },
        }
        if let Some(ban) = deny.bans.deny.iter().find(|ban| ban.name == package.name) {
            violations.push(format!("{place}: banned in deny.toml: {}", ban.reason));
        }
    }
    Ok(violations)
}

/// Whether an SPDX expression can be met with the licences of the list. `/` is cargo's old way of writing OR.
fn allowed(expression: &str, list: &BTreeSet<String>) -> Result<bool> {
    let spaced = expression
        .replace('/', " OR ")
        .replace('(', " ( ")
        .replace(')', " ) ");
    let mut words = Words {
        words: spaced.split_whitespace().collect(),
        next: 0,
        list,
    };
    let met = words.any_of()?;
    if words.peek().is_some() {
        bail!("cannot read the licence expression {expression:?}");
    }
    Ok(met)
}

/// A recursive reader of licence expressions: OR binds weaker than AND.
struct Words<'a> {
    words: Vec<&'a str>,
    next: usize,
    list: &'a BTreeSet<String>,
}

impl Words<'_> {
    fn peek(&self) -> Option<&str> {
        self.words.get(self.next).copied()
    }

    fn any_of(&mut self) -> Result<bool> {
        let mut met = self.all_of()?;
        while self.peek() == Some("OR") {
            self.next += 1;
            met |= self.all_of()?;
        }
        Ok(met)
    }

    fn all_of(&mut self) -> Result<bool> {
        let mut met = self.one()?;
        while self.peek() == Some("AND") {
            self.next += 1;
            met &= self.one()?;
        }
        Ok(met)
    }

    fn one(&mut self) -> Result<bool> {
        let word = self
            .peek()
            .context("licence expression ends too early")?
            .to_owned();
        self.next += 1;
        if word == "(" {
            let met = self.any_of()?;
            if self.peek() != Some(")") {
                bail!("licence expression lacks a closing bracket");
            }
            self.next += 1;
            return Ok(met);
        }
        if self.peek() != Some("WITH") {
            return Ok(self.list.contains(&word));
        }
        self.next += 1;
        let exception = self
            .peek()
            .context("licence expression ends after WITH")?
            .to_owned();
        self.next += 1;
        Ok(self.list.contains(&format!("{word} WITH {exception}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(expression: &str, expected: bool) {
        let list = ["MIT", "Apache-2.0", "Apache-2.0 WITH LLVM-exception"]
            .map(str::to_owned)
            .into();
        assert_eq!(
            allowed(expression, &list).unwrap(),
            expected,
            "{expression}"
        );
    }

    #[test]
    fn expressions_are_met_by_the_list() {
        check("MIT", true);
        check("GPL-3.0", false);
        check("MIT/GPL-3.0", true);
        check("MIT AND GPL-3.0", false);
        check("GPL-3.0 OR MIT AND Apache-2.0", true);
        check("(GPL-3.0 OR MIT) AND Apache-2.0", true);
        check("Apache-2.0 WITH LLVM-exception", true);
        check("MIT WITH LLVM-exception", false);
    }

    #[test]
    fn broken_expressions_are_errors() {
        for expression in ["", "(MIT", "MIT MIT", "MIT OR"] {
            assert!(
                allowed(expression, &BTreeSet::new()).is_err(),
                "{expression}"
            );
        }
    }
}
