//! Scans the presets with checkov, a third-party scanner with the usual policies for Kubernetes. Every check that fails must be
//! in the list below, with the kinds of objects it may fail for and the reason; and every entry of the list must still fail. The
//! table in `docs/operations.md` is made of the list.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use serde::Deserialize;

use super::Chart;
use super::cases::Case;
use crate::derived::{self, Mode, Section};
use crate::{interpreters, places, process};

const PLACE: &str = "crates/xtask/src/chart/scanner.rs";
const PAGE: &str = "docs/operations.md";

/// A check that may fail.
struct Allowed {
    check: &'static str,
    /// What it asks for.
    wants: &'static str,
    kinds: &'static [&'static str],
    reason: &'static str,
}

const WORKLOADS: &[&str] = &["Deployment", "Pod", "StatefulSet"];

const ALLOWED: &[Allowed] = &[
    Allowed {
        check: "CKV_K8S_21",
        wants: "a namespace",
        kinds: &[
            "ConfigMap",
            "Deployment",
            "Pod",
            "Service",
            "ServiceAccount",
            "StatefulSet",
        ],
        reason: "objects name none, so that `helm --namespace` decides",
    },
    Allowed {
        check: "CKV_K8S_11",
        wants: "CPU limits",
        kinds: WORKLOADS,
        reason: "memory has limits; a CPU limit would stall heartbeats of a model that takes what is free",
    },
    Allowed {
        check: "CKV_K8S_43",
        wants: "images by digest",
        kinds: WORKLOADS,
        reason: "digests are the operator's to give; `values-airgap.yaml` shows it",
    },
    Allowed {
        check: "CKV_K8S_15",
        wants: "images pulled always",
        kinds: WORKLOADS,
        reason: "of an image by digest it adds nothing, and without a registry it fails",
    },
    Allowed {
        check: "CKV_K8S_35",
        wants: "secrets as files",
        kinds: &["Pod", "StatefulSet"],
        reason: "nats-server and the command line take their token from the environment only",
    },
    Allowed {
        check: "CKV_K8S_8",
        wants: "a liveness probe",
        kinds: &["Pod"],
        reason: "only the pod of `helm test`, which ends by itself",
    },
    Allowed {
        check: "CKV_K8S_9",
        wants: "a readiness probe",
        kinds: &["Pod"],
        reason: "only the pod of `helm test`, which nothing sends requests to",
    },
];

/// What checkov prints.
#[derive(Deserialize)]
struct Report {
    results: Results,
}

#[derive(Deserialize)]
struct Results {
    passed_checks: Vec<Record>,
    failed_checks: Vec<Record>,
    skipped_checks: Vec<Record>,
    parsing_errors: Vec<String>,
}

/// One check of one object.
#[derive(Deserialize)]
struct Record {
    check_id: String,
    check_name: String,
    file_path: String,
    /// `Kind.namespace.name`.
    resource: String,
}

/// What came of a scan.
pub(crate) struct Scan {
    pub(crate) violations: Vec<String>,
    pub(crate) passed: usize,
    pub(crate) allowed: usize,
}

/// Scans what was rendered of the presets, and settles the table.
pub(crate) fn check(chart: &Chart, mode: Mode, cases: &[Case]) -> Result<Scan> {
    settle(mode)?;
    let presets = cases.iter().filter(|case| case.is_preset);
    let presets: Vec<&str> = presets.map(|case| case.name.as_str()).collect();
    let files: Vec<PathBuf> = presets.iter().map(|name| chart.rendered(name)).collect();
    let report = scan(&files)?;
    Ok(Scan {
        violations: compare(&report.results, ALLOWED, &presets),
        passed: report.results.passed_checks.len(),
        allowed: report.results.failed_checks.len(),
    })
}

fn scan(files: &[PathBuf]) -> Result<Report> {
    let requirements = "crates/xtask/src/chart/scanner/requirements.txt";
    let python = interpreters::python("checkov", &places::root().join(requirements))?;
    let home = places::scratch("chart-scanner")?;
    let mut checkov = Command::new(python);
    // Nothing of the person who runs this, neither settings nor an account; and nothing is asked of the network.
    checkov
        .env_clear()
        .env("HOME", &home)
        .env("CKV_SKIP_PACKAGE_UPDATE_CHECK", "true")
        .current_dir(&home);
    checkov
        .args(["-m", "checkov.main", "--framework", "kubernetes"])
        .args(["--skip-download", "--compact", "--soft-fail"])
        .args(["--output", "json", "--file"]);
    let said = process::capture(checkov.args(files))?;
    serde_json::from_str(&said).context("what checkov says: expected one report with results")
}

/// What the scan and the list do not have in common, and what was not looked at.
fn compare(results: &Results, allowed: &[Allowed], presets: &[&str]) -> Vec<String> {
    let mut unused: BTreeSet<(&str, &str)> = allowed
        .iter()
        .flat_map(|one| one.kinds.iter().map(|kind| (one.check, *kind)))
        .collect();
    let may_fail = unused.clone();
    // Once where several containers of a pod fail.
    let mut violations = BTreeSet::new();
    for failed in &results.failed_checks {
        let place = (failed.check_id.as_str(), failed.kind());
        unused.remove(&place);
        if !may_fail.contains(&place) {
            violations.insert(format!(
                "{failed} fails: mend it, or allow it with its reason in {PLACE}"
            ));
        }
    }
    for skipped in &results.skipped_checks {
        violations.insert(format!(
            "{skipped} is skipped by a note in the object: allow it in {PLACE} instead"
        ));
    }
    for file in &results.parsing_errors {
        violations.insert(format!("{file}: checkov cannot read it"));
    }
    for (check, kind) in unused {
        violations.insert(format!(
            "{check} fails for no {kind} of a preset: take it out of {PLACE}"
        ));
    }
    let passed: BTreeSet<&str> = results.passed_checks.iter().map(Record::preset).collect();
    for preset in presets.iter().filter(|name| !passed.contains(**name)) {
        violations.insert(format!("{preset}: no check of checkov has passed"));
    }
    violations.into_iter().collect()
}

impl Record {
    fn kind(&self) -> &str {
        let kind = self.resource.split('.').next();
        kind.unwrap_or(&self.resource)
    }

    fn preset(&self) -> &str {
        let name = Path::new(&self.file_path).file_stem();
        name.and_then(|name| name.to_str()).unwrap_or_default()
    }
}

impl std::fmt::Display for Record {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (preset, resource) = (self.preset(), &self.resource);
        let (check, name) = (&self.check_id, &self.check_name);
        write!(f, "{preset}: {resource}: {check} ({name})")
    }
}

/// The table for people.
fn table(allowed: &[Allowed]) -> String {
    let mut text = String::from("| check | of | why it stays |\n|---|---|---|\n");
    for one in allowed {
        let (check, wants, reason) = (one.check, one.wants, one.reason);
        let kinds = one.kinds.join(", ");
        text.push_str(&format!("| {check}, {wants} | {kinds} | {reason} |\n"));
    }
    text
}

fn settle(mode: Mode) -> Result<()> {
    let section = Section {
        page: PAGE,
        name: "chart scan".to_owned(),
        command: "chart --bless",
    };
    let page = section.page_with(&table(ALLOWED))?;
    derived::settle(mode, "chart", PAGE, &page)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIST: &[Allowed] = &[Allowed {
        check: "CKV_K8S_11",
        wants: "CPU limits",
        kinds: &["Deployment", "Pod"],
        reason: "a reason",
    }];

    fn record(check: &str, file: &str, resource: &str) -> Record {
        Record {
            check_id: check.to_owned(),
            check_name: "words".to_owned(),
            file_path: format!("/chart/{file}.yaml"),
            resource: resource.to_owned(),
        }
    }

    /// What is said where these fail, beside a check that passes of `small`.
    fn said(failed: &[(&str, &str)], presets: &[&str]) -> Vec<String> {
        let failed = failed
            .iter()
            .map(|(check, resource)| record(check, "small", resource));
        let results = Results {
            passed_checks: vec![record("CKV_K8S_1", "small", "Pod.default.a")],
            failed_checks: failed.collect(),
            skipped_checks: Vec::new(),
            parsing_errors: Vec::new(),
        };
        compare(&results, LIST, presets)
    }

    const BOTH: [(&str, &str); 2] = [
        ("CKV_K8S_11", "Deployment.default.a"),
        ("CKV_K8S_11", "Pod.default.a.b"),
    ];

    #[test]
    fn what_the_list_allows_is_no_violation() {
        assert_eq!(said(&BOTH, &["small"]), Vec::<String>::new());
    }

    #[test]
    fn what_it_does_not_allow_is_named_once_with_its_check_object_and_file() {
        let check = |failed: (&str, &str), expected: &str| {
            let all = [&BOTH[..], &[failed, failed]].concat();
            let found = said(&all, &["small"]);
            assert_eq!(found.len(), 1, "{found:?}");
            assert!(found[0].starts_with(expected), "{found:?}");
        };
        check(
            ("CKV_K8S_16", "Pod.default.a"),
            "small: Pod.default.a: CKV_K8S_16 (words) fails",
        );
        // The same check of another kind.
        check(
            ("CKV_K8S_11", "StatefulSet.default.a"),
            "small: StatefulSet.default.a: CKV_K8S_11 (words) fails",
        );
    }

    #[test]
    fn what_no_longer_fails_must_leave_the_list() {
        let found = said(&BOTH[..1], &["small"]);
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].starts_with("CKV_K8S_11 fails for no Pod"));
    }

    #[test]
    fn what_was_not_looked_at_is_named() {
        let found = said(&BOTH, &["small", "gpu"]);
        assert_eq!(found, ["gpu: no check of checkov has passed"]);
        let results = Results {
            passed_checks: Vec::new(),
            failed_checks: Vec::new(),
            skipped_checks: vec![record("CKV_K8S_8", "small", "Pod.default.a")],
            parsing_errors: vec!["/chart/gpu.yaml".to_owned()],
        };
        let found = compare(&results, &[], &[]);
        assert_eq!(found.len(), 2, "{found:?}");
    }

    #[test]
    fn each_check_and_kind_is_listed_once() {
        let mut seen = BTreeSet::new();
        for one in ALLOWED {
            for kind in one.kinds {
                assert!(seen.insert((one.check, kind)), "{} {kind}", one.check);
            }
            assert!(!one.reason.is_empty() && !one.kinds.is_empty());
        }
    }
}
