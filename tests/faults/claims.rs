//! Claims on new images where NATS is a cluster, whose servers have them in memory alone. While their leader is away jobs complete,
//! and none waits in vain for a claim of nobody's; and when every server was started again, one after the other, they work as before.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use medfleet_proto::v1::Class;
use medfleet_testkit::wait_until;
use medfleet_tests::alerts::told;
use medfleet_tests::chaos::check::check;
use medfleet_tests::chaos::disk::Kind;
use medfleet_tests::chaos::herd::{Herd, HerdOptions, Id};
use medfleet_tests::chaos::load::{Accepted, Asked, Clients, jobs};
use medfleet_tests::client::{Client, PATIENCE, is_final};
use medfleet_tests::config::ACK_WAIT;
use medfleet_tests::fleet::{Pace, Role};

const ENCODERS: [Id; 2] = [(Role::Encode, 0), (Role::Encode, 1)];
const FRAMES: &str = "medfleet_encode_frames_total";
const HELD: &str = "medfleet_encode_claims_total{outcome=\"held\"}";
/// Those that waited for another encoder as long as they may, and then no more.
const OVERDUE: &str = "medfleet_encode_claims_held_total{outcome=\"overdue\"}";
/// Jobs about one film.
const JOBS: u32 = 6;
/// Long enough for both encoders to get one of them, on a loaded machine too.
const ENCODE_MILLIS: u64 = 8_000;
/// Films by which an encoder that could not claim for a while claims again: it looks three times in what a claim lasts. Of so many
/// a loaded machine is in time for one, too.
const FILMS: usize = 5;

struct Site {
    herd: Herd,
    clients: Clients,
    films: std::vec::IntoIter<Asked>,
    accepted: Vec<Accepted>,
}

impl Site {
    /// Two encoders on three servers, and films that differ.
    async fn start() -> Result<Self> {
        let herd = Herd::start(HerdOptions {
            nodes: 3,
            instances: 2,
            record_shards: 1,
            disk: Kind::Plain,
            pace: Pace {
                encode_millis: ENCODE_MILLIS,
                ..Pace::default()
            },
            ack_wait: ACK_WAIT,
        });
        let herd = herd.await?;
        let clients = herd.clients()?;
        let mut films = jobs(41, 128, Duration::ZERO)?;
        films.retain(|asked| asked.images.iter().all(|image| image.is_film));
        Ok(Self {
            herd,
            clients,
            films: films.into_iter(),
            accepted: Vec::new(),
        })
    }

    /// Sends some jobs about a film that nobody sent before, all at once.
    async fn send(&mut self) -> Result<Vec<Accepted>> {
        let film = self.films.next().context("one more film")?;
        let asked = (0..JOBS).map(|number| {
            let mut asked = film.clone();
            asked.request.request_id = format!("{}-{number}", film.request.request_id);
            // A unit of STAT would not wait.
            asked.request.class = Class::Routine.into();
            (asked.is_uploaded, asked.is_repeated) = (false, false);
            asked.at = Duration::ZERO;
            asked
        });
        let accepted = self.clients.send(asked.collect()).await?;
        self.accepted.extend(accepted.iter().cloned());
        Ok(accepted)
    }

    /// Waits until these jobs have ended; [`check`] says how.
    async fn ended(&self, accepted: &[Accepted]) -> Result<()> {
        for Accepted { name, asked } in accepted {
            let get = async |client: Client| client.get(name).await;
            wait_until(PATIENCE, "a job to end", async || {
                let job = self.clients.call(asked.tenant, get).await.ok()?;
                is_final(job.state()).then_some(())
            })
            .await?;
        }
        Ok(())
    }

    /// What both encoders have counted.
    async fn counted(&self, series: &str) -> Result<i64> {
        let mut sum = 0;
        for encoder in ENCODERS {
            sum += told(self.herd.admin(encoder), series).await?;
        }
        Ok(sum)
    }

    /// Sends films until one of them was encoded once, by the one encoder, while the other waited. Encoders may have found the
    /// claims out of reach before, and then encode without for a moment.
    async fn claims_work(&mut self) -> Result<()> {
        let mut counted = Vec::new();
        for _ in 0..FILMS {
            let (frames, held) = (self.counted(FRAMES).await?, self.counted(HELD).await?);
            let accepted = self.send().await?;
            self.ended(&accepted).await?;
            let frames = self.counted(FRAMES).await? - frames;
            let held = self.counted(HELD).await? - held;
            ensure!(frames >= 1, "nobody encoded a new film");
            if frames == 1 && held >= 1 {
                return Ok(());
            }
            counted.push((frames, held));
        }
        anyhow::bail!("every film was encoded twice, or nobody waited: {counted:?}")
    }

    /// Kills the claims' leader while one encoder waits for the other, and starts it again once another server leads.
    async fn lose_leader(&mut self) -> Result<()> {
        let overdue = self.counted(OVERDUE).await?;
        for _ in 0..FILMS {
            if self.lose_leader_at_a_film().await? {
                let now = self.counted(OVERDUE).await?;
                ensure!(now == overdue, "a job waited for a claim of nobody's");
                return Ok(());
            }
        }
        anyhow::bail!("too late to disturb any of {FILMS} films")
    }

    /// False when the film was encoded before its encoder could be disturbed.
    async fn lose_leader_at_a_film(&mut self) -> Result<bool> {
        let (frames, held) = (self.counted(FRAMES).await?, self.counted(HELD).await?);
        let leader = self.herd.claims_leader().await?;
        let accepted = self.send().await?;
        wait_until(PATIENCE, "one to wait, or the film's end", async || {
            let waits = self.counted(HELD).await.ok()? > held;
            let is_over = self.counted(FRAMES).await.ok()? > frames;
            (waits || is_over).then_some(())
        })
        .await?;
        if self.counted(FRAMES).await? > frames {
            self.ended(&accepted).await?;
            return Ok(false);
        }
        self.herd.kill_node(leader).await?;
        self.herd.claims_leader().await?;
        self.herd.restart_node(leader).await?;
        self.ended(&accepted).await?;
        let encoded = self.counted(FRAMES).await? - frames;
        ensure!(
            (1..=2).contains(&encoded),
            "two encoders encoded one film {encoded} times"
        );
        Ok(true)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn claims_outlive_every_server_of_a_cluster() -> Result<()> {
    let mut site = Site::start().await?;
    site.claims_work().await.context("at first")?;
    site.lose_leader().await?;
    site.herd.wait_claims_whole().await?;
    for node in 0..site.herd.node_count() {
        site.herd.restart_node(node).await?;
        site.herd.wait_claims_whole().await?;
    }
    let again = site.claims_work().await;
    again.context("after every server was started again")?;
    let found = check(&site.herd, &site.clients, &site.accepted).await?;
    ensure!(found.completed == site.accepted.len(), "{found:?}");
    Ok(())
}
