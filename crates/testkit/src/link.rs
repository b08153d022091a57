//! A TCP link that a test can cut and mend: clients connect to it, it connects on to the real server.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

/// What the link does to bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    /// Passes them.
    None,
    /// Closes every connection and refuses new ones.
    Cut,
    /// Passes this many more bytes of what clients send, on all connections together; then it is cut.
    CutAfter(u64),
    /// Passes them this much later, in each direction.
    Delay(Duration),
    /// Passes nothing and closes nothing: what a dead switch does.
    Stall,
    /// Passes what clients send and swallows what the server answers: its acknowledgements are lost.
    Deaf,
}

/// The present fault, and how often connections were closed so far: a connection sees even a cut that was mended before it
/// looked.
#[derive(Debug, Clone, Copy)]
struct State {
    fault: Fault,
    closed: u64,
}

/// A link between clients and a server.
#[derive(Debug)]
pub struct FaultyLink {
    address: SocketAddr,
    state: watch::Sender<State>,
    /// Ends with the value.
    _tasks: JoinSet<()>,
}

impl FaultyLink {
    /// A link to a server.
    pub async fn to(server: SocketAddr) -> Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0))
            .await
            .context("bind the link")?;
        let address = listener.local_addr().context("the link's address")?;
        let (state, _) = watch::channel(State {
            fault: Fault::None,
            closed: 0,
        });
        let mut tasks = JoinSet::new();
        tasks.spawn(serve(listener, server, state.clone()));
        Ok(Self {
            address,
            state,
            _tasks: tasks,
        })
    }

    /// The address for NATS clients.
    pub fn nats_url(&self) -> String {
        format!("nats://{}", self.address)
    }

    /// Closes all connections, and every new one, until [`FaultyLink::mend`].
    pub fn cut(&self) {
        self.set(Fault::Cut, true);
    }

    /// Passes so many more bytes of what clients send, then closes all connections, and every new one, until
    /// [`FaultyLink::mend`]: a cut in the middle of something, however fast it goes.
    pub fn cut_after(&self, bytes: u64) {
        self.set(Fault::CutAfter(bytes), false);
    }

    pub fn is_cut(&self) -> bool {
        self.state.borrow().fault == Fault::Cut
    }

    /// Passes nothing in either direction, with every connection open, until [`FaultyLink::mend`].
    pub fn stall(&self) {
        self.set(Fault::Stall, false);
    }

    /// Swallows what the server says, so that its confirmations are lost for good. A stream with a hole in it is of no
    /// use to anyone: [`FaultyLink::mend`] after this closes the connections.
    pub fn lose_answers(&self) {
        self.set(Fault::Deaf, false);
    }

    /// Delays everything by so much in each direction.
    pub fn delay(&self, by: Duration) {
        self.set(Fault::Delay(by), false);
    }

    /// Passes everything again.
    pub fn mend(&self) {
        let has_hole = self.state.borrow().fault == Fault::Deaf;
        self.set(Fault::None, has_hole);
    }

    fn set(&self, fault: Fault, close: bool) {
        self.state.send_modify(|state| {
            state.fault = fault;
            state.closed += u64::from(close);
        });
    }
}

async fn serve(listener: TcpListener, server: SocketAddr, link: watch::Sender<State>) {
    let mut connections = JoinSet::new();
    loop {
        let Ok((client, _)) = listener.accept().await else {
            return;
        };
        // Finished connections are let go of here, so that the set stays as small as what is open.
        while connections.try_join_next().is_some() {}
        let opened = *link.borrow();
        if opened.fault == Fault::Cut {
            continue;
        }
        let link = link.clone();
        connections.spawn(async move {
            let Ok(server) = TcpStream::connect(server).await else {
                return;
            };
            let (client_in, client_out) = client.into_split();
            let (server_in, server_out) = server.into_split();
            let mut closed = link.subscribe();
            // Either direction's end closes both, as a broken cable would.
            tokio::select! {
                () = pass(client_in, server_out, &link, false) => {}
                () = pass(server_in, client_out, &link, true) => {}
                // An error says that the link is gone.
                _ = closed.wait_for(|state| state.closed != opened.closed) => {}
            }
        });
    }
}

/// Passes bytes in one direction; `is_answer` is the one from the server.
async fn pass(
    mut from: impl AsyncReadExt + Unpin,
    mut to: impl AsyncWriteExt + Unpin,
    link: &watch::Sender<State>,
    is_answer: bool,
) {
    let mut states = link.subscribe();
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let count = match from.read(&mut buffer).await {
            Ok(count) if count > 0 => count,
            _ => return,
        };
        let flowing = states.wait_for(|state| state.fault != Fault::Stall).await;
        let Ok(fault) = flowing.map(|state| state.fault) else {
            return;
        };
        match fault {
            Fault::Deaf if is_answer => continue,
            Fault::Delay(by) => tokio::time::sleep(by).await,
            _ => {}
        }
        if to.write_all(&buffer[..count]).await.is_err() {
            return;
        }
        if !is_answer {
            spend(link, count);
        }
    }
}

/// Counts the bytes passed, and cuts the link once [`Fault::CutAfter`] has none left.
fn spend(link: &watch::Sender<State>, count: usize) {
    link.send_if_modified(|state| {
        let Fault::CutAfter(left) = state.fault else {
            return false;
        };
        let left = left.saturating_sub(count as u64);
        let is_over = left == 0;
        state.fault = if is_over {
            Fault::Cut
        } else {
            Fault::CutAfter(left)
        };
        state.closed += u64::from(is_over);
        is_over
    });
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::*;

    /// Longest wait for anything that must come.
    const PATIENCE: Duration = Duration::from_secs(60);
    /// How long a test watches for something that must not come.
    const MOMENT: Duration = Duration::from_millis(200);
    /// Far more than lies in the buffers of sockets.
    const MUCH_BYTES: usize = 64 << 20;

    struct Ends {
        link: FaultyLink,
        listener: TcpListener,
        client: TcpStream,
        server: TcpStream,
    }

    async fn ends() -> Ends {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("binds");
        let address = listener.local_addr().expect("an address");
        let link = FaultyLink::to(address).await.expect("a link");
        let (client, server) = connect(&link, &listener).await;
        Ends {
            link,
            listener,
            client,
            server,
        }
    }

    /// Both ends of a new connection over a link.
    async fn connect(link: &FaultyLink, listener: &TcpListener) -> (TcpStream, TcpStream) {
        let client = TcpStream::connect(link.address).await.expect("connects");
        let accepted = tokio::time::timeout(PATIENCE, listener.accept()).await;
        let (server, _) = accepted.expect("in time").expect("accepts");
        (client, server)
    }

    /// The next byte that comes; none once the connection has ended, however it did.
    async fn next(end: &mut TcpStream) -> Option<u8> {
        let read = tokio::time::timeout(PATIENCE, end.read_u8()).await;
        read.expect("neither a byte nor an end").ok()
    }

    async fn passes(from: &mut TcpStream, to: &mut TcpStream) {
        from.write_u8(7).await.expect("writes");
        assert_eq!(next(to).await, Some(7));
    }

    #[tokio::test]
    async fn a_cut_ends_what_is_open_and_lets_nothing_through_until_it_is_mended() {
        let mut ends = ends().await;
        passes(&mut ends.client, &mut ends.server).await;
        passes(&mut ends.server, &mut ends.client).await;
        ends.link.cut();
        assert_eq!(next(&mut ends.client).await, None);
        assert_eq!(next(&mut ends.server).await, None);
        let refused = TcpStream::connect(ends.link.address).await;
        assert_eq!(next(&mut refused.expect("connects")).await, None);
        ends.link.mend();
        let (mut client, mut server) = connect(&ends.link, &ends.listener).await;
        passes(&mut client, &mut server).await;
        passes(&mut server, &mut client).await;
    }

    #[tokio::test]
    async fn it_is_cut_once_so_many_bytes_have_passed() {
        let mut ends = ends().await;
        ends.link.cut_after(3);
        ends.client.write_all(b"123").await.expect("writes");
        let mut passed = Vec::new();
        let ended = tokio::time::timeout(PATIENCE, ends.server.read_to_end(&mut passed)).await;
        ended.expect("it is not cut").expect("reads");
        assert_eq!(passed, b"123");
        assert!(ends.link.is_cut());
        assert_eq!(next(&mut ends.client).await, None);
    }

    #[tokio::test]
    async fn what_is_stalled_comes_late_and_over_the_same_connection() {
        let mut ends = ends().await;
        ends.link.stall();
        ends.client.write_u8(7).await.expect("writes");
        ends.server.write_u8(7).await.expect("writes");
        let early = tokio::time::timeout(MOMENT, ends.server.read_u8()).await;
        assert!(early.is_err(), "{early:?}");
        let early = tokio::time::timeout(MOMENT, ends.client.read_u8()).await;
        assert!(early.is_err(), "{early:?}");
        ends.link.mend();
        assert_eq!(next(&mut ends.server).await, Some(7));
        assert_eq!(next(&mut ends.client).await, Some(7));
    }

    #[tokio::test]
    async fn lost_answers_are_swallowed_and_what_clients_send_is_not() {
        let mut ends = ends().await;
        ends.link.lose_answers();
        passes(&mut ends.client, &mut ends.server).await;
        // Nobody reads them, and yet the server gets rid of them all.
        let answers = vec![1; MUCH_BYTES];
        let swallowed = tokio::time::timeout(PATIENCE, ends.server.write_all(&answers)).await;
        swallowed.expect("they are kept").expect("writes");
        passes(&mut ends.client, &mut ends.server).await;
        // With a hole in it, the connection is of no use any more.
        ends.link.mend();
        let mut passed = Vec::new();
        let ended = tokio::time::timeout(PATIENCE, ends.client.read_to_end(&mut passed)).await;
        assert!(ended.is_ok(), "it is still open");
        assert!(passed.len() < MUCH_BYTES / 2, "{} bytes", passed.len());
    }

    #[tokio::test]
    async fn a_slow_link_is_slow_in_each_direction() {
        let mut ends = ends().await;
        let by = Duration::from_millis(20);
        ends.link.delay(by);
        let begun = Instant::now();
        passes(&mut ends.client, &mut ends.server).await;
        passes(&mut ends.server, &mut ends.client).await;
        assert!(begun.elapsed() >= 2 * by, "{:?}", begun.elapsed());
    }
}
