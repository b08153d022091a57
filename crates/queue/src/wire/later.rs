//! Fields of a stored record that a later release has written and this one does not know. While both run, a process of this
//! one may change such a record: it keeps those fields as they are, because the generated types would drop them.
//! Bytes that follow a message's own are merged into it by whoever reads it, field by field, so they are put at the end.

use std::ops::RangeInclusive;

/// The fields of `JobRecord` that this release knows.
const RECORD: &[RangeInclusive<u32>] = &[1..=22, 28..=31];
/// The field that holds a `Cost`, and the fields of that.
const COST: (u32, &[RangeInclusive<u32>]) = (21, &[1..=5]);
/// The field that holds a `Forwarded`, and the fields of that.
const FORWARDED: (u32, &[RangeInclusive<u32>]) = (31, &[1..=4]);
/// The fields of `UploadRecord`.
const UPLOAD: &[RangeInclusive<u32>] = &[1..=5];
/// The wire type of what has a length, such as a message.
const LENGTH: u32 = 2;

/// What is to be kept, as encoded fields.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Later {
    of_record: Vec<u8>,
    of_cost: Vec<u8>,
    of_forwarded: Vec<u8>,
}

/// One field as it is encoded.
struct Field<'a> {
    number: u32,
    whole: &'a [u8],
    content: &'a [u8],
}

impl Later {
    /// The unknown fields of an encoded record; none when the bytes are not fields.
    pub(crate) fn of(record: &[u8]) -> Option<Self> {
        let mut later = Self::default();
        let mut rest = record;
        while !rest.is_empty() {
            let (field, after) = first(rest)?;
            rest = after;
            if field.number == COST.0 {
                add_unknown(&mut later.of_cost, field.content, COST.1)?;
            } else if field.number == FORWARDED.0 {
                add_unknown(&mut later.of_forwarded, field.content, FORWARDED.1)?;
            } else if !is_known(field.number, RECORD) {
                later.of_record.extend_from_slice(field.whole);
            }
        }
        Some(later)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.of_record.is_empty() && self.of_cost.is_empty() && self.of_forwarded.is_empty()
    }

    /// Puts them behind an encoded record. `is_forwarded`: whether that has a `Forwarded`, of which they can be a part.
    pub(crate) fn append_to(&self, record: &mut Vec<u8>, is_forwarded: bool) {
        record.extend_from_slice(&self.of_record);
        append_message(record, COST.0, &self.of_cost);
        if is_forwarded {
            append_message(record, FORWARDED.0, &self.of_forwarded);
        }
    }
}

/// The unknown fields of the encoded record of an upload; none when the bytes are not fields.
pub(crate) fn of_upload(record: &[u8]) -> Option<Vec<u8>> {
    let mut later = Vec::new();
    add_unknown(&mut later, record, UPLOAD)?;
    Some(later)
}

/// Adds the fields of a message that are not among the known.
fn add_unknown(to: &mut Vec<u8>, message: &[u8], known: &[RangeInclusive<u32>]) -> Option<()> {
    let mut rest = message;
    while !rest.is_empty() {
        let (field, after) = first(rest)?;
        rest = after;
        if !is_known(field.number, known) {
            to.extend_from_slice(field.whole);
        }
    }
    Some(())
}

fn is_known(number: u32, known: &[RangeInclusive<u32>]) -> bool {
    known.iter().any(|range| range.contains(&number))
}

/// Appends a field that holds a message, unless that is empty.
fn append_message(to: &mut Vec<u8>, number: u32, message: &[u8]) {
    if !message.is_empty() {
        put_varint(to, u64::from((number << 3) | LENGTH));
        put_varint(to, message.len() as u64);
        to.extend_from_slice(message);
    }
}

/// The first field, and the bytes after it; none when there is no whole one.
fn first(bytes: &[u8]) -> Option<(Field<'_>, &[u8])> {
    let (key, rest) = varint(bytes)?;
    let (content, rest) = match key & 7 {
        0 => {
            let (_, after) = varint(rest)?;
            rest.split_at(rest.len() - after.len())
        }
        1 => rest.split_at_checked(8)?,
        2 => {
            let (length, rest) = varint(rest)?;
            rest.split_at_checked(usize::try_from(length).ok()?)?
        }
        5 => rest.split_at_checked(4)?,
        // Groups: no release has any.
        _ => return None,
    };
    let field = Field {
        number: u32::try_from(key >> 3).ok()?,
        whole: &bytes[..bytes.len() - rest.len()],
        content,
    };
    Some((field, rest))
}

fn varint(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let mut value = 0;
    for (index, byte) in bytes.iter().enumerate().take(10) {
        value |= u64::from(byte & 0x7f) << (7 * index);
        if byte & 0x80 == 0 {
            return Some((value, &bytes[index + 1..]));
        }
    }
    None
}

fn put_varint(to: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        to.push((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    to.push(value as u8);
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use medfleet_proto::FILE_DESCRIPTOR_SET;

    use super::*;

    /// The contents of every field of this number.
    fn contents(message: &[u8], number: u32) -> Vec<&[u8]> {
        let (mut found, mut rest) = (Vec::new(), message);
        while !rest.is_empty() {
            let (field, after) = first(rest).expect("whole fields");
            rest = after;
            if field.number == number {
                found.push(field.content);
            }
        }
        found
    }

    /// The fields of an internal message, by the description that the generated types were made of: their numbers, and whether
    /// they hold a message.
    fn declared(message: &str) -> BTreeMap<u32, bool> {
        /// descriptor.proto's number of a field that holds a message.
        const MESSAGE: u32 = 11;
        let files = contents(FILE_DESCRIPTOR_SET, 1).into_iter();
        let ours = files.filter(|file| contents(file, 2) == [b"medfleet.work.v1"]);
        let messages = ours.flat_map(|file| contents(file, 4));
        let wanted = messages.filter(|found| contents(found, 1) == [message.as_bytes()]);
        let fields = wanted.flat_map(|found| contents(found, 2));
        let number = |field: &[u8], of: u32| {
            let (number, _) = varint(contents(field, of)[0]).expect("a number");
            u32::try_from(number).expect("a small number")
        };
        fields
            .map(|field| (number(field, 3), number(field, 5) == MESSAGE))
            .collect()
    }

    #[test]
    fn what_is_known_is_what_is_declared() {
        for (message, known) in [
            ("JobRecord", RECORD),
            ("Cost", COST.1),
            ("Forwarded", FORWARDED.1),
            ("UploadRecord", UPLOAD),
        ] {
            let known: BTreeSet<u32> = known.iter().cloned().flatten().collect();
            assert!(!known.is_empty());
            let declared = declared(message);
            let numbers: BTreeSet<u32> = declared.keys().copied().collect();
            assert_eq!(known, numbers, "{message}: change the list above");
            // A message in a record has fields of its own to be kept.
            let inner = declared.iter().filter(|(_, is_message)| **is_message);
            let inner: Vec<u32> = inner.map(|(number, _)| *number).collect();
            let kept = if message == "JobRecord" {
                vec![COST.0, FORWARDED.0]
            } else {
                Vec::new()
            };
            assert_eq!(inner, kept, "{message}: keep what is in it too");
        }
    }

    #[test]
    fn unknown_fields_are_kept_and_known_ones_are_not() {
        // Field 1, a number; field 1000 of every kind; a cost with its own field 6 between known ones.
        let known = [0x08, 0x05];
        let numbers = [0xc0, 0x3e, 0x87, 0x01];
        let text = [0xc2, 0x3e, 0x02, b'h', b'i'];
        let fixed = [0xc5, 0x3e, 1, 2, 3, 4];
        let long = [0xc1, 0x3e, 1, 2, 3, 4, 5, 6, 7, 8];
        let cost = [0xaa, 0x01, 6, 0x08, 0x01, 0x30, 0x02, 0x10, 0x03];
        let record = [&known[..], &numbers, &text, &cost, &fixed, &long].concat();
        let later = Later::of(&record).expect("whole fields");
        assert!(!later.is_empty());
        let mut changed = vec![0x08, 0x06];
        later.append_to(&mut changed, false);
        let kept = [0xaa, 0x01, 2, 0x30, 0x02];
        let expected = [&[0x08, 0x06][..], &numbers, &text, &fixed, &long, &kept].concat();
        assert_eq!(changed, expected);
        assert!(Later::of(&known).expect("whole fields").is_empty());
    }

    #[test]
    fn what_was_part_of_a_message_that_is_gone_goes_with_it() {
        let forwarded = [0xfa, 0x01, 5, 0x0a, 0x01, b'x', 0x28, 0x01];
        let later = Later::of(&forwarded).expect("whole fields");
        let append = |is_forwarded| {
            let mut record = Vec::new();
            later.append_to(&mut record, is_forwarded);
            record
        };
        assert_eq!(append(true), [0xfa, 0x01, 2, 0x28, 0x01]);
        assert!(append(false).is_empty());
    }

    #[test]
    fn half_a_field_is_none() {
        for bytes in [&[0x08][..], &[0x80], &[0x0a, 5, 1], &[0x0d, 1, 2], &[0x0b]] {
            assert_eq!(Later::of(bytes), None, "{bytes:?}");
        }
    }
}
