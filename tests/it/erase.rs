//! An erased job leaves a record that says so and nothing else: no blob, no text, no way to start it over. So do all jobs of a
//! patient or a study, which are found by pseudonyms that are stored nowhere.

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use medfleet_proto::v1::{
    EraseJobsResponse, Job, JobState, SubmitJobRequest, erase_jobs_request::Whose,
};
use medfleet_testkit::wait_until;
use medfleet_tests::client::{Client, PATIENCE, inline, pictures, refused, report, uploaded};
use medfleet_tests::fleet::{Fleet, Options, Pace};
use medfleet_tests::picture;
use tonic::Code;

use crate::identifiers::phantom;

const PATIENT: &str = "7F3A90C2D41B6E58";
const NEIGHBOUR: &str = "0C55A1B2E3D49F70";
const STUDIES: [&str; 2] = [
    "2.25.329800735698586629295641978511506172918",
    "2.25.117003214500917722841556301887204451203",
];

/// What is stored for a tenant besides tombstones, lists of references, and the lists of tokens by chunk, which name nothing
/// that is left and no job.
fn contents(fleet: &Fleet) -> Result<Vec<String>> {
    let stored = fleet.stored("st-mary")?.into_iter();
    let is_content = |name: &String| {
        !["erased/", "refs/", "chunk/"]
            .iter()
            .any(|kind| name.starts_with(kind))
    };
    Ok(stored.filter(is_content).collect())
}

/// What every text of the simulated model begins with.
const TEXT: &[u8] = b"Findings:";

/// That the fleet has nothing to do any more, stores nothing of the tenant's, and has no text in its queue or its logs.
async fn nothing_is_left(fleet: &Fleet) -> Result<()> {
    fleet.wait_idle().await?;
    // A text that was on its way to the store when its job was erased sees there that it was, and goes.
    let gone = wait_until(PATIENCE, "nothing to be left", async || {
        contents(fleet).ok()?.is_empty().then_some(())
    });
    gone.await
        .with_context(|| format!("{:?}", contents(fleet)))?;
    let mut places = fleet.queue_files().await?;
    let logs = fleet.logs()?.into_iter();
    places.extend(logs.map(|log| (PathBuf::from("a log"), log.into_bytes())));
    for (place, bytes) in places {
        let has_text = bytes.windows(TEXT.len()).any(|window| window == TEXT);
        ensure!(!has_text, "a text is in {}", place.display());
    }
    Ok(())
}

/// A job that is being decoded, some of whose text is stored, and will be for minutes: it does not end by itself before a slow
/// test has it erased.
async fn being_decoded(request: SubmitJobRequest) -> Result<(Fleet, Client, Job)> {
    let fleet = Fleet::paced(Pace::writing(10_000)).await?;
    let client = fleet.client("st-mary").await?;
    let job = client.submit(request).await?;
    wait_until(PATIENCE, "some text to be stored", async || {
        let stored = fleet.stored("st-mary").ok()?;
        let mut texts = stored.iter().filter(|name| name.starts_with("text/"));
        texts.next().map(drop)
    })
    .await?;
    Ok((fleet, client, job))
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_of_an_erased_job_is_left_and_its_neighbour_keeps_what_they_share() -> Result<()> {
    let fleet = Fleet::start(Options::default()).await?;
    let client = fleet.client("st-mary").await?;
    let request = SubmitJobRequest {
        request_id: "accession-18".to_owned(),
        ..pictures(&[1, 2])?
    };
    let job = client.submit(request.clone()).await?;
    let neighbour = client.submit(pictures(&[1])?).await?;
    for job in [&job, &neighbour] {
        client.wait_completed(&job.name).await?;
    }
    let seen = client.watch_to_end(&job.name).await?;
    ensure!(seen.text.as_bytes().starts_with(TEXT), "{:?}", seen.text);
    let before = contents(&fleet)?.len();

    let erased = client.erase(&job.name).await?;
    let record = erased.job.context("the job is in the answer")?;
    ensure!(record.state() == JobState::Completed && record.erase_time.is_some());
    ensure!(erased.objects_removed > 0 && erased.objects_shared > 0);
    ensure!(contents(&fleet)?.len() < before);
    refused(client.result(&job.name).await, Code::FailedPrecondition)?;
    client.result(&neighbour.name).await?;
    // Whoever submits it again must not wait for a draft that cannot come.
    refused(client.submit(request).await, Code::FailedPrecondition)?;

    // Again is fine; another tenant's jobs do not exist.
    client.erase(&job.name).await?;
    let other = fleet.client("st-john").await?;
    refused(other.erase(&neighbour.name).await, Code::NotFound)?;

    client.erase(&neighbour.name).await?;
    nothing_is_left(&fleet).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_is_being_decoded_is_cancelled_and_leaves_nothing() -> Result<()> {
    let (fleet, client, job) = being_decoded(pictures(&[1])?).await?;
    let erased = client.erase(&job.name).await?;
    let record = erased.job.context("the job is in the answer")?;
    ensure!(record.state() == JobState::Cancelled && record.erase_time.is_some());
    nothing_is_left(&fleet).await
}

/// The files before and after the one that is refused have frames, and no manifest ever names them.
#[tokio::test(flavor = "multi_thread")]
async fn a_study_that_is_refused_half_way_leaves_no_frames() -> Result<()> {
    let fleet = Fleet::start(Options::default()).await?;
    let client = fleet.client("st-mary").await?;
    let deadly = picture::deadly();
    let inputs = vec![
        inline(picture::png(64, 1)?),
        uploaded(&client.upload(&deadly).await?),
        inline(picture::png(64, 2)?),
        inline(picture::png(64, 3)?),
    ];
    let job = client.submit(report(inputs)).await?;
    let refused = client.wait_final(&job.name).await?;
    ensure!(refused.state() == JobState::Failed, "{refused:?}");
    fleet.wait_idle().await?;
    client.erase(&job.name).await?;
    // What was on its way to the store when the file was refused sees there that the job was erased.
    let gone = wait_until(PATIENCE, "only the tombstone to be left", async || {
        let stored = fleet.stored("st-mary").ok()?;
        stored
            .iter()
            .all(|name| name.starts_with("erased/"))
            .then_some(())
    });
    gone.await
        .with_context(|| format!("{:?}", fleet.stored("st-mary")))
}

/// A report job of a patient in a study, over pictures of these seeds.
fn of(patient: &str, study: &str, seeds: &[u32]) -> Result<SubmitJobRequest> {
    Ok(SubmitJobRequest {
        patient_pseudonym: patient.to_owned(),
        study_pseudonyms: vec![study.to_owned()],
        ..pictures(seeds)?
    })
}

async fn completed(client: &Client, request: SubmitJobRequest) -> Result<Job> {
    let job = client.submit(request).await?;
    client.wait_completed(&job.name).await
}

fn patient(pseudonym: &str) -> Whose {
    Whose::PatientPseudonym(pseudonym.to_owned())
}

fn study(pseudonym: &str) -> Whose {
    Whose::StudyPseudonym(pseudonym.to_owned())
}

/// What an erasure says of jobs: erased, cancelled for it, erased before; and that nothing was left undone.
fn jobs(done: &EraseJobsResponse) -> Result<(u32, u32, u32)> {
    let undone = done.jobs_failed + done.jobs_unreadable;
    ensure!(undone == 0, "{done:?}");
    Ok((
        done.jobs_erased,
        done.jobs_cancelled,
        done.jobs_erased_before,
    ))
}

/// That these jobs say that they were erased, and that nothing is referenced for them.
async fn are_gone(fleet: &Fleet, client: &Client, jobs: &[&Job]) -> Result<()> {
    for job in jobs {
        let now = client.get(&job.name).await?;
        ensure!(now.erase_time.is_some(), "{now:?}");
        let references = job.name.replace("jobs/", "refs/");
        let stored = fleet.stored("st-mary")?;
        let left = stored.iter().find(|name| name.starts_with(&references));
        ensure!(left.is_none(), "{left:?}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_study_goes_and_then_its_patient_and_the_neighbour_stays() -> Result<()> {
    let fleet = Fleet::start(Options {
        talkative: true,
        ..Options::default()
    })
    .await?;
    let (client, other) = fleet.two_clients().await?;
    let neighbour = completed(&client, of(NEIGHBOUR, "a-study-of-the-neighbour", &[9])?).await?;
    // The same pseudonyms at another tenant's are another patient.
    let foreign = completed(&other, of(PATIENT, STUDIES[0], &[1])?).await?;
    fleet.wait_idle().await?;
    let (of_neighbour, of_other) = (contents(&fleet)?, fleet.stored("st-john")?);

    let first = completed(&client, of(PATIENT, STUDIES[0], &[1, 2])?).await?;
    let second = completed(&client, of(PATIENT, STUDIES[0], &[2])?).await?;
    let third = completed(&client, of(PATIENT, STUDIES[1], &[2, 3])?).await?;
    fleet.wait_idle().await?;
    let before = contents(&fleet)?;
    let counted = client.erase_jobs(&study(STUDIES[0]), true).await?;
    ensure!(jobs(&counted)? == (2, 0, 0), "{counted:?}");
    ensure!(contents(&fleet)? == before, "counting removes something");

    let erased = client.erase_jobs(&study(STUDIES[0]), false).await?;
    ensure!(jobs(&erased)? == (2, 0, 0), "{erased:?}");
    let (removed, shared) = (erased.objects_removed, erased.objects_shared);
    ensure!(removed > 0 && shared > 0, "{erased:?}");
    are_gone(&fleet, &client, &[&first, &second]).await?;
    client.result(&third.name).await?;

    let erased = client.erase_jobs(&patient(PATIENT), false).await?;
    ensure!(jobs(&erased)? == (1, 0, 2), "{erased:?}");
    are_gone(&fleet, &client, &[&first, &second, &third]).await?;
    let left = contents(&fleet)?;
    ensure!(left == of_neighbour, "{left:?}, not {of_neighbour:?}");
    client.result(&neighbour.name).await?;
    other.result(&foreign.name).await?;
    ensure!(fleet.stored("st-john")? == of_other, "another tenant's");

    let again = client.erase_jobs(&patient(PATIENT), false).await?;
    ensure!(jobs(&again)? == (0, 0, 3), "{again:?}");
    said_nowhere(&fleet).await?;
    fleet.wait_idle().await
}

/// Neither the queue, whose server logs every payload, nor a log nor a blob holds a pseudonym.
async fn said_nowhere(fleet: &Fleet) -> Result<()> {
    let mut places = fleet.queue_files().await?;
    let payloads = |bytes: &[u8]| bytes.windows(11).any(|window| window == b"MSG_PAYLOAD");
    ensure!(
        places.iter().any(|(_, bytes)| payloads(bytes)),
        "nats-server logs no payloads"
    );
    let logs = fleet.logs()?.into_iter();
    places.extend(logs.map(|log| (PathBuf::from("a log"), log.into_bytes())));
    for kind in ["study", "frames", "result"] {
        let blobs = fleet.blobs_of("st-mary", kind)?.into_iter();
        places.extend(blobs.map(|blob| (PathBuf::from(kind), blob)));
    }
    for (place, bytes) in places {
        for secret in [PATIENT, NEIGHBOUR, STUDIES[0], STUDIES[1]] {
            let secret = secret.as_bytes();
            let found = bytes.windows(secret.len()).any(|window| window == secret);
            ensure!(!found, "a pseudonym is in {}", place.display());
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_patients_job_that_is_being_decoded_is_cancelled_and_leaves_nothing() -> Result<()> {
    let request = of(PATIENT, STUDIES[0], &[1])?;
    let (fleet, client, job) = being_decoded(request).await?;
    let erased = client.erase_jobs(&patient(PATIENT), false).await?;
    ensure!(jobs(&erased)? == (1, 1, 0), "{erased:?}");
    let job = client.get(&job.name).await?;
    ensure!(
        job.state() == JobState::Cancelled && job.erase_time.is_some(),
        "{job:?}"
    );
    nothing_is_left(&fleet).await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_pseudonym_is_refused_and_not_repeated() -> Result<()> {
    let fleet = Fleet::start(Options::default()).await?;
    let client = fleet.client("st-mary").await?;
    for (index, answer) in [
        client.submit(of("PID-4711", STUDIES[0], &[1])?).await.err(),
        client
            .submit(of(PATIENT, "1.2.999.4711.4711.1", &[1])?)
            .await
            .err(),
        client.erase_jobs(&patient("PID-4711"), false).await.err(),
        client
            .erase_jobs(&study("1.2.999.4711.4711.1"), false)
            .await
            .err(),
        client.erase_jobs(&study(""), true).await.err(),
    ]
    .into_iter()
    .enumerate()
    {
        let refused = refused(answer.map_or(Ok(()), Err), Code::InvalidArgument);
        let refused = refused.with_context(|| format!("call {index}"))?;
        ensure!(!refused.message().contains("4711"), "{refused:?}");
    }
    // The same request of another patient is another request.
    let request_id = "reading-room-1".to_owned();
    let one = SubmitJobRequest {
        request_id,
        ..of(PATIENT, STUDIES[0], &[1])?
    };
    let job = client.submit(one.clone()).await?;
    ensure!(
        client.submit(one.clone()).await?.name == job.name,
        "another job"
    );
    let other = SubmitJobRequest {
        patient_pseudonym: NEIGHBOUR.to_owned(),
        ..one
    };
    refused(client.submit(other).await, Code::AlreadyExists)?;
    Ok(())
}

/// The exit code and what was said on stdout.
async fn medfleet(fleet: &Fleet, arguments: &[&str]) -> Result<(Option<i32>, String)> {
    let output = fleet.command("st-mary", arguments).await?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    Ok((output.status.code(), said))
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_line_makes_pseudonyms_of_headers_and_erases_by_a_file() -> Result<()> {
    let fleet = Fleet::start(Options::default()).await?;
    let folder = tempfile::tempdir()?;
    let path = |name: &str| folder.path().join(name).to_string_lossy().into_owned();
    std::fs::write(path("key"), "5a".repeat(32))?;
    let image = path("image.dcm");
    let image = image.as_str();
    std::fs::write(image, phantom(folder.path()).await?)?;

    let key = path("key");
    let with_key = ["--patient-key-file", key.as_str()];
    let submit = ["submit", image, "--task", "report", "--no-wait"];
    let (code, said) = medfleet(&fleet, &[&submit[..], &with_key[..]].concat()).await?;
    ensure!(code == Some(0), "{said}");
    let client = fleet.client("st-mary").await?;
    let job = said.trim();
    client.wait_final(job).await?;

    let erase = ["erase", "--dicom", image, "--of", "patient", "--json"];
    let erase = [&erase[..], &with_key[..]].concat();
    let (code, said) = medfleet(&fleet, &erase).await?;
    ensure!(
        code == Some(2) && said.contains("\"jobs_erased\":1"),
        "{code:?} {said}"
    );
    let (code, said) = medfleet(&fleet, &[&erase[..], &["--yes"][..]].concat()).await?;
    ensure!(
        code == Some(0) && said.contains("\"jobs_erased\":1"),
        "{code:?} {said}"
    );
    let (code, said) = medfleet(&fleet, &erase).await?;
    ensure!(
        code == Some(0) && said.contains("\"jobs_erased_before\":1"),
        "{code:?} {said}"
    );
    // There is no draft to show any more, and that is no failure.
    let (code, said) = medfleet(&fleet, &["get", job]).await?;
    ensure!(
        code == Some(0) && said.contains("COMPLETED") && said.contains("\nerased"),
        "{code:?} {said}"
    );
    // Of several jobs, one that is not there is named, and the others go.
    let unknown = format!("jobs/{}", "0".repeat(32));
    let refused = fleet.command("st-mary", &["erase", &unknown, job]).await?;
    let told = String::from_utf8_lossy(&refused.stderr);
    let done = String::from_utf8_lossy(&refused.stdout);
    ensure!(
        refused.status.code() == Some(1) && told.contains(&unknown) && done.contains(job),
        "{refused:?}"
    );
    nothing_is_left(&fleet).await
}
