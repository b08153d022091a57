//! Types for settings that a bare number or a bare text would leave unclear: how long, how many bytes, and what nobody may see.
//! They read and write the same text in every configuration file, variable, flag and generated reference page.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::Visitor;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// What a [`Secret`] shows in place of itself.
pub const HIDDEN: &str = "[hidden]";

/// A text that is not a duration or a size.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} is a whole number with one of the units {units}, such as {example}")]
pub struct SettingError {
    /// What was expected.
    pub what: &'static str,
    /// The units that exist.
    pub units: &'static str,
    /// One good text.
    pub example: &'static str,
}

/// Units of time with their length in milliseconds, longest first.
const TIME_UNITS: [(&str, u64); 5] = [
    ("d", 86_400_000),
    ("h", 3_600_000),
    ("m", 60_000),
    ("s", 1_000),
    ("ms", 1),
];
/// Units of size with their length in bytes, largest first.
const SIZE_UNITS: [(&str, u64); 5] = [
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("B", 1),
];

/// A length of time as text: `200ms`, `30s`, `5m`, `12h`, `30d`. Whole milliseconds.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DurationText(u64);

impl DurationText {
    pub const fn from_millis(millis: u64) -> Self {
        Self(millis)
    }

    pub const fn from_secs(seconds: u64) -> Self {
        Self(seconds.saturating_mul(1_000))
    }

    pub const fn as_millis(self) -> u64 {
        self.0
    }

    /// As the standard library's type.
    pub const fn get(self) -> Duration {
        Duration::from_millis(self.0)
    }
}

impl From<DurationText> for Duration {
    fn from(value: DurationText) -> Self {
        value.get()
    }
}

/// A number of bytes as text: `512MiB`, `64KiB`, `100B`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ByteSize(u64);

impl ByteSize {
    pub const fn from_bytes(bytes: u64) -> Self {
        Self(bytes)
    }

    /// From units of 1024 × 1024 bytes.
    pub const fn from_mib(mib: u64) -> Self {
        Self(mib.saturating_mul(1 << 20))
    }

    /// In bytes.
    pub const fn get(self) -> u64 {
        self.0
    }

    /// In bytes, for lengths in memory; the largest `usize` where it would not fit.
    pub fn as_usize(self) -> usize {
        usize::try_from(self.0).unwrap_or(usize::MAX)
    }

    /// About so many, for people: `512 B`, `2.9 MiB`.
    pub fn rounded(self) -> String {
        const UNITS: [&str; 4] = ["KiB", "MiB", "GiB", "TiB"];
        if self.0 < 1024 {
            return format!("{} B", self.0);
        }
        let mut value = self.0 as f64 / 1024.0;
        let mut unit = 0;
        while value >= 1024.0 && unit + 1 < UNITS.len() {
            value /= 1024.0;
            unit += 1;
        }
        format!("{value:.1} {}", UNITS[unit])
    }
}

/// Splits `512MiB` into number and unit and multiplies.
fn parse(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let digits = text.find(|c: char| !c.is_ascii_digit())?;
    let (number, unit) = text.split_at(digits);
    let (_, factor) = units.iter().find(|(name, _)| *name == unit.trim_start())?;
    number.parse::<u64>().ok()?.checked_mul(*factor)
}

/// The largest unit that divides the number.
fn write_unit(f: &mut fmt::Formatter<'_>, number: u64, units: &[(&str, u64)]) -> fmt::Result {
    let unit = units
        .iter()
        .find(|(_, factor)| number > 0 && number.is_multiple_of(*factor));
    // Zero is shown in the smallest unit.
    match unit.or(units.last()) {
        Some((name, factor)) => write!(f, "{}{name}", number / factor),
        None => write!(f, "{number}"),
    }
}

macro_rules! text_setting {
    ($name:ident, $units:ident, $what:literal, $unit_names:literal, $example:literal, $pattern:literal) => {
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write_unit(f, self.0, &$units)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl FromStr for $name {
            type Err = SettingError;
            fn from_str(text: &str) -> Result<Self, SettingError> {
                parse(text, &$units).map(Self).ok_or(SettingError {
                    what: $what,
                    units: $unit_names,
                    example: $example,
                })
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                struct Text;
                impl Visitor<'_> for Text {
                    type Value = $name;

                    // What a number without its unit is told.
                    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                        f.write_str(concat!($what, " such as ", $example))
                    }

                    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<$name, E> {
                        text.parse().map_err(E::custom)
                    }
                }
                deserializer.deserialize_str(Text)
            }
        }

        impl JsonSchema for $name {
            fn schema_name() -> Cow<'static, str> {
                stringify!($name).into()
            }

            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!({ "type": "string", "pattern": $pattern, "examples": [$example] })
            }
        }
    };
}

text_setting!(
    DurationText,
    TIME_UNITS,
    "a duration",
    "ms, s, m, h, d",
    "30s",
    "^[0-9]+ ?(ms|s|m|h|d)$"
);
text_setting!(
    ByteSize,
    SIZE_UNITS,
    "a size",
    "B, KiB, MiB, GiB, TiB",
    "512MiB",
    "^[0-9]+ ?(B|KiB|MiB|GiB|TiB)$"
);

/// What the schema says of a table's whole numbers that have limits: an attribute of the field would speak of the table.
#[derive(Debug, Clone, Copy)]
pub struct Within<const LEAST: u64, const MOST: u64>;

impl<const LEAST: u64, const MOST: u64> JsonSchema for Within<LEAST, MOST> {
    fn schema_name() -> Cow<'static, str> {
        format!("Within_{LEAST}_to_{MOST}").into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "integer", "minimum": LEAST, "maximum": MOST })
    }
}

/// A text that is never shown: not in logs, not in errors, not in printed configuration.
/// In a configuration it is the text itself or `{ file = "…" }`, whose contents the loader puts in its place.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Secret(String);

impl Secret {
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text itself, for the one call that needs it.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// Whether there is no text.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(HIDDEN)
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(HIDDEN)
    }
}

impl Serialize for Secret {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(HIDDEN)
    }
}

impl<'de> Deserialize<'de> for Secret {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(SecretVisitor)
    }
}

/// Takes text only. Every other scalar is refused here, because the standard refusal would print the value.
struct SecretVisitor;

const SECRET_IS_TEXT: &str = "a secret is a quoted text or { file = \"…\" }";

/// Methods of [`SecretVisitor`] that refuse a value of their type.
macro_rules! refuse {
    ($($visit:ident($value:ty)),+ $(,)?) => {$(
        fn $visit<E: serde::de::Error>(self, _: $value) -> Result<Secret, E> {
            Err(E::custom(SECRET_IS_TEXT))
        }
    )+};
}

impl Visitor<'_> for SecretVisitor {
    type Value = Secret;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(SECRET_IS_TEXT)
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Secret, E> {
        Ok(Secret::new(text))
    }

    refuse! {
        visit_bool(bool),
        visit_i64(i64),
        visit_u64(u64),
        visit_i128(i128),
        visit_u128(u128),
        visit_f64(f64),
        visit_bytes(&[u8]),
    }
}

impl JsonSchema for Secret {
    fn schema_name() -> Cow<'static, str> {
        "Secret".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "oneOf": [
                { "type": "string" },
                {
                    "type": "object",
                    "properties": { "file": { "type": "string" } },
                    "required": ["file"],
                    "additionalProperties": false,
                },
            ],
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_and_write() {
        let check = |text: &str, millis: Option<u64>, shown: &str| {
            let parsed = text.parse::<DurationText>().ok();
            assert_eq!(parsed.map(DurationText::as_millis), millis, "{text:?}");
            assert_eq!(
                parsed.map(|d| d.to_string()).unwrap_or_default(),
                shown,
                "{text:?}"
            );
        };
        check("200ms", Some(200), "200ms");
        check("30s", Some(30_000), "30s");
        check("90 s", Some(90_000), "90s");
        check("120s", Some(120_000), "2m");
        check("24h", Some(86_400_000), "1d");
        check("0s", Some(0), "0ms");
        check("30", None, "");
        check("s", None, "");
        check("-1s", None, "");
        check("1.5s", None, "");
        check("999999999999999999999d", None, "");
        check("18446744073709551615d", None, "");
    }

    #[test]
    fn sizes_are_rounded_for_people() {
        let check = |bytes, expected: &str| {
            assert_eq!(ByteSize::from_bytes(bytes).rounded(), expected);
        };
        check(512, "512 B");
        check(1536, "1.5 KiB");
        check(3 << 19, "1.5 MiB");
        check(1 << 50, "1024.0 TiB");
    }

    #[test]
    fn sizes_read_and_write() {
        let check = |text: &str, bytes: Option<u64>, shown: &str| {
            let parsed = text.parse::<ByteSize>().ok();
            assert_eq!(parsed.map(ByteSize::get), bytes, "{text:?}");
            assert_eq!(
                parsed.map(|s| s.to_string()).unwrap_or_default(),
                shown,
                "{text:?}"
            );
        };
        check("512MiB", Some(512 << 20), "512MiB");
        check("1024KiB", Some(1 << 20), "1MiB");
        check("7B", Some(7), "7B");
        check("0B", Some(0), "0B");
        check("1MB", None, "");
        check("1mib", None, "");
        check("", None, "");
    }

    #[test]
    fn a_secret_shows_nothing() {
        let secret = Secret::new("tell nobody");
        assert_eq!(format!("{secret} {secret:?}"), "[hidden] [hidden]");
        assert_eq!(secret.expose(), "tell nobody");
    }
}
