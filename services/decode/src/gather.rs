//! The tokens of every declared image, each verified by digest, shape, dtype, frame and encoder; or an error that names
//! the image. Nothing is decoded before all of them are here.

use bytes::Bytes;
use futures::future::try_join_all;
use medfleet_core::{BlobKind, CHUNKS_MAX, Digest, JobKey, JobRecord, TenantId, chain};
use medfleet_engine::{Description, ImageTokens};
use medfleet_proto::work::v1::{FrameEntry, FramesManifest, TokensManifest};
use medfleet_store::{BlobStore, StoreError};
use medfleet_worker::{chunk_key, handed_key};
use prost::Message;

use crate::error::DecodeError;
use crate::fetch::Fetcher;
use crate::metrics::{DecodeMetrics, ENCODER, STORE, SourceLabel};
use crate::unit::{cached, chunks, declared, devices};

/// Where tokens come from.
pub(crate) struct Sources<'a> {
    pub(crate) store: &'a BlobStore,
    pub(crate) fetcher: &'a Fetcher,
    pub(crate) metrics: &'a DecodeMetrics,
    pub(crate) model: &'a Description,
    pub(crate) tenant: &'a TenantId,
    /// The mark of tokens that were made for this job ([`medfleet_worker::made_for`]).
    pub(crate) made_for: [u8; 16],
}

/// The images of a job, in the order the model sees them.
pub(crate) struct Gathered {
    pub(crate) manifest: FramesManifest,
    pub(crate) images: Vec<ImageTokens>,
    /// Keyed digest of each image's tokens.
    pub(crate) digests: Vec<Digest>,
    /// How many images have tokens that were made for another job.
    pub(crate) cached: u32,
    /// Kinds of device that made the tokens, each once.
    pub(crate) encoder_devices: Vec<String>,
}

/// The images of a chunk.
struct Part {
    images: Vec<(Digest, ImageTokens)>,
    cached: u32,
    /// Kind of device that made the tokens; empty where that was not written down.
    device: String,
}

/// What a record names, as it is stored.
pub(crate) struct Lists {
    pub(crate) study: Bytes,
    frames: Bytes,
    /// Of each chunk, the list of its tokens.
    tokens: Vec<Option<Bytes>>,
}

/// Gathers what a record declares.
pub(crate) async fn gather(
    sources: &Sources<'_>,
    record: &JobRecord,
    lists: Lists,
) -> Result<Gathered, DecodeError> {
    let manifest = FramesManifest::decode(lists.frames)
        .map_err(|_| DecodeError::Manifest("the frames manifest"))?;
    let parts = chunks(&manifest, record.image_count)?;
    // Each has its list then.
    if parts.len() != record.chunks.total as usize || parts.len() != lists.tokens.len() {
        return Err(DecodeError::Manifest("the number of chunks"));
    }
    let parts = parts.into_iter().zip(lists.tokens);
    let parts = parts.map(|(chunk, list)| sources.chunk(list, chunk, record.image_count));
    let parts = try_join_all(parts).await?;
    let cached: u32 = parts.iter().map(|part| part.cached).sum();
    let encoder_devices = devices(parts.iter().map(|part| part.device.as_str()));
    let (digests, images) = parts.into_iter().flat_map(|part| part.images).unzip();
    Ok(Gathered {
        manifest,
        images,
        digests,
        cached,
        encoder_devices,
    })
}

/// Reads every list that the record of a job names in one go, as all their names follow from the record.
pub(crate) async fn lists(
    store: &BlobStore,
    encoder: &Digest,
    job: &JobKey,
    record: &JobRecord,
) -> Result<Lists, DecodeError> {
    let wrong = DecodeError::Manifest("the frames manifest");
    let named = record.frames.ok_or(wrong)?;
    let (tenant, kind) = (&job.tenant, BlobKind::TokensOfChunk);
    let chunks = 0..record.chunks.total.min(CHUNKS_MAX);
    let own = chunks.clone().map(|chunk| {
        let key = handed_key((&job.job, record.epoch), &named, chunk);
        (kind, key)
    });
    let own: Vec<_> = own.collect();
    let contents = [(BlobKind::Study, record.study), (BlobKind::Frames, named)];
    let read = store.get_together(tenant, contents, &own);
    let ([study, frames], own) = read.await?;
    let tokens = chunks.zip(own).map(|(chunk, own)| async move {
        if own.is_some() {
            return Ok(own);
        }
        // An encoder of an earlier release names it by the frames alone.
        let key = chunk_key(&named, chunk, encoder);
        store.get_mutable(tenant, kind, &key).await
    });
    Ok(Lists {
        study,
        frames,
        tokens: try_join_all(tokens).await?,
    })
}

impl Sources<'_> {
    async fn chunk(
        &self,
        list: Option<Bytes>,
        (first, frames): (usize, &[FrameEntry]),
        images: u32,
    ) -> Result<Part, DecodeError> {
        let Some(bytes) = list else {
            return Err(self.missing(first, images));
        };
        let manifest = TokensManifest::decode(bytes)
            .map_err(|_| DecodeError::Manifest("a tokens manifest"))?;
        let digests = declared(&manifest, first, frames, self.model)?;
        let fetched = self.fetch(&manifest.encoder_url, &digests).await;
        let tensors = digests.into_iter().enumerate().map(|(index, digest)| {
            let fetched = fetched
                .as_ref()
                .and_then(|tensors| tensors.get(index))
                .cloned();
            self.tensor((first + index, digest), fetched, images)
        });
        Ok(Part {
            images: try_join_all(tensors).await?,
            cached: cached(&manifest, &self.made_for),
            device: manifest.device,
        })
    }

    /// What the encoder still has; `None` means the store.
    async fn fetch(&self, url: &str, digests: &[Digest]) -> Option<Vec<Bytes>> {
        let length = length(self.model);
        match self.fetcher.fetch(url, self.tenant, digests, length).await {
            Ok(tensors) => Some(tensors),
            Err(error) => {
                tracing::debug!(error = %chain(&error), "image tokens are read from the store");
                None
            }
        }
    }

    /// One image, by its position and the digest of its tokens: the encoder's bytes if they are the right ones, else the store's.
    async fn tensor(
        &self,
        (image, digest): (usize, Digest),
        fetched: Option<Bytes>,
        images: u32,
    ) -> Result<(Digest, ImageTokens), DecodeError> {
        let (mut bytes, mut source) = (None, ENCODER);
        if let Some(fetched) = fetched
            && self.store.digest(self.tenant, &fetched).await == digest
        {
            bytes = Some(fetched);
        }
        let bytes = match bytes {
            Some(bytes) => bytes,
            None => {
                source = STORE;
                match self.store.get(self.tenant, BlobKind::Tokens, &digest).await {
                    Ok(bytes) => bytes,
                    Err(StoreError::Missing { .. }) => {
                        return Err(self.missing(image, images));
                    }
                    Err(StoreError::Corrupt { .. }) => {
                        let what = "the stored bytes have another digest";
                        return Err(DecodeError::Tokens { image, what });
                    }
                    Err(error) => return Err(error.into()),
                }
            }
        };
        if bytes.len() != length(self.model) {
            let what = "their length does not fit their shape";
            return Err(DecodeError::Tokens { image, what });
        }
        self.metrics
            .images
            .get_or_create(&SourceLabel { source })
            .inc();
        let tokens = ImageTokens {
            count: self.model.tokens_per_image,
            width: self.model.token_width,
            dtype: self.model.dtype,
            bytes,
        };
        Ok((digest, tokens))
    }

    fn missing(&self, image: usize, declared: u32) -> DecodeError {
        DecodeError::ImageMissing {
            image,
            declared,
            encoder: self.model.encoder_digest,
        }
    }
}

/// Bytes of one image's tokens.
fn length(model: &Description) -> usize {
    model.tokens_per_image as usize * model.token_width as usize * model.dtype.bytes()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use medfleet_core::{Class, Cost, JobId, NewJob, PoolName, Pseudonyms, TaskKind, UnixMillis};
    use medfleet_engine::Dtype;
    use medfleet_proto::v1::FrameUsed;
    use medfleet_proto::work::v1::TokensEntry;
    use medfleet_runtime::Metrics;
    use medfleet_store::FleetKey;

    use super::*;

    fn model() -> Description {
        Description {
            model: "tiny".to_owned(),
            model_digest: Digest::new([1; 32]),
            settings_digest: Digest::new([2; 32]),
            encoder_digest: Digest::new([3; 32]),
            device: "none".to_owned(),
            dtype: Dtype::Bf16,
            weights: String::new(),
            reproducible: true,
            frame_side: 8,
            tokens_per_image: 2,
            token_width: 4,
            context_tokens_max: 64,
        }
    }

    /// A job of two chunks.
    fn record(study: Digest, frames: Digest) -> JobRecord {
        let mut record = JobRecord::accepted(NewJob {
            pool: PoolName::new("p").expect("a pool"),
            class: Class::Routine,
            task: TaskKind::Report,
            image_count: 2,
            body: Digest::new([4; 32]),
            study,
            pseudonyms: Pseudonyms::default(),
            accepted: UnixMillis(0),
            expires: UnixMillis(1_000),
            traceparent: String::new(),
            model: "tiny".to_owned(),
            cost: Cost::default(),
        });
        record.frames = Some(frames);
        record.chunks.total = 2;
        record
    }

    #[tokio::test]
    async fn a_jobs_own_lists_come_first_and_an_earlier_releases_where_there_are_none() {
        let store = BlobStore::in_memory(FleetKey::new([1; 32]));
        let encoder = Digest::new([3; 32]);
        let job = JobKey::new("a".parse().expect("a tenant"), JobId::from_bytes([1; 16]));
        let put = async |kind, text: &'static [u8]| {
            let stored = store.put(&job.tenant, kind, Bytes::from_static(text));
            stored.await.expect("stores")
        };
        let frames = put(BlobKind::Frames, b"frames").await;
        let record = record(put(BlobKind::Study, b"study").await, frames);
        let list = async |key: &[u8], text: &'static [u8]| {
            let kind = BlobKind::TokensOfChunk;
            let stored = store.put_mutable(&job.tenant, kind, key, Bytes::from_static(text));
            stored.await.expect("stores");
        };
        // The other one's chunks were encoded later, on another device or in another type.
        for chunk in 0..2 {
            let key = chunk_key(&frames, chunk, &encoder);
            list(&key, b"of the frames").await;
        }
        let own = handed_key((&job.job, record.epoch), &frames, 1);
        list(&own, b"of the job").await;
        let read = lists(&store, &encoder, &job, &record).await;
        let tokens = read.expect("they are there").tokens;
        let expected = ["of the frames", "of the job"].map(|text| Some(Bytes::from(text)));
        assert_eq!(tokens, expected);
    }

    /// Where a decode looks that asks no encoder.
    struct Place {
        store: BlobStore,
        fetcher: Fetcher,
        metrics: DecodeMetrics,
        model: Description,
        tenant: TenantId,
    }

    impl Place {
        fn new() -> Self {
            Self {
                store: BlobStore::in_memory(FleetKey::new([1; 32])),
                fetcher: Fetcher::new(Duration::ZERO, "token", None),
                metrics: DecodeMetrics::register(&Metrics::new()),
                model: model(),
                tenant: "a".parse().expect("a tenant"),
            }
        }

        fn sources(&self) -> Sources<'_> {
            Sources {
                store: &self.store,
                fetcher: &self.fetcher,
                metrics: &self.metrics,
                model: &self.model,
                tenant: &self.tenant,
                made_for: [5; 16],
            }
        }

        async fn put(&self, tokens: Bytes) -> Digest {
            let stored = self.store.put(&self.tenant, BlobKind::Tokens, tokens);
            stored.await.expect("stores")
        }

        /// How many images came from the store, and from an encoder.
        fn came_from(&self) -> [u64; 2] {
            let images = &self.metrics.images;
            [STORE, ENCODER].map(|source| images.get_or_create(&SourceLabel { source }).get())
        }
    }

    /// The tokens of an image, others for each number.
    fn tensor(byte: u8) -> Bytes {
        vec![byte; length(&model())].into()
    }

    #[tokio::test]
    async fn what_an_encoder_sends_in_the_place_of_the_declared_tokens_is_not_used() {
        let place = Place::new();
        let (sources, right) = (place.sources(), tensor(1));
        let digest = place.put(right.clone()).await;
        // Of another image, a part, or nothing: the store has them.
        let wrong = [Some(tensor(2)), Some(right.slice(1..)), None];
        for fetched in wrong {
            let (found, tokens) = sources
                .tensor((0, digest), fetched, 1)
                .await
                .expect("stored");
            assert_eq!((found, &tokens.bytes), (digest, &right));
        }
        assert_eq!(place.came_from(), [3, 0]);
        // The right ones need no store.
        let sent = tensor(3);
        let digest = place.store.digest(&place.tenant, &sent).await;
        let found = sources.tensor((0, digest), Some(sent.clone()), 1).await;
        assert_eq!(found.expect("sent").1.bytes, sent);
        assert_eq!(place.came_from(), [3, 1]);
        let missing = sources.tensor((1, digest), Some(tensor(4)), 2).await;
        assert!(
            matches!(
                missing,
                Err(DecodeError::ImageMissing {
                    image: 1,
                    declared: 2,
                    ..
                })
            ),
            "{missing:?}"
        );
    }

    #[tokio::test]
    async fn tokens_that_do_not_fill_their_shape_are_refused() {
        let place = Place::new();
        for bytes in [tensor(1).slice(1..), [tensor(1), tensor(1)].concat().into()] {
            let digest = place.put(bytes.clone()).await;
            for fetched in [None, Some(bytes)] {
                let found = place.sources().tensor((1, digest), fetched, 2).await;
                let is_refused = matches!(found, Err(DecodeError::Tokens { image: 1, .. }));
                assert!(is_refused, "{found:?}");
            }
        }
    }

    fn frames_of_two() -> Bytes {
        let frame = |number: u8| FrameEntry {
            digest: vec![number; 32].into(),
            info: Some(FrameUsed {
                input_index: number.into(),
                ..Default::default()
            }),
            ..Default::default()
        };
        let manifest = FramesManifest {
            frames: vec![frame(0), frame(1)],
            chunk_starts: vec![0, 1],
            ..Default::default()
        };
        manifest.encode_to_vec().into()
    }

    /// The list of a chunk of one image.
    fn list_of(frame: u8, tokens: Digest) -> Bytes {
        let model = model();
        let entry = TokensEntry {
            digest: tokens.as_bytes().to_vec().into(),
            count: model.tokens_per_image,
            width: model.token_width,
            dtype: model.dtype.as_str().to_owned(),
            frame_digest: vec![frame; 32].into(),
            ..Default::default()
        };
        let manifest = TokensManifest {
            tokens: vec![entry],
            encoder_digest: model.encoder_digest.as_bytes().to_vec().into(),
            ..Default::default()
        };
        manifest.encode_to_vec().into()
    }

    #[tokio::test]
    async fn every_declared_image_comes_in_its_order_or_none_does() {
        let place = Place::new();
        let digests = [place.put(tensor(1)).await, place.put(tensor(2)).await];
        let [first, second] = [list_of(0, digests[0]), list_of(1, digests[1])];
        let record = record(Digest::new([8; 32]), Digest::new([9; 32]));
        let gathered = async |tokens: &[Option<&Bytes>]| {
            let lists = Lists {
                study: Bytes::new(),
                frames: frames_of_two(),
                tokens: tokens.iter().map(|list| list.cloned()).collect(),
            };
            gather(&place.sources(), &record, lists).await
        };
        let all = gathered(&[Some(&first), Some(&second)]).await;
        let all = all.expect("all are there");
        let images: Vec<Bytes> = all.images.into_iter().map(|image| image.bytes).collect();
        assert_eq!(images, [tensor(1), tensor(2)]);
        assert_eq!(all.digests, digests);

        let swapped = gathered(&[Some(&second), Some(&first)]).await.err();
        let is_refused = matches!(swapped, Some(DecodeError::Tokens { .. }));
        assert!(is_refused, "{swapped:?}");
        let missing = gathered(&[Some(&first), None]).await.err();
        let is_refused = matches!(missing, Some(DecodeError::ImageMissing { image: 1, .. }));
        assert!(is_refused, "{missing:?}");
        let fewer = gathered(&[Some(&first)]).await.err();
        let is_refused = matches!(fewer, Some(DecodeError::Manifest { .. }));
        assert!(is_refused, "{fewer:?}");
    }
}
