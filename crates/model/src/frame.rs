//! Frames: what the vision tower looks at. Square pictures of 8-bit samples, as `imaging` makes them; the model only
//! resizes (antialiased bilinear, as Pillow does and Gemma 3's processor asks for) and scales to [−1, 1].

use std::borrow::Cow;

use candle_core::{Device, Tensor};
use medfleet_resample::{WrongSize, antialiased, sampled};
use rayon::iter::{IndexedParallelIterator, ParallelIterator};
use rayon::slice::ParallelSliceMut;

use crate::error::{BackendError, EncodeError, FrameError};
use crate::fused::{self, Picture};

/// Pixels, side, channels, side wanted.
type Rule = fn(&[u8], usize, usize, usize) -> Result<Vec<u8>, WrongSize>;

/// Longest side accepted, in pixels.
pub const FRAME_SIDE_MAX: usize = 16_384;

/// A square picture: `side` × `side` × `channels` bytes, row by row, samples of a pixel together.
#[derive(Clone, PartialEq, Eq)]
pub struct Frame {
    side: usize,
    channels: usize,
    pixels: Vec<u8>,
}

impl std::fmt::Debug for Frame {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Pixels are patient data and stay out of logs.
        f.debug_struct("Frame")
            .field("side", &self.side)
            .field("channels", &self.channels)
            .finish_non_exhaustive()
    }
}

impl Frame {
    /// A frame of `side` × `side` pixels with 1 (grey) or 3 (RGB) samples each.
    pub fn new(side: usize, channels: usize, pixels: Vec<u8>) -> Result<Self, FrameError> {
        check_side(side)?;
        if channels != 1 && channels != 3 {
            return Err(FrameError::Channels { found: channels });
        }
        let expected = side * side * channels;
        if pixels.len() != expected {
            return Err(FrameError::Bytes {
                expected,
                found: pixels.len(),
            });
        }
        Ok(Self {
            side,
            channels,
            pixels,
        })
    }

    pub const fn side(&self) -> usize {
        self.side
    }

    /// 1 or 3.
    pub const fn channels(&self) -> usize {
        self.channels
    }

    /// side × side × channels bytes.
    pub fn pixels(&self) -> &[u8] {
        &self.pixels
    }

    /// The same picture at another side length, antialiased; a copy where it has that already.
    pub(crate) fn resized(&self, side: usize) -> Result<Self, FrameError> {
        self.by(antialiased, side)
    }

    /// The same picture at another side length without antialiasing, as MedSigLIP was evaluated with; a copy where it has
    /// that already.
    pub fn sampled(&self, side: usize) -> Result<Self, FrameError> {
        self.by(sampled, side)
    }

    fn by(&self, rule: Rule, side: usize) -> Result<Self, FrameError> {
        check_side(side)?;
        let pixels = rule(&self.pixels, self.side, self.channels, side);
        let pixels = pixels.map_err(|wrong| FrameError::Bytes {
            expected: wrong.expected,
            found: wrong.found,
        })?;
        Self::new(side, self.channels, pixels)
    }

    /// Patches as rows: [(side / patch)², 3 × patch × patch] f32 in [−1, 1], in the order of the flattened weights of
    /// the patch convolution (channel, row, column). Grey is repeated over the three channels.
    pub(crate) fn patches(
        &self,
        image_size: usize,
        patch: usize,
        device: &Device,
    ) -> Result<Tensor, EncodeError> {
        let frame = if self.side == image_size {
            Cow::Borrowed(self)
        } else {
            Cow::Owned(self.resized(image_size)?)
        };
        let picture = Picture {
            pixels: &frame.pixels,
            side: image_size,
            channels: frame.channels,
            patch,
        };
        if let Some(patches) = fused::cut(picture, device)? {
            return Ok(patches);
        }
        let across = image_size / patch;
        let shape = (across * across, 3 * patch * patch);
        let rows = Tensor::from_vec(cut(picture), shape, device);
        Ok(rows.map_err(BackendError::from)?)
    }
}

fn check_side(found: usize) -> Result<(), FrameError> {
    if (1..=FRAME_SIDE_MAX).contains(&found) {
        return Ok(());
    }
    Err(FrameError::Side {
        found,
        max: FRAME_SIDE_MAX,
    })
}

/// The patches of a picture, one after the other; a row of patches is one thread's.
fn cut(picture: Picture) -> Vec<f32> {
    let Picture {
        pixels,
        side,
        channels,
        patch,
    } = picture;
    let (across, area) = (side / patch, patch * patch);
    let mut rows = vec![0.0; across * across * 3 * area];
    let of_rows = rows.par_chunks_exact_mut(across * 3 * area).enumerate();
    of_rows.for_each(|(patch_y, row)| {
        // A line of a patch's channel: what lies together.
        for (line, out) in row.chunks_exact_mut(patch).enumerate() {
            let (y, channel) = (line % patch, line / patch % 3 % channels);
            let x = line / (3 * patch) * patch;
            let from = ((patch_y * patch + y) * side + x) * channels + channel;
            let samples = pixels[from..].iter().step_by(channels);
            for (out, sample) in out.iter_mut().zip(samples) {
                *out = scaled(*sample);
            }
        }
    });
    rows
}

/// x / 255, then mean 0.5 and standard deviation 0.5, in f32 as the reference does.
fn scaled(sample: u8) -> f32 {
    (f32::from(sample) / 255.0 - 0.5) / 0.5
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_square_pictures_of_one_or_three_channels() {
        assert!(Frame::new(2, 3, vec![0; 12]).is_ok());
        assert_eq!(
            Frame::new(2, 1, vec![0; 3]),
            Err(FrameError::Bytes {
                expected: 4,
                found: 3
            })
        );
        assert_eq!(
            Frame::new(2, 4, vec![0; 16]),
            Err(FrameError::Channels { found: 4 })
        );
        assert!(matches!(
            Frame::new(0, 1, vec![]),
            Err(FrameError::Side { .. })
        ));
        assert!(matches!(
            Frame::new(usize::MAX, 1, vec![]),
            Err(FrameError::Side { .. })
        ));
    }

    #[test]
    fn patches_run_channel_row_column() {
        let pixels: Vec<u8> = (0..4 * 4 * 3).collect();
        let rows = Frame::new(4, 3, pixels)
            .unwrap()
            .patches(4, 2, &Device::Cpu)
            .unwrap();
        let second = rows.to_vec2::<f32>().unwrap().remove(1);
        let expected = [6, 9, 18, 21, 7, 10, 19, 22, 8, 11, 20, 23].map(scaled);
        assert_eq!(second, expected);
    }
}
