//! Pure decisions: whether a job's lists name exactly the declared images, and what of each image to fetch.

use std::collections::BTreeSet;
use std::time::Duration;

use medfleet_core::{Digest, UnixMillis, WorkUnit};
use medfleet_engine::{Arrangement, Description, Haste, Images};
use medfleet_proto::v1;
use medfleet_proto::work::v1::{FrameEntry, FramesManifest, StudyManifest, TokensManifest};

use crate::error::DecodeError;

/// The note of a frame whose modality its job gave and no header (docs/imaging.md).
const MODALITY_AS_GIVEN: &str = "MODALITY_AS_GIVEN";

/// What is asked, as it was screened: a task that was not must not reach a model.
///
/// # Errors
/// [`DecodeError::Manifest`] for a task that was not screened, [`DecodeError::Task`] where there is none.
pub fn screened_task<'a>(
    study: &'a StudyManifest,
    manifest: &'a FramesManifest,
) -> Result<&'a v1::Task, DecodeError> {
    let screening = manifest
        .screening
        .as_ref()
        .ok_or(DecodeError::Manifest("the screening of the task's texts"))?;
    let task = screening.masked_task.as_ref().or(study.task.as_ref());
    task.ok_or(DecodeError::Task)
}

/// What a reader of the result should know about masked texts: how much of what kind, never the text.
pub(crate) fn masked_warning(manifest: &FramesManifest) -> Option<String> {
    let masked = &manifest.screening.as_ref()?.masked;
    let kinds: Vec<String> = masked
        .iter()
        .map(|masked| format!("{} {}", masked.kind, masked.count))
        .collect();
    (!kinds.is_empty()).then(|| {
        let kinds = kinds.join(", ");
        format!("PROMPT_MASKED: what the images' headers say about the patient was masked in the task's text: {kinds}")
    })
}

/// How urgent the next text of a unit is. `texts` are still to be written one after the other, and each may take an equal part of
/// the time that the unit has left.
pub(crate) fn haste(unit: &WorkUnit, now: UnixMillis, texts: usize) -> Haste {
    let left = unit.expires.0.saturating_sub(now.0);
    // Past its end there is none left.
    let left = Duration::from_millis(u64::try_from(left).unwrap_or(0));
    Haste {
        class: unit.class,
        time_left: left / u32::try_from(texts.max(1)).unwrap_or(u32::MAX),
    }
}

/// The frames of each chunk in order, each chunk with the position of its first frame. Together they are exactly the declared
/// images, except for those that the manifest lists as refused.
pub fn chunks(
    manifest: &FramesManifest,
    declared: u32,
) -> Result<Vec<(usize, &[FrameEntry])>, DecodeError> {
    // An encoded study is one input, which stands for all images that were declared at the edge.
    let declared = match &manifest.encoded {
        Some(encoded) if declared == 1 => encoded.image_count,
        _ => declared,
    };
    let accounted = accounted(manifest, declared);
    if accounted != Some(declared as usize) {
        let found = accounted.unwrap_or(0);
        return Err(DecodeError::ImageCount { found, declared });
    }
    let found = manifest.frames.len();
    let wrong = || DecodeError::Manifest("the frames manifest");
    let starts: Vec<usize> = manifest
        .chunk_starts
        .iter()
        .map(|start| *start as usize)
        .collect();
    if starts.first().copied().unwrap_or(0) != 0 || starts.is_empty() != (found == 0) {
        return Err(wrong());
    }
    let ends = starts.iter().skip(1).copied().chain(std::iter::once(found));
    let chunks = starts.iter().zip(ends).map(|(start, end)| {
        let frames = manifest
            .frames
            .get(*start..end)
            .filter(|frames| !frames.is_empty());
        frames.map(|frames| (*start, frames)).ok_or_else(wrong)
    });
    chunks.collect()
}

/// How many of the declared inputs are accounted for: shown, or listed with the reason why not; of an archive, some files may be
/// shown and others refused. `None` for a manifest that names another input, or that shows nothing of what was sent.
fn accounted(manifest: &FramesManifest, declared: u32) -> Option<usize> {
    let shown = manifest.frames.iter();
    let mut inputs: BTreeSet<u32> = shown
        .map(|frame| frame.info.as_ref().map(|info| info.input_index))
        .collect::<Option<_>>()?;
    let nothing = declared > 0 && inputs.is_empty();
    inputs.extend(manifest.files_refused.iter().map(|file| file.input_index));
    let known = inputs.iter().all(|index| *index < declared);
    (known && !nothing).then_some(inputs.len())
}

/// The keyed digest of each image's tokens of a chunk, whose first image has the position `first`, if its list is of these frames
/// and of this decoder's encoder. They have the shape and the type that the model takes.
pub fn declared(
    manifest: &TokensManifest,
    first: usize,
    frames: &[FrameEntry],
    model: &Description,
) -> Result<Vec<Digest>, DecodeError> {
    let wrong = |image, what| DecodeError::Tokens { image, what };
    if manifest.encoder_digest != model.encoder_digest.as_bytes().as_slice() {
        return Err(wrong(first, "they were made by another encoder"));
    }
    if manifest.tokens.len() != frames.len() {
        return Err(wrong(first, "the chunk has another number of images"));
    }
    let taken = (model.tokens_per_image, model.token_width);
    let entries = manifest.tokens.iter().zip(frames).zip(first..);
    let digests = entries.map(|((entry, frame), image)| {
        if entry.frame_digest != frame.digest {
            return Err(wrong(image, "they were made of another frame"));
        }
        if (entry.count, entry.width) != taken {
            return Err(wrong(image, "the model takes another shape"));
        }
        if entry.dtype != model.dtype.as_str() {
            return Err(DecodeError::Dtype {
                image,
                found: entry.dtype.clone(),
                expected: model.dtype,
            });
        }
        Digest::from_slice(&entry.digest)
            .map_err(|_| wrong(image, "their digest has another length"))
    });
    digests.collect()
}

/// How many images have tokens that were made for another job than this. Tokens that name no job count as this one's.
pub(crate) fn cached(manifest: &TokensManifest, made_for: &[u8]) -> u32 {
    let tokens = manifest.tokens.iter();
    let others = tokens.filter(|entry| !entry.made_for.is_empty() && entry.made_for != made_for);
    u32::try_from(others.count()).unwrap_or(u32::MAX)
}

/// The kinds of device that made tokens, given that of each chunk's: each once, in their order, without those that are not known.
pub(crate) fn devices<'a>(of_chunks: impl Iterator<Item = &'a str>) -> Vec<String> {
    let mut devices: Vec<String> = Vec::new();
    for device in of_chunks.filter(|device| !device.is_empty()) {
        if !devices.iter().any(|known| known == device) {
            devices.push(device.to_owned());
        }
    }
    devices
}

/// A warning for a text that speaks of an X-ray although no image is one, as models do about CT.
pub(crate) fn misnamed_warning(frames: &[FrameEntry], text: &str) -> Option<String> {
    const FILMS: [&str; 3] = ["CR", "DX", "MG"];
    const NAMES: [&str; 6] = [
        "x-ray",
        "x-rays",
        "xray",
        "xrays",
        "radiograph",
        "radiographs",
    ];
    let shown = images(frames).modalities;
    // An image of unknown modality may be an X-ray.
    let others = |modality: &String| !modality.is_empty() && !FILMS.contains(&modality.as_str());
    if shown.is_empty() || !shown.iter().all(others) {
        return None;
    }
    let text = text.to_lowercase();
    let mut words = text.split(|c: char| !c.is_alphanumeric() && c != '-');
    let shown: Vec<String> = BTreeSet::from_iter(shown).into_iter().collect();
    words.any(|word| NAMES.contains(&word)).then(|| {
        let shown = shown.join(", ");
        format!("the text speaks of an X-ray, and no image is one: they are {shown}")
    })
}

/// What the images of a job are, and how they belong together: slices of one modality are a volume, patches are a slide.
/// Preprocessing shows only one series or slide of a study, so they belong together. Pictures whose modality only the job names may
/// be anything, and are taken one by one.
pub(crate) fn images(frames: &[FrameEntry]) -> Images {
    let infos: Vec<&v1::FrameUsed> = frames.iter().filter_map(|f| f.info.as_ref()).collect();
    let modalities = frames.iter().map(|frame| match &frame.info {
        Some(info) => info.modality.clone(),
        None => String::new(),
    });
    let modalities: Vec<String> = modalities.collect();
    let are_all = |modality: &str| modalities.iter().all(|found| found == modality);
    let are_as_said = infos
        .iter()
        .any(|info| info.notes.iter().any(|note| note == MODALITY_AS_GIVEN));
    // Each photograph is the first frame of its file.
    let are_of_one_file = infos.windows(2).all(|pair| {
        pair[0].input_index == pair[1].input_index && pair[0].frame_index != pair[1].frame_index
    });
    let arrangement = if frames.len() < 2 || are_as_said {
        Arrangement::Apart
    } else if are_all("CT") || are_all("MR") {
        Arrangement::Volume
    } else if are_all("SM") && are_of_one_file {
        Arrangement::Slide
    } else {
        Arrangement::Apart
    };
    Images {
        modalities,
        arrangement,
    }
}

#[cfg(test)]
mod tests;
