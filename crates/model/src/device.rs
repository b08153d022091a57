//! Where the model computes. Which devices a build knows is a matter of its cargo features; the CPU is always there.

use std::fmt;
use std::str::FromStr;

use candle_core::{DType, Device, Tensor};
use medfleet_kernels::{Kernels, Level};

use crate::error::{BackendError, LoadError};

/// A device, by kind and number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum ComputeDevice {
    /// All cores.
    #[default]
    Cpu,
    /// All cores, with the kernels of one level, to compare: `cpu:portable`, `cpu:avx2`, `cpu:avx512-bfp`, `cpu:avx512`, `cpu:amx`, `cpu:neon`.
    CpuAt(Level),
    /// All cores, without kernels of our own: `cpu:generic`.
    CpuGeneric,
    /// An NVIDIA GPU; needs a build with the feature `cuda`.
    Cuda(usize),
    /// An Apple GPU; needs a build with the feature `metal`.
    Metal(usize),
}

/// A name that is not a device.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "device is {found}, allowed are cpu, cpu:portable, cpu:avx2, cpu:avx512-bfp, cpu:avx512, cpu:amx, cpu:neon, cpu:generic, cuda, cuda:N, metal and metal:N"
)]
pub struct ComputeDeviceError {
    found: String,
}

impl fmt::Display for ComputeDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu => f.write_str("cpu"),
            Self::CpuAt(level) => write!(f, "cpu:{level}"),
            Self::CpuGeneric => f.write_str("cpu:generic"),
            Self::Cuda(ordinal) => write!(f, "cuda:{ordinal}"),
            Self::Metal(ordinal) => write!(f, "metal:{ordinal}"),
        }
    }
}

impl FromStr for ComputeDevice {
    type Err = ComputeDeviceError;

    fn from_str(text: &str) -> Result<Self, ComputeDeviceError> {
        let refused = || ComputeDeviceError {
            found: text.to_owned(),
        };
        match text.strip_prefix("cpu:") {
            Some("generic") => return Ok(Self::CpuGeneric),
            Some(level) => return level.parse().map(Self::CpuAt).map_err(|_| refused()),
            None => {}
        }
        let (kind, ordinal) = match text.split_once(':') {
            Some((kind, ordinal)) => (kind, Some(ordinal.parse().map_err(|_| refused())?)),
            None => (text, None),
        };
        match (kind, ordinal) {
            ("cpu", None) => Ok(Self::Cpu),
            ("cuda", ordinal) => Ok(Self::Cuda(ordinal.unwrap_or(0))),
            ("metal", ordinal) => Ok(Self::Metal(ordinal.unwrap_or(0))),
            _ => Err(refused()),
        }
    }
}

impl ComputeDevice {
    /// The device, ready to hold tensors.
    pub(crate) fn open(self) -> Result<Device, LoadError> {
        let (opened, built, remedy) = match self {
            Self::CpuAt(level) if !level.is_available() => {
                return Err(LoadError::Device {
                    device: self,
                    reason: "this machine does not have these instructions".to_owned(),
                });
            }
            Self::Cpu | Self::CpuAt(_) | Self::CpuGeneric => return Ok(Device::Cpu),
            Self::Cuda(ordinal) => (
                Device::new_cuda(ordinal),
                cfg!(feature = "cuda"),
                "this build has no CUDA; `make cuda` makes one that has",
            ),
            Self::Metal(ordinal) => (
                Device::new_metal(ordinal),
                cfg!(feature = "metal"),
                "this build has no Metal; cargo's feature `metal` adds it",
            ),
        };
        opened.map_err(|error| LoadError::Device {
            device: self,
            reason: if built {
                // The first line says what happened; the others are a backtrace.
                let text = error.to_string();
                text.lines().next().unwrap_or("does not answer").to_owned()
            } else {
                remedy.to_owned()
            },
        })
    }
}

impl ComputeDevice {
    /// The kernels of our own that it uses; none on GPUs, which have others.
    pub(crate) fn kernels(self) -> Option<Kernels> {
        match self {
            Self::Cpu => Some(Kernels::best()),
            Self::CpuAt(level) => Kernels::at(level),
            Self::CpuGeneric | Self::Cuda(_) | Self::Metal(_) => None,
        }
    }
}

/// Waits until everything that was asked of the device is done. Each thread has a stream of its own there: what one has
/// loaded or cleared is there for another only after this.
pub(crate) fn settle(device: &Device) -> Result<(), BackendError> {
    #[cfg(feature = "cuda")]
    if let Device::Cuda(device) = device {
        use candle_core::cuda_backend::WrapErr;
        device.cuda_stream().context().synchronize().w()?;
    }
    #[cfg(not(feature = "cuda"))]
    let _ = device;
    Ok(())
}

/// Whether the device still computes, by the least that it can be asked. After some failures of a GPU every later call fails
/// too, until the process ends.
pub(crate) fn computes(device: &Device) -> bool {
    let sum = || -> candle_core::Result<Vec<f32>> {
        let ones = Tensor::ones(1, DType::F32, device)?;
        (ones + 1.0)?.to_vec1()
    };
    // The first call may be told of an earlier failure only: that of a release is kept for whoever calls next.
    (0..2).any(|_| sum().is_ok_and(|sum| sum == [2.0]))
}

/// Kind of device, for a result's provenance: on another kind the same input may be rounded otherwise.
pub(crate) fn describe(device: &Device, kernels: Option<Kernels>) -> String {
    match device {
        Device::Cpu => {
            let (architecture, libraries) = (std::env::consts::ARCH, cpu_level());
            let kernels = kernels.map_or("generic".to_owned(), |of| of.level().to_string());
            format!("cpu {architecture} {libraries}, kernels {kernels}")
        }
        Device::Cuda(_) => cuda(device),
        Device::Metal(_) => "metal".to_owned(),
    }
}

/// The widest instruction set that candle's CPU code chooses at run time.
fn cpu_level() -> &'static str {
    #[cfg(target_arch = "x86_64")]
    {
        if std::arch::is_x86_feature_detected!("avx512f") {
            return "avx512";
        }
        if std::arch::is_x86_feature_detected!("avx2") {
            return "avx2";
        }
    }
    "baseline"
}

#[cfg(feature = "cuda")]
fn cuda(device: &Device) -> String {
    let named = device.as_cuda_device().ok().and_then(|device| {
        let stream = device.cuda_stream();
        let context = stream.context();
        let (major, minor) = context.compute_capability().ok()?;
        Some(format!("{} sm_{major}{minor}", context.name().ok()?))
    });
    let level = crate::fused::level();
    format!("cuda {} {level}", named.as_deref().unwrap_or("unknown"))
}

#[cfg(not(feature = "cuda"))]
fn cuda(_: &Device) -> String {
    "cuda".to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        for (text, device) in [
            ("cpu", ComputeDevice::Cpu),
            ("cuda", ComputeDevice::Cuda(0)),
            ("cuda:3", ComputeDevice::Cuda(3)),
            ("cpu:avx2", ComputeDevice::CpuAt(Level::Avx2)),
            ("cpu:avx512", ComputeDevice::CpuAt(Level::Avx512)),
            ("cpu:avx512-bfp", ComputeDevice::CpuAt(Level::Avx512Bfp)),
            ("cpu:amx", ComputeDevice::CpuAt(Level::Amx)),
            ("cpu:neon", ComputeDevice::CpuAt(Level::Neon)),
            ("cpu:portable", ComputeDevice::CpuAt(Level::Portable)),
            ("cpu:generic", ComputeDevice::CpuGeneric),
            ("metal:0", ComputeDevice::Metal(0)),
        ] {
            assert_eq!(text.parse(), Ok(device));
            assert_eq!(device.to_string().parse(), Ok(device));
        }
        for text in ["", "cpu:1", "gpu", "cuda:", "cuda:-1", "cuda:x"] {
            assert!(text.parse::<ComputeDevice>().is_err(), "{text}");
        }
    }

    /// A result's provenance has it: another level rounds otherwise.
    #[test]
    fn a_level_is_part_of_the_kind_of_device() {
        let check = |device: ComputeDevice, expected: &str| {
            let found = describe(&Device::Cpu, device.kernels());
            assert!(found.ends_with(&format!(", kernels {expected}")), "{found}");
        };
        for kernels in Kernels::all() {
            let level = kernels.level();
            check(ComputeDevice::CpuAt(level), &level.to_string());
        }
        check(ComputeDevice::Cpu, &Kernels::best().level().to_string());
        check(ComputeDevice::CpuGeneric, "generic");
    }

    #[test]
    fn a_cpu_computes() {
        assert!(computes(&Device::Cpu));
    }

    #[cfg(not(any(feature = "cuda", feature = "metal")))]
    #[test]
    fn a_device_of_another_build_is_refused_with_the_remedy() {
        for (device, expected) in [
            (ComputeDevice::Cuda(0), "make cuda"),
            (ComputeDevice::Metal(0), "feature `metal`"),
        ] {
            let text = device.open().unwrap_err().to_string();
            assert!(text.contains(expected), "{text}");
        }
    }
}
