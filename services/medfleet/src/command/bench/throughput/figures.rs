//! What `bench throughput` measured, and how it is shown.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value, json};

use super::super::sample::{Sample, head, median};
use super::raw::WRITES;
use super::{Args, BlobsArg, SyncArg};
use crate::show::{self, bytes};

/// Jobs that growth of memory is told for.
const GROWTH_JOBS: f64 = 100_000.0;

/// All rounds.
#[derive(Debug, Default)]
pub(super) struct Figures {
    pub(super) rounds: Vec<Round>,
    pub(super) turnarounds: Vec<Duration>,
    pub(super) moments: Vec<Moment>,
}

/// One round: jobs of the fleet, then as many jobs' raw writes.
#[derive(Debug)]
pub(super) struct Round {
    pub(super) jobs: u64,
    pub(super) fleet: Duration,
    pub(super) raw: Duration,
    /// Processor time of each process while the fleet worked.
    pub(super) fleet_took: Vec<(String, Duration)>,
    /// While the raw writes were made.
    pub(super) raw_writes_took: Vec<(String, Duration)>,
    /// What nats-server took from the fleet.
    pub(super) messages_in: u64,
    /// What it sent to the fleet.
    pub(super) messages_out: u64,
}

/// Memory of each process after so many jobs.
#[derive(Debug)]
pub(super) struct Moment {
    pub(super) jobs: u64,
    pub(super) resident: Vec<(String, u64)>,
}

impl Round {
    fn fleet_rate(&self) -> f64 {
        self.jobs as f64 / self.fleet.as_secs_f64()
    }

    fn raw_rate(&self) -> f64 {
        self.jobs as f64 / self.raw.as_secs_f64()
    }

    fn ratio(&self) -> f64 {
        self.fleet_rate() / self.raw_rate()
    }
}

impl Figures {
    /// Over the rounds.
    fn median(&self, of: impl Fn(&Round) -> f64) -> f64 {
        median(self.rounds.iter().map(of))
    }

    /// Of all rounds together, a job.
    fn each(&self, of: impl Fn(&Round) -> u64) -> f64 {
        let jobs: u64 = self.rounds.iter().map(|round| round.jobs).sum();
        self.rounds.iter().map(of).sum::<u64>() as f64 / jobs.max(1) as f64
    }

    /// Milliseconds of processor time a job, by process, the largest first.
    fn millis_a_job<'a>(
        &'a self,
        of: impl Fn(&'a Round) -> &'a Vec<(String, Duration)>,
    ) -> Vec<(&'a str, f64)> {
        let jobs: u64 = self.rounds.iter().map(|round| round.jobs).sum();
        let mut sums: BTreeMap<&str, Duration> = BTreeMap::new();
        for (name, took) in self.rounds.iter().flat_map(of) {
            *sums.entry(name).or_default() += *took;
        }
        let each = sums.into_iter();
        let each =
            each.map(|(name, took)| (name, took.as_secs_f64() * 1000.0 / jobs.max(1) as f64));
        let mut each: Vec<_> = each.collect();
        each.sort_by(|a, b| b.1.total_cmp(&a.1));
        each
    }

    /// Resident memory of a process at the start, in the middle and at the end, and how it grew from the middle on, for
    /// 100,000 jobs.
    fn memory(&self) -> Vec<(&str, [u64; 3], f64)> {
        let last = self.moments.len().saturating_sub(1);
        let at = |index: usize, name: &str| -> Option<(u64, u64)> {
            let moment = self.moments.get(index)?;
            let of_name = moment.resident.iter().find(|(known, _)| known == name)?;
            Some((moment.jobs, of_name.1))
        };
        let names = self.moments.first().into_iter();
        let names = names.flat_map(|moment| moment.resident.iter().map(|(name, _)| name.as_str()));
        names
            .filter_map(|name| {
                let (start, middle, end) = (at(0, name)?, at(last / 2, name)?, at(last, name)?);
                let jobs = (end.0 - middle.0).max(1) as f64;
                let growth = (end.1 as f64 - middle.1 as f64) * GROWTH_JOBS / jobs;
                Some((name, [start.1, middle.1, end.1], growth))
            })
            .collect()
    }

    pub(super) fn show(&self, args: &Args) -> std::io::Result<()> {
        if args.json {
            return show::print_json(&self.json(args));
        }
        show::print(&self.lines(args).join("\n"))
    }

    fn lines(&self, args: &Args) -> Vec<String> {
        let row = |name: &str, fleet: f64, raw: f64, ratio: f64| {
            format!("{name:<24}{fleet:>11.0}{raw:>11.0}{ratio:>11.2}")
        };
        let mut lines = vec![format!(
            "{:<24}{:>11}{:>11}{:>11}",
            "jobs a second", "fleet", "raw", "ratio"
        )];
        let rounds = self.rounds.iter().zip(1..);
        lines.extend(rounds.map(|(round, number)| {
            let name = format!("  round {number}");
            row(&name, round.fleet_rate(), round.raw_rate(), round.ratio())
        }));
        lines.push(row(
            "median",
            self.median(Round::fleet_rate),
            self.median(Round::raw_rate),
            self.median(Round::ratio),
        ));
        lines.extend([String::new(), head()]);
        lines.push(Sample::new(self.turnarounds.clone()).row("submit to end"));
        lines.push(String::new());
        lines.push(format!(
            "{:<24}{:>11}{:>11}",
            "processor ms a job", "fleet", "raw"
        ));
        let raw: BTreeMap<&str, f64> = self
            .millis_a_job(|round| &round.raw_writes_took)
            .into_iter()
            .collect();
        for (name, fleet) in self.millis_a_job(|round| &round.fleet_took) {
            let raw = raw.get(name).copied().unwrap_or_default();
            lines.push(format!("  {name:<22}{fleet:>11.3}{raw:>11.3}"));
        }
        let sum = |of: Vec<(&str, f64)>| of.into_iter().map(|(_, each)| each).sum::<f64>();
        lines.push(format!(
            "  {:<22}{:>11.3}{:>11.3}",
            "all",
            sum(self.millis_a_job(|round| &round.fleet_took)),
            sum(self.millis_a_job(|round| &round.raw_writes_took))
        ));
        lines.push(format!(
            "messages a job at nats-server: {:.1} in, {:.1} out",
            self.each(|round| round.messages_in),
            self.each(|round| round.messages_out)
        ));
        lines.push(String::new());
        lines.push(format!(
            "{:<24}{:>11}{:>11}{:>11}{:>22}",
            "resident memory", "start", "middle", "end", "grows in 100,000 jobs"
        ));
        lines.extend(self.memory().into_iter().map(|(name, at, growth)| {
            let [start, middle, end] = at.map(bytes);
            let sign = if growth < 0.0 { "-" } else { "" };
            let growth = format!("{sign}{}", bytes(growth.abs() as u64));
            format!("  {name:<22}{start:>11}{middle:>11}{end:>11}{growth:>22}")
        }));
        lines.push(String::new());
        lines.push(format!(
            "{} jobs, {} clients, {} slots a worker; raw: {WRITES} writes a job; records in {}; sync {}, blobs {}",
            self.rounds.iter().map(|round| round.jobs).sum::<u64>(),
            args.clients,
            args.slots,
            shards(args.record_shards),
            word(args.sync),
            place(args.blobs)
        ));
        lines
    }

    fn json(&self, args: &Args) -> Value {
        let map = |values: Vec<(&str, f64)>| -> serde_json::Map<String, Value> {
            let values = values.into_iter();
            values
                .map(|(name, value)| (name.to_owned(), value.into()))
                .collect()
        };
        let rounds = self.rounds.iter().map(|round| {
            json!({
                "jobs": round.jobs,
                "fleet_jobs_per_second": round.fleet_rate(),
                "raw_jobs_per_second": round.raw_rate(),
                "ratio": round.ratio(),
            })
        });
        let memory = self.memory().into_iter().map(|(name, [start, middle, end], growth)| {
            let figures = json!({"start": start, "middle": middle, "end": end, "growth_in_100000_jobs": growth});
            (name.to_owned(), figures)
        });
        json!({
            "bench": "throughput",
            "clients": args.clients,
            "slots": args.slots,
            "record_shards": args.record_shards,
            "sync": word(args.sync),
            "blobs": place(args.blobs),
            "raw_writes_per_job": WRITES,
            "fleet_jobs_per_second": self.median(Round::fleet_rate),
            "raw_jobs_per_second": self.median(Round::raw_rate),
            "ratio": self.median(Round::ratio),
            "rounds": rounds.collect::<Vec<_>>(),
            "turnaround": Sample::new(self.turnarounds.clone()).json(),
            "processor_ms_per_job": map(self.millis_a_job(|round| &round.fleet_took)),
            "raw_processor_ms_per_job": map(self.millis_a_job(|round| &round.raw_writes_took)),
            "messages_in_per_job": self.each(|round| round.messages_in),
            "messages_out_per_job": self.each(|round| round.messages_out),
            "resident_bytes": memory.collect::<serde_json::Map<_, _>>(),
        })
    }
}

fn shards(count: u8) -> String {
    match count {
        1 => "1 shard".to_owned(),
        count => format!("{count} shards"),
    }
}

const fn word(sync: SyncArg) -> &'static str {
    match sync {
        SyncArg::Default => "default",
        SyncArg::Always => "always",
    }
}

const fn place(blobs: BlobsArg) -> &'static str {
    match blobs {
        BlobsArg::Memory => "memory",
        BlobsArg::Disk => "disk",
    }
}
