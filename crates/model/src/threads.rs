//! The threads that compute: those of rayon's pool, as many as this process may use cores. Where it is asked for, each of them
//! stays on a core of its own.

#[cfg(target_os = "linux")]
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
#[cfg(target_os = "linux")]
use nix::unistd::Pid;

/// As the system calls the one that asks.
#[cfg(target_os = "linux")]
const THIS_THREAD: Pid = Pid::from_raw(0);

/// Why threads were not pinned.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PinError {
    /// With fewer threads than cores another worker might choose the same cores; with more, threads would have to take turns.
    #[error(
        "{threads} threads compute, and this process may run on {cores} cores: pinning takes one core for each thread, so start the process on as many cores as threads, by taskset or a pod's static CPUs"
    )]
    Count { threads: usize, cores: usize },
    #[error("this system does not pin threads to cores; Linux does")]
    System,
    #[error("the system does not say on which cores this process may run")]
    Cores(#[source] nix::errno::Errno),
    #[error("the system does not keep a thread on core {core}")]
    Keep {
        core: usize,
        #[source]
        source: nix::errno::Errno,
    },
}

/// Whether [`pin_threads`] has a core for each thread: to be asked before weights are read, which may take minutes.
///
/// # Errors
/// As [`pin_threads`], but for what the system says to pinning itself.
pub fn can_pin_threads() -> Result<(), PinError> {
    one_core_each().map(|_| ())
}

/// Keeps each thread of the current pool on one of the cores on which this process may run, each on another, and says how many
/// there are. A core is what the system calls a CPU: a hyperthread, where cores have several.
///
/// A thread hands its core on to those that it starts, as candle's own are while weights are read: call this once everything
/// is loaded.
///
/// # Errors
/// [`PinError`]; of the system's, some threads may be pinned then and others not.
pub fn pin_threads() -> Result<usize, PinError> {
    let cores = one_core_each()?;
    let kept = rayon::broadcast(|context| keep_on(cores[context.index()]));
    kept.into_iter().collect::<Result<(), PinError>>()?;
    Ok(cores.len())
}

/// The cores on which this process may run, if they are as many as the threads of the current pool.
fn one_core_each() -> Result<Vec<usize>, PinError> {
    let (cores, threads) = (cores()?, rayon::current_num_threads());
    if threads != cores.len() {
        return Err(PinError::Count {
            threads,
            cores: cores.len(),
        });
    }
    Ok(cores)
}

/// The cores on which this process may run, in order: those of its first thread, which nothing pins. The caller may be one that is.
#[cfg(target_os = "linux")]
fn cores() -> Result<Vec<usize>, PinError> {
    cores_of(Pid::this())
}

#[cfg(not(target_os = "linux"))]
fn cores() -> Result<Vec<usize>, PinError> {
    Err(PinError::System)
}

#[cfg(target_os = "linux")]
fn cores_of(thread: Pid) -> Result<Vec<usize>, PinError> {
    let set = sched_getaffinity(thread).map_err(PinError::Cores)?;
    let cores = (0..CpuSet::count()).filter(|core| set.is_set(*core) == Ok(true));
    Ok(cores.collect())
}

/// Keeps the calling thread on this core.
#[cfg(target_os = "linux")]
fn keep_on(core: usize) -> Result<(), PinError> {
    let mut set = CpuSet::new();
    let kept = set.set(core);
    let kept = kept.and_then(|()| sched_setaffinity(THIS_THREAD, &set));
    kept.map_err(|source| PinError::Keep { core, source })
}

#[cfg(not(target_os = "linux"))]
fn keep_on(_: usize) -> Result<(), PinError> {
    Err(PinError::System)
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    fn pool(threads: usize) -> rayon::ThreadPool {
        let builder = rayon::ThreadPoolBuilder::new().num_threads(threads);
        builder.build().expect("threads can be started")
    }

    fn cores_of_threads(pool: &rayon::ThreadPool) -> Vec<Vec<usize>> {
        pool.broadcast(|_| cores_of(THIS_THREAD).expect("is told"))
    }

    #[test]
    fn each_thread_stays_on_a_core_of_its_own() {
        let allowed = cores().expect("is told");
        let pool = pool(allowed.len());
        assert_eq!(pool.install(can_pin_threads), Ok(()));
        assert_eq!(
            cores_of_threads(&pool),
            vec![allowed.clone(); allowed.len()]
        );
        // The second time from a thread that is pinned already.
        for _ in 0..2 {
            assert_eq!(pool.install(pin_threads), Ok(allowed.len()));
            let each: Vec<Vec<usize>> = allowed.iter().map(|core| vec![*core]).collect();
            assert_eq!(cores_of_threads(&pool), each);
        }
        assert_eq!(cores_of(THIS_THREAD), Ok(allowed), "it is in no pool");
    }

    #[test]
    fn threads_that_have_not_one_core_each_are_left_alone() {
        let allowed = super::cores().expect("is told");
        let cores = allowed.len();
        for threads in [cores + 1, cores - 1] {
            if threads == 0 {
                continue;
            }
            let pool = pool(threads);
            let refused = PinError::Count { threads, cores };
            assert_eq!(pool.install(can_pin_threads), Err(refused.clone()));
            assert_eq!(pool.install(pin_threads), Err(refused));
            assert_eq!(cores_of_threads(&pool), vec![allowed.clone(); threads]);
        }
    }
}
