//! Who decodes JPEG 2000 codestreams. The decoder is C, and not memory-safe: a service decodes in another process
//! ([`Codestreams`] is where that plugs in), a command that a person runs decodes here ([`Here`]). Whoever decodes also says
//! when nobody waits any more, for every other format too.

use std::fmt::Debug;

use jpeg2k::{DecodeParameters, Image};

use crate::codec::guarded;
use crate::{Reason, Refusal};

/// The samples of one component.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plane {
    pub width: u32,
    pub height: u32,
    /// Row-major.
    pub samples: Vec<i32>,
}

/// Why there are no samples.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CodestreamError {
    #[error("the codestream cannot be decoded")]
    Broken,
    /// The decoder ended while it decoded it, more than once.
    #[error("the decoder ended while it decoded the codestream")]
    Crashed,
    #[error("decoding the codestream took too much processor time")]
    TooSlow,
    /// It took longer than it may by the clock, which a machine with much else to do can be to blame for.
    #[error("decoding the codestream took too long")]
    Overdue,
    /// There is no decoder, for no fault of the codestream.
    #[error("the decoder cannot be started")]
    Unavailable,
    #[error("nobody waits for the codestream any more")]
    Stopped,
}

/// Runs what it is given, once, on the thread that calls it.
pub type OnThread = Box<dyn Fn(&mut dyn FnMut()) + Send + Sync>;

/// Decodes whole codestreams.
pub trait Codestreams: Debug + Send + Sync {
    /// Every component, or none. The caller has compared the size that the codestream declares with its limits.
    fn decode(&self, codestream: &[u8]) -> Result<Vec<Plane>, CodestreamError>;

    /// Whether nobody waits any more for what the caller's thread decodes, of any format. It is asked before each frame and
    /// before each file of an archive; then nothing more is decoded.
    fn is_stopped(&self) -> bool {
        false
    }

    /// What other threads run their part of a decode with, so that they decode for whoever the caller's thread decodes for:
    /// [`is_stopped`](Self::is_stopped) says on them what it says here.
    fn carried(&self) -> OnThread {
        Box::new(|work: &mut dyn FnMut()| work())
    }
}

/// The environment variable that OpenJPEG takes its number of threads from.
pub const THREADS: &str = "OPJ_NUM_THREADS";

/// In this process, by OpenJPEG in strict mode. It decodes in as many threads as the environment's [`THREADS`] says, else in
/// the caller's.
#[derive(Clone, Copy, Debug)]
pub struct Here;

impl Codestreams for Here {
    fn decode(&self, codestream: &[u8]) -> Result<Vec<Plane>, CodestreamError> {
        let strict = DecodeParameters::new().strict(true);
        let decoded = guarded(|| {
            Image::from_bytes_with(codestream, strict)
                .map_err(|_| Refusal::new(Reason::DecodeFailed))
        });
        let decoded = decoded.map_err(|_| CodestreamError::Broken)?;
        let planes = decoded.components().iter().map(|component| Plane {
            width: component.width(),
            height: component.height(),
            samples: component.data().to_vec(),
        });
        Ok(planes.collect())
    }
}

/// Which decoder, as a part of the limits. Two are equal if they are one.
#[derive(Clone, Copy, Debug)]
pub struct Decoder(&'static dyn Codestreams);

impl Decoder {
    /// In the process of the caller.
    pub const HERE: Self = Self(&Here);

    pub fn new(codestreams: &'static dyn Codestreams) -> Self {
        Self(codestreams)
    }

    pub(crate) fn decode(self, codestream: &[u8]) -> Result<Vec<Plane>, CodestreamError> {
        self.0.decode(codestream)
    }

    /// As [`Codestreams::carried`].
    pub(crate) fn carried(self) -> OnThread {
        self.0.carried()
    }

    /// # Errors
    /// When nobody waits any more; as little the file's fault as a decoder that is not there, and nobody hears of it.
    pub(crate) fn check_wanted(self) -> Result<(), Refusal> {
        if self.0.is_stopped() {
            Err(Refusal::new(Reason::DecoderUnavailable))
        } else {
            Ok(())
        }
    }
}

impl PartialEq for Decoder {
    fn eq(&self, other: &Self) -> bool {
        std::ptr::addr_eq(self.0, other.0)
    }
}

impl Eq for Decoder {}
