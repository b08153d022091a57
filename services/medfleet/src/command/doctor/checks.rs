//! The checks. Each looks at one thing and never stops the others.

use std::fs;
use std::path::Path;

use medfleet_core::UnixMillis;
use medfleet_model::{ComputeDevice, Dtype, LoadOptions, Model, Parts};
use medfleet_runtime::Clock;
use nix::sys::statvfs::statvfs;

use super::Finding;
use crate::client::{Client, ClientError, Retry, ServerArgs};
use crate::command::weights::sums::{LIST, Sum, Sums};
use crate::exit::Exit;
use crate::fleet::nats;
use crate::show::{bytes, seconds};

/// Free space below which a fleet is likely to fill the disk: the streams' default limits and a margin for blobs.
const DISK_FREE_MIN: u64 = 10 << 30;
/// The advice for errors whose message says what to do.
const ITS_OWN_ADVICE: &str = "change what it names, and ask again";
/// Any machine whose clock is right is past this: 2025-01-01.
const CLOCK_MIN: UnixMillis = UnixMillis(1_735_689_600_000);

/// A nats-server program that is new enough, for `medfleet up` to start. Whoever asks about a fleet that runs `elsewhere` needs none.
pub(super) fn nats_binary(cache: Option<&Path>, elsewhere: bool) -> Finding {
    nats_binary_of(nats::find(cache), elsewhere)
}

fn nats_binary_of(found: anyhow::Result<nats::Binary>, elsewhere: bool) -> Finding {
    const CHECK: &str = "nats-server";
    match found {
        Ok(binary) => Finding::ok(
            CHECK,
            format!("{} ({})", binary.version, binary.path.display()),
        ),
        Err(_) if elsewhere => Finding::ok(
            CHECK,
            "none that `medfleet up` could start; a fleet elsewhere needs none here",
        ),
        Err(error) => Finding::fail(
            CHECK,
            format!("{error:#}"),
            "run `cargo xtask fetch nats-server`",
        ),
    }
}

/// The data folder can be written, and only by us.
pub(super) fn data_folder(data: &Path) -> Finding {
    const CHECK: &str = "data folder";
    if !data.exists() {
        return Finding::ok(
            CHECK,
            format!(
                "{} is not there yet; `medfleet up` makes it",
                data.display()
            ),
        );
    }
    match tempfile::Builder::new()
        .prefix(".doctor-")
        .tempfile_in(data)
    {
        Ok(_gone_when_dropped) => Finding::ok(CHECK, format!("{} can be written", data.display())),
        Err(error) => Finding::fail(
            CHECK,
            format!("{} cannot be written: {error}", data.display()),
            "change its owner or choose another one with --data DIR",
        ),
    }
}

/// Free space below the data folder.
pub(super) fn disk(data: &Path) -> Finding {
    let place = data
        .ancestors()
        .find(|path| path.exists())
        .unwrap_or(Path::new("."));
    room("disk", place, "free space or move --data")
}

/// Free space of the disk that this is on, and what to do where it is little.
pub(super) fn room(check: &'static str, place: &Path, more: &str) -> Finding {
    match statvfs(place) {
        Ok(stat) => {
            let free = stat.blocks_available().saturating_mul(stat.fragment_size());
            let found = format!("{} free", bytes(free));
            if free < DISK_FREE_MIN {
                let advice = format!("a fleet wants at least {}: {more}", bytes(DISK_FREE_MIN));
                return Finding::warn(check, found, advice);
            }
            Finding::ok(check, found)
        }
        Err(error) => Finding::warn(
            check,
            format!("free space is not known: {error}"),
            "look with df",
        ),
    }
}

/// Whether accepted jobs survive a power cut on the local fleet.
pub(super) fn sync_interval(data: &Path) -> Finding {
    const CHECK: &str = "durability";
    match fs::read_to_string(data.join("nats").join("nats.conf")) {
        Ok(text) if text.contains("sync_interval: always") => Finding::ok(
            CHECK,
            "the local nats-server syncs before it confirms (sync_interval: always)",
        ),
        Ok(_) => Finding::fail(
            CHECK,
            "the local nats-server does not sync before it confirms",
            "restart `medfleet up`: accepted jobs could be lost in a power cut",
        ),
        Err(_) => Finding::ok(
            CHECK,
            "no local nats-server; on your own, set jetstream sync_interval: always",
        ),
    }
}

/// The fleet answers, and takes our token.
pub(super) async fn fleet(args: &ServerArgs) -> Finding {
    const CHECK: &str = "fleet";
    let fleet = match args.resolve() {
        Ok(fleet) => fleet,
        // Without a fleet everything else can still be in order.
        Err(fault) if fault.exit == Exit::Unreachable => {
            return Finding::warn(
                CHECK,
                "none is known here",
                "start one with `medfleet up` or name one with --server",
            );
        }
        Err(fault) => return Finding::fail(CHECK, fault.to_string(), ITS_OWN_ADVICE),
    };
    let how = if fleet.server.starts_with("https:") {
        "TLS"
    } else {
        "plain text"
    };
    let answer = match Client::new(&fleet, Retry::ONCE) {
        Ok(client) => client.jobs(&[], "").await,
        Err(error) => Err(error),
    };
    match answer {
        Ok(_) => Finding::ok(
            CHECK,
            format!("{} answers ({how}) and takes the token", fleet.server),
        ),
        Err(error) => Finding::fail(CHECK, error.to_string(), advice(&error)),
    }
}

/// What to do about the error. Calls that never reached the fleet are not in its log.
fn advice(error: &ClientError) -> &'static str {
    match error {
        error if error.exit() == Exit::Usage => ITS_OWN_ADVICE,
        ClientError::Refused { .. } | ClientError::Busy { .. } => "look at its log",
        _ => "look at its log, or start one with `medfleet up`",
    }
}

/// The model folder, or the GGUF file, loads: configuration, every tensor with its shape, tokenizer.
pub(super) fn model(folder: &Path) -> Finding {
    const CHECK: &str = "model";
    let begun = std::time::Instant::now();
    match Model::load(
        folder,
        LoadOptions {
            dtype: Dtype::Bf16,
            parts: Parts::All,
            device: ComputeDevice::Cpu,
        },
    ) {
        Ok(model) => Finding::ok(
            CHECK,
            format!(
                "{} loads in {}: {} text layers, {} vision layers, context of {} tokens",
                folder.display(),
                seconds(begun.elapsed()),
                model.config().text.layers.len(),
                model
                    .config()
                    .vision
                    .as_ref()
                    .map_or(0, |vision| vision.layers),
                model.config().text.positions_max,
            ),
        ),
        Err(error) => Finding::fail(
            CHECK,
            format!("{}: {}", folder.display(), medfleet_core::chain(&error)),
            "compare the folder with the one on the model's page",
        ),
    }
}

/// The files of the model's folder, or of the folder that a GGUF is in, are those of the list that has this digest.
pub(super) fn model_files(model: &Path, sha256: Sum) -> Finding {
    const CHECK: &str = "model files";
    let folder = match model.is_file() {
        true => folder_of(model),
        false => model,
    };
    let checked = Sums::read(folder, Some(sha256)).and_then(|sums| {
        sums.check(folder)?;
        Ok(sums.files().len())
    });
    match checked {
        Ok(count) => Finding::ok(CHECK, format!("{count} files are as {LIST} says")),
        Err(error) => Finding::fail(
            CHECK,
            format!("{error:#}"),
            "bring the model anew (`medfleet weights fetch`), or give the SHA-256 of the list that is meant",
        ),
    }
}

/// The folder that a file is in; of a bare name, this one.
fn folder_of(file: &Path) -> &Path {
    let folder = file.parent().filter(|folder| *folder != Path::new(""));
    folder.unwrap_or(Path::new("."))
}

/// What the CPU can do for the kernels.
pub(super) fn cpu() -> Finding {
    const CHECK: &str = "cpu";
    let Ok(text) = fs::read_to_string("/proc/cpuinfo") else {
        return Finding::warn(
            CHECK,
            "its features are not known",
            "/proc/cpuinfo cannot be read",
        );
    };
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let found = features(&text);
    let known = if found.is_empty() {
        "none of the features we use".to_owned()
    } else {
        found.join(" ")
    };
    let line = format!("{threads} threads, {known}");
    if cfg!(target_arch = "x86_64") && !found.contains(&"avx2") {
        return Finding::warn(CHECK, line, "models run several times slower without AVX2");
    }
    Finding::ok(CHECK, line)
}

/// Whether a GPU is here, and whether this program could use it.
pub(super) fn gpu() -> Finding {
    let driver = fs::read_to_string("/proc/driver/nvidia/version").ok();
    let mut devices = fs::read_dir("/dev").into_iter().flatten().flatten();
    let has_device = devices.any(|entry| {
        let name = entry.file_name();
        name.to_str().is_some_and(is_gpu)
    });
    gpu_of(driver.as_deref(), has_device, cfg!(feature = "cuda"))
}

/// Whether a device is a GPU, by its name in `/dev`. A container that is given one of several has it under the number that it has
/// on the machine.
fn is_gpu(name: &str) -> bool {
    let number = name.strip_prefix("nvidia").unwrap_or_default();
    name == "kfd" || !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit())
}

fn gpu_of(driver: Option<&str>, has_device: bool, has_cuda: bool) -> Finding {
    const CHECK: &str = "gpu";
    let driver = driver.and_then(|text| text.lines().next());
    let driver = driver.map(|line| line.trim_start_matches("NVRM version:").trim());
    match (driver, has_device, has_cuda) {
        (Some(driver), true, true) => Finding::ok(CHECK, driver),
        (Some(driver), true, false) => Finding::warn(
            CHECK,
            format!("{driver}; this program was built without CUDA and computes on the CPU"),
            "build with `cargo xtask cuda`, and set model.device to cuda",
        ),
        (Some(driver), false, _) => Finding::warn(
            CHECK,
            format!("{driver}; there is a driver and no device"),
            "give the container its GPU: the resource nvidia.com/gpu, or --gpus all",
        ),
        (None, true, _) => Finding::warn(
            CHECK,
            "a device and no NVIDIA driver",
            "load the driver; other makers' GPUs are not used",
        ),
        (None, false, true) => Finding::warn(
            CHECK,
            "none, and this program was built with CUDA",
            "load the driver, or set model.device to cpu",
        ),
        (None, false, false) => Finding::ok(CHECK, "none; models compute on the CPU"),
    }
}

/// The features that kernels dispatch on, of those that the kernel lists.
fn features(cpuinfo: &str) -> Vec<&'static str> {
    const USED: [&str; 9] = [
        "avx2",
        "fma",
        "avx512f",
        "avx512_vnni",
        "avx512_bf16",
        "amx_bf16",
        "amx_int8",
        "asimd",
        "asimddp",
    ];
    let line = cpuinfo
        .lines()
        .find(|line| line.starts_with("flags") || line.starts_with("Features"));
    let words: Vec<&str> = line.unwrap_or_default().split_whitespace().collect();
    USED.into_iter()
        .filter(|feature| words.contains(feature))
        .collect()
}

/// The clock is not absurd: deadlines, expiry and certificates depend on it.
pub(super) fn clock(clock: &dyn Clock) -> Finding {
    const CHECK: &str = "clock";
    let now = clock.now();
    let text = prost_types::Timestamp {
        seconds: now.0 / 1000,
        nanos: 0,
    }
    .to_string();
    if now < CLOCK_MIN {
        return Finding::fail(
            CHECK,
            text,
            "set the clock: expiry and certificates depend on it",
        );
    }
    Finding::ok(CHECK, text)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use medfleet_runtime::ManualClock;
    use tonic::Status;

    use super::*;
    use crate::command::doctor::Verdict;

    #[test]
    fn a_clock_in_the_past_fails() {
        assert_eq!(
            clock(&ManualClock::at(UnixMillis(0))).verdict,
            Verdict::Fail
        );
        assert_eq!(clock(&ManualClock::at(CLOCK_MIN)).verdict, Verdict::Ok);
    }

    #[test]
    fn who_asks_about_a_fleet_elsewhere_needs_no_server_here() {
        let check = |elsewhere, expected| {
            let finding = nats_binary_of(Err(anyhow::anyhow!("no nats-server")), elsewhere);
            assert_eq!(finding.verdict, expected, "{finding}");
            assert_eq!(finding.advice.is_empty(), expected == Verdict::Ok);
        };
        check(true, Verdict::Ok);
        check(false, Verdict::Fail);
    }

    #[test]
    fn nobody_is_sent_to_the_log_of_a_fleet_that_was_not_asked() {
        let server = || "https://fleet:1".to_owned();
        let no_authority = ClientError::NoCertificates { server: server() };
        assert_eq!(advice(&no_authority), ITS_OWN_ADVICE);
        let ended = |status| ClientError::from_status(&server(), 1, Duration::ZERO, status);
        let no_token = advice(&ended(Status::unauthenticated("the token is not known")));
        assert_eq!(no_token, ITS_OWN_ADVICE);
        let away = advice(&ended(Status::unavailable("refused")));
        assert!(away.contains("medfleet up"), "{away}");
    }

    #[test]
    fn a_gpu_is_known_by_whatever_number_it_has() {
        for name in ["nvidia0", "nvidia3", "nvidia12", "kfd"] {
            assert!(is_gpu(name), "{name}");
        }
        for name in [
            "nvidia",
            "nvidiactl",
            "nvidia-uvm",
            "nvidia-caps",
            "sda",
            "3",
        ] {
            assert!(!is_gpu(name), "{name}");
        }
    }

    #[test]
    fn a_gpu_that_is_not_used_is_told() {
        let driver = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  570.1\nGCC version: 12\n";
        let check = |driver, device, cuda, expected| {
            let finding = gpu_of(driver, device, cuda);
            assert_eq!(finding.verdict, expected, "{finding}");
            assert_eq!(finding.advice.is_empty(), expected == Verdict::Ok);
        };
        check(Some(driver), true, true, Verdict::Ok);
        check(Some(driver), true, false, Verdict::Warn);
        check(Some(driver), false, true, Verdict::Warn);
        check(None, true, true, Verdict::Warn);
        check(None, false, true, Verdict::Warn);
        check(None, false, false, Verdict::Ok);
        let found = gpu_of(Some(driver), true, true).found;
        assert_eq!(found, "NVIDIA UNIX x86_64 Kernel Module  570.1");
    }

    #[test]
    fn features_are_read_from_cpuinfo() {
        let text = "processor : 0\nflags\t\t: fpu avx2 fma avx512f avx512_bf16\n";
        assert_eq!(features(text), ["avx2", "fma", "avx512f", "avx512_bf16"]);
        assert_eq!(
            features("Features : fp asimd asimddp"),
            ["asimd", "asimddp"]
        );
        assert!(features("").is_empty());
    }

    #[test]
    fn a_folder_without_a_model_fails_with_its_name() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let finding = model(folder.path());
        assert_eq!(finding.verdict, Verdict::Fail);
        assert!(
            finding.found.contains(&folder.path().display().to_string()),
            "{}",
            finding.found
        );
    }

    #[test]
    fn a_file_of_a_bare_name_is_in_this_folder() {
        let check = |file: &str, expected: &str| {
            assert_eq!(folder_of(Path::new(file)), Path::new(expected))
        };
        check("text.gguf", ".");
        check("models/text.gguf", "models");
        check("/text.gguf", "/");
    }

    #[test]
    fn files_that_are_not_as_listed_fail_with_the_reason() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let gguf = folder.path().join("text.gguf");
        fs::write(&gguf, "weights").expect("a file");
        let sums = Sums::of_folder(folder.path()).expect("lists");
        fs::write(folder.path().join(LIST), sums.text()).expect("a file");
        for model in [folder.path(), gguf.as_path()] {
            let finding = model_files(model, sums.sum());
            assert_eq!(finding.verdict, Verdict::Ok, "{}", finding.found);
        }
        fs::write(&gguf, "others").expect("a file");
        let finding = model_files(&gguf, sums.sum());
        assert_eq!(finding.verdict, Verdict::Fail);
        assert!(finding.found.contains("text.gguf has"), "{}", finding.found);
    }

    #[test]
    fn durability_is_read_from_the_configuration() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let check = |text: &str, expected| {
            fs::create_dir_all(folder.path().join("nats")).expect("a folder");
            fs::write(folder.path().join("nats/nats.conf"), text).expect("a file");
            assert_eq!(sync_interval(folder.path()).verdict, expected);
        };
        check("jetstream { sync_interval: always }", Verdict::Ok);
        check("jetstream { }", Verdict::Fail);
    }
}
