//! Names of things: one newtype each, so that a tenant is never passed where a pool is meant.
//! All of them are safe as tokens of a NATS subject and as path segments.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Longest tenant or pool name, in bytes.
pub const NAME_BYTES_MAX: usize = 32;
/// Length of a job or upload id: 128 bits in lowercase hexadecimal.
pub const ID_CHARS: usize = 32;

/// A name or id that does not have its form.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdError {
    #[error("{what} must be 1 to {NAME_BYTES_MAX} characters of a-z, 0-9 and '-'")]
    Name { what: &'static str },
    #[error("{what} must be {ID_CHARS} lowercase hexadecimal digits")]
    Id { what: &'static str },
}

macro_rules! name_type {
    ($(#[$doc:meta])* $name:ident, $what:literal, $check:ident, $error:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(String);

        impl $name {
            /// Checks the form.
            ///
            /// # Errors
            /// [`IdError`] names the kind and the allowed form, never the value.
            pub fn new(text: impl Into<String>) -> Result<Self, IdError> {
                let text = text.into();
                if $check(&text) { Ok(Self(text)) } else { Err(IdError::$error { what: $what }) }
            }

            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl FromStr for $name {
            type Err = IdError;
            fn from_str(text: &str) -> Result<Self, IdError> {
                Self::new(text)
            }
        }
    };
}

fn is_name(text: &str) -> bool {
    (1..=NAME_BYTES_MAX).contains(&text.len())
        && text
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
}

fn is_id(text: &str) -> bool {
    text.len() == ID_CHARS
        && text
            .bytes()
            .all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

name_type!(
    /// A tenant: a hospital or a department, never a patient.
    TenantId, "tenant", is_name, Name
);
name_type!(
    /// A pool of workers: model alias plus site, so that work reaches only nodes that can do it.
    PoolName, "pool", is_name, Name
);
name_type!(
    /// A job: a keyed hash of (tenant, request id), or random. Its first two characters are its shard.
    JobId, "job id", is_id, Id
);
name_type!(
    /// An upload under way: random.
    UploadId, "upload id", is_id, Id
);

macro_rules! setting {
    ($name:ident) => {
        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(self.as_str())
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                Self::new(String::deserialize(deserializer)?).map_err(D::Error::custom)
            }
        }

        impl JsonSchema for $name {
            fn schema_name() -> Cow<'static, str> {
                stringify!($name).into()
            }

            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                let pattern = format!("^[a-z0-9-]{{1,{NAME_BYTES_MAX}}}$");
                json_schema!({ "type": "string", "pattern": pattern })
            }
        }
    };
}

setting!(TenantId);
setting!(PoolName);

impl JobId {
    /// From 128 bits of keyed hash or randomness.
    pub fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(hex16(bytes))
    }

    /// Which of `shards` shards it is in: its first two characters as a number, modulo `shards`. Ids are hashed or random, so
    /// shards get about the same share; where 256 is no multiple of `shards`, some get slightly more.
    pub fn shard(&self, shards: usize) -> usize {
        let first = self.0.get(..2);
        // An id is hexadecimal.
        let first = first.and_then(|two| usize::from_str_radix(two, 16).ok());
        first.unwrap_or_default() % shards.max(1)
    }

    /// Its first half as a number.
    pub(crate) fn number(&self) -> u64 {
        let half = self.0.get(..ID_CHARS / 2);
        // An id is hexadecimal.
        let half = half.and_then(|half| u64::from_str_radix(half, 16).ok());
        half.unwrap_or_default()
    }
}

impl UploadId {
    pub fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(hex16(bytes))
    }
}

fn hex16(bytes: [u8; 16]) -> String {
    use fmt::Write;
    bytes
        .iter()
        .fold(String::with_capacity(ID_CHARS), |mut text, byte| {
            write!(text, "{byte:02x}").expect("writing to a String cannot fail");
            text
        })
}

/// A job of a tenant: the key of its record.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct JobKey {
    /// Whose job.
    pub tenant: TenantId,
    pub job: JobId,
}

impl JobKey {
    /// Of a tenant and its job.
    pub const fn new(tenant: TenantId, job: JobId) -> Self {
        Self { tenant, job }
    }
}

impl fmt::Display for JobKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.tenant, self.job)
    }
}

#[cfg(test)]
mod tests {
    use serde::de::IntoDeserializer;
    use serde::de::value::{Error as ValueError, StrDeserializer};

    use super::*;

    #[test]
    fn names_are_subject_tokens() {
        let check =
            |text: &str, good: bool| assert_eq!(TenantId::new(text).is_ok(), good, "{text:?}");
        check("st-mary", true);
        check("a", true);
        check("", false);
        check("St-Mary", false);
        check("a.b", false);
        check("a>b", false);
        check("*", false);
        check(&"a".repeat(32), true);
        check(&"a".repeat(33), false);
    }

    #[test]
    fn a_setting_is_a_name_or_refused() {
        let read = |text: &'static str| {
            let text: StrDeserializer<'_, ValueError> = text.into_deserializer();
            PoolName::deserialize(text).map_err(|error| error.to_string())
        };
        assert_eq!(read("main"), Ok(PoolName("main".to_owned())));
        let form = "pool must be 1 to 32 characters of a-z, 0-9 and '-'";
        assert_eq!(read("Main"), Err(form.to_owned()));
    }

    #[test]
    fn job_ids_are_lowercase_hex() {
        let id = JobId::from_bytes([0xab; 16]);
        assert_eq!(id.as_str(), "ab".repeat(16));
        assert!(JobId::new("AB".repeat(16)).is_err());
        assert!(JobId::new("ab").is_err());
    }

    #[test]
    fn a_shard_is_told_by_the_first_two_characters() {
        let check = |first: u8, shards: usize, expected: usize| {
            let mut bytes = [0xff; 16];
            bytes[0] = first;
            let shard = JobId::from_bytes(bytes).shard(shards);
            assert_eq!(shard, expected, "{first:#x} of {shards}");
        };
        for first in 0..=u8::MAX {
            check(first, 1, 0);
            check(first, 8, usize::from(first % 8));
            check(first, 32, usize::from(first % 32));
        }
        check(0xff, 3, 0);
        check(0xfe, 3, 2);
    }

    #[test]
    fn eight_shards_of_many_ids_are_alike() {
        const IDS: u64 = 80_000;
        let mut counts = [0_u32; 8];
        for number in 0..IDS {
            // The steps of splitmix64, in place of the hash that makes ids.
            let mut hash = number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
            hash = (hash ^ (hash >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            hash = (hash ^ (hash >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            hash ^= hash >> 31;
            let id = (u128::from(hash) << 64) | u128::from(number);
            counts[JobId::from_bytes(id.to_be_bytes()).shard(8)] += 1;
        }
        // An eighth of them, give or take four parts of a hundred: about four times as much as chance does.
        for count in counts {
            assert!((9_600..=10_400).contains(&count), "{counts:?}");
        }
    }
}
