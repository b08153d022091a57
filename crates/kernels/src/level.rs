//! Which instruction set the kernels use: the best one the machine has, or one that was asked for.

use std::fmt;
use std::str::FromStr;

#[cfg(target_arch = "x86_64")]
use crate::amx;
use crate::lanes::{Lanes, MANY_PANELS, Portable};

/// An instruction set that kernels were written for, lowest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Level {
    /// Whatever the compiler makes of plain loops.
    Portable,
    /// x86-64 with AVX2, FMA and F16C.
    Avx2,
    /// What [`Level::Avx512`] needs, with products of bf16 in block floating point: twice as fast, and further from the order in which
    /// the model's reference adds up. Only where it is asked for.
    Avx512Bfp,
    /// x86-64 with AVX-512 F, BW, DQ, VL and VNNI, beside what [`Level::Avx2`] needs.
    Avx512,
    /// x86-64 with AMX for bf16, beside what [`Level::Avx512`] needs, under Linux.
    Amx,
    /// 64-bit ARM.
    Neon,
}

/// A name that is not a level.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LevelError {
    /// What was given.
    pub found: String,
}

impl fmt::Display for LevelError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let found = &self.found;
        write!(
            f,
            "kernel level is {found}, allowed are portable, avx2, avx512-bfp, avx512, amx and neon"
        )
    }
}

impl std::error::Error for LevelError {}

impl Level {
    const ALL: [Self; 6] = [
        Self::Portable,
        Self::Avx2,
        Self::Avx512Bfp,
        Self::Avx512,
        Self::Amx,
        Self::Neon,
    ];

    /// Whether this machine can run it.
    pub fn is_available(self) -> bool {
        match self {
            Self::Portable => true,
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => {
                is_x86_feature_detected!("avx2")
                    && is_x86_feature_detected!("fma")
                    && is_x86_feature_detected!("f16c")
            }
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 | Self::Avx512Bfp => {
                Self::Avx2.is_available()
                    && is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512vl")
                    && is_x86_feature_detected!("avx512vnni")
            }
            #[cfg(target_arch = "x86_64")]
            Self::Amx => Self::Avx512.is_available() && amx::is_available(),
            #[cfg(not(target_arch = "x86_64"))]
            Self::Avx2 | Self::Avx512Bfp | Self::Avx512 | Self::Amx => false,
            #[cfg(target_arch = "aarch64")]
            Self::Neon => std::arch::is_aarch64_feature_detected!("neon"),
            #[cfg(not(target_arch = "aarch64"))]
            Self::Neon => false,
        }
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Portable => "portable",
            Self::Avx2 => "avx2",
            Self::Avx512Bfp => "avx512-bfp",
            Self::Avx512 => "avx512",
            Self::Amx => "amx",
            Self::Neon => "neon",
        })
    }
}

impl FromStr for Level {
    type Err = LevelError;

    fn from_str(text: &str) -> Result<Self, LevelError> {
        let found = Self::ALL
            .into_iter()
            .find(|level| level.to_string() == text);
        found.ok_or_else(|| LevelError {
            found: text.to_owned(),
        })
    }
}

/// The kernels of one level that this machine has: the proof that they may be called.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Kernels {
    level: Level,
}

/// Work that is written once for all levels.
pub(crate) trait Work {
    /// Does it with the vectors of one level. Must be `#[inline(always)]`, so that it is compiled for that level.
    fn run<S: Lanes>(self);
}

impl Kernels {
    /// The highest level of this machine.
    pub fn best() -> Self {
        let level = Level::ALL.into_iter().rfind(|level| level.is_available());
        Self {
            level: level.unwrap_or(Level::Portable),
        }
    }

    /// A level that was asked for; `None` where this machine does not have it.
    pub fn at(level: Level) -> Option<Self> {
        level.is_available().then_some(Self { level })
    }

    /// Every level of this machine, lowest first.
    pub fn all() -> Vec<Self> {
        Level::ALL.into_iter().filter_map(Self::at).collect()
    }

    /// Which level it is.
    pub const fn level(self) -> Level {
        self.level
    }

    /// Does the work at this level.
    #[inline]
    pub(crate) fn run(self, work: impl Work) {
        match self.level {
            Level::Portable => work.run::<Portable>(),
            // SAFETY: a value of this level is only made where the machine has its instructions.
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => unsafe { with_avx2(work) },
            // SAFETY: as above. What is not a product of bf16 has no other instructions with AMX.
            #[cfg(target_arch = "x86_64")]
            Level::Avx512Bfp | Level::Avx512 | Level::Amx => unsafe { with_avx512(work) },
            #[cfg(not(target_arch = "x86_64"))]
            Level::Avx2 | Level::Avx512Bfp | Level::Avx512 | Level::Amx => {
                unreachable!("no machine of this architecture has it")
            }
            // SAFETY: as above, with products of bytes where the machine has those.
            #[cfg(target_arch = "aarch64")]
            Level::Neon if std::arch::is_aarch64_feature_detected!("dotprod") => unsafe {
                with_neon_dot(work);
            },
            // SAFETY: as above.
            #[cfg(target_arch = "aarch64")]
            Level::Neon => unsafe { with_neon(work) },
            #[cfg(not(target_arch = "aarch64"))]
            Level::Neon => unreachable!("no machine of this architecture has it"),
        }
    }

    /// Panels that several rows are multiplied with at once.
    pub(crate) const fn panels(self) -> usize {
        match self.level {
            Level::Avx512Bfp | Level::Avx512 | Level::Amx => MANY_PANELS,
            _ => 1,
        }
    }

    /// Whether products of bf16 with bf16 are AMX's.
    pub(crate) const fn has_tiles(self) -> bool {
        matches!(self.level, Level::Amx)
    }

    /// Whether products of bf16 with bf16 are done in block floating point.
    pub(crate) const fn has_blocks(self) -> bool {
        matches!(self.level, Level::Avx512Bfp)
    }

    /// Whether its lanes are [`crate::lanes::Lanes::WIDE_DOTS`].
    pub(crate) const fn has_wide_dots(self) -> bool {
        matches!(self.level, Level::Avx512Bfp | Level::Avx512 | Level::Amx)
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
fn with_avx2(work: impl Work) {
    work.run::<crate::lanes::Avx2>();
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn with_avx512(work: impl Work) {
    work.run::<crate::lanes::Avx512>();
}

#[cfg(target_arch = "aarch64")]
#[target_feature(enable = "neon")]
fn with_neon(work: impl Work) {
    work.run::<crate::lanes::Neon<false>>();
}

#[cfg(target_arch = "aarch64")]
#[target_feature(enable = "neon,dotprod")]
fn with_neon_dot(work: impl Work) {
    work.run::<crate::lanes::Neon<true>>();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        for level in Level::ALL {
            assert_eq!(level.to_string().parse(), Ok(level));
        }
        assert!("avx".parse::<Level>().is_err());
    }

    #[test]
    fn the_best_is_the_last_of_all() {
        assert_eq!(Kernels::all().last(), Some(&Kernels::best()));
        assert_eq!(
            Kernels::all().first(),
            Kernels::at(Level::Portable).as_ref()
        );
    }
}
