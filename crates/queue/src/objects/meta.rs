//! The entry of an object: its JSON as NATS object stores write it.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::{QueueError, Result};

/// What an object is and which chunks it is made of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Meta {
    pub(super) name: String,
    pub(super) bucket: String,
    /// Last token of the chunks' subject.
    #[serde(rename = "nuid")]
    pub(super) id: String,
    #[serde(rename = "size")]
    pub(super) bytes: u64,
    pub(super) chunks: usize,
    /// `SHA-256=` and the digest in base64.
    #[serde(default)]
    pub(super) digest: String,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(super) deleted: bool,
}

impl Meta {
    pub(super) fn digest_of(sha256: &[u8]) -> String {
        format!("SHA-256={}", URL_SAFE.encode(sha256))
    }

    /// Whether these are the bytes that were put.
    pub(super) fn describes(&self, bytes: &[u8]) -> bool {
        bytes.len() as u64 == self.bytes && Self::digest_of(&Sha256::digest(bytes)) == self.digest
    }

    pub(super) fn read(json: &[u8]) -> Result<Self> {
        serde_json::from_slice(json)
            .map_err(|_| QueueError::malformed("an object's entry", "not its JSON"))
    }

    pub(super) fn write(&self) -> Bytes {
        serde_json::to_vec(self)
            .expect("text and numbers are always JSON")
            .into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_of_other_tools_are_read() {
        let json = br#"{"name":"t/frame/a","bucket":"blobs","nuid":"X1","size":3,"mtime":"0001-01-01T00:00:00Z",
            "chunks":1,"digest":"SHA-256=abc","options":{"max_chunk_size":131072}}"#;
        let meta = Meta::read(json).expect("an entry");
        assert_eq!((meta.id.as_str(), meta.bytes, meta.chunks), ("X1", 3, 1));
        assert_eq!(Meta::read(&meta.write()).expect("our own"), meta);
    }
}
