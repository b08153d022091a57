//! The connections of the public API: so many at a time, and none that stays without a call. A socket that says nothing, or
//! does not come through the handshakes of TLS and HTTP/2, is closed in its time; after its first call the keep-alive of
//! HTTP/2 looks after a connection.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use futures::{Stream, StreamExt};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Sleep, sleep};
use tonic::transport::server::{Connected, TcpIncoming};

/// Pause after a connection could not be taken, such as for want of file descriptors: the next could not be taken either.
const AGAIN: Duration = Duration::from_millis(100);
/// Calls of one connection at a time that need no token: more than any tool makes, and than the clients of one proxy.
const UNNAMED_MAX: usize = 100;

/// How many connections there may be, and how long one may take to its first call.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ConnectionLimits {
    pub(crate) connections_max: usize,
    pub(crate) first_call_time_max: Duration,
}

/// The connections as they come. One too many is closed at once.
pub(crate) fn incoming(
    listener: TcpListener,
    limits: ConnectionLimits,
) -> impl Stream<Item = io::Result<Connection>> {
    let places = Arc::new(Semaphore::new(limits.connections_max));
    let mut is_full = false;
    // Streamed text comes in small pieces that must not wait for more.
    let accepted = TcpIncoming::from(listener).with_nodelay(Some(true));
    let accepted = accepted.then(|accepted| async move {
        if accepted.is_err() {
            sleep(AGAIN).await;
        }
        accepted
    });
    accepted.filter_map(move |accepted| {
        let taken = accepted.map(|stream| {
            let place = Arc::clone(&places).try_acquire_owned().ok();
            let was_full = std::mem::replace(&mut is_full, place.is_none());
            if is_full && !was_full {
                tracing::warn!(
                    connections_max = limits.connections_max,
                    "the public API has as many connections as ingest.limits.connections_max; new ones are closed"
                );
            }
            place.map(|place| Connection::new(stream, place, limits.first_call_time_max))
        });
        std::future::ready(taken.transpose())
    })
}

/// Whether a call has come by a connection, and how many of its calls may have no token; each of its calls finds it among its
/// extensions. Cheap to clone; all clones are one.
#[derive(Debug, Clone)]
pub(crate) struct Arrival {
    has_called: Arc<AtomicBool>,
    unnamed: Arc<Semaphore>,
}

impl Default for Arrival {
    fn default() -> Self {
        Self {
            has_called: Arc::default(),
            unnamed: Arc::new(Semaphore::new(UNNAMED_MAX)),
        }
    }
}

impl Arrival {
    /// A call has come.
    pub(crate) fn called(&self) {
        self.has_called.store(true, Ordering::Relaxed);
    }

    /// A place for a call whose caller has not said who that is, if there is one.
    pub(crate) fn take_unnamed(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.unnamed).try_acquire_owned().ok()
    }

    fn has_called(&self) -> bool {
        self.has_called.load(Ordering::Relaxed)
    }
}

/// A connection that is closed unless a call comes in time.
#[derive(Debug)]
pub(crate) struct Connection {
    stream: TcpStream,
    arrival: Arrival,
    /// Until the first call.
    late: Option<Pin<Box<Sleep>>>,
    /// Free again when the connection is dropped.
    _place: OwnedSemaphorePermit,
}

impl Connection {
    fn new(stream: TcpStream, place: OwnedSemaphorePermit, first_call_time_max: Duration) -> Self {
        Self {
            stream,
            arrival: Arrival::default(),
            late: Some(Box::pin(sleep(first_call_time_max))),
            _place: place,
        }
    }
}

impl Connected for Connection {
    type ConnectInfo = Arrival;

    fn connect_info(&self) -> Arrival {
        self.arrival.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.late.is_some() && self.arrival.has_called() {
            self.late = None;
        }
        // Before the read: who sends byte by byte is late all the same.
        if let Some(late) = &mut self.late
            && late.as_mut().poll(context).is_ready()
        {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    async fn listener() -> TcpListener {
        TcpListener::bind("127.0.0.1:0").await.expect("binds")
    }

    #[tokio::test]
    async fn a_connection_is_closed_unless_a_call_comes_in_time() {
        let listener = listener().await;
        let address = listener.local_addr().expect("bound");
        let limits = ConnectionLimits {
            connections_max: 2,
            first_call_time_max: Duration::from_millis(50),
        };
        let mut incoming = Box::pin(incoming(listener, limits));
        let mut caller = TcpStream::connect(address).await.expect("connects");
        let mut of_caller = incoming.next().await.expect("goes on").expect("accepted");
        of_caller.connect_info().called();
        let mut silent = TcpStream::connect(address).await.expect("connects");
        let mut of_silent = incoming.next().await.expect("goes on").expect("accepted");
        // What has come does not help: no call has.
        silent.write_all(b"PRI").await.expect("writes");
        let mut heard = Vec::new();
        let ended = of_silent.read_to_end(&mut heard).await;
        let error = ended.expect_err("no call came");
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        // The one before it is there, and is not waited for any more.
        let mut byte = [0];
        assert!(of_caller.read(&mut byte).now_or_never().is_none());
        caller.write_all(b"x").await.expect("writes");
        of_caller.read_exact(&mut byte).await.expect("reads");
        assert_eq!(&byte, b"x");
    }

    #[tokio::test]
    async fn one_too_many_is_closed_and_its_place_is_free_again() {
        let listener = listener().await;
        let address = listener.local_addr().expect("bound");
        let limits = ConnectionLimits {
            connections_max: 1,
            first_call_time_max: Duration::from_secs(600),
        };
        let mut incoming = Box::pin(incoming(listener, limits));
        let _first = TcpStream::connect(address).await.expect("connects");
        let taken = incoming.next().await.expect("goes on").expect("accepted");
        let mut second = TcpStream::connect(address).await.expect("connects");
        let mut heard = Vec::new();
        let closed = tokio::select! {
            closed = second.read_to_end(&mut heard) => closed,
            _ = incoming.next() => panic!("one too many was taken"),
        };
        assert!(matches!(closed, Ok(0)), "{closed:?}");
        drop(taken);
        let _third = TcpStream::connect(address).await.expect("connects");
        incoming.next().await.expect("goes on").expect("accepted");
    }
}
