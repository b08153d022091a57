//! What an accepted job will consist of: its blobs, study manifest and record. Looks at uploads, writes nothing.

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use medfleet_core::{
    BlobKind, Digest, JobRecord, NewJob, Pseudonyms, TenantId, UnixMillis, UploadId,
};
use medfleet_proto::work::v1::{StudyInput, StudyManifest};
use medfleet_runtime::telemetry;
use prost::Message;
use tracing::Span;

use crate::accept::{Acceptor, TRACEPARENT};
use crate::cost;
use crate::error::Refusal;
use crate::keys::SentHalf;
use crate::validate::{Plan, Source};

/// Inputs of one job that are looked up at a time.
const LOOKUPS: usize = 32;

/// A job that is ready to be stored.
#[derive(Debug)]
pub(crate) struct Study {
    pub(crate) record: JobRecord,
    /// To store: inputs that came with the request, and the study manifest.
    pub(crate) contents: Vec<medfleet_store::Named>,
    /// Stored before: parts of uploads.
    pub(crate) parts: Vec<(BlobKind, Digest)>,
    /// These uploads.
    pub(crate) uploads: Vec<UploadId>,
}

/// An input on its way into a manifest.
struct Prepared {
    input: StudyInput,
    content: Option<medfleet_store::Named>,
}

/// What a record names by digest.
struct Named {
    /// The study manifest.
    study: Digest,
    /// The request, as it was sent and as it was meant.
    body: Digest,
}

impl Acceptor {
    /// Looks up the inputs and says what is to be stored.
    pub(crate) async fn study(
        &self,
        tenant: &TenantId,
        plan: Plan,
        sent: SentHalf,
    ) -> Result<Study, Refusal> {
        let sources = plan.sources.iter().zip(&plan.modalities).enumerate();
        let inputs = sources.map(|(index, source)| self.input(tenant, index, source));
        let inputs: Vec<_> = inputs.collect();
        let mut inputs: Vec<Prepared> =
            stream::iter(inputs).buffered(LOOKUPS).try_collect().await?;
        if let [only] = inputs.as_mut_slice() {
            only.input.encoded_images = plan.encoded_images;
        }
        let most = self.config.limits.study_bytes_max;
        let bytes = inputs
            .iter()
            .map(|prepared| prepared.input.size_bytes)
            .sum::<u64>();
        if bytes > most.get() {
            let what = "the inputs of a job together";
            return Err(Refusal::TooLarge {
                what,
                allowed: most.to_string(),
            });
        }
        let parts = parts_of_uploads(&inputs)?;
        let uploads = plan.sources.iter().filter_map(Source::upload);
        let uploads: Vec<UploadId> = uploads.cloned().collect();
        let (inputs, contents): (Vec<_>, Vec<_>) = inputs
            .into_iter()
            .map(|prepared| (prepared.input, prepared.content))
            .unzip();
        let image_count = u32::try_from(inputs.len()).unwrap_or(u32::MAX);
        let manifest = StudyManifest {
            inputs,
            task: Some(plan.task.clone()),
            decoding: Some(plan.decoding.clone()),
        };
        let manifest = Bytes::from(manifest.encode_to_vec());
        let study = self.blobs.digest(tenant, &manifest).await;
        let contents = contents.into_iter().flatten();
        let contents = contents
            .chain([(BlobKind::Study, study, manifest.clone())])
            .collect();
        let ttl_millis = i64::try_from(plan.time_to_live.as_millis()).unwrap_or(i64::MAX);
        let ttl_bytes = ttl_millis.to_le_bytes();
        let class = plan.class.as_str().as_bytes();
        let pseudonyms = self.keys.pseudonyms(tenant, &plan.whose);
        let whose = pseudonyms.to_bytes();
        let mut meaning: Vec<&[u8]> =
            vec![&manifest[..], class, plan.model.as_bytes(), &ttl_bytes[..]];
        // Without them a job means what it meant to releases that knew none.
        meaning.extend(Some(whose.as_slice()).filter(|whose| !whose.is_empty()));
        let body = self.keys.body(sent, &meaning);
        let record = JobRecord {
            pseudonyms,
            ..self.record(plan, Named { study, body }, image_count, ttl_millis)
        };
        Ok(Study {
            record,
            contents,
            parts,
            uploads,
        })
    }

    fn record(
        &self,
        plan: Plan,
        Named { study, body }: Named,
        image_count: u32,
        ttl_millis: i64,
    ) -> JobRecord {
        let now = self.clock.now();
        let headers = telemetry::inject(&Span::current());
        let traceparent = headers.into_iter().find(|(name, _)| name == TRACEPARENT);
        let cost = cost::estimate(
            &self.config.cost,
            &plan.pool,
            plan.kind,
            image_count,
            &plan.decoding,
        );
        JobRecord::accepted(NewJob {
            pool: plan.pool,
            class: plan.class,
            task: plan.kind,
            image_count,
            body,
            study,
            pseudonyms: Pseudonyms::default(),
            accepted: now,
            expires: UnixMillis(now.0.saturating_add(ttl_millis)),
            // Empty without telemetry.
            traceparent: traceparent.map(|(_, value)| value).unwrap_or_default(),
            model: plan.model,
            cost,
        })
    }

    async fn input(
        &self,
        tenant: &TenantId,
        index: usize,
        (source, modality): (&Source, &String),
    ) -> Result<Prepared, Refusal> {
        match source {
            Source::Content(content) => {
                let digest = self.blobs.digest(tenant, content).await;
                let input = StudyInput {
                    part_digests: vec![Bytes::copy_from_slice(digest.as_bytes())],
                    size_bytes: content.len() as u64,
                    modality: modality.clone(),
                    ..StudyInput::default()
                };
                Ok(Prepared {
                    input,
                    content: Some((BlobKind::Input, digest, content.clone())),
                })
            }
            Source::Upload(id) => {
                let mut input = self.uploaded(tenant, index, id).await?;
                input.modality.clone_from(modality);
                Ok(Prepared {
                    input,
                    content: None,
                })
            }
        }
    }

    /// A complete upload.
    async fn uploaded(
        &self,
        tenant: &TenantId,
        index: usize,
        id: &UploadId,
    ) -> Result<StudyInput, Refusal> {
        let (record, _) = match self.queue.upload(tenant, id).await? {
            Some(found) if found.0.expire_unix_millis > self.clock.now().0 => found,
            _ => {
                let field = format!("inputs[{index}].upload");
                return Err(Refusal::UploadGone { field });
            }
        };
        if record.committed_bytes != record.total_bytes {
            let allowed = format!(
                "must name a complete upload; {} of {} bytes are stored",
                record.committed_bytes, record.total_bytes
            );
            return Err(Refusal::invalid(format!("inputs[{index}].upload"), allowed));
        }
        Ok(StudyInput {
            part_digests: record.part_digests,
            size_bytes: record.total_bytes,
            ..StudyInput::default()
        })
    }
}

/// The parts that are stored already.
fn parts_of_uploads(inputs: &[Prepared]) -> Result<Vec<(BlobKind, Digest)>, Refusal> {
    let uploads = inputs.iter().filter(|prepared| prepared.content.is_none());
    let parts = uploads.flat_map(|prepared| &prepared.input.part_digests);
    let parts = parts.map(|part| Digest::from_slice(part).map(|digest| (BlobKind::Input, digest)));
    parts
        .collect::<Result<_, _>>()
        .map_err(|_| Refusal::Broken {
            what: "an upload's record",
        })
}
