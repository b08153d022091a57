//! The fleet's key, and what is derived from it: job ids that cannot be guessed, body digests, page tokens that cannot be made up.

use medfleet_core::{Digest, JobId, JobState, PseudonymHash, PseudonymKind, Pseudonyms, TenantId};
use medfleet_store::FleetKey;

use crate::erase::many::Wanted;
use crate::pseudonym::Given;

const JOB_ID: &str = "ingest job id";
const SENT: &str = "ingest body as sent";
const MEANT: &str = "ingest body as meant";
const PAGE: &str = "ingest page token";
const PSEUDONYM: &str = "ingest pseudonym";
const ERASE_PAGE: &str = "ingest page token of an erasure";
/// Bytes of the check in a page token.
const PAGE_CHECK_BYTES: usize = 8;
/// Bytes of each half of a body digest.
const HALF: usize = 16;

/// The fleet's key and what ingest makes of it.
#[derive(Debug, Clone)]
pub(crate) struct Keys(FleetKey);

/// The first half of a body digest: what was sent, byte for byte. The second half is what it meant.
/// A repeated request equals in the first half even when its uploads have expired; a client that uploads the same files
/// again equals in the second.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SentHalf([u8; HALF]);

impl Keys {
    pub(crate) const fn new(key: FleetKey) -> Self {
        Self(key)
    }

    /// The id of the job that a tenant names by its own request id.
    pub(crate) fn job_id(&self, tenant: &TenantId, request_id: &str) -> JobId {
        let parts: [&[u8]; 2] = [tenant.as_str().as_bytes(), request_id.as_bytes()];
        JobId::from_bytes(first(&self.0.keyed_hash(JOB_ID, &parts)))
    }

    /// Digest of the request as sent, without its request id.
    pub(crate) fn sent(&self, tenant: &TenantId, request: &[u8]) -> SentHalf {
        SentHalf(first(
            &self
                .0
                .keyed_hash(SENT, &[tenant.as_str().as_bytes(), request]),
        ))
    }

    /// The body digest of the record: `sent`, then the digest of what the request means, given in parts.
    pub(crate) fn body(&self, sent: SentHalf, meaning: &[&[u8]]) -> Digest {
        let mut bytes = [0; 32];
        bytes[..HALF].copy_from_slice(&sent.0);
        bytes[HALF..].copy_from_slice(&first::<HALF>(&self.0.keyed_hash(MEANT, meaning)));
        Digest::new(bytes)
    }

    /// What a record keeps of a pseudonym: nothing that leads back, and nothing that another tenant's equals.
    pub(crate) fn pseudonym(
        &self,
        tenant: &TenantId,
        kind: PseudonymKind,
        text: &str,
    ) -> PseudonymHash {
        let tenant = tenant.as_str().as_bytes();
        let parts: [&[u8]; 3] = [tenant, kind.as_str().as_bytes(), text.as_bytes()];
        PseudonymHash::new(first(&self.0.keyed_hash(PSEUDONYM, &parts)))
    }

    /// What a record keeps of all that its client said of whose it is.
    pub(crate) fn pseudonyms(&self, tenant: &TenantId, given: &Given) -> Pseudonyms {
        let hash = |kind, text: &str| self.pseudonym(tenant, kind, text);
        let patient = Some(given.patient.as_str()).filter(|text| !text.is_empty());
        let studies = given.studies.iter();
        let mut studies: Vec<_> = studies
            .map(|text| hash(PseudonymKind::Study, text))
            .collect();
        studies.sort_unstable();
        studies.dedup();
        Pseudonyms {
            patient: patient.map(|text| hash(PseudonymKind::Patient, text)),
            studies,
        }
    }

    /// The token with which an erasure goes on after `last`; good for this tenant and these jobs only.
    pub(crate) fn erase_token(&self, tenant: &TenantId, wanted: &Wanted, last: &JobId) -> String {
        token_of(last, self.erase_check(tenant, wanted, last))
    }

    /// The job after which an erasure goes on; none if the token was not made here for it.
    pub(crate) fn read_erase_token(
        &self,
        tenant: &TenantId,
        wanted: &Wanted,
        token: &str,
    ) -> Option<JobId> {
        read_token(token, |id| self.erase_check(tenant, wanted, id))
    }

    fn erase_check(
        &self,
        tenant: &TenantId,
        wanted: &Wanted,
        last: &JobId,
    ) -> [u8; PAGE_CHECK_BYTES] {
        let parts: [&[u8]; 5] = [
            tenant.as_str().as_bytes(),
            last.as_str().as_bytes(),
            wanted.kind.as_str().as_bytes(),
            wanted.hash.as_bytes(),
            &[u8::from(wanted.count_only)],
        ];
        first(&self.0.keyed_hash(ERASE_PAGE, &parts))
    }

    /// The token of the page that begins after `last`; good for this tenant and these states only.
    pub(crate) fn page_token(
        &self,
        tenant: &TenantId,
        states: &[JobState],
        last: &JobId,
    ) -> String {
        token_of(last, self.page_check(tenant, states, last))
    }

    /// The job after which the page begins; none if the token was not made here for this list.
    pub(crate) fn read_page_token(
        &self,
        tenant: &TenantId,
        states: &[JobState],
        token: &str,
    ) -> Option<JobId> {
        read_token(token, |id| self.page_check(tenant, states, id))
    }

    fn page_check(
        &self,
        tenant: &TenantId,
        states: &[JobState],
        last: &JobId,
    ) -> [u8; PAGE_CHECK_BYTES] {
        let mut parts = vec![tenant.as_str().as_bytes(), last.as_str().as_bytes()];
        parts.extend(states.iter().map(|state| state.as_str().as_bytes()));
        first(&self.0.keyed_hash(PAGE, &parts))
    }
}

/// A job, and what shows that its token was made here.
fn token_of(job: &JobId, check: [u8; PAGE_CHECK_BYTES]) -> String {
    format!("{job}{}", hex::encode(check))
}

/// The job of such a token; none where `check` makes something else of it.
fn read_token(token: &str, check: impl FnOnce(&JobId) -> [u8; PAGE_CHECK_BYTES]) -> Option<JobId> {
    let (id, shown) = token.split_at_checked(medfleet_core::ID_CHARS)?;
    let id = JobId::new(id).ok()?;
    (hex::encode(check(&id)) == shown).then_some(id)
}

/// Whether a record with this body digest came from the same bytes.
pub(crate) fn is_same_request(body: &Digest, sent: SentHalf) -> bool {
    body.as_bytes()[..HALF] == sent.0
}

/// Whether two body digests mean the same.
pub(crate) fn is_same_meaning(a: &Digest, b: &Digest) -> bool {
    a.as_bytes()[HALF..] == b.as_bytes()[HALF..]
}

/// What the request with this body digest meant, as 32 hexadecimal digits.
pub(crate) fn meaning(body: &Digest) -> String {
    hex::encode(&body.as_bytes()[HALF..])
}

fn first<const N: usize>(digest: &Digest) -> [u8; N] {
    std::array::from_fn(|index| digest.as_bytes()[index])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys() -> Keys {
        Keys::new(FleetKey::new([1; 32]))
    }

    fn tenant(name: &str) -> TenantId {
        TenantId::new(name).expect("a name")
    }

    #[test]
    fn job_ids_depend_on_key_tenant_and_request() {
        let (keys, other) = (keys(), Keys::new(FleetKey::new([2; 32])));
        let id = keys.job_id(&tenant("a"), "bc");
        assert_eq!(id, keys.job_id(&tenant("a"), "bc"));
        assert_ne!(id, keys.job_id(&tenant("ab"), "c"));
        assert_ne!(id, other.job_id(&tenant("a"), "bc"));
    }

    #[test]
    fn bodies_compare_by_bytes_or_by_meaning() {
        let keys = keys();
        let first = keys.body(keys.sent(&tenant("a"), b"upload 1"), &[b"study", b"stat"]);
        assert!(is_same_request(
            &first,
            keys.sent(&tenant("a"), b"upload 1")
        ));
        assert!(!is_same_request(
            &first,
            keys.sent(&tenant("a"), b"upload 2")
        ));
        assert!(is_same_meaning(
            &first,
            &keys.body(keys.sent(&tenant("a"), b"upload 2"), &[b"study", b"stat"])
        ));
        assert!(!is_same_meaning(
            &first,
            &keys.body(keys.sent(&tenant("a"), b"upload 1"), &[b"studys", b"tat"])
        ));
    }

    #[test]
    fn pseudonyms_depend_on_key_tenant_and_kind() {
        let (keys, other) = (keys(), Keys::new(FleetKey::new([2; 32])));
        let patient = |keys: &Keys, name: &str| {
            keys.pseudonym(&tenant(name), PseudonymKind::Patient, "0A1B2C3D4E5F6071")
        };
        assert_eq!(patient(&keys, "a"), patient(&keys, "a"));
        assert_ne!(patient(&keys, "a"), patient(&keys, "b"));
        assert_ne!(patient(&keys, "a"), patient(&other, "a"));
        let given = Given {
            patient: "0A1B2C3D4E5F6071".to_owned(),
            studies: ["b", "a", "b", "0A1B2C3D4E5F6071"]
                .map(str::to_owned)
                .to_vec(),
        };
        let made = keys.pseudonyms(&tenant("a"), &given);
        assert_eq!(made.patient, Some(patient(&keys, "a")));
        assert_eq!(made.studies.len(), 3, "each once");
        assert!(made.studies.is_sorted() && !made.studies.contains(&patient(&keys, "a")));
        let nothing = keys.pseudonyms(&tenant("a"), &Given::default());
        assert_eq!(nothing, Pseudonyms::default());
    }

    #[test]
    fn an_erasure_goes_on_with_its_own_token_only() {
        let keys = keys();
        let wanted = Wanted {
            kind: PseudonymKind::Patient,
            hash: PseudonymHash::new([1; 16]),
            count_only: false,
        };
        let id = JobId::from_bytes([7; 16]);
        let token = keys.erase_token(&tenant("a"), &wanted, &id);
        let read =
            |name: &str, wanted: &Wanted| keys.read_erase_token(&tenant(name), wanted, &token);
        assert_eq!(read("a", &wanted), Some(id.clone()));
        assert_eq!(read("b", &wanted), None);
        let (kind, hash) = (PseudonymKind::Study, PseudonymHash::new([2; 16]));
        assert_eq!(read("a", &Wanted { kind, ..wanted }), None);
        assert_eq!(read("a", &Wanted { hash, ..wanted }), None);
        let count_only = true;
        assert_eq!(
            read(
                "a",
                &Wanted {
                    count_only,
                    ..wanted
                }
            ),
            None
        );
        let page = keys.page_token(&tenant("a"), &[], &id);
        assert_eq!(keys.read_erase_token(&tenant("a"), &wanted, &page), None);
    }

    #[test]
    fn page_tokens_fit_one_list_only() {
        let keys = keys();
        let id = JobId::from_bytes([7; 16]);
        let token = keys.page_token(&tenant("a"), &[JobState::Failed], &id);
        let read = |name: &str, states: &[JobState], token: &str| {
            keys.read_page_token(&tenant(name), states, token)
        };
        assert_eq!(read("a", &[JobState::Failed], &token), Some(id.clone()));
        assert_eq!(read("b", &[JobState::Failed], &token), None);
        assert_eq!(read("a", &[], &token), None);
        assert_eq!(read("a", &[JobState::Failed], id.as_str()), None);
        assert_eq!(read("a", &[], "ä"), None);
    }
}
