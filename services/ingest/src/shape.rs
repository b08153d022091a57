//! What a submit is made of, looked at while it comes and before it is decoded: an input of two bytes takes seventy in memory, and
//! a request of 4 MiB has room for two million of them. Who sends more than any job has is refused before they are made.
//!
//! Messages are read as Protocol Buffers and gRPC write them, and of the fields only the outermost are told apart. Of what is no
//! such message nothing is said here: the decoder refuses it where this reader gives up.

use medfleet_core::setting::ByteSize;

use crate::error::Refusal;

/// Most inputs of a request, whatever a fleet takes.
pub(crate) const INPUTS_MAX: u32 = 1 << 16;
/// Most bytes of a request besides its inputs: its texts, labels and settings.
pub(crate) const OTHER_BYTES_MAX: u64 = 1 << 20;
/// What is before each message: a flag, and its length in four bytes.
const PREFIX_BYTES: u8 = 5;
/// The field `inputs` of the request, 3, as its key is written: with a length.
const INPUTS_KEY: u64 = 3 << 3 | LENGTH;
/// How values are written: as a number, in 8 bytes, with a length, between two keys, in 4 bytes.
const NUMBER: u64 = 0;
const EIGHT: u64 = 1;
const LENGTH: u64 = 2;
const BEGIN: u64 = 3;
const END: u64 = 4;
const FOUR: u64 = 5;

/// What came so far of a request.
#[derive(Debug, Default)]
pub(crate) struct Shape {
    /// Of the prefix that is under way: its bytes, and how many they are.
    prefix: u64,
    prefix_bytes: u8,
    /// Bytes of the message that are still to come.
    left: u64,
    at: At,
    inputs: u32,
    other_bytes: u64,
}

/// Where in a message the next byte is.
#[derive(Debug, Clone, Copy)]
enum At {
    Key(Number),
    Number(Number),
    Length(Number, Owner),
    Value(u64, Owner),
    /// In no message.
    Nowhere,
}

/// Whose a value is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Owner {
    Input,
    Other,
}

/// A number of which some bytes have come, seven bits each.
#[derive(Debug, Clone, Copy, Default)]
struct Number {
    value: u64,
    bits: u32,
}

impl Default for At {
    fn default() -> Self {
        Self::Key(Number::default())
    }
}

impl Shape {
    /// Takes the next bytes of a request.
    ///
    /// # Errors
    /// More inputs, or more besides them, than a request has.
    pub(crate) fn take(&mut self, mut bytes: &[u8]) -> Result<(), Refusal> {
        while let [first, behind @ ..] = bytes {
            if self.left == 0 {
                self.take_prefix(*first);
                bytes = behind;
                continue;
            }
            let (piece, behind) = bytes.split_at(at_most(bytes.len(), self.left));
            self.left -= piece.len() as u64;
            self.read(piece);
            bytes = behind;
        }
        if self.inputs > INPUTS_MAX {
            return Err(Refusal::invalid("inputs", format!("at most {INPUTS_MAX}")));
        }
        if self.other_bytes > OTHER_BYTES_MAX {
            return Err(Refusal::TooLarge {
                what: "what a request has besides its inputs",
                allowed: ByteSize::from_bytes(OTHER_BYTES_MAX).to_string(),
            });
        }
        Ok(())
    }

    fn take_prefix(&mut self, byte: u8) {
        self.prefix = self.prefix << 8 | u64::from(byte);
        self.prefix_bytes += 1;
        if self.prefix_bytes == PREFIX_BYTES {
            // Without the flag.
            self.left = self.prefix & u64::from(u32::MAX);
            (self.prefix, self.prefix_bytes) = (0, 0);
            self.at = At::default();
        }
    }

    /// Reads a piece of one message.
    fn read(&mut self, mut bytes: &[u8]) {
        while let [first, behind @ ..] = bytes {
            if let At::Value(left, owner) = self.at {
                let (value, behind) = bytes.split_at(at_most(bytes.len(), left));
                if owner == Owner::Other {
                    self.other_bytes += value.len() as u64;
                }
                self.at = At::value(left - value.len() as u64, owner);
                bytes = behind;
                continue;
            }
            self.other_bytes += 1;
            self.at = self.after(*first);
            bytes = behind;
        }
    }

    /// Where the byte behind one that is in no value is.
    fn after(&mut self, byte: u8) -> At {
        match self.at {
            At::Key(number) => number.with(byte).map_or_else(
                |number| number.map_or(At::Nowhere, At::Key),
                |key| self.behind(key),
            ),
            At::Number(number) => number.with(byte).map_or_else(
                |number| number.map_or(At::Nowhere, At::Number),
                |_| At::default(),
            ),
            At::Length(number, owner) => number.with(byte).map_or_else(
                |number| number.map_or(At::Nowhere, |number| At::Length(number, owner)),
                |length| At::value(length, owner),
            ),
            at @ (At::Value(..) | At::Nowhere) => at,
        }
    }

    /// Where the byte behind a key is.
    fn behind(&mut self, key: u64) -> At {
        if key == INPUTS_KEY {
            self.inputs = self.inputs.saturating_add(1);
            return At::Length(Number::default(), Owner::Input);
        }
        match key & 7 {
            NUMBER => At::Number(Number::default()),
            EIGHT => At::Value(8, Owner::Other),
            LENGTH => At::Length(Number::default(), Owner::Other),
            BEGIN | END => At::default(),
            FOUR => At::Value(4, Owner::Other),
            _ => At::Nowhere,
        }
    }
}

impl At {
    /// In a value of which so many bytes are to come, or behind it.
    fn value(left: u64, owner: Owner) -> Self {
        match left {
            0 => Self::default(),
            left => Self::Value(left, owner),
        }
    }
}

impl Number {
    /// With one byte more it is whole; or, as an error, not yet, or no number.
    fn with(self, byte: u8) -> Result<u64, Option<Self>> {
        let Some(bits) = u64::from(byte & 0x7f).checked_shl(self.bits) else {
            return Err(None);
        };
        let number = Self {
            value: self.value | bits,
            bits: self.bits + 7,
        };
        match byte & 0x80 {
            0 => Ok(number.value),
            _ => Err(Some(number)),
        }
    }
}

/// How many of so many bytes are among those that are left.
fn at_most(bytes: usize, left: u64) -> usize {
    usize::try_from(left).map_or(bytes, |left| left.min(bytes))
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use medfleet_proto::v1;
    use prost::Message;

    use super::*;

    /// A message as gRPC sends it.
    fn sent(message: &[u8]) -> Vec<u8> {
        let length = u32::try_from(message.len()).expect("it is short");
        [&[0][..], &length.to_be_bytes(), message].concat()
    }

    /// What is said of it, in whatever pieces it comes.
    #[track_caller]
    fn check(bytes: &[u8], expected: Option<&str>) {
        for piece in [1, 7, bytes.len().max(1)] {
            let mut shape = Shape::default();
            let mut pieces = bytes.chunks(piece);
            let refused = pieces.find_map(|piece| shape.take(piece).err());
            let refused = refused.map(|refused| refused.to_string());
            let starts = |text: &String| text.starts_with(expected.unwrap_or_default());
            assert_eq!(refused.is_some(), expected.is_some(), "{refused:?}");
            assert!(refused.iter().all(starts), "{refused:?}");
        }
    }

    fn request(inputs: u32, text: usize) -> v1::SubmitJobRequest {
        let content = Bytes::from_static(&[0x1a; 300]);
        let content = Some(v1::input::Source::Content(content));
        let first = v1::Input {
            source: content,
            ..v1::Input::default()
        };
        let inputs = (1..inputs).map(|_| v1::Input::default());
        v1::SubmitJobRequest {
            request_id: "x".repeat(text),
            class: 2,
            decoding: Some(v1::DecodingParameters {
                temperature: 0.5,
                seed: u64::MAX,
                ..v1::DecodingParameters::default()
            }),
            inputs: [first].into_iter().chain(inputs).collect(),
            ..v1::SubmitJobRequest::default()
        }
    }

    #[test]
    fn a_request_of_more_inputs_than_any_job_has_is_refused_before_they_are_made() {
        let of = |inputs: u32| sent(&request(inputs, 3).encode_to_vec());
        check(&of(2048), None);
        check(&of(INPUTS_MAX), None);
        check(&of(INPUTS_MAX + 1), Some("inputs: at most 65536"));
        // Nor is a second message a way around it.
        let two = [of(INPUTS_MAX), of(1)].concat();
        check(&two, Some("inputs: at most 65536"));
    }

    #[test]
    fn what_is_in_an_input_counts_for_nothing_and_what_is_not_has_a_limit() {
        let mut files = request(1, 3);
        files.inputs[0].source = Some(v1::input::Source::Content(vec![0; 3 << 20].into()));
        check(&sent(&files.encode_to_vec()), None);
        let texts = sent(&request(1, 1 << 20).encode_to_vec());
        check(&texts, Some("what a request has besides its inputs"));
        // Two bytes each, and twenty-four in memory.
        let labels = [0x72, 0].repeat(1 << 19);
        check(&sent(&labels), None);
        let labels = [0x72, 0].repeat((1 << 19) + 1);
        check(
            &sent(&labels),
            Some("what a request has besides its inputs"),
        );
    }

    #[test]
    fn what_is_no_message_is_left_to_the_decoder() {
        check(&[], None);
        check(&sent(&[0x0f, 0x1a, 0]), None);
        check(&sent(&[0xff; 32]), None);
        check(&sent(&[0x1a, 0xff, 0xff, 0xff, 0xff, 0x0f, 1]), None);
        // A field of 8 bytes, one of 4, and one between two keys.
        let mut mixed = vec![0x79, 1, 2, 3, 4, 5, 6, 7, 8, 0x7d, 1, 2, 3, 4, 0x7b];
        mixed.extend([0x1a, 0].repeat(INPUTS_MAX as usize));
        mixed.push(0x7c);
        check(&sent(&mixed), None);
        mixed.extend([0x1a, 0]);
        check(&sent(&mixed), Some("inputs: at most 65536"));
    }
}
