//! One input of a job: a file, or an archive whose members are the files. One member is in memory at a time, and of a medium
//! that holds a DICOMDIR only what is DICOM is looked at: viewers, licences and icons lie beside studies on every such disc.

use crate::pair::join;
use crate::volume::each_slice;
use crate::{
    Archive, Decoded, Examination, Format, Frame, FrameInfo, Identifiers, Limits, Options,
    Prepared, Reason, Refusal, SlicePlan, header, members, prepare, sniff,
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
    /// Where that is asked for, as [`examination`](crate::examination) gives it.
    pub examination: Option<Examination>,
}

/// As [`prepare_parts`], with what the headers say about the patient and, for a comparison, about the time; an archive is
/// unpacked once for all of it. The frames of each file that stands for itself go to `each` as soon as they are made, with
/// which file of the archive it is, since those of all files together may be too much to hold.
///
/// That they came does not say that they count: a later file may refuse all of the input, or be a DICOMDIR beside which pictures
/// are left out. [`ReadInput::parts`] has [`Prepared::Frames`] for the files whose frames count, and for no other.
///
/// # Errors
/// As [`prepare_parts`], [`identifiers`](crate::identifiers) and [`examination`](crate::examination).
pub fn read_input(
    bytes: &[u8],
    options: &Options,
    frames_max: u32,
    compared: bool,
    each: &mut dyn FnMut(Option<u32>, Decoded),
) -> Result<ReadInput, Refusal> {
    let (mut identifiers, mut examination) = (Identifiers::default(), None);
    let mut also = |file: &[u8], limits: &Limits| -> Result<(), Refusal> {
        // What is no image at all is decided on where it is decoded.
        if sniff(file).is_err() {
            return Ok(());
        }
        identifiers.read_file(file, limits)?;
        if compared {
            join(&mut examination, file, limits)?;
        }
        Ok(())
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
    if bytes.len() as u64 > options.limits().file_bytes_max {
        return Err(Refusal::new(Reason::TooLarge).found(format_args!("{} bytes", bytes.len())));
    }
    let (mut parts, mut frames, mut dicom) = (Vec::new(), 0, Vec::new());
    let (mut slices, mut pixels) = (0, 0);
    let (mut directory, mut no_room, mut fault) = (false, None, None);
    members(bytes, options.limits(), &mut |member| {
        if frames > frames_max as usize || no_room.is_some() || fault.is_some() {
            // What follows is not decoded; the whole is refused below.
            return;
        }
        let beside = options.beside(&member.bytes);
        let mut outcome = prepare(&member.bytes, &beside);
        fault = also(&member.bytes, beside.limits()).err();
        let number = parts.len() as u32;
        match &mut outcome {
            Ok(Prepared::Frames(decoded)) => {
                frames += decoded.frames.len();
                if frames <= frames_max as usize && fault.is_none() {
                    taken(Some(number), decoded);
                }
            }
            Ok(Prepared::Slices(of_file)) => {
                slices += u64::from(of_file.count());
                pixels += of_file.pixels();
                let too_many = options.limits().check_volume(slices, pixels).err();
                fault = fault.take().or(too_many);
            }
            Err(refusal) if refusal.reason == Reason::UnpackedTooLarge => {
                no_room.get_or_insert(refusal.clone());
            }
            _ => {}
        }
        directory |= matches!(&outcome, Err(refusal) if refusal.reason == Reason::DicomDirectory);
        dicom.push(sniff(&member.bytes) == Ok(Format::Dicom));
        parts.push(Part {
            member: Some(number),
            outcome,
        });
    })?;
    if frames > frames_max as usize {
        return Err(
            Refusal::new(Reason::TooManyFrames).found(format_args!("more than {frames_max}"))
        );
    }
    // Not the fault of that file alone: with more room for all of the archive it may be good.
    if let Some(refusal) = no_room.or(fault) {
        return Err(refusal);
    }
    if directory {
        for (part, _) in parts.iter_mut().zip(dicom).filter(|(_, dicom)| !dicom) {
            part.outcome = Err(Refusal::new(Reason::BesideDirectory));
        }
    }
    Ok(parts)
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
            Reason::NoPixelData | Reason::DicomDirectory | Reason::BesideDirectory
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
    let mut file = |(member, frames): &(Option<u32>, Vec<u32>),
                    bytes: &[u8],
                    options: &Options|
     -> Result<(), Refusal> {
        let mut ended = Ok(());
        let decoded = each_slice(bytes, frames, plan, options, &mut |frame, info| {
            if ended.is_ok() {
                ended = each(*member, Ok((frame, info)));
            }
        });
        ended?;
        decoded.or_else(|refusal| each(*member, Err(refusal)))
    };
    if let Some(wanted) = of(None) {
        return file(wanted, bytes, options);
    }
    let (mut number, mut decoded) = (0, Ok(()));
    members(bytes, options.limits(), &mut |member| {
        if let (Some(wanted), Ok(())) = (of(Some(number)), &decoded) {
            decoded = file(wanted, &member.bytes, &options.beside(&member.bytes));
        }
        number += 1;
    })?;
    decoded
}
