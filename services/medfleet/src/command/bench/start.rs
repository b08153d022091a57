//! `medfleet bench start`: from the start of a process to its first token, with a model of MedGemma 4B's true shapes. Every
//! start is a process of its own, timed from outside: first with nothing in memory and nothing remembered, then with what the
//! first one remembered, from disk (cold) and from the system's page cache (warm), in turns. Beside it another process only
//! reads the same files, which is as fast as weights could be there.

use std::ffi::OsString;
use std::fmt;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::str::FromStr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use medfleet_model::{
    ComputeDevice, Continue, Dtype, FolderSource, GgufSource, LoadOptions, Message, Model, Parts,
    QuantisedCache, Request,
};
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::checkpoint::Checkpoint;
use super::form::{Form, Quants};
use super::sample::Sample;
use super::usage::Usage;
use crate::exit::{CommandResult, Exit};
use crate::fleet::child;
use crate::show::{self, bytes, seconds};

/// What a process says when its weights are in place, and when it has a token. What it has taken comes last, as JSON.
const LOADED: &str = "loaded";
const TOKEN: &str = "token";
/// What is read at a time where reading is all there is.
const PIECE_BYTES: usize = 4 << 20;
/// How a process's kept rows are called.
const ROWS: &str = "rows";

/// Flags of `bench start`.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    #[command(flatten)]
    checkpoint: Checkpoint,
    /// Also quantise the folder to q8_0 while it is read, without a cache of that and with one
    #[arg(long)]
    quantise: bool,
    /// Starts from disk, and as many from memory
    #[arg(long, value_name = "N", default_value_t = 3)]
    trials: usize,
    /// What the first token answers, which is read before it
    #[arg(
        long,
        value_name = "TEXT",
        default_value = "Describe the heart and the lungs."
    )]
    prompt: String,
    /// One JSON object on stdout
    #[arg(long)]
    json: bool,
    /// Be one of the processes
    #[arg(long, value_name = "WAY", hide = true)]
    child: Option<Way>,
    /// Where digests and quantised rows are kept
    #[arg(long, value_name = "DIR", hide = true, requires = "child")]
    kept: Option<PathBuf>,
    /// Only read the files
    #[arg(long, hide = true, requires = "child")]
    only_read: bool,
}

/// How a process gets its weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// As they are stored, in a folder or in a GGUF.
    Stored(Form),
    /// A folder's, quantised while they are read.
    Made,
    /// The same, by the first start alone.
    Kept,
}

impl Way {
    /// The files that hold its weights.
    const fn form(self) -> Form {
        match self {
            Self::Stored(form) => form,
            Self::Made | Self::Kept => Form::Plain(Dtype::Bf16),
        }
    }

    /// How they are held.
    const fn held(self) -> Form {
        match self {
            Self::Stored(form) => form,
            Self::Made | Self::Kept => Form::Quantised(Quants::Q8_0),
        }
    }

    /// What is computed in: bf16 but where f32 is asked for.
    const fn dtype(self) -> Dtype {
        match self {
            Self::Stored(Form::Plain(dtype)) => dtype,
            Self::Stored(Form::Quantised(_)) | Self::Made | Self::Kept => Dtype::Bf16,
        }
    }
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stored(form @ Form::Plain(_)) => form.fmt(f),
            Self::Stored(form @ Form::Quantised(_)) => write!(f, "stored-{form}"),
            Self::Made => f.write_str("made-q8_0"),
            Self::Kept => f.write_str("kept-q8_0"),
        }
    }
}

impl FromStr for Way {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        Ok(match text {
            "made-q8_0" => Self::Made,
            "kept-q8_0" => Self::Kept,
            _ => Self::Stored(text.strip_prefix("stored-").unwrap_or(text).parse()?),
        })
    }
}

/// What is in memory, and what is remembered, when a process starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pages {
    /// Files are on disk, and nothing is remembered.
    First,
    /// Files are on disk.
    Cold,
    /// Files are in the page cache, as far as it holds them.
    Warm,
}

impl Pages {
    const fn name(self) -> &'static str {
        match self {
            Self::First => "first",
            Self::Cold => "cold",
            Self::Warm => "warm",
        }
    }
}

/// What a process says of itself at its end.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Taken {
    /// Resident memory at most: VmHWM.
    peak_bytes: u64,
    /// What came from a disk, where the system says it.
    disk_bytes: Option<u64>,
    /// What became of kept rows.
    cache: String,
}

/// One start.
struct Trial {
    loaded: Duration,
    first_token: Duration,
    taken: Taken,
}

/// All starts of one kind.
struct Figures {
    way: Way,
    pages: Pages,
    weights_bytes: u64,
    /// The files alone.
    read: Sample,
    loaded: Sample,
    first_token: Sample,
    peak_bytes: u64,
    disk_bytes: Option<u64>,
    caches: Vec<String>,
}

pub(crate) fn run(args: Args) -> CommandResult {
    if let Some(way) = args.child {
        start(&args, way)?;
        return Ok(Exit::Done);
    }
    args.checkpoint.prepare()?;
    let [device] = args.checkpoint.device[..] else {
        return Err(anyhow::anyhow!("one --device at a time").into());
    };
    let stored = args.checkpoint.dtype.iter().copied().map(Way::Stored);
    let mut ways: Vec<Way> = stored.collect();
    if args.quantise {
        ways.extend([Way::Made, Way::Kept]);
    }
    let mut all = Vec::new();
    for way in ways {
        let figures = measure(&args, way, device)?;
        if !args.json {
            show::print(&table(&figures).join("\n"))?;
        }
        all.extend(figures);
    }
    if args.json {
        show::print_json(&as_json(&args, &all))?;
    }
    Ok(Exit::Done)
}

/// The child: loads, writes one token, and says so.
fn start(args: &Args, way: Way) -> Result<()> {
    let kept = args.kept.as_deref();
    if args.only_read {
        read_all(&files(&args.checkpoint, way, kept)?)?;
        show::print(LOADED)?;
        show::print(TOKEN)?;
        return say(&QuantisedCache::Off);
    }
    let [device] = args.checkpoint.device[..] else {
        bail!("one --device at a time");
    };
    let options = LoadOptions {
        dtype: way.dtype(),
        parts: Parts::All,
        device,
    };
    let digest_cache = args.kept.clone();
    let folder = FolderSource {
        digest_cache: digest_cache.clone(),
        ..FolderSource::new(args.checkpoint.dir())
    };
    let model = match way {
        Way::Stored(Form::Plain(_)) => Model::load_folder(&folder, options),
        Way::Stored(form @ Form::Quantised(_)) => {
            let source = GgufSource {
                digest_cache,
                ..args.checkpoint.stored(form)
            };
            Model::load_gguf(&source, options)
        }
        Way::Made | Way::Kept => {
            let source = FolderSource {
                quantised: true,
                quantised_cache: args.kept.clone().filter(|_| way == Way::Kept),
                ..folder
            };
            Model::load_folder(&source, options)
        }
    };
    let model = model.with_context(|| format!("cannot load {way}"))?;
    show::print(LOADED)?;
    let prompt = model.prompt(&[Message::user(0, args.prompt.as_str())], 0);
    let prompt = prompt.context("cannot build the prompt")?;
    let request = Request::greedy(&model, &prompt, &[], 1);
    let generation = model.generate(&request, &mut |_| Continue::Yes);
    let written = generation.context("cannot generate")?.choices.len();
    ensure!(written == 1, "{written} tokens were written, expected 1");
    show::print(TOKEN)?;
    say(model.quantised_cache())
}

fn say(cache: &QuantisedCache) -> Result<()> {
    let taken = Taken {
        peak_bytes: Usage::of_this()?.peak,
        disk_bytes: disk_bytes(),
        cache: format!("{cache:?}"),
    };
    Ok(show::print(&serde_json::to_string(&taken)?)?)
}

/// What this process had fetched from disks; some containers do not say.
fn disk_bytes() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/self/io").ok()?;
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("read_bytes:"))?;
    line.trim().parse().ok()
}

/// The files that a start of this kind reads: with kept rows those alone, and not the folder's other weights.
fn files(checkpoint: &Checkpoint, way: Way, kept: Option<&Path>) -> Result<Vec<PathBuf>> {
    if let (Way::Kept, Some(kept)) = (way, kept) {
        let rows = kept_files(kept)?;
        if !rows.is_empty() {
            return Ok(rows);
        }
    }
    Ok(match way.form() {
        // The vision tower of a GGUF's model is in the folder, with a language model that is not read.
        form @ Form::Quantised(_) => checkpoint.files(form).pop().into_iter().collect(),
        form @ Form::Plain(_) => checkpoint.files(form),
    })
}

fn kept_files(kept: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(kept).context("cannot look for kept rows")? {
        let path = entry.context("cannot look for kept rows")?.path();
        if path.extension().is_some_and(|end| end == ROWS) {
            found.push(path);
        }
    }
    Ok(found)
}

/// Reads all bytes of the files, on as many threads as there are cores.
fn read_all(files: &[PathBuf]) -> Result<()> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    for path in files {
        let file = File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
        let length = file.metadata()?.len();
        let next = AtomicUsize::new(0);
        let read = || -> std::io::Result<()> {
            let mut piece = vec![0; PIECE_BYTES];
            loop {
                let from = (next.fetch_add(1, Ordering::Relaxed) * PIECE_BYTES) as u64;
                if from >= length {
                    return Ok(());
                }
                let count = (length - from).min(PIECE_BYTES as u64) as usize;
                file.read_exact_at(&mut piece[..count], from)?;
                std::hint::black_box(&piece);
            }
        };
        std::thread::scope(|scope| {
            let readers: Vec<_> = (0..threads).map(|_| scope.spawn(read)).collect();
            readers.into_iter().try_for_each(|reader| {
                reader
                    .join()
                    .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            })
        })
        .with_context(|| format!("cannot read {}", path.display()))?;
    }
    Ok(())
}

/// All starts of one way: the first, then from disk and from memory in turns.
fn measure(args: &Args, way: Way, device: ComputeDevice) -> Result<Vec<Figures>> {
    let kept = tempfile::tempdir_in(args.checkpoint.dir()).context("cannot make a folder")?;
    let mut turns = vec![Pages::First];
    for _ in 0..args.trials {
        turns.extend([Pages::Cold, Pages::Warm]);
    }
    let mut trials = Vec::new();
    for pages in turns {
        let one = |only_read| -> Result<Trial> {
            if pages != Pages::Warm {
                drop_pages(&args.checkpoint.files(way.form()))?;
                drop_pages(&kept_files(kept.path())?)?;
            }
            trial(args, way, device, kept.path(), only_read)
        };
        let read = one(true)?;
        let start = one(false)?;
        trials.push((pages, read.loaded, start));
    }
    let of = |pages: Pages| {
        let of = |what: fn(&Trial) -> Duration| {
            let these = trials.iter().filter(move |(of, ..)| *of == pages);
            Sample::new(these.map(|(_, _, trial)| what(trial)).collect())
        };
        let these = || trials.iter().filter(move |(of, ..)| *of == pages);
        let taken = || these().map(|(_, _, trial)| &trial.taken);
        Figures {
            way,
            pages,
            weights_bytes: args.checkpoint.weights_bytes(way.held()),
            read: Sample::new(these().map(|(_, read, _)| *read).collect()),
            loaded: of(|trial| trial.loaded),
            first_token: of(|trial| trial.first_token),
            peak_bytes: taken().map(|taken| taken.peak_bytes).max().unwrap_or(0),
            disk_bytes: taken().filter_map(|taken| taken.disk_bytes).max(),
            caches: taken().map(|taken| taken.cache.clone()).collect(),
        }
    };
    let mut kinds = vec![Pages::First];
    if args.trials > 0 {
        kinds.extend([Pages::Cold, Pages::Warm]);
    }
    Ok(kinds.into_iter().map(of).collect())
}

/// Starts a process and times what it says.
fn trial(
    args: &Args,
    way: Way,
    device: ComputeDevice,
    kept: &Path,
    only_read: bool,
) -> Result<Trial> {
    let program = std::env::current_exe().context("cannot find this program")?;
    let mut command = Command::new(program);
    command.args(["bench", "start"]);
    command.args(args.checkpoint.flags(way.form(), device));
    command.args([OsString::from("--child"), way.to_string().into()]);
    command.args([OsString::from("--kept"), kept.into()]);
    command.args(["--prompt", args.prompt.as_str()]);
    if only_read {
        command.arg("--only-read");
    }
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    child::tie_to_us(&mut command);
    let begun = Instant::now();
    let mut process = command.spawn().context("cannot start a process")?;
    let said = process.stdout.take().context("no output of the process")?;
    let (mut loaded, mut first_token, mut last) = (None, None, String::new());
    for line in BufReader::new(said).lines() {
        let line = line.context("cannot read what the process says")?;
        match line.as_str() {
            LOADED => loaded = Some(begun.elapsed()),
            TOKEN => first_token = Some(begun.elapsed()),
            _ => last = line,
        }
    }
    let ended = process.wait().context("cannot wait for the process")?;
    ensure!(ended.success(), "a start of {way} failed: {ended}");
    Ok(Trial {
        loaded: loaded.context("the process did not say that it had loaded")?,
        first_token: first_token.context("the process did not say that it had a token")?,
        taken: serde_json::from_str(&last).context("the process did not say what it took")?,
    })
}

/// Asks the system to drop what it holds of these files. What is still to be written to disk would stay, so it is written first.
fn drop_pages(files: &[PathBuf]) -> Result<()> {
    for path in files {
        let what = || format!("cannot drop the pages of {}", path.display());
        let file = File::open(path).with_context(what)?;
        file.sync_all().with_context(what)?;
        posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED).with_context(what)?;
    }
    Ok(())
}

/// A row for each kind of start.
fn table(all: &[Figures]) -> Vec<String> {
    let first = &all[0];
    let titles = [
        "files alone",
        "in place",
        "first token",
        "peak",
        "from disk",
    ];
    let titles = titles.map(|title| format!("{title:>13}")).concat();
    let mut lines = vec![
        format!(
            "{}, weights {}; medians, memory at most",
            first.way,
            bytes(first.weights_bytes)
        ),
        format!("{:<8}{titles}", ""),
    ];
    for figures in all {
        let cells = [
            seconds(figures.read.median()),
            seconds(figures.loaded.median()),
            seconds(figures.first_token.median()),
            bytes(figures.peak_bytes),
            figures.disk_bytes.map_or("unknown".to_owned(), bytes),
        ];
        let cells = cells.map(|cell| format!("{cell:>13}")).concat();
        let share = figures.peak_bytes as f64 / figures.weights_bytes as f64;
        let name = figures.pages.name();
        lines.push(format!("{name:<8}{cells}  {share:.2} of the weights"));
    }
    lines.push(String::new());
    lines
}

fn as_json(args: &Args, all: &[Figures]) -> Value {
    let starts = all.iter().map(|figures| {
        json!({
            "way": figures.way.to_string(),
            "pages": figures.pages.name(),
            "weights_bytes": figures.weights_bytes,
            "files_alone": figures.read.json(),
            "in_place": figures.loaded.json(),
            "first_token": figures.first_token.json(),
            "peak_bytes": figures.peak_bytes,
            "disk_bytes": figures.disk_bytes,
            "quantised_cache": figures.caches,
        })
    });
    json!({
        "bench": "start",
        "layers": args.checkpoint.layers(),
        "vision_layers": args.checkpoint.vision_layers(),
        "trials": args.trials,
        "starts": starts.collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ways_are_read_as_they_are_written() {
        for form in ["bf16", "f32", "q8_0", "q4_k_m"] {
            let way = Way::Stored(form.parse().unwrap());
            assert_eq!(way.to_string().parse::<Way>().unwrap(), way);
        }
        for way in [Way::Made, Way::Kept] {
            assert_eq!(way.to_string().parse::<Way>().unwrap(), way);
        }
        assert!("kept".parse::<Way>().is_err());
    }

    #[test]
    fn files_are_read_whole_and_dropped() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("model.rows");
        std::fs::write(&path, vec![1; PIECE_BYTES + 1]).unwrap();
        std::fs::write(dir.path().join("digests.json"), "{}").unwrap();
        let found = kept_files(dir.path()).unwrap();
        assert_eq!(found, [path]);
        drop_pages(&found).unwrap();
        read_all(&found).unwrap();
        let missing = [dir.path().join("missing")];
        assert!(read_all(&missing).is_err() && drop_pages(&missing).is_err());
    }
}
