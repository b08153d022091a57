//! One case, in a process of its own: a file, or a folder of a study's files.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use medfleet_core::PoolName;
use medfleet_imaging::{
    BurnedIn, Decoded, Options, Patients, Prepared, Reason, Refusal, SlicePlan, Slices,
    decode_parts, files_beside, plan_volume, read_input,
};
use medfleet_preprocess::Config;
use medfleet_preprocess::codecs::Codecs;
use medfleet_preprocess::frames::{codecs, options};
use serde_json::{Value, json};

use super::super::sample::Sample;
use super::super::usage::Usage;
use crate::paths;

/// A member of an archive, or the file itself, and its slices that are shown.
type Wanted = (Option<u32>, Vec<u32>);

/// Side of MedGemma's frames in pixels.
const FRAME_SIDE: u32 = 896;

/// Figures of a path; the wall time is that of so many threads for each file's frames.
pub(super) fn measure(path: &Path, runs: u32, threads: u32) -> Result<Value> {
    let config = Config::new(
        &PoolName::new("bench").context("the pool's name")?,
        FRAME_SIDE,
    );
    let codecs = codecs(&config);
    let options = options(&config, codecs).context("the options")?;
    let options = options.burned_in(BurnedIn::Allow);
    let mut case = Case {
        files: paths::files(&[path.to_owned()])?,
        options: options.on_threads(threads),
        frames_max: config.frames_max,
    };
    // The first one starts processes and reads the files from the disk.
    let begun = Instant::now();
    let frames = match case.once(1)? {
        Ok(frames) => frames,
        Err(refusal) => return Ok(json!({"path": path, "refused": refusal.reason})),
    };
    let first = begun.elapsed();
    let (mut wall, before) = (Vec::new(), processor(codecs)?);
    for _ in 0..runs {
        let begun = Instant::now();
        case.once(1)??;
        wall.push(begun.elapsed());
    }
    // A decoder that was replaced on the way took its time along.
    let processor = processor(codecs)?.saturating_sub(before) / runs;
    // As many files at a time as the role decodes by default, each on as many threads.
    case.options = options;
    let file = case.files.first().context("there is no file")?;
    let beside = files_beside(&read(file)?, &options);
    case.once((config.decodes_max * beside) as usize)??;
    case.options = options.on_threads(1);
    let memory = Usage::of_this()?.peak;
    let decoders = codecs.idle_ids().into_iter();
    let decoders = decoders
        .map(|id| Usage::of(id).map(|usage| usage.peak))
        .sum::<Result<u64>>()?;
    let cores = thread::available_parallelism().map_or(1, usize::from);
    let per_second = case.per_second(cores, runs)?;
    codecs.close();
    Ok(json!({
        "path": path,
        "files": case.files.len(),
        "frames": frames,
        "first_ms": first.as_secs_f64() * 1000.0,
        "wall": Sample::new(wall).json(),
        "processor_ms": processor.as_secs_f64() * 1000.0,
        "threads": threads,
        "cores": cores,
        "per_second_all_cores": per_second,
        "memory_bytes_peak": memory,
        "decoders_bytes_peak": decoders,
    }))
}

struct Case {
    files: Vec<PathBuf>,
    options: Options,
    frames_max: u32,
}

impl Case {
    /// Every file read, prepared, and of a volume decoded, by so many threads; how many frames that made. They are let go of,
    /// as the store would take them.
    fn once(&self, threads: usize) -> Result<Result<usize, Refusal>> {
        let prepared = on_threads(threads, self.files.len(), |index| {
            let bytes = read(&self.files[index])?;
            let mut made = BTreeMap::new();
            let mut each = |member: Option<u32>, decoded: Decoded| {
                made.insert(member, decoded.frames.len());
            };
            let read = read_input(
                &bytes,
                &self.options,
                self.frames_max,
                Patients::Any,
                &mut each,
            );
            Ok(read.map(|read| (made, read.parts)))
        })?;
        let (mut frames, mut slices, mut members) = (0, Vec::new(), Vec::new());
        for (index, read) in prepared.into_iter().enumerate() {
            let (made, parts) = match read {
                Ok(read) => read,
                Err(refusal) => return Ok(Err(refusal)),
            };
            for part in parts {
                match part.outcome {
                    Ok(Prepared::Frames(_)) => frames += made[&part.member],
                    Ok(Prepared::Slices(of_file)) => {
                        slices.push((members.len(), of_file));
                        members.push((index, part.member));
                    }
                    Ok(Prepared::Withheld(refusal)) => return Ok(Err(refusal)),
                    Err(refusal) if refusal.leaves_out() => {}
                    Err(refusal) => return Ok(Err(refusal)),
                }
            }
        }
        if !slices.is_empty() {
            let of_study: Vec<(usize, &Slices)> =
                slices.iter().map(|(at, file)| (*at, &**file)).collect();
            match plan_volume(&of_study, self.options.convention()) {
                Ok(plan) => match self.volume(threads, &members, &plan)? {
                    Ok(shown) => frames += shown,
                    Err(refusal) => return Ok(Err(refusal)),
                },
                Err(refusal) => return Ok(Err(refusal)),
            }
        }
        if frames == 0 {
            return Ok(Err(Refusal::new(Reason::NoPixelData)));
        }
        Ok(Ok(frames))
    }

    fn volume(
        &self,
        threads: usize,
        members: &[(usize, Option<u32>)],
        plan: &SlicePlan,
    ) -> Result<Result<usize, Refusal>> {
        let mut wanted: BTreeMap<usize, Vec<Wanted>> = BTreeMap::new();
        for (at, frame) in &plan.frames {
            let (index, member) = members[*at];
            let of_input = wanted.entry(index).or_default();
            match of_input.iter_mut().find(|(of, _)| *of == member) {
                Some((_, frames)) => frames.push(*frame),
                None => of_input.push((member, vec![*frame])),
            }
        }
        let wanted: Vec<_> = wanted.into_iter().collect();
        let shown = AtomicUsize::new(0);
        let decoded = on_threads(threads, wanted.len(), |at| {
            let (index, wanted) = &wanted[at];
            let bytes = read(&self.files[*index])?;
            Ok(decode_parts(
                &bytes,
                wanted,
                plan,
                &self.options,
                &mut |_, slice| {
                    slice?;
                    shown.fetch_add(1, Ordering::Relaxed);
                    Ok(())
                },
            ))
        })?;
        let all: Result<(), Refusal> = decoded.into_iter().collect();
        Ok(all.map(|()| shown.into_inner()))
    }

    /// Of one file, one on each core at a time; of a study, its files on all cores.
    fn per_second(&self, cores: usize, runs: u32) -> Result<f64> {
        let begun = Instant::now();
        let times = if self.files.len() > 1 {
            for _ in 0..runs {
                self.once(cores)??;
            }
            runs as usize
        } else {
            let times = cores * runs as usize;
            on_threads(cores, times, |_| Ok(self.once(1)??))?;
            times
        };
        Ok(times as f64 / begun.elapsed().as_secs_f64())
    }
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}

/// Does so many things, on so many threads; what came out, in order.
fn on_threads<T: Send>(
    threads: usize,
    count: usize,
    each: impl Fn(usize) -> Result<T> + Sync,
) -> Result<Vec<T>> {
    let (next, done) = (AtomicUsize::new(0), Mutex::new(Vec::with_capacity(count)));
    thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    if index >= count {
                        break;
                    }
                    let outcome = each(index);
                    // One push: whole even after a panic elsewhere.
                    done.lock()
                        .unwrap_or_else(PoisonError::into_inner)
                        .push((index, outcome));
                }
            });
        }
    });
    let mut done = done.into_inner().unwrap_or_else(PoisonError::into_inner);
    done.sort_by_key(|(index, _)| *index);
    done.into_iter().map(|(_, outcome)| outcome).collect()
}

/// Processor time of this process and of those that decode for it.
fn processor(codecs: &Codecs) -> Result<Duration> {
    let mut time = super::super::side::processor()?;
    for id in codecs.idle_ids() {
        time += Usage::of(id)?.processor;
    }
    Ok(time)
}
