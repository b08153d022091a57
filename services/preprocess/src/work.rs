//! The effects of one unit in order: read the study, make its frames, store them and the manifest, then advance the job.

use std::future::ready;
use std::sync::Arc;

use bytes::Bytes;
use medfleet_core::{BlobKind, Digest, JobKey, JobRecord, Move, Stage, WorkUnit};
use medfleet_proto::v1;
use medfleet_proto::work::v1 as wire;
use medfleet_store::BlobStore;
use medfleet_worker::encoded::frame_name;
use medfleet_worker::{Dependencies, Ending, Handler, Started};
use prost::Message;

use crate::codecs::Codecs;
use crate::config::Config;
use crate::decodes::Decodes;
use crate::encoded::{self, Names, Rules};
use crate::error::{PreprocessError, StartError};
use crate::frames;
use crate::metrics::PreprocessMetrics;
use crate::puts::{FramesInFlight, Puts};
use crate::screen::{has_text, screen};
use crate::study::{Job, Studies, Study, Volumes};
use crate::unit::chunk_starts;

/// The stage.
pub(crate) struct Preprocess {
    store: BlobStore,
    studies: Studies,
    preprocessing_version: String,
    frames_per_chunk: u32,
    frame_side: u32,
    frames_max: u32,
    in_flight: FramesInFlight,
    codecs: &'static Codecs,
    metrics: PreprocessMetrics,
}

impl Preprocess {
    pub(crate) fn new(config: &Config, dependencies: &Dependencies) -> Result<Self, StartError> {
        let codecs = frames::codecs(config);
        let store = dependencies.store.clone();
        let metrics = PreprocessMetrics::register(&dependencies.metrics);
        Ok(Self {
            studies: Studies::new(config, store.clone(), codecs, metrics.clone())?,
            store,
            preprocessing_version: config.convention()?.version.clone(),
            frames_per_chunk: config.frames_per_chunk,
            frame_side: config.frame_side,
            frames_max: config.frames_max,
            in_flight: FramesInFlight::default(),
            codecs,
            metrics,
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
        let study = wire::StudyManifest::decode(bytes)
            .map_err(|_| PreprocessError::manifest("it is not the encoding of a manifest"))?;
        if study.inputs.len() != record.image_count as usize {
            let (found, declared) = (study.inputs.len(), record.image_count);
            let reason = format!("{found} inputs for {declared} declared images");
            return Err(PreprocessError::Manifest(reason));
        }
        Ok(study)
    }

    /// Stores the manifest while the last frames are stored; the job has taken its references on them. What that means for
    /// the job.
    async fn keep(
        &self,
        started: &Started,
        puts: Puts,
        study: Study,
        task: Option<v1::Task>,
    ) -> Result<Move, PreprocessError> {
        let identifiers = study.identifiers;
        let screening = if has_text(task.as_ref()) {
            // Tens of thousands of names in a long text take seconds. No pixels are held for it.
            puts.begin();
            let screen = move || screen(task.as_ref(), &identifiers);
            let screened = Decodes::run(&Arc::default(), screen).await;
            screened.map_err(|_| PreprocessError::ScreeningPanic)?
        } else {
            screen(task.as_ref(), &identifiers)
        };
        for masked in &screening.masked {
            self.metrics.masked.inc_by(masked.count.into());
        }
        let input_digests = study
            .input_digests
            .iter()
            .map(|digest| Bytes::copy_from_slice(digest.as_bytes()));
        let input_digests = input_digests.collect();
        let frames = study.frames;
        let count = u32::try_from(frames.len())
            .map_err(|_| PreprocessError::manifest("too many frames"))?;
        let chunk_starts = chunk_starts(count, self.frames_per_chunk);
        // As many as CHUNKS_MAX at most.
        let chunks = chunk_starts.len() as u32;
        let manifest = wire::FramesManifest {
            frames,
            files_refused: study.unused,
            preprocessing_version: self.preprocessing_version.clone(),
            chunk_starts,
            input_digests,
            screening: Some(screening),
            encoded: None,
        };
        let manifest = Bytes::from(manifest.encode_to_vec());
        let frames = self.store.digest(&started.unit.key.tenant, &manifest).await;
        let manifest = (BlobKind::Frames, frames, manifest);
        puts.finish_with(manifest).await?;
        Ok(Move::Preprocessed {
            frames,
            chunks,
            frame_count: count,
        })
    }

    /// Stores the tokens of an encoded study and its manifest. What that means for the job.
    async fn keep_encoded(
        &self,
        key: &JobKey,
        input: &wire::StudyInput,
    ) -> Result<Move, PreprocessError> {
        // The memory is held until they are stored.
        let (read, _held) = self.studies.encoded(&key.tenant, input).await?;
        let rules = Rules {
            version: &self.preprocessing_version,
            frame_side: self.frame_side,
            frames_max: self.frames_max,
        };
        encoded::check(&read.study, input.encoded_images, rules)?;
        let screening = read.study.screening.iter();
        for masked in screening.flat_map(|screening| &screening.masked) {
            self.metrics.masked.inc_by(masked.count.into());
        }
        let tokens = read.tokens.into_iter();
        let tokens = tokens.map(|tokens| (BlobKind::Tokens, tokens)).collect();
        let names = self.store.keep(key, tokens, &[], ready(Ok(()))).await?;
        let names = names.into_iter().map(|tokens| Names {
            frame: frame_name(self.store.key(), &key.tenant, &tokens),
            tokens,
        });
        let names: Vec<Names> = names.collect();
        // At most frames_max.
        let frame_count = names.len() as u32;
        let manifest = encoded::manifest(read.study, &names);
        let manifest = vec![(BlobKind::Frames, manifest.encode_to_vec().into())];
        let digests = self.store.keep(key, manifest, &[], ready(Ok(()))).await?;
        Ok(Move::Preprocessed {
            frames: only(&digests)?,
            chunks: 1,
            frame_count,
        })
    }
}

/// The name of the one thing that was stored.
fn only(digests: &[Digest]) -> Result<Digest, PreprocessError> {
    match digests {
        [digest] => Ok(*digest),
        _ => Err(PreprocessError::manifest("it has no name")),
    }
}

impl Handler for Preprocess {
    const STAGE: Stage = Stage::Preprocess;

    type Inputs = wire::StudyManifest;

    async fn read(&self, unit: &WorkUnit, record: &JobRecord) -> Result<Self::Inputs, Ending> {
        Ok(self.study(unit, record).await?)
    }

    async fn work(&self, started: &Started, study: Self::Inputs) -> Result<(), Ending> {
        let tenant = &started.unit.key.tenant;
        if let Some(input) = encoded::input(&study)? {
            let step = self.keep_encoded(&started.unit.key, input).await?;
            started.advance(&step).await?;
            return Ok(());
        }
        let puts = Puts::new(
            self.store.clone(),
            started.unit.key.clone(),
            &self.in_flight,
        );
        let puts = puts.of_files(study.inputs.len());
        let job = Job {
            tenant,
            puts: &puts,
            study: &study,
            volumes: &Volumes::default(),
        };
        let whole = self.studies.whole(job).await?;
        let step = self.keep(started, puts, whole, study.task).await?;
        started.advance(&step).await?;
        Ok(())
    }
}
