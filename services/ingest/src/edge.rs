//! A hospital's edge: jobs are accepted here as anywhere, wait in the intake, and are handed on to the hub through its
//! public API when it is there; what comes back becomes our own record, events, text and result.
//!
//! One replica at a time does it, by the lease that a hub's dispatcher has. Each step can be repeated: two of them for a
//! moment do no harm. Nothing of this process's memory counts: a new leader finds everything in intake and records.
//!
//! Of a tenant whose images stay, the site's own stages make image tokens first: the dispatcher releases to them under the same
//! lease, and what then waits for a decode is handed on as tokens. So it does without any such rule, while jobs are open that
//! were begun under one.
//!
//! Reading order: `plan` (what is made of the hub's answers), `uplink` with `tokens` (the hub), `parcel` (what is sent),
//! `offer` (there), `follow` (back), `lane` (a tenant's jobs), `session` (all jobs together).

mod follow;
mod lane;
mod offer;
mod parcel;
mod plan;
mod session;
mod tokens;
mod uplink;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use medfleet_core::{JobKey, JobRecord, chain};
use medfleet_queue::Queue;
use medfleet_runtime::{Random, Shutdown, telemetry};
use tokio::sync::watch;

use crate::Error;
use crate::accept::TRACEPARENT;
use crate::blobs::Blobs;
use crate::clock::QueueClock;
use crate::config::EdgeConfig;
use crate::leader::{self, Leader};
use crate::metrics::{EdgeFigures, Figures};
use crate::open::OpenJobs;
use crate::work::Dispatcher;
use plan::Trouble;
use session::Session;
use uplink::Uplink;

/// Pause before the lease is asked for again.
const AGAIN: Duration = Duration::from_millis(500);

/// What an edge needs besides the hub.
pub(crate) struct Parts {
    pub(crate) config: EdgeConfig,
    pub(crate) queue: Queue,
    pub(crate) blobs: Blobs,
    pub(crate) open: OpenJobs,
    /// Of the stages of this site.
    pub(crate) dispatcher: Dispatcher,
    pub(crate) clock: QueueClock,
    pub(crate) random: Arc<dyn Random>,
    pub(crate) figures: Figures,
    pub(crate) shutdown: Shutdown,
    /// Tells this process from others.
    pub(crate) holder: String,
}

pub(crate) struct Edge {
    config: EdgeConfig,
    queue: Queue,
    blobs: Blobs,
    open: OpenJobs,
    dispatcher: Dispatcher,
    /// Whether stages of this site have something to do: by the rules, or for jobs that were begun here.
    works_here: watch::Sender<bool>,
    clock: QueueClock,
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
            works_here: watch::Sender::new(parts.config.encodes()),
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
        let leader = Leader {
            queue: self.queue.clone(),
            holder: self.holder.clone(),
            shutdown: self.shutdown.clone(),
            gauge: self.figures.leader.clone(),
            pause: AGAIN,
        };
        leader.run(|| self.lead(), || self.clear_figures()).await;
    }

    /// What a leader does: hands jobs on, and releases to the stages of this site, where it has any.
    async fn lead(self: &Arc<Self>) {
        let dispatching = async {
            let mut works_here = self.works_here.subscribe();
            // The sender lives as long as we do.
            if works_here.wait_for(|works| *works).await.is_ok() {
                self.dispatcher.sessions().await;
            }
        };
        let under_way = &Mutex::default();
        tokio::select! {
            () = leader::sessions(|| Session::run(self, under_way)) => {}
            () = dispatching => {}
        }
    }

    fn clear_figures(&self) {
        self.edge_figures().clear();
        self.figures.pauses.set(0);
        if self.works_here() {
            self.figures.clear_backlog();
        }
    }

    fn works_here(&self) -> bool {
        *self.works_here.borrow()
    }

    /// Jobs are open of which work was begun here, under a rule that no tenant has any more: they end as they were begun.
    fn work_on(&self, begun: u64) {
        tracing::warn!(
            jobs = begun,
            "no rule of ingest.edge says `tokens`, and jobs are open that were begun under one: they go on to the hub as tokens, and the preprocess and encode of this site must run until they have"
        );
        self.works_here.send_replace(true);
    }

    fn edge_figures(&self) -> &EdgeFigures {
        &self.figures.edge
    }

    /// The span of handing a job on, within the job's own trace.
    fn span(&self, key: &JobKey, record: &JobRecord) -> tracing::Span {
        let span = tracing::info_span!(
            "hand on to the hub",
            otel.kind = "client",
            medfleet.tenant = %key.tenant,
            medfleet.job = %key.job,
            class = record.class.as_str(),
        );
        telemetry::set_parent(&span, &[(TRACEPARENT, record.traceparent.as_str())]);
        span
    }

    /// Waits after something was not done for a job, the longer the more often.
    async fn wait_after(&self, key: &JobKey, trouble: &Trouble, tries: u32) {
        let range = (self.config.pause_least.get(), self.config.pause_most.get());
        let asked = plan::asked(trouble);
        self.tell(key, trouble);
        let pause = plan::pause(range, tries, asked, self.random.next_u64());
        match asked {
            Some(_) => tokio::time::sleep(pause).await,
            None => self.uplink.rest(pause).await,
        }
    }

    fn tell(&self, key: &JobKey, trouble: &Trouble) {
        let job = &key.job;
        match trouble {
            Trouble::Here(refusal) => {
                tracing::warn!(error = chain(refusal), %job, "a job waits for this side");
            }
            // That the hub is away, or a token unknown, was said once.
            Trouble::Later(why, asked) => {
                tracing::debug!(why, ?asked, %job, "a job waits for the hub");
            }
            Trouble::Defect => tracing::warn!(%job, "the hub has a defect; its log says more"),
            Trouble::Token | Trouble::Held | Trouble::Unsure | Trouble::Ended => {}
            Trouble::Refused(why) => tracing::warn!(why, %job, "the hub refused a call"),
            Trouble::NotThere | Trouble::Taken | Trouble::OtherState => {
                tracing::warn!(%job, "the hub answers in a way that was not expected");
            }
        }
    }
}
