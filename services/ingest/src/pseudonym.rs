//! The form of the pseudonyms that clients give: opaque texts, looked at here and hashed by `keys`. No refusal shows one.

use std::fmt;

use medfleet_core::STUDIES_MAX;
use medfleet_proto::v1;

use crate::error::Violation;

/// Shortest and longest, in bytes; part of the public contract. Most numbers that hospitals give to patients are shorter.
const BYTES_MIN: usize = 16;
const BYTES_MAX: usize = 64;
/// The root of UIDs that are numbers by themselves, as a UID that was mapped with a key is. Every other root names who gave
/// the UID out: it is the study's own, and no keyed hash is written so.
const MAPPED_ROOT: &str = "2.25.";

/// What a client says of whose a job is, in the right form. Shows nothing.
#[derive(Clone, Default, PartialEq, Eq)]
pub(crate) struct Given {
    /// Empty where it was not said.
    pub(crate) patient: String,
    pub(crate) studies: Vec<String>,
}

impl fmt::Debug for Given {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Given(hidden)")
    }
}

impl Given {
    /// Reads a request's, and names what has not the form.
    pub(crate) fn of(request: &v1::SubmitJobRequest, wrong: &mut Vec<Violation>) -> Self {
        let patient = &request.patient_pseudonym;
        if !patient.is_empty() {
            wrong.extend(violation("patient_pseudonym", patient));
        }
        let studies = &request.study_pseudonyms;
        if studies.len() > STUDIES_MAX {
            let allowed = format!("at most {STUDIES_MAX}; found {}", studies.len());
            wrong.push(Violation::new("study_pseudonyms", allowed));
            return Self::default();
        }
        for (index, study) in studies.iter().enumerate() {
            wrong.extend(violation(&format!("study_pseudonyms[{index}]"), study));
        }
        Self {
            patient: patient.clone(),
            studies: studies.clone(),
        }
    }
}

/// What is wrong with the form of a pseudonym; nothing when it can be one.
pub(crate) fn violation(field: &str, text: &str) -> Option<Violation> {
    let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    if !(BYTES_MIN..=BYTES_MAX).contains(&text.len()) || !text.bytes().all(is_allowed) {
        let allowed = format!(
            "a keyed hash of {BYTES_MIN} to {BYTES_MAX} characters of A-Z, a-z, 0-9, '.', '_' and '-', never a patient's number or name"
        );
        return Some(Violation::new(field, allowed));
    }
    let is_uid = text.contains('.')
        && text
            .bytes()
            .all(|byte| byte.is_ascii_digit() || byte == b'.');
    if is_uid && !text.starts_with(MAPPED_ROOT) {
        let allowed = format!(
            "a keyed hash, or a UID that was mapped with a key ({MAPPED_ROOT}…), never a UID of the study itself"
        );
        return Some(Violation::new(field, allowed));
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(patient: &str, studies: &[&str]) -> v1::SubmitJobRequest {
        v1::SubmitJobRequest {
            patient_pseudonym: patient.to_owned(),
            study_pseudonyms: studies.iter().map(|study| (*study).to_owned()).collect(),
            ..Default::default()
        }
    }

    fn check(patient: &str, studies: &[&str], expected: &[&str]) {
        let mut wrong = Vec::new();
        Given::of(&request(patient, studies), &mut wrong);
        let fields: Vec<_> = wrong.iter().map(|wrong| wrong.field.as_str()).collect();
        assert_eq!(fields, expected, "{patient:?} {studies:?}");
        for secret in studies
            .iter()
            .chain([&patient])
            .filter(|text| text.len() > 3)
        {
            let shown = wrong.iter().any(|wrong| wrong.allowed.contains(*secret));
            assert!(!shown, "a refusal shows what was sent: {wrong:?}");
        }
    }

    #[test]
    fn pseudonyms_have_one_form() {
        let (hash, mapped) = (
            "0A1B2C3D4E5F6071",
            "2.25.329800735698586629295641978511506172918",
        );
        check("", &[], &[]);
        check(hash, &[mapped, hash], &[]);
        check(&"a".repeat(64), &["a-b_c.d-e_f.g-h_i"], &[]);
        check("PID-4711", &[], &["patient_pseudonym"]);
        check(&"a".repeat(65), &[], &["patient_pseudonym"]);
        check("Doe^Jane^of^Springfield", &[], &["patient_pseudonym"]);
        check(
            "jane doe of somewhere",
            &[""],
            &["patient_pseudonym", "study_pseudonyms[0]"],
        );
        check(
            "",
            &[hash, "1.2.826.0.1.3680043.8.498.1"],
            &["study_pseudonyms[1]"],
        );
        check("1.2.826.0.1.3680043.8.498.1", &[], &["patient_pseudonym"]);
        check("", &[hash; 5], &["study_pseudonyms"]);
    }

    #[test]
    fn what_was_given_is_not_shown() {
        let given = Given::of(&request("0A1B2C3D4E5F6071", &[]), &mut Vec::new());
        assert!(!format!("{given:?}").contains('1'));
    }
}
