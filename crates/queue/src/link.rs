//! The state of the connection, as a value that waits can watch: how often it was lost, and whether it is up.
//! A request whose connection is lost while it waits fails at once instead of sitting out its time.

use async_nats::Event;
use tokio::sync::watch;

#[derive(Debug, Default)]
struct State {
    losses: u64,
    is_closed: bool,
}

/// A watcher of one connection.
#[derive(Debug, Clone)]
pub(crate) struct Link {
    state: watch::Receiver<State>,
}

/// The writing end, fed by the client's events.
#[derive(Debug, Clone)]
pub(crate) struct LinkEvents {
    state: watch::Sender<State>,
}

pub(crate) fn link() -> (LinkEvents, Link) {
    let (sender, receiver) = watch::channel(State::default());
    (LinkEvents { state: sender }, Link { state: receiver })
}

impl LinkEvents {
    pub(crate) fn on(&self, event: &Event) {
        match event {
            Event::Disconnected => {
                self.state.send_modify(|state| state.losses += 1);
                tracing::warn!("lost the connection to NATS; reconnecting");
            }
            Event::Closed => self.close(),
            Event::Connected => tracing::info!("connected to NATS"),
            Event::SlowConsumer(_) => {
                tracing::warn!("a subscription was too slow and lost messages");
            }
            // The client words its errors freely; at debug they cannot reach a production log by default.
            other => tracing::debug!(event = %other, "event of the NATS client"),
        }
    }

    /// Notes that the connection is given up on our side.
    pub(crate) fn close(&self) {
        self.state.send_modify(|state| state.is_closed = true);
    }
}

impl Link {
    /// Times the connection was lost so far.
    pub(crate) fn losses(&self) -> u64 {
        self.state.borrow().losses
    }

    /// Whether it was closed on our side and will not come back.
    pub(crate) fn is_closed(&self) -> bool {
        self.state.borrow().is_closed
    }

    /// Returns when the connection has been lost more often than `losses`.
    pub(crate) async fn lost_after(&self, losses: u64) {
        let mut watcher = self.state.clone();
        let lost = watcher.wait_for(|now| now.losses > losses || now.is_closed);
        if lost.await.is_err() {
            // The client is gone, and with it every event: the request's own limit decides.
            std::future::pending::<()>().await;
        }
    }
}
