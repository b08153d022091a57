//! What looks like somebody's name, number, place, date or age in a text, whoever it is of.
//!
//! Reading order: this file, `tokens` (a text in pieces), `people` (names behind titles and labels), `numbers`.

mod numbers;
mod people;
mod tokens;

use std::ops::Range;

use numbers::{is_number, numbers};
use people::people;
use tokens::Tokens;

use crate::screen::dates;

const MASK: &str = "[removed]";
/// What ends a sentence or a part of it, and is no part of a number.
const STOPS: [char; 4] = ['.', ',', ';', ':'];

/// The text without them; `None` where there are none. White space stays as it is.
pub(super) fn masked(text: &str) -> Option<String> {
    let tokens = Tokens::of(text);
    let pieces = people(&tokens).into_iter().chain(numbers(&tokens));
    let mut found: Vec<Range<usize>> = pieces.map(|pieces| tokens.bytes(&pieces)).collect();
    found.extend(dates(text));
    found.extend(words(text));
    found.sort_by_key(|range| (range.start, range.end));
    let (mut out, mut done) = (String::with_capacity(text.len()), 0);
    for range in &found {
        // What overlaps the one before, or goes on with it, is behind the same mask.
        if range.start > done || done == 0 {
            out.push_str(&text[done..range.start]);
            out.push_str(MASK);
        }
        done = done.max(range.end);
    }
    out.push_str(&text[done..]);
    (!found.is_empty()).then_some(out)
}

/// Words with many digits, and addresses of mail.
fn words(text: &str) -> Vec<Range<usize>> {
    let (mut found, mut at) = (Vec::new(), 0);
    for piece in text.split_inclusive(|c: char| c.is_whitespace() || c == '\\') {
        let word = piece.trim_end_matches(|c: char| c.is_whitespace() || c == '\\');
        if is_number(word) || is_mail(word) {
            found.push(at..at + word.trim_end_matches(STOPS).len());
        }
        at += piece.len();
    }
    found
}

fn is_mail(word: &str) -> bool {
    word.split_once('@')
        .is_some_and(|(name, host)| !name.is_empty() && host.contains('.'))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Texts, and what is left of them. The names are nobody's.
    const MASKED: &[(&str, &str)] = &[
        ("MRN 4711234 of Dr. Doe", "MRN [removed] of Dr. [removed]"),
        (
            "call 555-0199-22 or a.b@c.org ",
            "call [removed] or [removed] ",
        ),
        ("seen 12/3/60\r\nSlice 1.25", "seen [removed]\r\nSlice 1.25"),
        ("Dr. Anna Smith", "Dr. [removed]"),
        ("Patient Name: John Q Public", "Patient Name: [removed]"),
        ("Dr.Smith", "Dr.[removed]"),
        ("0171 555 22 33", "[removed]"),
        ("12 March 1960", "[removed]"),
        (
            "Dr. Smith: CT Thorax mit KM",
            "Dr. [removed]: CT Thorax mit KM",
        ),
        (
            "Dr. Smith CT Thorax mit KM",
            "Dr. [removed] CT Thorax mit KM",
        ),
        (
            "DR. ANNA SMITH CHEST 2 VIEWS",
            "DR. [removed] CHEST 2 VIEWS",
        ),
        ("DR SMITH", "DR [removed]"),
        (
            "Mr Smith, Ms Jones; MR. DOE",
            "Mr [removed], Ms [removed]; MR. [removed]",
        ),
        (
            "Prof. Dr. med. Karl-Heinz von der Mühlen",
            "Prof. Dr. med. [removed]",
        ),
        ("Dr. J. R. O'Neil and Jones agreed", "Dr. [removed] agreed"),
        ("Dr. Lee. No effusion.", "Dr. [removed]. No effusion."),
        ("Dr. Smith No effusion", "Dr. [removed] No effusion"),
        ("dr. anna smith agreed", "dr. [removed] agreed"),
        (
            "Frau Müller-Lüdenscheidt, Herr und Frau Schmidt",
            "Frau [removed], Herr und Frau [removed]",
        ),
        (
            "Mme d'Arc, Sr. García, Sra. de la Cruz",
            "Mme [removed], Sr. [removed], Sra. [removed]",
        ),
        (
            "Radiologist: Dr. Smith Technologist: Jones",
            "Radiologist: Dr. [removed] Technologist: [removed]",
        ),
        ("DR.SMITH, PROF.DR. DOE", "DR.[removed], PROF.DR. [removed]"),
        ("Patient's Name: SMITH, ANNA", "Patient's Name: [removed]"),
        ("Dr. Pat Smith", "Dr. [removed]"),
        ("Prof.Dr.Smith/Jones", "Prof.Dr.[removed]"),
        ("Dr. Smith and CT", "Dr. [removed] and CT"),
        ("Dr. Ng MR Thorax", "Dr. [removed] MR Thorax"),
        ("Dr. Smith, Anna, CT", "Dr. [removed], CT"),
        (
            "Dr. Anna Smith, Stable nodule",
            "Dr. [removed], Stable nodule",
        ),
        ("reported by: Dr.\r\nSmith", "reported by: Dr.\r\n[removed]"),
        (
            "Patientin Anna Schmidt, geb. 12.03.1960",
            "Patientin [removed], geb. [removed]",
        ),
        ("Name:\\Smith", "Name:\\[removed]"),
        ("tel:0171 555 22 33.", "tel:[removed]."),
        ("0171/555-22 33 (030) 555 123", "[removed]"),
        ("SSN 078-05-1120", "SSN [removed]"),
        (
            "Radiologist: A. Smith MD, PhD",
            "Radiologist: [removed] MD, PhD",
        ),
        ("Referring MD: J. Doe", "Referring MD: [removed]"),
        ("Dr. C. Ott, Hr. Schmidt", "Dr. [removed], Hr. [removed]"),
        (
            "Patient: JOHN Q. PUBLIC DOB: 12.03.60 MRN: 4711",
            "Patient: [removed] DOB: [removed] MRN: [removed]",
        ),
        (
            "Dr. E. Smith, Dr. Anna E Smith",
            "Dr. [removed], Dr. [removed]",
        ),
        (
            "Radiologist: Pat Smith, Patient Pat. Ott",
            "Radiologist: [removed], Patient Pat. [removed]",
        ),
        ("DrSmith reported", "[removed] reported"),
        ("Patient: Smith, Anna M.; 45 y", "Patient: [removed].; 45 y"),
        ("Pat. Schmidt, Hans", "Pat. [removed]"),
        (
            "Referring Physician: SMITH^ANNA",
            "Referring Physician: [removed]",
        ),
        ("Radiologist Ali bin Hassan", "Radiologist [removed]"),
        ("Radiologist Omar al-Rashid", "Radiologist [removed]"),
        ("Operator JS", "Operator [removed]"),
        ("name: john public", "name: [removed]"),
        ("Technologist: 王小东", "Technologist: [removed]"),
        ("Dr. [name] Smith", "Dr. [removed]"),
        ("Dr. Smith T2 FLAIR", "Dr. [removed] T2 FLAIR"),
        ("+44 (0)20 7946 0958, 078 05 1120", "[removed], [removed]"),
        ("Tel. 555 12", "Tel. [removed]"),
        ("Fax: (030) 12-34", "Fax: [removed]"),
        ("IBAN DE89 3704 0044 0532 0130 00", "IBAN [removed]"),
        ("GB29 NWBK 6016 1331 9268 19", "[removed]"),
        ("PLZ 80331 München, CT", "PLZ [removed], CT"),
        (
            "Address: 10 Main Street, Springfield; CT Thorax",
            "Address: [removed]; CT Thorax",
        ),
        ("12. März 1960", "[removed]"),
        ("12 mars 1960", "[removed]"),
        ("12 de marzo de 1960", "[removed]"),
        ("12 marzo 1960", "[removed]"),
        ("12 de março de 1960", "[removed]"),
        ("March 12th, 1960", "[removed]"),
        ("12-Mar-60", "[removed]"),
        ("12MAR1960", "[removed]"),
        ("12 / 3 / 1960", "[removed]"),
        ("1960年3月12日", "[removed]"),
        ("March 1960", "[removed]"),
        ("03/1960", "[removed]"),
        ("3. April", "[removed]"),
        (
            "93 y, 93-year-old, aged 93, 93 Jahre, 093Y",
            "[removed] y, [removed]-year-old, aged [removed], [removed] Jahre, [removed]Y",
        ),
    ];

    /// What a text must not lose.
    const KEPT: &[&str] = &[
        "CHEST 2 VIEWS, 120 kV",
        "DR CHEST 2 VIEWS",
        "MR Thorax, MS Protocol, TE 30 ms TR 500 ms",
        "TE/TR 30/500, FoV 220 mm, L5-S1, T2*",
        "ax T1 tse +KM 3 mm 0.5x0.5x3.0",
        "DR HAND AP",
        "CT Abdomen/Pelvis w/ KM 120 ml 3 ml/s",
        "axial 5/5/0.75 B30f",
        "L3-4, L4-5 and L5-S1",
        "Patient Name:\nAge: 45\nSex: F",
        "Pat. mit Dyspnoe",
        "Protocol Name: T2 FLAIR 5 mm",
        "PATIENT POSITION SUPINE",
        "Dr. [name]: CT",
        "Dr. [removed]",
        "T2 FLAIR 5 mm",
        "L4/L5",
        "Th10/Th11/Th12",
        "C1-C7",
        "1.5 T",
        "120 kVp",
        "2 x 0.75 mm",
        "2x0.75mm",
        "512x512x240",
        "Series 3",
        "DWI b 0 500 1000",
        "CT 2019 120 kVp 200 mAs",
        "Lesion 2 may be 12 mm",
        "89 y, 45-year-old, 95 mm",
        "Chest two views upright",
        "1.25 2.5 0.75",
        "syngo CT 2012B",
        "seen by Dr. [name] yesterday",
        "rows 20 30 40 50, b 50 400 800",
    ];

    #[test]
    fn what_looks_like_an_identifier_is_masked() {
        for (text, expected) in MASKED {
            assert_eq!(masked(text).as_deref(), Some(*expected), "{text}");
        }
    }

    #[test]
    fn what_was_found_and_how_it_was_taken_stays() {
        for text in KEPT {
            assert_eq!(masked(text), None, "{text}");
        }
    }

    /// Each label that reads to the end by itself would take minutes.
    #[test]
    fn long_texts_are_read_once() {
        for piece in [
            "0 500 ", "AB12 ", "1.", "PLZ 1 ", "of 93 ", "Dr. A ", "tel 1 ",
        ] {
            let text = piece.repeat(20_000);
            assert!(masked(&text).is_none_or(|masked| masked != text), "{piece}");
        }
    }
}
