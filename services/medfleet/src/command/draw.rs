//! Boxes on the picture that the model saw, as a PNG file.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use image::{ImageFormat, Rgb, RgbImage};
use medfleet_imaging::{BurnedIn, Convention, Frame, Limits, Options, Placement, decode_file};
use medfleet_proto::v1::{Box as Found, Result as Draft, result::Output};

/// Lines of a box, in pixels.
const LINE_PIXELS: u32 = 3;
const COLOUR: Rgb<u8> = Rgb([255, 200, 0]);

/// Draws a localisation's boxes on the first picture of `file` and writes it to `out`. Without boxes it is the picture.
pub(super) fn boxes(file: &Path, draft: &Draft, out: &Path) -> Result<()> {
    let bytes = std::fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
    let convention = Convention::newest();
    // The fleet has accepted the file by its own rules for text in pixels, and whoever has the file may see it.
    let options = Options::new(convention.frame_side, Limits::default())?
        .following(convention)
        .burned_in(BurnedIn::Allow);
    let decoded = decode_file(&bytes, &options)?;
    let (frame, info) = decoded.frames.first().context("the file has no picture")?;
    let mut picture = coloured(frame);
    if let Some(Output::Localisation(found)) = &draft.output {
        for found in &found.boxes {
            draw(&mut picture, found, &info.placement);
        }
    }
    picture
        .save_with_format(out, ImageFormat::Png)
        .with_context(|| format!("cannot write {}", out.display()))
}

/// Checks before the job that the picture's folder exists: afterwards the result could not be drawn again.
pub(super) fn check(out: &Path) -> Result<()> {
    let folder = out.parent().filter(|folder| !folder.as_os_str().is_empty());
    ensure!(
        folder.is_none_or(Path::is_dir),
        "--draw {}: its folder is not there; make it, or name another file",
        out.display()
    );
    Ok(())
}

fn coloured(frame: &Frame) -> RgbImage {
    let channels = frame.channels as usize;
    RgbImage::from_fn(frame.side, frame.side, |x, y| {
        let at = (y as usize * frame.side as usize + x as usize) * channels;
        // Grey is one sample for all three.
        Rgb([0, 1, 2].map(|channel: usize| frame.pixels[at + channel.min(channels - 1)]))
    })
}

fn draw(picture: &mut RgbImage, found: &Found, placement: &Placement) {
    let last = picture.width() - 1;
    let on_frame = |pixels: f64, pad: u32| {
        let at = ((pixels + f64::from(pad)) * placement.scale).round();
        (at.max(0.0) as u32).min(last)
    };
    let (left, right) = (
        on_frame(found.left_pixels, placement.pad_left_pixels),
        on_frame(found.right_pixels, placement.pad_left_pixels),
    );
    let (top, bottom) = (
        on_frame(found.top_pixels, placement.pad_top_pixels),
        on_frame(found.bottom_pixels, placement.pad_top_pixels),
    );
    // Right and lower edge are outside, but for a box without width or height.
    let (right, bottom) = (right.max(left + 1) - 1, bottom.max(top + 1) - 1);
    for y in top..=bottom {
        for x in left..=right {
            let inside = [x - left, right - x, y - top, bottom - y];
            if inside.iter().any(|distance| *distance < LINE_PIXELS) {
                picture.put_pixel(x, y, COLOUR);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_that_is_not_there_is_told_before_the_job() {
        let folder = tempfile::tempdir().expect("a folder");
        assert!(check(&folder.path().join("boxes.png")).is_ok());
        assert!(check(Path::new("boxes.png")).is_ok());
        let refused = check(&folder.path().join("not/boxes.png"));
        let said = refused.expect_err("there is none").to_string();
        assert!(said.contains("not/boxes.png: its folder"), "{said}");
    }

    /// Such as an ultrasound image, of a tenant whose fleet is told to take these.
    #[test]
    fn what_the_fleet_took_is_drawn_on_whatever_its_pixels_carry() {
        let folder = tempfile::tempdir().expect("a folder");
        let phantom = medfleet_phantom::Phantom::draw(3, 0, false);
        let mut bytes = phantom.dicom(32).expect("a file");
        // Burned In Annotation, and a word in its place that does not say that there is none.
        let none = b"\x28\x00\x01\x03CS\x02\x00NO";
        let mut places = bytes.windows(none.len());
        let at = places.position(|found| found == none);
        let value = at.expect("the phantom says it") + none.len() - 2;
        bytes[value..value + 2].copy_from_slice(b"YE");
        let file = folder.path().join("a.dcm");
        std::fs::write(&file, bytes).expect("is written");
        let out = folder.path().join("boxes.png");
        boxes(&file, &Draft::default(), &out).expect("a picture");
        assert!(out.is_file());
    }
}
