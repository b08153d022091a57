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
    /// A link to a port of this machine.
    ///
    /// # Errors
    /// When no port is free.
    pub async fn to(port: u16) -> Result<Self> {
        Self::to_address(SocketAddr::from(([127, 0, 0, 1], port))).await
    }

    /// A link to a server on any address.
    ///
    /// # Errors
    /// When no port is free.
    pub async fn to_address(server: SocketAddr) -> Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0))
            .await
            .context("bind the link")?;
        let address = listener.local_addr().context("the link's address")?;
        let (state, states) = watch::channel(State {
            fault: Fault::None,
            closed: 0,
        });
        let mut tasks = JoinSet::new();
        tasks.spawn(serve(listener, server, states));
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

async fn serve(listener: TcpListener, server: SocketAddr, states: watch::Receiver<State>) {
    let mut connections = JoinSet::new();
    loop {
        let Ok((client, _)) = listener.accept().await else {
            return;
        };
        // Finished connections are let go of here, so that the set stays as small as what is open.
        while connections.try_join_next().is_some() {}
        let opened = *states.borrow();
        if opened.fault == Fault::Cut {
            continue;
        }
        let states = states.clone();
        connections.spawn(async move {
            let Ok(server) = TcpStream::connect(server).await else {
                return;
            };
            let (client_in, client_out) = client.into_split();
            let (server_in, server_out) = server.into_split();
            let mut closed = states.clone();
            // Either direction's end closes both, as a broken cable would.
            tokio::select! {
                () = pass(client_in, server_out, (states.clone(), false)) => {}
                () = pass(server_in, client_out, (states, true)) => {}
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
    (mut states, is_answer): (watch::Receiver<State>, bool),
) {
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
    }
}
