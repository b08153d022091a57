//! `cargo xtask bench-peers`: this model and other programs on the same machine, in turns, at MedGemma 4B's true shapes with
//! random weights and few layers. Run by hand; never part of the gate. Prints Markdown for `docs/performance.md`.

mod table;

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::{clients, places, process};
use table::{Run, Table};

/// Compiled here, for this machine, with whatever compiler there is.
const LLAMA_CPP: &str = "llama-cpp-python==0.3.36";
const LLAMA_CPP_FLAGS: &str = "-DGGML_NATIVE=ON -DLLAVA_BUILD=ON";
/// Where the programs that run the peers are.
const SCRIPTS: &str = "tests/reference/peers";

/// What is run.
struct Options {
    layers: usize,
    rounds: usize,
    threads: usize,
    repeat: usize,
    steps: usize,
    /// Forms of the language model, as `medfleet bench model` names them.
    dtypes: Vec<String>,
    /// A Python that has the peers already.
    python: Option<PathBuf>,
    /// Where the weights are.
    dir: PathBuf,
}

/// `--layers 2 --rounds 2 --threads N --repeat 3 --steps 16 --dtypes q8_0,… --python PATH --dir DIR`, in any order.
pub(crate) fn run(options: &[&str]) -> Result<()> {
    let options = read(options)?;
    let python = match &options.python {
        Some(python) => python.clone(),
        None => environment()?,
    };
    process::build_workspace()?;
    let bench = Bench { options, python };
    bench.prepare()?;
    let mut table = Table::default();
    for round in 0..bench.options.rounds {
        eprintln!("round {} of {}", round + 1, bench.options.rounds);
        for dtype in &bench.options.dtypes {
            table.add(bench.ours(dtype)?);
            if dtype != "f32" {
                table.add(bench.llama_text(dtype)?);
            }
            if matches!(dtype.as_str(), "f32" | "bf16") {
                table.add(bench.torch(dtype)?);
            }
        }
        for dtype in ["f16", "q8_0"] {
            table.add(bench.llama_image(dtype)?);
        }
    }
    let Options {
        layers,
        rounds,
        threads,
        ..
    } = bench.options;
    println!(
        "{layers} layers, {threads} threads, {rounds} rounds, {}\n",
        processor()?
    );
    println!("{}", table.markdown());
    Ok(())
}

fn read(options: &[&str]) -> Result<Options> {
    let mut read = Options {
        layers: 2,
        rounds: 2,
        threads: std::thread::available_parallelism().map_or(1, usize::from),
        repeat: 3,
        steps: 16,
        dtypes: ["q8_0", "q4_k_m", "bf16", "f32"]
            .map(str::to_owned)
            .to_vec(),
        python: None,
        dir: places::scratch("peers")?,
    };
    for pair in options.chunks(2) {
        let &[name, value] = pair else {
            bail!("{} needs a value", pair.join(" "));
        };
        let number = || {
            let number = value.parse::<usize>().ok().filter(|number| *number > 0);
            number.with_context(|| format!("{name} takes a positive number, not {value:?}"))
        };
        match name {
            "--layers" => read.layers = number()?,
            "--rounds" => read.rounds = number()?,
            "--threads" => read.threads = number()?,
            "--repeat" => read.repeat = number()?,
            "--steps" => read.steps = number()?,
            "--dtypes" => read.dtypes = value.split(',').map(str::to_owned).collect(),
            "--python" => read.python = Some(value.into()),
            "--dir" => read.dir = value.into(),
            _ => bail!("bench-peers does not know {name}"),
        }
    }
    Ok(read)
}

/// PyTorch, transformers and llama.cpp in a virtual environment of the cache; some gigabytes, and minutes of compiling.
fn environment() -> Result<PathBuf> {
    let requirements = places::root().join(SCRIPTS).join("requirements.txt");
    let python = clients::python_without_dependencies("peers", &requirements)?;
    let present = process::succeeds(Command::new(&python).args(["-c", "import llama_cpp"]));
    if !present {
        let mut pip = Command::new(&python);
        pip.args(["-m", "pip", "install", "--quiet", "--no-deps", LLAMA_CPP])
            .env("CMAKE_ARGS", LLAMA_CPP_FLAGS);
        process::run(&mut pip)?;
    }
    Ok(python)
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

struct Bench {
    options: Options,
    python: PathBuf,
}

impl Bench {
    /// Writes whatever weights are not there yet.
    fn prepare(&self) -> Result<()> {
        // A short run of our own writes the checkpoint and the GGUFs.
        let mut command = self.medfleet(&self.options.dtypes.join(","));
        process::capture(command.args([
            "--repeat", "1", "--images", "1", "--steps", "1", "--batch", "1",
        ]))?;
        if !self.file("words.gguf").is_file() {
            let script = places::root().join(SCRIPTS).join("files.py");
            process::run(
                Command::new(&self.python)
                    .arg(script)
                    .arg(&self.options.dir),
            )?;
        }
        Ok(())
    }

    fn file(&self, name: &str) -> PathBuf {
        self.options.dir.join(name)
    }

    fn medfleet(&self, dtypes: &str) -> Command {
        let mut command = Command::new(places::built("medfleet"));
        command
            .current_dir(places::root())
            .args([
                "bench", "model", "--json", "--turns", "1", "--device", "cpu",
            ])
            .args([
                "--layers",
                &self.options.layers.to_string(),
                "--dtype",
                dtypes,
            ])
            .arg("--dir")
            .arg(&self.options.dir)
            .env("RAYON_NUM_THREADS", self.options.threads.to_string());
        command
    }

    /// This model. Images are encoded in f32 beside every quantised form: once is enough.
    fn ours(&self, dtype: &str) -> Result<Run> {
        let images = match dtype {
            "f32" | "bf16" => self.options.repeat,
            _ => 0,
        };
        let mut command = self.medfleet(dtype);
        command
            .args(["--repeat", &self.options.repeat.to_string()])
            .args(["--steps", &self.options.steps.to_string()])
            .args(["--images", &images.to_string()]);
        let all = json(&mut command)?;
        let run = all["models"][0].clone();
        Run::new(
            "medfleet",
            run["device"].as_str().unwrap_or_default(),
            dtype,
            &run,
        )
    }

    fn script(&self, name: &str, dtype: &str) -> Command {
        let mut command = Command::new(&self.python);
        command
            .arg(places::root().join(SCRIPTS).join(name))
            .args(["--threads", &self.options.threads.to_string()])
            .args(["--repeat", &self.options.repeat.to_string()])
            .args(["--steps", &self.options.steps.to_string()])
            .args(["--dtype", dtype]);
        command.env("OMP_NUM_THREADS", self.options.threads.to_string());
        command
    }

    fn llama_text(&self, dtype: &str) -> Result<Run> {
        let mut command = self.script("llama_cpp_bench.py", dtype);
        command
            .arg("--text")
            .arg(self.file(&format!("text-{dtype}.gguf")));
        peer(&mut command, dtype)
    }

    fn llama_image(&self, dtype: &str) -> Result<Run> {
        let mut command = self.script("llama_cpp_bench.py", dtype);
        let (image, words) = (
            self.file(&format!("mmproj-{dtype}.gguf")),
            self.file("words.gguf"),
        );
        command.arg("--image").arg(image).arg("--words").arg(words);
        peer(&mut command, dtype)
    }

    fn torch(&self, dtype: &str) -> Result<Run> {
        peer(
            self.script("torch_bench.py", dtype).arg(&self.options.dir),
            dtype,
        )
    }
}

/// Runs a peer's script.
fn peer(command: &mut Command, dtype: &str) -> Result<Run> {
    let run = json(command)?;
    let about = |key: &str| run[key].as_str().unwrap_or_default().to_owned();
    let version = format!("{}, {}", about("version"), about("about"));
    Run::new(&about("peer"), &version, dtype, &run)
}

/// What a program printed last: one line of JSON.
fn json(command: &mut Command) -> Result<Value> {
    let text = process::capture(command)?;
    let line = text.lines().last().context("it printed nothing")?;
    serde_json::from_str(line).context("it printed no JSON")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scripts_are_there() {
        for name in [
            "files.py",
            "llama_cpp_bench.py",
            "torch_bench.py",
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
        for wrong in [&["--threads"][..], &["--threads", "0"], &["--hours", "1"]] {
            assert!(read(wrong).is_err(), "{wrong:?}");
        }
    }
}
