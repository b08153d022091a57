//! The handlers of the jobs' API: translation only. Decisions are elsewhere.

use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use futures::{Stream, StreamExt};
use medfleet_core::{BlobKind, JobKey, JobRecord, JobState, Move, Refused};
use medfleet_proto::v1::{self, job_service_server::JobService};
use medfleet_queue::Applied;
use medfleet_store::Relied;
use prost::Message;
use tonic::{Request, Status, Streaming};

use crate::accept::Acceptor;
use crate::calls::{Calls, Reply, page_size};
use crate::convert;
use crate::erase::no_result;
use crate::error::Refusal;
use crate::metrics::Method;
use crate::places::Places;
use crate::tokens::Caller;
use crate::upload::Uploads;
use crate::watch::{Watch, Watching};

/// `medfleet.v1.JobService`.
#[derive(Debug)]
pub(crate) struct Jobs {
    pub(crate) calls: Calls,
    pub(crate) acceptor: Acceptor,
    pub(crate) uploads: Uploads,
    pub(crate) watching: Arc<Watching>,
    pub(crate) places: Places,
}

#[tonic::async_trait]
impl JobService for Jobs {
    async fn upload_input(
        &self,
        request: Request<Streaming<v1::UploadInputRequest>>,
    ) -> Reply<v1::UploadInputResponse> {
        self.calls
            .answer(Method::UploadInput, request, async |caller, messages| {
                let upload = self.uploads.take(caller.tenant, messages).await?;
                Ok(v1::UploadInputResponse {
                    upload: Some(upload),
                })
            })
            .await
    }

    async fn get_upload(
        &self,
        request: Request<v1::GetUploadRequest>,
    ) -> Reply<v1::GetUploadResponse> {
        self.calls
            .answer(Method::GetUpload, request, async |caller, request| {
                let upload = self.uploads.get(&caller.tenant, &request.name).await?;
                Ok(v1::GetUploadResponse {
                    upload: Some(upload),
                })
            })
            .await
    }

    async fn submit_job(
        &self,
        request: Request<v1::SubmitJobRequest>,
    ) -> Reply<v1::SubmitJobResponse> {
        self.calls
            .answer(Method::SubmitJob, request, async |caller, request| {
                let accepted = self.acceptor.accept(&caller, request).await?;
                let job = convert::job(&accepted.id, &accepted.record);
                Ok(v1::SubmitJobResponse {
                    job: Some(job),
                    already_accepted: accepted.already,
                })
            })
            .await
    }

    async fn get_job(&self, request: Request<v1::GetJobRequest>) -> Reply<v1::GetJobResponse> {
        self.calls
            .answer(Method::GetJob, request, async |caller, request| {
                let name = self.name_of(&caller, &request)?;
                let (key, record) = self.find(caller, &name).await?;
                Ok(v1::GetJobResponse {
                    job: Some(convert::job(&key.job, &record)),
                })
            })
            .await
    }

    async fn get_result(
        &self,
        request: Request<v1::GetResultRequest>,
    ) -> Reply<v1::GetResultResponse> {
        self.calls
            .answer(Method::GetResult, request, async |caller, request| {
                let actor = caller.actor.clone();
                let (key, record) = self.find(caller, &request.name).await?;
                let audit = self.acceptor.audit_read(&key, "read_result", &actor);
                let audit = async { Ok(audit.await?) };
                // Nothing leaves before the audit has it.
                let (result, ()) = tokio::try_join!(self.result(&key, &record), audit)?;
                Ok(v1::GetResultResponse {
                    result: Some(result),
                })
            })
            .await
    }

    async fn list_jobs(
        &self,
        request: Request<v1::ListJobsRequest>,
    ) -> Reply<v1::ListJobsResponse> {
        self.calls
            .answer(Method::ListJobs, request, async |caller, request| {
                self.list(caller, request).await
            })
            .await
    }

    type WatchJobStream = Pin<Box<dyn Stream<Item = Result<v1::WatchJobResponse, Status>> + Send>>;

    async fn watch_job(
        &self,
        request: Request<v1::WatchJobRequest>,
    ) -> Reply<Self::WatchJobStream> {
        self.calls
            .answer(Method::WatchJob, request, async |caller, request| {
                let place = self.places.take(&caller.tenant);
                let place = place.ok_or_else(|| Refusal::Busy {
                    what: "too many watches are open",
                    retry_after: self.acceptor.config.limits.retry_after.get(),
                })?;
                let key = JobKey::new(caller.tenant.clone(), convert::job_id(&request.name)?);
                let watching = Arc::clone(&self.watching);
                let of = (caller.clone(), key.clone());
                let watch = Watch::begin(watching, of, &request).await?;
                // Text leaves by this way too: not before the audit has it.
                let audit = self.acceptor.audit_read(&key, "watch", &caller.actor);
                watch.audit_once(audit).await?;
                let stream = watch.into_stream().map(move |response| {
                    let _held = &place;
                    response
                });
                let stream: Self::WatchJobStream = Box::pin(stream);
                Ok(stream)
            })
            .await
    }

    async fn cancel_job(
        &self,
        request: Request<v1::CancelJobRequest>,
    ) -> Reply<v1::CancelJobResponse> {
        self.calls
            .answer(Method::CancelJob, request, async |caller, request| {
                let record = self.cancel(&caller, &request.name).await?;
                let id = convert::job_id(&request.name)?;
                Ok(v1::CancelJobResponse {
                    job: Some(convert::job(&id, &record)),
                })
            })
            .await
    }

    async fn erase_job(
        &self,
        request: Request<v1::EraseJobRequest>,
    ) -> Reply<v1::EraseJobResponse> {
        self.calls
            .answer(Method::EraseJob, request, async |caller, request| {
                let (key, _) = self.find(caller.clone(), &request.name).await?;
                let mut relied = Relied::default();
                let (record, erased) = self.acceptor.erase(&caller, &key, &mut relied).await?;
                Ok(v1::EraseJobResponse {
                    job: Some(convert::job(&key.job, &record)),
                    objects_removed: erased.deleted,
                    objects_shared: erased.kept,
                })
            })
            .await
    }

    async fn erase_jobs(
        &self,
        request: Request<v1::EraseJobsRequest>,
    ) -> Reply<v1::EraseJobsResponse> {
        self.calls
            .answer(Method::EraseJobs, request, async |caller, request| {
                self.acceptor.erase_jobs(&caller, &request).await
            })
            .await
    }
}

impl Jobs {
    /// The name of the job that is asked for, also where its request id is.
    fn name_of(&self, caller: &Caller, request: &v1::GetJobRequest) -> Result<String, Refusal> {
        match (request.name.as_str(), request.request_id.as_str()) {
            (name, "") => Ok(name.to_owned()),
            ("", id) => {
                let job = self.acceptor.keys.job_id(&caller.tenant, id);
                Ok(convert::job_name(&job))
            }
            _ => Err(Refusal::invalid(
                "request_id",
                "must be empty where the name is given",
            )),
        }
    }

    async fn find(&self, caller: Caller, name: &str) -> Result<(JobKey, JobRecord), Refusal> {
        let key = JobKey::new(caller.tenant, convert::job_id(name)?);
        match self.acceptor.queue.record(&key).await? {
            Some((record, _)) => Ok((key, record)),
            None => Err(Refusal::NotFound { what: "job" }),
        }
    }

    async fn result(&self, key: &JobKey, record: &JobRecord) -> Result<v1::Result, Refusal> {
        let Some(digest) = record
            .result
            .filter(|_| record.state == JobState::Completed)
        else {
            return Err(no_result(record));
        };
        let bytes: Option<Bytes> = self
            .acceptor
            .blobs
            .get(&key.tenant, BlobKind::Result, &digest)
            .await?;
        let bytes = bytes.ok_or(Refusal::NotFound {
            what: "result any more",
        })?;
        v1::Result::decode(bytes).map_err(|_| Refusal::Broken { what: "a result" })
    }

    async fn list(
        &self,
        caller: Caller,
        request: v1::ListJobsRequest,
    ) -> Result<v1::ListJobsResponse, Refusal> {
        let tenant = caller.tenant;
        let size = page_size(request.page_size)?;
        let states = states(&request.states)?;
        let keys = &self.acceptor.keys;
        let after = match request.page_token.as_str() {
            "" => None,
            token => Some(
                keys.read_page_token(&tenant, &states, token)
                    .ok_or_else(|| {
                        Refusal::invalid(
                            "page_token",
                            "the next_page_token of the same list with the same states",
                        )
                    })?,
            ),
        };
        // One more than asked for tells whether there is another page.
        let mut found = self
            .acceptor
            .queue
            .list_records(&tenant, after.as_ref(), size + 1, &states)
            .await?;
        let is_last = found.len() <= size;
        found.truncate(size);
        let next_page_token = match found.last() {
            Some((last, _)) if !is_last => keys.page_token(&tenant, &states, last),
            _ => String::new(),
        };
        let jobs = found
            .iter()
            .map(|(id, record)| convert::job(id, record))
            .collect();
        Ok(v1::ListJobsResponse {
            jobs,
            next_page_token,
        })
    }

    async fn cancel(&self, caller: &Caller, name: &str) -> Result<JobRecord, Refusal> {
        // The audit says what was done to jobs: of names that are nobody's, or another tenant's, it would only grow.
        let (key, _) = self.find(caller.clone(), name).await?;
        let queue = &self.acceptor.queue;
        self.acceptor.audit_act(&key, "cancel", caller).await?;
        match queue
            .apply(&key, None, &Move::Cancel, self.acceptor.clock.now())
            .await?
        {
            Applied::Applied { record, .. } => {
                if let Err(error) = queue.publish_cancel(&key).await {
                    // Only a hint: the worker learns it from the record at its next heartbeat.
                    tracing::debug!(
                        error = medfleet_core::chain(&error),
                        "a cancel hint was lost"
                    );
                }
                Ok(record)
            }
            Applied::Refused {
                reason:
                    Refused::Final {
                        state: JobState::Cancelled,
                    },
                record,
            } => {
                // Whoever cancelled it may have come no further than the record.
                queue.publish_event(&key, &record).await?;
                Ok(record)
            }
            Applied::Refused { record, .. } | Applied::OtherEpoch { record } => {
                Err(Refusal::WrongState {
                    state: record.state,
                    wanted: "only one that has not ended can be cancelled",
                })
            }
            Applied::Missing => Err(Refusal::NotFound { what: "job" }),
        }
    }
}

fn states(numbers: &[i32]) -> Result<Vec<JobState>, Refusal> {
    let known = numbers
        .iter()
        .map(|number| convert::state_from(*number))
        .collect::<Option<Vec<_>>>();
    let mut states = known.ok_or_else(|| {
        let allowed = "JOB_STATE_ACCEPTED to JOB_STATE_FORWARDED, or empty for all";
        Refusal::invalid("states", allowed)
    })?;
    states.sort_unstable();
    states.dedup();
    Ok(states)
}
