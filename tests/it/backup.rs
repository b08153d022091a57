//! A backup that is put back: every job of that time is there, and goes on from where it stood.

use std::fs;

use anyhow::{Result, ensure};
use medfleet_proto::v1::Class;
use medfleet_tests::client::{is_encoded, pictures, refused};
use medfleet_tests::fleet::{Fleet, OPERATOR, Options, Role};

/// Stops all that still runs.
async fn stop_rest(fleet: &Fleet) -> Result<()> {
    for role in Role::ALL {
        if ![Role::Decode, Role::Preprocess].contains(&role) {
            fleet.stop_role(role).await?;
        }
    }
    fleet.kill_nats().await
}

/// The queues are left out of the copy: records and blobs are enough.
#[tokio::test(flavor = "multi_thread")]
async fn records_and_blobs_are_enough() -> Result<()> {
    let fleet = Fleet::start(Options::default()).await?;
    let operator = fleet.client(OPERATOR).await?;
    let (mary, john) = fleet.two_clients().await?;
    let job = |seed| pictures(&[seed]);
    let completed = mary.submit(job(1)?).await?;
    let completed = mary.wait_final(&completed.name).await?;
    // Jobs that stand before their last stage, and jobs that stand before their first: the pause alone holds those only from
    // the dispatcher's next look on.
    operator.pause("st-john", Class::Unspecified).await?;
    fleet.stop_role(Role::Decode).await?;
    let encoded = [mary.submit(job(4)?).await?, mary.submit(job(5)?).await?];
    for job in &encoded {
        mary.wait_for(&job.name, is_encoded).await?;
    }
    fleet.stop_role(Role::Preprocess).await?;
    let accepted = [john.submit(job(2)?).await?, john.submit(job(3)?).await?];
    stop_rest(&fleet).await?;
    let kept = tempfile::tempdir()?;
    fleet.back_up(kept.path()).await?;
    let mut left_out = 0;
    for stream in fs::read_dir(kept.path().join("queue/jetstream/$G/streams"))? {
        let stream = stream?;
        let name = stream.file_name().to_string_lossy().into_owned();
        if ["INTAKE", "WORK"]
            .iter()
            .any(|queue| name.starts_with(queue))
        {
            fs::remove_dir_all(stream.path())?;
            left_out += 1;
        }
    }
    ensure!(
        left_out == 6,
        "an intake and a work stream for each stage, found {left_out}"
    );

    fleet.put_back(kept.path()).await?;
    fleet.restart_nats().await?;
    for role in Role::ALL {
        fleet.start_role(role).await?;
    }
    let operator = fleet.client(OPERATOR).await?;
    let (mary, john) = fleet.two_clients().await?;
    ensure!(mary.get(&completed.name).await? == completed);
    operator.resume("st-john", Class::Unspecified).await?;
    refused(mary.requeue().await, tonic::Code::PermissionDenied)?;
    let open = u32::try_from(accepted.len() + encoded.len())?;
    // A unit whose answer is lost on a busy machine is asked for again, and then was queued already.
    let (jobs, queued) = operator.requeue().await?;
    ensure!(
        jobs == open && (1..=open).contains(&queued),
        "of {open} open jobs {jobs} were found and {queued} queued"
    );
    for (client, jobs) in [(&john, &accepted), (&mary, &encoded)] {
        for job in jobs {
            client.wait_completed(&job.name).await?;
        }
    }
    ensure!(operator.requeue().await? == (0, 0));
    Ok(())
}
