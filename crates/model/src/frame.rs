//! Frames: what the vision tower looks at. Square pictures of 8-bit samples, as `imaging` makes them; the model only
//! resizes (antialiased bilinear, as Pillow does and Gemma 3's processor asks for) and scales to [−1, 1].

use candle_core::{Device, Tensor};
use fast_image_resize::images::{Image, ImageRef};
use fast_image_resize::{FilterType, PixelType, ResizeAlg, ResizeOptions, Resizer};

use crate::error::{EncodeError, FrameError};

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
    ///
    /// # Errors
    /// [`FrameError`] when side, channels or the number of bytes are off.
    pub fn new(side: usize, channels: usize, pixels: Vec<u8>) -> Result<Self, FrameError> {
        if !(1..=FRAME_SIDE_MAX).contains(&side) {
            return Err(FrameError::Side {
                found: side,
                max: FRAME_SIDE_MAX,
            });
        }
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

    /// Side in pixels.
    #[must_use]
    pub const fn side(&self) -> usize {
        self.side
    }

    /// 1 or 3.
    #[must_use]
    pub const fn channels(&self) -> usize {
        self.channels
    }

    /// side × side × channels bytes.
    #[must_use]
    pub fn pixels(&self) -> &[u8] {
        &self.pixels
    }

    /// The same picture at another side length; a copy where it has that already.
    ///
    /// # Errors
    /// [`FrameError::Side`], and [`FrameError::Resize`] should the library refuse.
    pub fn resized(&self, side: usize) -> Result<Self, FrameError> {
        if side == self.side {
            return Ok(self.clone());
        }
        if !(1..=FRAME_SIDE_MAX).contains(&side) {
            return Err(FrameError::Side {
                found: side,
                max: FRAME_SIDE_MAX,
            });
        }
        let refuse = |reason: String| FrameError::Resize { reason };
        let kind = if self.channels == 1 {
            PixelType::U8
        } else {
            PixelType::U8x3
        };
        let (from, to) = (pixels_u32(self.side)?, pixels_u32(side)?);
        let source =
            ImageRef::new(from, from, &self.pixels, kind).map_err(|e| refuse(e.to_string()))?;
        let mut target = Image::new(to, to, kind);
        let options = ResizeOptions::new()
            .resize_alg(ResizeAlg::Convolution(FilterType::Bilinear))
            .use_alpha(false);
        Resizer::new()
            .resize(&source, &mut target, &options)
            .map_err(|e| refuse(e.to_string()))?;
        Self::new(side, self.channels, target.into_vec())
    }

    /// The same picture at another side length by bilinear sampling without antialiasing, pixel centres at one half, as
    /// TensorFlow's `tf.image.resize(…, "bilinear", antialias=False)` does; fractions are cut off, as a cast to uint8
    /// does. A copy where it has that side already.
    ///
    /// # Errors
    /// [`FrameError::Side`].
    pub fn sampled(&self, side: usize) -> Result<Self, FrameError> {
        if side == self.side {
            return Ok(self.clone());
        }
        if !(1..=FRAME_SIDE_MAX).contains(&side) {
            return Err(FrameError::Side {
                found: side,
                max: FRAME_SIDE_MAX,
            });
        }
        let scale = self.side as f32 / side as f32;
        // Per target position: the two source positions and the weight of the second.
        let places: Vec<(usize, usize, f32)> = (0..side)
            .map(|i| {
                let at = (i as f32 + 0.5) * scale - 0.5;
                let low = at.floor().max(0.0);
                let high = at.ceil().clamp(0.0, (self.side - 1) as f32);
                (low as usize, high as usize, at - at.floor())
            })
            .collect();
        let mut pixels = Vec::with_capacity(side * side * self.channels);
        for &(top, bottom, down) in &places {
            for &(left, right, along) in &places {
                for channel in 0..self.channels {
                    let sample = |y: usize, x: usize| {
                        f32::from(self.pixels[(y * self.side + x) * self.channels + channel])
                    };
                    let mix = |y| sample(y, left) + (sample(y, right) - sample(y, left)) * along;
                    let (upper, lower) = (mix(top), mix(bottom));
                    pixels.push((upper + (lower - upper) * down) as u8);
                }
            }
        }
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
        let frame = self.resized(image_size)?;
        let across = image_size / patch;
        let mut rows = Vec::with_capacity(3 * image_size * image_size);
        for patch_y in 0..across {
            for patch_x in 0..across {
                for channel in 0..3 {
                    let channel = channel % frame.channels;
                    for y in patch_y * patch..(patch_y + 1) * patch {
                        let row = (y * image_size + patch_x * patch) * frame.channels;
                        let samples = frame.pixels[row..row + patch * frame.channels].iter();
                        rows.extend(
                            samples
                                .skip(channel)
                                .step_by(frame.channels)
                                .map(|s| scaled(*s)),
                        );
                    }
                }
            }
        }
        let shape = (across * across, 3 * patch * patch);
        Ok(Tensor::from_vec(rows, shape, device).map_err(crate::error::BackendError::from)?)
    }
}

/// x / 255, then mean 0.5 and standard deviation 0.5, in f32 as the reference does.
fn scaled(sample: u8) -> f32 {
    (f32::from(sample) / 255.0 - 0.5) / 0.5
}

fn pixels_u32(side: usize) -> Result<u32, FrameError> {
    u32::try_from(side).map_err(|_| FrameError::Side {
        found: side,
        max: FRAME_SIDE_MAX,
    })
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
