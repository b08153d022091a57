//! What is run: this model and its peers, each as a process of its own that prints what it measured as a line of JSON, and
//! is stopped when it takes too long.

use std::fmt;
use std::io::Read;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use serde_json::Value;

use super::results::{Cell, Work};
use super::{Options, Part, SCRIPTS};
use crate::{places, process};

/// The index of the checkpoint, which is written after its weights.
const INDEX: &str = "model.safetensors.index.json";
/// Layers of MedGemma 4B's language model: `medfleet bench model` writes no more.
const LAYERS: usize = 34;
/// Work of an image, as all programs call it.
const IMAGE: &str = "image encoded";
/// What `files.py` writes last.
pub(super) const LAST_FILE: &str = "words.gguf";
/// Computes as the best level does but for products of bf16.
const BLOCKS: &str = "cpu:avx512-bfp";
/// How long a run may take that only writes weights.
const PREPARE_MAX: Duration = Duration::from_secs(3600);

/// One program in one form.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Task {
    pub(super) program: Program,
    pub(super) dtype: String,
    /// Where ours computes, as `medfleet bench model` names it; of others nothing.
    pub(super) device: String,
}

/// Work of one kind, or whole reports under a load.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Program {
    Medfleet,
    LlamaText,
    LlamaImage,
    Torch,
    /// Through a whole fleet.
    Fleet(Load),
    /// Pass by pass as llama.cpp's server does it.
    LlamaReports(Load),
    /// With `generate` of transformers.
    TorchReports(Load),
}

/// Reports that are asked for at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Load {
    pub(super) jobs: usize,
    /// Of each text.
    pub(super) tokens: usize,
    /// Texts side by side at most.
    pub(super) slots: usize,
}

impl Load {
    fn flags(self) -> [String; 6] {
        let flag = |name: &str| format!("--{name}");
        [
            flag("jobs"),
            self.jobs.to_string(),
            flag("tokens"),
            self.tokens.to_string(),
            flag("slots"),
            self.slots.to_string(),
        ]
    }
}

impl fmt::Display for Load {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            jobs,
            tokens,
            slots,
        } = self;
        write!(f, "{jobs} reports of {tokens} tokens in {slots} slots")
    }
}

impl Program {
    /// Its name in the table, ours without a level.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Medfleet | Self::Fleet(_) => "medfleet",
            Self::LlamaText | Self::LlamaImage => "llama.cpp",
            Self::LlamaReports(_) => "llama.cpp, as its server",
            Self::Torch => "PyTorch",
            Self::TorchReports(_) => "transformers",
        }
    }

    /// Whether it changes with this repository.
    pub(super) const fn is_ours(self) -> bool {
        matches!(self, Self::Medfleet | Self::Fleet(_))
    }

    const fn load(self) -> Option<Load> {
        match self {
            Self::Fleet(load) | Self::LlamaReports(load) | Self::TorchReports(load) => Some(load),
            Self::Medfleet | Self::LlamaText | Self::LlamaImage | Self::Torch => None,
        }
    }
}

/// What this model is called in the table: with the level, where the device names one.
pub(super) fn ours(device: &str) -> String {
    let name = Program::Medfleet.name();
    match device.strip_prefix("cpu:") {
        Some(level) => format!("{name}, {level}"),
        None => name.to_owned(),
    }
}

impl Task {
    /// What it is called in the table.
    fn name(&self) -> String {
        match self.program.is_ours() {
            true => ours(&self.device),
            false => self.program.name().to_owned(),
        }
    }
}

impl fmt::Display for Task {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let of = match (self.program, self.program.load()) {
            (_, Some(load)) => format!(" {load}"),
            (Program::LlamaImage, None) => " images".to_owned(),
            _ => String::new(),
        };
        write!(f, "{}{of} {}", self.name(), self.dtype)
    }
}

/// How to run them.
pub(super) struct Programs {
    pub(super) options: Options,
    pub(super) python: PathBuf,
}

impl Programs {
    /// Writes whatever weights are not there yet.
    pub(super) fn prepare(&self) -> Result<()> {
        let has = |name: &str| self.file(name).is_file();
        if has(INDEX) {
            self.check_shape()?;
        }
        let plain = |dtype: &str| matches!(dtype, "f32" | "bf16");
        let dtypes = self.options.dtypes.iter().map(String::as_str);
        let mut missing: Vec<&str> = dtypes
            .filter(|dtype| !plain(dtype) && !has(&format!("text-{dtype}.gguf")))
            .collect();
        if missing.is_empty() && !has(INDEX) {
            missing.push("bf16");
        }
        if !missing.is_empty() {
            eprintln!("writing the weights of {}", missing.join(", "));
            // A short run of our own writes the checkpoint and the GGUFs.
            let mut command = self.medfleet(&missing.join(","), "cpu");
            command.args([
                "--repeat", "1", "--images", "0", "--steps", "1", "--batch", "1",
            ]);
            let printed = within(&mut command, PREPARE_MAX)?;
            if let Some(failed) = printed.failed {
                return Err(anyhow!(failed).context("write the weights"));
            }
        }
        if !has(LAST_FILE) {
            eprintln!("writing the same weights for llama.cpp");
            let script = places::root().join(SCRIPTS).join("files.py");
            let mut command = Command::new(&self.python);
            if let Err(error) = process::run(command.arg(script).arg(&self.options.dir)) {
                // The others are measured all the same.
                eprintln!("llama.cpp's images, and its texts in bf16, will fail: {error:#}");
            }
        }
        Ok(())
    }

    /// What is there must be what is asked for: its figures would be called something else.
    fn check_shape(&self) -> Result<()> {
        let config = std::fs::read(self.file("config.json")).context("read config.json")?;
        let config: Value = serde_json::from_slice(&config).context("config.json is no JSON")?;
        for (what, found, asked) in [
            (
                "layers",
                &config["text_config"]["num_hidden_layers"],
                self.options.layers.min(LAYERS),
            ),
            (
                "pixels",
                &config["vision_config"]["image_size"],
                self.options.image_size,
            ),
        ] {
            ensure!(
                found.as_u64() == Some(asked as u64),
                "{} has a checkpoint of {found} {what}, not {asked}: choose another --dir",
                self.options.dir.display()
            );
        }
        Ok(())
    }

    /// What a round of a part runs, programs in turns.
    pub(super) fn tasks(&self, part: Part) -> Vec<Task> {
        let load = self.options.load;
        let (ours, llama, torch) = match part {
            Part::Models => (Program::Medfleet, Program::LlamaText, Program::Torch),
            Part::Reports => (
                Program::Fleet(load),
                Program::LlamaReports(load),
                Program::TorchReports(load),
            ),
        };
        let mut tasks = Vec::new();
        let mut add = |program: Program, dtype: &str, device: &str| {
            let (dtype, device) = (dtype.to_owned(), device.to_owned());
            tasks.push(Task {
                program,
                dtype,
                device,
            });
        };
        for dtype in &self.options.dtypes {
            // Of images in whole reports also beside quantised weights.
            let has_bf16 = match part {
                Part::Models => dtype == "bf16",
                Part::Reports => dtype != "f32",
            };
            for (index, device) in self.options.devices.iter().enumerate() {
                if index == 0 || has_bf16 || device != BLOCKS {
                    add(ours, dtype, device);
                }
            }
            if dtype != "f32" && self.options.has_texts() {
                add(llama, dtype, "");
            }
            if matches!(dtype.as_str(), "f32" | "bf16") {
                add(torch, dtype, "");
            }
        }
        if part == Part::Models {
            for dtype in ["f16", "q8_0"] {
                add(Program::LlamaImage, dtype, "");
            }
        }
        tasks
    }

    /// Runs one; what goes wrong is said in the cell.
    pub(super) fn measure(&self, task: &Task, commit: &str) -> Cell {
        let begun = Instant::now();
        let mut cell = Cell {
            program: task.name(),
            dtype: task.dtype.clone(),
            commit: commit.to_owned(),
            ..Cell::default()
        };
        if let Err(error) = self.fill(task, &mut cell) {
            cell.failed = Some(format!("{error:#}"));
        }
        if let (Some(load), Some(why)) = (task.program.load(), &mut cell.failed) {
            *why = format!("{load}: {why}");
        }
        cell.seconds = begun.elapsed().as_secs_f64();
        cell
    }

    fn fill(&self, task: &Task, cell: &mut Cell) -> Result<()> {
        let printed = within(&mut self.command(task), self.options.limit())?;
        cell.failed = printed.failed;
        cell.late = printed.late;
        // Peers print all they have after each work: what was measured until one was stopped counts.
        // Lines that are no JSON are what their libraries said.
        let line = printed.text.lines().rev();
        let json = line
            .filter_map(|line| serde_json::from_str::<Value>(line).ok())
            .find(Value::is_object);
        let Some(json) = json else {
            return cell.failed.take().map_or_else(
                || Err(anyhow!("it printed no JSON")),
                |failed| Err(anyhow!(failed)),
            );
        };
        let about = |of: &Value, key: &str| of[key].as_str().unwrap_or_default().to_owned();
        let run = match task.program {
            Program::Medfleet => {
                let run = &json["models"][0];
                cell.version = about(run, "device");
                run
            }
            _ => {
                cell.version = format!("{}, {}", about(&json, "version"), about(&json, "about"));
                &json
            }
        };
        cell.work = works(run)?;
        if !self.options.has_texts() {
            cell.work.retain(|work| work.name == IMAGE);
        }
        Ok(())
    }

    fn command(&self, task: &Task) -> Command {
        let (dtype, device) = (task.dtype.as_str(), task.device.as_str());
        match task.program {
            Program::Medfleet => self.ours(dtype, device),
            Program::LlamaText => {
                let mut command = self.script("llama_cpp_bench.py", dtype);
                let text = self.file(&format!("text-{dtype}.gguf"));
                command.arg("--text").arg(text);
                command
            }
            Program::LlamaImage => {
                let mut command = self.script("llama_cpp_bench.py", dtype);
                let image = self.file(&format!("mmproj-{dtype}.gguf"));
                command.arg("--image").arg(image);
                command.arg("--words").arg(self.file(LAST_FILE));
                command.args(["--image-size", &self.options.image_size.to_string()]);
                command
            }
            Program::Torch => {
                let mut command = self.script("torch_bench.py", dtype);
                command.arg(&self.options.dir);
                command
            }
            Program::Fleet(load) => self.fleet((dtype, device), load),
            Program::LlamaReports(load) => {
                let mut command = self.python("llama_cpp_reports.py", dtype);
                let text = self.file(&format!("text-{dtype}.gguf"));
                command.args(load.flags()).arg("--text").arg(text);
                command.arg("--image").arg(self.file("mmproj-f16.gguf"));
                command.arg("--words").arg(self.file(LAST_FILE));
                command
            }
            Program::TorchReports(load) => {
                let mut command = self.python("torch_reports.py", dtype);
                command.args(load.flags()).arg(&self.options.dir);
                command
            }
        }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.options.dir.join(name)
    }

    fn medfleet(&self, dtypes: &str, device: &str) -> Command {
        let mut command = Command::new(places::built("medfleet"));
        command
            .current_dir(places::root())
            .args([
                "bench", "model", "--json", "--turns", "1", "--device", device,
            ])
            .args([
                "--layers",
                &self.options.layers.to_string(),
                "--dtype",
                dtypes,
                "--image-size",
                &self.options.image_size.to_string(),
            ])
            .arg("--dir")
            .arg(&self.options.dir)
            .env("RAYON_NUM_THREADS", self.options.threads.to_string());
        command
    }

    /// This model. Images are encoded in f32 beside every quantised form: once is enough.
    fn ours(&self, dtype: &str, device: &str) -> Command {
        let images = match dtype {
            "f32" | "bf16" => self.options.repeat,
            _ => 0,
        };
        let mut command = self.medfleet(dtype, device);
        command
            .args(["--repeat", &self.options.repeat.to_string()])
            .args(["--steps", &self.options.steps.to_string()])
            .args(["--images", &images.to_string()]);
        self.shorten(&mut command);
        command
    }

    /// A whole fleet of this program.
    fn fleet(&self, (dtype, device): (&str, &str), load: Load) -> Command {
        let mut command = Command::new(places::built("medfleet"));
        command
            .current_dir(places::root())
            .args(["bench", "backlog", "--json"])
            .args(load.flags())
            .args(["--alone", &self.options.repeat.to_string()])
            .args(["--dtype", dtype])
            .args(["--set", &format!("model.device=\"{device}\"")])
            .arg("--model")
            .arg(&self.options.dir)
            .env("RAYON_NUM_THREADS", self.options.threads.to_string());
        command
    }

    /// A program of single works.
    fn script(&self, name: &str, dtype: &str) -> Command {
        let mut command = self.python(name, dtype);
        command.args(["--steps", &self.options.steps.to_string()]);
        self.shorten(&mut command);
        command
    }

    /// Texts that nobody looks at take as little as can be.
    fn shorten(&self, command: &mut Command) {
        if !self.options.has_texts() {
            command.args(["--batch", "1"]);
        }
    }

    fn python(&self, name: &str, dtype: &str) -> Command {
        let mut command = Command::new(&self.python);
        command
            .current_dir(places::root())
            .arg(places::root().join(SCRIPTS).join(name))
            .args(["--threads", &self.options.threads.to_string()])
            .args(["--repeat", &self.options.repeat.to_string()])
            .args(["--dtype", dtype])
            .env("OMP_NUM_THREADS", self.options.threads.to_string());
        command
    }
}

/// The list of work in the JSON that programs print.
fn works(run: &Value) -> Result<Vec<Work>> {
    let all = run["work"].as_array().context("no list of work")?;
    let works = all.iter().map(|of| {
        let name = of["work"].as_str().context("work without a name")?;
        let median = |kind: &str| {
            let millis = of[kind]["median_ms"].as_f64();
            millis.map(|millis| millis / 1000.0).context("no median")
        };
        // A step mostly reads; what else there is computes.
        let share = of["share_of_read"].as_f64();
        Ok(Work {
            name: name.to_owned(),
            seconds: [median("clock")?, median("processor")?],
            jobs: of["jobs"].as_u64().and_then(|jobs| jobs.try_into().ok()),
            share: share.or_else(|| of["share_of_peak"].as_f64()),
        })
    });
    works.collect()
}

/// What a program printed, and how it ended.
struct Printed {
    text: String,
    /// Why what it printed is not all.
    failed: Option<String>,
    /// It was stopped because it took too long.
    late: bool,
}

/// Runs a program for so long at most; its stderr goes where ours goes.
fn within(command: &mut Command, limit: Duration) -> Result<Printed> {
    let program = command.get_program().to_string_lossy().into_owned();
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("start {program}"))?;
    let mut stdout = child.stdout.take().context("it has no output")?;
    // Nothing is ever sent: the channel closes when the output does.
    let (open, closed) = mpsc::sync_channel::<()>(0);
    let reader = std::thread::spawn(move || {
        let mut text = String::new();
        let read = stdout.read_to_string(&mut text);
        drop(open);
        read.map(|_| text)
    });
    let late = matches!(closed.recv_timeout(limit), Err(RecvTimeoutError::Timeout));
    if late {
        child.kill().with_context(|| format!("stop {program}"))?;
    }
    let status = child
        .wait()
        .with_context(|| format!("wait for {program}"))?;
    let text = reader
        .join()
        .map_err(|_| anyhow!("reading the output of {program} panicked"))?
        .with_context(|| format!("read the output of {program}"))?;
    let failed = match (late, status.success()) {
        (true, _) => Some(format!("stopped after {} s", limit.as_secs())),
        (false, true) => None,
        (false, false) => Some(format!("{program}: {status}")),
    };
    Ok(Printed { text, failed, late })
}

#[cfg(test)]
mod tests;
