//! What every earlier release left behind is read by this one and goes on from where it stood.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, bail, ensure};
use medfleet_core::JobKey;
use medfleet_proto::v1::{self, Class, JobState, result::Output};
use medfleet_queue::{Queue, Revision};
use medfleet_tests::client::{Client, report, uploaded};
use medfleet_tests::fleet::{Fleet, OPERATOR, Pace, Role};
use medfleet_tests::upgrade::left::{Left, LeftJob, answer, file, options, request};

/// A fleet of this release on what an earlier one left behind.
struct Heir<'a> {
    left: &'a Left,
    fleet: Fleet,
    queue: Queue,
    clients: BTreeMap<&'a str, Client>,
}

#[tokio::test(flavor = "multi_thread")]
async fn what_earlier_releases_left_behind_goes_on() -> Result<()> {
    let all = Left::all()?;
    ensure!(
        !all.is_empty(),
        "tests/reference/upgrade is empty: its README.md says how it is filled"
    );
    for left in &all {
        let went_on = goes_on(left).await;
        went_on.with_context(|| format!("what release {} left behind", left.release))?;
    }
    Ok(())
}

async fn goes_on(left: &Left) -> Result<()> {
    let states: BTreeSet<&str> = left.jobs.iter().map(|job| job.state.as_str()).collect();
    ensure!(states.len() == 9, "a job in every state: {states:?}");
    let mut heir = Heir::inherit(left).await?;
    let before = heir.ended_records().await?;
    heir.start().await?;
    heir.every_ended_job_says_the_same().await?;
    heir.every_open_job_completes().await?;
    ensure!(
        heir.ended_records().await? == before,
        "the record of an ended job was written anew"
    );
    heir.requests_and_letters_are_known().await?;
    heir.the_upload_goes_on().await
}

impl<'a> Heir<'a> {
    /// Puts the files in the place of those of a fleet that has just begun. Of it only nats-server runs afterwards.
    async fn inherit(left: &'a Left) -> Result<Self> {
        let fleet = Fleet::start(options(Pace::default())).await?;
        for role in Role::ALL {
            fleet.stop_role(role).await?;
        }
        fleet.kill_nats().await?;
        let files = tempfile::tempdir()?;
        left.unpack(files.path())?;
        fleet.put_back(files.path()).await?;
        fleet.restart_nats().await?;
        Ok(Self {
            left,
            queue: fleet.queue().await?,
            fleet,
            clients: BTreeMap::new(),
        })
    }

    /// Starts the services on it.
    async fn start(&mut self) -> Result<()> {
        for role in Role::ALL {
            self.fleet.start_role(role).await?;
        }
        let left = self.left;
        for job in &left.jobs {
            let tenant = job.tenant.as_str();
            self.clients
                .insert(tenant, self.fleet.client(tenant).await?);
        }
        Ok(())
    }

    fn client(&self, tenant: &str) -> Result<&Client> {
        let client = self.clients.get(tenant);
        client.with_context(|| format!("no client of {tenant}"))
    }

    fn ended(&self) -> Result<Vec<&'a LeftJob>> {
        let (left, mut ended) = (self.left, Vec::new());
        for job in &left.jobs {
            if job.is_ended()? {
                ended.push(job);
            }
        }
        Ok(ended)
    }

    /// Which write each ended job's record is of.
    async fn ended_records(&self) -> Result<BTreeMap<String, Revision>> {
        let mut records = BTreeMap::new();
        for job in self.ended()? {
            let key: JobKey = job.key()?;
            let record = self.queue.record(&key).await?;
            let (_, revision) = record.with_context(|| format!("no record of {key}"))?;
            records.insert(key.to_string(), revision);
        }
        Ok(records)
    }

    async fn every_ended_job_says_the_same(&self) -> Result<()> {
        for (tenant, client) in &self.clients {
            let (listed, _) = client.list(100, "").await?;
            let listed: BTreeSet<String> = listed.into_iter().map(|job| job.name).collect();
            let mut left = BTreeSet::new();
            for job in self.left.jobs.iter().filter(|job| job.tenant == *tenant) {
                left.insert(job.job()?.name);
            }
            ensure!(listed == left, "{tenant} has {listed:?} of {left:?}");
        }
        for left in self.ended()? {
            let (client, said) = (self.client(&left.tenant)?, left.job()?);
            let job = client.get(&said.name).await?;
            ensure!(job == said, "{said:?} became {job:?}");
            if let Some(said) = left.result()? {
                let result = client.result(&job.name).await?;
                ensure!(result == said, "{said:?} became {result:?}");
                let seen = client.watch_to_end(&job.name).await?;
                ensure!(seen.text == text(&said)?, "its text became {:?}", seen.text);
            }
        }
        Ok(())
    }

    async fn every_open_job_completes(&self) -> Result<()> {
        let operator = self.fleet.client(OPERATOR).await?;
        let paused = operator.pauses().await?;
        let tenants: Vec<&str> = paused.iter().map(|pause| pause.tenant.as_str()).collect();
        ensure!(tenants == [self.left.paused.as_str()], "{paused:?}");
        operator
            .resume(&self.left.paused, Class::Unspecified)
            .await?;
        for left in &self.left.jobs {
            if !left.is_ended()? {
                self.completes(&left.tenant, &left.job()?.name, left.number)
                    .await?;
            }
        }
        Ok(())
    }

    /// Waits for the end of a job, which must be the right answer.
    async fn completes(&self, tenant: &str, name: &str, number: u32) -> Result<()> {
        let client = self.client(tenant)?;
        client.wait_completed(name).await?;
        let result = client.result(name).await?;
        let (found, expected) = (text(&result)?, answer(number));
        ensure!(found == expected, "{name}: {found:?} for {expected:?}");
        Ok(())
    }

    /// A request that is sent again is the same job, and a job that failed can be started over.
    async fn requests_and_letters_are_known(&self) -> Result<()> {
        for left in &self.left.jobs {
            let said = left.job()?;
            // Of the others, one was sent with a time to live, and one was erased.
            if said.state() == JobState::Expired || said.erase_time.is_some() {
                continue;
            }
            let client = self.client(&left.tenant)?;
            let (job, is_known) = client.submit_full(request(left.number)?).await?;
            ensure!(is_known && job.name == said.name, "{said:?} became {job:?}");
        }
        for left in self.ended()? {
            let said = left.job()?;
            if said.state() != JobState::Failed {
                continue;
            }
            let client = self.client(&left.tenant)?;
            let (letters, _) = client.dead_letters(10, "").await?;
            let letter = letters.iter().find(|letter| letter.job == said.name);
            let letter = letter.with_context(|| format!("no dead letter of {said:?}"))?;
            client.replay(&letter.name).await?;
            self.completes(&left.tenant, &said.name, left.number)
                .await?;
        }
        Ok(())
    }

    async fn the_upload_goes_on(&self) -> Result<()> {
        let left = &self.left.upload;
        let client = self.client(&left.tenant)?;
        let bytes = file(left.number)?;
        let from = client.get_upload(&left.name).await?.committed_bytes;
        ensure!(from > 0, "nothing of the upload is left");
        let rest = &bytes[usize::try_from(from)?..];
        let total = bytes.len() as u64;
        let upload = client.upload_part(&left.name, from, total, rest).await?;
        ensure!(upload.complete, "{upload:?}");
        let job = client.submit(report(vec![uploaded(&left.name)])).await?;
        self.completes(&left.tenant, &job.name, left.number).await
    }
}

fn text(result: &v1::Result) -> Result<&str> {
    match &result.output {
        Some(Output::Report(report)) => Ok(&report.text),
        other => bail!("no report: {other:?}"),
    }
}
