//! `medfleet plan`: arrival rates and measured service times in, encoder and decoder counts out.

use std::str::FromStr;

use medfleet_core::Class;
use medfleet_plan::{
    CLASSES, Fleet, JobKind, Load, NoPlan, Plan, Predicted, Run, Service, StreamLoad, Target,
    Turnaround, predict, simulate, smallest, streams,
};
use serde_json::{Value, json};

use crate::exit::{CommandResult, Exit, Fault};
use crate::show;

/// Classes as they are served; the simulation knows them by number.
const _: () = assert!(CLASSES == Class::ALL.len());

/// Slots of a worker at most, as the services have it; and workers of a stage. Their product is a number of slots, too.
const SLOTS_MAX: i64 = 4096;
const WORKERS_MAX: i64 = medfleet_plan::WORKERS_MAX as i64;

/// Flags of `plan`.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    /// Jobs a second
    #[arg(long, value_name = "RATE")]
    jobs_per_second: f64,
    /// A kind of jobs: class, part of all jobs, chunks of images; repeat it until the parts add up to 1
    #[arg(
        long = "job",
        value_name = "CLASS,PART,CHUNKS",
        default_value = "routine,1,1"
    )]
    jobs: Vec<Kind>,
    /// Seconds that an encoder takes for a chunk, as `bench model` measures them
    #[arg(long, value_name = "SECONDS")]
    encode_seconds: f64,
    /// Seconds that a text takes in its slot of a decoder, beside as many others as it has slots
    #[arg(long, value_name = "SECONDS")]
    decode_seconds: f64,
    /// How far encode times vary: variance over squared mean, 0 for always the same
    #[arg(long, value_name = "RATIO", default_value_t = 0.0)]
    encode_variation: f64,
    /// How far decode times vary
    #[arg(long, value_name = "RATIO", default_value_t = 0.25)]
    decode_variation: f64,
    /// Texts that one decoder writes at once
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=SLOTS_MAX))]
    slots_per_decoder: u32,
    /// Seconds that a job takes beside both stages, as `bench report` measures them
    #[arg(long, value_name = "SECONDS", default_value_t = 0.1)]
    other_seconds: f64,
    /// 95 of 100 jobs of the target's class, and of those before it, shall take no longer, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 60.0)]
    p95_seconds: f64,
    /// The last class that the target holds for
    #[arg(long, value_name = "CLASS", default_value = "routine")]
    target_class: Class,
    /// Busy part of a stage at most
    #[arg(long, value_name = "PART", default_value_t = 0.85)]
    utilisation_max: f64,
    /// Simulate this many encoders instead of looking for the fewest; needs --decoders
    #[arg(long, value_name = "N", requires = "decoders", value_parser = clap::value_parser!(u32).range(1..=WORKERS_MAX))]
    encoders: Option<u32>,
    /// Simulate this many decoders; needs --encoders
    #[arg(long, value_name = "N", requires = "encoders", value_parser = clap::value_parser!(u32).range(1..=WORKERS_MAX))]
    decoders: Option<u32>,
    /// Writes a second that one stream takes, as measured on your servers: prints how many of each are needed (of KV_JOBS_*: queue.record_shards)
    #[arg(long, value_name = "N")]
    stream_writes_per_second: Option<f64>,
    /// Jobs to simulate
    #[arg(long, value_name = "N", default_value_t = 50_000, value_parser = clap::value_parser!(u32).range(1..))]
    simulated_jobs: u32,
    /// The same seed gives the same figures
    #[arg(long, value_name = "SEED", default_value_t = 1)]
    seed: u64,
    /// One JSON object on stdout
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone)]
struct Kind {
    class: Class,
    share: f64,
    chunks: u32,
}

impl FromStr for Kind {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let form = || "expected CLASS,PART,CHUNKS, for example stat,0.05,1".to_owned();
        let parts: Vec<&str> = text.split(',').collect();
        let [class, share, chunks] = parts.as_slice() else {
            return Err(form());
        };
        Ok(Self {
            class: class.parse().map_err(|error| format!("{error}"))?,
            share: share.parse().map_err(|_| form())?,
            chunks: chunks.parse().map_err(|_| form())?,
        })
    }
}

struct Shown {
    plan: Plan,
    decoders: u32,
    predicted: Predicted,
    utilisation: (f64, f64),
    streams: Vec<StreamLoad>,
}

pub(crate) fn run(args: Args) -> CommandResult {
    let load = load(&args);
    load.check().map_err(Fault::usage)?;
    if !(args.utilisation_max > 0.0 && args.utilisation_max <= 1.0) {
        let error = anyhow::anyhow!("--utilisation-max must be above 0, and 1 at most");
        return Err(Fault::usage(error));
    }
    let slots = args.slots_per_decoder;
    let mut plan = match (args.encoders, args.decoders) {
        (Some(encoders), Some(decoders)) => given(&load, &args, (encoders, decoders))?,
        _ => found(&load, &args).map_err(anyhow::Error::from)?,
    };
    let decoders = plan.fleet.decode_slots.div_ceil(slots);
    if decoders * slots != plan.fleet.decode_slots {
        // Decoders come whole.
        plan.fleet.decode_slots = decoders * slots;
        plan.simulated = simulate(&load, plan.fleet, simulated_run(&args));
    }
    let writes = args.stream_writes_per_second;
    let shown = Shown {
        predicted: predict(&load, plan.fleet),
        utilisation: load.utilisation(plan.fleet),
        streams: writes.map_or_else(Vec::new, |writes| streams(&load, writes)),
        decoders,
        plan,
    };
    if args.json {
        show::print_json(&to_json(&shown))?;
    } else {
        show::print(&lines(&shown).join("\n"))?;
    }
    Ok(Exit::Done)
}

fn load(args: &Args) -> Load {
    let kinds = args.jobs.iter().map(|kind| JobKind {
        class: kind.class as usize,
        share: kind.share,
        chunks: kind.chunks,
    });
    Load {
        jobs_per_second: args.jobs_per_second,
        kinds: kinds.collect(),
        encode: Service {
            mean_seconds: args.encode_seconds,
            variation: args.encode_variation,
        },
        decode: Service {
            mean_seconds: args.decode_seconds,
            variation: args.decode_variation,
        },
        other_seconds: args.other_seconds,
    }
}

fn simulated_run(args: &Args) -> Run {
    Run {
        jobs: args.simulated_jobs,
        warm_up: args.simulated_jobs / 10,
        seed: args.seed,
    }
}

fn found(load: &Load, args: &Args) -> Result<Plan, NoPlan> {
    let target = Target {
        p95_seconds: args.p95_seconds,
        class: args.target_class as usize,
        utilisation_max: args.utilisation_max,
    };
    smallest(load, target, simulated_run(args))
}

fn given(load: &Load, args: &Args, (encoders, decoders): (u32, u32)) -> Result<Plan, Fault> {
    let fleet = Fleet {
        encoders,
        decode_slots: decoders.saturating_mul(args.slots_per_decoder),
    };
    let (encode, decode) = load.utilisation(fleet);
    if encode >= 1.0 || decode >= 1.0 {
        let error = anyhow::anyhow!(
            "the fleet cannot keep up: its encoders would be busy {encode:.2} of the time, its decoders {decode:.2}; \
             add workers, or ask for fewer jobs a second"
        );
        return Err(Fault::usage(error));
    }
    Ok(Plan {
        fleet,
        simulated: simulate(load, fleet, simulated_run(args)),
    })
}

fn lines(shown: &Shown) -> Vec<String> {
    let (encode, decode) = shown.utilisation;
    let simulated = &shown.plan.simulated;
    let (fleet, predicted) = (shown.plan.fleet, shown.predicted);
    let mut lines = vec![
        format!(
            "{:<10}{:>8}{:>8}{:>14}{:>14}",
            "", "count", "busy", "mean wait", "by formula"
        ),
        format!(
            "{:<10}{:>8}{encode:>8.2}{:>12.3} s{:>12.3} s",
            "encoders",
            fleet.encoders,
            simulated.encode_wait_seconds,
            predicted.encode_wait_seconds
        ),
        format!(
            "{:<10}{:>8}{decode:>8.2}{:>12.3} s{:>12.3} s",
            "decoders",
            shown.decoders,
            simulated.decode_wait_seconds,
            predicted.decode_wait_seconds
        ),
        String::new(),
        format!(
            "{:<10}{:>8}{:>12}{:>12}",
            "turnaround", "jobs", "p50", "p95"
        ),
    ];
    let row = |name: &str, of: &Turnaround| {
        let Turnaround {
            jobs,
            p50_seconds,
            p95_seconds,
        } = of;
        format!("{name:<10}{jobs:>8}{p50_seconds:>10.2} s{p95_seconds:>10.2} s")
    };
    let classes = Class::ALL.iter().zip(&simulated.classes);
    let classes = classes.filter(|(_, of)| of.jobs > 0);
    lines.extend(classes.map(|(class, of)| row(class.as_str(), of)));
    lines.push(row("all", &simulated.all));
    if !shown.streams.is_empty() {
        lines.push(String::new());
        lines.push(format!(
            "{:<20}{:>12}{:>12}{:>8}",
            "stream", "writes/job", "writes/s", "shards"
        ));
    }
    lines.extend(shown.streams.iter().map(|stream| {
        let StreamLoad {
            stream,
            writes_per_job,
            writes_per_second,
            shards,
        } = stream;
        format!("{stream:<20}{writes_per_job:>12.1}{writes_per_second:>12.0}{shards:>8}")
    }));
    lines
}

fn to_json(shown: &Shown) -> Value {
    let simulated = &shown.plan.simulated;
    let turnaround = |of: &Turnaround| json!({"jobs": of.jobs, "p50_seconds": of.p50_seconds, "p95_seconds": of.p95_seconds});
    let classes = Class::ALL.iter().zip(&simulated.classes);
    let classes = classes.filter(|(_, of)| of.jobs > 0);
    let classes = classes.map(|(class, of)| (class.as_str().to_owned(), turnaround(of)));
    let streams = shown.streams.iter().map(|stream| {
        json!({
            "stream": stream.stream,
            "writes_per_job": stream.writes_per_job,
            "writes_per_second": stream.writes_per_second,
            "shards": stream.shards,
        })
    });
    json!({
        "encoders": shown.plan.fleet.encoders,
        "decoders": shown.decoders,
        "decode_slots": shown.plan.fleet.decode_slots,
        "encode_utilisation": shown.utilisation.0,
        "decode_utilisation": shown.utilisation.1,
        "encode_wait_seconds": simulated.encode_wait_seconds,
        "decode_wait_seconds": simulated.decode_wait_seconds,
        "encode_wait_by_formula_seconds": shown.predicted.encode_wait_seconds,
        "decode_wait_by_formula_seconds": shown.predicted.decode_wait_seconds,
        "turnaround": turnaround(&simulated.all),
        "turnaround_by_class": classes.collect::<serde_json::Map<_, _>>(),
        "streams": streams.collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kind_of_jobs_is_three_values() {
        let kind: Kind = "stat,0.05,3".parse().expect("a kind");
        assert_eq!((kind.class, kind.chunks), (Class::Stat, 3));
        for wrong in ["stat", "stat,1", "soon,1,1", "stat,much,1", "stat,1,-1"] {
            assert!(wrong.parse::<Kind>().is_err(), "{wrong}");
        }
    }
}
