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

/// What a frame is of.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Origin<'a> {
    pub(crate) input: usize,
    /// What the job says that the input shows, for files that do not say it themselves; empty where it says nothing.
    pub(crate) said: &'a str,
    /// Of all frames of its file.
    pub(crate) notes: &'a [Note],
}

/// The record of a frame.
pub(crate) fn used(origin: Origin<'_>, info: &FrameInfo, digest: &Digest) -> v1::FrameUsed {
    let window = |window: &Window| v1::Window {
        center: window.center,
        width: window.width,
        function: window.function.as_str().to_owned(),
    };
    let is_as_said = info.modality.is_none() && !origin.said.is_empty();
    let modality = match info.modality {
        Some(modality) => modality.as_str(),
        None => origin.said,
    };
    let notes = info
        .notes
        .iter()
        .chain(origin.notes)
        .chain(is_as_said.then_some(&Note::ModalityAsGiven))
        .map(|note| note.as_str().to_owned());
    v1::FrameUsed {
        input_index: u32::try_from(origin.input).unwrap_or(u32::MAX),
        frame_index: info.frame_index,
        modality: modality.to_owned(),
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

#[cfg(test)]
mod tests {
    use medfleet_imaging::{Frame, Limits, Modality, Options, decode_file, frame_to_png};

    use super::*;

    #[test]
    fn only_of_a_file_that_does_not_say_it_the_job_says_what_it_shows() {
        let grey = Frame {
            side: 4,
            channels: 1,
            pixels: (0..16).collect(),
        };
        let options = Options::new(4, Limits::default()).expect("options");
        let picture = frame_to_png(&grey).expect("a picture");
        let decoded = decode_file(&picture, &options).expect("it decodes");
        let info = &decoded.frames[0].1;
        let check = |header: Option<Modality>, said: &str, (modality, is_as_said): (&str, bool)| {
            let origin = Origin {
                input: 3,
                said,
                notes: &[Note::SecondaryCapture],
            };
            let info = FrameInfo {
                modality: header,
                ..info.clone()
            };
            let used = used(origin, &info, &Digest::new([1; 32]));
            assert_eq!((used.modality.as_str(), used.input_index), (modality, 3));
            let has = |note: Note| used.notes.iter().any(|one| one == note.as_str());
            assert_eq!(has(Note::ModalityAsGiven), is_as_said, "{:?}", used.notes);
            assert!(has(Note::SecondaryCapture));
        };
        check(None, "", ("", false));
        check(None, "CT", ("CT", true));
        check(None, "US", ("US", true));
        check(Some(Modality::Dx), "", ("DX", false));
        check(Some(Modality::Dx), "CT", ("DX", false));
    }
}
