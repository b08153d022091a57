//! The effects of one unit in order: read the study, decode each file, store frames and manifest, then advance the job.

use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use futures::future::try_join_all;
use medfleet_core::{BlobKind, Digest, JobRecord, Move, Stage, TenantId, WorkUnit};
use medfleet_imaging::{
    BurnedIn, Decoded, Decoder, Fate, Frame, FrameInfo, Identifiers, Limits, Modality, Note,
    Options, Part, Prepared, Reason, Refusal, SlicePlan, Slices, decode_parts, identifiers,
    plan_volume, prepare_parts,
};
use medfleet_proto::v1;
use medfleet_proto::work::v1 as wire;
use medfleet_store::BlobStore;
use medfleet_worker::{Dependencies, Ending, Handler, Started};
use prost::Message;
use tokio::sync::Semaphore;

use crate::codecs::{CodecLimits, Codecs};
use crate::config::Config;
use crate::decodes::{Decodes, Turn};
use crate::error::{PreprocessError, StartError};
use crate::metrics::{PreprocessMetrics, ReasonLabel};
use crate::puts::Puts;
use crate::screen::screen;
use crate::unit::{chunk_starts, in_order};

/// Memory is counted in steps of this many bytes, because a semaphore counts in 32 bits.
const MEMORY_STEP_BYTES: u64 = 64 << 10;

/// The stage.
pub(crate) struct Preprocess {
    store: BlobStore,
    options: Options,
    burned_in_allowed: BTreeSet<TenantId>,
    frames_per_chunk: u32,
    frames_max: u32,
    /// Steps of file bytes that may still be taken into memory.
    memory: Arc<Semaphore>,
    memory_steps: u32,
    decodes: Decodes,
    codecs: &'static Codecs,
    metrics: PreprocessMetrics,
}

/// What one input became, before its study is known.
struct Input {
    digest: Digest,
    /// What the headers of its files say about the patient, for screening.
    identifiers: Identifiers,
    files: Vec<(File, Content)>,
}

/// Which file: the input, and of an archive its member.
#[derive(Clone, Copy, PartialEq, Eq)]
struct File {
    input: usize,
    member: Option<u32>,
}

enum Content {
    Frames(Vec<wire::FrameEntry>),
    /// Slices of a volume, decoded once it is known which are shown.
    Slices(Box<Slices>),
    /// A DICOM file without an image, such as a report or an index.
    NoImage(Refusal),
    /// A file of a scanner whose pixels may carry text: left out of its volume.
    Withheld(Refusal),
}

/// What a study became.
struct Study {
    input_digests: Vec<Digest>,
    frames: Vec<wire::FrameEntry>,
    unused: Vec<v1::FileRefused>,
    identifiers: Identifiers,
}

impl Preprocess {
    pub(crate) fn new(config: &Config, dependencies: &Dependencies) -> Result<Self, StartError> {
        let codecs = codecs(config);
        let limits = Limits {
            file_bytes_max: config.file_bytes_max.get(),
            codestreams: Decoder::new(codecs),
            ..Limits::default()
        };
        let memory_steps = steps(config.memory_bytes_max.get());
        let options = Options::new(config.frame_side, limits)?.following(config.convention()?);
        Ok(Self {
            store: dependencies.store.clone(),
            options,
            burned_in_allowed: config.burned_in_allowed()?,
            frames_per_chunk: config.frames_per_chunk,
            frames_max: config.frames_max,
            memory: Arc::new(Semaphore::new(memory_steps as usize)),
            memory_steps,
            decodes: Decodes::new(config.decodes_max),
            codecs,
            metrics: PreprocessMetrics::register(&dependencies.metrics),
        })
    }

    /// Ends the processes that decode.
    pub(crate) fn close(&self) {
        self.codecs.close();
    }

    async fn study(
        &self,
        unit: &WorkUnit,
        record: &JobRecord,
    ) -> Result<wire::StudyManifest, PreprocessError> {
        let tenant = &unit.key.tenant;
        let bytes = self
            .store
            .get(tenant, BlobKind::Study, &record.study)
            .await?;
        let manifest = |reason: String| PreprocessError::Manifest { reason };
        let study = wire::StudyManifest::decode(bytes)
            .map_err(|_| manifest("it is not the encoding of a manifest".to_owned()))?;
        if study.inputs.len() != record.image_count as usize {
            let (found, declared) = (study.inputs.len(), record.image_count);
            return Err(manifest(format!(
                "{found} inputs for {declared} declared images"
            )));
        }
        Ok(study)
    }

    /// One input: its files, and their frames, stored; of a volume what its header says.
    async fn input(
        &self,
        started: &Started,
        puts: &Puts,
        index: usize,
        input: &wire::StudyInput,
    ) -> Result<Input, PreprocessError> {
        let options = self.options_for(&started.unit.key.tenant, input);
        let frames_max = self.frames_max;
        let prepare = move |bytes: Bytes| {
            let parts = prepare_parts(&bytes, &options, frames_max)?;
            Ok((parts, identifiers(&bytes, options.limits())?))
        };
        let (digest, prepared, turn) = self.decoded(started, index, input, prepare).await?;
        let (parts, identifiers) = prepared.map_err(|refusal| self.refuse(index, refusal))?;
        let turn = Arc::new(turn);
        let mut files = Vec::with_capacity(parts.len());
        for Part { member, outcome } in parts {
            let content = match outcome {
                Ok(Prepared::Frames(decoded)) => {
                    let Decoded { frames, notes, .. } = decoded;
                    Content::Frames(self.entries(puts, index, (frames, &notes, &turn)).await?)
                }
                Ok(Prepared::Slices(slices)) => Content::Slices(slices),
                Ok(Prepared::Withheld(refusal)) => {
                    self.count_refusal(refusal.reason);
                    Content::Withheld(refusal)
                }
                Err(refusal) if refusal.leaves_out() => {
                    self.count_refusal(refusal.reason);
                    Content::NoImage(refusal)
                }
                Err(refusal) => return Err(self.refuse(index, refusal)),
            };
            let input = index;
            files.push((File { input, member }, content));
        }
        Ok(Input {
            digest,
            identifiers,
            files,
        })
    }

    /// The options, with the tenant's rule about text in the pixels and with what the caller says of a volume.
    fn options_for(&self, tenant: &TenantId, input: &wire::StudyInput) -> Options {
        let said = [Modality::Ct, Modality::Mr];
        let said = said.into_iter().find(|one| one.as_str() == input.modality);
        let options = self.options.with_volume_modality(said);
        if self.burned_in_allowed.contains(tenant) {
            options.burned_in(BurnedIn::Allow)
        } else {
            options
        }
    }

    fn refuse(&self, index: usize, refusal: Refusal) -> PreprocessError {
        self.count_refusal(refusal.reason);
        PreprocessError::Refused { index, refusal }
    }

    /// Reads an input and decodes it on a blocking thread. The turn is the right to hold its pixels.
    async fn decoded<T: Send + 'static>(
        &self,
        started: &Started,
        index: usize,
        input: &wire::StudyInput,
        decode: impl FnOnce(Bytes) -> T + Send + 'static,
    ) -> Result<(Digest, T, Turn), PreprocessError> {
        let steps = steps(input.size_bytes).min(self.memory_steps);
        // The semaphore is never closed; should it be, the limit is not kept, and the file is still decoded.
        let _memory = self.memory.acquire_many(steps).await;
        let bytes = self.assemble(started, index, input).await?;
        let digest = self.store.digest(&started.unit.key.tenant, &bytes).await;
        match self.decodes.run(move || decode(bytes)).await {
            Ok((decoded, turn)) => Ok((digest, decoded, turn)),
            Err(_) => Err(PreprocessError::DecoderPanic { index }),
        }
    }

    fn count_refusal(&self, reason: Reason) {
        let reason = reason.code();
        self.metrics
            .refused
            .get_or_create(&ReasonLabel { reason })
            .inc();
    }

    /// The frames of the whole study, in the order the model sees them.
    async fn whole(
        &self,
        started: &Started,
        puts: &Puts,
        study: &wire::StudyManifest,
    ) -> Result<Study, PreprocessError> {
        let inputs = study.inputs.iter().enumerate();
        let inputs = inputs.map(|(index, input)| self.input(started, puts, index, input));
        let inputs = try_join_all(inputs).await?;
        let input_digests = inputs.iter().map(|input| input.digest).collect();
        let (mut unused, mut identifiers) = (Vec::new(), Identifiers::default());
        let (mut ready, mut slices, mut files) = (Vec::new(), Vec::new(), Vec::new());
        let (mut no_image, mut withheld) = (None, None);
        let mut contents = Vec::new();
        for input in inputs {
            identifiers.merge(input.identifiers);
            contents.extend(input.files);
        }
        for (file, content) in contents {
            match content {
                Content::Frames(frames) => ready.push((file.input, frames)),
                Content::Slices(of_file) => {
                    slices.push((files.len(), of_file));
                    files.push(file);
                }
                Content::NoImage(refusal) => {
                    unused.push(refused(file, refusal.reason.code(), &refusal.to_string()));
                    no_image.get_or_insert((file.input, refusal));
                }
                Content::Withheld(refusal) => {
                    unused.push(refused(file, refusal.reason.code(), &refusal.to_string()));
                    withheld.get_or_insert((file.input, refusal));
                }
            }
        }
        // Without a volume that it could be left out of, such a file is an image that was asked about.
        if let (true, Some((index, refusal))) = (slices.is_empty(), withheld) {
            return Err(PreprocessError::Refused { index, refusal });
        }
        if let (true, true, Some((index, refusal))) =
            (ready.is_empty(), slices.is_empty(), no_image)
        {
            return Err(PreprocessError::Refused { index, refusal });
        }
        let mut volume = Vec::new();
        if !slices.is_empty() {
            let plan = self.plan(slices).await?;
            for (index, fate) in &plan.fates {
                if let (Fate::Unused(why), Some(file)) = (fate, files.get(*index)) {
                    unused.push(refused(*file, why.code(), why.text()));
                }
            }
            volume = self.volume(started, puts, study, (&files, plan)).await?;
        }
        unused.sort_by_key(|file| file.input_index);
        if identifiers.too_many() {
            return Err(PreprocessError::Identifiers);
        }
        Ok(Study {
            input_digests,
            frames: in_order(ready, volume),
            unused,
            identifiers,
        })
    }

    /// Which slices are shown. Of a slide that takes the pixels of its smallest level, so that it waits for a turn.
    async fn plan(&self, slices: Vec<(usize, Box<Slices>)>) -> Result<SlicePlan, PreprocessError> {
        let index = slices.first().map_or(0, |(index, _)| *index);
        let convention = self.options.convention();
        let plan = move || {
            let files: Vec<(usize, &Slices)> = slices
                .iter()
                .map(|(index, file)| (*index, &**file))
                .collect();
            plan_volume(&files, convention)
        };
        let planned = self.decodes.run(plan).await;
        let (plan, _) = planned.map_err(|_| PreprocessError::DecoderPanic { index })?;
        plan.map_err(|refusal| {
            self.count_refusal(refusal.reason);
            PreprocessError::Volume { refusal }
        })
    }

    /// The frames of a volume, in the order of its plan, each with the input it is of.
    async fn volume(
        &self,
        started: &Started,
        puts: &Puts,
        study: &wire::StudyManifest,
        (files, plan): (&[File], SlicePlan),
    ) -> Result<Vec<(usize, wire::FrameEntry)>, PreprocessError> {
        let gone = |what: &str| PreprocessError::Manifest {
            reason: what.to_owned(),
        };
        let shown = plan.frames.iter();
        let shown: Option<Vec<(File, u32)>> = shown
            .map(|(index, frame)| Some((*files.get(*index)?, *frame)))
            .collect();
        let shown = shown.ok_or_else(|| gone("a slice is of no file"))?;
        let plan = Arc::new(plan);
        let mut inputs: Vec<usize> = shown.iter().map(|(file, _)| file.input).collect();
        inputs.sort_unstable();
        inputs.dedup();
        let decoded = inputs.iter().map(async |&index| {
            let input = study
                .inputs
                .get(index)
                .ok_or_else(|| gone("an input is not there"))?;
            let wanted = wanted(&shown, index);
            let (options, plan) = (
                self.options_for(&started.unit.key.tenant, input),
                Arc::clone(&plan),
            );
            let decode = move |bytes: Bytes| decode_parts(&bytes, &wanted, &plan, &options);
            let (_, parts, turn) = self.decoded(started, index, input, decode).await?;
            let parts = parts.map_err(|refusal| self.refuse(index, refusal))?;
            let turn = Arc::new(turn);
            let mut entries = Vec::new();
            for (member, frames) in parts {
                let numbers: Vec<u32> = frames.iter().map(|(_, info)| info.frame_index).collect();
                let of_file = self.entries(puts, index, (frames, &[], &turn)).await?;
                let file = File {
                    input: index,
                    member,
                };
                entries.extend(
                    numbers
                        .into_iter()
                        .map(|number| (file, number))
                        .zip(of_file),
                );
            }
            Ok::<_, PreprocessError>(entries)
        });
        let decoded = try_join_all(decoded).await?;
        let mut decoded: Vec<_> = decoded.into_iter().flatten().collect();
        let taken = shown.iter().map(|place| {
            let at = decoded.iter().position(|(of, _)| of == place)?;
            Some((place.0.input, decoded.swap_remove(at).1))
        });
        let taken: Option<Vec<_>> = taken.collect();
        taken.ok_or_else(|| gone("a slice was not decoded"))
    }

    /// The parts of a file in order; a file of one part is not copied.
    async fn assemble(
        &self,
        started: &Started,
        index: usize,
        input: &wire::StudyInput,
    ) -> Result<Bytes, PreprocessError> {
        let tenant = &started.unit.key.tenant;
        let wrong = |reason: &str| PreprocessError::Manifest {
            reason: format!("input {index}: {reason}"),
        };
        if input.size_bytes > self.options.limits().file_bytes_max {
            let refusal = medfleet_imaging::Refusal::new(medfleet_imaging::Reason::TooLarge);
            return Err(PreprocessError::Refused { index, refusal });
        }
        let digest = |bytes: &Bytes| {
            Digest::from_slice(bytes).map_err(|_| wrong("a part's digest has another length"))
        };
        let bytes = if let [part] = input.part_digests.as_slice() {
            self.store
                .get(tenant, BlobKind::Input, &digest(part)?)
                .await?
        } else {
            // Bounded by the limit that was checked above.
            let mut whole = BytesMut::with_capacity(usize::try_from(input.size_bytes).unwrap_or(0));
            for part in &input.part_digests {
                let part = self
                    .store
                    .get(tenant, BlobKind::Input, &digest(part)?)
                    .await?;
                if (whole.len() + part.len()) as u64 > input.size_bytes {
                    return Err(wrong("its parts are longer than declared"));
                }
                whole.extend_from_slice(&part);
            }
            whole.freeze()
        };
        if bytes.len() as u64 != input.size_bytes {
            return Err(wrong("its parts have another length than declared"));
        }
        Ok(bytes)
    }

    /// Sends the frames of a file on their way to the store, and gives what the manifest says of them.
    async fn entries(
        &self,
        puts: &Puts,
        index: usize,
        (frames, notes, turn): (Vec<(Frame, FrameInfo)>, &[Note], &Arc<Turn>),
    ) -> Result<Vec<wire::FrameEntry>, PreprocessError> {
        if puts.count(frames.len()) > self.frames_max {
            self.count_refusal(Reason::TooManyFrames);
            let max = self.frames_max;
            return Err(PreprocessError::Frames { max });
        }
        let (mut pixels, mut shapes) = (Vec::new(), Vec::new());
        for (frame, info) in frames {
            let Frame {
                side,
                channels,
                pixels: of_frame,
            } = frame;
            pixels.push(Bytes::from(of_frame));
            shapes.push((side, channels, info));
        }
        let digests = puts.start(pixels, turn).await;
        let entries = digests.iter().zip(shapes);
        let entries = entries.map(|(digest, (side, channels, info))| wire::FrameEntry {
            digest: Bytes::copy_from_slice(digest.as_bytes()),
            width: side,
            channels,
            info: Some(used(index, &info, notes, digest)),
        });
        let entries: Vec<_> = entries.collect();
        self.metrics.frames.inc_by(entries.len() as u64);
        Ok(entries)
    }

    /// Stores the manifest while the last frames are stored; the job has taken its references on them. What that means for
    /// the job.
    async fn keep(
        &self,
        started: &Started,
        puts: Puts,
        study: Study,
        task: Option<&v1::Task>,
    ) -> Result<Move, PreprocessError> {
        let screening = screen(task, &study.identifiers);
        for masked in &screening.masked {
            self.metrics.masked.inc_by(masked.count.into());
        }
        let key = &started.unit.key;
        let input_digests = study
            .input_digests
            .iter()
            .map(|digest| Bytes::copy_from_slice(digest.as_bytes()));
        let input_digests = input_digests.collect();
        let frames = study.frames;
        let count = u32::try_from(frames.len()).map_err(|_| PreprocessError::Manifest {
            reason: "too many frames".to_owned(),
        })?;
        let chunk_starts = chunk_starts(count, self.frames_per_chunk);
        // As many as CHUNKS_MAX at most.
        let chunks = chunk_starts.len() as u32;
        let manifest = wire::FramesManifest {
            frames,
            files_refused: study.unused,
            preprocessing_version: self.options.convention().version.clone(),
            chunk_starts,
            input_digests,
            screening: Some(screening),
        };
        let manifest = vec![(BlobKind::Frames, manifest.encode_to_vec().into())];
        let digests = self.store.keep(key, manifest, &[], puts.finish()).await?;
        let [digest] = digests.as_slice() else {
            return Err(PreprocessError::Manifest {
                reason: "it has no name".to_owned(),
            });
        };
        Ok(Move::Preprocessed {
            frames: *digest,
            chunks,
            frame_count: count,
        })
    }
}

impl Handler for Preprocess {
    const STAGE: Stage = Stage::Preprocess;

    type Inputs = wire::StudyManifest;

    async fn read(&self, unit: &WorkUnit, record: &JobRecord) -> Result<Self::Inputs, Ending> {
        Ok(self.study(unit, record).await?)
    }

    async fn work(&self, started: &Started, study: Self::Inputs) -> Result<(), Ending> {
        let puts = Puts::new(self.store.clone(), started.unit.key.clone());
        let whole = self.whole(started, &puts, &study).await?;
        let step = self.keep(started, puts, whole, study.task.as_ref()).await?;
        started.advance(&step).await?;
        Ok(())
    }
}

/// Imaging's limits are plain numbers that every frame's decoding may copy, so that what they refer to stays for good: a few
/// hundred bytes each time a service starts.
fn codecs(config: &Config) -> &'static Codecs {
    Box::leak(Box::new(Codecs::of_this_program(CodecLimits {
        memory_bytes_max: config.codec_memory_bytes_max.get(),
        time_max: config.codec_time_max.get(),
        idle_max: config.decodes_max as usize,
    })))
}

fn steps(bytes: u64) -> u32 {
    u32::try_from(bytes.div_ceil(MEMORY_STEP_BYTES))
        .unwrap_or(u32::MAX >> 3)
        .clamp(1, u32::MAX >> 3)
}

/// Of an input's files that are shown: which frames of each, in the order of the plan.
fn wanted(shown: &[(File, u32)], input: usize) -> Vec<(Option<u32>, Vec<u32>)> {
    let mut wanted: Vec<(Option<u32>, Vec<u32>)> = Vec::new();
    for (file, frame) in shown.iter().filter(|(file, _)| file.input == input) {
        match wanted.iter_mut().find(|(member, _)| *member == file.member) {
            Some((_, frames)) => frames.push(*frame),
            None => wanted.push((file.member, vec![*frame])),
        }
    }
    wanted
}

/// A file of an archive is told by its place, as its name could be a patient's.
fn refused(file: File, reason: &str, message: &str) -> v1::FileRefused {
    let message = match file.member {
        Some(member) => format!("{message} (file {} of the archive)", member + 1),
        None => message.to_owned(),
    };
    v1::FileRefused {
        input_index: u32::try_from(file.input).unwrap_or(u32::MAX),
        reason: reason.to_owned(),
        message,
    }
}

/// The record of a frame for results: numbers, digests and words of closed lists.
fn used(index: usize, info: &FrameInfo, notes: &[Note], digest: &Digest) -> v1::FrameUsed {
    let window = |window: &medfleet_imaging::Window| v1::Window {
        center: window.center,
        width: window.width,
        function: window.function.as_str().to_owned(),
    };
    let notes = info
        .notes
        .iter()
        .chain(notes)
        .map(|note| note.as_str().to_owned());
    v1::FrameUsed {
        input_index: u32::try_from(index).unwrap_or(u32::MAX),
        frame_index: info.frame_index,
        modality: info
            .modality
            .map_or_else(String::new, |modality| modality.as_str().to_owned()),
        window: info.window.as_ref().map(window),
        channel_windows: info.channel_windows.iter().map(window).collect(),
        frame_digest: digest.to_string(),
        token_digest: String::new(),
        original_width: info.original_width,
        original_height: info.original_height,
        notes: notes.collect(),
        placement: Some(v1::Placement {
            pad_left_pixels: info.placement.pad_left_pixels,
            pad_top_pixels: info.placement.pad_top_pixels,
            padded_side_pixels: info.placement.padded_side_pixels,
        }),
    }
}
