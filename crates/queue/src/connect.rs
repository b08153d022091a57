//! Connecting: credentials, TLS, the oldest server that works, and errors that say what was tried.

use std::path::Path;
use std::time::Duration;

use async_nats::{Client, ConnectErrorKind, ConnectOptions};

use crate::api::{Api, repeatable};
use crate::link::{LinkEvents, link};
use crate::{ConnectError, QueueConfig, QueueError, Replicas};

/// The oldest server that works: per-subject discard, batched direct gets and pull behaviour are tested from here on.
pub const OLDEST_SERVER: &str = "2.12.0";

/// Longest pause between two tries to reconnect.
const RECONNECT_PAUSE_MAX: Duration = Duration::from_millis(500);
/// Pause added with every failed try.
const RECONNECT_PAUSE_STEP: Duration = Duration::from_millis(25);

/// A connection, what the server says of itself, and the end that tells the connection's watchers about it.
pub(crate) async fn connect(
    config: &QueueConfig,
) -> Result<(Api, String, LinkEvents), ConnectError> {
    config.check()?;
    let (events, link) = link();
    let options = options(config, events.clone()).await?;
    let tried = tried(config);
    let client = tokio::time::timeout(
        config.connect_timeout.get() * u32::try_from(config.urls.len()).unwrap_or(1),
        options.connect(config.urls.clone()),
    )
    .await
    .map_err(|_| ConnectError::Unreachable {
        tried: tried.clone(),
        reason: "timed out",
    })?
    .map_err(|error| translate(error.kind(), &tried))?;
    let version = client.server_info().version;
    if !is_at_least(&version, OLDEST_SERVER) {
        return Err(ConnectError::TooOld {
            found: version,
            needed: OLDEST_SERVER,
        });
    }
    let api = Api {
        client,
        link,
        timeout: config.request_timeout.get(),
        any_server_is_current: config.replicas == Replicas::One,
    };
    check_jetstream(&api, &tried).await?;
    Ok((api, version, events))
}

async fn options(config: &QueueConfig, events: LinkEvents) -> Result<ConnectOptions, ConnectError> {
    let mut options = ConnectOptions::new()
        .name("medfleet")
        .connection_timeout(config.connect_timeout.get())
        .request_timeout(Some(config.request_timeout.get()))
        .ping_interval(Duration::from_secs(10))
        .reconnect_delay_callback(reconnect_pause)
        .event_callback(move |event| {
            events.on(&event);
            std::future::ready(())
        });
    let tls = &config.tls;
    // Of one that cannot be read the library says that TLS failed.
    for (what, path) in [
        ("queue.tls.ca", &tls.ca),
        ("queue.tls.cert", &tls.cert),
        ("queue.tls.key", &tls.key),
    ] {
        if let Some(path) = path {
            let opened = tokio::fs::File::open(path).await;
            opened.map_err(|source| unreadable(what, path, source))?;
        }
    }
    if let Some(ca) = &tls.ca {
        options = options.add_root_certificates(ca.clone()).require_tls(true);
    }
    if let (Some(cert), Some(key)) = (&tls.cert, &tls.key) {
        options = options.add_client_certificate(cert.clone(), key.clone());
    }
    if let (Some(user), Some(password)) = (&config.user, &config.password) {
        options = options.user_and_password(user.clone(), password.expose().to_owned());
    }
    if let Some(token) = &config.token {
        options = options.token(token.expose().to_owned());
    }
    if let Some(path) = &config.credentials {
        options = options
            .credentials_file(path)
            .await
            .map_err(|source| unreadable("queue.credentials", path, source))?;
    }
    Ok(options)
}

fn unreadable(what: &'static str, path: &Path, source: std::io::Error) -> ConnectError {
    ConnectError::File {
        what,
        path: path.to_owned(),
        source,
    }
}

fn reconnect_pause(attempts: usize) -> Duration {
    let steps = u32::try_from(attempts).unwrap_or(u32::MAX);
    RECONNECT_PAUSE_STEP
        .saturating_mul(steps)
        .min(RECONNECT_PAUSE_MAX)
}

/// The addresses without user names and passwords.
fn tried(config: &QueueConfig) -> String {
    let shown = config.urls.iter().map(|url| {
        let (scheme, rest) = url.split_once("://").unwrap_or(("nats", url));
        let host = rest.rsplit('@').next().unwrap_or(rest);
        format!("{scheme}://{host}")
    });
    shown.collect::<Vec<_>>().join(", ")
}

fn translate(kind: ConnectErrorKind, tried: &str) -> ConnectError {
    let reason = match kind {
        ConnectErrorKind::Authentication | ConnectErrorKind::AuthorizationViolation => {
            return ConnectError::Unauthorised {
                tried: tried.to_owned(),
            };
        }
        ConnectErrorKind::ServerParse => "not an address",
        ConnectErrorKind::Dns => "the name does not resolve",
        ConnectErrorKind::TimedOut => "timed out",
        ConnectErrorKind::Tls => "TLS could not be set up with the files of queue.tls",
        ConnectErrorKind::Io | ConnectErrorKind::MaxReconnects => "connection refused or broken",
    };
    ConnectError::Unreachable {
        tried: tried.to_owned(),
        reason,
    }
}

async fn check_jetstream(api: &Api, tried: &str) -> Result<(), ConnectError> {
    let info = api
        .call::<serde::de::IgnoredAny>(
            repeatable("look for JetStream"),
            "INFO",
            &serde_json::json!({}),
        )
        .await;
    match info {
        Ok(_) => Ok(()),
        Err(QueueError::TimedOut { .. } | QueueError::Closed) => Err(ConnectError::Unreachable {
            tried: tried.to_owned(),
            reason: "connected, then no answer",
        }),
        Err(_) => Err(ConnectError::NoJetStream),
    }
}

/// Whether version `found` is at least `needed`; the part after a dash does not count. What is not a version is not.
pub(crate) fn is_at_least(found: &str, needed: &str) -> bool {
    fn numbers(text: &str) -> Option<[u32; 3]> {
        let core = text.trim_start_matches('v').split(['-', '+']).next()?;
        let mut parts = core.split('.').map(|part| part.parse().ok());
        Some([parts.next()??, parts.next()??, parts.next()??])
    }
    match (numbers(found), numbers(needed)) {
        (Some(found), Some(needed)) => found >= needed,
        _ => false,
    }
}

/// Sends what is still buffered and closes the connection.
pub(crate) async fn drain(client: &Client, limit: Duration) {
    let flushed = tokio::time::timeout(limit, client.flush()).await;
    if !matches!(flushed, Ok(Ok(()))) {
        // What may not be lost was confirmed on its own. A unit whose acknowledgement is lost here comes once more.
        tracing::debug!("the last hints and acknowledgements were not sent before closing");
    }
    if client.drain().await.is_err() {
        tracing::debug!("the connection was closed already");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::TlsConfig;

    #[test]
    fn versions_compare_by_number() {
        let check = |found: &str, good: bool| {
            assert_eq!(is_at_least(found, OLDEST_SERVER), good, "{found}");
        };
        check("2.12.0", true);
        check("2.12.0-RC.1", true);
        check("2.14.0", true);
        check("v3.0.0", true);
        check("2.9.10", false);
        check("2.11.99", false);
        check("unknown", false);
    }

    #[test]
    fn what_was_tried_shows_no_password() {
        let config = QueueConfig {
            urls: vec![
                "nats://me:hunter2@a:4222".to_owned(),
                "tls://b".to_owned(),
                "c:1".to_owned(),
            ],
            ..QueueConfig::default()
        };
        assert_eq!(tried(&config), "nats://a:4222, tls://b, nats://c:1");
    }

    #[tokio::test]
    async fn a_file_that_cannot_be_read_is_named_with_its_setting() {
        let check = async |config: QueueConfig, setting: &str| {
            let error = options(&config, link().0).await.err();
            let error = error.expect("there is no such file").to_string();
            assert_eq!(error, format!("{setting}: nowhere/tls.pem cannot be read"));
        };
        let nowhere = || Some("nowhere/tls.pem".into());
        let with = |tls| QueueConfig {
            tls,
            ..QueueConfig::default()
        };
        let ca = TlsConfig {
            ca: nowhere(),
            ..TlsConfig::default()
        };
        check(with(ca), "queue.tls.ca").await;
        let key = TlsConfig {
            key: nowhere(),
            ..TlsConfig::default()
        };
        check(with(key), "queue.tls.key").await;
        let config = QueueConfig {
            credentials: nowhere(),
            ..QueueConfig::default()
        };
        check(config, "queue.credentials").await;
    }

    #[test]
    fn reconnecting_gets_slower_up_to_a_limit() {
        assert_eq!(reconnect_pause(0), Duration::ZERO);
        assert_eq!(reconnect_pause(1_000_000), RECONNECT_PAUSE_MAX);
    }
}
