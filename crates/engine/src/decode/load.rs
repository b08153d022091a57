//! How busy the decoder is, written by its thread once a pass and read by whoever shows it.

use std::sync::atomic::{AtomicU64, Ordering};

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
    proposed: AtomicU64,
    accepted: AtomicU64,
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
    /// KV blocks in all.
    pub kv_blocks: u64,
    /// Bytes of a KV block.
    pub kv_block_bytes: u64,
    /// Forward passes since the start.
    pub passes: u64,
    /// Sequences in these passes, all together: divided by `passes`, how full a pass is.
    pub pass_sequences: u64,
    /// Proposed tokens that were verified since the start.
    pub proposed: u64,
    /// Of these, those that were right.
    pub accepted: u64,
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

    pub(super) fn passed(&self, sequences: usize) {
        self.passes.fetch_add(1, Ordering::Relaxed);
        self.pass_sequences
            .fetch_add(sequences as u64, Ordering::Relaxed);
    }

    pub(super) fn verified(&self, proposed: u32, accepted: usize) {
        self.proposed.fetch_add(proposed.into(), Ordering::Relaxed);
        self.accepted.fetch_add(accepted as u64, Ordering::Relaxed);
    }

    pub(super) fn read(&self) -> DecodeLoad {
        let of = |value: &AtomicU64| value.load(Ordering::Relaxed);
        DecodeLoad {
            waiting: of(&self.waiting),
            active: of(&self.active),
            held: of(&self.held),
            kv_blocks_used: of(&self.kv_blocks_used),
            kv_blocks: of(&self.kv_blocks),
            kv_block_bytes: of(&self.kv_block_bytes),
            passes: of(&self.passes),
            pass_sequences: of(&self.pass_sequences),
            proposed: of(&self.proposed),
            accepted: of(&self.accepted),
        }
    }
}
