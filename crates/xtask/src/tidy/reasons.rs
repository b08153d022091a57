//! The reasons of refused calls, which stand in three places: what the code answers, what the contract promises, and what
//! the page for clients says to do about each.

use std::collections::BTreeSet;
use std::fs;

use anyhow::{Context, Result};

use crate::places;

/// Where a refusal becomes a code and a reason.
const CODE: &str = "services/ingest/src/error.rs";
/// The contract, whose head lists the reasons of each code.
const CONTRACT: &str = "proto/medfleet/v1/job_service.proto";
/// The page for clients, whose table says which of them to try again.
const PAGE: &str = "docs/how-to/submit-from-another-language.md";

/// Codes with a reason, as clients see both.
type Reasons = BTreeSet<(String, String)>;

/// Reasons that one of the places leaves out, or makes up.
pub(crate) fn check() -> Result<Vec<String>> {
    let read = |name: &str| {
        fs::read_to_string(places::root().join(name)).with_context(|| format!("read {name}"))
    };
    let answered = of_code(&read(CODE)?);
    let mut violations = Vec::new();
    if answered.is_empty() {
        violations.push(format!("{CODE}: no reason was found in `code_and_reason`"));
    }
    violations.extend(differences(
        CONTRACT,
        &of_contract(&read(CONTRACT)?),
        &answered,
    ));
    violations.extend(differences(PAGE, &of_page(&read(PAGE)?), &answered));
    Ok(violations)
}

fn differences(place: &str, told: &Reasons, answered: &Reasons) -> Vec<String> {
    let missing = answered.difference(told).map(|(code, reason)| {
        format!("{place}: leaves out {code} with {reason}, which {CODE} answers")
    });
    let unknown = told.difference(answered).map(|(code, reason)| {
        format!("{place}: names {code} with {reason}, which {CODE} does not answer")
    });
    missing.chain(unknown).collect()
}

/// Of the function that decides: tuples `(Code::NotFound, "NOT_FOUND")`.
fn of_code(text: &str) -> Reasons {
    let body = text
        .split_once("fn code_and_reason(")
        .map_or("", |(_, rest)| rest);
    let body = body.split_once("\n}\n").map_or(body, |(body, _)| body);
    let tuples = body.split("(Code::").skip(1);
    let reasons = tuples.filter_map(|tuple| {
        let (code, rest) = tuple.split_once(", \"")?;
        let (reason, _) = rest.split_once('"')?;
        Some((on_the_wire(code), reason.to_owned()))
    });
    reasons.collect()
}

/// `NotFound` is NOT_FOUND to clients.
fn on_the_wire(code: &str) -> String {
    let mut name = String::new();
    for c in code.chars() {
        if c.is_ascii_uppercase() && !name.is_empty() {
            name.push('_');
        }
        name.push(c.to_ascii_uppercase());
    }
    name
}

/// Of the contract: lines of its head such as `//   UNAVAILABLE: QUEUE_AWAY, STORE_AWAY. Call again.`
fn of_contract(text: &str) -> Reasons {
    let entries = text.lines().filter_map(|line| line.strip_prefix("//   "));
    pairs(entries.filter_map(|entry| entry.split_once(": ")))
}

/// Of the page: rows of the table below *Errors*, with the code in the first cell and its reasons in the second.
fn of_page(text: &str) -> Reasons {
    let section = text
        .split_once("\n## Errors\n")
        .map_or("", |(_, rest)| rest);
    let section = section
        .split_once("\n## ")
        .map_or(section, |(section, _)| section);
    pairs(section.lines().filter_map(|line| {
        let mut cells = line.strip_prefix("| ")?.split(" | ");
        let code = capitals(cells.next()?).next()?;
        Some((code, cells.next()?))
    }))
}

fn pairs<'a>(told: impl Iterator<Item = (&'a str, &'a str)>) -> Reasons {
    told.flat_map(|(code, rest)| {
        capitals(rest).map(move |reason| (code.to_owned(), reason.to_owned()))
    })
    .collect()
}

/// The words in capitals.
fn capitals(text: &str) -> impl Iterator<Item = &str> {
    let words = text.split(|c: char| !c.is_alphanumeric() && c != '_');
    words.filter(|word| word.len() > 2 && word.chars().all(|c| c.is_ascii_uppercase() || c == '_'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(found: &Reasons, expected: &[(&str, &str)]) {
        let found: Vec<_> = found
            .iter()
            .map(|(code, reason)| (code.as_str(), reason.as_str()))
            .collect();
        assert_eq!(found, expected);
    }

    const CODE_TEXT: &str = "fn code_and_reason(refusal: &Refusal) -> (Code, &'static str) {\n\
        Refusal::Busy => (Code::ResourceExhausted, \"BUSY\"),\n\
        Refusal::Stopping => (Code::Unavailable, \"STOPPING\"),\n\
        }\n\nfn other() { (Code::Internal, \"OTHER\") }\n";

    #[test]
    fn reasons_are_read_from_the_code_the_contract_and_the_page() {
        let both = [("RESOURCE_EXHAUSTED", "BUSY"), ("UNAVAILABLE", "STOPPING")];
        check(&of_code(CODE_TEXT), &both);
        let contract = "// Errors: NOT_FOUND.\n//   UNAVAILABLE: STOPPING. Call again after RetryInfo.\n\
            //   RESOURCE_EXHAUSTED: BUSY with RetryInfo.\nsyntax = \"proto3\";\n";
        check(&of_contract(contract), &both);
        let page = "# A\n\n| NOT_FOUND | `OUTSIDE` |\n\n## Errors\n\n| code | reasons |\n|---|---|\n\
            | UNAVAILABLE | `STOPPING`; none when it broke | yes |\n\
            | RESOURCE_EXHAUSTED with `RetryInfo` | `BUSY` (`limit` in its metadata) | yes |\n\
            | OUT_OF_RANGE | none: over 4 MiB | no |\n\n## Next\n\n| ABORTED | `LATER` | no |\n";
        check(&of_page(page), &both);
    }

    #[test]
    fn what_one_place_leaves_out_or_makes_up_is_named() {
        let told = of_contract("//   UNAVAILABLE: STOPPING, GONE\n");
        let found = differences("a.proto", &told, &of_code(CODE_TEXT));
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(found[0].starts_with("a.proto: leaves out RESOURCE_EXHAUSTED with BUSY"));
        assert!(found[1].starts_with("a.proto: names UNAVAILABLE with GONE"));
    }
}
