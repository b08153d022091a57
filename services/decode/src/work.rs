//! The effects of one decode in order: gather every declared image, write the text, store the result, complete the job.

use std::sync::Arc;
use std::time::Duration;

use medfleet_core::{BlobKind, JobRecord, Move, Stage, WorkUnit};
use medfleet_engine::{DecodeEngine, DecodeRequest, Decoding, Done, Question};
use medfleet_proto::v1;
use medfleet_proto::v1::task::Kind;
use medfleet_proto::work::v1::StudyManifest;
use medfleet_runtime::Clock;
use medfleet_store::BlobStore;
use medfleet_worker::{Dependencies, Ending, Handler, Next, Started, internal_token};
use prost::Message;
use tracing::{Instrument, field};

use crate::config::Config;
use crate::error::DecodeError;
use crate::fetch::Fetcher;
use crate::gather::{Sources, gather};
use crate::metrics::DecodeMetrics;
use crate::result::{Parts, result};
use crate::stream::Writer;

/// The stage.
pub(crate) struct Decode {
    store: BlobStore,
    engine: DecodeEngine,
    fetcher: Fetcher,
    clock: Arc<dyn Clock>,
    checkpoint_every: Duration,
    metrics: DecodeMetrics,
}

impl Decode {
    pub(crate) fn new(config: &Config, engine: DecodeEngine, dependencies: &Dependencies) -> Self {
        let token = internal_token(dependencies.store.key());
        Self {
            store: dependencies.store.clone(),
            engine,
            fetcher: Fetcher::new(config.fetch_timeout.get(), &token),
            clock: Arc::clone(&dependencies.clock),
            checkpoint_every: config.checkpoint_every.get(),
            metrics: DecodeMetrics::register(&dependencies.metrics),
        }
    }

    async fn study(&self, started: &Started) -> Result<StudyManifest, DecodeError> {
        let (tenant, record) = (&started.unit.key.tenant, &started.record);
        let bytes = self
            .store
            .get(tenant, BlobKind::Study, &record.study)
            .await?;
        StudyManifest::decode(bytes).map_err(|_| DecodeError::Manifest {
            what: "the study manifest",
        })
    }

    fn writer(&self, started: &Started) -> Writer {
        Writer {
            queue: started.queue().clone(),
            store: self.store.clone(),
            key: started.unit.key.clone(),
            epoch: started.unit.epoch,
            attempt: started.attempt(),
            every: self.checkpoint_every,
        }
    }

    /// Everything up to the stored result.
    async fn write(&self, started: &Started) -> Result<medfleet_core::Digest, DecodeError> {
        let key = &started.unit.key;
        let writer = self.writer(started);
        let sources = Sources {
            store: &self.store,
            fetcher: &self.fetcher,
            metrics: &self.metrics,
            model: self.engine.description(),
            tenant: &key.tenant,
        };
        let opening = async { Ok(writer.checkpoint("").await?) };
        let (study, gathered, ()) = tokio::try_join!(
            self.study(started),
            gather(&sources, &started.record),
            opening
        )?;
        let prompt = question(study.task)?.prompt(gathered.images.len());
        let prompt_bytes = prompt.canonical_bytes().into();
        let prompt_digest = self.store.digest(&key.tenant, &prompt_bytes).await;
        let parameters = study.decoding.unwrap_or_default();
        let decoding = decoding(&parameters);
        let asked = self.clock.now();
        let request = DecodeRequest {
            prompt,
            images: gathered.images.clone(),
            decoding,
        };
        let (text, done) = self.text(&writer, request).await?;
        let result = result(Parts {
            job: format!("jobs/{}", key.job),
            record: &started.record,
            gathered,
            model: self.engine.description(),
            decoding: parameters,
            prompt_digest,
            text,
            done,
            asked,
            now: self.clock.now(),
        });
        let result = vec![(BlobKind::Result, result.encode_to_vec().into())];
        let digests = medfleet_worker::keep(&self.store, key, result, &[]).await?;
        digests.first().copied().ok_or(DecodeError::Manifest {
            what: "the result's name",
        })
    }

    /// The whole text, streamed to watchers as it is written.
    async fn text(
        &self,
        writer: &Writer,
        request: DecodeRequest,
    ) -> Result<(String, Done), DecodeError> {
        let model = &self.engine.description().model;
        let span = tracing::info_span!(
            "write text",
            otel.name = format!("chat {model}"),
            gen_ai.operation.name = "chat",
            gen_ai.request.model = model,
            gen_ai.usage.input_tokens = field::Empty,
            gen_ai.usage.output_tokens = field::Empty,
            medfleet.attempt = writer.attempt,
        );
        let (text, done) = async {
            let mut stream = self.engine.decode(request).await?;
            writer.run(&mut stream).await
        }
        .instrument(span.clone())
        .await?;
        span.record("gen_ai.usage.input_tokens", done.prompt.tokens);
        span.record("gen_ai.usage.output_tokens", done.tokens.len());
        self.count(&done);
        Ok((text, done))
    }

    fn count(&self, done: &Done) {
        self.metrics.prompt_tokens.inc_by(done.prompt.tokens.into());
        self.metrics.output_tokens.inc_by(done.tokens.len() as u64);
        self.metrics
            .first_token_seconds
            .observe(done.time_to_first_token.as_secs_f64());
        if done.tokens.len() > 1 {
            let each = done.decode.as_secs_f64() / (done.tokens.len() - 1) as f64;
            self.metrics.token_seconds.observe(each);
        }
    }
}

impl Handler for Decode {
    const STAGE: Stage = Stage::Decode;

    async fn work(&self, started: &Started) -> Result<(), Ending> {
        let result = self.write(started).await?;
        let attempt = started.attempt();
        started
            .advance(&Move::Complete { attempt, result }, |_| Vec::new())
            .await?;
        Ok(())
    }

    async fn next(&self, _: &WorkUnit, _: &JobRecord) -> Result<Vec<Next>, Ending> {
        // A decode is followed by nothing.
        Ok(Vec::new())
    }
}

fn question(task: Option<v1::Task>) -> Result<Question, DecodeError> {
    match task.and_then(|task| task.kind) {
        Some(Kind::Report(v1::ReportTask { clinical_context })) => {
            Ok(Question::Report { clinical_context })
        }
        Some(Kind::Answer(v1::AnswerTask { question })) => Ok(Question::Answer { question }),
        Some(Kind::Compare(v1::CompareTask { clinical_context })) => {
            Ok(Question::Compare { clinical_context })
        }
        _ => Err(DecodeError::Task),
    }
}

/// Defaults are filled in at accept; what is still zero here takes the meaning that the contract gives it.
fn decoding(parameters: &v1::DecodingParameters) -> Decoding {
    Decoding {
        max_tokens: parameters.max_tokens.max(1),
        temperature: parameters.temperature,
        top_k: parameters.top_k,
        top_p: if parameters.top_p == 0.0 {
            1.0
        } else {
            parameters.top_p
        },
        seed: parameters.seed,
    }
}
