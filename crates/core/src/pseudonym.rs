//! By which patient and studies a job can be found again: keyed hashes of the pseudonyms that its client gave, which are keyed
//! hashes themselves. They do not lead back to a patient, and are never shown.

use std::fmt;

use crate::closed_set;

/// Most studies that one job can be of.
pub const STUDIES_MAX: usize = 4;
/// Length of a hash: 128 bits.
const HASH_BYTES: usize = 16;

closed_set!(
    /// What a pseudonym stands for.
    pub enum PseudonymKind, "pseudonym", {
        /// A patient.
        Patient = "patient",
        /// A study.
        Study = "study",
    }
);

/// 128 bits of keyed hash of a pseudonym. Shows nothing of itself.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PseudonymHash([u8; HASH_BYTES]);

impl PseudonymHash {
    pub const fn new(bytes: [u8; HASH_BYTES]) -> Self {
        Self(bytes)
    }

    /// From a slice, which must be 16 bytes long.
    pub fn from_slice(bytes: &[u8]) -> Option<Self> {
        <[u8; HASH_BYTES]>::try_from(bytes).ok().map(Self)
    }

    pub const fn as_bytes(&self) -> &[u8; HASH_BYTES] {
        &self.0
    }
}

impl fmt::Debug for PseudonymHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PseudonymHash(hidden)")
    }
}

/// Whose a job is; nothing for a job whose client did not say.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Pseudonyms {
    pub patient: Option<PseudonymHash>,
    /// Of the studies, in order of their bytes and each once; at most [`STUDIES_MAX`].
    pub studies: Vec<PseudonymHash>,
}

impl Pseudonyms {
    /// Whether the job is of this patient or study.
    pub fn has(&self, kind: PseudonymKind, hash: &PseudonymHash) -> bool {
        match kind {
            PseudonymKind::Patient => self.patient.as_ref() == Some(hash),
            PseudonymKind::Study => self.studies.contains(hash),
        }
    }

    /// All of them as bytes, so that two differ where they differ; none where nothing was said.
    pub fn to_bytes(&self) -> Vec<u8> {
        let patient = self.patient.iter().map(|hash| (b'p', hash));
        let studies = self.studies.iter().map(|hash| (b's', hash));
        let marked = patient.chain(studies);
        marked
            .flat_map(|(mark, hash)| std::iter::once(mark).chain(hash.0))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_patient_is_no_study_and_nothing_is_shown() {
        let (one, other) = (PseudonymHash::new([1; 16]), PseudonymHash::new([2; 16]));
        let both = Pseudonyms {
            patient: Some(one),
            studies: vec![other],
        };
        assert!(both.has(PseudonymKind::Patient, &one) && both.has(PseudonymKind::Study, &other));
        assert!(!both.has(PseudonymKind::Patient, &other) && !both.has(PseudonymKind::Study, &one));
        assert!(!Pseudonyms::default().has(PseudonymKind::Patient, &one));
        let shown = format!("{both:?}");
        assert!(
            shown.contains("hidden") && !shown.contains(['1', '2']),
            "{shown}"
        );
        assert_eq!(PseudonymHash::from_slice(&[1; 16]), Some(one));
        assert_eq!(PseudonymHash::from_slice(&[1; 32]), None);
    }

    #[test]
    fn bytes_tell_a_patient_from_a_study() {
        let hash = PseudonymHash::new([1; 16]);
        let patient = Pseudonyms {
            patient: Some(hash),
            studies: Vec::new(),
        };
        let study = Pseudonyms {
            patient: None,
            studies: vec![hash],
        };
        assert_ne!(patient.to_bytes(), study.to_bytes());
        assert!(Pseudonyms::default().to_bytes().is_empty());
    }
}
