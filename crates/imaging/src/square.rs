//! Zero padding to a square, then the resize to the model's side by the convention's rule.
//! The order and the 8-bit depth in between are MedGemma's own preprocessing.

use medfleet_resample::{antialiased, sampled};

use crate::{Frame, Placement};

/// Pixels whose sides differ by more than this part are not square.
const RATIO_ERROR_MAX: f64 = 0.01;

/// An 8-bit picture of any shape, row-major, channels interleaved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Picture {
    pub(crate) width: u32,
    pub(crate) height: u32,
    /// 1 or 3.
    pub(crate) channels: u32,
    pub(crate) pixels: Vec<u8>,
}

/// Whether pixels of these sides, in any unit, are square: of others a frame would come out stretched.
pub(crate) fn is_square(one: f64, other: f64) -> bool {
    (one / other - 1.0).abs() <= RATIO_ERROR_MAX
}

/// Pads and resizes. The picture has passed `Limits::check_pixels`, so the square fits into memory.
pub(crate) fn to_frame(picture: &Picture, frame_side: u32, antialias: bool) -> (Frame, Placement) {
    let side = picture.width.max(picture.height);
    // Centred; the odd pixel goes to the end.
    let pad_left_pixels = (side - picture.width) / 2;
    let pad_top_pixels = (side - picture.height) / 2;
    let placement = Placement {
        pad_left_pixels,
        pad_top_pixels,
        padded_side_pixels: side,
        scale: f64::from(frame_side) / f64::from(side),
    };
    let padded = pad(picture, side, pad_left_pixels, pad_top_pixels);
    let resize = if antialias { antialiased } else { sampled };
    let [side, to, channels] = [side, frame_side, picture.channels].map(|n| n as usize);
    let pixels = resize(&padded, side, channels, to).expect("`pad` made side * side * channels");
    (
        Frame {
            side: frame_side,
            channels: picture.channels,
            pixels,
        },
        placement,
    )
}

fn pad(picture: &Picture, side: u32, left: u32, top: u32) -> Vec<u8> {
    let channels = picture.channels as usize;
    let (row, stride) = (picture.width as usize * channels, side as usize * channels);
    let mut padded = vec![0; stride * side as usize];
    let first = top as usize * stride + left as usize * channels;
    for (from, to) in picture
        .pixels
        .chunks_exact(row)
        .zip(padded[first..].chunks_mut(stride))
    {
        to[..row].copy_from_slice(from);
    }
    padded
}

#[cfg(test)]
mod tests {
    use super::*;

    fn picture(width: u32, height: u32) -> Picture {
        Picture {
            width,
            height,
            channels: 1,
            pixels: vec![9; (width * height) as usize],
        }
    }

    #[track_caller]
    fn check(width: u32, height: u32, expected: &[u8]) {
        let (frame, placement) = to_frame(&picture(width, height), width.max(height), true);
        assert_eq!(frame.pixels, expected);
        assert_eq!(placement.scale, 1.0);
    }

    #[test]
    fn pads_around_the_centre_with_the_odd_pixel_at_the_end() {
        check(1, 2, &[9, 0, 9, 0]);
        check(2, 1, &[9, 9, 0, 0]);
        check(1, 3, &[0, 9, 0, 0, 9, 0, 0, 9, 0]);
        check(1, 4, &[0, 9, 0, 0, 0, 9, 0, 0, 0, 9, 0, 0, 0, 9, 0, 0]);
    }

    #[test]
    fn where_the_original_lies_is_told() {
        let (_, placement) = to_frame(&picture(100, 200), 50, true);
        assert_eq!(
            (placement.pad_left_pixels, placement.pad_top_pixels),
            (50, 0)
        );
        assert_eq!(placement.scale, 0.25);
    }
}
