//! One input of a job: a file, or an archive whose members are the files. One member is in memory at a time, and of a medium
//! that holds a DICOMDIR only what is DICOM is looked at: viewers, licences and icons lie beside studies on every such disc.

use dicom_dictionary_std::tags;

use crate::ahead::{Ahead, Cost, ahead};
use crate::archive::{Step, steps};
use crate::pair::{join, of_opened};
use crate::volume::each_slice;
use crate::{
    Archive, Decoded, Examination, Format, Frame, FrameInfo, Identifiers, Limits, Options,
    Patients, Prepared, Reason, Refusal, SlicePlan, Turned, decode_slices, header, picture,
    prepare, slide, sniff,
};

/// One file of an input.
#[derive(Debug)]
pub struct Part {
    /// Which file of the archive, from 0; `None` where the input is the file.
    pub member: Option<u32>,
    /// What it is, or why it is refused.
    pub outcome: Result<Prepared, Refusal>,
}

/// Everything that is read of an input before its study is known.
#[derive(Debug)]
pub struct ReadInput {
    /// Its files; of those that stand for themselves without their frames, which were given away before.
    pub parts: Vec<Part>,
    /// What their headers say about whose they are, as [`identifiers`](crate::identifiers) gives it.
    pub identifiers: Identifiers,
    /// Its films, and those that its presentation states show turned.
    pub turned: Turned,
    /// Of one patient, whose it is; of a known one, as [`examination`](crate::examination) gives it; of any, none.
    pub examination: Option<Examination>,
}

/// As [`prepare_parts`], with what the headers say about the patient and, to be compared, about the time; an archive is
/// unpacked once for all of it. The frames of each file that stands for itself go to `each` as soon as they are made, with
/// which file of the archive it is, since those of all files together may be too much to hold.
///
/// That they came does not say that they count: a later file may refuse all of the input, or be a DICOMDIR beside which pictures
/// are left out. [`ReadInput::parts`] has [`Prepared::Frames`] for the files whose frames count, and for no other.
///
/// # Errors
/// As [`prepare_parts`] and [`identifiers`](crate::identifiers), and files of other `patients` than there may be.
pub fn read_input(
    bytes: &[u8],
    options: &Options,
    frames_max: u32,
    patients: Patients,
    each: &mut dyn FnMut(Option<u32>, Decoded),
) -> Result<ReadInput, Refusal> {
    let (mut identifiers, mut examination) = (Identifiers::default(), None);
    let mut turned = Turned::default();
    let mut also = |file: &[u8], limits: &Limits| -> Result<(), Refusal> {
        // What is no image at all is decided on where it is decoded, and other formats say nothing of it.
        if sniff(file) != Ok(Format::Dicom) {
            return Ok(());
        }
        // Once for all, as a deflated one is unpacked for it.
        let opened = header::open(file, limits)?;
        identifiers.read_opened(&opened)?;
        turned.read(&opened, limits)?;
        join(&mut examination, of_opened(&opened, limits)?, patients)
    };
    let mut taken = |member: Option<u32>, decoded: &mut Decoded| {
        let frames = std::mem::take(&mut decoded.frames);
        let decoded = decoded.clone();
        each(member, Decoded { frames, ..decoded });
    };
    let parts = each_part(bytes, options, frames_max, (&mut also, &mut taken))?;
    Ok(ReadInput {
        parts,
        identifiers: identifiers.complete()?,
        turned,
        examination,
    })
}

/// Reads every file of an input. Frames are kept until the last file is read, so that `frames_max` bounds them.
///
/// # Errors
/// An archive that is broken or beyond a limit is refused as a whole: half a study must not be taken for all of it.
pub fn prepare_parts(
    bytes: &[u8],
    options: &Options,
    frames_max: u32,
) -> Result<Vec<Part>, Refusal> {
    let mut also = |_: &[u8], _: &Limits| -> Result<(), Refusal> { Ok(()) };
    let mut kept = |_: Option<u32>, _: &mut Decoded| {};
    each_part(bytes, options, frames_max, (&mut also, &mut kept))
}

/// What else is done with each file, with the limits that are left beside it.
type Also<'a> = &'a mut dyn FnMut(&[u8], &Limits) -> Result<(), Refusal>;
/// Who may take frames before the last file is read.
type Taken<'a> = &'a mut dyn FnMut(Option<u32>, &mut Decoded);

/// Every file, prepared, then given to `also`. A refusal by that is one of the whole input. Frames that count so far are then
/// given to `taken`.
fn each_part(
    bytes: &[u8],
    options: &Options,
    frames_max: u32,
    (also, taken): (Also<'_>, Taken<'_>),
) -> Result<Vec<Part>, Refusal> {
    if Archive::of(bytes).is_none() {
        let mut outcome = prepare(bytes, options);
        also(bytes, options.limits())?;
        if let Ok(Prepared::Frames(decoded)) = &mut outcome {
            taken(None, decoded);
        }
        return Ok(vec![Part {
            member: None,
            outcome,
        }]);
    }
    let limits = options.limits();
    if bytes.len() as u64 > limits.file_bytes_max {
        return Err(Refusal::new(Reason::TooLarge).found(format_args!("{} bytes", bytes.len())));
    }
    let make = |file: Vec<u8>| {
        let outcome = prepare(&file, &options.beside(&file));
        (file, outcome)
    };
    let mut read = ReadParts {
        options,
        frames_max: frames_max as usize,
        also,
        taken,
        parts: Vec::new(),
        dicom: Vec::new(),
        frames: 0,
        slices: 0,
        pixels: 0,
    };
    ahead(
        limits.codestreams,
        (threads(options), room(limits)),
        &make,
        |ahead: &mut Ahead<'_, Vec<u8>, PreparedFile>| {
            let mut take = |file: PreparedFile| read.take(file);
            let mut ended = Ok(());
            let opened = steps(bytes, limits, &mut |step| {
                if ended.is_ok() {
                    ended = match step {
                        Step::Comes(bytes) => ahead.make_room(Cost { bytes, pixels: 0 }, &mut take),
                        Step::File(member) => match cost(&member.bytes, options) {
                            Some(cost) => ahead.put(member.bytes, cost, &mut take),
                            None => ahead
                                .finish(&mut take)
                                .and_then(|()| take(make(member.bytes))),
                        },
                    };
                }
            });
            // What came before a fault of the archive counts as it does on one thread.
            ended = ended.and_then(|()| ahead.finish(&mut take));
            opened.and(ended)
        },
    )?;
    Ok(read.whole())
}

/// A file of an archive, and what it became.
type PreparedFile = (Vec<u8>, Result<Prepared, Refusal>);

/// What was read of the files of an archive so far.
struct ReadParts<'a> {
    options: &'a Options,
    frames_max: usize,
    also: Also<'a>,
    taken: Taken<'a>,
    parts: Vec<Part>,
    /// Which of them are DICOM files.
    dicom: Vec<bool>,
    frames: usize,
    slices: u64,
    /// That were looked at for the slices.
    pixels: u64,
}

impl ReadParts<'_> {
    /// Takes the next file.
    ///
    /// # Errors
    /// What refuses the whole archive, whose other files are then unpacked and no more.
    fn take(&mut self, (file, mut outcome): PreparedFile) -> Result<(), Refusal> {
        let limits = self.options.limits();
        let fault = (self.also)(&file, &limits.beside(&file));
        let number = self.parts.len() as u32;
        match &mut outcome {
            Ok(Prepared::Frames(decoded)) => {
                self.frames += decoded.frames.len();
                if self.frames > self.frames_max {
                    return Err(Refusal::new(Reason::TooManyFrames)
                        .found(format_args!("more than {}", self.frames_max)));
                }
                fault?;
                (self.taken)(Some(number), decoded);
            }
            // Not the fault of that file alone: with more room for all of the archive it may be good.
            Err(refusal) if refusal.reason == Reason::UnpackedTooLarge => {
                return Err(refusal.clone());
            }
            Ok(Prepared::Slices(of_file)) => {
                fault?;
                self.slices += u64::from(of_file.count());
                self.pixels += of_file.pixels();
                limits.check_volume(self.slices, self.pixels)?;
            }
            _ => fault?,
        }
        self.dicom.push(sniff(&file) == Ok(Format::Dicom));
        self.parts.push(Part {
            member: Some(number),
            outcome,
        });
        Ok(())
    }

    /// All of them.
    fn whole(self) -> Vec<Part> {
        let mut parts = self.parts;
        let is_directory = |part: &Part| matches!(&part.outcome, Err(refusal) if refusal.reason == Reason::DicomDirectory);
        if parts.iter().any(is_directory) {
            let beside = parts.iter_mut().zip(self.dicom).filter(|(_, dicom)| !dicom);
            for (part, _) in beside {
                part.outcome = Err(Refusal::new(Reason::BesideDirectory));
            }
        }
        parts
    }
}

/// Threads that make the files of an archive. Where text is looked for it is one, as it is for the frames of a file.
fn threads(options: &Options) -> usize {
    if options.text_check().is_some() {
        1
    } else {
        options.limits().threads_max as usize
    }
}

/// What the files of an archive that nobody has taken yet may cost together: as many bytes as may be unpacked at a time, and as
/// many pixels as one frame may have.
fn room(limits: &Limits) -> Cost {
    Cost {
        bytes: limits.unpacked_bytes_max,
        pixels: limits.frame_pixels_max,
    }
}

/// What a file costs while it is made beside others; `None` for one that is made alone: with several frames, for which there are
/// threads besides, with something in it that is unpacked, or without a word about its size where that is looked for.
fn cost(bytes: &[u8], options: &Options) -> Option<Cost> {
    let (width, height) = match sniff(bytes).ok()? {
        Format::Dicom => single_frame(bytes, options.limits())?,
        format => picture::size(bytes, format)?,
    };
    let side = u64::from(width.max(height));
    Some(Cost {
        bytes: bytes.len() as u64,
        // u32 squared fits into u64.
        pixels: side * side,
    })
}

/// Columns and rows of a DICOM file with one frame, which is no part of a slide.
fn single_frame(bytes: &[u8], limits: &Limits) -> Option<(u32, u32)> {
    if header::is_deflated(bytes) {
        return None;
    }
    let opened = header::open(bytes, limits).ok()?;
    let header = header::read(&opened, limits).ok()?;
    let frames = header.elements.integer(tags::NUMBER_OF_FRAMES).ok()?;
    let side = |tag| header.u16(tag).ok().flatten().map(u32::from);
    (frames.unwrap_or(1) == 1 && !slide::is_tiled(&header))
        .then_some((side(tags::COLUMNS)?, side(tags::ROWS)?))
}

/// How many files like this one may be made at a time in the room of one that may be as large as a file may be: up to
/// [`Limits::threads_max`], and one of those that are made alone or looked at for text.
pub fn files_beside(bytes: &[u8], options: &Options) -> u32 {
    let most = options.limits().frame_pixels_max;
    let fitting = cost(bytes, options).map_or(1, |cost| most / cost.pixels.max(1));
    // At most threads_max, which has 32 bits.
    fitting.clamp(1, threads(options).max(1) as u64) as u32
}

/// Whether reading these bytes unpacks some of them, so that it takes memory besides: archives, and deflated data sets.
pub fn unpacks(bytes: &[u8]) -> bool {
    Archive::of(bytes).is_some() || sniff(bytes) == Ok(Format::Dicom) && header::is_deflated(bytes)
}

/// Whether a file is a DICOMDIR, from the bytes of its preamble and file meta information.
pub fn is_dicom_directory(head: &[u8]) -> bool {
    // The limits bound what may be unpacked, and of a directory nothing is.
    sniff(head) == Ok(Format::Dicom)
        && header::open(head, &Limits::default()).is_ok_and(|opened| opened.is_directory())
}

impl Refusal {
    /// Whether the file may be left out, with its reason told, where other files of the study hold images: it holds none.
    pub fn leaves_out(&self) -> bool {
        matches!(
            self.reason,
            Reason::NoPixelData
                | Reason::PresentationState
                | Reason::DicomDirectory
                | Reason::BesideDirectory
        )
    }
}

/// What becomes of a slice, or of the rest of a file that is refused: which file of the archive, and either. An error of its own
/// ends it all; the other files of the archive are decoded otherwise.
pub type EachSlice<'a> =
    &'a mut dyn FnMut(Option<u32>, Result<(Frame, FrameInfo), Refusal>) -> Result<(), Refusal>;

/// Decodes the `wanted` frames of an input's files, each given by its member, as the plan of their volume says. `each` gets
/// them one after the other, in the order of the archive, and of a file that is refused as by
/// [`decode_slices`](crate::decode_slices) why.
///
/// # Errors
/// What `each` ends with, and an archive that is broken; the input must be the one that the plan was made with.
pub fn decode_parts(
    bytes: &[u8],
    wanted: &[(Option<u32>, Vec<u32>)],
    plan: &SlicePlan,
    options: &Options,
    each: EachSlice<'_>,
) -> Result<(), Refusal> {
    let of = |member: Option<u32>| wanted.iter().find(|(of, _)| *of == member);
    if let Some(wanted) = of(None) {
        return decode_part(bytes, wanted, plan, options, each);
    }
    let limits = options.limits();
    let make = |(wanted, file): WantedFile<'_>| -> DecodedFile {
        let (member, frames) = wanted;
        let decoded = decode_slices(&file, frames, plan, &options.beside(&file));
        (*member, decoded)
    };
    let (mut number, mut ended) = (0, Ok(()));
    ahead(
        limits.codestreams,
        (threads(options), room(limits)),
        &make,
        |ahead: &mut Ahead<'_, WantedFile<'_>, DecodedFile>| {
            let opened = steps(bytes, limits, &mut |step| {
                let mut take = |file: DecodedFile| give(file, each);
                let member = match step {
                    _ if ended.is_err() => return,
                    Step::Comes(bytes) => {
                        ended = ahead.make_room(Cost { bytes, pixels: 0 }, &mut take);
                        return;
                    }
                    Step::File(member) => member.bytes,
                };
                let wanted = of(Some(number));
                number += 1;
                let Some(wanted) = wanted else { return };
                ended = match cost(&member, options) {
                    Some(cost) if wanted.1.len() == 1 => {
                        ahead.put((wanted, member), cost, &mut take)
                    }
                    _ => ahead.finish(&mut take).and_then(|()| {
                        decode_part(&member, wanted, plan, &options.beside(&member), each)
                    }),
                };
            });
            // What came before a fault of the archive is given away as it is on one thread.
            ended = ended.and_then(|()| ahead.finish(&mut |file: DecodedFile| give(file, each)));
            opened.and(ended)
        },
    )
}

/// The file of a member, and its frames that are wanted.
type Wanted = (Option<u32>, Vec<u32>);
type WantedFile<'a> = (&'a Wanted, Vec<u8>);
/// What became of them.
type DecodedFile = (Option<u32>, Result<Vec<(Frame, FrameInfo)>, Refusal>);

fn give((member, decoded): DecodedFile, each: EachSlice<'_>) -> Result<(), Refusal> {
    match decoded {
        Ok(frames) => frames
            .into_iter()
            .try_for_each(|frame| each(member, Ok(frame))),
        Err(refusal) => each(member, Err(refusal)),
    }
}

/// One file by itself: its frames are given away as they are made.
fn decode_part(
    bytes: &[u8],
    (member, frames): &Wanted,
    plan: &SlicePlan,
    options: &Options,
    each: EachSlice<'_>,
) -> Result<(), Refusal> {
    let mut ended = Ok(());
    let decoded = each_slice(bytes, frames, plan, options, &mut |frame, info| {
        if ended.is_ok() {
            ended = each(*member, Ok((frame, info)));
        }
    });
    ended?;
    decoded.or_else(|refusal| each(*member, Err(refusal)))
}
