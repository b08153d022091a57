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
    /// Passes so many more of those that clients send, on all connections together; then it is cut.
    CutAfter(u64),
    /// Passes them this much later, in each direction.
    Delay(Duration),
    /// Passes nothing and closes nothing: what a dead switch does.
    Stall,
    /// Passes what clients send and swallows what the server answers: its acknowledgements are lost.
    Deaf,
}

/// The fault of now, and how often connections were closed so far: a short cut is seen even by who looks after it.
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
    #[must_use]
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

    /// Whether it is cut.
    #[must_use]
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

/// Counts what was passed, and cuts the link when that was the last that it is to pass.
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
