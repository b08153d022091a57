//! Element by element: each is copied, left out or written anew, in the encoding of the file, and sequences item by item.

use dicom_core::{Tag, VR};
use dicom_dictionary_std::tags;

use super::profile::{Action, action, is_text};
use super::replace::Pseudonyms;
use super::terms::is_term;
use super::text::{Field, clean, fits};
use super::write::{element, item};
use super::{Changes, Profile};
use crate::charset::CharacterSet;
use crate::elements::{Elements, Extent, NESTING_MAX, VrEncoding, items};
use crate::vocabulary::{is_sequence, standard_vr, vr_of};
use crate::{Identifiers, Reason, Refusal};

/// What stands for a text that has to be there.
const DUMMY: &str = "ANONYMIZED";
/// The same where letters are not allowed: the first day that a calendar of dates knows.
const DUMMY_DATE: &str = "19000101";
/// (0008,0005) and what the profile adds itself, which is not taken over from a file.
const STATEMENTS: &[Tag] = &[
    tags::PATIENT_IDENTITY_REMOVED,
    tags::DEIDENTIFICATION_METHOD,
    tags::DEIDENTIFICATION_METHOD_CODE_SEQUENCE,
    tags::LONGITUDINAL_TEMPORAL_INFORMATION_MODIFIED,
];
/// Ages above are given as this (the HIPAA safe-harbour rule).
const AGE_YEARS_MAX: u32 = 90;

pub(super) struct Rewriter {
    pub(super) pseudonyms: Pseudonyms,
    pub(super) profile: Profile,
    pub(super) identifiers: Identifiers,
    pub(super) changes: Changes,
    /// Within an item in which no value may stay what it was.
    pub(super) dummies: bool,
}

/// One element under treatment.
struct Subject<'a> {
    extent: Extent,
    /// Header and value.
    whole: &'a [u8],
    value: &'a [u8],
    encoding: VrEncoding,
    vr: Option<VR>,
    set: CharacterSet,
    /// Whether it is part of a code of a published scheme.
    published: bool,
}

impl Rewriter {
    /// The elements of a data set or an item that may leave, each with its tag.
    pub(super) fn data_set(
        &mut self,
        bytes: &[u8],
        encoding: VrEncoding,
        set: CharacterSet,
        depth: u32,
    ) -> Result<Vec<(Tag, Vec<u8>)>, Refusal> {
        let mut set = set;
        let published = depth > 0 && is_published_code(bytes, encoding);
        let mut out = Vec::new();
        for extent in Elements::new(bytes, encoding) {
            let extent = extent?;
            let value = &bytes[extent.value.clone()];
            if extent.tag == tags::SPECIFIC_CHARACTER_SET {
                set = CharacterSet::named(&String::from_utf8_lossy(value));
            }
            let subject = Subject {
                whole: &bytes[extent.whole.clone()],
                value,
                encoding,
                vr: known_vr(&extent),
                set,
                published,
                extent,
            };
            let tag = subject.extent.tag;
            if let Some(written) = self.one(&subject, depth)? {
                out.push((tag, written));
            }
        }
        Ok(out)
    }

    fn one(&mut self, subject: &Subject<'_>, depth: u32) -> Result<Option<Vec<u8>>, Refusal> {
        let tag = subject.extent.tag;
        if STATEMENTS.contains(&tag) {
            return Ok(None);
        }
        let sequence = is_sequence(&subject.extent);
        let vr = if sequence { Some(VR::SQ) } else { subject.vr };
        // An undefined length may hide items behind a tag that is not known at all.
        let vr = vr.filter(|_| standard_vr(tag).is_some());
        let action = match action(tag, vr, &self.profile) {
            // Also within a dummy: its text is written in this set.
            Action::Keep | Action::Clean if tag == tags::SPECIFIC_CHARACTER_SET => Action::Clean,
            action if self.dummies => action.within_dummy(vr),
            Action::Keep if has_words(tag, subject.value) => Action::Empty,
            action => action,
        };
        let changes = &mut self.changes;
        let text = |text: &str| Some(subject.with(text.as_bytes()));
        Ok(match action {
            Action::Keep => {
                changes.kept += 1;
                Some(subject.whole.to_vec())
            }
            Action::Remove => {
                changes.removed += 1;
                None
            }
            Action::Empty => {
                changes.emptied += 1;
                Some(subject.with(&[]))
            }
            Action::Dummy => {
                changes.replaced += 1;
                Some(self.dummy(subject))
            }
            Action::Map => {
                changes.mapped += 1;
                text(&self.uids(subject.value))
            }
            Action::Pseudonym => {
                changes.replaced += 1;
                text(&self.pseudonyms.patient)
            }
            Action::Age => {
                changes.kept += 1;
                Some(subject.with(&age(subject.value)))
            }
            Action::Shift => Some(self.shift(subject)),
            Action::Clean => Some(self.clean(subject)),
            Action::Items if sequence => {
                changes.kept += 1;
                Some(self.items(subject, depth)?)
            }
            Action::DummyItem if sequence => {
                changes.replaced += 1;
                Some(self.dummy_item(subject, depth)?)
            }
            // A value that is not what its tag promises.
            Action::Items | Action::DummyItem => {
                changes.removed += 1;
                None
            }
        })
    }

    fn items(&mut self, subject: &Subject<'_>, depth: u32) -> Result<Vec<u8>, Refusal> {
        let (tag, inner) = (subject.extent.tag, subject.extent.inner);
        if depth == NESTING_MAX {
            return Err(Refusal::at(Reason::Malformed, tag));
        }
        // Of a dummy one is enough; how many there were is nobody's business.
        let most = if self.dummies { 1 } else { usize::MAX };
        let mut value = Vec::new();
        for content in items(subject.value, tag, inner)?.into_iter().take(most) {
            let elements = self.data_set(content, inner, subject.set, depth + 1)?;
            let elements: Vec<u8> = elements.into_iter().flat_map(|(_, bytes)| bytes).collect();
            value.extend(item(&elements, inner));
        }
        Ok(subject.with(&value))
    }

    /// With an item where there was one: where the profile wants a dummy, the sequence must not be empty.
    fn dummy_item(&mut self, subject: &Subject<'_>, depth: u32) -> Result<Vec<u8>, Refusal> {
        let outside = std::mem::replace(&mut self.dummies, true);
        let written = self.items(subject, depth);
        self.dummies = outside;
        written
    }

    fn uids(&self, value: &[u8]) -> String {
        let value = String::from_utf8_lossy(value);
        let uids = value.split('\\').map(|uid| self.pseudonyms.key.uid(uid));
        uids.collect::<Vec<_>>().join("\\")
    }

    fn shift(&mut self, subject: &Subject<'_>) -> Vec<u8> {
        let value = String::from_utf8_lossy(subject.value);
        let dates = value.split('\\').map(|date| self.pseudonyms.shifted(date));
        if let Some(dates) = dates.collect::<Option<Vec<_>>>() {
            self.changes.shifted += 1;
            return subject.with(dates.join("\\").as_bytes());
        }
        // Nothing, or something that is no date.
        self.changes.emptied += 1;
        subject.with(&[])
    }

    fn clean(&mut self, subject: &Subject<'_>) -> Vec<u8> {
        let vr = subject.vr.unwrap_or(VR::LO);
        let text = subject.set.decode(subject.value);
        let field = Field {
            tag: subject.extent.tag,
            vr,
            published: subject.published,
        };
        let Some(cleaned) = clean(&text, field, &self.identifiers) else {
            self.changes.kept += 1;
            return subject.whole.to_vec();
        };
        self.changes.cleaned += 1;
        let encoded = subject.set.encode(&cleaned).filter(|_| fits(&cleaned, vr));
        subject.with(&encoded.unwrap_or_default())
    }

    fn dummy(&self, subject: &Subject<'_>) -> Vec<u8> {
        let vr = subject.vr.unwrap_or(VR::UN);
        let text = match vr {
            VR::UI => self.uids(subject.value),
            VR::DA => DUMMY_DATE.to_owned(),
            VR::TM => "000000".to_owned(),
            VR::DT => format!("{DUMMY_DATE}000000"),
            VR::AS => "000Y".to_owned(),
            VR::IS | VR::DS => "0".to_owned(),
            vr if is_text(vr) => DUMMY.to_owned(),
            _ => return subject.with(&vec![0; subject.value.len()]),
        };
        subject.with(text.as_bytes())
    }
}

impl Subject<'_> {
    /// The element with another value.
    fn with(&self, value: &[u8]) -> Vec<u8> {
        let uid = self.vr == Some(VR::UI);
        let padded: Vec<u8>;
        let value = if value.len() % 2 == 1 {
            padded = [value, &[if uid { 0 } else { b' ' }]].concat();
            &padded
        } else {
            value
        };
        element(self.extent.tag, self.extent.vr, value, self.encoding)
    }
}

/// Whether an item is a code of a published scheme, with the scheme where the order of tags has it.
fn is_published_code(bytes: &[u8], encoding: VrEncoding) -> bool {
    let scheme = tags::CODING_SCHEME_DESIGNATOR;
    let head = Elements::new(bytes, encoding).flatten();
    let mut head = head.take_while(|element| element.tag <= scheme);
    head.any(|element| {
        element.tag == scheme && is_term(scheme, &String::from_utf8_lossy(&bytes[element.value]))
    })
}

/// Of standard attributes only. What is text by the standard is looked at as text, also where a writer called it bytes or numbers,
/// which would be kept.
fn known_vr(extent: &Extent) -> Option<VR> {
    let standard = standard_vr(extent.tag)?;
    let is_named = |vr| is_text(vr) || matches!(vr, VR::UI | VR::DA | VR::DT);
    let written = vr_of(extent)?;
    Some(if is_named(standard) && !is_named(written) {
        standard
    } else {
        written
    })
}

/// Whether a number, a time or an age holds what is none: whoever writes a file may put any text there.
fn has_words(tag: Tag, value: &[u8]) -> bool {
    let known: &[u8] = match standard_vr(tag) {
        Some(VR::IS | VR::DS) => b"0123456789+-.Ee\\ \0",
        Some(VR::TM) => b"0123456789.:-\\ \0",
        Some(VR::AS) => b"0123456789DWMY\\ \0",
        _ => return false,
    };
    !value.iter().all(|byte| known.contains(byte))
}

fn age(value: &[u8]) -> Vec<u8> {
    let years = std::str::from_utf8(value).ok().and_then(|text| {
        let text = text.trim_matches(['\0', ' ']);
        let (digits, unit) = text.split_at_checked(3)?;
        (matches!(unit, "D" | "W" | "M" | "Y") && digits.bytes().all(|b| b.is_ascii_digit()))
            .then(|| (digits.parse::<u32>(), unit.to_owned()))
    });
    match years {
        Some((Ok(years), unit)) if unit == "Y" => {
            format!("{:03}Y", years.min(AGE_YEARS_MAX)).into_bytes()
        }
        Some((Ok(number), unit)) => format!("{number:03}{unit}").into_bytes(),
        _ => Vec::new(),
    }
}
