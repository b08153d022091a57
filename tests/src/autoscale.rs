//! What KEDA and the controller behind it would do, on processes: every few moments the backlog is read from ingest's
//! `/metrics`, the number of workers is computed as they compute it, and workers are started and stopped by SIGTERM.
//!
//! The arithmetic is that of a Prometheus trigger with an `AverageValue` (workers = value ÷ threshold, rounded up, within
//! bounds), of KEDA's activation (from none to one as soon as there is anything; to none when there has been nothing for
//! the cooldown) and of the controller's scale-down rule (never below the highest wish of the stabilisation window, and one
//! worker at a time). Times are shorter than in production, in the same order.

use std::collections::VecDeque;
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::time::Instant;

use crate::fleet::extra::Extra;
use crate::fleet::{Fleet, Role, http_get};

/// The figure that the chart's triggers read.
pub const BACKLOG: &str = "medfleet_backlog_units";

/// The rules of one pool.
#[derive(Debug, Clone, Copy)]
pub struct Rules {
    /// Backlog for each worker: its slots.
    pub threshold: f64,
    /// Most workers.
    pub max: usize,
    /// How long there must be nothing before the last worker goes.
    pub cooldown: Duration,
    /// No fewer workers than were wished for within this.
    pub stabilisation: Duration,
}

/// One scaled pool of workers.
#[derive(Debug)]
pub struct Scaler {
    role: Role,
    rules: Rules,
    wishes: VecDeque<(Instant, usize)>,
    last_active: Instant,
    workers: Vec<Extra>,
    leaving: Vec<Extra>,
    changed: Instant,
    /// What it did.
    pub figures: Figures,
}

/// What a scaler did.
#[derive(Debug, Clone, Copy, Default)]
pub struct Figures {
    /// Most workers at a time.
    pub most: usize,
    /// Workers started.
    pub starts: usize,
    /// Time of all workers, from start to the order to stop.
    pub worker_seconds: f64,
}

impl Rules {
    /// Workers for a backlog, without what went before.
    #[must_use]
    pub fn wish(&self, backlog: f64) -> usize {
        // Bounded by `max`, and never negative.
        let workers = (backlog.max(0.0) / self.threshold).ceil() as usize;
        workers.min(self.max)
    }
}

impl Scaler {
    /// Without any worker.
    #[must_use]
    pub fn new(role: Role, rules: Rules) -> Self {
        let now = Instant::now();
        Self {
            role,
            rules,
            wishes: VecDeque::new(),
            last_active: now,
            workers: Vec::new(),
            leaving: Vec::new(),
            changed: now,
            figures: Figures::default(),
        }
    }

    /// Workers that run and were not told to stop.
    #[must_use]
    pub fn running(&self) -> usize {
        self.workers.len()
    }

    /// One turn: reads the backlog, and starts or stops workers.
    ///
    /// # Errors
    /// A backlog that ingest does not export, a worker that cannot be started or that ended by itself.
    pub async fn turn(&mut self, fleet: &Fleet) -> Result<()> {
        let backlog = backlog(fleet, self.role).await?;
        let now = Instant::now();
        let target = self.target(backlog, now);
        self.count(now);
        while self.workers.len() < target {
            let slots = self.rules.threshold as usize;
            self.workers.push(fleet.another(self.role, slots)?);
            self.figures.starts += 1;
        }
        if self.workers.len() > target
            && let Some(worker) = self.workers.pop()
        {
            worker.stop()?;
            self.leaving.push(worker);
        }
        self.figures.most = self.figures.most.max(self.workers.len());
        Ok(())
    }

    fn target(&mut self, backlog: f64, now: Instant) -> usize {
        let wish = self.rules.wish(backlog);
        if backlog > 0.0 {
            self.last_active = now;
        }
        self.wishes.push_back((now, wish));
        while let Some((at, _)) = self.wishes.front()
            && now - *at > self.rules.stabilisation
        {
            self.wishes.pop_front();
        }
        let least = self.wishes.iter().map(|(_, wish)| *wish).max().unwrap_or(0);
        if backlog <= 0.0 && now - self.last_active >= self.rules.cooldown {
            return 0;
        }
        if self.workers.is_empty() && backlog <= 0.0 {
            return 0;
        }
        // The controller keeps one worker; only the cooldown takes the last.
        least.max(1)
    }

    fn count(&mut self, now: Instant) {
        let passed = (now - self.changed).as_secs_f64();
        self.figures.worker_seconds += passed * self.workers.len() as f64;
        self.changed = now;
    }

    /// Waits until every worker that was told to stop has ended in order.
    ///
    /// # Errors
    /// One that did not.
    pub async fn all_left(&mut self) -> Result<()> {
        for worker in self.leaving.drain(..) {
            worker.ended().await?;
        }
        Ok(())
    }
}

/// The backlog of a stage over all classes, as the trigger's query sums it. Its absence is an error: with nobody there it
/// must still be told, or nothing ever starts.
///
/// # Errors
/// When ingest does not answer or does not export it.
pub async fn backlog(fleet: &Fleet, role: Role) -> Result<f64> {
    let (_, text) = http_get(fleet.admin(Role::Ingest), "/metrics").await?;
    sum_of(&text, role.name()).with_context(|| format!("no {BACKLOG} of {}", role.name()))
}

fn sum_of(text: &str, stage: &str) -> Option<f64> {
    let stage = format!("stage=\"{stage}\"");
    let values: Vec<f64> = text
        .lines()
        .filter(|line| line.starts_with(&format!("{BACKLOG}{{")) && line.contains(&stage))
        .filter_map(|line| line.rsplit(' ').next()?.parse().ok())
        .collect();
    (!values.is_empty()).then(|| values.iter().sum())
}

/// Worker-seconds of an oracle that knows when units come and how long each is in hand: as many workers as these fill at
/// each moment, each started `start` early and kept for at least `least`. Times in seconds.
#[must_use]
pub fn oracle(spans: &[(f64, f64)], slots: usize, start: f64, least: f64) -> f64 {
    let mut edges: Vec<(f64, i64)> = spans
        .iter()
        .flat_map(|(begin, end)| [(*begin, 1), (*end, -1)])
        .collect();
    edges.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
    let mut total = 0.0;
    for worker in 0_i64.. {
        // The times in which more units are in hand than the workers before it take.
        let taken = worker * i64::try_from(slots).unwrap_or(i64::MAX);
        let mut lives: Vec<(f64, f64)> = Vec::new();
        let (mut busy, mut since) = (0, None);
        for (at, change) in &edges {
            busy += change;
            match (busy > taken, since) {
                (true, None) => since = Some(*at),
                (false, Some(begin)) => {
                    lives.push((begin - start, at.max(begin - start + least)));
                    since = None;
                }
                _ => {}
            }
        }
        if lives.is_empty() {
            break;
        }
        total += joined(&lives);
    }
    total
}

/// Length of overlapping spans, each counted once; sorted by their begin.
fn joined(spans: &[(f64, f64)]) -> f64 {
    let (mut total, mut until) = (0.0, f64::NEG_INFINITY);
    for (begin, end) in spans {
        total += (end - begin.max(until)).max(0.0);
        until = until.max(*end);
    }
    total
}
