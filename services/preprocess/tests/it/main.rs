//! JPEG 2000 in other processes, real ones: what comes back, and what becomes of a codestream whose process ends.

#![allow(
    clippy::unwrap_used,
    reason = "a test helper fails its test by panicking"
)]

mod ocr;

use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use medfleet_imaging::{CodestreamError, Codestreams, Here};
use medfleet_preprocess::Times;
use medfleet_preprocess::codecs::{CodecLimits, Codecs, Stop};
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// 32 x 40 pixels.
const SMALL: &[u8] = include_bytes!("../../../../crates/fuzz/seeds/deep12.j2k");
const COLOUR: &[u8] = include_bytes!("../../../../crates/fuzz/seeds/colour8-rct.j2k");
/// 4096 x 4096 pixels, which take more memory than [`MEMORY_BYTES`].
const LARGE: &[u8] = include_bytes!("large.j2k");
const MEMORY_BYTES: u64 = 128 << 20;
/// On a loaded machine too.
const PATIENCE: Duration = Duration::from_secs(120);

fn codecs(wall_max: Duration) -> Codecs {
    let times = Times {
        wall_max,
        ..Times::of(PATIENCE)
    };
    let limits = CodecLimits {
        memory_bytes_max: MEMORY_BYTES,
        times,
        processes_max: 1,
    };
    Codecs::new(
        PathBuf::from(env!("CARGO_BIN_EXE_medfleet-preprocess")),
        limits,
    )
}

#[track_caller]
fn idle(codecs: &Codecs) -> Pid {
    let ids = codecs.idle_ids();
    let [id] = ids.as_slice() else {
        panic!("one process waits, not {ids:?}")
    };
    Pid::from_raw(id.cast_signed())
}

#[test]
fn the_same_samples_come_back_from_one_process() {
    let codecs = codecs(PATIENCE);
    for codestream in [SMALL, COLOUR] {
        assert_eq!(
            codecs.decode(codestream).unwrap(),
            Here.decode(codestream).unwrap()
        );
    }
    let first = idle(&codecs);
    codecs.decode(SMALL).unwrap();
    assert_eq!(idle(&codecs), first);
    assert_eq!(codecs.ended(), 0);
}

#[test]
fn a_broken_codestream_is_told_and_its_process_replaced() {
    let codecs = codecs(PATIENCE);
    assert_eq!(codecs.decode(&SMALL[..60]), Err(CodestreamError::Broken));
    assert!(codecs.idle_ids().is_empty());
    codecs.decode(SMALL).unwrap();
}

#[test]
fn a_process_killed_from_outside_costs_one_more_try() {
    let codecs = codecs(PATIENCE);
    codecs.decode(SMALL).unwrap();
    let first = idle(&codecs);
    kill(first, Signal::SIGKILL).unwrap();
    codecs.decode(SMALL).unwrap();
    assert_ne!(idle(&codecs), first);
    assert_eq!(codecs.ended(), 1);
}

/// By the clock it took too long, which says nothing of the codestream.
#[test]
fn a_process_that_hangs_is_killed_at_its_time() {
    let codecs = codecs(Duration::from_secs(8));
    // Started with patience, as it is not the start that is measured.
    while codecs.decode(SMALL) == Err(CodestreamError::Overdue) {}
    let ended = codecs.ended();
    kill(idle(&codecs), Signal::SIGSTOP).unwrap();
    assert_eq!(codecs.decode(SMALL), Err(CodestreamError::Overdue));
    assert_eq!(codecs.ended(), ended + 1);
    assert!(codecs.idle_ids().is_empty());
}

/// The kernel ends what has used its processor time by this signal.
#[test]
fn a_codestream_that_uses_its_processor_time_is_not_tried_again() {
    let codecs = codecs(PATIENCE);
    codecs.decode(SMALL).unwrap();
    kill(idle(&codecs), Signal::SIGXCPU).unwrap();
    assert_eq!(codecs.decode(SMALL), Err(CodestreamError::TooSlow));
    assert_eq!(codecs.ended(), 1);
    assert!(codecs.idle_ids().is_empty());
    codecs.decode(SMALL).unwrap();
}

/// A decode that hangs is over as soon as nobody waits for it, and its process is gone, not only ended.
#[test]
fn a_decode_that_nobody_waits_for_ends_with_its_process() {
    let codecs = codecs(PATIENCE);
    codecs.decode(SMALL).unwrap();
    let process = idle(&codecs);
    kill(process, Signal::SIGSTOP).unwrap();
    let (stop, started) = (Stop::default(), Instant::now());
    let answer = thread::scope(|scope| {
        let decode = scope.spawn(|| stop.during(|| codecs.decode(SMALL)));
        // Until the process is asked.
        while !codecs.idle_ids().is_empty() && started.elapsed() < PATIENCE {
            thread::yield_now();
        }
        stop.stop();
        decode.join().unwrap()
    });
    assert_eq!(answer, Err(CodestreamError::Stopped));
    assert_eq!(kill(process, None::<Signal>), Err(Errno::ESRCH));
    // Neither the file nor the decoder is to blame, and nothing more is decoded for whoever is gone.
    assert_eq!(codecs.ended(), 0);
    let more = stop.during(|| codecs.decode(SMALL));
    assert_eq!(more, Err(CodestreamError::Stopped));
    assert!(codecs.idle_ids().is_empty());
    codecs.decode(SMALL).unwrap();
}

/// The real thing: the decoder aborts for want of memory. Who asked lives, and decodes the next one.
#[test]
fn a_codestream_that_ends_its_decoder_twice_is_told_apart() {
    let codecs = codecs(PATIENCE);
    assert_eq!(codecs.decode(LARGE), Err(CodestreamError::Crashed));
    assert_eq!(codecs.ended(), 2);
    codecs.decode(SMALL).unwrap();
    codecs.close();
    assert!(codecs.idle_ids().is_empty());
}
