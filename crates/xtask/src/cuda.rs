//! The binaries with CUDA, built on a machine that needs no GPU: `make cuda`. Outside the gate.
//!
//! The compiler and the libraries to link with come from the Python package index. The driver's own library is in no
//! package, so the link is done against a stub of it: its functions by name, as our libraries ask for them. The binaries
//! start only where a driver and CUDA 13's libraries are, so they lie apart from the others, in `target/cuda`.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::fetch::cuda as parts;
use crate::{places, process};

/// Where cargo builds with CUDA, below the repository.
const TARGET: &str = "target/cuda";
/// The chip that is compiled for: Hopper (H100, H200). `80` makes binaries for Ampere (A100).
const CAPABILITY: &str = "90";
/// Libraries that are linked by their plain name.
const LIBRARIES: [&str; 5] = ["cudart", "cublas", "cublasLt", "curand", "nvrtc"];
/// Programs inside the toolkit; wheels keep no permissions.
const PROGRAMS: [&str; 2] = ["bin", "nvvm/bin"];
/// What computes on the GPU.
const BINARIES: [&str; 3] = ["medfleet", "medfleet-encode", "medfleet-decode"];
/// What a function of the stub answers: no device.
const NO_DEVICE: u32 = 100;

/// Fetches CUDA, compiles the model with it, links the binaries.
pub(crate) fn run(capability: Option<&str>) -> Result<()> {
    parts::run()?;
    let toolkit = toolkit()?;
    let capability = capability.unwrap_or(CAPABILITY);
    let stub = places::scratch("cuda-stub")?;
    let cargo = |arguments: &[&str]| {
        let mut command = process::in_root("cargo");
        command.args(["build", "--locked", "--target-dir", TARGET]);
        command.args(arguments);
        process::run(with_toolkit(&mut command, &toolkit, &stub, capability)?)
    };
    // The same packages both times: with others, cargo would choose other features and compile the kernels again.
    let mut packages = Vec::new();
    for binary in BINARIES {
        packages.extend(["-p", binary]);
    }
    packages.extend(["--features", "cuda"]);
    println!("compiling for sm_{capability}: 10 to 30 minutes, most of them in nvcc");
    cargo(&[packages.as_slice(), &["--lib"]].concat())?;
    link_stub(&stub)?;
    cargo(&packages)?;
    println!(
        "\n{TARGET}/debug has {} for sm_{capability}.\n\
         They need NVIDIA's driver and CUDA 13's libraries, for example by LD_LIBRARY_PATH={}",
        BINARIES.join(", "),
        toolkit.join("lib").display()
    );
    Ok(())
}

/// The environment in which crates find CUDA.
fn with_toolkit<'a>(
    command: &'a mut Command,
    toolkit: &Path,
    stub: &Path,
    capability: &str,
) -> Result<&'a mut Command> {
    for name in [
        "CUDA_HOME",
        "CUDA_PATH",
        "CUDA_ROOT",
        "CUDA_TOOLKIT_ROOT_DIR",
    ] {
        command.env(name, toolkit);
    }
    let joined = |first: PathBuf, name: &str| {
        let others = inherited(name);
        std::env::join_paths(std::iter::once(first).chain(others))
    };
    // For gcc's search only: linker flags in RUSTFLAGS would compile everything anew.
    let libraries = std::env::join_paths([stub.to_path_buf(), toolkit.join("lib")])?;
    command
        .env("CUDA_COMPUTE_CAP", capability)
        .env("PATH", joined(toolkit.join("bin"), "PATH")?)
        .env("LIBRARY_PATH", libraries);
    Ok(command)
}

#[expect(
    clippy::disallowed_methods,
    reason = "the automation is started by a person, and has no runtime"
)]
fn inherited(name: &str) -> Vec<PathBuf> {
    std::env::var_os(name).map_or_else(Vec::new, |paths| std::env::split_paths(&paths).collect())
}

/// One tree out of the parts, by links into them: nvcc looks for its files beside itself.
fn toolkit() -> Result<PathBuf> {
    let cache = places::cache()?;
    let toolkit = cache.join(parts::FOLDER).join("toolkit");
    if toolkit.is_dir() {
        fs::remove_dir_all(&toolkit).context("make room for the toolkit")?;
    }
    for part in parts::PARTS {
        link_tree(&cache.join(part.target), &toolkit)
            .with_context(|| format!("link the files of {}", part.requirement))?;
    }
    for folder in PROGRAMS {
        for entry in fs::read_dir(toolkit.join(folder))? {
            let path = entry?.path();
            if path.is_file() {
                fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
            }
        }
    }
    symlink("lib", toolkit.join("lib64"))?;
    let names: Vec<String> = fs::read_dir(toolkit.join("lib"))?
        .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
        .collect::<Result<_>>()?;
    for library in LIBRARIES {
        let plain = format!("lib{library}.so");
        let versioned = names
            .iter()
            .find(|name| name.starts_with(&format!("{plain}.")));
        let versioned = versioned.with_context(|| format!("the toolkit has no {plain}"))?;
        symlink(versioned, toolkit.join("lib").join(plain))?;
    }
    Ok(toolkit)
}

fn link_tree(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let path = entry?.path();
        let target = to.join(path.file_name().context("a name")?);
        if path.is_dir() {
            link_tree(&path, &target)?;
        } else {
            fs::hard_link(&path, &target).with_context(|| format!("link {}", target.display()))?;
        }
    }
    Ok(())
}

/// Makes libcuda.so with every driver function that our libraries name.
fn link_stub(stub: &Path) -> Result<()> {
    let libraries = places::root().join(TARGET).join("debug/deps");
    let mut names = BTreeSet::new();
    for entry in fs::read_dir(&libraries)? {
        let path = entry?.path();
        let file = path.file_name().unwrap_or_default().to_string_lossy();
        let uses = ["libcudarc-", "libcandle_"]
            .iter()
            .any(|prefix| file.starts_with(prefix));
        if uses && file.ends_with(".rlib") {
            names.extend(wanted(&path)?);
        }
    }
    let mut source = String::new();
    for name in &names {
        writeln!(source, "int {name}(void) {{ return {NO_DEVICE}; }}")?;
    }
    let file = stub.join("stub.c");
    fs::write(&file, source)?;
    let mut compiler = Command::new("cc");
    compiler
        .args(["-shared", "-fPIC", "-w", "-Wl,-soname,libcuda.so.1", "-o"])
        .args([stub.join("libcuda.so"), file]);
    process::run(&mut compiler).context("link a stub of the driver")
}

/// The driver's functions that an archive leaves undefined. Theirs begin with `cu` and a capital; the libraries' own have
/// their name there (`cublasCreate`).
fn wanted(archive: &Path) -> Result<BTreeSet<String>> {
    let mut nm = Command::new("nm");
    let listed = process::capture(nm.arg("--undefined-only").arg(archive))?;
    let of_driver = |name: &&str| {
        let rest = name.strip_prefix("cu");
        rest.is_some_and(|rest| rest.starts_with(|first: char| first.is_ascii_uppercase()))
    };
    // A line is `U name`.
    Ok(listed
        .lines()
        .filter_map(|line| line.split_whitespace().last())
        .filter(of_driver)
        .map(str::to_owned)
        .collect())
}
