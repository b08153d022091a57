//! Text of a header in the character sets of DICOM (PS3.3 C.12.1.1.2, PS3.5 6.1): single ones, and several that text switches
//! between by escape sequences, as names in Japanese, Korean and Chinese do.

use encoding_rs::Encoding;

/// The character sets of a data set.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CharacterSet {
    /// How the whole text is encoded, where nothing switches.
    whole: Option<&'static Encoding>,
    first: State,
}

/// What the lower and the upper half of the code table hold.
#[derive(Clone, Copy, Debug)]
struct State {
    low: Low,
    high: High,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Low {
    Ascii,
    /// JIS X 0208, two bytes.
    Kanji,
    /// JIS X 0212, two bytes.
    SupplementaryKanji,
}

#[derive(Clone, Copy, Debug)]
enum High {
    /// No set was named: writers that name none use UTF-8 or Latin.
    Unnamed,
    /// One byte a character.
    Single(&'static Encoding),
    /// JIS X 0201.
    Katakana,
    /// KS X 1001 or GB 2312, two bytes.
    Double(&'static Encoding),
}

const ESCAPE: u8 = 0x1b;
/// The first half-width katakana, and its code in JIS X 0201.
const KATAKANA: (u32, u8) = (0xff61, 0xa1);

/// Escape sequences (PS3.3 tables C.12-3 and C.12-4) without the escape itself.
const LOW: &[(&[u8], Low)] = &[
    (b"(B", Low::Ascii),
    (b"(J", Low::Ascii),
    (b"$B", Low::Kanji),
    (b"$@", Low::Kanji),
    (b"$(D", Low::SupplementaryKanji),
];
const HIGH: &[(&[u8], High)] = &[
    (b"-A", High::Single(encoding_rs::WINDOWS_1252)),
    (b"-B", High::Single(encoding_rs::ISO_8859_2)),
    (b"-C", High::Single(encoding_rs::ISO_8859_3)),
    (b"-D", High::Single(encoding_rs::ISO_8859_4)),
    (b"-L", High::Single(encoding_rs::ISO_8859_5)),
    (b"-G", High::Single(encoding_rs::ISO_8859_6)),
    (b"-F", High::Single(encoding_rs::ISO_8859_7)),
    (b"-H", High::Single(encoding_rs::ISO_8859_8)),
    (b"-M", High::Single(encoding_rs::WINDOWS_1254)),
    (b"-b", High::Single(encoding_rs::ISO_8859_15)),
    (b"-T", High::Single(encoding_rs::WINDOWS_874)),
    (b")I", High::Katakana),
    (b"$)C", High::Double(encoding_rs::EUC_KR)),
    (b"$)A", High::Double(encoding_rs::GBK)),
];

impl CharacterSet {
    /// Of a data set that names none.
    pub(crate) const fn unnamed() -> Self {
        Self {
            whole: None,
            first: State {
                low: Low::Ascii,
                high: High::Unnamed,
            },
        }
    }

    /// From the values of Specific Character Set, separated by backslashes.
    pub(crate) fn named(values: &str) -> Self {
        let first = values.split('\\').next().unwrap_or_default().trim();
        let whole = match first {
            "ISO_IR 192" => Some(encoding_rs::UTF_8),
            "GB18030" => Some(encoding_rs::GB18030),
            "GBK" => Some(encoding_rs::GBK),
            _ => None,
        };
        let number = first.rsplit(' ').next().unwrap_or_default();
        let high = match number {
            "100" => High::Single(encoding_rs::WINDOWS_1252),
            "101" => High::Single(encoding_rs::ISO_8859_2),
            "109" => High::Single(encoding_rs::ISO_8859_3),
            "110" => High::Single(encoding_rs::ISO_8859_4),
            "144" => High::Single(encoding_rs::ISO_8859_5),
            "127" => High::Single(encoding_rs::ISO_8859_6),
            "126" => High::Single(encoding_rs::ISO_8859_7),
            "138" => High::Single(encoding_rs::ISO_8859_8),
            "148" => High::Single(encoding_rs::WINDOWS_1254),
            "203" => High::Single(encoding_rs::ISO_8859_15),
            "166" => High::Single(encoding_rs::WINDOWS_874),
            "13" => High::Katakana,
            "149" => High::Double(encoding_rs::EUC_KR),
            "58" => High::Double(encoding_rs::GBK),
            _ => High::Unnamed,
        };
        let low = Low::Ascii;
        Self {
            whole,
            first: State { low, high },
        }
    }

    /// Bytes of a text; `None` where the set does not have all its letters, or switches by escape sequences.
    pub(crate) fn encode(&self, text: &str) -> Option<Vec<u8>> {
        if text.is_ascii() {
            return Some(text.as_bytes().to_vec());
        }
        let encoding = match (self.whole, self.first.high) {
            (Some(encoding), _) | (None, High::Single(encoding)) => encoding,
            _ => return None,
        };
        let (bytes, _, unmappable) = encoding.encode(text);
        (!unmappable).then(|| bytes.into_owned())
    }

    /// What a text may say: by the set, and where that is plainly the wrong one as it would be without. Writers name Latin and
    /// send UTF-8, and the other way round.
    pub(crate) fn readings(&self, bytes: &[u8]) -> Vec<String> {
        let mut readings = vec![self.decode(bytes)];
        let utf8 = std::str::from_utf8(bytes).is_ok();
        let named_utf8 = self.whole == Some(encoding_rs::UTF_8);
        if !bytes.is_ascii() && utf8 != named_utf8 {
            readings.push(Self::unnamed().decode(bytes));
        }
        readings
    }

    /// The text; bytes that stand for nothing become U+FFFD.
    pub(crate) fn decode(&self, bytes: &[u8]) -> String {
        if let Some(encoding) = self.whole {
            return encoding.decode_without_bom_handling(bytes).0.into_owned();
        }
        if bytes.is_ascii() && !bytes.contains(&ESCAPE) {
            return bytes.iter().map(|byte| char::from(*byte)).collect();
        }
        let mut text = String::new();
        let (mut state, mut rest) = (self.first, bytes);
        while let Some(first) = rest.first() {
            if *first == ESCAPE
                && let Some(length) = state.switch(&rest[1..])
            {
                rest = &rest[1 + length..];
                continue;
            }
            let low = first & 0x80 == 0;
            let two = low && state.low != Low::Ascii;
            if !two && is_delimiter(*first) {
                // Delimiters and line ends switch back (PS3.5 6.1.2.5.3).
                state = self.first;
            }
            // At least one byte, up to the next escape, delimiter or half.
            let end = rest[1..].iter().position(|byte| {
                *byte == ESCAPE || (byte & 0x80 == 0) != low || (!two && is_delimiter(*byte))
            });
            let run = &rest[..end.map_or(rest.len(), |end| end + 1)];
            state.put(run, &mut text);
            rest = &rest[run.len()..];
        }
        text
    }
}

fn is_delimiter(byte: u8) -> bool {
    matches!(byte, b'^' | b'=' | b'\\' | b'\n' | b'\r' | b'\t' | 0x0c)
}

impl State {
    /// Follows an escape sequence and gives its length; nothing where it is not known.
    fn switch(&mut self, after: &[u8]) -> Option<usize> {
        if let Some((sequence, low)) = LOW.iter().find(|(known, _)| after.starts_with(known)) {
            self.low = *low;
            return Some(sequence.len());
        }
        let (sequence, high) = HIGH.iter().find(|(known, _)| after.starts_with(known))?;
        self.high = *high;
        Some(sequence.len())
    }

    /// Decodes bytes that are all of one half.
    fn put(&self, run: &[u8], text: &mut String) {
        let plain = |encoding: &'static Encoding, bytes: &[u8], text: &mut String| {
            text.push_str(&encoding.decode_without_bom_handling(bytes).0);
        };
        if run.first().is_some_and(|byte| byte & 0x80 == 0) {
            // In EUC-JP both sets are in the upper half, the second behind a byte that says so.
            match self.low {
                Low::Ascii => text.extend(run.iter().map(|byte| char::from(*byte))),
                Low::Kanji => {
                    let upper: Vec<u8> = run.iter().map(|byte| byte | 0x80).collect();
                    plain(encoding_rs::EUC_JP, &upper, text);
                }
                Low::SupplementaryKanji => {
                    let pairs = run.chunks(2);
                    let upper: Vec<u8> = pairs
                        .flat_map(|pair| {
                            std::iter::once(0x8f).chain(pair.iter().map(|byte| byte | 0x80))
                        })
                        .collect();
                    plain(encoding_rs::EUC_JP, &upper, text);
                }
            }
            return;
        }
        match self.high {
            High::Single(encoding) | High::Double(encoding) => plain(encoding, run, text),
            High::Katakana => text.extend(run.iter().map(|byte| {
                let place = u32::from(byte.wrapping_sub(KATAKANA.1));
                char::from_u32(KATAKANA.0 + place)
                    .filter(|_| (0xa1..=0xdf).contains(byte))
                    .unwrap_or(char::REPLACEMENT_CHARACTER)
            })),
            High::Unnamed => match std::str::from_utf8(run) {
                Ok(utf8) => text.push_str(utf8),
                Err(_) => plain(encoding_rs::WINDOWS_1252, run, text),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(sets: &str, bytes: &[u8], expected: &str) {
        assert_eq!(CharacterSet::named(sets).decode(bytes), expected);
    }

    /// The examples of PS3.5 annexes H, I, J and K, and names in single sets.
    #[test]
    fn names_of_the_standards_examples_come_out_right() {
        check(
            "\\ISO 2022 IR 87",
            b"Yamada^Tarou=\x1b$B;3ED\x1b(B^\x1b$BB@O:\x1b(B=\x1b$B$d$^$@\x1b(B^\x1b$B$?$m$&\x1b(B",
            "Yamada^Tarou=山田^太郎=やまだ^たろう",
        );
        check(
            "ISO 2022 IR 13\\ISO 2022 IR 87",
            b"\xd4\xcf\xc0\xde^\xc0\xdb\xb3=\x1b$B;3ED\x1b(J^\x1b$BB@O:\x1b(J",
            "ﾔﾏﾀﾞ^ﾀﾛｳ=山田^太郎",
        );
        check(
            "\\ISO 2022 IR 149",
            b"Hong^Gildong=\x1b$)C\xfb\xf3^\x1b$)C\xd1\xce\xd4\xd7=\x1b$)C\xc8\xab^\x1b$)C\xb1\xe6\xb5\xbf",
            "Hong^Gildong=洪^吉洞=홍^길동",
        );
        check(
            "\\ISO 2022 IR 58",
            b"Zhang^XiaoDong=\x1b$)A\xd5\xc5^\x1b$)A\xd0\xa1\xb6\xab=",
            "Zhang^XiaoDong=张^小东=",
        );
        check(
            "ISO_IR 192",
            "Wang^XiaoDong=王^小东=".as_bytes(),
            "Wang^XiaoDong=王^小东=",
        );
        check(
            "GB18030",
            b"Wang^XiaoDong=\xcd\xf5^\xd0\xa1\xb6\xab=",
            "Wang^XiaoDong=王^小东=",
        );
        check("ISO_IR 100", b"Buc^J\xe9r\xf4me", "Buc^Jérôme");
        check("ISO_IR 144", b"\xbf\xe3\xe8\xda\xd8\xdd", "Пушкин");
        check(
            "ISO_IR 126",
            b"\xc4\xe9\xef\xed\xf5\xf3\xe9\xef\xf2",
            "Διονυσιος",
        );
    }

    #[track_caller]
    fn check_readings(sets: &str, bytes: &[u8], expected: &[&str]) {
        assert_eq!(CharacterSet::named(sets).readings(bytes), expected);
    }

    #[test]
    fn a_set_that_is_plainly_another_one_gives_two_readings() {
        let utf8 = "Müller".as_bytes();
        check_readings("ISO_IR 100", utf8, &["MÃ¼ller", "Müller"]);
        check_readings("ISO_IR 192", b"M\xfcller", &["M\u{fffd}ller", "Müller"]);
        check_readings("ISO_IR 192", utf8, &["Müller"]);
        check_readings("ISO_IR 100", b"M\xfcller", &["Müller"]);
        check_readings("ISO_IR 100", b"Miller", &["Miller"]);
        check_readings("GB18030", b"\xcd\xf5", &["王"]);
    }

    #[test]
    fn latin_and_utf8_are_told_apart_where_no_set_is_named() {
        check("", b"M\xfcller", "Müller");
        check("", "Müller".as_bytes(), "Müller");
        check("ISO_IR 6", b"Miller", "Miller");
    }
}
