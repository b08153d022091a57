//! Bytes of one input file in, model-ready frames out: right pixels or a typed refusal, never wrong pixels.
//!
//! It has no input or output of its own, no clock and no async, and it keeps nothing of a header but what [`FrameInfo`]
//! and [`ClinicalHeader`] list.
//!
//! Reading order: [`decode_file`] here, `sniff`, `header`, `admission` (what is known to be right), `codec` (stored values),
//! `grey` and `voi` (stored values → 8 bits), `square` (padding and resize); `picture` for PNG and JPEG.

mod admission;
mod clinical;
mod codec;
mod elements;
mod frame;
mod grey;
mod header;
mod options;
mod picture;
mod png;
mod refusal;
mod sniff;
mod square;
mod voi;

use dicom_core::VR;
use dicom_dictionary_std::tags;

pub use clinical::{Age, AgeUnit, ClinicalHeader, Sex, ViewPosition};
pub use frame::{
    Format, Frame, FrameInfo, Modality, Note, Photometric, Placement, Window, WindowFunction,
    WindowSource,
};
pub use options::{FRAME_SIDE_MAX, Limits, Options, OptionsError};
pub use png::{PngError, frame_to_png};
pub use refusal::{ElementTag, Reason, Refusal};
pub use sniff::sniff;

use square::Picture;

/// Version of the rules that turn files into frames. It changes whenever a frame could change.
pub const PREPROCESSING_VERSION: &str = "radiograph-1";

/// What one file became.
#[derive(Clone, Debug)]
pub struct Decoded {
    /// The frames in file order; in this version exactly one.
    pub frames: Vec<(Frame, FrameInfo)>,
    /// Age, sex and view position, where the header has them.
    pub clinical: ClinicalHeader,
    /// What was decided about the file as a whole; notes on a frame are in its [`FrameInfo`].
    pub notes: Vec<Note>,
}

/// Turns one file into frames.
///
/// # Errors
/// Refuses, with a stable [`Reason`], everything that is not known to come out right.
pub fn decode_file(bytes: &[u8], options: &Options) -> Result<Decoded, Refusal> {
    if bytes.len() as u64 > options.limits().file_bytes_max {
        return Err(Refusal::new(Reason::TooLarge).found(format_args!("{} bytes", bytes.len())));
    }
    let source = Source {
        format: sniff(bytes)?,
        digest: hex::encode(blake3::hash(bytes).as_bytes()),
    };
    match source.format {
        Format::Dicom => decode_dicom(bytes, options, source),
        Format::Png => {
            let (picture, notes) = picture::decode_png(bytes, options.limits())?;
            Ok(source.picture(&picture, notes, options))
        }
        Format::Jpeg => {
            let (picture, notes) = picture::decode_jpeg(bytes, options.limits())?;
            Ok(source.picture(&picture, notes, options))
        }
    }
}

fn decode_dicom(bytes: &[u8], options: &Options, source: Source) -> Result<Decoded, Refusal> {
    let (header, data_set) = header::open(bytes, options.limits())?;
    let plan = admission::admit(&header, options.limits())?;
    let clinical = clinical(&header);
    let value = header.pixel_data.map(|data| data.value).unwrap_or_default();
    let cells = codec::decode(&data_set[value], &plan)?;
    let grey = grey::to_grey(&cells, &plan)?;
    let picture = Picture {
        width: plan.columns,
        height: plan.rows,
        channels: 1,
        pixels: grey.levels,
    };
    let mut decoded = source.picture(&picture, grey.notes, options);
    for (_, info) in &mut decoded.frames {
        info.modality = Some(plan.modality);
        info.photometric = Some(plan.photometric);
        info.window = Some(grey.window);
    }
    decoded.clinical = clinical;
    Ok(decoded)
}

/// The allow-listed values; one that is missing or unusable is left out, as no frame depends on it.
fn clinical(header: &header::Header) -> ClinicalHeader {
    let text = |tag, vr| header.text(tag, vr).ok().flatten();
    ClinicalHeader {
        age: text(tags::PATIENT_AGE, VR::AS).and_then(|text| Age::parse(&text)),
        sex: text(tags::PATIENT_SEX, VR::CS).and_then(|text| Sex::parse(&text)),
        view_position: text(tags::VIEW_POSITION, VR::CS)
            .and_then(|text| ViewPosition::parse(&text)),
    }
}

/// What a file is, before it is decoded.
struct Source {
    format: Format,
    digest: String,
}

impl Source {
    /// The result for a picture whose levels are final.
    fn picture(self, picture: &Picture, notes: Vec<Note>, options: &Options) -> Decoded {
        let (frame, placement) = square::to_frame(picture, options.frame_side());
        let info = FrameInfo {
            preprocessing_version: PREPROCESSING_VERSION,
            source_digest: self.digest,
            frame_index: 0,
            format: self.format,
            modality: None,
            photometric: None,
            window: None,
            original_width: picture.width,
            original_height: picture.height,
            placement,
            notes,
        };
        Decoded {
            frames: vec![(frame, info)],
            clinical: ClinicalHeader::default(),
            notes: Vec::new(),
        }
    }
}
