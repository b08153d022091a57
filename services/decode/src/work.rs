//! The effects of one decode in order: gather every declared image, write the text, store the result, complete the job.

use std::future::ready;
use std::sync::Arc;
use std::time::Duration;

use medfleet_core::{BlobKind, Class, Digest, JobKey, JobRecord, Move, Stage, WorkUnit};
use medfleet_engine::{
    Asked, DecodeEngine, DecodeModel, DecodeRequest, Decoding, Done, EngineError, ImageTokens,
    LoadedEmbedder, Prompts, Question,
};
use medfleet_proto::v1;
use medfleet_proto::work::v1::StudyManifest;
use medfleet_runtime::{Clock, Exemplar};
use medfleet_store::BlobStore;
use medfleet_worker::{Dependencies, Ending, Handler, Started, made_for};
use prost::Message;
use tokio::time::Instant;
use tracing::{Instrument, field};

use crate::config::Config;
use crate::error::DecodeError;
use crate::fetch::Fetcher;
use crate::gather::{Gathered, Sources, gather, lists};
use crate::metrics::DecodeMetrics;
use crate::result::{Parts, result};
use crate::scopes::Scopes;
use crate::stream::{Text, Writer};
use crate::task::{
    Asks, Compares, LABEL_ALTERNATIVES, LABEL_TOKENS_MAX, Written, asks, classified, compared,
    compares, embeddings, line, score, written, zero_shot,
};
use crate::unit::{haste, images, screened_task};

/// One additional slot for units of class STAT, whose texts the engine writes before those of lower classes.
pub(crate) const STAT_SLOTS: usize = 1;

/// The stage.
pub(crate) struct Decode {
    store: BlobStore,
    model: DecodeModel,
    fetcher: Fetcher,
    scopes: Scopes,
    clock: Arc<dyn Clock>,
    checkpoint_every: Duration,
    prompt_version: String,
    metrics: DecodeMetrics,
}

impl Decode {
    pub(crate) fn new(
        config: &Config,
        (model, fetcher, scopes): (DecodeModel, Fetcher, Scopes),
        dependencies: &Dependencies,
    ) -> Self {
        Self {
            store: dependencies.store.clone(),
            model,
            fetcher,
            scopes,
            clock: Arc::clone(&dependencies.clock),
            checkpoint_every: config.checkpoint_every.get(),
            prompt_version: config.prompt_version.clone(),
            metrics: DecodeMetrics::register(&dependencies.metrics),
        }
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

    /// What is asked and about which images: all of them, verified.
    async fn inputs(&self, key: &JobKey, record: &JobRecord) -> Result<Inputs, DecodeError> {
        let model = self.model.description();
        let sources = Sources {
            store: &self.store,
            fetcher: &self.fetcher,
            metrics: &self.metrics,
            model,
            tenant: &key.tenant,
            made_for: made_for(self.store.key(), key),
        };
        let lists = lists(&self.store, &model.encoder_digest, key, record).await?;
        let study = StudyManifest::decode(lists.study.clone());
        let study = study.map_err(|_| DecodeError::Manifest("the study manifest"))?;
        Ok((study, gather(&sources, record, lists).await?))
    }

    /// Everything up to the stored result.
    async fn write(
        &self,
        started: &Started,
        (study, gathered): Inputs,
    ) -> Result<Digest, DecodeError> {
        let key = &started.unit.key;
        let writer = self.writer(started);
        if writer.attempt > 1 {
            // Replaces the checkpoint of the attempt before, whose text is void.
            writer.checkpoint("").await?;
        }
        let asked = self.clock.now();
        let Answered {
            written,
            decoding,
            prompt,
            prompt_version,
        } = match &self.model {
            DecodeModel::Writer(engine) => {
                let engine = (engine, &started.unit);
                self.ask(engine, &writer, &study, &gathered).await?
            }
            DecodeModel::Embedder(embedder) => {
                let embedder = (embedder, started.unit.class);
                compare(embedder, &study, &gathered).await?
            }
        };
        let prompt_digest = self.store.digest(&key.tenant, &prompt.into()).await;
        let result = result(Parts {
            job: format!("jobs/{}", key.job),
            record: &started.record,
            gathered,
            model: self.model.description(),
            decoding,
            prompt_version,
            prompt_digest,
            written,
            asked,
            now: self.clock.now(),
        });
        let result = vec![(BlobKind::Result, result.encode_to_vec().into())];
        let digests = self.store.keep(key, result, &[], ready(Ok(()))).await?;
        digests
            .first()
            .copied()
            .ok_or(DecodeError::Manifest("the result's name"))
    }

    /// Has a model that writes do the task.
    async fn ask(
        &self,
        (engine, unit): (&DecodeEngine, &WorkUnit),
        writer: &Writer,
        study: &StudyManifest,
        gathered: &Gathered,
    ) -> Result<Answered<'_>, DecodeError> {
        let parameters = study.decoding.clone().unwrap_or_default();
        let images = images(&gathered.manifest.frames);
        let prompts = Prompts::of(&self.prompt_version).ok_or(DecodeError::Task)?;
        let ask = |question: &Question| prompts.ask(question, &images, parameters.think);
        let answering = Answering {
            engine,
            writer,
            images: &gathered.images,
            parameters: &parameters,
            scope: self.scopes.of(&writer.key.tenant),
            unit,
            clock: self.clock.as_ref(),
        };
        let task = screened_task(study, &gathered.manifest)?;
        let (written, prompt, decoding) = match asks(task, images.count())? {
            Asks::One(question) => {
                let ask = ask(&question)?;
                let prompt = ask.prompt.canonical_bytes();
                let (text, done) = self.one(&answering, ask).await?;
                let frame = gathered.manifest.frames.first();
                let frame = frame.and_then(|frame| frame.info.as_ref());
                let rest = text.rest().to_owned();
                let written = match written(&question, text.whole, done, frame) {
                    Ok(written) => written,
                    Err(error) => {
                        // No result will bring it to the watchers.
                        writer.publish(text.published, &rest).await;
                        return Err(error);
                    }
                };
                (written, prompt, parameters.clone())
            }
            Asks::Labels(labels) => {
                let asks = labels.into_iter().map(|label| {
                    let ask = ask(&Question::Classify {
                        label: label.clone(),
                    })?;
                    Ok((label, ask))
                });
                let asks: Vec<(String, Asked)> = asks.collect::<Result<_, EngineError>>()?;
                let prompt = asks.iter().map(|(_, ask)| ask.prompt.canonical_bytes());
                let prompt = prompt.collect::<Vec<_>>().concat();
                let written = self.labels(&answering, asks).await?;
                (written, prompt, of_labels(&parameters))
            }
        };
        Ok(Answered {
            written,
            decoding,
            prompt,
            prompt_version: &self.prompt_version,
        })
    }

    /// One question; its text is streamed to watchers as it is written.
    async fn one(
        &self,
        answering: &Answering<'_>,
        ask: Asked,
    ) -> Result<(Text, Done), DecodeError> {
        let request = answering.request(ask, decoding(answering.parameters), 1);
        let writer = answering.writer;
        let write = async {
            let mut stream = answering.engine.decode(request).await?;
            writer.run(&mut stream).await
        };
        self.traced(writer.attempt, write).await
    }

    /// A question for each label, one after the other, over the same images, which are read only once. Each answer becomes a
    /// line of the text.
    async fn labels(
        &self,
        answering: &Answering<'_>,
        asks: Vec<(String, Asked)>,
    ) -> Result<Written, DecodeError> {
        let writer = answering.writer;
        let decoding = Decoding {
            alternatives: LABEL_ALTERNATIVES,
            ..decoding(&of_labels(answering.parameters))
        };
        let mut text = String::new();
        let mut labels = Vec::with_capacity(asks.len());
        let mut stored = Instant::now();
        let left = (1..=asks.len()).rev();
        for ((label, ask), left) in asks.into_iter().zip(left) {
            let request = answering.request(ask, decoding.clone(), left);
            let write = async {
                let mut stream = answering.engine.decode(request).await?;
                Ok::<_, DecodeError>(stream.collect().await?)
            };
            let (answer, done) = self.traced(writer.attempt, write).await?;
            let score = score(&label, &answer, &done.tokens, &done.alternatives)?;
            writer.append(&mut text, &line(&score)).await;
            if stored.elapsed() >= self.checkpoint_every {
                stored = Instant::now();
                if let Err(error) = writer.checkpoint(&text).await {
                    tracing::debug!(%error, "a checkpoint of the text was not stored");
                }
            }
            labels.push((score, done));
        }
        Ok(classified(text, labels))
    }

    /// Writes a text within a span of its own, and counts it. Numbers are `i64`: unsigned ones reach a collector as text.
    async fn traced<T>(
        &self,
        attempt: u32,
        write: impl Future<Output = Result<(T, Done), DecodeError>>,
    ) -> Result<(T, Done), DecodeError> {
        let model = &self.model.description().model;
        let span = tracing::debug_span!(
            "write text",
            otel.name = %format_args!("chat {model}"),
            gen_ai.operation.name = "chat",
            gen_ai.request.model = model,
            gen_ai.usage.input_tokens = field::Empty,
            gen_ai.usage.output_tokens = field::Empty,
            medfleet.attempt = i64::from(attempt),
        );
        let (text, done) = write.instrument(span.clone()).await?;
        span.record("gen_ai.usage.input_tokens", i64::from(done.prompt.tokens));
        span.record("gen_ai.usage.output_tokens", done.tokens.len() as i64);
        span.in_scope(|| self.count(&done));
        Ok((text, done))
    }

    fn count(&self, done: &Done) {
        self.metrics.prompt_tokens.inc_by(done.prompt.tokens.into());
        self.metrics.prefix_tokens.inc_by(done.prefix_tokens.into());
        self.metrics.preemptions.inc_by(done.preemptions.into());
        self.metrics.output_tokens.inc_by(done.steps.into());
        self.metrics.first_token_seconds.observe(
            done.time_to_first_token.as_secs_f64(),
            Exemplar::current(),
            None,
        );
        if done.steps > 1 {
            let each = done.decode.as_secs_f64() / f64::from(done.steps - 1);
            self.metrics.token_seconds.observe(each);
        }
    }
}

/// What is asked, and the images that it is asked about.
type Inputs = (StudyManifest, Gathered);

/// What a job's model said, and what exactly it was asked.
struct Answered<'a> {
    written: Written,
    decoding: v1::DecodingParameters,
    /// For the digest in the result.
    prompt: Vec<u8>,
    prompt_version: &'a str,
}

/// Has a model that compares images with texts (MedSigLIP) do the task; the labels are its only prompt.
async fn compare(
    (embedder, class): (&LoadedEmbedder, Class),
    study: &StudyManifest,
    gathered: &Gathered,
) -> Result<Answered<'static>, DecodeError> {
    let begun = Instant::now();
    let span = tracing::debug_span!(
        "compare",
        gen_ai.operation.name = "embeddings",
        gen_ai.request.model = %embedder.description().model,
    );
    let task = screened_task(study, &gathered.manifest)?;
    let (output, prompt, misread) = match compares(task)? {
        Compares::Nothing => (
            embeddings(embedder.embeddings(&gathered.images)?),
            Vec::new(),
            Vec::new(),
        ),
        Compares::Labels(labels) => {
            let found = embedder.compare(&gathered.images, labels.clone(), class);
            let found = found.instrument(span).await?;
            let prompt = labels.join("\0").into_bytes();
            (zero_shot(&labels, found.matches), prompt, found.misread)
        }
    };
    Ok(Answered {
        written: compared(output, misread, begun.elapsed()),
        decoding: v1::DecodingParameters::default(),
        prompt,
        prompt_version: "",
    })
}

/// What all questions of a job share.
struct Answering<'a> {
    engine: &'a DecodeEngine,
    writer: &'a Writer,
    images: &'a [ImageTokens],
    parameters: &'a v1::DecodingParameters,
    scope: Digest,
    unit: &'a WorkUnit,
    clock: &'a dyn Clock,
}

impl Answering<'_> {
    /// The request for a text; `texts` are still to be written for this unit, this one included.
    fn request(&self, ask: Asked, decoding: Decoding, texts: usize) -> DecodeRequest {
        DecodeRequest {
            prompt: ask.prompt,
            images: self.images.to_vec(),
            decoding: Decoding {
                constraint: ask.constraint,
                ..decoding
            },
            scope: self.scope,
            haste: haste(self.unit, self.clock.now(), texts),
        }
    }
}

impl Handler for Decode {
    const STAGE: Stage = Stage::Decode;

    const STAT_SLOTS: usize = STAT_SLOTS;

    type Inputs = Inputs;

    async fn read(&self, unit: &WorkUnit, record: &JobRecord) -> Result<Inputs, Ending> {
        Ok(self.inputs(&unit.key, record).await?)
    }

    async fn work(&self, started: &Started, inputs: Inputs) -> Result<(), Ending> {
        let result = self.write(started, inputs).await?;
        let attempt = started.attempt();
        started.advance(&Move::Complete { attempt, result }).await?;
        Ok(())
    }
}

/// Defaults are filled in at accept; what is still zero here takes the meaning that the contract gives it.
fn decoding(parameters: &v1::DecodingParameters) -> Decoding {
    let one = |value: f32| if value == 0.0 { 1.0 } else { value };
    Decoding {
        temperature: parameters.temperature,
        top_k: parameters.top_k,
        top_p: one(parameters.top_p),
        min_p: parameters.min_p,
        repetition_penalty: one(parameters.repetition_penalty),
        seed: parameters.seed,
        stop: parameters.stop.clone(),
        ..Decoding::greedy(parameters.max_tokens.max(1))
    }
}

/// A label is decided by the model's own probabilities, whatever a job says about sampling.
fn of_labels(parameters: &v1::DecodingParameters) -> v1::DecodingParameters {
    v1::DecodingParameters {
        max_tokens: LABEL_TOKENS_MAX,
        top_p: 1.0,
        repetition_penalty: 1.0,
        seed: parameters.seed,
        ..v1::DecodingParameters::default()
    }
}
