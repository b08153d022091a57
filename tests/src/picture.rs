//! Inputs for the tests: small synthetic pictures, and the real chest radiograph that the gate fetches.

use std::io::Cursor;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use image::{GrayImage, ImageFormat};
use medfleet_fuzz::dicom::{Header, JPEG_2000, encapsulated};

/// A grey PNG of `side`×`side` pixels whose content depends on `seed`: two seeds are two different images.
pub fn png(side: u32, seed: u32) -> Result<Vec<u8>> {
    let pixels = (0..side * side).map(|at| {
        let (x, y) = (at % side, at / side);
        let wave = (x.wrapping_mul(7 + seed % 5) ^ y.wrapping_mul(3 + seed % 11))
            .wrapping_add(seed.wrapping_mul(31));
        (wave % 256) as u8
    });
    grey_png(side, pixels.collect())
}

/// A grey PNG of `side`×`side` given pixels.
pub fn grey_png(side: u32, pixels: Vec<u8>) -> Result<Vec<u8>> {
    let picture = GrayImage::from_raw(side, side, pixels).context("side * side pixels")?;
    let mut bytes = Cursor::new(Vec::new());
    picture
        .write_to(&mut bytes, ImageFormat::Png)
        .context("encode a test picture")?;
    Ok(bytes.into_inner())
}

/// A grey PNG of `side`×`side` pixels of noise, which cannot be made smaller than a byte each: two seeds are two different images.
pub fn noise(side: u32, seed: u32) -> Result<Vec<u8>> {
    let mut state = seed.wrapping_mul(2_654_435_761) | 1;
    let pixels = (0..side * side).map(|_| {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state.to_le_bytes()[0]
    });
    grey_png(side, pixels.collect())
}

/// A file of the pinned `pydicom-data` package, as `cargo xtask fetch` lays it into the cache.
pub fn radiograph(name: &str) -> Result<Vec<u8>> {
    let path = medfleet_testkit::cache_dir()?
        .join("pydicom-data-1.0.0")
        .join(name);
    ensure!(
        path.is_file(),
        "{} is missing; run `cargo xtask fetch`",
        path.display()
    );
    std::fs::read(&path).with_context(|| format!("read {}", path.display()))
}

/// The tiny checkpoint of MedSigLIP's form, of the model's own tests.
pub fn tiny_embedder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../crates/model/tests/fixtures/tiny_medsiglip")
}

/// The tiny checkpoint that the repository ships.
pub fn tiny_model() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../deploy/tiny")
}

/// A DICOM file whose JPEG 2000 takes more memory than a decoder of the test fleet may have, so that it ends the decoder.
pub fn deadly() -> Vec<u8> {
    const LARGE: &[u8] = include_bytes!("../../services/preprocess/tests/it/large.j2k");
    let header = Header {
        rows: 4096,
        columns: 4096,
        ..Header::default()
    };
    encapsulated(&header, JPEG_2000, LARGE)
}
