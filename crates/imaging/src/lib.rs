//! Bytes of one input file in, model-ready frames out: right pixels or a typed refusal, never wrong pixels.
//!
//! It has no input or output of its own, no clock and no async, and it keeps nothing of a header but what [`FrameInfo`]
//! and [`ClinicalHeader`] list, and [`Identifiers`], which can be looked for and not read.
//!
//! Reading order: [`prepare`] here, `sniff`, `header` and `dataset`, `admission` (what is known to be right), `codec` (cells),
//! `dicom` (a file's frames), then what a model takes: `grey`, `voi` and `shutter` for radiographs, `photograph` for visible light,
//! `slide` for whole slides, `volume` for slices and `study` for their choice and order, `conventions` for the numbers;
//! `square` (padding and resize), `ahead` (several frames or files at a time); `picture` for PNG and JPEG, `tiff`, `nifti`; `parts`
//! (archives), `pair` (one patient, prior and current), `turned` (films that a presentation state turns).
//! What keeps patients out: `burned_in` and `lettering` (text in pixels, by header and by looking), `screen` (text of tasks),
//! `deidentify` (objects that leave).

mod admission;
mod ahead;
mod archive;
mod burned_in;
mod calendar;
mod charset;
mod clinical;
mod codec;
mod codestream;
mod colour;
mod conventions;
mod dataset;
mod deidentify;
mod dicom;
mod elements;
mod frame;
mod geometry;
mod grey;
mod groups;
mod header;
mod icc;
mod lettering;
mod nifti;
mod options;
mod pair;
mod parts;
mod photograph;
mod picture;
mod png;
mod radiograph;
mod refusal;
mod screen;
mod shutter;
mod slide;
mod sniff;
mod square;
mod study;
mod tiff;
mod transform;
mod turned;
mod vocabulary;
mod voi;
mod volume;

pub use archive::{Archive, Member, largest_member, members};
pub use burned_in::BurnedIn;
pub use clinical::{Age, AgeUnit, ClinicalHeader, Sex, ViewPosition};
pub use codestream::{CodestreamError, Codestreams, Decoder, Here, OnThread, Plane, THREADS};
pub use conventions::{Convention, SlideRule, VolumeRule};
pub use deidentify::{
    Changes, DeidentificationKey, Deidentified, Deidentifier, KeyError, Profile, Whose,
};
pub use dicom::{Values, decode_values};
pub use frame::{
    Format, Frame, FrameInfo, Modality, Note, Photometric, Placement, Region, Window,
    WindowFunction, WindowSource,
};
pub use lettering::{
    Area, FoundText, Page, TextCheck, TextKind, TextKinds, TextReader, TextReaderError, Word,
};
pub use options::{FRAME_SIDE_MAX, Limits, Options, OptionsError};
pub use pair::{Examination, PairOrder, Patients, examination, one_study, pair_order};
pub use parts::{
    EachSlice, Part, ReadInput, decode_parts, files_beside, is_dicom_directory, prepare_parts,
    read_input, unpacks,
};
pub use png::{PngError, frame_to_png};
pub use refusal::{ElementTag, Reason, Refusal};
pub use screen::{IdentifierKind, Identifiers, Screened, identifiers};
pub use sniff::sniff;
pub use study::{Fate, SlicePlan, Unused, plan_volume};
pub use turned::Turned;
pub use volume::{Slices, decode_slices, refuse_air};

use burned_in::Annotation;
use square::Picture;

/// What one file became.
#[derive(Clone, Debug)]
pub struct Decoded {
    /// The frames, in the order a model sees them.
    pub frames: Vec<(Frame, FrameInfo)>,
    /// Age, sex and view position, where the header has them.
    pub clinical: ClinicalHeader,
    /// What was decided about the file as a whole; notes on a frame are in its [`FrameInfo`].
    pub notes: Vec<Note>,
}

/// What one file is, before anything is known of the others of its study.
#[derive(Debug)]
pub enum Prepared {
    /// A radiograph or a picture: it stands for itself, and its frames are ready.
    Frames(Decoded),
    /// Slices of a volume, or levels of a whole slide: which of them are shown, and in which order, [`plan_volume`] says.
    Slices(Box<Slices>),
    /// A dose sheet, a screen shot or another file of a scanner whose pixels may carry text, or an image in colours beside slices:
    /// not shown, and no slice.
    Withheld(Refusal),
}

/// Reads one file of a study.
///
/// # Errors
/// Refuses, with a stable [`Reason`], everything that is not known to come out right.
pub fn prepare(bytes: &[u8], options: &Options) -> Result<Prepared, Refusal> {
    if bytes.len() as u64 > options.limits().file_bytes_max {
        return Err(Refusal::new(Reason::TooLarge).found(format_args!("{} bytes", bytes.len())));
    }
    let source = Source::of(sniff(bytes)?, bytes);
    if source.format == Format::Tiff
        && let Some(slices) = codec::guarded(|| slide::read_tiff(bytes, options, &source.digest))?
    {
        return Ok(Prepared::Slices(Box::new(slices)));
    }
    let (picture, notes) = match source.format {
        Format::Dicom => return prepare_dicom(bytes, options, source),
        Format::Png => picture::decode_png(bytes, options.limits())?,
        Format::Jpeg => picture::decode_jpeg(bytes, options.limits())?,
        Format::Nifti => {
            return nifti::read(bytes, options, &source.digest)
                .map(|slices| Prepared::Slices(Box::new(slices)));
        }
        Format::Tiff => codec::guarded(|| tiff::decode(bytes, options.limits()))?,
    };
    source.alone(&picture, notes, options).map(Prepared::Frames)
}

/// Turns one file into frames as if it were a whole study.
pub fn decode_file(bytes: &[u8], options: &Options) -> Result<Decoded, Refusal> {
    match prepare(bytes, options)? {
        Prepared::Frames(decoded) => Ok(decoded),
        Prepared::Withheld(refusal) => Err(refusal),
        Prepared::Slices(slices) => {
            let plan = plan_volume(&[(0, &slices)], options.convention())?;
            let wanted: Vec<u32> = plan.frames.iter().map(|(_, frame)| *frame).collect();
            let frames = decode_slices(bytes, &wanted, &plan, options)?;
            refuse_air(frames.iter().map(|(_, info)| info.above_water))?;
            Ok(Decoded {
                frames,
                clinical: slices.clinical(),
                notes: Vec::new(),
            })
        }
    }
}

fn prepare_dicom(bytes: &[u8], options: &Options, source: Source) -> Result<Prepared, Refusal> {
    let opened = header::open(bytes, options.limits())?;
    if opened.is_directory() {
        return Err(Refusal::new(Reason::DicomDirectory));
    }
    if slide::is_tiled(&header::read(&opened, options.limits())?) {
        return slide::read_dicom(&opened, options)
            .map(|slices| Prepared::Slices(Box::new(slices)));
    }
    let file = dicom::File::read(&opened, options.limits())?;
    let modality = file.modality()?;
    let annotation = Annotation::of(&file.header)?;
    let source = source.showing(Some(annotation.kind(modality)));
    if options.refuses_burned_in()
        && let Some(refusal) = annotation.refusal()
    {
        return match modality {
            // A volume is whole without them; the study's own slices decide.
            Modality::Ct | Modality::Mr => Ok(Prepared::Withheld(refusal)),
            _ => Err(refusal),
        };
    }
    let photometric = file.image.photometric;
    if matches!(modality, Modality::Ct | Modality::Mr) && !photometric.is_grey() {
        // A map or a screen in colours, which some write among the slices and in their series.
        let tag = dicom_dictionary_std::tags::PHOTOMETRIC_INTERPRETATION;
        let refusal = Refusal::at(Reason::UnsupportedPhotometric, tag).found(photometric);
        return Ok(Prepared::Withheld(refusal));
    }
    match modality {
        modality @ (Modality::Cr | Modality::Dx | Modality::Mg) => {
            radiograph::decode(&file, modality, source, options).map(Prepared::Frames)
        }
        modality @ (Modality::Xc
        | Modality::Op
        | Modality::Opt
        | Modality::Es
        | Modality::Gm
        | Modality::Sm
        | Modality::Dms
        | Modality::Dm) => {
            photograph::decode(&file, modality, source, options).map(Prepared::Frames)
        }
        modality @ (Modality::Ct | Modality::Mr) => Slices::read(&file, modality, options.limits())
            .map(|slices| Prepared::Slices(Box::new(slices))),
    }
}

/// What a file is, before it is decoded.
struct Source {
    format: Format,
    digest: String,
    /// What its pictures are to a reader of text; `None` for those that it is never shown.
    text: Option<TextKind>,
}

impl Source {
    fn of(format: Format, bytes: &[u8]) -> Self {
        Self {
            format,
            digest: hex::encode(blake3::hash(bytes).as_bytes()),
            text: Some(match format {
                Format::Dicom => TextKind::Unsaid,
                Format::Nifti => TextKind::Slice,
                Format::Png | Format::Jpeg | Format::Tiff => TextKind::Picture,
            }),
        }
    }

    /// The same, when more is known of what its pictures are to a reader of text.
    fn showing(self, text: Option<TextKind>) -> Self {
        Self { text, ..self }
    }

    /// Threads that may make frames of pictures of this size. Where each is looked at for text it is one: the programs that look
    /// are as many as the files that are decoded at a time, and have their own limits.
    fn threads(&self, (width, height): (u32, u32), options: &Options) -> usize {
        let looked_at = options
            .text_check()
            .zip(self.text)
            .is_some_and(|(check, kind)| check.kinds.holds(kind));
        if looked_at {
            1
        } else {
            options.limits().threads(width, height)
        }
    }

    /// The result for a picture whose levels are final.
    fn alone(
        &self,
        picture: &Picture,
        notes: Vec<Note>,
        options: &Options,
    ) -> Result<Decoded, Refusal> {
        Ok(Decoded {
            frames: vec![self.frame(picture, 0, notes, options)?],
            clinical: ClinicalHeader::default(),
            notes: Vec::new(),
        })
    }

    /// The picture as the model gets it, once text was looked for.
    fn frame(
        &self,
        picture: &Picture,
        frame_index: u32,
        mut notes: Vec<Note>,
        options: &Options,
    ) -> Result<(Frame, FrameInfo), Refusal> {
        let painted = match options.text_check().zip(self.text) {
            Some((check, kind)) => check.look(kind, picture)?,
            None => None,
        };
        if painted.is_some() {
            notes.push(Note::TextPaintedOver);
        }
        let picture = painted.as_ref().unwrap_or(picture);
        let convention = options.convention();
        let (frame, placement) =
            square::to_frame(picture, options.frame_side(), convention.antialias);
        let info = FrameInfo {
            preprocessing_version: &convention.version,
            source_digest: self.digest.clone(),
            frame_index,
            format: self.format,
            modality: None,
            photometric: None,
            window: None,
            channel_windows: Vec::new(),
            original_width: picture.width,
            original_height: picture.height,
            placement,
            region: None,
            notes,
            above_water: None,
        };
        Ok((frame, info))
    }
}
