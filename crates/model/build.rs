//! With the feature `cuda`: compiles `cuda/fused.cu`, with what it includes, to PTX, which the driver compiles for its own
//! chip when it is first used.
//! `nvcc` comes from PATH; `CUDA_COMPUTE_CAP` is the oldest chip that the PTX is for (80 = A100, 90 = H100).

use std::path::PathBuf;
use std::process::Command;

const FOLDER: &str = "cuda";
const SOURCE: &str = "cuda/fused.cu";
/// Ampere: the first with bfloat16.
const OLDEST: &str = "80";

#[expect(
    clippy::disallowed_methods,
    reason = "cargo speaks to build scripts through the environment"
)]
fn main() {
    println!("cargo::rerun-if-changed={FOLDER}");
    println!("cargo::rerun-if-env-changed=CUDA_COMPUTE_CAP");
    if std::env::var_os("CARGO_FEATURE_CUDA").is_none() {
        return;
    }
    let capability = std::env::var("CUDA_COMPUTE_CAP").unwrap_or_else(|_| OLDEST.to_owned());
    let folder = std::env::var_os("OUT_DIR").expect("cargo sets OUT_DIR");
    let out = PathBuf::from(folder).join("fused.ptx");
    let mut nvcc = Command::new("nvcc");
    nvcc.args(["--ptx", "-O3", "-std=c++17"])
        .arg(format!("-arch=compute_{capability}"))
        .arg("-o")
        .args([out.as_os_str(), SOURCE.as_ref()]);
    let status = nvcc.status();
    let status = status.expect("nvcc is on PATH: `make cuda` fetches it and sets PATH");
    assert!(status.success(), "nvcc failed on {SOURCE}: {status}");
}
