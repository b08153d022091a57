//! Whose images are: that those of one job are of one patient and of one study, and of two examinations to compare, which was
//! taken first.
//!
//! It reads what `dataset` never keeps, the patient's identity and the date, and gives away nothing but an order.

use std::fmt;

use dicom_core::Tag;
use dicom_dictionary_std::tags;

use crate::calendar::days;
use crate::elements::Elements;
use crate::header::{self, Opened};
use crate::{Archive, Format, Limits, Note, Reason, Refusal, members, sniff};

const MICROS_A_SECOND: i64 = 1_000_000;
const MICROS_A_DAY: i64 = 86_400 * MICROS_A_SECOND;

/// Whose image it is, and when it was taken; to compare with another one's.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Examination {
    patient: Patient,
    study: Study,
    taken: Option<Taken>,
}

impl fmt::Debug for Examination {
    /// Says nothing: everything in it is about a patient.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Examination").finish_non_exhaustive()
    }
}

/// Of how many patients the files of an input may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Patients {
    /// Of any: each is looked at by itself.
    Any,
    /// Of one, and of one study or one day's: nothing that one file says contradicts another.
    One,
    /// Of one that is known, and of one study, to be compared with another input's.
    Known,
}

/// Which of two images is the prior one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PairOrder {
    /// The first, by its date.
    FirstIsPrior,
    /// The second, by its date.
    SecondIsPrior,
    /// Neither has a header: the first, because it was named first.
    AsGiven,
}

impl PairOrder {
    /// What is said of the first of the two and of the second.
    pub fn notes(self) -> [Note; 2] {
        match self {
            Self::FirstIsPrior => [Note::PriorExamination, Note::CurrentExamination],
            Self::SecondIsPrior => [Note::CurrentExamination, Note::PriorExamination],
            Self::AsGiven => [Note::OrderAsGiven; 2],
        }
    }
}

#[derive(Clone, Default, PartialEq, Eq)]
struct Patient {
    id: Vec<u8>,
    issuer: Vec<u8>,
    name: Vec<u8>,
    birth_date: Vec<u8>,
}

/// Which study the images are of.
#[derive(Clone, Default, PartialEq, Eq)]
struct Study {
    /// Study Instance UID, empty where no image has one; of several studies that of one.
    uid: Vec<u8>,
    several: bool,
    /// Patient ID, date of birth and Study Date, where all images say the same.
    day: Option<(Vec<u8>, Vec<u8>, i64)>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
struct Taken {
    /// Days since an arbitrary one.
    day: i64,
    /// Since midnight.
    micros: Option<i64>,
    /// Of that midnight from the universal one.
    offset_minutes: Option<i64>,
}

/// What an input says about whose it is and when it was taken; of an archive, its earliest DICOM file. `None` where no header
/// could say so.
///
/// # Errors
/// A header that can't be walked, and an archive with files of several patients or studies.
pub fn examination(bytes: &[u8], limits: &Limits) -> Result<Option<Examination>, Refusal> {
    if Archive::of(bytes).is_none() {
        return of_file(bytes, limits);
    }
    let (mut found, mut fault) = (None::<Examination>, None);
    members(bytes, limits, &mut |member| {
        if fault.is_some() || sniff(&member.bytes).is_err() {
            return;
        }
        let limits = limits.beside(&member.bytes);
        let read = of_file(&member.bytes, &limits);
        fault = read
            .and_then(|read| join(&mut found, read, Patients::Known))
            .err();
    })?;
    fault.map_or(Ok(found), Err)
}

/// Adds what one more file of an input says; nothing where they may be of any patient.
pub(crate) fn join(
    found: &mut Option<Examination>,
    read: Option<Examination>,
    patients: Patients,
) -> Result<(), Refusal> {
    if patients == Patients::Any {
        return Ok(());
    }
    *found = match (found.take(), read) {
        (Some(mut known), Some(read)) if patients == Patients::One => {
            known.add(&read)?;
            Some(known)
        }
        (Some(known), Some(read)) => Some(known.with(read)?),
        (known, read) => known.or(read),
    };
    Ok(())
}

/// Which of two inputs shows the prior examination.
///
/// # Errors
/// [`Reason::DifferentPatients`] unless both are known to be of one, [`Reason::AcquisitionUnknown`] where a date is missing, or
/// the time of two images of one day, [`Reason::SameAcquisition`] where they do not differ.
pub fn pair_order(
    first: Option<&Examination>,
    second: Option<&Examination>,
) -> Result<PairOrder, Refusal> {
    let unknown = || Refusal::new(Reason::AcquisitionUnknown);
    let (first, second) = match (first, second) {
        (None, None) => return Ok(PairOrder::AsGiven),
        (Some(first), Some(second)) => (first, second),
        _ => return Err(unknown()),
    };
    first.patient.same(&second.patient)?;
    let (first, second) = first.taken.zip(second.taken).ok_or_else(unknown)?;
    match first.sooner(second).ok_or_else(unknown)? {
        std::cmp::Ordering::Less => Ok(PairOrder::FirstIsPrior),
        std::cmp::Ordering::Greater => Ok(PairOrder::SecondIsPrior),
        std::cmp::Ordering::Equal => Err(Refusal::new(Reason::SameAcquisition)),
    }
}

/// Whether inputs may be of one patient and one study or one day's, of which one is told at a time.
pub fn one_study(examinations: &[Option<Examination>]) -> Result<(), Refusal> {
    let mut known = Examination::default();
    let mut told = examinations.iter().flatten();
    told.try_for_each(|examination| known.add(examination))
}

fn of_file(bytes: &[u8], limits: &Limits) -> Result<Option<Examination>, Refusal> {
    if sniff(bytes)? != Format::Dicom {
        return Ok(None);
    }
    of_opened(&header::open(bytes, limits)?, limits)
}

/// Of a DICOM file that is open.
pub(crate) fn of_opened(
    opened: &Opened<'_>,
    limits: &Limits,
) -> Result<Option<Examination>, Refusal> {
    // It lists images and is none.
    if opened.is_directory() {
        return Ok(None);
    }
    let (mut header, mut has_image) = (Dated::default(), false);
    let (data_set, encoding) = opened.data_set();
    for element in Elements::new(data_set, encoding) {
        let element = element?;
        if element.tag == tags::PIXEL_DATA {
            has_image = true;
            break;
        }
        // An image with more of a header is refused where it is decoded.
        if header::is_within(&element, limits) {
            header.read(element.tag, &data_set[element.value.clone()]);
        }
    }
    let mut examination = header.examination();
    // A report or a plan beside the images may be of an earlier study of the patient's.
    if !has_image {
        examination.study = Study::default();
    }
    Ok(Some(examination))
}

/// The elements that matter here, as text.
#[derive(Default)]
struct Dated {
    patient: Patient,
    study: Vec<u8>,
    acquired: String,
    /// Of acquisition and study: date and time.
    dates: [String; 2],
    times: [String; 2],
    offset: String,
    /// Whether who hides names has been at work.
    nameless: bool,
}

impl Dated {
    fn read(&mut self, tag: Tag, value: &[u8]) {
        let text = || String::from_utf8_lossy(trimmed(value)).into_owned();
        let bytes = || trimmed(value).to_vec();
        match tag {
            tags::PATIENT_ID => self.patient.id = bytes(),
            tags::ISSUER_OF_PATIENT_ID => self.patient.issuer = bytes(),
            tags::PATIENT_NAME => self.patient.name = bytes(),
            tags::PATIENT_BIRTH_DATE => self.patient.birth_date = bytes(),
            tags::PATIENT_IDENTITY_REMOVED => self.nameless = text() == "YES",
            tags::STUDY_INSTANCE_UID => self.study = bytes(),
            tags::ACQUISITION_DATE_TIME => self.acquired = text(),
            tags::ACQUISITION_DATE => self.dates[0] = text(),
            tags::ACQUISITION_TIME => self.times[0] = text(),
            tags::STUDY_DATE => self.dates[1] = text(),
            tags::STUDY_TIME => self.times[1] = text(),
            tags::TIMEZONE_OFFSET_FROM_UTC => self.offset = text(),
            _ => {}
        }
    }

    /// Acquisition before study, as a study may begin long before one of its images, and its date may be that of the order.
    fn examination(self) -> Examination {
        let offset_minutes = offset(&self.offset);
        let own = Taken::read(&self.acquired);
        let others = self.dates.iter().zip(&self.times);
        let mut others = others.filter_map(|(date, time)| {
            Some(Taken {
                day: day(date)?,
                micros: micros(time),
                offset_minutes: None,
            })
        });
        let taken = own.or_else(|| others.next()).map(|taken| Taken {
            offset_minutes: taken.offset_minutes.or(offset_minutes),
            ..taken
        });
        let Patient { id, birth_date, .. } = &self.patient;
        // Who hides names may give all patients one number and one date, of birth as of study.
        let day_of_study = day(&self.dates[1]).filter(|study| {
            let born = std::str::from_utf8(birth_date).ok().and_then(day);
            !self.nameless && !id.is_empty() && born.is_some_and(|born| born != *study)
        });
        let study = Study {
            uid: self.study,
            several: false,
            day: day_of_study.map(|day| (id.clone(), birth_date.clone(), day)),
        };
        Examination {
            patient: self.patient,
            study,
            taken,
        }
    }
}

impl Examination {
    /// Learns what another file says of the same patient and study.
    fn add(&mut self, other: &Self) -> Result<(), Refusal> {
        self.patient.add(&other.patient)?;
        self.study.add(&other.study)
    }

    /// Both of one archive: the earlier one.
    fn with(mut self, other: Self) -> Result<Self, Refusal> {
        self.patient.same(&other.patient)?;
        self.study.add(&other.study)?;
        if self.study.several {
            return Err(Study::refusal());
        }
        let later = match self.taken.zip(other.taken) {
            Some((own, other)) => own.sooner(other) == Some(std::cmp::Ordering::Greater),
            None => self.taken.is_none(),
        };
        if later {
            (self.patient, self.taken) = (other.patient, other.taken);
        }
        Ok(self)
    }
}

impl Study {
    /// Learns what another file says of it. Headers that name nobody, or all the same one, as who hides names may leave them, are
    /// told apart by their studies; without a worklist a device makes one of each exposure, so that those of one day are one.
    fn add(&mut self, other: &Self) -> Result<(), Refusal> {
        if self.uid.is_empty() {
            self.clone_from(other);
            return Ok(());
        }
        if other.uid.is_empty() {
            return Ok(());
        }
        self.several |= other.several || self.uid != other.uid;
        if self.day != other.day {
            self.day = None;
        }
        if self.several && self.day.is_none() {
            return Err(Self::refusal());
        }
        Ok(())
    }

    fn refusal() -> Refusal {
        Refusal::at(Reason::SeveralStudies, tags::STUDY_INSTANCE_UID)
    }
}

impl Patient {
    /// The same number from the same issuer, or where one has none, the same name and date of birth; nothing that contradicts it.
    fn same(&self, other: &Self) -> Result<(), Refusal> {
        let same = |a: &[u8], b: &[u8]| !a.is_empty() && a == b;
        let known = same(&self.id, &other.id)
            || same(&self.name, &other.name) && same(&self.birth_date, &other.birth_date);
        if known && !self.contradicts(other) {
            Ok(())
        } else {
            Err(Refusal::new(Reason::DifferentPatients))
        }
    }

    /// Names count for nothing here, as one may be written in several ways.
    fn contradicts(&self, other: &Self) -> bool {
        differ(&self.id, &other.id)
            || differ(&self.issuer, &other.issuer)
            || differ(&self.birth_date, &other.birth_date)
    }

    /// Learns what another file says of the same patient.
    fn add(&mut self, other: &Self) -> Result<(), Refusal> {
        if self.contradicts(other) {
            return Err(Refusal::new(Reason::DifferentPatients));
        }
        for (own, other) in [
            (&mut self.id, &other.id),
            (&mut self.issuer, &other.issuer),
            (&mut self.birth_date, &other.birth_date),
        ] {
            if own.is_empty() {
                own.clone_from(other);
            }
        }
        Ok(())
    }
}

impl Taken {
    /// A date and time in one (VR DT): down to the day at least.
    fn read(text: &str) -> Option<Self> {
        let (local, offset_minutes) = match text.rfind(['+', '-']) {
            Some(at) => (&text[..at], Some(offset(&text[at..])?)),
            None => (text, None),
        };
        let (date, time) = local.split_at_checked(8)?;
        Some(Self {
            day: day(date)?,
            micros: micros(time),
            offset_minutes,
        })
    }

    /// `None` where nobody knows.
    fn sooner(self, other: Self) -> Option<std::cmp::Ordering> {
        let whole = |taken: Self, offset: i64| {
            let local = taken.day * MICROS_A_DAY + taken.micros?;
            Some(local - offset * 60 * MICROS_A_SECOND)
        };
        if let Some((own, others)) = self.offset_minutes.zip(other.offset_minutes)
            && let Some((own, other)) = whole(self, own).zip(whole(other, others))
        {
            return Some(own.cmp(&other));
        }
        if self.day != other.day {
            return Some(self.day.cmp(&other.day));
        }
        Some(self.micros?.cmp(&other.micros?))
    }
}

/// Of what both say.
fn differ(a: &[u8], b: &[u8]) -> bool {
    !a.is_empty() && !b.is_empty() && a != b
}

fn trimmed(value: &[u8]) -> &[u8] {
    let end = value.iter().rposition(|byte| !matches!(byte, b' ' | 0));
    value[..end.map_or(0, |last| last + 1)].trim_ascii_start()
}

/// `YYYYMMDD`, or the older `YYYY.MM.DD`, as a number of days.
fn day(text: &str) -> Option<i64> {
    let text = text.replace('.', "");
    if text.len() != 8 || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let number = |range: std::ops::Range<usize>| text[range].parse::<i64>().ok();
    let (year, month, day) = (number(0..4)?, number(4..6)?, number(6..8)?);
    if !(1..=12).contains(&month) || !(1..=31).contains(&day) || year < 1850 {
        return None;
    }
    Some(days(year, month, day))
}

/// `HHMM`, `HHMMSS` or with up to six digits of a second, or the older `HH:MM:SS`; an hour alone is too coarse to order by.
fn micros(text: &str) -> Option<i64> {
    let text = text.replace(':', "");
    let (whole, fraction) = text.split_once('.').unwrap_or((&text, ""));
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    if !matches!(whole.len(), 4 | 6) || fraction.len() > 6 || !digits(whole) || !digits(fraction) {
        return None;
    }
    let number = |range: std::ops::Range<usize>| {
        whole
            .get(range)
            .map_or(Some(0), |text| text.parse::<i64>().ok())
    };
    let (hours, minutes, seconds) = (number(0..2)?, number(2..4)?, number(4..6)?);
    // 60 is a leap second.
    if hours > 23 || minutes > 59 || seconds > 60 {
        return None;
    }
    let micros = format!("{fraction:0<6}").parse::<i64>().ok()?;
    Some((hours * 3600 + minutes * 60 + seconds) * MICROS_A_SECOND + micros)
}

/// `+HHMM` or `-HHMM`, in minutes.
fn offset(text: &str) -> Option<i64> {
    let (sign, digits) = text.split_at_checked(1)?;
    if digits.len() != 4 || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let number: i64 = digits.parse().ok()?;
    let minutes = number / 100 * 60 + number % 100;
    match sign {
        "+" => Some(minutes),
        "-" => Some(-minutes),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
