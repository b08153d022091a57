//! What stands in the place of an identifier: pseudonyms, UIDs and dates, all by a keyed hash, so that the same value has the
//! same replacement everywhere and nobody without the key can try values out.

use std::fmt;

use crate::calendar::{civil, days};

const KEY_BYTES: usize = 32;
/// Dates move back by 1 to this many days: about ten years.
const SHIFT_DAYS_MAX: u64 = 3652;
/// Digits of a pseudonym, hexadecimal: 64 bits.
const PSEUDONYM_DIGITS: usize = 16;
/// UIDs that are the standard's own words and name nobody.
const STANDARD_ROOT: &str = "1.2.840.10008.";
/// Digits of each of their numbers behind that (PS3.6 A). Who numbers instances under this root all the same writes longer ones.
const STANDARD_DIGITS_MAX: usize = 4;
const UID_BYTES_MAX: usize = 64;

/// The secret of a tenant that maps identifiers. Shows nothing.
#[derive(Clone)]
pub struct DeidentificationKey([u8; KEY_BYTES]);

/// Why a key is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    #[error("the key is not 64 hexadecimal digits; `openssl rand -hex 32` makes one")]
    Form,
}

impl fmt::Debug for DeidentificationKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("DeidentificationKey(hidden)")
    }
}

impl DeidentificationKey {
    /// From 32 bytes that nobody can guess.
    pub fn new(key: [u8; KEY_BYTES]) -> Self {
        Self(key)
    }

    /// From 64 hexadecimal digits; white space around them is left out.
    pub fn parse(text: &str) -> Result<Self, KeyError> {
        let mut key = [0; KEY_BYTES];
        hex::decode_to_slice(text.trim(), &mut key).map_err(|_| KeyError::Form)?;
        Ok(Self(key))
    }

    /// Of a value within a domain.
    fn hash(&self, domain: &str, value: &[u8]) -> [u8; 32] {
        let mut hasher = blake3::Hasher::new_keyed(&self.0);
        hasher.update(domain.as_bytes());
        hasher.update(&[0]);
        hasher.update(value);
        *hasher.finalize().as_bytes()
    }

    /// The UID that stands for another: 2.25 and 128 bits (PS3.5 B.2). The standard's own stay.
    pub(super) fn uid(&self, uid: &str) -> String {
        let uid = uid.trim_matches(|c: char| c == '\0' || c.is_whitespace());
        let is_word = |word: &str| {
            word.len() <= STANDARD_DIGITS_MAX && word.bytes().all(|byte| byte.is_ascii_digit())
        };
        let standard = uid.len() <= UID_BYTES_MAX
            && uid
                .strip_prefix(STANDARD_ROOT)
                .is_some_and(|words| words.split('.').all(is_word));
        if uid.is_empty() || standard {
            return uid.to_owned();
        }
        let hash = self.hash("uid", uid.as_bytes());
        let (half, _) = hash.split_at(16);
        let number = half
            .iter()
            .fold(0_u128, |number, byte| number << 8 | u128::from(*byte));
        format!("2.25.{number}")
    }
}

/// The replacements of one patient.
#[derive(Debug)]
pub(super) struct Pseudonyms {
    pub(super) key: DeidentificationKey,
    pub(super) patient: String,
    shift_days: i64,
}

impl Pseudonyms {
    pub(super) fn new(key: &DeidentificationKey, patient: &[u8]) -> Self {
        let name = hex::encode_upper(key.hash("patient", patient));
        let shift = key.hash("dates", patient);
        let shift = shift
            .iter()
            .take(8)
            .fold(0_u64, |number, byte| number << 8 | u64::from(*byte));
        Self {
            key: key.clone(),
            patient: name[..PSEUDONYM_DIGITS].to_owned(),
            // At most SHIFT_DAYS_MAX.
            shift_days: 1 + (shift % SHIFT_DAYS_MAX) as i64,
        }
    }

    /// A value of VR DA or DT moved back, time and zone left as they are; `None` where there is no whole date in it.
    pub(super) fn shifted(&self, value: &str) -> Option<String> {
        let value = value.trim_matches(|c: char| c == '\0' || c.is_whitespace());
        // ACR-NEMA wrote points between the parts (PS3.5 6.2).
        let dotted: String;
        let value = match value.as_bytes() {
            [_, _, _, _, b'.', _, _, b'.', _, _] => {
                dotted = value.replace('.', "");
                &dotted
            }
            _ => value,
        };
        let (date, rest) = value.split_at_checked(8)?;
        let rest_is_time = rest
            .bytes()
            .all(|b| b.is_ascii_digit() || matches!(b, b'.' | b'+' | b'-'));
        if !date.bytes().all(|byte| byte.is_ascii_digit()) || !rest_is_time {
            return None;
        }
        let number: i64 = date.parse().ok()?;
        let (year, month, day) = (number / 10_000, number / 100 % 100, number % 100);
        if !(1..=12).contains(&month) || !(1..=31).contains(&day) || year < 1800 {
            return None;
        }
        let (year, month, day) = civil(days(year, month, day) - self.shift_days);
        Some(format!("{year:04}{month:02}{day:02}{rest}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> DeidentificationKey {
        DeidentificationKey::new([7; 32])
    }

    #[test]
    fn dates_move_together_and_keep_their_times() {
        let of = Pseudonyms::new(&key(), b"4711");
        let back = |value: &str| of.shifted(value).unwrap();
        let gap = |a: &str, b: &str| {
            let day = |text: &str| {
                let number: i64 = text[..8].parse().unwrap();
                days(number / 10_000, number / 100 % 100, number % 100)
            };
            day(a) - day(b)
        };
        assert_eq!(gap(&back("20240301"), &back("20240228")), 2);
        assert_ne!(back("20240301"), "20240301");
        assert!(back("20240301123000.5+0100").ends_with("123000.5+0100"));
        assert_eq!(back("2024.03.01"), back("20240301"));
        for value in ["", "2024", "202403", "Jane Doe", "20241301", "20240301 Doe"] {
            assert_eq!(of.shifted(value), None, "{value}");
        }
        assert_ne!(Pseudonyms::new(&key(), b"4712").shift_days, of.shift_days);
    }

    #[test]
    fn uids_are_mapped_with_the_key_and_stay_uids() {
        let mapped = key().uid("1.2.3.4\0");
        assert_eq!(mapped, key().uid("1.2.3.4"));
        assert_ne!(mapped, DeidentificationKey::new([8; 32]).uid("1.2.3.4"));
        assert!(mapped.len() <= 64 && mapped.starts_with("2.25."));
        assert_eq!(key().uid("1.2.840.10008.1.2.1"), "1.2.840.10008.1.2.1");
        assert_eq!(
            key().uid("1.2.840.10008.6.1.1339"),
            "1.2.840.10008.6.1.1339"
        );
        for named in ["1.2.840.10008.Doe", "1.2.840.10008.1.4711123.20240301"] {
            assert!(key().uid(named).starts_with("2.25."), "{named}");
        }
    }

    #[test]
    fn keys_have_one_form_and_show_nothing() {
        assert!(DeidentificationKey::parse(&format!(" {}\n", "0f".repeat(32))).is_ok());
        assert_eq!(
            DeidentificationKey::parse("abc").unwrap_err(),
            KeyError::Form
        );
        assert!(!format!("{:?}", key()).contains('7'));
    }
}
