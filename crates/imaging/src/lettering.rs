//! Text in the pixels, looked for by a program that reads it: which pictures it is shown, which of its words count, and what
//! follows. No header rule can find such text, and no program finds all of it: it is looked for besides the rules of
//! `burned_in`, never instead of them.
//!
//! A word may be the patient's name. It is compared here and goes nowhere: a refusal says how many there are and where.

use std::fmt;

use crate::square::Picture;
use crate::{Reason, Refusal};

/// Words that say how an image was taken: `lettering/marks.txt`, one a line, lines that begin with `#` left out.
const MARKS: &str = include_str!("lettering/marks.txt");
/// A picture with a shorter side than this, in pixels, holds no letter.
const SIDE_MIN: u32 = 8;

/// Finds words in pictures.
pub trait TextReader: fmt::Debug + Send + Sync {
    /// Every word that it makes out, however unsure it is.
    fn read(&self, page: &Page<'_>) -> Result<Vec<Word>, TextReaderError>;
}

/// A picture as a reader gets it: before it is padded and made smaller.
#[derive(Clone, Copy)]
pub struct Page<'a> {
    pub width: u32,
    pub height: u32,
    /// 1 for grey, 3 for RGB or for three windows of one slice.
    pub channels: u32,
    /// `width * height * channels` bytes, row-major, channels interleaved.
    pub pixels: &'a [u8],
}

impl fmt::Debug for Page<'_> {
    /// Without the pixels.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("Page");
        shown.field("width", &self.width);
        shown.field("height", &self.height).finish_non_exhaustive()
    }
}

/// A word, or what a reader takes for one.
#[derive(Clone, PartialEq)]
pub struct Word {
    /// As read.
    pub text: String,
    /// How sure the reader is, in percent.
    pub confidence: f32,
    pub area: Area,
    /// The line of text that it is part of.
    pub line: Area,
}

impl fmt::Debug for Word {
    /// Without the text, which may be somebody's name.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("Word");
        shown.field("confidence", &self.confidence);
        shown.field("area", &self.area).finish_non_exhaustive()
    }
}

/// A rectangle of a picture, in pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Area {
    /// Columns to the left of it.
    pub left: u32,
    /// Rows above it.
    pub top: u32,
    pub width: u32,
    pub height: u32,
}

impl Area {
    fn holds_centre_of(self, other: Self) -> bool {
        let within = |from: u32, length: u32, at: u32| {
            (u64::from(from)..u64::from(from) + u64::from(length)).contains(&u64::from(at))
        };
        let x = other.left.saturating_add(other.width / 2);
        let y = other.top.saturating_add(other.height / 2);
        within(self.left, self.width, x) && within(self.top, self.height, y)
    }
}

/// Why nothing is known of a picture's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TextReaderError {
    /// There is no reader, for no fault of the picture.
    #[error("the program that reads text cannot be started")]
    Unavailable,
    /// It ended without an answer, more than once.
    #[error("the program that reads text ended without an answer")]
    Failed,
    #[error("reading text took too much processor time")]
    TooSlow,
    /// It took longer than it may by the clock, which a machine with much else to do can be to blame for.
    #[error("reading text took too long")]
    Overdue,
    #[error("nobody waits for the text any more")]
    Stopped,
}

/// Which pictures: by what is known of them before they are looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TextKind {
    /// Pictures without a header: PNG, JPEG, TIFF.
    Picture,
    /// DICOM images of kinds that carry no text as a rule, whose header says nothing: radiographs, photographs.
    Unsaid,
    /// The same of CT and MR, and the slices of NIfTI.
    Slice,
    /// Images that are refused by their header, and of which the caller allows it: ultrasound, secondary captures.
    Allowed,
    /// Images whose header says that there is no text.
    Vouched,
}

impl TextKind {
    pub const ALL: &'static [Self] = &[
        Self::Picture,
        Self::Unsaid,
        Self::Slice,
        Self::Allowed,
        Self::Vouched,
    ];
}

/// Which kinds of pictures are shown to the reader.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TextKinds(u8);

impl TextKinds {
    pub(crate) fn holds(self, kind: TextKind) -> bool {
        self.0 & 1 << kind as u8 != 0
    }
}

impl FromIterator<TextKind> for TextKinds {
    fn from_iter<T: IntoIterator<Item = TextKind>>(kinds: T) -> Self {
        Self(
            kinds
                .into_iter()
                .fold(0, |bits, kind| bits | 1 << kind as u8),
        )
    }
}

/// What is done with a picture in which text was found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FoundText {
    /// Its file is refused with [`Reason::BurnedInText`].
    #[default]
    Refuse,
    /// The lines that hold it are painted over, and a note says so.
    PaintOver,
}

/// Looks for text in pixels.
#[derive(Clone, Copy, Debug)]
pub struct TextCheck {
    /// Who reads.
    pub reader: &'static dyn TextReader,
    /// What is looked at.
    pub kinds: TextKinds,
    /// Words of which the reader is less sure, in percent, don't count.
    pub confidence_min: f32,
    /// Words with fewer letters and digits don't count.
    pub length_min: usize,
    /// What follows.
    pub found: FoundText,
}

impl PartialEq for TextCheck {
    /// Two readers are equal if they are one.
    fn eq(&self, other: &Self) -> bool {
        std::ptr::addr_eq(self.reader, other.reader)
            && self.kinds == other.kinds
            && self.confidence_min == other.confidence_min
            && self.length_min == other.length_min
            && self.found == other.found
    }
}

impl TextCheck {
    /// `None` where the picture may be used as it is, else the picture to use instead.
    ///
    /// # Errors
    /// Text in a picture that must have none, and a reader that gives no answer.
    pub(crate) fn look(
        &self,
        kind: TextKind,
        picture: &Picture,
    ) -> Result<Option<Picture>, Refusal> {
        if !self.kinds.holds(kind) {
            return Ok(None);
        }
        let words = self.words(picture)?;
        if words.is_empty() {
            return Ok(None);
        }
        match self.found {
            FoundText::Refuse => Err(refusal(&words, picture)),
            FoundText::PaintOver => Ok(Some(painted(picture, &words))),
        }
    }

    /// As [`Self::look`], at any picture and with nothing painted over.
    pub(crate) fn refuse(&self, picture: &Picture) -> Result<(), Refusal> {
        let words = self.words(picture)?;
        if words.is_empty() {
            Ok(())
        } else {
            Err(refusal(&words, picture))
        }
    }

    /// The words that count. A reader that looks at a picture in more than one way finds a word more than once, and not always
    /// to its end.
    fn words(&self, picture: &Picture) -> Result<Vec<Word>, Refusal> {
        if picture.width.min(picture.height) < SIDE_MIN {
            return Ok(Vec::new());
        }
        let page = Page {
            width: picture.width,
            height: picture.height,
            channels: picture.channels,
            pixels: &picture.pixels,
        };
        let read = self.reader.read(&page).map_err(|error| {
            Refusal::new(match error {
                TextReaderError::Failed => Reason::TextReaderFailed,
                TextReaderError::TooSlow => Reason::TextReaderTooSlow,
                TextReaderError::Overdue => Reason::TextReaderOverdue,
                // Stopped: whoever waited for the outcome is gone.
                TextReaderError::Unavailable | TextReaderError::Stopped => {
                    Reason::TextReaderUnavailable
                }
            })
        })?;
        Ok(read.into_iter().filter(|word| self.counts(word)).collect())
    }

    fn counts(&self, word: &Word) -> bool {
        let text = word.text.trim_matches(|c: char| !c.is_alphanumeric());
        let length = text.chars().filter(|c| c.is_alphanumeric()).count();
        word.confidence >= self.confidence_min && length >= self.length_min && !is_mark(text)
    }
}

fn is_mark(text: &str) -> bool {
    let mut marks = MARKS.lines().filter(|line| !line.starts_with('#'));
    marks.any(|mark| mark.eq_ignore_ascii_case(text))
}

/// Numbers only; a word that was found again counts once.
fn refusal(words: &[Word], picture: &Picture) -> Refusal {
    let refusal = Refusal::new(Reason::BurnedInText);
    let mut areas: Vec<Area> = Vec::new();
    for Word { area, .. } in words {
        if !areas.iter().any(|one| one.holds_centre_of(*area)) {
            areas.push(*area);
        }
    }
    let Some(area) = areas.first() else {
        return refusal;
    };
    refusal.found(format_args!(
        "{} word(s) in an image of {} x {}, the first of {} x {} pixels at {}, {}",
        areas.len(),
        picture.width,
        picture.height,
        area.width,
        area.height,
        area.left,
        area.top
    ))
}

/// Black over the words' whole lines, as parts of a name may not have been made out, and a little around them.
fn painted(picture: &Picture, words: &[Word]) -> Picture {
    let mut painted = picture.clone();
    let channels = picture.channels as usize;
    let row_bytes = picture.width as usize * channels;
    for area in words.iter().flat_map(|word| [word.line, word.area]) {
        let around = (area.height / 2).max(2);
        let left = area.left.saturating_sub(around).min(picture.width);
        let right = area.left.saturating_add(area.width).saturating_add(around);
        let bottom = area.top.saturating_add(area.height).saturating_add(around);
        let (right, bottom) = (right.min(picture.width), bottom.min(picture.height));
        for row in area.top.saturating_sub(around)..bottom {
            let row = row as usize * row_bytes;
            let (from, to) = (left as usize * channels, right as usize * channels);
            painted.pixels[row + from..row + to].fill(0);
        }
    }
    painted
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads the same words in every picture.
    #[derive(Debug)]
    struct Reads(Result<Vec<Word>, TextReaderError>);

    impl TextReader for Reads {
        fn read(&self, _page: &Page<'_>) -> Result<Vec<Word>, TextReaderError> {
            self.0.clone()
        }
    }

    const AREA: Area = Area {
        left: 20,
        top: 10,
        width: 12,
        height: 6,
    };

    fn word(text: &str, confidence: f32) -> Word {
        Word {
            text: text.to_owned(),
            confidence,
            area: AREA,
            line: Area { width: 30, ..AREA },
        }
    }

    fn check_of(read: Result<Vec<Word>, TextReaderError>) -> TextCheck {
        TextCheck {
            reader: Box::leak(Box::new(Reads(read))),
            kinds: [TextKind::Picture, TextKind::Unsaid, TextKind::Slice]
                .into_iter()
                .collect(),
            confidence_min: 60.0,
            length_min: 3,
            found: FoundText::Refuse,
        }
    }

    fn picture(channels: u32) -> Picture {
        Picture {
            width: 64,
            height: 40,
            channels,
            pixels: vec![9; 64 * 40 * channels as usize],
        }
    }

    fn check(text: &str, confidence: f32, counts: bool) {
        let found = check_of(Ok(vec![word(text, confidence)])).look(TextKind::Picture, &picture(1));
        assert_eq!(found.is_err(), counts, "{text} {confidence}");
    }

    #[test]
    fn words_count_by_their_length_and_by_how_sure_the_reader_is() {
        check("JANE", 60.0, true);
        check("JANE", 59.9, false);
        check("12.03.1950", 90.0, true);
        check("Müller", 90.0, true);
        check("J.D.", 90.0, false);
        check("~--|", 90.0, false);
        check("", 90.0, false);
    }

    #[test]
    fn marks_of_side_view_and_position_name_nobody() {
        for mark in ["SUPINE", "Portable", "(LEFT)", "rmlo", "semi-erect"] {
            check(mark, 96.0, false);
        }
        check("SUPINEDOE", 96.0, true);
        check("#", 96.0, false);
    }

    #[test]
    fn every_mark_is_in_the_list_once() {
        let lines = || MARKS.lines().filter(|line| !line.starts_with('#'));
        for mark in lines() {
            assert_eq!(mark, mark.trim(), "no space around it");
            assert_eq!(lines().filter(|line| *line == mark).count(), 1, "{mark}");
        }
    }

    #[test]
    fn a_refusal_says_how_many_and_where_and_never_what() {
        let mut second = word("4711-883", 90.0);
        second.area.top = 30;
        let words = vec![word("JANE", 90.0), word("JANE", 80.0), second];
        let refusal = check_of(Ok(words)).look(TextKind::Slice, &picture(1));
        let refusal = refusal.expect_err("two words");
        assert_eq!(refusal.reason, Reason::BurnedInText);
        let found = refusal.found.clone().expect("numbers");
        let expected = "2 word(s) in an image of 64 x 40, the first of 12 x 6 pixels at 20, 10";
        assert_eq!(found, expected);
        for text in [format!("{refusal:?}"), format!("{:?}", word("JANE", 90.0))] {
            assert!(!text.contains("JANE"), "{text}");
        }
    }

    #[test]
    fn lines_are_painted_over_where_that_is_allowed() {
        for channels in [1, 3] {
            let mut check = check_of(Ok(vec![word("JANE", 90.0)]));
            check.found = FoundText::PaintOver;
            let painted = check.look(TextKind::Unsaid, &picture(channels));
            let painted = painted.expect("used").expect("painted over");
            for (at, pixel) in painted.pixels.chunks_exact(channels as usize).enumerate() {
                let (x, y) = (at % 64, at / 64);
                let black = (17..53).contains(&x) && (7..19).contains(&y);
                assert!(
                    pixel.iter().all(|v| *v == if black { 0 } else { 9 }),
                    "{x} {y}"
                );
            }
        }
    }

    #[test]
    fn a_word_that_is_found_again_is_painted_over_as_far_as_either_reaches() {
        let part = Word {
            line: AREA,
            ..word("JANE", 90.0)
        };
        let mut check = check_of(Ok(vec![part, word("JANEDOE", 90.0)]));
        check.found = FoundText::PaintOver;
        let painted = check.look(TextKind::Unsaid, &picture(1));
        let painted = painted.expect("used").expect("painted over");
        let row = &painted.pixels[10 * 64..11 * 64];
        assert!(row[17..53].iter().all(|v| *v == 0), "{row:?}");
        assert_eq!(row[53], 9);
    }

    #[test]
    fn areas_beyond_the_picture_are_cut() {
        let mut far = word("JANE", 90.0);
        far.area.left = u32::MAX;
        far.line = Area {
            left: 60,
            top: 38,
            width: u32::MAX,
            height: u32::MAX,
        };
        let mut check = check_of(Ok(vec![far]));
        check.found = FoundText::PaintOver;
        let painted = check.look(TextKind::Unsaid, &picture(1));
        let painted = painted.expect("used").expect("painted over");
        assert_eq!(painted.pixels.last(), Some(&0));
    }

    #[test]
    fn what_is_not_asked_about_is_not_shown_to_the_reader() {
        let check = check_of(Err(TextReaderError::Failed));
        assert_eq!(check.look(TextKind::Vouched, &picture(1)), Ok(None));
        let mut small = picture(1);
        (small.width, small.height) = (2560, 1);
        assert_eq!(check.look(TextKind::Picture, &small), Ok(None));
    }

    #[test]
    fn a_reader_without_an_answer_refuses() {
        let reason = |error| {
            let refused = check_of(Err(error)).look(TextKind::Picture, &picture(1));
            refused.expect_err("nothing is known").reason
        };
        assert_eq!(reason(TextReaderError::Failed), Reason::TextReaderFailed);
        assert_eq!(reason(TextReaderError::TooSlow), Reason::TextReaderTooSlow);
        assert_eq!(reason(TextReaderError::Overdue), Reason::TextReaderOverdue);
        let unavailable = Reason::TextReaderUnavailable;
        assert_eq!(reason(TextReaderError::Unavailable), unavailable);
        assert_eq!(reason(TextReaderError::Stopped), unavailable);
    }
}
