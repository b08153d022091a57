//! Pictures for the commands that run a model by itself: PNG and JPEG files, square, as they are.

use std::path::Path;

use anyhow::{Context, Result, bail};
use medfleet_model::Frame;

/// A picture as the model takes it: grey stays grey, everything else is RGB, and it must be square.
pub(super) fn read(path: &Path) -> Result<Frame> {
    let reader = image::ImageReader::open(path)
        .and_then(image::ImageReader::with_guessed_format)
        .with_context(|| format!("cannot read {}", path.display()))?;
    let wrong = || {
        format!(
            "{} is not a PNG or JPEG; `medfleet frames` makes PNGs of DICOM, TIFF and NIfTI files",
            path.display()
        )
    };
    // Of a format that it does not know the library says that the name's ending is wrong, which is not what was looked at.
    if reader.format().is_none() {
        bail!(wrong());
    }
    let picture = reader.decode().with_context(wrong)?;
    let (width, height) = (picture.width(), picture.height());
    if width != height {
        bail!(
            "{} is {width} × {height} pixels; the model takes square images, which `medfleet frames` makes of any other",
            path.display()
        );
    }
    let side = width as usize;
    let (channels, pixels) = match picture.color().has_color() {
        false => (1, picture.into_luma8().into_raw()),
        true => (3, picture.into_rgb8().into_raw()),
    };
    Frame::new(side, channels, pixels).with_context(|| format!("cannot use {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(width: u32, height: u32, grey: bool, expected: Result<(usize, usize), &str>) {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("picture.png");
        let saved = if grey {
            image::GrayImage::new(width, height).save(&path)
        } else {
            image::RgbImage::new(width, height).save(&path)
        };
        saved.expect("a picture");
        match (read(&path), expected) {
            (Ok(frame), Ok(expected)) => assert_eq!((frame.side(), frame.channels()), expected),
            (Err(error), Err(part)) => assert!(error.to_string().contains(part), "{error}"),
            (found, expected) => panic!("{found:?} instead of {expected:?}"),
        }
    }

    #[test]
    fn what_is_no_picture_is_told_how_to_become_one() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("study.dcm");
        std::fs::write(&path, "no picture").expect("a file");
        let error = read(&path).expect_err("nothing can be read of it");
        let text = format!("{error:#}");
        assert!(text.contains("`medfleet frames` makes PNGs"), "{text}");
        assert!(!text.contains("extension"), "{text}");
    }

    #[test]
    fn squares_come_in_grey_or_colour() {
        check(8, 8, true, Ok((8, 1)));
        check(8, 8, false, Ok((8, 3)));
        check(8, 6, false, Err("8 × 6 pixels"));
    }
}
