//! From the inputs of a job to its frames, in the order in which the model sees them: each input's files are read, volumes
//! planned and decoded, frames sent on their way to the store as they come, so that few are in memory at a time.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use futures::future::{join_all, try_join_all};
use medfleet_core::{Digest, TenantId};
use medfleet_imaging::{
    BurnedIn, Decoded, Examination, Fate, FoundText, Frame, FrameInfo, Identifiers, Modality,
    Options, Part, Prepared, ReadInput, Reason, Refusal, SlicePlan, Slices, TextCheck, Turned,
    decode_parts, plan_volume, read_input, refuse_air,
};
use medfleet_proto::v1;
use medfleet_proto::work::v1 as wire;
use medfleet_store::BlobStore;
use medfleet_worker::encoded::{self, Encoded};
use tokio::sync::mpsc;

use crate::codecs::Codecs;
use crate::config::Config;
use crate::decodes::{Decodes, Turn};
use crate::error::{PreprocessError, StartError};
use crate::frames::options;
use crate::inputs::{Declared, Held, Inputs, Tried};
use crate::metrics::{PreprocessMetrics, ReasonLabel};
use crate::puts::Puts;
use crate::record::{Origin, refused, used};
use crate::unit::{Pairing, in_order, put_in_order};

/// Frames between the thread that makes them and who stores them.
const FRAMES_WAITING_MAX: usize = 1;

/// Makes studies of inputs.
pub(crate) struct Studies {
    inputs: Inputs,
    options: Options,
    burned_in_allowed: BTreeSet<TenantId>,
    paints_over_for: BTreeSet<TenantId>,
    frames_max: u32,
    metrics: PreprocessMetrics,
}

/// What one input became, before its study is known.
struct Input {
    digest: Digest,
    /// Bytes that it needs besides, to be read again.
    room: u64,
    /// What the headers of its files say about the patient, for screening.
    identifiers: Identifiers,
    /// Its films, and those that its presentation states show turned.
    turned: Turned,
    /// Of a comparison: whose it is, and from when.
    examination: Option<Examination>,
    files: Vec<(File, Content)>,
}

/// What the manifest says of the frames that each file has by itself; the file by its member.
type Entries = BTreeMap<Option<u32>, Vec<wire::FrameEntry>>;

/// What was read of an input, and its frames.
type Read = (ReadInput, Entries);

/// Which file: the input, and of an archive its member.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct File {
    pub(crate) input: usize,
    pub(crate) member: Option<u32>,
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
#[derive(Default)]
pub(crate) struct Study {
    pub(crate) input_digests: Vec<Digest>,
    pub(crate) frames: Vec<wire::FrameEntry>,
    pub(crate) unused: Vec<v1::FileRefused>,
    pub(crate) identifiers: Identifiers,
}

/// What is done for whom.
#[derive(Clone, Copy)]
pub(crate) struct Job<'a> {
    pub(crate) tenant: &'a TenantId,
    pub(crate) puts: &'a Puts,
    pub(crate) study: &'a wire::StudyManifest,
    pub(crate) volumes: &'a Volumes,
}

/// What was read of a study's volumes so far, over all of its inputs.
#[derive(Default)]
pub(crate) struct Volumes {
    slices: AtomicU64,
    /// That were decoded for it.
    pixels: AtomicU64,
}

impl Studies {
    pub(crate) fn new(
        config: &Config,
        store: BlobStore,
        codecs: &'static Codecs,
        metrics: PreprocessMetrics,
    ) -> Result<Self, StartError> {
        let options = options(config, codecs)?;
        Ok(Self {
            inputs: Inputs::new(config, store, options),
            options,
            burned_in_allowed: config.burned_in_allowed.clone(),
            paints_over_for: config.text_reader.paints_over_for.clone(),
            frames_max: config.frames_max,
            metrics,
        })
    }

    /// The frames of the whole study, in the order the model sees them.
    pub(crate) async fn whole(&self, job: Job<'_>) -> Result<Study, PreprocessError> {
        let pairing = Pairing::of(job.study);
        let inputs = job.study.inputs.iter().enumerate();
        let inputs =
            inputs.map(|(index, input)| self.input(job, pairing, Declared { index, input }));
        let mut inputs = try_join_all(inputs).await?;
        let mut study = Study {
            input_digests: inputs.iter().map(|input| input.digest).collect(),
            ..Study::default()
        };
        let rooms: Vec<u64> = inputs.iter().map(|input| input.room).collect();
        for input in &mut inputs {
            study
                .identifiers
                .merge(std::mem::take(&mut input.identifiers));
        }
        if study.identifiers.too_many() {
            return Err(PreprocessError::Identifiers);
        }
        let examinations = inputs.iter_mut().map(|input| input.examination.take());
        let order = pairing.order(&examinations.collect::<Vec<_>>());
        let order = order.map_err(|refusal| self.refuse_volume(refusal))?;
        let mut turned = Turned::default();
        for input in &inputs {
            turned.merge(&input.turned);
        }
        for (index, input) in inputs.iter().enumerate() {
            let checked = turned.check(&input.turned);
            checked.map_err(|refusal| self.refuse(index, refusal))?;
        }
        // Of a comparison each input is a study.
        let files = inputs.into_iter().map(|input| input.files);
        let studies: Vec<Vec<(File, Content)>> = match order {
            Some(_) => files.collect(),
            None => vec![files.flatten().collect()],
        };
        let mut frames = Vec::with_capacity(studies.len());
        for files in studies {
            frames.push(self.frames(job, &rooms, files, &mut study.unused).await?);
        }
        if let Some(order) = order {
            put_in_order(order, &mut frames);
        }
        study.frames = frames.concat();
        study.unused.sort_by_key(|file| file.input_index);
        Ok(study)
    }

    /// An encoded study, whole and checked for its form, with the right to its memory.
    pub(crate) async fn encoded(
        &self,
        tenant: &TenantId,
        input: &wire::StudyInput,
    ) -> Result<(Encoded, Held), PreprocessError> {
        let index = 0;
        let declared = Declared { index, input };
        let held = self.inputs.read(tenant, declared, 0).await?;
        let turn = self.inputs.turn().await;
        let read = Decodes::run(&turn, move || (encoded::read(&held.bytes), held));
        let read = read.await;
        let (read, held) = read.map_err(|_| PreprocessError::DecoderPanic { index })?;
        let encoded = read.map_err(|error| PreprocessError::Encoded(error.to_string()))?;
        Ok((encoded, held))
    }

    /// One input: its files, and their frames, on their way to the store; of a volume what its header says.
    async fn input(
        &self,
        job: Job<'_>,
        pairing: Pairing,
        declared: Declared<'_>,
    ) -> Result<Input, PreprocessError> {
        let index = declared.index;
        let read = |turn, held| self.read(job, pairing, declared, (turn, held));
        let made = self.inputs.make(job.tenant, declared, read).await?;
        let (read, mut entries) = made
            .outcome
            .map_err(|refusal| self.refuse(index, refusal))?;
        let mut files = Vec::with_capacity(read.parts.len());
        for Part { member, outcome } in read.parts {
            let content = match outcome {
                Ok(Prepared::Frames(_)) => {
                    let frames = entries.remove(&member);
                    let frames = frames
                        .ok_or_else(|| PreprocessError::manifest("a file's frames did not come"))?;
                    self.count(job.puts, frames.len())?;
                    Content::Frames(frames)
                }
                Ok(Prepared::Slices(slices)) => {
                    self.count_slices(job, &slices)?;
                    Content::Slices(slices)
                }
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
            digest: made.digest,
            room: made.room,
            identifiers: read.identifiers,
            turned: read.turned,
            examination: read.examination,
            files,
        })
    }

    /// Reads the files of an input on a blocking thread, while the frames that are made there go to the store: they need not wait
    /// for the last file. Frames that are stored and then refused or left out still belong to the job, and are erased with it, as
    /// are those of a job that fails because of another input.
    async fn read(
        &self,
        job: Job<'_>,
        pairing: Pairing,
        declared: Declared<'_>,
        (turn, held): (Arc<Turn>, Held),
    ) -> Tried<Read> {
        let Declared { index, input } = declared;
        let options = self.options_for(job.tenant, input).unpacking(held.room);
        let frames_max = self.frames_max;
        let patients = pairing.patients();
        let (made, mut come) = mpsc::channel(FRAMES_WAITING_MAX);
        let read = move || {
            let mut each = |member: Option<u32>, decoded: Decoded| {
                // Nobody takes it any more when the unit was dropped.
                let _nobody = made.blocking_send((member, decoded));
            };
            let outcome = read_input(&held.bytes, &options, frames_max, patients, &mut each);
            (outcome, held)
        };
        let store = async {
            let mut entries = Entries::new();
            while let Some((member, decoded)) = come.recv().await {
                let frames = self.entries(job.puts, declared, decoded, &turn).await;
                entries.insert(member, frames);
            }
            entries
        };
        // Until the last frame was taken: a decode that nobody takes frames from never ends.
        let (read, entries) = tokio::join!(Decodes::run(&turn, read), store);
        let (outcome, held) = read.map_err(|_| PreprocessError::DecoderPanic { index })?;
        if outcome.is_err() {
            // It may be tried again with more room, and for another turn.
            job.puts.begin();
        }
        Ok((outcome.map(|read| (read, entries)), held))
    }

    /// The options, with the tenant's rules about text in the pixels and with what the caller says of a volume.
    fn options_for(&self, tenant: &TenantId, input: &wire::StudyInput) -> Options {
        let said = [Modality::Ct, Modality::Mr];
        let said = said.into_iter().find(|one| one.as_str() == input.modality);
        let found = if self.paints_over_for.contains(tenant) {
            FoundText::PaintOver
        } else {
            FoundText::Refuse
        };
        let check = self.options.text_check();
        let options = self
            .options
            .with_volume_modality(said)
            .checking_text(check.map(|check| TextCheck { found, ..check }));
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

    fn refuse_volume(&self, refusal: Refusal) -> PreprocessError {
        self.count_refusal(refusal.reason);
        PreprocessError::Volume { refusal }
    }

    fn count_refusal(&self, reason: Reason) {
        let reason = reason.code();
        self.metrics
            .refused
            .get_or_create(&ReasonLabel { reason })
            .inc();
    }

    /// The frames of these files in their order; what is not shown goes to `unused`.
    async fn frames(
        &self,
        job: Job<'_>,
        rooms: &[u64],
        contents: Vec<(File, Content)>,
        unused: &mut Vec<v1::FileRefused>,
    ) -> Result<Vec<wire::FrameEntry>, PreprocessError> {
        let (mut ready, mut slices, mut files) = (Vec::new(), Vec::new(), Vec::new());
        let (mut no_image, mut withheld) = (None, None);
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
            // Its frames are others, and need turns of their own.
            job.puts.begin();
            let first = files.first().map_or(0, |file| file.input);
            let plan = self.plan(first, slices).await?;
            for (index, fate) in &plan.fates {
                if let (Fate::Unused(why), Some(file)) = (fate, files.get(*index)) {
                    unused.push(refused(*file, why.code(), why.text()));
                }
            }
            volume = self.volume(job, rooms, (&files, plan)).await?;
        }
        Ok(in_order(ready, volume))
    }

    /// Which slices are shown; `index` is the input of the first. Of a slide that takes the pixels of its smallest level, so
    /// that it waits for a turn.
    async fn plan(
        &self,
        index: usize,
        slices: Vec<(usize, Box<Slices>)>,
    ) -> Result<SlicePlan, PreprocessError> {
        let convention = self.options.convention();
        let plan = move || {
            let files: Vec<(usize, &Slices)> = slices
                .iter()
                .map(|(index, file)| (*index, &**file))
                .collect();
            plan_volume(&files, convention)
        };
        let turn = self.inputs.turn().await;
        let planned = Decodes::run(&turn, plan).await;
        let plan = planned.map_err(|_| PreprocessError::DecoderPanic { index })?;
        plan.map_err(|refusal| self.refuse_volume(refusal))
    }

    /// The frames of a volume, in the order of its plan, each with the input it is of.
    async fn volume(
        &self,
        job: Job<'_>,
        rooms: &[u64],
        (files, plan): (&[File], SlicePlan),
    ) -> Result<Vec<(usize, wire::FrameEntry)>, PreprocessError> {
        let shown = plan.frames.iter();
        let shown: Option<Vec<(File, u32)>> = shown
            .map(|(index, frame)| Some((*files.get(*index)?, *frame)))
            .collect();
        let shown = shown.ok_or_else(|| PreprocessError::manifest("a slice is of no file"))?;
        self.count(job.puts, shown.len())?;
        let plan = Arc::new(plan);
        let mut inputs: Vec<usize> = shown.iter().map(|(file, _)| file.input).collect();
        inputs.sort_unstable();
        inputs.dedup();
        let decoded = inputs.iter().map(async |&index| {
            let inputs = &job.study.inputs;
            let input = inputs.get(index).zip(rooms.get(index));
            let (input, room) =
                input.ok_or_else(|| PreprocessError::manifest("an input is not there"))?;
            let declared = Declared { index, input };
            let held = self.inputs.read(job.tenant, declared, *room).await?;
            self.slices(job, declared, held, (wanted(&shown, index), &plan))
                .await
        });
        let decoded = try_join_all(decoded).await?;
        let mut decoded: Vec<Made> = decoded.into_iter().flatten().collect();
        refuse_air(decoded.iter().map(|slice| slice.above_water))
            .map_err(|refusal| self.refuse_volume(refusal))?;
        let taken = shown.iter().map(|place| {
            let at = decoded.iter().position(|slice| slice.place == *place)?;
            Some((place.0.input, decoded.swap_remove(at).entry))
        });
        let taken: Option<Vec<_>> = taken.collect();
        taken.ok_or_else(|| PreprocessError::manifest("a slice was not decoded"))
    }

    /// Slices of one input, each on its way to the store before the next but one is made.
    async fn slices(
        &self,
        job: Job<'_>,
        declared: Declared<'_>,
        held: Held,
        (wanted, plan): (Vec<Wanted>, &Arc<SlicePlan>),
    ) -> Result<Vec<Made>, PreprocessError> {
        let Declared { index, input } = declared;
        let options = self.options_for(job.tenant, input).unpacking(held.room);
        let plan = Arc::clone(plan);
        let (made, mut come) = mpsc::channel(FRAMES_WAITING_MAX);
        let turn = self.inputs.turn_of(&held.bytes).await;
        let decode = move || {
            decode_parts(
                &held.bytes,
                &wanted,
                &plan,
                &options,
                &mut |member, slice| {
                    let (frame, info) = slice?;
                    // Nobody takes it any more when the unit was dropped.
                    let _nobody = made.blocking_send((member, frame, info));
                    Ok(())
                },
            )
        };
        let store = async {
            let mut entries = Vec::new();
            while let Some((member, frame, info)) = come.recv().await {
                let file = File {
                    input: index,
                    member,
                };
                let place = (file, info.frame_index);
                let origin = Origin {
                    input: index,
                    // A volume says what it is, or is none.
                    said: "",
                    notes: &[],
                };
                let above_water = info.above_water;
                let entry = self.entry(job.puts, origin, (frame, info), &turn).await;
                entries.push(Made {
                    place,
                    above_water,
                    entry,
                });
            }
            entries
        };
        // Until the last frame was taken: a decode that nobody takes frames from never ends.
        let (outcome, entries) = tokio::join!(Decodes::run(&turn, decode), store);
        let outcome = outcome.map_err(|_| PreprocessError::DecoderPanic { index })?;
        outcome.map_err(|refusal| self.refuse(index, refusal))?;
        Ok(entries)
    }

    /// Sends the frames of a file on their way to the store, and gives what the manifest says of them.
    async fn entries(
        &self,
        puts: &Puts,
        declared: Declared<'_>,
        Decoded { frames, notes, .. }: Decoded,
        turn: &Arc<Turn>,
    ) -> Vec<wire::FrameEntry> {
        let origin = Origin {
            input: declared.index,
            said: &declared.input.modality,
            notes: &notes,
        };
        let entries = frames
            .into_iter()
            .map(|frame| self.entry(puts, origin, frame, turn));
        join_all(entries).await
    }

    fn count(&self, puts: &Puts, frames: usize) -> Result<(), PreprocessError> {
        if puts.count(frames) > self.frames_max {
            self.count_refusal(Reason::TooManyFrames);
            let max = self.frames_max;
            return Err(PreprocessError::Frames { max });
        }
        Ok(())
    }

    /// Their headers are held until the study is whole.
    fn count_slices(&self, job: Job<'_>, more: &Slices) -> Result<(), PreprocessError> {
        let Volumes { slices, pixels } = job.volumes;
        let add = |all: &AtomicU64, more: u64| all.fetch_add(more, Ordering::Relaxed) + more;
        let slices = add(slices, more.count().into());
        let pixels = add(pixels, more.pixels());
        let checked = self.options.limits().check_volume(slices, pixels);
        checked.map_err(|refusal| self.refuse_volume(refusal))
    }

    async fn entry(
        &self,
        puts: &Puts,
        origin: Origin<'_>,
        (frame, info): (Frame, FrameInfo),
        turn: &Arc<Turn>,
    ) -> wire::FrameEntry {
        let Frame {
            side,
            channels,
            pixels,
        } = frame;
        let digest = puts.start(pixels.into(), turn).await;
        self.metrics.frames.inc();
        wire::FrameEntry {
            digest: Bytes::copy_from_slice(digest.as_bytes()),
            width: side,
            channels,
            info: Some(used(origin, &info, &digest)),
        }
    }
}

/// A slice on its way to the store.
struct Made {
    /// Its file, and its frame there.
    place: (File, u32),
    /// As in [`FrameInfo`].
    above_water: Option<bool>,
    entry: wire::FrameEntry,
}

/// A member of an archive, or the file itself, and its slices that are shown.
type Wanted = (Option<u32>, Vec<u32>);

/// Of an input's files that are shown: which frames of each, in the order of the plan.
fn wanted(shown: &[(File, u32)], input: usize) -> Vec<Wanted> {
    let mut wanted: Vec<Wanted> = Vec::new();
    for (file, frame) in shown.iter().filter(|(file, _)| file.input == input) {
        match wanted.iter_mut().find(|(member, _)| *member == file.member) {
            Some((_, frames)) => frames.push(*frame),
            None => wanted.push((file.member, vec![*frame])),
        }
    }
    wanted
}

#[cfg(test)]
mod tests;
