//! `cargo xtask bench-peers`: this model and other programs on the same machine, in turns, at MedGemma 4B's true shapes with
//! random weights and few layers. Run by hand; never part of the gate.
//!
//! What was measured is kept program by program (`results`), so that a run that was cut off goes on where it was, and one
//! program that fails takes nothing from the others. After each round the table is put into `docs/performance.md`.
//! Reading order: `programs` (what is run), `results`, `table`, `page`.

mod page;
mod programs;
mod results;
mod table;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::{interpreters, places, process};
use programs::{Load, Programs};
use results::{DIRTY, Results};

/// Compiled here, for this machine, with whatever compiler there is.
const LLAMA_CPP: &str = "llama-cpp-python==0.3.36";
const LLAMA_CPP_FLAGS: &str = "-DGGML_NATIVE=ON -DLLAVA_BUILD=ON";
/// Where the programs that run the peers are.
const SCRIPTS: &str = "tests/reference/peers";
/// Sides of images in pixels: MedGemma's, and one of which images alone are measured.
const IMAGE_SIZE: usize = 896;
const IMAGE_SIZE_SMALL: usize = 448;
/// What the weights take on disk, all forms together: the embedding and the files' rest, and each layer.
const WEIGHTS_BYTES: u64 = 5_000_000_000;
const LAYER_BYTES: u64 = 700_000_000;

/// What can be measured by itself: each has its own results, and its own place in the page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    /// Single works of the models.
    Models,
    /// Whole reports.
    Reports,
}

impl Part {
    const fn name(self) -> &'static str {
        match self {
            Self::Models => "models",
            Self::Reports => "reports",
        }
    }
}

struct Options {
    layers: usize,
    rounds: usize,
    threads: usize,
    repeat: usize,
    steps: usize,
    /// Minutes that one program may take in one form.
    minutes: usize,
    /// What is measured.
    parts: Vec<Part>,
    load: Load,
    /// Forms of the language model, as `medfleet bench model` names them.
    dtypes: Vec<String>,
    /// Where this model computes, as `medfleet bench model` names it. Others are compared with the first.
    devices: Vec<String>,
    /// Side of an image, in pixels.
    image_size: usize,
    /// A Python that has the peers already.
    python: Option<PathBuf>,
    /// Where the weights are, and what was measured with them.
    dir: PathBuf,
}

/// `--layers 2 --rounds 2 --threads N --repeat 3 --steps 16 --minutes 20 --dtypes q8_0,… --python PATH --dir DIR
/// --what models,reports --jobs 32 --tokens 150 --slots 16 --device cpu,cpu:LEVEL --image-size 896`,
/// in any order.
pub(crate) fn run(options: &[&str]) -> Result<()> {
    let options = read(options)?;
    // First: without room it would fail after an hour of compiling.
    room(&options)?;
    process::build_workspace()?;
    let python = match &options.python {
        Some(python) => python.clone(),
        None => environment()?,
    };
    let programs = Programs { options, python };
    programs.prepare()?;
    let (processor, commit) = (processor()?, commit());
    let mut parts = Vec::new();
    for part in &programs.options.parts {
        let path = programs
            .options
            .dir
            .join(results_name(*part, &programs.options));
        parts.push((*part, Results::open(path, &processor)?));
    }
    let (rounds, ours) = (programs.options.rounds, programs.options.ours());
    for round in 1..=rounds {
        eprintln!("round {round} of {rounds}");
        for (part, results) in &mut parts {
            let tasks = programs.tasks(*part);
            for task in &tasks {
                if results.has(round, task, &commit) {
                    eprintln!("round {round}: {task} is measured already");
                } else if results.was_late(round, task) {
                    eprintln!("round {round}: {task} took too long before and is left out");
                } else {
                    let cell = programs.measure(task, &commit);
                    results.add(round, task, cell)?;
                }
            }
            let cells = results.cells(rounds, &tasks, &commit);
            let heading = heading(*part, &programs.options, &processor)?;
            let section = page::section(&heading, &cells, &ours);
            page::put((*part, programs.options.image_size), &section)?;
        }
    }
    for (part, results) in &parts {
        let cells = results.cells(rounds, &programs.tasks(*part), &commit);
        let heading = heading(*part, &programs.options, &processor)?;
        println!("{}\n", page::section(&heading, &cells, &ours));
        println!("All of it is in {}.", results.path().display());
        ensure!(
            cells.iter().any(|cell| table::is_peer_with_figures(cell)),
            "no other program gave a figure for {}: what went wrong is above",
            part.name()
        );
    }
    Ok(())
}

fn read(options: &[&str]) -> Result<Options> {
    let mut read = Options {
        layers: 2,
        rounds: 2,
        threads: std::thread::available_parallelism().map_or(1, usize::from),
        repeat: 3,
        steps: 16,
        minutes: 20,
        parts: vec![Part::Models, Part::Reports],
        load: Load {
            jobs: 32,
            tokens: 150,
            slots: 16,
        },
        dtypes: ["q8_0", "q4_k_m", "bf16", "f32"]
            .map(str::to_owned)
            .to_vec(),
        devices: vec!["cpu".to_owned()],
        image_size: IMAGE_SIZE,
        python: None,
        dir: PathBuf::new(),
    };
    for pair in options.chunks(2) {
        let &[name, value] = pair else {
            bail!("{} needs a value", pair.join(" "));
        };
        let number = || {
            let number = value.parse::<usize>().ok().filter(|number| *number > 0);
            number.with_context(|| format!("{name} takes a positive number, not {value:?}"))
        };
        // Programs start in the root of the repository, whatever a path was relative to.
        let path = || std::path::absolute(value).with_context(|| format!("{name} {value}"));
        match name {
            "--layers" => read.layers = number()?,
            "--rounds" => read.rounds = number()?,
            "--threads" => read.threads = number()?,
            "--repeat" => read.repeat = number()?,
            "--steps" => read.steps = number()?,
            "--minutes" => read.minutes = number()?,
            "--what" => read.parts = what(value)?,
            "--jobs" => read.load.jobs = number()?,
            "--tokens" => read.load.tokens = number()?,
            "--slots" => read.load.slots = number()?,
            "--dtypes" => read.dtypes = value.split(',').map(str::to_owned).collect(),
            "--device" => read.devices = devices(value)?,
            "--image-size" => read.image_size = number()?,
            "--python" => read.python = Some(path()?),
            "--dir" => read.dir = path()?,
            _ => bail!("bench-peers does not know {name}"),
        }
    }
    settled(read)
}

/// With what follows from what was asked for.
fn settled(mut read: Options) -> Result<Options> {
    // A checkpoint has one number of layers, and one size of images.
    let mut folder = format!("peers/{}-layers", read.layers);
    if !read.has_texts() {
        ensure!(
            read.image_size == IMAGE_SIZE_SMALL && read.parts == [Part::Models],
            "--image-size takes {IMAGE_SIZE} and, with --what models, {IMAGE_SIZE_SMALL}"
        );
        // Forms of the language model are none of an image.
        let plain = |dtype: &String| matches!(dtype.as_str(), "f32" | "bf16");
        read.dtypes.retain(plain);
        ensure!(
            !read.dtypes.is_empty(),
            "images are encoded in f32 and bf16: --dtypes has neither"
        );
        folder += &format!("-{}-pixels", read.image_size);
    }
    if read.dir.as_os_str().is_empty() {
        read.dir = places::scratch(&folder)?;
    }
    Ok(read)
}

/// Single works of the models, whole reports, or both.
fn what(value: &str) -> Result<Vec<Part>> {
    let part = |name: &str| match name {
        "models" => Ok(Part::Models),
        "reports" => Ok(Part::Reports),
        _ => bail!("--what takes models, reports or both, not {name:?}"),
    };
    value.split(',').map(part).collect()
}

/// CPUs, with or without the name of a level.
fn devices(value: &str) -> Result<Vec<String>> {
    let device = |name: &str| {
        ensure!(
            name == "cpu" || name.starts_with("cpu:"),
            "--device takes cpu and cpu:LEVEL, not {name:?}"
        );
        Ok(name.to_owned())
    };
    value.split(',').map(device).collect()
}

impl Options {
    /// What this model is called where others are compared with it.
    fn ours(&self) -> String {
        let device = self.devices.first();
        programs::ours(device.map_or("cpu", String::as_str))
    }

    /// Whether more is measured than images: the language model is the same beside any size of them.
    const fn has_texts(&self) -> bool {
        self.image_size == IMAGE_SIZE
    }

    const fn limit(&self) -> Duration {
        Duration::from_secs(60 * self.minutes as u64)
    }
}

/// What was measured with other options is another file.
fn results_name(part: Part, options: &Options) -> String {
    let (part, threads, repeat) = (part.name(), options.threads, options.repeat);
    format!(
        "results-{part}-{threads}-threads-{repeat}-repeats-{}-steps.json",
        options.steps
    )
}

/// Refuses a run whose weights would not fit on the disk.
fn room(options: &Options) -> Result<()> {
    std::fs::create_dir_all(&options.dir)
        .with_context(|| format!("create {}", options.dir.display()))?;
    if options.dir.join(programs::LAST_FILE).is_file() {
        return Ok(());
    }
    let mut df = Command::new("df");
    let text = process::capture(df.args(["-B1", "--output=avail"]).arg(&options.dir))?;
    let free: u64 = text
        .lines()
        .last()
        .and_then(|line| line.trim().parse().ok())
        .context("df printed no number")?;
    let needed = WEIGHTS_BYTES + LAYER_BYTES * options.layers as u64;
    ensure!(
        free >= needed,
        "{} has {:.1} GB free, and the weights take {:.1} GB: choose another --dir",
        options.dir.display(),
        free as f64 * 1e-9,
        needed as f64 * 1e-9
    );
    Ok(())
}

/// PyTorch, transformers and llama.cpp in a virtual environment of the cache; some gigabytes, and minutes of compiling.
fn environment() -> Result<PathBuf> {
    let requirements = places::root().join(SCRIPTS).join("requirements.txt");
    eprintln!("installing PyTorch, if it is not there: some gigabytes");
    let python = interpreters::python_without_dependencies("peers", &requirements)?;
    let present = process::succeeds(Command::new(&python).args(["-c", "import llama_cpp"]));
    if !present && let Err(error) = llama_cpp(&python) {
        eprintln!("llama.cpp is left out: {error:#}");
    }
    Ok(python)
}

/// Compiles llama.cpp into the environment.
fn llama_cpp(python: &Path) -> Result<()> {
    eprintln!("compiling llama.cpp: about half an hour on two cores");
    let mut pip = Command::new(python);
    pip.args(["-m", "pip", "install", "--no-deps", LLAMA_CPP])
        .env("CMAKE_ARGS", LLAMA_CPP_FLAGS);
    let amx = std::fs::read_to_string("/proc/cpuinfo").is_ok_and(|text| text.contains("amx_tile"));
    if amx {
        // gcc 12 drops the configuration of AMX tiles, and what it makes crashes.
        let clang = process::succeeds(Command::new("clang++").arg("--version"));
        ensure!(
            clang,
            "on a machine with AMX it takes clang (with libomp-dev), which is not there"
        );
        pip.env("CC", "clang").env("CXX", "clang++");
    }
    process::run(&mut pip)
}

/// The name of this machine's processor.
fn processor() -> Result<String> {
    let text = std::fs::read_to_string("/proc/cpuinfo").context("read /proc/cpuinfo")?;
    let name = text
        .lines()
        .find_map(|line| line.strip_prefix("model name"));
    let name = name.and_then(|line| line.split_once(':'));
    Ok(name
        .map_or("an unknown processor", |(_, name)| name.trim())
        .to_owned())
}

/// The commit that is measured, as far as git knows.
fn commit() -> String {
    let mut git = process::in_root("git");
    let commit = process::capture(git.args(["rev-parse", "--short=10", "HEAD"]));
    let commit = commit.map_or_else(|_| "unknown".to_owned(), |text| text.trim().to_owned());
    let mut git = process::in_root("git");
    // The page is ours to change.
    let diff = git.args(["diff", "--quiet", "HEAD", "--", ".", ":!docs"]);
    let dirty = if process::succeeds(diff) { "" } else { DIRTY };
    format!("{commit}{dirty}")
}

/// What the table is of.
fn heading(part: Part, options: &Options, processor: &str) -> Result<String> {
    let date = process::capture(Command::new("date").args(["-u", "+%F"]))?;
    let what = match part {
        Part::Models if !options.has_texts() => format!(
            "images of {} pixels, {} of them in a round",
            options.image_size, options.repeat
        ),
        Part::Models => format!(
            "in a round an image and a prompt {} times, a step {} times",
            options.repeat, options.steps
        ),
        Part::Reports => format!(
            "a report alone {} times, then {}",
            options.repeat, options.load
        ),
    };
    Ok(format!(
        "Measured on {}, {processor}: {} layers in each tower, {} threads, rounds in turns: {}; {what}.",
        date.trim(),
        options.layers,
        options.threads,
        options.rounds
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scripts_are_there() {
        for name in [
            "files.py",
            "llama_cpp_bench.py",
            "llama_cpp_models.py",
            "llama_cpp_reports.py",
            "torch_bench.py",
            "torch_reports.py",
            "samples.py",
            "requirements.txt",
        ] {
            let path = places::root().join(SCRIPTS).join(name);
            assert!(path.is_file(), "{}", path.display());
        }
    }

    #[test]
    fn options_come_in_any_order_and_nothing_else_does() {
        let options = read(&["--threads", "1", "--dtypes", "bf16,q8_0"]).unwrap();
        assert_eq!((options.threads, options.dtypes.len()), (1, 2));
        for wrong in [
            &["--threads"][..],
            &["--threads", "0"],
            &["--hours", "1"],
            &["--what", "nothing"],
            &["--device", "cpu,cuda"],
            &["--image-size", "448"],
            &["--image-size", "672", "--what", "models"],
            &[
                "--image-size",
                "448",
                "--what",
                "models",
                "--dtypes",
                "q8_0",
            ],
        ] {
            assert!(read(wrong).is_err(), "{wrong:?}");
        }
        let options = read(&["--what", "reports", "--jobs", "4"]).unwrap();
        assert_eq!(options.parts, [Part::Reports]);
        assert_eq!(options.load.jobs, 4);
    }

    #[test]
    fn folders_do_not_depend_on_where_a_program_starts() {
        let options = read(&["--dir", "weights", "--python", "venv/bin/python"]).unwrap();
        assert!(options.dir.is_absolute());
        assert!(options.python.unwrap().is_absolute());
    }

    #[test]
    fn checkpoints_of_other_shapes_are_elsewhere() {
        let dir = |layers: &str| read(&["--layers", layers]).unwrap().dir;
        assert_ne!(dir("1"), dir("3"));
        let small = ["--layers", "1", "--image-size", "448", "--what", "models"];
        assert_ne!(dir("1"), read(&small).unwrap().dir);
    }
}
