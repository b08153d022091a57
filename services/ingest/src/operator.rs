//! What operators may do: hold work back, let it go on, see what is held back, queue open jobs anew. What is held back the
//! dispatcher reads from the queue, so that it holds on every replica and through every change of the leader.

use futures::future::try_join_all;
use medfleet_core::{Class, JobKey, TenantId};
use medfleet_proto::v1::{self, operator_service_server::OperatorService};
use medfleet_proto::work::v1::AuditEntry;
use medfleet_queue::{PageStart, Pause, QueueError};
use tonic::Request;

use crate::accept::Acceptor;
use crate::calls::{Calls, Reply};
use crate::convert;
use crate::error::Refusal;
use crate::metrics::Method;
use crate::tokens::Caller;

/// Jobs that are queued anew at a time.
const REQUEUED_AT_ONCE: usize = 16;

/// `medfleet.v1.OperatorService`.
#[derive(Debug)]
pub(crate) struct Operator {
    pub(crate) calls: Calls,
    pub(crate) acceptor: Acceptor,
}

/// What is held back, or no more.
struct Scope {
    tenant: Option<TenantId>,
    class: Option<Class>,
}

#[tonic::async_trait]
impl OperatorService for Operator {
    async fn pause_work(
        &self,
        request: Request<v1::PauseWorkRequest>,
    ) -> Reply<v1::PauseWorkResponse> {
        let pause = async |caller: Caller, request: v1::PauseWorkRequest| {
            let scope = scope(&caller, &request.tenant, request.class)?;
            self.audit(&caller, "pause", &scope).await?;
            let pause = Pause {
                tenant: scope.tenant,
                class: scope.class,
                actor: caller.actor,
                at: self.acceptor.clock.now(),
            };
            let queue = &self.acceptor.queue;
            queue.put_pause(&pause).await?;
            // One that was there before stays as it was, with whoever paused it.
            let is_it = |held: &Pause| held.tenant == pause.tenant && held.class == pause.class;
            let held = queue.pauses().await?.into_iter().find(is_it);
            Ok(v1::PauseWorkResponse {
                pause: Some(convert::pause(&held.unwrap_or(pause))),
            })
        };
        self.calls.answer(Method::PauseWork, request, pause).await
    }

    async fn resume_work(
        &self,
        request: Request<v1::ResumeWorkRequest>,
    ) -> Reply<v1::ResumeWorkResponse> {
        let resume = async |caller: Caller, request: v1::ResumeWorkRequest| {
            let scope = scope(&caller, &request.tenant, request.class)?;
            self.audit(&caller, "resume", &scope).await?;
            let queue = &self.acceptor.queue;
            queue
                .remove_pause(scope.tenant.as_ref(), scope.class)
                .await?;
            Ok(v1::ResumeWorkResponse {})
        };
        self.calls.answer(Method::ResumeWork, request, resume).await
    }

    async fn list_pauses(
        &self,
        request: Request<v1::ListPausesRequest>,
    ) -> Reply<v1::ListPausesResponse> {
        let list = async |caller: Caller, _: v1::ListPausesRequest| {
            only_operators(&caller)?;
            let pauses = self.acceptor.queue.pauses().await?;
            Ok(v1::ListPausesResponse {
                pauses: pauses.iter().map(convert::pause).collect(),
            })
        };
        self.calls.answer(Method::ListPauses, request, list).await
    }

    async fn requeue_jobs(
        &self,
        request: Request<v1::RequeueJobsRequest>,
    ) -> Reply<v1::RequeueJobsResponse> {
        let requeue = async |caller: Caller, request: v1::RequeueJobsRequest| {
            self.requeue(&caller, &request).await
        };
        self.calls
            .answer(Method::RequeueJobs, request, requeue)
            .await
    }
}

impl Operator {
    /// One page of records.
    async fn requeue(
        &self,
        caller: &Caller,
        request: &v1::RequeueJobsRequest,
    ) -> Result<v1::RequeueJobsResponse, Refusal> {
        only_operators(caller)?;
        let tenant = tenant_named(&request.tenant)?;
        let from = match request.page_token.as_str() {
            "" => PageStart::default(),
            token => token.parse().map_err(|_| {
                Refusal::invalid("page_token", "the next_page_token of the page before")
            })?,
        };
        if request.page_token.is_empty() {
            let scope = Scope {
                tenant: tenant.clone(),
                class: None,
            };
            self.audit(caller, "requeue", &scope).await?;
        }
        let (records, next) = self.acceptor.queue.record_page(from).await?;
        let is_wanted = |key: &JobKey| tenant.as_ref().is_none_or(|tenant| key.tenant == *tenant);
        let open: Vec<_> = records
            .iter()
            .filter(|(key, record)| is_wanted(key) && !record.state.is_final())
            .collect();
        let mut queued_units = 0;
        for some in open.chunks(REQUEUED_AT_ONCE) {
            let requeued = some
                .iter()
                .map(|(key, record)| self.acceptor.requeue(key, record));
            queued_units += try_join_all(requeued).await?.iter().sum::<u32>();
        }
        Ok(v1::RequeueJobsResponse {
            open_jobs: u32::try_from(open.len()).unwrap_or(u32::MAX),
            queued_units,
            next_page_token: next.as_ref().map_or_else(String::new, PageStart::to_string),
        })
    }

    /// A line in the operator's own audit stream, and in that of the tenant that it is about.
    async fn audit(
        &self,
        caller: &Caller,
        action: &'static str,
        scope: &Scope,
    ) -> Result<(), QueueError> {
        let Acceptor { queue, clock, .. } = &self.acceptor;
        let entry = AuditEntry {
            time_unix_millis: clock.now().0,
            action: action.to_owned(),
            actor: caller.actor.clone(),
            scope: scope.to_string(),
            ..AuditEntry::default()
        };
        queue.audit(&caller.tenant, &entry).await?;
        match &scope.tenant {
            Some(tenant) if *tenant != caller.tenant => queue.audit(tenant, &entry).await,
            _ => Ok(()),
        }
    }
}

impl std::fmt::Display for Scope {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (&self.tenant, self.class) {
            (Some(tenant), Some(class)) => write!(f, "tenant {tenant}, class {class}"),
            (Some(tenant), None) => write!(f, "tenant {tenant}"),
            (None, Some(class)) => write!(f, "class {class}"),
            (None, None) => f.write_str("everything"),
        }
    }
}

fn only_operators(caller: &Caller) -> Result<(), Refusal> {
    match caller.is_operator {
        true => Ok(()),
        false => Err(Refusal::NotOperator),
    }
}

/// None for every tenant.
fn tenant_named(tenant: &str) -> Result<Option<TenantId>, Refusal> {
    match tenant {
        "" => Ok(None),
        tenant => TenantId::new(tenant)
            .map(Some)
            .map_err(|_| Refusal::invalid("tenant", "a tenant's name, or empty for every tenant")),
    }
}

/// Reads what a call is about.
fn scope(caller: &Caller, tenant: &str, class: i32) -> Result<Scope, Refusal> {
    only_operators(caller)?;
    let tenant = tenant_named(tenant)?;
    let class = match class {
        0 => None,
        class => Some(convert::class_from(class).ok_or_else(|| {
            let allowed = "one of CLASS_STAT, CLASS_URGENT, CLASS_ROUTINE, CLASS_BULK, or unspecified for all";
            Refusal::invalid("class", allowed)
        })?),
    };
    if tenant.is_none() && class.is_none() {
        return Err(Refusal::invalid("tenant", "needed where no class is named"));
    }
    Ok(Scope { tenant, class })
}
