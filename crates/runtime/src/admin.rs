//! The admin port of every service: `/metrics`, `/healthz` (alive), `/readyz` (ready), and what the program adds itself.
//! Plain HTTP, for the cluster only.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, X_CONTENT_TYPE_OPTIONS,
};
use axum::http::{Method, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use futures::future::BoxFuture;

use crate::{Health, Metrics};

/// Content type of the metrics text.
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Longest time that a page may take.
const PAGE_TIME_MAX: Duration = Duration::from_secs(10);
/// A page brings its own style and nothing else: no script, no picture, nothing from elsewhere.
const NOTHING_ELSE: &str = "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'";

/// What a page answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page {
    /// Such as `text/html; charset=utf-8`.
    pub content_type: &'static str,
    pub body: String,
}

type Make = Arc<dyn Fn() -> BoxFuture<'static, Page> + Send + Sync>;

/// Pages that a program adds to its admin port. All clones are one.
#[derive(Clone, Default)]
pub struct Pages {
    pages: Arc<Mutex<BTreeMap<&'static str, Make>>>,
}

impl fmt::Debug for Pages {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pages").finish_non_exhaustive()
    }
}

impl Pages {
    /// Adds a page, or replaces the one at this path. It is made anew at each call.
    pub fn add<F, Fut>(&self, path: &'static str, make: F)
    where
        F: Fn() -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Page> + Send + 'static,
    {
        let make: Make = Arc::new(move || Box::pin(make()));
        let mut pages = self.pages.lock().unwrap_or_else(PoisonError::into_inner);
        pages.insert(path, make);
    }

    fn find(&self, path: &str) -> Option<Make> {
        // A map changed in single steps: whole after a panic elsewhere.
        let pages = self.pages.lock().unwrap_or_else(PoisonError::into_inner);
        pages.get(path).map(Arc::clone)
    }
}

#[derive(Debug, Clone)]
struct Shared {
    metrics: Metrics,
    health: Health,
    pages: Pages,
}

/// Serves on a bound listener until the token is cancelled.
pub async fn serve(
    listener: TcpListener,
    metrics: Metrics,
    health: Health,
    pages: Pages,
    until: CancellationToken,
) -> std::io::Result<()> {
    let router = Router::new()
        .route("/metrics", get(metrics_text))
        .route("/healthz", get(alive))
        .route("/readyz", get(ready))
        .fallback(page)
        .with_state(Shared {
            metrics,
            health,
            pages,
        });
    let server = axum::serve(listener, router);
    // A scraper's kept-alive connection must not hold the process: it is cut, not drained.
    tokio::select! {
        ended = async { server.await } => ended,
        () = until.cancelled() => Ok(()),
    }
}

async fn metrics_text(State(shared): State<Shared>) -> Response {
    match shared.metrics.encode() {
        Ok(text) => ([(CONTENT_TYPE, OPEN_METRICS)], text).into_response(),
        Err(error) => {
            tracing::error!(%error, "metrics could not be written");
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
    }
}

async fn alive(State(shared): State<Shared>) -> Response {
    answer(&shared.health.dead(), "alive")
}

async fn ready(State(shared): State<Shared>) -> Response {
    answer(&shared.health.missing(), "ready")
}

async fn page(State(shared): State<Shared>, method: Method, uri: Uri) -> Response {
    let Some(make) = shared.pages.find(uri.path()) else {
        return StatusCode::NOT_FOUND.into_response();
    };
    if method != Method::GET {
        return StatusCode::METHOD_NOT_ALLOWED.into_response();
    }
    let Ok(page) = tokio::time::timeout(PAGE_TIME_MAX, make()).await else {
        return StatusCode::GATEWAY_TIMEOUT.into_response();
    };
    let headers = [
        (CONTENT_TYPE, page.content_type),
        (CONTENT_SECURITY_POLICY, NOTHING_ELSE),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (CACHE_CONTROL, "no-store"),
    ];
    (headers, page.body).into_response()
}

/// 200 with the good word, or 503 with one missing part per line.
fn answer(missing: &[String], good: &'static str) -> Response {
    if missing.is_empty() {
        good.into_response()
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, missing.join("\n")).into_response()
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;

    use super::*;

    async fn fetch(address: std::net::SocketAddr, path: &str) -> String {
        let mut stream = TcpStream::connect(address).await.expect("connects");
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.expect("writes");
        let mut text = String::new();
        stream.read_to_string(&mut text).await.expect("reads");
        text
    }

    #[tokio::test]
    async fn the_pages_answer() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
        let address = listener.local_addr().expect("has an address");
        let (metrics, health, until) = (Metrics::new(), Health::new(), CancellationToken::new());
        let nats = health.part("nats");
        let pages = Pages::default();
        pages.add("/status", || async {
            Page {
                content_type: "text/plain",
                body: "all is well".to_owned(),
            }
        });
        let server = serve(listener, metrics, health.clone(), pages, until.clone());
        let checks = async {
            let page = fetch(address, "/readyz").await;
            assert!(page.starts_with("HTTP/1.1 503"), "{page}");
            assert!(page.ends_with("\r\n\r\nnats"), "{page}");
            assert!(fetch(address, "/healthz").await.starts_with("HTTP/1.1 200"));
            nats.ready();
            assert!(fetch(address, "/readyz").await.starts_with("HTTP/1.1 200"));
            let page = fetch(address, "/metrics").await;
            assert!(
                page.contains("medfleet_process_resident_memory_bytes"),
                "{page}"
            );
            let page = fetch(address, "/status?x=1").await;
            assert!(page.contains("content-security-policy: default-src 'none'"));
            assert!(page.ends_with("\r\n\r\nall is well"), "{page}");
            assert!(fetch(address, "/else").await.starts_with("HTTP/1.1 404"));
            nats.dead();
            assert!(fetch(address, "/healthz").await.starts_with("HTTP/1.1 503"));
            until.cancel();
        };
        let (served, ()) = tokio::join!(server, checks);
        served.expect("serves until told to stop");
    }
}
