//! How busy the decoder is, written by its thread once a pass and read by whoever shows it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::speculation::Proposed;

/// What the thread writes.
#[derive(Debug, Default)]
pub(super) struct Gauges {
    waiting: AtomicU64,
    active: AtomicU64,
    held: AtomicU64,
    kv_blocks_used: AtomicU64,
    kv_blocks: AtomicU64,
    kv_block_bytes: AtomicU64,
    passes: AtomicU64,
    pass_sequences: AtomicU64,
    pass_rows: AtomicU64,
    pass_nanos: AtomicU64,
    looked_up: Counts,
    drafted: Counts,
}

#[derive(Debug, Default)]
struct Counts {
    proposed: AtomicU64,
    accepted: AtomicU64,
}

/// Proposed tokens that were verified since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Verified {
    pub proposed: u64,
    /// Those that were right.
    pub accepted: u64,
}

/// How busy a decoder was at its last pass. The numbers are of one moment only when it stands still.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DecodeLoad {
    /// Requests that wait for memory.
    pub waiting: u64,
    /// Texts that are read or written.
    pub active: u64,
    /// Of these, those that wait for others to be written with.
    pub held: u64,
    /// KV blocks that texts hold.
    pub kv_blocks_used: u64,
    pub kv_blocks: u64,
    pub kv_block_bytes: u64,
    /// How long the call into the model has taken that is under way; nothing between two.
    pub call: Duration,
    /// Forward passes since the start.
    pub passes: u64,
    /// Sequences in these passes, all together: divided by `passes`, how full a pass is.
    pub pass_sequences: u64,
    /// Tokens computed in these passes, of prompts and of texts, proposed ones included.
    pub pass_rows: u64,
    /// Time in these passes.
    pub pass_time: Duration,
    /// What was proposed because it followed the same tokens before.
    pub looked_up: Verified,
    /// What a second model proposed.
    pub drafted: Verified,
}

impl DecodeLoad {
    /// All that was proposed and verified, by whomever.
    pub const fn verified(&self) -> Verified {
        Verified {
            proposed: self.looked_up.proposed + self.drafted.proposed,
            accepted: self.looked_up.accepted + self.drafted.accepted,
        }
    }
}

impl Counts {
    fn read(&self) -> Verified {
        Verified {
            proposed: self.proposed.load(Ordering::Relaxed),
            accepted: self.accepted.load(Ordering::Relaxed),
        }
    }
}

impl Gauges {
    pub(super) fn set_queue(&self, waiting: usize, active: usize) {
        self.waiting.store(waiting as u64, Ordering::Relaxed);
        self.active.store(active as u64, Ordering::Relaxed);
    }

    pub(super) fn set_held(&self, held: usize) {
        self.held.store(held as u64, Ordering::Relaxed);
    }

    pub(super) fn set_kv(&self, used: usize, blocks: usize, block_bytes: u64) {
        self.kv_blocks_used.store(used as u64, Ordering::Relaxed);
        self.kv_blocks.store(blocks as u64, Ordering::Relaxed);
        self.kv_block_bytes.store(block_bytes, Ordering::Relaxed);
    }

    pub(super) fn passed(&self, sequences: usize, rows: usize, took: Duration) {
        let nanos = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        self.pass_rows.fetch_add(rows as u64, Ordering::Relaxed);
        self.pass_nanos.fetch_add(nanos, Ordering::Relaxed);
        self.passes.fetch_add(1, Ordering::Relaxed);
        self.pass_sequences
            .fetch_add(sequences as u64, Ordering::Relaxed);
    }

    /// These proposals were verified, and so many of the first of them were right.
    pub(super) fn verified(&self, proposed: &[Proposed], accepted: usize) {
        for (at, proposed) in proposed.iter().enumerate() {
            let counts = if proposed.drafted {
                &self.drafted
            } else {
                &self.looked_up
            };
            let right = u64::from(at < accepted);
            counts.proposed.fetch_add(1, Ordering::Relaxed);
            counts.accepted.fetch_add(right, Ordering::Relaxed);
        }
    }

    pub(super) fn read(&self, call: Duration) -> DecodeLoad {
        let of = |value: &AtomicU64| value.load(Ordering::Relaxed);
        DecodeLoad {
            waiting: of(&self.waiting),
            active: of(&self.active),
            held: of(&self.held),
            kv_blocks_used: of(&self.kv_blocks_used),
            kv_blocks: of(&self.kv_blocks),
            kv_block_bytes: of(&self.kv_block_bytes),
            call,
            passes: of(&self.passes),
            pass_sequences: of(&self.pass_sequences),
            pass_rows: of(&self.pass_rows),
            pass_time: Duration::from_nanos(of(&self.pass_nanos)),
            looked_up: self.looked_up.read(),
            drafted: self.drafted.read(),
        }
    }
}
