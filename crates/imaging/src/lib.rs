//! Bytes of one input file in, model-ready frames out: right pixels or a typed refusal, never wrong pixels.
//!
//! It has no input or output of its own, no clock and no async, and it keeps nothing of a header but what [`FrameInfo`]
//! and [`ClinicalHeader`] list.
//!
//! Reading order: [`decode_file`] here, `sniff`, `admission` (what is known to be right), `decode` (stored values),
//! `grey` (stored values → 8 bits), `square` (padding and resize).

mod clinical;
mod frame;
mod options;
mod png;
mod refusal;
mod sniff;

pub use clinical::{Age, AgeUnit, ClinicalHeader, Sex, ViewPosition};
pub use frame::{
    Format, Frame, FrameInfo, Modality, Note, Photometric, Placement, Window, WindowFunction, WindowSource,
};
pub use options::{FRAME_SIDE_MAX, Limits, Options, OptionsError};
pub use png::{PngError, frame_to_png};
pub use refusal::{ElementTag, Reason, Refusal};
pub use sniff::sniff;

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
    sniff(bytes)?;
    // Decoding lands with the next commit; until then everything is refused.
    Err(Refusal::new(Reason::DecodeFailed))
}
