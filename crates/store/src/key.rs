//! The fleet's key, and what is derived from it: per tenant one key for names and one for checksums.
//! Equal contents of two tenants have unrelated names, and a name can't be tried out without the key.

use std::fmt;

use medfleet_core::setting::Secret;
use medfleet_core::{Digest, TenantId};

/// blake3 contexts: one per purpose, and a change of meaning needs a new one.
const BLOB_NAMES: &str = "medfleet 2026 v1 blob names";
const MUTABLE_NAMES: &str = "medfleet 2026 v1 mutable blob names";
const CHECKSUMS: &str = "medfleet 2026 v1 mutable blob checksums";
const OTHER: &str = "medfleet 2026 v1 keyed hash";

/// A text that is not a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the fleet key is 32 bytes, 64 hexadecimal digits")]
pub struct KeyError;

/// 32 secret bytes, the same in all processes of a fleet. Shows nothing of itself.
#[derive(Clone)]
pub struct FleetKey([u8; 32]);

impl fmt::Debug for FleetKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(medfleet_core::setting::HIDDEN)
    }
}

impl FleetKey {
    /// From raw bytes, as random as they come.
    pub const fn new(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// From 64 hexadecimal digits.
    ///
    /// # Errors
    /// [`KeyError`], which does not show the text.
    pub(crate) fn from_secret(secret: &Secret) -> Result<Self, KeyError> {
        let mut bytes = [0; 32];
        hex::decode_to_slice(secret.expose().trim(), &mut bytes).map_err(|_| KeyError)?;
        Ok(Self(bytes))
    }

    /// A keyed hash for other ids, such as a job's from tenant and request id. The purpose keeps uses apart; each part
    /// enters with its length, so that no two lists of parts are the same bytes.
    pub fn keyed_hash(&self, purpose: &str, parts: &[&[u8]]) -> Digest {
        let mut hasher = blake3::Hasher::new_keyed(&self.derive(OTHER, purpose.as_bytes()));
        for part in parts {
            hasher.update(&(part.len() as u64).to_le_bytes());
            hasher.update(part);
        }
        Digest::new(*hasher.finalize().as_bytes())
    }

    pub(crate) fn of_tenant(&self, tenant: &TenantId) -> TenantKey {
        TenantKey {
            fleet: self.clone(),
            tenant: tenant.clone(),
        }
    }

    fn derive(&self, context: &str, of: &[u8]) -> [u8; 32] {
        let mut hasher = blake3::Hasher::new_derive_key(context);
        hasher.update(&self.0);
        hasher.update(of);
        *hasher.finalize().as_bytes()
    }
}

/// The keys of one tenant, each made when it is used: nearly every call of the store needs one, and hardly any another.
pub(crate) struct TenantKey {
    fleet: FleetKey,
    tenant: TenantId,
}

impl TenantKey {
    fn of(&self, context: &str) -> [u8; 32] {
        let tenant = self.tenant.as_str().as_bytes();
        self.fleet.derive(context, tenant)
    }

    /// The name of a content.
    pub(crate) fn of_content(&self, content: &[u8]) -> Digest {
        Digest::new(*blake3::keyed_hash(&self.of(BLOB_NAMES), content).as_bytes())
    }

    /// The name of a blob that changes, from its key.
    pub(crate) fn of_key(&self, key: &[u8]) -> Digest {
        Digest::new(*blake3::keyed_hash(&self.of(MUTABLE_NAMES), key).as_bytes())
    }

    /// The checksum of a blob that changes: over its name too, so that two can't be swapped.
    pub(crate) fn checksum(&self, name: &Digest, content: &[u8]) -> blake3::Hash {
        let mut hasher = blake3::Hasher::new_keyed(&self.of(CHECKSUMS));
        hasher.update(name.as_bytes());
        hasher.update(content);
        hasher.finalize()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tenant(name: &str) -> TenantId {
        TenantId::new(name).expect("a good name")
    }

    #[test]
    fn names_differ_by_tenant_key_and_use() {
        let key = FleetKey::new([1; 32]);
        let (a, b) = (key.of_tenant(&tenant("a")), key.of_tenant(&tenant("b")));
        assert_eq!(
            a.of_content(b"x"),
            key.of_tenant(&tenant("a")).of_content(b"x")
        );
        assert_ne!(a.of_content(b"x"), b.of_content(b"x"));
        assert_ne!(a.of_content(b"x"), a.of_key(b"x"));
        assert_ne!(
            a.of_content(b"x"),
            FleetKey::new([2; 32])
                .of_tenant(&tenant("a"))
                .of_content(b"x")
        );
    }

    #[test]
    fn parts_do_not_run_together() {
        let key = FleetKey::new([1; 32]);
        let hash = |parts: &[&[u8]]| key.keyed_hash("job", parts);
        assert_ne!(hash(&[b"ab", b"c"]), hash(&[b"a", b"bc"]));
        assert_ne!(hash(&[b"a"]), key.keyed_hash("upload", &[b"a"]));
    }

    #[test]
    fn keys_are_hexadecimal_and_hidden() {
        let good = Secret::new(format!("{}\n", "0f".repeat(32)));
        let key = FleetKey::from_secret(&good).expect("64 digits");
        assert_eq!(format!("{key:?}"), "[hidden]");
        assert_eq!(
            FleetKey::from_secret(&Secret::new("0f")).err(),
            Some(KeyError)
        );
        assert!(FleetKey::from_secret(&Secret::new("x".repeat(64))).is_err());
    }
}
