//! Erasure of every job of a patient or a study: the tenant's records are looked through a part at a time, so that no call
//! lasts long, and whatever breaks, the same call again goes on.

use std::time::Duration;

use medfleet_core::{JobKey, JobRecord, JobState, PseudonymHash, PseudonymKind, chain};
use medfleet_proto::v1::{self, erase_jobs_request::Whose};
use medfleet_proto::work::v1::AuditEntry;
use medfleet_queue::QueueError;
use medfleet_store::Relied;
use tokio::time::Instant;

use super::remove;
use crate::accept::Acceptor;
use crate::error::Refusal;
use crate::pseudonym;
use crate::tokens::Caller;

/// Records that one call looks at; about as many KiB.
const LOOKED_MAX: usize = 10_000;
/// A call that has taken so long begins with no further job.
const LONG: Duration = Duration::from_secs(5);

/// Whose jobs are wanted.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Wanted {
    pub(crate) kind: PseudonymKind,
    pub(crate) hash: PseudonymHash,
    /// Whether they are only counted.
    pub(crate) count_only: bool,
}

impl Acceptor {
    /// Erases, or counts, a page of the jobs of a patient or a study.
    pub(crate) async fn erase_jobs(
        &self,
        caller: &Caller,
        request: &v1::EraseJobsRequest,
    ) -> Result<v1::EraseJobsResponse, Refusal> {
        let tenant = &caller.tenant;
        let wanted = self.wanted(caller, request)?;
        let after = match request.page_token.as_str() {
            "" => None,
            token => Some(
                self.keys
                    .read_erase_token(tenant, &wanted, token)
                    .ok_or_else(|| {
                        let allowed =
                            "the next_page_token of the same call with the same pseudonym";
                        Refusal::invalid("page_token", allowed)
                    })?,
            ),
        };
        if after.is_none() && !wanted.count_only {
            // Before anything goes, and also where nothing is found.
            self.audit_wish(caller, wanted.kind).await?;
        }
        let pseudonym = (wanted.kind, &wanted.hash);
        let found = self
            .queue
            .find_records(tenant, after.as_ref(), pseudonym, LOOKED_MAX)
            .await?;
        let begun = Instant::now();
        let mut relied = Relied::default();
        let mut answer = v1::EraseJobsResponse::default();
        let mut next = found.next;
        let mut left = found.jobs.len();
        for (job, record) in found.jobs {
            let key = JobKey::new(tenant.clone(), job);
            if wanted.count_only {
                count(&record, &mut answer);
            } else {
                let found = (&key, &record);
                self.erase_found(caller, found, &mut relied, &mut answer)
                    .await?;
            }
            left -= 1;
            if left > 0 && begun.elapsed() > LONG {
                next = Some(key.job);
                break;
            }
        }
        // Those after the place where the next call goes on are counted by it.
        let passed = found
            .unreadable
            .iter()
            .filter(|job| next.as_ref().is_none_or(|next| *job <= next));
        answer.jobs_unreadable = u32::try_from(passed.count()).unwrap_or(u32::MAX);
        answer.next_page_token = next.map_or_else(String::new, |last| {
            self.keys.erase_token(tenant, &wanted, &last)
        });
        Ok(answer)
    }

    /// Reads whose jobs a request is about.
    fn wanted(&self, caller: &Caller, request: &v1::EraseJobsRequest) -> Result<Wanted, Refusal> {
        let (kind, field, text) = match &request.whose {
            Some(Whose::PatientPseudonym(text)) => {
                (PseudonymKind::Patient, "patient_pseudonym", text)
            }
            Some(Whose::StudyPseudonym(text)) => (PseudonymKind::Study, "study_pseudonym", text),
            None => {
                let allowed = "needs the pseudonym of a patient or of a study";
                return Err(Refusal::invalid("whose", allowed));
            }
        };
        if let Some(violation) = pseudonym::violation(field, text) {
            return Err(Refusal::Invalid(vec![violation]));
        }
        Ok(Wanted {
            kind,
            hash: self.keys.pseudonym(&caller.tenant, kind, text),
            count_only: request.count_only,
        })
    }

    /// Erases one of them, or finishes its erasure. One that cannot be erased does not keep the others from it.
    async fn erase_found(
        &self,
        caller: &Caller,
        (key, found): (&JobKey, &JobRecord),
        relied: &mut Relied,
        answer: &mut v1::EraseJobsResponse,
    ) -> Result<(), Refusal> {
        let erased = match found.erased {
            // Whatever broke then is made good.
            Some(_) => remove(&self.queue, &self.blobs, (key, found), relied)
                .await
                .map(|erased| (found.clone(), erased)),
            None => self.erase(caller, key, relied).await,
        };
        match erased {
            Ok((record, erased)) => {
                let was_cancelled = !found.state.is_final() && record.state == JobState::Cancelled;
                answer.jobs_erased += u32::from(found.erased.is_none());
                answer.jobs_cancelled += u32::from(was_cancelled);
                answer.jobs_erased_before += u32::from(found.erased.is_some());
                answer.objects_removed += erased.deleted;
                answer.objects_shared += erased.kept;
                Ok(())
            }
            // Its time of keeping was over in between.
            Err(Refusal::NotFound { .. }) => Ok(()),
            Err(refusal) if ends_the_call(&refusal) => Err(refusal),
            Err(refusal) => {
                let error = chain(&refusal);
                tracing::error!(error, job = %key.job, "a job could not be erased");
                answer.jobs_failed += 1;
                Ok(())
            }
        }
    }

    /// A line in the tenant's audit stream that says what was asked for, and not whose jobs; those have lines of their own.
    async fn audit_wish(&self, caller: &Caller, kind: PseudonymKind) -> Result<(), QueueError> {
        let entry = AuditEntry {
            time_unix_millis: self.clock.now().0,
            action: "erase".to_owned(),
            actor: caller.actor.clone(),
            scope: format!("a {}", kind.as_str()),
            ..AuditEntry::default()
        };
        self.queue.audit(&caller.tenant, &entry).await
    }
}

/// What would be done to a job.
fn count(record: &JobRecord, answer: &mut v1::EraseJobsResponse) {
    let is_erased = record.erased.is_some();
    answer.jobs_erased_before += u32::from(is_erased);
    answer.jobs_erased += u32::from(!is_erased);
    answer.jobs_cancelled += u32::from(!record.state.is_final());
}

/// Whether the next job would fare no better now.
fn ends_the_call(refusal: &Refusal) -> bool {
    let is_passing = matches!(
        refusal,
        Refusal::Replayed | Refusal::Stopping | Refusal::Queue(QueueError::Closed)
    );
    is_passing || refusal.is_transient()
}

#[cfg(test)]
mod tests {
    use super::*;
    use medfleet_store::{BackendError, StoreError};

    #[test]
    fn trouble_that_passes_ends_the_call_and_a_defect_of_one_job_does_not() {
        let check = |refusal: Refusal, expected| assert_eq!(ends_the_call(&refusal), expected);
        check(Refusal::Queue(QueueError::Closed), true);
        check(Refusal::Queue(QueueError::Contended { tries: 1 }), true);
        check(
            Refusal::Store(StoreError::Backend(BackendError::Full)),
            true,
        );
        check(Refusal::Replayed, true);
        let reason = "state";
        let what = "a job record";
        check(
            Refusal::Queue(QueueError::Malformed { what, reason }),
            false,
        );
        check(Refusal::Broken { what: "a result" }, false);
    }
}
