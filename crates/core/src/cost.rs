//! The slot time that a job, or a unit of it, is expected to take at each stage. Rates are estimated once, at accept; the number
//! of frames is corrected when preprocessing knows it. An estimate for fair scheduling and for planning, never a promise.

use crate::Stage;

/// Expected slot time by stage, in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Cost {
    /// Preprocessing of all files.
    pub preprocess_millis: u32,
    /// Frames that the model is shown: of a job all of them, of a chunk its own.
    pub frames: u32,
    /// Encoding of one frame.
    pub encode_millis_per_frame: u32,
    /// Reading of one frame's image tokens by the decoder.
    pub decode_millis_per_frame: u32,
    /// Writing of the text.
    pub decode_millis: u32,
}

impl Cost {
    /// What it takes of one stage, in milliseconds.
    pub fn at(&self, stage: Stage) -> u64 {
        let frames = u64::from(self.frames);
        match stage {
            Stage::Preprocess => u64::from(self.preprocess_millis),
            Stage::Encode => frames * u64::from(self.encode_millis_per_frame),
            Stage::Decode => {
                frames * u64::from(self.decode_millis_per_frame) + u64::from(self.decode_millis)
            }
        }
    }

    /// What it takes of all stages together, in milliseconds.
    pub fn whole(&self) -> u64 {
        Stage::ALL.iter().map(|stage| self.at(*stage)).sum()
    }

    /// The same with so many frames.
    #[must_use]
    pub(crate) const fn with_frames(self, frames: u32) -> Self {
        Self { frames, ..self }
    }

    /// The share of one chunk of `chunks`, the frames divided evenly.
    #[must_use]
    pub fn of_chunk(self, chunk: u32, chunks: u32) -> Self {
        let before = |chunk: u32| {
            let frames = u64::from(self.frames) * u64::from(chunk) / u64::from(chunks.max(1));
            u32::try_from(frames).unwrap_or(u32::MAX)
        };
        self.with_frames(before(chunk + 1).saturating_sub(before(chunk)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const COST: Cost = Cost {
        preprocess_millis: 100,
        frames: 7,
        encode_millis_per_frame: 200,
        decode_millis_per_frame: 50,
        decode_millis: 3_000,
    };

    #[test]
    fn a_cost_is_rates_times_frames() {
        let at = |cost: Cost| {
            Stage::ALL
                .iter()
                .map(|stage| cost.at(*stage))
                .collect::<Vec<_>>()
        };
        assert_eq!(at(COST), [100, 1_400, 3_350]);
        assert_eq!(COST.whole(), 4_850);
        assert_eq!(at(COST.with_frames(0)), [100, 0, 3_000]);
        assert_eq!(
            Cost {
                frames: u32::MAX,
                encode_millis_per_frame: u32::MAX,
                ..COST
            }
            .at(Stage::Encode),
            u64::from(u32::MAX).pow(2)
        );
    }

    #[test]
    fn chunks_share_all_frames() {
        for chunks in 1..=7 {
            let frames = (0..chunks).map(|chunk| COST.of_chunk(chunk, chunks).frames);
            assert_eq!(frames.sum::<u32>(), 7, "{chunks}");
        }
        assert_eq!(COST.of_chunk(0, 0).frames, 7);
    }
}
