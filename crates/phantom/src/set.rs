//! Sets of pictures as files: made in parallel, a bounded batch at a time, written in order.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use image::codecs::png::{CompressionType, FilterType, PngEncoder};
use image::{ExtendedColorType, ImageEncoder};
use rayon::prelude::*;

use crate::dicom::DicomError;
use crate::frame::frame;
use crate::labels::Label;
use crate::phantom::Phantom;

/// Pictures made at a time: as many lie in memory.
const BATCH: u64 = 64;
/// Side of a raw picture if the caller doesn't choose.
const SIDE: u32 = 224;
/// Columns of a PNG picture if the caller doesn't choose.
const COLUMNS: u32 = 1024;
/// Sizes that can be asked for, in pixels.
const SIZES: std::ops::RangeInclusive<u32> = 16..=4096;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// `images/000000.png`, 8-bit grey as shown, bone white.
    Png,
    /// `images/000000.dcm`.
    Dicom,
    /// `images.u8`: [count, side, side] bytes, each picture padded with black to a square.
    Raw,
}

/// What set to write.
#[derive(Clone, Debug)]
pub struct SetOptions {
    pub count: u64,
    pub seed: u64,
    pub format: Format,
    /// Side of a raw picture or columns of a file. If none: 224 raw, 1024 PNG, and in DICOM each picture's own.
    pub size: Option<u32>,
    /// Columns at which a raw picture is rendered before it is brought to its side as the fleet brings a file's. If none:
    /// it is rendered at its side, which leaves more of what is finer than a pixel.
    pub rendered: Option<u32>,
    /// Whether each odd picture is a later one of the patient before it.
    pub pairs: bool,
    /// Findings to draw more often: of new ones, 7 of 10 are from these. If none, all findings are drawn alike.
    pub often: Vec<Label>,
}

/// Why a set wasn't written.
#[derive(Debug, thiserror::Error)]
pub enum PhantomError {
    #[error("pictures of {size} pixels can't be made: choose {} to {}", SIZES.start(), SIZES.end())]
    Size { size: u32 },
    #[error(
        "only raw pictures are rendered at another size than they are written at: choose the format raw, or leave out the \
         size to render at"
    )]
    Rendered,
    #[error("can't write {}", path.display())]
    Write {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("can't encode picture {index} as PNG")]
    Png {
        index: u64,
        #[source]
        source: image::ImageError,
    },
    #[error("can't encode picture {index} as DICOM")]
    Dicom {
        index: u64,
        #[source]
        source: DicomError,
    },
    #[error("can't encode record {index}")]
    Record {
        index: u64,
        #[source]
        source: serde_json::Error,
    },
}

/// Writes a set into the folder `dir`, which is made if needed: the pictures, and `set.jsonl` with one record a line.
/// `progress` is told how many pictures are written.
///
/// # Errors
/// [`PhantomError`]; what was written until then stays.
pub fn write_set(
    options: &SetOptions,
    dir: &Path,
    progress: &dyn Fn(usize),
) -> Result<(), PhantomError> {
    let mut sizes = options.size.into_iter().chain(options.rendered);
    if let Some(size) = sizes.find(|size| !SIZES.contains(size)) {
        return Err(PhantomError::Size { size });
    }
    if options.rendered.is_some() && options.format != Format::Raw {
        return Err(PhantomError::Rendered);
    }
    let images = dir.join("images");
    let folder = if options.format == Format::Raw {
        dir
    } else {
        &images
    };
    std::fs::create_dir_all(folder).map_err(failed(folder))?;
    let records_path = dir.join("set.jsonl");
    let mut records = create(&records_path)?;
    let raw_path = dir.join("images.u8");
    let mut raw = if options.format == Format::Raw {
        Some(create(&raw_path)?)
    } else {
        None
    };
    let mut start = 0;
    while start < options.count {
        let end = (start + BATCH).min(options.count);
        // In order, whatever the order in which threads finish.
        let made: Vec<Made> = (start..end)
            .into_par_iter()
            .map(|index| make(options, index, dir))
            .collect::<Result<_, _>>()?;
        for made in made {
            records
                .write_all(&made.line)
                .map_err(failed(&records_path))?;
            if let Some(raw) = &mut raw {
                raw.write_all(&made.pixels).map_err(failed(&raw_path))?;
            }
        }
        start = end;
        progress(usize::try_from(start).unwrap_or(usize::MAX));
    }
    records.flush().map_err(failed(&records_path))?;
    if let Some(raw) = &mut raw {
        raw.flush().map_err(failed(&raw_path))?;
    }
    Ok(())
}

/// One picture's part of the set.
struct Made {
    line: Vec<u8>,
    /// Its bytes of `images.u8`; nothing if it has a file of its own.
    pixels: Vec<u8>,
}

fn make(options: &SetOptions, index: u64, dir: &Path) -> Result<Made, PhantomError> {
    let phantom = Phantom::draw_often(options.seed, index, options.pairs, &options.often);
    let mut pixels = Vec::new();
    let record = match options.format {
        Format::Raw => {
            let side = options.size.unwrap_or(SIDE);
            pixels = match options.rendered {
                Some(columns) => frame(&phantom.render(columns), side as usize),
                None => phantom.render_square(side).grey(),
            };
            phantom.record().clone()
        }
        Format::Png => {
            let columns = options.size.unwrap_or(COLUMNS);
            let name = format!("images/{index:06}.png");
            let bytes =
                png(&phantom, columns).map_err(|source| PhantomError::Png { index, source })?;
            save(&dir.join(&name), &bytes)?;
            phantom.record_at(columns, Some(name))
        }
        Format::Dicom => {
            let columns = options.size.unwrap_or(phantom.record().cols);
            let name = format!("images/{index:06}.dcm");
            let bytes = phantom
                .dicom(columns)
                .map_err(|source| PhantomError::Dicom { index, source })?;
            save(&dir.join(&name), &bytes)?;
            phantom.record_at(columns, Some(name))
        }
    };
    let mut line =
        serde_json::to_vec(&record).map_err(|source| PhantomError::Record { index, source })?;
    line.push(b'\n');
    Ok(Made { line, pixels })
}

fn png(phantom: &Phantom, columns: u32) -> Result<Vec<u8>, image::ImageError> {
    let picture = phantom.render(columns);
    let mut bytes = Vec::new();
    // Noise doesn't compress: little effort.
    PngEncoder::new_with_quality(&mut bytes, CompressionType::Fast, FilterType::Sub).write_image(
        &picture.grey(),
        picture.columns as u32,
        picture.rows as u32,
        ExtendedColorType::L8,
    )?;
    Ok(bytes)
}

fn create(path: &Path) -> Result<BufWriter<File>, PhantomError> {
    Ok(BufWriter::new(File::create(path).map_err(failed(path))?))
}

fn save(path: &Path, bytes: &[u8]) -> Result<(), PhantomError> {
    std::fs::write(path, bytes).map_err(failed(path))
}

fn failed(path: &Path) -> impl FnOnce(std::io::Error) -> PhantomError {
    let path = path.to_path_buf();
    move |source| PhantomError::Write { path, source }
}
