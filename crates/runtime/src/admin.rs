//! The admin port of every service: `/metrics`, `/healthz` (alive), `/readyz` (ready). Plain HTTP, for the cluster only.

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::{Health, Metrics};

/// Content type of the metrics text.
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

#[derive(Debug, Clone)]
struct Shared {
    metrics: Metrics,
    health: Health,
}

/// Serves on a bound listener until the token is cancelled.
///
/// # Errors
/// When the listener fails.
pub async fn serve(
    listener: TcpListener,
    metrics: Metrics,
    health: Health,
    until: CancellationToken,
) -> std::io::Result<()> {
    let router = Router::new()
        .route("/metrics", get(metrics_text))
        .route("/healthz", get(alive))
        .route("/readyz", get(ready))
        .with_state(Shared { metrics, health });
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
    async fn the_three_pages_answer() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
        let address = listener.local_addr().expect("has an address");
        let (metrics, health, until) = (Metrics::new(), Health::new(), CancellationToken::new());
        let nats = health.part("nats");
        let server = serve(listener, metrics, health.clone(), until.clone());
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
            nats.dead();
            assert!(fetch(address, "/healthz").await.starts_with("HTTP/1.1 503"));
            until.cancel();
        };
        let (served, ()) = tokio::join!(server, checks);
        served.expect("serves until told to stop");
    }
}
