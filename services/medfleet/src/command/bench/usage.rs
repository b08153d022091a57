//! Processor time and memory of one process so far, from `/proc`.

use std::time::Duration;

use anyhow::{Context, Result};

/// Ticks a second of the times in `/proc/PID/stat`: USER_HZ, which is 100 on every Linux we run on.
const TICKS_A_SECOND: u64 = 100;

/// Of one process, with all its threads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Usage {
    /// Processor time, its own and the kernel's for it.
    pub(super) processor: Duration,
    /// Resident memory now, in bytes.
    pub(super) resident: u64,
    /// Resident memory at most, in bytes.
    pub(super) peak: u64,
}

impl Usage {
    /// Of a process that runs.
    pub(super) fn of(pid: u32) -> Result<Self> {
        let read = |name: &str| {
            let path = format!("/proc/{pid}/{name}");
            std::fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))
        };
        let (status, stat) = (read("status")?, read("stat")?);
        let (resident, peak) =
            memory(&status).context("/proc does not say how much memory is resident")?;
        Ok(Self {
            processor: processor(&stat).context("/proc does not say how much time was taken")?,
            resident,
            peak,
        })
    }

    /// Of this process.
    pub(super) fn of_this() -> Result<Self> {
        Self::of(std::process::id())
    }
}

/// Resident now and at most, in bytes, as `/proc/PID/status` says it.
fn memory(status: &str) -> Option<(u64, u64)> {
    let kibibytes = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        line.split_whitespace().next()?.parse::<u64>().ok()
    };
    Some((kibibytes("VmRSS:")? * 1024, kibibytes("VmHWM:")? * 1024))
}

/// The fields of `/proc/PID/stat` from the third on: the second is the program's name in brackets, with any character in it.
pub(super) fn fields(stat: &str) -> Option<Vec<&str>> {
    let (_, rest) = stat.rsplit_once(')')?;
    Some(rest.split_whitespace().collect())
}

/// Ticks as time.
pub(super) fn time(ticks: u64) -> Duration {
    Duration::from_millis(ticks * 1000 / TICKS_A_SECOND)
}

/// utime and stime: fields 14 and 15.
fn processor(stat: &str) -> Option<Duration> {
    let fields = fields(stat)?;
    let ticks = |at: usize| fields.get(at)?.parse::<u64>().ok();
    Some(time(ticks(11)? + ticks(12)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_read_from_the_status() {
        let status = "Name:\tx\nVmHWM:\t    2048 kB\nVmRSS:\t    1024 kB\n";
        assert_eq!(memory(status), Some((1 << 20, 2 << 20)));
        assert_eq!(memory("Name:\tx\n"), None);
    }

    #[test]
    fn time_is_read_whatever_the_program_is_called() {
        let stat = "7 (a) b) S 1 7 7 0 -1 4194560 1 2 3 4 150 25 9 9 20 0 1 0 1";
        assert_eq!(processor(stat), Some(Duration::from_millis(1750)));
        assert_eq!(processor("7 (a"), None);
    }

    #[test]
    fn this_process_has_memory() {
        assert!(Usage::of_this().expect("Linux").resident > 0);
    }
}
