//! One input of a job: a file, or an archive whose members are the files. One member is in memory at a time, and of a medium
//! that holds a DICOMDIR only what is DICOM is looked at: viewers, licences and icons lie beside studies on every such disc.

use crate::pair::join;
use crate::volume::each_slice;
use crate::{
    Archive, Examination, Format, Frame, FrameInfo, Identifiers, Limits, Options, Prepared, Reason,
    Refusal, SlicePlan, header, members, prepare, sniff,
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
    /// Its files.
    pub parts: Vec<Part>,
    /// What their headers say about whose they are, as [`identifiers`](crate::identifiers) gives it.
    pub identifiers: Identifiers,
    /// Where that is asked for, as [`examination`](crate::examination) gives it.
    pub examination: Option<Examination>,
}

/// As [`prepare_parts`], with what the headers say about the patient and, for a comparison, about the time; an archive is
/// unpacked once for all of it.
///
/// # Errors
/// As [`prepare_parts`], [`identifiers`](crate::identifiers) and [`examination`](crate::examination).
pub fn read_input(
    bytes: &[u8],
    options: &Options,
    frames_max: u32,
    compared: bool,
) -> Result<ReadInput, Refusal> {
    let (mut identifiers, mut examination) = (Identifiers::default(), None);
    let parts = each_part(bytes, options, frames_max, &mut |file, limits| {
        // What is no image at all is decided on where it is decoded.
        if sniff(file).is_err() {
            return Ok(());
        }
        identifiers.read_file(file, limits)?;
        if compared {
            join(&mut examination, file, limits)?;
        }
        Ok(())
    })?;
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
    each_part(bytes, options, frames_max, &mut |_, _| Ok(()))
}

/// What else is done with each file, with the limits that are left beside it.
type Also<'a> = &'a mut dyn FnMut(&[u8], &Limits) -> Result<(), Refusal>;

/// Every file, prepared, then given to `also`. A refusal by that is one of the whole input.
fn each_part(
    bytes: &[u8],
    options: &Options,
    frames_max: u32,
    also: Also<'_>,
) -> Result<Vec<Part>, Refusal> {
    if Archive::of(bytes).is_none() {
        let outcome = prepare(bytes, options);
        also(bytes, options.limits())?;
        return Ok(vec![Part {
            member: None,
            outcome,
        }]);
    }
    if bytes.len() as u64 > options.limits().file_bytes_max {
        return Err(Refusal::new(Reason::TooLarge).found(format_args!("{} bytes", bytes.len())));
    }
    let (mut parts, mut frames, mut dicom) = (Vec::new(), 0, Vec::new());
    let (mut directory, mut no_room, mut fault) = (false, None, None);
    members(bytes, options.limits(), &mut |member| {
        if frames > frames_max as usize || no_room.is_some() || fault.is_some() {
            // What follows is not decoded; the whole is refused below.
            return;
        }
        let beside = options.beside(&member.bytes);
        let outcome = prepare(&member.bytes, &beside);
        fault = also(&member.bytes, beside.limits()).err();
        match &outcome {
            Ok(Prepared::Frames(decoded)) => frames += decoded.frames.len(),
            Err(refusal) if refusal.reason == Reason::UnpackedTooLarge => {
                no_room.get_or_insert(refusal.clone());
            }
            _ => {}
        }
        directory |= matches!(&outcome, Err(refusal) if refusal.reason == Reason::DicomDirectory);
        dicom.push(sniff(&member.bytes) == Ok(Format::Dicom));
        parts.push(Part {
            member: Some(parts.len() as u32),
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

/// Decodes the `wanted` frames of an input's files, each given by its member, as the plan of their volume says. `each` gets
/// them one after the other, in the order of the archive.
///
/// # Errors
/// As [`decode_slices`](crate::decode_slices); the input must be the one that the plan was made with.
pub fn decode_parts(
    bytes: &[u8],
    wanted: &[(Option<u32>, Vec<u32>)],
    plan: &SlicePlan,
    options: &Options,
    each: &mut dyn FnMut(Option<u32>, Frame, FrameInfo),
) -> Result<(), Refusal> {
    let of = |member: Option<u32>| wanted.iter().find(|(of, _)| *of == member);
    if let Some((_, frames)) = of(None) {
        return each_slice(bytes, frames, plan, options, &mut |frame, info| {
            each(None, frame, info);
        });
    }
    let (mut number, mut decoded) = (0, Ok(()));
    members(bytes, options.limits(), &mut |member| {
        if let (Some((of, frames)), Ok(())) = (of(Some(number)), &decoded) {
            let options = options.beside(&member.bytes);
            decoded = each_slice(&member.bytes, frames, plan, &options, &mut |frame, info| {
                each(*of, frame, info);
            });
        }
        number += 1;
    })?;
    decoded
}
