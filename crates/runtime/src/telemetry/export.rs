//! Stands between the span processor and the exporter: adds the role that made a span, which the service name can't tell
//! when one process runs all roles, and reports once when the collector goes away and once when it is back.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use opentelemetry::KeyValue;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{SpanData, SpanExporter};

/// The attribute that names the role.
const ROLE: &str = "medfleet.role";
/// The attribute in which tracing puts a span's module path.
const TARGET: &str = "target";
/// Crates that are roles; spans of shared crates belong to whoever calls them.
const ROLES: [&str; 4] = ["ingest", "preprocess", "encode", "decode"];

/// An exporter with roles added and its state reported.
#[derive(Debug)]
pub(super) struct Supervised<E> {
    inner: E,
    away: AtomicBool,
}

impl<E> Supervised<E> {
    pub(super) fn new(inner: E) -> Self {
        Self {
            inner,
            away: AtomicBool::new(false),
        }
    }
}

impl<E: SpanExporter> SpanExporter for Supervised<E> {
    async fn export(&self, mut batch: Vec<SpanData>) -> OTelSdkResult {
        batch.iter_mut().for_each(add_role);
        let result = self.inner.export(batch).await;
        match &result {
            Ok(()) if self.away.swap(false, Ordering::Relaxed) => {
                tracing::info!("the trace collector is back");
            }
            Ok(()) => {}
            Err(error) if !self.away.swap(true, Ordering::Relaxed) => {
                tracing::warn!(%error, "the trace collector is away, spans are being lost");
            }
            Err(_) => {}
        }
        result
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.inner.shutdown_with_timeout(timeout)
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.inner.force_flush()
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.inner.set_resource(resource);
    }
}

fn add_role(span: &mut SpanData) {
    if span
        .attributes
        .iter()
        .any(|attribute| attribute.key.as_str() == ROLE)
    {
        return;
    }
    let target = span
        .attributes
        .iter()
        .find(|attribute| attribute.key.as_str() == TARGET);
    let role = target.and_then(|attribute| role_of(&attribute.value.as_str()));
    if let Some(role) = role {
        span.attributes.push(KeyValue::new(ROLE, role));
    }
}

/// `medfleet_encode::work` → `encode`.
fn role_of(target: &str) -> Option<&'static str> {
    let name = target.split("::").next()?.strip_prefix("medfleet_")?;
    ROLES.into_iter().find(|role| *role == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_role_is_the_service_crate() {
        let check =
            |target: &str, role: Option<&str>| assert_eq!(role_of(target), role, "{target}");
        check("medfleet_encode::work", Some("encode"));
        check("medfleet_ingest", Some("ingest"));
        check("medfleet_queue::pull", None);
        check("medfleet_encoder", None);
        check("encode", None);
    }
}
