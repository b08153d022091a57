//! What a result and its manifest say about files and frames: numbers, digests and words of closed lists.

use medfleet_core::Digest;
use medfleet_imaging::{FrameInfo, Note, Window};
use medfleet_proto::v1;

use crate::study::File;

/// A file of an archive is told by its place, as its name could be a patient's.
pub(crate) fn refused(file: File, reason: &str, message: &str) -> v1::FileRefused {
    let message = match file.member {
        Some(member) => format!("{message} (file {} of the archive)", member + 1),
        None => message.to_owned(),
    };
    v1::FileRefused {
        input_index: u32::try_from(file.input).unwrap_or(u32::MAX),
        reason: reason.to_owned(),
        message,
    }
}

/// The record of a frame.
pub(crate) fn used(
    index: usize,
    info: &FrameInfo,
    notes: &[Note],
    digest: &Digest,
) -> v1::FrameUsed {
    let window = |window: &Window| v1::Window {
        center: window.center,
        width: window.width,
        function: window.function.as_str().to_owned(),
    };
    let notes = info
        .notes
        .iter()
        .chain(notes)
        .map(|note| note.as_str().to_owned());
    v1::FrameUsed {
        input_index: u32::try_from(index).unwrap_or(u32::MAX),
        frame_index: info.frame_index,
        modality: info
            .modality
            .map_or_else(String::new, |modality| modality.as_str().to_owned()),
        window: info.window.as_ref().map(window),
        channel_windows: info.channel_windows.iter().map(window).collect(),
        frame_digest: digest.to_string(),
        token_digest: String::new(),
        original_width: info.original_width,
        original_height: info.original_height,
        notes: notes.collect(),
        placement: Some(v1::Placement {
            pad_left_pixels: info.placement.pad_left_pixels,
            pad_top_pixels: info.placement.pad_top_pixels,
            padded_side_pixels: info.placement.padded_side_pixels,
        }),
    }
}
