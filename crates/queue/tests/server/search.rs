//! Jobs are found by the pseudonyms in their records: page by page, of one tenant, and none is passed over in silence.

use anyhow::{Result, ensure};
use medfleet_core::{JobId, JobKey, PseudonymHash, PseudonymKind, Pseudonyms, TenantId};
use medfleet_queue::Queue;
use medfleet_testkit as kit;

use crate::start;

const PATIENT: PseudonymHash = PseudonymHash::new([1; 16]);
const OTHER: PseudonymHash = PseudonymHash::new([2; 16]);
const STUDY: PseudonymHash = PseudonymHash::new([3; 16]);

/// Stores a job of a patient in a study.
async fn job(queue: &Queue, seed: u8, patient: PseudonymHash) -> Result<JobId> {
    let (key, mut record) = kit::record(seed, 1);
    record.pseudonyms = Pseudonyms {
        patient: Some(patient),
        studies: vec![STUDY],
    };
    queue.create_record(&key, &record).await?;
    Ok(key.job)
}

/// The jobs found by looking at `looked_max` records at a time, and those that cannot be read.
async fn find(
    queue: &Queue,
    kind: PseudonymKind,
    hash: &PseudonymHash,
    looked_max: usize,
) -> Result<(Vec<JobId>, Vec<JobId>)> {
    let (mut jobs, mut unreadable, mut after) = (Vec::new(), Vec::new(), None);
    loop {
        let found = queue
            .find_records(&kit::tenant(), after.as_ref(), (kind, hash), looked_max)
            .await?;
        jobs.extend(found.jobs.into_iter().map(|(job, _)| job));
        unreadable.extend(found.unreadable);
        match found.next {
            Some(next) => after = Some(next),
            None => return Ok((jobs, unreadable)),
        }
    }
}

#[tokio::test]
async fn a_patients_jobs_are_found_page_by_page() -> Result<()> {
    let (_server, queue) = start().await?;
    let mut of_patient = Vec::new();
    for seed in 1..=5 {
        of_patient.push(job(&queue, seed, PATIENT).await?);
    }
    let other = job(&queue, 6, OTHER).await?;
    let (key, without) = kit::record(7, 1);
    queue.create_record(&key, &without).await?;
    // The same hash at another tenant's is another patient.
    let foreign = JobKey {
        tenant: TenantId::new("st-john")?,
        ..kit::record(1, 1).0
    };
    let mut record = kit::record(1, 1).1;
    record.pseudonyms.patient = Some(PATIENT);
    queue.create_record(&foreign, &record).await?;
    for looked_max in [1, 2, 100] {
        let (jobs, unreadable) = find(&queue, PseudonymKind::Patient, &PATIENT, looked_max).await?;
        ensure!(jobs == of_patient && unreadable.is_empty(), "{jobs:?}");
        let (jobs, _) = find(&queue, PseudonymKind::Patient, &OTHER, looked_max).await?;
        ensure!(jobs == [other.clone()], "{jobs:?}");
        let (jobs, _) = find(&queue, PseudonymKind::Study, &STUDY, looked_max).await?;
        ensure!(jobs.len() == 6, "{jobs:?}");
        let (jobs, _) = find(&queue, PseudonymKind::Study, &PATIENT, looked_max).await?;
        ensure!(jobs.is_empty(), "a patient was taken for a study: {jobs:?}");
    }
    Ok(())
}

#[tokio::test]
async fn a_record_of_a_later_release_is_named() -> Result<()> {
    let (server, queue) = start().await?;
    let known = job(&queue, 1, PATIENT).await?;
    let (key, _) = kit::record(2, 1);
    let client = async_nats::connect(server.url()).await?;
    let subject = format!("$KV.JOBS_0.{key}");
    // Field 1, the state: one that no release has yet.
    client.request(subject, vec![0x08_u8, 100].into()).await?;
    let (jobs, unreadable) = find(&queue, PseudonymKind::Patient, &PATIENT, 100).await?;
    ensure!(jobs == [known] && unreadable == [key.job], "{unreadable:?}");
    Ok(())
}
