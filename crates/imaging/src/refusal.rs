//! Why a file is refused: one stable code per reason, and a sentence that names the tag and what is allowed.
//! A refusal never carries a value that could identify a patient: only numbers and words of closed lists get into it.

use std::fmt;

use dicom_core::Tag;
use serde::{Serialize, Serializer};

/// A file that was not turned into frames, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, thiserror::Error)]
pub struct Refusal {
    /// The stable reason.
    pub reason: Reason,
    /// The DICOM element that decided it, where one did.
    pub tag: Option<ElementTag>,
    /// What was found: numbers and known words only.
    pub found: Option<String>,
}

impl Refusal {
    /// A refusal that no single element decided.
    pub fn new(reason: Reason) -> Self {
        Self {
            reason,
            tag: None,
            found: None,
        }
    }

    pub(crate) fn at(reason: Reason, tag: Tag) -> Self {
        Self {
            reason,
            tag: Some(ElementTag(tag)),
            found: None,
        }
    }

    /// `found` must be a number or a word of a closed list, never text copied from the file.
    pub(crate) fn found(mut self, found: impl fmt::Display) -> Self {
        self.found = Some(found.to_string());
        self
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.reason.text())?;
        if let Some(found) = &self.found {
            write!(f, "; found {found}")?;
        }
        if let Some(tag) = self.tag {
            write!(f, " in {tag}")?;
        }
        write!(f, "; allowed: {}", self.reason.allowed())
    }
}

/// A DICOM tag, shown as `(gggg,eeee)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ElementTag(pub(crate) Tag);

impl fmt::Display for ElementTag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "({:04X},{:04X})", self.0.group(), self.0.element())
    }
}

impl Serialize for ElementTag {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// Declares the reasons once: variant, code, what is wrong, what is allowed.
macro_rules! reasons {
    ($($variant:ident, $code:literal, $text:literal, $allowed:literal;)*) => {
        /// Why a file is refused. `docs/imaging.md` has one row for each code.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        pub enum Reason {
            $(#[doc = $text] $variant,)*
        }

        impl Reason {
            /// Every reason, in the order of the documentation.
            pub const ALL: &'static [Reason] = &[$(Reason::$variant,)*];

            /// The stable code.
            pub fn code(self) -> &'static str {
                match self { $(Reason::$variant => $code,)* }
            }

            /// What is wrong with the file.
            pub fn text(self) -> &'static str {
                match self { $(Reason::$variant => $text,)* }
            }

            /// What would have been accepted.
            pub fn allowed(self) -> &'static str {
                match self { $(Reason::$variant => $allowed,)* }
            }
        }
    };
}

reasons! {
    Empty, "EMPTY", "the file is empty", "DICOM, PNG, JPEG, TIFF or NIfTI";
    NotAnImage, "NOT_AN_IMAGE", "the file is neither DICOM nor a picture", "DICOM with file meta information, PNG, JPEG, TIFF or NIfTI-1 in one file";
    Truncated, "TRUNCATED", "the file ends before its content does", "a complete file";
    Malformed, "MALFORMED", "the file breaks the rules of its format", "a file that follows its standard";
    TooLarge, "TOO_LARGE", "the file has more bytes than the limit", "files up to the configured number of bytes";
    TooManyPixels, "TOO_MANY_PIXELS", "the image has more pixels than the limit", "images up to the configured number of pixels";
    TooManyFrames, "TOO_MANY_FRAMES", "the file has more frames than the limit", "files up to the configured number of frames";
    TooManyFiles, "TOO_MANY_FILES", "the archive has more entries than the limit", "archives up to the configured number of entries";
    CompressionRatio, "COMPRESSION_RATIO", "the file unpacks to more bytes than the limit", "data sets up to the configured unpacked size and images up to the configured compression ratio";
    UnpackedTooLarge, "UNPACKED_TOO_LARGE", "the file needs more memory than the limit while it is unpacked", "archives of files, and deflated data sets, up to the configured number of unpacked bytes";
    NoPixelData, "NO_PIXEL_DATA", "the DICOM file holds no image", "files with Pixel Data";
    PresentationState, "PRESENTATION_STATE", "the file is a presentation state, which says how a viewer shows other images: by which windows, turned, mirrored or inverted; it is not followed", "the images that it is of, stored as they are to be looked at";
    DicomDirectory, "DICOM_DIRECTORY", "the file is a DICOMDIR, which lists other files and holds no image", "the files that it lists";
    BesideDirectory, "BESIDE_DIRECTORY", "the file is not DICOM and lies beside a DICOMDIR, as viewers and icons do", "DICOM files; pictures by themselves";
    MissingAttribute, "MISSING_ATTRIBUTE", "an element that decoding needs is missing", "files with every required element";
    InvalidAttribute, "INVALID_ATTRIBUTE", "an element that decoding needs has an unusable value", "values as DICOM PS3.3 defines them";
    UnsupportedTransferSyntax, "UNSUPPORTED_TRANSFER_SYNTAX", "the transfer syntax is not one that is known to decode right", "implicit and explicit little endian, explicit big endian, deflated, RLE, JPEG baseline, extended and lossless, JPEG-LS, JPEG 2000, high-throughput JPEG 2000";
    VideoNotSupported, "VIDEO_NOT_SUPPORTED", "the file holds video", "still images";
    ModalityNotSupportedYet, "MODALITY_NOT_SUPPORTED_YET", "this version does not turn this modality into frames yet", "CR, DX, MG, CT, MR, and the photographs XC, OP, OPT, ES, GM, DMS, DM and SM";
    MultiFrameNotSupportedYet, "MULTI_FRAME_NOT_SUPPORTED_YET", "this version does not take several frames of this kind yet", "one frame a radiograph or picture; any number of CT and MR slices, but no mosaic of them in one image";
    UnsupportedPhotometric, "UNSUPPORTED_PHOTOMETRIC", "the photometric interpretation is not one that is known to decode right", "MONOCHROME1, MONOCHROME2 and PALETTE COLOR with one sample a pixel; RGB, YBR_FULL and YBR_FULL_422 with three, in JPEG 2000 also YBR_RCT and YBR_ICT; no PALETTE COLOR in a transfer syntax that may lose something; grey ones only for CR, DX, MG and CT, MONOCHROME2 for MR";
    UnsupportedBits, "UNSUPPORTED_BITS", "the bit depth is not one that is known to decode right", "8, 16 or 32 bits allocated (1 where native and grey), 1 to that many stored, high bit = stored - 1";
    RescaleUnknownType, "RESCALE_UNKNOWN_TYPE", "a rescale element has a value representation that is not decimal text", "rescale slope and intercept with VR DS, or UN that holds decimal text";
    InvalidRescale, "INVALID_RESCALE", "rescale slope and intercept do not form a usable line", "both present and finite, slope not zero";
    NotHounsfield, "NOT_HOUNSFIELD", "the values of a CT are not known to be Hounsfield units", "rescale slope and intercept by which values can be negative, as air is -1000, and positive, as bone is, a value above 0 in one of the slices shown, and no Modality LUT; Rescale Type HU or that spelled out, or none where Multi-energy CT Acquisition is not YES, or US (unspecified) where also Image Type is ORIGINAL; NIfTI volumes with negative values; else the series as the scanner made it";
    InvalidWindow, "INVALID_WINDOW", "the window is unusable", "VR DS, as many centres as widths, finite, widths >= 1 for LINEAR and > 0 otherwise, function LINEAR, LINEAR_EXACT or SIGMOID";
    UnsupportedLut, "UNSUPPORTED_LUT", "a lookup table is not one that is known to be applied right", "no Presentation LUT Sequence; Presentation LUT Shape IDENTITY with MONOCHROME2 and INVERSE with MONOCHROME1; Pixel Presentation MONOCHROME or none; a Modality LUT or a rescale, not both; Modality and VOI LUT with 1 to 65536 entries of 8 to 16 bits and a first value with the sign of its input, the latter with a whole-numbered rescale; palettes of three equally long tables; entries of VOI LUTs and palettes that fit their bits and use them";
    UnsupportedShutter, "UNSUPPORTED_SHUTTER", "the display shutter is not one that is known to be applied right", "of CR, DX and MG shutters of Shutter Shape RECTANGULAR, CIRCULAR, POLYGONAL (3 to 1024 vertices) or several of them, in whole numbers, that leave some of the image; no other shape, and no shutter in other images";
    PixelDataMismatch, "PIXEL_DATA_MISMATCH", "the decoded image does not match the header", "pixel data with the rows, columns and bits the header declares, and with colours that are said one way; signed values in a JPEG of as many bits as are stored; no 8 bits that may have lost something where more are stored; of photographs without a window levels that use the two highest of more than 8 bits, else the Bits Stored that are used, or a window";
    DecodeFailed, "DECODE_FAILED", "the compressed image cannot be decoded", "images that a standard decoder reads without error";
    DecoderCrashed, "DECODER_CRASHED", "the decoder broke off at the compressed image, twice", "images that a standard decoder reads without error";
    DecoderTooSlow, "DECODER_TOO_SLOW", "decoding the compressed image took more processor time than the limit", "images that decode within the configured time";
    DecoderOverdue, "DECODER_OVERDUE", "decoding the compressed image took longer by the clock than the limit; the file may be good", "the same file, later or with fewer others at a time";
    DecoderUnavailable, "DECODER_UNAVAILABLE", "the decoder of this codec could not be started; the file may be good", "the same file, later";
    UnsupportedColour, "UNSUPPORTED_COLOUR", "the picture's colour model is not supported", "grey and RGB, 8 bits a channel, or 16 that use the two highest (values of 12 or 14 bits spread over all 16; what is dark all the same saved with 8); palettes of 16 bits that use them; one grey sample a pixel, with or without transparency; JPEG grey, YCbCr and RGB, 8 bits, that does not say it is both of them, and where it is lossless says RGB; a colour profile, if any, of RGB or grey";
    UnsupportedCompression, "UNSUPPORTED_COMPRESSION", "the picture's compression is not one that is known to decode right", "TIFF uncompressed, LZW, deflate, PackBits and JPEG, with no or horizontal prediction";
    NotForPresentation, "NOT_FOR_PRESENTATION", "the image is raw detector data, not meant to be looked at", "Presentation Intent Type FOR PRESENTATION, or none";
    ModalityUnknown, "MODALITY_UNKNOWN", "nothing says whether the volume is CT or MR", "NIfTI volumes whose job says CT or MR (`--modality`), or whose intent name is CT or MR";
    OrientationUnknown, "ORIENTATION_UNKNOWN", "the volume does not say how it lies in the patient", "NIfTI volumes with an sform or a qform";
    UnsupportedVoxels, "UNSUPPORTED_VOXELS", "the volume's voxels are not ones that are known to decode right", "NIfTI volumes of three dimensions, whole numbers of 8 to 32 bits and floating point of 32 and 64, all finite";
    NoTissue, "NO_TISSUE", "no patch of the slide shows tissue", "slides with at least one whole patch that a quarter of is coloured";
    NoSuchMagnification, "NO_SUCH_MAGNIFICATION", "the slide does not say or does not have the magnification that the model takes", "slides with a spacing of at most 1.1 micrometres a pixel";
    SeveralStudies, "SEVERAL_STUDIES", "the images belong to several studies", "images of one study a job, or of several that all say the same Patient ID, date of birth and Study Date, and that no identity was removed; of a comparison one an input; for embeddings and zero-shot scores images of any; slices of one";
    MixedOrientation, "MIXED_ORIENTATION", "the slices of the series do not lie parallel", "a series with one orientation";
    MixedSeries, "MIXED_SERIES", "the slices of the series differ in size, spacing, modality or rescale, or those of one CT acquisition lie between those of another or to the side of them", "a series that is one volume";
    NotAxial, "NOT_AXIAL", "the volume is not axial, as the model was trained on", "axial series, or a single slice";
    SamePosition, "SAME_POSITION", "the series has several images at one position", "one slice at each position";
    SliceGap, "SLICE_GAP", "slices are missing within the series", "steps between slices that are at most 1.5 times the usual one";
    NotUpright, "NOT_UPRIGHT", "the header says that the image lies mirrored or turned", "slices with columns to the patient's left, of sagittal ones to the front or back, and rows to the feet, of axial ones to the back; chest films with rows to the feet, frontal ones with columns to the left (`L\\F`); else the image turned or reformatted so, and its header with it, where it was taken or at a workstation";
    ShownTurned, "SHOWN_TURNED", "a presentation state of the study says that a viewer shows the CR or DX film mirrored or turned", "films stored as they are looked at; no presentation state with them whose Image Horizontal Flip is Y or whose Image Rotation is not 0";
    NonSquarePixels, "NON_SQUARE_PIXELS", "the pixels are not square", "pixel spacing and aspect ratio that differ by at most 1 %";
    BurnedInAnnotation, "BURNED_IN_ANNOTATION", "the pixels may carry text about the patient", "Burned In Annotation NO; nothing said by radiographs and slices that are no secondary captures, screen shots or digitised film; anything for tenants whose operator allows it";
    BurnedInText, "BURNED_IN_TEXT", "text was found in the pixels", "images in which the program that reads text finds no words but marks of side, view and position; anything where the operator lets it be painted over";
    TextReaderFailed, "TEXT_READER_FAILED", "the program that reads text ended without an answer, twice", "images that it can look at";
    TextReaderTooSlow, "TEXT_READER_TOO_SLOW", "looking for text in the pixels took more processor time than the limit", "images that it can look at within the configured time";
    TextReaderOverdue, "TEXT_READER_OVERDUE", "looking for text in the pixels took longer by the clock than the limit; the file may be good", "the same file, later or with fewer others at a time";
    TextReaderUnavailable, "TEXT_READER_UNAVAILABLE", "the program that reads text could not be started; the file may be good", "the same file, later";
    NotDicom, "NOT_DICOM", "a picture without a header can't be de-identified", "DICOM images";
    AcquisitionUnknown, "ACQUISITION_UNKNOWN", "nothing says which of the two images was taken first", "for a comparison, DICOM files with the date of acquisition or of the study, and its time where both are of one day; or two images without a header, prior first";
    SameAcquisition, "SAME_ACQUISITION", "both images were taken at the same time", "for a comparison, a prior and a current examination";
    DifferentPatients, "DIFFERENT_PATIENTS", "the images are of several patients, or not known to be of one", "images of one patient, whose headers do not contradict each other; for a comparison, DICOM files with the same Patient ID, or the same name and date of birth; for embeddings and zero-shot scores, any";
    FlatImage, "FLAT_IMAGE", "every pixel has the same value, or the same level by the header's window", "images with content";
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.code())
    }
}

impl Serialize for Reason {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.code())
    }
}
