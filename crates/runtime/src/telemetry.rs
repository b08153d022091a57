//! Logs on stderr and traces over OTLP. A wrong setting stops start-up; an unreachable collector never stops a job. Trace ids
//! exist and travel also without a collector, so that a log line or an answer can always name its trace.
//!
//! Only spans of medfleet's own crates are exported, and none of their events, so that no contents leave this way. A span whose
//! id travels on, or whose fields log lines should carry, has level INFO; one inside it has level DEBUG. Without a collector a
//! span has only its ids and what log lines say of it.

mod export;
mod http;
mod ids;
mod lines;
mod propagation;

use std::time::Duration;

use medfleet_core::setting::DurationText;
use opentelemetry::KeyValue;
use opentelemetry::trace::TracerProvider as _;
use opentelemetry_otlp::tonic_types::transport::ClientTlsConfig;
use opentelemetry_otlp::{SpanExporter, WithExportConfig, WithTonicConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{
    BatchConfigBuilder, BatchSpanProcessor, Sampler, SdkTracer, SdkTracerProvider,
    TracerProviderBuilder,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tracing::{Dispatch, Metadata, Subscriber};
use tracing_opentelemetry::OpenTelemetryLayer;
use tracing_subscriber::filter::{FilterExt, LevelFilter, Targets, filter_fn};
use tracing_subscriber::fmt::writer::BoxMakeWriter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::{Layer, Registry};

use self::export::Supervised;
use self::http::HttpExporter;
use self::ids::Ids;
use self::lines::LineFields;
pub(crate) use self::propagation::recorded_trace_id;
pub use self::propagation::{follow, inject, is_recorded, set_parent, trace_id};

/// Every crate of ours begins with this, and so does the target of its spans.
const OURS: &str = "medfleet";
/// How often finished spans are sent.
const EXPORT_INTERVAL: Duration = Duration::from_secs(1);
/// Most spans waiting to be sent; beyond that new ones are dropped.
const WAITING_SPANS_MAX: usize = 8_192;

/// Form of the log lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// One JSON object a line.
    Json,
    /// For people.
    Text,
}

/// How spans are sent, by the names that `OTEL_EXPORTER_OTLP_PROTOCOL` has for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum OtlpProtocol {
    /// OTLP over gRPC; collectors take it on port 4317.
    #[serde(rename = "grpc")]
    Grpc,
    /// OTLP over HTTP/1.1, protobuf; collectors take it on port 4318.
    #[serde(rename = "http/protobuf")]
    Http,
}

/// Logs and traces.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct TelemetryConfig {
    /// `error`, `warn`, `info`, `debug` or `trace`, or a list such as `info,medfleet_queue=debug`.
    pub log: String,
    /// `json` or `text`.
    pub log_format: LogFormat,
    /// The collector, such as `http://collector:4317`, or `http://collector:4318` with `http/protobuf`, to which `/v1/traces`
    /// is added. Without it nothing is exported.
    pub otlp_endpoint: Option<String>,
    /// `grpc` or `http/protobuf`.
    pub otlp_protocol: OtlpProtocol,
    /// How long one export may take.
    pub otlp_timeout: DurationText,
}

impl Default for TelemetryConfig {
    fn default() -> Self {
        Self {
            log: "info".to_owned(),
            log_format: LogFormat::Json,
            otlp_endpoint: None,
            otlp_protocol: OtlpProtocol::Grpc,
            otlp_timeout: DurationText::from_secs(5),
        }
    }
}

/// Why telemetry can't start.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    #[error("process.telemetry.log is not a level or a list such as info,medfleet_queue=debug")]
    Log,
    #[error("process.telemetry.otlp_endpoint must begin with http:// or https:// and name a host")]
    Endpoint,
    #[error(
        "process.telemetry.otlp_endpoint must be the collector's address without /v1/traces, which is added to it"
    )]
    Path,
    #[error("process.telemetry.otlp_endpoint cannot be used")]
    Exporter(#[source] opentelemetry_otlp::ExporterBuildError),
    #[error("process.telemetry.otlp_endpoint cannot be called over HTTP")]
    Client(#[source] reqwest::Error),
    #[error("telemetry is already installed in this process")]
    Installed,
}

/// Logs and traces of a process: a subscriber and what must be flushed at the end.
#[derive(Debug, Clone)]
pub struct Telemetry {
    dispatch: Dispatch,
    /// Where spans are exported.
    provider: Option<SdkTracerProvider>,
}

impl Telemetry {
    /// Starts logging to stderr, and exporting when configured. Must be called inside a tokio runtime, which carries
    /// the connection. Nothing global changes until [`Telemetry::install`].
    ///
    /// # Errors
    /// [`TelemetryError`] for a wrong setting, never for a collector that is away.
    pub fn new(service: &'static str, config: &TelemetryConfig) -> Result<Self, TelemetryError> {
        Self::with_writer(service, config, BoxMakeWriter::new(std::io::stderr))
    }

    /// Like [`Telemetry::new`], with log lines going to `writer`.
    pub(crate) fn with_writer(
        service: &'static str,
        config: &TelemetryConfig,
        writer: BoxMakeWriter,
    ) -> Result<Self, TelemetryError> {
        let mut provider = None;
        if let Some(endpoint) = &config.otlp_endpoint {
            has_host(endpoint)?;
            let timeout = config.otlp_timeout.get();
            let builder =
                provider_builder(service).with_span_processor(match config.otlp_protocol {
                    OtlpProtocol::Grpc => in_batches(grpc_exporter(endpoint, timeout)?),
                    OtlpProtocol::Http => in_batches(HttpExporter::new(endpoint, timeout)?),
                });
            provider = Some(builder.build());
        }
        Self::assemble(config, writer, provider)
    }

    fn assemble(
        config: &TelemetryConfig,
        writer: BoxMakeWriter,
        provider: Option<SdkTracerProvider>,
    ) -> Result<Self, TelemetryError> {
        let filter = filter(&config.log)?;
        let lines = tracing_subscriber::fmt::layer()
            .with_writer(writer)
            .with_ansi(false);
        let fields = LineFields(config.log_format);
        let lines: Box<dyn Layer<Registry> + Send + Sync> = match config.log_format {
            LogFormat::Json => {
                let lines = lines.json().with_current_span(false);
                lines.fmt_fields(fields).boxed()
            }
            LogFormat::Text => lines.fmt_fields(fields).boxed(),
        };
        // A quiet log must not cut a trace in two.
        let dispatch = match &provider {
            Some(provider) => {
                let ours = filter_fn(|metadata| metadata.is_span() && is_ours(metadata));
                let ours = ours.with_max_level_hint(LevelFilter::TRACE);
                let lines = Layer::<Registry>::with_filter(lines, filter);
                let lines = tracing_subscriber::registry().with(lines);
                Dispatch::new(lines.with(exported(provider).with_filter(ours)))
            }
            // One filter for both: each looks at a span whenever it is entered and left.
            None => {
                let traced = filter_fn(ids::has_ids).with_max_level_hint(LevelFilter::INFO);
                let spans = Layer::<Registry>::and_then(Ids::default(), lines);
                let spans = spans.with_filter(filter.or(traced));
                Dispatch::new(tracing_subscriber::registry().with(spans))
            }
        };
        Ok(Self { dispatch, provider })
    }

    /// The subscriber, to run one test or one closure under.
    pub fn dispatch(&self) -> &Dispatch {
        &self.dispatch
    }

    /// Makes it the subscriber of the whole process. Once a process, from its main.
    pub fn install(&self) -> Result<(), TelemetryError> {
        tracing::dispatcher::set_global_default(self.dispatch.clone())
            .map_err(|_| TelemetryError::Installed)
    }

    /// Sends what is left and stops exporting. Takes at most `timeout`; spans that can't be sent are lost, with a warning.
    pub async fn shutdown(&self, timeout: Duration) {
        let Some(provider) = self.provider.clone() else {
            return;
        };
        let flush = tokio::task::spawn_blocking(move || provider.shutdown_with_timeout(timeout));
        match tokio::time::timeout(timeout, flush).await {
            Ok(Ok(Ok(()))) => {}
            Ok(Ok(Err(error))) => tracing::warn!(%error, "last spans were not exported"),
            Ok(Err(error)) => tracing::warn!(%error, "last spans were not exported"),
            Err(_) => tracing::warn!("last spans were not exported in time"),
        }
    }
}

/// What is logged, by level and module. The library's `EnvFilter`, which can also filter by span, takes a lock whenever a span is
/// entered or left.
fn filter(log: &str) -> Result<Targets, TelemetryError> {
    let mut targets = Targets::new();
    for part in log.split(',') {
        let (target, level) = match part.split_once('=') {
            Some((target, level)) => (Some(target.trim()), level.trim()),
            None => (None, part.trim()),
        };
        let is_path = |text: &str| {
            let is_part = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | ':' | '-');
            !text.is_empty() && text.chars().all(is_part)
        };
        // The library takes no text for a level, too.
        let level = Some(level).filter(|level| !level.is_empty());
        let level: Option<LevelFilter> = level.and_then(|level| level.parse().ok());
        targets = match (target, level) {
            (None, Some(level)) => targets.with_default(level),
            (Some(target), Some(level)) if is_path(target) => targets.with_target(target, level),
            _ => return Err(TelemetryError::Log),
        };
    }
    Ok(targets)
}

fn is_ours(metadata: &Metadata<'_>) -> bool {
    metadata.target().starts_with(OURS)
}

/// Builds spans for a collector out of ours.
fn exported<S>(provider: &SdkTracerProvider) -> OpenTelemetryLayer<S, SdkTracer>
where
    S: Subscriber + for<'lookup> LookupSpan<'lookup>,
{
    // Nothing of ours reads OpenTelemetry's own current context, which every poll of a traced future would set.
    tracing_opentelemetry::layer()
        .with_tracer(provider.tracer(OURS))
        .with_location(false)
        .with_threads(false)
        .with_level(false)
        .with_tracked_inactivity(false)
        .with_context_activation(false)
}

/// What begins here is recorded; what a caller has marked as not recorded goes on so.
fn provider_builder(service: &'static str) -> TracerProviderBuilder {
    let version = KeyValue::new("service.version", env!("CARGO_PKG_VERSION"));
    let resource = Resource::builder()
        .with_service_name(service)
        .with_attribute(version)
        .build();
    let sampler = Sampler::ParentBased(Box::new(Sampler::AlwaysOn));
    SdkTracerProvider::builder()
        .with_sampler(sampler)
        .with_resource(resource)
}

/// Sends spans from a thread of its own.
fn in_batches(
    exporter: impl opentelemetry_sdk::trace::SpanExporter + 'static,
) -> BatchSpanProcessor {
    let batches = BatchConfigBuilder::default()
        .with_scheduled_delay(EXPORT_INTERVAL)
        .with_max_queue_size(WAITING_SPANS_MAX);
    let processor = BatchSpanProcessor::builder(Supervised::new(exporter));
    processor.with_batch_config(batches.build()).build()
}

fn has_host(endpoint: &str) -> Result<(), TelemetryError> {
    let host = endpoint
        .strip_prefix("http://")
        .or_else(|| endpoint.strip_prefix("https://"));
    match host.is_none_or(|host| host.is_empty() || host.starts_with(['/', ':'])) {
        true => Err(TelemetryError::Endpoint),
        false => Ok(()),
    }
}

fn grpc_exporter(endpoint: &str, timeout: Duration) -> Result<SpanExporter, TelemetryError> {
    let mut builder = SpanExporter::builder()
        .with_tonic()
        .with_endpoint(endpoint)
        .with_timeout(timeout);
    if endpoint.starts_with("https://") {
        builder = builder.with_tls_config(ClientTlsConfig::new().with_enabled_roots());
    }
    builder.build().map_err(TelemetryError::Exporter)
}

#[cfg(test)]
mod tests;
