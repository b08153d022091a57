//! Colour profiles (ICC.1:2022), as far as to say whether levels mean what sRGB's mean. None is ever applied: the models were
//! trained on levels as they are stored, and a note says where that may matter.

use crate::{Note, Reason, Refusal};

const SIGNATURE_AT: usize = 36;
const COLOUR_SPACE_AT: usize = 16;
const TAG_COUNT_AT: usize = 128;
const TAG_BYTES: usize = 12;
/// More tags than any profile has.
const TAGS_MAX: usize = 256;
/// Red, green and blue of sRGB in the profile connection space: X, Y, Z under D50 (IEC 61966-2-1, adapted as ICC.1 Annex E).
const SRGB: [([u8; 4], [f64; 3]); 3] = [
    (*b"rXYZ", [0.4361, 0.2225, 0.0139]),
    (*b"gXYZ", [0.3851, 0.7169, 0.0971]),
    (*b"bXYZ", [0.1431, 0.0606, 0.7141]),
];
/// Apart by no more than writers' rounding and their ways to adapt the white point.
const COLORANT_ERROR_MAX: f64 = 0.01;

/// What is to be said of a picture with this profile; nothing where it is sRGB's.
///
/// # Errors
/// A profile of anything but red, green and blue or grey: its levels are no colours.
pub(crate) fn judge(profile: &[u8]) -> Result<Option<Note>, Refusal> {
    if profile.get(SIGNATURE_AT..SIGNATURE_AT + 4) != Some(b"acsp") {
        // Not a profile; it says nothing, and the picture stands without one.
        return Ok(Some(Note::ProfileNotApplied));
    }
    match profile.get(COLOUR_SPACE_AT..COLOUR_SPACE_AT + 4) {
        Some(b"GRAY") => Ok(Some(Note::ProfileNotApplied)),
        Some(b"RGB ") if is_srgb(profile) => Ok(None),
        Some(b"RGB ") => Ok(Some(Note::ProfileNotApplied)),
        _ => {
            Err(Refusal::new(Reason::UnsupportedColour).found("a profile of another colour space"))
        }
    }
}

fn is_srgb(profile: &[u8]) -> bool {
    SRGB.iter().all(|(tag, expected)| {
        colorant(profile, *tag).is_some_and(|found| {
            found
                .iter()
                .zip(expected)
                .all(|(found, expected)| (found - expected).abs() <= COLORANT_ERROR_MAX)
        })
    })
}

/// The XYZ value of a tag.
fn colorant(profile: &[u8], tag: [u8; 4]) -> Option<[f64; 3]> {
    let u32_at = |at: usize| {
        let bytes: [u8; 4] = profile.get(at..at.checked_add(4)?)?.try_into().ok()?;
        Some(u32::from_be_bytes(bytes))
    };
    let count = (u32_at(TAG_COUNT_AT)? as usize).min(TAGS_MAX);
    let entry = (0..count)
        .map(|index| TAG_COUNT_AT + 4 + index * TAG_BYTES)
        .find(|at| profile.get(*at..*at + 4) == Some(&tag))?;
    let at = u32_at(entry + 4)? as usize;
    if profile.get(at..at.checked_add(4)?)? != b"XYZ " {
        return None;
    }
    // Signed 16.16 numbers behind the type and four zeros.
    let number = |index: usize| Some(f64::from(u32_at(at + 8 + index * 4)? as i32) / 65536.0);
    Some([number(0)?, number(1)?, number(2)?])
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A profile with these colorants.
    fn profile(space: &[u8; 4], colorants: &[[f64; 3]]) -> Vec<u8> {
        let mut out = vec![0; 128];
        out[SIGNATURE_AT..SIGNATURE_AT + 4].copy_from_slice(b"acsp");
        out[COLOUR_SPACE_AT..COLOUR_SPACE_AT + 4].copy_from_slice(space);
        out.extend((colorants.len() as u32).to_be_bytes());
        let values_at = out.len() + colorants.len() * TAG_BYTES;
        for (index, (tag, _)) in SRGB.iter().enumerate().take(colorants.len()) {
            out.extend(tag);
            out.extend(((values_at + index * 20) as u32).to_be_bytes());
            out.extend(20_u32.to_be_bytes());
        }
        for xyz in colorants {
            out.extend(b"XYZ \0\0\0\0");
            xyz.iter()
                .for_each(|n| out.extend(((n * 65536.0) as i32).to_be_bytes()));
        }
        out
    }

    #[test]
    fn srgb_needs_no_note_and_others_get_one() {
        let srgb = SRGB.map(|(_, xyz)| xyz);
        assert_eq!(judge(&profile(b"RGB ", &srgb)), Ok(None));
        // Adobe RGB (1998): the green is another one.
        let adobe = [srgb[0], [0.2053, 0.6257, 0.0609], srgb[2]];
        let noted = Ok(Some(Note::ProfileNotApplied));
        assert_eq!(judge(&profile(b"RGB ", &adobe)), noted);
        assert_eq!(judge(&profile(b"RGB ", &[])), noted);
        assert_eq!(judge(b"no profile"), noted);
        assert!(judge(&profile(b"CMYK", &[])).is_err());
    }

    #[test]
    fn a_lying_profile_reads_nothing_beyond_its_end() {
        let mut bytes = profile(b"RGB ", &SRGB.map(|(_, xyz)| xyz));
        bytes[TAG_COUNT_AT..TAG_COUNT_AT + 4].fill(0xff);
        bytes[TAG_COUNT_AT + 8..TAG_COUNT_AT + 12].fill(0xff);
        assert_eq!(judge(&bytes), Ok(Some(Note::ProfileNotApplied)));
    }
}
