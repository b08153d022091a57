//! How the stage turns files into frames, without the queue and the store: to be measured by itself (`medfleet bench frames`).

use medfleet_imaging::{Decoder, Limits, Options};

use crate::children::Times;
use crate::codecs::{CodecLimits, Codecs, threads};
use crate::config::Config;
use crate::error::StartError;
use crate::ocr::Ocr;

/// The processes that decode. Imaging's limits are `Copy`, so what they refer to is leaked: a few hundred bytes each time a
/// service starts.
pub fn codecs(config: &Config) -> &'static Codecs {
    Box::leak(Box::new(Codecs::of_this_program(CodecLimits {
        memory_bytes_max: config.codec_memory_bytes_max.get(),
        times: Times::of(config.codec_time_max.get()),
        processes_max: config.decodes_max as usize,
    })))
}

/// The program that looks for text in pixels, if there is one.
pub(crate) fn reader(config: &Config) -> Option<Ocr> {
    let settings = config.text_reader.settings()?;
    Some(Ocr::of_this_program(settings))
}

/// How files become frames by a configuration.
///
/// # Errors
/// A frame side or a convention that there is none of.
pub fn options(config: &Config, codecs: &'static Codecs) -> Result<Options, StartError> {
    let limits = Limits {
        file_bytes_max: config.file_bytes_max.get(),
        threads_max: threads() as u32,
        codestreams: Decoder::new(codecs),
        ..Limits::default()
    };
    // Options are `Copy`, so what they refer to is leaked, as the decoders are.
    let text_check = reader(config).map(|reader| {
        let reader: &'static Ocr = Box::leak(Box::new(reader));
        config.text_reader.text_check(reader)
    });
    Ok(Options::new(config.frame_side, limits)?
        .following(config.convention()?)
        .checking_text(text_check))
}
