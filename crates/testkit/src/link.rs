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
}

/// A link between clients and a server.
#[derive(Debug)]
pub struct FaultyLink {
    address: SocketAddr,
    fault: watch::Sender<Fault>,
    /// Ends with the value.
    _tasks: JoinSet<()>,
}

impl FaultyLink {
    /// A link to a port of this machine.
    ///
    /// # Errors
    /// When no port is free.
    pub async fn to(port: u16) -> Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0))
            .await
            .context("bind the link")?;
        let address = listener.local_addr().context("the link's address")?;
        let (fault, faults) = watch::channel(Fault::None);
        let mut tasks = JoinSet::new();
        tasks.spawn(serve(listener, port, faults));
        Ok(Self {
            address,
            fault,
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
        self.fault.send_replace(Fault::Cut);
    }

    /// Delays everything by so much in each direction.
    pub fn delay(&self, by: Duration) {
        self.fault.send_replace(Fault::Delay(by));
    }

    /// Passes everything again.
    pub fn mend(&self) {
        self.fault.send_replace(Fault::None);
    }
}

async fn serve(listener: TcpListener, port: u16, faults: watch::Receiver<Fault>) {
    let mut connections = JoinSet::new();
    loop {
        let Ok((client, _)) = listener.accept().await else {
            return;
        };
        // Finished connections are let go of here, so that the set stays as small as what is open.
        while connections.try_join_next().is_some() {}
        if *faults.borrow() == Fault::Cut {
            continue;
        }
        let faults = faults.clone();
        connections.spawn(async move {
            let Ok(server) = TcpStream::connect(("127.0.0.1", port)).await else {
                return;
            };
            let (client_in, client_out) = client.into_split();
            let (server_in, server_out) = server.into_split();
            // Either direction's end closes both, as a broken cable would.
            tokio::select! {
                () = pass(client_in, server_out, faults.clone()) => {}
                () = pass(server_in, client_out, faults) => {}
            }
        });
    }
}

async fn pass(
    mut from: impl AsyncReadExt + Unpin,
    mut to: impl AsyncWriteExt + Unpin,
    mut faults: watch::Receiver<Fault>,
) {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let read = tokio::select! {
            read = from.read(&mut buffer) => read,
            () = cut(&mut faults) => return,
        };
        let count = match read {
            Ok(count) if count > 0 => count,
            _ => return,
        };
        let fault = *faults.borrow();
        if let Fault::Delay(by) = fault {
            tokio::time::sleep(by).await;
        }
        if to.write_all(&buffer[..count]).await.is_err() {
            return;
        }
    }
}

/// Returns when the link is cut, or gone.
async fn cut(faults: &mut watch::Receiver<Fault>) {
    // An error says that the link is gone.
    let _ = faults.wait_for(|fault| *fault == Fault::Cut).await;
}
