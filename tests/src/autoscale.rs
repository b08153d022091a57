//! An autoscaler for real processes, in place of KEDA and the HorizontalPodAutoscaler: in every turn it reads the backlog from
//! ingest's `/metrics`, decides the number of workers, and starts workers or stops them by SIGTERM.
//!
//! The decisions are `medfleet_plan`'s, by the rules that the chart renders and that the simulated day uses as well. Here all
//! times of the rules are shortened in the same proportion. [`day`] has a fleet follow a day.

pub mod day;

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use medfleet_plan::{Controller, Rules};
use tokio::time::Instant;

use crate::config::POOL;
use crate::fleet::extra::Extra;
use crate::fleet::{Fleet, Role, http_get};

/// The figure that the chart's first trigger reads.
pub const BACKLOG: &str = "medfleet_backlog_seconds";

/// One scaled pool of workers.
#[derive(Debug)]
pub struct Scaler {
    role: Role,
    slots: u32,
    controller: Controller,
    begun: Instant,
    changed: Instant,
    workers: Vec<Extra>,
    leaving: Vec<Extra>,
    pub figures: Figures,
}

/// What a scaler did.
#[derive(Debug, Clone, Copy, Default)]
pub struct Figures {
    pub most: usize,
    pub starts: usize,
    /// Time of all workers, from the order to start to the order to stop.
    pub worker_seconds: f64,
}

impl Scaler {
    /// Without any worker; each will have so many slots.
    pub fn new(role: Role, slots: u32, rules: Rules) -> Self {
        let now = Instant::now();
        Self {
            role,
            slots,
            controller: Controller::new(rules),
            begun: now,
            changed: now,
            workers: Vec::new(),
            leaving: Vec::new(),
            figures: Figures::default(),
        }
    }

    /// Workers that run and were not told to stop.
    pub fn running(&self) -> usize {
        self.workers.len()
    }

    /// The time from one turn to the next.
    pub fn pause(&self) -> Duration {
        Duration::from_secs_f64(self.controller.rules().turn_seconds)
    }

    /// One turn: reads the backlog, and starts or stops workers. Returns the backlog, in seconds.
    pub async fn turn(&mut self, fleet: &Fleet) -> Result<f64> {
        let backlog = backlog(fleet, self.role).await?;
        let now = Instant::now();
        let there = u32::try_from(self.workers.len())?;
        let seconds = (now - self.begun).as_secs_f64();
        let wanted = self.controller.turn(seconds, backlog, there) as usize;
        self.count(now);
        while self.workers.len() < wanted {
            let worker = fleet.another(self.role, usize::try_from(self.slots)?)?;
            self.workers.push(worker);
            self.figures.starts += 1;
        }
        while self.workers.len() > wanted
            && let Some(worker) = self.workers.pop()
        {
            worker.stop()?;
            self.leaving.push(worker);
        }
        self.figures.most = self.figures.most.max(self.workers.len());
        Ok(backlog)
    }

    fn count(&mut self, now: Instant) {
        let passed = (now - self.changed).as_secs_f64();
        self.figures.worker_seconds += passed * self.workers.len() as f64;
        self.changed = now;
    }

    /// Waits until every worker that was told to stop has ended in order.
    pub async fn all_left(&mut self) -> Result<()> {
        for worker in self.leaving.drain(..) {
            worker.ended().await?;
        }
        Ok(())
    }
}

/// The backlog of a stage over all classes in seconds, as the trigger's query sums it. Its absence is an error: with nobody
/// there it must still be told, or nothing ever starts.
pub async fn backlog(fleet: &Fleet, role: Role) -> Result<f64> {
    let (status, text) = http_get(fleet.admin(Role::Ingest), "/metrics").await?;
    ensure!(status == 200, "/metrics answered {status}");
    sum_of(&text, role.name()).with_context(|| format!("no {BACKLOG} of {}", role.name()))
}

fn sum_of(text: &str, stage: &str) -> Option<f64> {
    let labels = [format!("stage=\"{stage}\""), format!("pool=\"{POOL}\"")];
    let values: Vec<f64> = text
        .lines()
        .filter(|line| line.starts_with(&format!("{BACKLOG}{{")))
        .filter(|line| labels.iter().all(|label| line.contains(label)))
        .filter_map(|line| line.rsplit(' ').next()?.parse().ok())
        .collect();
    (!values.is_empty()).then(|| values.iter().sum())
}
