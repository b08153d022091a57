//! What the caller decides: the model's frame side, and every limit by name.

use crate::{BurnedIn, Convention, Decoder, Modality, Reason, Refusal, TextCheck};

/// The largest frame side that can be asked for, in pixels.
pub const FRAME_SIDE_MAX: u32 = 4096;

/// How to turn a file into frames.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Options {
    frame_side: u32,
    limits: Limits,
    convention: &'static Convention,
    burned_in: BurnedIn,
    volume_modality: Option<Modality>,
    text_check: Option<TextCheck>,
}

impl Options {
    /// # Errors
    /// `frame_side` (pixels) must be 1 to [`FRAME_SIDE_MAX`].
    pub fn new(frame_side: u32, limits: Limits) -> Result<Self, OptionsError> {
        if frame_side == 0 || frame_side > FRAME_SIDE_MAX {
            return Err(OptionsError::FrameSide { found: frame_side });
        }
        Ok(Self {
            frame_side,
            limits,
            convention: Convention::newest(),
            burned_in: BurnedIn::default(),
            volume_modality: None,
            text_check: None,
        })
    }

    /// The same for another model version.
    #[must_use]
    pub fn following(self, convention: &'static Convention) -> Self {
        Self { convention, ..self }
    }

    /// The same with another rule about text in the pixels.
    #[must_use]
    pub fn burned_in(self, burned_in: BurnedIn) -> Self {
        Self { burned_in, ..self }
    }

    pub(crate) fn refuses_burned_in(&self) -> bool {
        self.burned_in == BurnedIn::Refuse
    }

    /// The same, with text looked for in the pixels, or not.
    #[must_use]
    pub fn checking_text(self, text_check: Option<TextCheck>) -> Self {
        Self { text_check, ..self }
    }

    /// How text is looked for in the pixels; `None` where it is not.
    pub fn text_check(&self) -> Option<TextCheck> {
        self.text_check
    }

    /// The same, with the modality of volumes whose format has none.
    #[must_use]
    pub fn with_volume_modality(self, volume_modality: Option<Modality>) -> Self {
        Self {
            volume_modality,
            ..self
        }
    }

    /// CT or MR, where the caller knows what the file cannot say.
    pub(crate) fn volume_modality(&self) -> Option<Modality> {
        self.volume_modality
    }

    /// The conventions of the model that the frames are for; the newest where nobody said otherwise.
    pub fn convention(&self) -> &'static Convention {
        self.convention
    }

    /// Width and height of the frames, in pixels.
    pub fn frame_side(&self) -> u32 {
        self.frame_side
    }

    /// The same with room for this many bytes to be unpacked at a time.
    #[must_use]
    pub fn unpacking(mut self, unpacked_bytes_max: u64) -> Self {
        self.limits.unpacked_bytes_max = unpacked_bytes_max;
        self
    }

    /// The same while these bytes, unpacked, are there.
    pub(crate) fn beside(self, unpacked: &[u8]) -> Self {
        let limits = self.limits.beside(unpacked);
        Self { limits, ..self }
    }

    /// The same with frames of one file, or files of one archive, made on so many threads at most.
    #[must_use]
    pub fn on_threads(mut self, threads_max: u32) -> Self {
        self.limits.threads_max = threads_max;
        self
    }

    pub fn limits(&self) -> &Limits {
        &self.limits
    }
}

/// Why options are refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OptionsError {
    #[error("frame side {found} pixels is not between 1 and {FRAME_SIDE_MAX}")]
    FrameSide { found: u32 },
}

/// What one file may cost. Checked before anything is allocated for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    pub file_bytes_max: u64,
    /// Pixels of one image, counted as the square it is padded to.
    pub frame_pixels_max: u64,
    /// Frames of one file.
    pub frames_max: u32,
    /// Slices of one archive and of one study: what their headers say is held until the study is whole.
    pub slices_max: u32,
    /// Pixels of all MR slices of one file, of one archive and of one study, with those of slides' levels in which tissue is
    /// looked for: each is decoded before anything is planned.
    pub volume_pixels_max: u64,
    /// Files, folders and links of one archive.
    pub archive_entries_max: u32,
    /// Bytes of all files of one archive together, unpacked.
    pub archive_bytes_max: u64,
    /// Bytes that are unpacked at a time: files of an archive, and the data set of a deflated one.
    pub unpacked_bytes_max: u64,
    /// Bytes of everything before the pixel data, and of a presentation state. Other files without an image may be larger.
    pub header_bytes_max: u64,
    /// Decoded bytes for each compressed byte.
    pub compression_ratio_max: u32,
    /// Threads that make frames of one file, or files of one archive, as far as they may be at work together: with no more pixels
    /// than one frame may have, and with no more bytes than may be unpacked. What comes out is the same for any number; 0 is 1.
    pub threads_max: u32,
    /// Who decodes JPEG 2000: what a broken codestream may cost is its process. It also says when nobody waits any more, so
    /// that nothing more is decoded, whatever the format.
    pub codestreams: Decoder,
}

impl Default for Limits {
    /// 512 MiB a file, 64 Mi pixels, 4096 frames, 16384 slices and 4 Gi pixels of MR and of tissue a study, 4096 entries and
    /// 1 GiB an archive, 1 GiB unpacked, 16 MiB of header, 1000 : 1, on the caller's thread.
    fn default() -> Self {
        Self {
            file_bytes_max: 512 * 1024 * 1024,
            frame_pixels_max: 64 * 1024 * 1024,
            frames_max: 4096,
            slices_max: 16_384,
            volume_pixels_max: 1 << 32,
            archive_entries_max: 4096,
            archive_bytes_max: 1024 * 1024 * 1024,
            unpacked_bytes_max: 1024 * 1024 * 1024,
            header_bytes_max: 16 * 1024 * 1024,
            compression_ratio_max: 1000,
            threads_max: 1,
            codestreams: Decoder::HERE,
        }
    }
}

impl Limits {
    /// What is left while these bytes, unpacked, are there.
    pub(crate) fn beside(self, unpacked: &[u8]) -> Self {
        let left = self
            .unpacked_bytes_max
            .saturating_sub(unpacked.len() as u64);
        Self {
            unpacked_bytes_max: left,
            ..self
        }
    }

    pub(crate) fn check_pixels(&self, width: u32, height: u32) -> Result<(), Refusal> {
        let side = u64::from(width.max(height));
        // u32 squared fits into u64.
        if side * side > self.frame_pixels_max {
            return Err(
                Refusal::new(Reason::TooManyPixels).found(format_args!("{width} x {height}"))
            );
        }
        Ok(())
    }

    /// Threads that may decode images of this size at a time, each counted as the square it is padded to.
    pub(crate) fn threads(&self, width: u32, height: u32) -> usize {
        let side = u64::from(width.max(height)).max(1);
        let fitting = self.frame_pixels_max / (side * side);
        // At most threads_max, which has 32 bits.
        u64::from(self.threads_max).min(fitting).max(1) as usize
    }

    /// Whether an archive or a study may have so many slices, and so many pixels that are decoded before it is planned.
    ///
    /// # Errors
    /// [`Reason::TooManyFrames`] or [`Reason::TooManyPixels`].
    pub fn check_volume(&self, slices: u64, pixels: u64) -> Result<(), Refusal> {
        if slices > u64::from(self.slices_max) {
            return Err(Refusal::new(Reason::TooManyFrames).found(format_args!("{slices} slices")));
        }
        if pixels > self.volume_pixels_max {
            return Err(Refusal::new(Reason::TooManyPixels)
                .found(format_args!("{pixels} in the slices together")));
        }
        Ok(())
    }

    pub(crate) fn check_ratio(
        &self,
        packed_bytes: u64,
        unpacked_bytes: u64,
    ) -> Result<(), Refusal> {
        if unpacked_bytes > packed_bytes.saturating_mul(u64::from(self.compression_ratio_max)) {
            return Err(Refusal::new(Reason::CompressionRatio)
                .found(format_args!("{unpacked_bytes} bytes out of {packed_bytes}")));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(threads_max: u32, (width, height): (u32, u32), expected: usize) {
        let limits = Limits {
            frame_pixels_max: 64 * 64,
            threads_max,
            ..Limits::default()
        };
        assert_eq!(limits.threads(width, height), expected);
    }

    #[test]
    fn frames_at_work_have_no_more_pixels_together_than_one_may_have() {
        check(8, (8, 8), 8);
        check(8, (32, 32), 4);
        // Counted as the square that it is padded to.
        check(8, (2, 32), 4);
        check(8, (33, 33), 3);
        check(8, (64, 64), 1);
        check(8, (0, 0), 8);
        check(0, (8, 8), 1);
        assert_eq!(Limits::default().threads(8, 8), 1);
    }
}
