//! A hospital's edge: jobs are accepted here as anywhere, wait in the intake, and are handed on to the hub through its
//! public API when it is there; what comes back becomes our own record, events, text and result.
//!
//! One replica at a time does it, by the lease that a hub's dispatcher has. Each step can be repeated: two of them for a
//! moment do no harm. Nothing of this process's memory counts: a new leader finds everything in intake and records.
//!
//! Of a tenant whose images stay, the site's own stages make image tokens first: the dispatcher releases to them under the same
//! lease, and what then waits for a decode is handed on as tokens.
//!
//! Reading order: `plan` (what is made of the hub's answers), `uplink` with `tokens` (the hub), `parcel` (what is sent),
//! `offer` (there), `follow` (back), `session` (all jobs together).

mod follow;
mod offer;
mod parcel;
mod plan;
mod session;
mod tokens;
mod uplink;

use std::sync::Arc;
use std::time::Duration;

use medfleet_queue::{Lease, Queue};
use medfleet_runtime::exit::chain;
use medfleet_runtime::{Clock, Random, Shutdown};

use crate::Error;
use crate::blobs::Blobs;
use crate::config::EdgeConfig;
use crate::metrics::{EdgeFigures, Figures};
use crate::open::OpenJobs;
use crate::work::{Dispatcher, LEASE};
use plan::Trouble;
use session::Session;
use uplink::Uplink;

/// Pause before the lease is asked for again, and before a leader whose session broke begins another.
const AGAIN: Duration = Duration::from_millis(500);

/// What an edge needs besides the hub.
pub(crate) struct Parts {
    pub(crate) config: EdgeConfig,
    pub(crate) queue: Queue,
    pub(crate) blobs: Blobs,
    pub(crate) open: OpenJobs,
    /// Of the stages of this site, where images stay.
    pub(crate) dispatcher: Option<Dispatcher>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) random: Arc<dyn Random>,
    pub(crate) figures: Figures,
    pub(crate) shutdown: Shutdown,
    /// Tells this process from others.
    pub(crate) holder: String,
}

/// The edge.
pub(crate) struct Edge {
    config: EdgeConfig,
    queue: Queue,
    blobs: Blobs,
    open: OpenJobs,
    dispatcher: Option<Dispatcher>,
    clock: Arc<dyn Clock>,
    random: Arc<dyn Random>,
    figures: Figures,
    shutdown: Shutdown,
    holder: String,
    uplink: Uplink,
}

impl Edge {
    /// Reads the tokens and prepares the connection; the hub need not be there.
    ///
    /// # Errors
    /// When the tokens, the certificates or the address cannot be used.
    pub(crate) async fn open(parts: Parts) -> Result<Self, Error> {
        let uplink = Uplink::open(&parts.config, parts.figures.edge.clone()).await?;
        for tenant in parts.config.rules_without(&uplink.tokens.tenants()) {
            tracing::error!(
                tenant,
                "ingest.edge.tenants has a rule for a tenant that tokens_file has no token of; is its name right?"
            );
        }
        Ok(Self {
            config: parts.config,
            queue: parts.queue,
            blobs: parts.blobs,
            open: parts.open,
            dispatcher: parts.dispatcher,
            clock: parts.clock,
            random: parts.random,
            figures: parts.figures,
            shutdown: parts.shutdown,
            holder: parts.holder,
            uplink,
        })
    }

    /// Leads whenever the lease is free, until the shutdown.
    pub(crate) async fn run(self: Arc<Self>) {
        while !self.shutdown.has_begun() {
            match self.queue.try_lease(LEASE, &self.holder).await {
                Ok(Some(mut lease)) => {
                    self.figures.leader.set(1);
                    tracing::info!("this process hands jobs on to the hub");
                    let is_ours = self.lead(&mut lease).await;
                    self.figures.leader.set(0);
                    self.edge_figures().clear();
                    if self.dispatcher.is_some() {
                        self.figures.clear_backlog();
                    }
                    tracing::info!("this process hands jobs on no longer");
                    if is_ours && let Err(error) = lease.release().await {
                        tracing::debug!(error = chain(&error), "the lease ends by itself");
                    }
                }
                Ok(None) => {}
                Err(error) => {
                    tracing::debug!(error = chain(&error), "the lease could not be asked for");
                }
            }
            tokio::select! {
                () = tokio::time::sleep(AGAIN) => {}
                () = self.shutdown.begun() => {}
            }
        }
    }

    /// Leads until the lease is lost (false) or the shutdown begins (true).
    async fn lead(self: &Arc<Self>, lease: &mut Lease) -> bool {
        let sessions = async {
            loop {
                let Err(error) = Session::run(self).await else {
                    return;
                };
                tracing::warn!(error = chain(&error), "handing jobs on starts over");
                tokio::time::sleep(AGAIN).await;
            }
        };
        let dispatching = async {
            match &self.dispatcher {
                Some(dispatcher) => dispatcher.sessions().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = lease.hold() => false,
            () = sessions => true,
            () = dispatching => true,
            () = self.shutdown.begun() => true,
        }
    }

    fn edge_figures(&self) -> &EdgeFigures {
        &self.figures.edge
    }

    /// Waits after something was not done, the longer the more often.
    async fn wait_after(&self, trouble: &Trouble, tries: u32) {
        let range = (self.config.pause_least.get(), self.config.pause_most.get());
        let asked = match trouble {
            Trouble::Later(_, asked) => *asked,
            _ => None,
        };
        self.tell(trouble);
        let pause = plan::pause(range, tries, asked, self.random.next_u64());
        match asked {
            Some(_) => tokio::time::sleep(pause).await,
            None => self.uplink.rest(pause).await,
        }
    }

    fn tell(&self, trouble: &Trouble) {
        match trouble {
            Trouble::Here(refusal) => {
                tracing::warn!(error = chain(refusal), "a job waits for this side");
            }
            // That the hub is away, or a token unknown, was said once.
            Trouble::Later(why, asked) => {
                tracing::debug!(why, ?asked, "a job waits for the hub");
            }
            Trouble::Token => {}
            Trouble::Refused(why) => tracing::warn!(why, "the hub refused a call"),
            Trouble::NotThere | Trouble::Taken | Trouble::OtherState => {
                tracing::warn!("the hub answers in a way that was not expected");
            }
        }
    }
}
