//! What comes out: the model-ready frame, and the record of how it came to be.
//! The record holds no patient data: numbers, digests and words of closed lists only.

use serde::{Serialize, Serializer};

/// A model-ready picture: square, 8 bits, row-major, channels interleaved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Width and height in pixels.
    pub side: u32,
    /// 1 for grey, 3 for RGB.
    pub channels: u32,
    /// `side * side * channels` bytes.
    pub pixels: Vec<u8>,
}

/// How a frame came to be. Serialises to JSON for manifests.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct FrameInfo {
    /// Of the [`crate::Convention`].
    pub preprocessing_version: &'static str,
    /// BLAKE3 of the whole source file, hexadecimal, without a key: for local manifests, not for messages or logs.
    pub source_digest: String,
    /// Frame within the source file, from 0.
    pub frame_index: u32,
    /// What the source file is.
    pub format: Format,
    /// DICOM modality (`CR`, `DX`); `None` for pictures.
    pub modality: Option<Modality>,
    /// DICOM photometric interpretation; `None` for pictures.
    pub photometric: Option<Photometric>,
    /// How modality values became grey levels; `None` for pictures, whose levels are taken as they are.
    pub window: Option<Window>,
    /// Windows of the red, green and blue channel, where they differ (CT); then `window` is `None`.
    pub channel_windows: Vec<Window>,
    /// Columns of the original.
    pub original_width: u32,
    /// Rows of the original.
    pub original_height: u32,
    /// Where the original lies in the frame.
    pub placement: Placement,
    /// Of a patch: where it lies on the level of the slide that is shown; then `frame_index` counts patches, row by row.
    pub region: Option<Region>,
    /// What was decided on the way.
    pub notes: Vec<Note>,
    /// Of a CT: whether a value, padding left out, is above 0 HU, for [`refuse_air`](crate::refuse_air).
    #[serde(skip)]
    pub above_water: Option<bool>,
}

/// Where a patch lies, in pixels of its level.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Region {
    /// Columns to the left of it.
    pub left: u32,
    /// Rows above it.
    pub top: u32,
    /// Columns of the level.
    pub level_width: u32,
    /// Rows of the level.
    pub level_height: u32,
}

/// Maps between original pixels and the frame.
/// `frame_x = (original_x + pad_left_pixels) * scale`, and the same for y with the top.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Placement {
    /// Black columns to the left of the original, in original pixels.
    pub pad_left_pixels: u32,
    /// Black rows above the original, in original pixels.
    pub pad_top_pixels: u32,
    /// Side of the padded square, in original pixels.
    pub padded_side_pixels: u32,
    /// Frame pixels for each original pixel.
    pub scale: f64,
}

/// The window that was applied.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Window {
    /// Centre, in modality units.
    pub center: f64,
    /// Width, in modality units.
    pub width: f64,
    /// The formula.
    pub function: WindowFunction,
    /// Where centre and width come from.
    pub source: WindowSource,
}

/// Where a window comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum WindowSource {
    /// The first window of the file's header.
    Header,
    /// Smallest and largest modality value of the image, padding left out.
    MinMax,
    /// Smallest and largest modality value of the volume, padding left out.
    Volume,
    /// The model's convention.
    Convention,
}

/// Declares an enum of words that appear as such in DICOM, in JSON and in notes.
macro_rules! words {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident = $word:literal,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        pub enum $name { $($(#[$variant_doc])* $variant,)* }

        impl $name {
            /// Every value.
            pub const ALL: &'static [$name] = &[$($name::$variant,)*];

            /// The word.
            pub fn as_str(self) -> &'static str {
                match self { $($name::$variant => $word,)* }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.as_str())
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(self.as_str())
            }
        }
    };
}

words! {
    /// The formula of a window.
    WindowFunction {
        /// DICOM PS3.3 C.11.2.1.2.1.
        Linear = "LINEAR",
        /// DICOM PS3.3 C.11.2.1.3.2.
        LinearExact = "LINEAR_EXACT",
        /// DICOM PS3.3 C.11.2.1.3.1.
        Sigmoid = "SIGMOID",
        /// Lookup table; centre and width say which modality values it covers.
        Lut = "LUT",
        /// Smallest value to black, largest to white.
        MinMax = "MIN_MAX",
    }
}

words! {
    /// What a file is.
    Format {
        /// DICOM Part 10, with or without preamble.
        Dicom = "DICOM",
        /// Portable Network Graphics.
        Png = "PNG",
        /// JPEG (JFIF or Exif).
        Jpeg = "JPEG",
        /// Tagged Image File Format, classic and BigTIFF.
        Tiff = "TIFF",
        /// NIfTI-1 in one file.
        Nifti = "NIFTI",
    }
}

words! {
    /// Modalities that become frames.
    Modality {
        /// Computed tomography.
        Ct = "CT",
        /// Magnetic resonance.
        Mr = "MR",
        /// Computed radiography.
        Cr = "CR",
        /// Digital radiography.
        Dx = "DX",
        /// Mammography.
        Mg = "MG",
        /// External-camera photography: skin, wounds.
        Xc = "XC",
        /// Ophthalmic photography: fundus.
        Op = "OP",
        /// Ophthalmic tomography, one section.
        Opt = "OPT",
        /// Endoscopy.
        Es = "ES",
        /// General microscopy.
        Gm = "GM",
        /// Dermoscopy.
        Dms = "DMS",
        /// Slide microscopy: patches of a whole slide, or one photograph.
        Sm = "SM",
        /// Digital microscopy, a retired word for general microscopy.
        Dm = "DM",
    }
}

words! {
    /// Photometric interpretations that become frames.
    Photometric {
        /// Low values are bright.
        Monochrome1 = "MONOCHROME1",
        /// Low values are dark.
        Monochrome2 = "MONOCHROME2",
        /// One sample that names a colour.
        PaletteColor = "PALETTE COLOR",
        /// Red, green, blue.
        Rgb = "RGB",
        /// Luminance and two chrominances.
        YbrFull = "YBR_FULL",
        /// The same, chrominances at half the width.
        YbrFull422 = "YBR_FULL_422",
        /// JPEG 2000's reversible transform.
        YbrRct = "YBR_RCT",
        /// JPEG 2000's irreversible transform.
        YbrIct = "YBR_ICT",
    }
}

impl Photometric {
    /// Samples of a pixel.
    pub fn samples(self) -> u16 {
        match self {
            Self::Monochrome1 | Self::Monochrome2 | Self::PaletteColor => 1,
            _ => 3,
        }
    }

    /// Whether it is one of the two grey ones.
    pub(crate) fn is_grey(self) -> bool {
        matches!(self, Self::Monochrome1 | Self::Monochrome2)
    }
}

words! {
    /// What was decided on the way, as stable codes.
    Note {
        /// The header has several windows; the first is used.
        SeveralWindows = "SEVERAL_WINDOWS_FIRST_USED",
        /// The header has a VOI LUT; it is used and windows are not.
        VoiLut = "VOI_LUT_USED",
        /// The header has several VOI LUTs; the first is used.
        SeveralVoiLuts = "SEVERAL_VOI_LUTS_FIRST_USED",
        /// The SOP class is Secondary Capture: grey levels may have been altered before.
        SecondaryCapture = "SECONDARY_CAPTURE",
        /// The header has no window; smallest and largest value are used.
        NoWindow = "NO_WINDOW_MIN_MAX_USED",
        /// MONOCHROME1: grey levels are inverted.
        Inverted = "MONOCHROME1_INVERTED",
        /// The image was compressed with loss before it came here.
        LossyCompressed = "LOSSY_COMPRESSED",
        /// 16-bit picture: divided by 257.
        SixteenBitPicture = "SIXTEEN_BIT_PICTURE_SCALED",
        /// Picture with transparency: laid over black.
        AlphaOverBlack = "ALPHA_OVER_BLACK",
        /// Exif or TIFF orientation: turned upright.
        ExifOrientation = "EXIF_ORIENTATION_APPLIED",
        /// Bits above Bits Stored hold an embedded overlay and are ignored.
        HighBitsIgnored = "HIGH_BITS_IGNORED",
        /// The file has overlay planes, which are not drawn.
        OverlaysNotDrawn = "OVERLAYS_NOT_DRAWN",
        /// The file starts without the 128-byte preamble.
        NoPreamble = "NO_PREAMBLE",
        /// The file starts without file meta information; how it is written was told from its first element.
        NoMeta = "NO_META_INFORMATION",
        /// The volume has fewer slices than the model was trained on.
        FewSlices = "FEW_SLICES",
        /// The volume has more slices than the model takes; this many at even distances are used.
        SlicesSelected = "SLICES_SELECTED",
        /// The slide has more patches with tissue than the model takes; this many, drawn by their place, are used.
        PatchesSelected = "PATCHES_SELECTED",
        /// The header says that the pixels carry burned-in annotation.
        BurnedInAnnotation = "BURNED_IN_ANNOTATION",
        /// The header does not say whether the pixels carry burned-in annotation, and images of this kind usually do.
        BurnedInPossible = "BURNED_IN_POSSIBLE",
        /// Text was found in the pixels; the lines that hold it are painted over.
        TextPaintedOver = "BURNED_IN_TEXT_PAINTED_OVER",
        /// The file has a colour profile, or a gamma, that is not sRGB's; it is not applied, levels are taken as they are.
        ProfileNotApplied = "COLOUR_PROFILE_NOT_APPLIED",
        /// TIFF whose smallest value is white: grey levels are inverted.
        WhiteIsZero = "WHITE_IS_ZERO_INVERTED",
        /// Photograph with more than 8 bits a sample: the whole range is scaled to 8.
        DeepPhotograph = "DEEP_PHOTOGRAPH_SCALED",
        /// The header's Pixel Padding Value lies in the image and is left out of the smallest and largest value.
        PaddingExcluded = "PADDING_EXCLUDED",
        /// Pixels with the header's Pixel Padding Value are not black: they are shown by the window, where a viewer may show its
        /// background.
        PaddingShown = "PADDING_SHOWN",
        /// The header has a display shutter: what it covers has the one level that it says, or is black.
        ShutterApplied = "DISPLAY_SHUTTER_APPLIED",
        /// Of a comparison: the image that was taken first.
        PriorExamination = "PRIOR_EXAMINATION",
        /// Of a comparison: the image that was taken last.
        CurrentExamination = "CURRENT_EXAMINATION",
        /// Of a comparison: no header says which image was taken first; they are in the order of the request.
        OrderAsGiven = "ORDER_AS_GIVEN",
        /// The file does not say what it shows: the modality is the one that the job gave.
        ModalityAsGiven = "MODALITY_AS_GIVEN",
    }
}
