//! The filter of system calls that `RuntimeDefault` means, as the runtime reads it: Debian's default profile for containers, of
//! which each rule says for which machines and for which capabilities it is.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde::Deserialize;
use serde_json::{Value, json};

/// The profile, as far as it decides something.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Profile {
    default_action: String,
    default_errno_ret: Option<u32>,
    arch_map: Vec<Architecture>,
    syscalls: Vec<Rule>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Architecture {
    architecture: String,
    sub_architectures: Option<Vec<String>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Rule {
    names: Vec<String>,
    action: String,
    args: Option<Vec<Value>>,
    errno_ret: Option<u32>,
    #[serde(default)]
    includes: Condition,
    #[serde(default)]
    excludes: Condition,
}

/// Where a rule is for, or is not for. `minKernel` is not looked at: kernels older than those that it names are gone.
#[derive(Debug, Default, Deserialize)]
struct Condition {
    #[serde(default)]
    caps: Vec<String>,
    #[serde(default)]
    arches: Vec<String>,
}

/// This machine, by the two names that profiles have for it.
const MACHINE: (&str, &str) = if cfg!(target_arch = "aarch64") {
    ("arm64", "SCMP_ARCH_AARCH64")
} else {
    ("amd64", "SCMP_ARCH_X86_64")
};

/// The filter of a container without a capability.
pub(super) fn read(path: &Path) -> Result<Value> {
    let text = fs::read(path).with_context(|| format!("read {}", path.display()))?;
    let profile: Profile =
        serde_json::from_slice(&text).with_context(|| format!("{}", path.display()))?;
    Ok(filter(&profile))
}

/// A filter that keeps a container from nothing that it does: whether this machine has filters at all.
pub(super) fn of_nothing() -> Value {
    json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "architectures": [MACHINE.1],
        "syscalls": [{"names": ["acct"], "action": "SCMP_ACT_ERRNO"}],
    })
}

fn filter(profile: &Profile) -> Value {
    let rules: Vec<Value> = profile
        .syscalls
        .iter()
        .filter(|rule| rule.is_for_no_capability())
        .map(Rule::translated)
        .collect();
    let here = profile.arch_map.iter();
    let architectures: Vec<&String> = here
        .filter(|one| one.architecture == MACHINE.1)
        .flat_map(|one| {
            let lesser = one.sub_architectures.iter().flatten();
            std::iter::once(&one.architecture).chain(lesser)
        })
        .collect();
    let mut filter = json!({
        "defaultAction": profile.default_action,
        "architectures": architectures,
        "syscalls": rules,
    });
    if let Some(code) = profile.default_errno_ret {
        filter["defaultErrnoRet"] = json!(code);
    }
    filter
}

impl Rule {
    /// A rule for a capability is for none of our containers; one against a capability is for all of them.
    fn is_for_no_capability(&self) -> bool {
        let machine = MACHINE.0.to_owned();
        self.includes.caps.is_empty()
            && (self.includes.arches.is_empty() || self.includes.arches.contains(&machine))
            && !self.excludes.arches.contains(&machine)
    }

    fn translated(&self) -> Value {
        let mut rule = json!({"names": self.names, "action": self.action});
        if let Some(args) = self.args.as_ref().filter(|args| !args.is_empty()) {
            rule["args"] = json!(args);
        }
        if let Some(code) = self.errno_ret {
            rule["errnoRet"] = json!(code);
        }
        rule
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_of_capabilities_and_of_other_machines_are_left_out() {
        let rule = |name: &str, condition: Value| {
            let mut rule = json!({"names": [name], "action": "SCMP_ACT_ALLOW", "args": null});
            for (key, value) in condition.as_object().into_iter().flatten() {
                rule[key] = value.clone();
            }
            rule
        };
        let profile = json!({
            "defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 38, "defaultErrno": "ENOSYS",
            "archMap": [
                {"architecture": MACHINE.1, "subArchitectures": ["SCMP_ARCH_LESSER"]},
                {"architecture": "SCMP_ARCH_PPC64LE", "subArchitectures": null},
            ],
            "syscalls": [
                rule("read", json!({"includes": {}, "excludes": {}})),
                rule("here", json!({"includes": {"arches": [MACHINE.0, "x"]}})),
                rule("there", json!({"includes": {"arches": ["s390x"]}})),
                rule("not-here", json!({"excludes": {"arches": [MACHINE.0]}})),
                rule("bpf", json!({"includes": {"caps": ["CAP_SYS_ADMIN"]}})),
                rule("bpf-refused", json!({"excludes": {"caps": ["CAP_SYS_ADMIN"]}, "errnoRet": 1})),
                rule("socket", json!({"args": [{"index": 0, "value": 16, "op": "SCMP_CMP_NE"}]})),
            ],
        });
        let profile = serde_json::from_value(profile).expect("a profile");
        let filter = filter(&profile);
        assert_eq!(filter["defaultErrnoRet"], 38);
        assert_eq!(
            filter["architectures"],
            json!([MACHINE.1, "SCMP_ARCH_LESSER"])
        );
        let rules = filter["syscalls"].as_array().expect("rules");
        let names: Vec<&Value> = rules.iter().map(|rule| &rule["names"][0]).collect();
        assert_eq!(names, ["read", "here", "bpf-refused", "socket"]);
        assert_eq!(rules[0].get("args"), None);
        assert_eq!(rules[2]["errnoRet"], 1);
        assert_eq!(rules[3]["args"][0]["value"], 16);
    }
}
