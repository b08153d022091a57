//! NIfTI-1 volumes in one file (`n+1`): whole axial slices in the order and orientation that a DICOM series of the same
//! volume has: columns to the patient's left, rows to the back, slices from the feet up.
//!
//! The format has no modality, so that the job or the file's own intent name must say CT or MR; nothing is guessed.
//! Voxels are never interpolated: axes are swapped and turned, and a volume whose axes lie oblique is refused.

mod affine;

use affine::Axes;

use crate::ahead::in_order;
use crate::geometry::Place;
use crate::square::Picture;
use crate::study::SlicePlan;
use crate::transform::Rescale;
use crate::volume::{Each, Slice, Slices, channels, curves, record};
use crate::{Format, Frame, FrameInfo, Limits, Modality, Options, Reason, Refusal, Source};

const HEADER_BYTES: usize = 348;
/// The header, and four bytes that say whether extensions follow.
const DATA_AT_MIN: f64 = 352.0;
const MAGIC_AT: usize = 344;
const IN_ONE_FILE: &[u8] = b"n+1\0";
const IN_TWO_FILES: &[u8] = b"ni1\0";
const INTENT_NAME: std::ops::Range<usize> = 328..344;

/// Whether bytes begin as NIfTI-1 does.
pub(crate) fn is_nifti(bytes: &[u8]) -> bool {
    let magic = bytes.get(MAGIC_AT..MAGIC_AT + 4);
    let size = [HEADER_BYTES as u8, (HEADER_BYTES >> 8) as u8, 0, 0];
    let big = [0, 0, size[1], size[0]];
    (bytes.starts_with(&size) || bytes.starts_with(&big))
        && magic.is_some_and(|magic| magic == IN_ONE_FILE || magic == IN_TWO_FILES)
}

/// How a voxel is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Voxel {
    U8,
    I8,
    U16,
    I16,
    U32,
    I32,
    F32,
    F64,
}

impl Voxel {
    /// By the header's datatype and bitpix.
    fn read(datatype: i16, bits: i16) -> Option<Self> {
        let (voxel, expected) = match datatype {
            2 => (Self::U8, 8),
            256 => (Self::I8, 8),
            512 => (Self::U16, 16),
            4 => (Self::I16, 16),
            768 => (Self::U32, 32),
            8 => (Self::I32, 32),
            16 => (Self::F32, 32),
            64 => (Self::F64, 64),
            _ => return None,
        };
        (bits == expected).then_some(voxel)
    }

    fn bytes(self) -> usize {
        match self {
            Self::U8 | Self::I8 => 1,
            Self::U16 | Self::I16 => 2,
            Self::U32 | Self::I32 | Self::F32 => 4,
            Self::F64 => 8,
        }
    }

    /// The number in `bytes`, as many as [`Voxel::bytes`].
    fn value(self, bytes: &[u8], big_endian: bool) -> f64 {
        let mut low = [0; 8];
        for (to, from) in low.iter_mut().zip(bytes) {
            *to = *from;
        }
        if big_endian {
            low[..bytes.len()].reverse();
        }
        let whole = u64::from_le_bytes(low);
        match self {
            Self::U8 | Self::U16 | Self::U32 => whole as f64,
            Self::I8 => f64::from(whole as i8),
            Self::I16 => f64::from(whole as i16),
            Self::I32 => f64::from(whole as i32),
            Self::F32 => f64::from(f32::from_bits(whole as u32)),
            Self::F64 => f64::from_bits(whole),
        }
    }
}

struct Volume<'a> {
    voxels: &'a [u8],
    voxel: Voxel,
    big_endian: bool,
    /// Voxels along each axis as written.
    size: [usize; 3],
    rescale: Rescale,
    axes: Axes,
    modality: Modality,
}

/// The fields of a header.
struct Fields<'a> {
    bytes: &'a [u8],
    big_endian: bool,
}

impl Fields<'_> {
    fn array<const N: usize>(&self, at: usize) -> [u8; N] {
        let mut out = [0; N];
        // Every field lies within the header, whose length was checked.
        out.copy_from_slice(&self.bytes[at..at + N]);
        if self.big_endian {
            out.reverse();
        }
        out
    }

    fn i16(&self, at: usize) -> i16 {
        i16::from_le_bytes(self.array(at))
    }

    fn f32(&self, at: usize) -> f64 {
        f64::from(f32::from_le_bytes(self.array(at)))
    }
}

impl<'a> Volume<'a> {
    fn read(bytes: &'a [u8], options: &Options) -> Result<Self, Refusal> {
        // `is_nifti` has seen the magic word behind every field but the last.
        if bytes.len() < HEADER_BYTES {
            return Err(Refusal::new(Reason::Truncated));
        }
        if bytes[MAGIC_AT..MAGIC_AT + 4] != *IN_ONE_FILE {
            return Err(
                Refusal::new(Reason::NotAnImage).found("a header whose image is in another file")
            );
        }
        let fields = Fields {
            bytes,
            big_endian: bytes[0] == 0,
        };
        let size = size(&fields, options.limits())?;
        let (datatype, bits) = (fields.i16(70), fields.i16(72));
        let voxel = Voxel::read(datatype, bits).ok_or_else(|| {
            Refusal::new(Reason::UnsupportedVoxels)
                .found(format_args!("datatype {datatype} of {bits} bits"))
        })?;
        let start = fields.f32(108);
        if !(start >= DATA_AT_MIN && start.fract() == 0.0) {
            return Err(Refusal::new(Reason::Malformed).found("an unusable vox_offset"));
        }
        let length = size.iter().product::<usize>() * voxel.bytes();
        let start = start as usize;
        let voxels = bytes.get(start..).and_then(|rest| rest.get(..length));
        Ok(Self {
            voxels: voxels.ok_or_else(|| Refusal::new(Reason::Truncated))?,
            voxel,
            big_endian: fields.big_endian,
            size,
            rescale: rescale(&fields)?,
            axes: Axes::read(&|at| fields.i16(at), &|at| fields.f32(at))?,
            modality: modality(&bytes[INTENT_NAME], options)?,
        })
    }

    /// Columns, rows and slices as they are shown.
    fn shown(&self) -> [usize; 3] {
        self.axes.order.map(|axis| self.size[axis])
    }

    /// Values of one slice as it is shown, row by row.
    fn slice(&self, slice: usize) -> impl Iterator<Item = f64> + '_ {
        let [columns, rows, _] = self.shown();
        let strides = [1, self.size[0], self.size[0] * self.size[1]];
        // The place of a voxel along one shown axis.
        let along = move |shown: usize, at: usize| {
            let axis = self.axes.order[shown];
            let at = if self.axes.turned[shown] {
                self.size[axis] - 1 - at
            } else {
                at
            };
            at * strides[axis]
        };
        let first = along(2, slice);
        let bytes = self.voxel.bytes();
        (0..rows).flat_map(move |row| {
            (0..columns).map(move |column| {
                let at = (first + along(1, row) + along(0, column)) * bytes;
                let raw = self
                    .voxel
                    .value(&self.voxels[at..at + bytes], self.big_endian);
                raw * self.rescale.slope + self.rescale.intercept
            })
        })
    }

    /// Smallest and largest value.
    ///
    /// # Errors
    /// Values that are no numbers: nothing says what they should look like.
    fn range(&self, slice: usize) -> Result<(f64, f64), Refusal> {
        let (mut low, mut high) = (f64::INFINITY, f64::NEG_INFINITY);
        for value in self.slice(slice) {
            if !value.is_finite() {
                return Err(
                    Refusal::new(Reason::UnsupportedVoxels).found("values that are not finite")
                );
            }
            low = low.min(value);
            high = high.max(value);
        }
        Ok((low, high))
    }
}

/// Voxels along the three axes; a fourth may only say that there is one volume.
fn size(fields: &Fields<'_>, limits: &Limits) -> Result<[usize; 3], Refusal> {
    let dimensions = fields.i16(40);
    if !(3..=7).contains(&dimensions) {
        return Err(
            Refusal::new(Reason::UnsupportedVoxels).found(format_args!("{dimensions} dimensions"))
        );
    }
    let side = |axis: i16| fields.i16(40 + axis as usize * 2);
    if let Some(volumes) = (4..=dimensions).map(side).find(|size| *size != 1) {
        return Err(Refusal::new(Reason::MultiFrameNotSupportedYet)
            .found(format_args!("{volumes} volumes")));
    }
    let sizes = [side(1), side(2), side(3)];
    if sizes.iter().any(|size| *size < 1) {
        return Err(Refusal::new(Reason::Malformed).found("an empty axis"));
    }
    // Whichever of them become rows and columns.
    let sides = sizes.map(|size| u32::from(size.unsigned_abs()));
    limits.check_pixels(sides[0].max(sides[1]), sides[2])?;
    if sides.iter().any(|side| *side > limits.frames_max) {
        return Err(Refusal::new(Reason::TooManyFrames));
    }
    Ok(sides.map(|side| side as usize))
}

/// A slope of zero means that there is none (NIfTI-1, `scl_slope`).
fn rescale(fields: &Fields<'_>) -> Result<Rescale, Refusal> {
    let (slope, intercept) = (fields.f32(112), fields.f32(116));
    if slope == 0.0 || !slope.is_finite() {
        return Ok(Rescale {
            slope: 1.0,
            intercept: 0.0,
        });
    }
    if !intercept.is_finite() {
        return Err(Refusal::new(Reason::InvalidRescale));
    }
    Ok(Rescale { slope, intercept })
}

/// What the job says, or the file's intent name; both must agree where both speak.
fn modality(intent_name: &[u8], options: &Options) -> Result<Modality, Refusal> {
    let end = intent_name
        .iter()
        .position(|byte| *byte == 0)
        .unwrap_or(intent_name.len());
    let own = match &intent_name[..end] {
        b"CT" => Some(Modality::Ct),
        b"MR" | b"MRI" => Some(Modality::Mr),
        _ => None,
    };
    match (options.volume_modality(), own) {
        (Some(said), Some(own)) if said != own => Err(Refusal::new(Reason::ModalityUnknown)
            .found(format_args!("{own} in the file and {said} in the job"))),
        (Some(modality), _) | (None, Some(modality)) => Ok(modality),
        (None, None) => Err(Refusal::new(Reason::ModalityUnknown)),
    }
}

/// The slices of a file, for the plan of its study.
pub(crate) fn read(bytes: &[u8], options: &Options, digest: &str) -> Result<Slices, Refusal> {
    let volume = Volume::read(bytes, options)?;
    let [columns, rows, slices] = volume.shown();
    let spacing = volume.axes.spacing;
    let decoder = options.limits().codestreams;
    let threads = options.limits().threads(columns as u32, rows as u32);
    let make = |slice: usize| -> Result<(Slice, f64), Refusal> {
        decoder.check_wanted()?;
        // Also for CT, as a value that is no number must be found before anything is shown.
        let range = volume.range(slice)?;
        let slice = Slice {
            place: Some(Place::axial(slice as f64 * spacing[2])),
            rescale: Some(volume.rescale),
            spacing: vec![spacing[1], spacing[0]],
            range: (volume.modality == Modality::Mr).then_some(range),
        };
        Ok((slice, range.0))
    };
    let (mut frames, mut lowest) = (Vec::with_capacity(slices), f64::INFINITY);
    in_order(decoder, (threads, slices), &make, &mut |(slice, low)| {
        frames.push(slice);
        lowest = lowest.min(low);
    })?;
    // Air has -1000: these are grey levels, shares of a range, or values that were shifted.
    if volume.modality == Modality::Ct && lowest >= 0.0 {
        return Err(Refusal::new(Reason::NotHounsfield).found("no negative value"));
    }
    // The format has no studies; the volumes of one job are one study's, and each is a series.
    Ok(Slices {
        series: digest.to_owned(),
        instance: digest.to_owned(),
        rows: rows as u32,
        columns: columns as u32,
        frames,
        ..Slices::bare(volume.modality)
    })
}

/// The `wanted` slices, in that order, as the plan of their volume says.
pub(crate) fn decode(
    bytes: &[u8],
    wanted: &[u32],
    plan: &SlicePlan,
    options: &Options,
    each: Each<'_>,
) -> Result<(), Refusal> {
    let volume = Volume::read(bytes, options)?;
    let source = Source::of(Format::Nifti, bytes);
    let curves = curves(volume.modality, plan, options)?;
    let [columns, rows, slices] = volume.shown();
    let decoder = options.limits().codestreams;
    let make = |at: usize| -> Result<(Frame, FrameInfo), Refusal> {
        let index = wanted[at];
        decoder.check_wanted()?;
        if index as usize >= slices {
            return Err(Refusal::new(Reason::Malformed).found("a slice that is not there"));
        }
        let values: Vec<f64> = volume.slice(index as usize).collect();
        let picture = Picture {
            width: columns as u32,
            height: rows as u32,
            channels: curves.len() as u32,
            pixels: channels(&curves, |curve| {
                values.iter().map(|x| curve.level(*x)).collect()
            }),
        };
        let (frame, mut info) = source.frame(&picture, index, plan.notes.clone(), options)?;
        info.modality = Some(volume.modality);
        if volume.modality == Modality::Ct {
            info.above_water = Some(values.iter().any(|value| *value > 0.0));
        }
        record(&mut info, &curves);
        Ok((frame, info))
    };
    let threads = source.threads((columns as u32, rows as u32), options);
    let mut take = |(frame, info): (Frame, FrameInfo)| each(frame, info);
    in_order(decoder, (threads, wanted.len()), &make, &mut take)
}
