//! What `bench scaling` measured, and how it is shown.

use std::time::Duration;

use serde_json::{Value, json};

use super::{Args, Pool};
use crate::show;

/// One size of the pool.
#[derive(Debug)]
pub(super) struct Point {
    pub(super) workers: u32,
    pub(super) encoders: u32,
    pub(super) decoders: u32,
    pub(super) jobs: u32,
    /// From the first submit to the last end.
    pub(super) took: Duration,
    /// By the planner's simulation.
    pub(super) predicted: Duration,
}

/// All sizes.
#[derive(Debug, Default)]
pub(super) struct Figures {
    pub(super) points: Vec<Point>,
}

impl Point {
    /// Jobs a second.
    pub(super) fn rate(&self) -> f64 {
        f64::from(self.jobs) / self.took.as_secs_f64()
    }

    /// Jobs a second by the planner's simulation.
    pub(super) fn predicted_rate(&self) -> f64 {
        f64::from(self.jobs) / self.predicted.as_secs_f64()
    }

    /// Jobs a second of a pool that is never idle.
    pub(super) fn ideal_rate(&self, args: &Args) -> f64 {
        let unit = match args.pool {
            Pool::Encoders => args.encode,
            Pool::Decoders => args.decode,
        };
        f64::from(self.workers) / unit.get().as_secs_f64().max(1e-9)
    }
}

impl Figures {
    pub(super) fn show(&self, args: &Args) -> std::io::Result<()> {
        if args.json {
            return show::print_json(&self.json(args));
        }
        show::print(&self.lines(args).join("\n"))
    }

    fn lines(&self, args: &Args) -> Vec<String> {
        let titles = [
            args.pool.as_str(),
            "jobs",
            "jobs a s",
            "efficiency",
            "predicted",
            "off by",
        ];
        let head = titles.map(|title| format!("{title:>12}")).concat();
        let rows = self.points.iter().map(|point| {
            let (rate, predicted) = (point.rate(), point.predicted_rate());
            format!(
                "{:>12}{:>12}{rate:>12.2}{:>12.3}{predicted:>12.2}{:>11.1}%",
                point.workers,
                point.jobs,
                rate / point.ideal_rate(args),
                (rate / predicted - 1.0) * 100.0,
            )
        });
        let mut lines = vec![head];
        lines.extend(rows);
        lines.push(format!(
            "encode {}, decode {}; every worker a process with one slot; sync default, blobs in memory",
            args.encode, args.decode
        ));
        lines
    }

    fn json(&self, args: &Args) -> Value {
        let points = self.points.iter().map(|point| {
            json!({
                "workers": point.workers,
                "encoders": point.encoders,
                "decoders": point.decoders,
                "jobs": point.jobs,
                "seconds": point.took.as_secs_f64(),
                "jobs_per_second": point.rate(),
                "efficiency": point.rate() / point.ideal_rate(args),
                "predicted_jobs_per_second": point.predicted_rate(),
            })
        });
        json!({
            "bench": "scaling",
            "pool": args.pool.as_str(),
            "encode_seconds": args.encode.get().as_secs_f64(),
            "decode_seconds": args.decode.get().as_secs_f64(),
            "points": points.collect::<Vec<_>>(),
        })
    }
}
